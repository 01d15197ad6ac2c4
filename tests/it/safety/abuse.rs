//! Abuse of the signalling server: each case ends as documented (`docs/wire/signaling.md`), calls of others go on, and repetition costs no more
//! memory.

use std::io::{Cursor, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::{Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::signaling_client::{self, SignalingClient};
use crate::test_server::TestServer;
use crate::waiting::{pace, wait_until};

const TIMEOUT: Duration = Duration::from_secs(30);
/// An attack is repeated until so many rounds in a row have taken no more memory. The first ones may: buffers, tables and the
/// allocator grow to the most that was alive at one time, which is up to the machine's scheduling. A leak grows in every round.
const SETTLED: usize = 2;
/// When it is a leak.
pub(crate) const MOST_ROUNDS: usize = 9;
/// What is no growth: so much, and an eighth of all.
const GROWTH_KIB: u64 = 8192;
/// No source is exempt, not even loopback; silent clients and gateway clients time out soon.
const STRICT: &str =
    "[limits]\nunlimited_from = []\n[signaling.times]\nping = 1\nidle = 2\n[gateway.times]\nping = 1\n";
/// A mask that changes nothing.
const MASK: [u8; 4] = [0; 4];

/// Where the bystanders live.
const CALLER: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 1);
const CALLEE: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 2);

/// An attacker's address.
fn attacker(number: usize) -> Ipv4Addr {
    let [.., high, low] = u32::try_from(number).unwrap().to_be_bytes();
    Ipv4Addr::new(127, 66, high, low.max(1))
}

/// One whole call, by a caller that comes anew and goes.
fn call(server: SocketAddr, callee: &mut SignalingClient, rtag: &str) {
    let mut caller = SignalingClient::web(CALLER, server);
    let tag = caller.register(&json!({}));
    let calling = caller.request(json!({"t": 4, "params": {"tag": tag, "rtag": rtag, "ufrag": "caller"}}));
    assert_eq!(calling["code"], 200, "{calling}");
    let token = &calling["extra"]["token"];
    let notified = callee.receive(|message| message["t"] == 51 && message["token"] == *token);
    assert_eq!(notified["params"]["ufrag"], "caller");
    let (mid, code) = (&notified["mid"], 200);
    callee.send(&json!({"t": -51, "mid": mid, "token": token, "code": code, "extra": {"ufrag": "callee"}}));
    let answered = caller.receive(|message| message["t"] == 52);
    assert_eq!(answered["extra"]["ufrag"], "callee");
    caller.send(&json!({"t": -52, "mid": answered["mid"], "token": token, "code": code}));
    assert_eq!(caller.request(json!({"t": 55, "token": token}))["code"], 200);
    let ended = callee.receive(|message| message["t"] == 55 && message["token"] == *token);
    callee.send(&json!({"t": -55, "mid": ended["mid"], "token": token, "code": code}));
}

/// Calls one client by WebSocket and one by UDP in turn until `stop`.
fn go_on_calling(server: SocketAddr, calls: &AtomicU32, stop: &AtomicBool) {
    let mut callees =
        [SignalingClient::web(CALLEE, server), SignalingClient::udp(CALLEE, server)].map(|mut callee| {
            let tag = callee.register(&json!({}));
            (callee, tag)
        });
    for turn in (0..2).cycle() {
        let (callee, tag) = &mut callees[turn];
        assert_eq!(callee.request(json!({"t": 2, "tag": tag}))["code"], 200);
        call(server, callee, tag);
        calls.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        pace(Duration::from_millis(50));
    }
}

/// Sets a flag when the test is over, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether the newest rounds have taken no more of the server's memory.
pub(crate) fn settled(sizes: &[u64]) -> bool {
    sizes.len() > SETTLED && {
        let newest = &sizes[sizes.len() - 1 - SETTLED..];
        newest[SETTLED] <= newest[0] + newest[0] / 8 + GROWTH_KIB
    }
}

/// Repeats `attack` while bystanders call each other.
fn assert_harmless(attack: impl Fn(&TestServer)) {
    let test_server = TestServer::at(&[IpAddr::V4(Ipv4Addr::LOCALHOST)], STRICT);
    let (calls, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let bystanders = scope.spawn(|| go_on_calling(test_server.address, &calls, &stop));
        let stopping = Stop(&stop);
        let mut sizes: Vec<u64> = Vec::new();
        while !settled(&sizes) && sizes.len() < MOST_ROUNDS {
            let before = calls.load(Ordering::Relaxed);
            attack(&test_server);
            // One that was begun before the attack's end, and one after it.
            wait_until(TIMEOUT, "the bystanders go on calling", || {
                calls.load(Ordering::Relaxed) >= before + 2 || bystanders.is_finished()
            });
            sizes.push(test_server.resident_kib());
        }
        drop(stopping);
        bystanders.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        eprintln!("{sizes:?} KiB after each round, {} calls", calls.load(Ordering::Relaxed));
        assert!(settled(&sizes), "{sizes:?} KiB\n{}", test_server.process.printed());
    });
}

/// An open WebSocket, to be misused, and its bare stream.
fn raw_web(ip: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let stream = signaling_client::connect(ip, server).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (socket, _) = client(format!("ws://{server}/ws"), stream).unwrap();
    socket.into_inner()
}

/// The head of a frame of a client.
fn head(opcode: u8, length: usize) -> Vec<u8> {
    let long = u64::try_from(length).unwrap().to_be_bytes();
    [&[0x80 | opcode, 0x80 | 127][..], &long, &MASK].concat()
}

fn text_frame(text: &[u8]) -> Vec<u8> {
    [&head(1, text.len())[..], text].concat()
}

/// Waits for the server to close; returns what it sent before that.
fn read_to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("still open after {TIMEOUT:?}"),
        Ok(_) | Err(_) => bytes,
    }
}

/// The code with which the server closes a WebSocket, where it gives one.
fn close_code(stream: &mut TcpStream) -> Option<CloseCode> {
    let frames = Cursor::new(read_to_the_end(stream));
    let mut socket = WebSocket::from_raw_socket(frames, Role::Client, None);
    loop {
        match socket.read() {
            Ok(Message::Close(frame)) => return Some(frame?.code),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// What the server answers a text over WebSocket.
fn answer_to(server: SocketAddr, ip: Ipv4Addr, text: &str) -> Value {
    let mut socket =
        client(format!("ws://{server}/ws"), signaling_client::connect(ip, server).unwrap()).unwrap().0;
    socket.send(Message::text(text)).unwrap();
    loop {
        if let Message::Text(text) = socket.read().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

/// Sends each datagram from a socket of its own; none is answered, though a sound one after it is.
fn assert_dropped(server: SocketAddr, datagrams: &[Vec<u8>]) {
    for (number, datagram) in datagrams.iter().enumerate() {
        let socket = UdpSocket::bind((attacker(number), 0)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.send_to(datagram, server).unwrap();
        socket.send_to(br#"{"t":2,"mid":7,"tag":"nobody"}"#, server).unwrap();
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        let answer: Value = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!((&answer["mid"], &answer["code"]), (&json!(7), &json!(202)), "{answer}");
    }
}

#[test]
fn a_client_that_does_not_read_is_closed_when_its_queue_is_full() {
    assert_harmless(|test_server| {
        let server = test_server.address;
        // Its window is small, so that little waits in the system's buffers.
        let reader = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        reader.set_recv_buffer_size(4096).unwrap();
        reader.bind(&SocketAddr::from((attacker(1), 0)).into()).unwrap();
        reader.connect(&server.into()).unwrap();
        let (mut reader, _) = client(format!("ws://{server}/ws"), TcpStream::from(reader)).unwrap();
        reader
            .send(Message::text(r#"{"t":1,"mid":1,"params":{"secret":"the slow reader's secret"}}"#))
            .unwrap();
        let rtag = loop {
            let Message::Text(text) = reader.read().unwrap() else { continue };
            let welcome: Value = serde_json::from_str(&text).unwrap();
            break welcome["extra"]["tag"].clone();
        };
        let cands = vec!["c".repeat(256); 32];
        for number in 0..8 {
            let mut caller = SignalingClient::web(attacker(3 + number), server);
            let tag = caller.register(&json!({}));
            for _ in 0..5 {
                let offer = json!({"tag": tag, "rtag": rtag, "sdp": "s".repeat(49_000)});
                let calling = caller.request(json!({"t": 4, "params": offer}));
                for _ in 0..31 {
                    let params = json!({"cands": cands});
                    caller.send(&json!({"t": 54, "token": calling["extra"]["token"], "params": params}));
                }
            }
        }
        let mut watcher = SignalingClient::web(attacker(2), server);
        watcher.register(&json!({}));
        let stands = watcher.request(json!({"t": 60, "params": {"tags": [rtag]}}));
        if stands["extra"]["offline"] != json!([rtag]) {
            watcher.receive(|message| message["params"]["offline"] == json!([rtag]));
        }
        reader.get_ref().set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(close_code(reader.get_mut()), None);
    });
}

#[test]
fn clients_that_never_answer_pings_are_closed_after_the_idle_time_out() {
    assert_harmless(|test_server| {
        let mut silent: Vec<_> =
            (0..200).map(|number| raw_web(attacker(number), test_server.address)).collect();
        let codes: Vec<_> = silent.iter_mut().map(close_code).collect();
        assert!(codes.iter().all(|code| *code == Some(CloseCode::Away)), "{codes:?}");
    });
}

#[test]
fn half_a_frame_and_silence_is_closed_after_the_idle_time_out() {
    assert_harmless(|test_server| {
        let begun = [vec![0x81], head(1, 1000), text_frame(&[b' '; 1000])[..500].to_vec()];
        let mut silent: Vec<_> = (0..150)
            .map(|number| {
                let mut stream = raw_web(attacker(number), test_server.address);
                stream.write_all(&begun[number % 3]).unwrap();
                stream
            })
            .collect();
        let codes: Vec<_> = silent.iter_mut().map(close_code).collect();
        assert!(codes.iter().all(|code| *code == Some(CloseCode::Away)), "{codes:?}");
    });
}

#[test]
fn ten_thousand_connections_that_send_nothing_are_closed_in_seconds() {
    assert_harmless(|test_server| {
        let connect =
            |number: usize| signaling_client::connect(attacker(number % 100), test_server.address).unwrap();
        let mut silent: Vec<_> = (0..10_000).map(connect).collect();
        for stream in &mut silent {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            // After 5 s of silence a connection counts as a waiting gateway client, until a Ping has no answer.
            let received = read_to_the_end(stream);
            assert!(received.is_empty() || received == b"\x05\0\0\0\0\0\0\0\x06", "{received:02x?}");
        }
    });
}

#[test]
fn an_upgrade_that_is_never_finished_is_closed_in_seconds() {
    assert_harmless(|test_server| {
        let begun = ["GET", "GET /ws HTTP/1.1\r\n", "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"];
        let mut halves: Vec<_> = (0..150)
            .map(|number| {
                let mut stream = signaling_client::connect(attacker(number), test_server.address).unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream.write_all(begun[number % 3].as_bytes()).unwrap();
                stream
            })
            .collect();
        for stream in &mut halves {
            let received = String::from_utf8(read_to_the_end(stream)).unwrap();
            assert!(received.is_empty() || received.starts_with("HTTP/1.1 4"), "{received}");
        }
    });
}

#[test]
fn a_frame_of_a_megabyte_closes_its_connection() {
    assert_harmless(|test_server| {
        for number in 0..50 {
            let mut stream = raw_web(attacker(number), test_server.address);
            // The server may hang up before it has read all of it.
            stream.write_all(&text_frame(&vec![b' '; 1 << 20])).ok();
            let code = close_code(&mut stream);
            assert!(matches!(code, None | Some(CloseCode::Size)), "{code:?}");
        }
    });
}

#[test]
fn json_nested_a_hundred_thousand_levels_is_dropped_refused_or_closed() {
    assert_harmless(|test_server| {
        let server = test_server.address;
        let lists = |levels: usize| {
            format!("{{\"t\":1,\"mid\":1,\"params\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
        };
        let objects = |levels: usize| {
            format!("{{\"t\":5,\"mid\":1,\"x\":{}1{}}}", "{\"a\":".repeat(levels), "}".repeat(levels))
        };
        let unended = "{\"t\":".repeat(200);
        assert_dropped(server, &[unended.into_bytes()]);
        for number in 0..10 {
            let ip = attacker(number);
            let mut plain = SignalingClient::udp(ip, server);
            plain.send(&serde_json::from_str(&lists(100)).unwrap());
            assert_eq!(plain.receive(|message| message["mid"] == 1)["code"], 201);
            let refused = answer_to(server, ip, &lists(32_000));
            assert_eq!((&refused["t"], &refused["code"]), (&json!(1), &json!(201)), "{refused}");
            // What is not known is not looked at.
            assert_eq!(answer_to(server, ip, &objects(10_000))["t"], -5);
            let mut stream = raw_web(ip, server);
            stream.write_all(&text_frame(lists(100_000).as_bytes())).ok();
            let code = close_code(&mut stream);
            assert!(matches!(code, None | Some(CloseCode::Size)), "{code:?}");
        }
    });
}

#[test]
fn a_duplicate_json_key_is_dropped_or_refused() {
    assert_harmless(|test_server| {
        let texts = [
            r#"{"t":1,"t":4,"mid":1}"#,
            r#"{"t":1,"mid":1,"mid":2}"#,
            r#"{"t":1,"mid":1,"params":{"secret":"the first of two secrets","secret":"the other of two secrets"}}"#,
        ];
        assert_dropped(test_server.address, &[texts[0], texts[1]].map(|text| text.as_bytes().to_vec()));
        for (number, text) in texts.iter().enumerate() {
            let refused = answer_to(test_server.address, attacker(number), text);
            assert_eq!(refused["code"], 201, "{text}: {refused}");
        }
    });
}

#[test]
fn bytes_that_are_not_utf_8_are_dropped_or_close_their_connection() {
    assert_harmless(|test_server| {
        let bytes = b"{\"t\":1,\"mid\":1,\"params\":{\"key\":\"\xC3\x28\xFF\"}}";
        assert_dropped(test_server.address, &[bytes.to_vec()]);
        for number in 0..50 {
            let mut stream = raw_web(attacker(number), test_server.address);
            stream.write_all(&text_frame(bytes)).unwrap();
            let code = close_code(&mut stream);
            assert_eq!(code, Some(CloseCode::Invalid));
        }
    });
}
