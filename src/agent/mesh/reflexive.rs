//! The own endpoints and NAT, from the Binding responses of other nodes (S3-28), and the round-trip times of nodes.
//!
//! Two nodes at different addresses report the mapped address. A third one, to which nothing was sent, is asked for a Binding request: where it
//! arrives, everybody can reach that mapped address, and the NAT counts as a full cone.

use super::connecting::MAX_ATTEMPTS;
use super::machine::Mesh;
use super::node_id::NodeId;
use super::output::{MeshAction, MeshEvent};
use super::record::{NatKind, is_usable};
use super::sealed::Content;
use crate::clock::Now;
use rand::RngCore;
use rand::seq::IteratorRandom;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Most Binding requests without a response, and how long each is waited for.
const MAX_PENDING: usize = 256;
const RESPONSE: Duration = Duration::from_secs(3);
/// Most round-trip times that are remembered.
const MAX_ROUND_TRIPS: usize = 512;
/// What a node counts for whose round-trip time is not known.
const UNKNOWN: Duration = Duration::from_secs(10);
/// Most hosts whose reports of the own address are remembered.
const MAX_REPORTS: usize = 8;
/// Between two checks of the own address: while it is not known, and later.
const CHECK: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(300));
/// Most hosts whose packets a NAT lets pass, and how long a NAT does that at most.
const MAX_CONTACTED: usize = 1024;
const FILTER_LIFETIME: Duration = Duration::from_secs(600);
/// How many strangers are asked before the own address is checked again.
const FILTER_CHECKS: u8 = 4;
/// Between two requests that are sent for others.
const FILTER_CHECK: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// An attempt to connect.
    Attempt(u64),
    /// The own address.
    Own(NodeId),
}

#[derive(Debug, Clone, Copy)]
struct PendingBinding {
    to: SocketAddr,
    sent: Instant,
    purpose: Purpose,
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64;
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || is_shared)
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xE000 == 0x2000,
    }
}

/// The state.
#[derive(Debug)]
pub(super) struct Reflexive {
    local: Vec<SocketAddr>,
    pending: BTreeMap<[u8; 12], PendingBinding>,
    round_trips: BTreeMap<NodeId, Duration>,
    /// The mapped addresses that different hosts have reported in this check.
    mapped: BTreeMap<IpAddr, SocketAddr>,
    /// Hosts that this port has sent to, and when.
    contacted: BTreeMap<IpAddr, Instant>,
    /// Nodes that this one has joined through, whose hosts are among them even if their records do not show it.
    bootstrap: BTreeSet<NodeId>,
    /// The request that a stranger was asked for, the mapped address that it goes to, and when another one is asked.
    filter_check: Option<([u8; 12], SocketAddr, Instant)>,
    filter_checks: u8,
    /// The mapped address that a stranger has reached.
    reached_at: Option<SocketAddr>,
    next_check: Instant,
    next_for_others: Instant,
}

impl Reflexive {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            local: Vec::new(),
            pending: BTreeMap::new(),
            round_trips: BTreeMap::new(),
            mapped: BTreeMap::new(),
            contacted: BTreeMap::new(),
            bootstrap: BTreeSet::new(),
            filter_check: None,
            filter_checks: 0,
            reached_at: None,
            next_check: now,
            next_for_others: now,
        }
    }

    pub(super) fn on_round_trip(&mut self, node: NodeId, rtt: Duration) {
        if self.round_trips.len() < MAX_ROUND_TRIPS || self.round_trips.contains_key(&node) {
            self.round_trips.insert(node, rtt);
        }
    }

    pub(super) fn add_bootstrap(&mut self, node: NodeId) {
        if self.bootstrap.len() < MAX_ATTEMPTS {
            self.bootstrap.insert(node);
        }
    }

    pub(super) fn round_trip(&self, node: NodeId) -> Duration {
        self.round_trips.get(&node).copied().unwrap_or(UNKNOWN)
    }

    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.pending.len(), self.round_trips.len(), self.contacted.len()]
    }

    /// Returns the NAT and the endpoints that others can use, as far as the reports determine them.
    fn classify(&self) -> Option<(NatKind, Vec<SocketAddr>)> {
        let mut reports = self.mapped.values();
        let first = *reports.next()?;
        if self.local.contains(&first) {
            return Some((NatKind::Open, vec![first]));
        }
        if let Some(endpoint) = self.reached_at {
            return Some((NatKind::FullCone, vec![endpoint]));
        }
        Some(match first == *reports.next()? {
            true => (NatKind::Restricted, vec![first]),
            false => (NatKind::Symmetric, Vec::new()),
        })
    }

    fn forget_filter(&mut self) {
        self.filter_check = None;
        self.filter_checks = 0;
    }
}

impl Mesh {
    /// The addresses of the mesh port on this host.
    pub(super) fn set_local_endpoints(&mut self, now: Now, local: Vec<SocketAddr>) {
        self.reflexive.local = local;
        self.check_address_again(now);
    }

    /// The own address may have changed: the network has, or the NAT was restarted.
    pub(super) fn check_address_again(&mut self, now: Now) {
        self.reflexive.mapped.clear();
        self.reflexive.reached_at = None;
        self.reflexive.forget_filter();
        self.reflexive.next_check = now.mono;
    }

    pub(super) fn request_binding(&mut self, now: Now, to: SocketAddr, attempt: Option<u64>) {
        if let Some(attempt) = attempt {
            self.send_binding(now, to, Purpose::Attempt(attempt));
        }
    }

    fn send_binding(&mut self, now: Now, to: SocketAddr, purpose: Purpose) {
        if self.reflexive.pending.len() >= MAX_PENDING {
            self.counters.overflow += 1;
            return;
        }
        let mut transaction = [0; 12];
        self.rng.fill_bytes(&mut transaction);
        self.reflexive.pending.insert(transaction, PendingBinding { to, sent: now.mono, purpose });
        if self.reflexive.contacted.len() < MAX_CONTACTED {
            self.reflexive.contacted.insert(to.ip(), now.mono);
        }
        self.act(MeshAction::SendBinding { to, transaction });
    }

    /// A Binding response has come. Only one from where the request went counts.
    pub(super) fn on_binding_response(
        &mut self,
        now: Now,
        from: SocketAddr,
        transaction: [u8; 12],
        mapped: SocketAddr,
    ) {
        let is_answer = self.reflexive.pending.get(&transaction).is_some_and(|pending| pending.to == from);
        let Some(pending) = self.reflexive.pending.remove(&transaction).filter(|_| is_answer) else { return };
        if is_usable(mapped) && self.reflexive.mapped.len() < MAX_REPORTS {
            self.reflexive.mapped.insert(from.ip(), mapped);
            self.apply_address();
        }
        match pending.purpose {
            Purpose::Attempt(attempt) => self.on_endpoint_proven(now, attempt),
            Purpose::Own(node) => {
                self.reflexive.on_round_trip(node, now.mono.saturating_duration_since(pending.sent));
                self.map.set_proven(node);
            }
        }
    }

    /// A Binding request has come to this local address; the service answers it.
    pub(super) fn on_binding_request(&mut self, local: SocketAddr, transaction: [u8; 12]) {
        // The first node of a mesh has nobody who could report its address.
        if self.own.nat == NatKind::Unknown && self.reflexive.mapped.is_empty() && is_public(local.ip()) {
            self.set_address(vec![local], NatKind::Open);
        }
        let check = self.reflexive.filter_check.take_if(|(expected, _, _)| *expected == transaction);
        if let Some((_, endpoint, _)) = check {
            self.reflexive.reached_at = Some(endpoint);
            self.apply_address();
        }
    }

    fn apply_address(&mut self) {
        let Some((nat, endpoints)) = self.reflexive.classify() else { return };
        if (nat, &endpoints) != (self.own.nat, &self.own.endpoints) {
            self.set_address(endpoints.clone(), nat);
            self.report(MeshEvent::AddressChanged { endpoints, nat });
        }
    }

    /// Asks a node to which this port has sent nothing.
    fn ask_filter_check(&mut self, now: Now) {
        let reflexive = &self.reflexive;
        let is_due = reflexive.filter_check.is_none_or(|(_, _, until)| until <= now.mono);
        let is_behind_nat = !matches!(self.own.nat, NatKind::Open | NatKind::FullCone);
        let Some(endpoint) = reflexive.mapped.values().next().copied() else { return };
        if !is_due || !is_behind_nat || reflexive.filter_checks >= FILTER_CHECKS {
            return;
        }
        let contacted = &self.reflexive.contacted;
        let is_stranger = |to: &SocketAddr| to.ip() != endpoint.ip() && !contacted.contains_key(&to.ip());
        let strangers = self.map.iter().filter(|(id, entry)| {
            let has_no_contact = entry.record.endpoints.iter().all(is_stranger);
            entry.is_active && has_no_contact && !reflexive.bootstrap.contains(id)
        });
        let Some(node) = strangers.map(|(id, _)| id).choose(&mut self.rng) else { return };
        let mut transaction = [0; 12];
        self.rng.fill_bytes(&mut transaction);
        self.reflexive.filter_check = Some((transaction, endpoint, now.mono + RESPONSE));
        self.reflexive.filter_checks += 1;
        self.send_sealed(now, node, &Content::CheckFilter { endpoint, transaction });
    }

    /// Another node wants one small packet at one of its own endpoints.
    pub(super) fn on_check_filter(&mut self, now: Now, from: NodeId, to: SocketAddr, transaction: [u8; 12]) {
        let is_own = self.map.record(from).is_some();
        if !is_own || now.mono < self.reflexive.next_for_others {
            self.counters.overflow += 1;
            return;
        }
        self.reflexive.next_for_others = now.mono + FILTER_CHECK;
        self.act(MeshAction::SendBinding { to, transaction });
    }

    pub(super) fn tick_reflexive(&mut self, now: Now) {
        self.reflexive
            .pending
            .retain(|_, pending| now.mono.saturating_duration_since(pending.sent) < RESPONSE);
        self.ask_filter_check(now);
        if now.mono < self.reflexive.next_check || self.links.len() == 0 {
            return;
        }
        self.reflexive.contacted.retain(|_, at| now.mono.saturating_duration_since(*at) < FILTER_LIFETIME);
        let is_known = self.own.nat != NatKind::Unknown && self.reflexive.mapped.len() >= 2;
        self.reflexive.next_check = now.mono + if is_known { CHECK.1 } else { CHECK.0 };
        if is_known {
            self.reflexive.mapped.clear();
            self.reflexive.forget_filter();
        }
        self.request_own_address(now);
    }

    fn request_own_address(&mut self, now: Now) {
        let reachable = self.map.iter().filter(|(_, e)| e.is_active && e.record.nat.is_reachable());
        let endpoints = reachable.filter_map(|(id, e)| Some((id, *e.record.endpoints.first()?)));
        let chosen = endpoints.choose_multiple(&mut self.rng, 3);
        let mut hosts = HashSet::new();
        for (node, endpoint) in chosen.into_iter().filter(|(_, to)| hosts.insert(to.ip())).take(2) {
            self.send_binding(now, endpoint, Purpose::Own(node));
        }
        // Relays are compared by their round-trip time.
        let known = &self.reflexive.round_trips;
        let relays = self.map.iter().filter(|(id, e)| {
            e.record.offers_relay && e.is_active && e.record.nat.is_reachable() && !known.contains_key(id)
        });
        let relays = relays.filter_map(|(id, e)| Some((id, *e.record.endpoints.first()?)));
        for (node, endpoint) in relays.choose_multiple(&mut self.rng, 2) {
            self.send_binding(now, endpoint, Purpose::Own(node));
        }
    }
}
