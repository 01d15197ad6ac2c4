//! The highest rate that a server bears: short trials, each at a rate that the ones before it suggest.

/// How often a rate may fail before it counts as too high: one stall of a busy machine is no limit of the server.
const CHANCES: u8 = 2;
/// How far the bounds may be apart in the end.
const PRECISION: f64 = 1.02;
/// By how much the rate grows or falls while there is only one bound.
const STEP: f64 = 1.5;
/// The most trials, so that the end is near whatever they say.
const MOST_TRIALS: usize = 24;

/// Looks for the highest rate at which no more than so much is lost.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    next: u64,
    most: u64,
    /// The highest rate that was borne.
    borne: Option<u64>,
    /// The lowest rate that was too high.
    too_high: Option<u64>,
    failures: u8,
    trials: usize,
}

impl Search {
    /// Begins at `guess` packets a second; no rate above `most` is tried.
    #[must_use]
    pub(crate) fn new(guess: u64, most: u64) -> Self {
        let most = most.max(1);
        Self { next: guess.clamp(1, most), most, borne: None, too_high: None, failures: 0, trials: 0 }
    }

    /// Returns the rate of the next trial, `None` at the end.
    #[must_use]
    pub(crate) fn next(&self) -> Option<u64> {
        let (low, high) = (self.borne.unwrap_or(0), self.too_high.unwrap_or(u64::MAX));
        let near = self.too_high.is_some() && high as f64 <= (low as f64 * PRECISION).max(low as f64 + 1.0);
        (self.trials < MOST_TRIALS && !near && low < self.most).then_some(self.next)
    }

    /// Takes the outcome of that trial.
    pub(crate) fn tell(&mut self, was_borne: bool) {
        self.trials += 1;
        if was_borne {
            self.borne = Some(self.next);
        } else {
            self.failures += 1;
            if self.failures < CHANCES {
                return;
            }
            self.too_high = Some(self.next);
        }
        self.failures = 0;
        let scaled = |rate: u64, by: f64| (rate as f64 * by) as u64;
        self.next = match (self.borne, self.too_high) {
            (Some(low), Some(high)) => low + (high - low) / 2,
            (Some(low), None) => scaled(low, STEP).max(low + 1),
            (None, Some(high)) => scaled(high, 1.0 / STEP),
            (None, None) => self.next,
        }
        .clamp(1, self.most);
    }

    #[cfg(test)]
    fn highest(&self) -> Option<u64> {
        self.borne
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server that bears `capacity` packets a second, and stalls in the trials that `stalls` says.
    fn found(guess: u64, capacity: u64, stalls: impl Fn(usize) -> bool) -> (Option<u64>, usize) {
        let mut search = Search::new(guess, 10_000_000);
        let mut trials = 0;
        while let Some(rate) = search.next() {
            search.tell(rate <= capacity && !stalls(trials));
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
            prop_assert!(trials <= MOST_TRIALS);
        }

        #[test]
        fn the_end_comes_whatever_the_trials_say(guess: u64, answers in prop::collection::vec(any::<bool>(), MOST_TRIALS)) {
            let mut search = Search::new(guess, 10_000_000);
            for borne in answers {
                let Some(rate) = search.next() else { break };
                prop_assert!((1..=10_000_000).contains(&rate));
                search.tell(borne);
            }
            prop_assert_eq!(search.next(), None);
        }
    }

    #[test]
    fn a_single_stall_is_no_limit() {
        let (highest, _) = found(100_000, 150_000, |trial| trial % 4 == 1);
        assert!(highest.unwrap() as f64 >= 150_000.0 / 1.021, "{highest:?}");
    }

    #[test]
    fn a_server_that_bears_nothing_has_no_rate_and_one_that_bears_all_has_the_highest() {
        assert_eq!(found(1000, 0, |_| false).0, None);
        assert_eq!(found(1000, u64::MAX, |_| false).0, Some(10_000_000));
        assert_eq!(found(1, 1, |_| false).0, Some(1));
    }
}
