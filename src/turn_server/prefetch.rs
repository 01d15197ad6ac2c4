//! Looking ahead: what the packets of a batch are going to need is read before the first of them is handled.
//!
//! With very many allocations every packet finds its index entry, and then its allocation, outside of the processor's nearest
//! caches, and can begin to look for the second only when it has the first. Packet by packet these waits add up; side by side, for all
//! packets of a batch, they pass at the same time. Nothing is decided here: whatever is read is looked at again with all checks.

use super::FiveTuple;
use super::five_tuple::PackedTuple;
use super::hash_index::{HashIndex, ShortHash};
use super::machine::{AllocationId, Relay};
use std::hint::black_box;

/// Packets that are looked ahead for at a time: what they need stays in the nearest cache until they are handled.
pub const PREFETCH_BATCH: usize = 64;
/// Allocations that the processor's second cache holds anyway.
const NEAR_ALLOCATIONS: usize = 2048;
/// Packets whose waits do not add up to the cost of looking ahead.
const FEW_PACKETS: usize = 4;

/// Names no allocation.
const NOBODY: AllocationId = usize::MAX;

impl Relay {
    /// Returns whether a batch of `packets` is worth looking ahead for.
    #[must_use]
    pub fn should_prefetch(&self, packets: usize) -> bool {
        packets >= FEW_PACKETS && self.allocations.len() > NEAR_ALLOCATIONS
    }

    /// Reads what packets of `clients`, at most [`PREFETCH_BATCH`] of them, are going to need. Changes nothing.
    pub fn prefetch_clients(&self, clients: impl Iterator<Item = FiveTuple>) {
        let hashes = clients.map(|client| self.directory.client(&PackedTuple::new(client)));
        self.look_ahead(&self.directory.clients, hashes);
    }

    /// Takes one step for all packets before it takes the next, so that no read of a step waits for another one.
    fn look_ahead(&self, index: &HashIndex, hashes: impl Iterator<Item = ShortHash>) {
        let mut places = [(ShortHash::default(), NOBODY); PREFETCH_BATCH];
        let places = Self::guess(index, hashes, &mut places);
        black_box(self.read(places));
    }

    /// Writes down the first number under each hash: nearly always it is the one.
    fn guess<'a>(
        index: &HashIndex,
        hashes: impl Iterator<Item = ShortHash>,
        places: &'a mut [(ShortHash, AllocationId); PREFETCH_BATCH],
    ) -> &'a mut [(ShortHash, AllocationId)] {
        let mut count = 0;
        for (place, hash) in places.iter_mut().zip(hashes) {
            place.0 = hash;
            count += 1;
        }
        let places = &mut places[..count];
        for (hash, id) in &mut *places {
            *id = index.all(*hash).next().unwrap_or(NOBODY);
        }
        places
    }

    /// Reads from all allocations, and then from what lies behind them.
    fn read(&self, places: &[(ShortHash, AllocationId)]) -> u64 {
        let found = || places.iter().filter_map(|(_, id)| self.allocations.get(*id));
        let sum = found().fold(0, |sum, allocation| sum ^ allocation.prefetch());
        found().fold(sum, |sum, allocation| sum ^ allocation.user_limiter.prefetch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn_server::hash_index::KeyedHasher;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    #[test]
    fn a_batch_is_found_ahead_as_far_as_there_is_room() {
        let hash = KeyedHasher::new(&mut ChaCha20Rng::from_seed([1; 32]));
        let mut index = HashIndex::default();
        (0..1000).for_each(|key| index.insert(hash.of([7; 16], key as u64), key));
        let mut places = [(ShortHash::default(), NOBODY); PREFETCH_BATCH];
        let of = |keys: std::ops::Range<u64>| keys.map(|key| hash.of([7; 16], key));
        let found = Relay::guess(&index, of(950..1200), &mut places);
        let found: Vec<_> = found.iter().map(|(_, id)| *id).collect();
        let expected: Vec<_> = (950..1000).chain(std::iter::repeat_n(NOBODY, PREFETCH_BATCH - 50)).collect();
        assert_eq!(found, expected);
        assert!(Relay::guess(&index, of(0..0), &mut places).is_empty());
    }
}
