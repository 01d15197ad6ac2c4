//! How fast an endpoint, and all endpoints of one address, may go on after Dials that were refused. Pure.

use super::budget::Network;
use crate::limits::Limit;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Refused Dials of one client at once, and a second from then on.
const BURST: u32 = 50;
const RATE: u32 = 10;
/// How many times as many all clients of one address have.
const PER_ADDRESS: u32 = 10;
/// How many times as many a server has, who speaks with many.
const PER_SERVER: u32 = 64;
/// How many addresses are remembered; the others share one place.
const MOST: usize = 16_384;

/// When so much of a burst is left as there was at the beginning (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    full_at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one of `times` as many as a client has; returns how long to wait before the next.
    fn take(&mut self, now: Instant, times: u32) -> Duration {
        let interval = Duration::from_secs(1) / (RATE * times);
        self.full_at = self.full_at.max(now) + interval;
        self.full_at.saturating_duration_since(now).saturating_sub(interval * BURST * times)
    }
}

/// The paces of addresses.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    networks: HashMap<Network, Pace>,
    others: Option<Pace>,
}

impl Refusals {
    /// Counts a Dial that was refused; returns for how long its endpoint is not to be read.
    pub(super) fn count(&mut self, now: Instant, network: Network, own: &mut Pace) -> Duration {
        if network.is_none() {
            return own.take(now, PER_SERVER);
        }
        if self.networks.len() >= MOST && !self.networks.contains_key(&network) {
            self.networks.retain(|_, pace| pace.full_at > now);
        }
        let is_one_of_many = self.networks.len() >= MOST && !self.networks.contains_key(&network);
        let pace = match is_one_of_many {
            true => self.others.get_or_insert(Pace::new(now)),
            false => self.networks.entry(network).or_insert(Pace::new(now)),
        };
        let wait = own.take(now, 1).max(pace.take(now, PER_ADDRESS));
        if !wait.is_zero() {
            Limit::GatewayRefusals.reached(RATE);
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::budget::network;
    use crate::net::time::now;

    #[test]
    fn a_burst_costs_nothing_and_what_follows_has_its_pace() {
        let (start, mut refusals) = (now().mono, Refusals::default());
        let (home, mut own) = (network([192, 0, 2, 1].into()), Pace::new(start));
        let mut waits = (0..60).map(|_| refusals.count(start, home, &mut own));
        assert!(waits.by_ref().take(50).all(|wait| wait.is_zero()));
        assert_eq!(waits.last(), Some(Duration::from_secs(1)));
        let mut server = Pace::new(start);
        assert!((0..3000).all(|_| refusals.count(start, None, &mut server).is_zero()));
    }

    #[test]
    fn one_address_has_ten_times_as_many_in_however_many_connections() {
        let (start, mut refusals) = (now().mono, Refusals::default());
        let home = network([192, 0, 2, 1].into());
        let passed =
            (0..1000).filter(|_| refusals.count(start, home, &mut Pace::new(start)).is_zero()).count();
        assert_eq!(passed, 500);
        assert!(refusals.count(start, network([192, 0, 2, 2].into()), &mut Pace::new(start)).is_zero());
    }

    #[test]
    fn no_more_addresses_are_remembered_than_there_are_places() {
        let (start, mut refusals) = (now().mono, Refusals::default());
        for ip in 0..40_000_u32 {
            refusals.count(start, network(ip.to_be_bytes().into()), &mut Pace::new(start));
        }
        assert_eq!(refusals.networks.len(), MOST);
        let later = start + Duration::from_secs(60);
        refusals.count(later, network([1, 2, 3, 4].into()), &mut Pace::new(later));
        assert_eq!(refusals.networks.len(), 1);
    }
}
