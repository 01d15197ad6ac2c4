//! Contacts and presence over the WebSocket `/messages`.

use super::config::Config;
use super::json_session_tests::WebSocket;
use super::machine_tests::Server;
use super::presence::MAX_WATCHES;
use crate::messaging_wire::*;
use crate::store::StoreLimits;
use serde_json::{Value, json};
use std::time::Duration;

fn add(party: &str) -> Request {
    Request::AddContact(OtherParty { party: party.to_owned() })
}

fn remove(party: &str) -> Request {
    Request::RemoveContact(OtherParty { party: party.to_owned() })
}

fn presence(party: &str, online: bool) -> Value {
    json!({"type": "presence", "party": party, "online": online})
}

impl Server {
    fn wait(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        self.machine.handle_timeout(self.now);
        self.drain();
    }

    fn watch(&mut self, client: WebSocket) {
        self.ok(client, &Request::Watch(Empty {}));
    }
}

/// Alice and Bob, who have added each other, and Carol, who has added both.
fn friends() -> Server {
    let mut server = Server::new();
    for (user, seed, contacts) in [
        ("alice", 1, &["user:bob"][..]),
        ("bob", 11, &["user:alice"]),
        ("carol", 21, &["user:alice", "user:bob"]),
    ] {
        server.register_device(user, seed);
        let client = server.log_in(user, seed + 1);
        for contact in contacts {
            server.ok(client, &add(contact));
        }
        server.machine.handle_closed(client.id);
    }
    server
}

#[test]
fn contacts_are_added_listed_and_removed() {
    let limits = StoreLimits { contacts_per_party: 2, ..StoreLimits::default() };
    let mut server = Server::with(Config::default(), limits);
    server.register_device("alice", 1);
    let alice = server.log_in("alice", 2);
    server.ok(alice, &add("user:bob"));
    server.refused(alice, &add("user:bob"), "contact_exists");
    server.ok(alice, &add("dev:lamp"));
    server.refused(alice, &add("user:carol"), "too_many_contacts");
    for party in ["bob", "user:", "user:alice"] {
        server.refused(alice, &add(party), "invalid");
    }
    let listed = server.ok(alice, &Request::Contacts(Empty {}));
    assert_eq!(listed["contacts"], json!([{"party": "dev:lamp"}, {"party": "user:bob"}]));
    server.ok(alice, &remove("user:bob"));
    server.refused(alice, &remove("user:bob"), "not_found");
}

#[test]
fn only_who_has_added_the_other_sees_whether_it_is_online() {
    let mut server = friends();
    let (alice, carol) = (server.log_in("alice", 2), server.log_in("carol", 22));
    for client in [alice, carol] {
        server.watch(client);
    }
    let contacts = Request::Contacts(Empty {});
    assert_eq!(server.ok(alice, &contacts)["contacts"], json!([{"party": "user:bob", "online": false}]));
    let first = server.log_in("bob", 12);
    assert_eq!(server.ok(alice, &contacts)["contacts"], json!([{"party": "user:bob", "online": true}]));
    assert_eq!(
        server.ok(carol, &contacts)["contacts"],
        json!([{"party": "user:alice"}, {"party": "user:bob"}])
    );
    assert_eq!(server.events(alice), [presence("user:bob", true)]);
    let second = server.log_in("bob", 12);
    assert!(server.events(alice).is_empty(), "a connection that is replaced is not offline");
    server.watch(second);
    assert_eq!(server.events(second), [presence("user:alice", true)]);
    assert!(server.closed.contains(&first.id));
    server.machine.handle_closed(second.id);
    server.drain();
    assert_eq!(server.events(alice), [presence("user:bob", false)]);
    assert!(server.events(carol).is_empty());
}

#[test]
fn a_user_is_online_while_one_of_the_connections_of_either_protocol_is_there() {
    let mut server = friends();
    server.register("old");
    let (alice, old) = (server.log_in("alice", 2), server.login("old"));
    server.ok(alice, &add("user:old"));
    server.watch(alice);
    // A user of the TCP protocol can add only devices; another session of it is not watched.
    server.add_device("bob", 11, 13);
    let (first, second) = (server.log_in("bob", 12), server.log_in("bob", 13));
    assert_eq!(server.events(alice), [presence("user:bob", true)]);
    server.machine.handle_closed(first.id);
    server.drain();
    assert!(server.events(alice).is_empty());
    server.machine.handle_closed(second.id);
    server.machine.handle_closed(old);
    server.drain();
    assert_eq!(server.events(alice), [presence("user:bob", false)]);
    assert_eq!(server.machine.counters().online, 1);
}

#[test]
fn a_change_of_contacts_reaches_who_watches_within_a_second() {
    let mut server = friends();
    let (alice, bob, carol) =
        (server.log_in("alice", 2), server.log_in("bob", 12), server.log_in("carol", 22));
    for client in [alice, bob, carol] {
        server.watch(client);
        server.events(client);
    }
    server.ok(alice, &add("user:carol"));
    server.ok(bob, &remove("user:alice"));
    assert!(server.events(alice).is_empty());
    server.wait(Duration::from_secs(1));
    assert_eq!(server.events(alice), [presence("user:carol", true), presence("user:bob", false)]);
    assert_eq!(server.events(carol), [presence("user:alice", true)]);
    assert_eq!(server.events(bob), [presence("user:alice", false)]);
    server.machine.handle_closed(alice.id);
    server.drain();
    assert_eq!(server.events(carol), [presence("user:alice", false)]);
    assert!(server.events(bob).is_empty());
}

#[test]
fn a_change_while_contacts_are_read_is_read_again() {
    let mut server = friends();
    let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 12));
    server.is_paused = true;
    server.text(alice, &Request::Watch(Empty {}).to_frame(1));
    let super::machine::Output::Store { id, request } = server.kept.remove(0) else { panic!() };
    let read = server.call(request);
    server.is_paused = false;
    server.ok(bob, &remove("user:alice"));
    server.machine.handle_store_result(server.now, id, read);
    server.drain();
    server.events(alice);
    server.wait(Duration::from_secs(1));
    assert_eq!(server.events(alice), [presence("user:bob", false)]);
}

#[test]
fn a_contact_that_a_client_removes_as_it_goes_sees_nothing_of_it_any_more() {
    let mut server = friends();
    let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 12));
    server.watch(bob);
    server.events(bob);
    server.is_paused = true;
    server.text(alice, &remove("user:bob").to_frame(1));
    server.machine.handle_closed(alice.id);
    server.drain();
    server.resume();
    server.events(bob);
    server.wait(Duration::from_secs(1));
    server.log_in("alice", 2);
    assert!(server.events(bob).is_empty());
}

#[test]
fn a_watch_that_fails_is_none() {
    let mut server = friends();
    let alice = server.log_in("alice", 2);
    server.is_paused = true;
    server.text(alice, &Request::Watch(Empty {}).to_frame(1));
    let super::machine::Output::Store { id, .. } = server.kept.remove(0) else { panic!() };
    server.machine.handle_store_result(server.now, id, Err(crate::store::StoreError::Overloaded));
    server.drain();
    assert_eq!(server.answer(alice, 1)["code"], "try_again_later");
    server.is_paused = false;
    server.log_in("bob", 12);
    assert!(server.events(alice).is_empty());
    server.watch(alice);
    assert_eq!(server.events(alice), [presence("user:bob", true)]);
}

#[test]
fn all_clients_together_watch_a_limited_number_of_contacts() {
    let mut server = friends();
    let alice = server.log_in("alice", 2);
    server.machine.watches += MAX_WATCHES;
    server.refused(alice, &Request::Watch(Empty {}), "try_again_later");
    server.machine.watches -= MAX_WATCHES;
    server.watch(alice);
    let carol = server.log_in("carol", 22);
    server.machine.watches += MAX_WATCHES;
    server.ok(alice, &add("user:carol"));
    server.wait(Duration::from_secs(1));
    assert!(server.events(alice).is_empty(), "a contact that is added is not watched");
    server.ok(alice, &remove("user:bob"));
    server.wait(Duration::from_secs(1));
    assert_eq!(server.machine.watches, MAX_WATCHES);
    server.machine.handle_closed(carol.id);
}

#[test]
fn nothing_of_a_closed_connection_is_left() {
    let mut server = friends();
    for _ in 0..3 {
        let (alice, bob) = (server.log_in("alice", 2), server.log_in("bob", 12));
        server.watch(alice);
        server.watch(bob);
        server.ok(alice, &add("user:carol"));
        server.ok(alice, &remove("user:carol"));
        server.machine.handle_closed(alice.id);
        server.machine.handle_closed(bob.id);
        server.wait(Duration::from_secs(2));
    }
    let machine = &server.machine;
    assert!(machine.watchers.is_empty() && machine.account_sessions.is_empty() && machine.present.is_empty());
    assert!(machine.watches == 0 && machine.refreshing.is_empty() && machine.readers.is_empty());
    assert!(machine.json_sessions.is_empty());
}
