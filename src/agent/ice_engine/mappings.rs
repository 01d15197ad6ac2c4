//! The ports of an [`IceEngine`] that the router maps: server-reflexive candidates with a foundation of their own.

use super::*;

/// A mapped port is checked after the address that STUN found for the same socket.
const PREFERENCE_GAP: u16 = 8;
/// Between the foundation of a candidate that STUN found and that of a mapped port.
const FOUNDATION_PREFIX: char = 'm';

impl IceEngine {
    /// Returns whether ports are mapped: a server on this host has no peers beyond the router.
    pub(super) fn maps_ports(config: &EngineConfig) -> bool {
        config.port_mapping && config.policy != PathPolicy::RelayOnly && !config.server.ip().is_loopback()
    }

    /// Asks for the ports of the best addresses: the router maps those of the default route.
    pub(super) fn request_mappings(&self) {
        let udp = self.ports.iter().map(|port| (MappedProtocol::Udp, port.local_addr()));
        let passive =
            self.candidates.iter().filter(|known| known.transport == CandidateTransport::TcpPassive);
        let tcp = passive.filter(|known| known.kind == CandidateKind::Host);
        let tcp = tcp.map(|known| (MappedProtocol::Tcp, known.base));
        let wanted = udp.chain(tcp).map(|(protocol, internal)| WantedMapping { protocol, internal });
        self.mapper.set(wanted.collect());
    }

    pub(super) fn handle_mapping(&mut self, now: Instant, event: MappingEvent) {
        let wanted = match event {
            MappingEvent::Mapped(wanted, _) | MappingEvent::Lost(wanted) => wanted,
        };
        let transport = match wanted.protocol {
            MappedProtocol::Udp => CandidateTransport::Udp,
            MappedProtocol::Tcp => CandidateTransport::TcpPassive,
        };
        let base = wanted.internal;
        self.candidates
            .retain(|known| !is_mapped(known) || (known.base, known.transport) != (base, transport));
        let MappingEvent::Mapped(_, external) = event else { return };
        let host = self.candidates.iter().find(|known| (known.base, known.transport) == (base, transport));
        let is_known =
            self.candidates.iter().any(|known| (known.address, known.transport) == (external, transport));
        if host.is_none() || is_known {
            return;
        }
        let index = self.ports.iter().position(|port| port.local_addr().ip() == base.ip());
        let index = index.and_then(|index| u16::try_from(index).ok()).unwrap_or(0);
        let preference = u16::MAX - index * PREFERENCE_STEP - PREFERENCE_GAP;
        let reflexive = Candidate::server_reflexive(transport, external, base, preference);
        let foundation = format!("{FOUNDATION_PREFIX}{}", reflexive.foundation);
        tracing::debug!(%external, internal = %base, "the router maps a port");
        self.add_candidate(now, Candidate { foundation, ..reflexive });
    }
}

/// Returns whether a local candidate is the port of the router, not an address that STUN found.
pub(super) fn is_mapped(candidate: &Candidate) -> bool {
    candidate.kind == CandidateKind::ServerReflexive && candidate.foundation.starts_with(FOUNDATION_PREFIX)
}
