//! The time per packet in the relay's state machine, without sockets, and the time and memory per allocation. With more allocations a packet
//! costs more only by cache misses.
//!
//! `cargo bench --bench relay -- --quick`. All checks and limits are on; the limits are never reached.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench fails by panicking")]
#![allow(clippy::print_stdout, reason = "memory is not a time, which is all that criterion reports")]

use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ginnel::Now;
use ginnel::internals::net::time;
use ginnel::internals::turn_server::auth::Credentials;
use ginnel::stun::{
    Builder, Class, Key, MAGIC_COOKIE, Message, Method, TransactionId, attr, long_term_digest,
};
use ginnel::stun_server;
use ginnel::turn_server::{
    Authenticator, ClientFrame, FiveTuple, Forward, IpHeader, Output, PREFETCH_BATCH, Rate, Relay,
    RelayAddress, RelayConfig, RelayId, Transport,
};
use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const ALLOCATIONS: [usize; 3] = [1, 1000, 100_000];
/// A voice packet: 12 bytes of RTP header, 160 bytes of audio.
/// Packets per batch of a busy worker.
const BATCH: usize = PREFETCH_BATCH;
const PAYLOAD: usize = 172;
const CHANNEL: [u8; 2] = [0x40, 0];
const IP_HEADER: IpHeader = IpHeader { ttl: 64, tos: 0 };
/// Coprime to every number of allocations, so that all are used, and not in the order of memory.
const STRIDE: usize = 61_803;
/// Enough relay addresses for the largest number of allocations.
const RELAY_ADDRESSES: u8 = 8;
/// Clients that allocate in turn.
const ASKERS: usize = 512;
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);

/// A relay with one peer for each allocation.
struct World {
    now: Now,
    relay: Relay,
    /// The relay port of each allocation.
    ports: Vec<RelayId>,
    authenticator: Arc<Authenticator>,
    count: usize,
    turn: usize,
}

fn client(index: usize) -> FiveTuple {
    let [_, a, b, c] = (index as u32).to_be_bytes();
    let client = SocketAddr::from(([10, a, b, c], 40_000));
    FiveTuple { client, server: SocketAddr::from((SERVER, 3478)), transport: Transport::Udp }
}

fn peer(index: usize) -> SocketAddr {
    let [_, a, b, c] = (index as u32).to_be_bytes();
    SocketAddr::from(([8, a, b, c], 5000))
}

fn config() -> RelayConfig {
    let users = HashMap::from([("load".to_owned(), long_term_digest("load", "r", "pw"))]);
    let [a, b, c, d] = SERVER.octets();
    let own: Vec<_> = (0..RELAY_ADDRESSES).map(|more| IpAddr::from([a, b, c, d + more])).collect();
    let addresses: Vec<_> = own.iter().map(|ip| RelayAddress::from(*ip)).collect();
    let authenticator = Authenticator::new("r", Credentials { users, rest: None }, &[5; 32]);
    let mut config = RelayConfig::new(authenticator, &addresses);
    config.policy.own_addresses = own;
    config.policy.own_ports = vec![3478];
    config.allocations_per_user = u32::MAX;
    config.max_allocations = u32::MAX;
    let out_of_reach = Rate::bytes(1 << 60);
    config.limits.allocation_bandwidth = out_of_reach;
    config.limits.user_bandwidth = out_of_reach;
    config.limits.user_new_peers = Rate::bytes(0);
    config
}

/// How allocations permit their peers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Channel,
    Permission,
    /// Each client's peer is its partner's relayed address, by a channel.
    Partner,
}

impl World {
    fn empty() -> Self {
        // Ten seconds after the relay's start, so that the rate limiters are empty.
        let began = time::now();
        let config = config();
        let authenticator = Arc::clone(&config.authenticator);
        let relay = Relay::new(began, config, [7; 32]);
        let now = began.after(Duration::from_secs(10));
        Self { now, relay, ports: Vec::new(), authenticator, count: 0, turn: 0 }
    }

    /// Makes `count` allocations that permit their peer.
    fn new(count: usize, by: By) -> Self {
        let mut world = Self { ports: Vec::with_capacity(count), count, ..Self::empty() };
        let addresses: Vec<_> = (0..count).map(|index| world.allocate(index)).collect();
        for index in 0..count {
            let peer = if by == By::Partner { addresses[index ^ 1] } else { peer(index) };
            let with_peer = |request: Builder| request.xor_address(attr::XOR_PEER_ADDRESS, peer);
            let request = match by {
                By::Permission => world.request(index, 2, Method::CREATE_PERMISSION, &with_peer),
                _ => world.request(index, 2, Method::CHANNEL_BIND, &|request| {
                    with_peer(request.attribute(attr::CHANNEL_NUMBER, &[CHANNEL[0], CHANNEL[1], 0, 0]))
                }),
            };
            world.send_request(client(index), &request);
            let indication = send_indication(peer);
            match world.handle(client(index), &indication) {
                Forward::Peer(sent) => {
                    assert_eq!(sent.peer, peer);
                    world.ports.push(sent.relay);
                }
                _ => assert!(by == By::Partner),
            }
        }
        assert_eq!(world.relay.len(), count);
        world
    }

    /// Makes an allocation and returns its relayed address.
    fn allocate(&mut self, index: usize) -> SocketAddr {
        let request = self.request(index, 1, Method::ALLOCATE, &allocate);
        let answer = self.send_request(client(index), &request);
        let answer = Message::parse(&answer).unwrap();
        answer.unverified().xor_address(attr::XOR_RELAYED_ADDRESS).unwrap().unwrap()
    }

    /// Makes a client's request with credentials.
    fn request(&self, index: usize, step: u8, method: Method, fill: &dyn Fn(Builder) -> Builder) -> Vec<u8> {
        let key = Key::from_bytes(&long_term_digest("load", "r", "pw"));
        let nonce = self.authenticator.challenge(self.now, &client(index)).nonce;
        let mut id = [step; 12];
        id[..8].copy_from_slice(&(index as u64).to_be_bytes());
        fill(Builder::new(Class::Request, method, TransactionId::new(id)))
            .attribute(attr::USERNAME, b"load")
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(&key)
            .finish()
    }

    /// Handles a frame from a client, as the worker does.
    fn handle(&mut self, client: FiveTuple, frame: &[u8]) -> Forward {
        let frame = ClientFrame::parse(frame).unwrap();
        self.relay.handle_client(self.now, client, IP_HEADER, frame)
    }

    /// Sends a request and returns the success response.
    fn send_request(&mut self, who: FiveTuple, request: &[u8]) -> Vec<u8> {
        assert!(matches!(self.handle(who, request), Forward::Control));
        let answer = self.drain().unwrap();
        assert_eq!(Message::parse(&answer).unwrap().class(), Class::Success);
        answer
    }

    /// Handles the relay's outputs; returns the last response.
    fn drain(&mut self) -> Option<Vec<u8>> {
        let mut answer = None;
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::OpenRelaySocket { relay, .. } => {
                    self.relay.handle_relay_opened(self.now, relay, Ok(()))
                }
                Output::Response { bytes, .. } => answer = Some(bytes),
                _ => {}
            }
        }
        answer
    }

    /// Returns the next allocation.
    fn next(&mut self) -> usize {
        self.turn = (self.turn + STRIDE) % self.count;
        self.turn
    }

    /// Returns the next allocations.
    fn batch(&mut self) -> [usize; BATCH] {
        std::array::from_fn(|_| self.next())
    }

    /// Relays a batch from clients to peers, as a worker does.
    fn clients_send<'a>(&mut self, clients: &[FiveTuple], frame: impl Fn(usize) -> &'a [u8]) {
        if self.relay.should_prefetch(clients.len()) {
            self.relay.prefetch_clients(clients.iter().copied());
        }
        for (place, client) in clients.iter().enumerate() {
            let forward = black_box(self.handle(*client, black_box(frame(place))));
            assert!(matches!(forward, Forward::Peer(_)));
        }
    }

    /// Relays a batch between clients of the same server.
    fn clients_send_within(&mut self, clients: &[FiveTuple], frame: &[u8]) {
        if self.relay.should_prefetch(clients.len()) {
            self.relay.prefetch_clients(clients.iter().copied());
        }
        for client in clients {
            let forward = black_box(self.handle(*client, black_box(frame)));
            assert!(matches!(forward, Forward::LocalClient(_)));
        }
    }

    /// Relays datagrams of several relay ports to clients, as a worker does.
    fn peers_send(&mut self, peers: &[(RelayId, SocketAddr)], payload: &[u8]) {
        for (relay, peer) in peers {
            let passed = self.relay.handle_peer(self.now, *relay, *peer, IP_HEADER, black_box(payload));
            assert!(black_box(passed).is_ok());
        }
    }
}

fn allocate(request: Builder) -> Builder {
    request.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
}

fn send_indication(peer: SocketAddr) -> Vec<u8> {
    Builder::new(Class::Indication, Method::SEND, TransactionId::new([9; 12]))
        .xor_address(attr::XOR_PEER_ADDRESS, peer)
        .attribute(attr::DATA, &[7; PAYLOAD])
        .finish()
}

/// Replaces the IPv4 address of the peer in a Send indication, whose first attribute it is.
fn readdress(indication: &mut [u8], index: usize) {
    let SocketAddr::V4(address) = peer(index) else { return };
    let xored = u32::from(*address.ip()) ^ MAGIC_COOKIE;
    indication[28..32].copy_from_slice(&xored.to_be_bytes());
}

fn relaying(c: &mut Criterion) {
    let payload = [7; PAYLOAD];
    let frame = channel_data(&payload);
    for channels in [true, false] {
        for count in ALLOCATIONS {
            let mut world = World::new(count, if channels { By::Channel } else { By::Permission });
            let (up, down) = match channels {
                true => ("channel to peer", "peer to channel"),
                false => ("send indication", "data indication"),
            };
            let mut group = c.benchmark_group(up);
            group.throughput(Throughput::Elements(BATCH as u64));
            let mut frames = vec![if channels { frame.clone() } else { send_indication(peer(0)) }; BATCH];
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                in_batches(b, || {
                    let batch = world.batch();
                    if !channels {
                        frames.iter_mut().zip(batch).for_each(|(frame, index)| readdress(frame, index));
                    }
                    let clients = batch.map(client);
                    timed(|| world.clients_send(&clients, |place| &frames[place]))
                });
            });
            group.finish();
            let mut group = c.benchmark_group(down);
            group.throughput(Throughput::Elements(BATCH as u64));
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                in_batches(b, || {
                    let mut peers = world.batch().map(|index| (world.ports[index], peer(index)));
                    peers.sort_by_key(|(relay, _)| *relay);
                    timed(|| world.peers_send(&peers, &payload))
                });
            });
            group.finish();
        }
    }
}

/// Returns the sum of the durations of `batch`; the creation of packets is not measured.
fn in_batches(b: &mut Bencher<'_>, mut batch: impl FnMut() -> Duration) {
    b.iter_custom(|batches| (0..batches).map(|_| batch()).sum());
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = time::now().mono;
    work();
    time::now().mono.duration_since(began)
}

fn channel_data(payload: &[u8]) -> Vec<u8> {
    [&CHANNEL[..], &(payload.len() as u16).to_be_bytes(), payload].concat()
}

/// From one client to another, without leaving the machine.
fn short_way(c: &mut Criterion) {
    let frame = channel_data(&[7; PAYLOAD]);
    let mut group = c.benchmark_group("client to client");
    group.throughput(Throughput::Elements(BATCH as u64));
    for count in ALLOCATIONS {
        let mut world = World::new(count.max(2), By::Partner);
        group.bench_function(BenchmarkId::from_parameter(count.max(2)), |b| {
            in_batches(b, || {
                let clients = world.batch().map(client);
                timed(|| world.clients_send_within(&clients, &frame))
            });
        });
    }
    group.finish();
}

/// The whole exchange from 401 to the end of the allocation, beside other allocations; and their memory.
fn allocating(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocate exchange");
    for count in ALLOCATIONS {
        let before = resident();
        let mut world = World::new(count, By::Channel);
        if count == ALLOCATIONS[2] {
            println!("memory/{count}: {} bytes an allocation", (resident() - before) / count);
        }
        let bare = Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([3; 12]));
        let bare = allocate(bare).finish();
        let signed = |index| world.request(index, 1, Method::ALLOCATE, &allocate);
        let askers: Vec<_> = (count..count + ASKERS).map(|index| (client(index), signed(index))).collect();
        let mut turns = (0..ASKERS).cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                let (who, signed) = &askers[turns.next().unwrap()];
                assert!(matches!(world.handle(*who, black_box(&bare)), Forward::Control));
                black_box(world.drain());
                world.send_request(*who, black_box(signed));
                world.relay.handle_client_gone(*who);
                black_box(world.drain());
            });
        });
    }
    group.finish();
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn binding(c: &mut Criterion) {
    let request = Builder::new(Class::Request, Method::BINDING, TransactionId::new([4; 12])).finish();
    let mut group = c.benchmark_group("binding");
    group.throughput(Throughput::Elements(1));
    group.bench_function("answer", |b| {
        b.iter(|| {
            let message = Message::parse(black_box(&request)).unwrap();
            stun_server::respond(&message, peer(1)).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, allocating, binding, relaying, short_way);
criterion_main!(benches);
