//! Reading a device's mailbox over the WebSocket `/messages`, and receipts.

use super::json_sending_tests::{encrypted, plaintext};
use super::json_session_tests::WebSocket;
use super::machine_tests::Server;
use crate::messaging_wire::*;
use serde_json::{Value, json};
use std::time::Duration;

fn follow(after: u64) -> Request {
    Request::Follow(Follow { after })
}

fn ack(up_to: u64) -> Request {
    Request::Ack(Ack { up_to })
}

fn sequences(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect()
}

/// Alice and the device of Bob that she writes to.
struct Pair {
    server: Server,
    alice: WebSocket,
    number: i64,
}

impl Pair {
    fn new() -> Self {
        let mut server = Server::new();
        server.register_device("alice", 1);
        let number = server.register_device("bob", 11);
        let alice = server.log_in("alice", 2);
        Self { server, alice, number }
    }

    fn send(&mut self, ids: std::ops::Range<usize>, len: usize) {
        for id in ids {
            let send = encrypted("user:bob", &format!("m{id}"), &[(self.number, &vec![0; len])]);
            self.server.ok(self.alice, &send);
        }
    }
}

#[test]
fn a_client_that_follows_gets_what_is_stored_and_then_what_comes_in_order() {
    let mut pair = Pair::new();
    pair.send(0..3, 10);
    let bob = pair.server.log_in("bob", 12);
    pair.server.ok(bob, &follow(1));
    pair.send(3..5, 10);
    let events = pair.server.events(bob);
    assert_eq!(sequences(&events), [2, 3, 4, 5]);
    assert!(events.iter().all(|event| event["type"] == "message"));
    pair.server.ok(bob, &Request::Unfollow(Empty {}));
    pair.send(5..6, 10);
    assert!(pair.server.events(bob).is_empty());
    pair.server.ok(bob, &follow(5));
    assert_eq!(sequences(&pair.server.events(bob)), [6]);
}

#[test]
fn an_acknowledgement_removes_and_the_sending_device_gets_a_receipt() {
    let mut pair = Pair::new();
    pair.server.ok(pair.alice, &follow(0));
    pair.send(0..3, 10);
    let bob = pair.server.log_in("bob", 12);
    pair.server.ok(bob, &follow(0));
    pair.server.ok(bob, &ack(2));
    let receipts = pair.server.events(pair.alice);
    assert_eq!(
        receipts[1],
        json!({
            "type": "receipt", "sequence": 2, "state": "delivered", "message_id": "m1", "from": "user:bob",
            "device": pair.number,
        })
    );
    assert_eq!(receipts.len(), 2);
    pair.server.machine.handle_closed(bob.id);
    let bob = pair.server.log_in("bob", 12);
    assert_eq!(sequences(&pair.server.fetch_page(bob)), [3], "what is not acknowledged comes again");
    pair.server.ok(bob, &ack(3));
    pair.server.ok(pair.alice, &ack(3));
    assert!(pair.server.fetch_page(bob).is_empty() && pair.server.fetch_page(pair.alice).is_empty());
    assert_eq!(pair.server.machine.counters().acknowledged, 6, "three messages and three receipts");
}

#[test]
fn a_message_to_a_user_of_the_tcp_protocol_gives_a_receipt_too() {
    let mut pair = Pair::new();
    pair.server.register("old");
    let old = pair.server.login("old");
    pair.server.ok(pair.alice, &follow(0));
    pair.server.ok(pair.alice, &plaintext("user:old", "m", "hi"));
    pair.server.acknowledge(old, &["m"]);
    let receipts = pair.server.events(pair.alice);
    assert_eq!((&receipts[0]["from"], receipts[0].get("device")), (&json!("user:old"), None));
    assert_eq!((&receipts[0]["state"], receipts.len()), (&json!("delivered"), 1));
}

#[test]
fn a_message_that_expires_is_reported_as_expired() {
    let mut pair = Pair::new();
    pair.server.ok(pair.alice, &follow(0));
    pair.send(0..1, 10);
    pair.server.now = pair.server.now.after(Duration::from_secs(30 * 24 * 3600 + 1));
    let now = pair.server.now;
    // Not idle: the client answers pings.
    pair.server.machine.handle_alive(now, pair.alice.id);
    pair.server.machine.handle_timeout(now);
    pair.server.drain();
    let receipts = pair.server.events(pair.alice);
    assert_eq!((&receipts[0]["state"], &receipts[0]["message_id"]), (&json!("expired"), &json!("m0")));
}

#[test]
fn what_a_removed_device_has_not_acknowledged_is_reported_as_expired() {
    let mut pair = Pair::new();
    pair.server.ok(pair.alice, &follow(0));
    pair.send(0..2, 10);
    let bob = pair.server.log_in("bob", 12);
    pair.server.ok(bob, &Request::RemoveDevice(DeviceNumber { device: pair.number }));
    let receipts = pair.server.events(pair.alice);
    let states: Vec<_> = receipts.iter().map(|receipt| [&receipt["state"], &receipt["message_id"]]).collect();
    assert_eq!(states, [[&json!("expired"), &json!("m0")], [&json!("expired"), &json!("m1")]]);
}

#[test]
fn at_most_a_thousand_messages_wait_for_an_acknowledgement() {
    let mut pair = Pair::new();
    let bob = pair.server.log_in("bob", 12);
    pair.server.ok(bob, &follow(0));
    pair.send(0..1100, 1);
    assert_eq!(pair.server.events(bob).len(), 1000);
    pair.server.ok(bob, &ack(50));
    assert_eq!(sequences(&pair.server.events(bob)), (1001..=1050).collect::<Vec<_>>());
    pair.server.ok(bob, &ack(1050));
    assert_eq!(sequences(&pair.server.events(bob)), (1051..=1100).collect::<Vec<_>>());
}

#[test]
fn at_most_a_mebibyte_waits_for_an_acknowledgement() {
    let mut pair = Pair::new();
    let bob = pair.server.log_in("bob", 12);
    pair.server.ok(bob, &follow(0));
    pair.send(0..20, 65_536);
    assert_eq!(sequences(&pair.server.events(bob)), (1..=16).collect::<Vec<_>>());
    pair.server.ok(bob, &ack(2));
    assert_eq!(sequences(&pair.server.events(bob)), [17, 18]);
}

#[test]
fn a_congested_client_gets_the_rest_after_it_has_read() {
    let mut pair = Pair::new();
    let bob = pair.server.log_in("bob", 12);
    pair.server.ok(bob, &follow(0));
    pair.server.machine.handle_congested(bob.id);
    pair.send(0..5, 10);
    assert!(pair.server.events(bob).is_empty());
    pair.server.machine.handle_drained(pair.server.now, bob.id);
    pair.server.drain();
    assert_eq!(sequences(&pair.server.events(bob)), [1, 2, 3, 4, 5]);
}

#[test]
fn what_was_not_sent_cannot_be_acknowledged() {
    let mut pair = Pair::new();
    pair.send(0..2, 10);
    let bob = pair.server.log_in("bob", 12);
    pair.send(2..4, 10);
    pair.server.refused(bob, &ack(3), "invalid");
    pair.server.refused(bob, &ack(u64::MAX), "invalid");
    pair.server.ok(bob, &ack(2));
    let nothing = Request::Fetch(Fetch { after: 0, limit: 0 });
    assert_eq!(pair.server.ask(bob, &nothing)["message"], "limit: must be at least 1");
    let page = pair.server.ok(bob, &Request::Fetch(Fetch { after: 0, limit: 1 }));
    assert_eq!((sequences(page["messages"].as_array().unwrap()), &page["more"]), (vec![3], &json!(true)));
    pair.server.ok(bob, &ack(3));
    pair.server.refused(bob, &ack(4), "invalid");
    let page = pair.server.ok(bob, &Request::Fetch(Fetch { after: 4, limit: 100 }));
    assert_eq!((&page["messages"], &page["more"]), (&json!([]), &json!(false)));
}

#[test]
fn a_page_that_was_read_before_the_client_began_anew_is_not_sent() {
    let mut pair = Pair::new();
    pair.send(0..3, 10);
    let bob = pair.server.log_in("bob", 12);
    pair.server.is_paused = true;
    pair.server.text(bob, &follow(0).to_frame(1));
    pair.server.text(bob, &follow(2).to_frame(2));
    pair.server.resume();
    let events: Vec<_> =
        pair.server.events(bob).into_iter().filter(|event| event["type"] == "message").collect();
    assert_eq!(sequences(&events), [3]);
}
