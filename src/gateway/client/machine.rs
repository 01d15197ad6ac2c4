//! One endpoint's side of the protocol: commands of the gateway become virtual connections, messages and events; requests of the endpoint
//! become frames. No sockets, no time. Pure.
//!
//! An id takes two steps, New and Open; then Dial names the remote. A gateway keeps few half-open ids, so the next New waits for the Dial
//! of an earlier one. An id of a cancelled dial is released with Close, and remembered until the gateway has released it: otherwise
//! its Accept would look like an incoming connection.

use super::error::ProtocolError;
use crate::gateway::wire::{self, Command, ConnId, Frame, HEADER_LEN, MAX_COMMAND};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{HashMap, HashSet, VecDeque};

/// Ids requested at a time. A gateway may close the oldest half-open id when there are more than 64.
const MAX_NEW: usize = 32;
/// Unanswered dials at a time, cancelled ones included.
const MAX_DIALS: usize = 1024;
/// Frames above the other limits above which the gateway is assumed to send commands without reading the answers.
const MAX_QUEUED_COMMANDS: usize = 16_384;
/// Messages up to this length are copied out of the read buffer, which they would otherwise keep alive.
const MAX_COPIED: usize = 4096;
/// Frames sent at a time.
pub(super) const BATCH: usize = 256;
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 256 * 1024;

/// Limits of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MuxLimits {
    /// Bytes of a packet: connection id and message.
    pub(super) max_packet: usize,
    /// Messages of one virtual connection that were not taken; unused with credit.
    pub(super) receive_messages: usize,
    /// Bytes of those messages with their headers; with credit, the bytes granted.
    pub(super) receive_bytes: usize,
    /// Frames queued to be sent.
    pub(super) send_messages: usize,
    /// Bytes of those frames.
    pub(super) send_bytes: usize,
    /// Incoming virtual connections that were not accepted.
    pub(super) backlog: usize,
    /// Incoming virtual connections, accepted or not.
    pub(super) incoming: usize,
}

/// Identifies a dial until it has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DialKey(u64);

/// An event for the tasks that use the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MuxEvent {
    /// The gateway has answered for the first time.
    Ready,
    /// There are frames to send.
    Transmit,
    /// A message, or the close, may be taken.
    Readable(ConnId),
    /// A message that found the queue full may be offered again.
    Writable(ConnId),
    /// An incoming virtual connection waits in the backlog.
    Incoming,
    /// A dial has completed; `None`: it was refused.
    DialDone(DialKey, Option<ConnId>),
    /// The blocked message was delivered: reading continues.
    Resume,
}

/// Why a virtual connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndReason {
    /// The other end or the gateway closed it.
    Closed,
    /// It was closed here because its messages were not received in time.
    Overflow,
}

/// The result of [`Mux::take`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReceiveOutcome {
    Message(Bytes),
    /// No message has arrived yet.
    Pending,
    /// No message will arrive.
    Closed(EndReason),
}

/// The result of [`Mux::offer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SendOutcome {
    Queued,
    /// Offer it again after [`MuxEvent::Writable`].
    Full,
    /// The virtual connection is closed.
    Closed,
    /// It is longer than a packet.
    TooLong,
}

/// A frame to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutgoingFrame {
    head: [u8; MAX_COMMAND],
    head_len: usize,
    body: Bytes,
}

impl OutgoingFrame {
    fn command(command: &Command<'_>) -> Self {
        let mut whole = Vec::with_capacity(MAX_COMMAND);
        command.emit(&mut whole);
        let mut head = [0; MAX_COMMAND];
        match head.get_mut(..whole.len()) {
            Some(target) => {
                target.copy_from_slice(&whole);
                Self { head, head_len: whole.len(), body: Bytes::new() }
            }
            None => Self { head, head_len: 0, body: whole.into() },
        }
    }

    fn data(conn: ConnId, body: Bytes) -> Self {
        let mut head = [0; MAX_COMMAND];
        wire::emit_header(&mut &mut head[..], conn, body.len());
        Self { head, head_len: HEADER_LEN, body }
    }

    /// Returns the frame's bytes in two slices, either of which may be empty.
    pub(super) fn pieces(&self) -> [&[u8]; 2] {
        [self.head.get(..self.head_len).unwrap_or_default(), &self.body]
    }

    /// Returns the bytes of the whole frame.
    pub(super) fn len(&self) -> usize {
        self.head_len + self.body.len()
    }
}

/// Why an id was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdPurpose {
    Dial {
        key: DialKey,
        remote: u32,
    },
    /// A probe, or a cancelled dial.
    Probe,
}

/// One virtual connection.
#[derive(Debug, Default)]
struct VirtualConnectionState {
    remote: u32,
    incoming: bool,
    inbox: VecDeque<Bytes>,
    inbox_bytes: usize,
    end: Option<EndReason>,
    /// Bytes that may be sent, with credit.
    credit: i64,
    /// Bytes that the gateway may send, with credit.
    granted: i64,
    /// Bytes that were taken and not granted again.
    taken: usize,
    /// An offered message waits for credit.
    waits_for_credit: bool,
    /// An offered message waits for space in the outbox.
    waits_for_outbox: bool,
}

/// One endpoint's virtual connections.
#[derive(Debug)]
pub(super) struct Mux {
    limits: MuxLimits,
    credit: bool,
    ready: bool,
    next_key: u64,
    waiting: VecDeque<IdPurpose>,
    requested: VecDeque<IdPurpose>,
    dialling: HashMap<ConnId, IdPurpose>,
    connections: HashMap<ConnId, VirtualConnectionState>,
    incoming: usize,
    backlog: VecDeque<ConnId>,
    /// A message for a virtual connection whose receive queue is full.
    blocked: Option<(ConnId, Bytes)>,
    outbox: VecDeque<OutgoingFrame>,
    outbox_bytes: usize,
    /// Connections whose offered message waits for space in the outbox.
    waiting_senders: VecDeque<ConnId>,
    events: VecDeque<MuxEvent>,
}

impl Mux {
    /// Starts with the token, if any, and a New: its answer shows that the gateway has accepted this endpoint. `credit` states whether both
    /// sides grant credit (command 7).
    pub(super) fn new(limits: MuxLimits, credit: bool, token: Option<&[u8]>) -> Self {
        let mut mux = Self {
            limits,
            credit,
            ready: false,
            next_key: 0,
            waiting: VecDeque::new(),
            requested: VecDeque::new(),
            dialling: HashMap::new(),
            connections: HashMap::new(),
            incoming: 0,
            backlog: VecDeque::new(),
            blocked: None,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            waiting_senders: VecDeque::new(),
            events: VecDeque::new(),
        };
        if let Some(token) = token {
            mux.command(&Command::Token(token));
        }
        mux.probe();
        mux
    }

    /// Returns the next event. To be drained after every call that may cause one.
    pub(super) fn poll_event(&mut self) -> Option<MuxEvent> {
        self.events.pop_front()
    }

    /// Takes complete frames off the front of received bytes until a message is blocked. Reserves space for the rest of an incomplete
    /// frame.
    pub(super) fn handle_bytes(&mut self, bytes: &mut BytesMut) -> Result<(), ProtocolError> {
        while self.blocked.is_none() {
            let Some(length) = wire::frame_len(bytes, self.limits.max_packet)? else { break };
            if bytes.len() < length {
                bytes.reserve(length - bytes.len());
                break;
            }
            if length > MAX_COPIED {
                self.handle_frame(bytes.split_to(length).freeze())?;
                continue;
            }
            match wire::frame(bytes, self.limits.max_packet)? {
                Some((Frame::Command(command), _)) => self.handle_command(command)?,
                Some((Frame::Data { conn, message }, _)) => {
                    self.handle_data(conn, Bytes::copy_from_slice(message));
                }
                None => break,
            }
            bytes.advance(length);
        }
        Ok(())
    }

    /// Handles a WebSocket message, which is exactly one frame.
    pub(super) fn handle_frame(&mut self, whole: Bytes) -> Result<(), ProtocolError> {
        match wire::frame(&whole, self.limits.max_packet)? {
            Some((_, length)) if length != whole.len() => Err(ProtocolError::NotOneFrame),
            Some((Frame::Command(command), _)) => self.handle_command(command),
            Some((Frame::Data { conn, .. }, _)) => {
                self.handle_data(conn, whole.slice(HEADER_LEN..));
                Ok(())
            }
            None => Err(ProtocolError::NotOneFrame),
        }
    }

    fn handle_command(&mut self, command: Command<'_>) -> Result<(), ProtocolError> {
        if self.outbox.len() > self.limits.send_messages + self.limits.incoming + MAX_QUEUED_COMMANDS {
            return Err(ProtocolError::TooManyCommands);
        }
        match command {
            Command::Ping => self.command(&Command::Ping),
            Command::Open(ConnId(0)) | Command::Accept { conn: ConnId(0), .. } => {
                return Err(ProtocolError::UnexpectedCommand);
            }
            Command::Open(conn) => self.opened(conn),
            Command::Refuse(conn) => self.refused(conn),
            Command::Accept { conn, remote } => self.accepted(conn, remote),
            Command::Close(conn) => self.closed(conn),
            Command::Credit { conn, bytes } => self.credited(conn, bytes),
            Command::New | Command::Dial { .. } | Command::Token(_) => {
                return Err(ProtocolError::UnexpectedCommand);
            }
        }
        Ok(())
    }

    fn opened(&mut self, conn: ConnId) {
        if !self.ready {
            self.ready = true;
            self.events.push_back(MuxEvent::Ready);
        }
        match self.requested.pop_front() {
            Some(purpose @ IdPurpose::Dial { remote, .. }) => {
                self.dialling.insert(conn, purpose);
                self.command(&Command::Dial { conn, remote });
            }
            // An id that was not requested is released as well.
            Some(IdPurpose::Probe) | None => self.command(&Command::Close(conn)),
        }
        self.request_ids();
    }

    fn refused(&mut self, conn: ConnId) {
        if let Some(IdPurpose::Dial { key, .. }) = self.dialling.remove(&conn) {
            self.events.push_back(MuxEvent::DialDone(key, None));
        }
        self.request_ids();
    }

    fn accepted(&mut self, conn: ConnId, remote: u32) {
        match self.dialling.get(&conn) {
            Some(IdPurpose::Probe) => return,
            Some(IdPurpose::Dial { key, .. }) => {
                let key = *key;
                self.dialling.remove(&conn);
                self.connection(conn, remote, false);
                self.events.push_back(MuxEvent::DialDone(key, Some(conn)));
                return self.request_ids();
            }
            None => {}
        }
        match self.connections.get(&conn).map(|connection| connection.end) {
            Some(None) => {}
            Some(Some(_)) => self.command(&Command::Close(conn)),
            None if self.backlog.len() >= self.limits.backlog || self.incoming >= self.limits.incoming => {
                self.command(&Command::Close(conn));
            }
            None => {
                self.connection(conn, remote, true);
                self.incoming += 1;
                self.backlog.push_back(conn);
                self.events.push_back(MuxEvent::Incoming);
            }
        }
    }

    fn connection(&mut self, conn: ConnId, remote: u32, incoming: bool) {
        let window = u32::try_from(self.limits.receive_bytes).unwrap_or(u32::MAX);
        self.connections.insert(
            conn,
            VirtualConnectionState {
                remote,
                incoming,
                granted: i64::from(window),
                ..VirtualConnectionState::default()
            },
        );
        if self.credit {
            self.command(&Command::Credit { conn, bytes: window });
        }
    }

    fn closed(&mut self, conn: ConnId) {
        self.refused(conn);
        if let Some(connection) = self.connections.get_mut(&conn)
            && connection.end.is_none()
        {
            connection.end = Some(EndReason::Closed);
            self.ended(conn);
        }
    }

    fn ended(&mut self, conn: ConnId) {
        self.events.extend([MuxEvent::Readable(conn), MuxEvent::Writable(conn)]);
    }

    fn credited(&mut self, conn: ConnId, bytes: u32) {
        let Some(connection) = self.connections.get_mut(&conn).filter(|_| self.credit) else { return };
        connection.credit = connection.credit.saturating_add(i64::from(bytes));
        if connection.credit > 0 && std::mem::take(&mut connection.waits_for_credit) {
            self.events.push_back(MuxEvent::Writable(conn));
        }
    }

    /// A message for an id that was closed here recently is dropped: the other end may not know yet.
    fn handle_data(&mut self, conn: ConnId, message: Bytes) {
        let Some(connection) = self.connections.get_mut(&conn).filter(|connection| connection.end.is_none())
        else {
            return;
        };
        let len = HEADER_LEN + message.len();
        if self.credit {
            if connection.granted <= 0 {
                return self.overrun(conn);
            }
            connection.granted -= i64::try_from(len).unwrap_or(i64::MAX);
        } else if connection.inbox.len() >= self.limits.receive_messages
            || connection.inbox_bytes >= self.limits.receive_bytes
        {
            self.blocked = Some((conn, message));
            return;
        }
        self.deliver(conn, message);
    }

    fn deliver(&mut self, conn: ConnId, message: Bytes) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.inbox_bytes += HEADER_LEN + message.len();
        connection.inbox.push_back(message);
        if connection.inbox.len() == 1 {
            self.events.push_back(MuxEvent::Readable(conn));
        }
    }

    /// Returns the connection whose message is blocked. While there is one, nothing is read until [`MuxEvent::Resume`].
    pub(super) fn blocked(&self) -> Option<ConnId> {
        self.blocked.as_ref().map(|(conn, _)| *conn)
    }

    /// Closes the virtual connection whose message is blocked.
    pub(super) fn close_blocked(&mut self) {
        if let Some((conn, _)) = self.blocked.take() {
            self.overrun(conn);
        }
    }

    fn overrun(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.end = Some(EndReason::Overflow);
            self.command(&Command::Close(conn));
            self.ended(conn);
        }
    }

    /// Sends a New, which the gateway must answer.
    pub(super) fn probe(&mut self) {
        if self.requested.len() < MAX_NEW {
            self.requested.push_back(IdPurpose::Probe);
            self.command(&Command::New);
        }
    }

    /// Dials `remote`; completes with [`MuxEvent::DialDone`].
    pub(super) fn dial(&mut self, remote: u32) -> DialKey {
        let key = DialKey(self.next_key);
        self.next_key += 1;
        self.waiting.push_back(IdPurpose::Dial { key, remote });
        self.request_ids();
        key
    }

    fn request_ids(&mut self) {
        while self.requested.len() < MAX_NEW && self.requested.len() + self.dialling.len() < MAX_DIALS {
            let Some(purpose) = self.waiting.pop_front() else { return };
            self.requested.push_back(purpose);
            self.command(&Command::New);
        }
    }

    /// Cancels a dial.
    pub(super) fn cancel_dial(&mut self, wanted: DialKey) {
        let is_it = |purpose: &IdPurpose| matches!(purpose, IdPurpose::Dial { key, .. } if *key == wanted);
        self.waiting.retain(|purpose| !is_it(purpose));
        if let Some(purpose) = self.requested.iter_mut().find(|purpose| is_it(purpose)) {
            *purpose = IdPurpose::Probe;
        }
        if let Some((conn, purpose)) = self.dialling.iter_mut().find(|(_, purpose)| is_it(purpose)) {
            *purpose = IdPurpose::Probe;
            let conn = *conn;
            self.command(&Command::Close(conn));
        }
    }

    /// Takes the oldest virtual connection of the backlog; returns its id and its remote end.
    pub(super) fn accept(&mut self) -> Option<(ConnId, u32)> {
        let conn = self.backlog.pop_front()?;
        self.connections.get(&conn).map(|connection| (conn, connection.remote))
    }

    /// Takes the oldest message.
    pub(super) fn take(&mut self, conn: ConnId) -> ReceiveOutcome {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return ReceiveOutcome::Closed(EndReason::Closed);
        };
        let Some(message) = connection.inbox.pop_front() else {
            return connection.end.map_or(ReceiveOutcome::Pending, ReceiveOutcome::Closed);
        };
        let len = HEADER_LEN + message.len();
        connection.inbox_bytes -= len;
        connection.taken += len;
        if self.credit && connection.end.is_none() && connection.taken >= self.limits.receive_bytes / 2 {
            let bytes = u32::try_from(std::mem::take(&mut connection.taken)).unwrap_or(u32::MAX);
            connection.granted += i64::from(bytes);
            self.command(&Command::Credit { conn, bytes });
        }
        if let Some((_, blocked)) = self.blocked.take_if(|(blocked, _)| *blocked == conn) {
            self.deliver(conn, blocked);
            self.events.push_back(MuxEvent::Resume);
        }
        ReceiveOutcome::Message(message)
    }

    /// Returns the bytes that a message may have. The packet limit includes the connection id.
    pub(super) fn max_message(&self) -> usize {
        self.limits.max_packet.saturating_sub(HEADER_LEN - 4)
    }

    /// Offers a message of `len` bytes, which is created only when there is space for it.
    pub(super) fn offer(&mut self, conn: ConnId, len: usize, message: impl FnOnce() -> Bytes) -> SendOutcome {
        if len > self.max_message() {
            return SendOutcome::TooLong;
        }
        let full =
            self.outbox.len() >= self.limits.send_messages || self.outbox_bytes >= self.limits.send_bytes;
        let Some(connection) = self.connections.get_mut(&conn).filter(|connection| connection.end.is_none())
        else {
            return SendOutcome::Closed;
        };
        if self.credit && connection.credit <= 0 {
            connection.waits_for_credit = true;
            return SendOutcome::Full;
        }
        if full {
            if !std::mem::replace(&mut connection.waits_for_outbox, true) {
                self.waiting_senders.push_back(conn);
            }
            return SendOutcome::Full;
        }
        connection.credit -= i64::try_from(HEADER_LEN + len).unwrap_or(i64::MAX);
        self.push(OutgoingFrame::data(conn, message()));
        SendOutcome::Queued
    }

    /// Releases a virtual connection. Its Close follows the messages that were sent before.
    pub(super) fn close(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.remove(&conn) else { return };
        self.incoming -= usize::from(connection.incoming);
        self.backlog.retain(|waits| *waits != conn);
        if connection.waits_for_outbox {
            self.waiting_senders.retain(|waits| *waits != conn);
        }
        if self.blocked.take_if(|(blocked, _)| *blocked == conn).is_some() {
            self.events.push_back(MuxEvent::Resume);
        }
        if connection.end.is_none() {
            self.command(&Command::Close(conn));
        }
    }

    /// Closes what waits in the backlog and accepts nothing more.
    pub(super) fn stop_accepting(&mut self) {
        self.limits.backlog = 0;
        for conn in std::mem::take(&mut self.backlog) {
            self.close(conn);
        }
    }

    /// Releases all virtual connections.
    pub(super) fn close_all(&mut self) {
        let all: HashSet<ConnId> = self.connections.keys().copied().collect();
        for conn in all {
            self.close(conn);
        }
    }

    fn command(&mut self, command: &Command<'_>) {
        self.push(OutgoingFrame::command(command));
    }

    fn push(&mut self, frame: OutgoingFrame) {
        if self.outbox.is_empty() {
            self.events.push_back(MuxEvent::Transmit);
        }
        self.outbox_bytes += frame.len();
        self.outbox.push_back(frame);
    }

    /// Takes the next frames to send.
    pub(super) fn poll_transmit(&mut self, batch: &mut Vec<OutgoingFrame>) {
        let mut bytes = 0;
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && let Some(frame) = self.outbox.pop_front()
        {
            bytes += frame.len();
            batch.push(frame);
        }
        self.outbox_bytes -= bytes;
        if self.outbox.len() < self.limits.send_messages && self.outbox_bytes < self.limits.send_bytes {
            for conn in self.waiting_senders.drain(..) {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.waits_for_outbox = false;
                    self.events.push_back(MuxEvent::Writable(conn));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
