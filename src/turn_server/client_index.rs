//! Which allocation a five-tuple belongs to: an [`HashIndex`](super::hash_index::HashIndex) over what the allocations know of themselves.

use super::FiveTuple;
use super::five_tuple::PackedTuple;
use super::hash_index::{HashIndex, KeyedHasher, ShortHash};
use super::machine::{AllocationId, Relay};
use rand_chacha::ChaCha20Rng;

/// The index of one relay.
#[derive(Debug)]
pub(super) struct ClientIndex {
    hash: KeyedHasher,
    pub(super) clients: HashIndex,
}

impl ClientIndex {
    /// Takes the secret of its hashes from another stream of `rng`.
    pub(super) fn new(rng: &ChaCha20Rng) -> Self {
        let mut rng = rng.clone();
        rng.set_stream(1);
        Self { hash: KeyedHasher::new(&mut rng), clients: HashIndex::default() }
    }

    pub(super) fn client(&self, client: &PackedTuple) -> ShortHash {
        let (ip, numbers) = client.key();
        self.hash.of(ip, numbers)
    }
}

impl Relay {
    /// Returns the allocation of a client.
    pub(super) fn allocation_of(&self, client: FiveTuple) -> Option<AllocationId> {
        let client = PackedTuple::new(client);
        let hash = self.directory.client(&client);
        self.directory.clients.find(hash, |id| self.allocations.get(id).is_some_and(|a| a.is_of(&client)))
    }

    pub(super) fn insert_client(&mut self, client: FiveTuple, id: AllocationId) {
        let hash = self.directory.client(&PackedTuple::new(client));
        self.directory.clients.insert(hash, id);
    }

    pub(super) fn remove_client(&mut self, client: FiveTuple, id: AllocationId) {
        let hash = self.directory.client(&PackedTuple::new(client));
        self.directory.clients.remove(hash, id);
    }
}
