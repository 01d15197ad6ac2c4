//! Exponential back-off with jitter.

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::time::Duration;

/// The waits between attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    range: (Duration, Duration),
    next: Duration,
    rng: ChaCha20Rng,
}

impl Backoff {
    /// Makes waits that double from `range.0` to `range.1`.
    pub(crate) fn new(range: (Duration, Duration), rng: ChaCha20Rng) -> Self {
        Self { range, next: range.0, rng }
    }

    /// Returns the next wait: with jitter, between half of it and all of it.
    pub(crate) fn wait(&mut self) -> Duration {
        let whole = self.next.min(self.range.1);
        self.next = (whole * 2).min(self.range.1);
        whole.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// Starts again with the first wait.
    pub(crate) fn reset(&mut self) {
        self.next = self.range.0;
    }

    /// Starts again after a connection that lasted for `lived`, if that was longer than the longest wait. Two servers that take one id
    /// from each other would else reconnect without a wait.
    pub(crate) fn reset_after(&mut self, lived: Duration) {
        if lived > self.range.1 {
            self.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn waits_double_up_to_the_ceiling_and_begin_again_after_a_long_life() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new((seconds(1), seconds(30)), ChaCha20Rng::seed_from_u64(7));
        for whole in [1, 2, 4, 8, 16, 30, 30] {
            let wait = backoff.wait();
            assert!(seconds(whole) / 2 <= wait && wait <= seconds(whole), "{wait:?} of {whole} s");
        }
        backoff.reset_after(seconds(30));
        assert!(backoff.wait() >= seconds(15));
        backoff.reset_after(seconds(31));
        assert!(backoff.wait() <= seconds(1));
        backoff.wait();
        backoff.reset();
        assert!(backoff.wait() <= seconds(1));
    }

    #[test]
    fn those_who_begin_at_once_do_not_come_back_at_once() {
        let range = (Duration::from_secs(2), Duration::from_secs(8));
        let mut waits: Vec<_> =
            (0..20).map(|seed| Backoff::new(range, ChaCha20Rng::seed_from_u64(seed)).wait()).collect();
        waits.sort_unstable();
        let most_within = |window: Duration| {
            waits
                .iter()
                .map(|from| waits.iter().filter(|at| (*from..*from + window).contains(*at)).count())
                .max()
        };
        assert!(most_within(Duration::from_millis(100)) <= Some(6), "{waits:?}");
    }
}
