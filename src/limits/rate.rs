//! The rate limiter: the generic cell rate algorithm (GCRA, ITU-T I.371) in integer arithmetic. Pure.
//!
//! A limiter is one number: the time at which everything that it has admitted would have been sent at exactly the permitted rate. A
//! request is admitted where that time, moved on by the request's cost, is at most the burst ahead of now.

use crate::clock::Ticks;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NANOS_PER_SECOND: f64 = 1e9;
/// [`Rate::interval`] counts in parts of a nanosecond: at 10 GB/s a byte takes a tenth of one.
const FRACTION_BITS: u32 = 16;

/// How many units (requests, bytes) may pass a second, and how many at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time for one unit, in 2^-16 ns; 0 means no limit.
    interval: u64,
    /// Time for the whole burst, in ns.
    burst: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { interval: 0, burst: u64::MAX };

    /// Permits `per_second` units a second and `burst` at once. A `per_second` that is not positive means no limit.
    #[must_use]
    pub fn new(per_second: f64, burst: f64) -> Self {
        if per_second <= 0.0 {
            return Self::UNLIMITED;
        }
        // A float that is too large becomes the largest integer.
        Self { interval: interval(per_second), burst: (burst * NANOS_PER_SECOND / per_second) as u64 }
    }

    /// Permits `per_second` units a second, and at once as many as pass in `burst`. Zero means no limit.
    #[must_use]
    pub fn with_burst_time(per_second: u64, burst: Duration) -> Self {
        if per_second == 0 {
            return Self::UNLIMITED;
        }
        let burst = u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX);
        Self { interval: interval(per_second as f64), burst }
    }

    /// Permits `per_second` bytes a second, and half a second's worth at once. Zero means no limit.
    #[must_use]
    pub fn bytes(per_second: u64) -> Self {
        Self::with_burst_time(per_second, Duration::from_millis(500))
    }

    /// Returns the rate with another number of units a second and the same burst, as a time. Zero means no limit.
    #[must_use]
    pub fn with_per_second(self, per_second: u64) -> Self {
        Self::with_burst_time(per_second, Duration::from_nanos(self.burst))
    }

    /// Returns the units a second, rounded; 0 for no limit.
    #[must_use]
    pub fn per_second(self) -> u64 {
        let second = NANOS_PER_SECOND * f64::from(1 << FRACTION_BITS);
        if self.interval == 0 { 0 } else { (second / self.interval as f64).round() as u64 }
    }

    /// Returns the units that may pass at once, rounded.
    #[must_use]
    pub fn burst_units(self) -> u64 {
        let burst = self.burst as f64 * f64::from(1 << FRACTION_BITS);
        if self.interval == 0 { u64::MAX } else { (burst / self.interval as f64).round() as u64 }
    }

    /// Returns how long `units` take at this rate, in ns.
    fn cost(self, units: u64) -> u64 {
        let cost = (u128::from(units) * u128::from(self.interval)) >> FRACTION_BITS;
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    /// Returns what `full_at` becomes when `units` are admitted; `None` where that is too many.
    fn admit(self, full_at: u64, now: u64, units: u64) -> Option<u64> {
        let next = full_at.max(now).saturating_add(self.cost(units));
        (next.saturating_sub(now) <= self.burst).then_some(next)
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = NANOS_PER_SECOND * f64::from(1 << FRACTION_BITS) / self.interval as f64;
        let burst = self.burst as f64 / NANOS_PER_SECOND * per_second;
        f.debug_struct("Rate").field("per_second", &per_second).field("burst", &burst.round()).finish()
    }
}

fn interval(per_second: f64) -> u64 {
    (NANOS_PER_SECOND * f64::from(1 << FRACTION_BITS) / per_second) as u64
}

/// The limiter of one key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RateLimiter {
    full_at: Ticks,
}

impl RateLimiter {
    /// Makes a limiter that has its whole burst from `at` on.
    pub(crate) fn idle_at(at: Ticks) -> Self {
        Self { full_at: at }
    }

    /// Returns from when on it has its whole burst.
    pub(crate) fn idle_from(self) -> Ticks {
        self.full_at
    }

    /// Takes `units` at `now`; `false`, and takes nothing, where that is over the rate.
    pub(crate) fn try_take(&mut self, rate: Rate, now: Ticks, units: usize) -> bool {
        match rate.admit(self.full_at.as_nanos(), now.as_nanos(), units as u64) {
            Some(full_at) => {
                self.full_at = Ticks::from_nanos(full_at);
                true
            }
            None => false,
        }
    }

    /// Takes `units` at `now` even where that is over the rate; returns how long it is until the rate is kept again.
    pub(crate) fn charge(&mut self, rate: Rate, now: Ticks, units: usize) -> Duration {
        let (full_at, now) = (self.full_at.as_nanos(), now.as_nanos());
        let full_at = full_at.max(now).saturating_add(rate.cost(units as u64));
        self.full_at = Ticks::from_nanos(full_at);
        Duration::from_nanos((full_at - now).saturating_sub(rate.burst))
    }
}

/// A limiter that several worker threads share. Each of them reads the clock once an iteration, so one may be behind the others.
#[derive(Debug, Default)]
pub(crate) struct SharedRateLimiter {
    full_at: AtomicU64,
    /// The latest time of any thread that has taken something.
    latest: AtomicU64,
}

impl SharedRateLimiter {
    /// Reads the state into the processor's cache.
    pub(crate) fn prefetch(&self) -> u64 {
        self.full_at.load(Ordering::Relaxed)
    }

    /// As [`RateLimiter::try_take`]. A thread that is behind the others is judged by their time, or it would take what they have sent
    /// for its own burst.
    pub(crate) fn try_take(&self, rate: Rate, now: Ticks, units: usize) -> bool {
        let (now, latest) = (now.as_nanos(), self.latest.load(Ordering::Relaxed));
        if now > latest {
            self.latest.fetch_max(now, Ordering::Relaxed);
        }
        let admit = |full_at| rate.admit(full_at, now.max(latest), units as u64);
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(nanos: u64) -> Ticks {
        Ticks::from_nanos(nanos)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate::bytes(1000);
        let (mut own, shared) = (RateLimiter::default(), SharedRateLimiter::default());
        let mut passed = 0;
        for millisecond in 0..10_000_u64 {
            let now = at(SECOND + millisecond * 1_000_000);
            let both = own.try_take(rate, now, 100);
            assert_eq!(shared.try_take(rate, now, 100), both);
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
        let (rate, shared) = (Rate::bytes(1000), SharedRateLimiter::default());
        assert!(shared.try_take(rate, at(10 * SECOND), 100));
        assert!(shared.try_take(rate, at(9 * SECOND), 100), "200 of 500 bytes");
        assert!(shared.try_take(rate, at(9 * SECOND), 300));
        assert!(!shared.try_take(rate, at(9 * SECOND), 1), "the burst is used up");
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut limiter = RateLimiter::default();
        assert!((0..1000).all(|_| limiter.try_take(Rate::bytes(0), at(5), 65_535)));
    }

    proptest! {
        #[test]
        fn a_rate_keeps_its_figures(per_second in 1_u64..1_000_000, burst in 1_u64..1_000_000) {
            let rate = Rate::new(per_second as f64, burst as f64);
            let parts = |value: u64| value / 10_000 + 1;
            prop_assert!(rate.per_second().abs_diff(per_second) < parts(per_second));
            prop_assert!(rate.burst_units().abs_diff(burst) < parts(burst));
            let (mut limiter, now) = (RateLimiter::default(), at(SECOND));
            prop_assert!(limiter.try_take(rate, now, burst as usize) && !limiter.try_take(rate, now, 1));
        }
    }
}
