//! The server-reflexive candidates of an [`IceEngine`] by UDP.

use super::*;

impl IceEngine {
    /// Sends what gathering has to send, and handles what it has found.
    pub(super) fn flush_gathering(&mut self, now: Instant) {
        while let Some(request) = self.gathering.poll_transmit() {
            if let Some(port) = self.port(request.base) {
                port.send_message(request.server, &request.bytes);
            }
        }
        while let Some(event) = self.gathering.poll_event() {
            match event {
                GatheringEvent::Mapped { base } => self.set_reflexive_candidates(now, base),
                GatheringEvent::Nat(nat) => self.queues.send(EngineEvent::Nat(nat)),
                GatheringEvent::Done => {
                    self.mappings_done = true;
                    self.conclude_gathering(now);
                }
            }
        }
    }

    /// Replaces the server-reflexive candidates of a socket. It has one for each of the NAT's addresses: a server cannot make the list grow.
    fn set_reflexive_candidates(&mut self, now: Instant, base: SocketAddr) {
        let mappings = self.gathering.mappings(base);
        let is_reflexive = |known: &Candidate| {
            known.kind == CandidateKind::ServerReflexive
                && known.transport == CandidateTransport::Udp
                && known.base == base
                && !mappings::is_mapped(known)
        };
        self.candidates.retain(|known| !is_reflexive(known) || mappings.contains(&known.address));
        let index = self.ports.iter().position(|port| port.local_addr() == base);
        let index = index.and_then(|index| u16::try_from(index).ok()).unwrap_or(0);
        for (order, address) in (0..).zip(mappings).filter(|(_, address)| *address != base) {
            if !self.candidates.iter().any(|known| is_reflexive(known) && known.address == address) {
                let preference = u16::MAX - index * PREFERENCE_STEP - order;
                let transport = CandidateTransport::Udp;
                self.add_candidate(now, Candidate::server_reflexive(transport, address, base, preference));
            }
        }
    }
}
