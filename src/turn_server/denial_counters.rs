//! Refused peers: counted by rule, and logged, but never faster than a person reads.

use super::policy::{PeerAddr, PolicyDenial};
use crate::clock::Ticks;
use crate::ids::Pii;
use std::time::Duration;

/// How often a line is written while peers are being refused.
const INTERVAL: Duration = Duration::from_secs(10);

/// The ways in which a client may name a peer, or a peer arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerOperation {
    CreatePermission,
    ChannelBind,
    Send,
    Connect,
    Accept,
}

/// What was refused so far. A rule's name comes from a fixed table, so that this has an end.
#[derive(Debug, Default)]
pub(super) struct DenialCounters {
    counts: Vec<(&'static str, u64)>,
    next_line: Option<Ticks>,
    silent: u64,
}

impl DenialCounters {
    /// Counts one refusal and logs it, or adds it to the number that the next line tells.
    pub(super) fn note(
        &mut self,
        now: Ticks,
        operation: PeerOperation,
        peer: PeerAddr,
        denied: PolicyDenial,
    ) {
        let rule = denied.name();
        match self.counts.iter_mut().find(|(name, _)| *name == rule) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((rule, 1)),
        }
        if self.next_line.is_some_and(|at| now < at) {
            self.silent += 1;
            return;
        }
        let silent = std::mem::take(&mut self.silent);
        self.next_line = Some(now + INTERVAL);
        tracing::info!(?operation, rule = %denied, peer = %Pii(peer.socket_addr()), silent, "peer denied");
    }

    /// Lists rules and counts.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().copied()
    }
}
