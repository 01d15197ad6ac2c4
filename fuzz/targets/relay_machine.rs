//! The relays of two workers with arbitrary clients, peers and clock steps, checked against a model of what was granted: datagrams, TCP
//! (RFC 6062), mobility (RFC 8016), both address families, refused ports, user look-ups, small limits.

#[path = "relay_machine/allocations.rs"]
mod allocations;
#[path = "relay_machine/data.rs"]
mod data;
#[path = "relay_machine/driver.rs"]
mod driver;
#[path = "input.rs"]
mod input;
#[path = "relay_machine/model.rs"]
mod model;
#[path = "relay_machine/streams.rs"]
mod streams;

use ginnel::Now;
use ginnel::internals::net::time;
use ginnel::internals::turn_server::auth::{
    Authenticator, AuthenticatorConfig, LookupCacheConfig, LookupResult, RealmCredentials, UserKeys,
};
use ginnel::internals::turn_server::wire::parse_channel_data;
use ginnel::internals::turn_server::{
    AllocationLimits, CHANNEL_LIFETIME, ClientFrame, ConnectionId, FiveTuple, Forward, IcmpError,
    InternalPacket, IpHeader, Output, PERMISSION_LIFETIME, Rate, Relay, RelayAddress, RelayConfig, RelayId,
    RelaySocketError, SharedState, ToClient, ToPeer, Transport,
};
use ginnel::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};
use input::Input;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

const REALM: &str = "r";
/// The relay looks up the last user.
const USERS: [&str; 3] = ["alice", "bob", "carol"];
/// The users' long-term keys.
static DIGESTS: LazyLock<[[u8; 16]; USERS.len()]> =
    LazyLock::new(|| USERS.map(|user| long_term_digest(user, REALM, "pw")));
const WORKERS: usize = 2;
const RELAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4));
const RELAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 4));
const CLIENTS: u8 = 6;
const MAX_EVENTS: usize = 200;
const LIFETIMES: [u32; 6] = [600, 0, 1, 700, 3600, u32::MAX];
const WAITS: [u64; 16] = [0, 1, 29, 30, 31, 59, 60, 120, 299, 300, 301, 599, 600, 900, 3599, 3600];
/// The bandwidth of an allocation and of a user where it is limited, in bytes a second; the burst is half a second.
const BANDWIDTH: u64 = 40;
/// The longest wait of a connection for its peer, and then for its client.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const IP_HEADER: IpHeader = IpHeader { ttl: 0, tos: 0 };

/// The first two bytes choose the setup of the relays. Events follow, each of one byte and its operands. The same seed and the same
/// inputs give the same outputs: every fourth input runs twice.
pub(crate) fn run(data: &[u8]) {
    let start = Now { unix: 1_800_000_000, ..time::now() };
    let outputs = run_once(start, data);
    if data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) % 4 == 0 {
        assert_eq!(run_once(start, data), outputs, "the outputs depend only on the seed and the inputs");
    }
}

/// Returns a digest of all outputs.
fn run_once(start: Now, data: &[u8]) -> u64 {
    let mut input = Input(data);
    let mut world = World::new(start, input.byte(), input.byte());
    for _ in 0..MAX_EVENTS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check();
    }
    world.end()
}

/// An allocation as it was granted.
struct Granted {
    /// Identifies the allocation when it moves to another 5-tuple.
    id: usize,
    user: usize,
    until: Instant,
    /// Whether it relays TCP.
    tcp: bool,
    /// The number of its mobility tickets.
    tickets: usize,
    /// Its start, and the bytes that it has relayed since.
    start: Instant,
    relayed: u64,
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, (SocketAddr, Instant)>,
    /// Its known relayed addresses: those in responses, and those that have sent data.
    addresses: Vec<SocketAddr>,
}

/// A relay socket: the worker and its id there.
type Socket = (usize, RelayId);

/// A mobility ticket: its bytes, its allocation, and the number of tickets before it.
struct Ticket {
    sealed: Vec<u8>,
    id: usize,
    number: usize,
}

/// The state of a connection to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Offered,
    Joined,
}

/// A connection between a relayed address and a peer.
#[derive(Debug)]
struct PeerConnection {
    id: usize,
    worker: usize,
    user: usize,
    stage: Stage,
    since: Instant,
}

struct World {
    relays: [Relay; WORKERS],
    shared: SharedState,
    now: Now,
    sockets: BTreeMap<Socket, SocketAddr>,
    /// Listening relay sockets.
    listeners: BTreeMap<Socket, SocketAddr>,
    connections: BTreeMap<ConnectionId, PeerConnection>,
    /// The ids of ended connections.
    closed: Vec<ConnectionId>,
    tickets: Vec<Ticket>,
    allocated: usize,
    /// Clients whose allocation is on another worker than their packets.
    forwarded: BTreeMap<u8, usize>,
    /// The digest of the outputs.
    log: DefaultHasher,
    granted: BTreeMap<u8, Granted>,
    nonces: HashMap<u8, Vec<u8>>,
    /// The last reservation: its token, user and port.
    token: Option<(Vec<u8>, usize, u16)>,
    /// The expiry of each reservation.
    reservations: Vec<Instant>,
    /// Whether opening a relay socket fails.
    refusing: bool,
    transactions: u32,
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        let event = input.byte();
        let client = input.byte();
        let (client, user) = (client % CLIENTS, usize::from(client / CLIENTS) % USERS.len());
        match event % 22 {
            0 | 1 => self.allocate(client, user, input.byte(), input.byte()),
            2 => self.refresh(client, user, input.byte()),
            3 | 4 => self.permit(client, user, input.byte()),
            5 | 6 => self.bind(client, user, input.byte()),
            7 | 8 => self.send(client, input.byte()),
            9 => self.channel_data(client, input.byte()),
            10 | 11 => self.receive_from_peer(usize::from(client), input.byte()),
            12 => self.wait(WAITS[usize::from(input.byte()) % WAITS.len()]),
            13 => self.raw(client, input.bytes(100)),
            14 if client == 0 => self.refusing = !self.refusing,
            14 => self.receive_icmp_error(usize::from(client), input.byte()),
            15 => self.remove_client(client),
            16 => self.resume(client, user, input.byte(), input.byte()),
            17 => self.connect(client, user, input.byte()),
            18 => self.finish_connect(usize::from(client), input.byte()),
            19 => self.accept_connection(usize::from(client), input.byte()),
            20 => self.bind_connection(client, user, usize::from(input.byte())),
            _ => self.close_connection(usize::from(client)),
        }
    }

    fn remove_client(&mut self, client: u8) {
        for relay in &mut self.relays {
            relay.handle_client_gone(tuple(client));
        }
        assert!(self.drain().is_empty());
        self.forwarded.remove(&client);
        self.remove_allocation(client);
    }

    fn peer(&self, number: u8) -> SocketAddr {
        match number % 10 {
            n @ 0..=5 => SocketAddr::from(([8, 8, 8, n / 2], 7 + u16::from(n % 2))),
            6 => SocketAddr::from(([127, 0, 0, 1], 7)),
            7 => SocketAddr::new(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 0x99).into(), 7),
            8 => SocketAddr::new(Ipv4Addr::new(8, 8, 8, 0).to_ipv6_mapped().into(), 7),
            _ => {
                let mut own = self.sockets.values().skip(usize::from(number / 10));
                own.next().copied().unwrap_or(SocketAddr::from(([8, 8, 8, 9], 0)))
            }
        }
    }

    fn builder(&mut self, class: Class, method: Method) -> Builder {
        self.transactions += 1;
        let [a, b, c, d] = self.transactions.to_be_bytes();
        Builder::new(class, method, TransactionId::new([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]))
    }

    /// Sends a request; returns its response, or none for a pending Connect.
    fn exchange(&mut self, client: u8, bytes: &[u8]) -> Option<Vec<u8>> {
        let connecting = self.connections.len();
        assert!(self.send_frame(client, bytes).is_none());
        let mut replies = self.drain();
        if replies.is_empty() {
            assert_eq!(self.connections.len(), connecting + 1, "one request, one response");
            return None;
        }
        assert_eq!(replies.len(), 1, "one request, one response");
        let (to, reply) = replies.remove(0);
        assert_eq!(to, tuple(client));
        Some(reply)
    }

    /// Sends a request of `user` with the relay's nonce; returns the response if it is a success.
    fn request(
        &mut self,
        client: u8,
        user: usize,
        method: Method,
        fill: impl Fn(Builder) -> Builder,
    ) -> Option<Vec<u8>> {
        let key = Key::from_bytes(&DIGESTS[user]);
        for _ in 0..3 {
            let builder = fill(self.builder(Class::Request, method));
            let bytes = match self.nonces.get(&client) {
                None => builder.finish(),
                Some(nonce) => builder
                    .attribute(attr::USERNAME, USERS[user].as_bytes())
                    .attribute(attr::REALM, REALM.as_bytes())
                    .attribute(attr::NONCE, nonce)
                    .integrity(&key)
                    .finish(),
            };
            let reply = self.exchange(client, &bytes)?;
            let message = Message::parse(&reply).expect("a reply is sound");
            match message.unverified().error_code() {
                Some(401 | 438) => {
                    let nonce = message.unverified().get(attr::NONCE).expect("a challenge has a nonce");
                    self.nonces.insert(client, nonce.to_vec());
                }
                Some(_) => return None,
                None => {
                    assert!(message.verify(&key).is_some(), "a success is signed");
                    return Some(reply);
                }
            }
        }
        panic!("valid credentials were refused");
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        let connecting = self.connections.values().filter(|link| link.stage == Stage::Connecting).count();
        for relay in &mut self.relays {
            relay.handle_timeout(self.now);
        }
        let replies = self.drain();
        assert!(replies.len() <= connecting, "a timer answers only a Connect");
        assert!(replies.iter().all(|(_, reply)| error_code(reply) == Some(447)));
        let now = self.now.mono;
        self.reservations.retain(|until| *until > now);
        let over: Vec<_> =
            self.granted.iter().filter(|(_, allocation)| allocation.until <= now).map(|(c, _)| *c).collect();
        over.into_iter().for_each(|client| self.remove_allocation(client));
    }
}

/// Returns the client that a forward goes to, and its frame.
fn frame_of(forward: &ToClient, received: &[u8]) -> (u8, Vec<u8>) {
    let padding = vec![0; forward.padding];
    let payload = &received[forward.payload.clone()];
    (client_of(forward.client), [forward.header.as_bytes(), payload, &padding].concat())
}

fn tuple(client: u8) -> FiveTuple {
    let transport = if client < 4 { Transport::Udp } else { Transport::Tcp };
    let address = SocketAddr::from(([192, 0, 2, 7], 1000 + u16::from(client)));
    FiveTuple { client: address, server: SocketAddr::new(RELAY_V4, 3478), transport }
}

fn client_of(five_tuple: FiveTuple) -> u8 {
    (0..CLIENTS).find(|client| tuple(*client) == five_tuple).expect("one of the clients")
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn error_code(reply: &[u8]) -> Option<u16> {
    Message::parse(reply).unwrap().unverified().error_code()
}

/// Returns an entry of a map, modulo its length.
fn nth<K: Copy, V>(map: &BTreeMap<K, V>, which: usize) -> Option<(K, &V)> {
    map.iter().nth(which % map.len().max(1)).map(|(key, value)| (*key, value))
}
