//! Rate caps: the bytes that one allocation and one user may relay, both directions together, and how fast peers may be new.
//!
//! A meter is one number, the moment at which everything sent so far would have been sent at the permitted rate. It is compared with
//! the batch's own time, so that no packet reads a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rate of bytes, or of anything else that is counted, and how far it may be run ahead of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units a second; 0 means no limit.
    pub per_second: u64,
    /// What may pass at once, as the time it takes at this rate.
    pub burst: Duration,
}

impl Rate {
    /// A rate of bytes, half a second of which may pass at once.
    #[must_use]
    pub fn bytes(per_second: u64) -> Self {
        Self { per_second, burst: Duration::from_millis(500) }
    }

    /// Returns how long `units` take at this rate, in nanoseconds.
    fn cost(self, units: usize) -> u64 {
        (units as u64).saturating_mul(1_000_000_000).checked_div(self.per_second).unwrap_or(0)
    }
}

/// The time that meters count in: nanoseconds since the relay began.
#[derive(Debug, Clone, Copy)]
pub struct Epoch(pub Instant);

impl Epoch {
    pub(super) fn nanos(self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// One allocation's meter.
#[derive(Debug, Default)]
pub(super) struct Meter(u64);

impl Meter {
    /// Takes `units` at `now` (nanoseconds of the epoch); `false` when that would be too fast.
    pub(super) fn take(&mut self, rate: Rate, now: u64, units: usize) -> bool {
        match advance(self.0, rate, now, units) {
            Some(at) => {
                self.0 = at;
                true
            }
            None => false,
        }
    }
}

/// One user's meter, over all workers.
#[derive(Debug, Default)]
pub(super) struct SharedMeter(AtomicU64);

impl SharedMeter {
    /// As [`Meter::take`].
    pub(super) fn take(&self, rate: Rate, now: u64, units: usize) -> bool {
        let step = |at| advance(at, rate, now, units);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

fn advance(at: u64, rate: Rate, now: u64, units: usize) -> Option<u64> {
    let next = at.max(now).saturating_add(rate.cost(units));
    (next.saturating_sub(now) <= rate.burst.as_nanos() as u64).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate::bytes(1000);
        let (mut own, shared) = (Meter::default(), SharedMeter::default());
        let mut passed = 0;
        for millisecond in 0..10_000_u64 {
            let now = SECOND + millisecond * 1_000_000;
            let both = own.take(rate, now, 100);
            assert_eq!(shared.take(rate, now, 100), both);
            passed += usize::from(both) * 100;
        }
        assert_eq!(
            passed,
            500 + 10_000 - 100,
            "half a second's worth at once, then a thousand bytes a second"
        );
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut meter = Meter::default();
        assert!((0..1000).all(|_| meter.take(Rate::bytes(0), 5, 65_535)));
    }
}
