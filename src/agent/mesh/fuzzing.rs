//! What the fuzz targets run: each takes any bytes, and panics if a rule is broken.

use super::digest::DigestEntry;
use super::frame::{Frame, Payload, Routed};
use super::friends::MemoryStore;
use super::keys::NodeKeys;
use super::machine::{Mesh, MeshConfig};
use super::map::{CAPACITY, Map};
use super::map_file;
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::output::MeshAction;
use super::reader::Reader;
use super::record::{NatKind, NodeRecord, VerifiedRecord};
use crate::clock::Now;
use std::net::SocketAddr;
use std::time::Duration;

/// Most events of an input.
const MAX_EVENTS: usize = 60;
/// Nodes that speak to the one under test.
const PEERS: u8 = 4;
const WAITS: [u64; 8] = [0, 10, 300, 700, 2500, 6000, 20_000, 200_000];

fn keys(number: u8) -> Option<NodeKeys> {
    NodeKeys::new(&[number; 32], [number; 32])
}

/// Reads bytes as a record and as a map file.
pub fn record(data: &[u8]) {
    if let Ok(record) = VerifiedRecord::verify(data) {
        assert_eq!(record.bytes(), data, "a record has one encoding");
    }
    let mut map = Map::new(NodeId::new([0; NodeId::LEN]), CAPACITY, [0; 16]);
    let report = map_file::restore(&mut map, data, MeshTime(1));
    assert!(map.len() <= report.records);
}

/// Reads bytes as a frame and as a digest, and compares that with a map.
pub fn digest(data: &[u8]) {
    if let Some(frame) = Frame::parse(data) {
        assert_eq!(frame.encode(), data, "a frame has one encoding");
    }
    let Some(own) = keys(1) else { return };
    let Some(entries) = DigestEntry::parse_all(Reader(data), CAPACITY) else { return };
    let record = plain_record(&own, MeshTime(0), 1).sign(&own);
    let (Ok(record), map) = (record, Map::new(own.id(), CAPACITY, [0; 16])) else { return };
    let difference = map.difference(&record, &entries, true);
    assert!(difference.want.len() <= entries.len() && difference.send.len() <= 2);
}

fn plain_record(keys: &NodeKeys, now: MeshTime, sequence: u32) -> NodeRecord {
    NodeRecord {
        keys: *keys.public(),
        sequence,
        epoch: sequence / 2,
        expires: now.after(Duration::from_secs(86_400)),
        nat: NatKind::Open,
        offers_relay: sequence.is_multiple_of(2),
        name: String::new(),
        endpoints: vec![SocketAddr::from(([203, 0, 113, sequence as u8], 4000))],
        friends: Vec::new(),
    }
}

/// Runs a node under frames, link changes, responses and time that the bytes choose. The same bytes give the same actions.
pub fn machine(start: Now, data: &[u8]) {
    let first = run_once(start, data);
    if data.len().is_multiple_of(4) {
        assert_eq!(run_once(start, data), first, "the actions depend only on the seed and the inputs");
    }
}

fn run_once(start: Now, data: &[u8]) -> Vec<MeshAction> {
    let Some(own) = keys(0) else { return Vec::new() };
    let config = MeshConfig {
        keys: own,
        name: String::new(),
        offers_relay: false,
        bootstrap: vec![SocketAddr::from(([203, 0, 113, 1], 4000))],
        last_sequence: 0,
        seed: [7; 32],
    };
    let Ok(mut mesh) = Mesh::new(config, Box::new(MemoryStore::default()), start) else { return Vec::new() };
    let (mut now, mut reader, mut actions) = (start, Reader(data), Vec::new());
    for _ in 0..MAX_EVENTS {
        let (Some(event), Some(operand)) = (reader.u8(), reader.u8()) else { break };
        step(&mut mesh, &mut now, (event, operand), &mut reader);
        while let Some(action) = mesh.poll_action() {
            actions.push(action);
        }
        while mesh.poll_event().is_some() {}
        check(&mesh);
    }
    actions
}

fn step(mesh: &mut Mesh, now: &mut Now, (event, operand): (u8, u8), reader: &mut Reader<'_>) {
    let Some(peer) = keys(1 + operand % PEERS) else { return };
    let (from, own) = (peer.id(), mesh.id());
    let time = MeshTime::from_unix(now.unix);
    match event % 8 {
        0 => {
            *now = now.after(Duration::from_millis(WAITS[usize::from(operand) % WAITS.len()]));
            mesh.handle_timeout(*now);
            assert!(mesh.poll_timeout().is_none_or(|at| at > now.mono), "a timer does not advance");
        }
        1 => mesh.on_link_up(*now, from, Duration::from_millis(u64::from(operand)), None),
        2 => mesh.on_link_down(*now, from),
        3 => {
            let record = plain_record(&peer, time, u32::from(operand) + 1).sign(&peer);
            if let Ok(record) = record {
                let frame = Frame::Records(vec![(operand & 1 == 0, record.bytes())]);
                mesh.handle_frame(*now, from, &frame.encode());
            }
        }
        4 => {
            let len = usize::from(reader.u8().unwrap_or(0)).min(reader.0.len());
            let payload = reader.bytes(len).unwrap_or_default();
            let payload = match operand >> 6 {
                0 => Payload::Sealed(payload),
                1 => Payload::Found(payload),
                2 => Payload::LookUp { sequence: u32::from(operand) },
                _ => Payload::Membership(payload),
            };
            let destination = if operand & 8 == 0 { own } else { NodeId::of(&[operand; 32]) };
            let routed = Routed { source: from, destination, visited: Vec::new(), payload };
            mesh.handle_frame(*now, from, &Frame::Routed(routed).encode());
        }
        5 => {
            let len = usize::from(reader.u8().unwrap_or(0)).min(reader.0.len());
            mesh.handle_frame(*now, from, reader.bytes(len).unwrap_or_default());
        }
        6 => {
            let Some(transaction) = reader.array() else { return };
            let at = SocketAddr::from(([203, 0, 113, operand], 4000));
            mesh.on_binding_response(*now, at, transaction, at);
            mesh.on_binding_request(at, transaction);
        }
        _ => {
            let _ = mesh.send(*now, from, b"text");
            mesh.is_online(*now, from);
            mesh.connect(*now, from);
        }
    }
}

/// What holds at any time.
fn check(mesh: &Mesh) {
    assert!(mesh.map.len() <= usize::from(PEERS), "a record that nobody has signed is in the map");
    assert!(mesh.links.len() <= usize::from(PEERS));
    let tables = [&mesh.membership.sizes()[..], &mesh.exchange.sizes(), &mesh.connecting.sizes()].concat();
    assert!(tables.iter().all(|size| *size <= 4096), "{tables:?}");
}
