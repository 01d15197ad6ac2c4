//! Random bytes on every listener: the server keeps answering and does not grow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::test_server::TestServer;

const DATAGRAMS: u32 = 100_000;
const SEED: u64 = 0x6769_6e6e_656c;
/// What the allocator may keep after a warm-up.
const GROWTH_KIB: u64 = 4096;
const BINDING_REQUEST: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// A datagram that looks like one of the server's protocols, more or less.
fn noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let length = match rng.random_range(0..10) {
        0 => rng.random_range(0..20),
        1 => rng.random_range(1400..9000),
        _ => rng.random_range(20..1400),
    };
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    match rng.random_range(0..8) {
        0 => {}
        1 => overwrite(&mut bytes, &BINDING_REQUEST[..8]),
        2 => request(&mut bytes, rng),
        3 => channel_data(&mut bytes, rng),
        4 => bytes = json(rng),
        5 => overwrite(&mut bytes, b"{"),
        6 => overwrite(&mut bytes, &[rng.random_range(0..4)]),
        _ => bytes = truncated(rng),
    }
    bytes
}

fn overwrite(bytes: &mut [u8], start: &[u8]) {
    for (byte, wanted) in bytes.iter_mut().zip(start) {
        *byte = *wanted;
    }
}

/// A STUN header of some TURN method and class with a length that fits or nearly fits; the attributes are noise.
fn request(bytes: &mut [u8], rng: &mut ChaCha8Rng) {
    let method =
        [1_u16, 3, 4, 6, 7, 8, 9][rng.random_range(0..7)] | [0, 0x10, 0x100, 0x110][rng.random_range(0..4)];
    let length =
        (bytes.len().saturating_sub(20) as u16 & !3).wrapping_add([0, 0, 0, 4, 1][rng.random_range(0..5)]);
    overwrite(bytes, &method.to_be_bytes());
    overwrite(bytes.get_mut(2..).unwrap_or_default(), &length.to_be_bytes());
    overwrite(bytes.get_mut(4..).unwrap_or_default(), &BINDING_REQUEST[4..8]);
}

fn channel_data(bytes: &mut [u8], rng: &mut ChaCha8Rng) {
    let number = rng.random_range(0x4000..=0x7fff_u16);
    overwrite(bytes, &number.to_be_bytes());
    if rng.random() {
        let length = bytes.len().saturating_sub(4) as u16;
        overwrite(bytes.get_mut(2..).unwrap_or_default(), &length.to_be_bytes());
    }
}

/// JSON that is malformed, nested too deeply, of wrong types, or for unknown tags.
fn json(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let t = rng.random_range(-110..110);
    let text = match rng.random_range(0..7) {
        0 => format!("{{\"t\":{t}"),
        1 => format!("{{\"t\":{t},\"mid\":{},\"tag\":\"x\",\"token\":\"y\"}}", rng.random::<i64>()),
        2 => format!("{{\"t\":\"{t}\",\"mid\":[]}}"),
        3 => format!("{{\"t\":4,\"mid\":1,\"params\":{}{}}}", "[".repeat(600), "]".repeat(600)),
        4 => format!("{{\"t\":{t},\"mid\":1e400,\"params\":{{\"tag\":\"{}\"}}}}", "z".repeat(1000)),
        5 => format!("{{\"t\":51,\"code\":200,\"token\":\"{}\"}}", rng.random::<u64>()),
        _ => format!("{{\"t\":3,\"params\":{{\"tag\":\"{}\"}}}}", rng.random::<u64>()),
    };
    text.into_bytes()
}

fn truncated(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut whole = BINDING_REQUEST.to_vec();
    whole[3] = 8;
    whole.extend([0x80, 0x22, 0, 4, b't', b'e', b's', b't']);
    whole.truncate(rng.random_range(0..whole.len()));
    whole
}

/// Datagrams that the kernel threw away before the server could read them, on all of its sockets at `port`.
fn dropped_by_the_kernel(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    let local = format!("0100007F:{port:04X}");
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&&*local))
        .map(|row| row.last().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Asks for a Binding and waits until it is answered, whatever else comes.
fn assert_answers(test_server: &TestServer) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 2048];
    for _ in 0..10 {
        socket.send_to(&BINDING_REQUEST, test_server.address).unwrap();
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if length >= 20 && buffer[..2] == [1, 1] && buffer[4..20] == BINDING_REQUEST[4..] {
                return;
            }
        }
    }
    panic!("no Binding response\n{}", test_server.process.printed());
}

#[test]
fn a_hundred_thousand_datagrams_of_noise_neither_stop_the_server_nor_make_it_grow() {
    let test_server = TestServer::on_loopback("");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    let mut warm = 0;
    for sent in 0..DATAGRAMS {
        socket.send_to(&noise(&mut rng), test_server.address).ok();
        while socket.recv_from(&mut buffer).is_ok() {}
        // The question paces the noise: without it most would die in the socket's buffer, unseen by the server.
        if sent % 64 == 0 {
            assert_answers(&test_server);
        }
        if sent == DATAGRAMS / 4 {
            warm = test_server.resident_kib();
        }
    }
    assert_answers(&test_server);
    let unseen = dropped_by_the_kernel(test_server.address.port());
    assert!(unseen < u64::from(DATAGRAMS) / 100, "{unseen} datagrams never reached the server");
    let grown = test_server.resident_kib().saturating_sub(warm);
    assert!(grown < GROWTH_KIB, "{grown} KiB more than the {warm} KiB after the first quarter");
}

/// What a stream can begin with and never end.
fn stream_noise(rng: &mut ChaCha8Rng, round: usize) -> Vec<u8> {
    let mut random = vec![0; rng.random_range(1..20_000)];
    rng.fill_bytes(&mut random);
    match round % 8 {
        0 => random,
        1 => [&BINDING_REQUEST[..8], &random].concat(),
        2 => [&[0, 1, 0xff, 0xfc], &BINDING_REQUEST[4..], &random[..]].concat(),
        3 => [b"GET / HTTP/1.1\r\n".to_vec(), b"X-Long: a\r\n".repeat(5000)].concat(),
        4 => [b"GET /ws HTTP/1.1\r\n\r\n".to_vec(), random].concat(),
        5 => [&BINDING_REQUEST[..], &[0x40, 0x00, 0xff, 0xff], &random].concat(),
        6 => BINDING_REQUEST[..13].to_vec(),
        _ => b"POST /ice HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn assert_answers_by_tcp(test_server: &TestServer) {
    let mut stun = connect(test_server.address);
    stun.write_all(&BINDING_REQUEST).unwrap();
    let mut head = [0; 20];
    stun.read_exact(&mut head).unwrap();
    assert_eq!((&head[..2], &head[4..]), (&[1, 1][..], &BINDING_REQUEST[4..]));
    let mut http = connect(test_server.address);
    http.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn noise_on_tcp_neither_stops_the_server_nor_makes_it_grow() {
    let test_server = TestServer::on_loopback("");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut warm = 0;
    let mut open = Vec::new();
    for round in 0..800 {
        let mut stream = connect(test_server.address);
        stream.write_all(&stream_noise(&mut rng, round)).ok();
        // Some end at once, some stay silent for a while.
        open.push(stream);
        if open.len() == 40 {
            open.clear();
            assert_answers_by_tcp(&test_server);
        }
        if round == 400 {
            warm = test_server.resident_kib();
        }
    }
    drop(open);
    assert_answers_by_tcp(&test_server);
    assert_answers(&test_server);
    let grown = test_server.resident_kib().saturating_sub(warm);
    assert!(grown < GROWTH_KIB, "{grown} KiB more than the {warm} KiB after the first half");
}
