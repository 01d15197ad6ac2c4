//! Searches the highest rate without loss by short trials; each trial's rate follows from the results before.

/// Failures after which a rate is too high. One stall of a busy machine does not count.
const MAX_FAILURES: u8 = 2;
/// The ratio of the bounds at which the search ends.
const PRECISION: f64 = 1.02;
/// The factor between rates while there is only one bound.
const STEP: f64 = 1.5;
/// The largest number of trials.
const MAX_TRIALS: usize = 24;

/// A binary search for the highest rate.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    next: u64,
    most: u64,
    /// The highest rate that passed.
    passed: Option<u64>,
    /// The lowest rate that was too high.
    too_high: Option<u64>,
    failures: u8,
    trials: usize,
}

impl Search {
    /// Starts at `guess` packets per second; no rate above `most` is tried.
    #[must_use]
    pub(crate) fn new(guess: u64, most: u64) -> Self {
        let most = most.max(1);
        Self { next: guess.clamp(1, most), most, passed: None, too_high: None, failures: 0, trials: 0 }
    }

    /// Returns the rate of the next trial, `None` at the end.
    #[must_use]
    pub(crate) fn next(&self) -> Option<u64> {
        let (low, high) = (self.passed.unwrap_or(0), self.too_high.unwrap_or(u64::MAX));
        let near = self.too_high.is_some() && high as f64 <= (low as f64 * PRECISION).max(low as f64 + 1.0);
        (self.trials < MAX_TRIALS && !near && low < self.most).then_some(self.next)
    }

    /// Records the result of that trial.
    pub(crate) fn record(&mut self, has_passed: bool) {
        self.trials += 1;
        if has_passed {
            self.passed = Some(self.next);
        } else {
            self.failures += 1;
            if self.failures < MAX_FAILURES {
                return;
            }
            self.too_high = Some(self.next);
        }
        self.failures = 0;
        let scaled = |rate: u64, by: f64| (rate as f64 * by) as u64;
        self.next = match (self.passed, self.too_high) {
            (Some(low), Some(high)) => low + (high - low) / 2,
            (Some(low), None) => scaled(low, STEP).max(low + 1),
            (None, Some(high)) => scaled(high, 1.0 / STEP),
            (None, None) => self.next,
        }
        .clamp(1, self.most);
    }

    #[cfg(test)]
    fn highest(&self) -> Option<u64> {
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Searches with a server that handles `capacity` packets per second and stalls in the trials given by `stalls`.
    fn found(guess: u64, capacity: u64, stalls: impl Fn(usize) -> bool) -> (Option<u64>, usize) {
        let mut search = Search::new(guess, 10_000_000);
        let mut trials = 0;
        while let Some(rate) = search.next() {
            search.record(rate <= capacity && !stalls(trials));
            trials += 1;
        }
        (search.highest(), trials)
    }

    proptest! {
        #[test]
        fn a_capacity_is_found_to_two_percent(capacity in 1000_u64..2_000_000, guess in 0.3..3.0_f64) {
            let (highest, trials) = found((capacity as f64 * guess) as u64, capacity, |_| false);
            let highest = highest.unwrap();
            prop_assert!(highest <= capacity && highest as f64 >= capacity as f64 / 1.021, "{highest} of {capacity}");
            prop_assert!(trials <= MAX_TRIALS);
        }

        #[test]
        fn the_search_ends_whatever_the_results(guess: u64, answers in prop::collection::vec(any::<bool>(), MAX_TRIALS)) {
            let mut search = Search::new(guess, 10_000_000);
            for passed in answers {
                let Some(rate) = search.next() else { break };
                prop_assert!((1..=10_000_000).contains(&rate));
                search.record(passed);
            }
            prop_assert_eq!(search.next(), None);
        }
    }

    #[test]
    fn a_single_stall_does_not_count() {
        let (highest, _) = found(100_000, 150_000, |trial| trial % 4 == 1);
        assert!(highest.unwrap() as f64 >= 150_000.0 / 1.021, "{highest:?}");
    }

    #[test]
    fn a_server_that_handles_nothing_has_no_rate_and_one_without_limit_has_the_highest() {
        assert_eq!(found(1000, 0, |_| false).0, None);
        assert_eq!(found(1000, u64::MAX, |_| false).0, Some(10_000_000));
        assert_eq!(found(1, 1, |_| false).0, Some(1));
    }
}
