//! The peers of an allocation: which may be named in a request, and which the client has sent to.

use super::allocation::{Family, PeerTransport};
use super::denial_counters::PeerOperation;
use super::handlers::PermissionHandler;
use super::machine::{AllocationId, Relay};
use super::policy::{PeerAddr, PolicyDenial};
use super::relay_port::RelayId;
use super::response::StunErrorCode;
use crate::clock::Ticks;
use rand::Rng;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Most peers, by transport address, that an allocation remembers to have sent to. A forgotten one counts as new again.
const MAX_PEERS: usize = 512;

/// Why a peer cannot be added to an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddPeerError {
    /// There is no relayed address of the peer's family.
    Family,
    /// The allocation or its user adds peers too fast.
    TooMany,
}

impl Relay {
    /// Replaces the addresses of this host's interfaces: they are denied as peers, whatever was permitted before, and those that
    /// the host no longer has are allowed again.
    pub fn handle_own_addresses(&mut self, own: Arc<[IpAddr]>) {
        let policy = Arc::new(self.shared.policy.on_interfaces(own));
        for (_, allocation) in &mut self.allocations {
            allocation.peer_table.set_port_checks(|peer| policy.checks_ports(peer.ip()));
        }
        self.shared.policy = policy;
    }

    /// Checks a peer that a request names against the policy (403), and that the allocation has, or now gets, a relayed address of
    /// its family (443). Returns the peer's canonical address.
    pub(super) fn authorize_peer(
        &mut self,
        now: Ticks,
        id: AllocationId,
        operation: PeerOperation,
        peer: SocketAddr,
    ) -> Result<PeerAddr, StunErrorCode> {
        let peer = self.local_peer(peer);
        // A permission names no port (RFC 8656 section 9.2); the port is checked with each datagram.
        let checked = if operation == PeerOperation::CreatePermission { peer.without_port() } else { peer };
        let handler = self.shared.permission_handler.as_ref();
        let allocation = &self.allocations[id];
        let permits = |handler: &Arc<dyn PermissionHandler>| {
            handler.permits(&allocation.client(), allocation.user(), peer.socket_addr())
        };
        let verdict =
            self.shared.policy.check(checked).and_then(|()| {
                handler.is_none_or(permits).then_some(()).ok_or(PolicyDenial::PermissionHandler)
            });
        if let Err(denial) = verdict {
            self.denials.record(now, operation, peer, denial);
            return Err(StunErrorCode::Forbidden);
        }
        if !self.ensure_family(id, Family::of(peer.ip())) {
            return Err(StunErrorCode::PeerFamilyMismatch);
        }
        Ok(peer)
    }

    /// Returns the relay port that sends to `peer`. Peers that the client has not sent to before are rate limited.
    pub(super) fn add_peer(
        &mut self,
        now: Ticks,
        id: AllocationId,
        peer: PeerAddr,
    ) -> Result<RelayId, AddPeerError> {
        if let Some(relay) = self.allocations[id].relay_to(peer) {
            return Ok(relay);
        }
        let family = Family::of(peer.ip());
        // A family whose port could not be opened when it was added is tried again.
        if !self.ensure_family(id, family) {
            return Err(AddPeerError::Family);
        }
        let allocation = &mut self.allocations[id];
        let relay = allocation.relay_port(family).ok_or(AddPeerError::Family)?;
        if !allocation.takes_new_peer(&self.shared.limits, now) {
            self.counters.new_peers_refused += 1;
            return Err(AddPeerError::TooMany);
        }
        self.limit_peers(now, id);
        let skips_port_check = !self.shared.policy.checks_ports(peer.ip());
        self.allocations[id].add_peer(peer, relay, skips_port_check);
        Ok(relay)
    }

    /// Frees the entry of one peer: removes the peers that the allocation may no longer send to, or otherwise an arbitrary one.
    fn limit_peers(&mut self, now: Ticks, id: AllocationId) {
        let allocation = &mut self.allocations[id];
        if allocation.peers().count() < MAX_PEERS {
            return;
        }
        let idle: Vec<_> = allocation.peers().filter(|peer| !allocation.uses(now, *peer)).collect();
        idle.into_iter().for_each(|peer| allocation.remove_peer(peer));
        let count = allocation.peers().count();
        if count < MAX_PEERS {
            return;
        }
        let any = allocation.peers().nth(self.rng.random_range(0..count));
        any.into_iter().for_each(|peer| allocation.remove_peer(peer));
    }

    /// Returns whether the allocation has, or now gets, a relayed address of `family`.
    pub(super) fn ensure_family(&mut self, id: AllocationId, family: Family) -> bool {
        let allocation = &self.allocations[id];
        if allocation.relay_port(family).is_some() {
            return true;
        }
        let may_add =
            self.shared.features.add_family && allocation.control.peer_transport == PeerTransport::Udp;
        may_add && self.add_relayed_address(id, family)
    }
}
