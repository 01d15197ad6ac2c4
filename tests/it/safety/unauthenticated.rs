//! Unauthenticated clients cost no memory and get answers at a bounded rate.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ginnel::stun::{Builder, Class, Method, TransactionId};

use crate::raw_turn::by_udp;
use crate::test_server::TestServer;
use crate::turn_client::BlockingTurnClient;
use crate::waiting::{pace, wait_until, wait_until_steady};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Sources of the flood, each an address and port of its own, and requests from each.
const SOURCES: u32 = 62_500;
const REQUESTS: u32 = 16;
const THREADS: u32 = 2;
/// What may be kept of a million requests, KiB.
const GROWTH_KIB: u64 = 4096;
/// No prefix is exempt, loopback least of all.
const NO_EXEMPTION: &str = "[limits]\nunlimited_from = []";

fn request(method: Method) -> Builder {
    Builder::new(Class::Request, method, TransactionId::new(*b"twelve bytes"))
}

fn allocate() -> Builder {
    by_udp(request(Method::ALLOCATE))
}

/// A socket at `ip`, connected to the server.
fn socket(ip: Ipv4Addr, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// The `index`th source address: neighbours in the count are in different /24 networks.
fn source(index: u32) -> Ipv4Addr {
    let octet = |value: u32| u8::try_from(value).unwrap();
    Ipv4Addr::new(127, octet(1 + index % 250), octet(index / 250 % 250), octet(1 + index / 62_500))
}

/// Sends `payloads` by turns from each of `sources` and takes every answer. A source is gone when the next one begins.
fn ask_from_many(server: SocketAddr, payloads: &[Vec<u8>], sources: impl Iterator<Item = u32>) -> u32 {
    let mut answers = 0;
    let mut buffer = [0; 2048];
    for index in sources {
        let socket = socket(source(index), server);
        for payload in payloads.iter().cycle().take(REQUESTS as usize) {
            socket.send(payload).unwrap();
        }
        for _ in 0..REQUESTS {
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("source {index}: {error}"));
            answers += 1;
        }
    }
    answers
}

/// Asserts that `payloads`, a million in all from more than 60 000 sources, each of which gets an answer, leave nothing behind.
fn assert_no_state(test_server: &TestServer, payloads: &[Vec<u8>]) {
    // The same in small first: buffers and tables take the memory that they will keep.
    ask_from_many(test_server.address, payloads, SOURCES..SOURCES + 5000);
    let warm = test_server.resident_kib();
    let answers: u32 = std::thread::scope(|scope| {
        let ask_with =
            |first| ask_from_many(test_server.address, payloads, (first..SOURCES).step_by(THREADS as usize));
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || ask_with(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(answers, SOURCES * REQUESTS);
    let grown = test_server.resident_kib().saturating_sub(warm);
    eprintln!("{answers} answers to {SOURCES} sources: {warm} KiB before, {grown} KiB more after");
    assert!(grown < GROWTH_KIB, "{grown} KiB more than the {warm} KiB after the warm-up");
}

#[test]
fn a_million_requests_from_sixty_thousand_sources_leave_nothing_behind() {
    let test_server = TestServer::on_loopback(NO_EXEMPTION);
    assert_no_state(&test_server, &[request(Method::BINDING).finish(), allocate().finish()]);
}

/// A whole ClientHello of DTLS 1.2 without a cookie, and with the one suite that every client of WebRTC offers.
pub(super) fn client_hello() -> Vec<u8> {
    let version = [0xFE, 0xFD];
    let extensions = [
        // supported_groups: secp256r1; ec_point_formats: uncompressed; signature_algorithms: ecdsa_secp256r1_sha256.
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
        // extended_master_secret, renegotiation_info
        &[0, 23, 0, 0],
        &[0xFF, 1, 0, 1, 0],
    ]
    .concat();
    let parameters = [0, 0, 0, 2, 0xC0, 0x2B, 1, 0, 0, u8::try_from(extensions.len()).unwrap()];
    let body = [&version[..], &[7; 32], &parameters, &extensions].concat();
    let length = u8::try_from(body.len()).unwrap();
    let handshake = [&[1, 0, 0, length, 0, 0, 0, 0, 0, 0, 0, length][..], &body].concat();
    let record = [22, 0xFE, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, length + 12];
    [&record[..], &handshake].concat()
}

#[test]
fn a_million_client_hellos_from_sixty_thousand_sources_leave_nothing_behind() {
    let test_server = TestServer::on_loopback(NO_EXEMPTION);
    assert_no_state(&test_server, &[client_hello()]);
}

/// A ClientHello of DTLS 1.2 with these random bytes, and with the cookie in `challenge`.
fn second_hello(random: u8, challenge: &[u8]) -> Vec<u8> {
    let mut hello = client_hello();
    hello[27..59].fill(random);
    let cookie = &challenge[challenge.len() - 32..];
    hello[60] = 32;
    hello.splice(61..61, cookie.iter().copied());
    // The lengths of the record and of the message, and the second number of each.
    hello[10] = 1;
    hello[18] = 1;
    for at in [12, 16, 24] {
        hello[at] += 32;
    }
    hello
}

/// Two ClientHellos with good cookies for one socket.
pub(crate) fn admitted_hellos(socket: &UdpSocket) -> [Vec<u8>; 2] {
    let mut buffer = [0; 2048];
    [1, 2].map(|random| {
        let mut first = client_hello();
        first[27..59].fill(random);
        socket.send(&first).unwrap();
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!((buffer[0], buffer[13]), (22, 3), "a HelloVerifyRequest");
        second_hello(random, &buffer[..len])
    })
}

/// Repeats both hellos of every socket in turn until `stop`; returns the random bytes of all ServerHellos, of which each handshake has its own.
fn begin_handshakes(sockets: &[(UdpSocket, [Vec<u8>; 2])], stop: &AtomicBool) -> HashSet<Vec<u8>> {
    let (mut begun, mut buffer) = (HashSet::new(), [0; 2048]);
    let mut turns = [0, 1].into_iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        let turn = turns.next().unwrap();
        for (socket, hellos) in sockets {
            let _ = socket.send(&hellos[turn]);
            while let Ok(len) = socket.recv(&mut buffer) {
                if len > 59 && (buffer[0], buffer[13]) == (22, 2) {
                    begun.insert(buffer[27..59].to_vec());
                }
            }
        }
        // Six thousand hellos a second.
        pace(Duration::from_micros(1333));
    }
    begun
}

#[test]
fn repeated_client_hellos_begin_a_handshake_a_second_and_cost_no_relayed_packet() {
    let test_server =
        TestServer::on_loopback("allow_peers = [\"127.0.0.0/8\"]\n[limits]\nunlimited_from = []");
    let sockets: Vec<_> = (0..8)
        .map(|_| {
            let socket = socket(Ipv4Addr::new(127, 1, 0, 1), test_server.address);
            let hellos = admitted_hellos(&socket);
            socket.set_nonblocking(true).unwrap();
            (socket, hellos)
        })
        .collect();
    let peer = UdpSocket::bind((Ipv4Addr::new(127, 2, 0, 2), 0)).unwrap();
    peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut client = BlockingTurnClient::allocate(Ipv4Addr::new(127, 2, 0, 1), test_server.address);
    let peer_address = peer.local_addr().unwrap();
    client.bind_channel(peer_address).unwrap();
    let (stop, began) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| begin_handshakes(&sockets, &stop));
        // The first one that is lost is enough.
        let lost = (0..1000_u32).find(|number| {
            let payload = number.to_be_bytes();
            client.send(peer_address, &payload);
            let mut buffer = [0; 64];
            let returned =
                peer.recv_from(&mut buffer).and_then(|(len, from)| peer.send_to(&buffer[..len], from));
            pace(Duration::from_millis(2));
            returned.is_err() || client.receive() != Some(payload.to_vec())
        });
        stop.store(true, Ordering::Relaxed);
        let begun = flood.join().unwrap().len();
        let most = 8 * (began.elapsed().as_secs() as usize + 1);
        eprintln!("{begun} handshakes of at most {most}; lost: {lost:?}");
        assert!((8..=most).contains(&begun), "{begun} handshakes, {most} allowed");
        assert_eq!(lost, None);
    });
}

/// Sends ten times as much as one network may ask, from all over `network`, until `stop`; returns how many answers came.
fn drain(network: [u8; 3], server: SocketAddr, stop: &AtomicBool) -> u32 {
    let [a, b, c] = network;
    let sockets: Vec<_> = (1..=64).map(|host| socket(Ipv4Addr::new(a, b, c, host), server)).collect();
    let payloads = [request(Method::BINDING).finish(), allocate().finish()];
    let answers = Cell::new(0);
    let mut buffer = [0; 2048];
    let mut take = |socket: &UdpSocket| {
        while socket.recv(&mut buffer).is_ok() {
            answers.set(answers.get() + 1);
        }
    };
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
    }
    while !stop.load(Ordering::Relaxed) {
        for (socket, payload) in sockets.iter().zip(payloads.iter().cycle()) {
            match socket.send(payload) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
                _ => take(socket),
            }
        }
        pace(Duration::from_millis(10));
    }
    // What is still on its way.
    wait_until_steady(TIMEOUT, Duration::from_millis(200), || {
        sockets.iter().for_each(&mut take);
        answers.get()
    })
}

/// Waits until a Binding request from `ip`, in a network that is flooding, gets no answer.
fn wait_until_drained(ip: Ipv4Addr, server: SocketAddr) {
    let probe = socket(ip, server);
    probe.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    wait_until(TIMEOUT, "the network's answers are used up", || {
        probe.send(&request(Method::BINDING).finish()).unwrap();
        probe.recv(&mut [0; 64]).is_err()
    });
}

#[test]
fn a_flooding_network_is_answered_at_its_rate_and_others_are_not_affected() {
    let test_server = TestServer::on_loopback(NO_EXEMPTION);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| drain([127, 1, 0], test_server.address, &stop));
        wait_until_drained(Ipv4Addr::new(127, 1, 0, 250), test_server.address);
        let mut client = BlockingTurnClient::allocate(Ipv4Addr::new(127, 2, 0, 1), test_server.address);
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let sent_at = Instant::now();
            client.renew().unwrap();
            slowest = slowest.max(sent_at.elapsed());
            pace(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        let answers = flood.join().unwrap();
        let most = 1000 + (500.0 * began.elapsed().as_secs_f64()) as u32;
        eprintln!(
            "{answers} answers of at most {most}; the slowest Refresh of another network took {slowest:?}"
        );
        assert!(answers <= most, "{answers} answers, {most} allowed");
        assert!(answers > most / 2, "{answers} answers of {most}: the flood was not one");
    });
}

#[test]
fn a_credential_that_verifies_is_answered_within_a_drained_network_too() {
    let test_server = TestServer::on_loopback(NO_EXEMPTION);
    let mut client = BlockingTurnClient::allocate(Ipv4Addr::new(127, 1, 0, 200), test_server.address);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| drain([127, 1, 0], test_server.address, &stop));
        wait_until_drained(Ipv4Addr::new(127, 1, 0, 250), test_server.address);
        for _ in 0..50 {
            client.renew().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap();
    });
}

/// Every address of many networks asks more than once a bucket holds, and a newcomer is served all the same.
#[test]
fn a_newcomer_is_answered_while_many_networks_are_drained() {
    let test_server = TestServer::on_loopback(
        "[limits]\nunlimited_from = []\nunauthenticated_rate = 1\nunauthenticated_burst = 4",
    );
    let binding = request(Method::BINDING).finish();
    for index in 0..20_000 {
        let socket = socket(source(index), test_server.address);
        for _ in 0..REQUESTS {
            socket.send(&binding).unwrap();
        }
        socket.recv(&mut [0; 64]).unwrap_or_else(|error| panic!("newcomer {index}: {error}"));
    }
}

/// Sends a Binding request over TCP; returns whether it was answered.
fn is_answered(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // A refused connection may be gone before anything is written.
    let sent = stream.write_all(&request(Method::BINDING).finish());
    let mut answer = [0; 20];
    sent.is_ok() && stream.read_exact(&mut answer).is_ok() && answer[..2] == [1, 1]
}

fn connect(ip: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    socket.into()
}

#[test]
fn connections_are_capped_per_address() {
    let test_server = TestServer::on_loopback("[limits]\nunlimited_from = []\nconnections_per_address = 8");
    let (one, other) = (Ipv4Addr::new(127, 1, 0, 1), Ipv4Addr::new(127, 1, 0, 2));
    let mut connections: Vec<_> = (0..8).map(|_| connect(one, test_server.address)).collect();
    assert!(connections.iter_mut().all(is_answered));
    assert!(!is_answered(&mut connect(one, test_server.address)));
    assert!(is_answered(&mut connect(other, test_server.address)));
    drop(connections.pop());
    wait_until(TIMEOUT, "a closed connection counts no more", || {
        is_answered(&mut connect(one, test_server.address))
    });
}

#[test]
fn loopback_has_no_limits_by_default() {
    let test_server = TestServer::at(
        &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        "[limits]\nunauthenticated_rate = 1\nunauthenticated_burst = 1\nconnections_per_address = 1",
    );
    let socket = socket(Ipv4Addr::LOCALHOST, test_server.address);
    let mut connections = Vec::new();
    for _ in 0..20 {
        socket.send(&request(Method::BINDING).finish()).unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        connections.push(connect(Ipv4Addr::LOCALHOST, test_server.address));
    }
    assert!(connections.iter_mut().all(is_answered));
}
