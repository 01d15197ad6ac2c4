//! The cost of unauthenticated connections: bounded memory that is released, and no descriptor that a relay needs.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use ginnel::stun::{Builder, Class, Method, TransactionId};

use crate::raw_turn::by_udp;
use crate::test_server::{Lines, TestServer};
use crate::turn_client::BlockingTurnClient;
use crate::waiting::{wait_for, wait_until_steady};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of one kind at a time, and the addresses they come from.
const CONNECTIONS: usize = 800;
const ADDRESSES: usize = 63;
/// What each may cost, and what may be kept when all have left.
const MOST_KIB: u64 = 16;
const KEPT_KIB: u64 = 8192;

fn binding() -> Vec<u8> {
    Builder::new(Class::Request, Method::BINDING, TransactionId::new(*b"twelve bytes")).finish()
}

fn connect(ip: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // What is not read waits at the server soon.
    socket.set_recv_buffer_size(2048).unwrap();
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.into()
}

fn asks_for(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

fn read_head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A kind of unauthenticated connection: its name, the path of the WebSocket to open (if any), and the bytes to send.
type Kind = (&'static str, Option<&'static str>, Vec<u8>);

fn kinds() -> [Kind; 6] {
    let begun = |first: u8, rest: usize| {
        let length = u16::try_from(rest + 100).unwrap().to_be_bytes();
        [&[first, 0xFE][..], &length, &[0; 4], &vec![b'y'; rest]].concat()
    };
    [
        ("endless HTTP head", None, [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", &[b'a'; 400_000][..]].concat()),
        (
            "half a STUN message",
            None,
            [b"\0\x03\x0F\xA0\x21\x12\xA4\x42twelve bytes", &[b'y'; 3900][..]].concat(),
        ),
        ("unread answers", None, binding().repeat(20_000)),
        ("idle /turn", Some("/turn"), Vec::new()),
        ("begun message at /turn", Some("/turn"), begun(0x82, 3900)),
        ("begun message at /ws", Some("/ws"), begun(0x01, 65_000)),
    ]
}

/// Opens connections of one kind; returns how much the server has grown at most.
fn grown_by(test_server: &TestServer, (_, path, bytes): &Kind, before: u64) -> u64 {
    let mut most = 0;
    let mut open: Vec<(TcpStream, usize)> = Vec::new();
    for number in 0..CONNECTIONS {
        let host = u8::try_from(1 + number % ADDRESSES).unwrap();
        let mut stream = connect(Ipv4Addr::new(127, 7, host, 1), test_server.address);
        if let Some(path) = path {
            stream.write_all(&asks_for(path)).unwrap();
            assert!(read_head(&mut stream).contains(" 101 "));
        }
        stream.set_nonblocking(true).unwrap();
        open.push((stream, 0));
    }
    // Until the server reads no more, or has closed them.
    wait_until_steady(TIMEOUT, Duration::from_millis(100), || {
        for (stream, sent) in &mut open {
            match stream.write(&bytes[*sent..]) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => *sent = bytes.len(),
            }
        }
        most = most.max(test_server.resident_kib().saturating_sub(before));
        open.iter().map(|(_, sent)| sent).sum::<usize>()
    });
    most
}

#[test]
fn an_unauthenticated_connection_costs_at_most_16_kib_and_releases_them() {
    let test_server =
        TestServer::on_loopback("[limits]\nunlimited_from = []\nunauthenticated_memory = 16777216");
    // Buffers and tables take the memory that they will keep.
    grown_by(&test_server, &("warm-up", Some("/turn"), Vec::new()), 0);
    let warm = test_server.resident_kib();
    for kind in kinds() {
        let before = test_server.resident_kib();
        let grown = grown_by(&test_server, &kind, before);
        eprintln!("{}: {} KiB each", kind.0, grown / CONNECTIONS as u64);
        assert!(grown <= MOST_KIB * CONNECTIONS as u64, "{}: {grown} KiB", kind.0);
        wait_for(TIMEOUT, || match test_server.resident_kib() {
            kib if kib <= warm + KEPT_KIB => Ok(()),
            kib => Err(format!("{}: {kib} KiB, {warm} before", kind.0)),
        });
    }
}

#[test]
fn invalid_http_and_websocket_requests_are_refused_on_every_path() {
    let test_server = TestServer::on_loopback("");
    let answer = |request: String| {
        let mut stream = connect(Ipv4Addr::LOCALHOST, test_server.address);
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut stream);
        let connection = if head.contains(" 101 ") { "connection: upgrade" } else { "connection: close" };
        assert!(head.to_lowercase().contains(connection), "{head}");
        head.split(' ').nth(1).map(str::to_owned)
    };
    for path in ["/", "/healthz", "/ice", "/ws", "/turn", "/gateway", "/nowhere"] {
        assert_eq!(answer(format!("GET {path} HTTP/1.1\r\n\r\n")).as_deref(), Some("400"), "{path}");
        let twice = format!("GET {path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        assert_eq!(answer(twice).as_deref(), Some("400"), "{path}");
    }
    assert_eq!(answer("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()).as_deref(), Some("200"));
    assert_eq!(answer("GET /healthz HTTP/1.0\r\n\r\n".to_owned()).as_deref(), Some("200"));
    for path in ["/ws", "/turn", "/gateway"] {
        for (key, code) in [
            ("dGhlIHNhbXBsZSBub25jZQ==", "101"),
            ("x", "400"),
            ("", "400"),
            ("dGhlIHNhbXBsZSBub25jZTE=", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ", "400"),
        ] {
            let request = String::from_utf8(asks_for(path)).unwrap();
            let request = request.replace("dGhlIHNhbXBsZSBub25jZQ==", key);
            assert_eq!(answer(request).as_deref(), Some(code), "{path} {key:?}");
        }
    }
}

#[test]
fn the_tls_port_answers_plain_stun_and_turn_too() {
    let test_server = TestServer::with_tls(Lines::default(), None);
    BlockingTurnClient::allocate(Ipv4Addr::LOCALHOST, test_server.tls);
    let mut stream = connect(Ipv4Addr::LOCALHOST, test_server.tls);
    stream.write_all(&binding()).unwrap();
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..2], [1, 1]);
    stream
        .write_all(
            &by_udp(Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([7; 12]))).finish(),
        )
        .unwrap();
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..2], [1, 0x13], "asks for credentials");
    // Signalling answers only on the main port.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.send_to(b"{\"t\":1,\"mid\":\"a\"}", test_server.tls).unwrap();
    assert!(socket.recv(&mut [0; 2000]).is_err());
}

#[test]
fn connections_leave_descriptors_for_relays_and_the_oldest_unauthenticated_one_is_closed() {
    let test_server = TestServer::with_descriptors(200, "[limits]\nunlimited_from = []");
    let address = |number: usize| {
        Ipv4Addr::new(127, 8, u8::try_from(number / 200).unwrap(), u8::try_from(1 + number % 200).unwrap())
    };
    let mut connections: Vec<_> =
        (0..400).map(|number| connect(address(number), test_server.address)).collect();
    let mut newest = connections.pop().unwrap();
    newest.write_all(&binding()).unwrap();
    newest.read_exact(&mut [0; 32]).unwrap();
    assert!(matches!(connections[0].read(&mut [0; 1]), Ok(0) | Err(_)), "the oldest has gone");
    let at = Ipv4Addr::new(127, 9, 0, 1);
    let clients: Vec<_> = (0..30).map(|_| BlockingTurnClient::allocate(at, test_server.address)).collect();
    assert_eq!(clients.len(), 30);
    let line = |line: &str| (line.contains("WARN") && line.contains("descriptors")).then_some(());
    test_server.process.expect("one line", TIMEOUT, line);
    assert_eq!(
        test_server.process.lines(|line| line.contains("WARN").then_some(())).len(),
        1,
        "{}",
        test_server.process.printed()
    );
}
