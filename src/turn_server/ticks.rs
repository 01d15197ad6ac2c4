//! The relay's own time, eight bytes of it: what an allocation keeps of its ends and meters fits into the few bytes that a packet
//! has to look at.

use std::ops::Add;
use std::time::{Duration, Instant};

/// Nanoseconds since a relay began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticks(pub(super) u64);

impl Add<Duration> for Ticks {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// When a relay began.
#[derive(Debug, Clone, Copy)]
pub(super) struct TickBase(pub(super) Instant);

impl TickBase {
    pub(super) fn ticks(self, now: Instant) -> Ticks {
        let since = now.saturating_duration_since(self.0);
        Ticks(since.as_secs().saturating_mul(1_000_000_000).saturating_add(since.subsec_nanos().into()))
    }

    pub(super) fn instant(self, at: Ticks) -> Instant {
        self.0 + Duration::from_nanos(at.0)
    }
}
