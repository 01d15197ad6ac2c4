//! How many allocations one user and all users may hold; tickets that return on drop. Users whose names were minted on one account are one.

use super::auth;
use super::rate::SharedMeter;
use crate::limits::Limit;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts allocations over all workers. It is asked when an allocation begins and ends, never per packet.
#[derive(Debug)]
pub struct Quota {
    per_user: u32,
    total: u32,
    held: Mutex<Held>,
}

/// Users without an allocation whose meters are remembered: whoever gave his allocations back would else begin anew.
const MAX_IDLE: usize = 1024;

#[derive(Debug, Default)]
struct Held {
    users: HashMap<Arc<str>, Account>,
    /// How many of them hold nothing.
    idle: usize,
    total: u32,
}

/// What one user holds.
#[derive(Debug, Default)]
struct Account {
    allocations: u32,
    meters: Arc<UserMeters>,
}

/// What is measured of one user, over all allocations.
#[derive(Debug, Default)]
struct UserMeters {
    bandwidth: Arc<SharedMeter>,
    new_peers: SharedMeter,
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The user's own (486).
    User,
    /// The server's (508).
    Total,
}

impl Quota {
    /// Allows `per_user` allocations for each user name and `total` in all.
    #[must_use]
    pub fn new(per_user: u32, total: u32) -> Self {
        Self { per_user, total, held: Mutex::default() }
    }

    /// Takes a ticket for one allocation of `user`.
    ///
    /// # Errors
    /// [`Exhausted`] names the limit.
    pub fn take(self: &Arc<Self>, user: &Arc<str>) -> Result<QuotaPermit, Exhausted> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= self.total {
            Limit::MaxAllocations.reached(self.total);
            return Err(Exhausted::Total);
        }
        let user = auth::account_of(user);
        if held.users.get(&user).is_some_and(|account| account.allocations >= self.per_user)
            || self.per_user == 0
        {
            Limit::AllocationsPerUser.reached(self.per_user);
            return Err(Exhausted::User);
        }
        held.total += 1;
        let known = held.users.contains_key(&user);
        let account = held.users.entry(Arc::clone(&user)).or_default();
        let was_idle = known && account.allocations == 0;
        account.allocations += 1;
        let meters = Arc::clone(&account.meters);
        held.idle -= usize::from(was_idle);
        Ok(QuotaPermit { quota: Arc::clone(self), user, meters })
    }

    /// Returns how many allocations are held in all.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// The right to one allocation; dropping it gives the right back.
#[derive(Debug)]
pub struct QuotaPermit {
    quota: Arc<Quota>,
    user: Arc<str>,
    meters: Arc<UserMeters>,
}

impl QuotaPermit {
    /// Returns what measures the user's bandwidth.
    pub(super) fn meter(&self) -> &Arc<SharedMeter> {
        &self.meters.bandwidth
    }

    /// Returns what measures how fast peers are new to the user.
    pub(super) fn new_peers(&self) -> &SharedMeter {
        &self.meters.new_peers
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        let mut held = self.quota.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        let Some(account) = held.users.get_mut(&self.user) else { return };
        account.allocations -= 1;
        if account.allocations > 0 {
            return;
        }
        held.idle += 1;
        if held.idle > MAX_IDLE {
            held.users.retain(|_, account| account.allocations > 0);
            held.idle = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_run_out_per_user_and_in_all_and_come_back() {
        let quota = Arc::new(Quota::new(2, 3));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = quota.take(&a).unwrap();
        let _second = quota.take(&a).unwrap();
        assert_eq!(quota.take(&a).err(), Some(Exhausted::User));
        let _third = quota.take(&b).unwrap();
        assert_eq!(quota.take(&b).err(), Some(Exhausted::Total));
        drop(first);
        assert_eq!(quota.held(), 2);
        assert!(quota.take(&a).is_ok());
    }

    #[test]
    fn names_minted_on_one_account_are_one_user_whose_meters_outlive_its_allocations() {
        let quota = Arc::new(Quota::new(2, 10));
        let name = |number: u32, account: &str| Arc::from(format!("{}:tag{number}{account}", 100 + number));
        let own = "+aaaaaaaaaaaao";
        let tickets: Vec<_> = (0..2).map(|number| quota.take(&name(number, own)).unwrap()).collect();
        assert!(Arc::ptr_eq(tickets[0].meter(), tickets[1].meter()));
        assert_eq!(quota.take(&name(2, own)).err(), Some(Exhausted::User));
        let others = ["+baaaaaaaaaaao", ""].map(|account| quota.take(&name(2, account)).unwrap());
        assert!(others.iter().all(|other| !Arc::ptr_eq(other.meter(), tickets[0].meter())));
        let meter = Arc::clone(tickets[0].meter());
        drop((tickets, others));
        assert!(Arc::ptr_eq(quota.take(&name(3, own)).unwrap().meter(), &meter));
        for number in 0..10_000 {
            quota.take(&name(number, "")).unwrap();
        }
        assert!(quota.held.lock().unwrap().users.len() <= MAX_IDLE + 1);
    }
}
