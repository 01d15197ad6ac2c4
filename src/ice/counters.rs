//! What the limits of an agent have refused.

use super::generation::Generation;
use super::machine::IceAgent;

/// How often each limit of an [`IceAgent`] was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct IceCounters {
    /// Messages that were dropped because the caller had not taken 512 earlier ones.
    pub dropped_messages: u64,
    /// Events that gave way to later ones, because the caller had not taken 1024.
    pub dropped_events: u64,
    /// Checks that were put off: an address that has not answered gets 20 a second, and all such addresses together 50.
    pub postponed_checks: u64,
    /// Responses that were not sent, to addresses that have not answered.
    pub dropped_responses: u64,
    /// Local candidates beyond 64.
    pub refused_local_candidates: u64,
    /// Candidates of the peer beyond 16 of a kind: the oldest one that is not in use gave way, or the new one was refused.
    pub excess_remote_candidates: u64,
    /// Pairs beyond 256: the lowest one that has not answered gave way, or the new one was refused.
    pub excess_pairs: u64,
}

impl IceAgent {
    /// Keeps the counters of a generation that is no longer needed.
    pub(super) fn forget(&mut self, gone: &Generation) {
        self.counters.excess_remote_candidates += gone.excess_candidates;
        self.counters.excess_pairs += gone.excess_pairs;
    }

    /// Returns how often each limit was reached.
    #[must_use]
    pub fn counters(&self) -> IceCounters {
        let mut counters = self.counters;
        for generation in self.generations() {
            counters.excess_remote_candidates += generation.excess_candidates;
            counters.excess_pairs += generation.excess_pairs;
        }
        counters
    }
}
