//! A hierarchical timing wheel (Varghese and Lauck, 1987): setting, moving and clearing a deadline touch a few list nodes, however
//! many there are. Slots are coarse, deadlines are not: they are kept to the nanosecond and come out in their exact order.

use hashbrown::HashTable;
use slab::Slab;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

/// A tick is 2^23 nanoseconds, 8.4 ms.
const TICK_BITS: u32 = 23;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// The six levels' slots are 8.4 ms, 537 ms, 34 s, 37 minutes, 39 hours and 104 days wide.
const LEVELS: usize = 6;
/// How long before the first deadline that is set the wheel begins. What is earlier still is kept in order instead.
const HEADROOM: Duration = Duration::from_secs(24 * 3600);
/// Slots with more timers than this are not searched for their earliest.
const FEW: u32 = 8;
/// No timer.
const NIL: u32 = u32::MAX;
/// The place of what is due within the current tick.
const DUE: u16 = u16::MAX;

/// Keeps at most one deadline per key and yields the keys whose time has come, earliest first.
#[derive(Debug, Clone)]
pub(crate) struct Deadlines<K> {
    /// The beginning of the first tick.
    origin: Option<Instant>,
    /// The tick that time has come to.
    elapsed: u64,
    timers: Slab<Timer<K>>,
    by_key: HashTable<u32>,
    hasher: RandomState,
    slots: Vec<Slot>,
    /// A bit for each slot of a level that is not empty.
    occupied: [u64; LEVELS],
    /// Everything up to the current tick.
    due: BTreeSet<(i64, K)>,
}

#[derive(Debug, Clone)]
struct Timer<K> {
    key: K,
    /// Nanoseconds since the origin.
    at: i64,
    previous: u32,
    next: u32,
    place: u16,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    first: u32,
    len: u32,
    /// The earliest deadline, or that of an earlier one that is not there any more.
    earliest: i64,
}

const EMPTY: Slot = Slot { first: NIL, len: 0, earliest: i64::MAX };

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self {
            origin: None,
            elapsed: 0,
            timers: Slab::new(),
            by_key: HashTable::new(),
            hasher: RandomState::new(),
            slots: Vec::new(),
            occupied: [0; LEVELS],
            due: BTreeSet::new(),
        }
    }
}

impl<K: Copy + Eq + Hash + Ord> Deadlines<K> {
    /// Sets the deadline of `key`, replacing an earlier one.
    pub(crate) fn set(&mut self, key: K, at: Instant) {
        if self.origin.is_none() {
            self.origin = Some(at.checked_sub(HEADROOM).unwrap_or(at));
            self.slots = vec![EMPTY; LEVELS * SLOTS];
        }
        let at = self.nanos(at);
        let timer = match self.find(key) {
            Some(timer) => {
                self.unlink(timer);
                timer
            }
            None => self.add(key),
        };
        self.timers[timer].at = at;
        self.link(timer);
    }

    /// Forgets the deadline of `key`, if it has one.
    pub(crate) fn clear(&mut self, key: K) {
        if let Some(timer) = self.find(key) {
            self.unlink(timer);
            self.remove(timer);
        }
    }

    /// Returns the earliest deadline. If many are close together, it may be that of a cleared one: nothing is due then, and the
    /// next call returns the next one.
    pub(crate) fn next(&self) -> Option<Instant> {
        let in_wheel = self.first_slot().map(|(place, _)| self.slots[place].earliest);
        let due = self.due.first().map(|(at, _)| *at);
        let earliest = due.into_iter().chain(in_wheel).min()?;
        self.instant(earliest)
    }

    /// Takes the earliest key whose deadline is at or before `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.timers.is_empty() {
            return None;
        }
        let now = self.nanos(now);
        self.advance(tick(now));
        let (at, key) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.pop_first();
        if let Some(timer) = self.find(key) {
            self.remove(timer);
        }
        Some(key)
    }

    /// Returns how many keys have a deadline.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.timers.len()
    }

    /// Returns whether no key has a deadline.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    fn nanos(&self, at: Instant) -> i64 {
        let Some(origin) = self.origin else { return 0 };
        let nanos = |by: Duration| i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        match at.checked_duration_since(origin) {
            Some(since) => nanos(since),
            None => -nanos(origin.saturating_duration_since(at)),
        }
    }

    fn instant(&self, at: i64) -> Option<Instant> {
        let by = Duration::from_nanos(at.unsigned_abs());
        if at < 0 { self.origin?.checked_sub(by) } else { self.origin?.checked_add(by) }
    }

    fn find(&self, key: K) -> Option<usize> {
        let is_it = |timer: &u32| self.timers[*timer as usize].key == key;
        self.by_key.find(self.hasher.hash_one(key), is_it).map(|timer| *timer as usize)
    }

    fn add(&mut self, key: K) -> usize {
        let timer = self.timers.insert(Timer { key, at: 0, previous: NIL, next: NIL, place: DUE });
        let hash = |timer: &u32| self.hasher.hash_one(self.timers[*timer as usize].key);
        self.by_key.insert_unique(self.hasher.hash_one(key), timer as u32, hash);
        timer
    }

    fn remove(&mut self, timer: usize) {
        let key = self.timers.remove(timer).key;
        if let Ok(entry) = self.by_key.find_entry(self.hasher.hash_one(key), |other| *other as usize == timer)
        {
            entry.remove();
        }
    }

    /// Returns the place of the earliest slot that is not empty, and the tick at which it begins: a slot that differs from the
    /// current tick only in lower digits is earlier.
    fn first_slot(&self) -> Option<(usize, u64)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let index = self.occupied[level].trailing_zeros() as usize;
        let shift = SLOT_BITS * level as u32;
        let rotation = self.elapsed >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        Some((level * SLOTS + index, rotation | ((index as u64) << shift)))
    }

    /// Lets time pass up to `tick`: what comes near moves down to finer levels.
    fn advance(&mut self, tick: u64) {
        while let Some((place, begins)) = self.first_slot()
            && begins <= tick
        {
            self.elapsed = begins;
            let mut next = std::mem::replace(&mut self.slots[place], EMPTY).first;
            self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
            while next != NIL {
                let timer = next as usize;
                next = self.timers[timer].next;
                self.link(timer);
            }
        }
        self.elapsed = self.elapsed.max(tick);
    }

    fn link(&mut self, timer: usize) {
        let Timer { key, at, .. } = self.timers[timer];
        // What lies beyond the last level waits in its last slot.
        let horizon = self.elapsed | ((1 << (SLOT_BITS * LEVELS as u32)) - 1);
        let tick = tick(at).min(horizon);
        if tick <= self.elapsed {
            self.timers[timer].place = DUE;
            self.due.insert((at, key));
            return;
        }
        let level = (tick ^ self.elapsed).ilog2() / SLOT_BITS;
        let index = (tick >> (SLOT_BITS * level)) as usize % SLOTS;
        self.occupied[level as usize] |= 1 << index;
        let place = level as usize * SLOTS + index;
        let slot = &mut self.slots[place];
        let second = std::mem::replace(&mut slot.first, timer as u32);
        slot.len += 1;
        slot.earliest = slot.earliest.min(at);
        if let Some(second) = self.timers.get_mut(second as usize) {
            second.previous = timer as u32;
        }
        let linked = Timer { key, at, previous: NIL, next: second, place: place as u16 };
        self.timers[timer] = linked;
    }

    fn unlink(&mut self, timer: usize) {
        let Timer { key, at, previous, next, place } = self.timers[timer];
        if place == DUE {
            self.due.remove(&(at, key));
            return;
        }
        if let Some(next) = self.timers.get_mut(next as usize) {
            next.previous = previous;
        }
        let slot = &mut self.slots[usize::from(place)];
        slot.len -= 1;
        match self.timers.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => slot.first = next,
        }
        if slot.len == 0 {
            *slot = EMPTY;
            self.occupied[usize::from(place) / SLOTS] &= !(1 << (usize::from(place) % SLOTS));
        } else if slot.len <= FEW && slot.earliest == at {
            slot.earliest = i64::MAX;
            let mut next = slot.first;
            while let Some(timer) = self.timers.get(next as usize) {
                slot.earliest = slot.earliest.min(timer.at);
                next = timer.next;
            }
        }
    }
}

fn tick(at: i64) -> u64 {
    at.max(0).unsigned_abs() >> TICK_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

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

    #[test]
    fn a_deadline_beyond_the_last_level_comes_in_its_time() {
        let start = now().mono;
        let year = Duration::from_secs(365 * 24 * 3600);
        let mut deadlines = Deadlines::default();
        deadlines.set("soon", start);
        deadlines.set("far", start + 60 * year);
        assert_eq!(deadlines.pop_due(start), Some("soon"));
        for years in (1..60).step_by(7) {
            assert_eq!(deadlines.pop_due(start + years * year), None);
        }
        assert_eq!(deadlines.pop_due(start + 60 * year), Some("far"));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, Duration),
        Clear(u8),
        Pass(Duration),
        Pop,
    }

    fn step() -> impl Strategy<Value = Step> {
        let span = || {
            prop_oneof![
                (0..20_000_000_u64).prop_map(Duration::from_nanos),
                (0..100_000_u64).prop_map(Duration::from_millis),
                (0..10_000_000_u64).prop_map(Duration::from_secs),
            ]
        };
        prop_oneof![
            4 => (any::<u8>(), span()).prop_map(|(key, after)| Step::Set(key, after)),
            1 => any::<u8>().prop_map(Step::Clear),
            2 => span().prop_map(Step::Pass),
            2 => Just(Step::Pop),
        ]
    }

    proptest! {
        #[test]
        fn the_wheel_keeps_time_like_a_sorted_list(steps in proptest::collection::vec(step(), 0..300)) {
            let mut now = now().mono;
            let mut deadlines = Deadlines::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(key, after) => {
                        deadlines.set(key, now + after);
                        model.insert(key, now + after);
                    }
                    Step::Clear(key) => {
                        deadlines.clear(key);
                        model.remove(&key);
                    }
                    Step::Pass(by) => now += by,
                    Step::Pop => loop {
                        let earliest = model.iter().map(|(key, at)| (*at, *key)).min();
                        let due = earliest.filter(|(at, _)| *at <= now).map(|(_, key)| key);
                        prop_assert_eq!(deadlines.pop_due(now), due);
                        let Some(due) = due else { break };
                        model.remove(&due);
                    },
                }
                prop_assert_eq!(deadlines.len(), model.len());
                let (next, earliest) = (deadlines.next(), model.values().min().copied());
                prop_assert_eq!(next.is_some(), earliest.is_some());
                prop_assert!(next <= earliest, "never late");
                if model.len() <= FEW as usize {
                    prop_assert_eq!(next, earliest);
                }
            }
        }

        #[test]
        fn waiting_for_the_next_deadline_comes_to_every_one_of_them(
            after in proptest::collection::vec(0..10_000_000_000_000_u64, 0..300)
        ) {
            let start = now().mono;
            let mut deadlines = Deadlines::default();
            for (key, after) in after.iter().enumerate() {
                deadlines.set(key, start + Duration::from_nanos(*after));
            }
            (0..after.len()).step_by(3).for_each(|key| deadlines.clear(key));
            let (mut waits, mut came) = (0, 0);
            while let Some(next) = deadlines.next() {
                waits += 1;
                while let Some(key) = deadlines.pop_due(next) {
                    came += 1;
                    prop_assert_eq!(start + Duration::from_nanos(after[key]), next);
                }
            }
            prop_assert_eq!(came, after.len() - after.len().div_ceil(3));
            prop_assert!(waits <= after.len() * 7, "each wait brings the wheel on");
        }
    }
}
