//! Attacks: what a node that lies can do to the others, and what it cannot.

use super::digest::DigestEntry;
use super::frame::{Frame, MAX_MEMBERSHIP, Payload, Routed};
use super::keys::{NodeKeys, test_keys};
use super::map::CAPACITY;
use super::member::{MemberId, test_packet};
use super::node_id::NodeId;
use super::output::MeshEvent;
use super::record::{NatKind, NodeRecord, test_record};
use super::sealed::{Content, seal};
use super::simulation::{World, seconds, world};
use foca::{Member, Message, State};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::time::Duration;

/// A mesh of eight nodes, and a ninth one for which the test speaks; it is linked to node 0.
fn world_with_liar() -> (World, usize) {
    let mut world = world(8, 9, seconds(8));
    let liar = world.add(NatKind::Open, false);
    assert!(world.run_until(seconds(40), World::is_whole).is_some(), "{:?}", world.gaps());
    world.nodes[liar].is_puppet = true;
    let (now, id) = (world.now, world.nodes[liar].id);
    if !world.nodes[0].mesh.links.contains(id) {
        world.with(0, |mesh| mesh.on_link_up(now, id, Duration::from_millis(30), None));
    }
    (world, liar)
}

/// Has the liar send a frame to node 0.
fn tell(world: &mut World, liar: usize, frame: &Frame<'_>) {
    let (now, from, bytes) = (world.now, world.nodes[liar].id, frame.encode());
    world.with(0, |mesh| mesh.handle_frame(now, from, &bytes));
}

/// Has the liar send a payload to node 0, in its own name.
fn tell_payload(world: &mut World, liar: usize, payload: Payload<'_>) {
    let frame = routed(world.nodes[liar].id, world.nodes[0].id, payload);
    tell(world, liar, &frame);
}

fn current(world: &World, keys: &NodeKeys, sequence: u32) -> NodeRecord {
    NodeRecord { expires: world.time().after(seconds(86_400)), ..test_record(keys, sequence) }
}

fn routed<'a>(from: NodeId, to: NodeId, payload: Payload<'a>) -> Frame<'a> {
    Frame::Routed(Routed { source: from, destination: to, visited: Vec::new(), payload })
}

#[test]
fn a_forged_record_is_neither_stored_nor_forwarded() {
    let (mut world, liar) = world_with_liar();
    let victim = world.nodes[3].id;
    let honest = world.nodes[3].mesh.own.clone();
    // The endpoint, the sequence, and the key of somebody else.
    let mut changed = honest.bytes().to_vec();
    for at in [70, 68, 5] {
        changed[at] ^= 1;
        tell(&mut world, liar, &Frame::Records(vec![(true, &changed)]));
    }
    world.run(seconds(20));
    assert_eq!(world.nodes[0].mesh.counters.forged, 3);
    let honest = world.nodes[3].mesh.own.clone();
    for node in world.up().filter(|node| node.id != victim) {
        assert_eq!(node.mesh.map.record(victim).unwrap().bytes(), honest.bytes());
        assert!(node.mesh.counters.forged == 0 || node.id == world.nodes[0].id, "it is not passed on");
    }
}

#[test]
fn an_older_record_that_is_replayed_does_not_win() {
    let (mut world, liar) = world_with_liar();
    let victim = world.nodes[3].id;
    let old = world.nodes[3].mesh.own.clone();
    world.nodes[3].mesh.change_record(|record| record.name = "renamed".into());
    world.run(seconds(20));
    let new = world.nodes[3].mesh.own.clone();
    assert!(new.sequence > old.sequence);
    tell(&mut world, liar, &Frame::Records(vec![(true, old.bytes())]));
    tell_payload(&mut world, liar, Payload::Found(old.bytes()));
    world.run(seconds(20));
    for node in world.up().filter(|node| node.id != victim) {
        assert_eq!(node.mesh.map.record(victim).unwrap().sequence, new.sequence);
    }
    assert!(world.nodes[0].mesh.map.counters.replayed >= 2);
}

#[test]
fn a_forged_down_is_refuted_and_one_of_the_future_is_not_believed() {
    let (mut world, liar) = world_with_liar();
    let member = |world: &World, node: usize| MemberId {
        node: world.nodes[node].id,
        epoch: world.nodes[node].mesh.own.epoch,
    };
    let (source, victim) = (member(&world, liar), member(&world, 3));
    let future = MemberId { epoch: victim.epoch + 1_000_000, ..victim };
    for down in [victim, future] {
        let packet = test_packet(
            source,
            member(&world, 0),
            Message::Gossip,
            &[Member::new(down, u16::MAX, State::Down)],
        );
        tell_payload(&mut world, liar, Payload::Membership(&packet));
    }
    assert!(world.nodes[0].mesh.counters.unsigned_updates >= 1, "nobody has signed that epoch");
    let is_online = |world: &World| {
        let mut others = world.up().filter(|node| node.id != victim.node);
        others.all(|node| node.mesh.map.get(victim.node).is_some_and(|entry| entry.is_active))
    };
    assert!(!is_online(&world), "the lie is believed for a moment");
    world.run(seconds(5));
    assert!(world.run_until(seconds(60), is_online).is_some(), "{:?}", world.gaps());
    assert!(world.nodes[3].mesh.own.epoch > victim.epoch, "the owner has raised its epoch");
    assert!(world.nodes[3].mesh.own.epoch < future.epoch);
}

#[test]
fn a_lie_about_suspicion_is_refuted_too() {
    let (mut world, liar) = world_with_liar();
    let id = |world: &World, node: usize| MemberId {
        node: world.nodes[node].id,
        epoch: world.nodes[node].mesh.own.epoch,
    };
    let victim = id(&world, 3);
    let packet = test_packet(
        id(&world, liar),
        id(&world, 0),
        Message::Gossip,
        &[Member::new(victim, u16::MAX, State::Suspect)],
    );
    tell_payload(&mut world, liar, Payload::Membership(&packet));
    world.run(seconds(90));
    for node in world.up().filter(|node| node.id != victim.node) {
        assert!(node.mesh.map.get(victim.node).unwrap().is_active);
    }
}

#[test]
fn a_friend_that_drops_mail_only_delays_it() {
    let mut world = world(6, 3, seconds(6));
    world.run(seconds(20));
    world.befriend(3, 2);
    world.kill(3);
    let id = world.send(4, 3, "kept by nobody").unwrap();
    world.run(seconds(20));
    assert!(
        world.nodes[4]
            .events
            .iter()
            .any(|e| matches!(e, MeshEvent::Stored { id: stored, .. } if *stored == id))
    );
    let owner = world.nodes[3].id;
    world.nodes[2].mesh.store.remove(owner, id);
    world.run(seconds(60));
    world.restart(3);
    let delivered = |world: &World| world.nodes[4].events.contains(&MeshEvent::Delivered { id });
    assert!(world.run_until(seconds(60), delivered).is_some(), "the sender has sent it again");
    assert_eq!(world.inbox(3), ["kept by nobody"]);
}

#[test]
fn a_friend_that_replays_mail_delivers_nothing_twice() {
    let mut world = world(6, 3, seconds(6));
    world.run(seconds(20));
    world.befriend(3, 2);
    world.kill(3);
    let id = world.send(4, 3, "once").unwrap();
    world.run(seconds(20));
    let (owner, friend) = (world.nodes[3].id, world.nodes[2].id);
    let kept = world.nodes[2].mesh.store.of_owner(owner, 1).remove(0);
    world.restart(3);
    world.run(seconds(30));
    assert_eq!(world.inbox(3), ["once"]);
    for round in 0..5 {
        if round == 3 {
            // The ids that have arrived are kept over a restart.
            world.kill(3);
            world.restart(3);
            world.nodes[3].events.clear();
            world.run(seconds(20));
        }
        let now = world.now;
        world.with(3, |mesh| mesh.on_mail(now, friend, id, &kept.sealed));
    }
    assert!(world.inbox(3).is_empty(), "{:?}", world.inbox(3));
    assert!(world.nodes[3].mesh.counters.repeated >= 2);
    // Nobody else is a friend.
    let (now, stranger) = (world.now, world.nodes[1].id);
    let before = world.nodes[3].mesh.counters.unsealed;
    world.with(3, |mesh| mesh.on_mail(now, stranger, [7; 16], &kept.sealed));
    assert_eq!(world.nodes[3].mesh.counters.unsealed, before + 1);
}

#[test]
fn mail_has_quotas_for_owner_and_sender() {
    let mut world = world(6, 3, seconds(6));
    world.run(seconds(20));
    world.befriend(3, 2);
    world.kill(3);
    let (now, owner, sender, expires) =
        (world.now, world.nodes[3].id, world.nodes[4].id, world.time().after(seconds(1000)));
    for number in 0..200_u8 {
        let kept = super::friends::Kept { owner, sender, id: [number; 16], expires, sealed: vec![0; 100] };
        world.with(2, |mesh| mesh.on_keep(now, sender, kept));
    }
    let usage = world.nodes[2].mesh.store.usage(owner, sender);
    assert_eq!(usage[0], super::friends::MAX_OF_SENDER);
    assert!(world.nodes[2].mesh.counters.overflow >= 136);
    let late =
        super::friends::Kept { owner, sender: owner, id: [1; 16], expires: world.time(), sealed: vec![] };
    world.with(2, |mesh| mesh.on_keep(now, owner, late));
    assert_eq!(world.nodes[2].mesh.store.usage(owner, owner)[2], 0, "it has expired");
    world.run(seconds(1100));
    assert_eq!(world.nodes[2].mesh.store.bytes(), 0);
}

#[test]
fn a_bootstrap_node_that_lies_about_others_is_corrected_by_the_next_one() {
    let mut world = world(8, 2, seconds(8));
    assert!(world.run_until(seconds(40), World::is_whole).is_some());
    // It hides half of the nodes from a newcomer, names their endpoints wrongly, and calls a stranger online.
    let newcomer = world.add(NatKind::Open, false);
    world.run(seconds(1));
    let (now, from) = (world.now, world.nodes[0].id);
    let stranger = test_keys(500);
    let invented = current(&world, &stranger, 1).sign(&stranger).unwrap();
    let mut forged = world.nodes[5].mesh.own.bytes().to_vec();
    forged[90] ^= 1;
    let entries =
        vec![DigestEntry { prefix: world.nodes[5].id.prefix(), sequence: 2_000_000_000, is_active: true }];
    for frame in [
        Frame::Records(vec![(true, invented.bytes()), (true, &forged)]),
        Frame::Digest { is_full: true, entries },
    ] {
        let bytes = frame.encode();
        world.with(newcomer, |mesh| mesh.handle_frame(now, from, &bytes));
    }
    let knows_all = |world: &World| {
        let map = &world.nodes[newcomer].mesh.map;
        (0..8).all(|node| {
            let known = map.get(world.nodes[node].id);
            known.is_some_and(|entry| {
                entry.is_active && entry.record.bytes() == world.nodes[node].mesh.own.bytes()
            })
        })
    };
    assert!(world.run_until(seconds(60), knows_all).is_some(), "{:?}", world.gaps());
    world.run(seconds(120));
    let invented = world.nodes[newcomer].mesh.map.get(stranger.id());
    assert!(invented.is_some_and(|entry| !entry.is_active), "who does not answer is found to be offline");
}

#[test]
fn a_flood_of_ten_thousand_identities_neither_displaces_nodes_nor_grows_tables() {
    let (mut world, liar) = world_with_liar();
    let ids: Vec<_> = world.nodes.iter().map(|node| node.id).collect();
    world.run(seconds(3700));
    // Signing in a test build takes a while: a tenth of them are real, the rest are repeated until the rates are used up.
    let flood: Vec<_> = (10_000..12_000_u64)
        .map(|number| {
            let keys = test_keys(number);
            current(&world, &keys, 1).sign(&keys).unwrap()
        })
        .collect();
    for _ in 0..5 {
        for records in flood.chunks(100) {
            let records = records.iter().map(|record| (true, record.bytes())).collect();
            tell(&mut world, liar, &Frame::Records(records));
        }
        world.run(seconds(1));
    }
    world.run(seconds(30));
    for node in world.up() {
        assert!(node.mesh.map.len() <= CAPACITY);
        for id in ids.iter().filter(|id| **id != node.id && **id != ids[liar]) {
            assert!(node.mesh.map.get(*id).is_some(), "a long-known node was displaced");
        }
    }
    assert!(world.nodes[0].mesh.links.counters.limited[1] > 5000, "the rate of a link holds");
    let largest = world.largest();
    assert!(largest[2] <= 2 * CAPACITY, "members: {largest:?}");
    assert!(largest.iter().all(|size| *size <= 4096), "{largest:?}");
    let id = world.send(1, 2, "still here").unwrap();
    world.run(seconds(10));
    assert!(world.nodes[1].events.contains(&MeshEvent::Delivered { id }));
}

#[test]
fn frames_that_name_a_long_way_or_come_back_are_dropped() {
    let (mut world, liar) = world_with_liar();
    let (from, to) = (world.nodes[liar].id, NodeId::of(&[200; 32]));
    let before = world.nodes[0].mesh.counters;
    let frame = Frame::Routed(Routed {
        source: from,
        destination: to,
        visited: (1..=12).collect(),
        payload: Payload::Sealed(b"x"),
    });
    tell(&mut world, liar, &frame);
    let own = routed(world.nodes[0].id, to, Payload::Sealed(b"x"));
    tell(&mut world, liar, &own);
    let after = world.nodes[0].mesh.counters;
    assert_eq!(after.undeliverable, before.undeliverable + 2);
    assert_eq!(after.forwarded, before.forwarded);
    // A neighbour cannot have unlimited bytes forwarded.
    let target = world.nodes[2].id;
    let payload = [0; 10_000];
    for _ in 0..200 {
        tell(&mut world, liar, &routed(from, target, Payload::Sealed(&payload)));
    }
    let forwarded = world.nodes[0].mesh.counters.forwarded - before.forwarded;
    assert!((40..=60).contains(&forwarded), "{forwarded}");
}

#[test]
fn an_endpoint_that_does_not_answer_gets_small_requests_only() {
    let (mut world, liar) = world_with_liar();
    // The liar claims the address of a victim that is no node.
    let keys = test_keys(liar as u64);
    let mut record = current(&world, &keys, world.nodes[liar].mesh.own.sequence + 1);
    record.endpoints = vec!["192.0.2.66:53".parse().unwrap()];
    let record = record.sign(&keys).unwrap();
    let (now, id) = (world.now, world.nodes[liar].id);
    tell(&mut world, liar, &Frame::Records(vec![(true, record.bytes())]));
    world.with(0, |mesh| mesh.on_link_down(now, id));
    let bytes = world.nodes[0].bytes;
    let mut requests = 0;
    while let Some(action) = {
        world.nodes[0].mesh.connect(now, id);
        world.nodes[0].mesh.poll_action()
    } {
        match action {
            super::output::MeshAction::SendBinding { .. } => requests += 1,
            super::output::MeshAction::Dial { to, .. } => panic!("{to} was dialled without an answer"),
            _ => {}
        }
    }
    assert_eq!(requests, 1);
    assert_eq!(world.nodes[0].bytes, bytes);
}

#[test]
fn an_old_offer_and_a_foreign_confirmation_have_no_effect() {
    let (mut world, liar) = world_with_liar();
    let (keys, random) = (test_keys(liar as u64), &mut ChaCha20Rng::seed_from_u64(1));
    let receiver = *world.nodes[0].mesh.keys.public();
    let id = world.send(0, 2, "text").unwrap();
    let old = super::mesh_time::MeshTime(world.time().0 - 3600);
    let offer = Content::Offer { attempt: 1, relay: None, parameters: vec![1] };
    for (content, sent) in [(Content::Delivered { id }, world.time()), (offer, old)] {
        let sealed = seal(&content, sent, &keys, &receiver, random).unwrap();
        tell(&mut world, liar, &routed(keys.id(), receiver.id(), Payload::Sealed(&sealed)));
    }
    assert!(!world.nodes[0].events.contains(&MeshEvent::Delivered { id }), "only the receiver confirms");
    assert_eq!(world.nodes[0].mesh.counters.unsealed, 1);
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let (mut world, liar) = world_with_liar();
    let before = world.largest();
    let (now, from) = (world.now, world.nodes[liar].id);
    let long = vec![9; MAX_MEMBERSHIP];
    for bytes in [&b""[..], &[0], &[255; 50], &[1; 30], &long] {
        world.with(0, |mesh| mesh.handle_frame(now, from, bytes));
    }
    for payload in [Payload::Membership(b"garbage"), Payload::Sealed(b"garbage")] {
        tell_payload(&mut world, liar, payload);
    }
    let counters = world.nodes[0].mesh.counters;
    assert_eq!((counters.malformed, counters.unsealed), (6, 1));
    assert_eq!(world.largest()[..2], before[..2]);
    // Without a link nothing is handled at all.
    world.with(0, |mesh| mesh.handle_frame(now, NodeId::of(&[3; 32]), b""));
    assert_eq!(world.nodes[0].mesh.counters.malformed, 6);
}
