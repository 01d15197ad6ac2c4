//! The time of records and messages.

use std::time::Duration;

/// Seconds since 2025-01-01 00:00 UTC, in 31 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MeshTime(pub(super) u32);

/// 2025-01-01 00:00 UTC, as Unix time.
const EPOCH: u64 = 1_735_689_600;
/// The highest value of a time, sequence or epoch.
pub(super) const MAX_NUMBER: u32 = (1 << 31) - 1;

impl MeshTime {
    pub(super) fn from_unix(unix: u64) -> Self {
        let seconds = u32::try_from(unix.saturating_sub(EPOCH)).unwrap_or(MAX_NUMBER);
        Self(seconds.min(MAX_NUMBER))
    }

    pub(super) fn after(self, by: Duration) -> Self {
        let seconds = u32::try_from(by.as_secs()).unwrap_or(MAX_NUMBER);
        Self(self.0.saturating_add(seconds).min(MAX_NUMBER))
    }

    /// Returns how long ago `earlier` was; zero if it is in the future.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0).into())
    }
}

/// Returns a number for a new record or start: it grows over restarts as long as the clock does not go back.
pub(super) fn next_number(now: MeshTime, last: u32) -> u32 {
    now.0.max(last.saturating_add(1)).min(MAX_NUMBER)
}
