//! Names whose time-limited credentials are revoked before they expire.

use crate::limits::Limit;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Revoked names, each until the last credentials issued for it expire (Unix seconds). Shared by all that revoke, issue and check
/// credentials.
#[derive(Debug)]
pub struct RevocationList {
    cap: usize,
    /// Whether the list has entries: most servers have none, and need not take the lock.
    any: AtomicBool,
    names: RwLock<HashMap<Box<str>, u64>>,
}

/// The list is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many names are revoked at a time")]
pub struct RevocationListFull;

impl Default for RevocationList {
    fn default() -> Self {
        Self::new(10_000)
    }
}

impl RevocationList {
    /// Creates a list of at most `cap` names.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { cap, any: AtomicBool::new(false), names: RwLock::default() }
    }

    /// Revokes `name` until `until`, or longer if it is revoked for longer already.
    ///
    /// # Errors
    /// `RevocationListFull` when the list is full.
    pub fn revoke(&self, unix: u64, name: &str, until: u64) -> Result<(), RevocationListFull> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = names.get_mut(name) {
            *before = until.max(*before);
            return Ok(());
        }
        if names.len() >= self.cap {
            names.retain(|_, until| unix < *until);
        }
        if names.len() >= self.cap {
            Limit::SignalingRevocations.reached(self.cap);
            return Err(RevocationListFull);
        }
        names.insert(name.into(), until);
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// Removes a revocation; returns whether there was one.
    pub fn restore(&self, name: &str) -> bool {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let was_there = names.remove(name).is_some();
        self.any.store(!names.is_empty(), Ordering::Release);
        was_there
    }

    /// Returns whether `name` is revoked.
    #[must_use]
    pub fn holds(&self, unix: u64, name: &str) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(name).is_some_and(|until| unix < *until)
    }

    /// Returns the revoked names, sorted, and until when.
    #[must_use]
    pub fn all(&self, unix: u64) -> Vec<(Box<str>, u64)> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let current = names.iter().filter(|(_, until)| unix < **until);
        let mut all: Vec<_> = current.map(|(name, until)| (name.clone(), *until)).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_revoked_until_its_credentials_end_or_it_is_taken_back() {
        let revoked = RevocationList::default();
        revoked.revoke(0, "a", 100).unwrap();
        revoked.revoke(0, "a", 50).unwrap();
        revoked.revoke(0, "b", 60).unwrap();
        assert!(revoked.holds(99, "a") && !revoked.holds(100, "a") && !revoked.holds(0, "c"));
        assert_eq!(revoked.all(59), [("a".into(), 100), ("b".into(), 60)]);
        assert_eq!(revoked.all(60), [("a".into(), 100)]);
        assert!(revoked.restore("a") && !revoked.restore("a") && !revoked.holds(0, "a"));
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_are_over_make_it() {
        let revoked = RevocationList::new(2);
        revoked.revoke(0, "a", 10).unwrap();
        revoked.revoke(0, "b", 20).unwrap();
        assert_eq!(revoked.revoke(9, "c", 30), Err(RevocationListFull));
        assert_eq!(revoked.revoke(9, "b", 30), Ok(()));
        assert_eq!(revoked.revoke(10, "c", 30), Ok(()));
        assert!(!revoked.holds(0, "a") && revoked.holds(29, "b"));
    }
}
