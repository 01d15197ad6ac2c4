//! The map of nodes: the newest verified record of each (S3-3, S3-14).
//!
//! The map is full up to its capacity. Beyond it, it is a sample. Two kinds of entries are never displaced by new identities: those with which
//! this node has exchanged a round trip, and those that it has known for [`MATURITY`]. The others compete for the rest: the ones with the lowest
//! rank stay, and a rank is a hash under a secret of this node, divided by two for each leading bit that an address shares with its own. So
//! a flood cannot choose its ranks, its rate does not matter, and nearby addresses are known more densely, which look-ups need. When all are of
//! the two kinds, a new record is refused; its node is still found by a look-up.

use super::digest::{Difference, DigestEntry};
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::record::VerifiedRecord;
use ring::digest::{Context, SHA256};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Most records.
pub(super) const CAPACITY: usize = 1000;
/// From then on new identities do not displace an entry.
pub(super) const MATURITY: Duration = Duration::from_secs(3600);

/// What is kept of one node.
#[derive(Debug, Clone)]
pub(super) struct MapEntry {
    pub(super) record: Arc<VerifiedRecord>,
    pub(super) first_seen: MeshTime,
    /// This node has exchanged a round trip with it.
    pub(super) is_proven: bool,
    /// Membership takes it for online.
    pub(super) is_active: bool,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Insertion {
    New,
    /// It replaces an older one.
    Newer,
    /// It is the one that is known, or an older one.
    Known,
    /// It has expired, or ends too late.
    Time,
    /// The map is full.
    Full,
    /// It is the own record.
    Own,
}

/// How often records were not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MapCounters {
    pub(super) refused: u64,
    pub(super) displaced: u64,
    pub(super) replayed: u64,
    pub(super) expired: u64,
}

/// The map.
#[derive(Debug)]
pub(super) struct Map {
    own: NodeId,
    capacity: usize,
    secret: [u8; 16],
    entries: BTreeMap<NodeId, MapEntry>,
    fingerprint: Option<[u8; 16]>,
    pub(super) counters: MapCounters,
}

impl Map {
    /// Makes an empty map. `secret` must not be known to others.
    pub(super) fn new(own: NodeId, capacity: usize, secret: [u8; 16]) -> Self {
        let entries = BTreeMap::new();
        Self { own, capacity, secret, entries, fingerprint: None, counters: MapCounters::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&MapEntry> {
        self.entries.get(&id)
    }

    pub(super) fn record(&self, id: NodeId) -> Option<&Arc<VerifiedRecord>> {
        self.entries.get(&id).map(|entry| &entry.record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &MapEntry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    pub(super) fn active(&self) -> impl Iterator<Item = NodeId> {
        self.iter().filter(|(_, entry)| entry.is_active).map(|(id, _)| id)
    }

    /// Returns the node with this prefix.
    pub(super) fn by_prefix(&self, prefix: u64) -> Option<(NodeId, &MapEntry)> {
        let (mut low, mut high) = ([0; NodeId::LEN], [0xFF; NodeId::LEN]);
        low[..8].copy_from_slice(&prefix.to_be_bytes());
        high[..8].copy_from_slice(&prefix.to_be_bytes());
        let mut found = self.entries.range(NodeId::new(low)..=NodeId::new(high));
        found.next().map(|(id, entry)| (*id, entry))
    }

    /// Returns who uses a name: the first who claimed it here (S3-A6). Others may have another answer.
    pub(super) fn by_name(&self, name: &str) -> Option<NodeId> {
        let claims = self.iter().filter(|(_, entry)| entry.record.name == name);
        claims.min_by_key(|(id, entry)| (entry.first_seen, *id)).map(|(id, _)| id)
    }

    /// Returns the nodes that are nearest to an address.
    pub(super) fn nearest(&self, to: NodeId, most: usize) -> Vec<NodeId> {
        let mut ids: Vec<_> = self.entries.keys().copied().collect();
        ids.sort_unstable_by_key(|id| id.distance(to));
        ids.truncate(most);
        ids
    }

    pub(super) fn set_active(&mut self, id: NodeId, is_active: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_active = is_active;
            self.fingerprint = None;
        }
    }

    pub(super) fn set_proven(&mut self, id: NodeId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_proven = true;
        }
    }

    /// Inserts a record that wins over what is known: the highest sequence does. Returns what became of it, and the node that it displaced.
    pub(super) fn insert(
        &mut self,
        record: Arc<VerifiedRecord>,
        now: MeshTime,
    ) -> (Insertion, Option<NodeId>) {
        let id = record.id();
        if id == self.own {
            return (Insertion::Own, None);
        }
        if !record.is_current(now) {
            self.counters.expired += 1;
            return (Insertion::Time, None);
        }
        if let Some(known) = self.entries.get_mut(&id) {
            if record.sequence <= known.record.sequence || record.epoch < known.record.epoch {
                self.counters.replayed += u64::from(record.sequence < known.record.sequence);
                return (Insertion::Known, None);
            }
            known.record = record;
            self.fingerprint = None;
            return (Insertion::Newer, None);
        }
        let mut displaced = None;
        if self.entries.len() >= self.capacity {
            displaced = self.displaceable(now).filter(|highest| self.rank(*highest) > self.rank(id));
            let Some(loser) = displaced else {
                self.counters.refused += 1;
                return (Insertion::Full, None);
            };
            self.counters.displaced += 1;
            self.entries.remove(&loser);
        }
        let entry = MapEntry { record, first_seen: now, is_proven: false, is_active: false };
        self.entries.insert(id, entry);
        self.fingerprint = None;
        (Insertion::New, displaced)
    }

    /// Inserts an entry of the map file.
    pub(super) fn restore(&mut self, record: Arc<VerifiedRecord>, first_seen: MeshTime, now: MeshTime) {
        let id = record.id();
        if matches!(self.insert(record, now).0, Insertion::New)
            && let Some(entry) = self.entries.get_mut(&id)
        {
            entry.first_seen = first_seen.min(now);
        }
    }

    /// The entry with the highest rank among those that may be displaced.
    fn displaceable(&self, now: MeshTime) -> Option<NodeId> {
        let may = self.iter().filter(|(_, e)| !e.is_proven && now.since(e.first_seen) < MATURITY);
        may.map(|(id, _)| id).max_by_key(|id| self.rank(*id))
    }

    fn rank(&self, id: NodeId) -> u64 {
        let mut context = Context::new(&SHA256);
        context.update(&self.secret);
        context.update(id.bytes());
        let hash = context.finish();
        let rank = hash.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        rank >> id.shared_bits(self.own).min(16)
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        if self.entries.remove(&id).is_some() {
            self.fingerprint = None;
        }
    }

    /// Removes the records that have expired.
    pub(super) fn expire(&mut self, now: MeshTime) {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.record.is_current(now));
        let removed = before - self.entries.len();
        if removed > 0 {
            self.fingerprint = None;
            self.counters.expired += removed as u64;
        }
    }

    /// Returns the digest of the map and of the own record, by prefix.
    pub(super) fn digest(&self, own: &VerifiedRecord) -> Vec<DigestEntry> {
        let entry = |record: &VerifiedRecord, is_active| DigestEntry {
            prefix: record.id().prefix(),
            sequence: record.sequence,
            is_active,
        };
        let mut digest: Vec<_> = self.iter().map(|(_, e)| entry(&e.record, e.is_active)).collect();
        digest.push(entry(own, true));
        digest.sort_unstable();
        digest
    }

    /// Returns the same for two maps that have the same records and take the same nodes for online.
    pub(super) fn fingerprint(&mut self, own: &VerifiedRecord) -> [u8; 16] {
        if let Some(known) = self.fingerprint {
            return known;
        }
        let mut context = Context::new(&SHA256);
        for entry in self.digest(own) {
            context.update(&entry.prefix.to_be_bytes());
            context.update(&entry.sequence.to_be_bytes());
            context.update(&[u8::from(entry.is_active)]);
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&context.finish().as_ref()[..16]);
        self.fingerprint = Some(fingerprint);
        fingerprint
    }

    /// Forgets the fingerprint: the own record has changed.
    pub(super) fn on_own_record_changed(&mut self) {
        self.fingerprint = None;
    }

    /// Compares the map with a digest. `is_full`: what is not in the digest is not at the other side.
    pub(super) fn difference(
        &self,
        own: &VerifiedRecord,
        digest: &[DigestEntry],
        is_full: bool,
    ) -> Difference {
        let mut difference = Difference::default();
        let mut named = HashSet::with_capacity(digest.len());
        for entry in digest {
            named.insert(entry.prefix);
            if entry.prefix == self.own.prefix() {
                if entry.sequence < own.sequence {
                    difference.send.push(self.own);
                }
                continue;
            }
            match self.by_prefix(entry.prefix) {
                None => difference.want.push(entry.prefix),
                Some((_, known)) if known.record.sequence < entry.sequence => {
                    difference.want.push(entry.prefix);
                }
                Some((id, known)) if known.record.sequence > entry.sequence => difference.send.push(id),
                Some((id, _)) if entry.is_active => difference.active.push(id),
                Some(_) => {}
            }
        }
        if is_full {
            let lacks = self.entries.keys().chain([&self.own]).filter(|id| !named.contains(&id.prefix()));
            difference.send.extend(lacks);
        }
        difference
    }
}
