//! Sampling of repeated log lines: the first is logged, then at most one per interval with the number of suppressed ones. Pure.

use super::table::{Limit, Table};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum time between two lines of the same kind.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);

/// Passes at most one line per interval. A `static` serves all threads.
#[derive(Debug, Default)]
pub(crate) struct Sampler(Mutex<SamplerState>);

#[derive(Debug, Default)]
struct SamplerState {
    written: Option<Instant>,
    suppressed: u64,
}

impl Sampler {
    /// Creates a sampler that passes the first line.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(SamplerState { written: None, suppressed: 0 }))
    }

    /// Returns whether a line at `now` is logged: `Some` with the number of lines suppressed before it, or `None` to suppress it too.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.written.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.written = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

/// Logs a line at most once per [`INTERVAL`] and call site: `sampled!(warn, now.mono, %error, "accept")`. The field `suppressed` is the number
/// of lines that were left out before.
macro_rules! sampled {
    ($level:ident, $now:expr, $($line:tt)+) => {{
        static SAMPLER: $crate::limits::Sampler = $crate::limits::Sampler::new();
        if let Some(suppressed) = SAMPLER.pass($now) {
            tracing::$level!(suppressed, $($line)+);
        }
    }};
}
pub(crate) use sampled;

/// A log line about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitReport {
    /// The limit that was reached.
    pub limit: Limit,
    /// Its value.
    pub value: u64,
    /// How often it was reached since the last line.
    pub times: u64,
}

/// Decides when a reached limit is logged.
#[derive(Debug)]
pub(super) struct LimitReporter {
    table: &'static Table,
    logged: Vec<Logged>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Logged {
    times: u64,
    at: Option<Instant>,
}

impl LimitReporter {
    /// Creates a reporter for what `table` counts from now on.
    #[must_use]
    pub(super) fn new(table: &'static Table) -> Self {
        let logged = Limit::ALL.iter().map(|limit| Logged { times: table.get(*limit).0, at: None });
        Self { table, logged: logged.collect() }
    }

    /// Returns the lines that are due: one for each limit that was reached since its last line, at most one per [`INTERVAL`].
    pub(super) fn due(&mut self, now: Instant) -> Vec<LimitReport> {
        let mut lines = Vec::new();
        for (limit, logged) in Limit::ALL.iter().zip(&mut self.logged) {
            let (times, value) = self.table.get(*limit);
            let is_early = logged.at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL);
            if times == logged.times || is_early {
                continue;
            }
            lines.push(LimitReport { limit: *limit, value, times: times - logged.times });
            *logged = Logged { times, at: Some(now) };
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::mono;

    #[test]
    fn one_line_per_interval_passes_with_the_number_suppressed() {
        let (sampler, start) = (Sampler::new(), mono());
        assert_eq!(sampler.pass(start), Some(0));
        assert!((0..600_000).all(|_| sampler.pass(start + INTERVAL / 2).is_none()));
        assert_eq!(sampler.pass(start + INTERVAL), Some(600_000));
        assert_eq!(sampler.pass(start + INTERVAL * 3), Some(0));
    }

    #[test]
    fn a_limit_is_logged_at_once_and_then_once_an_interval() {
        let table: &'static Table = Box::leak(Box::default());
        table.reached(Limit::RelayPorts, 7);
        let (mut reporter, start) = (LimitReporter::new(table), mono());
        assert_eq!(reporter.due(start), []);
        table.reached(Limit::AllocationsPerUser, 128);
        table.reached(Limit::MaxAllocations, 10_000);
        let line = |limit, value, times| LimitReport { limit, value, times };
        assert_eq!(
            reporter.due(start),
            [line(Limit::AllocationsPerUser, 128, 1), line(Limit::MaxAllocations, 10_000, 1)]
        );
        (0..50).for_each(|_| table.reached(Limit::AllocationsPerUser, 128));
        assert_eq!(reporter.due(start + INTERVAL / 2), []);
        assert_eq!(reporter.due(start + INTERVAL), [line(Limit::AllocationsPerUser, 128, 50)]);
        assert_eq!(reporter.due(start + INTERVAL * 2), []);
    }
}
