//! Two ICE agents, a network that loses, repeats, reorders and alters messages and forgets paths, and a peer that lies, checked against a
//! model of what was sent and answered: no pair is used without a check that was answered, and never for longer than consent lasts; whoever
//! has not answered gets few packets; no response is longer than its request; the timers advance; and in the end, with a path that works and
//! signalling that is complete, both sides are connected.

#[path = "input.rs"]
mod input;
#[path = "ice_machine/model.rs"]
mod model;
#[path = "ice_machine/network.rs"]
mod network;

use ginnel::ice::{
    Candidate, CandidateKind, CandidateTransport, IceAgent, IceConfig, IceCredentials, IceEvent, IceInput,
    IceRole, IceState, IceTransmit,
};
use ginnel::internals::net::time;
use ginnel::stun::{Builder, Class, Key, Message, Method, TransactionId, attr};
use input::Input;
use model::Model;
use network::{Network, Packet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const MAX_EVENTS: usize = 80;
/// Addresses of a side: those of its datagram sockets and listeners.
const BASES: u8 = 3;
const WAITS: [u64; 16] =
    [0, 1, 5, 20, 50, 100, 300, 500, 900, 1500, 3000, 6000, 12_000, 29_000, 31_000, 61_000];
/// How long a path may take to be found: the longest pause between rounds, and a round.
const PATIENCE: Duration = Duration::from_secs(75);

/// The first byte chooses the setup, the second one the seeds. Events follow, each of one byte and its operands. The same seeds and the same
/// inputs give the same outputs: every fourth input runs twice.
pub(crate) fn run(data: &[u8]) {
    let start = time::now().mono;
    let outputs = run_once(start, data);
    if data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) % 4 == 0 {
        assert_eq!(run_once(start, data), outputs, "the outputs depend only on the seed and the inputs");
    }
}

/// Returns a digest of all outputs.
fn run_once(start: Instant, data: &[u8]) -> u64 {
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

struct World {
    start: Instant,
    now: Instant,
    agents: [IceAgent; 2],
    has_tcp: bool,
    network: Network,
    model: Model,
    digest: DefaultHasher,
}

/// The address of a side's socket.
fn base(side: usize, number: u8) -> SocketAddr {
    ([10, 0, side as u8, number % BASES + 1], 4000).into()
}

/// A check that the peer of a side sends, or somebody who knows the password or does not.
fn forged_check(of: &IceCredentials, password: &str, id: u8, nominates: bool, controls: bool) -> Vec<u8> {
    let mut message = Builder::new(Class::Request, Method::BINDING, TransactionId::new([id; 12]))
        .attribute(attr::USERNAME, format!("{}:forged", of.ufrag()).as_bytes())
        .attribute(0x0024, &u32::from(id).to_be_bytes())
        .attribute(if controls { 0x802A } else { 0x8029 }, &u64::from(id).to_be_bytes());
    if nominates {
        message = message.attribute(0x0025, &[]);
    }
    message.integrity(&Key::short_term(password)).fingerprint().finish()
}

impl World {
    fn new(start: Instant, setup: u8, seed: u8) -> Self {
        let mut agents = [0, 1].map(|side| {
            let conflicts = setup & 1 != 0;
            let role = if side == 0 || conflicts { IceRole::Controlling } else { IceRole::Controlled };
            let mut config = IceConfig::new(role);
            config.renomination = setup & 2 == 0;
            let mut bytes = [seed; 32];
            bytes[0] = side;
            IceAgent::new(config, bytes)
        });
        let has_tcp = setup & 4 != 0;
        for (side, agent) in agents.iter_mut().enumerate() {
            add_base(agent, start, base(side, 0), has_tcp);
        }
        let network = Network::new(setup & 8 != 0);
        let mut world = Self {
            start,
            now: start,
            agents,
            has_tcp,
            network,
            model: Model::default(),
            digest: DefaultHasher::new(),
        };
        if setup & 16 == 0 {
            world.signal_all();
        }
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (event, operand) = (input.byte(), input.byte());
        let side = usize::from(operand >> 7);
        let now = self.now;
        match event % 16 {
            0 | 1 => self.advance(Duration::from_millis(WAITS[usize::from(operand) % WAITS.len()])),
            2 => self.network.drop_packet(operand),
            3 => self.network.repeat_packet(operand),
            4 => self.network.delay_packet(operand),
            5 => self.network.alter_packet(operand, input.byte()),
            6 => self.signal_credentials(side),
            7 => self.signal_candidate(side, operand),
            8 => self.forge_candidate(side, operand, input.byte()),
            9 => self.forge_check(side, operand, input.byte()),
            10 => self.agents[side].restart(now),
            11 => self.agents[side].handle_network_change(now),
            12 => self.network.toggle_path(operand),
            13 => self.exchange_data(side),
            14 => self.change_bases(side, operand),
            _ => self.other_input(side, operand),
        }
        self.flush();
    }

    fn signal_credentials(&mut self, from: usize) {
        let credentials = self.agents[from].local_credentials().clone();
        let to = &mut self.agents[1 - from];
        if to.remote_credentials().is_some_and(|known| *known != credentials) {
            to.restart(self.now);
        }
        to.set_remote_credentials(self.now, credentials);
    }

    fn signal_candidate(&mut self, from: usize, number: u8) {
        let candidates = self.agents[from].local_candidates();
        if let Some(candidate) = candidates.get(usize::from(number & 0x7F) % candidates.len().max(1)) {
            let text = candidate.to_string();
            self.agents[1 - from].add_remote_candidate(self.now, text.parse().unwrap());
        }
    }

    fn signal_all(&mut self) {
        for side in 0..2 {
            self.signal_credentials(side);
        }
        for side in 0..2 {
            for number in 0..self.agents[side].local_candidates().len() {
                self.signal_candidate(side, number as u8);
            }
            self.agents[1 - side].handle_end_of_candidates(self.now);
        }
    }

    /// Several addresses of others at once, as a lying peer names them.
    fn forge_candidate(&mut self, side: usize, operand: u8, more: u8) {
        for number in 0..operand % 8 + 1 {
            let (ip, port) = (more % 4, 1000 + u16::from(more) * 8 + u16::from(number));
            let kind = ["host", "srflx", "relay"][usize::from(operand) % 3];
            let (protocol, tcp) = if operand & 8 != 0 { ("tcp", " tcptype passive") } else { ("udp", "") };
            let text =
                format!("candidate:f{number} 1 {protocol} 4000000000 192.168.0.{ip} {port} typ {kind}{tcp}");
            self.agents[side].add_remote_candidate(self.now, text.parse().unwrap());
        }
    }

    fn forge_check(&mut self, side: usize, operand: u8, more: u8) {
        let credentials = self.agents[side].local_credentials().clone();
        let is_authentic = operand & 1 == 0;
        let password = if is_authentic { credentials.password() } else { "a password of somebody else" };
        let bytes = forged_check(&credentials, password, more, operand & 2 != 0, operand & 4 != 0);
        let from = SocketAddr::from(([192, 168, 0, more % 8], u16::from(more) + 1));
        let to = base(side, operand >> 3);
        let before = self.network.sent();
        let outcome = match operand & 64 != 0 && self.has_tcp {
            true => self.agents[side].handle_tcp_message(self.now, to, from, &bytes),
            false => self.agents[side].handle_message(self.now, to, from, &bytes),
        };
        assert!(is_authentic || outcome == IceInput::Unrelated, "a forged check is handled");
        self.flush_side(side, |model, packet| model.on_response(side, packet, bytes.len()));
        assert!(self.network.sent() - before <= 1, "one request has several responses");
    }

    fn exchange_data(&mut self, side: usize) {
        if let Some(pair) = self.agents[side].selected() {
            self.agents[side].handle_data_sent(self.now);
            let is_tcp = pair.local.transport != CandidateTransport::Udp;
            let transmit = IceTransmit {
                local: pair.local.base,
                remote: pair.remote.address,
                is_tcp,
                bytes: Vec::new(),
            };
            self.network.send(self.now, side, transmit);
        }
    }

    fn change_bases(&mut self, side: usize, operand: u8) {
        let of_side = base(side, operand);
        if operand & 64 == 0 {
            add_base(&mut self.agents[side], self.now, of_side, self.has_tcp);
        } else {
            self.agents[side].remove_local_candidates(self.now, of_side);
        }
    }

    fn other_input(&mut self, side: usize, operand: u8) {
        let (now, agent) = (self.now, &mut self.agents[side]);
        match operand % 4 {
            0 => agent.verify_selected(now),
            1 => agent.handle_end_of_candidates(now),
            2 => self.network.close_connections(now, &mut self.agents),
            _ => {
                let garbage: Vec<u8> = (0..operand).map(|byte| byte.wrapping_mul(operand)).collect();
                let outcome = agent.handle_message(now, base(side, 0), base(1 - side, 0), &garbage);
                assert_eq!(outcome, IceInput::Unrelated);
            }
        }
    }

    /// Lets time pass: timers fire and packets arrive when they are due.
    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        for round in 0..100_000 {
            let timers = self.agents.iter().filter_map(IceAgent::poll_timeout);
            let next = timers.chain(self.network.next_arrival()).min().filter(|next| *next <= end);
            let Some(next) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            while let Some(packet) = self.network.next_packet(self.now) {
                self.deliver(packet);
            }
            for agent in &mut self.agents {
                if agent.poll_timeout().is_some_and(|at| at <= self.now) {
                    agent.handle_timeout(self.now);
                    assert!(agent.poll_timeout().is_none_or(|at| at > self.now), "a timer does not advance");
                }
            }
            self.flush();
            if round % 16 == 0 {
                self.check();
            }
        }
        panic!("an endless loop");
    }

    fn deliver(&mut self, packet: Packet) {
        let is_genuine = packet.is_genuine();
        let Packet { to_side: side, local, remote, is_tcp, bytes, .. } = packet;
        self.flush();
        let (now, agent) = (self.now, &mut self.agents[side]);
        if bytes.is_empty() {
            return match is_tcp {
                true => agent.handle_tcp_data_received(local, remote),
                false => agent.handle_data_received(local, remote),
            };
        }
        let outcome = match is_tcp {
            true => agent.handle_tcp_message(now, local, remote, &bytes),
            false => agent.handle_message(now, local, remote, &bytes),
        };
        if outcome == IceInput::Handled {
            assert!(is_genuine, "an altered message is handled");
            self.model.on_handled(now, side, (is_tcp, local, remote), &bytes);
        }
        self.flush_side(side, |model, packet| model.on_response(side, packet, bytes.len()));
    }

    fn flush(&mut self) {
        for side in 0..2 {
            self.flush_side(side, |_, _| {});
        }
    }

    /// Takes the outputs of a side; `seen` is called with those that are responses.
    fn flush_side(&mut self, side: usize, seen: impl Fn(&mut Model, &IceTransmit)) {
        let mut taken = 0;
        while let Some(transmit) = self.agents[side].poll_transmit() {
            taken += 1;
            (side, transmit.local, transmit.remote, transmit.is_tcp, &transmit.bytes).hash(&mut self.digest);
            self.model.on_sent(self.now, side, &transmit);
            if Message::parse(&transmit.bytes).unwrap().class() != Class::Request {
                seen(&mut self.model, &transmit);
            }
            self.network.send(self.now, side, transmit);
        }
        assert!(taken <= 512, "{taken} messages wait");
        while let Some(event) = self.agents[side].poll_event() {
            self.network.handle_event(side, &event);
            if let IceEvent::Provisional { pair, datagrams } = &event {
                let kinds = [pair.local.kind, pair.remote.kind];
                assert!(kinds.contains(&CandidateKind::Relayed), "data on a direct pair without an answer");
                assert!((1..=16).contains(datagrams));
            }
            if let IceEvent::Selected(pair) = event {
                (side, pair.local.base, pair.remote.address).hash(&mut self.digest);
                self.check();
            }
        }
        self.network.open_connections(self.now, &mut self.agents);
    }

    /// What holds at any time.
    fn check(&self) {
        for (side, agent) in self.agents.iter().enumerate() {
            assert!(agent.local_candidates().len() <= 64);
            match agent.selected() {
                Some(pair) => {
                    let is_tcp = pair.local.transport != CandidateTransport::Udp;
                    self.model.check_use(self.now, side, (is_tcp, pair.local.base, pair.remote.address));
                }
                None => assert_ne!(agent.state(), IceState::Connected, "connected without a pair"),
            }
        }
    }

    /// With every path open and complete signalling, both sides connect.
    fn end(mut self) -> u64 {
        self.network.heal();
        for side in 0..2 {
            let agent = &mut self.agents[side];
            add_base(agent, self.now, base(side, 0), self.has_tcp);
        }
        let knows = |side: usize, other: usize| {
            self.agents[side].remote_credentials() == Some(self.agents[other].local_credentials())
        };
        if !knows(0, 1) || !knows(1, 0) {
            for agent in &mut self.agents {
                agent.restart(self.now);
            }
        }
        self.signal_all();
        self.flush();
        let end = self.now + PATIENCE;
        let is_connected =
            |world: &Self| world.agents.iter().all(|agent| agent.state() == IceState::Connected);
        while !is_connected(&self) {
            let states = self.agents.each_ref().map(|agent| (agent.state(), agent.role(), agent.selected()));
            assert!(
                self.now < end,
                "a path that exists is not found: {states:?} at {:?}",
                self.now - self.start
            );
            self.advance(Duration::from_millis(500));
        }
        self.digest.finish()
    }
}

/// Adds the candidates of an address.
fn add_base(agent: &mut IceAgent, now: Instant, base: SocketAddr, has_tcp: bool) {
    let preference = u16::from(
        255 - match base.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        },
    ) * 256;
    agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, base, preference));
    if has_tcp {
        for transport in [CandidateTransport::TcpActive, CandidateTransport::TcpPassive] {
            agent.add_local_candidate(now, Candidate::host(transport, base, preference));
        }
    }
}
