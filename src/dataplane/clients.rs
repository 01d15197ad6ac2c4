//! The way back to a client: through the listener it came in by, whatever its transport.

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

/// How a stream client is reached.
#[derive(Debug)]
enum Stream {
    /// Its socket is the worker's own.
    Own(usize),
    /// By a task, which writes what is gathered for it in one pass: TLS, WebSocket.
    Task { path: ReplyPath, out: BytesMut, frames: u64 },
}

impl Stream {
    /// Gives a task what was gathered for it; returns how many frames were lost because it does not keep up.
    fn send_gathered(&mut self) -> u64 {
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

/// One worker's listening sockets, its DTLS sessions and its stream clients.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) listeners: Vec<ListenSocket>,
    /// Handles on other workers' listeners, to send by.
    send_only: Vec<BatchUdpSocket>,
    streams: HashMap<FiveTuple, Stream>,
    /// Clients whose tasks are to be handed what was gathered for them.
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

    /// Takes over the socket of a client by TCP; says whether an older stream had the same addresses.
    pub(crate) fn insert_socket(&mut self, now: Instant, arrival: AcceptedSocket) -> bool {
        let client = arrival.client;
        match self.tcp.insert(now, arrival) {
            Ok(slot) => self.insert(now, client, Stream::Own(slot)),
            Err(error) => {
                tracing::debug!(%error, "stream");
                false
            }
        }
    }

    /// Takes in a client whose stream a task carries; says whether an older stream had the same addresses.
    pub(crate) fn open(&mut self, now: Instant, client: FiveTuple, path: ReplyPath) -> bool {
        self.insert(now, client, Stream::Task { path, out: BytesMut::new(), frames: 0 })
    }

    fn insert(&mut self, now: Instant, client: FiveTuple, stream: Stream) -> bool {
        let older = self.streams.insert(client, stream);
        if let Some(Stream::Own(slot)) = older {
            self.tcp.close(now, slot);
        }
        older.is_some()
    }

    /// Forgets a client whose task has ended; `false` when it was another one's.
    pub(crate) fn remove_task(&mut self, client: FiveTuple, link: u64) -> bool {
        let its_own = |stream: &Stream| matches!(stream, Stream::Task { path, .. } if path.link == link);
        self.streams.get(&client).is_some_and(its_own) && self.streams.remove(&client).is_some()
    }

    /// Closes a socket of the worker's own; `false` when its client has another stream by now.
    pub(crate) fn close(&mut self, now: Instant, slot: usize, client: FiveTuple) -> bool {
        self.tcp.close(now, slot);
        let its_own = |stream: &Stream| matches!(stream, Stream::Own(of) if *of == slot);
        self.streams.get(&client).is_some_and(its_own) && self.streams.remove(&client).is_some()
    }

    /// Ends a client by TCP that has shown no credentials, unless another one has its addresses by now.
    pub(crate) fn evict(&mut self, client: FiveTuple, number: u64) {
        if let Some(Stream::Own(slot)) = self.streams.get(&client) {
            self.tcp.evict(*slot, number);
        }
    }

    /// Sends stream clients what was gathered for them in this pass.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.tcp.flush(now);
        while let Some(client) = self.unsent.pop() {
            let lost = self.streams.get_mut(&client).map_or(0, Stream::send_gathered);
            self.drops.add(WorkerDropReason::ClientNotReading, lost);
        }
    }

    /// Sends relayed data to a client whom a stream reaches, without putting it together first; `false` when it is none.
    pub(crate) fn send_to_stream_client(&mut self, to: &ToClient, payload: &[u8]) -> bool {
        let ToClient { client, header, padding, .. } = to;
        let by_stream = client.transport.is_stream();
        if by_stream {
            self.send_to_stream(*client, [header.as_bytes(), payload, &ZEROS[..(*padding).min(ZEROS.len())]]);
        }
        by_stream
    }

    /// A stream that does not keep up loses datagrams, as a network would; it holds up nobody else.
    fn send_to_stream(&mut self, client: FiveTuple, parts: [&[u8]; 3]) {
        let sent = match self.streams.get_mut(&client) {
            Some(Stream::Own(slot)) => self.tcp.send(*slot, parts),
            Some(Stream::Task { path, out, frames }) => {
                let length = parts.iter().map(|part| part.len()).sum::<usize>() + out.len();
                let is_authenticated = path.authenticated.load(Ordering::Relaxed);
                let most = if is_authenticated { MAX_UNREAD } else { UNAUTHENTICATED_UNREAD };
                let room = path.replies.bytes() + length <= most;
                if !room {
                    Limit::UnreadBytesPerClient.reached(most);
                } else {
                    if *frames == 0 {
                        self.unsent.push(client);
                    }
                    *frames += 1;
                    parts.iter().for_each(|part| out.extend_from_slice(part));
                }
                room
            }
            None => return self.send_via_worker(client, &parts.concat()),
        };
        if !sent {
            self.drops.add(WorkerDropReason::ClientNotReading, 1);
        }
    }

    /// Answers a client who arrives at another worker.
    fn send_via_worker(&self, client: FiveTuple, bytes: &[u8]) {
        let reason = match self.moved.answer(client, bytes) {
            Some(true) => return,
            Some(false) => WorkerDropReason::WorkerQueueFull,
            None => WorkerDropReason::ClientClosed,
        };
        self.drops.add(reason, 1);
    }

    /// Sends `bytes`, one whole frame, to `client`.
    pub(crate) fn send(&mut self, client: FiveTuple, bytes: &[u8]) {
        self.send_marked(client, IpHeader::default(), bytes);
    }

    /// The same for relayed data, whose IP header passes something on where the client is reached by datagrams.
    pub(crate) fn send_marked(&mut self, client: FiveTuple, marks: IpHeader, bytes: &[u8]) {
        match client.transport {
            Transport::Udp if self.moved.is_current(client) => self.send_via_worker(client, bytes),
            Transport::Udp => self.send_datagram(client, marks, bytes),
            // It leaves as what the sessions put out.
            Transport::Dtls => {
                if !self.dtls.send(client, bytes) {
                    self.send_via_worker(client, bytes);
                }
            }
            _ => self.send_to_stream(client, [bytes, &[], &[]]),
        }
    }

    /// Notes that a client has shown good credentials: where it is connected, it may stay silent for longer.
    pub(crate) fn mark_authenticated(&mut self, client: FiveTuple) {
        match client.transport {
            Transport::Udp => {}
            Transport::Dtls => self.dtls.mark_authenticated(client),
            _ => match self.streams.get(&client) {
                Some(Stream::Own(slot)) => self.tcp.mark_authenticated(*slot),
                Some(Stream::Task { path, .. }) => {
                    path.authenticated.store(true, Ordering::Relaxed);
                    path.connection.iter().for_each(ConnectionPermit::mark_authenticated);
                }
                None => {}
            },
        }
    }

    /// Sends one datagram as it is.
    pub(crate) fn send_datagram(&self, client: FiveTuple, marks: IpHeader, bytes: &[u8]) {
        let Some((listener, route)) = self.route_to(client, marks) else { return };
        let sent = self.socket_at(listener).map(|socket| socket.send(&route, bytes));
        if let Some(Err(error)) = sent {
            self.count_send_error(client.client, &error);
        }
    }

    /// Returns the number of the socket and the route by which a client of datagrams is reached.
    pub(crate) fn route_to(&self, client: FiveTuple, marks: IpHeader) -> Option<(usize, Route)> {
        let here = client.server;
        let (listener, socket) = self.listener_at(here)?;
        let source = socket.local_addr().ip().is_unspecified().then_some(here.ip());
        let ttl = (marks.ttl > 0).then_some(marks.ttl);
        Some((listener, Route { source, ttl, tos: marks.tos, ..Route::to(client.client) }))
    }

    /// Returns the socket of that number: the worker's own, then the others' that it may send by.
    pub(crate) fn socket_at(&self, listener: usize) -> Option<&BatchUdpSocket> {
        match self.listeners.get(listener) {
            Some(listener) => Some(&listener.socket),
            None => self.send_only.get(listener - self.listeners.len()),
        }
    }

    /// Hands a peer's stream to the client's connection that is to be joined with it; both end if either is gone.
    pub(crate) fn join(&mut self, client: FiveTuple, peer_stream: Option<Box<PeerStream>>) {
        let mut stream = self.streams.get_mut(&client);
        let lost = stream.as_mut().map_or(0, |stream| stream.send_gathered());
        self.drops.add(WorkerDropReason::ClientNotReading, lost);
        let joined = peer_stream.zip(stream).is_some_and(|(peer_stream, stream)| match stream {
            Stream::Own(slot) => self.tcp.join(*slot, peer_stream),
            Stream::Task { path, .. } => path.replies.try_send(StreamMessage::Join(peer_stream), 0).is_ok(),
        });
        if !joined {
            self.drops.add(WorkerDropReason::ClientClosed, 1);
        }
    }

    /// Returns the socket that receives what is sent to `here`.
    fn listener_at(&self, here: SocketAddr) -> Option<(usize, &BatchUdpSocket)> {
        self.listeners.iter().map(|listener| &listener.socket).chain(&self.send_only).enumerate().find(
            |(_, socket)| {
                let local = socket.local_addr();
                local.port() == here.port()
                    && (local.ip() == here.ip()
                        || (local.ip().is_unspecified() && local.is_ipv4() == here.is_ipv4()))
            },
        )
    }

    /// Counts a datagram that the system did not take. An unreachable peer (no route, closed port, full buffer) affects no other.
    pub(crate) fn count_send_error(&self, to: SocketAddr, error: &io::Error) {
        self.drops.add(WorkerDropReason::SendError, 1);
        tracing::trace!(to = %Pii(to), %error, "not sent");
    }
}

#[cfg(test)]
mod tests {
    use super::super::dtls::Identity;
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
        let identity = Identity::new(&certificate, folder.path()).unwrap();
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
        clients.open(time::now().mono, client(2), path);
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
