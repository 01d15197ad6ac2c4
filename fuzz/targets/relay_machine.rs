//! Two workers' relays under clients, peers and a clock that do as they please, beside a model that only knows what was granted:
//! datagrams, TCP (RFC 6062), moving clients (RFC 8016), both families, refused ports, look-ups, small limits.

use ginnel::clock::Now;
use ginnel::net::time;
use ginnel::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};
use ginnel::turn_server::auth::{Authority, CacheLimits, RealmSetup, Setup, UserKeys, Verdict};
use ginnel::turn_server::data::PeerError;
use ginnel::turn_server::machine::{Features, Limits, Marks, Output, ToClient, ToPeer};
use ginnel::turn_server::mobility::Tickets;
use ginnel::turn_server::policy::{PeerPolicy, PolicyConfig};
use ginnel::turn_server::ports::{RelayAddress, RelayPorts};
use ginnel::turn_server::quota::Quota;
use ginnel::turn_server::rate::Rate;
use ginnel::turn_server::wire::parse_channel_data;
use ginnel::turn_server::{
    CHANNEL_LIFETIME, ConnectionId, FiveTuple, PERMISSION_LIFETIME, Relay, RelayId, Shared, Transport,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const REALM: &str = "r";
/// The last one is nobody's here: others are asked about him.
const USERS: [&str; 3] = ["alice", "bob", "carol"];
const WORKERS: usize = 2;
const RELAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4));
const RELAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 4));
const CLIENTS: u8 = 6;
const MAX_EVENTS: usize = 200;
const LIFETIMES: [u32; 6] = [600, 0, 1, 700, 3600, u32::MAX];
const WAITS: [u64; 16] = [0, 1, 29, 30, 31, 59, 60, 120, 299, 300, 301, 599, 600, 900, 3599, 3600];
/// What an allocation and a user may relay where bandwidth is capped, in bytes a second; half a second's worth passes at once.
const BANDWIDTH: u64 = 40;
/// How long a connection may wait for its peer, and then for its client.
const PATIENCE: Duration = Duration::from_secs(30);
const MARKS: Marks = Marks { ttl: 0, tos: 0 };

/// The first two bytes choose how the relays are set up; then events follow, each one byte and its operands. Everything happens
/// twice: the same seed and the same inputs give the same outputs.
pub(crate) fn run(data: &[u8]) {
    let start = Now { unix: 1_800_000_000, ..time::now() };
    assert_eq!(play(start, data), play(start, data), "the outputs depend on something else");
}

/// Returns a digest of all outputs.
fn play(start: Now, data: &[u8]) -> u64 {
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

/// Bytes that are used up; zeros when they are.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, most: usize) -> &[u8] {
        let wanted = usize::from(self.byte()) % most;
        let (taken, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// What a client may rely on.
struct Life {
    /// Names the allocation wherever it moves.
    birth: usize,
    user: usize,
    until: Instant,
    /// Whether it relays TCP.
    tcp: bool,
    /// How many tickets it was given.
    tickets: usize,
    /// When it began, and the bytes it has relayed since.
    began: Instant,
    relayed: u64,
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, (SocketAddr, Instant)>,
    /// Whether one of two relayed addresses was given up.
    partial: bool,
}

/// A relay port's socket: the worker and the number that it knows it by.
type Socket = (usize, RelayId);

/// A mobility ticket: its bytes, whose, of which allocation, and how many there were before.
struct Ticket {
    sealed: Vec<u8>,
    birth: usize,
    number: usize,
}

/// How far a connection to a peer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Offered,
    Joined,
}

/// A connection between a relayed address and a peer.
#[derive(Debug)]
struct Link {
    birth: usize,
    worker: usize,
    user: usize,
    stage: Stage,
    since: Instant,
}

struct World {
    relays: [Relay; WORKERS],
    shared: Shared,
    now: Now,
    sockets: BTreeMap<Socket, SocketAddr>,
    /// Sockets that peers connect to.
    listeners: BTreeMap<Socket, SocketAddr>,
    links: BTreeMap<ConnectionId, Link>,
    tickets: Vec<Ticket>,
    births: usize,
    /// Clients that arrive at one worker and belong to another.
    passed_on: BTreeMap<u8, usize>,
    /// What was put out so far.
    log: DefaultHasher,
    lives: BTreeMap<u8, Life>,
    nonces: HashMap<u8, Vec<u8>>,
    /// Whose peer it is that knows a relayed address: (relayed address, peer) → client.
    talks: HashMap<(SocketAddr, SocketAddr), u8>,
    /// The last port that was set aside: its token, user and number.
    token: Option<(Vec<u8>, usize, u16)>,
    /// Until when ports wait for their tokens.
    set_aside: Vec<Instant>,
    /// Whether the system refuses ports now.
    refusing: bool,
    transactions: u32,
}

// --- what depends on how the relay is built and spoken to

fn shared(setup: u8, more: u8) -> Shared {
    let own = vec![RELAY_V4, RELAY_V6];
    let addresses: Vec<_> = own.iter().map(|ip| RelayAddress { local: *ip, advertised: *ip }).collect();
    let ports = Arc::new(RelayPorts::new(&addresses, 50_000..=50_000 + u16::from(setup >> 4)));
    let policy = PolicyConfig { own_addresses: own, own_ports: vec![3478], ..Default::default() };
    let limited = |rate: Rate, bit: u8| if more & bit != 0 { rate } else { Rate::bytes(0) };
    let limits = Limits {
        shared_ports: usize::from(setup % 4),
        permissions: if more & 1 != 0 { 3 } else { 128 },
        new_peers: limited(Rate { per_second: 1, burst: Duration::from_secs(2) }, 2),
        allocation_bandwidth: limited(Rate::bytes(BANDWIDTH), 4),
        user_bandwidth: limited(Rate::bytes(BANDWIDTH), 8),
        ..Limits::default()
    };
    Shared {
        authority: Arc::new(authority()),
        alternates: Arc::default(),
        policy: Arc::new(PeerPolicy::new(policy, Arc::clone(&ports))),
        ports,
        reservations: Arc::default(),
        quota: Arc::new(Quota::new(3, 5)),
        addresses: addresses.into(),
        connections: Arc::default(),
        tickets: Arc::new(Tickets::new(&[6; 32]).unwrap()),
        worker: 0,
        limits,
        features: Features { add_family: setup & 4 != 0, ..Features::default() },
    }
}

fn authority() -> Authority {
    let md5 = |user| UserKeys { md5: Some(long_term_digest(user, REALM, "pw")), sha256: None };
    let users = USERS[..2].iter().map(|user| ((*user).to_owned(), md5(user))).collect();
    let realm = RealmSetup { name: REALM.to_owned(), users, ..RealmSetup::default() };
    let (known, unknown) = (Duration::from_secs(60), Duration::from_secs(10));
    let lookup = Some(CacheLimits { known, unknown, entries: 4 });
    Authority::with(Setup { realms: vec![realm], lookup, ..Setup::default() }, &[5; 32])
}

impl World {
    fn new(now: Now, setup: u8, more: u8) -> Self {
        let shared = shared(setup, more);
        let relay = |worker: u16| {
            let seed = ChaCha20Rng::from_seed([7 + worker as u8; 32]);
            Relay::new(now, Shared { worker, ..shared.clone() }, seed)
        };
        Self {
            relays: [relay(0), relay(1)],
            shared,
            now,
            sockets: BTreeMap::new(),
            listeners: BTreeMap::new(),
            links: BTreeMap::new(),
            tickets: Vec::new(),
            births: 0,
            passed_on: BTreeMap::new(),
            log: DefaultHasher::new(),
            lives: BTreeMap::new(),
            nonces: HashMap::new(),
            talks: HashMap::new(),
            token: None,
            set_aside: Vec::new(),
            refusing: false,
            transactions: 0,
        }
    }

    /// Carries out what the relays say; returns their replies.
    fn drain(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        let mut replies = Vec::new();
        for worker in [0, 1, 0] {
            while let Some(output) = self.relays[worker].poll_output() {
                format!("{output:?}").hash(&mut self.log);
                self.carry_out(worker, output, &mut replies);
            }
        }
        assert!(self.relays[1].poll_output().is_none());
        replies
    }

    fn carry_out(&mut self, worker: usize, output: Output, replies: &mut Vec<(FiveTuple, Vec<u8>)>) {
        let now = self.now;
        match output {
            Output::Reply { client, bytes, .. } => replies.push((client, bytes)),
            Output::OpenRelay { relay, address, tcp } => {
                assert!(self.shared.ports.is_leased(address), "a socket needs a leased port");
                let mut open = self.sockets.values().chain(self.listeners.values());
                assert!(open.all(|open| *open != address), "no port is opened twice");
                if !self.refusing {
                    let kind = if tcp { &mut self.listeners } else { &mut self.sockets };
                    kind.insert((worker, relay), address);
                }
                self.relays[worker].handle_relay_opened(now, relay, !self.refusing);
            }
            Output::CloseRelay { relay } => {
                let socket = (worker, relay);
                let closed = self.sockets.remove(&socket).or_else(|| self.listeners.remove(&socket));
                self.talks.retain(|(address, _), _| Some(*address) != closed);
            }
            Output::LookUp { question } => {
                let keys = UserKeys { md5: Some(long_term_digest(USERS[2], REALM, "pw")), sha256: None };
                let verdict = match question.user == USERS[2] {
                    true => Verdict::Known { keys, expires_unix: None },
                    false => Verdict::Unknown,
                };
                self.shared.authority.learn(now, Arc::clone(&question), verdict);
                self.relays[worker].handle_lookup_done(now, &question, true);
            }
            Output::Connect { connection, from, to } => {
                assert!(self.listeners.values().any(|own| *own == from) || self.refusing);
                assert!(!to.ip().is_loopback() && to.port() != 0, "a denied peer");
                self.link(connection, worker, Stage::Connecting);
            }
            Output::Join { client, connection, reply, .. } => {
                let link = self.links.get_mut(&connection).expect("a connection that is there");
                assert_eq!(link.stage, Stage::Offered, "joined once");
                link.stage = Stage::Joined;
                replies.push((client, reply));
            }
            Output::Disconnect { connection } => {
                assert!(self.links.remove(&connection).is_some(), "a connection ends once");
            }
            Output::Elsewhere { client, worker, bytes } => {
                let number = client_of(client);
                self.passed_on.insert(number, worker.into());
                assert!(self.relays[usize::from(worker)].handle_client(now, client, MARKS, &bytes).is_none());
            }
            Output::Left { client } => {
                let number = client_of(client);
                if self.passed_on.get(&number) == Some(&worker) {
                    self.passed_on.remove(&number);
                }
            }
        }
    }

    /// Notes a connection of whoever has asked, or is told, last.
    fn link(&mut self, connection: ConnectionId, worker: usize, stage: Stage) {
        let link = Link { birth: usize::MAX, worker, user: 0, stage, since: self.now.mono };
        assert!(self.links.insert(connection, link).is_none(), "a connection's name is its own");
    }

    /// The worker that serves a client.
    fn worker(&self, client: u8) -> usize {
        self.passed_on.get(&client).copied().unwrap_or(usize::from(client) % WORKERS)
    }

    fn client_says(&mut self, client: u8, bytes: &[u8]) -> Option<(Socket, SocketAddr, Vec<u8>)> {
        let worker = self.worker(client);
        let forward = self.relays[worker].handle_client(self.now, tuple(client), MARKS, bytes);
        format!("{forward:?}").hash(&mut self.log);
        forward.map(|ToPeer { relay, peer, payload, .. }| ((worker, relay), peer, payload.to_vec()))
    }

    fn peer_says(
        &mut self,
        (worker, relay): Socket,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Option<(u8, Vec<u8>)> {
        let forward = self.relays[worker].handle_peer(self.now, relay, peer, MARKS, payload);
        format!("{forward:?}").hash(&mut self.log);
        frame(forward)
    }

    fn peer_refuses(&mut self, (worker, relay): Socket, peer: SocketAddr) -> Option<(u8, Vec<u8>)> {
        let error = PeerError { peer, kind: 3, code: 3, data: [0; 4] };
        frame(self.relays[worker].handle_peer_error(self.now, relay, error))
    }
}

/// The client that a forward goes to, and its bytes.
fn frame(forward: Option<ToClient<'_>>) -> Option<(u8, Vec<u8>)> {
    let forward = forward?;
    let padding = vec![0; forward.padding];
    Some((client_of(forward.client), [forward.header.as_bytes(), forward.payload, &padding].concat()))
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

// --- events

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
            10 | 11 => self.hear_peer(usize::from(client), input.byte()),
            12 => self.wait(WAITS[usize::from(input.byte()) % WAITS.len()]),
            13 => self.raw(client, input.bytes(100)),
            14 if client == 0 => self.refusing = !self.refusing,
            14 => self.hear_error(usize::from(client), input.byte()),
            15 => self.leave(client),
            16 => self.resume(client, user, input.byte(), input.byte()),
            17 => self.connect(client, user, input.byte()),
            18 => self.settle(usize::from(client), input.byte()),
            19 => self.hear_connection(usize::from(client), input.byte()),
            20 => self.join(client, user, usize::from(input.byte())),
            _ => self.hang_up(usize::from(client)),
        }
    }

    fn leave(&mut self, client: u8) {
        for relay in &mut self.relays {
            relay.handle_client_gone(tuple(client));
        }
        assert!(self.drain().is_empty());
        self.passed_on.remove(&client);
        self.bury(client);
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

    /// Sends a request; returns its one reply, none for a Connect that is under way.
    fn exchange(&mut self, client: u8, bytes: &[u8]) -> Option<Vec<u8>> {
        let connecting = self.links.len();
        assert!(self.client_says(client, bytes).is_none());
        let mut replies = self.drain();
        if replies.is_empty() {
            assert_eq!(self.links.len(), connecting + 1, "one request, one reply");
            return None;
        }
        assert_eq!(replies.len(), 1, "one request, one reply");
        let (to, reply) = replies.remove(0);
        assert_eq!(to, tuple(client));
        Some(reply)
    }

    /// Asks as `user`, with a nonce that the relay has given; returns the reply to a request that was granted.
    fn ask(
        &mut self,
        client: u8,
        user: usize,
        method: Method,
        fill: impl Fn(Builder) -> Builder,
    ) -> Option<Vec<u8>> {
        let key = Key::from_bytes(&long_term_digest(USERS[user], REALM, "pw"));
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
        panic!("right credentials were refused");
    }

    fn allocate(&mut self, client: u8, user: usize, options: u8, more: u8) {
        let (tcp, mobile) = (more & 1 != 0, more & 2 != 0);
        let token = self.token.clone();
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.ask(client, user, Method::ALLOCATE, |mut builder| {
            builder = builder.attribute(attr::REQUESTED_TRANSPORT, &[if tcp { 6 } else { 17 }, 0, 0, 0]);
            if mobile {
                builder = builder.attribute(attr::MOBILITY_TICKET, b"");
            }
            builder = match options & 3 {
                0 => builder,
                3 => builder.attribute(ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
                family => builder.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]),
            };
            builder = match ((options >> 2) & 3, &token) {
                (1, _) => builder.attribute(attr::EVEN_PORT, &[0]),
                (2, _) => builder.attribute(attr::EVEN_PORT, &[0x80]),
                (3, Some((token, ..))) => builder.attribute(attr::RESERVATION_TOKEN, token),
                _ => builder,
            };
            builder.attribute(attr::LIFETIME, &asked.to_be_bytes())
        });
        let Some(reply) = reply else { return };
        assert!(!self.lives.contains_key(&client), "one allocation a five-tuple");
        let message = Message::parse(&reply).unwrap();
        let attributes = message.unverified();
        let relayed: Vec<_> =
            attributes.xor_addresses(attr::XOR_RELAYED_ADDRESS).map(Result::unwrap).collect();
        let open: Vec<_> = if tcp { &self.listeners } else { &self.sockets }.values().copied().collect();
        assert!(!relayed.is_empty() && relayed.iter().all(|at| open.contains(at)));
        let wanted = if options & 3 == 3 { 2 } else { 1 };
        let missing = attributes.get(attr::ADDRESS_ERROR_CODE).is_some();
        assert_eq!(relayed.len() + usize::from(missing), wanted, "what is missing is said");
        match ((options >> 2) & 3, token) {
            (1 | 2, _) => assert!(relayed.iter().all(|address| address.port() % 2 == 0)),
            (3, Some((_, owner, port))) => assert_eq!((user, relayed[0].port()), (owner, port)),
            _ => {}
        }
        if let Some(token) = attributes.get(attr::RESERVATION_TOKEN) {
            self.token = Some((token.to_vec(), user, relayed[0].port() + 1));
            self.set_aside.push(self.now.mono + Duration::from_secs(30));
        }
        self.births += 1;
        let life = Life {
            birth: self.births,
            user,
            until: self.until(&reply),
            tcp,
            tickets: 0,
            began: self.now.mono,
            relayed: 0,
            permissions: HashMap::new(),
            channels: HashMap::new(),
            partial: false,
        };
        self.lives.insert(client, life);
        assert_eq!(mobile, attributes.get(attr::MOBILITY_TICKET).is_some());
        self.keep_ticket(client, &reply);
    }

    fn keep_ticket(&mut self, client: u8, reply: &[u8]) {
        let message = Message::parse(reply).unwrap();
        let Some(sealed) = message.unverified().get(attr::MOBILITY_TICKET).map(<[u8]>::to_vec) else {
            return;
        };
        let Some(life) = self.lives.get(&client) else { return };
        self.tickets.push(Ticket { sealed, birth: life.birth, number: life.tickets });
    }

    /// Comes with a ticket, whosever it is and however old.
    fn resume(&mut self, client: u8, user: usize, which: u8, options: u8) {
        let count = self.tickets.len().max(1);
        let Some(Ticket { sealed, birth, number }) = self.tickets.get(usize::from(which) % count) else {
            return;
        };
        let (mut sealed, birth, number) = (sealed.clone(), *birth, *number);
        let forged = options & 1 != 0;
        if forged {
            let at = usize::from(options) % sealed.len();
            sealed[at] ^= 1;
        }
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.ask(client, user, Method::REFRESH, |builder| {
            let builder = builder.attribute(attr::LIFETIME, &asked.to_be_bytes());
            builder.attribute(attr::MOBILITY_TICKET, &sealed)
        });
        let Some(reply) = reply else { return };
        assert!(!forged, "a ticket cannot be made");
        let before = self.lives.iter().find(|(_, life)| life.birth == birth).map(|(client, _)| *client);
        let before = before.expect("a ticket's allocation is there");
        let mut life = self.lives.remove(&before).unwrap();
        assert_eq!(life.user, user, "a ticket is its user's");
        assert!(number == life.tickets || number + 1 == life.tickets && before == client, "an old ticket");
        life.tickets += usize::from(number == life.tickets);
        life.until = self.until(&reply);
        assert!(self.lives.insert(client, life).is_none(), "a place that was taken");
        self.talks.values_mut().filter(|owner| **owner == before).for_each(|owner| *owner = client);
        if asked == 0 {
            self.bury(client);
        }
        self.keep_ticket(client, &reply);
    }

    /// Reads until when a reply's LIFETIME reaches.
    fn until(&self, reply: &[u8]) -> Instant {
        let seconds = Message::parse(reply).unwrap().unverified().u32(attr::LIFETIME).unwrap();
        assert!(seconds <= 3600);
        self.now.mono + Duration::from_secs(seconds.into())
    }

    fn refresh(&mut self, client: u8, user: usize, options: u8) {
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let family = (options & 3).min(2);
        let reply = self.ask(client, user, Method::REFRESH, |builder| {
            let builder = builder.attribute(attr::LIFETIME, &asked.to_be_bytes());
            match family {
                0 => builder,
                family => builder.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]),
            }
        });
        let Some(reply) = reply else { return };
        self.assert_owner(client, user);
        let until = self.until(&reply);
        let still_there = self.allocations() == self.lives.len();
        match self.lives.get_mut(&client) {
            Some(life) if asked == 0 && still_there => {
                assert_ne!(family, 0, "a whole allocation was to end");
                life.partial = true;
                self.talks.retain(|_, owner| *owner != client);
            }
            Some(_) if asked == 0 => self.bury(client),
            Some(life) => life.until = until,
            None => {}
        }
    }

    fn permit(&mut self, client: u8, user: usize, which: u8) {
        let peers: Vec<_> = [which, which / 10].iter().map(|peer| self.peer(*peer)).collect();
        let peers = &peers[..1 + usize::from(which > 128)];
        let reply = self.ask(client, user, Method::CREATE_PERMISSION, |builder| {
            peers.iter().fold(builder, |builder, peer| builder.xor_address(attr::XOR_PEER_ADDRESS, *peer))
        });
        if reply.is_some() {
            self.assert_owner(client, user);
            peers.iter().for_each(|peer| self.grant(client, canonical(*peer)));
        }
    }

    fn bind(&mut self, client: u8, user: usize, which: u8) {
        let (number, peer) = (0x4000 + u16::from(which % 4), canonical(self.peer(which / 4)));
        let [high, low] = number.to_be_bytes();
        let reply = self.ask(client, user, Method::CHANNEL_BIND, |builder| {
            let builder = builder.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]);
            builder.xor_address(attr::XOR_PEER_ADDRESS, peer)
        });
        if reply.is_none() {
            return;
        }
        self.assert_owner(client, user);
        self.grant(client, peer);
        let now = self.now.mono;
        let channels = &mut self.lives.get_mut(&client).unwrap().channels;
        let old = channels.insert(number, (peer, now + CHANNEL_LIFETIME));
        assert!(old.is_none_or(|(bound, until)| bound == peer || until <= now), "a channel keeps its peer");
        let others = channels.iter().filter(|(other, _)| **other != number);
        let twice = others.filter(|(_, (bound, until))| *bound == peer && *until > now).count();
        assert_eq!(twice, 0, "a peer has one channel");
    }

    fn send(&mut self, client: u8, which: u8) {
        let peer = self.peer(which);
        let payload = [client, which, 3, 4, 5];
        let bytes = self
            .builder(Class::Indication, Method::SEND)
            .xor_address(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::DATA, &payload[..usize::from(which % 6)])
            .finish();
        let forward = self.client_says(client, &bytes);
        assert!(forward.is_some() || !self.must_reach(client, canonical(peer)));
        if let Some((_, to, sent)) = &forward {
            assert_eq!((*to, &sent[..]), (canonical(peer), &payload[..usize::from(which % 6)]));
        }
        self.sent(client, forward);
    }

    fn channel_data(&mut self, client: u8, which: u8) {
        let number = 0x4000 + u16::from(which % 4);
        let [high, low] = number.to_be_bytes();
        let now = self.now.mono;
        let life = self.lives.get(&client);
        let bound = life.and_then(|life| life.channels.get(&number)).filter(|(_, until)| now < *until);
        let bound = bound.map(|(peer, _)| *peer);
        let forward = self.client_says(client, &[high, low, 0, 2, 9, which, 0, 0]);
        assert!(forward.is_some() || !bound.is_some_and(|peer| self.must_reach(client, peer)));
        if let Some((_, to, sent)) = &forward {
            assert_eq!((Some(*to), &sent[..]), (bound, &[9, which][..]));
        }
        self.sent(client, forward);
    }

    fn raw(&mut self, client: u8, bytes: &[u8]) {
        let forward = self.client_says(client, bytes);
        self.sent(client, forward);
    }

    fn hear_peer(&mut self, which: usize, number: u8) {
        let Some((relay, address)) = nth(&self.sockets, which).map(|(key, at)| (key, *at)) else { return };
        let peer = canonical(self.peer(number));
        let payload = &[1, 2, 3, 4, 5, 6, 7][..usize::from(number) % 8];
        let owner = self.talks.get(&(address, peer)).copied().filter(|owner| self.permits(*owner, peer.ip()));
        let forward = self.peer_says(relay, peer, payload);
        assert!(self.drain().is_empty());
        let Some((client, bytes)) = forward else {
            assert!(owner.is_none() || self.is_capped(), "an answer is lost");
            return;
        };
        assert!(owner.is_none_or(|owner| owner == client), "an answer goes to somebody else");
        self.spend(client, payload.len());
        self.assert_permitted(client, peer);
        assert!(bytes.len().is_multiple_of(4) || tuple(client).transport == Transport::Udp);
        if let Some((number, data)) = parse_channel_data(&bytes) {
            assert_eq!(data, payload);
            let (bound, until) = self.lives[&client].channels[&number];
            assert!(bound == peer && self.now.mono < until);
        } else {
            let message = Message::parse(&bytes).expect("a Data indication is sound");
            assert_eq!(message.unverified().get(attr::DATA), Some(payload));
            assert_eq!(message.unverified().xor_address(attr::XOR_PEER_ADDRESS), Ok(Some(peer)));
        }
    }

    fn hear_error(&mut self, which: usize, number: u8) {
        let Some((relay, address)) = nth(&self.sockets, which).map(|(key, at)| (key, *at)) else { return };
        let peer = canonical(self.peer(number));
        if let Some((client, bytes)) = self.peer_refuses(relay, peer) {
            self.assert_permitted(client, peer);
            let owner = self.talks.get(&(address, peer)).copied();
            assert!(owner.is_none_or(|owner| owner == client || !self.permits(owner, peer.ip())));
            assert!(Message::parse(&bytes).is_ok());
        }
        assert!(self.drain().is_empty());
    }

    fn connect(&mut self, client: u8, user: usize, which: u8) {
        let peer = self.peer(which);
        let before: Vec<_> = self.links.keys().copied().collect();
        let reply = self
            .ask(client, user, Method::CONNECT, |builder| builder.xor_address(attr::XOR_PEER_ADDRESS, peer));
        assert!(reply.is_none(), "Connect is answered when the peer has accepted");
        let new = self.links.keys().copied().find(|connection| !before.contains(connection));
        if let Some(connection) = new {
            self.assert_owner(client, user);
            self.claim_link(client, connection);
        }
    }

    fn claim_link(&mut self, client: u8, connection: ConnectionId) {
        let life = &self.lives[&client];
        assert!(life.tcp);
        let link = self.links.get_mut(&connection).unwrap();
        (link.birth, link.user) = (life.birth, life.user);
    }

    /// Lets a peer accept, or refuse.
    fn settle(&mut self, which: usize, how: u8) {
        let Some((connection, link)) = nth(&self.links, which) else { return };
        let (stage, worker, birth) = (link.stage, link.worker, link.birth);
        let well = how & 1 == 0;
        self.relays[worker].handle_connected(self.now, connection, well);
        let replies = self.drain();
        assert_eq!(replies.len(), usize::from(stage == Stage::Connecting), "one Connect, one reply");
        let Some((to, reply)) = replies.first() else { return };
        assert_eq!(self.lives[&client_of(*to)].birth, birth);
        let message = Message::parse(reply).unwrap();
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), well.then_some(connection));
        assert_eq!(self.links.contains_key(&connection), well);
        if let Some(link) = self.links.get_mut(&connection) {
            (link.stage, link.since) = (Stage::Offered, self.now.mono);
        }
    }

    /// Lets a peer connect.
    fn hear_connection(&mut self, which: usize, number: u8) {
        let Some(((worker, relay), _)) = nth(&self.listeners, which) else { return };
        let peer = canonical(self.peer(number));
        let accepted = self.relays[worker].handle_accepted(self.now, relay, peer);
        let replies = self.drain();
        assert_eq!(replies.len(), usize::from(accepted.is_some()), "the client is told");
        let (Some(connection), Some((to, attempt))) = (accepted, replies.first()) else { return };
        let client = client_of(*to);
        self.assert_permitted(client, peer);
        let message = Message::parse(attempt).unwrap();
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
        self.link(connection, worker, Stage::Offered);
        self.claim_link(client, connection);
    }

    fn join(&mut self, client: u8, user: usize, which: usize) {
        let Some((connection, link)) = nth(&self.links, which) else { return };
        let (stage, owner) = (link.stage, link.user);
        let reply = self.ask(client, user, Method::CONNECTION_BIND, |builder| {
            builder.attribute(attr::CONNECTION_ID, &connection.to_be_bytes())
        });
        let good = stage == Stage::Offered && owner == user;
        assert!(reply.is_none() || good, "a connection is its user's, and joined once");
        assert!(reply.is_none() || tuple(client).transport.is_tcp() && !self.lives.contains_key(&client));
        assert_eq!(self.links[&connection].stage == Stage::Joined, reply.is_some() || stage == Stage::Joined);
    }

    /// Ends a connection at the peer's, or at the client's end.
    fn hang_up(&mut self, which: usize) {
        let Some((connection, link)) = nth(&self.links, which) else { return };
        let worker = link.worker;
        self.relays[worker].handle_connection_closed(connection);
        self.links.remove(&connection);
        assert!(self.drain().is_empty());
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        let connecting = self.links.values().filter(|link| link.stage == Stage::Connecting).count();
        for relay in &mut self.relays {
            relay.handle_timeout(self.now);
        }
        let replies = self.drain();
        assert!(replies.len() <= connecting, "time alone is no reason to reply, but to a Connect");
        assert!(replies.iter().all(|(_, reply)| error_code(reply) == Some(447)));
        let now = self.now.mono;
        self.set_aside.retain(|until| *until > now);
        let over: Vec<_> = self.lives.iter().filter(|(_, life)| life.until <= now).map(|(c, _)| *c).collect();
        over.into_iter().for_each(|client| self.bury(client));
    }
}

fn error_code(reply: &[u8]) -> Option<u16> {
    Message::parse(reply).unwrap().unverified().error_code()
}

/// One of a map's entries, counted in circles.
fn nth<K: Copy, V>(map: &BTreeMap<K, V>, which: usize) -> Option<(K, &V)> {
    map.iter().nth(which % map.len().max(1)).map(|(key, value)| (*key, value))
}

// --- the model

/// ADDITIONAL-ADDRESS-FAMILY (RFC 8656 section 18.10).
const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;

impl World {
    fn bury(&mut self, client: u8) {
        self.lives.remove(&client);
        self.talks.retain(|_, owner| *owner != client);
    }

    fn assert_owner(&self, client: u8, user: usize) {
        let life = self.lives.get(&client).expect("only an allocation can be asked for something");
        assert_eq!(life.user, user, "an allocation obeys its own user alone");
    }

    fn grant(&mut self, client: u8, peer: SocketAddr) {
        assert!(!peer.ip().is_loopback(), "a denied peer");
        if !self.permits(client, peer.ip()) {
            // While there was no permission, another client may have taken the peer's place.
            self.talks.retain(|(_, known), owner| *owner != client || known.ip() != peer.ip());
        }
        let expires = self.now.mono + PERMISSION_LIFETIME;
        self.lives.get_mut(&client).unwrap().permissions.insert(peer.ip(), expires);
    }

    fn permits(&self, client: u8, peer: IpAddr) -> bool {
        let Some(life) = self.lives.get(&client) else { return false };
        self.now.mono < life.until
            && life.permissions.get(&peer).is_some_and(|expires| self.now.mono < *expires)
    }

    fn assert_permitted(&self, client: u8, peer: SocketAddr) {
        assert!(self.permits(client, peer.ip()), "no relay without a permission");
        let own = [RELAY_V4, RELAY_V6].contains(&peer.ip());
        assert!(
            !own || self.shared.ports.is_leased(peer),
            "of our own addresses only relayed ones are reached"
        );
    }

    /// Returns whether nothing excuses the relay from passing data of `client` to `peer` on.
    fn must_reach(&self, client: u8, peer: SocketAddr) -> bool {
        let own = [RELAY_V4, RELAY_V6].contains(&peer.ip());
        let whole = self.lives.get(&client).is_some_and(|life| !life.partial);
        let simple = self.shared.limits.shared_ports == 0 && !self.refusing && !self.is_capped();
        let datagrams = self.lives.get(&client).is_some_and(|life| !life.tcp);
        whole && simple && datagrams && !own && peer.port() != 0 && self.permits(client, peer.ip())
    }

    /// Whether bandwidth or new peers are limited.
    fn is_capped(&self) -> bool {
        let Limits { new_peers, allocation_bandwidth, user_bandwidth, .. } = self.shared.limits;
        [new_peers, allocation_bandwidth, user_bandwidth].iter().any(|rate| rate.per_second != 0)
    }

    /// Counts what was relayed for a client.
    fn spend(&mut self, client: u8, bytes: usize) {
        let life = self.lives.get_mut(&client).unwrap();
        assert!(!life.tcp, "an allocation for TCP relays no datagrams");
        life.relayed += bytes as u64;
        let passed = self.now.mono.duration_since(life.began).as_secs();
        let most = BANDWIDTH * passed + BANDWIDTH / 2;
        assert!(self.shared.limits.allocation_bandwidth.per_second == 0 || life.relayed <= most, "too fast");
    }

    /// Judges what a client has sent to a peer.
    fn sent(&mut self, client: u8, forward: Option<(Socket, SocketAddr, Vec<u8>)>) {
        let replies = self.drain();
        let granted = |reply: &[u8]| Message::parse(reply).unwrap().class() == Class::Success;
        assert!(replies.iter().all(|(to, reply)| *to == tuple(client) && !granted(reply)));
        let Some((relay, peer, payload)) = forward else { return };
        self.assert_permitted(client, peer);
        self.spend(client, payload.len());
        let Some(address) = self.sockets.get(&relay).copied() else {
            assert!(self.refusing, "the socket is there");
            return;
        };
        assert_ne!(address, peer, "a port does not talk to itself");
        let before = self.talks.insert((address, peer), client).filter(|before| *before != client);
        let still = before.filter(|before| self.permits(*before, peer.ip()));
        assert_eq!(still, None, "two clients are one to a peer");
    }

    fn allocations(&self) -> usize {
        self.relays.iter().map(Relay::len).sum()
    }

    /// Compares the relays with the model.
    fn check(&self) {
        let (leased, open) = (self.shared.ports.leased() as usize, self.sockets.len() + self.listeners.len());
        assert_eq!(self.allocations(), self.lives.len(), "exactly what was granted lives");
        assert_eq!(self.allocations(), self.shared.quota.held() as usize, "one ticket an allocation");
        assert!(
            leased == open || leased > open && !self.set_aside.is_empty(),
            "{leased} leased, {open} open"
        );
        assert!(leased <= open + self.set_aside.len());
        assert!(!self.lives.is_empty() || open == 0, "without allocations there are no sockets");
        for relay in &self.relays {
            assert!(relay.poll_timeout().is_none_or(|at| at > self.now.mono), "no timer is overdue");
        }
        assert!(self.lives.len() <= 5);
        for user in 0..USERS.len() {
            assert!(self.lives.values().filter(|life| life.user == user).count() <= 3, "the quota");
        }
        for link in self.links.values() {
            assert!(
                self.lives.values().any(|life| life.birth == link.birth),
                "a connection without allocation"
            );
            let waits = self.now.mono.duration_since(link.since) < PATIENCE;
            assert!(link.stage == Stage::Joined || waits, "a connection that waits for too long");
        }
    }

    /// Ends everything; nothing is left.
    fn end(mut self) -> u64 {
        self.wait(3600);
        self.check();
        assert!(self.links.is_empty());
        assert!(self.relays.iter().all(|relay| relay.is_empty() && relay.poll_timeout().is_none()));
        let (ports, quota) = (Arc::clone(&self.shared.ports), Arc::clone(&self.shared.quota));
        let log = self.log.finish();
        drop(self.relays);
        drop(self.shared);
        assert_eq!((ports.leased(), quota.held()), (0, 0), "every port and ticket comes back");
        log
    }
}
