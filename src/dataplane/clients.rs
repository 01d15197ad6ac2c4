//! The clients of one worker, and how it sends to them: from the listening socket that they send to, or on their stream.

use super::counters::{WorkerDropCounters, WorkerDropReason};
use super::dtls::Dtls;
use super::inbox::{REPLY_QUEUE, ReplyPath, StreamMessage};
use super::moved_clients::MovedClients;
use super::peer_streams::PeerStream;
use super::stream_limits::UNAUTHENTICATED_UNREAD;
use super::tcp_connections::{AcceptedSocket, MAX_UNREAD, TcpConnections};
use super::worker::ListenSocket;
use super::worker_pool::WorkerSockets;
use crate::ids::Pii;
use crate::limits::Limit;
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::udp::{BatchUdpSocket, Route};
use crate::turn_server::{FiveTuple, IpHeader, ToClient, Transport};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The connection of a stream client.
#[derive(Debug)]
enum Stream {
    /// A TCP connection of the worker, by its slot.
    Tcp(usize),
    /// A task that carries TLS or WebSocket. `out` has the frames of this iteration, which are sent together.
    Task { path: ReplyPath, out: BytesMut, frames: u64 },
}

impl Stream {
    /// Sends a task the frames of this iteration; returns how many were dropped because its queue is full.
    fn flush(&mut self) -> u64 {
        let Self::Task { path, out, frames } = self else { return 0 };
        let count = std::mem::take(frames);
        if count == 0 {
            return 0;
        }
        let bytes = out.split().freeze();
        let length = bytes.len();
        if path.replies.try_send(StreamMessage::Frames(bytes), length).is_ok() {
            return 0;
        }
        Limit::QueuedFramesPerClient.reached(REPLY_QUEUE);
        count
    }
}

/// The listening sockets, DTLS sessions and stream clients of one worker.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) listeners: Vec<ListenSocket>,
    /// Handles of other workers' listening sockets, for sending.
    send_only: Vec<BatchUdpSocket>,
    streams: HashMap<FiveTuple, Stream>,
    /// Clients whose tasks have frames to send.
    unsent: Vec<FiveTuple>,
    pub(crate) tcp: TcpConnections,
    pub(crate) dtls: Dtls,
    pub(crate) moved: MovedClients,
    pub(crate) drops: WorkerDropCounters,
}

const ZEROS: [u8; 3] = [0; 3];

impl Clients {
    pub(crate) fn new(
        (listeners, send_only): WorkerSockets,
        dtls: Dtls,
        tcp: TcpConnections,
        moved: MovedClients,
    ) -> Self {
        let (streams, unsent) = (HashMap::new(), Vec::new());
        let drops = WorkerDropCounters::default();
        Self { listeners, send_only, streams, unsent, tcp, dtls, moved, drops }
    }

    /// Inserts the socket of a TCP client; returns whether it replaces an older stream with the same 5-tuple.
    pub(crate) fn insert_socket(&mut self, now: Instant, accepted: AcceptedSocket) -> bool {
        let client = accepted.client;
        match self.tcp.insert(now, accepted) {
            Ok(slot) => self.insert(now, client, Stream::Tcp(slot)),
            Err(error) => {
                tracing::debug!(%error, "TCP client not served");
                false
            }
        }
    }

    /// Inserts a client whose stream a task carries; returns whether it replaces an older stream with the same 5-tuple.
    pub(crate) fn insert_task(&mut self, now: Instant, client: FiveTuple, path: ReplyPath) -> bool {
        self.insert(now, client, Stream::Task { path, out: BytesMut::new(), frames: 0 })
    }

    fn insert(&mut self, now: Instant, client: FiveTuple, stream: Stream) -> bool {
        let older = self.streams.insert(client, stream);
        if let Some(Stream::Tcp(slot)) = older {
            self.tcp.close(now, slot);
        }
        older.is_some()
    }

    /// Removes a client whose task has ended; returns `false` when the client has another stream now.
    pub(crate) fn remove_task(&mut self, client: FiveTuple, link: u64) -> bool {
        let is_its_own = |stream: &Stream| matches!(stream, Stream::Task { path, .. } if path.link == link);
        self.streams.get(&client).is_some_and(is_its_own) && self.streams.remove(&client).is_some()
    }

    /// Closes a TCP connection; returns `false` when the client has another stream now.
    pub(crate) fn close(&mut self, now: Instant, slot: usize, client: FiveTuple) -> bool {
        self.tcp.close(now, slot);
        let is_its_own = |stream: &Stream| matches!(stream, Stream::Tcp(own) if *own == slot);
        self.streams.get(&client).is_some_and(is_its_own) && self.streams.remove(&client).is_some()
    }

    /// Closes the TCP connection with this number if its client has not authenticated.
    pub(crate) fn evict(&mut self, client: FiveTuple, number: u64) {
        if let Some(Stream::Tcp(slot)) = self.streams.get(&client) {
            self.tcp.evict(*slot, number);
        }
    }

    /// Sends stream clients the frames of this iteration.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.tcp.flush(now);
        while let Some(client) = self.unsent.pop() {
            let dropped = self.streams.get_mut(&client).map_or(0, Stream::flush);
            self.drops.add(WorkerDropReason::ClientNotReading, dropped);
        }
    }

    /// Sends relayed data to a stream client.
    pub(crate) fn send_to_stream_client(&mut self, to: &ToClient, payload: &[u8]) {
        let padding = &ZEROS[..to.padding.min(ZEROS.len())];
        self.send_to_stream(to.client, [to.header.as_bytes(), payload, padding]);
    }

    /// Queues a frame; it is dropped when the client does not read fast enough, so that no client delays others.
    fn send_to_stream(&mut self, client: FiveTuple, parts: [&[u8]; 3]) {
        let sent = match self.streams.get_mut(&client) {
            Some(Stream::Tcp(slot)) => self.tcp.send(*slot, parts),
            Some(Stream::Task { path, out, frames }) => {
                let length = parts.iter().map(|part| part.len()).sum::<usize>() + out.len();
                let is_authenticated = path.authenticated.load(Ordering::Relaxed);
                let most = if is_authenticated { MAX_UNREAD } else { UNAUTHENTICATED_UNREAD };
                let has_room = path.replies.bytes() + length <= most;
                if has_room {
                    if *frames == 0 {
                        self.unsent.push(client);
                    }
                    *frames += 1;
                    parts.iter().for_each(|part| out.extend_from_slice(part));
                } else {
                    Limit::UnreadBytesPerClient.reached(most);
                }
                has_room
            }
            None => return self.send_via_worker(client, &parts.concat()),
        };
        if !sent {
            self.drops.add(WorkerDropReason::ClientNotReading, 1);
        }
    }

    /// Sends a frame to a client that arrives at another worker.
    fn send_via_worker(&self, client: FiveTuple, bytes: &[u8]) {
        let reason = match self.moved.answer(client, bytes) {
            Some(true) => return,
            Some(false) => WorkerDropReason::WorkerQueueFull,
            None => WorkerDropReason::ClientClosed,
        };
        self.drops.add(reason, 1);
    }

    /// Sends one whole frame to a client.
    pub(crate) fn send(&mut self, client: FiveTuple, bytes: &[u8]) {
        match client.transport {
            Transport::Udp if self.moved.is_current(client) => self.send_via_worker(client, bytes),
            Transport::Udp => self.send_datagram(client, bytes),
            // The session returns the encrypted datagram as output.
            Transport::Dtls => {
                if !self.dtls.send(client, bytes) {
                    self.send_via_worker(client, bytes);
                }
            }
            _ => self.send_to_stream(client, [bytes, &[], &[]]),
        }
    }

    /// Marks a client as authenticated: its session or connection may stay silent for longer.
    pub(crate) fn mark_authenticated(&mut self, client: FiveTuple) {
        match client.transport {
            Transport::Udp => {}
            Transport::Dtls => self.dtls.mark_authenticated(client),
            _ => match self.streams.get(&client) {
                Some(Stream::Tcp(slot)) => self.tcp.mark_authenticated(*slot),
                Some(Stream::Task { path, .. }) => {
                    path.authenticated.store(true, Ordering::Relaxed);
                    path.connection.iter().for_each(ConnectionPermit::mark_authenticated);
                }
                None => {}
            },
        }
    }

    /// Sends one datagram to a client on UDP or DTLS.
    pub(crate) fn send_datagram(&self, client: FiveTuple, bytes: &[u8]) {
        let Some((listener, route)) = self.route_to(client, IpHeader::default()) else { return };
        let sent = self.socket_at(listener).map(|socket| socket.send(&route, bytes));
        if let Some(Err(error)) = sent {
            self.count_send_error(client.client, &error);
        }
    }

    /// Returns the index of the listening socket, and the route, that reach a client on UDP or DTLS.
    pub(crate) fn route_to(&self, client: FiveTuple, ip_header: IpHeader) -> Option<(usize, Route)> {
        let (listener, socket) = self.listener_at(client.server)?;
        let source = socket.local_addr().ip().is_unspecified().then_some(client.server.ip());
        let ttl = (ip_header.ttl > 0).then_some(ip_header.ttl);
        Some((listener, Route { source, ttl, tos: ip_header.tos, ..Route::to(client.client) }))
    }

    /// Returns the socket with this index: the worker's own sockets come first, then the handles of other workers' sockets.
    pub(crate) fn socket_at(&self, listener: usize) -> Option<&BatchUdpSocket> {
        match self.listeners.get(listener) {
            Some(listener) => Some(&listener.socket),
            None => self.send_only.get(listener - self.listeners.len()),
        }
    }

    /// Binds a peer connection to a client's connection (RFC 6062). Both close if either has gone.
    pub(crate) fn join(&mut self, client: FiveTuple, peer_stream: Option<Box<PeerStream>>) {
        let mut stream = self.streams.get_mut(&client);
        let dropped = stream.as_mut().map_or(0, |stream| stream.flush());
        self.drops.add(WorkerDropReason::ClientNotReading, dropped);
        let is_joined = peer_stream.zip(stream).is_some_and(|(peer_stream, stream)| match stream {
            Stream::Tcp(slot) => self.tcp.join(*slot, peer_stream),
            Stream::Task { path, .. } => path.replies.try_send(StreamMessage::Join(peer_stream), 0).is_ok(),
        });
        if !is_joined {
            self.drops.add(WorkerDropReason::ClientClosed, 1);
        }
    }

    /// Returns the socket that receives datagrams for `server`.
    fn listener_at(&self, server: SocketAddr) -> Option<(usize, &BatchUdpSocket)> {
        self.listeners.iter().map(|listener| &listener.socket).chain(&self.send_only).enumerate().find(
            |(_, socket)| {
                let local = socket.local_addr();
                local.port() == server.port()
                    && (local.ip() == server.ip()
                        || (local.ip().is_unspecified() && local.is_ipv4() == server.is_ipv4()))
            },
        )
    }

    /// Counts a datagram that was not sent: no route, or the send buffer is full.
    pub(crate) fn count_send_error(&self, to: SocketAddr, error: &io::Error) {
        self.drops.add(WorkerDropReason::SendError, 1);
        tracing::trace!(to = %Pii(to), %error, "not sent");
    }
}

#[cfg(test)]
mod tests {
    use super::super::dtls::DtlsIdentity;
    use super::super::inbox::Inbox;
    use super::*;
    use crate::limits::{QueueBounds, queue};
    use crate::net::certificate::Certificate;
    use crate::net::time;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use std::sync::{Arc, OnceLock};

    fn client(number: u8) -> FiveTuple {
        let address = SocketAddr::from(([192, 0, 2, number], 1000));
        FiveTuple { client: address, server: address, transport: Transport::Tls }
    }

    #[tokio::test]
    async fn frames_that_do_not_reach_their_client_are_counted_by_reason() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::own(folder.path()).unwrap();
        let identity = DtlsIdentity::new(&certificate, folder.path()).unwrap();
        let polls = [0, 1].map(|_| mio::Poll::new().unwrap());
        let inbox = |poll: &mio::Poll| Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let ((own, _own), (other, mut arrived)) = (inbox(&polls[0]), inbox(&polls[1]));
        let inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from([own, other])));
        let mut clients = Clients::new(
            (Vec::new(), Vec::new()),
            Dtls::new(time::now(), identity, ChaCha20Rng::from_seed([7; 32])),
            TcpConnections::new(polls[0].registry().try_clone().unwrap(), tokio::runtime::Handle::current()),
            MovedClients::new(0, inboxes),
        );
        let dropped = |clients: &Clients, reason| clients.drops.get()[reason as usize];

        clients.send(client(1), b"frame");
        clients.join(client(1), None);
        assert_eq!(dropped(&clients, WorkerDropReason::ClientClosed), 2);

        let (replies, _unread) = queue(QueueBounds { items: REPLY_QUEUE, bytes: MAX_UNREAD });
        let path = ReplyPath { link: 1, replies, authenticated: Arc::default(), connection: None };
        clients.insert_task(time::now().mono, client(2), path);
        clients.send(client(2), &[0; UNAUTHENTICATED_UNREAD]);
        assert_eq!(dropped(&clients, WorkerDropReason::ClientNotReading), 0);
        clients.send(client(2), b"more");
        assert_eq!(dropped(&clients, WorkerDropReason::ClientNotReading), 1);

        clients.moved.begin_forwarded(client(3), 1);
        clients.moved.end_forwarded(client(3), true);
        let mut sent = 0_u64;
        while dropped(&clients, WorkerDropReason::WorkerQueueFull) == 0 {
            clients.send(client(3), b"frame");
            sent += 1;
        }
        assert_eq!(std::iter::from_fn(|| arrived.try_recv().ok()).count() as u64, sent - 1);
    }
}
