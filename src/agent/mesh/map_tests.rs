//! Tests of the map and its file.

use super::digest::DigestEntry;
use super::keys::test_keys;
use super::map::{CAPACITY, Insertion, MATURITY, Map};
use super::map_file::{self, MapFileReport};
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::reader::Reader;
use super::record::{NodeRecord, VerifiedRecord, test_record};
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;

const NOW: MeshTime = MeshTime(50_000);

fn record(number: u64, sequence: u32) -> Arc<VerifiedRecord> {
    let keys = test_keys(number);
    test_record(&keys, sequence).sign(&keys).unwrap()
}

fn map(own: u64, capacity: usize) -> Map {
    Map::new(test_keys(own).id(), capacity, [own as u8; 16])
}

fn map_of(own: u64, numbers: impl Iterator<Item = u64>) -> Map {
    let mut map = map(own, CAPACITY);
    for number in numbers {
        assert_eq!(map.insert(record(number, 1), NOW), (Insertion::New, None));
    }
    map
}

#[test]
fn the_highest_sequence_wins_and_an_older_record_that_is_replayed_changes_nothing() {
    let mut map = map(0, 10);
    assert_eq!(map.insert(record(1, 5), NOW).0, Insertion::New);
    assert_eq!(map.insert(record(1, 7), NOW).0, Insertion::Newer);
    assert_eq!(map.insert(record(1, 5), NOW).0, Insertion::Known);
    assert_eq!(map.insert(record(1, 7), NOW).0, Insertion::Known);
    assert_eq!(map.record(test_keys(1).id()).unwrap().sequence, 7);
    assert_eq!(map.counters.replayed, 1);
    assert_eq!(map.insert(record(0, 9), NOW).0, Insertion::Own);
}

#[test]
fn records_leave_the_map_when_they_expire() {
    let mut map = map_of(0, 1..4);
    let keys = test_keys(9);
    let longer = NodeRecord { expires: MeshTime(150_000), ..test_record(&keys, 1) }.sign(&keys).unwrap();
    assert_eq!(map.insert(longer, NOW).0, Insertion::New);
    map.expire(MeshTime(99_999));
    assert_eq!(map.len(), 4);
    map.expire(MeshTime(100_000));
    assert_eq!(map.len(), 1);
    assert_eq!(map.insert(record(1, 2), MeshTime(100_000)).0, Insertion::Time);
    assert_eq!(map.counters.expired, 4);
}

#[test]
fn a_flood_of_new_identities_displaces_neither_long_known_nor_proven_nodes() {
    let mut map = map(0, 100);
    for number in 1..=60 {
        map.insert(record(number, 1), MeshTime(NOW.0 - MATURITY.as_secs() as u32));
    }
    for number in 61..=70 {
        map.insert(record(number, 1), NOW);
        map.set_proven(test_keys(number).id());
    }
    for number in 1000..3000 {
        map.insert(record(number, 1), NOW);
    }
    assert_eq!(map.len(), 100);
    assert!((1..=70).all(|number| map.get(test_keys(number).id()).is_some()));
    assert!(map.counters.displaced > 30 && map.counters.refused > 1000, "{:?}", map.counters);
    // An address that a known node changes to is always taken.
    assert_eq!(map.insert(record(5, 2), NOW).0, Insertion::Newer);
    // Later all are long known, and the flood has no effect at all.
    let later = MeshTime(NOW.0 + MATURITY.as_secs() as u32);
    assert_eq!(map.insert(record(5000, 1), later).0, Insertion::Full);
}

#[test]
fn the_sample_depends_neither_on_order_nor_on_repetition_and_is_denser_nearby() {
    let own = test_keys(0).id();
    let ids = |map: &Map| map.iter().map(|(id, _)| id).collect::<HashSet<_>>();
    let (mut forward, mut backward) = (map(0, 100), map(0, 100));
    for number in 1..1000 {
        forward.insert(record(number, 1), NOW);
    }
    for number in (1..1000).rev().chain(1..1000) {
        backward.insert(record(number, 1), NOW);
    }
    assert_eq!(ids(&forward), ids(&backward));
    let share = |shared: u32| {
        let all = (1..1000).map(|number| test_keys(number).id()).filter(|id| id.shared_bits(own) >= shared);
        let all: Vec<_> = all.collect();
        let kept = all.iter().filter(|id| forward.get(**id).is_some()).count();
        kept * 100 / all.len()
    };
    assert!(share(3) > share(0) * 2, "{} {}", share(3), share(0));
}

#[test]
fn a_name_belongs_to_the_first_who_claims_it() {
    let mut map = map(0, 10);
    map.insert(record(2, 1), MeshTime(50_000));
    map.insert(record(1, 1), MeshTime(50_001));
    assert_eq!(map.by_name("a node"), Some(test_keys(2).id()));
    assert_eq!(map.by_name("another"), None);
}

#[test]
fn two_maps_are_equal_after_one_exchange_of_differences() {
    let (mut one, mut two) = (map_of(0, 2..30), map_of(1, 20..50));
    let (own_one, own_two) = (record(0, 1), record(1, 1));
    one.insert(record(25, 9), NOW);
    two.insert(record(26, 9), NOW);
    assert_ne!(one.fingerprint(&own_one), two.fingerprint(&own_two));
    let difference = two.difference(&own_two, &one.digest(&own_one), true);
    for id in difference.send {
        let record =
            if id == own_two.id() { Arc::clone(&own_two) } else { Arc::clone(two.record(id).unwrap()) };
        one.insert(record, NOW);
    }
    for prefix in difference.want {
        let own = Some(&own_one).filter(|own| own.id().prefix() == prefix);
        let record = own.or_else(|| one.by_prefix(prefix).map(|(_, entry)| &entry.record)).unwrap();
        two.insert(Arc::clone(record), NOW);
    }
    assert_eq!((one.len(), two.len()), (49, 49));
    for number in 0..50 {
        one.set_active(test_keys(number).id(), true);
        two.set_active(test_keys(number).id(), true);
    }
    assert_eq!(one.fingerprint(&own_one), two.fingerprint(&own_two));
    let rest = two.difference(&own_two, &one.digest(&own_one), true);
    assert_eq!((rest.send.len(), rest.want.len()), (0, 0));
}

#[test]
fn a_digest_has_12_bytes_a_node() {
    let map = map_of(0, 1..=999);
    let mut bytes = Vec::new();
    for entry in map.digest(&record(0, 1)) {
        entry.encode(&mut bytes);
    }
    assert_eq!(bytes.len(), 12_000);
    let digest = DigestEntry::parse_all(Reader(&bytes), 1000).unwrap();
    assert_eq!(digest, map.digest(&record(0, 1)));
    assert_eq!(DigestEntry::parse_all(Reader(&bytes), 999), None);
    assert_eq!(DigestEntry::parse_all(Reader(&bytes[1..]), 1000), None);
}

fn restored(file: &[u8]) -> (Map, MapFileReport) {
    let mut map = map(0, CAPACITY);
    let report = map_file::restore(&mut map, file, NOW);
    (map, report)
}

#[test]
fn a_map_file_keeps_what_can_be_verified_of_garbage_and_half_a_file() {
    let map = map_of(0, 1..40);
    let file = map_file::encode(&map);
    let (whole, report) = restored(&file);
    assert_eq!((whole.len(), report), (39, MapFileReport { records: 39, ..MapFileReport::default() }));
    assert_eq!(whole.get(test_keys(3).id()).unwrap().first_seen, NOW);
    let entry = file.len() / 39;
    let (half, report) = restored(&file[..file.len() / 2]);
    assert_eq!((half.len(), report.records), (19, 19));
    assert!(report.garbage < entry * 2);
    // Garbage in front, between and inside costs only what it touches.
    let mut broken = [b"garbage R R R".as_slice(), &file[8..]].concat();
    broken[entry * 5..entry * 5 + 40].fill(b'R');
    broken[entry * 20] ^= 1;
    let (rest, report) = restored(&broken);
    assert!(rest.len() >= 36 && report.records == rest.len(), "{report:?}");
    assert_eq!(restored(b"").1, MapFileReport::default());
}

#[test]
fn a_forged_entry_of_a_map_file_is_not_read_though_its_checksum_is_right() {
    let (keys, other) = (test_keys(1), test_keys(2));
    let honest = test_record(&keys, 4).sign(&keys).unwrap();
    let foreign = test_record(&other, 4).sign(&other).unwrap();
    // Another key's signature under the content of the first.
    let content = &honest.bytes()[..honest.bytes().len() - 64];
    let forged = [content, &foreign.bytes()[foreign.bytes().len() - 64..]].concat();
    let mut head = vec![b'R'];
    head.extend(NOW.0.to_be_bytes());
    head.extend((forged.len() as u16).to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(&forged);
    let file = [b"GINMESH1", &head[..], &hasher.finalize().to_be_bytes(), &forged].concat();
    let (map, report) = restored(&file);
    assert_eq!((map.len(), report), (0, MapFileReport { forged: 1, ..MapFileReport::default() }));
}

#[test]
fn nodes_are_found_by_prefix_and_by_distance() {
    let map = map_of(0, 1..100);
    for (id, _) in map.iter() {
        assert_eq!(map.by_prefix(id.prefix()).map(|(id, _)| id), Some(id));
    }
    assert!(map.by_prefix(1).is_none());
    let to = NodeId::of(&[9; 32]);
    let nearest = map.nearest(to, 5);
    let mut all: Vec<_> = map.iter().map(|(id, _)| id).collect();
    all.sort_by_key(|id| id.distance(to));
    assert_eq!(nearest, all[..5]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_map_file_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0_usize..4000) {
        let file = map_file::encode(&map_of(0, 1..5));
        let cut = cut.min(file.len());
        let _ = restored(&bytes);
        let (_, report) = restored(&[&file[..cut], &bytes, &file[cut..]].concat());
        prop_assert!(report.records >= 3);
    }
}
