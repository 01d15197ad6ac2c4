//! What a server that knows nobody yet spends on those who ask: no memory, and answers at a bounded rate.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ginnel::stun::{Builder, Class, Message, Method, TransactionId, attr};

use crate::house::House;
use crate::turn_client::TurnClient;

const PATIENCE: Duration = Duration::from_secs(5);
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
    request(Method::ALLOCATE).attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
}

/// A socket at `ip` that speaks to the server alone.
fn socket(ip: Ipv4Addr, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
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
fn assert_no_state(house: &House, payloads: &[Vec<u8>]) {
    // The same in small first: buffers and tables take the memory that they will keep.
    ask_from_many(house.address, payloads, SOURCES..SOURCES + 5000);
    let warm = house.resident_kib();
    let answers: u32 = std::thread::scope(|scope| {
        let ask = |first| ask_from_many(house.address, payloads, (first..SOURCES).step_by(THREADS as usize));
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || ask(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(answers, SOURCES * REQUESTS);
    let grown = house.resident_kib().saturating_sub(warm);
    eprintln!("{answers} answers to {SOURCES} sources: {warm} KiB before, {grown} KiB more after");
    assert!(grown < GROWTH_KIB, "{grown} KiB more than the {warm} KiB after the warm-up");
}

#[test]
fn a_million_requests_from_sixty_thousand_sources_leave_nothing_behind() {
    let house = House::on_loopback(NO_EXEMPTION);
    assert_no_state(&house, &[request(Method::BINDING).finish(), allocate().finish()]);
}

/// Sends ten times as much as one network may ask, from all over `network`, until `stop`; returns how many answers came.
fn drain(network: [u8; 3], server: SocketAddr, stop: &AtomicBool) -> u32 {
    let [a, b, c] = network;
    let sockets: Vec<_> = (1..=64).map(|host| socket(Ipv4Addr::new(a, b, c, host), server)).collect();
    let payloads = [request(Method::BINDING).finish(), allocate().finish()];
    let mut answers = 0;
    let mut buffer = [0; 2048];
    let mut take = |socket: &UdpSocket| {
        while socket.recv(&mut buffer).is_ok() {
            answers += 1;
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
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    sockets.iter().for_each(&mut take);
    answers
}

#[test]
fn a_flooding_network_is_answered_at_its_rate_and_others_do_not_notice() {
    let house = House::on_loopback(NO_EXEMPTION);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| drain([127, 1, 0], house.address, &stop));
        std::thread::sleep(Duration::from_secs(2));
        let mut client = TurnClient::allocate(Ipv4Addr::new(127, 2, 0, 1), house.address);
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let asked = Instant::now();
            let refreshed = client.ask_signed(Method::REFRESH, |request| request);
            assert_eq!(Message::parse(&refreshed).unwrap().class(), Class::Success);
            slowest = slowest.max(asked.elapsed());
            std::thread::sleep(Duration::from_millis(20));
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
    let house = House::on_loopback(NO_EXEMPTION);
    let mut client = TurnClient::allocate(Ipv4Addr::new(127, 1, 0, 200), house.address);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| drain([127, 1, 0], house.address, &stop));
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..50 {
            let refreshed = client.ask_signed(Method::REFRESH, |request| request);
            assert_eq!(Message::parse(&refreshed).unwrap().class(), Class::Success);
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap();
    });
}

/// Every address of many networks asks more than once a bucket holds, and a newcomer is served all the same.
#[test]
fn a_newcomer_is_answered_while_many_networks_are_drained() {
    let house = House::on_loopback(
        "[limits]\nunlimited_from = []\nunauthenticated_rate = 1\nunauthenticated_burst = 4",
    );
    let binding = request(Method::BINDING).finish();
    for index in 0..20_000 {
        let socket = socket(source(index), house.address);
        for _ in 0..REQUESTS {
            socket.send(&binding).unwrap();
        }
        socket.recv(&mut [0; 64]).unwrap_or_else(|error| panic!("newcomer {index}: {error}"));
    }
}

/// A TCP connection from `ip`; whether it asked for a Binding and was answered.
fn is_answered(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
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
fn one_address_holds_so_many_connections_and_others_have_their_own() {
    let house = House::on_loopback("[limits]\nunlimited_from = []\nconnections_per_address = 8");
    let (one, other) = (Ipv4Addr::new(127, 1, 0, 1), Ipv4Addr::new(127, 1, 0, 2));
    let mut held: Vec<_> = (0..8).map(|_| connect(one, house.address)).collect();
    assert!(held.iter_mut().all(is_answered));
    assert!(!is_answered(&mut connect(one, house.address)));
    assert!(is_answered(&mut connect(other, house.address)));
    drop(held.pop());
    let deadline = Instant::now() + PATIENCE;
    while !is_answered(&mut connect(one, house.address)) {
        assert!(Instant::now() < deadline, "a closed connection still counts");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn loopback_has_no_limits_unless_it_is_told() {
    let house = House::at(
        &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        "[limits]\nunauthenticated_rate = 1\nunauthenticated_burst = 1\nconnections_per_address = 1",
    );
    let socket = socket(Ipv4Addr::LOCALHOST, house.address);
    let mut held = Vec::new();
    for _ in 0..20 {
        socket.send(&request(Method::BINDING).finish()).unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        held.push(connect(Ipv4Addr::LOCALHOST, house.address));
    }
    assert!(held.iter_mut().all(is_answered));
}
