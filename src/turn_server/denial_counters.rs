//! Denied peers: counted by rule, and logged at a limited rate.

use super::policy::{PeerAddr, PolicyDenial};
use crate::clock::Ticks;
use crate::ids::Pii;
use std::time::Duration;

/// The shortest time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a peer was denied for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerOperation {
    CreatePermission,
    ChannelBind,
    /// A datagram in either direction.
    Send,
    Connect,
    /// A connection that the peer has opened.
    Accept,
}

/// How often each rule has denied a peer. The rules' names are a fixed set, so the list is bounded.
#[derive(Debug, Default)]
pub(super) struct DenialCounters {
    counts: Vec<(&'static str, u64)>,
    next_line: Option<Ticks>,
    /// Denials since the last log line.
    suppressed: u64,
}

impl DenialCounters {
    /// Counts one denial, and logs it unless the last line is too recent.
    pub(super) fn record(
        &mut self,
        now: Ticks,
        operation: PeerOperation,
        peer: PeerAddr,
        denial: PolicyDenial,
    ) {
        let rule = denial.name();
        match self.counts.iter_mut().find(|(name, _)| *name == rule) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((rule, 1)),
        }
        if self.next_line.is_some_and(|at| now < at) {
            self.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut self.suppressed);
        self.next_line = Some(now + LOG_INTERVAL);
        tracing::info!(?operation, rule = %denial, peer = %Pii(peer.socket_addr()), suppressed, "peer denied");
    }

    /// Iterates over the rules' names and counts.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().copied()
    }
}
