//! One worker thread per core that owns its sockets, its relay and its timers. Takes no protocol decisions.
//!
//! Run loop: wait for sockets or the relay's next deadline, read the clock once, take one batch from every socket that has
//! something, carry out what the relay says, send what has gathered, begin again. A socket with more to give than one batch waits
//! for its next turn, so that no peer can starve the others.

use super::clients::Clients;
use super::counters::{WorkerCounters, WorkerDropReason};
use super::dtls::{self, Dtls};
use super::inbox::{Inbox, WorkerMessage};
use super::lookups::Lookups;
use super::moved_clients::{Inboxes, MovedClients};
use super::peer_streams::{PeerStreamTable, PeerTcp};
use super::send_queue::{Payload, SendQueue, SendSocket};
use super::tcp_connections::{self, TcpConnections};
use super::waker::WorkerWaker;
use super::worker_channel::WorkerChannels;
use super::worker_pool::WorkerSockets;
use crate::clock::Now;
use crate::net::demux::{self, DatagramKind};
use crate::net::time;
use crate::net::udp::{BatchSocket, BatchUdpSocket, Datagram, Role, Route, RxBatch, RxBuffers};
use crate::net::unauthenticated::UnauthenticatedLimiter;
use crate::signaling::{Handle, ServerPort};
use crate::stun::Message;
use crate::stun_server::{Discovery, SharedSecrets};
use crate::turn_server::{
    ClientFrame, FiveTuple, Forward, IcmpError, IpHeader, Output, Relay, RelayId, RelaySocketError,
    RequestAuth, ToClient, ToPeer, Transport,
};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The inbox's token; listeners and relay sockets count from zero.
const INBOX: Token = Token(usize::MAX);
/// Clients by TCP, and what other workers' clients send: not reported by the system, but looked after in every pass.
const TCP_CONNECTIONS: Token = Token(usize::MAX - 1);
const WORKER_CHANNELS: Token = Token(usize::MAX - 2);

/// Messages taken from the inbox before the sockets have their turn again.
const MESSAGES_PER_TURN: usize = 128;

/// A message from a client, and what its first byte says that it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientPacket<'a> {
    pub(crate) client: FiveTuple,
    pub(crate) kind: DatagramKind,
    pub(crate) ip_header: IpHeader,
    pub(crate) bytes: &'a [u8],
}

/// How one turn of a socket or the inbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing is left.
    Drained,
    /// There may be more.
    More,
    /// The worker is to end.
    Stop,
}

/// One listening socket of a worker.
#[derive(Debug)]
pub(crate) struct ListenSocket {
    pub(crate) socket: BatchUdpSocket,
    pub(crate) door: ServerPort,
    /// Whether it is at the TLS and DTLS port: signalling answers from the main one and is not heard here.
    pub(crate) is_tls_port: bool,
}

/// What a worker begins with.
#[derive(Debug)]
pub(crate) struct WorkerParts {
    pub(crate) sockets: WorkerSockets,
    pub(crate) discovery: Discovery,
    pub(crate) secrets: SharedSecrets,
    pub(crate) unauthenticated: UnauthenticatedLimiter,
    pub(crate) relay: Relay,
    pub(crate) dtls: Dtls,
    pub(crate) signaling: Handle,
    pub(crate) lookups: Lookups,
    pub(crate) number: u16,
    pub(crate) inboxes: Inboxes,
    pub(crate) peer_streams: PeerStreamTable,
}

/// One worker thread's belongings.
#[derive(Debug)]
pub(crate) struct Worker {
    poll: Poll,
    inbox: mpsc::Receiver<WorkerMessage>,
    waker: Arc<WorkerWaker>,
    pub(crate) clients: Clients,
    pub(crate) worker_channels: WorkerChannels,
    pub(crate) relay: Relay,
    /// The relay ports' sockets, by their number.
    relay_sockets: Vec<Option<BatchUdpSocket>>,
    pub(crate) discovery: Discovery,
    pub(crate) secrets: SharedSecrets,
    unauthenticated: UnauthenticatedLimiter,
    signaling: Handle,
    lookups: Lookups,
    tcp: PeerTcp,
    ready: ReadyQueue,
    send_queue: SendQueue,
    /// Room for an answer.
    pub(crate) answer: Vec<u8>,
    scratch: Vec<u8>,
}

/// Who is to have a turn, each once.
#[derive(Debug, Default)]
struct ReadyQueue {
    queue: VecDeque<Token>,
    /// Whether a token is in the queue.
    queued: Vec<bool>,
}

impl ReadyQueue {
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
    /// Registers the listeners; returns the worker and the way to reach it.
    pub(crate) fn new(parts: WorkerParts) -> io::Result<(Self, Inbox)> {
        let poll = Poll::new()?;
        for (index, listener) in parts.sockets.0.iter().enumerate() {
            watch(&poll, &listener.socket, Token(index))?;
        }
        let (inbox, receiver) = Inbox::new(mio::Waker::new(poll.registry(), INBOX)?);
        let runtime = tokio::runtime::Handle::current();
        let tcp = TcpConnections::new(poll.registry().try_clone()?, runtime.clone());
        let moved = MovedClients::new(parts.number, Arc::clone(&parts.inboxes));
        let worker = Self {
            poll,
            inbox: receiver,
            waker: Arc::clone(inbox.waker()),
            clients: Clients::new(parts.sockets, parts.dtls, tcp, moved),
            worker_channels: WorkerChannels::new(
                parts.number,
                Arc::clone(inbox.batch_queues()),
                parts.inboxes,
            ),
            relay: parts.relay,
            relay_sockets: Vec::new(),
            discovery: parts.discovery,
            secrets: parts.secrets,
            unauthenticated: parts.unauthenticated,
            signaling: parts.signaling,
            lookups: parts.lookups,
            tcp: PeerTcp::new(parts.peer_streams, inbox.clone(), runtime),
            ready: ReadyQueue::default(),
            send_queue: SendQueue::default(),
            answer: Vec::new(),
            scratch: Vec::new(),
        };
        Ok((worker, inbox))
    }

    /// Runs until the inbox says stop.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut rx = RxBuffers::default();
        loop {
            let deadlines = [
                self.relay.poll_timeout(),
                self.clients.dtls.poll_timeout(),
                self.clients.tcp.poll_timeout(),
            ];
            let wait = match deadlines.into_iter().flatten().min() {
                _ if !self.may_sleep() => Some(std::time::Duration::ZERO),
                deadline => deadline.map(|at| at.saturating_duration_since(time::now().mono)),
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            self.waker.set_awake();
            let now = time::now();
            for event in &events {
                match tcp_connections::slot(event.token()) {
                    Some(slot) => self.clients.tcp.on_event(slot, event),
                    None => self.ready.push(event.token()),
                }
            }
            self.schedule_queues();
            for _ in 0..self.ready.queue.len() {
                let Some(token) = self.ready.pop() else { break };
                let turn = match token {
                    INBOX => self.poll_inbox(now, &mut rx),
                    TCP_CONNECTIONS => self.poll_tcp_connections(now, &mut rx),
                    WORKER_CHANNELS => self.poll_worker_channels(now, &mut rx),
                    _ => self.poll_socket(now, token, &mut rx),
                };
                match turn {
                    Progress::More => self.ready.push(token),
                    Progress::Drained => {}
                    Progress::Stop => return Ok(()),
                }
            }
            self.relay.handle_timeout(now);
            self.clients.dtls.handle_timeout(now);
            self.handle_outputs(now, 0, &rx);
            self.finish_iteration(now, &rx);
            self.flush_and_clear(&mut rx);
        }
    }

    /// Says whether nothing waits; whatever comes from now on ends the wait for events.
    fn may_sleep(&self) -> bool {
        self.ready.queue.is_empty()
            && !self.clients.tcp.has_readable()
            && self.waker.may_sleep(|| self.inbox.is_empty() && self.worker_channels.is_empty())
    }

    /// Gives the queues that have something their turn in this pass: nobody reports them to a worker that is awake.
    fn schedule_queues(&mut self) {
        let queues = [
            (INBOX, !self.inbox.is_empty()),
            (TCP_CONNECTIONS, self.clients.tcp.has_readable()),
            (WORKER_CHANNELS, !self.worker_channels.is_empty()),
        ];
        queues.into_iter().filter(|(_, waits)| *waits).for_each(|(token, _)| self.ready.push(token));
    }

    /// Takes at most [`MESSAGES_PER_TURN`] messages, so that streams that never pause do not keep datagrams waiting.
    fn poll_inbox(&mut self, now: Now, rx: &mut RxBuffers) -> Progress {
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(message) = self.inbox.try_recv() else { return Progress::Drained };
            match message {
                WorkerMessage::TcpAccepted(arrival) => {
                    let client = arrival.client;
                    if self.clients.insert_socket(now.mono, *arrival) {
                        self.relay.handle_client_gone(client);
                    }
                }
                WorkerMessage::TcpEvicted { client, number } => self.clients.evict(client, number),
                WorkerMessage::StreamOpened { client, path } => {
                    if self.clients.open(now.mono, client, path) {
                        self.relay.handle_client_gone(client);
                    }
                }
                WorkerMessage::Frames { client, run } => self.handle_frames(now, client, &run, rx),
                WorkerMessage::StreamClosed { client, link } => {
                    self.clients.moved.remove_closed(client);
                    if self.clients.remove_task(client, link) {
                        self.relay.handle_client_gone(client);
                    }
                }
                WorkerMessage::LookupDone { question, answered } => {
                    self.relay.handle_lookup_done(now, &question, answered);
                }
                WorkerMessage::ForwardedFrame { client, arrived_at, bytes } => {
                    self.handle_forwarded_frame(now, (client, arrived_at), &bytes, rx);
                }
                WorkerMessage::ClientMoved { client, entry } => {
                    self.clients.moved.insert(now.mono, client, entry)
                }
                WorkerMessage::ForwardedClientClosed { client } => self.relay.handle_client_gone(client),
                WorkerMessage::ForwardedReply { client, bytes } => self.clients.send(client, &bytes),
                WorkerMessage::ClientLeft { client } => self.clients.moved.remove(client),
                WorkerMessage::PeerAccepted { relay, peer, stream } => {
                    if let Some(connection) = self.relay.handle_accepted(now, relay, peer) {
                        self.tcp.hold(connection, stream);
                    }
                }
                WorkerMessage::PeerConnected { connection, well } => {
                    self.relay.handle_connected(now, connection, well)
                }
                WorkerMessage::PeerClosed { connection } => self.relay.handle_connection_closed(connection),
                WorkerMessage::Revoked { name } => self.relay.handle_revoked(&name),
                WorkerMessage::OwnAddresses(own) => self.relay.handle_own_addresses(own),
                // The handler may have stopped waiting.
                WorkerMessage::ReadCounters(sender) => drop(sender.send(Box::new(self.counters()))),
                WorkerMessage::Stop => return Progress::Stop,
            }
            self.handle_outputs(now, 0, rx);
            if self.send_queue.is_full() {
                self.flush_sends(rx);
            }
        }
        Progress::More
    }

    fn counters(&self) -> WorkerCounters {
        WorkerCounters {
            withheld: self.unauthenticated.counters(),
            drops: self.clients.drops.get(),
            between_workers: self.worker_channels.sent(),
            ..WorkerCounters::default()
        }
        .with_relay(&self.relay)
    }

    /// Takes one batch from a socket.
    fn poll_socket(&mut self, now: Now, token: Token, rx: &mut RxBuffers) -> Progress {
        if rx.room() == 0 {
            self.flush_and_clear(rx);
        }
        let listeners = self.clients.listeners.len();
        let received = if token.0 < listeners {
            receive(&self.clients.listeners[token.0].socket, rx)
        } else {
            let relay = token.0 - listeners;
            let Some(Some(socket)) = self.relay_sockets.get(relay) else { return Progress::Drained };
            let received = receive(socket, rx);
            self.handle_icmp_errors(now, relay);
            received
        };
        let batch = match received {
            Ok(batch) => batch,
            Err(turn) => return turn,
        };
        if token.0 < listeners && self.relay.should_prefetch(batch.messages()) {
            self.prefetch(token.0, rx.senders(batch));
        }
        for datagram in rx.datagrams(batch) {
            if token.0 < listeners {
                self.handle_datagram(now, token.0, datagram, rx);
            } else {
                self.handle_peer_datagram(now, token.0 - listeners, datagram, rx);
            }
            self.handle_outputs(now, datagram.payload.len(), rx);
        }
        if batch.is_drained() { Progress::Drained } else { Progress::More }
    }

    /// Has the relay read what a batch from a listener is going to need.
    fn prefetch(&self, door: usize, senders: impl Iterator<Item = SocketAddr>) {
        let port = &self.clients.listeners[door].socket;
        // The IP address that each datagram was sent to matters to nobody who only looks ahead.
        let server = port.local_addr();
        let tuple = |client| FiveTuple { client, server, transport: Transport::Udp };
        self.relay.prefetch_clients(senders.map(tuple));
    }

    fn handle_peer_datagram(&mut self, now: Now, relay: RelayId, datagram: Datagram<'_>, rx: &RxBuffers) {
        let Datagram { from, payload, .. } = datagram;
        if let Ok(to) = self.relay.handle_peer(now, relay, from, ip_header(&datagram), payload) {
            self.send_to_client(&to, payload, rx);
        }
    }

    /// Tells clients of the ICMP errors that their peers' datagrams have met.
    fn handle_icmp_errors(&mut self, now: Now, relay: RelayId) {
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
                self.clients.send(client, header.as_bytes());
            }
        }
    }

    fn handle_datagram(&mut self, now: Now, index: usize, datagram: Datagram<'_>, rx: &RxBuffers) {
        let ListenSocket { socket: port, door, is_tls_port } = &self.clients.listeners[index];
        let local = port.local_addr();
        let server = SocketAddr::new(datagram.local_ip.unwrap_or(local.ip()), local.port());
        let tuple = FiveTuple { client: datagram.from, server, transport: Transport::Udp };
        let kind = demux::datagram(datagram.payload);
        let packet =
            ClientPacket { client: tuple, kind, ip_header: ip_header(&datagram), bytes: datagram.payload };
        match (kind, *door) {
            (DatagramKind::Dtls, ServerPort::Main) => {
                let (limiter, ends) = (&mut self.unauthenticated, (datagram.from, server));
                let admits = || limiter.allow_handshake(now, datagram.from.ip());
                if !self.clients.dtls.handle_datagram(now, ends, datagram.payload, admits) {
                    self.clients.drops.add(WorkerDropReason::Dtls, 1);
                }
            }
            (DatagramKind::Signaling, ServerPort::Main)
                if self.relay.is_channel_data(now, tuple, datagram.payload) =>
            {
                self.handle_client_packet(now, packet, rx);
            }
            (DatagramKind::Signaling, door) if !is_tls_port => {
                if !self.signaling.datagram(door, datagram.from, datagram.local_ip, datagram.payload) {
                    self.clients.drops.add(WorkerDropReason::SignalingQueueFull, 1);
                }
            }
            (DatagramKind::Stun, ServerPort::Aux) => {
                let message = Message::parse(datagram.payload);
                if !message.is_ok_and(|message| self.answer_binding_request(now, tuple, &message)) {
                    self.clients.drops.add(WorkerDropReason::UnknownProtocol, 1);
                }
            }
            (DatagramKind::Stun | DatagramKind::ChannelData, ServerPort::Main) => {
                self.handle_client_packet(now, packet, rx);
            }
            _ => self.clients.drops.add(WorkerDropReason::UnknownProtocol, 1),
        }
    }

    /// Handles a frame that was received on a stream or inside DTLS.
    pub(crate) fn handle_frame(&mut self, now: Now, client: FiveTuple, bytes: &[u8], rx: &RxBuffers) {
        let kind = demux::datagram(bytes);
        self.handle_client_packet(
            now,
            ClientPacket { client, kind, ip_header: IpHeader::default(), bytes },
            rx,
        );
    }

    /// Handles a message from a client: forwards it to the worker that has the client's allocation, responds to a Binding request,
    /// or carries out what the relay decides.
    pub(crate) fn handle_client_packet(&mut self, now: Now, packet: ClientPacket<'_>, rx: &RxBuffers) {
        let ClientPacket { client, kind, ip_header, bytes } = packet;
        if let Some(forwarded) = self.clients.moved.forward(now.mono, client, bytes) {
            if !forwarded {
                self.clients.drops.add(WorkerDropReason::WorkerQueueFull, 1);
            }
            return;
        }
        let frame = match kind {
            DatagramKind::Stun => match Message::parse(bytes) {
                Ok(message) if self.answer_binding_request(now, client, &message) => return,
                Ok(message) => ClientFrame::Stun(message),
                Err(_) => return self.clients.drops.add(WorkerDropReason::UnknownProtocol, 1),
            },
            // A signalling datagram gets here only if its first bytes are a bound channel's number.
            DatagramKind::ChannelData | DatagramKind::Signaling => ClientFrame::ChannelData(bytes),
            DatagramKind::Dtls | DatagramKind::Unknown => {
                return self.clients.drops.add(WorkerDropReason::UnknownProtocol, 1);
            }
        };
        match self.relay.handle_client(now, client, ip_header, frame) {
            Forward::Peer(to) => self.send_to_peer(&to, bytes, rx),
            Forward::LocalClient(to) => self.send_to_client(&to, bytes, rx),
            Forward::OtherWorker(packet) => self.send_to_worker(&packet, bytes),
            Forward::Control | Forward::Drop(_) => {}
        }
    }

    /// Sends a response to a request that is not authenticated, if the limits allow it.
    pub(crate) fn reply_unverified(&mut self, now: Now, client: FiveTuple, question: usize, answer: &[u8]) {
        let oversized = self.unauthenticated.counters().over_size;
        if self.unauthenticated.allow_response(now, client.client.ip(), question, answer.len()) {
            match self.clients.route_to(client, IpHeader::default()) {
                Some((door, route)) if client.transport == Transport::Udp => {
                    self.send_queue.push(SendSocket::Listener(door), route, answer, Payload::Copied(&[]), 0);
                }
                _ => self.clients.send(client, answer),
            }
            return;
        }
        self.clients.drops.add(WorkerDropReason::ResponseWithheld, 1);
        if (oversized, self.unauthenticated.counters().over_size) == (0, 1) {
            // Never by the client's doing: no client could be served until this is set right.
            tracing::warn!(
                question,
                answer = answer.len(),
                "answer too large for a stranger; is turn.realm too long?"
            );
        }
    }

    fn send_to_peer(&mut self, to: &ToPeer, frame: &[u8], rx: &RxBuffers) {
        let IpHeader { ttl, tos } = to.ip_header;
        let route = Route {
            ttl: (ttl > 0).then_some(ttl),
            tos,
            dont_fragment: to.dont_fragment,
            ..Route::to(to.peer)
        };
        self.send_queue.push(SendSocket::Relay(to.relay), route, &[], payload(frame, &to.payload, rx), 0);
    }

    /// Sends a payload of `received`, a frame or a datagram, to a client.
    pub(crate) fn send_to_client(&mut self, to: &ToClient, received: &[u8], rx: &RxBuffers) {
        let bytes = received.get(to.payload.clone()).unwrap_or_default();
        if self.clients.send_to_stream_client(to, bytes) {
            return;
        }
        let ToClient { client, ref header, padding, ip_header, .. } = *to;
        if client.transport == Transport::Udp {
            if let Some((door, route)) = self.clients.route_to(client, ip_header) {
                let body = payload(received, &to.payload, rx);
                self.send_queue.push(SendSocket::Listener(door), route, header.as_bytes(), body, padding);
            }
            return;
        }
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.extend_from_slice(header.as_bytes());
        frame.extend_from_slice(bytes);
        frame.resize(frame.len() + padding, 0);
        self.clients.send_marked(client, ip_header, &frame);
        self.scratch = frame;
    }

    /// Sends what has gathered, and makes room for more.
    pub(crate) fn flush_and_clear(&mut self, rx: &mut RxBuffers) {
        self.send_queue.merge_headers(rx);
        self.flush_sends(rx);
        rx.clear();
    }

    /// Sends what has gathered.
    pub(crate) fn flush_sends(&mut self, rx: &RxBuffers) {
        if self.send_queue.is_empty() {
            return;
        }
        let (clients, relay_sockets) = (&self.clients, &self.relay_sockets);
        let socket = |exit| match exit {
            SendSocket::Listener(index) => clients.socket_at(index),
            SendSocket::Relay(relay) => relay_sockets.get(relay)?.as_ref(),
        };
        self.send_queue.send(rx, socket, |route, error| clients.count_send_error(route.to, error));
    }

    /// Does what the relay and the DTLS sessions say; `heard` is the length of the datagram that made them say so.
    pub(crate) fn handle_outputs(&mut self, now: Now, heard: usize, rx: &RxBuffers) {
        loop {
            if self.relay.has_output() {
                // What is said now may close sockets that the datagrams before are to leave by.
                self.flush_sends(rx);
                self.handle_relay_outputs(now);
            }
            match self.clients.dtls.poll_output() {
                None => return,
                Some(dtls::Output::Datagram { client, bytes }) => {
                    self.clients.send_datagram(client, IpHeader::default(), &bytes);
                }
                Some(dtls::Output::Challenge { client, bytes }) => {
                    let client = FiveTuple { transport: Transport::Udp, ..client };
                    self.reply_unverified(now, client, heard, &bytes);
                }
                Some(dtls::Output::Frame { client, bytes }) => self.handle_frame(now, client, &bytes, rx),
                Some(dtls::Output::Gone { client }) => self.relay.handle_client_gone(client),
            }
        }
    }

    fn handle_relay_outputs(&mut self, now: Now) {
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Response { client, bytes, auth: RequestAuth::Unverified { request_len } }
                    if client.transport == Transport::Udp =>
                {
                    self.reply_unverified(now, client, request_len, &bytes);
                }
                Output::Response { client, bytes, auth } => {
                    if auth == RequestAuth::Verified {
                        self.clients.mark_authenticated(client);
                    }
                    self.clients.send(client, &bytes);
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
                Output::BindConnection { client, connection, response, bandwidth } => {
                    let peer_stream = self.tcp.join(connection, response, bandwidth).map(Box::new);
                    self.clients.join(client, peer_stream);
                }
                Output::Disconnect { connection } => self.tcp.disconnect(connection),
                Output::ForwardRequest { client, worker, bytes } => {
                    if !self.clients.moved.send_frame(client, worker, &bytes) {
                        self.clients.drops.add(WorkerDropReason::WorkerQueueFull, 1);
                    }
                }
                Output::ClientLeft { client } => self.clients.moved.send_left(client),
                Output::LookUpUser { query: question, from, is_known } => {
                    if !self.lookups.enqueue(now, from, (Arc::clone(&question), is_known)) {
                        self.relay.handle_lookup_done(now, &question, false);
                    }
                }
            }
        }
    }

    fn open_relay(&mut self, relay: RelayId, address: SocketAddr) -> io::Result<()> {
        let socket = BatchUdpSocket::bind(address, Role::Relay)?;
        watch(&self.poll, &socket, Token(self.clients.listeners.len() + relay))?;
        if relay >= self.relay_sockets.len() {
            self.relay_sockets.resize_with(relay + 1, || None);
        }
        self.relay_sockets[relay] = Some(socket);
        Ok(())
    }
}

/// Receives a batch, or says how the socket's turn ends without one.
fn receive(socket: &impl BatchSocket, rx: &mut RxBuffers) -> Result<RxBatch, Progress> {
    socket.recv(rx).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Progress::Drained,
        _ => {
            tracing::debug!(%error, "receive");
            Progress::More
        }
    })
}

/// Returns a payload of `received`: a range of the receive buffers where it lies there, else it is copied.
fn payload<'a>(received: &'a [u8], range: &Range<usize>, rx: &RxBuffers) -> Payload<'a> {
    match rx.position(received) {
        Some(start) => Payload::Received { start: start + range.start, len: range.len() },
        None => Payload::Copied(received.get(range.clone()).unwrap_or_default()),
    }
}

/// Returns the fields of the IP header that the relay preserves.
fn ip_header(datagram: &Datagram<'_>) -> IpHeader {
    IpHeader { ttl: datagram.ttl, tos: datagram.tos }
}

fn watch(poll: &Poll, port: &BatchUdpSocket, token: Token) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&port.as_raw_fd()), token, Interest::READABLE)
}
