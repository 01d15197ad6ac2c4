//! All connections of a load, and the exchange of messages over them.

use super::connection::LoadConnection;
use super::flows::{Blocked, FlowLimits, FlowTable, MessageCounts};
use super::message::{MessageStamp, MessageTemplate, ReceivedFrame};
use super::virtual_connections::{ConnectionChange, LoadSize, Party, VirtualConnections};
use super::{GatewayLoad, HandshakeKind, MessageDirection, Middlebox};
use crate::gateway::token::GatewayToken;
use crate::gateway::wire::Command;
use crate::net::time;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const EVENTS: usize = 1024;
/// Bytes per read call, and read calls per connection and iteration.
const READ: usize = 256 * 1024;
const READS: usize = 4;
/// Bytes per write call; the last message may exceed it.
const WRITE: usize = 64 * 1024;
/// Bytes sent to a client that does not read: more than the gateway queues.
const NON_READING_BYTES: u32 = 2 * 1024 * 1024;

/// Connections and virtual connections that ended early.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Disconnects {
    /// Refused dials.
    pub(super) refused: u64,
    pub(super) closed: u64,
    pub(super) closed_non_reading: u64,
    pub(super) dropped: u64,
    pub(super) dropped_non_reading: u64,
}

/// Connections and their messages.
#[derive(Debug)]
pub(super) struct Exchange {
    size: LoadSize,
    pub(super) virtual_connections: VirtualConnections,
    pub(super) flows: FlowTable,
    template: MessageTemplate,
    poll: Poll,
    events: Events,
    /// Servers, then clients.
    connections: Vec<LoadConnection>,
    /// By flow: whether it is in its connection's queue.
    queued: Vec<bool>,
    /// Connections that are queued to write: clients, and servers.
    turns: [VecDeque<u32>; 2],
    /// Bytes sent by clients and by servers, so that both directions get the same share.
    begun: [u64; 2],
    /// Connections with commands to send.
    commanded: Vec<u32>,
    /// Connections that have more to read.
    unread: Vec<u32>,
    /// Flows that may continue after a read.
    unblocked: Vec<u32>,
    read_buffer: Box<[u8]>,
    scratch: Vec<u8>,
    gone: Disconnects,
    is_sending: bool,
    began: Instant,
}

impl Exchange {
    pub(super) fn new(what: &GatewayLoad) -> io::Result<Self> {
        let size = what.size();
        let (first_id, has_credit) = match &what.middlebox {
            Middlebox::Gateway { first_id, handshake, .. } => (*first_id, *handshake == HandshakeKind::Hmac),
            Middlebox::Proxy(_) => (1, false),
        };
        let mut virtual_connections = VirtualConnections::new(size, first_id, has_credit);
        if matches!(what.middlebox, Middlebox::Proxy(_)) {
            virtual_connections.open_all();
        }
        let messages = what.messages.unwrap_or(u64::MAX);
        let limits =
            FlowLimits { flow: what.window, non_reading: NON_READING_BYTES, all: what.in_flight, messages };
        Ok(Self {
            size,
            virtual_connections,
            flows: FlowTable::new(what.sizes.clone(), limits, (size.clients, size.each), what.non_reading),
            template: MessageTemplate::new(ChaCha20Rng::from_os_rng().random()),
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            connections: Vec::new(),
            queued: vec![false; 2 * size.virtual_connections()],
            turns: [VecDeque::new(), VecDeque::new()],
            begun: [0; 2],
            commanded: Vec::new(),
            unread: Vec::new(),
            unblocked: Vec::new(),
            read_buffer: vec![0; READ].into(),
            scratch: Vec::new(),
            gone: Disconnects::default(),
            is_sending: false,
            began: time::mono(),
        })
    }

    /// Adds a server that has registered. All servers are added before the clients.
    pub(super) fn add_server(&mut self, socket: TcpStream) -> io::Result<()> {
        let index = self.connections.len();
        self.add(index, socket)
    }

    /// Adds a client, which requests its virtual connections.
    pub(super) fn add_client(
        &mut self,
        number: usize,
        socket: TcpStream,
        token: Option<&GatewayToken>,
    ) -> io::Result<()> {
        let index = self.size.servers + number;
        self.add(index, socket)?;
        if let Some(token) = token {
            self.send_command(index, Command::Token(&token.0));
        }
        (0..self.size.each).for_each(|_| self.send_command(index, Command::New));
        Ok(())
    }

    /// Adds a client and the server that a proxy has connected it to.
    pub(super) fn pair(&mut self, client: TcpStream, server: TcpStream) -> io::Result<()> {
        // Pairs arrive one after the other; connections are ordered servers first once all have arrived.
        for socket in [server, client] {
            socket.set_nonblocking(true)?;
            self.connections.push(LoadConnection::new(socket));
        }
        if self.connections.len() < 2 * self.size.clients {
            return Ok(());
        }
        let pairs = std::mem::take(&mut self.connections).into_iter().enumerate();
        let (servers, clients): (Vec<_>, Vec<_>) = pairs.partition(|(index, _)| index % 2 == 0);
        for (index, (_, connection)) in servers.into_iter().chain(clients).enumerate() {
            self.register(index, &connection)?;
            self.connections.push(connection);
        }
        Ok(())
    }

    fn add(&mut self, index: usize, socket: TcpStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let connection = LoadConnection::new(socket);
        self.register(index, &connection)?;
        self.connections.push(connection);
        Ok(())
    }

    fn register(&self, index: usize, connection: &LoadConnection) -> io::Result<()> {
        let Some(descriptor) = connection.socket().map(AsRawFd::as_raw_fd) else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&descriptor), Token(index), interest)
    }

    /// Starts to send; some clients stop reading.
    pub(super) fn start(&mut self, what: &GatewayLoad) {
        self.is_sending = true;
        for client in 0..self.size.clients {
            self.connections[self.size.servers + client].is_non_reading = self.flows.is_non_reading(client);
        }
        let flows = 0..self.queued.len() as u32;
        let is_used = |flow: &u32| match what.direction {
            MessageDirection::Up => flow.is_multiple_of(2),
            MessageDirection::Down => flow % 2 == 1,
            MessageDirection::Both => true,
        };
        flows.filter(is_used).for_each(|flow| self.wake(flow));
    }

    /// Returns how many connections and virtual connections of reading clients have ended.
    pub(super) fn gone(&self) -> u64 {
        self.gone.closed + self.gone.dropped
    }

    /// Counts lost messages and returns all counts.
    pub(super) fn finish(&mut self) -> (MessageCounts, Disconnects) {
        self.flows.finish();
        self.gone.refused = self.virtual_connections.refused;
        (self.flows.counts, self.gone)
    }

    /// Waits at most `wait` for events, receives, and sends.
    pub(super) fn poll_once(&mut self, wait: Duration) -> io::Result<()> {
        let is_busy = !self.unread.is_empty()
            || (self.turns.iter().any(|turns| !turns.is_empty()) && !self.flows.is_full());
        let wait = if is_busy { Duration::ZERO } else { wait };
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, Some(wait));
        for index in std::mem::take(&mut self.unread) {
            self.receive(index as usize);
        }
        events.iter().for_each(|event| self.handle_event(event));
        self.events = events;
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for index in std::mem::take(&mut self.commanded) {
            self.flush(index as usize);
        }
        self.send();
        Ok(())
    }

    fn handle_event(&mut self, event: &Event) {
        let index = event.token().0;
        if event.is_writable() {
            self.connections[index].is_blocked = false;
            self.queue_write(index);
        }
        if event.is_error() || event.is_write_closed() {
            self.drop_connection(index);
        } else if event.is_readable() {
            self.receive(index);
        }
    }

    fn receive(&mut self, index: usize) {
        let end = self.end(index);
        for _ in 0..READS {
            let connection = &mut self.connections[index];
            if connection.is_non_reading {
                return;
            }
            let read = match connection.read(&mut self.read_buffer) {
                Ok(Some(read)) => read,
                Ok(None) => return,
                Err(_) => return self.drop_connection(index),
            };
            let now = self.began.elapsed_ns();
            let mut reader = std::mem::take(&mut connection.reader);
            let mut receivers = Receivers {
                virtual_connections: &mut self.virtual_connections,
                flows: &mut self.flows,
                unblocked: &mut self.unblocked,
            };
            let (mut answers, mut closed) = (Vec::new(), Vec::new());
            let result = reader.read(&self.template, &self.read_buffer[..read], &mut |frame| {
                let (change, answer) = receivers.handle(end, frame, now);
                answers.extend(answer);
                closed.extend(change);
            });
            self.connections[index].reader = reader;
            answers.into_iter().for_each(|command| self.send_command(index, command));
            closed.into_iter().for_each(|number| self.count_closed(number));
            while let Some(flow) = self.unblocked.pop() {
                self.wake(flow);
            }
            if result.is_err() {
                return self.drop_connection(index);
            }
        }
        self.unread.push(index as u32);
    }

    fn end(&self, index: usize) -> Party {
        match index.checked_sub(self.size.servers) {
            Some(client) => Party::Client(client),
            None => Party::Server(index),
        }
    }

    fn send_command(&mut self, index: usize, command: Command<'_>) {
        let connection = &mut self.connections[index];
        if connection.commands.is_empty() {
            self.commanded.push(index as u32);
        }
        command.emit(&mut connection.commands);
    }

    fn count_closed(&mut self, number: u32) {
        match self.flows.is_non_reading(self.virtual_connections.client_of(number)) {
            true => self.gone.closed_non_reading += 1,
            false => self.gone.closed += 1,
        }
        self.flows.close(number);
    }

    fn drop_connection(&mut self, index: usize) {
        if !self.connections[index].is_open() {
            return;
        }
        self.connections[index].close();
        let end = self.end(index);
        match end {
            Party::Client(client) if self.flows.is_non_reading(client) => self.gone.dropped_non_reading += 1,
            _ => self.gone.dropped += 1,
        }
        self.virtual_connections.gone(end).into_iter().for_each(|number| self.count_closed(number));
    }

    /// Queues a flow that may send.
    fn wake(&mut self, flow: u32) {
        if !self.is_sending || self.queued[flow as usize] {
            return;
        }
        let index = match flow % 2 {
            0 => self.size.servers + self.virtual_connections.client_of(flow / 2),
            _ => self.virtual_connections.server_of(flow / 2),
        };
        if self.connections[index].is_open() {
            self.queued[flow as usize] = true;
            let is_to_non_reader = self.flows.is_to_non_reader(flow);
            self.connections[index].make_ready(flow, is_to_non_reader);
            self.queue_write(index);
        }
    }

    fn queue_write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.is_queued && !connection.is_blocked && (connection.has_tail() || connection.is_ready())
        {
            connection.is_queued = true;
            self.turns[usize::from(index < self.size.servers)].push_back(index as u32);
        }
    }

    /// Sends commands, which do not count against a window.
    fn flush(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let commands = std::mem::take(&mut connection.commands);
        if connection.write(&commands).is_err() {
            self.drop_connection(index);
        }
    }

    /// Writes once to every connection that is queued.
    fn send(&mut self) {
        for _ in 0..self.turns.iter().map(VecDeque::len).sum() {
            let side = usize::from(self.begun[1] < self.begun[0]);
            let side = if self.turns[side].is_empty() { 1 - side } else { side };
            let Some(index) = self.turns[side].pop_front() else { return };
            let connection = &mut self.connections[index as usize];
            if connection.is_blocked || !connection.is_open() {
                connection.is_queued = false;
                continue;
            }
            let ready = connection.write_tail();
            let filled = if matches!(ready, Ok(true)) { self.fill(index as usize) } else { Ok(()) };
            let connection = &mut self.connections[index as usize];
            let written = match ready {
                Ok(true) => connection.write(&self.scratch),
                other => other.map(drop),
            };
            connection.is_queued = false;
            if written.is_err() {
                self.drop_connection(index as usize);
            } else if filled == Err(Blocked::All) {
                connection.is_queued = true;
                self.turns[side].push_front(index);
                return;
            } else {
                self.queue_write(index as usize);
            }
        }
    }

    /// Creates the next messages of a connection in `scratch`.
    fn fill(&mut self, index: usize) -> Result<(), Blocked> {
        self.scratch.clear();
        let at = self.began.elapsed_ns();
        let connection = &mut self.connections[index];
        while self.scratch.len() < WRITE {
            let Some(flow) = connection.next_ready() else { return Ok(()) };
            let number = flow / 2;
            let is_down = flow % 2 == 1;
            if is_down && !self.virtual_connections.may_send(number) {
                self.queued[flow as usize] = false;
                continue;
            }
            match self.flows.begin(flow) {
                Ok((nth, len)) => {
                    self.template.emit(
                        self.virtual_connections.conn(number),
                        MessageStamp { flow, number: nth, at },
                        len,
                        &mut self.scratch,
                    );
                    self.begun[usize::from(is_down)] += u64::from(len);
                    if is_down {
                        self.virtual_connections.spend(number, len);
                    }
                    connection.make_ready(flow, self.flows.is_to_non_reader(flow));
                }
                Err(Blocked::All) => {
                    connection.put_back(flow);
                    return Err(Blocked::All);
                }
                Err(Blocked::Flow | Blocked::Over) => self.queued[flow as usize] = false,
            }
        }
        Ok(())
    }
}

/// The state that received frames change.
struct Receivers<'a> {
    virtual_connections: &'a mut VirtualConnections,
    flows: &'a mut FlowTable,
    unblocked: &'a mut Vec<u32>,
}

impl Receivers<'_> {
    /// Handles a frame; returns the virtual connection that was closed, and the answer to the gateway.
    fn handle(
        &mut self,
        end: Party,
        frame: ReceivedFrame<'_>,
        now: u64,
    ) -> (Option<u32>, Option<Command<'static>>) {
        let (conn, stamp, len, is_whole) = match frame {
            ReceivedFrame::Command(command) => {
                let (change, answer) = self.virtual_connections.handle(end, command);
                let closed = match change {
                    Some(ConnectionChange::Closed(number)) => Some(number),
                    Some(ConnectionChange::Credit(number)) => {
                        self.unblocked.push(2 * number + 1);
                        None
                    }
                    Some(ConnectionChange::Up(_)) | None => None,
                };
                return (closed, answer);
            }
            ReceivedFrame::Message { conn, stamp, len, is_whole } => (conn, stamp, len, is_whole),
        };
        // The sender is the other end.
        let from = u32::from(matches!(end, Party::Client(_)));
        let number = stamp
            .map(|stamp| stamp.flow / 2)
            .filter(|number| self.virtual_connections.is_of(*number, conn, end));
        let Some(number) = number else {
            self.flows.counts.misdelivered += 1;
            return (None, None);
        };
        let flow = 2 * number + from;
        self.flows.arrived(flow, stamp, (len, is_whole), now);
        self.unblocked.push(flow);
        (None, if from == 0 { self.virtual_connections.taken(number, len) } else { None })
    }
}

trait ElapsedNanos {
    fn elapsed_ns(&self) -> u64;
}

impl ElapsedNanos for Instant {
    fn elapsed_ns(&self) -> u64 {
        u64::try_from((time::mono() - *self).as_nanos()).unwrap_or(u64::MAX)
    }
}
