//! The modern protocol at `/messages`: a running server, and a client that signs by hand (`docs/wire/messages.md`).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use super::{CHEAP, Messaging, PATIENCE};
use crate::authority::Authority;
use crate::metrics;
use crate::test_server::{Lines, TestServer, free_ports};
use crate::transports;

/// A key of the test: of an identity or of a device.
struct Key(Ed25519KeyPair);

impl Key {
    fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// Signs the domain and the fields as the page describes it.
    fn sign(&self, domain: &str, fields: &[&[u8]]) -> String {
        let mut bytes = [domain.as_bytes(), &[0]].concat();
        for field in fields {
            bytes.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
            bytes.extend(*field);
        }
        BASE64URL_NOPAD.encode(self.0.sign(&bytes).as_ref())
    }
}

/// A connected client.
pub(super) struct Client<S = TcpStream> {
    pub(super) socket: WebSocket<S>,
    challenge: Vec<u8>,
    next: u64,
    events: Vec<Value>,
}

fn stream(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl Client<TcpStream> {
    pub(super) fn connect(server: SocketAddr) -> Self {
        Self::connect_with(server, &[])
    }

    fn connect_with(server: SocketAddr, headers: &[(&'static str, &str)]) -> Self {
        Self::open(server, stream(server), headers)
    }
}

impl<S: Read + Write> Client<S> {
    fn open(server: SocketAddr, stream: S, headers: &[(&'static str, &str)]) -> Self {
        let mut request = format!("ws://{server}/messages").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, _) = client(request, stream).unwrap_or_else(|error| panic!("{error}"));
        let mut client = Self { socket, challenge: Vec::new(), next: 0, events: Vec::new() };
        let hello = client.read().unwrap();
        assert_eq!((&hello["type"], &hello["version"]), (&json!("hello"), &json!(1)));
        client.challenge = BASE64URL_NOPAD.decode(hello["challenge"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(client.challenge.len(), 32);
        client
    }

    fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Reads an object; the code of the close frame at the end.
    fn read(&mut self) -> Result<Value, Option<CloseCode>> {
        loop {
            match self.socket.read().map_err(|_| None)? {
                Message::Text(text) => return Ok(serde_json::from_str(&text).unwrap()),
                Message::Close(close) => return Err(close.map(|close| close.code)),
                _ => {}
            }
        }
    }

    /// Sends a request and returns its answer; keeps events.
    fn ask(&mut self, mut request: Value) -> Value {
        self.next += 1;
        request["id"] = json!(self.next);
        self.send(&request.to_string());
        loop {
            let read = self.read().unwrap();
            if read["id"] == self.next {
                return read;
            }
            self.events.push(read);
        }
    }

    #[track_caller]
    pub(super) fn ok(&mut self, request: Value) -> Value {
        let answer = self.ask(request);
        assert_eq!(answer["type"], "ok", "{answer}");
        answer
    }

    #[track_caller]
    fn refused(&mut self, request: Value, code: &str) {
        let answer = self.ask(request);
        assert_eq!(answer["code"], code, "{answer}");
    }

    fn event(&mut self) -> Value {
        self.try_event().unwrap()
    }

    /// Returns the next event of a server that may end.
    pub(super) fn try_event(&mut self) -> Result<Value, Option<CloseCode>> {
        match self.events.is_empty() {
            true => self.read(),
            false => Ok(self.events.remove(0)),
        }
    }

    fn register(&mut self, user: &str, identity: u8, device: u8) -> i64 {
        let key = Key::new(identity);
        let proof = key.sign("ginnel register v1", &[&self.challenge, user.as_bytes(), key.public()]);
        let answer = self.ok(json!({
            "type": "register", "user": user, "identity_key": BASE64URL_NOPAD.encode(key.public()),
            "proof": proof, "device": device_of(user, identity, device),
        }));
        answer["device"].as_i64().unwrap()
    }

    pub(super) fn log_in(&mut self, user: &str, device: u8) -> Value {
        let key = Key::new(device);
        let signature = key.sign("ginnel login v1", &[&self.challenge, user.as_bytes(), key.public()]);
        let device_key = BASE64URL_NOPAD.encode(key.public());
        self.ok(json!({"type": "login", "user": user, "device_key": device_key, "signature": signature}))
    }
}

fn device_of(user: &str, identity: u8, device: u8) -> Value {
    let (key, encryption_key) = (Key::new(device), [device; 32]);
    let fields = [user.as_bytes(), key.public(), &encryption_key];
    json!({
        "label": "pc", "signing_key": BASE64URL_NOPAD.encode(key.public()),
        "encryption_key": BASE64URL_NOPAD.encode(&encryption_key),
        "signature": Key::new(identity).sign("ginnel device key v1", &fields),
    })
}

fn to_device(to: &str, id: &str, device: i64) -> Value {
    let body = BASE64URL_NOPAD.encode(b"encrypted");
    json!({"type": "send", "to": to, "message_id": id, "copies": [{"device": device, "body": body}]})
}

impl Messaging {
    /// Registers a user with a device, and logs the device in.
    pub(super) fn websocket(&self, user: &str, seed: u8) -> (Client<TcpStream>, i64) {
        let mut client = Client::connect(self.server.address);
        let number = client.register(user, seed, seed + 1);
        assert_eq!(client.log_in(user, seed + 1)["device"], number);
        (client, number)
    }
}

#[test]
fn a_message_is_sent_acknowledged_and_reported_to_its_sender() {
    let messaging = Messaging::start(CHEAP);
    let (mut alice, alice_number) = messaging.websocket("alice", 1);
    let (mut bob, number) = messaging.websocket("bob", 11);
    alice.ok(json!({"type": "follow", "after": 0}));
    bob.ok(json!({"type": "follow", "after": 0}));
    let send = to_device("user:bob", "m1", number);
    assert_eq!(alice.ok(send.clone())["state"], "stored");
    assert_eq!(alice.ok(send)["duplicate"], true);
    let message = bob.event();
    assert_eq!(
        [&message["from"], &message["message_id"], &message["body"], &message["device"]],
        [&json!("user:alice"), &json!("m1"), &json!("ZW5jcnlwdGVk"), &json!(alice_number)]
    );
    bob.ok(json!({"type": "ack", "up_to": message["sequence"]}));
    let receipt = alice.event();
    assert_eq!(
        receipt,
        json!({"type": "receipt", "sequence": 1, "state": "delivered", "message_id": "m1", "from": "user:bob", "device": number})
    );
    assert_eq!(bob.ok(json!({"type": "fetch", "after": 0, "limit": 10}))["messages"], json!([]));
    let value = |name: &str| metrics::value(messaging.server.address, &format!("ginnel_messaging_{name}"));
    assert_eq!((value("websockets"), value("online"), value("duplicate_messages_total")), (2, 2, 1));
}

#[test]
fn what_was_stored_outlives_a_killed_server_and_the_epoch_stays() {
    let mut messaging = Messaging::start(CHEAP);
    let (mut alice, _) = messaging.websocket("alice", 1);
    let (_, number) = messaging.websocket("bob", 11);
    for id in 0..50 {
        alice.ok(to_device("user:bob", &format!("m{id}"), number));
    }
    let state = Client::connect(messaging.server.address).log_in("bob", 12);
    messaging.server.process.signal("KILL");
    messaging.server.process.wait(PATIENCE);
    messaging.server.begin();
    let mut bob = Client::connect(messaging.server.address);
    let again = bob.log_in("bob", 12);
    assert_eq!((&again["epoch"], &again["last_sequence"]), (&state["epoch"], &json!(50)));
    bob.ok(json!({"type": "follow", "after": 0}));
    for id in 0..50 {
        let message = bob.event();
        assert_eq!(
            (&message["message_id"], &message["sequence"]),
            (&json!(format!("m{id}")), &json!(id + 1))
        );
    }
    bob.ok(json!({"type": "ack", "up_to": 20}));
    messaging.server.process.signal("KILL");
    messaging.server.process.wait(PATIENCE);
    messaging.server.begin();
    let mut bob = Client::connect(messaging.server.address);
    assert_eq!(bob.log_in("bob", 12)["stored"]["messages"], 30);
    let page = bob.ok(json!({"type": "fetch", "after": 0, "limit": 1}));
    assert_eq!((&page["messages"][0]["sequence"], &page["more"]), (&json!(21), &json!(true)));
}

#[test]
fn a_user_of_the_tcp_protocol_and_one_of_the_modern_protocol_write_to_each_other() {
    let messaging = Messaging::start(CHEAP);
    let mut old = messaging.user("old");
    let (mut alice, number) = messaging.websocket("alice", 1);
    alice.ok(json!({"type": "follow", "after": 0}));
    let listed = alice.ok(json!({"type": "devices", "party": "user:old"}));
    assert_eq!((&listed["legacy"], &listed["devices"]), (&json!(true), &json!([])));
    alice.ok(json!({"type": "send", "to": "user:old", "message_id": "m1", "text": "hello"}));
    let (cmd, _, _, data) = old.frame();
    assert_eq!((cmd, &*data), (201, &br#"[{"from":"alice","to":"old","msg":"hello","msgid":"m1"}]"#[..]));
    old.send(201, "", br#"[{"msgid":"m1"}]"#);
    let receipt = alice.event();
    assert_eq!((&receipt["type"], &receipt["from"]), (&json!("receipt"), &json!("user:old")));
    old.send(200, "r1", br#"{"to":"alice","msg":"hello back"}"#);
    assert_eq!(old.frame(), (200, "r1".to_owned(), false, vec![]));
    let message = alice.event();
    assert_eq!(
        [&message["from"], &message["text"], &message["encrypted"]],
        [&json!("user:old"), &json!("hello back"), &json!(false)]
    );
    alice.refused(to_device("user:old", "m2", number), "devices_changed");
    alice.refused(
        json!({"type": "send", "to": "user:alice", "message_id": "m3", "text": "x"}),
        "plaintext_refused",
    );
}

#[test]
fn a_second_device_changes_what_must_be_sent_and_a_second_connection_replaces_the_first() {
    let messaging = Messaging::start(CHEAP);
    let (mut alice, _) = messaging.websocket("alice", 1);
    let (mut bob, first) = messaging.websocket("bob", 11);
    let mut add = device_of("bob", 11, 13);
    add["type"] = json!("add_device");
    let second = bob.ok(add)["device"].as_i64().unwrap();
    let answer = alice.ask(to_device("user:bob", "m1", first));
    assert_eq!(answer["code"], "devices_changed");
    assert_eq!(answer["devices"][1]["device"], second);
    let mut send = to_device("user:bob", "m1", first);
    send["copies"].as_array_mut().unwrap().push(json!({"device": second, "body": "AQ"}));
    alice.ok(send);
    let mut other = Client::connect(messaging.server.address);
    other.log_in("bob", 12);
    assert_eq!(bob.event(), json!({"type": "closing", "reason": "replaced"}));
    assert_eq!(bob.read(), Err(Some(CloseCode::Away)));
    let mut removed = Client::connect(messaging.server.address);
    removed.log_in("bob", 13);
    removed.ok(json!({"type": "remove_device", "device": second}));
    assert_eq!(removed.event(), json!({"type": "closing", "reason": "device_removed"}));
    other.ok(json!({"type": "logout"}));
    assert!(other.read().is_err());
}

#[test]
fn a_password_is_accepted_inside_tls_and_behind_a_proxy_that_the_client_reached_by_https() {
    let authority = Authority::new();
    let rest = format!("[messaging]\nenabled = true\nport = {}\n{CHEAP}", free_ports());
    let lines = Lines { top: "workers = 1\ntrusted_proxies = [\"127.0.0.1\"]", turn: &rest };
    let server = TestServer::with_tls(lines, Some(&authority));
    let register = json!({"type": "register", "user": "alice", "password": "secret"});
    let login = json!({"type": "login", "user": "alice", "password": "secret"});
    let address = server.address;
    let plain: [&[(&'static str, &str)]; 3] = [
        &[],
        &[("x-forwarded-for", "192.0.2.1")],
        &[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "http")],
    ];
    for headers in plain {
        let mut client = Client::connect_with(address, headers);
        client.refused(register.clone(), "tls_required");
        client.refused(login.clone(), "tls_required");
    }
    let proxied = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")];
    Client::connect_with(address, &proxied).ok(register);
    let inside = transports::tls(stream(server.tls), &authority);
    let mut client = Client::open(address, inside, &[]);
    client.refused(json!({"type": "login", "user": "alice", "password": "wrong"}), "wrong_credentials");
    client.ok(login);
}

#[test]
fn texts_that_are_no_requests_binary_and_long_messages_close_only_their_connection() {
    let messaging = Messaging::start(CHEAP);
    let (mut alice, number) = messaging.websocket("alice", 1);
    let mut client = Client::connect(messaging.server.address);
    for _ in 0..10 {
        client.send("[1, 2]");
        assert_eq!(client.event()["code"], "malformed");
    }
    assert_eq!(client.event(), json!({"type": "closing", "reason": "malformed"}));
    for (message, code) in [
        (Message::binary(vec![1, 2]), CloseCode::Unsupported),
        (Message::text("x".repeat(5000)), CloseCode::Size),
    ] {
        let mut client = Client::connect(messaging.server.address);
        client.socket.send(message).unwrap();
        assert_eq!(client.read(), Err(Some(code)));
    }
    // A client that has logged in sends more.
    alice.ok(json!({"type": "ping", "x": "x".repeat(200_000)}));
    alice.ok(json!({
        "type": "send", "to": "user:alice", "message_id": "m",
        "copies": [{"device": number, "body": BASE64URL_NOPAD.encode(&[7; 65_536])}],
    }));
    alice.send(&"x".repeat(256 * 1024 + 1));
    assert_eq!(alice.read(), Err(Some(CloseCode::Size)));
}

#[test]
fn a_burst_of_requests_whose_answers_are_not_read_stays_bounded() {
    let messaging = Messaging::start(&format!(
        "[messaging.limits]\nrequests_per_connection = {{ burst = 1000000, per_second = 1000000 }}\n{CHEAP}"
    ));
    let (mut alice, number) = messaging.websocket("alice", 1);
    let body = BASE64URL_NOPAD.encode(&[7; 60_000]);
    for id in 0..20 {
        let copies = json!([{"device": number, "body": body}]);
        alice.ok(json!({"type": "send", "to": "user:alice", "message_id": id.to_string(), "copies": copies}));
    }
    let before = messaging.server.resident_kib();
    // Each answer has 80 KB: together 80 MB, of which the outbox holds little.
    let mut writing = alice.socket.get_ref().try_clone().unwrap();
    let requests: Vec<u8> = (0..1000_u32)
        .flat_map(|id| {
            let text = format!(r#"{{"id":{},"type":"fetch","after":0,"limit":1}}"#, id + 100_000);
            let header = [0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
            [&header[..], text.as_bytes()].concat()
        })
        .collect();
    let writer = std::thread::spawn(move || writing.write_all(&requests).unwrap());
    let (mut other, _) = messaging.websocket("bob", 11);
    for _ in 0..50 {
        other.ok(json!({"type": "ping"}));
    }
    let grown = messaging.server.resident_kib().saturating_sub(before);
    assert!(grown < 20_000, "{grown} KiB");
    for id in 100_000..101_000 {
        assert_eq!(alice.read().unwrap()["id"], id);
    }
    writer.join().unwrap();
    alice.ok(json!({"type": "ping"}));
}

#[test]
fn pages_of_other_origins_and_servers_without_messaging_refuse_the_websocket() {
    let status = |address: SocketAddr, origin: &str| {
        let mut stream = stream(address);
        write!(
            stream,
            "GET /messages HTTP/1.1\r\nHost: {address}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{origin}\r\n"
        )
        .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer[9..].to_vec()).unwrap()
    };
    let rest = format!(
        "[messaging]\nenabled = true\nport = {}\n{CHEAP}[signaling]\norigins = [\"https://example.org\"]\n",
        free_ports()
    );
    let server = TestServer::on_loopback(&rest);
    assert_eq!(status(server.address, ""), "101");
    assert_eq!(status(server.address, "Origin: https://example.org\r\n"), "101");
    assert_eq!(status(server.address, "Origin: https://example.com\r\n"), "403");
    assert!(server.process.printed().contains("tcp, legacy: devices need no key · /messages by WebSocket"));
    let without = TestServer::on_loopback("");
    assert_eq!(status(without.address, ""), "404");
}

#[test]
fn a_server_that_stops_tells_its_clients() {
    let mut messaging = Messaging::start(CHEAP);
    let (mut alice, _) = messaging.websocket("alice", 1);
    messaging.server.process.terminate();
    assert_eq!(alice.event(), json!({"type": "closing", "reason": "shutdown"}));
    messaging.server.process.succeed(PATIENCE);
}
