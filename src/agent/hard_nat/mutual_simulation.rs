//! Two machines behind NATs that both change ports, with a virtual clock and seeded randomness.

use super::limits::{MAX_PACKETS, MAX_SOCKETS, MAX_TIME, SPRAY_PAUSE, SprayRecord, unlocked};
use super::wire::{MessageBody, PortWindow, SprayMessage};
use super::{HardNat, HardNatConfig, HardNatOutput, ProbeSource, SprayStatus};
use crate::agent::candidate::CandidatePath;
use crate::ice::{Candidate, CandidateTransport};
use crate::net::time::mono;
use crate::signaling::wire::NatType;
use crate::stun::{Builder, Class, Message, Method, attr};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const SERVER: &str = "198.51.100.1:3478";
const SERVER_DELAY: Duration = Duration::from_millis(25);
const DIRECT_DELAY: Duration = Duration::from_millis(15);
const RELAY_DELAY: Duration = Duration::from_millis(50);
/// When an ICE agent repeats a check.
const TRIGGERED: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(350)];

/// How a NAT chooses ports.
#[derive(Debug, Clone, Copy)]
enum Mapping {
    Sequence(i32),
    Random,
}

/// What travels.
#[derive(Debug, Clone)]
enum Packet {
    Control {
        to: usize,
        message: SprayMessage,
    },
    Request {
        side: usize,
        socket: (usize, u64),
        bytes: Vec<u8>,
    },
    Response {
        side: usize,
        socket: (usize, u64),
        bytes: Vec<u8>,
    },
    /// Between the ports of two NATs.
    Check {
        from: SocketAddr,
        to: SocketAddr,
        is_response: bool,
    },
    /// A check in the other direction, after one that has arrived.
    Triggered {
        side: usize,
        socket: u64,
        to: SocketAddr,
    },
}

/// One side: its machine, and its NAT with address- and port-dependent mapping and filtering.
struct Side {
    machine: HardNat,
    ip: Ipv4Addr,
    mapping: Mapping,
    next_port: i32,
    /// Connections of others through the NAT, a second.
    others: u64,
    /// The port of a socket towards a destination, and the reverse.
    mapped: HashMap<(u64, SocketAddr), u16>,
    owners: HashMap<u16, (u64, SocketAddr)>,
    sockets: Vec<u64>,
    /// Sockets at which a check has arrived: they stay.
    adopted: HashSet<u64>,
    most_sockets: usize,
    remotes: Vec<Candidate>,
    sent: Vec<(Instant, SocketAddr)>,
    status: Option<SprayStatus>,
}

struct World {
    now: Instant,
    sides: [Side; 2],
    loss: f64,
    rng: ChaCha20Rng,
    number: u64,
    in_flight: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: HashMap<u64, Packet>,
    is_deaf: bool,
    direct_at: Option<Instant>,
}

fn reflexive(ip: Ipv4Addr) -> Candidate {
    Candidate::server_reflexive(CandidateTransport::Udp, (ip, 3999).into(), ([10, 0, 0, 2], 4000).into(), 7)
}

fn machine(seed: [u8; 32], is_allowed: bool) -> HardNat {
    let server: SocketAddr = SERVER.parse().unwrap();
    let record = SprayRecord::new(unlocked);
    HardNat::new(HardNatConfig { is_allowed, servers: vec![server.ip()], record, seed })
}

impl World {
    fn new(mappings: [Mapping; 2], loss: f64, others: u64, seed: u8) -> Self {
        let mut rng = ChaCha20Rng::from_seed([seed; 32]);
        let now = mono();
        let sides = [0, 1].map(|index| Side {
            machine: machine(rng.random(), true),
            ip: Ipv4Addr::new(203, 0, 113, 21 + index),
            mapping: mappings[usize::from(index)],
            next_port: rng.random_range(10_000..50_000),
            others,
            mapped: HashMap::new(),
            owners: HashMap::new(),
            sockets: Vec::new(),
            adopted: HashSet::new(),
            most_sockets: 0,
            remotes: vec![reflexive(Ipv4Addr::new(203, 0, 113, 22 - index))],
            sent: Vec::new(),
            status: None,
        });
        let mut world = Self {
            now,
            sides,
            loss,
            rng,
            number: 0,
            in_flight: BinaryHeap::new(),
            packets: HashMap::new(),
            is_deaf: false,
            direct_at: None,
        };
        // One side notices a little later than the other that the path is relayed.
        let later = Duration::from_millis(world.rng.random_range(0..60));
        for index in 0..2 {
            let side = &mut world.sides[index];
            side.machine.set_nat(Some(NatType::Hard), Some((side.ip, 3999).into()));
            let at = if index == usize::from(seed % 2) { now + later } else { now };
            side.machine.set_path(at, Some(CandidatePath::Relay));
        }
        world
    }

    fn push(&mut self, delay: Duration, packet: Packet) {
        if !self.rng.random_bool(self.loss) {
            self.number += 1;
            self.packets.insert(self.number, packet);
            self.in_flight.push(Reverse((self.now + delay, self.number)));
        }
    }

    /// Returns the outer port of a socket towards a destination.
    fn map(&mut self, index: usize, socket: u64, to: SocketAddr) -> u16 {
        let side = &mut self.sides[index];
        if let Some(port) = side.mapped.get(&(socket, to)) {
            return *port;
        }
        let port = loop {
            let port = match side.mapping {
                Mapping::Sequence(step) => {
                    side.next_port += step;
                    u16::try_from(side.next_port).unwrap()
                }
                Mapping::Random => self.rng.random_range(1024..=u16::MAX),
            };
            if !side.owners.contains_key(&port) {
                break port;
            }
        };
        side.mapped.insert((socket, to), port);
        side.owners.insert(port, (socket, to));
        port
    }

    fn flush(&mut self) {
        for index in 0..2 {
            while let Some(output) = self.sides[index].machine.poll_output() {
                match output {
                    HardNatOutput::Message(message) => {
                        self.push(RELAY_DELAY, Packet::Control { to: 1 - index, message });
                    }
                    HardNatOutput::OpenSockets(count) => {
                        while self.sides[index].sockets.len() < count {
                            self.number += 1;
                            self.sides[index].sockets.push(self.number);
                        }
                        let open = self.sides[index].sockets.len();
                        self.sides[index].most_sockets = self.sides[index].most_sockets.max(open);
                    }
                    HardNatOutput::CloseSockets => self.sides[index].sockets.clear(),
                    HardNatOutput::Ask { socket, bytes } => {
                        let named = self.sides[index].sockets[socket];
                        let socket = (socket, named);
                        self.push(SERVER_DELAY, Packet::Request { side: index, socket, bytes });
                    }
                    HardNatOutput::Probe { from, to, .. } => {
                        self.sides[index].sent.push((self.now, to));
                        let ProbeSource::Extra(socket) = from else { panic!("no extra socket") };
                        let socket = self.sides[index].sockets[socket];
                        self.send(index, socket, to, false);
                    }
                    HardNatOutput::Status(status) => self.sides[index].status = Some(status),
                }
            }
        }
    }

    /// A packet may be lost before its NAT, then no port is taken, or behind it.
    fn send(&mut self, index: usize, socket: u64, to: SocketAddr, is_response: bool) {
        let half = self.loss / 2.0;
        if self.rng.random_bool(half) {
            return;
        }
        let from = (self.sides[index].ip, self.map(index, socket, to)).into();
        if !self.rng.random_bool(half) {
            self.number += 1;
            self.packets.insert(self.number, Packet::Check { from, to, is_response });
            self.in_flight.push(Reverse((self.now + DIRECT_DELAY, self.number)));
        }
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Control { to, message } => {
                let remotes = self.sides[to].remotes.clone();
                self.sides[to].machine.handle_message(self.now, message, &remotes);
            }
            Packet::Request { side, socket, bytes } => {
                let mapped = self.map(side, socket.1, SERVER.parse().unwrap());
                let id = Message::parse(&bytes).unwrap().transaction();
                let response = Builder::new(Class::Success, Method::BINDING, id)
                    .xor_address(attr::XOR_MAPPED_ADDRESS, (self.sides[side].ip, mapped).into())
                    .finish();
                self.push(SERVER_DELAY, Packet::Response { side, socket, bytes: response });
            }
            Packet::Response { side, socket: (socket, named), bytes } => {
                if self.sides[side].sockets.get(socket) == Some(&named) {
                    self.sides[side].machine.handle_server_message(self.now, socket, &bytes);
                }
            }
            Packet::Check { from, to, is_response } => {
                let index = self.sides.iter().position(|side| to.ip() == side.ip).unwrap();
                let side = &mut self.sides[index];
                let owner = side.owners.get(&to.port()).filter(|(_, peer)| *peer == from && !self.is_deaf);
                let Some(socket) = owner.map(|(socket, _)| *socket) else { return };
                if !side.sockets.contains(&socket) && !side.adopted.contains(&socket) {
                    return;
                }
                let is_new = side.adopted.insert(socket);
                side.machine.handle_hit(self.now);
                for delay in TRIGGERED.into_iter().filter(|_| is_new) {
                    self.number += 1;
                    self.packets.insert(self.number, Packet::Triggered { side: index, socket, to: from });
                    self.in_flight.push(Reverse((self.now + delay, self.number)));
                }
                match is_response {
                    true => self.direct_at = self.direct_at.or(Some(self.now + DIRECT_DELAY)),
                    false => self.send(index, socket, from, true),
                }
            }
            Packet::Triggered { side, socket, to } => self.send(side, socket, to, false),
        }
    }

    /// Lets time pass until both sides are direct, or for `limit`; returns whether they are.
    fn run(&mut self, limit: Duration) -> bool {
        let (begin, end) = (self.now, self.now + limit);
        loop {
            self.flush();
            let timers = self.sides.iter().filter_map(|side| side.machine.poll_timeout());
            let arrival = self.in_flight.peek().map(|Reverse((at, _))| *at);
            let Some(next) = timers.chain(arrival).chain(self.direct_at).min().filter(|next| *next <= end)
            else {
                self.now = end;
                return false;
            };
            let before = self.now;
            self.now = self.now.max(next);
            let elapsed = |at: Instant| at.saturating_duration_since(begin).as_micros() as u64;
            for side in &mut self.sides {
                let Mapping::Sequence(step) = side.mapping else { continue };
                let taken = |at| elapsed(at) * side.others / 1_000_000;
                side.next_port += step * i32::try_from(taken(self.now) - taken(before)).unwrap();
            }
            if self.direct_at.is_some_and(|at| at <= self.now) {
                for side in &mut self.sides {
                    side.machine.set_path(self.now, Some(CandidatePath::Direct));
                }
                self.flush();
                return true;
            }
            while let Some(Reverse((at, number))) = self.in_flight.peek().copied()
                && at <= self.now
            {
                self.in_flight.pop();
                let packet = self.packets.remove(&number).unwrap();
                self.deliver(packet);
                self.flush();
            }
            for side in &mut self.sides {
                if side.machine.poll_timeout().is_some_and(|at| at <= self.now) {
                    side.machine.handle_timeout(self.now);
                }
            }
        }
    }

    fn packets(&self) -> usize {
        self.sides.iter().map(|side| side.sent.len()).sum()
    }

    fn assert_limits(&self) {
        for side in &self.sides {
            assert!(side.most_sockets <= MAX_SOCKETS && side.sent.len() <= MAX_PACKETS);
            let to: HashSet<_> = side.sent.iter().map(|(_, to)| to.ip()).collect();
            assert!(to.len() <= 1, "one address");
            let most = side.sent.iter().enumerate().map(|(index, (at, _))| {
                let second = |(later, _): &&(Instant, SocketAddr)| *later < *at + Duration::from_secs(1);
                side.sent[index..].iter().take_while(second).count()
            });
            assert!(most.max().is_none_or(|most| most <= 200));
        }
    }
}

/// Returns how many of `seeds` runs end on a direct path, and the longest of them.
fn successes(steps: [i32; 2], loss: f64, others: u64, seeds: u8) -> (usize, Duration) {
    let mut slowest = Duration::ZERO;
    let direct = (0..seeds).filter(|seed| {
        let mut world = World::new(steps.map(Mapping::Sequence), loss, others, *seed);
        let begin = world.now;
        let is_direct = world.run(Duration::from_secs(20));
        world.assert_limits();
        if is_direct {
            slowest = slowest.max(world.now - begin);
        }
        is_direct
    });
    let direct = direct.count();
    (direct, slowest)
}

#[test]
fn two_sequences_meet_at_once() {
    for steps in [[1, 1], [1, 2], [2, 5], [-1, 3], [-4, -2]] {
        let (direct, slowest) = successes(steps, 0.0, 0, 50);
        assert!(direct == 50 && slowest < Duration::from_secs(2), "{steps:?}: {direct}, {slowest:?}");
    }
}

#[test]
fn loss_and_ports_that_others_take_cost_little() {
    for (loss, others, most_failures) in
        [(0.03, 0, 1), (0.0, 20, 1), (0.03, 20, 2), (0.1, 0, 4), (0.1, 20, 8), (0.0, 40, 40)]
    {
        let (direct, slowest) = successes([1, 1], loss, others, 100);
        assert!(100 - direct <= most_failures, "{loss}, {others}: {direct}, {slowest:?}");
    }
}

#[test]
fn a_failed_attempt_keeps_its_limits_and_ends() {
    let mut world = World::new([Mapping::Sequence(1); 2], 0.0, 0, 1);
    world.is_deaf = true;
    world.run(MAX_TIME + Duration::from_secs(5));
    world.assert_limits();
    for side in &world.sides {
        assert!(side.sockets.is_empty() && side.status == Some(SprayStatus::Failed) && !side.sent.is_empty());
        let [(first, _), .., (last, _)] = side.sent[..] else { panic!() };
        assert!(last - first < MAX_TIME);
    }
    let before = world.packets();
    world.run(SPRAY_PAUSE - Duration::from_secs(60));
    assert_eq!(world.packets(), before);
}

#[test]
fn nothing_is_sent_without_need_or_leave() {
    let with = |mappings: [Mapping; 2], change: &dyn Fn(&mut World)| {
        let mut world = World::new(mappings, 0.0, 0, 3);
        change(&mut world);
        world.run(Duration::from_secs(20));
        (world.packets(), world.sides.map(|side| side.status))
    };
    let sequence = Mapping::Sequence(1);
    assert_eq!(with([Mapping::Random; 2], &|_| ()), (0, [None; 2]));
    assert_eq!(with([sequence, Mapping::Random], &|_| ()), (0, [None; 2]));
    let off = |world: &mut World| {
        let side = &mut world.sides[0];
        side.machine = machine([9; 32], false);
        side.machine.set_nat(Some(NatType::Hard), Some((side.ip, 3999).into()));
        side.machine.set_path(world.now, Some(CandidatePath::Relay));
    };
    assert_eq!(with([sequence; 2], &off), (0, [Some(SprayStatus::Off), Some(SprayStatus::OffThere)]));
    let forbid = |world: &mut World| world.sides[1].machine.set_vetoed(world.now, true);
    assert_eq!(with([sequence; 2], &forbid), (0, [Some(SprayStatus::Vetoed); 2]));
    let direct = |world: &mut World| {
        for side in &mut world.sides {
            side.machine.set_path(world.now, Some(CandidatePath::Direct));
        }
    };
    assert_eq!(with([sequence; 2], &direct), (0, [None; 2]));
}

#[test]
fn a_peer_cannot_have_other_addresses_probed() {
    let server: SocketAddr = SERVER.parse().unwrap();
    let victim = Ipv4Addr::new(192, 0, 2, 7);
    for remotes in [
        vec![],
        vec![reflexive(victim)],
        vec![reflexive("10.0.0.3".parse().unwrap())],
        vec![reflexive("198.51.100.1".parse().unwrap())],
        vec![Candidate::host(CandidateTransport::Udp, ([203, 0, 113, 22], 9).into(), 7)],
        vec![reflexive([203, 0, 113, 22].into()), Candidate::relayed(([203, 0, 113, 22], 50_000).into(), 7)],
    ] {
        let mut world = World::new([Mapping::Sequence(1); 2], 0.0, 0, 3);
        world.sides[0].remotes = remotes.clone();
        world.run(Duration::from_secs(20));
        assert!(world.sides[0].sent.is_empty(), "{remotes:?}");
    }
    // A malicious peer leads, and names another address in each window; or ports that are none.
    for (ip, step) in
        [(victim, 1), (server.ip().to_string().parse().unwrap(), 1), ([203, 0, 113, 21].into(), 0)]
    {
        let mut world = World::new([Mapping::Sequence(1); 2], 0.0, 0, 3);
        let remotes = world.sides[1].remotes.clone();
        let message = |body| SprayMessage { id: u32::MAX, body };
        world.sides[1].machine.handle_message(world.now, message(MessageBody::Request), &remotes);
        for round in 0..=u8::MAX {
            world.run(Duration::from_millis(100));
            let window = PortWindow { ip, first: 5000, step };
            for body in [MessageBody::Again { round }, MessageBody::Window { round, window }] {
                world.sides[1].machine.handle_message(world.now, message(body), &remotes);
            }
        }
        assert!(world.sides[1].sent.iter().all(|(_, to)| to.ip() != victim && to.ip() != server.ip()));
        world.assert_limits();
    }
}

#[test]
fn a_peer_cannot_have_the_server_asked_without_end() {
    let mut world = World::new([Mapping::Sequence(1); 2], 0.0, 0, 4);
    let remotes = world.sides[1].remotes.clone();
    world.sides[0].machine.set_vetoed(world.now, true);
    world.run(Duration::from_secs(1));
    let (mut asked, begin) = (0, world.now);
    for attempt in 0..2_000_u32 {
        let refuse = MessageBody::Refuse(super::wire::SprayRefusal::Busy);
        for body in [MessageBody::Request, refuse] {
            let message = SprayMessage { id: 5_000_000 + attempt, body };
            world.sides[1].machine.handle_message(world.now, message, &remotes);
            world.flush();
            asked += world.packets.values().filter(|packet| matches!(packet, Packet::Request { .. })).count();
            world.packets.retain(|_, packet| !matches!(packet, Packet::Request { .. }));
            world.in_flight.clear();
        }
        world.run(Duration::from_millis(5));
    }
    let seconds = usize::try_from((world.now - begin).as_secs()).unwrap();
    assert!(asked > 0 && asked <= 8 * (seconds / 2 + 2), "{asked} requests in {seconds} s");
}

#[test]
fn a_peer_that_asks_for_round_after_round_gets_no_more_packets_than_allowed() {
    let mut world = World::new([Mapping::Sequence(1); 2], 0.0, 0, 4);
    world.is_deaf = true;
    let remotes = world.sides[1].remotes.clone();
    // The first side is the attacker's: its machine is silent.
    world.sides[0].machine.set_vetoed(world.now, true);
    for attempt in 0..40_u32 {
        let message = |body| SprayMessage { id: u32::MAX - attempt, body };
        world.sides[1].machine.handle_message(world.now, message(MessageBody::Request), &remotes);
        for round in 0..=u8::MAX {
            world.run(Duration::from_millis(120));
            let window = PortWindow { ip: world.sides[0].ip, first: 5000, step: 1 };
            for body in [MessageBody::Again { round }, MessageBody::Window { round, window }] {
                world.sides[1].machine.handle_message(world.now, message(body), &remotes);
            }
        }
    }
    let side = &world.sides[1];
    assert!(!side.sent.is_empty() && side.sent.len() <= MAX_PACKETS && side.most_sockets <= MAX_SOCKETS);
}
