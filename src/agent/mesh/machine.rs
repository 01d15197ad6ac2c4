//! The state machine of a node: inputs, outputs, timers, and the own record. The other files of this folder add a topic each.

use super::connecting::Connecting;
use super::exchange::Exchange;
use super::frame::{Frame, MAX_HOPS, Payload, Routed};
use super::friends::{FriendRequests, FriendStore};
use super::keys::NodeKeys;
use super::links::{Cost, Links};
use super::map::{CAPACITY, Insertion, Map};
use super::member::{Filtered, MemberId, filter, is_in_map, redirect_gossip};
use super::membership::{MAX_MEMBERS, Membership, MembershipNotice};
use super::mesh_time::{MeshTime, next_number};
use super::messages::Messages;
use super::node_id::NodeId;
use super::output::{MeshAction, MeshCounters, MeshEvent};
use super::record::{NatKind, NodeRecord, RecordError, VerifiedRecord};
use super::reflexive::Reflexive;
use crate::clock::Now;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a record is valid, and when it is renewed.
const RECORD_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
const RECORD_RENEWAL: Duration = Duration::from_secs(3 * 86_400);
/// Between two epochs that others force.
const EPOCH_PAUSE: Duration = Duration::from_secs(5);
/// Between two rounds of what has no time of its own.
const TICK: Duration = Duration::from_millis(500);
/// Between two searches for expired records.
const EXPIRY: Duration = Duration::from_secs(30);
/// Most actions that wait for the service.
const MAX_ACTIONS: usize = 8192;

/// What a node is told at its start.
#[derive(Debug)]
pub(super) struct MeshConfig {
    pub(super) keys: NodeKeys,
    pub(super) name: String,
    pub(super) offers_relay: bool,
    /// Addresses of nodes to join through.
    pub(super) bootstrap: Vec<SocketAddr>,
    /// The sequence of the last record, of an earlier run; 0 for none.
    pub(super) last_sequence: u32,
    pub(super) seed: [u8; 32],
}

/// A node of the mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) keys: NodeKeys,
    pub(super) own: Arc<VerifiedRecord>,
    pub(super) map: Map,
    pub(super) membership: Membership,
    pub(super) links: Links,
    pub(super) exchange: Exchange,
    pub(super) connecting: Connecting,
    pub(super) reflexive: Reflexive,
    pub(super) messages: Messages,
    pub(super) store: Box<dyn FriendStore>,
    pub(super) requests: FriendRequests,
    pub(super) counters: MeshCounters,
    pub(super) rng: ChaCha20Rng,
    pub(super) has_left: bool,
    record_changed: Option<NodeRecord>,
    renew_at: Instant,
    /// When the epoch may be raised again, and whether it is to be.
    epoch_due: (Instant, bool),
    next_tick: Instant,
    next_expiry: Instant,
    actions: VecDeque<MeshAction>,
    events: VecDeque<MeshEvent>,
}

pub(super) fn mesh_time(now: Now) -> MeshTime {
    MeshTime::from_unix(now.unix)
}

impl Mesh {
    /// Makes a node.
    ///
    /// # Errors
    /// [`RecordError::Field`] if the name is not allowed.
    pub(super) fn new(
        config: MeshConfig,
        store: Box<dyn FriendStore>,
        now: Now,
    ) -> Result<Self, RecordError> {
        let mut rng = ChaCha20Rng::from_seed(config.seed);
        let time = mesh_time(now);
        let sequence = next_number(time, config.last_sequence);
        let record = NodeRecord {
            keys: *config.keys.public(),
            sequence,
            epoch: sequence,
            expires: time.after(RECORD_LIFETIME),
            nat: NatKind::Unknown,
            offers_relay: config.offers_relay,
            name: config.name,
            endpoints: Vec::new(),
            friends: Vec::new(),
        };
        let own = record.sign(&config.keys)?;
        let member = MemberId { node: own.id(), epoch: own.epoch };
        let mut secret = [0; 16];
        rng.fill_bytes(&mut secret);
        Ok(Self {
            map: Map::new(own.id(), CAPACITY, secret),
            membership: Membership::new(member, ChaCha20Rng::from_rng(&mut rng)),
            links: Links::new(own.id(), now.mono),
            exchange: Exchange::new(now.mono),
            connecting: Connecting::new(config.bootstrap, now.mono, ChaCha20Rng::from_rng(&mut rng)),
            reflexive: Reflexive::new(now.mono),
            messages: Messages::default(),
            store,
            requests: FriendRequests::default(),
            counters: MeshCounters::default(),
            has_left: false,
            record_changed: None,
            renew_at: now.mono + RECORD_RENEWAL,
            epoch_due: (now.mono, false),
            next_tick: now.mono,
            next_expiry: now.mono,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            keys: config.keys,
            own,
            rng,
        })
    }

    pub(super) fn id(&self) -> NodeId {
        self.own.id()
    }

    /// Returns the next output.
    pub(super) fn poll_action(&mut self) -> Option<MeshAction> {
        self.actions.pop_front()
    }

    /// Returns the next event for the application.
    pub(super) fn poll_event(&mut self) -> Option<MeshEvent> {
        self.events.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = if self.has_left { None } else { Some(self.next_tick) };
        next.into_iter().chain(self.membership.poll_timeout()).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        self.membership.handle_timeout(now.mono);
        self.after_membership(now);
        if now.mono >= self.next_tick && !self.has_left {
            self.next_tick = now.mono + TICK;
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Now) {
        if now.mono >= self.next_expiry {
            self.next_expiry = now.mono + EXPIRY;
            self.map.expire(mesh_time(now));
        }
        self.renew_record(now);
        self.tick_reflexive(now);
        self.tick_connecting(now);
        self.tick_exchange(now);
        self.tick_messages(now);
        self.after_membership(now);
    }

    /// A link is up, also one that another node has opened. The service has verified that the node holds the key of this address.
    pub(super) fn on_link_up(&mut self, now: Now, node: NodeId, rtt: Duration, relay: Option<NodeId>) {
        if self.has_left || !self.links.insert(now.mono, node, rtt, relay) {
            return self.act(MeshAction::Close(node));
        }
        self.on_connected(node);
        self.reflexive.on_round_trip(node, rtt);
        self.begin_exchange(now, node);
    }

    /// A link is down.
    pub(super) fn on_link_down(&mut self, now: Now, node: NodeId) {
        if let Some(link) = self.links.remove(node) {
            self.on_disconnected(now, node, link.relay);
        }
    }

    /// Handles a frame that came over the link to `from`.
    pub(super) fn handle_frame(&mut self, now: Now, from: NodeId, bytes: &[u8]) {
        if self.has_left || !self.links.contains(from) {
            return;
        }
        match Frame::parse(bytes) {
            Some(Frame::Routed(routed)) => self.handle_routed(now, from, &routed, bytes.len()),
            Some(Frame::Hello { fingerprint }) => self.on_hello(now, from, fingerprint),
            Some(Frame::Digest { is_full, entries }) => self.on_digest(now, from, is_full, &entries),
            Some(Frame::Want(prefixes)) => self.on_want(now, from, &prefixes),
            Some(Frame::Records(records)) => self.on_records(now, from, &records),
            None => self.counters.malformed += 1,
        }
        self.after_membership(now);
    }

    fn handle_routed(&mut self, now: Now, from: NodeId, routed: &Routed<'_>, len: usize) {
        if routed.source == self.id() {
            self.counters.undeliverable += 1;
            return;
        }
        if let Payload::LookUp { sequence } = routed.payload
            && let Some(record) = self.newer_record(routed.destination, sequence)
        {
            return self.route(now, routed.source, Payload::Found(record.bytes()));
        }
        if routed.destination != self.id() {
            return self.forward(now, from, routed, len);
        }
        match routed.payload {
            Payload::Membership(packet) => self.on_packet(now, from, packet),
            Payload::Sealed(sealed) => {
                if self.links.admit(now.mono, from, Cost::Open, 1) {
                    self.on_sealed(now, sealed);
                }
            }
            Payload::LookUp { .. } => {}
            Payload::Found(record) => {
                self.take_record(now, from, record, false);
            }
        }
    }

    fn newer_record(&self, node: NodeId, sequence: u32) -> Option<Arc<VerifiedRecord>> {
        let record = if node == self.id() { Some(&self.own) } else { self.map.record(node) };
        record.filter(|record| record.sequence > sequence).cloned()
    }

    /// Sends a payload to a node, over others if there is no link.
    pub(super) fn route(&mut self, now: Now, destination: NodeId, payload: Payload<'_>) {
        let routed = Routed { source: self.id(), destination, visited: Vec::new(), payload };
        self.pass_on(now, &routed);
    }

    fn forward(&mut self, now: Now, from: NodeId, routed: &Routed<'_>, len: usize) {
        let mut visited = routed.visited.clone();
        visited.push(self.id().prefix());
        if visited.len() > MAX_HOPS || !self.links.admit(now.mono, from, Cost::Forward, len) {
            self.counters.undeliverable += 1;
            return;
        }
        self.counters.forwarded += 1;
        self.pass_on(now, &Routed { visited, ..routed.clone() });
    }

    fn pass_on(&mut self, _now: Now, routed: &Routed<'_>) {
        match self.links.next_hop(routed.destination, routed.source, &routed.visited) {
            Some(hop) => self.send_frame(hop, &Frame::Routed(routed.clone())),
            None => self.counters.undeliverable += 1,
        }
    }

    pub(super) fn send_frame(&mut self, to: NodeId, frame: &Frame<'_>) {
        let is_datagram = matches!(frame, Frame::Routed(Routed { payload: Payload::Membership(_), .. }));
        self.act(MeshAction::Send { to, bytes: frame.encode(), is_reliable: !is_datagram });
    }

    pub(super) fn act(&mut self, action: MeshAction) {
        if self.actions.len() < MAX_ACTIONS {
            self.actions.push_back(action);
        } else {
            self.counters.overflow += 1;
        }
    }

    pub(super) fn report(&mut self, event: MeshEvent) {
        if self.events.len() < MAX_ACTIONS {
            self.events.push_back(event);
        } else {
            self.counters.overflow += 1;
        }
    }

    fn on_packet(&mut self, now: Now, from: NodeId, packet: &[u8]) {
        let own = self.membership.own();
        match filter(packet, |id| *id == own || is_in_map(&self.map, id)) {
            Filtered::Packet { bytes, removed, .. } => {
                self.counters.unsigned_updates += removed as u64;
                self.membership.handle_packet(now.mono, &bytes);
            }
            Filtered::Unknown(id) => {
                self.counters.unsigned_updates += 1;
                self.want(now, from, vec![id.node.prefix()]);
            }
            Filtered::Malformed => self.counters.malformed += 1,
        }
    }

    /// Carries out what membership wants.
    pub(super) fn after_membership(&mut self, now: Now) {
        while let Some(notice) = self.membership.poll_notice() {
            match notice {
                MembershipNotice::Up(id) => {
                    self.map.set_active(id.node, true);
                    self.report(MeshEvent::Up(id.node));
                    self.on_online(now, id.node);
                }
                MembershipNotice::Down(id) => {
                    self.map.set_active(id.node, false);
                    self.connecting.on_member_down(now.mono);
                    self.report(MeshEvent::Down(id.node));
                }
                MembershipNotice::Defunct => self.epoch_due.1 = true,
            }
        }
        while let Some((to, mut packet)) = self.membership.poll_packet() {
            let mut destination = to.node;
            if !self.links.contains(destination)
                && let Some(id) = self.random_neighbour()
                && redirect_gossip(&mut packet, id)
            {
                destination = id.node;
            }
            self.route(now, destination, Payload::Membership(&packet));
        }
    }

    fn random_neighbour(&mut self) -> Option<MemberId> {
        let node = self.links.random(1, &mut self.rng).pop()?;
        Some(MemberId { node, epoch: self.map.record(node)?.epoch })
    }

    /// Takes a node for online, if there is room.
    pub(super) fn insert_alive(&mut self, now: Now, node: NodeId) {
        let Some(epoch) = self.map.record(node).map(|record| record.epoch) else { return };
        if self.membership.sizes()[0] >= MAX_MEMBERS {
            self.counters.overflow += 1;
            return;
        }
        self.membership.insert_alive(now.mono, MemberId { node, epoch });
    }

    /// Verifies a record and inserts it into the map; returns whose it is if it is new.
    pub(super) fn take_record(
        &mut self,
        now: Now,
        from: NodeId,
        bytes: &[u8],
        is_active: bool,
    ) -> Option<NodeId> {
        if !self.links.admit(now.mono, from, Cost::Verify, 1) {
            return None;
        }
        let Ok(record) = VerifiedRecord::verify(bytes) else {
            self.counters.forged += 1;
            return None;
        };
        let id = record.id();
        let (insertion, displaced) = self.map.insert(Arc::clone(&record), mesh_time(now));
        if let Some(displaced) = displaced {
            self.exchange.forget(displaced);
        }
        let is_new = matches!(insertion, Insertion::New | Insertion::Newer);
        if id == self.id() && record.sequence > self.own.sequence {
            // An earlier run of this node, whose state was lost, has used higher numbers.
            self.record_changed.get_or_insert_with(|| (**self.own).clone()).sequence = record.sequence;
            self.epoch_due.1 = true;
        }
        if is_new {
            self.exchange.add_news(id);
            self.on_newer_record(now, id);
        }
        if (is_active && is_new) || id == from {
            self.insert_alive(now, id);
        }
        is_new.then_some(id)
    }

    /// Changes the own record; it is signed and announced at the next tick.
    pub(super) fn change_record(&mut self, change: impl FnOnce(&mut NodeRecord)) {
        let mut record = self.record_changed.take().unwrap_or_else(|| (**self.own).clone());
        change(&mut record);
        self.record_changed = Some(record);
    }

    fn renew_record(&mut self, now: Now) {
        let has_new_epoch = self.epoch_due.1 && now.mono >= self.epoch_due.0;
        let changed = self.record_changed.take_if(|record| *record != **self.own);
        self.record_changed = None;
        if changed.is_none() && !has_new_epoch && now.mono < self.renew_at {
            return;
        }
        let time = mesh_time(now);
        let mut record = changed.unwrap_or_else(|| (**self.own).clone());
        record.friends.retain(|friend| time < friend.until);
        record.sequence = next_number(time, record.sequence.max(self.own.sequence));
        record.expires = time.after(RECORD_LIFETIME);
        if has_new_epoch {
            record.epoch = record.sequence;
            self.epoch_due = (now.mono + EPOCH_PAUSE, false);
        }
        let Ok(own) = record.sign(&self.keys) else { return };
        self.own = own;
        self.renew_at = now.mono + RECORD_RENEWAL;
        self.map.on_own_record_changed();
        self.exchange.add_news(self.id());
        if has_new_epoch {
            self.counters.epochs += 1;
            // Neighbours need the record before the first packet under the new epoch.
            self.send_own_record();
            self.membership.set_epoch(now.mono, self.own.epoch);
            self.after_membership(now);
        }
    }

    /// Tells the others that this node leaves, and closes its links.
    pub(super) fn leave(&mut self, now: Now) {
        self.membership.leave(now.mono);
        self.after_membership(now);
        let nodes: Vec<_> = self.links.iter().map(|(id, _)| id).collect();
        for node in nodes {
            self.links.remove(node);
            self.act(MeshAction::Close(node));
        }
        self.has_left = true;
    }
}
