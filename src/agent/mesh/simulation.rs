//! Nodes in one thread, with NATs, delay, loss and splits, a virtual clock and one seed.

use super::friends::MemoryStore;
use super::keys::test_keys;
use super::machine::{Mesh, MeshConfig};
use super::map_file;
use super::mesh_time::MeshTime;
use super::messages::SendMessageError;
use super::node_id::NodeId;
use super::output::{MeshAction, MeshEvent};
use super::record::NatKind;
use super::sealed::MessageId;
use crate::clock::Now;
use crate::net::time::mono;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// When the simulations begin, in Unix time.
const START: u64 = 1_800_000_000;
/// How long a side does not notice that the other one is gone.
const NOTICE: Duration = Duration::from_secs(8);
const PORT: u16 = 4000;
const NO_RELAY: u16 = u16::MAX;

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A node and its NAT.
pub(super) struct SimNode {
    pub(super) mesh: Mesh,
    pub(super) id: NodeId,
    pub(super) nat: NatKind,
    pub(super) is_up: bool,
    pub(super) events: Vec<MeshEvent>,
    /// Nothing is sent by it; a test speaks for it.
    pub(super) is_puppet: bool,
    pub(super) bytes: u64,
    group: u8,
    generation: u8,
    offers_relay: bool,
    contacted: HashSet<SocketAddr>,
    map_file: Vec<u8>,
}

enum Packet {
    Frame { from: usize, to: usize, bytes: Vec<u8> },
    Binding { from: usize, to: SocketAddr, transaction: [u8; 12] },
    BindingResponse { from: SocketAddr, to: usize, transaction: [u8; 12], mapped: SocketAddr },
    Up { nodes: [usize; 2], relay: Option<usize> },
    Down { node: usize, other: usize },
    Failed { node: usize, attempt: u64 },
}

/// All nodes and what is between them.
pub(super) struct World {
    pub(super) now: Now,
    pub(super) nodes: Vec<SimNode>,
    pub(super) loss: f64,
    /// For how many seconds a new record may be under way without a mesh counting as incomplete.
    pub(super) under_way: u32,
    pub(super) rng: ChaCha20Rng,
    by_id: HashMap<NodeId, usize>,
    by_ip: HashMap<Ipv4Addr, usize>,
    /// By the lower and the higher number, with the relay.
    pub(super) links: BTreeMap<(usize, usize), Option<usize>>,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: HashMap<u64, Packet>,
    number: u64,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    scheduled: Vec<Option<Instant>>,
}

fn key(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Now { mono: mono(), unix: START },
            nodes: Vec::new(),
            loss: 0.02,
            under_way: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            by_id: HashMap::new(),
            by_ip: HashMap::new(),
            links: BTreeMap::new(),
            queue: BinaryHeap::new(),
            packets: HashMap::new(),
            number: 0,
            timers: BinaryHeap::new(),
            scheduled: Vec::new(),
        }
    }

    fn ip(node: usize, generation: u8) -> Ipv4Addr {
        Ipv4Addr::new(20 + generation, 0, (node >> 8) as u8, node as u8)
    }

    pub(super) fn endpoint(&self, node: usize) -> SocketAddr {
        (Self::ip(node, self.nodes[node].generation), PORT).into()
    }

    pub(super) fn time(&self) -> MeshTime {
        MeshTime::from_unix(self.now.unix)
    }

    /// Starts a node that joins through node 0.
    pub(super) fn add(&mut self, nat: NatKind, offers_relay: bool) -> usize {
        let node = self.nodes.len();
        let bootstrap = if node == 0 { Vec::new() } else { vec![self.endpoint(0)] };
        let mesh = self.mesh(node, bootstrap, offers_relay, 0);
        let id = mesh.id();
        self.nodes.push(SimNode {
            mesh,
            id,
            nat,
            is_up: true,
            events: Vec::new(),
            is_puppet: false,
            bytes: 0,
            group: 0,
            generation: 0,
            offers_relay,
            contacted: HashSet::new(),
            map_file: Vec::new(),
        });
        self.by_id.insert(id, node);
        self.scheduled.push(None);
        self.on_started(node);
        node
    }

    fn mesh(&mut self, node: usize, bootstrap: Vec<SocketAddr>, offers_relay: bool, last: u32) -> Mesh {
        let config = MeshConfig {
            keys: test_keys(node as u64),
            name: format!("node {node}"),
            offers_relay,
            bootstrap,
            last_sequence: last,
            seed: self.rng.random(),
        };
        Mesh::new(config, Box::new(MemoryStore::default()), self.now).unwrap()
    }

    fn on_started(&mut self, node: usize) {
        let (nat, generation) = (self.nodes[node].nat, self.nodes[node].generation);
        self.by_ip.insert(Self::ip(node, generation), node);
        let local = self.local(node);
        let now = self.now;
        assert!(nat != NatKind::Unknown);
        self.nodes[node].mesh.set_local_endpoints(now, vec![local]);
        self.flush(node);
    }

    fn local(&self, node: usize) -> SocketAddr {
        match self.nodes[node].nat {
            NatKind::Open => self.endpoint(node),
            _ => (Ipv4Addr::new(10, 0, (node >> 8) as u8, node as u8), PORT).into(),
        }
    }

    /// The address that a destination sees.
    fn mapped(&self, node: usize, to: SocketAddr) -> SocketAddr {
        let mut mapped = self.endpoint(node);
        if self.nodes[node].nat == NatKind::Symmetric
            && let SocketAddr::V4(to) = to
        {
            let [_, _, high, low] = to.ip().octets();
            mapped.set_port(20_000 + u16::from_be_bytes([high, low]) * 7 % 40_000);
        }
        mapped
    }

    /// Ends a node without a word.
    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].map_file = map_file::encode(&self.nodes[node].mesh.map);
        self.nodes[node].is_up = false;
        let gone: Vec<_> = self
            .links
            .iter()
            .filter(|((a, b), relay)| *a == node || *b == node || **relay == Some(node))
            .map(|(nodes, _)| *nodes)
            .collect();
        gone.into_iter().for_each(|nodes| self.cut(nodes));
        let ip = Self::ip(node, self.nodes[node].generation);
        self.by_ip.remove(&ip);
    }

    fn cut(&mut self, (a, b): (usize, usize)) {
        self.links.remove(&(a, b));
        self.send_after(NOTICE, Packet::Down { node: a, other: b });
        self.send_after(NOTICE, Packet::Down { node: b, other: a });
    }

    /// Starts a node again, at another address, with its keys and its map file.
    pub(super) fn restart(&mut self, node: usize) {
        let last = self.nodes[node].mesh.own.sequence;
        let bootstrap = if node == 0 { Vec::new() } else { vec![self.endpoint(0)] };
        let (offers_relay, friends) =
            (self.nodes[node].offers_relay, self.nodes[node].mesh.own.friends.clone());
        let seen: Vec<_> = self.nodes[node].mesh.messages.seen().collect();
        let mut mesh = self.mesh(node, bootstrap, offers_relay, last);
        map_file::restore(&mut mesh.map, &self.nodes[node].map_file, self.time());
        mesh.change_record(|record| record.friends = friends);
        seen.into_iter().for_each(|(from, id, expires)| mesh.messages.restore_seen(from, id, expires));
        let it = &mut self.nodes[node];
        it.mesh = mesh;
        it.is_up = true;
        it.generation += 1;
        it.contacted.clear();
        self.scheduled[node] = None;
        self.on_started(node);
    }

    /// Cuts the mesh into those before and after `border`; [`World::heal`] joins them.
    pub(super) fn split(&mut self, border: usize) {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.group = u8::from(number >= border);
        }
        let group = |node: usize| self.nodes[node].group;
        let across: Vec<_> = self.links.keys().filter(|(a, b)| group(*a) != group(*b)).copied().collect();
        across.into_iter().for_each(|nodes| self.cut(nodes));
    }

    pub(super) fn heal(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.group = 0);
    }

    fn send_after(&mut self, delay: Duration, packet: Packet) {
        self.number += 1;
        self.queue.push(Reverse((self.now.mono + delay, self.number)));
        self.packets.insert(self.number, packet);
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(20..60))
    }

    fn send_delayed(&mut self, packet: Packet) {
        let delay = self.delay();
        self.send_after(delay, packet);
    }

    /// Takes a node's outputs.
    pub(super) fn flush(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].mesh.poll_action() {
            if !self.nodes[node].is_puppet {
                self.carry_out(node, action);
            }
        }
        while let Some(event) = self.nodes[node].mesh.poll_event() {
            self.nodes[node].events.push(event);
        }
        let next = self.nodes[node].mesh.poll_timeout();
        if let Some(at) = next
            && self.scheduled[node].is_none_or(|known| at < known)
        {
            self.scheduled[node] = Some(at);
            self.timers.push(Reverse((at, node)));
        }
    }

    fn carry_out(&mut self, node: usize, action: MeshAction) {
        let now = self.now;
        match action {
            MeshAction::Send { to, bytes, is_reliable } => {
                let to = self.by_id[&to];
                self.nodes[node].bytes += bytes.len() as u64;
                if is_reliable || self.rng.random_range(0.0..1.0) >= self.loss {
                    self.send_delayed(Packet::Frame { from: node, to, bytes });
                }
            }
            MeshAction::Close(other) => {
                let Some(&other) = self.by_id.get(&other) else { return };
                self.links.remove(&key(node, other));
                self.send_delayed(Packet::Down { node: other, other: node });
            }
            MeshAction::SendBinding { to, transaction } => {
                self.nodes[node].bytes += 20;
                self.nodes[node].contacted.insert(to);
                self.send_delayed(Packet::Binding { from: node, to, transaction });
            }
            MeshAction::Dial { attempt, to, node: expected } => {
                let other = self
                    .reached(node, to)
                    .filter(|other| *other != node && expected.is_none_or(|id| id == self.nodes[*other].id));
                match other {
                    Some(other) => self.link(node, other, None),
                    None => self.send_after(seconds(3), Packet::Failed { node, attempt }),
                }
            }
            MeshAction::MakeOffer { attempt, relay, .. } => {
                let relay = relay.map_or(NO_RELAY, |relay| self.by_id[&relay] as u16);
                let offer = relay.to_be_bytes().to_vec();
                self.nodes[node].mesh.offer_ready(now, attempt, offer);
            }
            MeshAction::MakeAnswer { attempt, offer, .. } => {
                self.nodes[node].mesh.answer_ready(now, attempt, offer);
            }
            MeshAction::Connect { attempt, node: other, answer } => {
                let other = self.by_id[&other];
                let relay = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
                let relay = Some(relay).filter(|relay| *relay != usize::from(NO_RELAY));
                let works = match relay {
                    Some(relay) => self.can_reach(node, relay) && self.can_reach(other, relay),
                    None => self.nodes[node].nat.can_punch(self.nodes[other].nat),
                };
                match works && self.nodes[other].is_up && self.nodes[node].group == self.nodes[other].group {
                    true => self.link(node, other, relay),
                    false => self.send_after(seconds(3), Packet::Failed { node, attempt }),
                }
            }
            MeshAction::Abort { .. } => {}
        }
    }

    fn can_reach(&self, node: usize, other: usize) -> bool {
        let (from, to) = (&self.nodes[node], &self.nodes[other]);
        to.is_up && to.nat.is_reachable() && from.group == to.group
    }

    /// The node that a packet to an endpoint reaches.
    fn reached(&self, from: usize, to: SocketAddr) -> Option<usize> {
        let SocketAddr::V4(address) = to else { return None };
        let other = *self.by_ip.get(address.ip())?;
        let node = &self.nodes[other];
        let passes = match node.nat {
            NatKind::Open | NatKind::FullCone => address.port() == PORT,
            NatKind::Restricted => address.port() == PORT && node.contacted.contains(&self.mapped(from, to)),
            _ => false,
        };
        (passes && node.is_up && node.group == self.nodes[from].group).then_some(other)
    }

    fn link(&mut self, a: usize, b: usize, relay: Option<usize>) {
        self.send_after(Duration::from_millis(150), Packet::Up { nodes: [a, b], relay });
    }

    fn deliver(&mut self, packet: Packet) {
        let now = self.now;
        match packet {
            Packet::Frame { from, to, bytes } => {
                let is_linked = self.links.contains_key(&key(from, to));
                if is_linked && self.nodes[from].group == self.nodes[to].group {
                    let from = self.nodes[from].id;
                    self.with(to, |mesh| mesh.handle_frame(now, from, &bytes));
                }
            }
            Packet::Binding { from, to, transaction } => {
                let Some(other) = self.reached(from, to) else { return };
                let (local, mapped) = (self.local(other), self.mapped(from, to));
                self.with(other, |mesh| mesh.on_binding_request(local, transaction));
                self.nodes[other].bytes += 32;
                self.send_delayed(Packet::BindingResponse { from: to, to: from, transaction, mapped });
            }
            Packet::BindingResponse { from, to, transaction, mapped } => {
                self.with(to, |mesh| mesh.on_binding_response(now, from, transaction, mapped));
            }
            Packet::Up { nodes: [a, b], relay } => {
                let [one, two] = [&self.nodes[a], &self.nodes[b]];
                if one.is_up && two.is_up && one.group == two.group {
                    self.links.insert(key(a, b), relay);
                    let relay = relay.map(|relay| self.nodes[relay].id);
                    let (id_a, id_b) = (self.nodes[a].id, self.nodes[b].id);
                    let rtt = self.delay() * 2;
                    self.with(a, |mesh| mesh.on_link_up(now, id_b, rtt, relay));
                    self.with(b, |mesh| mesh.on_link_up(now, id_a, rtt, relay));
                }
            }
            Packet::Down { node, other } => {
                if !self.links.contains_key(&key(node, other)) {
                    let other = self.nodes[other].id;
                    self.with(node, |mesh| mesh.on_link_down(now, other));
                }
            }
            Packet::Failed { node, attempt } => {
                self.with(node, |mesh| mesh.on_attempt_failed(now, attempt));
            }
        }
    }

    /// Passes something to a node that is up, and takes its outputs.
    pub(super) fn with<T>(&mut self, node: usize, pass: impl FnOnce(&mut Mesh) -> T) -> Option<T> {
        if !self.nodes[node].is_up {
            return None;
        }
        let result = pass(&mut self.nodes[node].mesh);
        self.flush(node);
        Some(result)
    }

    fn set_time(&mut self, at: Instant, start: Now) {
        self.now.mono = at;
        self.now.unix = start.unix + (at - start.mono).as_secs();
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Lets time pass until a condition holds, which is checked every half a second; returns when, if it did.
    pub(super) fn run_until(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        let mut check = start.mono;
        loop {
            if self.now.mono >= check {
                if done(self) {
                    return Some(self.now.mono - start.mono);
                }
                check = self.now.mono + Duration::from_millis(500);
            }
            let packet = self.queue.peek().map(|Reverse((at, _))| *at);
            let timer = self.timers.peek().map(|Reverse((at, _))| *at);
            let next = packet.into_iter().chain(timer).chain([check]).min().unwrap_or(check);
            if next > start.mono + time {
                self.set_time(start.mono + time, start);
                return done(self).then_some(time);
            }
            self.set_time(next.max(self.now.mono), start);
            if packet == Some(next) {
                let Some(Reverse((_, number))) = self.queue.pop() else { continue };
                if let Some(packet) = self.packets.remove(&number) {
                    self.deliver(packet);
                }
            } else if timer == Some(next) {
                let Some(Reverse((at, node))) = self.timers.pop() else { continue };
                if self.scheduled[node] == Some(at) {
                    self.scheduled[node] = None;
                    let now = self.now;
                    self.with(node, |mesh| mesh.handle_timeout(now));
                }
            }
        }
    }

    pub(super) fn up(&self) -> impl Iterator<Item = &SimNode> {
        self.nodes.iter().filter(|node| node.is_up && !node.is_puppet)
    }

    /// Returns whether everybody has the newest record of everybody, and takes everybody for online.
    pub(super) fn is_whole(&self) -> bool {
        let count = self.up().count();
        self.up().all(|node| node.mesh.map.active().count() == count - 1) && {
            // A sequence is the time of the signature.
            let recent = self.time().0.saturating_sub(self.under_way);
            let wanted = |node: &SimNode| (node.id, node.mesh.own.sequence.min(recent));
            let sequences: HashMap<_, _> = self.up().map(wanted).collect();
            self.up().all(|node| {
                let known = node.mesh.map.iter().filter(|(id, entry)| {
                    sequences.get(id).is_some_and(|sequence| entry.record.sequence >= *sequence)
                });
                known.count() == count - 1
            })
        }
    }

    /// Returns who lacks what: the node, the other one, and whether its record, or only that it is online, is missing.
    pub(super) fn gaps(&self) -> Vec<(usize, usize, &'static str)> {
        let mut gaps = Vec::new();
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up) {
            for (of, other) in
                self.nodes.iter().enumerate().filter(|(of, other)| other.is_up && *of != number)
            {
                match node.mesh.map.get(other.id) {
                    None => gaps.push((number, of, "absent")),
                    Some(e) if e.record.sequence < other.mesh.own.sequence => gaps.push((number, of, "old")),
                    Some(e) if !e.is_active => gaps.push((number, of, "offline")),
                    Some(_) => {}
                }
            }
        }
        gaps
    }

    pub(super) fn is_linked(&self, a: usize, b: usize) -> bool {
        self.nodes[a].mesh.links.contains(self.nodes[b].id)
            && self.nodes[b].mesh.links.contains(self.nodes[a].id)
    }

    pub(super) fn send(&mut self, from: usize, to: usize, text: &str) -> Result<MessageId, SendMessageError> {
        let (now, to) = (self.now, self.nodes[to].id);
        self.with(from, |mesh| mesh.send(now, to, text.as_bytes())).unwrap()
    }

    /// Returns the texts that a node has got.
    pub(super) fn inbox(&self, node: usize) -> Vec<String> {
        let texts = self.nodes[node].events.iter().filter_map(|event| match event {
            MeshEvent::Message { body, .. } => Some(String::from_utf8(body.clone()).unwrap()),
            _ => None,
        });
        texts.collect()
    }

    /// Makes `friend` keep mail for `owner`.
    pub(super) fn befriend(&mut self, owner: usize, friend: usize) {
        let (now, until) = (self.now, self.time().after(seconds(100_000)));
        let [owner_id, friend_id] = [owner, friend].map(|node| self.nodes[node].id);
        self.with(owner, |mesh| mesh.add_friend(now, friend_id, until));
        self.run(seconds(2));
        assert!(self.nodes[friend].events.contains(&MeshEvent::FriendRequested { owner: owner_id }));
        let now = self.now;
        self.with(friend, |mesh| mesh.agree_friend(now, owner_id));
        self.run(seconds(8));
        assert!(self.nodes[owner].events.contains(&MeshEvent::FriendAgreed { friend: friend_id }));
    }

    /// Returns the largest sizes of the tables of all nodes.
    pub(super) fn largest(&self) -> Vec<usize> {
        let sizes = |node: &SimNode| {
            let mesh = &node.mesh;
            let mut sizes = vec![mesh.map.len(), mesh.links.len()];
            sizes.extend(mesh.membership.sizes());
            sizes.extend(mesh.exchange.sizes());
            sizes.extend(mesh.connecting.sizes());
            sizes.extend(mesh.reflexive.sizes());
            sizes.extend(mesh.messages.sizes());
            sizes.extend(mesh.requests.sizes());
            sizes
        };
        let all = self.up().map(sizes);
        all.reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect()).unwrap_or_default()
    }
}

const NATS: [NatKind; 8] = [
    NatKind::Open,
    NatKind::FullCone,
    NatKind::Restricted,
    NatKind::Restricted,
    NatKind::Symmetric,
    NatKind::Open,
    NatKind::Restricted,
    NatKind::FullCone,
];

/// Starts nodes behind all kinds of NATs within `joining`.
pub(super) fn world(count: usize, seed: u64, joining: Duration) -> World {
    let mut world = World::new(seed);
    for number in 0..count {
        world.add(NATS[number % NATS.len()], number % 4 == 1);
        world.run(joining / count as u32);
    }
    world
}
