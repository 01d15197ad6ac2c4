//! TCP simultaneous open ([RFC 6544 section 4.1](https://www.rfc-editor.org/rfc/rfc6544#section-4.1)) of an [`IceEngine`]: for two NATs
//! with one mapping for each port, where UDP is blocked.
//!
//! The candidates cost a TCP connection to the server. They are gathered once UDP has turned out to be blocked, or the peer has such a one.

use super::*;

/// The first and the longest wait before a lost mapping is asked for again.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Which base has, or will have, candidates.
#[derive(Default)]
pub(super) struct SimultaneousOpen {
    /// The address whose mapping is asked for.
    ip: Option<IpAddr>,
    /// A mapping that was lost is asked for again then.
    pub(super) retry_at: Option<Instant>,
    failures: u32,
    /// The peer has a candidate.
    is_offered: bool,
}

impl IceEngine {
    /// Handles a candidate of the peer.
    pub(super) fn note_simultaneous_open(&mut self, now: Instant, candidate: &Candidate) {
        if candidate.transport == CandidateTransport::TcpSimultaneousOpen {
            self.simultaneous_open.is_offered = true;
            self.gather_simultaneous_open(now);
        }
    }

    /// Begins to gather, if that is useful and has not begun.
    pub(super) fn gather_simultaneous_open(&mut self, now: Instant) {
        self.simultaneous_open.retry_at.take_if(|at| *at <= now);
        if self.simultaneous_open.retry_at.is_some() {
            return;
        }
        let is_useful = self.simultaneous_open.is_offered || self.gathering.is_udp_blocked(now) == Some(true);
        let is_possible = self.config.policy != PathPolicy::RelayOnly && self.agent.is_some();
        let Some(ip) = self.server_port().map(|port| port.local_addr().ip()) else { return };
        if !is_useful || !is_possible || self.simultaneous_open.ip == Some(ip) {
            return;
        }
        match self.streams.map(ip, self.config.server) {
            Ok(()) => self.simultaneous_open.ip = Some(ip),
            Err(error) => tracing::debug!(%error, %ip, "no socket for simultaneous open"),
        }
    }

    /// Handles what the server says of a base.
    pub(super) fn handle_tcp_mapping(&mut self, now: Instant, base: SocketAddr, address: SocketAddr) {
        let transport = CandidateTransport::TcpSimultaneousOpen;
        self.remove_candidates(now, base);
        self.simultaneous_open.failures = 0;
        self.add_candidate(now, Candidate::host(transport, base, PREFERENCE_STEP));
        if address != base {
            self.add_candidate(now, Candidate::server_reflexive(transport, address, base, PREFERENCE_STEP));
        }
    }

    /// Handles that a mapping is not kept any more. An open connection goes on without it.
    pub(super) fn handle_tcp_unmapped(&mut self, now: Instant, base: SocketAddr) {
        let selected = self.agent.as_ref().and_then(IceAgent::selected);
        if selected.is_none_or(|pair| pair.local.base != base) {
            self.remove_candidates(now, base);
        }
        // The address may have changed meanwhile: then there is a newer one.
        if self.simultaneous_open.ip == Some(base.ip()) {
            let wait = RETRY.0 * 2_u32.pow(self.simultaneous_open.failures.min(6));
            self.simultaneous_open.failures += 1;
            (self.simultaneous_open.ip, self.simultaneous_open.retry_at) =
                (None, Some(now + wait.min(RETRY.1)));
        }
    }
}
