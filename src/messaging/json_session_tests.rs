//! Accounts, devices and the order of requests over the WebSocket `/messages`, with a fake clock.

use super::config::{Config, Limits};
use super::machine::{ConnectionId, Output};
use super::machine_tests::Server;
use crate::limits::Rate;
use crate::messaging_wire::signing::{SigningKey, Statement};
use crate::messaging_wire::*;
use crate::store::StoreLimits;
use serde_json::{Value, json};
use std::time::Duration;

/// A key of the test: of an identity, or of a device.
pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

/// The fields of a device of this user, which the identity key has signed.
pub(super) fn new_device(user: &str, seed: u8, identity: &SigningKey) -> NewDevice {
    let (signing_key, encryption_key) = (key(seed).public(), [seed; 32]);
    let statement = Statement::Device { user, signing_key: &signing_key, encryption_key: &encryption_key };
    NewDevice {
        label: format!("device {seed}"),
        signing_key: FixedBytes(signing_key),
        encryption_key: FixedBytes(encryption_key),
        signature: FixedBytes(identity.sign(&statement)),
    }
}

/// A WebSocket of a test, and the challenge that it got.
#[derive(Debug, Clone, Copy)]
pub(super) struct WebSocket {
    pub(super) id: ConnectionId,
    challenge: [u8; 32],
}

impl Server {
    pub(super) fn websocket_from(&mut self, ip: &str, is_secure: bool) -> WebSocket {
        self.next += 1;
        let id = ConnectionId(self.next);
        self.machine.handle_websocket_opened(self.now, id, ip.parse().unwrap(), is_secure);
        self.drain();
        let hello = self.texts.remove(&id).unwrap().remove(0);
        match serde_json::from_value(hello).unwrap() {
            Event::Hello { version: 1, challenge } => WebSocket { id, challenge: challenge.0 },
            event => panic!("{event:?}"),
        }
    }

    pub(super) fn websocket(&mut self) -> WebSocket {
        self.websocket_from("192.0.2.1", true)
    }

    pub(super) fn text(&mut self, client: WebSocket, text: &str) {
        self.machine.handle_text(self.now, client.id, text.to_owned());
        self.drain();
    }

    /// Sends a request and returns its only answer. Events are kept.
    pub(super) fn ask(&mut self, client: WebSocket, request: &Request) -> Value {
        self.next += 1;
        let id = self.next;
        self.text(client, &request.to_frame(id));
        self.answer(client, id)
    }

    pub(super) fn answer(&mut self, client: WebSocket, id: u64) -> Value {
        let texts = self.texts.remove(&client.id).unwrap_or_default();
        let (mut answers, events): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| text["id"] == id);
        self.texts.insert(client.id, events);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    #[track_caller]
    pub(super) fn ok(&mut self, client: WebSocket, request: &Request) -> Value {
        let answer = self.ask(client, request);
        assert_eq!(answer["type"], "ok", "{answer}");
        answer
    }

    #[track_caller]
    pub(super) fn refused(&mut self, client: WebSocket, request: &Request, code: &str) {
        let answer = self.ask(client, request);
        assert_eq!(answer["code"], code, "{answer}");
    }

    /// The events that a client got.
    pub(super) fn events(&mut self, client: WebSocket) -> Vec<Value> {
        self.texts.remove(&client.id).unwrap_or_default()
    }

    /// Registers a user with the identity key of seed `seed` and a device with that of `seed + 1`; returns the device's number.
    pub(super) fn register_device(&mut self, user: &str, seed: u8) -> i64 {
        let client = self.websocket_from(&format!("192.0.2.{seed}"), true);
        let register = registration(client, user, seed);
        let number = self.ok(client, &register)["device"].as_i64().unwrap();
        self.machine.handle_closed(client.id);
        number
    }

    /// Adds a device to the account with the identity key of seed `identity`.
    pub(super) fn add_device(&mut self, user: &str, identity: u8, seed: u8) -> i64 {
        let client = self.websocket_from(&format!("192.0.2.{seed}"), true);
        self.ok(client, &identity_login(client, user, &key(identity)));
        let add = Request::AddDevice(new_device(user, seed, &key(identity)));
        let number = self.ok(client, &add)["device"].as_i64().unwrap();
        self.machine.handle_closed(client.id);
        number
    }

    /// Logs a device in.
    pub(super) fn log_in(&mut self, user: &str, seed: u8) -> WebSocket {
        let client = self.websocket_from(&format!("192.0.2.{seed}"), false);
        self.ok(client, &device_login(client, user, &key(seed)));
        client
    }
}

pub(super) fn registration(client: WebSocket, user: &str, seed: u8) -> Request {
    let identity = key(seed);
    let (challenge, identity_key) = (&client.challenge, &identity.public());
    let proof = identity.sign(&Statement::Registration { challenge, user, identity_key });
    Request::Register(Register {
        user: user.to_owned(),
        password: None,
        identity_key: Some(FixedBytes(*identity_key)),
        proof: Some(FixedBytes(proof)),
        device: Some(new_device(user, seed + 1, &identity)),
    })
}

pub(super) fn device_login(client: WebSocket, user: &str, key: &SigningKey) -> Request {
    login_of_device(client, user, key, true)
}

/// A login of a device that reads its mailbox, or not.
fn login_of_device(client: WebSocket, user: &str, key: &SigningKey, reads_mailbox: bool) -> Request {
    let (challenge, signing_key) = (&client.challenge, &key.public());
    let signature = FixedBytes(key.sign(&Statement::DeviceLogin { challenge, user, signing_key }));
    let proof = LoginProof::Device { reads_mailbox, key: FixedBytes(*signing_key), signature };
    Request::Login(Login { user: user.to_owned(), proof })
}

pub(super) fn identity_login(client: WebSocket, user: &str, key: &SigningKey) -> Request {
    let signature = key.sign(&Statement::IdentityLogin { challenge: &client.challenge, user });
    Request::Login(Login { user: user.to_owned(), proof: LoginProof::Identity(FixedBytes(signature)) })
}

fn password_login(user: &str, password: &str) -> Request {
    Request::Login(Login { user: user.to_owned(), proof: LoginProof::Password(password.to_owned()) })
}

fn password_registration(user: &str, password: &str) -> Request {
    Request::Register(Register {
        user: user.to_owned(),
        password: Some(password.to_owned()),
        identity_key: None,
        proof: None,
        device: None,
    })
}

pub(super) fn devices(party: &str) -> Request {
    Request::Devices(OtherParty { party: party.to_owned() })
}

#[test]
fn a_device_registers_and_logs_in_and_gets_the_state_of_its_mailbox() {
    let mut server = Server::new();
    let number = server.register_device("alice", 1);
    let client = server.websocket();
    let answer = server.ok(client, &device_login(client, "alice", &key(2)));
    assert_eq!((answer["device"].as_i64(), answer["last_sequence"].as_u64()), (Some(number), Some(0)));
    assert_eq!(answer["stored"], json!({"messages": 0, "bytes": 0}));
    assert_eq!(answer["other_devices"], 0);
    let certificate: Signature = serde_json::from_value(answer["certificate"].clone()).unwrap();
    assert_eq!(certificate, new_device("alice", 2, &key(1)).signature);
    assert!(answer["epoch"].is_u64());
    assert_eq!(server.machine.counters().online, 1);
    assert_eq!(server.machine.counters().websockets, 1);
    let other = server.websocket();
    server.refused(other, &registration(other, "alice", 7), "name_taken");
}

#[test]
fn a_proof_is_of_this_connection_this_user_and_this_key() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    server.register_device("bob", 11);
    let (client, other) = (server.websocket(), server.websocket());
    assert_ne!(client.challenge, other.challenge);
    for (request, code) in [
        (registration(other, "carol", 5), "wrong_credentials"),
        (device_login(other, "alice", &key(2)), "wrong_credentials"),
        (device_login(client, "bob", &key(2)), "wrong_credentials"),
        (device_login(client, "alice", &key(1)), "wrong_credentials"),
        (device_login(client, "nobody", &key(2)), "wrong_credentials"),
        (identity_login(other, "alice", &key(1)), "wrong_credentials"),
        (identity_login(client, "alice", &key(2)), "wrong_credentials"),
        (identity_login(client, "nobody", &key(1)), "wrong_credentials"),
        (device_login(client, "", &key(2)), "invalid"),
    ] {
        server.refused(client, &request, code);
    }
    let Request::Register(mut register) = registration(client, "carol", 5) else { panic!() };
    register.device = Some(new_device("alice", 6, &key(5)));
    server.refused(client, &Request::Register(register), "wrong_credentials");
    assert!(server.machine.counters().refused_logins >= 9);
    server.refused(client, &devices("user:alice"), "not_logged_in");
}

#[test]
fn a_device_renames_itself_and_a_session_without_a_device_any() {
    let mut server = Server::new();
    let first = server.register_device("alice", 1);
    let second = server.add_device("alice", 1, 3);
    let other = server.register_device("bob", 11);
    let (device, identity) = (server.log_in("alice", 2), server.websocket());
    server.ok(identity, &identity_login(identity, "alice", &key(1)));
    let rename = |device, label: &str| Request::RenameDevice(DeviceName { device, label: label.to_owned() });
    server.ok(device, &rename(first, "laptop"));
    server.refused(device, &rename(second, "phone"), "wrong_credentials");
    server.ok(identity, &rename(second, "phone"));
    server.refused(identity, &rename(other, "x"), "not_found");
    server.refused(device, &rename(first, "\u{1b}"), "invalid");
    let listed = server.ok(device, &devices("user:alice"));
    assert_eq!([&listed["devices"][0]["label"], &listed["devices"][1]["label"]], ["laptop", "phone"]);
}

#[test]
fn keys_of_small_order_are_refused_by_name() {
    let mut server = Server::new();
    let client = server.websocket();
    let identity = key(5);
    let mut neutral = FixedBytes([0; 32]);
    neutral.0[0] = 1;
    let certified = |signing_key: Key, encryption_key: Key| {
        let keys = (&signing_key.0, &encryption_key.0);
        let statement = Statement::Device { user: "carol", signing_key: keys.0, encryption_key: keys.1 };
        let signature = FixedBytes(identity.sign(&statement));
        NewDevice { label: String::new(), signing_key, encryption_key, signature }
    };
    let good = (FixedBytes(key(6).public()), FixedBytes([6; 32]));
    let (weak_signing, weak_encryption) =
        (certified(neutral, good.1), certified(good.0, FixedBytes([0; 32])));
    for (device, field) in [(&weak_signing, "signing_key"), (&weak_encryption, "encryption_key")] {
        let Request::Register(register) = registration(client, "carol", 5) else { panic!() };
        let request = Request::Register(Register { device: Some(device.clone()), ..register });
        assert_eq!(server.ask(client, &request)["message"], field);
    }
    let Request::Register(register) = registration(client, "carol", 5) else { panic!() };
    let request = Request::Register(Register { identity_key: Some(neutral), ..register });
    assert_eq!(server.ask(client, &request)["message"], "identity_key");
    server.ok(client, &registration(client, "carol", 5));
    server.ok(client, &identity_login(client, "carol", &key(5)));
    for device in [weak_signing, weak_encryption] {
        server.refused(client, &Request::AddDevice(device), "invalid");
    }
    server.ok(client, &password_registration("dave", "password"));
    server.ok(client, &password_login("dave", "password"));
    let set = SetIdentity { identity_key: neutral, proof: FixedBytes([0; 64]) };
    assert_eq!(server.ask(client, &Request::SetIdentity(set))["message"], "identity_key");
}

#[test]
fn a_password_needs_tls_and_is_the_same_on_both_protocols() {
    let mut server = Server::new();
    let (plain, secure) = (server.websocket_from("192.0.2.1", false), server.websocket());
    server.refused(plain, &password_registration("alice", "password"), "tls_required");
    server.ok(secure, &password_registration("alice", "password"));
    server.refused(plain, &password_login("alice", "password"), "tls_required");
    server.refused(secure, &password_login("alice", "passwort"), "wrong_credentials");
    server.refused(secure, &password_login("nobody", "password"), "wrong_credentials");
    server.refused(secure, &password_login("alice", &"p".repeat(129)), "wrong_credentials");
    let answer = server.ok(secure, &password_login("alice", "password"));
    assert!(answer.get("device").is_none() && answer.get("epoch").is_none());
    let legacy = server.connect();
    assert_eq!(server.try_login(legacy, "alice", "5f4dcc3b5aa765d61d8327deb882cf99"), 100);
    server.refused(secure, &Request::Follow(Follow { after: 0 }), "not_logged_in");
}

#[test]
fn a_registration_is_refused_where_it_is_closed_or_something_is_missing() {
    let mut server =
        Server::with(Config { registration: false, ..Config::default() }, StoreLimits::default());
    let client = server.websocket();
    server.refused(client, &registration(client, "alice", 1), "registration_closed");
    let mut server = Server::with(Config::default(), StoreLimits { parties: 0, ..StoreLimits::default() });
    let client = server.websocket();
    server.refused(client, &registration(client, "alice", 1), "registration_closed");
    let mut server = Server::new();
    let client = server.websocket();
    let Request::Register(whole) = registration(client, "alice", 1) else { panic!() };
    for register in [
        Register { user: "\n".to_owned(), ..whole.clone() },
        Register { user: "a".repeat(129), ..whole.clone() },
        Register { proof: None, ..whole.clone() },
        Register { identity_key: None, ..whole.clone() },
        Register { identity_key: None, proof: None, ..whole.clone() },
        Register { identity_key: None, proof: None, device: None, ..whole.clone() },
        Register { password: Some(String::new()), ..whole.clone() },
        Register {
            device: Some(NewDevice { label: "l".repeat(129), ..whole.device.clone().unwrap() }),
            ..whole.clone()
        },
    ] {
        server.refused(client, &Request::Register(register), "invalid");
    }
    server.ok(client, &Request::Register(whole));
}

#[test]
fn an_identity_key_is_set_once_with_the_password_and_then_sets_the_password() {
    let mut server = Server::new();
    let client = server.websocket();
    server.ok(client, &password_registration("alice", "old"));
    server.ok(client, &password_login("alice", "old"));
    let set = |seed: u8, challenge: &[u8; 32]| {
        let identity_key = &key(seed).public();
        let proof = key(seed).sign(&Statement::Registration { challenge, user: "alice", identity_key });
        Request::SetIdentity(SetIdentity {
            identity_key: FixedBytes(*identity_key),
            proof: FixedBytes(proof),
        })
    };
    server.refused(client, &set(1, &[0; 32]), "wrong_credentials");
    let set_password = Request::SetPassword(SetPassword { password: "new".to_owned() });
    server.refused(client, &set_password, "wrong_credentials");
    server.ok(client, &set(1, &client.challenge));
    server.refused(client, &set(3, &client.challenge), "wrong_credentials");
    let (plain, owner) = (server.websocket_from("192.0.2.1", false), server.websocket());
    server.ok(plain, &identity_login(plain, "alice", &key(1)));
    server.refused(plain, &set_password, "tls_required");
    server.refused(plain, &set(3, &plain.challenge), "wrong_credentials");
    server.ok(owner, &identity_login(owner, "alice", &key(1)));
    server.ok(owner, &set_password);
    server.refused(client, &password_login("alice", "old"), "wrong_credentials");
    server.ok(client, &password_login("alice", "new"));
}

#[test]
fn a_device_is_added_where_the_identity_key_has_signed_it_and_adding_it_again_changes_nothing() {
    let mut server =
        Server::with(Config::default(), StoreLimits { devices_per_account: 2, ..StoreLimits::default() });
    let first = server.register_device("alice", 1);
    let alice = server.log_in("alice", 2);
    let add = |device| Request::AddDevice(device);
    server.refused(alice, &add(new_device("alice", 3, &key(2))), "wrong_credentials");
    server.refused(alice, &add(new_device("bob", 3, &key(1))), "wrong_credentials");
    let second = server.ok(alice, &add(new_device("alice", 3, &key(1))))["device"].as_i64().unwrap();
    assert_ne!(first, second);
    assert_eq!(server.ok(alice, &add(new_device("alice", 3, &key(1))))["device"], second);
    let signing_key = key(3).public();
    let statement = Statement::Device { user: "alice", signing_key: &signing_key, encryption_key: &[9; 32] };
    let same_key = NewDevice {
        encryption_key: FixedBytes([9; 32]),
        signature: FixedBytes(key(1).sign(&statement)),
        ..new_device("alice", 3, &key(1))
    };
    server.refused(alice, &add(same_key), "invalid");
    server.refused(alice, &add(new_device("alice", 4, &key(1))), "too_many_devices");
    let listed = server.ok(alice, &devices("user:alice"));
    assert_eq!(listed["devices"][1]["label"], "device 3");
    assert_eq!((listed["devices"].as_array().unwrap().len(), listed["legacy"].as_bool()), (2, Some(false)));
}

#[test]
fn devices_are_listed_to_everybody_who_is_logged_in_without_their_labels() {
    let mut server = Server::new();
    let number = server.register_device("alice", 1);
    server.register("old");
    server.device("lamp");
    server.register_device("bob", 11);
    let bob = server.log_in("bob", 12);
    let answer = server.ok(bob, &devices("user:alice"));
    let expected = new_device("alice", 2, &key(1));
    let Devices { identity_key, devices: listed, legacy } = serde_json::from_value(answer).unwrap();
    assert_eq!((identity_key, legacy, listed.len()), (Some(FixedBytes(key(1).public())), false, 1));
    assert_eq!((listed[0].device, listed[0].label.as_deref()), (number, None));
    assert_eq!(
        (listed[0].signing_key, listed[0].encryption_key, listed[0].signature),
        (expected.signing_key, expected.encryption_key, expected.signature)
    );
    for party in ["user:old", "dev:lamp"] {
        let answer = server.ok(bob, &devices(party));
        assert_eq!((&answer["legacy"], &answer["devices"]), (&json!(true), &json!([])), "{party}");
    }
    server.refused(bob, &devices("user:nobody"), "not_found");
    server.refused(bob, &devices("dev:nobody"), "not_found");
    server.refused(bob, &devices("old"), "invalid");
}

#[test]
fn a_removed_device_is_closed_and_a_login_of_it_that_is_not_done_fails() {
    let mut server = Server::new();
    let first = server.register_device("alice", 1);
    let second = server.add_device("alice", 1, 3);
    let (alice, other) = (server.log_in("alice", 2), server.log_in("alice", 3));
    let remove = |device| Request::RemoveDevice(DeviceNumber { device });
    server.refused(alice, &remove(second), "wrong_credentials");
    let owner = server.websocket();
    server.ok(owner, &identity_login(owner, "alice", &key(1)));
    server.refused(owner, &remove(99), "not_found");
    server.ok(owner, &remove(second));
    assert_eq!(server.events(other), [json!({"type": "closing", "reason": "device_removed"})]);
    assert_eq!(server.closed, [other.id]);
    // A login that has read its mailbox before the device was removed.
    let late = server.websocket();
    server.is_paused = true;
    server.text(late, &device_login(late, "alice", &key(2)).to_frame(1));
    let list = server.kept.remove(0);
    server.perform(list);
    server.drain();
    let Some(Output::Store { id, request }) = server.kept.pop() else { panic!() };
    let state = server.call(request);
    server.is_paused = false;
    server.ok(alice, &remove(first));
    assert_eq!(server.closed, [other.id, alice.id]);
    server.machine.handle_store_result(server.now, id, state);
    server.drain();
    assert_eq!(server.answer(late, 1)["code"], "wrong_credentials");
    assert_eq!(server.machine.counters().online, 0);
}

#[test]
fn a_second_connection_of_a_device_replaces_the_first() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let first = server.log_in("alice", 2);
    let second = server.log_in("alice", 2);
    assert_eq!(server.events(first), [json!({"type": "closing", "reason": "replaced"})]);
    assert_eq!((&server.closed[..], server.machine.counters().conflicts), (&[first.id][..], 1));
    assert_eq!(server.machine.counters().online, 1);
    server.ok(second, &Request::Ping(Empty {}));
    server.ok(second, &Request::Logout(Empty {}));
    assert_eq!((server.closed.len(), server.machine.counters().online), (2, 0));
}

#[test]
fn a_connection_that_does_not_read_the_mailbox_replaces_none() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let reader = server.log_in("alice", 2);
    let other = server.websocket();
    let login = login_of_device(other, "alice", &key(2), false);
    assert!(server.ok(other, &login)["epoch"].is_u64());
    assert_eq!(server.events(reader), [] as [serde_json::Value; 0]);
    assert_eq!((server.closed.len(), server.machine.counters().conflicts), (0, 0));
    server.refused(other, &Request::Follow(Follow { after: 0 }), "invalid");
    server.refused(other, &Request::Ack(Ack { up_to: 0 }), "invalid");
    server.ok(other, &Request::Fetch(Fetch { after: 0, limit: 1 }));
    server.ok(other, &Request::Logout(Empty {}));
    server.ok(reader, &Request::Follow(Follow { after: 0 }));
    server.ok(reader, &Request::Logout(Empty {}));
    assert_eq!(server.machine.counters().online, 0);
}

#[test]
fn a_connection_may_log_in_again_as_something_else() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let client = server.websocket();
    server.ok(client, &identity_login(client, "alice", &key(1)));
    server.ok(client, &device_login(client, "alice", &key(2)));
    server.ok(client, &device_login(client, "alice", &key(2)));
    assert_eq!(server.machine.counters().online, 1);
    server.ok(client, &identity_login(client, "alice", &key(1)));
    assert_eq!(server.machine.counters().online, 0, "a session without a device is not online");
    server.refused(client, &Request::Ack(Ack { up_to: 0 }), "not_logged_in");
    assert!(server.closed.is_empty());
}

#[test]
fn ten_texts_in_a_row_that_are_no_requests_close_the_connection() {
    let mut server = Server::new();
    let client = server.websocket();
    for _ in 0..9 {
        server.text(client, "no JSON");
    }
    assert_eq!(server.ask(client, &Request::Ping(Empty {}))["type"], "ok");
    let events = server.events(client);
    assert!(
        events.len() == 9
            && events.iter().all(|event| event["code"] == "malformed" && event.get("id").is_none())
    );
    for _ in 0..20 {
        server.text(client, r#"{"id":5,"type":"dance"}"#);
        assert_eq!(server.answer(client, 5)["code"], "unknown_type");
        server.text(client, r#"{"id":5,"type":"login","user":7}"#);
        assert_eq!(server.answer(client, 5)["code"], "invalid");
    }
    for _ in 0..10 {
        server.text(client, "{}");
    }
    assert_eq!(server.events(client).pop(), Some(json!({"type": "closing", "reason": "malformed"})));
    assert_eq!((&server.closed[..], server.machine.counters().malformed), (&[client.id][..], 19));
}

#[test]
fn requests_are_answered_in_their_order_and_their_bytes_are_counted() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let client = server.websocket();
    server.is_paused = true;
    let frames = [device_login(client, "alice", &key(2)), Request::Ping(Empty {}), devices("user:alice")];
    let frames: Vec<_> = frames.iter().zip(1..).map(|(request, id)| request.to_frame(id)).collect();
    for frame in &frames {
        server.text(client, frame);
    }
    assert!(server.events(client).is_empty() && !server.handled.contains_key(&client.id));
    server.resume();
    let ids: Vec<_> = server.events(client).iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(server.handled[&client.id], frames.iter().map(String::len).sum::<usize>());
}

#[test]
fn a_client_that_does_not_read_gets_no_further_answers_until_it_has_read() {
    let mut server = Server::new();
    let client = server.websocket();
    server.machine.handle_congested(client.id);
    for id in 0..100 {
        server.text(client, &Request::Ping(Empty {}).to_frame(id));
    }
    assert!(server.events(client).is_empty());
    server.machine.handle_drained(server.now, client.id);
    server.drain();
    assert_eq!(server.events(client).len(), 100);
}

#[test]
fn requests_over_the_memory_of_all_are_refused_and_nothing_is_held_afterwards() {
    let limits = Limits { request_bytes: 1000, ..Limits::default() };
    let mut server = Server::with(Config { limits, ..Config::default() }, StoreLimits::default());
    server.register_device("alice", 1);
    let client = server.log_in("alice", 2);
    server.is_paused = true;
    server.text(client, &devices("user:alice").to_frame(1));
    for id in 2..30 {
        server.text(client, &devices("user:alice").to_frame(id));
    }
    let refused = server.events(client);
    assert!(
        refused.len() > 1 && refused.iter().all(|answer| answer["code"] == "try_again_later"),
        "{refused:?}"
    );
    server.machine.handle_closed(client.id);
    server.resume();
    let other = server.websocket();
    server.text(other, &format!(r#"{{"id":1,"type":"ping","x":"{}"}}"#, "x".repeat(950)));
    assert_eq!(server.answer(other, 1)["type"], "ok");
}

#[test]
fn a_silent_client_is_told_so_and_closed_and_signs_of_life_keep_it() {
    let mut server = Server::new();
    let (silent, alive) = (server.websocket(), server.websocket());
    server.now = server.now.after(Duration::from_secs(100));
    server.machine.handle_alive(server.now, alive.id);
    server.now = server.now.after(Duration::from_secs(51));
    server.machine.handle_timeout(server.now);
    server.drain();
    assert_eq!(server.events(silent), [json!({"type": "closing", "reason": "idle"})]);
    assert_eq!(server.closed, [silent.id]);
    server.machine.handle_shutdown();
    server.drain();
    assert_eq!(server.events(alive), [json!({"type": "closing", "reason": "shutdown"})]);
    assert_eq!(server.closed, [silent.id, alive.id]);
}

#[test]
fn logins_registrations_and_look_ups_of_one_network_are_limited_and_others_are_served() {
    let limits = Limits {
        logins_per_network: Rate::new(0.1, 2.0),
        registrations_per_network: Rate::new(0.1, 2.0),
        ..Limits::default()
    };
    let mut server = Server::with(Config { limits, ..Config::default() }, StoreLimits::default());
    server.register_device("alice", 1);
    let (client, other) =
        (server.websocket_from("192.0.2.200", true), server.websocket_from("192.0.2.201", true));
    for _ in 0..2 {
        server.refused(client, &device_login(client, "alice", &key(9)), "wrong_credentials");
    }
    server.refused(client, &device_login(client, "alice", &key(2)), "try_again_later");
    server.ok(other, &device_login(other, "alice", &key(2)));
    for (name, code) in [("b", "ok"), ("c", "ok"), ("d", "try_again_later")] {
        let answer = server.ask(client, &password_registration(name, "p"));
        assert!(answer["type"] == code || answer["code"] == code, "{answer}");
    }
    let answers: Vec<_> =
        (0..600).map(|_| server.ask(other, &devices("user:alice"))["code"].clone()).collect();
    assert_eq!(answers.iter().filter(|code| **code == "try_again_later").count(), 100);
    assert!(server.machine.counters().throttled >= 102);
}

#[test]
fn signatures_of_all_clients_together_are_limited() {
    let mut server = Server::new();
    server.register_device("alice", 1);
    let wrong = FixedBytes([0; 64]);
    let proof =
        LoginProof::Device { reads_mailbox: true, key: FixedBytes(key(2).public()), signature: wrong };
    let login = Request::Login(Login { user: "alice".to_owned(), proof });
    let mut codes = Vec::new();
    for network in 0..2100 {
        let client = server.websocket_from(&format!("198.18.{}.{}", network / 200, network % 200), false);
        codes.push(server.ask(client, &login)["code"].clone());
        server.machine.handle_closed(client.id);
    }
    assert_eq!(codes.iter().filter(|code| **code == "wrong_credentials").count(), 1999);
    assert_eq!(codes.iter().filter(|code| **code == "try_again_later").count(), 101);
}

#[test]
fn passwords_of_one_account_are_limited_and_signatures_are_not() {
    let limits = Limits { logins_per_account: Rate::new(0.1, 2.0), ..Limits::default() };
    let mut server = Server::with(Config { limits, ..Config::default() }, StoreLimits::default());
    server.register_device("alice", 1);
    let client = server.websocket_from("192.0.2.200", true);
    for code in ["wrong_credentials", "wrong_credentials", "try_again_later"] {
        server.refused(client, &password_login("alice", "guess"), code);
    }
    for _ in 0..3 {
        server.ok(client, &device_login(client, "alice", &key(2)));
        server.ok(client, &identity_login(client, "alice", &key(1)));
    }
}

#[test]
fn an_account_over_tcp_gets_devices_over_the_websocket() {
    let mut server = Server::new();
    server.register("alice");
    let client = server.websocket();
    // The text of the TCP client's password is the MD5 of this one.
    server.refused(client, &password_login("alice", "?"), "wrong_credentials");
    server.ok(client, &password_registration("bob", "p"));
    server.ok(client, &password_login("bob", "p"));
    server.refused(client, &Request::AddDevice(new_device("bob", 3, &key(1))), "wrong_credentials");
    let identity_key = &key(1).public();
    let statement = Statement::Registration { challenge: &client.challenge, user: "bob", identity_key };
    let proof = FixedBytes(key(1).sign(&statement));
    server.ok(client, &Request::SetIdentity(SetIdentity { identity_key: FixedBytes(*identity_key), proof }));
    server.ok(client, &Request::AddDevice(new_device("bob", 3, &key(1))));
    server.log_in("bob", 3);
}
