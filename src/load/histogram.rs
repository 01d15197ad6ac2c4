//! Latencies in fixed memory: 128 buckets for each power of two, so that a quantile is at most 1 % too high.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bits of precision of a bucket.
const PRECISION: u32 = 7;
const PER_POWER: usize = 1 << PRECISION;
/// The longest latency with its own bucket, as a power of two in ns: 18 minutes.
const MAX_POWER: u32 = 40;
const BUCKETS: usize = (MAX_POWER - PRECISION + 1) as usize * PER_POWER;

/// Counts of latencies, in 35 kB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "SparseHistogram", try_from = "SparseHistogram")]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    longest: u64,
}

/// The buckets that are not empty.
#[derive(Debug, Serialize, Deserialize)]
struct SparseHistogram {
    counts: Vec<(usize, u64)>,
    longest: u64,
}

impl From<Histogram> for SparseHistogram {
    fn from(histogram: Histogram) -> Self {
        let counts = histogram.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
        Self { counts, longest: histogram.longest }
    }
}

impl TryFrom<SparseHistogram> for Histogram {
    type Error = &'static str;

    fn try_from(sparse: SparseHistogram) -> Result<Self, Self::Error> {
        let mut histogram = Self { longest: sparse.longest, ..Self::default() };
        for (bucket, count) in sparse.counts {
            *histogram.counts.get_mut(bucket).ok_or("no such bucket")? += count;
            histogram.total += count;
        }
        Ok(histogram)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, longest: 0 }
    }
}

impl Histogram {
    /// Counts one latency, in ns.
    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.longest = self.longest.max(ns);
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, other)| *mine += other);
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    /// Returns the number of latencies.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Returns whether none was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns the longest latency.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// Returns the quantile `per_mille` / 1000; zero if the histogram is empty.
    #[must_use]
    pub fn quantile(&self, per_mille: u16) -> Duration {
        let wanted = (self.total * u64::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper_end(index).min(self.longest));
            }
        }
        Duration::ZERO
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.min((1 << MAX_POWER) - 1);
    let power = ns.max(1).ilog2().saturating_sub(PRECISION);
    // From the second power on only the upper half of each row's offsets is used, so rows overlap by one.
    (power as usize * PER_POWER) + (ns >> power) as usize
}

/// Returns the largest value in the bucket.
fn upper_end(index: usize) -> u64 {
    let row = (index / PER_POWER).saturating_sub(1) as u32;
    let offset = index as u64 - u64::from(row) * PER_POWER as u64;
    ((offset + 1) << row) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_a_thousand_values_are_those_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(500), Duration::ZERO);
        (1..=1000).for_each(|us| histogram.record(us * 1000));
        let close = |per_mille, us: u64| {
            let got = histogram.quantile(per_mille).as_nanos() as f64 / 1000.0;
            assert!((us as f64..us as f64 * 1.01).contains(&got), "{per_mille}: {got}");
        };
        close(500, 500);
        close(990, 990);
        close(999, 999);
        assert_eq!((histogram.len(), histogram.longest()), (1000, Duration::from_millis(1)));
    }

    #[test]
    fn merging_adds_the_counts() {
        let filled = |range: std::ops::RangeInclusive<u64>| {
            let mut histogram = Histogram::default();
            range.for_each(|us| histogram.record(us * 1000));
            histogram
        };
        let mut low = filled(1..=500);
        low.merge(&filled(501..=1000));
        assert_eq!(low, filled(1..=1000));
        low.merge(&Histogram::default());
        assert_eq!(low, filled(1..=1000));
    }

    proptest! {
        #[test]
        fn every_value_is_in_a_bucket_that_ends_at_most_one_percent_above_it(ns in 0..(1_u64 << MAX_POWER)) {
            let end = upper_end(bucket(ns));
            prop_assert!(end >= ns && end - ns <= ns / 100, "{ns} in a bucket that ends at {end}");
        }

        #[test]
        fn every_value_has_a_bucket(ns in any::<u64>()) {
            prop_assert!(bucket(ns) < BUCKETS);
        }
    }
}
