//! The hands of the data plane: one thread per core that owns its sockets, its relay and its timers. Decides nothing.
//!
//! Run loop: wait for sockets or the relay's next deadline, read the clock once, take one batch from every socket that has
//! something, carry out what the relay says, begin again. A socket with more to give than one batch waits for its next turn, so
//! that no peer can starve the others.

use super::auth_hook::Lookups;
use super::crossing::Crossing;
use super::departures::{self, Departure, Exit};
use super::doorbell::Doorbell;
use super::dtls::{self, Dtls};
use super::inbox::{Inbox, ToWorker};
use super::legs::{Legs, Ways};
use super::neighbours::{Inboxes, Neighbours};
use super::tcp_leg::{self, TcpLegs};
use super::tcp_relay::{PeerStreams, TcpRelay};
use crate::clock::Now;
use crate::net::demux::{self, DatagramKind};
use crate::net::gate::Gate;
use crate::net::time;
use crate::net::udp::{Datagram, RecvBatch, Role, Route, UdpPort};
use crate::signaling::{Door, Handle};
use crate::stun::Message;
use crate::stun_server::{self, Discovery};
use crate::turn_server::auth::Question;
use crate::turn_server::data::PeerError;
use crate::turn_server::machine::{Marks, Onward, Output, Relay, ToClient, ToPeer};
use crate::turn_server::wire::Header;
use crate::turn_server::{FiveTuple, RelayId, Transport};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::mpsc;

/// The inbox's token; doors and relay sockets count from zero.
const INBOX: Token = Token(usize::MAX);

/// Streams with something to read, and parcels of other workers: no events of theirs.
const STREAMS: Token = Token(usize::MAX - 1);
const PARCELS: Token = Token(usize::MAX - 2);

/// Messages taken from the inbox before the sockets have their turn again.
const INBOX_TURN: usize = 128;

/// How one turn of a socket or the inbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing is left.
    Empty,
    /// There may be more.
    More,
    /// The worker is to end.
    Stop,
}

/// One listening socket of a worker.
#[derive(Debug)]
pub(super) struct DoorSocket {
    pub(super) port: UdpPort,
    pub(super) door: Door,
    /// Whether everything but DTLS is dropped.
    pub(super) dtls_only: bool,
}

/// What a worker begins with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) doors: Vec<DoorSocket>,
    /// Handles on other workers' doors, for answers that leave by another port than the question came by.
    pub(super) elsewhere: Vec<UdpPort>,
    pub(super) discovery: Discovery,
    pub(super) gate: Gate,
    pub(super) relay: Relay,
    pub(super) dtls: Dtls,
    pub(super) signaling: Handle,
    pub(super) lookups: Lookups,
    /// Which worker it is, and every worker's inbox.
    pub(super) number: u16,
    pub(super) inboxes: Inboxes,
    pub(super) peer_streams: PeerStreams,
    pub(super) dropped: Arc<AtomicU64>,
}

/// One worker thread's belongings.
#[derive(Debug)]
pub(super) struct Worker {
    poll: Poll,
    inbox: mpsc::Receiver<ToWorker>,
    bell: Arc<Doorbell>,
    pub(super) legs: Legs,
    pub(super) crossing: Crossing,
    pub(super) relay: Relay,
    relay_sockets: HashMap<RelayId, UdpPort>,
    discovery: Discovery,
    gate: Gate,
    signaling: Handle,
    lookups: Lookups,
    tcp: TcpRelay,
    ready: VecDeque<Token>,
    departures: Vec<Departure>,
    scratch: Vec<u8>,
}

impl Worker {
    /// Registers the doors; returns the worker and the way to reach it.
    pub(super) fn new(parts: Parts) -> io::Result<(Self, Inbox)> {
        let poll = Poll::new()?;
        for (index, door) in parts.doors.iter().enumerate() {
            watch(&poll, &door.port, Token(index))?;
        }
        let (inbox, receiver) = Inbox::new(mio::Waker::new(poll.registry(), INBOX)?);
        let runtime = tokio::runtime::Handle::current();
        let ways = Ways {
            doors: parts.doors,
            elsewhere: parts.elsewhere,
            dtls: parts.dtls,
            tcp: TcpLegs::new(poll.registry().try_clone()?, runtime.clone()),
            neighbours: Neighbours::new(parts.number, Arc::clone(&parts.inboxes)),
        };
        let worker = Self {
            poll,
            inbox: receiver,
            bell: Arc::clone(inbox.bell()),
            legs: Legs::new(ways, parts.dropped),
            crossing: Crossing::new(parts.number, Arc::clone(inbox.mailbox()), parts.inboxes),
            relay: parts.relay,
            relay_sockets: HashMap::new(),
            discovery: parts.discovery,
            gate: parts.gate,
            signaling: parts.signaling,
            lookups: parts.lookups,
            tcp: TcpRelay::new(parts.peer_streams, inbox.clone(), runtime),
            ready: VecDeque::new(),
            departures: Vec::new(),
            scratch: Vec::new(),
        };
        Ok((worker, inbox))
    }

    /// Runs until the inbox says stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut batch = RecvBatch::default();
        loop {
            let deadlines =
                [self.relay.poll_timeout(), self.legs.dtls.poll_timeout(), self.legs.tcp.poll_timeout()];
            let wait = match deadlines.into_iter().flatten().min() {
                _ if !self.may_sleep() => Some(std::time::Duration::ZERO),
                deadline => deadline.map(|at| at.saturating_duration_since(time::now().mono)),
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            self.bell.awake();
            let now = time::now();
            for event in &events {
                match tcp_leg::slot(event.token()) {
                    Some(slot) => self.legs.tcp.note(slot, event),
                    None => self.call(event.token(), true),
                }
            }
            // Nobody reports these to a worker that is awake.
            self.call(INBOX, !self.inbox.is_empty());
            self.call(STREAMS, self.legs.tcp.has_news());
            self.call(PARCELS, !self.crossing.is_empty());
            for _ in 0..self.ready.len() {
                let Some(token) = self.ready.pop_front() else { break };
                let turn = match token {
                    INBOX => self.take_inbox(now, &mut batch),
                    STREAMS => self.take_streams(now, &mut batch),
                    PARCELS => self.take_parcels(now, &mut batch),
                    _ => self.take_batch(now, token, &mut batch),
                };
                match turn {
                    Turn::More => self.ready.push_back(token),
                    Turn::Empty => {}
                    Turn::Stop => {
                        self.report();
                        return Ok(());
                    }
                }
            }
            self.relay.handle_timeout(now);
            self.legs.dtls.handle_timeout(now);
            self.carry_out(now, 0);
            self.end_pass(now);
        }
    }

    /// Says whether nothing waits; whatever comes from now on ends the wait for events.
    fn may_sleep(&self) -> bool {
        self.ready.is_empty()
            && !self.legs.tcp.has_news()
            && self.bell.may_sleep(|| self.inbox.is_empty() && self.crossing.is_empty())
    }

    /// Gives a token its turn in this pass, if it has something.
    fn call(&mut self, token: Token, has_something: bool) {
        if has_something && !self.ready.contains(&token) {
            self.ready.push_back(token);
        }
    }

    /// Takes at most [`INBOX_TURN`] messages, so that streams that never pause do not keep datagrams waiting.
    fn take_inbox(&mut self, now: Now, batch: &mut RecvBatch) -> Turn {
        for _ in 0..INBOX_TURN {
            let Ok(message) = self.inbox.try_recv() else { return Turn::Empty };
            match message {
                ToWorker::Arrived(arrival) => {
                    let client = arrival.client;
                    if self.legs.adopt(now.mono, *arrival) {
                        self.relay.handle_client_gone(client);
                    }
                }
                ToWorker::Opened { client, leg } => {
                    if self.legs.open(now.mono, client, leg) {
                        self.relay.handle_client_gone(client);
                    }
                }
                ToWorker::Frames { client, run } => self.hear_run(now, client, &run, batch),
                ToWorker::Gone { client, link } => {
                    self.legs.neighbours.gone(client);
                    if self.legs.forget_task(client, link) {
                        self.relay.handle_client_gone(client);
                    }
                }
                ToWorker::LookedUp { question, answered } => {
                    self.relay.handle_lookup_done(now, &question, answered);
                }
                ToWorker::Guest { client, host, bytes } => {
                    self.legs.neighbours.welcome(client, host);
                    self.hear_frame(now, client, &bytes);
                }
                ToWorker::GuestGone { client } => self.relay.handle_client_gone(client),
                ToWorker::Back { client, bytes } => self.legs.send(client, &bytes),
                ToWorker::Left { client } => self.legs.neighbours.forget(client),
                ToWorker::Accepted { relay, peer, stream } => {
                    if let Some(connection) = self.relay.handle_accepted(now, relay, peer) {
                        self.tcp.hold(connection, stream);
                    }
                }
                ToWorker::Connected { connection, well } => {
                    self.relay.handle_connected(now, connection, well)
                }
                ToWorker::ConnectionClosed { connection } => self.relay.handle_connection_closed(connection),
                ToWorker::Stop => return Turn::Stop,
            }
            self.carry_out(now, 0);
        }
        Turn::More
    }

    /// Takes one batch from a socket.
    fn take_batch(&mut self, now: Now, token: Token, batch: &mut RecvBatch) -> Turn {
        let door = token.0 < self.legs.doors.len();
        let received = if door {
            self.legs.doors[token.0].port.recv(batch)
        } else {
            match self.relay_sockets.get(&(token.0 - self.legs.doors.len())) {
                Some(socket) => {
                    let received = socket.recv(batch);
                    self.hear_errors(now, token.0 - self.legs.doors.len());
                    received
                }
                None => return Turn::Empty,
            }
        };
        match received {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Empty,
            Err(error) => {
                tracing::debug!(%error, "receive");
                return Turn::More;
            }
        }
        for datagram in batch.datagrams() {
            if door {
                self.hear_door(now, token.0, datagram, batch);
            } else {
                let relay = token.0 - self.legs.doors.len();
                let Datagram { from, payload, .. } = datagram;
                let forward = self.relay.handle_peer(now, relay, from, marks(&datagram), payload);
                if let Some(forward) = forward {
                    self.pass_to_client(&forward, Some(batch));
                }
            }
            if self.relay.has_output() {
                // What is said now may close sockets that the datagrams before are to leave by.
                self.depart(batch);
            }
            self.carry_out(now, datagram.payload.len());
        }
        self.depart(batch);
        if batch.is_drained() { Turn::Empty } else { Turn::More }
    }

    /// Tells clients of the ICMP errors that their peers' datagrams have met.
    fn hear_errors(&mut self, now: Now, relay: RelayId) {
        let mut errors = Vec::new();
        if let Some(socket) = self.relay_sockets.get(&relay) {
            socket.take_errors(|error| errors.push(error));
        }
        for error in errors {
            let error = PeerError {
                peer: error.peer,
                kind: error.icmp_type,
                code: error.icmp_code,
                data: error.data,
            };
            if let Some(forward) = self.relay.handle_peer_error(now, relay, error) {
                self.pass_to_client(&forward, None);
            }
        }
    }

    fn hear_door(&mut self, now: Now, index: usize, datagram: Datagram<'_>, batch: &RecvBatch) {
        let DoorSocket { port, door, dtls_only } = &self.legs.doors[index];
        let local = port.local_addr();
        let server = SocketAddr::new(datagram.local_ip.unwrap_or(local.ip()), local.port());
        let tuple = FiveTuple { client: datagram.from, server, transport: Transport::Udp };
        let kind = demux::datagram(datagram.payload);
        if *dtls_only && kind != DatagramKind::Dtls {
            self.legs.note_dropped();
            return;
        }
        match (kind, *door) {
            (DatagramKind::Dtls, Door::Main) => {
                if !self.legs.dtls.handle_datagram(now, (datagram.from, server), datagram.payload) {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Signaling, Door::Main)
                if self.relay.is_channel_data(now, tuple, datagram.payload) =>
            {
                self.hear_client(now, tuple, marks(&datagram), datagram.payload, Some(batch));
            }
            (DatagramKind::Signaling, door) => {
                if !self.signaling.datagram(door, datagram.from, datagram.local_ip, datagram.payload) {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Stun, Door::Aux) => {
                let bound = Message::parse(datagram.payload)
                    .is_ok_and(|m| self.bind(now, tuple, &m, datagram.payload));
                if !bound {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Stun | DatagramKind::ChannelData, Door::Main) => {
                self.hear_client(now, tuple, marks(&datagram), datagram.payload, Some(batch));
            }
            _ => self.legs.note_dropped(),
        }
    }

    /// Hears a frame that came by no socket of this worker, or out of DTLS.
    fn hear_frame(&mut self, now: Now, client: FiveTuple, bytes: &[u8]) {
        self.hear_client(now, client, Marks::default(), bytes, None);
    }

    /// Hears a frame; one that lies in `batch` is relayed at the end of it.
    pub(super) fn hear_client(
        &mut self,
        now: Now,
        client: FiveTuple,
        marks: Marks,
        bytes: &[u8],
        batch: Option<&RecvBatch>,
    ) {
        if let Some(passed) = self.legs.neighbours.pass_on(client, bytes) {
            if !passed {
                self.legs.note_dropped();
            }
            return;
        }
        if Message::parse(bytes).is_ok_and(|message| self.bind(now, client, &message, bytes)) {
            return;
        }
        let Some(forward) = self.relay.handle_client(now, client, marks, bytes) else { return };
        match self.relay.onward(now, forward) {
            Onward::Out(forward) => self.pass_to_peer(&forward, batch),
            Onward::Back(forward) => self.pass_to_client(&forward, batch),
            Onward::Across(across) => self.pass_across(&across),
            Onward::Nowhere => {}
        }
    }

    /// Answers `message`, which came as `bytes`, if it asks for a Binding; says whether it does.
    fn bind(&mut self, now: Now, client: FiveTuple, message: &Message<'_>, bytes: &[u8]) -> bool {
        if client.transport != Transport::Udp {
            let answer = stun_server::answer(message, client.client);
            return answer.inspect(|answer| self.legs.send(client, answer)).is_some();
        }
        let answer = self.discovery.answer(message, client.client, client.server);
        let answer = answer.inspect(|answer| {
            let there = FiveTuple { client: answer.to, server: answer.from, transport: Transport::Udp };
            self.answer_stranger(now, there, bytes.len(), &answer.bytes);
        });
        answer.is_some()
    }

    /// Sends what nobody has proven to have asked for, if the gate lets it out.
    fn answer_stranger(&mut self, now: Now, client: FiveTuple, question: usize, answer: &[u8]) {
        let oversized = self.gate.held().over_size;
        if self.gate.admits(now, client.client.ip(), question, answer.len()) {
            self.legs.send(client, answer);
            return;
        }
        self.legs.note_dropped();
        if (oversized, self.gate.held().over_size) == (0, 1) {
            // Never by the client's doing: no client could be served until this is set right.
            tracing::warn!(
                question,
                answer = answer.len(),
                "answer too large for a stranger; is turn.realm too long?"
            );
        }
    }

    fn pass_to_peer(&mut self, forward: &ToPeer<'_>, batch: Option<&RecvBatch>) {
        let Marks { ttl, tos } = forward.marks;
        let route = Route {
            ttl: (ttl > 0).then_some(ttl),
            tos,
            dont_fragment: forward.dont_fragment,
            ..Route::to(forward.peer)
        };
        if let Some(start) = batch.and_then(|batch| batch.position(forward.payload)) {
            let (exit, header) = (Exit::Relay(forward.relay), Header::none());
            let len = forward.payload.len();
            return self.departures.push(Departure { exit, route, header, start, len, padding: 0 });
        }
        if let Some(socket) = self.relay_sockets.get(&forward.relay) {
            self.legs.note_sent(socket.send(&route, forward.payload), forward.peer);
        }
    }

    pub(super) fn pass_to_client(&mut self, forward: &ToClient<'_>, batch: Option<&RecvBatch>) {
        if self.legs.relay_to_stream(forward) {
            return;
        }
        let ToClient { client, header, payload, padding, marks } = *forward;
        let start = batch.and_then(|batch| batch.position(payload));
        let door = (client.transport == Transport::Udp).then(|| self.legs.route_to(client, marks)).flatten();
        if let (Some(start), Some((door, route))) = (start, door) {
            let (exit, len) = (Exit::Door(door), payload.len());
            return self.departures.push(Departure { exit, route, header, start, len, padding });
        }
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.extend_from_slice(header.as_bytes());
        frame.extend_from_slice(payload);
        frame.resize(frame.len() + padding, 0);
        self.legs.send_marked(client, marks, &frame);
        self.scratch = frame;
    }

    /// Sends what was gathered from `batch`.
    pub(super) fn depart(&mut self, batch: &RecvBatch) {
        let socket = |exit| match exit {
            Exit::Door(index) => self.legs.port(index),
            Exit::Relay(relay) => self.relay_sockets.get(&relay),
        };
        let failed = |lost: &Departure, error: &io::Error| self.legs.note_lost(lost.route.to, error);
        departures::send_all(&self.departures, batch, socket, failed);
        self.departures.clear();
    }

    /// Does what the relay and the DTLS sessions say; `heard` is the length of the datagram that made them say so.
    pub(super) fn carry_out(&mut self, now: Now, heard: usize) {
        loop {
            self.carry_out_relay(now, heard);
            match self.legs.dtls.poll_output() {
                None => return,
                Some(dtls::Output::Datagram { client, bytes }) => {
                    self.legs.send_datagram(client, Marks::default(), &bytes);
                }
                Some(dtls::Output::Challenge { client, bytes }) => {
                    let client = FiveTuple { transport: Transport::Udp, ..client };
                    self.answer_stranger(now, client, heard, &bytes);
                }
                Some(dtls::Output::Frame { client, bytes }) => match demux::datagram(&bytes) {
                    DatagramKind::Dtls | DatagramKind::Unknown => self.legs.note_dropped(),
                    _ => self.hear_frame(now, client, &bytes),
                },
                Some(dtls::Output::Gone { client }) => self.relay.handle_client_gone(client),
            }
        }
    }

    fn look_up(&mut self, now: Now, question: &Arc<Question>) {
        if !self.lookups.ask(Arc::clone(question)) {
            self.relay.handle_lookup_done(now, question, false);
        }
    }

    fn carry_out_relay(&mut self, now: Now, heard: usize) {
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Reply { client, bytes, proven: false } if client.transport == Transport::Udp => {
                    self.answer_stranger(now, client, heard, &bytes);
                }
                Output::Reply { client, bytes, proven } => {
                    if proven {
                        self.legs.prove(client);
                    }
                    self.legs.send(client, &bytes);
                }
                Output::OpenRelay { relay, address, tcp } => {
                    let opened = match tcp {
                        false => self.open_relay(relay, address),
                        true => self.tcp.listen(relay, address),
                    };
                    if let Err(error) = &opened {
                        tracing::debug!(%error, "relay socket");
                    }
                    self.relay.handle_relay_opened(now, relay, opened.is_ok());
                }
                Output::CloseRelay { relay } => {
                    if !self.tcp.close(relay) {
                        self.relay_sockets.remove(&relay);
                    }
                }
                Output::Connect { connection, from, to } => self.tcp.connect(connection, from, to),
                Output::Join { client, connection, reply, pace } => {
                    let joint = self.tcp.join(connection, reply, pace).map(Box::new);
                    self.legs.join(client, joint);
                }
                Output::Disconnect { connection } => self.tcp.disconnect(connection),
                Output::Elsewhere { client, worker, bytes } => {
                    if !self.legs.neighbours.begin(client, worker, &bytes) {
                        self.legs.note_dropped();
                    }
                }
                Output::Left { client } => self.legs.neighbours.announce_left(client),
                Output::LookUp { question } => self.look_up(now, &question),
            }
        }
    }

    fn open_relay(&mut self, relay: RelayId, address: SocketAddr) -> io::Result<()> {
        let socket = UdpPort::bind(address, Role::Relay)?;
        watch(&self.poll, &socket, Token(self.legs.doors.len() + relay))?;
        self.relay_sockets.insert(relay, socket);
        Ok(())
    }
}

/// Returns what the IP header of a datagram says that is passed on.
fn marks(datagram: &Datagram<'_>) -> Marks {
    Marks { ttl: datagram.ttl, tos: datagram.tos }
}

fn watch(poll: &Poll, port: &UdpPort, token: Token) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&port.as_raw_fd()), token, Interest::READABLE)
}
