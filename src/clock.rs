//! Time as a value: machines are handed [`Now`] and never read a clock.
//!
//! [`Deadlines`] keeps one deadline per key for a machine's timers. Both are pure, so that expiry is tested
//! without waiting.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// One moment, read once by the hands and passed to every machine they call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for every timer and lifetime.
    pub mono: Instant,
    /// Seconds since the Unix epoch, for credential expiry and nothing else.
    pub unix: u64,
}

impl Now {
    /// Returns the moment `by` later on both clocks.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { mono: self.mono + by, unix: self.unix + by.as_secs() }
    }
}

/// Keeps at most one deadline per key and yields the keys whose time has come, earliest first.
#[derive(Debug, Clone)]
pub struct Deadlines<K> {
    by_key: HashMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Copy + Eq + Hash + Ord> Deadlines<K> {
    /// Sets the deadline of `key`, replacing an earlier one.
    pub fn set(&mut self, key: K, at: Instant) {
        if let Some(old) = self.by_key.insert(key, at) {
            self.by_time.remove(&(old, key));
        }
        self.by_time.insert((at, key));
    }

    /// Forgets the deadline of `key`, if it has one.
    pub fn clear(&mut self, key: K) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }

    /// Returns the earliest deadline, for the hands' timer.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the earliest key whose deadline is at or before `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (at, key) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_key.remove(&key);
        Some(key)
    }

    /// Returns how many keys have a deadline.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Returns whether no key has a deadline.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;

    #[test]
    fn the_earliest_deadline_comes_first_and_only_when_due() {
        let start = now().mono;
        let mut deadlines = Deadlines::default();
        deadlines.set("late", start + Duration::from_secs(9));
        deadlines.set("soon", start + Duration::from_secs(2));
        assert_eq!(deadlines.next(), Some(start + Duration::from_secs(2)));
        assert_eq!(deadlines.pop_due(start), None);
        assert_eq!(deadlines.pop_due(start + Duration::from_secs(2)), Some("soon"));
        assert_eq!(deadlines.pop_due(start + Duration::from_secs(2)), None);
        assert_eq!(deadlines.len(), 1);
    }

    #[test]
    fn setting_again_moves_the_deadline_and_clearing_removes_it() {
        let start = now().mono;
        let mut deadlines = Deadlines::default();
        deadlines.set(1, start + Duration::from_secs(1));
        deadlines.set(1, start + Duration::from_secs(5));
        assert_eq!(deadlines.pop_due(start + Duration::from_secs(3)), None);
        deadlines.clear(1);
        assert!(deadlines.is_empty());
        assert_eq!(deadlines.next(), None);
    }
}
