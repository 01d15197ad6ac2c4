//! The machine with a fake clock, the store in memory, and jobs that are done at once.

use super::config::{Config, Limits};
use super::crypto::SessionKey;
use super::machine::{ConnectionId, Job, JobResult, Machine, Output, RequestId};
use super::store_calls::call_store;
use super::store_request::{StoreReply, StoreRequest};
use super::wire::Envelope;
use crate::clock::Now;
use crate::limits::Rate;
use crate::net::time::now;
use crate::store::{MemoryStore, StoreError, StoreLimits};
use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const PASSWORD: &str = "411460f7c92d2124a67ea0f4cb5f85";
const KEY: [u8; 16] = [7; 16];

pub(super) struct Server {
    pub(super) machine: Machine,
    pub(super) store: MemoryStore,
    pub(super) now: Now,
    pub(super) received: HashMap<ConnectionId, Vec<Envelope>>,
    /// What WebSockets were sent.
    pub(super) texts: HashMap<ConnectionId, Vec<Value>>,
    pub(super) closed: Vec<ConnectionId>,
    pub(super) handled: HashMap<ConnectionId, usize>,
    pub(super) next: u64,
    /// Calls and jobs are kept instead of done.
    pub(super) is_paused: bool,
    pub(super) kept: Vec<Output>,
}

impl Server {
    pub(super) fn new() -> Self {
        Self::with(Config::default(), StoreLimits::default())
    }

    pub(super) fn with(config: Config, limits: StoreLimits) -> Self {
        let now = now();
        let key = Bytes::from_static(b"the server's key");
        let machine = Machine::new(now, config, key, &mut ChaCha20Rng::seed_from_u64(7));
        Self {
            machine,
            store: MemoryStore::new(limits, [7; 32]),
            now,
            received: HashMap::new(),
            texts: HashMap::new(),
            closed: Vec::new(),
            handled: HashMap::new(),
            next: 0,
            is_paused: false,
            kept: Vec::new(),
        }
    }

    pub(super) fn connect_from(&mut self, ip: &str, is_legacy: bool) -> ConnectionId {
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.machine.handle_opened(self.now, connection, ip.parse().unwrap(), is_legacy);
        self.drain();
        let first = self.take(connection);
        assert_eq!((first.len(), first[0].cmd, &first[0].data[..]), (1, 1, &b"the server's key"[..]));
        connection
    }

    pub(super) fn connect(&mut self) -> ConnectionId {
        self.connect_from("192.0.2.1", true)
    }

    pub(super) fn frame(&mut self, connection: ConnectionId, envelope: &Envelope) {
        self.machine.handle_frame(self.now, connection, envelope.to_frame().slice(4..));
        self.drain();
    }

    pub(super) fn send(&mut self, connection: ConnectionId, cmd: i32, msg_id: &str, body: &[u8]) {
        let data = Bytes::copy_from_slice(body);
        let msg_id = msg_id.to_owned();
        self.frame(connection, &Envelope { cmd, msg_id, is_encrypt: false, data });
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Frame { connection, frame } => {
                    let envelope = Envelope::parse(frame.slice(4..)).unwrap();
                    self.received.entry(connection).or_default().push(envelope);
                }
                Output::Text { connection, text } => {
                    self.texts.entry(connection).or_default().push(serde_json::from_str(&text).unwrap());
                }
                Output::Close(connection) => self.closed.push(connection),
                Output::Handled { connection, bytes } => {
                    *self.handled.entry(connection).or_default() += bytes
                }
                Output::Authenticated(_) => {}
                Output::Store { .. } | Output::Job { .. } if self.is_paused => self.kept.push(output),
                Output::Store { .. } | Output::Job { .. } => self.perform(output),
            }
        }
    }

    pub(super) fn call(&self, request: StoreRequest) -> Result<StoreReply, StoreError> {
        let mut called = call_store(&self.store, request);
        match called.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("not in memory"),
        }
    }

    pub(super) fn perform(&mut self, output: Output) {
        match output {
            Output::Store { id, request } => {
                let result = self.call(request);
                self.machine.handle_store_result(self.now, id, result);
            }
            Output::Job { id, job } => self.machine.handle_job_result(self.now, id, done(job)),
            _ => {}
        }
    }

    /// Does what was kept.
    pub(super) fn resume(&mut self) {
        self.is_paused = false;
        for output in std::mem::take(&mut self.kept) {
            self.perform(output);
            self.drain();
        }
    }

    pub(super) fn take(&mut self, connection: ConnectionId) -> Vec<Envelope> {
        self.received.remove(&connection).unwrap_or_default()
    }

    /// Sends a request and returns the code of its only response.
    pub(super) fn code(&mut self, connection: ConnectionId, cmd: i32, msg_id: &str, body: Value) -> i64 {
        self.send(connection, cmd, msg_id, body.to_string().as_bytes());
        let received = self.take(connection);
        assert_eq!(received.len(), 1, "{received:?}");
        assert_eq!((received[0].cmd, &*received[0].msg_id), (cmd, msg_id));
        let body: Value = serde_json::from_slice(&received[0].data).unwrap();
        assert!(body["msg"].is_string());
        body["code"].as_i64().unwrap()
    }

    pub(super) fn register(&mut self, name: &str) {
        let connection = self.connect();
        assert_eq!(self.code(connection, 102, "", json!({"username": name, "password": PASSWORD})), 100);
        self.machine.handle_closed(connection);
    }

    pub(super) fn try_login(&mut self, connection: ConnectionId, name: &str, password: &str) -> i64 {
        let body = json!({"version": "1", "username": name, "password": password});
        self.code(connection, 100, "", body)
    }

    pub(super) fn login(&mut self, name: &str) -> ConnectionId {
        let connection = self.connect();
        assert_eq!(self.try_login(connection, name, PASSWORD), 100);
        connection
    }

    pub(super) fn device(&mut self, id: &str) -> ConnectionId {
        let connection = self.connect();
        assert_eq!(self.code(connection, 101, "", json!({"version": 1, "id": id, "abilities": []})), 100);
        connection
    }

    /// Sends a message that is acknowledged with an empty body.
    pub(super) fn message(&mut self, connection: ConnectionId, id: &str, to: &str, msg: &str) {
        self.send(connection, 200, id, json!({"to": to, "msg": msg}).to_string().as_bytes());
        let (pushed, received): (Vec<_>, Vec<_>) =
            self.take(connection).into_iter().partition(|envelope| envelope.cmd == 201);
        self.received.insert(connection, pushed);
        assert_eq!(received.len(), 1, "{received:?}");
        assert_eq!((received[0].cmd, &*received[0].msg_id, received[0].data.len()), (200, id, 0));
    }

    /// The messages that were pushed: from, to, text and id of each.
    pub(super) fn pushes(&mut self, connection: ConnectionId) -> Vec<[String; 4]> {
        let received = self.take(connection);
        assert!(received.iter().all(|envelope| envelope.cmd == 201), "{received:?}");
        let arrays =
            received.iter().map(|envelope| serde_json::from_slice::<Vec<Value>>(&envelope.data).unwrap());
        arrays
            .flatten()
            .map(|message| {
                ["from", "to", "msg", "msgid"].map(|key| message[key].as_str().unwrap().to_owned())
            })
            .collect()
    }

    pub(super) fn fetch(&mut self, connection: ConnectionId) -> Vec<[String; 4]> {
        self.send(connection, 202, "", b"");
        self.pushes(connection)
    }

    pub(super) fn acknowledge(&mut self, connection: ConnectionId, ids: &[&str]) {
        let ids: Vec<_> = ids.iter().map(|id| json!({"msgid": id})).collect();
        self.send(connection, 201, "", json!(ids).to_string().as_bytes());
    }
}

impl Server {
    pub(super) fn fetch_ids(&mut self, connection: ConnectionId) -> Vec<String> {
        self.take(connection);
        self.fetch(connection).into_iter().map(|[_, _, _, id]| id).collect()
    }
}

/// A hash that a test can read, and a key exchange without RSA.
fn done(job: Job) -> JobResult {
    match job {
        Job::Hash { password } => JobResult::Hash(format!("hash of {password}")),
        Job::Verify { password, hash } => {
            JobResult::Verified(hash.as_deref() == Some(&*format!("hash of {password}")))
        }
        Job::SessionKey(ciphertext) => {
            JobResult::SessionKey(SessionKey::new(std::array::from_fn(|index| ciphertext[index])))
        }
    }
}

pub(super) fn quad(from: &str, to: &str, msg: &str, id: &str) -> [String; 4] {
    [from, to, msg, id].map(str::to_owned)
}

#[test]
fn a_heartbeat_is_answered_with_itself() {
    let mut server = Server::new();
    let client = server.connect();
    server.send(client, 0, "", b"");
    assert_eq!(server.take(client), [Envelope::default()]);
    assert_eq!(server.handled[&client], 0);
}

#[test]
fn everything_from_200_on_needs_a_login() {
    let mut server = Server::new();
    let client = server.connect();
    for cmd in [200, 201, 202, 203, 204, 205, i32::MAX] {
        assert_eq!(server.code(client, cmd, "m", json!({})), 300, "{cmd}");
    }
    server.send(client, 200, "m", b"no JSON");
    let text = br#"{"code":300,"msg":"you need login first"}"#;
    assert_eq!(server.take(client)[0].data[..], text[..]);
    assert!(server.closed.is_empty());
}

#[test]
fn an_unknown_cmd_is_unsupported() {
    let mut server = Server::new();
    server.register("alice");
    let client = server.connect();
    for cmd in [-1, 1, 3, 4, 103, 105, 199] {
        assert_eq!(server.code(client, cmd, "m", json!({})), 200, "{cmd}");
    }
    let alice = server.login("alice");
    for cmd in [205, 1000, i32::MAX] {
        assert_eq!(server.code(alice, cmd, "m", json!({})), 200, "{cmd}");
    }
}

#[test]
fn what_cannot_be_read_is_answered_with_cmd_3_and_the_message_id() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    for (cmd, body) in
        [(100, &b"{"[..]), (200, b"[]"), (201, b"{}"), (203, b"x"), (101, b"\xff"), (200, b"{\"to\":1}")]
    {
        server.send(alice, cmd, "id-1", body);
        let received = server.take(alice);
        assert_eq!((received[0].cmd, &*received[0].msg_id), (3, "id-1"), "{cmd}");
        assert_eq!(received[0].data[..], br#"{"code":200,"msg":"malformed message"}"#[..]);
    }
    let frame =
        Envelope { cmd: 200, msg_id: "id-2".to_owned(), data: b"x"[..].into(), is_encrypt: false }.to_frame();
    server.machine.handle_frame(server.now, alice, frame.slice(4..frame.len() - 1));
    server.drain();
    let received = server.take(alice);
    assert_eq!((received[0].cmd, &*received[0].msg_id), (3, "id-2"));
    assert_eq!(server.machine.counters().malformed, 7);
    server.message(alice, "id-3", "alice", "the connection stays open");
}

#[test]
fn a_user_registers_once_and_logs_in() {
    let mut server = Server::new();
    server.register("alice");
    let client = server.connect();
    let register = |name: &str, password: &str| json!({"username": name, "password": password});
    assert_eq!(server.code(client, 102, "", register("alice", "other")), 1001);
    for (name, password) in
        [("", "x"), ("bob", ""), ("b\nb", "x"), (&"b".repeat(129), "x"), ("bob", &"x".repeat(129))]
    {
        assert_eq!(server.code(client, 102, "", register(name, password)), 200, "{name}");
    }
    assert_eq!(server.code(client, 102, "", json!({"username": "bob"})), 200);
    assert_eq!(server.try_login(client, "alice", "0411460f7c92d2124a67ea0f4cb5f85"), 1002);
    assert_eq!(server.try_login(client, "nobody", PASSWORD), 1002);
    assert_eq!(server.try_login(client, "alice", PASSWORD), 100);
    assert_eq!(server.try_login(client, "alice", PASSWORD), 100, "again on the same connection");
    let counters = server.machine.counters();
    assert_eq!((counters.registrations, counters.logins, counters.refused_logins), (1, 2, 2));
    assert_eq!((counters.online, counters.conflicts), (1, 0));
    assert!(server.closed.is_empty());
}

#[test]
fn an_unknown_user_and_a_wrong_password_have_one_answer() {
    let mut server = Server::new();
    server.register("alice");
    let answers = ["alice", "nobody"].map(|name| {
        let client = server.connect();
        let body = json!({"username": name, "password": "wrong"}).to_string();
        server.send(client, 100, "", body.as_bytes());
        server.take(client).remove(0).data
    });
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn registration_can_be_closed() {
    let mut server =
        Server::with(Config { registration: false, ..Config::default() }, StoreLimits::default());
    let client = server.connect();
    assert_eq!(server.code(client, 102, "", json!({"username": "a", "password": "b"})), 200);
}

#[test]
fn a_newer_connection_of_an_id_takes_over_and_the_older_one_gets_cmd_103() {
    let mut server = Server::new();
    server.register("alice");
    let older = server.login("alice");
    let newer = server.login("alice");
    assert_eq!(server.take(older), [Envelope { cmd: 103, ..Envelope::default() }]);
    assert_eq!(server.closed, [older]);
    server.machine.handle_closed(older);
    server.message(newer, "1", "alice", "still online");
    assert_eq!(server.pushes(newer).len(), 1);
    let device = server.device("alice");
    assert_eq!(server.closed, [older], "a device of the same name is somebody else");
    let again = server.device("alice");
    assert_eq!(server.take(device), [Envelope { cmd: 103, ..Envelope::default() }]);
    assert_eq!(server.closed, [older, device]);
    assert_ne!(again, newer);
    assert_eq!(server.machine.counters().conflicts, 2);
}

#[test]
fn logout_closes_without_a_response() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    server.send(alice, 104, "", b"");
    assert_eq!((server.take(alice).len(), &server.closed[..]), (0, &[alice][..]));
    assert_eq!(server.machine.counters().online, 0);
}

#[test]
fn a_session_key_encrypts_what_the_client_encrypts() {
    let mut server = Server::new();
    server.register("alice");
    let client = server.connect();
    let key = SessionKey::new(KEY);
    for len in [0, 16, 255, 257] {
        let body = vec![0; len];
        server.send(client, 2, "", &body);
        assert_eq!(server.take(client)[0].data[..], br#"{"code":200,"msg":"wrong length"}"#[..], "{len}");
    }
    server.send(client, 2, "", &[7; 256]);
    let received = server.take(client);
    assert_eq!((received[0].cmd, received[0].is_encrypt), (2, false));
    assert_eq!(received[0].data[..], br#"{"code":100,"msg":"ok"}"#[..]);
    let body = json!({"username": "alice", "password": PASSWORD}).to_string();
    let encrypted = |cmd, id: &str, body: &[u8]| Envelope {
        cmd,
        msg_id: id.to_owned(),
        is_encrypt: true,
        data: key.encrypt(body).into(),
    };
    server.frame(client, &encrypted(100, "", body.as_bytes()));
    let received = server.take(client);
    assert!(received[0].is_encrypt);
    assert_eq!(key.decrypt(&received[0].data).unwrap(), br#"{"code":100,"msg":"ok"}"#);
    server.frame(client, &encrypted(200, "1", br#"{"to":"alice","msg":"hi"}"#));
    let received = server.take(client);
    assert_eq!((received[0].cmd, received[0].is_encrypt, received[0].data.len()), (200, true, 0));
    assert_eq!((received[1].cmd, received[1].is_encrypt, &*received[1].msg_id), (201, true, ""));
    let pushed = key.decrypt(&received[1].data).unwrap();
    assert_eq!(pushed, br#"[{"from":"alice","to":"alice","msg":"hi","msgid":"1"}]"#);
    server.send(client, 0, "", b"");
    assert!(!server.take(client)[0].is_encrypt, "a plain request has a plain response");
    let other = SessionKey::new([8; 16]).encrypt(b"{}").into();
    server.frame(client, &Envelope { cmd: 203, msg_id: "x".to_owned(), is_encrypt: true, data: other });
    assert_eq!(server.take(client)[0].cmd, 3, "a wrong key is a malformed message");
}

#[test]
fn an_encrypted_frame_without_a_key_closes() {
    let mut server = Server::new();
    let client = server.connect();
    server.frame(
        client,
        &Envelope { cmd: 100, is_encrypt: true, data: [0; 16][..].to_vec().into(), ..Envelope::default() },
    );
    assert_eq!((server.take(client).len(), &server.closed[..]), (0, &[client][..]));
}

#[test]
fn a_device_without_a_key_is_bound_to_its_network_on_a_legacy_listener_only() {
    let mut server = Server::new();
    let auth = |id: &str| json!({"version": 1, "id": id, "abilities": ["light", 2]});
    let strict = server.connect_from("192.0.2.1", false);
    assert_eq!(server.code(strict, 101, "", auth("lamp")), 200);
    server.device("lamp");
    server.device("lamp");
    assert_eq!(server.code(strict, 101, "", auth("lamp")), 200, "no key on a strict listener");
    let elsewhere = server.connect_from("198.51.100.1", true);
    assert_eq!(server.code(elsewhere, 101, "", auth("lamp")), 200, "another network");
    let near = server.connect_from("192.0.2.77", true);
    assert_eq!(server.code(near, 101, "", auth("lamp")), 100, "the same IPv4 /24");
    assert_eq!(server.code(near, 101, "", json!({"version": 1})), 200);
    server.send(near, 101, "", b"{}");
    assert_eq!(server.take(near)[0].data[..], br#"{"code":200,"msg":"id is null"}"#[..]);
}

#[test]
fn a_device_key_is_bound_at_its_first_use() {
    let mut server = Server::new();
    let auth = |key: &str| json!({"version": 1, "id": "lamp", "abilities": [], "deviceKey": key});
    server.device("lamp");
    let client = server.connect_from("192.0.2.9", false);
    assert_eq!(server.code(client, 101, "", auth("short")), 200);
    let elsewhere = server.connect_from("198.51.100.1", false);
    assert_eq!(server.code(elsewhere, 101, "", auth("a key of sixteen bytes")), 200, "another network");
    assert_eq!(server.code(client, 101, "", auth("a key of sixteen bytes")), 100);
    assert_eq!(server.code(elsewhere, 101, "", auth("a key of sixteen bytes")), 100, "the key is enough");
    assert_eq!(server.code(elsewhere, 101, "", auth("another key of 16 bytes")), 200);
    let legacy = server.connect();
    assert_eq!(server.code(legacy, 101, "", json!({"version": 1, "id": "lamp"})), 200, "it has a key now");
}

#[test]
fn devices_are_added_and_deleted_once() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    let device = json!({"deviceId": "lamp"});
    assert_eq!(server.code(alice, 204, "", device.clone()), 2002);
    assert_eq!(server.code(alice, 203, "", device.clone()), 100);
    assert_eq!(server.code(alice, 203, "", device.clone()), 2001);
    assert_eq!(server.code(alice, 204, "", device.clone()), 100);
    assert_eq!(server.code(alice, 204, "", device), 2002);
    assert_eq!(server.code(alice, 203, "", json!({})), 200);
}

#[test]
fn a_silent_client_is_closed_after_150_seconds() {
    let mut server = Server::new();
    let (silent, active) = (server.connect(), server.connect());
    let start = server.now;
    server.now = start.after(Duration::from_secs(149));
    server.machine.handle_timeout(server.now);
    server.send(active, 0, "", b"");
    assert!(server.closed.is_empty());
    server.now = start.after(Duration::from_secs(150));
    server.machine.handle_timeout(server.now);
    server.drain();
    assert_eq!(server.closed, [silent]);
}

#[test]
fn messages_expire_after_30_days() {
    let mut server = Server::new();
    server.register("alice");
    let alice = server.login("alice");
    server.message(alice, "1", "alice", "x");
    let day = Duration::from_secs(24 * 3600);
    for (days, stored) in [(29, 1), (2, 0)] {
        server.now = server.now.after(days * day);
        server.machine.handle_timeout(server.now);
        server.drain();
        let alice = server.login("alice");
        assert_eq!(server.fetch(alice).len(), stored);
    }
    assert_eq!(server.machine.counters().expired, 1);
}

#[test]
fn a_flood_of_logins_is_throttled_and_the_owner_elsewhere_is_not() {
    let mut server = Server::new();
    server.register("alice");
    let attacker = server.connect_from("198.51.100.66", true);
    let codes: Vec<_> = (0..30).map(|_| server.try_login(attacker, "alice", "guess")).collect();
    assert_eq!(codes.iter().filter(|code| **code == 1002).count(), 10);
    assert!(codes[10..].iter().all(|code| *code == 200), "try again later");
    assert_eq!(server.try_login(attacker, "alice", PASSWORD), 200, "even with the password");
    server.login("alice");
    server.now = server.now.after(Duration::from_secs(10));
    assert_eq!(server.try_login(attacker, "alice", "guess"), 1002, "one more after a while");
    let other: Vec<_> =
        (0..100).map(|index| server.try_login(attacker, &format!("user{index}"), "guess")).collect();
    assert!(other[..20].iter().all(|code| *code == 1002) && other[90..].iter().all(|code| *code == 200));
}

#[test]
fn one_network_registers_few_users_and_devices_and_others_are_served() {
    let mut server = Server::new();
    let flood = server.connect_from("198.51.100.66", true);
    let mut codes = Vec::new();
    for index in 0..10_000 {
        let body = match index % 2 {
            0 => (102, json!({"username": format!("u{index}"), "password": "x"})),
            _ => (101, json!({"id": format!("d{index}")})),
        };
        codes.push(server.code(flood, body.0, "", body.1));
    }
    assert_eq!(codes.iter().filter(|code| **code == 100).count(), 20);
    server.register("alice");
    assert_eq!(server.machine.counters().throttled, 10_000 - 20);
}

#[test]
fn jobs_of_one_network_are_bounded() {
    let mut server = Server::new();
    server.is_paused = true;
    let mut clients = Vec::new();
    for index in 0..40 {
        let client = server.connect_from("198.51.100.66", true);
        let body = json!({"username": format!("u{index}"), "password": "x"}).to_string();
        server.send(client, 100, "", body.as_bytes());
        clients.push(client);
    }
    // The accounts are looked up; then the passwords wait.
    for output in std::mem::take(&mut server.kept) {
        server.perform(output);
        server.drain();
    }
    let answered: usize = clients.iter().map(|client| server.take(*client).len()).sum();
    assert_eq!((server.kept.len(), answered), (16, 24));
    let exchange = server.connect_from("203.0.113.5", true);
    server.send(exchange, 2, "", &[7; 256]);
    assert!(matches!(server.kept.last(), Some(Output::Job { job: Job::SessionKey(_), .. })));
    server.resume();
    assert!(clients.iter().map(|client| server.take(*client).len()).sum::<usize>() == 16);
}

#[test]
fn requests_that_wait_hold_bounded_memory() {
    let limits = Limits { request_bytes: 900, ..Limits::default() };
    let mut server = Server::with(Config { limits, ..Config::default() }, StoreLimits::default());
    server.register("alice");
    let alice = server.login("alice");
    server.is_paused = true;
    let body = json!({"to": "alice", "msg": "x".repeat(300)}).to_string();
    for index in 0..5 {
        server.send(alice, 200, &index.to_string(), body.as_bytes());
    }
    let refused: Vec<_> = server.take(alice).into_iter().map(|envelope| envelope.msg_id).collect();
    assert_eq!(refused, ["2", "3", "4"]);
    server.resume();
    server.take(alice);
    server.message(alice, "6", "alice", "there is room again");
    assert_eq!(server.pushes(alice).len(), 1);
}

#[test]
fn too_many_key_exchanges_of_a_network_close() {
    let limits = Limits { key_exchanges_per_network: Rate::new(1.0, 2.0), ..Limits::default() };
    let mut server = Server::with(Config { limits, ..Config::default() }, StoreLimits::default());
    let client = server.connect();
    for _ in 0..3 {
        server.send(client, 2, "", &[7; 256]);
    }
    assert_eq!((server.take(client).len(), &server.closed[..]), (2, &[client][..]));
}

#[test]
fn results_for_closed_connections_are_ignored() {
    let mut server = Server::new();
    server.register("alice");
    server.is_paused = true;
    let client = server.connect();
    let body = json!({"username": "alice", "password": PASSWORD}).to_string();
    server.send(client, 100, "", body.as_bytes());
    server.send(client, 0, "", b"");
    server.machine.handle_closed(client);
    server.resume();
    assert_eq!((server.take(client).len(), server.machine.counters().online), (0, 0));
    server.machine.handle_job_result(server.now, RequestId(9999), JobResult::Failed);
    server.login("alice");
}
