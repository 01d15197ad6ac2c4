//! Sending and delivery, with the server of `machine_tests.rs`.

use super::config::{Config, Policy};
use super::delivery::MAX_UNACKNOWLEDGED;
use super::machine::Output;
use super::machine_tests::{Server, quad};
use crate::store::{StoreLimits, StrangerLimits};
use serde_json::json;

#[test]
fn a_message_is_acknowledged_empty_and_pushed_to_who_is_online() {
    let mut server = Server::new();
    server.register("alice");
    server.register("bob");
    let (alice, bob) = (server.login("alice"), server.login("bob"));
    server.message(alice, "uuid-1", "bob", "hi \"bob\"");
    assert_eq!(server.pushes(bob), [quad("alice", "bob", "hi \"bob\"", "uuid-1")]);
    for (id, body) in [
        ("", json!({"to": "bob", "msg": "x"})),
        ("1", json!({"msg": "x"})),
        ("1", json!({"to": "bob"})),
        ("1", json!({"to": "nobody", "msg": "x"})),
        ("1", json!({"to": "bob", "msg": "x".repeat(65_537)})),
        (&"i".repeat(129), json!({"to": "bob", "msg": "x"})),
    ] {
        assert_eq!(server.code(alice, 200, id, body), 200);
    }
    assert_eq!(server.machine.counters().refused, 6);
    server.message(alice, "longest", "bob", &"x".repeat(65_536));
    assert_eq!(server.pushes(bob).len(), 1);
}

#[test]
fn the_acknowledgement_waits_for_the_store() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    server.is_paused = true;
    server.send(alice, 200, "1", json!({"to": "alice", "msg": "x"}).to_string().as_bytes());
    for _ in 0..4 {
        assert_eq!(server.take(alice), [], "nothing before the store has answered");
        let step = server.kept.remove(0);
        server.perform(step);
        server.drain();
    }
    assert_eq!(server.take(alice), [], "the append has no result yet");
    assert!(
        matches!(&server.kept[..], [Output::Store { request, .. }] if format!("{request:?}").starts_with("Append"))
    );
    server.resume();
    assert_eq!(server.take(alice).iter().map(|envelope| envelope.cmd).collect::<Vec<_>>(), [200, 201]);
}

#[test]
fn messages_to_who_is_offline_wait_for_a_fetch_and_stay_until_they_are_acknowledged() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    server.device("lamp");
    let gone = server.device("lamp");
    server.machine.handle_closed(gone);
    for index in 0..3 {
        server.message(alice, &format!("m{index}"), "lamp", &index.to_string());
    }
    let lamp = server.device("lamp");
    assert_eq!(server.pushes(lamp), Vec::<[String; 4]>::new(), "not before a fetch");
    let all: Vec<_> =
        (0..3).map(|index| quad("alice", "lamp", &index.to_string(), &format!("m{index}"))).collect();
    assert_eq!(server.fetch(lamp), all);
    server.acknowledge(lamp, &["m1", "unknown"]);
    assert_eq!(server.take(lamp), [], "an acknowledgement has no response");
    assert_eq!(server.fetch(lamp), [all[0].clone(), all[2].clone()]);
    server.acknowledge(lamp, &["m0", "m2"]);
    assert_eq!(server.fetch(lamp), Vec::<[String; 4]>::new(), "no answer where nothing is stored");
    assert_eq!(server.machine.counters().acknowledged, 3);
}

#[test]
fn an_acknowledgement_reaches_only_the_own_mailbox() {
    let mut server = Server::new();
    for name in ["alice", "bob", "eve"] {
        server.register(name);
    }
    let [alice, bob, eve] = ["alice", "bob", "eve"].map(|name| server.login(name));
    server.message(alice, "1", "bob", "for bob");
    server.acknowledge(eve, &["1"]);
    server.acknowledge(alice, &["1"]);
    assert_eq!(server.pushes(bob).len(), 1);
    assert_eq!(server.fetch(bob).len(), 1);
}

#[test]
fn a_repeated_message_is_acknowledged_and_not_stored_twice() {
    let mut server = Server::new();
    server.register("alice");
    server.register("bob");
    let (alice, bob) = (server.login("alice"), server.login("bob"));
    server.message(alice, "1", "bob", "once");
    server.message(alice, "1", "bob", "once");
    server.message(bob, "1", "bob", "the same id from somebody else");
    assert_eq!(server.pushes(bob).len(), 2);
    assert_eq!(server.fetch(bob).len(), 2);
    let counters = server.machine.counters();
    assert_eq!((counters.stored, counters.duplicates), (2, 1));
    server.acknowledge(bob, &["1", "1"]);
    assert_eq!(server.fetch(bob).len(), 0);
}

#[test]
fn a_name_resolves_to_the_senders_device_then_to_a_user_then_to_any_device() {
    let mut server = Server::new();
    for name in ["alice", "bob", "lamp"] {
        server.register(name);
    }
    let device = server.device("lamp");
    let other = server.device("fan");
    let [alice, bob, user] = ["alice", "bob", "lamp"].map(|name| server.login(name));
    assert_eq!(server.code(alice, 203, "", json!({"deviceId": "lamp"})), 100);
    server.message(alice, "1", "lamp", "to my device");
    server.message(bob, "2", "lamp", "to the user");
    server.message(bob, "3", "fan", "to any device");
    assert_eq!(server.pushes(device), [quad("alice", "lamp", "to my device", "1")]);
    assert_eq!(server.pushes(user), [quad("bob", "lamp", "to the user", "2")]);
    assert_eq!(server.pushes(other), [quad("bob", "fan", "to any device", "3")]);
    assert_eq!(server.code(alice, 203, "", json!({"deviceId": "bob"})), 100);
    assert_eq!(
        server.code(alice, 200, "4", json!({"to": "bob", "msg": "x"})),
        200,
        "never to a user by accident"
    );
}

#[test]
fn with_the_policy_contacts_strangers_are_refused() {
    let mut server =
        Server::with(Config { policy: Policy::Contacts, ..Config::default() }, StoreLimits::default());
    server.register("alice");
    server.register("eve");
    let device = server.device("lamp");
    let (alice, eve) = (server.login("alice"), server.login("eve"));
    assert_eq!(server.code(eve, 200, "1", json!({"to": "alice", "msg": "x"})), 200);
    assert_eq!(server.code(device, 200, "1", json!({"to": "alice", "msg": "x"})), 200);
    assert_eq!(server.code(alice, 203, "", json!({"deviceId": "lamp"})), 100);
    server.message(alice, "1", "lamp", "on");
    server.message(device, "2", "alice", "is on");
    assert_eq!(server.take(alice).len(), 1);
}

#[test]
fn a_full_mailbox_refuses_with_a_code_and_drops_nothing() {
    let limits = StoreLimits { messages_per_mailbox: 2, ..StoreLimits::default() };
    let mut server = Server::with(Config::default(), limits);
    server.register("alice");
    server.register("bob");
    let alice = server.login("alice");
    server.message(alice, "1", "bob", "x");
    server.message(alice, "2", "bob", "x");
    server.send(alice, 200, "3", json!({"to": "bob", "msg": "x"}).to_string().as_bytes());
    assert_eq!(server.take(alice)[0].data[..], br#"{"code":200,"msg":"mailbox is full"}"#[..]);
    let bob = server.login("bob");
    assert_eq!(server.fetch(bob).len(), 2);
}

#[test]
fn a_stranger_that_uses_up_its_share_and_a_full_store_get_texts_of_their_own() {
    let strangers = StrangerLimits::of(8, 1 << 20);
    let limits =
        StoreLimits { messages_per_mailbox: 8, strangers, stored_bytes: 3, ..StoreLimits::default() };
    let mut server = Server::with(Config::default(), limits);
    server.register("alice");
    server.register("bob");
    let alice = server.login("alice");
    server.message(alice, "1", "bob", "x");
    server.message(alice, "2", "bob", "x");
    let mut refusal = |id: &str, to: &str, text: &str| {
        server.send(alice, 200, id, json!({"to": to, "msg": text}).to_string().as_bytes());
        String::from_utf8(server.take(alice)[0].data.to_vec()).unwrap()
    };
    let share = r#"{"code":200,"msg":"too many messages of yours are in the mailbox"}"#;
    assert_eq!(refusal("3", "bob", "x"), share);
    assert_eq!(refusal("4", "alice", "xx"), r#"{"code":200,"msg":"storage is full"}"#);
}

#[test]
fn a_client_that_does_not_read_gets_more_only_after_it_has() {
    let mut server = Server::new();
    server.register("alice");
    server.register("bob");
    let (alice, bob) = (server.login("alice"), server.login("bob"));
    server.message(alice, "0", "bob", "0");
    server.machine.handle_congested(bob);
    for index in 1..300 {
        server.message(alice, &index.to_string(), "bob", &index.to_string());
    }
    assert_eq!(server.pushes(bob).len(), 1);
    server.machine.handle_drained(server.now, bob);
    server.drain();
    let texts: Vec<_> = server.pushes(bob).into_iter().map(|[_, _, text, _]| text).collect();
    assert_eq!(texts, (1..300).map(|index| index.to_string()).collect::<Vec<_>>(), "in the order of sending");
}

#[test]
fn a_client_that_acknowledges_nothing_gets_a_bounded_number_of_messages() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    let bound = MAX_UNACKNOWLEDGED;
    for index in 0..bound + 500 {
        server.send(alice, 200, &index.to_string(), br#"{"to":"alice","msg":"x"}"#);
    }
    let pushed = server.take(alice).into_iter().filter(|envelope| envelope.cmd == 201).count();
    assert_eq!(pushed, bound);
    let ids: Vec<_> = (0..bound).map(|index| index.to_string()).collect();
    server.acknowledge(alice, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(server.pushes(alice).len(), 500);
}

#[test]
fn the_order_of_one_sender_holds_while_the_store_is_slow() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    server.is_paused = true;
    for index in 0..20 {
        server.send(alice, 200, &index.to_string(), br#"{"to":"alice","msg":"x"}"#);
    }
    while !server.kept.is_empty() {
        let calls = std::mem::take(&mut server.kept).into_iter().filter_map(|output| match output {
            Output::Store { id, request } => Some((id, server.call(request))),
            _ => None,
        });
        let results: Vec<_> = calls.collect();
        // The last call is answered first.
        for (id, result) in results.into_iter().rev() {
            server.machine.handle_store_result(server.now, id, result);
        }
        server.drain();
    }
    server.is_paused = false;
    assert_eq!(server.fetch_ids(alice), (0..20).map(|index| index.to_string()).collect::<Vec<_>>());
}
