//! One worker thread per core. It owns its sockets, its relay, its timers and its counters, and takes no protocol decisions.
//!
//! Each iteration waits for a ready socket or the next deadline, reads the clock once, receives one batch from every ready socket, carries
//! out what the relay returns, and sends what is queued. A socket with more data waits for the next iteration, so that no client or peer
//! can delay the others.
//!
//! A datagram's path is in this file; see also `worker_messages` (other threads), `tcp_frames`, `stun_requests` and `worker_outputs`.

use super::clients::Clients;
use super::counters::{WorkerCounters, WorkerDropReason};
use super::dtls::Dtls;
use super::inbox::{Inbox, WorkerMessage};
use super::lookups::Lookups;
use super::moved_clients::{Inboxes, MovedClients};
use super::peer_streams::{PeerStreamTable, PeerTcp};
use super::ready_queue::{INBOX, ReadyQueue, TCP_CONNECTIONS, WORKER_CHANNELS};
use super::send_queue::{SendQueue, SendSocket};
use super::tcp_connections::{self, TcpConnections};
use super::waker::WorkerWaker;
use super::worker_channel::WorkerChannels;
use super::worker_pool::WorkerSockets;
use crate::clock::Now;
use crate::net::demux::{self, DatagramKind};
use crate::net::time;
use crate::net::udp::{BatchSocket, BatchUdpSocket, Datagram, Route, RxBatch, RxBuffers, RxSlice};
use crate::net::unauthenticated::UnauthenticatedLimiter;
use crate::signaling::{Handle, ServerPort};
use crate::stun::Message;
use crate::stun_server::{Discovery, SharedSecrets};
use crate::turn_server::{
    ClientFrame, FiveTuple, Forward, IcmpError, InternalPacket, IpHeader, Relay, RelayId, ToClient, ToPeer,
    Transport,
};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A message from a client, classified by its first byte.
#[derive(Debug, Clone, Copy)]
struct ClientPacket<'a> {
    client: FiveTuple,
    kind: DatagramKind,
    ip_header: IpHeader,
    bytes: RxSlice<'a>,
}

/// The state of a socket or queue after it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is empty.
    Drained,
    /// It may have more.
    More,
    /// The worker must stop.
    Stop,
}

/// One listening socket of a worker.
#[derive(Debug)]
pub(crate) struct ListenSocket {
    pub(crate) socket: BatchUdpSocket,
    pub(crate) port: ServerPort,
    /// Whether it is the TLS and DTLS port. It takes no signalling, because the hub sends from the main port.
    pub(crate) is_tls_port: bool,
}

/// What [`Worker::new`] needs.
#[derive(Debug)]
pub(super) struct WorkerParts {
    pub(super) sockets: WorkerSockets,
    pub(super) discovery: Discovery,
    pub(super) secrets: SharedSecrets,
    pub(super) unauthenticated: UnauthenticatedLimiter,
    pub(super) relay: Relay,
    pub(super) dtls: Dtls,
    pub(super) signaling: Handle,
    pub(super) lookups: Lookups,
    /// The index of the worker.
    pub(super) index: u16,
    pub(super) inboxes: Inboxes,
    pub(super) peer_streams: PeerStreamTable,
}

/// The state of one worker thread.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) poll: Poll,
    pub(super) inbox: mpsc::Receiver<WorkerMessage>,
    waker: Arc<WorkerWaker>,
    pub(super) clients: Clients,
    pub(super) worker_channels: WorkerChannels,
    pub(super) relay: Relay,
    /// The sockets of the relay ports, by their id.
    pub(super) relay_sockets: Vec<Option<BatchUdpSocket>>,
    pub(super) discovery: Discovery,
    pub(super) secrets: SharedSecrets,
    unauthenticated: UnauthenticatedLimiter,
    signaling: Handle,
    pub(super) lookups: Lookups,
    pub(super) peer_tcp: PeerTcp,
    ready: ReadyQueue,
    pub(super) send_queue: SendQueue,
    /// Buffer of the latest Binding response.
    pub(super) binding_buffer: Vec<u8>,
    /// Buffer of the latest frame for a DTLS client.
    frame_buffer: Vec<u8>,
}

impl Worker {
    /// Registers the listening sockets; returns the worker and the sending side of its inbox.
    pub(super) fn new(parts: WorkerParts) -> io::Result<(Self, Inbox)> {
        let poll = Poll::new()?;
        for (index, listener) in parts.sockets.0.iter().enumerate() {
            register(&poll, &listener.socket, Token(index))?;
        }
        let (inbox, receiver) = Inbox::new(mio::Waker::new(poll.registry(), INBOX)?);
        let runtime = tokio::runtime::Handle::current();
        let tcp = TcpConnections::new(poll.registry().try_clone()?, runtime.clone());
        let moved = MovedClients::new(parts.index, Arc::clone(&parts.inboxes));
        let worker = Self {
            poll,
            inbox: receiver,
            waker: Arc::clone(inbox.waker()),
            clients: Clients::new(parts.sockets, parts.dtls, tcp, moved),
            worker_channels: WorkerChannels::new(
                parts.index,
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
            peer_tcp: PeerTcp::new(parts.peer_streams, inbox.clone(), runtime),
            ready: ReadyQueue::default(),
            send_queue: SendQueue::default(),
            binding_buffer: Vec::new(),
            frame_buffer: Vec::new(),
        };
        Ok((worker, inbox))
    }

    /// Runs until [`WorkerMessage::Stop`] arrives.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut rx = RxBuffers::default();
        loop {
            let wait = if self.may_sleep() { self.time_to_deadline() } else { Some(Duration::ZERO) };
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
            for _ in 0..self.ready.len() {
                let Some(token) = self.ready.pop() else { break };
                let progress = match token {
                    INBOX => self.poll_inbox(now, &mut rx),
                    TCP_CONNECTIONS => self.poll_tcp_connections(now, &mut rx),
                    WORKER_CHANNELS => self.poll_worker_channels(now, &mut rx),
                    _ => self.poll_socket(now, token, &mut rx),
                };
                match progress {
                    Progress::More => self.ready.push(token),
                    Progress::Drained => {}
                    Progress::Stop => return Ok(()),
                }
            }
            self.handle_timeout(now, &rx);
            self.flush(now, &mut rx);
        }
    }

    /// Returns whether nothing is ready. Everything that becomes ready later ends the wait for events.
    fn may_sleep(&self) -> bool {
        self.ready.is_empty()
            && !self.clients.tcp.has_readable()
            && self.waker.may_sleep(|| self.inbox.is_empty() && self.worker_channels.is_empty())
    }

    /// Returns the time to the next deadline; `None` when there is none.
    fn time_to_deadline(&self) -> Option<Duration> {
        let (dtls, tcp) = (self.clients.dtls.poll_timeout(), self.clients.tcp.poll_timeout());
        let deadline = [self.relay.poll_timeout(), dtls, tcp].into_iter().flatten().min()?;
        Some(deadline.saturating_duration_since(time::now().mono))
    }

    /// Adds the queues that are not empty to the ready queue: a worker that is awake gets no event for them.
    fn schedule_queues(&mut self) {
        let queues = [
            (INBOX, !self.inbox.is_empty()),
            (TCP_CONNECTIONS, self.clients.tcp.has_readable()),
            (WORKER_CHANNELS, !self.worker_channels.is_empty()),
        ];
        queues.into_iter().filter(|(_, is_ready)| *is_ready).for_each(|(token, _)| self.ready.push(token));
    }

    fn handle_timeout(&mut self, now: Now, rx: &RxBuffers) {
        self.relay.handle_timeout(now);
        self.clients.dtls.handle_timeout(now);
        self.handle_outputs(now, 0, rx);
        self.clients.tcp.handle_timeout(now.mono);
    }

    /// Sends everything that was queued in this iteration.
    fn flush(&mut self, now: Now, rx: &mut RxBuffers) {
        self.clients.flush(now.mono);
        self.close_ended_connections(now);
        self.handle_outputs(now, 0, rx);
        let dropped = self.worker_channels.flush();
        self.clients.drops.add(WorkerDropReason::WorkerQueueFull, dropped as u64);
        self.flush_and_clear(rx);
    }

    pub(super) fn counters(&self) -> WorkerCounters {
        WorkerCounters {
            withheld: self.unauthenticated.counters(),
            drops: self.clients.drops.get(),
            between_workers: self.worker_channels.sent(),
            ..WorkerCounters::default()
        }
        .with_relay(&self.relay)
    }

    /// Receives one batch from a socket and handles its datagrams.
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
            Err(progress) => return progress,
        };
        if token.0 < listeners && self.relay.should_prefetch(batch.messages()) {
            self.prefetch(token.0, rx.senders(batch));
        }
        for datagram in rx.datagrams(batch) {
            if token.0 < listeners {
                self.handle_datagram(now, token.0, datagram);
            } else {
                self.handle_peer_datagram(now, token.0 - listeners, datagram);
            }
            self.handle_outputs(now, datagram.payload.as_bytes().len(), rx);
        }
        if batch.is_drained() { Progress::Drained } else { Progress::More }
    }

    /// Prefetches what the relay needs for a batch from a listening socket.
    fn prefetch(&self, listener: usize, senders: impl Iterator<Item = SocketAddr>) {
        // Where datagrams were sent to another address of the host, the prefetch misses, which changes no result.
        let server = self.clients.listeners[listener].socket.local_addr();
        let tuple = |client| FiveTuple { client, server, transport: Transport::Udp };
        self.relay.prefetch_clients(senders.map(tuple));
    }

    fn handle_peer_datagram(&mut self, now: Now, relay: RelayId, datagram: Datagram<'_>) {
        let Datagram { from, payload, .. } = datagram;
        if let Ok(to) = self.relay.handle_peer(now, relay, from, ip_header(&datagram), payload.as_bytes()) {
            self.send_to_client(&to, payload);
        }
    }

    /// Sends clients the ICMP errors about datagrams that a relay port sent.
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

    /// Handles a datagram from a client: its first byte decides which protocol it belongs to.
    fn handle_datagram(&mut self, now: Now, listener: usize, datagram: Datagram<'_>) {
        let ListenSocket { socket, port, is_tls_port } = &self.clients.listeners[listener];
        let local = socket.local_addr();
        let server = SocketAddr::new(datagram.local_ip.unwrap_or(local.ip()), local.port());
        let client = FiveTuple { client: datagram.from, server, transport: Transport::Udp };
        let bytes = datagram.payload.as_bytes();
        let kind = demux::datagram(bytes);
        let packet = ClientPacket { client, kind, ip_header: ip_header(&datagram), bytes: datagram.payload };
        match (kind, *port) {
            (DatagramKind::Dtls, ServerPort::Main) => {
                let (limiter, ends) = (&mut self.unauthenticated, (datagram.from, server));
                let admits = || limiter.allow_handshake(now, datagram.from.ip());
                if !self.clients.dtls.handle_datagram(now, ends, bytes, admits) {
                    self.clients.drops.add(WorkerDropReason::Dtls, 1);
                }
            }
            (DatagramKind::Signaling, ServerPort::Main) if self.relay.is_channel_data(now, client, bytes) => {
                self.handle_client_packet(now, packet);
            }
            (DatagramKind::Signaling, port) if !is_tls_port => {
                if !self.signaling.send_datagram(port, datagram.from, datagram.local_ip, bytes) {
                    self.clients.drops.add(WorkerDropReason::SignalingQueueFull, 1);
                }
            }
            (DatagramKind::Stun, ServerPort::Aux) => {
                let message = Message::parse(bytes);
                if !message.is_ok_and(|message| self.answer_binding_request(now, client, &message)) {
                    self.clients.drops.add(WorkerDropReason::UnknownProtocol, 1);
                }
            }
            (DatagramKind::Stun | DatagramKind::ChannelData, ServerPort::Main) => {
                self.handle_client_packet(now, packet);
            }
            _ => self.clients.drops.add(WorkerDropReason::UnknownProtocol, 1),
        }
    }

    /// Handles a frame that was received on a stream or inside DTLS.
    pub(super) fn handle_frame(&mut self, now: Now, client: FiveTuple, bytes: RxSlice<'_>) {
        let (kind, ip_header) = (demux::datagram(bytes.as_bytes()), IpHeader::default());
        self.handle_client_packet(now, ClientPacket { client, kind, ip_header, bytes });
    }

    /// Handles a message from a client: forwards it to the worker that has the client's allocation, responds to a Binding request,
    /// or passes it to the relay.
    fn handle_client_packet(&mut self, now: Now, packet: ClientPacket<'_>) {
        let ClientPacket { client, kind, ip_header, bytes: received } = packet;
        let bytes = received.as_bytes();
        if let Some(is_forwarded) = self.clients.moved.forward(now.mono, client, bytes) {
            if !is_forwarded {
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
            Forward::Peer(to) => self.send_to_peer(to, received),
            Forward::LocalClient(to) => self.send_to_client(&to, received),
            Forward::OtherWorker(packet) => self.send_to_worker(&packet, received),
            Forward::Control | Forward::Drop(_) => {}
        }
    }

    /// Sends a response to a request that is not authenticated. A datagram's source address may be forged, so that limits apply.
    pub(super) fn send_unverified(
        &mut self,
        now: Now,
        client: FiveTuple,
        request_len: usize,
        response: &[u8],
    ) {
        if client.transport != Transport::Udp {
            return self.clients.send(client, response);
        }
        let oversized = self.unauthenticated.counters().over_size;
        if self.unauthenticated.allow_response(now, client.client.ip(), request_len, response.len()) {
            if let Some((listener, route)) = self.clients.route_to(client, IpHeader::default()) {
                let socket = SendSocket::Listener(listener);
                self.send_queue.push(socket, route, response, RxSlice::default(), 0);
            }
            return;
        }
        self.clients.drops.add(WorkerDropReason::ResponseWithheld, 1);
        if (oversized, self.unauthenticated.counters().over_size) == (0, 1) {
            // A configuration error, never the client's doing: no client is served until it is corrected.
            tracing::warn!(
                request_len,
                response_len = response.len(),
                "response too long for an unauthenticated client; is turn.realm too long?"
            );
        }
    }

    fn send_to_peer(&mut self, to: ToPeer, received: RxSlice<'_>) {
        let IpHeader { ttl, tos } = to.ip_header;
        let route = Route {
            ttl: (ttl > 0).then_some(ttl),
            tos,
            dont_fragment: to.dont_fragment,
            ..Route::to(to.peer)
        };
        self.send_queue.push(SendSocket::Relay(to.relay), route, &[], received.slice(to.payload), 0);
    }

    /// Queues a payload for a client of another worker.
    fn send_to_worker(&mut self, packet: &InternalPacket, received: RxSlice<'_>) {
        let payload = received.slice(packet.payload.clone()).as_bytes();
        let dropped = self.worker_channels.push(packet, payload);
        self.clients.drops.add(WorkerDropReason::WorkerQueueFull, dropped as u64);
    }

    /// Sends a part of `received`, a frame or a datagram, to a client.
    pub(super) fn send_to_client(&mut self, to: &ToClient, received: RxSlice<'_>) {
        let payload = received.slice(to.payload.clone());
        let ToClient { client, ref header, padding, ip_header, .. } = *to;
        match client.transport {
            Transport::Udp => {
                if let Some((listener, route)) = self.clients.route_to(client, ip_header) {
                    let socket = SendSocket::Listener(listener);
                    self.send_queue.push(socket, route, header.as_bytes(), payload, padding);
                }
            }
            Transport::Dtls => {
                self.frame_buffer.clear();
                self.frame_buffer.extend_from_slice(header.as_bytes());
                self.frame_buffer.extend_from_slice(payload.as_bytes());
                self.frame_buffer.resize(self.frame_buffer.len() + padding, 0);
                self.clients.send(client, &self.frame_buffer);
            }
            _ => self.clients.send_to_stream_client(to, payload.as_bytes()),
        }
    }

    /// Sends what is queued, and releases the receive buffers.
    pub(super) fn flush_and_clear(&mut self, rx: &mut RxBuffers) {
        self.send_queue.merge_headers(rx);
        self.flush_sends(rx);
        rx.clear();
    }

    /// Sends what is queued.
    pub(super) fn flush_sends(&mut self, rx: &RxBuffers) {
        if self.send_queue.is_empty() {
            return;
        }
        let (clients, relay_sockets) = (&self.clients, &self.relay_sockets);
        let socket = |socket| match socket {
            SendSocket::Listener(index) => clients.socket_at(index),
            SendSocket::Relay(relay) => relay_sockets.get(relay)?.as_ref(),
        };
        self.send_queue.send(rx, socket, |route, error| clients.count_send_error(route.to, error));
    }
}

/// Receives a batch; without one, returns the state of the socket.
fn receive(socket: &impl BatchSocket, rx: &mut RxBuffers) -> Result<RxBatch, Progress> {
    socket.recv(rx).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Progress::Drained,
        _ => {
            tracing::debug!(%error, "receive");
            Progress::More
        }
    })
}

/// Returns the fields of the IP header that the relay preserves.
fn ip_header(datagram: &Datagram<'_>) -> IpHeader {
    IpHeader { ttl: datagram.ttl, tos: datagram.tos }
}

/// Registers a socket for readability.
pub(super) fn register(poll: &Poll, socket: &BatchUdpSocket, token: Token) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
}
