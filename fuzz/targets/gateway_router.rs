//! The gateway's router with arbitrary clients, servers and clock steps, checked against a model of what was sent and received: a message
//! reaches only the other end of its virtual connection, once and in order; every opened id is closed; the limits hold; a paused sender
//! is resumed; no state remains.

#[path = "input.rs"]
mod input;

use bytes::{Buf, BytesMut};
use ginnel::Now;
use ginnel::internals::gateway::machine::{Output, ReadAction};
use ginnel::internals::gateway::token::{TokenClaims, TokenIssuer};
use ginnel::internals::gateway::wire::{self, Command, ConnId, Frame};
use ginnel::internals::gateway::{Duplicates, EndpointKey, Limits, Router, RouterConfig, Times};
use ginnel::internals::net::time;
use input::Input;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::time::Duration;

const MAX_EVENTS: usize = 400;
/// Replaces the number of a message on an id that its sender does not know; the message may arrive.
const GUESS: u32 = u32::MAX - 1;
/// Replaces the number of a message that follows its sender's Close; it must not arrive.
const CLOSED: u32 = u32::MAX;
const CLIENTS: usize = 4;
const SERVERS: usize = 3;
const ENDPOINTS: usize = CLIENTS + SERVERS;
const PER_CLIENT: usize = 3;
const QUEUE: usize = 4096;
const MEMORY: usize = 300_000;
const MAX_PACKET: usize = 70_000;
const CONNECTIONS: usize = 8;
const WAITS: [u64; 12] = [0, 1, 10, 50, 100, 200, 400, 1000, 1000, 2500, 10_000, 31_000];
/// Bytes by which one call may exceed the shared memory.
const SLACK: usize = 3 * MAX_PACKET;
/// The time at the end in which all endpoints finish.
const END: Duration = Duration::from_secs(140);
/// A clock step of that time in milliseconds, while endpoints send or receive.
const STEP: u64 = 500;
/// The interval of refused Dials over their rate, in milliseconds.
const DIAL_PACE: u64 = 100;

/// The first byte chooses whether tokens are required. Events follow, each of one byte and its operands.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(input.byte() & 1 == 1);
    for _ in 0..MAX_EVENTS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check();
    }
    world.end();
}

/// An endpoint and what it knows.
struct TestEndpoint {
    key: EndpointKey,
    /// Bytes that it has sent and the gateway has not read.
    sent: BytesMut,
    /// Bytes that the gateway has read and not processed.
    input: BytesMut,
    next: ReadAction,
    /// Bytes that it has received, less than a frame.
    received: BytesMut,
    /// Accepted ids that have not ended, with the number of messages received and their sender.
    live: BTreeMap<ConnId, (u32, Option<usize>)>,
    /// Ids that it has opened and that were not accepted.
    half_open: BTreeSet<ConnId>,
    /// Ids that it has dialled and that were accepted.
    dialled: BTreeSet<ConnId>,
    /// Ids for which it has sent a Close.
    closing: BTreeSet<ConnId>,
}

struct World {
    router: Router,
    now: Now,
    issuer: Option<TokenIssuer>,
    endpoints: [Option<TestEndpoint>; ENDPOINTS],
    /// The index of each endpoint by its key.
    keys: BTreeMap<EndpointKey, usize>,
    /// All ids so far, for guesses.
    ids: Vec<ConnId>,
    /// The number of messages that an endpoint has sent on an id.
    counts: BTreeMap<(usize, ConnId), u32>,
    /// The number of clients so far.
    arrived: u32,
    /// The endpoints that have received an Accept, by id.
    accepted: BTreeMap<ConnId, BTreeSet<usize>>,
}

impl World {
    fn new(tokens: bool) -> Self {
        let issuer = tokens.then(|| TokenIssuer::new(&[1; 32]));
        let limits = Limits {
            max_packet: MAX_PACKET,
            queue: QUEUE,
            memory: MEMORY,
            per_client: PER_CLIENT,
            half_open: 2,
            violations: 20,
            virtual_connections: CONNECTIONS,
        };
        let times = Times { pause: Duration::from_secs(2), ..Times::default() };
        let rules = RouterConfig { limits, times, tokens: issuer.clone() };
        Self {
            router: Router::new(rules, ChaCha20Rng::seed_from_u64(7)),
            now: time::now(),
            issuer,
            endpoints: [const { None }; ENDPOINTS],
            keys: BTreeMap::new(),
            ids: vec![ConnId(0), ConnId(77)],
            counts: BTreeMap::new(),
            arrived: 0,
            accepted: BTreeMap::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let at = input.below(ENDPOINTS);
        self.arrive(at);
        let has_none = self.endpoints[at]
            .as_ref()
            .is_some_and(|endpoint| endpoint.live.is_empty() && endpoint.half_open.is_empty());
        if has_none && input.byte() < 220 {
            self.handle_command(at, Command::New);
            self.deliver(at, usize::MAX);
            self.drain(at, usize::MAX);
            return;
        }
        match input.byte() % 32 {
            0 if input.byte() < 60 => self.leave(at),
            0..=3 => self.handle_command(at, Command::New),
            4..=7 => {
                let (conn, remote) = (self.id(at, input), self.remote(at, input));
                self.handle_command(at, Command::Dial { conn, remote });
            }
            8 => {
                let conn = self.id(at, input);
                self.handle_command(at, Command::Close(conn));
            }
            9 => self.handle_command(at, Command::Ping),
            10 | 11 if at + 1 == ENDPOINTS || input.byte() < 10 => {
                let conn = self.id(at, input);
                self.handle_command(at, Command::Credit { conn, bytes: u32::from(input.byte()) * 64 });
            }
            12 if input.byte() < 20 => {
                let junk = [input.byte(), input.byte(), 0, 0, input.byte(), 0, 0, 0, input.byte()];
                self.write(at, &junk);
            }
            13 => self.wait(WAITS[input.below(WAITS.len())]),
            14..=20 => {
                let conn = self.id(at, input);
                let len = usize::from(input.byte()) * if input.byte() < 32 { 256 } else { 8 };
                self.message(at, conn, len);
            }
            21..=26 => _ = self.deliver(at, 1 + usize::from(input.byte()) * 300),
            _ => _ = self.drain(at, 1 + usize::from(input.byte()) * 50),
        }
    }

    /// An endpoint to dial, usually an existing one.
    fn remote(&self, at: usize, input: &mut Input<'_>) -> u32 {
        let choice = u32::from(input.byte());
        match at < CLIENTS {
            true => choice % 4,
            // The newest clients' ids: they are counted from 1.
            false => self.arrived.saturating_sub(choice % 5),
        }
    }

    /// Usually an id of the endpoint, sometimes a guess.
    fn id(&self, at: usize, input: &mut Input<'_>) -> ConnId {
        let choice = usize::from(input.byte());
        let Some(endpoint) = &self.endpoints[at] else { return ConnId(1) };
        let own: Vec<_> = endpoint.live.keys().chain(&endpoint.half_open).copied().collect();
        match own.is_empty() || choice >= 240 {
            true => self.ids[choice % self.ids.len()],
            false => own[choice % own.len()],
        }
    }

    fn arrive(&mut self, at: usize) {
        if self.endpoints[at].is_some() {
            return;
        }
        let key = if at < CLIENTS {
            self.arrived += 1;
            self.router.add_client(self.now, [192, 0, 2, u8::from(at > 1)].into())
        } else {
            let id = u32::try_from(at - CLIENTS).unwrap() + 1;
            let newest = self.router.add_server(self.now, id, at + 1 == ENDPOINTS, Duplicates::Refuse);
            newest.expect("no other server has this id")
        };
        self.keys.insert(key, at);
        self.endpoints[at] = Some(TestEndpoint {
            key,
            sent: BytesMut::new(),
            input: BytesMut::new(),
            next: ReadAction::Read { missing: 0, exact: false },
            received: BytesMut::new(),
            live: BTreeMap::new(),
            half_open: BTreeSet::new(),
            dialled: BTreeSet::new(),
            closing: BTreeSet::new(),
        });
        self.settle();
        if let Some(issuer) = self.issuer.clone().filter(|_| at < CLIENTS && at != 1) {
            let server = (at == 2).then_some(1);
            let token = issuer.issue(TokenClaims { server, expires: self.now.unix + 100 });
            self.handle_command(at, Command::Token(&token.0));
        }
    }

    fn leave(&mut self, at: usize) {
        if let Some(endpoint) = self.endpoints[at].take() {
            self.remove_connection(at, &endpoint);
            self.router.handle_disconnected(self.now, endpoint.key);
            self.settle();
        }
    }

    fn remove_connection(&mut self, at: usize, endpoint: &TestEndpoint) {
        self.keys.remove(&endpoint.key);
        self.counts.retain(|(sender, _), _| *sender != at);
        for notified in self.accepted.values_mut() {
            notified.remove(&at);
        }
    }

    fn handle_command(&mut self, at: usize, command: Command<'_>) {
        let mut bytes = Vec::new();
        command.emit(&mut bytes);
        if let (Command::Close(conn), Some(endpoint)) = (command, &mut self.endpoints[at]) {
            // A Close for a foreign id has no effect.
            if endpoint.live.contains_key(&conn) || endpoint.half_open.contains(&conn) {
                endpoint.closing.insert(conn);
            }
        }
        self.write(at, &bytes);
    }

    /// Sends a message that contains its sender and its number.
    fn message(&mut self, at: usize, conn: ConnId, len: usize) {
        let Some(endpoint) = &self.endpoints[at] else { return };
        let is_guess = !endpoint.live.contains_key(&conn) && !endpoint.half_open.contains(&conn);
        let count = self.counts.entry((at, conn)).or_default();
        let stamp = match (endpoint.closing.contains(&conn), is_guess) {
            (true, _) => CLOSED,
            (false, true) => GUESS,
            (false, false) => *count,
        };
        *count += u32::from(stamp < GUESS);
        let mut bytes = Vec::new();
        wire::emit_header(&mut bytes, conn, 5 + len);
        bytes.push(u8::try_from(at).unwrap());
        bytes.extend_from_slice(&stamp.to_le_bytes());
        bytes.resize(bytes.len() + len, 0);
        self.write(at, &bytes);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(endpoint) = &mut self.endpoints[at] {
            endpoint.sent.extend_from_slice(bytes);
        }
    }

    /// Lets the gateway read some bytes of an endpoint, unless it has paused it; returns whether there were any.
    fn deliver(&mut self, at: usize, most: usize) -> bool {
        let Some(endpoint) = &mut self.endpoints[at] else { return false };
        let ReadAction::Read { missing, exact } = endpoint.next else { return false };
        let most = if exact { most.min(missing.max(1)) } else { most };
        let some = endpoint.sent.split_to(most.min(endpoint.sent.len()));
        if some.is_empty() {
            return false;
        }
        endpoint.input.extend_from_slice(&some);
        self.handle_input(at);
        true
    }

    fn handle_input(&mut self, at: usize) {
        let Some(endpoint) = &mut self.endpoints[at] else { return };
        endpoint.next = self.router.handle_frames(self.now, endpoint.key, &mut endpoint.input);
        self.settle();
    }

    /// Lets an endpoint receive some bytes that are queued for it; returns whether there were any.
    fn drain(&mut self, at: usize, most: usize) -> bool {
        let Some(endpoint) = &mut self.endpoints[at] else { return false };
        let mut slices = [IoSlice::new(&[]); 9];
        let count = self.router.peek(endpoint.key, &mut slices);
        let first = self.router.peek_frame(endpoint.key);
        assert!(slices[0].starts_with(first), "the first frame is the first");
        let mut taken = 0;
        for slice in &slices[..count] {
            let part = &slice[..slice.len().min(most - taken)];
            endpoint.received.extend_from_slice(part);
            taken += part.len();
        }
        if taken == 0 {
            return false;
        }
        let key = endpoint.key;
        self.router.handle_written(self.now, key, taken);
        self.settle();
        self.handle_received(at);
        true
    }

    /// Handles the whole frames that an endpoint has received.
    fn handle_received(&mut self, at: usize) {
        let Some(endpoint) = &mut self.endpoints[at] else { return };
        let mut received = std::mem::take(&mut endpoint.received);
        while let Some((frame, len)) = wire::frame(&received, MAX_PACKET).expect("the gateway sends frames") {
            let endpoint = self.endpoints[at].as_mut().expect("it is connected");
            match frame {
                Frame::Data { conn, message } => self.handle_message(at, conn, message),
                Frame::Command(Command::Open(conn)) => {
                    assert!(conn.0 != 0 && endpoint.half_open.insert(conn), "a new id");
                    self.ids.push(conn);
                }
                Frame::Command(Command::Refuse(conn)) => {
                    endpoint.half_open.remove(&conn);
                    assert!(!endpoint.live.contains_key(&conn), "an accepted connection is not refused");
                }
                Frame::Command(Command::Accept { conn, .. }) => {
                    if endpoint.half_open.remove(&conn) {
                        endpoint.dialled.insert(conn);
                    }
                    endpoint.closing.remove(&conn);
                    assert!(endpoint.live.insert(conn, (0, None)).is_none(), "accepted once");
                    let notified = self.accepted.entry(conn).or_default();
                    notified.insert(at);
                    assert!(notified.len() <= 2, "two endpoints");
                }
                Frame::Command(Command::Close(conn)) => {
                    endpoint.half_open.remove(&conn);
                    endpoint.live.remove(&conn);
                    endpoint.dialled.remove(&conn);
                }
                Frame::Command(Command::Credit { .. }) => {
                    assert_eq!(at + 1, ENDPOINTS, "credit where it is known")
                }
                Frame::Command(Command::Ping) if at == 0 => {}
                Frame::Command(Command::Ping) => self.handle_command(at, Command::Ping),
                Frame::Command(other) => panic!("{other:?} is not for endpoints"),
            }
            received.advance(len);
        }
        self.endpoints[at].as_mut().expect("it is connected").received = received;
    }

    fn handle_message(&mut self, at: usize, conn: ConnId, message: &[u8]) {
        let endpoint = self.endpoints[at].as_mut().unwrap();
        let (count, from) =
            endpoint.live.get_mut(&conn).expect("messages come on what was accepted and not closed");
        let (sender, stamp) =
            (usize::from(message[0]), u32::from_le_bytes(message[1..5].try_into().unwrap()));
        assert_ne!(sender, at, "no endpoint receives its own messages");
        assert_ne!(sender < CLIENTS, at < CLIENTS, "clients talk to servers");
        assert!(stamp == *count || stamp == GUESS, "{stamp} for {count}: once, in order, not after a Close");
        assert_eq!(*from.get_or_insert(sender), sender, "only from one endpoint");
        *count += u32::from(stamp != GUESS);
        let notified = &self.accepted[&conn];
        // The other endpoint may have gone, or not have received yet that it was accepted.
        assert!(notified.len() < 2 || notified.contains(&sender), "from the other endpoint");
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
        if self.router.poll_timeout().is_some_and(|at| at <= self.now.mono) {
            self.router.handle_timeout(self.now);
            assert!(self.router.poll_timeout().is_none_or(|at| at > self.now.mono), "no timer is overdue");
        }
        self.settle();
    }

    /// Carries out the router's outputs.
    fn settle(&mut self) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Transmit(_) => {}
                Output::Close(key, _) => {
                    let at = self.keys[&key];
                    if let Some(endpoint) = self.endpoints[at].take() {
                        self.remove_connection(at, &endpoint);
                    }
                }
                Output::Resume(key) => {
                    if let Some(at) = self.keys.get(&key).copied() {
                        self.handle_input(at);
                    }
                }
            }
        }
    }

    fn check(&self) {
        let counters = self.router.counters();
        assert!(counters.virtual_connections <= CONNECTIONS as u64);
        assert!(counters.waiting <= (MEMORY + SLACK) as u64, "{} bytes are queued", counters.waiting);
        assert_eq!(counters.clients + counters.servers, self.endpoints.iter().flatten().count() as u64);
        for (at, endpoint) in self.endpoints.iter().enumerate().take(CLIENTS) {
            // The Close that frees a place may still be queued.
            let dialled = endpoint.as_ref().map_or(0, |endpoint| endpoint.dialled.len());
            assert!(dialled <= PER_CLIENT || self.has_queued(at), "{dialled} dialled by one client");
        }
    }

    /// Returns whether a frame is queued for an endpoint; it may be a Close.
    fn has_queued(&self, at: usize) -> bool {
        self.endpoints[at].as_ref().is_some_and(|endpoint| !self.router.peek_frame(endpoint.key).is_empty())
    }

    /// Lets all endpoints send and receive what is left, then disconnects one after the other; the last one must have received every
    /// Close.
    fn end(&mut self) {
        let until = self.now.mono + END;
        while self.now.mono < until {
            let mut is_idle = true;
            for at in 0..ENDPOINTS {
                let (sent, received) = (self.deliver(at, usize::MAX), self.drain(at, usize::MAX));
                if sent || received {
                    is_idle = false;
                    self.check();
                }
            }
            // Between two timers nothing changes.
            let next = self.router.poll_timeout().filter(|_| is_idle).unwrap_or(self.now.mono);
            let idle = next.min(until).saturating_duration_since(self.now.mono);
            self.wait(u64::try_from(idle.as_millis()).unwrap().max(STEP));
            self.check();
        }
        for endpoint in self.endpoints.iter().flatten() {
            let is_held_for_credit = self.endpoints[ENDPOINTS - 1].is_some();
            assert!(endpoint.next != ReadAction::Pause || is_held_for_credit, "a paused endpoint is resumed");
        }
        for at in (1..ENDPOINTS).rev() {
            self.leave(at);
        }
        self.wait(1);
        for _ in 0..2 * MAX_EVENTS {
            let (sent, received) = (self.deliver(0, usize::MAX), self.drain(0, usize::MAX));
            if sent || received {
                continue;
            }
            // An endpoint whose Dials were refused more often than the rate permits is read again after a while.
            if !self.endpoints[0].as_ref().is_some_and(|endpoint| endpoint.next == ReadAction::Pause) {
                break;
            }
            self.wait(DIAL_PACE);
        }
        if let Some(endpoint) = &self.endpoints[0] {
            assert!(
                endpoint.live.is_empty() && endpoint.next != ReadAction::Pause,
                "the last endpoint has received every Close: {:?}",
                endpoint.live
            );
        }
        self.leave(0);
        let counters = self.router.counters();
        let left = [
            counters.clients,
            counters.servers,
            counters.virtual_connections,
            counters.half_open,
            counters.waiting,
        ];
        assert_eq!(left, [0; 5], "no state remains");
        self.wait(120_000);
        assert!(self.router.poll_timeout().is_none(), "no timer remains");
    }
}
