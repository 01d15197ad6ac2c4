//! Two machines, their NATs and the relayed path between them, with a virtual clock and seeded randomness.

use super::limits::{MAX_PACKETS, MAX_SOCKETS, MAX_TIME, SPRAY_PAUSE, SprayRecord, unlocked};
use super::wire::SprayMessage;
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
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SERVER: &str = "198.51.100.1:3478";
/// The hard side's NAT, and the easy side's mapped address.
const HARD_IP: [u8; 4] = [203, 0, 113, 21];
const EASY: &str = "203.0.113.22:5000";
const SERVER_DELAY: Duration = Duration::from_millis(25);
const DIRECT_DELAY: Duration = Duration::from_millis(15);
const RELAY_DELAY: Duration = Duration::from_millis(50);

/// How the hard side's NAT chooses ports.
#[derive(Debug, Clone, Copy)]
enum Mapping {
    Sequence(u16),
    Block(u16),
    Random,
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Packet {
    Control {
        to: usize,
        message: SprayMessage,
    },
    /// To the server, and back to an extra socket.
    Request {
        socket: usize,
        bytes: Vec<u8>,
    },
    Response {
        socket: usize,
        bytes: Vec<u8>,
    },
    /// Of the easy side to a port of the hard one.
    Probe {
        port: u16,
    },
}

struct World {
    now: Instant,
    sides: [HardNat; 2],
    mapping: Mapping,
    loss: f64,
    rng: ChaCha20Rng,
    next_port: u16,
    block: u16,
    /// The port of each extra socket towards a destination.
    mapped: HashMap<(u64, SocketAddr), u16>,
    /// The same by port.
    owners: HashMap<u16, (u64, SocketAddr)>,
    sockets: Vec<u64>,
    most_sockets: usize,
    number: u64,
    in_flight: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: HashMap<u64, Packet>,
    /// The last one that each side told.
    status: [Option<SprayStatus>; 2],
    /// When each side has sent a packet to the other, and where to.
    sent: [Vec<(Instant, SocketAddr)>; 2],
    /// The candidates that each side knows of the other.
    remotes: [Vec<Candidate>; 2],
    /// Connections of others through the hard side's NAT, a second.
    others: u64,
    /// No probe is let in.
    is_deaf: bool,
    direct_at: Option<Instant>,
}

fn candidate(address: SocketAddr, base: [u8; 4]) -> Candidate {
    Candidate::server_reflexive(CandidateTransport::Udp, address, (base, 4000).into(), 7)
}

fn machine(number: u8, is_allowed: bool, record: SprayRecord) -> HardNat {
    let server: SocketAddr = SERVER.parse().unwrap();
    let config = HardNatConfig { is_allowed, servers: vec![server.ip()], record, seed: [number; 32] };
    HardNat::new(config)
}

impl World {
    fn new(mapping: Mapping, loss: f64, seed: u8) -> Self {
        let mut rng = ChaCha20Rng::from_seed([seed; 32]);
        let now = mono();
        let sides = [0, 1].map(|index| machine(seed ^ (index << 7), true, SprayRecord::new(unlocked)));
        let easy: SocketAddr = EASY.parse().unwrap();
        let (next_port, block) = (rng.random_range(2000..60_000), 512 * rng.random_range(3..120));
        let mut world = Self {
            now,
            sides,
            mapping,
            loss,
            rng,
            next_port,
            block,
            mapped: HashMap::new(),
            owners: HashMap::new(),
            sockets: Vec::new(),
            most_sockets: 0,
            number: 0,
            in_flight: BinaryHeap::new(),
            packets: HashMap::new(),
            status: [None; 2],
            sent: [Vec::new(), Vec::new()],
            remotes: [
                vec![candidate(easy, [10, 0, 0, 2])],
                vec![candidate((HARD_IP, 3999).into(), [10, 0, 0, 3])],
            ],
            others: 0,
            is_deaf: false,
            direct_at: None,
        };
        world.sides[0].set_nat(Some(NatType::Hard), Some((HARD_IP, 3999).into()));
        world.sides[1].set_nat(Some(NatType::Easy), Some(easy));
        world.set_path(Some(CandidatePath::Relay));
        world
    }

    fn set_path(&mut self, path: Option<CandidatePath>) {
        for side in &mut self.sides {
            side.set_path(self.now, path);
        }
    }

    fn push(&mut self, delay: Duration, packet: Packet) {
        if !self.rng.random_bool(self.loss) {
            self.number += 1;
            self.packets.insert(self.number, packet);
            self.in_flight.push(Reverse((self.now + delay, self.number)));
        }
    }

    /// Returns the port of an extra socket towards a destination.
    fn map(&mut self, socket: u64, to: SocketAddr) -> u16 {
        if let Some(port) = self.mapped.get(&(socket, to)) {
            return *port;
        }
        let port = loop {
            let port = match self.mapping {
                Mapping::Sequence(step) => {
                    self.next_port = self.next_port.checked_add(step).unwrap_or(1024);
                    self.next_port
                }
                Mapping::Block(size) => self.block + self.rng.random_range(0..size),
                Mapping::Random => self.rng.random_range(1024..=u16::MAX),
            };
            if !self.owners.contains_key(&port) {
                break port;
            }
        };
        self.mapped.insert((socket, to), port);
        self.owners.insert(port, (socket, to));
        port
    }

    fn flush(&mut self) {
        for index in 0..2 {
            while let Some(output) = self.sides[index].poll_output() {
                match output {
                    HardNatOutput::Message(message) => {
                        self.push(RELAY_DELAY, Packet::Control { to: 1 - index, message });
                    }
                    HardNatOutput::OpenSockets(count) => {
                        while self.sockets.len() < count {
                            self.number += 1;
                            self.sockets.push(self.number);
                        }
                        self.most_sockets = self.most_sockets.max(self.sockets.len());
                    }
                    HardNatOutput::CloseSockets => self.sockets.clear(),
                    HardNatOutput::Ask { socket, bytes } => {
                        self.push(SERVER_DELAY, Packet::Request { socket, bytes });
                    }
                    HardNatOutput::Probe { from, to, .. } => self.send(index, from, to),
                    HardNatOutput::Status(status) => self.status[index] = Some(status),
                }
            }
        }
    }

    fn send(&mut self, index: usize, from: ProbeSource, to: SocketAddr) {
        self.sent[index].push((self.now, to));
        match from {
            // What is lost is lost behind the NAT of its sender.
            ProbeSource::Extra(socket) => {
                if let Some(socket) =
                    self.sockets.get(socket).copied().filter(|_| !self.rng.random_bool(self.loss))
                {
                    self.map(socket, to);
                }
            }
            ProbeSource::Main => self.push(DIRECT_DELAY, Packet::Probe { port: to.port() }),
        }
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Control { to, message } => {
                let remotes = self.remotes[to].clone();
                self.sides[to].handle_message(self.now, message, &remotes);
            }
            Packet::Request { socket, bytes } => {
                let (server, Some(named)) = (SERVER.parse().unwrap(), self.sockets.get(socket).copied())
                else {
                    return;
                };
                let mapped = SocketAddr::from((HARD_IP, self.map(named, server)));
                let id = Message::parse(&bytes).unwrap().transaction();
                let response = Builder::new(Class::Success, Method::BINDING, id)
                    .xor_address(attr::XOR_MAPPED_ADDRESS, mapped)
                    .finish();
                self.push(SERVER_DELAY, Packet::Response { socket, bytes: response });
            }
            Packet::Response { socket, bytes } => {
                self.sides[0].handle_server_message(self.now, socket, &bytes)
            }
            Packet::Probe { port } => {
                let easy: SocketAddr = EASY.parse().unwrap();
                let owner = self.owners.get(&port).filter(|(_, to)| *to == easy && !self.is_deaf);
                let is_hit = owner.is_some_and(|(socket, _)| self.sockets.contains(socket));
                if is_hit && self.direct_at.is_none() {
                    // The check is answered, and both sides change to the new pair.
                    self.sides[0].handle_hit(self.now);
                    self.direct_at = Some(self.now + 2 * DIRECT_DELAY);
                }
            }
        }
    }

    /// Lets time pass until both sides are direct, or for `limit`; returns whether they are.
    fn run(&mut self, limit: Duration) -> bool {
        let (begin, end) = (self.now, self.now + limit);
        loop {
            self.flush();
            let timers = self.sides.iter().filter_map(HardNat::poll_timeout);
            let arrival = self.in_flight.peek().map(|Reverse((at, _))| *at);
            let Some(next) = timers.chain(arrival).chain(self.direct_at).min().filter(|next| *next <= end)
            else {
                self.now = end;
                return false;
            };
            let before = self.now;
            self.now = self.now.max(next);
            let elapsed = |at: Instant| at.saturating_duration_since(begin).as_micros() as u64;
            let taken =
                elapsed(self.now) * self.others / 1_000_000 - elapsed(before) * self.others / 1_000_000;
            self.next_port = self.next_port.wrapping_add(u16::try_from(taken).unwrap());
            if self.direct_at.is_some_and(|at| at <= self.now) {
                self.set_path(Some(CandidatePath::Direct));
                self.flush();
                return true;
            }
            while let Some(Reverse((at, number))) = self.in_flight.peek().copied()
                && at <= self.now
            {
                self.in_flight.pop();
                let packet = self.packets.remove(&number).unwrap();
                self.deliver(packet);
            }
            for side in &mut self.sides {
                if side.poll_timeout().is_some_and(|at| at <= self.now) {
                    side.handle_timeout(self.now);
                }
            }
        }
    }
}

/// Returns how many of `seeds` runs end on a direct path, and the longest of them.
fn successes(mapping: Mapping, loss: f64, others: u64, seeds: u8) -> (usize, Duration) {
    let mut slowest = Duration::ZERO;
    let direct = (0..seeds).filter(|seed| {
        let mut world = World::new(mapping, loss, *seed);
        world.others = others;
        let begin = world.now;
        let is_direct = world.run(Duration::from_secs(20));
        assert!(world.most_sockets <= MAX_SOCKETS);
        assert!(world.sent.iter().all(|sent| sent.len() <= MAX_PACKETS));
        if is_direct {
            slowest = slowest.max(world.now - begin);
        }
        is_direct
    });
    let direct = direct.count();
    (direct, slowest)
}

#[test]
fn sequences_and_blocks_are_met_within_seconds_and_random_ports_nearly_always() {
    let seconds = |slowest: Duration| slowest.as_secs();
    for step in [1, 2, 5] {
        let (direct, slowest) = successes(Mapping::Sequence(step), 0.0, 0, 100);
        assert!(direct == 100 && seconds(slowest) < 2, "step {step}: {direct}, {slowest:?}");
    }
    for size in [512, 1000, 2048, 4000] {
        let (direct, slowest) = successes(Mapping::Block(size), 0.0, 0, 100);
        assert!(direct >= 99 && seconds(slowest) < 12, "block {size}: {direct}, {slowest:?}");
    }
    let (direct, slowest) = successes(Mapping::Random, 0.0, 0, 40);
    assert!(direct >= 38 && seconds(slowest) < 15, "random: {direct}, {slowest:?}");
}

#[test]
fn loss_and_other_connections_of_the_network_cost_little() {
    for (mapping, loss, others, seeds, most_failures) in [
        (Mapping::Sequence(1), 0.03, 0, 100, 2),
        (Mapping::Sequence(1), 0.03, 20, 100, 5),
        (Mapping::Block(512), 0.03, 0, 100, 2),
        (Mapping::Random, 0.03, 0, 40, 3),
        (Mapping::Sequence(1), 0.1, 0, 100, 10),
    ] {
        let (direct, slowest) = successes(mapping, loss, others, seeds);
        let failures = usize::from(seeds) - direct;
        assert!(failures <= most_failures, "{mapping:?}, {loss}, {others}: {direct}, {slowest:?}");
    }
}

#[test]
fn a_failed_spray_keeps_its_limits_and_is_not_repeated_within_an_hour() {
    let mut world = World::new(Mapping::Random, 0.0, 1);
    world.is_deaf = true;
    world.sides[0].set_relayed(u64::MAX);
    let begin = world.now;
    let mut sockets_closed = None;
    for _ in 0..40 {
        world.run(Duration::from_millis(500));
        if world.most_sockets > 0 && world.sockets.is_empty() {
            sockets_closed.get_or_insert(world.now - begin);
        }
    }
    assert!(
        sockets_closed.is_some_and(|after| after <= MAX_TIME + Duration::from_secs(2)),
        "{sockets_closed:?}"
    );
    assert_eq!(world.status, [Some(SprayStatus::Failed); 2]);
    for sent in &world.sent {
        assert!(!sent.is_empty() && sent.len() <= MAX_PACKETS);
        let to: HashSet<_> = sent.iter().map(|(_, to)| to.ip()).collect();
        assert_eq!(to.len(), 1, "one address");
        let most = sent.iter().enumerate().map(|(index, (at, _))| {
            sent[index..].iter().take_while(|(later, _)| *later < *at + Duration::from_secs(1)).count()
        });
        assert!(most.max().is_some_and(|most| most <= 200));
    }
    let before = world.sent.clone();
    world.run(SPRAY_PAUSE - Duration::from_secs(60));
    assert_eq!(world.sent, before);
}

#[test]
fn a_candidate_that_comes_late_costs_only_time() {
    for index in 0..2 {
        let mut world = World::new(Mapping::Sequence(1), 0.0, 4);
        let late = std::mem::take(&mut world.remotes[index]);
        assert!(!world.run(Duration::from_secs(2)) && world.sent[index].is_empty());
        world.remotes[index] = late;
        assert!(world.run(Duration::from_secs(8)), "{index}");
    }
}

#[test]
fn a_direct_path_that_is_lost_is_looked_for_again() {
    for mapping in [Mapping::Sequence(1), Mapping::Block(512), Mapping::Random] {
        let mut world = World::new(mapping, 0.0, 2);
        assert!(world.run(MAX_TIME), "{mapping:?}");
        // The NAT was restarted.
        world.direct_at = None;
        world.mapped.clear();
        world.owners.clear();
        world.set_path(Some(CandidatePath::Relay));
        assert!(world.run(2 * MAX_TIME), "{mapping:?}");
    }
}

#[test]
fn nothing_is_sent_without_need_or_leave() {
    let with = |change: &dyn Fn(&mut World)| {
        let mut world = World::new(Mapping::Random, 0.0, 3);
        change(&mut world);
        world.run(Duration::from_secs(20));
        (world.sent.iter().map(Vec::len).sum::<usize>(), world.status)
    };
    let refuse = |index: usize| {
        move |world: &mut World| {
            world.sides[index] = machine(9, false, SprayRecord::new(unlocked));
            let nat = [NatType::Hard, NatType::Easy][index];
            let address = [(HARD_IP, 3999).into(), EASY.parse().unwrap()][index];
            world.sides[index].set_nat(Some(nat), Some(address));
            world.sides[index].set_path(world.now, Some(CandidatePath::Relay));
        }
    };
    let forbid = |index: usize| move |world: &mut World| world.sides[index].set_vetoed(world.now, true);
    assert_eq!(with(&refuse(0)), (0, [Some(SprayStatus::Off), Some(SprayStatus::OffThere)]));
    assert_eq!(with(&refuse(1)), (0, [Some(SprayStatus::OffThere), Some(SprayStatus::Off)]));
    assert_eq!(with(&forbid(0)), (0, [Some(SprayStatus::Vetoed); 2]));
    assert_eq!(with(&forbid(1)), (0, [Some(SprayStatus::Vetoed); 2]));
    // The other side is blocked; both easy; direct by plain ICE; no path. Two hard sides: `mutual_simulation.rs`.
    let hard: SocketAddr = (HARD_IP, 3999).into();
    let nat = |index: usize, nat| move |world: &mut World| world.sides[index].set_nat(Some(nat), Some(hard));
    assert_eq!(with(&nat(1, NatType::Blocked)), (0, [None; 2]));
    assert_eq!(with(&nat(0, NatType::Easy)), (0, [None; 2]));
    assert_eq!(with(&|world| world.set_path(Some(CandidatePath::Direct))), (0, [None; 2]));
    assert_eq!(with(&|world| world.set_path(None)), (0, [None; 2]));
}

#[test]
fn a_user_who_does_not_wait_gets_a_spray_only_for_much_relayed_data() {
    let mut world = World::new(Mapping::Sequence(1), 0.0, 5);
    world.sides[0].set_nat(None, None);
    world.run(Duration::from_secs(40));
    world.sides[0].set_nat(Some(NatType::Hard), Some((HARD_IP, 3999).into()));
    assert!(!world.run(Duration::from_secs(40)) && world.sent[0].is_empty());
    world.sides[0].set_relayed(1 << 20);
    assert!(world.run(Duration::from_secs(5)));
}

#[test]
fn a_peer_cannot_have_other_addresses_probed() {
    // Which candidates the peer offers, what it names, and whether it gets packets.
    let server: SocketAddr = SERVER.parse().unwrap();
    let (victim, private): (SocketAddr, SocketAddr) =
        ("192.0.2.7:5000".parse().unwrap(), "10.0.0.3:5000".parse().unwrap());
    let reflexive = |address| candidate(address, [10, 0, 0, 9]);
    for (offered, named) in [
        (vec![reflexive(EASY.parse().unwrap())], victim),
        (vec![reflexive(private)], private),
        (vec![reflexive(server)], server),
        (vec![reflexive(victim), Candidate::relayed((victim.ip(), 50_000).into(), 7)], victim),
        (vec![], victim),
    ] {
        let mut world = World::new(Mapping::Random, 0.0, 3);
        world.sides[1].set_nat(Some(NatType::Easy), Some(named));
        world.remotes[0] = offered.clone();
        world.run(Duration::from_secs(20));
        assert!(world.sent[0].is_empty(), "{offered:?} {named}");
        // The easy side: the address that the hard side's NAT shows is none of its candidates.
        let mut world = World::new(Mapping::Random, 0.0, 3);
        world.remotes[1] = offered.clone();
        world.run(Duration::from_secs(20));
        assert!(world.sent[1].is_empty(), "{offered:?}");
    }
}

#[test]
fn repeated_messages_of_a_relay_start_nothing_new() {
    let mut world = World::new(Mapping::Block(512), 0.0, 11);
    let mut seen = Vec::new();
    let end = world.now + Duration::from_secs(20);
    while world.now < end && world.direct_at.is_none() {
        world.run(Duration::from_millis(50));
        seen.extend(
            world.packets.values().filter(|packet| matches!(packet, Packet::Control { .. })).cloned(),
        );
    }
    world.run(Duration::from_secs(1));
    let before = world.sent.clone();
    for packet in seen {
        world.deliver(packet);
        world.run(Duration::from_millis(100));
    }
    world.run(Duration::from_secs(20));
    assert_eq!(world.sent, before);
}
