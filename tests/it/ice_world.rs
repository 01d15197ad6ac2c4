//! Two ICE agents, their TURN clients, the relay and the hub in one thread with a virtual clock and one seed: NATs, loss, reordering,
//! addresses that change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ginnel::ice::{
    Candidate, CandidateTransport, IceAgent, IceConfig, IceCredentials, IceEvent, IceRole, IceState,
};
use ginnel::internals::net::time;
use ginnel::internals::signaling::{Config, ConnId, Output as HubOutput};
use ginnel::turn_client::{LongTermCredentials, Received, TurnClient, TurnClientConfig, TurnEvent};
use ginnel::turn_server::{
    Authenticator, AuthenticatorConfig, ClientFrame, FiveTuple, Forward, IpHeader, NetworkPrefix, Output,
    Relay, RelayConfig, RelayId, ToClient, Transport,
};
use ginnel::{Hub, Now};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const DELAY: Duration = Duration::from_millis(20);
/// What reorders datagrams.
const JITTER: Duration = Duration::from_millis(10);
const DATA_INTERVAL: Duration = Duration::from_millis(500);
/// How long a NAT passes replies.
const FILTER_LIFETIME: Duration = Duration::from_secs(120);
const DATA: &[u8] = b"\x80data";

fn server() -> SocketAddr {
    "198.51.100.1:3478".parse().unwrap()
}

/// A NAT that maps endpoint-independently and filters by address and port, or maps anew for each destination.
struct Nat {
    is_symmetric: bool,
    public: IpAddr,
    mappings: HashMap<(SocketAddr, Option<SocketAddr>), SocketAddr>,
    opened: HashMap<(SocketAddr, SocketAddr), Instant>,
    next_port: u16,
}

impl Nat {
    fn new(is_symmetric: bool, public: IpAddr) -> Self {
        let (mappings, opened) = (HashMap::new(), HashMap::new());
        Self { is_symmetric, public, mappings, opened, next_port: 20_000 }
    }

    fn map(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        let mapped = *self.mappings.entry((from, self.is_symmetric.then_some(to))).or_insert_with(|| {
            self.next_port += 1;
            SocketAddr::new(self.public, self.next_port)
        });
        self.opened.insert((mapped, to), now);
        mapped
    }

    fn accept(&self, now: Instant, to: SocketAddr, from: SocketAddr) -> Option<SocketAddr> {
        let opened = self.opened.get(&(to, from))?;
        let mut mappings = self.mappings.iter().filter(|(_, mapped)| **mapped == to);
        (now < *opened + FILTER_LIFETIME).then(|| mappings.next().map(|((inside, _), _)| *inside))?
    }
}

struct Side {
    agent: IceAgent,
    turn: TurnClient,
    host: SocketAddr,
    relayed: Option<SocketAddr>,
    nat: Nat,
    tag: Option<String>,
    token: Option<String>,
    /// When data of the other side arrived.
    data: Vec<Instant>,
}

enum Event {
    /// At a public address.
    Datagram {
        to: SocketAddr,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    ToHub {
        side: usize,
        text: String,
    },
    FromHub {
        side: usize,
        text: String,
    },
    Data,
}

struct World {
    now: Now,
    start: Instant,
    rng: ChaCha20Rng,
    relay: Relay,
    relay_sockets: BTreeMap<SocketAddr, RelayId>,
    hub: Hub,
    sides: [Side; 2],
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: HashMap<u64, Event>,
    number: u64,
    mid: u64,
    loss: f64,
    is_direct_up: bool,
    steps: u64,
}

fn turn_client(seed: u8) -> TurnClient {
    TurnClient::new(TurnClientConfig::new(Arc::new(LongTermCredentials::new("alice", "secret"))), [seed; 32])
}

impl World {
    fn new(symmetric: [bool; 2], seed: u8) -> Self {
        let now = Now { unix: 1_800_000_000, ..time::now() };
        let users = AuthenticatorConfig::new("example.org").with_user("alice", "secret");
        let mut config = RelayConfig::new(Authenticator::with(users, &[seed; 32]), &[server().ip().into()]);
        // The addresses of the documentation are denied by default, as are the relay's own.
        for network in ["198.51.100.0", "203.0.113.0"] {
            config.policy.allow_peers.push(NetworkPrefix::new(network.parse().unwrap(), 24, 128));
        }
        let sides = [0, 1].map(|side: u8| {
            let role = if side == 0 { IceRole::Controlling } else { IceRole::Controlled };
            Side {
                agent: IceAgent::new(IceConfig::new(role), [seed.wrapping_mul(2) + side; 32]),
                turn: turn_client(side),
                host: ([10, 0, side, 2], 4000).into(),
                relayed: None,
                nat: Nat::new(symmetric[usize::from(side)], [203, 0, 113, side + 1].into()),
                tag: None,
                token: None,
                data: Vec::new(),
            }
        });
        let mut world = Self {
            now,
            start: now.mono,
            rng: ChaCha20Rng::from_seed([seed; 32]),
            relay: Relay::new(now, config, [seed; 32]),
            relay_sockets: BTreeMap::new(),
            hub: Hub::new(Config::default(), [seed; 32]),
            sides,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            number: 0,
            mid: 0,
            loss: 0.0,
            is_direct_up: true,
            steps: 0,
        };
        for side in 0..2 {
            let ip = world.sides[side].nat.public;
            world.hub.handle_websocket_opened(now, ConnId(side as u64), ip);
            world.signal(side, json!({"t": 1}));
            world.begin(side);
        }
        world.push(DATA_INTERVAL, Event::Data);
        world
    }

    /// Adds the host candidate, and allocates a relayed address.
    fn begin(&mut self, side: usize) {
        let (now, side) = (self.now.mono, &mut self.sides[side]);
        side.agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, side.host, 65_535));
        side.turn.allocate(now);
    }

    fn push(&mut self, delay: Duration, event: Event) {
        self.number += 1;
        self.events.insert(self.number, event);
        self.queue.push(Reverse((self.now.mono + delay, self.number)));
    }

    fn signal(&mut self, side: usize, mut message: Value) {
        if message["mid"].is_null() {
            self.mid += 1;
            message["mid"] = json!(self.mid);
        }
        self.push(DELAY, Event::ToHub { side, text: message.to_string() });
    }

    /// The credentials and candidates of a side, for a call or its answer.
    fn description(&self, side: usize) -> Value {
        let agent = &self.sides[side].agent;
        let credentials = agent.local_credentials();
        let candidates: Vec<String> = agent.local_candidates().iter().map(ToString::to_string).collect();
        json!({"ufrag": credentials.ufrag(), "pwd": credentials.password(), "cands": candidates})
    }

    fn call(&mut self, side: usize) {
        let mut params = self.description(side);
        params["tag"] = json!(self.sides[side].tag);
        params["rtag"] = json!(self.sides[1 - side].tag);
        params["role"] = json!("controlling");
        self.signal(side, json!({"t": 4, "params": params}));
    }

    fn handle_signal(&mut self, side: usize, text: &str) {
        let message: Value = serde_json::from_str(text).unwrap();
        let now = self.now.mono;
        match (message["t"].as_i64().unwrap(), message["code"].as_i64()) {
            (-1, _) => self.sides[side].tag = message["extra"]["tag"].as_str().map(str::to_owned),
            (-4, _) => self.sides[side].token = message["extra"]["token"].as_str().map(str::to_owned),
            (51, None) => {
                let params = &message["params"];
                // A call of the same side again: it has restarted.
                if self.sides[side].agent.remote_credentials().is_some() {
                    self.sides[side].agent.restart(now);
                }
                self.sides[side].token = message["token"].as_str().map(str::to_owned);
                self.learn(side, params);
                let answer = json!({"t": -51, "mid": message["mid"], "token": message["token"], "code": 200,
                    "extra": self.description(side)});
                self.signal(side, answer);
            }
            (52, None) => {
                self.learn(side, &message["extra"]);
                self.signal(
                    side,
                    json!({"t": -52, "mid": message["mid"], "token": message["token"], "code": 200}),
                );
            }
            (54, None) => {
                self.learn(side, &message["params"]);
                self.signal(
                    side,
                    json!({"t": -54, "mid": message["mid"], "token": message["token"], "code": 200}),
                );
            }
            // The exchange is over; the session lasts.
            (53, None) => {
                self.signal(
                    side,
                    json!({"t": -53, "mid": message["mid"], "token": message["token"], "code": 200}),
                );
            }
            (_, Some(200)) => {}
            _ => panic!("{message}"),
        }
    }

    fn learn(&mut self, side: usize, description: &Value) {
        let (now, side) = (self.now.mono, &mut self.sides[side]);
        let text = |name: &str| description[name].as_str();
        if let (Some(ufrag), Some(password)) = (text("ufrag"), text("pwd")) {
            side.agent.set_remote_credentials(now, IceCredentials::new(ufrag, password).unwrap());
        }
        for candidate in description["cands"].as_array().into_iter().flatten() {
            let candidate: Candidate = candidate.as_str().unwrap().parse().unwrap();
            side.turn.create_permission(now, candidate.address.ip()).ok();
            side.agent.add_remote_candidate(now, candidate);
        }
    }

    /// Tells the other side of a candidate, once the call has a token.
    fn trickle(&mut self, side: usize, candidate: Candidate) {
        let text = candidate.to_string();
        self.sides[side].agent.add_local_candidate(self.now.mono, candidate);
        if let Some(token) = &self.sides[side].token {
            let message = json!({"t": 54, "token": token, "params": {"cands": [text]}});
            self.signal(side, message);
        }
    }

    fn handle_turn_event(&mut self, side: usize, event: TurnEvent) {
        let host = self.sides[side].host;
        match event {
            TurnEvent::Allocated { relayed, mapped } => {
                self.sides[side].relayed = Some(relayed);
                let mapped = mapped.unwrap();
                self.trickle(
                    side,
                    Candidate::server_reflexive(CandidateTransport::Udp, mapped, host, 65_535),
                );
                self.trickle(side, Candidate::relayed(relayed, 65_535));
            }
            TurnEvent::Migrated { mapped: Some(mapped) } => {
                self.trickle(
                    side,
                    Candidate::server_reflexive(CandidateTransport::Udp, mapped, host, 65_535),
                );
            }
            TurnEvent::Failed(error) => panic!("side {side}: {error}"),
            _ => {}
        }
    }

    /// A datagram from inside a NAT.
    fn send_from(&mut self, side: usize, to: SocketAddr, bytes: Vec<u8>) {
        let side = &mut self.sides[side];
        let from = side.nat.map(self.now.mono, side.host, to);
        self.send(from, to, bytes);
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let is_direct = from.ip() != server().ip() && to.ip() != server().ip();
        if self.rng.random_bool(self.loss) || is_direct && !self.is_direct_up {
            return;
        }
        let delay = DELAY + JITTER.mul_f64(self.rng.random());
        self.push(delay, Event::Datagram { to, from, bytes });
    }

    /// Sends a message or data of an agent.
    fn send_local(&mut self, side: usize, local: SocketAddr, remote: SocketAddr, bytes: Vec<u8>) {
        if Some(local) == self.sides[side].relayed {
            if let Some(frame) = self.sides[side].turn.encode(remote, &bytes) {
                self.send_from(side, server(), frame);
            }
        } else if local == self.sides[side].host {
            self.send_from(side, remote, bytes);
        }
    }

    fn handle_datagram(&mut self, to: SocketAddr, from: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        if to == server() {
            let client = FiveTuple { client: from, server: to, transport: Transport::Udp };
            let Some(frame) = ClientFrame::parse(bytes) else { return };
            match self.relay.handle_client(now, client, IpHeader::default(), frame) {
                Forward::Peer(peer) => {
                    let address = self.relay_sockets.iter().find(|(_, relay)| **relay == peer.relay);
                    let from = *address.unwrap().0;
                    self.send(from, peer.peer, bytes[peer.payload].to_vec());
                }
                Forward::LocalClient(client) => self.send_to_client(&client, bytes),
                _ => {}
            }
        } else if let Some(relay) = self.relay_sockets.get(&to) {
            if let Ok(client) = self.relay.handle_peer(now, *relay, from, IpHeader::default(), bytes) {
                self.send_to_client(&client, bytes);
            }
        } else {
            for side in 0..2 {
                let accepted = self.sides[side].nat.accept(now.mono, to, from);
                if accepted.is_some() && accepted == Some(self.sides[side].host) {
                    self.handle_inside(side, from, bytes);
                }
            }
        }
    }

    fn send_to_client(&mut self, client: &ToClient, bytes: &[u8]) {
        let frame =
            [client.header.as_bytes(), &bytes[client.payload.clone()], &vec![0; client.padding]].concat();
        self.send(server(), client.client.client, frame);
    }

    fn handle_inside(&mut self, index: usize, from: SocketAddr, bytes: &[u8]) {
        let (now, side) = (self.now.mono, &mut self.sides[index]);
        if from != server() {
            return side.handle_payload(now, side.host, from, bytes);
        }
        if let Received::Data { peer, payload } = side.turn.handle(now, bytes)
            && let Some(relayed) = side.relayed
        {
            side.handle_payload(now, relayed, peer, &bytes[payload]);
        }
    }

    fn flush(&mut self) {
        for side in 0..2 {
            while let Some(transmit) = self.sides[side].agent.poll_transmit() {
                self.send_local(side, transmit.local, transmit.remote, transmit.bytes);
            }
            while let Some(event) = self.sides[side].agent.poll_event() {
                assert!(!matches!(event, IceEvent::Connect { .. }));
            }
            while let Some(request) = self.sides[side].turn.poll_transmit() {
                self.send_from(side, server(), request);
            }
            while let Some(event) = self.sides[side].turn.poll_event() {
                self.handle_turn_event(side, event);
            }
        }
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Response { client, bytes, .. } => self.send(server(), client.client, bytes),
                Output::OpenRelaySocket { relay, address, .. } => {
                    self.relay_sockets.insert(address, relay);
                    self.relay.handle_relay_opened(self.now, relay, Ok(()));
                }
                Output::CloseRelaySocket { relay } => self.relay_sockets.retain(|_, known| *known != relay),
                _ => {}
            }
        }
        while let Some(output) = self.hub.poll_output() {
            if let HubOutput::Text { conn, text } = output {
                self.push(DELAY, Event::FromHub { side: conn.0 as usize, text });
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let agents = self.sides.iter().filter_map(|side| side.agent.poll_timeout());
        let turns = self.sides.iter().filter_map(|side| side.turn.poll_timeout());
        let servers = self.relay.poll_timeout().into_iter().chain(self.hub.poll_timeout());
        let arrival = self.queue.peek().map(|Reverse((at, _))| *at);
        agents.chain(turns).chain(servers).chain(arrival).min()
    }

    /// Runs until a condition holds, for at most `limit`; returns how long that took.
    fn wait(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (begin, end) = (self.now.mono, self.now.mono + limit);
        loop {
            self.flush();
            // Outputs that come of outputs.
            self.flush();
            if holds(self) {
                return Some(self.now.mono - begin);
            }
            let Some(next) = self.next().filter(|next| *next <= end) else {
                self.set_time(end);
                return None;
            };
            self.set_time(next.max(self.now.mono));
            self.steps += 1;
            self.step();
        }
    }

    fn set_time(&mut self, mono: Instant) {
        self.now = Now { mono, unix: 1_800_000_000 + (mono - self.start).as_secs() };
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(Reverse((at, number))) = self.queue.peek().copied()
            && at <= now.mono
        {
            self.queue.pop();
            match self.events.remove(&number).unwrap() {
                Event::Datagram { to, from, bytes } => self.handle_datagram(to, from, &bytes),
                Event::ToHub { side, text } => {
                    self.hub.handle_websocket_text(now, ConnId(side as u64), &text)
                }
                Event::FromHub { side, text } => self.handle_signal(side, &text),
                Event::Data => self.send_data(),
            }
        }
        for side in &mut self.sides {
            if side.agent.poll_timeout().is_some_and(|at| at <= now.mono) {
                side.agent.handle_timeout(now.mono);
            }
            if side.turn.poll_timeout().is_some_and(|at| at <= now.mono) {
                side.turn.handle_timeout(now.mono);
            }
        }
        if self.relay.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.relay.handle_timeout(now);
        }
        if self.hub.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.hub.handle_timeout(now);
        }
    }

    fn send_data(&mut self) {
        self.push(DATA_INTERVAL, Event::Data);
        for side in 0..2 {
            if let Some(pair) = self.sides[side].agent.selected() {
                self.sides[side].agent.handle_data_sent(self.now.mono);
                self.send_local(side, pair.local.base, pair.remote.address, DATA.to_vec());
            }
        }
    }

    /// Gives a side another address and another NAT; the other side gets a new call.
    fn move_to(&mut self, index: usize, number: u8) {
        let (now, side) = (self.now.mono, &mut self.sides[index]);
        let old = side.host;
        side.host = ([10, number, index as u8, 2], 4000).into();
        side.nat = Nat::new(side.nat.is_symmetric, [203, 0, 113, 10 + number].into());
        side.agent.remove_local_candidates(now, old);
        side.agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, side.host, 65_535));
        side.agent.restart(now);
        side.turn.migrate(now);
        self.call(index);
    }

    fn is_connected(&self) -> bool {
        self.sides.iter().all(|side| side.agent.state() == IceState::Connected)
    }

    fn is_relayed(&self) -> [bool; 2] {
        [0, 1].map(|index| {
            let side = &self.sides[index];
            side.agent.selected().is_some_and(|pair| {
                pair.remote.address.ip() == server().ip() || Some(pair.local.base) == side.relayed
            })
        })
    }

    fn longest_gap(&self) -> Duration {
        let gaps = self.sides.iter().flat_map(|side| side.data.windows(2).map(|pair| pair[1] - pair[0]));
        gaps.max().unwrap_or(Duration::MAX)
    }
}

impl Side {
    fn handle_payload(&mut self, now: Instant, local: SocketAddr, from: SocketAddr, bytes: &[u8]) {
        if bytes == DATA {
            self.agent.handle_data_received(local, from);
            self.data.push(now);
        } else {
            self.agent.handle_message(now, local, from, bytes);
        }
    }
}

/// Registers, allocates and calls.
fn connected(symmetric: [bool; 2], loss: f64, seed: u8) -> World {
    let mut world = World::new(symmetric, seed);
    let is_registered = |world: &World| world.sides.iter().all(|side| side.tag.is_some());
    assert!(world.wait(SECOND, is_registered).is_some());
    world.loss = loss;
    world.call(0);
    assert!(world.wait(10 * SECOND, World::is_connected).is_some(), "{symmetric:?} {seed}");
    world
}

#[test]
fn relay_hub_and_both_agents_connect_in_one_thread() {
    for (symmetric, is_relayed) in
        [([false, false], false), ([true, false], true), ([false, true], true), ([true, true], true)]
    {
        for seed in 0..5 {
            let mut world = connected(symmetric, 0.0, seed);
            let settled = world.wait(10 * SECOND, |world| world.is_relayed() == [is_relayed; 2]);
            assert!(settled.is_some(), "{symmetric:?} {seed}: {:?}", world.is_relayed());
        }
    }
}

/// With loss, reordering, five changes of address on each side and a direct path that is down for minutes.
#[test]
fn a_session_lasts_for_an_hour_of_outages() {
    let run = |symmetric, seed| {
        let mut world = connected(symmetric, 0.03, seed);
        for number in 1..=10_u8 {
            world.wait(300 * SECOND, |_| false);
            assert!(world.is_connected(), "{symmetric:?} {seed}: lost before change {number}");
            world.move_to(usize::from(number % 2), number);
            world.is_direct_up = number % 3 != 0;
            let back = world.wait(10 * SECOND, World::is_connected);
            assert!(back.is_some(), "{symmetric:?} {seed}: not connected after change {number}");
            world.wait(50 * SECOND, |_| false);
        }
        assert!(world.now.mono - world.start >= 3500 * SECOND);
        let gap = world.longest_gap();
        assert!(gap <= 4 * SECOND, "{symmetric:?} {seed}: {gap:?} without data");
        // What an hour costs: packets, timers and data.
        assert!(world.steps <= 150_000, "{} steps", world.steps);
        (world.steps, world.number, world.sides.map(|side| side.data.len()))
    };
    let first = run([false, false], 7);
    assert_eq!(run([false, false], 7), first, "the same seed gives the same hour");
    for symmetric in [[true, false], [true, true]] {
        run(symmetric, 7);
    }
}
