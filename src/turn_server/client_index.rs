//! Which allocation a 5-tuple belongs to: a [`HashIndex`] over the 5-tuples that the allocations store.

use super::FiveTuple;
use super::five_tuple::PackedTuple;
use super::hash_index::{HashIndex, KeyedHasher, ShortHash};
use super::machine::{AllocationId, Relay};
use rand_chacha::ChaCha20Rng;

/// The index of one relay.
#[derive(Debug)]
pub(super) struct ClientIndex {
    hasher: KeyedHasher,
    pub(super) clients: HashIndex,
}

impl ClientIndex {
    /// Draws the hash key from another stream of `rng`, so that `rng` itself is not advanced.
    pub(super) fn new(rng: &ChaCha20Rng) -> Self {
        let mut rng = rng.clone();
        rng.set_stream(1);
        Self { hasher: KeyedHasher::new(&mut rng), clients: HashIndex::default() }
    }

    pub(super) fn hash(&self, client: &PackedTuple) -> ShortHash {
        let (ip, numbers) = client.key();
        self.hasher.hash(ip, numbers)
    }
}

impl Relay {
    /// Returns the allocation of a client.
    pub(super) fn allocation_of(&self, client: FiveTuple) -> Option<AllocationId> {
        let client = PackedTuple::new(client);
        let hash = self.client_index.hash(&client);
        self.client_index.clients.find(hash, |id| self.allocations.get(id).is_some_and(|a| a.is_of(&client)))
    }

    pub(super) fn insert_client(&mut self, client: FiveTuple, id: AllocationId) {
        let hash = self.client_index.hash(&PackedTuple::new(client));
        self.client_index.clients.insert(hash, id);
    }

    pub(super) fn remove_client(&mut self, client: FiveTuple, id: AllocationId) {
        let hash = self.client_index.hash(&PackedTuple::new(client));
        self.client_index.clients.remove(hash, id);
    }
}
