//! Time as a value: machines are handed [`Now`] and never read a clock.
//!
//! [`Deadlines`] keeps one deadline per key for a machine's timers. Both are pure, so that expiry is tested
//! without waiting.

#[cfg(feature = "server")]
mod deadlines;
#[cfg(feature = "server")]
mod ticks;

#[cfg(feature = "server")]
pub(crate) use deadlines::Deadlines;
use std::time::{Duration, Instant};
#[cfg(feature = "server")]
pub(crate) use ticks::{TickBase, Ticks};

/// One moment, read once by the hands and passed to every machine they call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for every timer and lifetime.
    pub mono: Instant,
    /// Seconds since the Unix epoch, for credential expiry and for numbers that must grow over restarts.
    pub unix: u64,
}

impl Now {
    /// Returns the moment `by` later on both clocks.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { mono: self.mono + by, unix: self.unix + by.as_secs() }
    }
}
