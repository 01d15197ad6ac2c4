//! The one place that reads the clocks.

use crate::clock::Now;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Reads both clocks once. Hands call this once per batch or event and pass the value on.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the single reader of the clocks")]
pub fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { mono: Instant::now(), unix }
}

/// Reads the monotonic clock alone, for what is measured rather than decided.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the single reader of the clocks")]
pub fn mono() -> Instant {
    Instant::now()
}
