//! How long to wait before the next attempt: twice as long each time, up to a ceiling, and never exactly as long as others.

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::time::Duration;

/// The waits between attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    range: (Duration, Duration),
    next: Duration,
    rng: ChaCha20Rng,
}

impl Backoff {
    /// Begins with about `range.0` and ends with about `range.1`.
    pub(super) fn new(range: (Duration, Duration), rng: ChaCha20Rng) -> Self {
        Self { range, next: range.0, rng }
    }

    /// Returns the next wait: between a half and the whole of what it would be without chance.
    pub(super) fn wait(&mut self) -> Duration {
        let whole = self.next.min(self.range.1);
        self.next = (whole * 2).min(self.range.1);
        whole.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// Begins again after a connection that lived for `lived`: a short one was no success, for two servers that take one id from each
    /// other would do so without end.
    pub(super) fn begin_again(&mut self, lived: Duration) {
        if lived > self.range.1 {
            self.next = self.range.0;
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
        backoff.begin_again(seconds(30));
        assert!(backoff.wait() >= seconds(15));
        backoff.begin_again(seconds(31));
        assert!(backoff.wait() <= seconds(1));
    }
}
