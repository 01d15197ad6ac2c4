//! One endpoint's half of the wire: what the gateway says becomes virtual connections, messages and news; what the endpoint wants becomes
//! frames. Knows neither sockets nor time.
//!
//! An id comes in two steps, New and Open; then Dial asks for the remote. A gateway keeps few ids that were opened and not dialled, so the
//! next New waits for the Dial of an earlier one. An id that nobody here waits for any more is given back with Close, and remembered until the
//! gateway has let go of it: its Accept would otherwise look like a call from outside.

use super::error::Fault;
use crate::gateway::wire::{self, Command, ConnId, Frame, HEAD, MAX_COMMAND};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{HashMap, HashSet, VecDeque};

/// Ids asked for at a time; a gateway may close the oldest of those not dialled when there are more than 64.
const ASKED: usize = 32;
/// Dials without an answer at a time, those that were given up counted.
const DIALLING: usize = 1024;
/// Frames beyond the usual that wait to leave before the gateway counts as one that only asks and never reads.
const FLOOD: usize = 16_384;
/// Messages up to here are copied out of the read buffer, which they would otherwise keep alive.
const COPIED: usize = 4096;
/// Frames that leave at a time.
pub(super) const BATCH: usize = 256;
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 256 * 1024;

/// What an endpoint holds at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of a packet: connection and message.
    pub(super) max_packet: usize,
    /// Messages of one virtual connection that nobody has taken; without meaning where credit is given.
    pub(super) receive_messages: usize,
    /// Their bytes, heads counted; where credit is given, what is given.
    pub(super) receive_bytes: usize,
    /// Frames that have not left.
    pub(super) send_messages: usize,
    /// Their bytes.
    pub(super) send_bytes: usize,
    /// Virtual connections from outside that nobody has accepted.
    pub(super) backlog: usize,
    /// Virtual connections from outside, accepted or not.
    pub(super) incoming: usize,
}

/// A dial, until it has come to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DialKey(u64);

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The gateway has answered for the first time.
    Ready,
    /// There are frames to send.
    Transmit,
    /// There is something to take, or the end.
    Readable(ConnId),
    /// A message that was not taken may be offered again.
    Writable(ConnId),
    /// A virtual connection from outside waits in the backlog.
    Arrived,
    /// A dial has come to something; `None`: it was refused.
    Dialled(DialKey, Option<ConnId>),
    /// The message that was held has found its place; go on reading.
    Resume,
}

/// How a virtual connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By the other end, or by the gateway for it.
    Closed,
    /// Here, because what came was not taken.
    Overrun,
}

/// What taking a message brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// One.
    Message(Bytes),
    /// None yet.
    Nothing,
    /// There will be none.
    End(End),
}

/// What offering a message brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is on its way.
    Taken,
    /// Not now: [`Event::Writable`] says when.
    Full,
    /// Never: the virtual connection has ended.
    End,
    /// Never: it is longer than a packet.
    TooLong,
}

/// A frame that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    head: [u8; MAX_COMMAND],
    head_len: usize,
    body: Bytes,
}

impl Outgoing {
    fn command(command: &Command<'_>) -> Self {
        let mut whole = Vec::with_capacity(MAX_COMMAND);
        command.emit(&mut whole);
        let mut head = [0; MAX_COMMAND];
        match head.get_mut(..whole.len()) {
            Some(room) => {
                room.copy_from_slice(&whole);
                Self { head, head_len: whole.len(), body: Bytes::new() }
            }
            None => Self { head, head_len: 0, body: whole.into() },
        }
    }

    fn data(conn: ConnId, body: Bytes) -> Self {
        let mut head = [0; MAX_COMMAND];
        wire::head(&mut &mut head[..], conn, body.len());
        Self { head, head_len: HEAD, body }
    }

    /// The frame's bytes, in two pieces either of which may be empty.
    pub(super) fn pieces(&self) -> [&[u8]; 2] {
        [self.head.get(..self.head_len).unwrap_or_default(), &self.body]
    }

    /// Bytes of the whole frame.
    pub(super) fn len(&self) -> usize {
        self.head_len + self.body.len()
    }
}

/// Why an id was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Dial {
        key: DialKey,
        remote: u32,
    },
    /// Only for the answer, or for somebody who does not wait any more.
    Nothing,
}

/// One virtual connection.
#[derive(Debug, Default)]
struct Link {
    remote: u32,
    incoming: bool,
    inbox: VecDeque<Bytes>,
    inbox_bytes: usize,
    end: Option<End>,
    /// What may be sent, where the gateway gives credit.
    credit: i64,
    /// What the gateway may send, where it takes credit.
    granted: i64,
    /// What was taken and not granted again.
    taken: usize,
    /// A message was offered and not taken: for want of credit,
    wants: bool,
    /// or of room in the outbox.
    crowded: bool,
}

/// One endpoint's virtual connections.
#[derive(Debug)]
pub(super) struct Mux {
    limits: Limits,
    credit: bool,
    ready: bool,
    next_key: u64,
    waiting: VecDeque<Purpose>,
    asked: VecDeque<Purpose>,
    dialling: HashMap<ConnId, Purpose>,
    links: HashMap<ConnId, Link>,
    incoming: usize,
    backlog: VecDeque<ConnId>,
    /// What came for a virtual connection that has no room for it.
    held: Option<(ConnId, Bytes)>,
    outbox: VecDeque<Outgoing>,
    outbox_bytes: usize,
    /// Who has offered a message that found the outbox full.
    crowd: VecDeque<ConnId>,
    events: VecDeque<Event>,
}

impl Mux {
    /// Begins with the token, if there is one, and with a New: its answer shows that the gateway has let this endpoint in. `credit` says
    /// whether this is a door where command 7 is spoken.
    pub(super) fn new(limits: Limits, credit: bool, token: Option<&[u8]>) -> Self {
        let mut mux = Self {
            limits,
            credit,
            ready: false,
            next_key: 0,
            waiting: VecDeque::new(),
            asked: VecDeque::new(),
            dialling: HashMap::new(),
            links: HashMap::new(),
            incoming: 0,
            backlog: VecDeque::new(),
            held: None,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            crowd: VecDeque::new(),
            events: VecDeque::new(),
        };
        if let Some(token) = token {
            mux.command(&Command::Token(token));
        }
        mux.probe();
        mux
    }

    /// Takes the next piece of news; to be drained after every call that may bring some.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes whole frames off the front of what has come by a stream, until a message must be held. What is left is no whole frame; room
    /// for the rest of it has been reserved.
    pub(super) fn handle_bytes(&mut self, bytes: &mut BytesMut) -> Result<(), Fault> {
        while self.held.is_none() {
            let Some(length) = wire::frame_len(bytes, self.limits.max_packet)? else { break };
            if bytes.len() < length {
                bytes.reserve(length - bytes.len());
                break;
            }
            if length > COPIED {
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

    /// Takes one WebSocket message, which is exactly one frame.
    pub(super) fn handle_frame(&mut self, whole: Bytes) -> Result<(), Fault> {
        match wire::frame(&whole, self.limits.max_packet)? {
            Some((_, length)) if length != whole.len() => Err(Fault::Ragged),
            Some((Frame::Command(command), _)) => self.handle_command(command),
            Some((Frame::Data { conn, .. }, _)) => {
                self.handle_data(conn, whole.slice(HEAD..));
                Ok(())
            }
            None => Err(Fault::Ragged),
        }
    }

    fn handle_command(&mut self, command: Command<'_>) -> Result<(), Fault> {
        if self.outbox.len() > self.limits.send_messages + self.limits.incoming + FLOOD {
            return Err(Fault::Flood);
        }
        match command {
            Command::Ping => self.command(&Command::Ping),
            Command::Open(ConnId(0)) | Command::Accept { conn: ConnId(0), .. } => {
                return Err(Fault::Unexpected);
            }
            Command::Open(conn) => self.opened(conn),
            Command::Refuse(conn) => self.refused(conn),
            Command::Accept { conn, remote } => self.accepted(conn, remote),
            Command::Close(conn) => self.closed(conn),
            Command::Credit { conn, bytes } => self.credited(conn, bytes),
            Command::New | Command::Dial { .. } | Command::Token(_) => return Err(Fault::Unexpected),
        }
        Ok(())
    }

    fn opened(&mut self, conn: ConnId) {
        if !self.ready {
            self.ready = true;
            self.events.push_back(Event::Ready);
        }
        match self.asked.pop_front() {
            Some(purpose @ Purpose::Dial { remote, .. }) => {
                self.dialling.insert(conn, purpose);
                self.command(&Command::Dial { conn, remote });
            }
            // What nobody asked for is given back as well.
            Some(Purpose::Nothing) | None => self.command(&Command::Close(conn)),
        }
        self.ask();
    }

    fn refused(&mut self, conn: ConnId) {
        if let Some(Purpose::Dial { key, .. }) = self.dialling.remove(&conn) {
            self.events.push_back(Event::Dialled(key, None));
        }
        self.ask();
    }

    fn accepted(&mut self, conn: ConnId, remote: u32) {
        match self.dialling.get(&conn) {
            Some(Purpose::Nothing) => return,
            Some(Purpose::Dial { key, .. }) => {
                let key = *key;
                self.dialling.remove(&conn);
                self.link(conn, remote, false);
                self.events.push_back(Event::Dialled(key, Some(conn)));
                return self.ask();
            }
            None => {}
        }
        match self.links.get(&conn).map(|link| link.end) {
            Some(None) => {}
            Some(Some(_)) => self.command(&Command::Close(conn)),
            None if self.backlog.len() >= self.limits.backlog || self.incoming >= self.limits.incoming => {
                self.command(&Command::Close(conn));
            }
            None => {
                self.link(conn, remote, true);
                self.incoming += 1;
                self.backlog.push_back(conn);
                self.events.push_back(Event::Arrived);
            }
        }
    }

    fn link(&mut self, conn: ConnId, remote: u32, incoming: bool) {
        let window = u32::try_from(self.limits.receive_bytes).unwrap_or(u32::MAX);
        self.links.insert(conn, Link { remote, incoming, granted: i64::from(window), ..Link::default() });
        if self.credit {
            self.command(&Command::Credit { conn, bytes: window });
        }
    }

    fn closed(&mut self, conn: ConnId) {
        self.refused(conn);
        if let Some(link) = self.links.get_mut(&conn)
            && link.end.is_none()
        {
            link.end = Some(End::Closed);
            self.ended(conn);
        }
    }

    fn ended(&mut self, conn: ConnId) {
        self.events.extend([Event::Readable(conn), Event::Writable(conn)]);
    }

    fn credited(&mut self, conn: ConnId, bytes: u32) {
        let Some(link) = self.links.get_mut(&conn).filter(|_| self.credit) else { return };
        link.credit = link.credit.saturating_add(i64::from(bytes));
        if link.credit > 0 && std::mem::take(&mut link.wants) {
            self.events.push_back(Event::Writable(conn));
        }
    }

    /// Data of an id that was closed here a moment ago is nobody's fault.
    fn handle_data(&mut self, conn: ConnId, message: Bytes) {
        let Some(link) = self.links.get_mut(&conn).filter(|link| link.end.is_none()) else { return };
        let len = HEAD + message.len();
        if self.credit {
            if link.granted <= 0 {
                return self.overrun(conn);
            }
            link.granted -= i64::try_from(len).unwrap_or(i64::MAX);
        } else if link.inbox.len() >= self.limits.receive_messages
            || link.inbox_bytes >= self.limits.receive_bytes
        {
            self.held = Some((conn, message));
            return;
        }
        self.put(conn, message);
    }

    fn put(&mut self, conn: ConnId, message: Bytes) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        link.inbox_bytes += HEAD + message.len();
        link.inbox.push_back(message);
        if link.inbox.len() == 1 {
            self.events.push_back(Event::Readable(conn));
        }
    }

    /// Whose message is held, if any is: nothing more is to be read until [`Event::Resume`].
    pub(super) fn held(&self) -> Option<ConnId> {
        self.held.as_ref().map(|(conn, _)| *conn)
    }

    /// Closes the virtual connection whose message has been held for long enough.
    pub(super) fn give_up_held(&mut self) {
        if let Some((conn, _)) = self.held.take() {
            self.overrun(conn);
        }
    }

    fn overrun(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.end = Some(End::Overrun);
            self.command(&Command::Close(conn));
            self.ended(conn);
        }
    }

    /// Asks the gateway for an answer.
    pub(super) fn probe(&mut self) {
        if self.asked.len() < ASKED {
            self.asked.push_back(Purpose::Nothing);
            self.command(&Command::New);
        }
    }

    /// Wants a virtual connection to `remote`; [`Event::Dialled`] tells what came of it.
    pub(super) fn dial(&mut self, remote: u32) -> DialKey {
        let key = DialKey(self.next_key);
        self.next_key += 1;
        self.waiting.push_back(Purpose::Dial { key, remote });
        self.ask();
        key
    }

    fn ask(&mut self) {
        while self.asked.len() < ASKED && self.asked.len() + self.dialling.len() < DIALLING {
            let Some(purpose) = self.waiting.pop_front() else { return };
            self.asked.push_back(purpose);
            self.command(&Command::New);
        }
    }

    /// Wants it no more.
    pub(super) fn abandon(&mut self, wanted: DialKey) {
        let is_it = |purpose: &Purpose| matches!(purpose, Purpose::Dial { key, .. } if *key == wanted);
        self.waiting.retain(|purpose| !is_it(purpose));
        if let Some(purpose) = self.asked.iter_mut().find(|purpose| is_it(purpose)) {
            *purpose = Purpose::Nothing;
        }
        if let Some((conn, purpose)) = self.dialling.iter_mut().find(|(_, purpose)| is_it(purpose)) {
            *purpose = Purpose::Nothing;
            let conn = *conn;
            self.command(&Command::Close(conn));
        }
    }

    /// Takes the oldest virtual connection of the backlog, and who is at its other end.
    pub(super) fn accept(&mut self) -> Option<(ConnId, u32)> {
        let conn = self.backlog.pop_front()?;
        self.links.get(&conn).map(|link| (conn, link.remote))
    }

    /// Takes the oldest message that has come.
    pub(super) fn take(&mut self, conn: ConnId) -> Taken {
        let Some(link) = self.links.get_mut(&conn) else { return Taken::End(End::Closed) };
        let Some(message) = link.inbox.pop_front() else {
            return link.end.map_or(Taken::Nothing, Taken::End);
        };
        let len = HEAD + message.len();
        link.inbox_bytes -= len;
        link.taken += len;
        if self.credit && link.end.is_none() && link.taken >= self.limits.receive_bytes / 2 {
            let bytes = u32::try_from(std::mem::take(&mut link.taken)).unwrap_or(u32::MAX);
            link.granted += i64::from(bytes);
            self.command(&Command::Credit { conn, bytes });
        }
        if let Some((_, held)) = self.held.take_if(|(held, _)| *held == conn) {
            self.put(conn, held);
            self.events.push_back(Event::Resume);
        }
        Taken::Message(message)
    }

    /// Bytes that a message may have. The packet's limit counts the connection's four bytes too (section 3.1: the reference forgets them
    /// where it sends, and so loses the whole connection by a message that is at most four bytes too long).
    pub(super) fn max_message(&self) -> usize {
        self.limits.max_packet.saturating_sub(HEAD - 4)
    }

    /// Offers a message of `len` bytes to the other end; it is made only when there is room for it.
    pub(super) fn offer(&mut self, conn: ConnId, len: usize, message: impl FnOnce() -> Bytes) -> Offered {
        if len > self.max_message() {
            return Offered::TooLong;
        }
        let full =
            self.outbox.len() >= self.limits.send_messages || self.outbox_bytes >= self.limits.send_bytes;
        let Some(link) = self.links.get_mut(&conn).filter(|link| link.end.is_none()) else {
            return Offered::End;
        };
        if self.credit && link.credit <= 0 {
            link.wants = true;
            return Offered::Full;
        }
        if full {
            if !std::mem::replace(&mut link.crowded, true) {
                self.crowd.push_back(conn);
            }
            return Offered::Full;
        }
        link.credit -= i64::try_from(HEAD + len).unwrap_or(i64::MAX);
        self.push(Outgoing::data(conn, message()));
        Offered::Taken
    }

    /// Lets go of a virtual connection; the other end is told, after what was sent before.
    pub(super) fn close(&mut self, conn: ConnId) {
        let Some(link) = self.links.remove(&conn) else { return };
        self.incoming -= usize::from(link.incoming);
        self.backlog.retain(|waits| *waits != conn);
        if link.crowded {
            self.crowd.retain(|waits| *waits != conn);
        }
        if self.held.take_if(|(held, _)| *held == conn).is_some() {
            self.events.push_back(Event::Resume);
        }
        if link.end.is_none() {
            self.command(&Command::Close(conn));
        }
    }

    /// Lets go of what waits in the backlog, and takes nothing into it any more.
    pub(super) fn deafen(&mut self) {
        self.limits.backlog = 0;
        for conn in std::mem::take(&mut self.backlog) {
            self.close(conn);
        }
    }

    /// Lets go of all.
    pub(super) fn close_all(&mut self) {
        let all: HashSet<ConnId> = self.links.keys().copied().collect();
        for conn in all {
            self.close(conn);
        }
    }

    fn command(&mut self, command: &Command<'_>) {
        self.push(Outgoing::command(command));
    }

    fn push(&mut self, frame: Outgoing) {
        if self.outbox.is_empty() {
            self.events.push_back(Event::Transmit);
        }
        self.outbox_bytes += frame.len();
        self.outbox.push_back(frame);
    }

    /// Takes what leaves next; nothing where there is nothing.
    pub(super) fn poll_transmit(&mut self, batch: &mut Vec<Outgoing>) {
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
            for conn in self.crowd.drain(..) {
                if let Some(link) = self.links.get_mut(&conn) {
                    link.crowded = false;
                    self.events.push_back(Event::Writable(conn));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
