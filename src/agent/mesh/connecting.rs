//! How links come about: which are wanted, at which endpoints, by whose signalling, and over which relay.
//!
//! A node that everybody can reach is dialled at its endpoint after that has answered a Binding request, so that nothing larger goes to an
//! endpoint that a record only claims. All others get an offer, which is sealed for them and travels over the mesh (S3-20). Where the NATs of
//! both cannot be punched, or punching has failed, the offer names a relay: the nearest node that offers it and can be reached (S3-25).

use super::machine::{Mesh, mesh_time};
use super::node_id::NodeId;
use super::output::MeshAction;
use super::record::NatKind;
use super::sealed::{Content, MAX_PARAMETERS};
use crate::clock::Now;
use crate::limits::Backoff;
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Most attempts at a time, of this node and of others.
pub(super) const MAX_ATTEMPTS: usize = 64;
/// Most nodes that could not be connected to and are remembered, and for how long.
const MAX_FAILED: usize = 512;
const FAILED_PAUSE: Duration = Duration::from_secs(60);
/// Most attempts that maintenance begins in one round.
const ATTEMPTS_OF_ROUND: usize = 4;
/// Most relays that are tried for one link.
const MAX_RELAYS: usize = 3;
/// Time limits: of a Binding request, and of everything after it.
const BINDING: Duration = Duration::from_secs(2);
const CONNECTED: Duration = Duration::from_secs(10);
/// Between two announcements while alone.
const ALONE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Between two searches for nodes that are down, and between two rounds of maintenance.
const SEARCH: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
const ROUND: Duration = Duration::from_secs(2);

/// One attempt to get a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    /// `None` until a bootstrap node has named itself.
    node: Option<NodeId>,
    stage: Stage,
    until: Instant,
    relays: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The endpoint is to answer a Binding request.
    Proving(SocketAddr),
    Dialling,
    /// An offer is being made, or waits for its answer.
    Offering,
    /// The other side's offer is being answered.
    Answering {
        theirs: u64,
    },
    Checking,
}

/// All attempts.
#[derive(Debug)]
pub(super) struct Connecting {
    bootstrap: Vec<SocketAddr>,
    attempts: BTreeMap<u64, Attempt>,
    failed: BTreeMap<NodeId, Instant>,
    alone: Backoff,
    next_alone: Instant,
    next_round: Instant,
    next_search: Instant,
    last_down: Option<Instant>,
}

impl Connecting {
    pub(super) fn new(bootstrap: Vec<SocketAddr>, now: Instant, rng: ChaCha20Rng) -> Self {
        Self {
            bootstrap,
            attempts: BTreeMap::new(),
            failed: BTreeMap::new(),
            alone: Backoff::new(ALONE, rng),
            next_alone: now,
            next_round: now,
            next_search: now + SEARCH.0,
            last_down: None,
        }
    }

    pub(super) fn on_member_down(&mut self, now: Instant) {
        self.last_down = Some(now);
    }

    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.attempts.len(), self.failed.len()]
    }

    fn is_tried(&self, node: NodeId) -> bool {
        self.failed.contains_key(&node) || self.attempts.values().any(|attempt| attempt.node == Some(node))
    }

    fn fail(&mut self, now: Instant, node: NodeId) {
        if self.failed.len() < MAX_FAILED {
            self.failed.insert(node, now + FAILED_PAUSE);
        }
    }
}

impl Mesh {
    pub(super) fn tick_connecting(&mut self, now: Now) {
        self.connecting.failed.retain(|_, until| *until > now.mono);
        let late: Vec<u64> =
            self.connecting.attempts.iter().filter(|(_, a)| a.until <= now.mono).map(|(n, _)| *n).collect();
        late.into_iter().for_each(|attempt| self.on_attempt_failed(now, attempt));
        if self.links.len() == 0 {
            self.announce_alone(now);
        }
        if now.mono >= self.connecting.next_search {
            self.search_down(now);
        }
        if now.mono >= self.connecting.next_round {
            self.connecting.next_round = now.mono + ROUND.mul_f64(self.rng.random_range(0.5..1.5));
            self.maintain_links(now);
        }
    }

    fn maintain_links(&mut self, now: Now) {
        while let Some(node) = self.links.surplus(now.mono) {
            self.links.counters.pruned += 1;
            self.links.remove(node);
            self.act(MeshAction::Close(node));
        }
        if self.links.len() == 0 {
            return;
        }
        let connecting = &self.connecting;
        let candidates = self.map.active().filter(|id| !connecting.is_tried(*id));
        let mut wanted = self.links.missing(candidates, &mut self.rng);
        wanted.shuffle(&mut self.rng);
        for node in wanted.into_iter().take(ATTEMPTS_OF_ROUND) {
            self.connect(now, node);
        }
    }

    /// Without a link: asks the bootstrap nodes and those of the stored map for one, with back-off.
    fn announce_alone(&mut self, now: Now) {
        if now.mono < self.connecting.next_alone {
            return;
        }
        self.connecting.next_alone = now.mono + self.connecting.alone.wait();
        for endpoint in self.connecting.bootstrap.clone() {
            self.prove(now, endpoint, None);
        }
        let stored = self.map.iter().filter(|(_, entry)| entry.record.nat.is_reachable());
        let chosen = stored.map(|(id, _)| id).choose_multiple(&mut self.rng, 3);
        for node in chosen {
            self.dial(now, node);
        }
    }

    /// After a split, those on the other side are down. One of them is tried at a time, the less often the longer it is ago.
    fn search_down(&mut self, now: Now) {
        let age = self.connecting.last_down.map_or(SEARCH.1, |at| now.mono.saturating_duration_since(at));
        let pause = (age / 20).clamp(SEARCH.0, SEARCH.1).mul_f64(self.rng.random_range(0.5..1.0));
        self.connecting.next_search = now.mono + pause;
        let is_candidate = |id: &NodeId| !self.connecting.is_tried(*id) && !self.links.contains(*id);
        let down = self.map.iter().filter(|(_, entry)| !entry.is_active && entry.record.nat.is_reachable());
        if let Some(node) = down.map(|(id, _)| id).filter(is_candidate).choose(&mut self.rng) {
            self.dial(now, node);
        }
    }

    /// Opens a link to a node unless there is one, or an attempt.
    pub(super) fn connect(&mut self, now: Now, node: NodeId) {
        if node == self.id() || self.links.contains(node) || self.connecting.is_tried(node) {
            return;
        }
        if !self.dial(now, node) {
            self.offer(now, node, Vec::new());
        }
    }

    /// Begins with a Binding request to a node that everybody can reach; `false` if it is none.
    fn dial(&mut self, now: Now, node: NodeId) -> bool {
        let endpoint = self.map.record(node).filter(|record| record.nat.is_reachable());
        let Some(endpoint) = endpoint.and_then(|record| record.endpoints.first().copied()) else {
            return false;
        };
        self.prove(now, endpoint, Some(node));
        true
    }

    fn prove(&mut self, now: Now, endpoint: SocketAddr, node: Option<NodeId>) {
        if let Some(attempt) = self.begin(now, node, Stage::Proving(endpoint), Vec::new()) {
            self.request_binding(now, endpoint, Some(attempt));
        }
    }

    fn begin(&mut self, now: Now, node: Option<NodeId>, stage: Stage, relays: Vec<NodeId>) -> Option<u64> {
        if self.connecting.attempts.len() >= MAX_ATTEMPTS {
            self.counters.overflow += 1;
            return None;
        }
        let limit = if matches!(stage, Stage::Proving(_)) { BINDING } else { CONNECTED };
        let number = self.rng.next_u64();
        let attempt = Attempt { node, stage, until: now.mono + limit, relays };
        self.connecting.attempts.insert(number, attempt);
        Some(number)
    }

    /// The endpoint of an attempt has answered: it is no forgery, and larger packets may go there.
    pub(super) fn on_endpoint_proven(&mut self, now: Now, number: u64) {
        let Some(attempt) = self.connecting.attempts.get_mut(&number) else { return };
        let Stage::Proving(to) = attempt.stage else { return };
        attempt.stage = Stage::Dialling;
        attempt.until = now.mono + CONNECTED;
        let node = attempt.node;
        self.act(MeshAction::Dial { attempt: number, to, node });
    }

    /// Makes an offer: directly where that can work, else over a relay.
    fn offer(&mut self, now: Now, node: NodeId, mut relays: Vec<NodeId>) {
        let Some(nat) = self.map.record(node).map(|record| record.nat) else { return };
        let needs_relay = !relays.is_empty() || !self.own.nat.can_punch(nat);
        let relay = if needs_relay { self.choose_relay(node, &relays) } else { None };
        if needs_relay && relay.is_none() {
            return self.connecting.fail(now.mono, node);
        }
        relays.extend(relay);
        if let Some(attempt) = self.begin(now, Some(node), Stage::Offering, relays) {
            self.act(MeshAction::MakeOffer { attempt, node, relay });
        }
    }

    /// Returns the nearest node that offers to relay and can be reached.
    pub(super) fn choose_relay(&self, node: NodeId, except: &[NodeId]) -> Option<NodeId> {
        let may = self.map.iter().filter(|(id, entry)| {
            let record = &entry.record;
            let is_online = entry.is_active || self.links.contains(*id);
            record.offers_relay
                && record.nat.is_reachable()
                && is_online
                && *id != node
                && !except.contains(id)
        });
        let may = may.filter(|(id, _)| !self.connecting.failed.contains_key(id));
        may.map(|(id, _)| id).min_by_key(|id| (self.reflexive.round_trip(*id), *id))
    }

    /// The service has gathered candidates for an offer; without any the attempt has failed.
    pub(super) fn offer_ready(&mut self, now: Now, number: u64, parameters: Vec<u8>) {
        let Some(attempt) = self.connecting.attempts.get(&number) else { return };
        let (Some(node), Stage::Offering) = (attempt.node, attempt.stage) else { return };
        if parameters.is_empty() || parameters.len() > MAX_PARAMETERS {
            return self.on_attempt_failed(now, number);
        }
        let relay = attempt.relays.last().copied();
        self.send_sealed(now, node, &Content::Offer { attempt: number, relay, parameters });
    }

    pub(super) fn on_offer(
        &mut self,
        now: Now,
        from: NodeId,
        theirs: u64,
        relay: Option<NodeId>,
        offer: Vec<u8>,
    ) {
        let is_repeated = self.connecting.attempts.values().any(|attempt| {
            attempt.node == Some(from)
                && matches!(attempt.stage, Stage::Answering { theirs: known } if known == theirs)
        });
        // The offer of the lower address wins where both offer at once.
        let is_crossed = self.id() < from
            && self.connecting.attempts.values().any(|a| a.node == Some(from) && a.stage == Stage::Offering);
        if is_repeated || is_crossed || self.links.get(from).is_some_and(|link| link.relay.is_none()) {
            return;
        }
        let relays = relay.into_iter().collect();
        if let Some(attempt) = self.begin(now, Some(from), Stage::Answering { theirs }, relays) {
            self.act(MeshAction::MakeAnswer { attempt, node: from, relay, offer });
        }
    }

    /// The service has gathered candidates for an answer; empty parameters refuse the offer.
    pub(super) fn answer_ready(&mut self, now: Now, number: u64, parameters: Vec<u8>) {
        let Some(attempt) = self.connecting.attempts.get(&number) else { return };
        let (Some(node), Stage::Answering { theirs }) = (attempt.node, attempt.stage) else { return };
        if parameters.is_empty() || parameters.len() > MAX_PARAMETERS {
            self.connecting.attempts.remove(&number);
        }
        self.send_sealed(now, node, &Content::Answer { attempt: theirs, parameters });
    }

    pub(super) fn on_answer(&mut self, now: Now, from: NodeId, number: u64, answer: Vec<u8>) {
        let Some(attempt) = self.connecting.attempts.get_mut(&number) else { return };
        if attempt.node != Some(from) || attempt.stage != Stage::Offering {
            return;
        }
        if answer.is_empty() {
            return self.on_attempt_failed(now, number);
        }
        attempt.stage = Stage::Checking;
        attempt.until = now.mono + CONNECTED;
        self.act(MeshAction::Connect { attempt: number, node: from, answer });
    }

    /// An attempt has failed: what could still work is tried next.
    pub(super) fn on_attempt_failed(&mut self, now: Now, number: u64) {
        let Some(attempt) = self.connecting.attempts.remove(&number) else { return };
        self.act(MeshAction::Abort { attempt: number });
        let Some(node) = attempt.node else { return };
        let is_active = self.map.get(node).is_some_and(|entry| entry.is_active);
        match attempt.stage {
            Stage::Answering { .. } => {}
            // The endpoint of the record is out of date, or the way there is blocked.
            Stage::Proving(_) | Stage::Dialling if is_active && self.links.len() > 0 => {
                self.offer(now, node, Vec::new())
            }
            Stage::Offering | Stage::Checking if attempt.relays.len() < MAX_RELAYS && is_active => {
                let relays = if attempt.relays.is_empty() { vec![self.id()] } else { attempt.relays };
                self.offer(now, node, relays);
            }
            _ => self.connecting.fail(now.mono, node),
        }
    }

    /// A link has come about, by whichever attempt.
    pub(super) fn on_connected(&mut self, node: NodeId) {
        if self.connecting.attempts.values().any(|attempt| attempt.node.is_none()) {
            self.reflexive.add_bootstrap(node);
        }
        self.connecting.attempts.retain(|_, attempt| attempt.node.is_some_and(|other| other != node));
        self.connecting.failed.remove(&node);
        self.connecting.alone.reset();
    }

    /// A link is lost. One that was relayed is wanted again, over another relay.
    pub(super) fn on_disconnected(&mut self, now: Now, node: NodeId, relay: Option<NodeId>) {
        if self.links.len() == 0 {
            self.connecting.next_alone = now.mono + ALONE.0.mul_f64(self.rng.random_range(0.2..1.0));
        }
        if let Some(relay) = relay {
            self.connecting.fail(now.mono, relay);
            if self.map.get(node).is_some_and(|entry| entry.is_active) {
                self.offer(now, node, vec![relay]);
            }
        }
    }

    /// What others may know of the own NAT.
    pub(super) fn set_address(&mut self, endpoints: Vec<SocketAddr>, nat: NatKind) {
        self.change_record(|record| {
            record.endpoints = endpoints;
            record.nat = nat;
        });
    }

    pub(super) fn is_fresh(now: Now, sent: super::mesh_time::MeshTime) -> bool {
        const TOLERANCE: Duration = Duration::from_secs(600);
        let time = mesh_time(now);
        time.since(sent) <= TOLERANCE && sent.since(time) <= TOLERANCE
    }
}
