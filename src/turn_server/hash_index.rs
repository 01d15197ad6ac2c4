//! An index whose keys are stored in the indexed items: 8 bytes an entry, so that the index of very many allocations stays in the
//! processor's caches.
//!
//! The hash is keyed, because clients choose their addresses and must not be able to choose collisions.

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
use hashbrown::HashTable;
use rand::RngCore;
use std::hash::Hasher;

/// A hash function with a secret key.
#[derive(Debug, Clone)]
pub(super) struct KeyedHasher {
    seed: u64,
    shared: SharedSeed,
}

impl KeyedHasher {
    pub(super) fn new(rng: &mut impl RngCore) -> Self {
        Self { seed: rng.next_u64(), shared: SharedSeed::from_u64(rng.next_u64()) }
    }

    /// Returns the hash of an IP address and of the rest of the key.
    pub(super) fn hash(&self, ip: [u8; 16], more: u64) -> ShortHash {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared);
        hasher.write_u128(u128::from_ne_bytes(ip));
        hasher.write_u64(more);
        let hash = hasher.finish();
        ShortHash((hash ^ (hash >> 32)) as u32)
    }
}

/// The 32 bits of a hash that an entry stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ShortHash(u32);

impl ShortHash {
    /// Repeats the bits: the table uses the highest and the lowest ones.
    fn wide(self) -> u64 {
        (u64::from(self.0) << 32) | u64::from(self.0)
    }
}

/// A multimap from hashes to item numbers.
#[derive(Debug, Default)]
pub(super) struct HashIndex(HashTable<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    hash: ShortHash,
    number: u32,
}

impl Entry {
    /// Slabs use the lowest free number, and no host holds 2^32 allocations.
    fn new(hash: ShortHash, number: usize) -> Self {
        Self { hash, number: number as u32 }
    }
}

impl HashIndex {
    /// Returns the first number under `hash` for which `is_it` is true.
    pub(super) fn find(&self, hash: ShortHash, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let entry = self.0.find(hash.wide(), |entry| entry.hash == hash && is_it(entry.number as usize));
        entry.map(|entry| entry.number as usize)
    }

    /// Iterates over the numbers under `hash`; some may belong to other keys.
    pub(super) fn all(&self, hash: ShortHash) -> impl Iterator<Item = usize> {
        self.0
            .iter_hash(hash.wide())
            .filter(move |entry| entry.hash == hash)
            .map(|entry| entry.number as usize)
    }

    pub(super) fn insert(&mut self, hash: ShortHash, number: usize) {
        self.0.insert_unique(hash.wide(), Entry::new(hash, number), |entry| entry.hash.wide());
    }

    /// Removes one entry of `number`, if there is one.
    pub(super) fn remove(&mut self, hash: ShortHash, number: usize) {
        let wanted = Entry::new(hash, number);
        if let Ok(entry) = self.0.find_entry(hash.wide(), |entry| *entry == wanted) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    #[test]
    fn what_was_put_in_is_found_until_it_is_taken_out() {
        let hash = KeyedHasher::new(&mut ChaCha20Rng::from_seed([1; 32]));
        let mut index = HashIndex::default();
        let of = |key: usize| hash.hash([7; 16], key as u64);
        (0..10_000).for_each(|key| index.insert(of(key), key));
        assert!((0..10_000).all(|key| index.find(of(key), |number| number == key) == Some(key)));
        assert_eq!(index.find(of(5), |_| false), None);
        (0..10_000).step_by(2).for_each(|key| index.remove(of(key), key));
        assert!((0..10_000).all(|key| index.find(of(key), |n| n == key).is_some() == (key % 2 == 1)));
    }

    #[test]
    fn one_key_may_have_several_numbers() {
        let hash = KeyedHasher::new(&mut ChaCha20Rng::from_seed([1; 32])).hash([0; 16], 0);
        let mut index = HashIndex::default();
        [3, 4, 4].into_iter().for_each(|number| index.insert(hash, number));
        index.remove(hash, 4);
        let mut numbers: Vec<_> = index.all(hash).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [3, 4]);
    }

    #[test]
    fn another_seed_is_another_hash() {
        let with = |seed| KeyedHasher::new(&mut ChaCha20Rng::from_seed([seed; 32])).hash([1; 16], 1);
        assert_ne!(with(1), with(2));
    }
}
