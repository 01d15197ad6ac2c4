//! The hands of the data plane: one thread per core that owns its sockets, its relay and its timers. Decides nothing.
//!
//! Run loop: wait for sockets or the relay's next deadline, read the clock once, take one batch from every socket that has
//! something, carry out what the relay says, send what has gathered, begin again. A socket with more to give than one batch waits
//! for its next turn, so that no peer can starve the others.

use super::clients::{Legs, Ways};
use super::dtls::{self, Dtls};
use super::inbox::{Inbox, ToWorker};
use super::lookups::Lookups;
use super::moved_clients::{Inboxes, Neighbours};
use super::peer_connections::{PeerStreams, TcpRelay};
use super::send_queue::{Departures, Exit, Payload};
use super::tcp_client::{self, TcpLegs};
use super::waker::Doorbell;
use super::worker_channel::Crossing;
use crate::clock::Now;
use crate::net::demux::{self, DatagramKind};
use crate::net::gate::Gate;
use crate::net::time;
use crate::net::udp::{BatchSocket, Datagram, Haul, Intake, Role, Route, UdpPort};
use crate::signaling::{Handle, ServerPort};
use crate::stun_server::{Discovery, SharedSecrets};
use crate::turn_server::data::IcmpError;
use crate::turn_server::machine::{Forward, IpHeader, Output, Relay, RequestAuth, ToClient, ToPeer};
use crate::turn_server::{FiveTuple, RelayId, RelaySocketError, Transport};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::mpsc;

/// The inbox's token; doors and relay sockets count from zero.
const INBOX: Token = Token(usize::MAX);
/// Clients by TCP, and what other workers' clients send: not reported by the system, but looked after in every pass.
const STREAMS: Token = Token(usize::MAX - 1);
const PARCELS: Token = Token(usize::MAX - 2);

/// Messages taken from the inbox before the sockets have their turn again.
const INBOX_TURN: usize = 128;

/// How one turn of a socket or the inbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing is left.
    Empty,
    /// There may be more.
    More,
    /// The worker is to end.
    Stop,
}

/// One listening socket of a worker.
#[derive(Debug)]
pub(crate) struct DoorSocket {
    pub(crate) port: UdpPort,
    pub(crate) door: ServerPort,
    /// Whether it is at the TLS and DTLS port: signalling answers from the main one and is not heard here.
    pub(crate) is_tls_port: bool,
}

/// What a worker begins with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) doors: Vec<DoorSocket>,
    /// Handles on other workers' doors, for answers that leave by another port than the question came by.
    pub(crate) elsewhere: Vec<UdpPort>,
    pub(crate) discovery: Discovery,
    pub(crate) secrets: SharedSecrets,
    pub(crate) gate: Gate,
    pub(crate) relay: Relay,
    pub(crate) dtls: Dtls,
    pub(crate) signaling: Handle,
    pub(crate) lookups: Lookups,
    pub(crate) number: u16,
    pub(crate) inboxes: Inboxes,
    pub(crate) peer_streams: PeerStreams,
    pub(crate) dropped: Arc<AtomicU64>,
}

/// One worker thread's belongings.
#[derive(Debug)]
pub(crate) struct Worker {
    poll: Poll,
    inbox: mpsc::Receiver<ToWorker>,
    bell: Arc<Doorbell>,
    pub(crate) legs: Legs,
    pub(crate) crossing: Crossing,
    pub(crate) relay: Relay,
    /// The relay ports' sockets, by their number.
    relay_sockets: Vec<Option<UdpPort>>,
    pub(crate) discovery: Discovery,
    pub(crate) secrets: SharedSecrets,
    gate: Gate,
    signaling: Handle,
    lookups: Lookups,
    tcp: TcpRelay,
    ready: Ready,
    departures: Departures,
    /// Room for an answer.
    pub(crate) answer: Vec<u8>,
    scratch: Vec<u8>,
}

/// Who is to have a turn, each once.
#[derive(Debug, Default)]
struct Ready {
    queue: VecDeque<Token>,
    /// Whether a token is in the queue.
    queued: Vec<bool>,
}

impl Ready {
    /// Returns a token's number among all: the last three, which are no socket's, come first.
    fn place(token: Token) -> usize {
        token.0.wrapping_add(3)
    }

    fn push(&mut self, token: Token) {
        let place = Self::place(token);
        if place >= self.queued.len() {
            self.queued.resize(place + 1, false);
        }
        if !std::mem::replace(&mut self.queued[place], true) {
            self.queue.push_back(token);
        }
    }

    fn pop(&mut self) -> Option<Token> {
        let token = self.queue.pop_front()?;
        self.queued[Self::place(token)] = false;
        Some(token)
    }
}

impl Worker {
    /// Registers the doors; returns the worker and the way to reach it.
    pub(crate) fn new(parts: Parts) -> io::Result<(Self, Inbox)> {
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
            relay_sockets: Vec::new(),
            discovery: parts.discovery,
            secrets: parts.secrets,
            gate: parts.gate,
            signaling: parts.signaling,
            lookups: parts.lookups,
            tcp: TcpRelay::new(parts.peer_streams, inbox.clone(), runtime),
            ready: Ready::default(),
            departures: Departures::default(),
            answer: Vec::new(),
            scratch: Vec::new(),
        };
        Ok((worker, inbox))
    }

    /// Runs until the inbox says stop.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut intake = Intake::default();
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
                match tcp_client::slot(event.token()) {
                    Some(slot) => self.legs.tcp.note(slot, event),
                    None => self.ready.push(event.token()),
                }
            }
            self.call_queues();
            for _ in 0..self.ready.queue.len() {
                let Some(token) = self.ready.pop() else { break };
                let turn = match token {
                    INBOX => self.take_inbox(now, &mut intake),
                    STREAMS => self.take_streams(now, &mut intake),
                    PARCELS => self.take_parcels(now, &mut intake),
                    _ => self.take_batch(now, token, &mut intake),
                };
                match turn {
                    Turn::More => self.ready.push(token),
                    Turn::Empty => {}
                    Turn::Stop => {
                        self.report();
                        return Ok(());
                    }
                }
            }
            self.relay.handle_timeout(now);
            self.legs.dtls.handle_timeout(now);
            self.carry_out(now, 0, &intake);
            self.end_pass(now, &intake);
            self.depart_and_clear(&mut intake);
        }
    }

    /// Says whether nothing waits; whatever comes from now on ends the wait for events.
    fn may_sleep(&self) -> bool {
        self.ready.queue.is_empty()
            && !self.legs.tcp.has_news()
            && self.bell.may_sleep(|| self.inbox.is_empty() && self.crossing.is_empty())
    }

    /// Gives the queues that have something their turn in this pass: nobody reports them to a worker that is awake.
    fn call_queues(&mut self) {
        let queues = [
            (INBOX, !self.inbox.is_empty()),
            (STREAMS, self.legs.tcp.has_news()),
            (PARCELS, !self.crossing.is_empty()),
        ];
        queues.into_iter().filter(|(_, waits)| *waits).for_each(|(token, _)| self.ready.push(token));
    }

    /// Takes at most [`INBOX_TURN`] messages, so that streams that never pause do not keep datagrams waiting.
    fn take_inbox(&mut self, now: Now, intake: &mut Intake) -> Turn {
        for _ in 0..INBOX_TURN {
            let Ok(message) = self.inbox.try_recv() else { return Turn::Empty };
            match message {
                ToWorker::Arrived(arrival) => {
                    let client = arrival.client;
                    if self.legs.adopt(now.mono, *arrival) {
                        self.relay.handle_client_gone(client);
                    }
                }
                ToWorker::Evicted { client, number } => self.legs.evict(client, number),
                ToWorker::Opened { client, leg } => {
                    if self.legs.open(now.mono, client, leg) {
                        self.relay.handle_client_gone(client);
                    }
                }
                ToWorker::Frames { client, run } => self.hear_run(now, client, &run, intake),
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
                    self.hear_guest(now, (client, host), &bytes, intake);
                }
                ToWorker::Moved { client, entry } => self.legs.neighbours.insert(now.mono, client, entry),
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
                ToWorker::Revoked { name } => self.relay.handle_revoked(&name),
                ToWorker::OwnAddresses(own) => self.relay.handle_own_addresses(own),
                ToWorker::Stop => return Turn::Stop,
            }
            self.carry_out(now, 0, intake);
            if self.departures.is_full() {
                self.depart(intake);
            }
        }
        Turn::More
    }

    /// Takes one batch from a socket.
    fn take_batch(&mut self, now: Now, token: Token, intake: &mut Intake) -> Turn {
        if intake.room() == 0 {
            self.depart_and_clear(intake);
        }
        let doors = self.legs.doors.len();
        let received = if token.0 < doors {
            receive(&self.legs.doors[token.0].port, intake)
        } else {
            let relay = token.0 - doors;
            let Some(Some(socket)) = self.relay_sockets.get(relay) else { return Turn::Empty };
            let received = receive(socket, intake);
            self.hear_errors(now, relay);
            received
        };
        let haul = match received {
            Ok(haul) => haul,
            Err(turn) => return turn,
        };
        if token.0 < doors && self.relay.should_prefetch(haul.messages()) {
            self.look_ahead(token.0, intake.senders(haul));
        }
        for datagram in intake.datagrams(haul) {
            if token.0 < doors {
                self.hear_door(now, token.0, datagram, intake);
            } else {
                self.hear_peer(now, token.0 - doors, datagram, intake);
            }
            self.carry_out(now, datagram.payload.len(), intake);
        }
        if haul.is_drained() { Turn::Empty } else { Turn::More }
    }

    /// Has the relay read what a haul from a door is going to need.
    fn look_ahead(&self, door: usize, senders: impl Iterator<Item = SocketAddr>) {
        let port = &self.legs.doors[door].port;
        // The IP address that each datagram was sent to matters to nobody who only looks ahead.
        let server = port.local_addr();
        let tuple = |client| FiveTuple { client, server, transport: Transport::Udp };
        self.relay.prefetch_clients(senders.map(tuple));
    }

    fn hear_peer(&mut self, now: Now, relay: RelayId, datagram: Datagram<'_>, intake: &Intake) {
        let Datagram { from, payload, .. } = datagram;
        if let Some(forward) = self.relay.handle_peer(now, relay, from, marks(&datagram), payload) {
            self.pass_to_client(&forward, intake);
        }
    }

    /// Tells clients of the ICMP errors that their peers' datagrams have met.
    fn hear_errors(&mut self, now: Now, relay: RelayId) {
        let mut errors = Vec::new();
        if let Some(Some(socket)) = self.relay_sockets.get(relay) {
            socket.take_errors(|error| errors.push(error));
        }
        for error in errors {
            let error = IcmpError {
                peer: error.peer,
                kind: error.icmp_type,
                code: error.icmp_code,
                data: error.data,
            };
            if let Some(ToClient { client, header, .. }) = self.relay.handle_peer_error(now, relay, error) {
                self.legs.send(client, header.as_bytes());
            }
        }
    }

    fn hear_door(&mut self, now: Now, index: usize, datagram: Datagram<'_>, intake: &Intake) {
        let DoorSocket { port, door, is_tls_port } = &self.legs.doors[index];
        let local = port.local_addr();
        let server = SocketAddr::new(datagram.local_ip.unwrap_or(local.ip()), local.port());
        let tuple = FiveTuple { client: datagram.from, server, transport: Transport::Udp };
        let kind = demux::datagram(datagram.payload);
        match (kind, *door) {
            (DatagramKind::Dtls, ServerPort::Main) => {
                let (gate, ends) = (&mut self.gate, (datagram.from, server));
                let admits = || gate.admits_handshake(now, datagram.from.ip());
                if !self.legs.dtls.handle_datagram(now, ends, datagram.payload, admits) {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Signaling, ServerPort::Main)
                if self.relay.is_channel_data(now, tuple, datagram.payload) =>
            {
                self.hear_client(now, tuple, marks(&datagram), datagram.payload, intake);
            }
            (DatagramKind::Signaling, door) if !is_tls_port => {
                if !self.signaling.datagram(door, datagram.from, datagram.local_ip, datagram.payload) {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Stun, ServerPort::Aux) => {
                if !self.answer_classic_stun(now, tuple, datagram.payload) {
                    self.legs.note_dropped();
                }
            }
            (DatagramKind::Stun | DatagramKind::ChannelData, ServerPort::Main) => {
                self.hear_client(now, tuple, marks(&datagram), datagram.payload, intake);
            }
            _ => self.legs.note_dropped(),
        }
    }

    /// Hears a frame that came by no socket of this worker, or out of DTLS.
    pub(crate) fn hear_frame(&mut self, now: Now, client: FiveTuple, bytes: &[u8], intake: &Intake) {
        self.hear_client(now, client, IpHeader::default(), bytes, intake);
    }

    pub(crate) fn hear_client(
        &mut self,
        now: Now,
        client: FiveTuple,
        marks: IpHeader,
        bytes: &[u8],
        intake: &Intake,
    ) {
        if let Some(passed) = self.legs.neighbours.pass_on(now.mono, client, bytes) {
            if !passed {
                self.legs.note_dropped();
            }
            return;
        }
        if self.answer_classic_stun(now, client, bytes) {
            return;
        }
        let Some(forward) = self.relay.handle_client(now, client, marks, bytes) else { return };
        match self.relay.route(now, forward) {
            Forward::Peer(forward) => self.pass_to_peer(&forward, intake),
            Forward::LocalClient(forward) => self.pass_to_client(&forward, intake),
            Forward::OtherWorker(packet) => self.pass_across(&packet),
            Forward::Drop => {}
        }
    }

    /// Sends what nobody has proven to have asked for, if the gate lets it out.
    pub(crate) fn answer_stranger(&mut self, now: Now, client: FiveTuple, question: usize, answer: &[u8]) {
        let oversized = self.gate.held().over_size;
        if self.gate.admits(now, client.client.ip(), question, answer.len()) {
            match self.legs.route_to(client, IpHeader::default()) {
                Some((door, route)) if client.transport == Transport::Udp => {
                    self.departures.push(Exit::Door(door), route, answer, Payload::Fleeting(&[]), 0);
                }
                _ => self.legs.send(client, answer),
            }
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

    fn pass_to_peer(&mut self, forward: &ToPeer<'_>, intake: &Intake) {
        let IpHeader { ttl, tos } = forward.marks;
        let route = Route {
            ttl: (ttl > 0).then_some(ttl),
            tos,
            dont_fragment: forward.dont_fragment,
            ..Route::to(forward.peer)
        };
        self.departures.push(Exit::Relay(forward.relay), route, &[], payload(forward.payload, intake), 0);
    }

    pub(crate) fn pass_to_client(&mut self, forward: &ToClient<'_>, intake: &Intake) {
        if self.legs.relay_to_stream(forward) {
            return;
        }
        let ToClient { client, header, payload: bytes, padding, marks } = *forward;
        if client.transport == Transport::Udp {
            if let Some((door, route)) = self.legs.route_to(client, marks) {
                let body = payload(bytes, intake);
                self.departures.push(Exit::Door(door), route, header.as_bytes(), body, padding);
            }
            return;
        }
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.extend_from_slice(header.as_bytes());
        frame.extend_from_slice(bytes);
        frame.resize(frame.len() + padding, 0);
        self.legs.send_marked(client, marks, &frame);
        self.scratch = frame;
    }

    /// Sends what has gathered, and makes room for more.
    pub(crate) fn depart_and_clear(&mut self, intake: &mut Intake) {
        self.departures.put_heads_before_bodies(intake);
        self.depart(intake);
        intake.clear();
    }

    /// Sends what has gathered.
    pub(crate) fn depart(&mut self, intake: &Intake) {
        if self.departures.is_empty() {
            return;
        }
        let (legs, relay_sockets) = (&self.legs, &self.relay_sockets);
        let socket = |exit| match exit {
            Exit::Door(index) => legs.port(index),
            Exit::Relay(relay) => relay_sockets.get(relay)?.as_ref(),
        };
        self.departures.send(intake, socket, |route, error| legs.note_lost(route.to, error));
    }

    /// Does what the relay and the DTLS sessions say; `heard` is the length of the datagram that made them say so.
    pub(crate) fn carry_out(&mut self, now: Now, heard: usize, intake: &Intake) {
        loop {
            if self.relay.has_output() {
                // What is said now may close sockets that the datagrams before are to leave by.
                self.depart(intake);
                self.carry_out_relay(now);
            }
            match self.legs.dtls.poll_output() {
                None => return,
                Some(dtls::Output::Datagram { client, bytes }) => {
                    self.legs.send_datagram(client, IpHeader::default(), &bytes);
                }
                Some(dtls::Output::Challenge { client, bytes }) => {
                    let client = FiveTuple { transport: Transport::Udp, ..client };
                    self.answer_stranger(now, client, heard, &bytes);
                }
                Some(dtls::Output::Frame { client, bytes }) => match demux::datagram(&bytes) {
                    DatagramKind::Dtls | DatagramKind::Unknown => self.legs.note_dropped(),
                    _ => self.hear_frame(now, client, &bytes, intake),
                },
                Some(dtls::Output::Gone { client }) => self.relay.handle_client_gone(client),
            }
        }
    }

    fn carry_out_relay(&mut self, now: Now) {
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Response { client, bytes, auth: RequestAuth::Unverified { request_len } }
                    if client.transport == Transport::Udp =>
                {
                    self.answer_stranger(now, client, request_len, &bytes);
                }
                Output::Response { client, bytes, auth } => {
                    if auth == RequestAuth::Verified {
                        self.legs.prove(client);
                    }
                    self.legs.send(client, &bytes);
                }
                Output::OpenRelaySocket { relay, address, tcp } => {
                    let opened = match tcp {
                        false => self.open_relay(relay, address),
                        true => self.tcp.listen(relay, address),
                    };
                    let opened = opened.map_err(|error| {
                        tracing::debug!(%error, "relay socket");
                        match error.kind() {
                            io::ErrorKind::AddrInUse => RelaySocketError::PortInUse,
                            _ => RelaySocketError::NoSocket,
                        }
                    });
                    self.relay.handle_relay_opened(now, relay, opened);
                }
                Output::CloseRelaySocket { relay } => {
                    if !self.tcp.close(relay)
                        && let Some(place) = self.relay_sockets.get_mut(relay)
                    {
                        *place = None;
                    }
                }
                Output::Connect { connection, from, to } => self.tcp.connect(connection, from, to),
                Output::BindConnection { client, connection, response, pace } => {
                    let joint = self.tcp.join(connection, response, pace).map(Box::new);
                    self.legs.join(client, joint);
                }
                Output::Disconnect { connection } => self.tcp.disconnect(connection),
                Output::ForwardRequest { client, worker, bytes } => {
                    if !self.legs.neighbours.hand_over(client, worker, &bytes) {
                        self.legs.note_dropped();
                    }
                }
                Output::ClientLeft { client } => self.legs.neighbours.announce_left(client),
                Output::LookUpUser { question, from, is_known } => {
                    if !self.lookups.ask(now, from, (Arc::clone(&question), is_known)) {
                        self.relay.handle_lookup_done(now, &question, false);
                    }
                }
            }
        }
    }

    fn open_relay(&mut self, relay: RelayId, address: SocketAddr) -> io::Result<()> {
        let socket = UdpPort::bind(address, Role::Relay)?;
        watch(&self.poll, &socket, Token(self.legs.doors.len() + relay))?;
        if relay >= self.relay_sockets.len() {
            self.relay_sockets.resize_with(relay + 1, || None);
        }
        self.relay_sockets[relay] = Some(socket);
        Ok(())
    }
}

/// Receives a batch, or says how the socket's turn ends without one.
fn receive(socket: &impl BatchSocket, intake: &mut Intake) -> Result<Haul, Turn> {
    socket.recv(intake).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Turn::Empty,
        _ => {
            tracing::debug!(%error, "receive");
            Turn::More
        }
    })
}

/// Says where a payload lies: in the intake it stays, from elsewhere it is copied.
fn payload<'a>(bytes: &'a [u8], intake: &Intake) -> Payload<'a> {
    match intake.position(bytes) {
        Some(start) => Payload::Received { start, len: bytes.len() },
        None => Payload::Fleeting(bytes),
    }
}

/// Returns what the IP header of a datagram says that is passed on.
fn marks(datagram: &Datagram<'_>) -> IpHeader {
    IpHeader { ttl: datagram.ttl, tos: datagram.tos }
}

fn watch(poll: &Poll, port: &UdpPort, token: Token) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&port.as_raw_fd()), token, Interest::READABLE)
}
