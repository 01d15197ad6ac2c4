//! How much is sent to addresses that have not answered: a peer names them, and may name those of others.

use crate::clock::{TickBase, Ticks};
use crate::limits::{Rate, RateLimiter};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Packets to one IP address that has not answered, responses included: a second, and at once.
pub(super) const PER_ADDRESS: (f64, f64) = (20.0, 100.0);
/// Checks to all such addresses together.
pub(super) const IN_TOTAL: (f64, f64) = (50.0, 400.0);
/// For how long an answer counts: as long as consent (RFC 7675).
const ANSWERED: Duration = Duration::from_secs(30);
/// Addresses that are remembered. All of them are idle after 5 s without packets.
const MAX_ADDRESSES: usize = 1024;
/// The wait for a check that is over the budget.
pub(super) const POSTPONED: Duration = Duration::from_millis(100);

/// What an address may get.
#[derive(Debug, Default)]
struct Address {
    limiter: RateLimiter,
    answered: Option<Instant>,
}

impl Address {
    fn has_answered(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now < at + ANSWERED)
    }
}

/// The budget of an agent.
#[derive(Debug)]
pub(super) struct ProbeBudget {
    base: Option<TickBase>,
    per_address: Rate,
    in_total: Rate,
    total: RateLimiter,
    addresses: HashMap<IpAddr, Address>,
}

impl ProbeBudget {
    pub(super) fn new() -> Self {
        Self {
            base: None,
            per_address: Rate::new(PER_ADDRESS.0, PER_ADDRESS.1),
            in_total: Rate::new(IN_TOTAL.0, IN_TOTAL.1),
            total: RateLimiter::default(),
            addresses: HashMap::new(),
        }
    }

    /// Handles that an address has answered a check.
    pub(super) fn on_answer(&mut self, now: Instant, ip: IpAddr) {
        let ticks = self.ticks(now);
        if let Some(address) = self.address(now, ticks, ip) {
            address.answered = Some(now);
        }
    }

    /// Returns whether a check to an address may be sent now.
    pub(super) fn may_check(&mut self, now: Instant, ip: IpAddr) -> bool {
        let (ticks, per_address, in_total) = (self.ticks(now), self.per_address, self.in_total);
        let mut total = self.total;
        let Some(address) = self.address(now, ticks, ip) else { return false };
        let mut limiter = address.limiter;
        address.has_answered(now)
            || total.try_take(in_total, ticks, 1) && limiter.try_take(per_address, ticks, 1)
    }

    /// Takes a check to an address that may be sent.
    pub(super) fn take_check(&mut self, now: Instant, ip: IpAddr) {
        let (ticks, per_address, in_total) = (self.ticks(now), self.per_address, self.in_total);
        let Some(address) = self.address(now, ticks, ip) else { return };
        if !address.has_answered(now) {
            address.limiter.try_take(per_address, ticks, 1);
            self.total.try_take(in_total, ticks, 1);
        }
    }

    /// Takes datagrams of data to an address, each as a check; returns how many may be sent.
    pub(super) fn take_data(&mut self, now: Instant, ip: IpAddr, most: usize) -> usize {
        let may_send = |budget: &mut Self| {
            let may_check = budget.may_check(now, ip);
            if may_check {
                budget.take_check(now, ip);
            }
            may_check
        };
        (0..most).take_while(|_| may_send(self)).count()
    }

    /// Takes a response to an address; `false` if it is dropped.
    pub(super) fn take_response(&mut self, now: Instant, ip: IpAddr) -> bool {
        let (ticks, per_address) = (self.ticks(now), self.per_address);
        let Some(address) = self.address(now, ticks, ip) else { return false };
        address.has_answered(now) || address.limiter.try_take(per_address, ticks, 1)
    }

    /// Returns the entry of an address; `None` while there are too many.
    fn address(&mut self, now: Instant, ticks: Ticks, ip: IpAddr) -> Option<&mut Address> {
        if !self.addresses.contains_key(&ip) && self.addresses.len() >= MAX_ADDRESSES {
            self.addresses
                .retain(|_, address| address.has_answered(now) || address.limiter.idle_from() > ticks);
            if self.addresses.len() >= MAX_ADDRESSES {
                return None;
            }
        }
        Some(self.addresses.entry(ip).or_default())
    }

    fn ticks(&mut self, now: Instant) -> Ticks {
        self.base.get_or_insert_with(|| TickBase::new(now)).ticks(now)
    }

    #[cfg(test)]
    pub(super) fn addresses(&self) -> usize {
        self.addresses.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::mono;

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    fn check(budget: &mut ProbeBudget, now: Instant, ip: IpAddr) -> bool {
        let passes = budget.may_check(now, ip);
        if passes {
            budget.take_check(now, ip);
        }
        passes
    }

    #[test]
    fn an_address_gets_a_burst_and_then_the_rate_until_it_answers() {
        let (mut budget, start) = (ProbeBudget::new(), mono());
        let taken = |budget: &mut ProbeBudget, now| (0..500).filter(|_| check(budget, now, ip(1))).count();
        assert_eq!(taken(&mut budget, start), 100);
        assert!(!budget.take_response(start, ip(1)), "responses count as well");
        assert_eq!(taken(&mut budget, start + Duration::from_secs(1)), 20);
        budget.on_answer(start, ip(1));
        assert_eq!(taken(&mut budget, start + Duration::from_secs(2)), 500);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(31)), 100);
    }

    #[test]
    fn all_addresses_together_get_no_more_than_the_total() {
        let (mut budget, start) = (ProbeBudget::new(), mono());
        let taken = (0..5000).filter(|number| check(&mut budget, start, ip(number % 1000))).count();
        assert_eq!(taken, 400);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..5000).filter(|number| check(&mut budget, later, ip(number % 1000))).count(), 50);
    }

    #[test]
    fn the_table_of_addresses_is_bounded_and_idle_ones_give_way() {
        let (mut budget, start) = (ProbeBudget::new(), mono());
        let passed = (0..5000).filter(|number| budget.take_response(start, ip(*number))).count();
        assert_eq!((passed, budget.addresses()), (MAX_ADDRESSES, MAX_ADDRESSES));
        assert!(budget.take_response(start + Duration::from_secs(5), ip(6000)));
        assert_eq!(budget.addresses(), 1);
    }
}
