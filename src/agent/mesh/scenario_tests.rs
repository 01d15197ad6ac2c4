//! Whole scenarios: messages, friends, NATs and relays in the simulation.

use super::machine::Mesh;
use super::messages::SendMessageError;
use super::node_id::NodeId;
use super::output::{Failure, MeshEvent, Online};
use super::record::NatKind;
use super::sealed::MAX_BODY;
use super::simulation::{World, seconds, world};

const FIVE: [NatKind; 5] =
    [NatKind::Open, NatKind::FullCone, NatKind::Restricted, NatKind::Symmetric, NatKind::Symmetric];

/// Five nodes behind NATs of every kind; those in `relays` offer to relay.
fn five(relays: &[usize]) -> World {
    let mut world = World::new(5);
    world.loss = 0.0;
    for (number, nat) in FIVE.into_iter().enumerate() {
        world.add(nat, relays.contains(&number));
    }
    assert!(world.run_until(seconds(10), World::is_whole).is_some(), "{:?}", world.gaps());
    world
}

fn has_delivered(world: &World, node: usize, id: [u8; 16]) -> bool {
    world.nodes[node].events.contains(&MeshEvent::Delivered { id })
}

fn is_stored(world: &World, node: usize, id: [u8; 16]) -> bool {
    world.nodes[node]
        .events
        .iter()
        .any(|e| matches!(e, MeshEvent::Stored { id: stored, .. } if *stored == id))
}

fn failure(world: &World, node: usize, id: [u8; 16]) -> Option<Failure> {
    world.nodes[node].events.iter().find_map(|event| match event {
        MeshEvent::Failed { id: failed, reason } if *failed == id => Some(*reason),
        _ => None,
    })
}

#[test]
fn all_pairs_behind_five_kinds_of_nats_exchange_messages_without_a_server() {
    let mut world = five(&[1]);
    let mut sent = Vec::new();
    for from in 0..5 {
        for to in (0..5).filter(|to| *to != from) {
            sent.push((from, world.send(from, to, &format!("{from} to {to}")).unwrap()));
        }
    }
    world.run(seconds(5));
    assert!(sent.iter().all(|(from, id)| has_delivered(&world, *from, *id)));
    for to in 0..5 {
        let mut expected: Vec<_> =
            (0..5).filter(|n| *n != to).map(|from| format!("{from} to {to}")).collect();
        let mut inbox = world.inbox(to);
        inbox.sort();
        expected.sort();
        assert_eq!(inbox, expected);
    }
}

#[test]
fn nodes_learn_their_addresses_and_nats_from_each_other() {
    let mut world = five(&[]);
    let extra = world.add(NatKind::Open, false);
    world.run(seconds(30));
    for (number, expected) in FIVE.into_iter().enumerate() {
        let record = &world.nodes[number].mesh.own;
        let seen = record.nat;
        assert_eq!(seen, expected, "node {number}");
        let endpoint = world.endpoint(number);
        assert_eq!(record.endpoints.contains(&endpoint), expected != NatKind::Symmetric, "{record:?}");
        // And so do all others (S3-22).
        let known = world.nodes[extra].mesh.map.record(world.nodes[number].id).unwrap();
        assert_eq!(known.endpoints, record.endpoints);
    }
}

#[test]
fn two_symmetric_nats_are_linked_by_a_relay_and_by_another_one_when_it_goes() {
    let mut world = five(&[0, 1]);
    world.run(seconds(70));
    let linked = |world: &World| world.is_linked(3, 4);
    let (at, id) = (world.now, world.nodes[4].id);
    world.with(3, |mesh| mesh.connect(at, id));
    assert!(world.run_until(seconds(10), linked).is_some());
    let relay = |world: &World| world.nodes[3].mesh.links.get(world.nodes[4].id).unwrap().relay;
    let first = relay(&world).unwrap();
    let killed = world.nodes.iter().position(|node| node.id == first).unwrap();
    assert!([0, 1].contains(&killed));
    world.kill(killed);
    world.run(seconds(9));
    assert!(world.run_until(seconds(10), linked).is_some(), "over the other relay");
    assert!(![None, Some(first)].contains(&relay(&world)));
}

#[test]
fn the_nearest_relay_that_offers_it_is_chosen() {
    let mut world = five(&[0, 1]);
    world.run(seconds(20));
    let choose = |world: &World, except: &[NodeId]| {
        let (mesh, other) = (&world.nodes[3].mesh, world.nodes[4].id);
        mesh.choose_relay(other, except)
    };
    let ids: Vec<_> = world.nodes.iter().map(|node| node.id).collect();
    for (near, far) in [(0, 1), (1, 0)] {
        world.nodes[3].mesh.reflexive.on_round_trip(ids[near], seconds(1) / 50);
        world.nodes[3].mesh.reflexive.on_round_trip(ids[far], seconds(1) / 5);
        assert_eq!(choose(&world, &[]), Some(ids[near]));
        assert_eq!(choose(&world, &[ids[near]]), Some(ids[far]));
    }
    assert_eq!(choose(&world, &ids), None);
    let none = five(&[]);
    assert_eq!(choose(&none, &[]), None, "nobody relays without consent");
}

#[test]
fn a_friend_keeps_a_message_until_its_receiver_returns_under_another_address() {
    let mut world = five(&[1]);
    world.befriend(3, 2);
    world.kill(3);
    world.run(seconds(2));
    let id = world.send(4, 3, "while you were away").unwrap();
    assert!(world.run_until(seconds(20), |world| is_stored(world, 4, id)).is_some());
    assert!(!has_delivered(&world, 4, id));
    let kept = world.nodes[2].mesh.store.of_owner(world.nodes[3].id, 9);
    assert_eq!(kept.len(), 1);
    assert!(!kept[0].sealed.windows(5).any(|bytes| bytes == b"while"), "ciphertext only");
    world.restart(3);
    assert!(world.run_until(seconds(30), |world| has_delivered(world, 4, id)).is_some());
    world.run(seconds(60));
    assert_eq!(world.inbox(3), ["while you were away"], "exactly once");
    assert_eq!(world.nodes[2].mesh.store.bytes(), 0, "it was returned once");
}

#[test]
fn a_sender_finds_the_newer_record_of_a_receiver_that_has_moved() {
    let mut world = five(&[1]);
    // The sender has no record, the receiver comes back elsewhere while it asks.
    let receiver = world.nodes[2].id;
    world.nodes[4].mesh.map.remove(receiver);
    let id = world.send(4, 2, "where are you").unwrap();
    assert!(world.run_until(seconds(3), |world| has_delivered(world, 4, id)).is_some());
    let before = world.endpoint(2);
    world.kill(2);
    world.run(seconds(1));
    let id = world.send(4, 2, "and now").unwrap();
    world.run(seconds(2));
    world.restart(2);
    assert!(world.run_until(seconds(10), |world| has_delivered(world, 4, id)).is_some());
    assert!(failure(&world, 4, id).is_none() && !is_stored(&world, 4, id));
    world.run(seconds(30));
    let record = world.nodes[4].mesh.map.record(receiver).unwrap();
    assert!(!record.endpoints.contains(&before));
    assert_eq!(world.inbox(2), ["where are you", "and now"]);
}

#[test]
fn a_message_to_a_node_that_is_offline_without_friends_fails() {
    let mut world = five(&[1]);
    world.kill(3);
    let id = world.send(4, 3, "hello").unwrap();
    world.run(seconds(30));
    assert_eq!(failure(&world, 4, id), Some(Failure::Offline));
    let nobody = NodeId::of(&[9; 32]);
    let now = world.now;
    let id = world.with(4, |mesh| mesh.send(now, nobody, b"hello")).unwrap().unwrap();
    world.run(seconds(30));
    assert_eq!(failure(&world, 4, id), Some(Failure::NoRecord));
}

#[test]
fn a_message_is_not_stored_by_a_node_that_has_not_agreed() {
    let mut world = five(&[1]);
    let (now, until) = (world.now, world.time().after(seconds(1000)));
    let friend = world.nodes[2].id;
    world.with(3, |mesh| mesh.add_friend(now, friend, until));
    world.run(seconds(5));
    assert!(world.nodes[3].mesh.own.friends.is_empty());
    world.kill(3);
    let id = world.send(4, 3, "hello").unwrap();
    world.run(seconds(30));
    assert_eq!(failure(&world, 4, id), Some(Failure::Offline));
    assert_eq!(world.nodes[2].mesh.store.bytes(), 0);
}

#[test]
fn a_message_is_delivered_once_though_its_confirmation_was_lost() {
    let mut world = five(&[1]);
    let id = world.send(4, 0, "once").unwrap();
    world.run(seconds(1));
    assert_eq!(world.inbox(0), ["once"]);
    // The same message again, as after a lost confirmation.
    let (now, expires) = (world.now, world.time().after(seconds(1000)));
    let from = world.nodes[4].id;
    world.with(0, |mesh| mesh.on_message(now, from, id, expires, b"once".to_vec()));
    world.run(seconds(1));
    assert_eq!(world.inbox(0), ["once"]);
    assert_eq!(world.nodes[0].mesh.counters.repeated, 1);
}

#[test]
fn the_online_check_answers_yes_no_and_unknown() {
    let mut world = five(&[1]);
    let ask = |world: &mut World, node: NodeId| {
        let now = world.now;
        world.nodes[0].events.clear();
        world.with(0, |mesh: &mut Mesh| mesh.is_online(now, node));
        world.run(seconds(6));
        let answer = world.nodes[0].events.iter().find_map(|event| match event {
            MeshEvent::IsOnline { node: of, online } if *of == node => Some(*online),
            _ => None,
        });
        answer.unwrap()
    };
    let id = world.nodes[4].id;
    assert_eq!(ask(&mut world, id), Online::Yes);
    world.kill(4);
    assert_eq!(ask(&mut world, id), Online::Unknown, "nobody knows yet");
    world.run(seconds(90));
    assert_eq!(ask(&mut world, id), Online::No);
    assert_eq!(ask(&mut world, NodeId::of(&[7; 32])), Online::Unknown);
}

#[test]
fn a_node_whose_announcements_were_lost_tries_again_while_it_is_alone() {
    let mut world = World::new(3);
    world.add(NatKind::Open, false);
    world.split(1);
    let late = world.add(NatKind::Restricted, false);
    world.nodes[0].is_up = false;
    world.run(seconds(100));
    assert_eq!(world.nodes[late].mesh.links.len(), 0);
    let requests = world.nodes[late].bytes / 20;
    assert!((3..=8).contains(&requests), "{requests} requests in 100 s");
    world.nodes[0].is_up = true;
    world.heal();
    assert!(world.run_until(seconds(70), World::is_whole).is_some());
}

#[test]
fn a_node_joins_through_its_stored_map_when_the_first_node_is_gone() {
    let mut world = world(8, 4, seconds(8));
    assert!(world.run_until(seconds(30), World::is_whole).is_some());
    world.kill(0);
    world.kill(7);
    world.run(seconds(60));
    world.restart(7);
    assert!(world.run_until(seconds(30), World::is_whole).is_some(), "{:?}", world.gaps());
}

#[test]
fn messages_over_their_limits_are_refused() {
    let mut world = five(&[]);
    let (now, to, own) = (world.now, world.nodes[1].id, world.nodes[0].id);
    let mesh = &mut world.nodes[0].mesh;
    assert_eq!(mesh.send(now, to, &[0; MAX_BODY + 1]), Err(SendMessageError::TooLong));
    assert_eq!(mesh.send(now, own, b"x"), Err(SendMessageError::Own));
    let sent = (0..1000).take_while(|_| mesh.send(now, to, b"x").is_ok()).count();
    assert_eq!(sent, 256);
    assert_eq!(mesh.send(now, to, b"x"), Err(SendMessageError::Full));
}

#[test]
fn a_restart_storm_leaves_no_growing_tables() {
    let mut world = world(20, 6, seconds(10));
    assert!(world.run_until(seconds(40), World::is_whole).is_some());
    world.run(seconds(200));
    let before = world.largest();
    for _ in 0..5 {
        for node in 1..20 {
            world.kill(node);
            world.restart(node);
            world.run(seconds(1));
        }
    }
    assert!(world.run_until(seconds(120), World::is_whole).is_some(), "{:?}", world.gaps());
    // Longer than what was failed, pending or suspected is remembered.
    world.run(seconds(300));
    let after = world.largest();
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(*after <= before * 2 + 20, "table {index}: {before} before, {after} after");
    }
    assert_eq!((after[0], after[2]), (19, 19), "the map, and the members with those that are down");
}
