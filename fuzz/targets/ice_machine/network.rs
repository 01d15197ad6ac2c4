//! Packets in flight, paths, TCP connections, and the NAT of the second side.

use super::{BASES, Duration, IceAgent, IceEvent, IceTransmit, Instant, SocketAddr, base};
use std::collections::{BTreeMap, BTreeSet};

const DELAY: Duration = Duration::from_millis(10);

/// A packet; an empty one is data.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    at: Instant,
    pub(super) to_side: usize,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) is_tcp: bool,
    pub(super) bytes: Vec<u8>,
    /// As the agent sent it.
    original: Vec<u8>,
}

impl Packet {
    /// Whether all that MESSAGE-INTEGRITY covers is as the agent sent it; FINGERPRINT comes after it.
    pub(super) fn is_genuine(&self) -> bool {
        let covered = self.original.len().saturating_sub(8);
        self.bytes.get(..covered) == self.original.get(..covered)
    }
}

/// The end of a connection: side, local base, remote address.
type End = (usize, SocketAddr, SocketAddr);

pub(super) struct Network {
    has_nat: bool,
    packets: Vec<Packet>,
    /// Paths that are closed: the side that sends, the numbers of the two bases.
    closed: BTreeSet<(usize, u8, u8)>,
    opening: Vec<End>,
    connections: BTreeMap<End, End>,
    next_port: u16,
    sent: usize,
}

impl Network {
    pub(super) fn new(has_nat: bool) -> Self {
        let (packets, closed, opening) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self { has_nat, packets, closed, opening, connections: BTreeMap::new(), next_port: 30_000, sent: 0 }
    }

    /// Returns how many packets were sent.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// The address of a base as others see it.
    fn outside(&self, side: usize, number: u8) -> SocketAddr {
        let inside = base(side, number);
        match self.has_nat && side == 1 {
            true => ([203, 0, 113, number % BASES + 1], 5000).into(),
            false => inside,
        }
    }

    fn numbers() -> std::ops::Range<u8> {
        0..BASES
    }

    /// Finds where an address leads; `None` if the path from a base is closed.
    fn route(&self, from: usize, local: SocketAddr, remote: SocketAddr) -> Option<(u8, u8)> {
        let number = Self::numbers().find(|number| base(from, *number).ip() == local.ip())?;
        let to = Self::numbers().find(|to| self.outside(1 - from, *to) == remote)?;
        (!self.closed.contains(&(from, number, to))).then_some((number, to))
    }

    pub(super) fn send(&mut self, now: Instant, from: usize, transmit: IceTransmit) {
        self.sent += 1;
        let IceTransmit { local, remote, is_tcp, bytes } = transmit;
        let (to_side, at) = (1 - from, now + DELAY);
        let original = bytes.clone();
        if is_tcp {
            if let Some((to_side, local, remote)) = self.connections.get(&(from, local, remote)).copied() {
                self.packets.push(Packet { at, to_side, local, remote, is_tcp, bytes, original });
            }
        } else if let Some((number, to)) = self.route(from, local, remote) {
            let (local, remote) = (base(to_side, to), self.outside(from, number));
            self.packets.push(Packet { at, to_side, local, remote, is_tcp, bytes, original });
        }
    }

    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.packets.iter().map(|packet| packet.at).min()
    }

    pub(super) fn next_packet(&mut self, now: Instant) -> Option<Packet> {
        let index = self.packets.iter().position(|packet| packet.at <= now)?;
        Some(self.packets.remove(index))
    }

    fn index(&self, number: u8) -> Option<usize> {
        (!self.packets.is_empty()).then(|| usize::from(number) % self.packets.len())
    }

    pub(super) fn drop_packet(&mut self, number: u8) {
        if let Some(index) = self.index(number) {
            self.packets.remove(index);
        }
    }

    pub(super) fn repeat_packet(&mut self, number: u8) {
        if let Some(index) = self.index(number) {
            let mut packet = self.packets[index].clone();
            packet.at += DELAY * u32::from(number % 100);
            self.packets.push(packet);
        }
    }

    pub(super) fn delay_packet(&mut self, number: u8) {
        if let Some(index) = self.index(number) {
            self.packets[index].at += DELAY * u32::from(number);
        }
    }

    pub(super) fn alter_packet(&mut self, number: u8, place: u8) {
        if let Some(index) = self.index(number) {
            let packet = &mut self.packets[index];
            if let Some(byte) = packet.bytes.get_mut(usize::from(place)) {
                *byte ^= 1 << (number % 8);
            }
        }
    }

    pub(super) fn toggle_path(&mut self, operand: u8) {
        let path = (usize::from(operand >> 7), operand % BASES, operand / BASES % BASES);
        if !self.closed.remove(&path) {
            self.closed.insert(path);
        }
    }

    /// Opens all paths.
    pub(super) fn heal(&mut self) {
        self.closed.clear();
    }

    pub(super) fn handle_event(&mut self, side: usize, event: &IceEvent) {
        match *event {
            IceEvent::Connect { local, remote, .. } => {
                let end = (side, local, remote);
                assert!(!self.connections.contains_key(&end) && !self.opening.contains(&end), "opened twice");
                self.opening.push(end);
            }
            IceEvent::Close { local, remote } => {
                self.opening.retain(|end| *end != (side, local, remote));
                // The other end learns of it by silence.
                if let Some(other) = self.connections.remove(&(side, local, remote)) {
                    self.connections.remove(&other);
                    self.packets.retain(|packet| (packet.to_side, packet.local, packet.remote) != other);
                }
            }
            _ => {}
        }
    }

    /// Opens or refuses what was asked for.
    pub(super) fn open_connections(&mut self, now: Instant, agents: &mut [IceAgent; 2]) {
        for (side, local, remote) in std::mem::take(&mut self.opening) {
            match self.route(side, local, remote) {
                Some((number, to)) => {
                    self.next_port += 1;
                    let mut from = self.outside(side, number);
                    from.set_port(self.next_port);
                    let ends = [(side, local, remote), (1 - side, base(1 - side, to), from)];
                    self.connections.insert(ends[0], ends[1]);
                    self.connections.insert(ends[1], ends[0]);
                    agents[side].handle_tcp_connected(now, local, remote);
                }
                None => agents[side].handle_tcp_closed(now, local, remote),
            }
        }
    }

    /// Ends all connections.
    pub(super) fn close_connections(&mut self, now: Instant, agents: &mut [IceAgent; 2]) {
        for ((side, local, remote), _) in std::mem::take(&mut self.connections) {
            agents[side].handle_tcp_closed(now, local, remote);
        }
        self.packets.retain(|packet| !packet.is_tcp);
    }
}
