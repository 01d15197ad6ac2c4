//! Who is who on the packet path: the client of a five-tuple, the tenant whose peer this is, the tenants that permit an address, the
//! relay port at an address.
//!
//! Each is an [`Index`](super::index::Index) over what allocations and ports know of themselves: the claim of a peer stands in the
//! allocation's link, a permission in its permissions.

use super::FiveTuple;
use super::allocation::Family;
use super::five_tuple::PackedTuple;
use super::index::{Hash, Index, KeyedHash};
use super::machine::{AllocationId, Relay};
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use rand_chacha::ChaCha20Rng;
use std::net::SocketAddr;

/// Bits of a port number, beside which a relay's name goes into a key.
const PORT_BITS: u32 = 16;

/// The indices of one relay.
#[derive(Debug)]
pub(super) struct Directory {
    hash: KeyedHash,
    pub(super) clients: Index,
    pub(super) claims: Index,
    permits: Index,
    relays: Index,
}

impl Directory {
    /// Takes the secret of its hashes from another stream of `rng`.
    pub(super) fn new(rng: &ChaCha20Rng) -> Self {
        let mut rng = rng.clone();
        rng.set_stream(1);
        let index = Index::default;
        Self {
            hash: KeyedHash::new(&mut rng),
            clients: index(),
            claims: index(),
            permits: index(),
            relays: index(),
        }
    }

    pub(super) fn client(&self, client: &PackedTuple) -> Hash {
        let (ip, numbers) = client.key();
        self.hash.of(ip, numbers)
    }

    pub(super) fn peer_at(&self, relay: RelayId, peer: PeerAddr) -> Hash {
        self.hash.of(peer.octets(), ((relay as u64) << PORT_BITS) | u64::from(peer.port()))
    }
}

impl Relay {
    /// Returns the allocation of a client.
    pub(super) fn allocation_of(&self, client: FiveTuple) -> Option<AllocationId> {
        let client = PackedTuple::new(client);
        let hash = self.directory.client(&client);
        self.directory.clients.find(hash, |id| self.allocations.get(id).is_some_and(|a| a.is_of(&client)))
    }

    pub(super) fn enter_client(&mut self, client: FiveTuple, id: AllocationId) {
        let hash = self.directory.client(&PackedTuple::new(client));
        self.directory.clients.insert(hash, id);
    }

    pub(super) fn strike_client(&mut self, client: FiveTuple, id: AllocationId) {
        let hash = self.directory.client(&PackedTuple::new(client));
        self.directory.clients.remove(hash, id);
    }

    /// Returns whose peer a transport address is on a port.
    pub(super) fn claimant(&self, relay: RelayId, peer: PeerAddr) -> Option<AllocationId> {
        let holds = |id| self.allocations.get(id).is_some_and(|a| a.relay_to(peer) == Some(relay));
        self.directory.claims.find(self.directory.peer_at(relay, peer), holds)
    }

    /// Lists all allocations that have claimed a transport address on a port: one, but for relayed addresses of this server.
    pub(super) fn claimants(&self, relay: RelayId, peer: PeerAddr) -> impl Iterator<Item = AllocationId> {
        let holds = move |id: &AllocationId| {
            self.allocations.get(*id).is_some_and(|a| a.relay_to(peer) == Some(relay))
        };
        self.directory.claims.all(self.directory.peer_at(relay, peer)).filter(holds)
    }

    /// Makes `peer` the allocation's on a port where it is nobody's, or a relayed address of this server.
    pub(super) fn enter_claim(&mut self, id: AllocationId, relay: RelayId, peer: PeerAddr) {
        let any_port = !self.shared.policy.judges_ports(peer.ip());
        self.allocations[id].add_peer(peer, relay, any_port);
        self.relays[relay].claims += 1;
        let hash = self.directory.peer_at(relay, peer);
        self.directory.claims.insert(hash, id);
    }

    /// Takes a claim back, from the allocation too if it is still there. The port stays open.
    pub(super) fn strike_claim(&mut self, id: AllocationId, relay: RelayId, peer: PeerAddr) {
        self.part(id, peer);
        let hash = self.directory.peer_at(relay, peer);
        self.directory.claims.remove(hash, id);
        if let Some(port) = self.relays.get_mut(relay) {
            port.claims -= 1;
        }
        if let Some(allocation) = self.allocations.get_mut(id) {
            allocation.forget_peer(peer);
        }
    }

    /// Lists the tenants of a port that had a permission for the address of `peer` once; it may be over.
    pub(super) fn permitting(&self, relay: RelayId, peer: PeerAddr) -> impl Iterator<Item = AllocationId> {
        let (family, peer) = (Family::of(peer.ip()), peer.without_port());
        let permits = move |id: &AllocationId| {
            self.allocations
                .get(*id)
                .is_some_and(|a| a.home(family) == Some(relay) && a.cold.permissions.contains(peer))
        };
        self.directory.permits.all(self.directory.peer_at(relay, peer)).filter(permits)
    }

    /// Notes that a tenant of a port has got a permission that it did not have, or has come with it.
    pub(super) fn enter_permit(&mut self, id: AllocationId, relay: RelayId, peer: PeerAddr) {
        let hash = self.directory.peer_at(relay, peer.without_port());
        self.directory.permits.insert(hash, id);
    }

    pub(super) fn strike_permit(&mut self, id: AllocationId, relay: RelayId, peer: PeerAddr) {
        let hash = self.directory.peer_at(relay, peer.without_port());
        self.directory.permits.remove(hash, id);
    }

    /// Returns the relay port at a local address.
    pub(super) fn relay_at(&self, address: SocketAddr) -> Option<RelayId> {
        if !self.shared.addresses.iter().any(|own| own.local == address.ip()) {
            return None;
        }
        let hash = self.directory.peer_at(0, PeerAddr::new(address));
        self.directory
            .relays
            .find(hash, |relay| self.relays.get(relay).is_some_and(|port| port.address() == address))
    }

    pub(super) fn enter_relay(&mut self, address: SocketAddr, relay: RelayId) {
        let hash = self.directory.peer_at(0, PeerAddr::new(address));
        self.directory.relays.insert(hash, relay);
    }

    pub(super) fn strike_relay(&mut self, address: SocketAddr, relay: RelayId) {
        let hash = self.directory.peer_at(0, PeerAddr::new(address));
        self.directory.relays.remove(hash, relay);
    }
}
