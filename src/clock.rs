//! Time as a value: [`Now`] is passed to state machines, which never read a clock.
//!
//! [`Deadlines`] stores one deadline per key for the timers of a state machine. Both are pure, so that tests of expiry need not wait.

#[cfg(feature = "server")]
mod deadlines;
#[cfg(any(feature = "server", feature = "agent"))]
mod ticks;

#[cfg(feature = "server")]
pub(crate) use deadlines::Deadlines;
use std::time::{Duration, Instant};
#[cfg(any(feature = "server", feature = "agent"))]
pub(crate) use ticks::{TickBase, Ticks};

/// The current time. A service reads it once and passes it to the state machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for every timer and lifetime.
    pub mono: Instant,
    /// Seconds since the Unix epoch, for credential expiry and for numbers that must grow over restarts.
    pub unix: u64,
}

impl Now {
    /// Returns the time `by` later on both clocks.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { mono: self.mono + by, unix: self.unix + by.as_secs() }
    }
}
