//! The switchboard: who is connected, which virtual connections there are, where each frame goes. Pure.
//!
//! Frames come in by [`Switchboard::handle_frames`] and wait, unchanged, in their receiver's outbox, from where the hands write them
//! ([`Switchboard::peek`], [`Switchboard::handle_written`]). Further rules: `commands.rs` (New, Dial, Close, …), `flow.rs` (who is
//! not read for a while, and whose virtual connection is closed for it), `liveness.rs` (Ping and the other timers).

use super::budget::{Budget, SHORT, Waiting, network};
use super::config::{Duplicates, Rules};
use super::connection::Connection;
use super::counters::{Counters, Why};
use super::end::{End, EndKey, Held, Pass, Role};
use super::lately::Lately;
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

/// What the hands are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Something waits for this endpoint, where nothing did before.
    Send(EndKey),
    /// Offer this endpoint's input again, and read it on.
    Resume(EndKey),
    /// Close this endpoint's connection: the machine knows it no more.
    Drop(EndKey, Why),
}

/// What is to be done with an endpoint's input after its whole frames were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read on. So many bytes are missing of a frame that has begun, as far as there is memory for it; no more than these are welcome
    /// where `only` is set.
    Read {
        /// 0 where no frame has begun and there is plenty.
        missing: usize,
        /// Memory is short.
        only: bool,
    },
    /// Read no more until [`Output::Resume`].
    Hold,
    /// It was dropped.
    Gone,
}

/// A server with this id is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// When an endpoint's silence, slowness or missing ticket is looked into.
    Alive(EndKey),
    /// When an endpoint was not read for long enough.
    Hold(EndKey),
    /// When those who take nothing are looked for, because memory is short.
    Pressure,
}

/// The gateway's state.
#[derive(Debug)]
pub struct Switchboard {
    pub(super) rules: Rules,
    pub(super) ends: Slab<End>,
    pub(super) clients: HashMap<u32, EndKey>,
    pub(super) servers: HashMap<u32, EndKey>,
    /// Ids that were opened and not dialled.
    pub(super) opened: HashMap<ConnId, EndKey>,
    pub(super) connections: hashbrown::HashMap<ConnId, Connection, foldhash::fast::FixedState>,
    pub(super) lately: Lately,
    pub(super) budget: Budget,
    pub(super) refusals: Refusals,
    /// When it was last looked for those who take nothing while memory is short.
    pub(super) relieved: Option<Instant>,
    pub(super) timers: Deadlines<Timer>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Counters,
    pub(super) rng: ChaCha20Rng,
    /// The newest client's id (REQUIREMENTS section 3.1: counted from 1).
    last_client: u32,
    /// Whose frames have left, kept for its room.
    left: Vec<(ConnId, usize)>,
}

impl Switchboard {
    /// Begins with nobody connected.
    #[must_use]
    pub fn new(rules: Rules, rng: ChaCha20Rng) -> Self {
        Self {
            budget: Budget::new(rules.limits.memory, rules.limits.max_packet),
            refusals: Refusals::default(),
            relieved: None,
            rules,
            ends: Slab::new(),
            clients: HashMap::new(),
            servers: HashMap::new(),
            opened: HashMap::new(),
            connections: hashbrown::HashMap::default(),
            lately: Lately::default(),
            timers: Deadlines::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            rng,
            last_client: 0,
            left: Vec::new(),
        }
    }

    /// A client has connected, from `ip`.
    pub fn handle_client(&mut self, now: Now, ip: IpAddr) -> EndKey {
        let id = loop {
            self.last_client = self.last_client.wrapping_add(1);
            if self.last_client != 0 && !self.clients.contains_key(&self.last_client) {
                break self.last_client;
            }
        };
        let pass = if self.rules.tickets.is_some() { Pass::Awaited } else { Pass::Free };
        let key = EndKey(self.ends.insert(End::new(Role::Client { id, pass }, network(ip), now.mono)));
        self.clients.insert(id, key);
        let times = self.rules.times;
        let patience = if pass == Pass::Awaited { times.handshake } else { times.ping };
        self.timers.set(Timer::Alive(key), now.mono + patience);
        key
    }

    /// A server has connected and shown that it may have `id`. `credit` says whether it came by a door where both sides grant credit.
    ///
    /// # Errors
    /// [`Taken`] where another has it and keeps it.
    pub fn handle_server(
        &mut self,
        now: Now,
        id: u32,
        credit: bool,
        duplicates: Duplicates,
    ) -> Result<EndKey, Taken> {
        match self.servers.get(&id) {
            Some(before) if duplicates == Duplicates::Refuse => {
                self.claim(now, *before);
                return Err(Taken);
            }
            Some(before) => self.drop_end(now, *before, Why::Replaced),
            None => {}
        }
        let key = EndKey(self.ends.insert(End::new(Role::Server { id, credit }, None, now.mono)));
        self.servers.insert(id, key);
        self.timers.set(Timer::Alive(key), now.mono + self.rules.times.ping);
        Ok(key)
    }

    /// Takes the whole frames off the start of what an endpoint has sent; what is not whole, or must wait, stays.
    pub fn handle_frames(&mut self, now: Now, from: EndKey, input: &mut BytesMut) -> Next {
        let Some(end) = self.ends.get_mut(from.0) else { return Next::Gone };
        end.heard = now.mono;
        if end.held.is_some() {
            return Next::Hold;
        }
        let (mut to, mut run) = (from, 0);
        let max_packet = self.rules.limits.max_packet;
        let mut took_one = false;
        let is_held = loop {
            let (frame, len) = match wire::frame(&input[run..], max_packet) {
                Ok(Some(found)) => found,
                Ok(None) => break false,
                Err(error) => {
                    tracing::debug!(%error, "a gateway connection is dropped");
                    self.forward(now.mono, to, input.split_to(run));
                    self.drop_end(now, from, Why::Malformed);
                    return Next::Gone;
                }
            };
            took_one = true;
            if let Frame::Data { conn, .. } = frame
                && let Some(receiver) = self.admit(from, conn, len)
            {
                if receiver != to {
                    let before = input.split_to(run);
                    self.forward(now.mono, to, before);
                    (to, run) = (receiver, 0);
                }
                run += len;
                continue;
            }
            // What came before goes first: what follows may close what it belongs to.
            let before = input.split_to(run);
            self.forward(now.mono, to, before);
            (to, run) = (from, 0);
            if let Some(conn) = wire::conn_of(input).filter(|conn| conn.0 != 0) {
                if self.is_to_wait(now, from, conn) {
                    break true;
                }
                input.advance(len);
            } else {
                let command = input.split_to(len);
                if let Ok(Some((Frame::Command(command), _))) = wire::frame(&command, max_packet) {
                    self.command(now, from, command);
                }
            }
            // Answering may have been too much.
            match self.ends.get_mut(from.0) {
                None => return Next::Gone,
                Some(end) if end.has_backlog() => {
                    end.held = Some(Held::Backlog);
                    break true;
                }
                Some(end) if end.held.is_some() => break true,
                Some(_) => {}
            }
        };
        let before = input.split_to(run);
        self.forward(now.mono, to, before);
        self.account(now, from, input, took_one);
        // What was dropped instead of forwarded takes no memory any more.
        self.give_memory();
        if is_held { Next::Hold } else { self.read_on(now, from, input) }
    }

    /// Charges what is left of an endpoint's input to the shared memory.
    fn account(&mut self, now: Now, from: EndKey, input: &BytesMut, took_one: bool) {
        let Some(end) = self.ends.get_mut(from.0) else { return };
        if took_one {
            (end.granted, end.frame_since) = (0, None);
            self.budget.finished(end.network, from);
        }
        if input.is_empty() {
            end.frame_since = None;
        } else {
            end.frame_since.get_or_insert(now.mono);
        }
        let charge = input.len().max(end.granted);
        self.budget.charge(end.network, end.input, charge);
        end.input = charge;
    }

    /// Says whether an endpoint may be read, and takes memory for the next bytes of a frame that has begun.
    fn read_on(&mut self, now: Now, from: EndKey, input: &BytesMut) -> Next {
        let Some(end) = self.ends.get_mut(from.0) else { return Next::Gone };
        let whole = wire::frame_len(input, self.rules.limits.max_packet).ok().flatten();
        let whole = whole.unwrap_or(if input.is_empty() { 0 } else { wire::HEAD });
        let is_plenty = self.budget.is_plenty(end.network);
        let may_read = std::mem::take(&mut end.may_read);
        if whole == 0 && is_plenty {
            return Next::Read { missing: 0, only: false };
        }
        if whole == 0 && !may_read && !self.budget.admits_short() {
            end.held = Some(Held::Memory);
            self.wait_for_memory(now);
            Limit::GatewayMemory.reached(self.rules.limits.memory);
            self.budget.wait_to_read(from);
            return Next::Hold;
        }
        if whole <= SHORT {
            let missing = if whole == 0 { SHORT } else { whole.saturating_sub(input.len()) };
            return Next::Read { missing, only: !is_plenty };
        }
        if end.granted <= input.len() {
            let granted = whole.min((2 * input.len()).max(input.len() + SHORT));
            let step = granted - end.input;
            if !self.budget.admits(end.network, step) {
                if !self.budget.has_share(end.network, step) {
                    self.counters.share_waits += 1;
                    Limit::GatewayMemoryPerAddress.reached(self.budget.share());
                } else {
                    Limit::GatewayMemory.reached(self.rules.limits.memory);
                }
                end.held = Some(Held::Memory);
                let (network, waiting) = (end.network, Waiting { end: from, step, rest: whole - end.input });
                self.wait_for_memory(now);
                self.budget.wait(network, waiting);
                self.give_memory();
                return Next::Hold;
            }
            self.budget.charge(end.network, end.input, granted);
            (end.input, end.granted) = (granted, granted);
        }
        Next::Read { missing: end.granted - input.len(), only: end.granted < whole || !is_plenty }
    }

    /// Finds the receiver of a message and notes that it will wait for it; `None` where it may not.
    fn admit(&mut self, from: EndKey, conn: ConnId, len: usize) -> Option<EndKey> {
        let link = self.connections.get_mut(&conn).filter(|link| !link.is_closed)?;
        let to = 1 - link.side(from)?;
        let lane = &mut link.lanes[to];
        if lane.is_full(len, self.rules.limits.queue) || lane.window <= 0 {
            return None;
        }
        lane.waiting += len;
        lane.window = lane.window.saturating_sub_unsigned(len as u64);
        self.counters.messages += 1;
        self.counters.bytes += len as u64;
        link.ends[to]
    }

    /// Says whether a message that was not admitted has to wait, and all that its sender sends behind it. It is dropped where not.
    fn is_to_wait(&mut self, now: Now, from: EndKey, conn: ConnId) -> bool {
        let found = self.connections.get(&conn).filter(|link| !link.is_closed);
        let found = found.and_then(|link| {
            let to = 1 - link.side(from)?;
            Some((to, link.ends[to]?))
        });
        match found {
            Some((to, receiver)) => self.hold(now, from, (conn, to), receiver),
            None => {
                self.stray(now, from, conn);
                false
            }
        }
    }

    /// Puts a run of frames into its receiver's outbox.
    fn forward(&mut self, now: Instant, to: EndKey, run: BytesMut) {
        if run.is_empty() {
            return;
        }
        let Some(end) = self.ends.get_mut(to.0) else { return };
        if end.outbox.is_empty() {
            end.begin_waiting(now);
            self.outputs.push_back(Output::Send(to));
        }
        self.budget.take(run.len());
        end.outbox.push(run);
    }

    /// Puts a command into an endpoint's outbox.
    pub(super) fn tell(&mut self, now: Now, to: EndKey, command: Command<'_>) {
        let Some(end) = self.ends.get_mut(to.0) else { return };
        let before = end.outbox.len();
        if before == 0 {
            end.begin_waiting(now.mono);
            self.outputs.push_back(Output::Send(to));
        }
        end.outbox.tell(command);
        self.budget.take(end.outbox.len() - before);
    }

    /// Returns what an endpoint is to be sent next: fills `slices` and says how many of them.
    pub fn peek<'a>(&'a self, to: EndKey, slices: &mut [IoSlice<'a>]) -> usize {
        self.ends.get(to.0).map_or(0, |end| end.outbox.peek(slices))
    }

    /// Returns the first frame of what an endpoint is to be sent, or what is left of it.
    #[must_use]
    pub fn peek_one(&self, to: EndKey) -> &[u8] {
        self.ends.get(to.0).map_or(&[], |end| end.outbox.first())
    }

    /// An endpoint's system has taken the first `count` bytes of what waits for it.
    pub fn handle_written(&mut self, now: Now, to: EndKey, count: usize) {
        let Some(end) = self.ends.get_mut(to.0) else { return };
        (end.progress, end.is_stuck) = (now.mono, false);
        self.budget.give_back(count);
        let mut left = std::mem::take(&mut self.left);
        end.outbox.left(count, |conn, bytes| left.push((conn, bytes)));
        end.keep_pace(now.mono, count);
        if end.held == Some(Held::Backlog) && end.outbox.control() <= end.most_control() / 2 {
            self.resume(to);
        }
        for (conn, bytes) in left.drain(..) {
            self.taken(now, to, conn, bytes);
        }
        self.left = left;
        self.give_memory();
    }

    /// An endpoint's connection has ended.
    pub fn handle_gone(&mut self, now: Now, key: EndKey) {
        if self.ends.contains(key.0) {
            self.detach(now, key);
        }
    }

    /// Closes an endpoint's connection from our side.
    pub(super) fn drop_end(&mut self, now: Now, key: EndKey, why: Why) {
        self.counters.dropped[why as usize] += 1;
        self.outputs.push_back(Output::Drop(key, why));
        self.detach(now, key);
    }

    /// Returns the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Switchboard::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Returns what there is and has been.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            clients: self.clients.len() as u64,
            servers: self.servers.len() as u64,
            virtual_connections: self.connections.len() as u64,
            opened: self.opened.len() as u64,
            waiting: self.budget.used() as u64,
            ..self.counters
        }
    }
}
