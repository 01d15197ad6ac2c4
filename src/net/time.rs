//! The only place that reads the clocks.

use crate::clock::Now;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Reads both clocks. A service calls this once per batch or event and passes the value on.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the single reader of the clocks")]
pub fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { mono: Instant::now(), unix }
}

/// Reads the monotonic clock only, to measure.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the single reader of the clocks")]
pub fn mono() -> Instant {
    Instant::now()
}

/// Reads the clock of the runtime, which a test can stop.
#[cfg(feature = "agent")]
#[must_use]
pub fn runtime() -> Instant {
    tokio::time::Instant::now().into_std()
}
