//! The relay's state machine: allocations, their relay ports and timers. Pure.
//!
//! Control messages leave through [`Relay::poll_output`]. Relayed data leaves through the return values of
//! [`Relay::handle_client`], [`Relay::handle_peer`] and [`Relay::handle_internal`], which are in `data.rs`.

use super::FiveTuple;
use super::allocation::Allocation;
use super::auth::{self, PendingLookups};
use super::client_index::ClientIndex;
use super::config::{RelayConfig, SharedState};
use super::counters::Counters;
use super::denial_counters::DenialCounters;
use super::forward::DropCounters;
use super::output::{Output, RequestAuth};
use super::pending_connections::ConnectionId;
use super::policy::PeerAddr;
use super::relay_port::RelayPort;
use super::tcp_allocations::PeerConnection;
use crate::clock::TickBase;
use crate::clock::{Deadlines, Now};
use crate::ids::Pii;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Identifies one allocation of a relay while it exists.
pub(super) type AllocationId = usize;

/// What a deadline belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Timer {
    Allocation(AllocationId),
    Connection(ConnectionId),
    /// The earliest expiry of all workers' port reservations.
    Reservations,
}

/// A TURN server without I/O, or one worker's part of one.
#[derive(Debug)]
pub struct Relay {
    pub(super) shared: SharedState,
    pub(super) rng: ChaCha20Rng,
    pub(super) allocations: Slab<Allocation>,
    pub(super) relays: Slab<RelayPort>,
    pub(super) client_index: ClientIndex,
    pub(super) connections: HashMap<ConnectionId, PeerConnection>,
    pub(super) deadlines: Deadlines<Timer>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Counters,
    pub(super) drops: DropCounters,
    pub(super) denials: DenialCounters,
    pub(super) tick_base: TickBase,
    pub(super) pending_lookups: PendingLookups,
}

impl Relay {
    /// Creates a relay at `now`. Ports and transaction ids are drawn from `seed`, which must be secret.
    #[must_use]
    pub fn new(now: Now, config: RelayConfig, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let shared = SharedState::new(config, rng.random());
        Self::with_shared(now, shared, rng.random())
    }

    /// Creates one relay for each of `workers` threads. They share relay ports, quotas and reservations; each client's packets must always
    /// go to the same one.
    #[must_use]
    pub fn group(now: Now, config: RelayConfig, workers: u16, seed: [u8; 32]) -> Vec<Self> {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let shared = SharedState::new(config, rng.random());
        (0..workers).map(|worker| Self::with_shared(now, shared.for_worker(worker), rng.random())).collect()
    }

    /// Creates one worker's relay.
    #[doc(hidden)]
    #[must_use]
    pub fn with_shared(now: Now, shared: SharedState, seed: [u8; 32]) -> Self {
        let rng = ChaCha20Rng::from_seed(seed);
        Self {
            shared,
            client_index: ClientIndex::new(&rng),
            rng,
            allocations: Slab::new(),
            relays: Slab::new(),
            connections: HashMap::new(),
            deadlines: Deadlines::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            drops: DropCounters::default(),
            denials: DenialCounters::default(),
            tick_base: TickBase::new(now.mono),
            pending_lookups: PendingLookups::default(),
        }
    }

    /// Ends the allocation of a client whose connection has closed.
    pub fn handle_client_gone(&mut self, client: FiveTuple) {
        self.pending_lookups.remove_client(client);
        if let Some(id) = self.allocation_of(client) {
            self.end_allocation(id, "client connection closed");
        }
    }

    /// Ends every allocation made with time-limited credentials for `name`, which were revoked.
    pub fn handle_revoked(&mut self, name: &str) {
        let of_name = |(_, allocation): &(_, &Allocation)| auth::is_issued_for(allocation.user(), name);
        let ids: Vec<_> = self.allocations.iter().filter(of_name).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.end_allocation(id, "credentials revoked"));
    }

    /// Ends what has expired: allocations, unbound connections, port reservations.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.deadlines.pop_due(now.mono) {
            match timer {
                Timer::Allocation(id) => self.end_allocation(id, "expired"),
                Timer::Connection(connection) => self.connection_timed_out(connection),
                Timer::Reservations => self.set_reservation_timer(now),
            }
        }
    }

    /// Returns the next action; call it until it returns `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns whether [`Relay::poll_output`] has an action.
    pub(crate) fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Returns when [`Relay::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Returns what was counted, but for dropped packets and denied peers.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns how many packets were dropped, by reason.
    #[must_use]
    pub fn drops(&self) -> DropCounters {
        self.drops
    }

    /// Iterates over the rules that have denied peers (`PolicyDenial::name`), and how often.
    pub fn denials(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.denials.counts()
    }

    /// Returns the user of the client's allocation, and when it expires.
    pub(crate) fn user_and_expiry(&self, client: FiveTuple) -> Option<(Arc<str>, Instant)> {
        let allocation = self.allocations.get(self.allocation_of(client)?)?;
        Some((Arc::clone(allocation.user()), self.tick_base.instant(allocation.live_until())))
    }

    /// Returns the number of leased relay ports, of all workers.
    #[must_use]
    pub fn leased_ports(&self) -> u32 {
        self.shared.ports.leased()
    }

    /// Returns the number of allocations of this relay.
    #[must_use]
    pub fn len(&self) -> usize {
        self.allocations.len()
    }

    /// Returns whether there are no allocations.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allocations.is_empty()
    }

    /// Returns `peer` in canonical form, an advertised relayed address of this server as its local one.
    pub(super) fn local_peer(&self, peer: SocketAddr) -> PeerAddr {
        PeerAddr::new(self.shared.ports.local(PeerAddr::new(peer).socket_addr()))
    }

    /// Sends a response to an authenticated request, or an indication.
    pub(super) fn respond(&mut self, client: FiveTuple, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Response { client, bytes, auth: RequestAuth::Verified });
    }

    pub(super) fn set_expiry_timer(&mut self, id: AllocationId) {
        let expiry = self.tick_base.instant(self.allocations[id].live_until());
        self.deadlines.set(Timer::Allocation(id), expiry);
    }

    /// Releases expired reservations, and sets the timer to the next expiry.
    pub(super) fn set_reservation_timer(&mut self, now: Now) {
        if let Some(next) = self.shared.reservations.expire(now.mono) {
            self.deadlines.set(Timer::Reservations, next);
        }
    }

    pub(super) fn end_allocation(&mut self, id: AllocationId, reason: &'static str) {
        if let Some(allocation) = self.allocations.get(id) {
            if !allocation.is_self_test() {
                tracing::info!(user = %Pii(allocation.user()), %id, reason, "allocation ended");
            }
            if let Some(events) = &self.shared.event_handler {
                events.on_allocation_ended(&allocation.client(), allocation.user(), reason);
            }
            self.remove_allocation(id);
        }
    }

    /// Removes an allocation and releases its relay ports, connections and quota.
    pub(super) fn remove_allocation(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.try_remove(id) else { return };
        let client = allocation.client();
        self.remove_client(client, id);
        self.deadlines.clear(Timer::Allocation(id));
        if allocation.control.mobility.is_some() {
            self.outputs.push_back(Output::ClientLeft { client });
        }
        for connection in &allocation.control.connections {
            self.close_connection(*connection);
        }
        for relay in allocation.relay_ports() {
            self.close_relay_port(relay);
        }
    }
}
