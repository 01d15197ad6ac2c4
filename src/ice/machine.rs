//! [`IceAgent`]: its inputs, timers and pacing.

use super::binding::{Check, Nomination};
use super::candidate::{Candidate, CandidateTransport};
use super::counters::IceCounters;
use super::credentials::IceCredentials;
use super::generation::Generation;
use super::pair::{Pair, PairKey, PairState};
use super::probe_budget::{POSTPONED, ProbeBudget};
use super::tcp::Connections;
use crate::stun::{Class, Message, Method, TransactionId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Between two checks of any pairs: in the first round, and later (Ta of RFC 8445 section 14.2).
const FIRST_PACE: Duration = Duration::from_millis(5);
const PACE: Duration = Duration::from_millis(50);
/// For how long the first pace holds when the selected pair has become silent.
const HURRY: Duration = Duration::from_millis(200);
/// Between two checks of the selected pair (RFC 7675 section 5.1), of the best others, and of the rest: NAT mappings stay open.
const SELECTED_INTERVAL: Duration = Duration::from_secs(5);
const BACKUP_INTERVAL: Duration = Duration::from_secs(10);
const SPARE_INTERVAL: Duration = Duration::from_secs(60);
/// How many pairs besides the selected one are kept open.
const BACKUPS: usize = 3;
/// RFC 8863: an agent is patient for this long before it fails.
const PATIENCE: Duration = Duration::from_millis(39_500);

/// Most local candidates.
const MAX_LOCALS: usize = 64;
/// Most messages and events that wait for the caller, who takes them after each input.
const MAX_TRANSMITS: usize = 512;
const MAX_EVENTS: usize = 1024;

/// The role of an agent (RFC 8445 section 6.1.1). Roles that conflict are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IceRole {
    /// It nominates pairs; usually the side that made the offer.
    Controlling,
    /// It follows nominations.
    Controlled,
}

impl IceRole {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Controlling => Self::Controlled,
            Self::Controlled => Self::Controlling,
        }
    }
}

/// The state of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IceState {
    /// No pair has answered.
    Checking,
    /// A pair is selected and answers.
    Connected,
    /// The selected pair is silent, and no other one answers. Checks go on.
    Disconnected,
    /// As before or [`IceState::Checking`], for 39.5 s (RFC 8863) and with all the peer's candidates. Checks go on, at a falling rate.
    Failed,
}

/// The settings of an [`IceAgent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IceConfig {
    /// The role at the start.
    pub role: IceRole,
    /// Whether the peer has the ICE option `renomination`, as all agents of this module do. A browser does not: its checks then count as signs
    /// of life.
    pub renomination: bool,
}

impl IceConfig {
    /// Takes the role; the peer is an agent of this module.
    #[must_use]
    pub fn new(role: IceRole) -> Self {
        Self { role, renomination: true }
    }
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IceTransmit {
    /// The local address: base of a host candidate, or a relayed address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Whether it is sent on the TCP connection of the two addresses, with its length before it (RFC 4571).
    pub is_tcp: bool,
    /// The message.
    pub bytes: Vec<u8>,
}

/// A pair that carries data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelectedPair {
    /// The local candidate.
    pub local: Candidate,
    /// The peer's candidate.
    pub remote: Candidate,
    /// The smoothed round trip time of its checks.
    pub round_trip: Option<Duration>,
}

/// An event for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IceEvent {
    /// The state has changed.
    State(IceState),
    /// Data is sent on this pair from now on.
    Selected(Box<SelectedPair>),
    /// No pair has answered yet. This one, which uses a relay, may carry data at once: so many datagrams, after the check that is sent first.
    /// There are two such pairs at most, and data may be sent on both.
    Provisional {
        /// The pair.
        pair: Box<SelectedPair>,
        /// How many datagrams may be sent on it.
        datagrams: usize,
    },
    /// A role conflict was repaired; this is the role now.
    Role(IceRole),
    /// A TCP connection must be opened. The caller then calls [`IceAgent::handle_tcp_connected`] or [`IceAgent::handle_tcp_closed`].
    Connect {
        /// The base of the local candidate: with [`CandidateTransport::TcpSimultaneousOpen`] the address to connect from, otherwise any port
        /// of its IP address.
        local: SocketAddr,
        /// The peer's address.
        remote: SocketAddr,
        /// The transport of the local candidate.
        transport: CandidateTransport,
    },
    /// A TCP connection, open or still opening, is no longer needed.
    Close {
        /// The base of the local candidate, as in [`IceEvent::Connect`]; of an accepted connection the listener's address.
        local: SocketAddr,
        /// The peer's address.
        remote: SocketAddr,
    },
    /// A STUN message from outside told the peer's view of a local base: its peer-reflexive address.
    Mapped {
        /// The local base.
        base: SocketAddr,
        /// Its address as the peer sees it.
        address: SocketAddr,
    },
}

/// What a message was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IceInput {
    /// A check or a response of this agent's.
    Handled,
    /// Nothing of this agent's, or not authentic: dropped without a response.
    Unrelated,
}

/// The generation of a pair that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Current,
    Previous,
}

/// An ICE agent. See the [module](super) for how to drive it.
#[derive(Debug)]
pub struct IceAgent {
    pub(super) config: IceConfig,
    pub(super) role: IceRole,
    pub(super) tie_breaker: u64,
    pub(super) rng: ChaCha20Rng,
    pub(super) locals: Vec<Candidate>,
    pub(super) current: Generation,
    /// Before a restart; it carries data until the current one has a pair.
    pub(super) previous: Option<Generation>,
    pub(super) selected: Option<PairKey>,
    pub(super) state: IceState,
    /// The number of the next nomination.
    pub(super) next_nomination: u32,
    /// Since when there is no usable pair.
    pub(super) without_path_since: Option<Instant>,
    next_send: Option<Instant>,
    /// Until then checks follow each other at the first pace.
    hurry_until: Option<Instant>,
    /// No later than the next time at which something must be done.
    timer: Option<Instant>,
    pub(super) connections: Connections,
    pub(super) budget: ProbeBudget,
    pub(super) counters: IceCounters,
    transmits: VecDeque<IceTransmit>,
    events: VecDeque<IceEvent>,
}

impl IceAgent {
    /// Makes an agent. Credentials and transaction ids follow from the seed, which must be random and secret.
    #[must_use]
    pub fn new(config: IceConfig, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let credentials = IceCredentials::random(&mut rng);
        Self::start(config, credentials, rng)
    }

    /// Makes an agent with credentials that were agreed otherwise.
    #[must_use]
    pub fn with_credentials(config: IceConfig, credentials: IceCredentials, seed: [u8; 32]) -> Self {
        Self::start(config, credentials, ChaCha20Rng::from_seed(seed))
    }

    fn start(config: IceConfig, credentials: IceCredentials, mut rng: ChaCha20Rng) -> Self {
        Self {
            config,
            role: config.role,
            tie_breaker: rng.random(),
            locals: Vec::new(),
            current: Generation::new(credentials),
            previous: None,
            selected: None,
            state: IceState::Checking,
            next_nomination: 1,
            without_path_since: None,
            next_send: None,
            hurry_until: None,
            timer: None,
            connections: Connections::default(),
            budget: ProbeBudget::new(),
            counters: IceCounters::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            rng,
        }
    }

    /// Returns the local credentials, for the peer.
    #[must_use]
    pub fn local_credentials(&self) -> &IceCredentials {
        &self.current.local
    }

    /// Returns the peer's credentials, once they are known.
    #[must_use]
    pub fn remote_credentials(&self) -> Option<&IceCredentials> {
        self.current.remote.as_ref()
    }

    /// Returns the local candidates, for the peer.
    #[must_use]
    pub fn local_candidates(&self) -> &[Candidate] {
        &self.locals
    }

    /// Returns the role.
    #[must_use]
    pub fn role(&self) -> IceRole {
        self.role
    }

    /// Returns the state.
    #[must_use]
    pub fn state(&self) -> IceState {
        self.state
    }

    /// Returns the pair that carries data.
    #[must_use]
    pub fn selected(&self) -> Option<SelectedPair> {
        let pair = self.pair(self.selected?)?;
        let (local, remote) = (pair.local.clone(), pair.remote.clone());
        Some(SelectedPair { local, remote, round_trip: pair.round_trip })
    }

    /// Returns whether the selected pair has answered since another one became silent. Before, data is sent on it in hope.
    pub(crate) fn is_selected_confirmed(&self) -> bool {
        self.selected.and_then(|key| self.pair(key)).is_some_and(|pair| !pair.is_doubtful)
    }

    /// Adds a local candidate. One that is known, or that is one too many, is ignored.
    pub fn add_local_candidate(&mut self, now: Instant, candidate: Candidate) {
        let same = |known: &Candidate| {
            (known.kind, known.transport, known.base, known.address)
                == (candidate.kind, candidate.transport, candidate.base, candidate.address)
        };
        if self.locals.iter().any(same) {
            return;
        }
        if self.locals.len() >= MAX_LOCALS {
            self.counters.refused_local_candidates += 1;
            return;
        }
        self.current.add_local(self.role, &candidate);
        self.locals.push(candidate);
        self.update(now);
    }

    /// Removes the local candidates of a base, whose socket or allocation is gone.
    pub fn remove_local_candidates(&mut self, now: Instant, base: SocketAddr) {
        self.locals.retain(|known| known.base != base);
        self.current.remove_local(base);
        if let Some(previous) = &mut self.previous {
            previous.remove_local(base);
        }
        self.update(now);
    }

    /// Adds a candidate of the peer. One that is malformed for its transport is never checked.
    pub fn add_remote_candidate(&mut self, now: Instant, candidate: Candidate) {
        let locals = std::mem::take(&mut self.locals);
        self.current.add_remote(self.role, &locals, candidate);
        self.locals = locals;
        self.update(now);
    }

    /// Handles that the peer has no more candidates (RFC 8838 section 13).
    pub fn handle_end_of_candidates(&mut self, now: Instant) {
        self.current.is_end_of_candidates = true;
        self.update(now);
    }

    /// Sets the peer's credentials; checks begin. Others than before mean that the peer has restarted: call [`IceAgent::restart`] first.
    pub fn set_remote_credentials(&mut self, now: Instant, credentials: IceCredentials) {
        self.current.remote = Some(credentials);
        self.update(now);
    }

    /// Restarts ICE (RFC 8445 section 9): new local credentials, the same local candidates; the peer's are expected anew. The selected pair
    /// carries data until a new one answers.
    pub fn restart(&mut self, now: Instant) {
        let credentials = IceCredentials::random(&mut self.rng);
        self.restart_with(now, credentials);
    }

    /// Does the same with credentials that were agreed otherwise.
    pub fn restart_with(&mut self, now: Instant, credentials: IceCredentials) {
        let next = Generation::new(credentials);
        let old = std::mem::replace(&mut self.current, next);
        // Of two restarts before an answer, the generation that works stays.
        let is_kept = self.previous.is_none() || old.pairs.iter().any(Pair::is_usable);
        let gone = if is_kept { self.previous.replace(old) } else { Some(old) };
        gone.into_iter().for_each(|gone| self.forget(&gone));
        self.without_path_since = None;
        self.update(now);
    }

    /// Handles that addresses, routes or the time have changed: everything is checked at once.
    pub fn handle_network_change(&mut self, now: Instant) {
        for generation in [Some(&mut self.current), self.previous.as_mut()].into_iter().flatten() {
            for pair in generation.pairs.iter_mut() {
                pair.is_suspect |= pair.is_usable();
                pair.check_now(now);
            }
        }
        self.update(now);
    }

    /// Handles a STUN message from `remote` that arrived at the local address `local`.
    pub fn handle_message(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> IceInput {
        self.handle_stun(now, PairKey { is_tcp: false, local, remote }, bytes)
    }

    pub(super) fn handle_stun(&mut self, now: Instant, key: PairKey, bytes: &[u8]) -> IceInput {
        let Ok(message) = Message::parse(bytes) else { return IceInput::Unrelated };
        if message.method() != Method::BINDING {
            return IceInput::Unrelated;
        }
        let handled = match message.class() {
            Class::Request => self.handle_request(now, key, &message),
            Class::Success | Class::Error => self.handle_response(now, key, &message),
            // A keepalive (RFC 8445 section 11).
            Class::Indication => None,
        };
        if handled.is_none() {
            // A flood of strangers' messages costs no look at the pairs.
            return IceInput::Unrelated;
        }
        self.update(now);
        IceInput::Handled
    }

    /// Handles that data was sent on the selected pair which the peer will answer, such as a QUIC packet. Without an answer within four round
    /// trips, at least 300 and at most 800 ms, data goes to the next pair that answers.
    pub fn handle_data_sent(&mut self, now: Instant) {
        if let Some(key) = self.selected
            && let Some(pair) = self.pair_mut(key)
        {
            pair.on_sent(now);
            let event = pair.next_event();
            self.timer = self.timer.into_iter().chain(event).min();
        }
    }

    /// Checks the selected pair now, because data on it had no answer. If the check has none either, data goes to the next pair that answers.
    pub fn verify_selected(&mut self, now: Instant) {
        if let Some(key) = self.selected
            && let Some(pair) = self.pair_mut(key)
        {
            pair.next_check = Some(now);
            self.timer = Some(now);
        }
    }

    /// Handles that authentic data of the peer has arrived.
    pub fn handle_data_received(&mut self, local: SocketAddr, remote: SocketAddr) {
        self.on_data_received(PairKey { is_tcp: false, local, remote });
    }

    pub(super) fn on_data_received(&mut self, key: PairKey) {
        if let Some(pair) = self.pair_mut(key)
            && pair.is_usable()
        {
            pair.on_alive();
        }
    }

    /// Sends the checks that are due, and notices silence.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.timer = None;
        let mut expired = Vec::new();
        let mut is_selected_silent = false;
        for generation in [Some(&mut self.current), self.previous.as_mut()].into_iter().flatten() {
            for pair in generation.pairs.iter_mut() {
                is_selected_silent |= pair.detect_silence(now) && Some(pair.key) == self.selected;
                if pair.expire_consent(now) && pair.key.is_tcp {
                    expired.push(pair.key);
                }
            }
        }
        for key in expired {
            self.close_connection(now, key);
        }
        if is_selected_silent {
            self.verify_all(now);
        }
        self.update(now);
        self.send_due(now);
        self.update(now);
        if self.timer.is_some_and(|at| at <= now) {
            // A round that has just ended was what a nomination waited for.
            self.send_due(now);
            self.update(now);
        }
    }

    /// Checks every pair that could take over, before data relies on it: what made one silent may have done so to all.
    fn verify_all(&mut self, now: Instant) {
        for generation in [Some(&mut self.current), self.previous.as_mut()].into_iter().flatten() {
            let usable = generation.pairs.iter_mut().filter(|pair| pair.is_usable());
            usable.for_each(|pair| {
                pair.next_check = Some(now);
                pair.is_doubtful = true;
            });
        }
        self.hurry_until = Some(now + HURRY);
    }

    fn send_due(&mut self, now: Instant) {
        while self.next_send.is_none_or(|at| at <= now)
            && let Some((key, source)) = self.next_due(now)
        {
            if self.send_check(now, key, source) {
                let is_fast = self.current.is_first_round() || self.hurry_until.is_some_and(|end| now < end);
                let pace = if is_fast { FIRST_PACE } else { PACE };
                self.next_send = Some(now + pace);
            }
        }
    }

    /// Returns when [`IceAgent::handle_timeout`] is due. Costs nothing: it can be called for each packet.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timer
    }

    fn next_timeout(&self) -> Option<Instant> {
        let pairs = || self.generations().flat_map(|generation| generation.pairs.iter());
        let check = self.checked_pairs().filter_map(|(pair, _)| pair.next_check).min();
        let check = check.map(|at| self.next_send.map_or(at, |pace| at.max(pace)));
        let event = pairs().filter_map(Pair::next_event).min();
        let patience = self.without_path_since.map(|since| since + PATIENCE);
        let patience = patience.filter(|_| self.may_fail());
        [check, event, patience].into_iter().flatten().min()
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<IceTransmit> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<IceEvent> {
        self.events.pop_front()
    }

    /// Queues a message to a pair. One too many is dropped, as a network may do.
    pub(super) fn push_transmit(&mut self, PairKey { is_tcp, local, remote }: PairKey, bytes: Vec<u8>) {
        if self.transmits.len() < MAX_TRANSMITS {
            self.transmits.push_back(IceTransmit { local, remote, is_tcp, bytes });
        } else {
            self.counters.dropped_messages += 1;
        }
    }

    /// Queues an event. One too many takes the place of the oldest.
    pub(super) fn push_event(&mut self, event: IceEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.counters.dropped_events += 1;
        }
        self.events.push_back(event);
    }

    pub(super) fn generations(&self) -> impl Iterator<Item = &Generation> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Returns the pair with a key: of the generation in which it is usable, or else of the latest one.
    pub(super) fn pair(&self, key: PairKey) -> Option<&Pair> {
        if self.is_in_previous(key) { self.previous.as_ref()?.pair(key) } else { self.current.pair(key) }
    }

    pub(super) fn pair_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        match self.is_in_previous(key) {
            true => self.previous.as_mut()?.pair_mut(key),
            false => self.current.pair_mut(key),
        }
    }

    fn is_in_previous(&self, key: PairKey) -> bool {
        let Some(previous) = self.previous.as_ref().and_then(|previous| previous.pair(key)) else {
            return false;
        };
        self.current.pair(key).is_none_or(|current| previous.is_usable() && !current.is_usable())
    }

    /// All pairs of the current generation once the peer's credentials are known, and the selected one if it is of the previous generation.
    /// Before, all of the previous one: the peer may not know of the restart for long.
    fn checked_pairs(&self) -> impl Iterator<Item = (&Pair, Source)> {
        let is_known = self.current.remote.is_some();
        let current = self.current.pairs.iter().filter(move |_| is_known);
        let selected = self.selected.filter(|key| self.is_in_previous(*key));
        let previous = self.previous.iter().flat_map(|previous| previous.pairs.iter());
        let previous = previous.filter(move |pair| !is_known || Some(pair.key) == selected);
        let previous = previous.map(|pair| (pair, Source::Previous));
        current.map(|pair| (pair, Source::Current)).chain(previous)
    }

    /// Returns the pair whose check is sent now: nominations, then the peer's checks, then by priority.
    fn next_due(&self, now: Instant) -> Option<(PairKey, Source)> {
        let due = self.checked_pairs().filter(|(pair, _)| pair.next_check.is_some_and(|at| at <= now));
        let rank = |(pair, _): &(&Pair, Source)| {
            let is_first = pair.state == PairState::Checking(0);
            let is_urgent = pair.is_provisional && !pair.is_announced;
            // A TCP connection is needed only where no datagram passes.
            let order = (is_first, !pair.key.is_tcp, pair.priority(self.role));
            (pair.is_to_be_nominated, is_urgent, pair.was_triggered, order)
        };
        due.max_by_key(rank).map(|(pair, source)| (pair.key, source))
    }

    fn checked_pair_mut(&mut self, key: PairKey, source: Source) -> Option<&mut Pair> {
        match source {
            Source::Current => self.current.pair_mut(key),
            Source::Previous => self.previous.as_mut()?.pair_mut(key),
        }
    }

    /// Sends a check of a pair, or has its connection opened; `false` if nothing is sent now.
    fn send_check(&mut self, now: Instant, key: PairKey, source: Source) -> bool {
        let carries = self.connections.carries(key);
        let is_in_budget = self.budget.may_check(now, key.remote.ip());
        let Some(pair) = self.checked_pair_mut(key, source) else { return false };
        if !is_in_budget {
            pair.next_check = Some(now + POSTPONED);
            self.counters.postponed_checks += 1;
            return false;
        }
        if !pair.begin_check(now) {
            self.close_connection(now, key);
            return false;
        }
        self.budget.take_check(now, key.remote.ip());
        if carries {
            self.send_binding_request(now, key, source);
        } else {
            self.open_connection(now, key);
        }
        true
    }

    fn send_binding_request(&mut self, now: Instant, key: PairKey, source: Source) {
        let id = TransactionId::new(self.rng.random());
        let interval = self.interval(key).mul_f64(self.rng.random_range(0.8..=1.2));
        let is_controlling = self.role == IceRole::Controlling;
        let (role, tie_breaker) = (self.role, self.tie_breaker);
        let number = self.next_nomination;
        let is_numbered = self.config.renomination;
        let generation = match (source, &mut self.previous) {
            (Source::Previous, Some(previous)) => previous,
            _ => &mut self.current,
        };
        let (local, remote) = (generation.local.clone(), generation.remote.clone());
        let (Some(remote), Some(pair)) = (remote, generation.pair_mut(key)) else { return };
        let nominates = is_controlling && pair.is_to_be_nominated && source == Source::Current;
        let nomination = nominates.then_some(match is_numbered {
            true => Nomination::Numbered(number),
            false => Nomination::Plain,
        });
        let check = Check { role, tie_breaker, priority: pair.local.reflexive_priority(), nomination };
        let bytes = check.to_request(id, &local, &remote);
        pair.on_check_sent(now, id, nominates, interval);
        pair.was_triggered = false;
        self.push_transmit(key, bytes);
        self.announce_provisional(now, key);
    }

    /// The time between checks of a pair that has succeeded.
    fn interval(&self, key: PairKey) -> Duration {
        if Some(key) == self.selected {
            return SELECTED_INTERVAL;
        }
        let is_better = |pair: &&Pair| {
            pair.is_usable()
                && self.pair(key).is_some_and(|this| pair.priority(self.role) > this.priority(self.role))
        };
        let better = self.current.pairs.iter().filter(is_better).count();
        if better <= BACKUPS { BACKUP_INTERVAL } else { SPARE_INTERVAL }
    }

    /// Whether nothing more can come from the peer by signalling.
    pub(super) fn may_fail(&self) -> bool {
        self.current.is_end_of_candidates && self.state != IceState::Failed
    }

    pub(super) fn is_out_of_patience(&self, now: Instant) -> bool {
        self.may_fail() && self.without_path_since.is_some_and(|since| since + PATIENCE <= now)
    }

    /// Draws conclusions after each input: pairs to check, the pair that carries data, the state.
    pub(super) fn update(&mut self, now: Instant) {
        self.current.unfreeze(now, self.role);
        self.select(now);
        self.update_state(now);
        self.mark_provisional(now);
        self.close_unused_connections();
        self.timer = self.next_timeout();
    }
}
