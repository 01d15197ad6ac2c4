//! The router: which endpoints are connected, which virtual connections exist, and where each frame goes. Pure.
//!
//! [`Router::handle_frames`] takes received bytes. Frames are queued unchanged in their receiver's outbox until the worker writes them
//! ([`Router::peek`], [`Router::handle_written`]). Further rules: `commands.rs` (New, Dial, Close, …), `flow_control.rs` (which senders are
//! paused, which slow virtual connections are closed), `liveness.rs` (Ping and the other timers).

use super::budget::{Budget, MemoryRequest, SHORT, network};
use super::config::{Duplicates, RouterConfig};
use super::connection::RoutedConnection;
use super::counters::{CloseReason, Counters};
use super::endpoint::{Access, EndpointKey, EndpointRole, EndpointState, PauseReason};
use super::recently_closed::RecentlyClosed;
use super::refusals::Refusals;
use super::wire::{self, Command, ConnId, Frame};
use crate::clock::{Deadlines, Now};
use crate::limits::Limit;
use bytes::{Buf, BytesMut};
use rand_chacha::ChaCha20Rng;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::net::IpAddr;
use std::time::Instant;

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Write what is queued for this endpoint; nothing was queued before.
    Transmit(EndpointKey),
    /// Pass this endpoint's input again, and continue to read it.
    Resume(EndpointKey),
    /// Close this endpoint's connection. The router has removed it.
    Close(EndpointKey, CloseReason),
}

/// What the worker does with an endpoint's input after its complete frames were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAction {
    /// Read more. Where `exact` is set, read at most `missing` bytes.
    Read {
        /// Bytes that a begun frame needs and that memory is reserved for; 0 where no frame has begun and memory is plentiful.
        missing: usize,
        /// Memory is short.
        exact: bool,
    },
    /// Do not read until [`Output::Resume`].
    Pause,
    /// The endpoint was removed.
    Closed,
}

/// Another server has this id and keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateServer;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// Checks an endpoint for silence, slow frames and a missing token.
    Liveness(EndpointKey),
    /// Ends an endpoint's pause, or closes the virtual connection that caused it.
    Pause(EndpointKey),
    /// Looks for endpoints that occupy memory without progress.
    Reclaim,
}

/// The gateway's state.
#[derive(Debug)]
pub struct Router {
    pub(super) config: RouterConfig,
    pub(super) endpoints: Slab<EndpointState>,
    pub(super) clients: HashMap<u32, EndpointKey>,
    pub(super) servers: HashMap<u32, EndpointKey>,
    /// Ids that were opened and not dialled.
    pub(super) half_open: HashMap<ConnId, EndpointKey>,
    pub(super) connections: hashbrown::HashMap<ConnId, RoutedConnection, foldhash::fast::FixedState>,
    pub(super) recently_closed: RecentlyClosed,
    pub(super) budget: Budget,
    pub(super) refusals: Refusals,
    /// When [`Timer::Reclaim`] last ran.
    pub(super) last_reclaim: Option<Instant>,
    pub(super) timers: Deadlines<Timer>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Counters,
    pub(super) rng: ChaCha20Rng,
    /// The newest client's id, counted from 1.
    last_client: u32,
    /// Scratch space: frames of which connections were written.
    delivered: Vec<(ConnId, usize)>,
}

impl Router {
    /// Creates a router without endpoints.
    #[must_use]
    pub fn new(config: RouterConfig, mut rng: ChaCha20Rng) -> Self {
        Self {
            budget: Budget::new(config.limits.memory, config.limits.max_packet),
            refusals: Refusals::new(&mut rng),
            last_reclaim: None,
            config,
            endpoints: Slab::new(),
            clients: HashMap::new(),
            servers: HashMap::new(),
            half_open: HashMap::new(),
            connections: hashbrown::HashMap::default(),
            recently_closed: RecentlyClosed::default(),
            timers: Deadlines::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            rng,
            last_client: 0,
            delivered: Vec::new(),
        }
    }

    /// Adds a client that has connected from `ip`.
    pub fn add_client(&mut self, now: Now, ip: IpAddr) -> EndpointKey {
        let id = loop {
            self.last_client = self.last_client.wrapping_add(1);
            if self.last_client != 0 && !self.clients.contains_key(&self.last_client) {
                break self.last_client;
            }
        };
        let access = if self.config.tokens.is_some() { Access::TokenRequired } else { Access::Unrestricted };
        let key = EndpointKey(self.endpoints.insert(EndpointState::new(
            EndpointRole::Client { id, access },
            network(ip),
            now.mono,
        )));
        self.clients.insert(id, key);
        let times = self.config.times;
        let timeout = if access == Access::TokenRequired { times.handshake } else { times.ping };
        self.timers.set(Timer::Liveness(key), now.mono + timeout);
        key
    }

    /// Adds a server that has authenticated for `id`. `credit` states whether both sides grant credit (command 7).
    ///
    /// # Errors
    /// [`DuplicateServer`] where another server has the id and keeps it.
    pub fn add_server(
        &mut self,
        now: Now,
        id: u32,
        credit: bool,
        duplicates: Duplicates,
    ) -> Result<EndpointKey, DuplicateServer> {
        match self.servers.get(&id) {
            Some(before) if duplicates == Duplicates::Refuse => {
                self.probe_id_owner(now, *before);
                return Err(DuplicateServer);
            }
            Some(before) => self.close_endpoint(now, *before, CloseReason::Replaced),
            None => {}
        }
        let key = EndpointKey(self.endpoints.insert(EndpointState::new(
            EndpointRole::Server { id, credit },
            None,
            now.mono,
        )));
        self.servers.insert(id, key);
        self.timers.set(Timer::Liveness(key), now.mono + self.config.times.ping);
        Ok(key)
    }

    /// Takes the complete frames off the front of `input`. An incomplete frame stays, and so does one that must wait.
    pub fn handle_frames(&mut self, now: Now, from: EndpointKey, input: &mut BytesMut) -> ReadAction {
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return ReadAction::Closed };
        endpoint.last_received = now.mono;
        if endpoint.paused.is_some() {
            return ReadAction::Pause;
        }
        let (mut to, mut run) = (from, 0);
        let max_packet = self.config.limits.max_packet;
        let mut took_one = false;
        let is_paused = loop {
            let (frame, len) = match wire::frame(&input[run..], max_packet) {
                Ok(Some(found)) => found,
                Ok(None) => break false,
                Err(error) => {
                    tracing::debug!(%error, "gateway connection closed: invalid frame");
                    self.forward(now.mono, to, input.split_to(run));
                    self.close_endpoint(now, from, CloseReason::Malformed);
                    return ReadAction::Closed;
                }
            };
            took_one = true;
            if let Frame::Data { conn, .. } = frame
                && let Some(receiver) = self.enqueue(from, conn, len)
            {
                if receiver != to {
                    let before = input.split_to(run);
                    self.forward(now.mono, to, before);
                    (to, run) = (receiver, 0);
                }
                run += len;
                continue;
            }
            // Earlier frames go first: this one may close their connection.
            let before = input.split_to(run);
            self.forward(now.mono, to, before);
            (to, run) = (from, 0);
            if let Some(conn) = wire::conn_of(input).filter(|conn| conn.0 != 0) {
                if self.must_wait(now, from, conn) {
                    break true;
                }
                input.advance(len);
            } else {
                let command = input.split_to(len);
                if let Ok(Some((Frame::Command(command), _))) = wire::frame(&command, max_packet) {
                    self.handle_command(now, from, command);
                }
            }
            // Queuing the answer may have exceeded a limit.
            match self.endpoints.get_mut(from.0) {
                None => return ReadAction::Closed,
                Some(endpoint) if endpoint.has_command_backlog() => {
                    endpoint.paused = Some(PauseReason::CommandBacklog);
                    break true;
                }
                Some(endpoint) if endpoint.paused.is_some() => break true,
                Some(_) => {}
            }
        };
        let before = input.split_to(run);
        self.forward(now.mono, to, before);
        self.charge_input(now, from, input, took_one);
        // Frames that were dropped instead of forwarded have freed their memory.
        self.grant_memory();
        if is_paused { ReadAction::Pause } else { self.next_read(now, from, input) }
    }

    /// Charges the rest of an endpoint's input to the shared memory.
    fn charge_input(&mut self, now: Now, from: EndpointKey, input: &BytesMut, took_one: bool) {
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return };
        if took_one {
            (endpoint.granted, endpoint.frame_started) = (0, None);
            self.budget.finished(endpoint.network, from);
        }
        if input.is_empty() {
            endpoint.frame_started = None;
        } else {
            endpoint.frame_started.get_or_insert(now.mono);
        }
        let charge = input.len().max(endpoint.granted);
        self.budget.charge(endpoint.network, endpoint.input, charge);
        endpoint.input = charge;
    }

    /// Decides whether an endpoint may be read, and reserves memory for the next bytes of a begun frame.
    fn next_read(&mut self, now: Now, from: EndpointKey, input: &BytesMut) -> ReadAction {
        let Some(endpoint) = self.endpoints.get_mut(from.0) else { return ReadAction::Closed };
        let whole = wire::frame_len(input, self.config.limits.max_packet).ok().flatten();
        let whole = whole.unwrap_or(if input.is_empty() { 0 } else { wire::HEADER_LEN });
        let is_plenty = self.budget.is_plenty(endpoint.network);
        let may_read = std::mem::take(&mut endpoint.may_read);
        if whole == 0 && is_plenty {
            return ReadAction::Read { missing: 0, exact: false };
        }
        if whole == 0 && !may_read && !self.budget.admits_short() {
            endpoint.paused = Some(PauseReason::Memory);
            self.wait_for_memory(now);
            Limit::GatewayMemory.reached(self.config.limits.memory);
            self.budget.wait_to_read(from);
            return ReadAction::Pause;
        }
        if whole <= SHORT {
            let missing = if whole == 0 { SHORT } else { whole.saturating_sub(input.len()) };
            return ReadAction::Read { missing, exact: !is_plenty };
        }
        if endpoint.granted <= input.len() {
            let granted = whole.min((2 * input.len()).max(input.len() + SHORT));
            let step = granted - endpoint.input;
            if !self.budget.admits(endpoint.network, step) {
                if !self.budget.has_share(endpoint.network, step) {
                    self.counters.share_waits += 1;
                    Limit::GatewayMemoryPerAddress.reached(self.budget.share());
                } else {
                    Limit::GatewayMemory.reached(self.config.limits.memory);
                }
                endpoint.paused = Some(PauseReason::Memory);
                let (network, waiting) =
                    (endpoint.network, MemoryRequest { endpoint: from, step, rest: whole - endpoint.input });
                self.wait_for_memory(now);
                self.budget.wait(network, waiting);
                self.grant_memory();
                return ReadAction::Pause;
            }
            self.budget.charge(endpoint.network, endpoint.input, granted);
            (endpoint.input, endpoint.granted) = (granted, granted);
        }
        ReadAction::Read {
            missing: endpoint.granted - input.len(),
            exact: endpoint.granted < whole || !is_plenty,
        }
    }

    /// Finds the receiver of a message and counts the message as queued; `None` where it must not be queued.
    fn enqueue(&mut self, from: EndpointKey, conn: ConnId, len: usize) -> Option<EndpointKey> {
        let connection = self.connections.get_mut(&conn).filter(|connection| !connection.is_closed)?;
        let to = 1 - connection.side(from)?;
        let direction = &mut connection.directions[to];
        if direction.is_full(len, self.config.limits.queue) || direction.window <= 0 {
            return None;
        }
        direction.waiting += len;
        direction.window = direction.window.saturating_sub_unsigned(len as u64);
        self.counters.messages += 1;
        self.counters.bytes += len as u64;
        connection.endpoints[to]
    }

    /// Pauses the sender of a message that was not queued and returns `true`, or drops the message.
    fn must_wait(&mut self, now: Now, from: EndpointKey, conn: ConnId) -> bool {
        let found = self.connections.get(&conn).filter(|connection| !connection.is_closed);
        let found = found.and_then(|connection| {
            let to = 1 - connection.side(from)?;
            Some((to, connection.endpoints[to]?))
        });
        match found {
            Some((to, receiver)) => self.pause_sender(now, from, (conn, to), receiver),
            None => {
                self.handle_stray_message(now, from, conn);
                false
            }
        }
    }

    /// Queues a run of frames for their receiver.
    fn forward(&mut self, now: Instant, to: EndpointKey, run: BytesMut) {
        if run.is_empty() {
            return;
        }
        let Some(endpoint) = self.endpoints.get_mut(to.0) else { return };
        if endpoint.outbox.is_empty() {
            endpoint.on_first_queued(now);
            self.outputs.push_back(Output::Transmit(to));
        }
        self.budget.take(run.len());
        endpoint.outbox.push(run);
    }

    /// Queues a command for an endpoint.
    pub(super) fn send_command(&mut self, now: Now, to: EndpointKey, command: Command<'_>) {
        let Some(endpoint) = self.endpoints.get_mut(to.0) else { return };
        let before = endpoint.outbox.len();
        if before == 0 {
            endpoint.on_first_queued(now.mono);
            self.outputs.push_back(Output::Transmit(to));
        }
        endpoint.outbox.push_command(command);
        self.budget.take(endpoint.outbox.len() - before);
    }

    /// Fills `slices` with what is to be written to an endpoint; returns how many are used.
    pub fn peek<'a>(&'a self, to: EndpointKey, slices: &mut [IoSlice<'a>]) -> usize {
        self.endpoints.get(to.0).map_or(0, |endpoint| endpoint.outbox.peek(slices))
    }

    /// Returns the next frame to be written to an endpoint, or the rest of one that was written in part.
    #[must_use]
    pub fn peek_frame(&self, to: EndpointKey) -> &[u8] {
        self.endpoints.get(to.0).map_or(&[], |endpoint| endpoint.outbox.first())
    }

    /// Handles that the first `count` bytes queued for an endpoint were written.
    pub fn handle_written(&mut self, now: Now, to: EndpointKey, count: usize) {
        let Some(endpoint) = self.endpoints.get_mut(to.0) else { return };
        (endpoint.last_progress, endpoint.is_stalled) = (now.mono, false);
        self.budget.release(count);
        let mut left = std::mem::take(&mut self.delivered);
        endpoint.outbox.advance(count, |conn, bytes| left.push((conn, bytes)));
        endpoint.update_pace(now.mono, count);
        if endpoint.paused == Some(PauseReason::CommandBacklog)
            && endpoint.outbox.control() <= endpoint.max_queued_commands() / 2
        {
            self.resume(to);
        }
        for (conn, bytes) in left.drain(..) {
            self.handle_delivered(now, to, conn, bytes);
        }
        self.delivered = left;
        self.grant_memory();
    }

    /// Handles that an endpoint's connection has ended.
    pub fn handle_disconnected(&mut self, now: Now, key: EndpointKey) {
        if self.endpoints.contains(key.0) {
            self.remove_endpoint(now, key);
        }
    }

    /// Closes an endpoint's connection.
    pub(super) fn close_endpoint(&mut self, now: Now, key: EndpointKey, why: CloseReason) {
        self.counters.dropped[why as usize] += 1;
        self.outputs.push_back(Output::Close(key, why));
        self.remove_endpoint(now, key);
    }

    /// Returns the next action of the worker.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Router::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            clients: self.clients.len() as u64,
            servers: self.servers.len() as u64,
            virtual_connections: self.connections.len() as u64,
            half_open: self.half_open.len() as u64,
            waiting: self.budget.used() as u64,
            ..self.counters
        }
    }
}
