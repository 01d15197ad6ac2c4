//! TCP connections of the simulated network: NATs map and filter them as they do datagrams, nothing is lost or reordered.

use super::simulation::{DATA, Network};
use super::*;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

/// The end of a connection as its side names it: side, base, remote address.
type End = (usize, SocketAddr, SocketAddr);

enum Segment {
    /// The first segment of a connection: from the end, whose address is seen as the second.
    Syn(End, SocketAddr),
    /// The answer to it.
    Accept(End),
    Refuse(End),
    /// A message to an end.
    Message(End, Vec<u8>),
    /// The other end is closed.
    Fin(End),
}

#[derive(Default)]
pub(super) struct Tcp {
    /// Whether segments arrive.
    pub(super) is_down: bool,
    /// Attempts without an answer, with the address that they are seen with.
    opening: HashMap<End, SocketAddr>,
    /// Each end of a connection and its other one.
    pub(super) open: HashMap<End, End>,
    segments: BTreeMap<(Instant, u64), Segment>,
    number: u64,
    next_port: u16,
    /// How many connections each side has begun to open.
    pub(super) attempts: [usize; 2],
}

impl Tcp {
    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.segments.keys().next().map(|(at, _)| *at)
    }

    /// Has all connections end in silence, as when a NAT forgets them.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }
}

impl Network {
    /// Gathers the TCP candidates of a side: on the port of its UDP candidate, and one for simultaneous open.
    pub(super) fn gather_tcp(&mut self, index: usize) {
        let (now, side) = (self.now, &mut self.sides[index]);
        let host = side.host;
        let base = SocketAddr::new(host.ip(), 4001);
        let stun_server: SocketAddr = ([198, 51, 100, 1], 3478).into();
        for (transport, address) in [
            (CandidateTransport::TcpActive, host),
            (CandidateTransport::TcpPassive, host),
            (CandidateTransport::TcpSimultaneousOpen, base),
        ] {
            side.agent.add_local_candidate(now, Candidate::host(transport, address, 1000));
        }
        if let Some(mapped) = side.map(now, base, stun_server)
            && mapped != base
        {
            let transport = CandidateTransport::TcpSimultaneousOpen;
            side.agent.add_local_candidate(now, Candidate::server_reflexive(transport, mapped, base, 1000));
        }
    }

    pub(super) fn handle_tcp_event(&mut self, index: usize, event: &IceEvent) {
        match *event {
            IceEvent::Connect { local, remote, transport } => {
                let end = (index, local, remote);
                assert!(!self.tcp.open.contains_key(&end), "opened twice: {end:?}");
                self.tcp.attempts[index] += 1;
                self.tcp.next_port += 1;
                let is_bound = transport == CandidateTransport::TcpSimultaneousOpen;
                let port = if is_bound { local.port() } else { 30_000 + self.tcp.next_port };
                let from = SocketAddr::new(local.ip(), port);
                let Some(from) = self.sides[index].map(self.now, from, remote) else { return };
                self.tcp.opening.insert(end, from);
                self.push(Segment::Syn(end, from));
            }
            IceEvent::Close { local, remote } => {
                let end = (index, local, remote);
                self.tcp.opening.remove(&end);
                if let Some(other) = self.tcp.open.remove(&end) {
                    self.tcp.open.remove(&other);
                    self.push(Segment::Fin(other));
                }
            }
            _ => {}
        }
    }

    pub(super) fn send_tcp(&mut self, index: usize, local: SocketAddr, remote: SocketAddr, bytes: Vec<u8>) {
        if let Some(other) = self.tcp.open.get(&(index, local, remote)).copied() {
            self.push(Segment::Message(other, bytes));
        }
    }

    fn push(&mut self, segment: Segment) {
        self.tcp.number += 1;
        self.tcp.segments.insert((self.now + self.direct_delay, self.tcp.number), segment);
    }

    pub(super) fn deliver_tcp(&mut self) {
        while self.tcp.next_arrival().is_some_and(|at| at <= self.now)
            && let Some((_, segment)) = self.tcp.segments.pop_first()
        {
            if !self.tcp.is_down {
                self.handle_segment(segment);
            }
        }
    }

    fn handle_segment(&mut self, segment: Segment) {
        let (now, at) = (self.now, self.elapsed());
        match segment {
            Segment::Syn(end, from) => self.handle_syn(end, from),
            Segment::Accept((index, local, remote))
                if self.tcp.open.contains_key(&(index, local, remote)) =>
            {
                self.tcp.opening.remove(&(index, local, remote));
                self.sides[index].agent.handle_tcp_connected(now, local, remote);
            }
            Segment::Refuse(end @ (index, local, remote)) if self.tcp.opening.remove(&end).is_some() => {
                self.sides[index].agent.handle_tcp_closed(now, local, remote);
            }
            Segment::Message((index, local, remote), bytes) if bytes == DATA => {
                self.sides[index].agent.handle_tcp_data_received(local, remote);
                self.sides[index].data.push(at);
            }
            Segment::Message(end @ (index, local, remote), bytes) if self.tcp.open.contains_key(&end) => {
                self.sides[index].agent.handle_tcp_message(now, local, remote, &bytes);
            }
            Segment::Fin((index, local, remote)) => {
                self.sides[index].agent.handle_tcp_closed(now, local, remote);
            }
            _ => {}
        }
    }

    fn handle_syn(&mut self, end: End, from: SocketAddr) {
        let (index, _, to) = end;
        let other = 1 - index;
        if !self.tcp.opening.contains_key(&end) || self.sides[other].nat == super::simulation::Nat::Blocked {
            return;
        }
        // Both open it at the same time: each end has the other's address as its remote one.
        let simultaneous = self
            .tcp
            .opening
            .iter()
            .find(|((side, _, remote), seen)| (*side, *remote, **seen) == (other, from, to));
        if let Some((peer, _)) = simultaneous.map(|(peer, seen)| (*peer, *seen)) {
            self.tcp.opening.remove(&peer);
            self.connect(end, peer);
            self.sides[other].agent.handle_tcp_connected(self.now, peer.1, peer.2);
            return;
        }
        if !self.sides[other].accepts_tcp(self.now, to, from) {
            return;
        }
        let listens = |candidate: &&Candidate| {
            candidate.transport == CandidateTransport::TcpPassive && candidate.base == to
        };
        match self.sides[other].agent.local_candidates().iter().find(listens) {
            Some(_) => self.connect(end, (other, to, from)),
            None => self.push(Segment::Refuse(end)),
        }
    }

    fn connect(&mut self, end: End, other: End) {
        self.tcp.open.insert(end, other);
        self.tcp.open.insert(other, end);
        self.push(Segment::Accept(end));
    }
}
