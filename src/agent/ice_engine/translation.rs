//! What an [`IceEngine`] does where the host has only IPv6: a NAT64 leads to IPv4 peers, and gives this side an IPv4 address.

use super::super::nat64::{Nat64Prefix, WELL_KNOWN_NAME};
use super::*;
use std::sync::OnceLock;

/// The prefix of this network, once its DNS has told it.
#[derive(Debug, Clone, Default)]
pub(super) struct Translation {
    found: Arc<OnceLock<Nat64Prefix>>,
}

impl Translation {
    /// Asks the network's DNS for its prefix.
    pub(super) fn look_up(&self) {
        let found = Arc::clone(&self.found);
        tokio::spawn(async move {
            let Ok(answers) = tokio::net::lookup_host((WELL_KNOWN_NAME, 0)).await else { return };
            let prefix = answers.into_iter().find_map(|answer| match answer.ip() {
                IpAddr::V6(ip) => Nat64Prefix::of_answer(ip),
                IpAddr::V4(_) => None,
            });
            if let Some(prefix) = prefix {
                let _ = found.set(prefix);
            }
        });
    }

    fn synthesize(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.found.get().copied().unwrap_or(Nat64Prefix::WELL_KNOWN).synthesize(address)
    }
}

impl IceEngine {
    /// Returns whether this host has IPv6 addresses and no others.
    fn is_ipv6_only(&self) -> bool {
        let mut ports = self.ports.iter().filter(|port| !port.local_addr().ip().is_loopback()).peekable();
        ports.peek().is_some() && ports.all(|port| port.local_addr().is_ipv6())
    }

    /// Looks for a NAT64 where one is needed.
    pub(super) fn look_for_nat64(&self) {
        if self.is_ipv6_only() {
            self.translation.look_up();
        }
    }

    /// Returns the same candidate as it is reached through a NAT64. A relay reaches the original.
    pub(super) fn translate(&self, candidate: &Candidate) -> Option<Candidate> {
        if candidate.kind == CandidateKind::Relayed || !self.is_ipv6_only() {
            return None;
        }
        let address = self.translation.synthesize(candidate.address)?;
        Some(Candidate { address, base: address, ..candidate.clone() })
    }

    /// Returns an IPv4 address as it is reached through a NAT64.
    pub(super) fn translate_address(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.translation.synthesize(address)
    }

    /// Asks the server for the IPv4 address that a NAT64 gives this host; the relay tells the server's own one.
    pub(super) fn map_through_nat64(&mut self, now: Instant, relayed: SocketAddr) {
        let server = SocketAddr::new(relayed.ip(), self.config.server.port());
        if self.is_ipv6_only()
            && let Some(server) = self.translation.synthesize(server)
        {
            self.gathering.set_translated_server(now, server);
        }
    }
}
