//! The pairs of a generation, found by their addresses in constant time.

use super::pair::{Pair, PairKey};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Pairs in no particular order, at most one for each key.
#[derive(Debug, Default)]
pub(super) struct CheckList {
    pairs: Vec<Pair>,
    /// Where a pair is in `pairs`.
    indexes: HashMap<PairKey, usize>,
}

impl CheckList {
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(super) fn get(&self, key: PairKey) -> Option<&Pair> {
        self.indexes.get(&key).map(|index| &self.pairs[*index])
    }

    pub(super) fn get_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        self.indexes.get(&key).map(|index| &mut self.pairs[*index])
    }

    /// Adds a pair, unless there is one with its key.
    pub(super) fn insert(&mut self, pair: Pair) {
        if let Entry::Vacant(vacant) = self.indexes.entry(pair.key) {
            vacant.insert(self.pairs.len());
            self.pairs.push(pair);
        }
    }

    pub(super) fn remove(&mut self, key: PairKey) -> Option<Pair> {
        let index = self.indexes.remove(&key)?;
        let removed = self.pairs.swap_remove(index);
        if let Some(moved) = self.pairs.get(index) {
            self.indexes.insert(moved.key, index);
        }
        Some(removed)
    }

    /// Removes the pairs for which `is_kept` is false.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Pair) -> bool) {
        let removed: Vec<PairKey> =
            self.pairs.iter().filter(|pair| !is_kept(pair)).map(|pair| pair.key).collect();
        for key in removed {
            self.remove(key);
        }
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Pair> {
        #[cfg(test)]
        VISITS.with(|visits| visits.set(visits.get() + 1));
        self.pairs.iter()
    }

    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Pair> {
        #[cfg(test)]
        VISITS.with(|visits| visits.set(visits.get() + 1));
        self.pairs.iter_mut()
    }
}

#[cfg(test)]
thread_local! {
    static VISITS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Returns how often all pairs of a list were looked at in this thread.
#[cfg(test)]
pub(super) fn visits() -> u64 {
    VISITS.with(std::cell::Cell::get)
}

#[cfg(test)]
mod tests {
    use super::super::candidate::{Candidate, CandidateTransport};
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn pair(port: u16) -> Pair {
        let candidate = |address: SocketAddr| Candidate::host(CandidateTransport::Udp, address, 0);
        Pair::new(&candidate(([192, 0, 2, 1], 1).into()), &candidate(([192, 0, 2, 2], port).into()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_pair_is_found_by_its_key_and_by_no_other(
            steps in proptest::collection::vec((1_u16..16, 0_u8..3), 0..60),
        ) {
            let mut list = CheckList::default();
            let mut model = std::collections::BTreeSet::new();
            for (port, step) in steps {
                match step {
                    0 => {
                        list.insert(pair(port));
                        model.insert(port);
                    }
                    1 => {
                        let removed = list.remove(pair(port).key);
                        prop_assert_eq!(removed.map(|pair| pair.key.remote.port()), model.take(&port));
                    }
                    _ => {
                        list.retain(|pair| pair.key.remote.port() % 7 != port % 7);
                        model.retain(|known| known % 7 != port % 7);
                    }
                }
                prop_assert_eq!(list.len(), model.len());
                for port in 1..16 {
                    let found = list.get(pair(port).key).map(|pair| pair.key.remote.port());
                    prop_assert_eq!(found, model.get(&port).copied());
                    prop_assert_eq!(list.get_mut(pair(port).key).is_some(), found.is_some());
                }
                prop_assert_eq!(list.iter().count(), model.len());
            }
        }
    }
}
