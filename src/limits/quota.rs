//! The quota: how much of something all keys, and one key, may hold at a time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which limit of a [`Quota`] is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// The limit of the key.
    Key,
    /// The limit of all keys together.
    Total,
}

/// Counts what is held: in all, and by each key. A key that holds nothing takes no memory. Not for the packet path: it takes a lock.
#[derive(Debug)]
pub(crate) struct Quota<K> {
    max_total: usize,
    max_per_key: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

/// The right to hold an amount; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit<K: Eq + Hash> {
    quota: Arc<Quota<K>>,
    key: K,
    amount: usize,
}

impl<K: Clone + Eq + Hash> Quota<K> {
    pub(crate) fn new(max_total: usize, max_per_key: usize) -> Arc<Self> {
        let held = Mutex::new(Held { total: 0, by_key: HashMap::new() });
        Arc::new(Self { max_total, max_per_key, held })
    }

    /// Returns the limit that `exceeded` names.
    pub(crate) fn max(&self, exceeded: Exceeded) -> usize {
        match exceeded {
            Exceeded::Key => self.max_per_key,
            Exceeded::Total => self.max_total,
        }
    }

    /// Returns how much all keys hold together.
    pub(crate) fn total(&self) -> usize {
        self.held().total
    }

    /// Takes `amount` for `key`.
    ///
    /// # Errors
    /// [`Exceeded`] names the limit that would be exceeded; nothing is taken then.
    pub(crate) fn acquire(self: &Arc<Self>, key: K, amount: usize) -> Result<Permit<K>, Exceeded> {
        let mut held = self.held();
        let fits = held.total + amount <= self.max_total;
        // A key that exceeds its own limit gets that error.
        held.add(&key, amount, self.max_per_key)?;
        if !fits {
            held.remove(&key, amount);
            return Err(Exceeded::Total);
        }
        held.total += amount;
        drop(held);
        Ok(Permit { quota: Arc::clone(self), key, amount })
    }
}

impl<K> Quota<K> {
    fn held(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Held<K> {
    fn add(&mut self, key: &K, amount: usize, max: usize) -> Result<(), Exceeded>
    where
        K: Clone,
    {
        let own = self.by_key.get(key).copied().unwrap_or_default();
        if own + amount > max {
            return Err(Exceeded::Key);
        }
        self.by_key.insert(key.clone(), own + amount);
        Ok(())
    }

    fn remove(&mut self, key: &K, amount: usize) {
        if let Some(own) = self.by_key.get_mut(key) {
            *own -= amount;
            if *own == 0 {
                self.by_key.remove(key);
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Permit<K> {
    /// Holds the amount for `key` from now on; the total stays.
    ///
    /// # Errors
    /// [`Exceeded::Key`] where that is over the limit of `key`; the permit stays as it is.
    pub(crate) fn reassign(&mut self, key: K) -> Result<(), Exceeded> {
        if key == self.key {
            return Ok(());
        }
        let mut held = self.quota.held();
        held.add(&key, self.amount, self.quota.max_per_key)?;
        held.remove(&self.key, self.amount);
        drop(held);
        self.key = key;
        Ok(())
    }
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = self.quota.held();
        held.total -= self.amount;
        held.remove(&self.key, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_nothing_is_kept_of_keys_that_hold_nothing() {
        let quota = Quota::new(3, 2);
        let permits = ["a", "a", "b"].map(|key| quota.acquire(key, 1).unwrap());
        assert_eq!(quota.acquire("a", 1).err(), Some(Exceeded::Key), "of both limits its own");
        assert_eq!(quota.acquire("c", 1).err(), Some(Exceeded::Total));
        drop(permits);
        let _own = ["a", "a"].map(|key| quota.acquire(key, 1).unwrap());
        assert_eq!(quota.acquire("a", 1).err(), Some(Exceeded::Key));
        assert_eq!((quota.total(), quota.held().by_key.len()), (2, 1));
    }

    #[test]
    fn an_amount_is_held_until_its_permit_is_dropped() {
        let quota = Quota::new(80, 10);
        let own = quota.acquire(1, 10).unwrap();
        assert_eq!(quota.acquire(1, 1).err(), Some(Exceeded::Key));
        let others: Vec<_> = (2..20).filter_map(|key| quota.acquire(key, 10).ok()).collect();
        assert_eq!((others.len(), quota.total()), (7, 80));
        drop(own);
        assert!(quota.acquire(1, 10).is_ok());
        drop(others);
        assert!(quota.total() == 0 && quota.held().by_key.is_empty());
    }

    #[test]
    fn a_permit_is_reassigned_within_the_limit_of_its_new_key() {
        let quota = Quota::new(2, 1);
        let [mut a, b] = ["a", "b"].map(|key| quota.acquire(key, 1).unwrap());
        assert_eq!(a.reassign("a"), Ok(()));
        assert_eq!((a.reassign("b"), a.key), (Err(Exceeded::Key), "a"));
        assert_eq!((a.reassign("c"), a.key), (Ok(()), "c"));
        drop(b);
        assert!(quota.acquire("a", 1).is_ok() && quota.acquire("c", 1).is_err());
        drop(a);
        assert!(quota.total() == 0 && quota.held().by_key.is_empty());
    }
}
