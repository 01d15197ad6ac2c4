//! `cargo bench --bench messaging`: a server with messaging on loopback. Durable sends a second at 1, 16 and 256 TCP connections, the time
//! from a send to its push, an inbox of 10 000 messages fetched in pages, and the resident memory of idle sessions over TCP and WebSocket.
//! With the argument `idle` only the last.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use data_encoding::BASE64URL_NOPAD;
use ginnel::internals::load::histogram::Histogram;
use ginnel::internals::messaging::wire::Envelope;
use ginnel::internals::net::time;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Connections, and how many messages they send in all.
const LOADS: [(usize, u64); 3] = [(1, 500), (16, 8_000), (256, 30_000)];
const ROUNDS: usize = 3;
const MAILBOXES: u64 = 64;
const INBOX: usize = 10_000;
const PACED: usize = 2000;
const SESSIONS: usize = 15_000;
const BODY: [u8; 200] = [b'x'; 200];

struct Server {
    process: Child,
    /// Of the TCP protocol, and of HTTP.
    address: SocketAddr,
    http: SocketAddr,
    _folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("ginnel.toml");
        let plenty = "{ burst = 1000000, per_second = 1000000 }";
        let text = format!(
            "state = {:?}\nlisten = ['127.0.0.1']\npublic = ['127.0.0.1']\nport = 23478\naux_port = 0\n[tls]\nport = 0\n\
             [limits]\nconnections_per_address = 100000\n[turn]\nmax_allocations = 1000\n[messaging]\nenabled = true\nport = 23480\n[messaging.limits]\n\
             registrations_per_network = {plenty}\nlogins_per_network = {plenty}\nrequests_per_connection = {plenty}\n\
             [messaging.times]\nidle = 86400\n",
            folder.path().join("state")
        );
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        command.args(["serve", "--config"]).arg(&path).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let is_ready = lines.any(|line| line.unwrap().starts_with("Ready."));
        assert!(is_ready, "the server did not start");
        std::thread::spawn(move || lines.count());
        let [address, http] = [23_480, 23_478].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self { process, address, http, _folder: folder }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client(stream);
        assert_eq!(client.receive().cmd, 1);
        client
    }

    fn device(&self, id: &str) -> Client {
        let mut client = self.connect();
        client.authenticate(id);
        client.expect_ok();
        client
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client(TcpStream);

impl Client {
    fn send(&mut self, cmd: i32, msg_id: &str, data: Vec<u8>) {
        let envelope = Envelope { cmd, msg_id: msg_id.to_owned(), is_encrypt: false, data: data.into() };
        self.0.write_all(&envelope.to_frame()).unwrap();
    }

    fn receive(&mut self) -> Envelope {
        let mut header = [0; 4];
        self.0.read_exact(&mut header).unwrap();
        let mut data = vec![0; u32::from_be_bytes(header) as usize];
        self.0.read_exact(&mut data).unwrap();
        Envelope::parse(data.into()).unwrap()
    }

    fn authenticate(&mut self, id: &str) {
        self.send(101, "", json!({"version": "1", "id": id, "abilities": []}).to_string().into_bytes());
    }

    fn expect_ok(&mut self) {
        assert!(self.receive().data.starts_with(br#"{"code":100"#));
    }

    fn message(&mut self, to: &str, id: &str) {
        let text = std::str::from_utf8(&BODY).unwrap();
        self.send(200, id, json!({"to": to, "msg": text}).to_string().into_bytes());
    }

    fn expect_acknowledgement(&mut self) {
        let answer = self.receive();
        assert!(answer.cmd == 200 && answer.data.is_empty(), "{answer:?}");
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Each connection sends one message after the other's acknowledgement; returns messages a second, and the times of all.
fn sends(server: &Server, (connections, messages): (usize, u64), round: usize) -> (f64, Histogram) {
    let clients: Vec<_> =
        (0..connections).map(|index| server.device(&format!("s{round}-{connections}-{index}"))).collect();
    let (next, barrier) = (AtomicU64::new(0), Barrier::new(connections + 1));
    let mut times = Histogram::default();
    let mut elapsed = Duration::ZERO;
    std::thread::scope(|scope| {
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let (next, barrier) = (&next, &barrier);
                scope.spawn(move || {
                    let mut times = Vec::new();
                    barrier.wait();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= messages {
                            return times;
                        }
                        let begun = time::mono();
                        client.message(&format!("to{}", number % MAILBOXES), &number.to_string());
                        client.expect_acknowledgement();
                        times.push((time::mono() - begun).as_nanos() as u64);
                    }
                })
            })
            .collect();
        barrier.wait();
        let begun = time::mono();
        for task in tasks {
            task.join().unwrap().into_iter().for_each(|nanoseconds| times.record(nanoseconds));
        }
        elapsed = time::mono() - begun;
    });
    (messages as f64 / elapsed.as_secs_f64(), times)
}

/// The time from a send to the push at the recipient, one message at a time.
fn delivery(server: &Server) -> Histogram {
    let (mut sender, mut recipient) = (server.device("sender"), server.device("recipient"));
    let mut times = Histogram::default();
    for number in 0..PACED {
        let begun = time::mono();
        sender.message("recipient", &number.to_string());
        assert_eq!(recipient.receive().cmd, 201);
        times.record((time::mono() - begun).as_nanos() as u64);
        sender.expect_acknowledgement();
        recipient.send(201, "", json!([{"msgid": number.to_string()}]).to_string().into_bytes());
    }
    times
}

/// Fills an inbox, and fetches and acknowledges it; returns the pages and the time.
fn inbox(server: &Server) -> (usize, Duration) {
    let mut recipient = server.device("inbox");
    // A sender that is no contact may not fill a mailbox.
    recipient.send(203, "contact", json!({"deviceId": "filler"}).to_string().into_bytes());
    recipient.expect_ok();
    drop(recipient);
    let mut sender = server.device("filler");
    for first in (0..INBOX).step_by(100) {
        (first..first + 100).for_each(|number| sender.message("inbox", &number.to_string()));
        (0..100).for_each(|_| sender.expect_acknowledgement());
    }
    let mut client = server.device("inbox");
    let begun = time::mono();
    client.send(202, "", Vec::new());
    let (mut received, mut pages) = (0, 0);
    while received < INBOX {
        let pushed: Vec<Value> = serde_json::from_slice(&client.receive().data).unwrap();
        assert_eq!(pushed[0]["msgid"], received.to_string());
        (received, pages) = (received + pushed.len(), pages + 1);
        let acknowledgement: Value =
            pushed.iter().map(|message| json!({"msgid": message["msgid"]})).collect();
        client.send(201, "", acknowledgement.to_string().into_bytes());
    }
    (pages, time::mono() - begun)
}

/// A client of the WebSocket `/messages`.
struct WebClient {
    stream: TcpStream,
    challenge: Vec<u8>,
}

impl WebClient {
    fn connect(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.http).unwrap();
        stream.set_nodelay(true).unwrap();
        let request = "GET /messages HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let mut client = Self { stream, challenge: Vec::new() };
        let hello = client.receive();
        client.challenge = BASE64URL_NOPAD.decode(hello["challenge"].as_str().unwrap().as_bytes()).unwrap();
        client
    }

    /// Sends a text under the mask 0.
    fn send(&mut self, object: &Value) {
        let text = object.to_string();
        let mut frame = vec![0x81];
        match u8::try_from(text.len()).ok().filter(|length| *length < 126) {
            Some(length) => frame.push(0x80 | length),
            None => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.write_all(&frame).unwrap();
    }

    /// Receives the next text. The server pings a session every 30 s, also while others are still being opened.
    fn receive(&mut self) -> Value {
        loop {
            let mut header = [0; 2];
            self.stream.read_exact(&mut header).unwrap();
            let mut length = u16::from(header[1]);
            if length == 126 {
                let mut long = [0; 2];
                self.stream.read_exact(&mut long).unwrap();
                length = u16::from_be_bytes(long);
            }
            let mut data = vec![0; length.into()];
            self.stream.read_exact(&mut data).unwrap();
            if header[0] == 0x81 {
                return serde_json::from_slice(&data).unwrap();
            }
            assert_eq!(header[0], 0x89, "{}", String::from_utf8_lossy(&data));
        }
    }

    /// Receives the answer to a request, behind events that belong to none.
    fn expect_ok(&mut self) {
        let answer = std::iter::repeat_with(|| self.receive()).find(|text| !text["id"].is_null()).unwrap();
        assert_eq!(answer["type"], "ok", "{answer}");
    }

    /// Registers an account with a device, and logs the device in.
    fn authenticate(&mut self, key: &Ed25519KeyPair, number: usize) {
        let (user, public) = (format!("u{number}"), key.public_key().as_ref());
        let sign = |domain: &str, fields: &[&[u8]]| {
            let mut bytes = [domain.as_bytes(), &[0]].concat();
            for field in fields {
                bytes.extend((field.len() as u32).to_be_bytes());
                bytes.extend(*field);
            }
            BASE64URL_NOPAD.encode(key.sign(&bytes).as_ref())
        };
        let encryption_key = [9; 32];
        let device = json!({"label": "x", "signing_key": BASE64URL_NOPAD.encode(public),
            "encryption_key": BASE64URL_NOPAD.encode(&encryption_key),
            "signature": sign("ginnel device key v1", &[user.as_bytes(), public, &encryption_key])});
        let proof = sign("ginnel register v1", &[&self.challenge, user.as_bytes(), public]);
        let signature = sign("ginnel login v1", &[&self.challenge, user.as_bytes(), public]);
        let key = BASE64URL_NOPAD.encode(public);
        self.send(&json!({"id": 1, "type": "register", "user": user, "identity_key": key, "proof": proof,
            "device": device}));
        self.send(
            &json!({"id": 2, "type": "login", "user": user, "device_key": key, "signature": signature}),
        );
    }
}

/// Returns the resident memory in KiB of one of the sessions that `open` opens by number, and the sessions.
fn resident_each<T>(server: &Server, open: impl Fn(&[usize]) -> Vec<T>) -> (f64, Vec<T>) {
    let open = |numbers: std::ops::Range<usize>| -> Vec<T> {
        numbers.collect::<Vec<_>>().chunks(50).flat_map(&open).collect()
    };
    // What the process needs once does not count.
    let mut sessions = open(0..500);
    let before = server.resident_kib();
    sessions.extend(open(500..500 + SESSIONS));
    let each = (server.resident_kib() - before) as f64 / SESSIONS as f64;
    (each, sessions)
}

/// Returns the resident memory of one idle session over TCP in KiB.
fn idle_tcp(is_authenticated: bool) -> f64 {
    let server = Server::start();
    let (each, mut sessions) = resident_each(&server, |batch| {
        let mut clients: Vec<_> = batch.iter().map(|_| server.connect()).collect();
        if is_authenticated {
            let numbered = clients.iter_mut().zip(batch);
            numbered.for_each(|(client, number)| client.authenticate(&format!("device-{number}")));
            clients.iter_mut().for_each(Client::expect_ok);
        }
        clients
    });
    for client in &mut sessions {
        // It was not evicted.
        client.send(0, "", Vec::new());
        assert_eq!(client.receive(), Envelope::default());
    }
    each
}

/// Returns the resident memory of one idle session over WebSocket in KiB.
fn idle_websocket(is_authenticated: bool) -> f64 {
    let server = Server::start();
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let (each, mut sessions) = resident_each(&server, |batch| {
        let mut clients: Vec<_> = batch.iter().map(|_| WebClient::connect(&server)).collect();
        if is_authenticated {
            clients.iter_mut().zip(batch).for_each(|(client, number)| client.authenticate(&key, *number));
            clients.iter_mut().for_each(|client| (0..2).for_each(|_| client.expect_ok()));
        }
        clients
    });
    for client in &mut sessions {
        client.send(&json!({"id": 3, "type": "ping"}));
        client.expect_ok();
    }
    each
}

/// Prints the resident memory of idle sessions.
fn idle() {
    for is_authenticated in [false, true] {
        let (tcp, websocket) = (idle_tcp(is_authenticated), idle_websocket(is_authenticated));
        println!(
            "{SESSIONS} idle sessions, authenticated: {is_authenticated}: {tcp:.2} KiB each over TCP, {websocket:.2} over WebSocket"
        );
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "idle") {
        return idle();
    }
    let server = Server::start();
    (0..MAILBOXES).for_each(|number| drop(server.device(&format!("to{number}"))));
    println!("connections  sends/s  p50 ms  p99 ms");
    for load in LOADS {
        let mut rounds: Vec<_> = (0..ROUNDS).map(|round| sends(&server, load, round)).collect();
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (per_second, times) = &rounds[ROUNDS / 2];
        let [p50, p99] = [500, 990].map(|quantile| milliseconds(times.quantile(quantile)));
        println!("{:11}  {per_second:7.0}  {p50:6.2}  {p99:6.2}", load.0);
    }
    let times = delivery(&server);
    let [p50, p99] = [500, 990].map(|quantile| milliseconds(times.quantile(quantile)));
    println!("send to push: p50 {p50:.2} ms, p99 {p99:.2} ms");
    let (pages, time) = inbox(&server);
    println!("inbox of {INBOX}: {pages} pages in {:.0} ms", milliseconds(time));
    drop(server);
    idle();
}
