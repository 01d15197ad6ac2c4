//! How many allocations one user and all users may hold, and the rates of each user. Users whose names were issued for one account are
//! one user.

use super::auth;
use crate::limits::{Exceeded, Limit, Permit, Quota, SharedRateLimiter};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Users without an allocation whose rates are remembered: otherwise a user who deletes all allocations would start with a full rate.
const MAX_IDLE: usize = 1024;

/// Counts the allocations of all workers. It is called when an allocation is created or ends, never per packet.
#[derive(Debug)]
pub struct AllocationQuota {
    allocations: Arc<Quota<Arc<str>>>,
    users: Mutex<RateTable>,
}

#[derive(Debug)]
struct RateTable {
    limiters: HashMap<Arc<str>, Arc<UserLimiters>>,
    /// The number of users at which those without an allocation are forgotten.
    prune_at: usize,
}

/// The rates of one user, over all allocations.
#[derive(Debug, Default)]
struct UserLimiters {
    bandwidth: Arc<SharedRateLimiter>,
    new_peers: SharedRateLimiter,
}

impl AllocationQuota {
    /// Allows `per_user` allocations for each user name and `total` in all.
    #[must_use]
    pub fn new(per_user: u32, total: u32) -> Self {
        let users = RateTable { limiters: HashMap::new(), prune_at: MAX_IDLE };
        Self { allocations: Quota::new(total as usize, per_user as usize), users: Mutex::new(users) }
    }

    /// Acquires a permit for one allocation of `user`.
    ///
    /// # Errors
    /// [`Exceeded`] names the limit: the user's own (486) or the server's (508).
    pub(super) fn acquire(&self, user: &Arc<str>) -> Result<QuotaPermit, Exceeded> {
        let user = auth::account_of(user);
        let permit = self.allocations.acquire(Arc::clone(&user), 1).inspect_err(|exceeded| {
            let limit = match exceeded {
                Exceeded::Key => Limit::AllocationsPerUser,
                Exceeded::Total => Limit::MaxAllocations,
            };
            limit.reached(self.allocations.max(*exceeded));
        })?;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(QuotaPermit { limiters: users.limiters_of(user), _permit: permit })
    }

    /// Returns how many allocations are held in all.
    #[must_use]
    pub fn held(&self) -> u32 {
        u32::try_from(self.allocations.total()).unwrap_or(u32::MAX)
    }
}

impl RateTable {
    fn limiters_of(&mut self, user: Arc<str>) -> Arc<UserLimiters> {
        if self.limiters.len() >= self.prune_at && !self.limiters.contains_key(&user) {
            self.limiters.retain(|_, limiters| Arc::strong_count(limiters) > 1);
            self.prune_at = self.limiters.len() + MAX_IDLE;
        }
        Arc::clone(self.limiters.entry(user).or_default())
    }
}

/// A permit for one allocation, released on drop.
#[derive(Debug)]
pub(super) struct QuotaPermit {
    limiters: Arc<UserLimiters>,
    _permit: Permit<Arc<str>>,
}

impl QuotaPermit {
    /// Returns the limiter of the user's bandwidth.
    pub(super) fn bandwidth(&self) -> &Arc<SharedRateLimiter> {
        &self.limiters.bandwidth
    }

    /// Returns the limiter of the peers that are new to the user.
    pub(super) fn new_peers(&self) -> &SharedRateLimiter {
        &self.limiters.new_peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_run_out_per_user_and_in_all_and_come_back() {
        let quota = AllocationQuota::new(2, 3);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = quota.acquire(&a).unwrap();
        let _second = quota.acquire(&a).unwrap();
        assert_eq!(quota.acquire(&a).err(), Some(Exceeded::Key));
        let _third = quota.acquire(&b).unwrap();
        assert_eq!(quota.acquire(&b).err(), Some(Exceeded::Total));
        drop(first);
        assert_eq!(quota.held(), 2);
        assert!(quota.acquire(&a).is_ok());
    }

    #[test]
    fn names_minted_on_one_account_are_one_user_whose_limiters_outlive_its_allocations() {
        let quota = AllocationQuota::new(2, 10);
        let name = |number: u32, account: &str| Arc::from(format!("{}:tag{number}{account}", 100 + number));
        let own = "+aaaaaaaaaaaao";
        let permits: Vec<_> = (0..2).map(|number| quota.acquire(&name(number, own)).unwrap()).collect();
        assert!(Arc::ptr_eq(permits[0].bandwidth(), permits[1].bandwidth()));
        assert_eq!(quota.acquire(&name(2, own)).err(), Some(Exceeded::Key));
        let others = ["+baaaaaaaaaaao", ""].map(|account| quota.acquire(&name(2, account)).unwrap());
        assert!(others.iter().all(|other| !Arc::ptr_eq(other.bandwidth(), permits[0].bandwidth())));
        let limiter = Arc::clone(permits[0].bandwidth());
        drop((permits, others));
        assert!(Arc::ptr_eq(quota.acquire(&name(3, own)).unwrap().bandwidth(), &limiter));
        for number in 0..10_000 {
            quota.acquire(&name(number, "")).unwrap();
        }
        assert!(quota.users.lock().unwrap().limiters.len() <= MAX_IDLE);
    }
}
