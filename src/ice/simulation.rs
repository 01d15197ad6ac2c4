//! Two agents, their NATs and their relays in one thread, with a virtual clock and one seed.

use super::simulation_tcp::Tcp;
use super::*;
use crate::net::time::now;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The NAT of a side, in the words of RFC 4787.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nat {
    /// A public address and no filter.
    Open,
    /// A public address; only replies come in.
    Firewall,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address and port-dependent filtering.
    PortRestricted,
    /// Address and port-dependent mapping and filtering.
    Symmetric,
    /// No UDP, except to the relay over TCP.
    Blocked,
}

/// One side.
pub(super) struct Side {
    pub(super) agent: IceAgent,
    pub(super) nat: Nat,
    pub(super) host: SocketAddr,
    public: IpAddr,
    relayed: Option<SocketAddr>,
    /// (local, destination if the mapping depends on it) → public address.
    mappings: HashMap<(SocketAddr, Option<SocketAddr>), SocketAddr>,
    /// What the NAT lets in: (public address, sender).
    opened: HashMap<(SocketAddr, SocketAddr), Instant>,
    next_port: u16,
    pub(super) events: Vec<(Duration, IceEvent)>,
    pub(super) sent: usize,
    /// When a message was sent and where to, if that is recorded.
    pub(super) log: Option<Vec<(Duration, SocketAddr)>>,
    /// When data of the other side arrived last, and how often.
    pub(super) data: Vec<Duration>,
}

struct Packet {
    to_side: usize,
    local: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// The network.
pub(super) struct Network {
    start: Instant,
    pub(super) now: Instant,
    rng: ChaCha20Rng,
    pub(super) sides: [Side; 2],
    in_flight: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: BTreeMap<u64, Packet>,
    number: u64,
    pub(super) loss: f64,
    /// Whether datagrams pass without a relay.
    pub(super) is_direct_up: bool,
    /// Whether relays forward.
    pub(super) is_relay_up: bool,
    /// One way: between the hosts, and from a host to its relay.
    pub(super) direct_delay: Duration,
    pub(super) relay_delay: Duration,
    /// Every 20 ms each side sends data on its selected pair, and answers it.
    pub(super) with_data: bool,
    next_data: Instant,
    pub(super) tcp: Tcp,
}

pub(super) const DATA: &[u8] = b"\x80data";
const DATA_INTERVAL: Duration = Duration::from_millis(20);
/// How long a NAT keeps what was opened.
const NAT_LIFETIME: Duration = Duration::from_secs(30);

fn side(index: u8, nat: Nat, role: IceRole, seed: u64) -> Side {
    let public: IpAddr = [203, 0, 113, index + 1].into();
    let is_public = matches!(nat, Nat::Open | Nat::Firewall);
    let ip = if is_public { public } else { [10, 0, index, 2].into() };
    let mut bytes = [index; 32];
    bytes[1..9].copy_from_slice(&seed.to_be_bytes());
    Side {
        agent: IceAgent::new(IceConfig::new(role), bytes),
        nat,
        host: SocketAddr::new(ip, 4000),
        public,
        relayed: None,
        mappings: HashMap::new(),
        opened: HashMap::new(),
        next_port: 20_000,
        events: Vec::new(),
        sent: 0,
        log: None,
        data: Vec::new(),
    }
}

impl Side {
    /// Maps an outgoing datagram, and opens the filter for replies; `None` if the NAT drops it.
    pub(super) fn map(&mut self, at: Instant, local: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let key = match self.nat {
            Nat::Blocked => return None,
            Nat::Symmetric => (local, Some(to)),
            _ => (local, None),
        };
        let is_public = local.ip() == self.public;
        let mapped = *self.mappings.entry(key).or_insert_with(|| {
            self.next_port += 1;
            if is_public { local } else { SocketAddr::new(self.public, self.next_port) }
        });
        self.opened.insert((mapped, to), at);
        Some(mapped)
    }

    /// Returns the local address to which an incoming datagram is passed, if the NAT passes it.
    pub(super) fn accept(&self, at: Instant, to: SocketAddr, from: SocketAddr) -> Option<SocketAddr> {
        if self.nat == Nat::Open {
            return (to == self.host).then_some(self.host);
        }
        let is_open = |(mapped, sender): &(SocketAddr, SocketAddr), opened: &Instant| {
            let matches = match self.nat {
                Nat::FullCone => true,
                Nat::AddressRestricted => sender.ip() == from.ip(),
                _ => *sender == from,
            };
            *mapped == to && matches && at.duration_since(*opened) < NAT_LIFETIME
        };
        let mut opened = self.opened.iter();
        let is_accepted = opened.any(|(key, at)| is_open(key, at));
        let mut mappings = self.mappings.iter();
        mappings.find(|(_, mapped)| **mapped == to && is_accepted).map(|((local, _), _)| *local)
    }
}

impl Side {
    /// Returns whether the NAT passes the first segment of a connection that only the other side opens.
    pub(super) fn accepts_tcp(&self, at: Instant, to: SocketAddr, from: SocketAddr) -> bool {
        self.nat == Nat::Open || self.accept(at, to, from).is_some()
    }
}

impl Network {
    /// Makes two agents with host, server-reflexive and, if `relays`, relayed candidates, which know each other's candidates at once.
    pub(super) fn new(nats: [Nat; 2], relays: bool, seed: u64) -> Self {
        let start = now().mono;
        let sides =
            [side(0, nats[0], IceRole::Controlling, seed), side(1, nats[1], IceRole::Controlled, seed)];
        let mut network = Self {
            start,
            now: start,
            rng: ChaCha20Rng::seed_from_u64(seed),
            sides,
            in_flight: BinaryHeap::new(),
            packets: BTreeMap::new(),
            number: 0,
            loss: 0.0,
            is_direct_up: true,
            is_relay_up: true,
            direct_delay: Duration::from_millis(15),
            relay_delay: Duration::from_millis(25),
            with_data: false,
            next_data: start,
            tcp: Tcp::default(),
        };
        for index in 0..2 {
            network.gather(index, relays);
        }
        network
    }

    fn gather(&mut self, index: usize, relays: bool) {
        let (now, side) = (self.now, &mut self.sides[index]);
        let host = side.host;
        side.agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, host, 65_535));
        let stun_server: SocketAddr = "198.51.100.1:3478".parse().unwrap();
        if let Some(mapped) = side.map(now, host, stun_server)
            && mapped != host
        {
            let reflexive = Candidate::server_reflexive(CandidateTransport::Udp, mapped, host, 65_535);
            side.agent.add_local_candidate(now, reflexive);
        }
        if relays {
            let relayed = SocketAddr::new([198, 51, 100, 1].into(), 50_000 + index as u16);
            side.relayed = Some(relayed);
            side.agent.add_local_candidate(now, Candidate::relayed(relayed, 65_535));
        }
    }

    /// Passes credentials and candidates to the other sides, as signalling does.
    pub(super) fn signal(&mut self) {
        for index in 0..2 {
            self.signal_from(index);
        }
    }

    pub(super) fn signal_from(&mut self, index: usize) {
        let credentials = self.sides[index].agent.local_credentials().clone();
        let texts: Vec<String> =
            self.sides[index].agent.local_candidates().iter().map(ToString::to_string).collect();
        let other = &mut self.sides[1 - index].agent;
        other.set_remote_credentials(self.now, credentials);
        for text in texts {
            other.add_remote_candidate(self.now, text.parse().unwrap());
        }
        other.handle_end_of_candidates(self.now);
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Lets time pass for `time`.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Lets time pass until a condition holds; returns when, or `None` after `limit`.
    pub(super) fn wait(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (begin, end) = (self.now, self.now + limit);
        self.run_until(end, holds).then(|| self.now - begin)
    }

    fn run_until(&mut self, end: Instant, holds: impl Fn(&Self) -> bool) -> bool {
        loop {
            self.flush();
            if holds(self) {
                return true;
            }
            let timers = self.sides.iter().filter_map(|side| side.agent.poll_timeout());
            let arrival = self.in_flight.peek().map(|Reverse((at, _))| *at);
            let arrival = arrival.into_iter().chain(self.tcp.next_arrival()).min();
            let data = self.with_data.then_some(self.next_data);
            let Some(next) = timers.chain(arrival).chain(data).min().filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next);
            self.deliver();
            self.deliver_tcp();
            for side in &mut self.sides {
                if side.agent.poll_timeout().is_some_and(|at| at <= self.now) {
                    side.agent.handle_timeout(self.now);
                }
            }
            if self.with_data && self.next_data <= self.now {
                self.next_data = self.now + DATA_INTERVAL;
                self.send_data();
            }
        }
    }

    fn send_data(&mut self) {
        for index in 0..2 {
            if let Some(pair) = self.sides[index].agent.selected() {
                self.sides[index].agent.handle_data_sent(self.now);
                let (local, remote) = (pair.local.base, pair.remote.address);
                let is_tcp = pair.local.transport != CandidateTransport::Udp;
                self.send(index, IceTransmit { local, remote, is_tcp, bytes: DATA.to_vec() });
            }
        }
    }

    fn flush(&mut self) {
        for index in 0..2 {
            while let Some(transmit) = self.sides[index].agent.poll_transmit() {
                let at = self.elapsed();
                let side = &mut self.sides[index];
                side.sent += 1;
                side.log.iter_mut().for_each(|log| log.push((at, transmit.remote)));
                self.send(index, transmit);
            }
            while let Some(event) = self.sides[index].agent.poll_event() {
                let at = self.elapsed();
                self.handle_tcp_event(index, &event);
                self.sides[index].events.push((at, event));
            }
        }
    }

    /// Routes a datagram: through the NAT, or through the relay of the sender; then to a host or to the relay of the receiver.
    fn send(&mut self, index: usize, transmit: IceTransmit) {
        let IceTransmit { local, remote, bytes, is_tcp } = transmit;
        if is_tcp {
            return self.send_tcp(index, local, remote, bytes);
        }
        if self.rng.random_bool(self.loss) {
            return;
        }
        let is_relayed = Some(local) == self.sides[index].relayed;
        let to_relay = (0..2).find(|side| self.sides[*side].relayed == Some(remote));
        if (is_relayed || to_relay.is_some()) && !self.is_relay_up {
            return;
        }
        let from = if is_relayed { Some(local) } else { self.sides[index].map(self.now, local, remote) };
        let Some(from) = from else { return };
        let mut delay = if is_relayed { self.relay_delay } else { Duration::ZERO };
        let (to_side, local) = match to_relay {
            Some(side) => {
                delay += self.relay_delay;
                (side, remote)
            }
            None if !is_relayed && !self.is_direct_up => return,
            None => {
                let other = 1 - index;
                let accepted = self.sides[other].accept(self.now, remote, from);
                let Some(local) = accepted else { return };
                (other, local)
            }
        };
        if !is_relayed || to_relay.is_none() {
            delay += if to_relay.is_some() { self.relay_delay } else { self.direct_delay };
        }
        self.number += 1;
        self.packets.insert(self.number, Packet { to_side, local, from, bytes });
        self.in_flight.push(Reverse((self.now + delay, self.number)));
    }

    fn deliver(&mut self) {
        while let Some(Reverse((at, number))) = self.in_flight.peek().copied()
            && at <= self.now
        {
            self.in_flight.pop();
            let Some(Packet { to_side, local, from, bytes }) = self.packets.remove(&number) else { continue };
            let at = self.elapsed();
            let side = &mut self.sides[to_side];
            if bytes == DATA {
                side.agent.handle_data_received(local, from);
                side.data.push(at);
            } else {
                side.agent.handle_message(self.now, local, from, &bytes);
            }
        }
    }

    /// Whether both sides send data on a pair without a relay.
    pub(super) fn is_direct(&self) -> bool {
        self.sides.iter().all(|side| {
            side.agent.state() == IceState::Connected
                && side.agent.selected().is_some_and(|pair| {
                    pair.local.kind != CandidateKind::Relayed && pair.remote.kind != CandidateKind::Relayed
                })
        })
    }

    /// Whether both sides are connected.
    pub(super) fn is_connected(&self) -> bool {
        self.sides.iter().all(|side| side.agent.state() == IceState::Connected)
    }

    /// Whether both send on the two ends of one pair.
    pub(super) fn is_agreed(&self) -> bool {
        let kinds = |index: usize| {
            self.sides[index].agent.selected().map(|pair| {
                [pair.local.kind == CandidateKind::Relayed, pair.remote.kind == CandidateKind::Relayed]
            })
        };
        match (kinds(0), kinds(1)) {
            (Some([local, remote]), Some(other)) => other == [remote, local],
            _ => false,
        }
    }

    /// The longest time without data at a side, after its first.
    pub(super) fn longest_gap(&self, index: usize) -> Duration {
        let data = &self.sides[index].data;
        data.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    }
}
