//! CreatePermission, ChannelBind and the peers that a client sends to: who may talk to whom
//! ([RFC 8656 sections 10 and 12](https://www.rfc-editor.org/rfc/rfc8656#section-10)).

use super::allocation::{BindError, Family, PeerTransport};
use super::denial_counters::PeerOperation;
use super::machine::{AllocationId, Relay};
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use super::requests::Request;
use super::response::StunErrorCode;
use crate::clock::Now;
use crate::clock::Ticks;
use crate::limits::Limit;
use crate::stun::attr;
use rand::Rng;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Most transport addresses of peers that one allocation is remembered to send to. One that was forgotten counts as new again.
const MAX_PEERS: usize = 512;

/// Why an allocation cannot send to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddPeerError {
    /// There is no relayed address of the peer's family.
    Family,
    /// Too many new peers in too short a time.
    TooMany,
}

impl Relay {
    /// Follows [RFC 8656 section 10.2](https://www.rfc-editor.org/rfc/rfc8656#section-10.2): all peers or none.
    pub(super) fn create_permission(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        let id = self.owned_allocation(now, request)?;
        let at = self.tick_base.ticks(now.mono);
        let named: Result<Vec<_>, _> = request.attributes.xor_addresses(attr::XOR_PEER_ADDRESS).collect();
        let named = named.map_err(|_| StunErrorCode::BadRequest)?;
        if named.is_empty() {
            return Err(StunErrorCode::BadRequest);
        }
        let peers: Result<Vec<_>, StunErrorCode> = named
            .into_iter()
            .map(|peer| self.authorize_peer(at, id, PeerOperation::CreatePermission, peer))
            .collect();
        let peers = peers?;
        self.make_room(at, id, &peers)?;
        for peer in peers {
            self.allocations[id].permit(at, peer);
        }
        let bytes = request.responder.success(|builder| builder);
        self.respond(request.client, bytes);
        Ok(())
    }

    /// Follows [RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2).
    pub(super) fn channel_bind(&mut self, now: Now, request: &Request<'_>) -> Result<(), StunErrorCode> {
        let id = self.owned_allocation(now, request)?;
        if self.allocations[id].control.peer_transport == PeerTransport::Tcp {
            return Err(StunErrorCode::BadRequest);
        }
        let Some(&[high, low, _, _]) = request.attributes.get(attr::CHANNEL_NUMBER) else {
            return Err(StunErrorCode::BadRequest);
        };
        let number = u16::from_be_bytes([high, low]);
        let peer = request
            .attributes
            .xor_address(attr::XOR_PEER_ADDRESS)
            .ok()
            .flatten()
            .ok_or(StunErrorCode::BadRequest)?;
        let at = self.tick_base.ticks(now.mono);
        let peer = self.authorize_peer(at, id, PeerOperation::ChannelBind, peer)?;
        if peer.port() == 0 {
            return Err(StunErrorCode::BadRequest);
        }
        let most = self.shared.limits.permissions;
        self.allocations[id].may_bind(at, number, peer, most).map_err(|refusal| match refusal {
            BindError::Conflict => StunErrorCode::BadRequest,
            BindError::Full => permissions_full(most),
        })?;
        self.make_room(at, id, &[peer])?;
        self.add_peer(at, id, peer).map_err(|refusal| match refusal {
            AddPeerError::Family => StunErrorCode::PeerFamilyMismatch,
            AddPeerError::TooMany => StunErrorCode::InsufficientCapacity,
        })?;
        self.allocations[id].bind(at, number, peer);
        self.allocations[id].permit(at, peer);
        let bytes = request.responder.success(|builder| builder);
        self.respond(request.client, bytes);
        Ok(())
    }

    /// Takes note of the addresses that this host has from now on: they are no peers, whatever was permitted before, and those that it
    /// has no more are peers again.
    pub fn handle_own_addresses(&mut self, own: Arc<[IpAddr]>) {
        let policy = Arc::new(self.shared.policy.on_interfaces(own));
        for (_, allocation) in &mut self.allocations {
            allocation.peer_table.set_port_checks(|peer| policy.checks_ports(peer.ip()));
        }
        self.shared.policy = policy;
    }

    fn make_room(&mut self, now: Ticks, id: AllocationId, peers: &[PeerAddr]) -> Result<(), StunErrorCode> {
        let most = self.shared.limits.permissions;
        let permissions = &mut self.allocations[id].control.permissions;
        if permissions.len_with(peers) > most {
            permissions.forget_expired(now);
        }
        if permissions.len_with(peers) > most { Err(permissions_full(most)) } else { Ok(()) }
    }

    /// Returns the relay port to `peer`; one that the client has not sent to before is held to the rate of new peers.
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
        // A family that was added and whose port could not be had then is tried again.
        if !self.ensure_family(id, family) {
            return Err(AddPeerError::Family);
        }
        let allocation = &mut self.allocations[id];
        let relay = allocation.relay_port(family).ok_or(AddPeerError::Family)?;
        if !allocation.takes_new_peer(&self.shared.limits, now) {
            self.counters.over_new_peers += 1;
            return Err(AddPeerError::TooMany);
        }
        self.forget_peers_beyond_the_cap(now, id);
        let any_port = !self.shared.policy.checks_ports(peer.ip());
        self.allocations[id].add_peer(peer, relay, any_port);
        Ok(relay)
    }

    /// Forgets the peers that the allocation cannot send to any more, or one of the others, if it has too many.
    fn forget_peers_beyond_the_cap(&mut self, now: Ticks, id: AllocationId) {
        let allocation = &mut self.allocations[id];
        if allocation.peers().count() < MAX_PEERS {
            return;
        }
        let idle: Vec<_> = allocation.peers().filter(|peer| !allocation.uses(now, *peer)).collect();
        idle.into_iter().for_each(|peer| allocation.forget_peer(peer));
        let count = allocation.peers().count();
        if count < MAX_PEERS {
            return;
        }
        let any = allocation.peers().nth(self.rng.random_range(0..count));
        any.into_iter().for_each(|peer| allocation.forget_peer(peer));
    }

    /// Returns whether the allocation has, or now gets, a relayed address of the peer's family.
    pub(super) fn ensure_family(&mut self, id: AllocationId, family: Family) -> bool {
        let allocation = &self.allocations[id];
        if allocation.relay_port(family).is_some() {
            return true;
        }
        let may_add =
            self.shared.features.add_family && allocation.control.peer_transport == PeerTransport::Udp;
        may_add && self.add_relayed_address(id, family)
    }

    /// Returns the peer as it is seen on the wire, if the policy lets it be reached and this allocation can reach it.
    pub(super) fn authorize_peer(
        &mut self,
        now: Ticks,
        id: AllocationId,
        operation: PeerOperation,
        peer: SocketAddr,
    ) -> Result<PeerAddr, StunErrorCode> {
        let peer = self.local_peer(peer);
        // A permission names no port (RFC 8656 section 9.2); what may be sent to is looked at again with each datagram.
        let judged = if operation == PeerOperation::CreatePermission { peer.without_port() } else { peer };
        if let Err(denied) = self.shared.policy.check(judged) {
            self.denials.note(now, operation, peer, denied);
            return Err(StunErrorCode::Forbidden);
        }
        if !self.ensure_family(id, Family::of(peer.ip())) {
            return Err(StunErrorCode::PeerFamilyMismatch);
        }
        Ok(peer)
    }
}

/// As many permissions, or channels, as an allocation may have.
fn permissions_full(most: usize) -> StunErrorCode {
    Limit::PermissionsPerAllocation.reached(most);
    StunErrorCode::InsufficientCapacity
}
