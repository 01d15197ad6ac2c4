//! Monotonic time in eight bytes instead of an [`Instant`]'s sixteen, for what is kept per peer, per client and per packet.

use std::ops::Add;
use std::time::{Duration, Instant};

/// Nanoseconds since a [`TickBase`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(u64);

impl Ticks {
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Ticks {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The instant that is zero [`Ticks`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TickBase(Instant);

impl TickBase {
    pub(crate) const fn new(zero: Instant) -> Self {
        Self(zero)
    }

    /// Returns `now` in ticks; zero where it is before the base.
    pub(crate) fn ticks(self, now: Instant) -> Ticks {
        let since = now.saturating_duration_since(self.0);
        Ticks(since.as_secs().saturating_mul(1_000_000_000).saturating_add(since.subsec_nanos().into()))
    }

    pub(crate) fn instant(self, at: Ticks) -> Instant {
        self.0 + Duration::from_nanos(at.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::mono;

    #[test]
    fn ticks_and_instants_convert_into_each_other() {
        let zero = mono();
        let base = TickBase::new(zero);
        for by in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(86_400)] {
            assert_eq!(base.instant(base.ticks(zero + by)), zero + by);
            assert_eq!(base.ticks(zero) + by, base.ticks(zero + by));
        }
        assert_eq!(base.ticks(zero - Duration::from_secs(1)), Ticks::default());
        assert_eq!(Ticks(1) + Duration::MAX, Ticks(u64::MAX));
    }
}
