//! Sending over the WebSocket `/messages`: who gets what, and what is refused.

use super::config::{Config, Policy};
use super::json_session_tests::{WebSocket, devices};
use super::machine_tests::{Server, quad};
use crate::messaging_wire::*;
use crate::store::{StoreLimits, StrangerLimits};
use serde_json::{Value, json};

pub(super) fn encrypted(to: &str, message_id: &str, copies: &[(i64, &[u8])]) -> Request {
    let copies =
        copies.iter().map(|(device, body)| DeviceCopy { device: *device, body: Body(body.to_vec()) });
    let content = Content::Encrypted(copies.collect());
    Request::Send(Send { to: to.to_owned(), message_id: message_id.to_owned(), content })
}

pub(super) fn plaintext(to: &str, message_id: &str, text: &str) -> Request {
    let content = Content::Text(text.to_owned());
    Request::Send(Send { to: to.to_owned(), message_id: message_id.to_owned(), content })
}

impl Server {
    pub(super) fn fetch_page(&mut self, client: WebSocket) -> Vec<Value> {
        let fetch = Request::Fetch(Fetch { after: 0, limit: 100 });
        self.ok(client, &fetch)["messages"].as_array().unwrap().clone()
    }
}

#[test]
fn each_device_of_the_recipient_gets_its_own_copy() {
    let mut server = Server::new();
    let alice_number = server.register_device("alice", 1);
    let (first, second) = (server.register_device("bob", 11), server.add_device("bob", 11, 13));
    let alice = server.log_in("alice", 2);
    let send = encrypted("user:bob", "m1", &[(second, b"for 2"), (first, b"for 1")]);
    let answer = server.ok(alice, &send);
    assert_eq!((&answer["state"], answer.get("duplicate")), (&json!("stored"), None));
    assert_eq!(server.ok(alice, &send)["duplicate"], true);
    for (seed, body) in [(12, "Zm9yIDE"), (13, "Zm9yIDI")] {
        let bob = server.log_in("bob", seed);
        let messages = server.fetch_page(bob);
        let (sequence, at) = (&messages[0]["sequence"], &messages[0]["stored_at"]);
        assert_eq!(
            messages,
            [json!({
                "type": "message", "sequence": sequence, "from": "user:alice", "device": alice_number,
                "message_id": "m1", "encrypted": true, "body": body, "stored_at": at,
                "expires_at": at.as_u64().unwrap() + 30 * 24 * 3600 * 1000,
            })]
        );
    }
    let counters = server.machine.counters();
    assert_eq!((counters.stored, counters.duplicates), (1, 1));
}

#[test]
fn copies_for_other_devices_than_the_recipient_has_are_refused_with_those_that_it_has() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let (first, second) = (server.register_device("bob", 11), server.add_device("bob", 11, 13));
    server.register("old");
    server.device("lamp");
    let alice = server.log_in("alice", 2);
    for copies in
        [&[(first, &b"x"[..])][..], &[(first, b"x"), (second, b"x"), (99, b"x")], &[(99, b"x")], &[]]
    {
        let answer = server.ask(alice, &encrypted("user:bob", "m", copies));
        assert_eq!(answer["code"], "devices_changed", "{answer}");
        let listed: Vec<_> =
            answer["devices"].as_array().unwrap().iter().map(|device| device["device"].clone()).collect();
        assert_eq!(listed, [json!(first), json!(second)]);
        assert!(answer["identity_key"].is_string() && answer["devices"][0].get("label").is_none());
    }
    for party in ["user:old", "dev:lamp"] {
        let answer = server.ask(alice, &encrypted(party, "m", &[(first, b"x")]));
        assert_eq!((&answer["code"], &answer["legacy"]), (&json!("devices_changed"), &json!(true)));
    }
    server.refused(alice, &encrypted("user:bob", "m", &[(first, b"x"), (first, b"y")]), "invalid");
    assert_eq!(server.machine.counters().refused, 7);
    assert_eq!(server.machine.counters().stored, 0);
}

#[test]
fn a_device_that_vanishes_while_a_message_is_stored_refuses_it_whole() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let (first, second) = (server.register_device("bob", 11), server.add_device("bob", 11, 13));
    let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 13));
    server.is_paused = true;
    server.text(alice, &encrypted("user:bob", "m", &[(first, b"x"), (second, b"x")]).to_frame(1));
    for _ in 0..2 {
        let call = server.kept.remove(0);
        server.perform(call);
        server.drain();
    }
    let append = server.kept.remove(0);
    server.is_paused = false;
    server.ok(bob, &Request::RemoveDevice(DeviceNumber { device: second }));
    server.perform(append);
    server.drain();
    let answer = server.answer(alice, 1);
    assert_eq!(answer["code"], "devices_changed");
    assert_eq!(answer["devices"].as_array().unwrap().len(), 1);
    server.ok(alice, &encrypted("user:bob", "m", &[(first, b"x")]));
}

#[test]
fn plaintext_is_refused_where_there_are_devices_and_reaches_who_has_none() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    server.register_device("bob", 11);
    server.register("old");
    let (old, lamp) = (server.login("old"), server.device("lamp"));
    let alice = server.log_in("alice", 2);
    server.refused(alice, &plaintext("user:bob", "m", "hi"), "plaintext_refused");
    server.refused(alice, &plaintext("user:nobody", "m", "hi"), "not_found");
    server.refused(alice, &plaintext("dev:nobody", "m", "hi"), "not_found");
    server.ok(alice, &plaintext("user:old", "m", "hi"));
    server.ok(alice, &plaintext("dev:lamp", "m", "on"));
    assert_eq!(server.pushes(old), [quad("alice", "old", "hi", "m")]);
    assert_eq!(server.pushes(lamp), [quad("alice", "lamp", "on", "m")]);
    assert_eq!(server.ok(alice, &plaintext("dev:lamp", "m", "on"))["duplicate"], true);
}

#[test]
fn a_user_of_the_tcp_protocol_writes_to_all_devices_of_a_user_in_plaintext() {
    let mut server = Server::new();
    server.register_device("bob", 11);
    server.add_device("bob", 11, 13);
    server.register("old");
    let old = server.login("old");
    let (first, second) = (server.log_in("bob", 12), server.log_in("bob", 13));
    server.ok(first, &Request::Follow(Follow { after: 0 }));
    server.message(old, "m1", "bob", "hi");
    let pushed = server.events(first);
    assert_eq!(
        (&pushed[0]["from"], &pushed[0]["text"], &pushed[0]["encrypted"], pushed[0].get("device")),
        (&json!("user:old"), &json!("hi"), &json!(false), None)
    );
    assert_eq!(server.fetch_page(second)[0]["message_id"], "m1");
}

#[test]
fn a_note_to_the_own_devices_may_leave_out_the_sending_one() {
    let mut server = Server::new();
    let first = server.register_device("alice", 1);
    let alice = server.log_in("alice", 2);
    server.refused(alice, &encrypted("user:alice", "m0", &[]), "devices_changed");
    let second = server.add_device("alice", 1, 3);
    server.refused(alice, &encrypted("user:alice", "m1", &[(first, b"x")]), "devices_changed");
    server.ok(alice, &encrypted("user:alice", "m1", &[(second, b"x")]));
    server.ok(alice, &encrypted("user:alice", "m2", &[(first, b"x"), (second, b"x")]));
    assert_eq!(server.fetch_page(alice).len(), 1);
    let other = server.log_in("alice", 3);
    assert_eq!(server.fetch_page(other).len(), 2);
}

#[test]
fn what_is_too_long_or_has_no_recipient_is_refused() {
    let mut server = Server::new();
    let first = server.register_device("alice", 1);
    server.register("old");
    let alice = server.log_in("alice", 2);
    server.refused(alice, &plaintext("user:old", "m", &"x".repeat(65_537)), "too_large");
    server.refused(alice, &encrypted("user:alice", "m", &[(first, &[0; 65_537])]), "too_large");
    server.ok(alice, &plaintext("user:old", "m", &"x".repeat(65_536)));
    for (to, id) in [("old", "m"), ("user:", "m"), ("user:\n", "m"), ("user:old", ""), ("user:old", "\n")] {
        server.refused(alice, &plaintext(to, id, "hi"), "invalid");
    }
    server.refused(alice, &plaintext("user:old", &"m".repeat(129), "hi"), "invalid");
    assert_eq!(server.machine.counters().refused, 8);
}

#[test]
fn a_full_mailbox_refuses_and_says_so() {
    let limits = StoreLimits { messages_per_mailbox: 1, ..StoreLimits::default() };
    let mut server = Server::with(Config::default(), limits);
    server.register_device("alice", 1);
    let bob = server.register_device("bob", 11);
    let alice = server.log_in("alice", 2);
    server.ok(alice, &encrypted("user:bob", "m1", &[(bob, b"x")]));
    server.refused(alice, &encrypted("user:bob", "m2", &[(bob, b"x")]), "mailbox_full");
    assert_eq!(server.machine.counters().refused, 1);
}

#[test]
fn a_stranger_has_a_share_of_a_mailbox_and_a_contact_all_of_it() {
    let strangers = StrangerLimits::of(4, 1 << 20);
    let limits = StoreLimits { messages_per_mailbox: 4, strangers, ..StoreLimits::default() };
    let mut server = Server::with(Config::default(), limits);
    server.register_device("alice", 1);
    let number = server.register_device("bob", 11);
    let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 12));
    let send = |id: &str| encrypted("user:bob", id, &[(number, b"x")]);
    server.ok(alice, &send("m1"));
    server.refused(alice, &send("m2"), "sender_share_full");
    server.ok(bob, &Request::AddContact(OtherParty { party: "user:alice".to_owned() }));
    for id in ["m2", "m3", "m4"] {
        server.ok(alice, &send(id));
    }
    server.refused(alice, &send("m5"), "mailbox_full");
}

#[test]
fn a_full_store_refuses_and_says_so() {
    let mut server =
        Server::with(Config::default(), StoreLimits { stored_bytes: 3, ..StoreLimits::default() });
    server.register_device("alice", 1);
    let bob = server.register_device("bob", 11);
    let alice = server.log_in("alice", 2);
    server.ok(alice, &encrypted("user:bob", "m1", &[(bob, b"xxx")]));
    server.refused(alice, &encrypted("user:bob", "m2", &[(bob, b"x")]), "storage_full");
}

#[test]
fn under_the_policy_contacts_a_stranger_is_refused() {
    let config = Config { policy: Policy::Contacts, ..Config::default() };
    let mut server = Server::with(config, StoreLimits::default());
    let own = server.register_device("alice", 1);
    let bob_number = server.register_device("bob", 11);
    server.device("lamp");
    let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 12));
    let (to_bob, to_lamp) =
        (encrypted("user:bob", "m", &[(bob_number, b"x")]), plaintext("dev:lamp", "m", "on"));
    for send in [&to_bob, &to_lamp] {
        server.refused(alice, send, "contacts_only");
    }
    server.ok(bob, &Request::AddContact(OtherParty { party: "user:alice".to_owned() }));
    server.ok(alice, &Request::AddContact(OtherParty { party: "dev:lamp".to_owned() }));
    server.ok(alice, &to_bob);
    server.ok(alice, &to_lamp);
    server.ok(alice, &encrypted("user:alice", "m", &[(own, b"x")]));
    server.ok(alice, &devices("user:bob"));
}

#[test]
fn a_message_of_a_client_that_has_gone_is_still_pushed() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let number = server.register_device("bob", 11);
    let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 12));
    server.ok(bob, &Request::Follow(Follow { after: 0 }));
    server.is_paused = true;
    server.text(alice, &encrypted("user:bob", "m", &[(number, b"x")]).to_frame(1));
    for _ in 0..2 {
        let call = server.kept.remove(0);
        server.perform(call);
        server.drain();
    }
    server.machine.handle_closed(alice.id);
    server.resume();
    assert_eq!(server.events(bob)[0]["message_id"], "m");
    assert_eq!(server.machine.counters().stored, 1);
}
