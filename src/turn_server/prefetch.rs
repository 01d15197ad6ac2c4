//! Prefetching: the memory that the packets of a batch need is read before the first of them is handled.
//!
//! With very many allocations each packet finds its index entry, and then its allocation, outside of the nearest caches, and can
//! look for the second only when it has the first. Packet by packet these cache misses add up; for a whole batch they overlap.
//! Prefetching decides nothing: every check is made again when the packet is handled.

use super::FiveTuple;
use super::five_tuple::PackedTuple;
use super::hash_index::{HashIndex, ShortHash};
use super::machine::{AllocationId, Relay};
use std::hint::black_box;

/// Most packets to prefetch for at a time: what they need stays in the nearest cache until they are handled.
pub const PREFETCH_BATCH: usize = 64;
/// Allocations that fit into the processor's second-level cache.
const CACHED_ALLOCATIONS: usize = 2048;
/// Below this many packets, prefetching costs more than it saves.
const MIN_PACKETS: usize = 4;

/// No allocation.
const NO_ALLOCATION: AllocationId = usize::MAX;

impl Relay {
    /// Returns whether prefetching pays for a batch of `packets`.
    #[must_use]
    pub fn should_prefetch(&self, packets: usize) -> bool {
        packets >= MIN_PACKETS && self.allocations.len() > CACHED_ALLOCATIONS
    }

    /// Reads what packets of `clients` need, at most [`PREFETCH_BATCH`] of them. Changes nothing.
    pub fn prefetch_clients(&self, clients: impl Iterator<Item = FiveTuple>) {
        let hashes = clients.map(|client| self.client_index.hash(&PackedTuple::new(client)));
        let mut candidates = [(ShortHash::default(), NO_ALLOCATION); PREFETCH_BATCH];
        let candidates = Self::find_candidates(&self.client_index.clients, hashes, &mut candidates);
        black_box(self.touch(candidates));
    }

    /// Stores the first allocation under each hash: nearly always the right one. All packets take one step before the next, so that
    /// no read of a step waits for another.
    fn find_candidates<'a>(
        index: &HashIndex,
        hashes: impl Iterator<Item = ShortHash>,
        candidates: &'a mut [(ShortHash, AllocationId); PREFETCH_BATCH],
    ) -> &'a mut [(ShortHash, AllocationId)] {
        let mut count = 0;
        for (candidate, hash) in candidates.iter_mut().zip(hashes) {
            candidate.0 = hash;
            count += 1;
        }
        let candidates = &mut candidates[..count];
        for (hash, id) in &mut *candidates {
            *id = index.all(*hash).next().unwrap_or(NO_ALLOCATION);
        }
        candidates
    }

    /// Reads from all allocations, and then from the rate limits that they point to.
    fn touch(&self, candidates: &[(ShortHash, AllocationId)]) -> u64 {
        let found = || candidates.iter().filter_map(|(_, id)| self.allocations.get(*id));
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
        let hasher = KeyedHasher::new(&mut ChaCha20Rng::from_seed([1; 32]));
        let mut index = HashIndex::default();
        (0..1000).for_each(|key| index.insert(hasher.hash([7; 16], key as u64), key));
        let mut candidates = [(ShortHash::default(), NO_ALLOCATION); PREFETCH_BATCH];
        let hashes = |keys: std::ops::Range<u64>| keys.map(|key| hasher.hash([7; 16], key));
        let found = Relay::find_candidates(&index, hashes(950..1200), &mut candidates);
        let found: Vec<_> = found.iter().map(|(_, id)| *id).collect();
        let expected: Vec<_> =
            (950..1000).chain(std::iter::repeat_n(NO_ALLOCATION, PREFETCH_BATCH - 50)).collect();
        assert_eq!(found, expected);
        assert!(Relay::find_candidates(&index, hashes(0..0), &mut candidates).is_empty());
    }
}
