//! How many allocations one user and all users may hold; tickets that return on drop.

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

#[derive(Debug, Default)]
struct Held {
    users: HashMap<Arc<str>, Account>,
    total: u32,
}

/// What one user holds.
#[derive(Debug, Default)]
struct Account {
    allocations: u32,
    meter: Arc<SharedMeter>,
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
    pub fn take(self: &Arc<Self>, user: &Arc<str>) -> Result<Ticket, Exhausted> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= self.total {
            Limit::MaxAllocations.reached(self.total);
            return Err(Exhausted::Total);
        }
        if held.users.get(user).is_some_and(|account| account.allocations >= self.per_user)
            || self.per_user == 0
        {
            Limit::AllocationsPerUser.reached(self.per_user);
            return Err(Exhausted::User);
        }
        let account = held.users.entry(Arc::clone(user)).or_default();
        account.allocations += 1;
        let meter = Arc::clone(&account.meter);
        held.total += 1;
        Ok(Ticket { quota: Arc::clone(self), user: Arc::clone(user), meter })
    }

    /// Returns how many allocations are held in all.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// The right to one allocation; dropping it gives the right back.
#[derive(Debug)]
pub struct Ticket {
    quota: Arc<Quota>,
    user: Arc<str>,
    meter: Arc<SharedMeter>,
}

impl Ticket {
    /// Returns what measures the user's bandwidth.
    pub(super) fn meter(&self) -> &Arc<SharedMeter> {
        &self.meter
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.quota.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        if let Some(account) = held.users.get_mut(&self.user) {
            account.allocations -= 1;
            if account.allocations == 0 {
                held.users.remove(&self.user);
            }
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
}
