//! A rate limiter for each of many keys, in a table that never grows. Pure.

use super::rate::{Rate, RateLimiter};
use super::table::Limit;
use crate::clock::{TickBase, Ticks};
use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use rand::RngCore;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Keys that share one set.
const WAYS: usize = 4;

/// One set of the table: the hashes of [`WAYS`] keys, zero for none, and the states of their limiters.
type Set = [u64; 2 * WAYS];

/// One [`RateLimiter`] for each key.
///
/// The table has a fixed number of sets. A key that finds its set full takes the place of the key in it that has used the least of its
/// rate, so that a flood, from however many keys, refuses no newcomer. Keys are placed by a hash whose seed is secret: nobody can aim at
/// the set of another key. Equal hashes are taken for equal keys.
pub(crate) struct KeyedRateLimiter<K> {
    rate: Rate,
    /// Empty until the first use.
    table: Vec<Set>,
    sets: usize,
    seeds: (u64, SharedSeed),
    base: Option<TickBase>,
    /// What is counted when a key takes the place of one that is not idle.
    overflow: Limit,
    keys: PhantomData<fn(K)>,
}

impl<K: Hash> KeyedRateLimiter<K> {
    /// Makes a table for about `capacity` keys, 16 bytes each. `overflow` is counted when a key that is not idle is forgotten.
    pub(crate) fn new(rate: Rate, capacity: usize, overflow: Limit, rng: &mut impl RngCore) -> Self {
        Self {
            rate,
            table: Vec::new(),
            sets: capacity.div_ceil(WAYS).max(1),
            seeds: (rng.next_u64(), SharedSeed::from_u64(rng.next_u64())),
            base: None,
            overflow,
            keys: PhantomData,
        }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes `units` of `key` at `now`; `false`, and takes nothing, where that is over the rate.
    pub(crate) fn try_take(&mut self, key: &K, now: Instant, units: usize) -> bool {
        let (rate, now) = (self.rate, self.ticks(now));
        self.with(key, now, |limiter| limiter.try_take(rate, now, units))
    }

    /// Takes `units` of `key` at `now` even where that is over the rate; returns how long it is until `key` is within its rate again.
    pub(crate) fn charge(&mut self, key: &K, now: Instant, units: usize) -> Duration {
        let (rate, now) = (self.rate, self.ticks(now));
        self.with(key, now, |limiter| limiter.charge(rate, now, units))
    }

    /// Returns how many keys are remembered.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> usize {
        self.table.iter().flat_map(|set| &set[..WAYS]).filter(|hash| **hash != 0).count()
    }

    fn ticks(&mut self, now: Instant) -> Ticks {
        self.base.get_or_insert(TickBase::new(now)).ticks(now)
    }

    fn with<R>(&mut self, key: &K, now: Ticks, operation: impl FnOnce(&mut RateLimiter) -> R) -> R {
        if self.table.is_empty() {
            self.table = vec![Set::default(); self.sets];
        }
        let hash = self.hash(key);
        // The low bits choose the set, as zero is no hash.
        let set = &mut self.table[(hash % self.sets as u64) as usize];
        let (hashes, states) = set.split_at_mut(WAYS);
        let way = hashes.iter().position(|known| *known == hash).unwrap_or_else(|| {
            let least_used = (0..WAYS).min_by_key(|way| states[*way]).unwrap_or_default();
            if states[least_used] > now.as_nanos() {
                self.overflow.reached(self.sets * WAYS);
            }
            (hashes[least_used], states[least_used]) = (hash, 0);
            least_used
        });
        let mut limiter = RateLimiter::idle_at(Ticks::from_nanos(states[way]));
        let result = operation(&mut limiter);
        states[way] = limiter.idle_from().as_nanos();
        result
    }

    fn hash(&self, key: &K) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seeds.0, &self.seeds.1);
        key.hash(&mut hasher);
        hasher.finish().max(1)
    }
}

impl<K> fmt::Debug for KeyedRateLimiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedRateLimiter").field("rate", &self.rate).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Table;
    use crate::net::time::mono;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    const LIMIT: Limit = Limit::RateLimiterKeys;

    fn limiter(per_second: f64, burst: f64, capacity: usize) -> KeyedRateLimiter<u32> {
        let rate = Rate::new(per_second, burst);
        KeyedRateLimiter::new(rate, capacity, LIMIT, &mut ChaCha20Rng::seed_from_u64(7))
    }

    #[test]
    fn each_key_has_a_burst_and_then_the_rate() {
        let (mut limiter, start) = (limiter(1.0, 2.0, 8), mono());
        let second = Duration::from_secs(1);
        let takes = |limiter: &mut KeyedRateLimiter<u32>, key, now| {
            (0..9).filter(|_| limiter.try_take(&key, now, 1)).count()
        };
        assert_eq!((takes(&mut limiter, 1, start), takes(&mut limiter, 2, start)), (2, 2));
        assert_eq!(takes(&mut limiter, 1, start + second), 1);
        assert_eq!(takes(&mut limiter, 1, start + 60 * second), 2);
    }

    #[test]
    fn a_debt_is_waited_for() {
        let (mut limiter, start) = (limiter(1.0, 2.0, 8), mono());
        assert!(limiter.try_take(&1, start, 1));
        assert_eq!(limiter.charge(&1, start, 5), Duration::from_secs(4));
        for (seconds, passes) in [(0, false), (4, false), (5, true)] {
            assert_eq!(limiter.try_take(&1, start + Duration::from_secs(seconds), 1), passes, "{seconds}");
        }
    }

    #[test]
    fn a_newcomer_passes_while_every_other_key_has_used_its_rate() {
        let (mut limiter, now) = (limiter(1.0, 2.0, 64), mono());
        let before = Table::of_process().get(LIMIT).0;
        for key in 0..10_000 {
            assert!(limiter.try_take(&key, now, 1) && limiter.try_take(&key, now, 1), "{key}");
            assert!(!limiter.try_take(&key, now, 1), "{key}");
        }
        assert!(Table::of_process().get(LIMIT).0 > before + 9000, "those who were forgotten are counted");
        assert_eq!(limiter.keys(), 64);
    }

    #[test]
    fn a_key_over_its_rate_outlasts_newcomers_that_use_little() {
        let (mut limiter, now) = (limiter(1.0, 1000.0, 64), mono());
        assert!(limiter.try_take(&0, now, 1000));
        assert!((1..10_000).all(|key| limiter.try_take(&key, now, 1)));
        assert!(!limiter.try_take(&0, now, 1));
    }

    #[test]
    fn the_table_has_sixteen_bytes_for_each_key() {
        let mut limiter = limiter(1.0, 2.0, 65_536);
        assert!(limiter.table.is_empty(), "nothing before its first use");
        limiter.try_take(&1, mono(), 1);
        assert_eq!(size_of_val(&*limiter.table), 1 << 20);
    }
}
