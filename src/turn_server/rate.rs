//! Rate caps: the bytes that one allocation and one user may relay, both directions together, and how fast peers may be new.
//!
//! A meter is one number, the moment at which everything sent so far would have been sent at the permitted rate. It is compared with
//! the batch's own time, so that no packet reads a clock.

use super::ticks::{TickBase, Ticks};
use std::sync::Arc;
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

/// One allocation's meter.
#[derive(Debug, Default)]
pub(super) struct Meter(u64);

impl Meter {
    /// Takes `units` at `now`; `false` when that would be too fast.
    pub(super) fn take(&mut self, rate: Rate, now: Ticks, units: usize) -> bool {
        match advance(self.0, rate, now, units) {
            Some(at) => {
                self.0 = at;
                true
            }
            None => false,
        }
    }
}

/// One user's meter, over all workers. Each reads the clock once an iteration, so one of them may be behind the others.
#[derive(Debug, Default)]
pub(super) struct SharedMeter {
    at: AtomicU64,
    /// The latest moment of any worker that has taken something.
    latest: AtomicU64,
}

impl SharedMeter {
    /// Reads the meter's number, which says little without a rate.
    pub(super) fn prefetch(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    /// As [`Meter::take`]. A worker that is behind the others is judged by their time, or it would take what they have sent for its
    /// own burst.
    pub(super) fn take(&self, rate: Rate, now: Ticks, units: usize) -> bool {
        let latest = self.latest.load(Ordering::Relaxed);
        if now.0 > latest {
            self.latest.fetch_max(now.0, Ordering::Relaxed);
        }
        let now = Ticks(now.0.max(latest));
        let step = |at| advance(at, rate, now, units);
        self.at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

/// How fast one user's bytes may pass outside of the machine.
#[derive(Debug, Clone)]
pub struct Pace {
    pub(super) meter: Arc<SharedMeter>,
    pub(super) rate: Rate,
    pub(super) tick_base: TickBase,
}

impl Pace {
    /// Takes `bytes` at `now`; `false` when they have to wait.
    #[must_use]
    pub fn admits(&self, now: Instant, bytes: usize) -> bool {
        self.meter.take(self.rate, self.tick_base.ticks(now), bytes)
    }
}

impl PartialEq for Pace {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.meter, &other.meter)
    }
}

impl Eq for Pace {}

fn advance(at: u64, rate: Rate, Ticks(now): Ticks, units: usize) -> Option<u64> {
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
            let now = Ticks(SECOND + millisecond * 1_000_000);
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
    fn a_worker_whose_time_is_behind_is_judged_by_that_of_the_others() {
        let (rate, shared) = (Rate::bytes(1000), SharedMeter::default());
        assert!(shared.take(rate, Ticks(10 * SECOND), 100));
        assert!(shared.take(rate, Ticks(9 * SECOND), 100), "200 of 500 bytes");
        assert!(shared.take(rate, Ticks(9 * SECOND), 300));
        assert!(!shared.take(rate, Ticks(9 * SECOND), 1), "the burst is used up");
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut meter = Meter::default();
        assert!((0..1000).all(|_| meter.take(Rate::bytes(0), Ticks(5), 65_535)));
    }
}
