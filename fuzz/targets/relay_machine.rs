//! The relay under clients, peers and a clock that do as they please, beside a model that only knows what was granted.

use ginnel::clock::Now;
use ginnel::net::time;
use ginnel::stun::{Builder, Class, Key, Message, Method, TransactionId, attr, long_term_digest};
use ginnel::turn_server::auth::{Authority, Credentials};
use ginnel::turn_server::data::PeerError;
use ginnel::turn_server::machine::{Features, Limits, Marks, Output, ToClient, ToPeer};
use ginnel::turn_server::mobility::Tickets;
use ginnel::turn_server::policy::{PeerPolicy, PolicyConfig};
use ginnel::turn_server::ports::{RelayAddress, RelayPorts};
use ginnel::turn_server::quota::Quota;
use ginnel::turn_server::wire::parse_channel_data;
use ginnel::turn_server::{
    CHANNEL_LIFETIME, FiveTuple, PERMISSION_LIFETIME, Relay, RelayId, Shared, Transport,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const REALM: &str = "r";
const USERS: [&str; 2] = ["alice", "bob"];
const RELAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4));
const RELAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 4));
const CLIENTS: u8 = 6;
const MAX_EVENTS: usize = 200;
const LIFETIMES: [u32; 6] = [600, 0, 1, 700, 3600, u32::MAX];
const WAITS: [u64; 16] = [0, 1, 29, 30, 31, 59, 60, 120, 299, 300, 301, 599, 600, 900, 3599, 3600];
const MARKS: Marks = Marks { ttl: 0, tos: 0 };

/// The first byte chooses how the relay is set up; then events follow, each one byte and its operands.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(input.byte());
    for _ in 0..MAX_EVENTS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check();
    }
    world.end();
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
    user: usize,
    until: Instant,
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, (SocketAddr, Instant)>,
    /// Whether one of two relayed addresses was given up.
    partial: bool,
}

struct World {
    relay: Relay,
    shared: Shared,
    now: Now,
    sockets: BTreeMap<RelayId, SocketAddr>,
    lives: BTreeMap<u8, Life>,
    nonces: HashMap<u8, Vec<u8>>,
    /// Whose peer it is that knows a relayed address: (relayed address, peer) → client.
    talks: HashMap<(SocketAddr, SocketAddr), u8>,
    /// The last port that was set aside: its token, user and number.
    token: Option<(Vec<u8>, usize, u16)>,
    /// Whether ports may wait for their tokens, also those of an allocation that came to nothing.
    set_aside: bool,
    /// Whether the system refuses ports now.
    refusing: bool,
    transactions: u32,
}

// --- what depends on how the relay is built and spoken to

fn shared(setup: u8) -> Shared {
    let users = USERS.map(|user| (user.to_owned(), long_term_digest(user, REALM, "pw")));
    let own = vec![RELAY_V4, RELAY_V6];
    let addresses: Vec<_> = own.iter().map(|ip| RelayAddress { local: *ip, advertised: *ip }).collect();
    let ports = Arc::new(RelayPorts::new(&addresses, 50_000..=50_000 + u16::from(setup >> 4)));
    let policy = PolicyConfig { own_addresses: own, own_ports: vec![3478], ..Default::default() };
    let credentials = Credentials { users: users.into(), rest: None };
    Shared {
        authority: Arc::new(Authority::new(REALM, credentials, &[5; 32])),
        alternates: Arc::default(),
        policy: Arc::new(PeerPolicy::new(policy, Arc::clone(&ports))),
        ports,
        reservations: Arc::default(),
        quota: Arc::new(Quota::new(3, 5)),
        addresses: addresses.into(),
        connections: Arc::default(),
        tickets: Arc::new(Tickets::new(&[6; 32]).unwrap()),
        worker: 0,
        limits: Limits { shared_ports: usize::from(setup % 4), ..Limits::default() },
        features: Features { add_family: setup & 4 != 0, ..Features::default() },
    }
}

impl World {
    fn new(setup: u8) -> Self {
        let (shared, now) = (shared(setup), Now { unix: 1_800_000_000, ..time::now() });
        Self {
            relay: Relay::new(now, shared.clone(), ChaCha20Rng::from_seed([7; 32])),
            shared,
            now,
            sockets: BTreeMap::new(),
            lives: BTreeMap::new(),
            nonces: HashMap::new(),
            talks: HashMap::new(),
            token: None,
            set_aside: false,
            refusing: false,
            transactions: 0,
        }
    }

    /// Carries out what the relay says; returns its replies.
    fn drain(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        let mut replies = Vec::new();
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Reply { client, bytes, .. } => replies.push((client, bytes)),
                Output::OpenRelay { relay, address, .. } => {
                    assert!(self.shared.ports.is_leased(address), "a socket needs a leased port");
                    assert!(self.sockets.values().all(|open| *open != address), "no port is opened twice");
                    if !self.refusing {
                        self.sockets.insert(relay, address);
                    }
                    self.relay.handle_relay_opened(self.now, relay, !self.refusing);
                }
                Output::CloseRelay { relay } => {
                    let closed = self.sockets.remove(&relay);
                    self.talks.retain(|(address, _), _| Some(*address) != closed);
                }
                // Relaying TCP and moving are not tried here.
                Output::Left { .. } => {}
                other => panic!("nobody asked for {other:?}"),
            }
        }
        replies
    }

    fn client_says(&mut self, client: u8, bytes: &[u8]) -> Option<(RelayId, SocketAddr, Vec<u8>)> {
        let forward = self.relay.handle_client(self.now, tuple(client), MARKS, bytes);
        forward.map(|ToPeer { relay, peer, payload, .. }| (relay, peer, payload.to_vec()))
    }

    fn peer_says(&mut self, relay: RelayId, peer: SocketAddr, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
        frame(self.relay.handle_peer(self.now, relay, peer, MARKS, payload))
    }

    fn peer_refuses(&mut self, relay: RelayId, peer: SocketAddr) -> Option<(u8, Vec<u8>)> {
        let error = PeerError { peer, kind: 3, code: 3, data: [0; 4] };
        frame(self.relay.handle_peer_error(self.now, relay, error))
    }
}

/// The client that a forward goes to, and its bytes.
fn frame(forward: Option<ToClient<'_>>) -> Option<(u8, Vec<u8>)> {
    let forward = forward?;
    let padding = vec![0; forward.padding];
    let client = (0..CLIENTS).find(|client| tuple(*client) == forward.client).unwrap();
    Some((client, [forward.header.as_bytes(), forward.payload, &padding].concat()))
}

fn tuple(client: u8) -> FiveTuple {
    let transport = if client < 4 { Transport::Udp } else { Transport::Tcp };
    let address = SocketAddr::from(([192, 0, 2, 7], 1000 + u16::from(client)));
    FiveTuple { client: address, server: SocketAddr::new(RELAY_V4, 3478), transport }
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
        match event % 16 {
            0 | 1 => self.allocate(client, user, input.byte()),
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
            _ => {
                self.relay.handle_client_gone(tuple(client));
                assert!(self.drain().is_empty());
                self.bury(client);
            }
        }
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

    /// Sends a request; returns its one reply.
    fn exchange(&mut self, client: u8, bytes: &[u8]) -> Vec<u8> {
        assert!(self.client_says(client, bytes).is_none());
        let mut replies = self.drain();
        assert_eq!(replies.len(), 1, "one request, one reply");
        let (to, reply) = replies.remove(0);
        assert_eq!(to, tuple(client));
        reply
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
            let reply = self.exchange(client, &bytes);
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

    fn allocate(&mut self, client: u8, user: usize, options: u8) {
        let token = self.token.clone();
        self.set_aside |= (options >> 2) & 3 == 2;
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.ask(client, user, Method::ALLOCATE, |mut builder| {
            builder = builder.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
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
        assert!(!relayed.is_empty() && relayed.iter().all(|at| self.sockets.values().any(|open| open == at)));
        match ((options >> 2) & 3, token) {
            // Of two, it is the first that was to be even, and that one may be missing.
            (1 | 2, _) if options & 3 == 3 && relayed[0].is_ipv6() => {}
            (1 | 2, _) => assert_eq!(relayed[0].port() % 2, 0),
            (3, Some((_, owner, port))) => assert_eq!((user, relayed[0].port()), (owner, port)),
            _ => {}
        }
        if let Some(token) = attributes.get(attr::RESERVATION_TOKEN) {
            self.token = Some((token.to_vec(), user, relayed[0].port() + 1));
        }
        let until = self.until(&reply);
        let life =
            Life { user, until, permissions: HashMap::new(), channels: HashMap::new(), partial: false };
        self.lives.insert(client, life);
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
        let still_there = self.relay.len() == self.lives.len();
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
        let Some((relay, address)) = self.socket(which) else { return };
        let peer = canonical(self.peer(number));
        let payload = &[1, 2, 3, 4, 5, 6, 7][..usize::from(number) % 8];
        let owner = self.talks.get(&(address, peer)).copied().filter(|owner| self.permits(*owner, peer.ip()));
        let forward = self.peer_says(relay, peer, payload);
        assert!(self.drain().is_empty());
        let Some((client, bytes)) = forward else {
            assert!(owner.is_none(), "an answer is lost");
            return;
        };
        assert!(owner.is_none_or(|owner| owner == client), "an answer goes to somebody else");
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
        let Some((relay, address)) = self.socket(which) else { return };
        let peer = canonical(self.peer(number));
        if let Some((client, bytes)) = self.peer_refuses(relay, peer) {
            self.assert_permitted(client, peer);
            let owner = self.talks.get(&(address, peer)).copied();
            assert!(owner.is_none_or(|owner| owner == client || !self.permits(owner, peer.ip())));
            assert!(Message::parse(&bytes).is_ok());
        }
        assert!(self.drain().is_empty());
    }

    fn socket(&self, which: usize) -> Option<(RelayId, SocketAddr)> {
        let mut sockets = self.sockets.iter().cycle().skip(which);
        (!self.sockets.is_empty()).then(|| sockets.next().map(|(relay, address)| (*relay, *address)))?
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.relay.handle_timeout(self.now);
        assert!(self.drain().is_empty(), "time alone is no reason to reply");
        let now = self.now.mono;
        let over: Vec<_> = self.lives.iter().filter(|(_, life)| life.until <= now).map(|(c, _)| *c).collect();
        over.into_iter().for_each(|client| self.bury(client));
    }
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
        let simple = self.shared.limits.shared_ports == 0 && !self.refusing;
        whole && simple && !own && peer.port() != 0 && self.permits(client, peer.ip())
    }

    /// Judges what a client has sent to a peer.
    fn sent(&mut self, client: u8, forward: Option<(RelayId, SocketAddr, Vec<u8>)>) {
        let replies = self.drain();
        let granted = |reply: &[u8]| Message::parse(reply).unwrap().class() == Class::Success;
        assert!(replies.iter().all(|(to, reply)| *to == tuple(client) && !granted(reply)));
        let Some((relay, peer, _)) = forward else { return };
        self.assert_permitted(client, peer);
        let Some(address) = self.sockets.get(&relay).copied() else {
            assert!(self.refusing, "the socket is there");
            return;
        };
        assert_ne!(address, peer, "a port does not talk to itself");
        let before = self.talks.insert((address, peer), client).filter(|before| *before != client);
        let still = before.filter(|before| self.permits(*before, peer.ip()));
        assert_eq!(still, None, "two clients are one to a peer");
    }

    /// Compares the relay with the model.
    fn check(&self) {
        let (leased, open) = (self.shared.ports.leased() as usize, self.sockets.len());
        assert_eq!(self.relay.len(), self.lives.len(), "exactly what was granted lives");
        assert_eq!(self.relay.len(), self.shared.quota.held() as usize, "one ticket an allocation");
        assert!(leased == open || leased > open && self.set_aside, "{leased} ports leased, {open} open");
        assert!(!self.lives.is_empty() || open == 0, "without allocations there are no sockets");
        assert!(self.relay.poll_timeout().is_none_or(|at| at > self.now.mono), "no timer is overdue");
        assert!(self.lives.len() <= 5);
        for user in 0..USERS.len() {
            assert!(self.lives.values().filter(|life| life.user == user).count() <= 3, "the quota");
        }
    }

    /// Ends everything; nothing is left.
    fn end(mut self) {
        self.wait(3600);
        self.check();
        assert!(self.relay.is_empty() && self.relay.poll_timeout().is_none());
        let (ports, quota) = (Arc::clone(&self.shared.ports), Arc::clone(&self.shared.quota));
        drop(self);
        assert_eq!((ports.leased(), quota.held()), (0, 0), "every port and ticket comes back");
    }
}
