//! TCP connections with the peer ([RFC 6544](https://www.rfc-editor.org/rfc/rfc6544)): opened from active candidates, accepted at passive ones, or
//! opened from both sides at once between two NATs.
//!
//! Every message has its length before it ([RFC 4571](https://www.rfc-editor.org/rfc/rfc4571)). Datagrams of QUIC go to the tunnel, messages of STUN
//! to the ICE engine. The machine of `src/ice/` decides which connections are opened and closed.

use super::datagram_queue::DatagramQueue;
use super::nat;
use super::tunnel::Tunnel;
use crate::ice::CandidateTransport;
use crate::net::time;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An accepted connection without an authentic check is closed after this time.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Most accepted connections; a peer needs one for each pair of addresses. The oldest one of a stranger gives way.
const MAX_ACCEPTED: usize = 32;
const BACKLOG: u32 = 16;
/// Between requests to the server, which keep a mapping, and the time limit of each.
const MAPPING_KEEPALIVE: Duration = Duration::from_secs(25);
const MAPPING_TIMEOUT: Duration = Duration::from_secs(4);
/// Length of a STUN message without attributes.
const STUN_HEADER: usize = 20;
const QUEUE: usize = 64;
const READ_BUFFER: usize = 64 << 10;
/// Bytes that are not sent yet, at most: what waits in the system adds to every round trip.
const SEND_BUFFER: usize = 256 << 10;

/// Names a connection as the ICE machine does: base of the local candidate, and the peer's address.
pub(super) type StreamKey = (SocketAddr, SocketAddr);

/// An event of a connection.
#[derive(Debug)]
pub(super) enum PeerStreamEvent {
    /// It is open: accepted, or opened by [`PeerStreams::open`].
    Opened(StreamKey, TcpStream, Direction),
    /// The server sees this base with this address.
    Mapped { base: SocketAddr, address: SocketAddr },
    /// The mapping of this base is not kept any more.
    Unmapped { base: SocketAddr },
    /// A message of STUN.
    Message(StreamKey, Bytes),
    /// It has ended, or could not be opened.
    Closed(StreamKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Accepted,
    Connected,
}

#[derive(Debug)]
struct PeerStream {
    queue: Arc<DatagramQueue>,
    task: AbortHandle,
    direction: Direction,
    /// It is the peer's: opened by this side, or an authentic check has arrived.
    is_confirmed: Arc<AtomicBool>,
    /// When it was opened or accepted.
    since: Instant,
}

/// The connections of one engine, which end with it.
pub(super) struct PeerStreams {
    tunnel: Arc<Tunnel>,
    events: mpsc::Sender<PeerStreamEvent>,
    events_rx: mpsc::Receiver<PeerStreamEvent>,
    streams: HashMap<StreamKey, PeerStream>,
    opening: HashMap<StreamKey, AbortHandle>,
    listeners: HashMap<SocketAddr, AbortHandle>,
    tasks: JoinSet<()>,
}

impl PeerStreams {
    pub(super) fn new(tunnel: Arc<Tunnel>) -> Self {
        let (events, events_rx) = mpsc::channel(QUEUE);
        Self {
            tunnel,
            events,
            events_rx,
            streams: HashMap::new(),
            opening: HashMap::new(),
            listeners: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> PeerStreamEvent {
        match self.events_rx.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Listens at an address; returns the one with the port.
    pub(super) fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = socket(address)?.listen(BACKLOG)?;
        let local = listener.local_addr()?;
        let task = self.tasks.spawn(accept(listener, local, self.events.clone()));
        self.listeners.insert(local, task);
        Ok(local)
    }

    /// Listens no longer at this address of the host. Open connections stay.
    pub(super) fn close_listeners(&mut self, ip: IpAddr) {
        self.listeners.retain(|local, task| {
            let stays = local.ip() != ip;
            if !stays {
                task.abort();
            }
            stays
        });
    }

    /// Keeps a TCP connection to the server from a new port, whose mapping it reports: for simultaneous open.
    pub(super) fn map(&mut self, ip: IpAddr, server: SocketAddr) -> io::Result<()> {
        self.forget_ended();
        let socket = shared_socket(SocketAddr::new(ip, 0))?;
        let (base, events) = (socket.local_addr()?, self.events.clone());
        self.tasks.spawn(async move {
            if let Err(error) = keep_mapping(socket, base, server, &events).await {
                tracing::debug!(%error, %base, "no mapping for simultaneous open");
            }
            let _ = events.send(PeerStreamEvent::Unmapped { base }).await;
        });
        Ok(())
    }

    /// Opens a connection: for simultaneous open from the candidate's base, otherwise from any port of its address.
    pub(super) fn open(&mut self, key: StreamKey, transport: CandidateTransport) {
        self.forget_ended();
        let events = self.events.clone();
        let task = self.tasks.spawn(async move {
            let opened = timeout(CONNECT_TIMEOUT, async { connect(key, transport).await }).await;
            let event = match opened.map_err(io::Error::from) {
                Ok(Ok(stream)) => PeerStreamEvent::Opened(key, stream, Direction::Connected),
                Ok(Err(error)) | Err(error) => {
                    tracing::debug!(%error, remote = %key.1, "no TCP connection to the peer");
                    PeerStreamEvent::Closed(key)
                }
            };
            let _ = events.send(event).await;
        });
        if let Some(replaced) = self.opening.insert(key, task) {
            replaced.abort();
        }
    }

    /// Begins to read and write an open connection; `false` if there are too many.
    pub(super) fn start(&mut self, key: StreamKey, stream: TcpStream, direction: Direction) -> bool {
        if direction == Direction::Accepted && !self.make_room() {
            return false;
        }
        self.forget_ended();
        let _ = stream.set_nodelay(true);
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
        let queue = Arc::new(DatagramQueue::default());
        let (events, tunnel, frames) = (self.events.clone(), Arc::clone(&self.tunnel), Arc::clone(&queue));
        let is_confirmed = Arc::new(AtomicBool::new(direction == Direction::Connected));
        let confirmed = Arc::clone(&is_confirmed);
        let task = self.tasks.spawn(async move {
            let forwarded = tokio::select! {
                forwarded = forward(key, stream, &frames, (&tunnel, &events)) => forwarded,
                () = expect_confirmation(&confirmed) => Err(io::ErrorKind::TimedOut.into()),
            };
            if let Err(error) = forwarded {
                tracing::debug!(%error, remote = %key.1, "a TCP connection with the peer has ended");
            }
            let _ = events.send(PeerStreamEvent::Closed(key)).await;
        });
        let started = PeerStream { queue, task, direction, is_confirmed, since: time::now().mono };
        if let Some(replaced) = self.streams.insert(key, started) {
            replaced.task.abort();
        }
        true
    }

    /// Closes the oldest connection of a stranger, if there are too many. Returns whether there is room for another one.
    fn make_room(&mut self) -> bool {
        let accepted = || self.streams.iter().filter(|(_, stream)| stream.direction == Direction::Accepted);
        if accepted().count() < MAX_ACCEPTED {
            return true;
        }
        let is_strange = |stream: &PeerStream| !stream.is_confirmed.load(Ordering::Relaxed);
        let strangers = accepted().filter(|(_, stream)| is_strange(stream));
        let oldest = strangers.min_by_key(|(_, stream)| stream.since).map(|(key, _)| *key);
        if let Some(key) = oldest {
            self.close(key);
        }
        oldest.is_some()
    }

    /// Returns whether a connection is the peer's.
    pub(super) fn is_confirmed(&self, key: StreamKey) -> bool {
        self.streams.get(&key).is_some_and(|stream| stream.is_confirmed.load(Ordering::Relaxed))
    }

    /// Handles that an authentic check has arrived on a connection.
    pub(super) fn confirm(&self, key: StreamKey) {
        if let Some(stream) = self.streams.get(&key) {
            stream.is_confirmed.store(true, Ordering::Relaxed);
        }
    }

    /// A set keeps its ended tasks until they are taken.
    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.opening.retain(|_, task| !task.is_finished());
    }

    /// Returns the queue of an open connection.
    pub(super) fn queue(&self, key: StreamKey) -> Option<&Arc<DatagramQueue>> {
        self.streams.get(&key).map(|stream| &stream.queue)
    }

    /// Sends a message of STUN.
    pub(super) fn send_message(&self, key: StreamKey, message: &[u8]) {
        if let (Some(queue), Ok(length)) = (self.queue(key), u16::try_from(message.len())) {
            queue.push_message([&length.to_be_bytes(), message].concat().into());
        }
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, key: StreamKey) {
        if let Some(opening) = self.opening.remove(&key) {
            opening.abort();
        }
        if let Some(stream) = self.streams.remove(&key) {
            stream.task.abort();
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(address)?;
    Ok(socket)
}

/// Returns a socket whose port others may share: those that connect elsewhere.
fn shared_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    #[cfg(unix)]
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn connect((local, remote): StreamKey, transport: CandidateTransport) -> io::Result<TcpStream> {
    let socket = match transport {
        CandidateTransport::TcpSimultaneousOpen => shared_socket(local)?,
        _ => socket(SocketAddr::new(local.ip(), 0))?,
    };
    socket.connect(remote).await
}

/// Asks the server for the mapping again and again; each answer keeps it.
async fn keep_mapping(
    socket: TcpSocket,
    base: SocketAddr,
    server: SocketAddr,
    events: &mpsc::Sender<PeerStreamEvent>,
) -> io::Result<()> {
    let mut stream = timeout(MAPPING_TIMEOUT, socket.connect(server)).await??;
    let mut known = None;
    loop {
        let mapped = timeout(MAPPING_TIMEOUT, ask_mapping(&mut stream)).await??;
        if let Some(address) = mapped.filter(|_| mapped != known) {
            known = mapped;
            let _ = events.send(PeerStreamEvent::Mapped { base, address }).await;
        }
        tokio::time::sleep(MAPPING_KEEPALIVE).await;
    }
}

async fn ask_mapping(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let id = rand::random();
    stream.write_all(&nat::binding_request(id)).await?;
    let mut message = vec![0; STUN_HEADER];
    stream.read_exact(&mut message).await?;
    let length = usize::from(u16::from_be_bytes([message[2], message[3]]));
    message.resize(STUN_HEADER + length, 0);
    stream.read_exact(&mut message[STUN_HEADER..]).await?;
    Ok(nat::binding_response(&message, id))
}

async fn accept(listener: TcpListener, local: SocketAddr, events: mpsc::Sender<PeerStreamEvent>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let event = PeerStreamEvent::Opened((local, remote), stream, Direction::Accepted);
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Ends when a connection has been a stranger's for too long.
async fn expect_confirmation(is_confirmed: &AtomicBool) {
    tokio::time::sleep(CHECK_TIMEOUT).await;
    if is_confirmed.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

async fn forward(
    key: StreamKey,
    stream: TcpStream,
    queue: &DatagramQueue,
    (tunnel, events): (&Tunnel, &mpsc::Sender<PeerStreamEvent>),
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        loop {
            writer.write_all(&queue.next().await).await?;
        }
    };
    let read = async {
        let mut buffer = BytesMut::with_capacity(READ_BUFFER);
        loop {
            if reader.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let Some(message) = next_message(&mut buffer) {
                match message.first() {
                    Some(0x00..=0x03) => {
                        let _ = events.send(PeerStreamEvent::Message(key, message)).await;
                    }
                    _ => tunnel.deliver(message),
                }
            }
        }
    };
    tokio::select! {
        result = write => result,
        result = read => result,
    }
}

/// Takes the next whole message, without its length.
fn next_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes(*buffer.first_chunk()?));
    (buffer.len() >= 2 + length).then(|| {
        buffer.advance(2);
        buffer.split_to(length).freeze()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::outlet::{Outlet, QueueFraming};

    #[test]
    fn messages_are_taken_whole() {
        let mut buffer = BytesMut::from(&[0, 3, 1, 2, 3, 0, 0, 0][..]);
        assert_eq!(next_message(&mut buffer).as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(next_message(&mut buffer).as_deref(), Some(&[][..]));
        assert_eq!(next_message(&mut buffer), None);
        buffer.extend_from_slice(&[2, 9]);
        assert_eq!(next_message(&mut buffer), None);
    }

    #[tokio::test]
    async fn two_sides_exchange_messages_and_datagrams_over_one_connection() {
        let (tunnel, _messages) = Tunnel::new(None);
        let mut a = PeerStreams::new(Arc::clone(&tunnel));
        let (other, _others) = Tunnel::new(None);
        let mut b = PeerStreams::new(Arc::clone(&other));
        let listening = a.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let active: SocketAddr = "127.0.0.1:9".parse().unwrap();
        b.open((active, listening), CandidateTransport::TcpActive);
        let PeerStreamEvent::Opened(from_b, stream, Direction::Connected) = b.next().await else {
            panic!("not opened")
        };
        assert!(b.start(from_b, stream, Direction::Connected));
        let PeerStreamEvent::Opened(from_a, stream, Direction::Accepted) = a.next().await else {
            panic!("not accepted")
        };
        assert!(a.start(from_a, stream, Direction::Accepted));
        assert_eq!(from_a.0, listening);
        b.send_message(from_b, &[0, 1, 0, 0]);
        let PeerStreamEvent::Message(key, message) = a.next().await else { panic!("no message") };
        assert_eq!((key, &message[..]), (from_a, &[0, 1, 0, 0][..]));
        let outlet = Outlet::Queue(Arc::clone(a.queue(from_a).unwrap()), QueueFraming::Length);
        let transmit = quinn::udp::Transmit {
            destination: crate::agent::tunnel::PEER,
            ecn: None,
            contents: &[0x40, 7],
            segment_size: None,
            src_ip: None,
        };
        outlet.send(&transmit).unwrap();
        while !other.take_activity().received {
            tokio::task::yield_now().await;
        }
        a.close(from_a);
        let PeerStreamEvent::Closed(key) = b.next().await else { panic!("not closed") };
        assert_eq!(key, from_b);
    }

    /// Connects to a listener; the connection is started.
    async fn connect_as_stranger(streams: &mut PeerStreams, listening: SocketAddr) -> (TcpStream, StreamKey) {
        let stranger = TcpStream::connect(listening).await.unwrap();
        loop {
            if let PeerStreamEvent::Opened(key, stream, Direction::Accepted) = streams.next().await {
                assert!(streams.start(key, stream, Direction::Accepted));
                return (stranger, key);
            }
        }
    }

    #[tokio::test]
    async fn strangers_do_not_keep_the_peer_out() {
        let mut streams = PeerStreams::new(Tunnel::new(None).0);
        let listening = streams.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let (_peer, of_peer) = connect_as_stranger(&mut streams, listening).await;
        streams.confirm(of_peer);
        let mut strangers = Vec::new();
        for _ in 0..3 * MAX_ACCEPTED {
            strangers.push(connect_as_stranger(&mut streams, listening).await);
            assert!(streams.streams.len() <= MAX_ACCEPTED);
        }
        assert!(streams.is_confirmed(of_peer), "the peer's connection stays");
        let (_late, late) = connect_as_stranger(&mut streams, listening).await;
        assert!(streams.streams.contains_key(&late), "and a late one is accepted");
        for (_, key) in &strangers {
            streams.confirm(*key);
        }
        streams.confirm(late);
        assert!(!streams.make_room(), "those of the peer do not give way");
    }

    #[tokio::test]
    async fn an_accepted_connection_without_a_check_is_closed() {
        let mut streams = PeerStreams::new(Tunnel::new(None).0);
        let listening = streams.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let (_peer, of_peer) = connect_as_stranger(&mut streams, listening).await;
        streams.confirm(of_peer);
        let (mut talkative, of_stranger) = connect_as_stranger(&mut streams, listening).await;
        talkative.write_all(&[0, 4, 0x40, 1, 2, 3, 0]).await.unwrap();
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let PeerStreamEvent::Closed(key) = streams.next().await else { panic!("not closed") };
        assert_eq!((key, began.elapsed() >= CHECK_TIMEOUT / 2), (of_stranger, true));
        assert!(streams.is_confirmed(of_peer));
    }

    #[tokio::test]
    async fn an_address_that_is_gone_is_not_listened_at() {
        let mut streams = PeerStreams::new(Tunnel::new(None).0);
        for _ in 0..50 {
            let at = streams.listen("127.0.0.1:0".parse().unwrap()).unwrap();
            let other = streams.listen("127.0.0.2:0".parse().unwrap()).unwrap();
            TcpStream::connect(at).await.unwrap();
            streams.close_listeners(at.ip());
            while TcpStream::connect(at).await.is_ok() {
                tokio::task::yield_now().await;
            }
            TcpStream::connect(other).await.unwrap();
            streams.close_listeners(other.ip());
        }
        assert!(streams.listeners.is_empty());
    }

    /// Answers Binding requests on TCP connections, as a server does.
    async fn answer_bindings(listener: TcpListener) {
        while let Ok((mut stream, from)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; STUN_HEADER];
                while stream.read_exact(&mut request).await.is_ok() {
                    let id = crate::stun::Message::parse(&request).unwrap().transaction();
                    let response = crate::stun::Builder::new(
                        crate::stun::Class::Success,
                        crate::stun::Method::BINDING,
                        id,
                    );
                    let response = response.xor_address(crate::stun::attr::XOR_MAPPED_ADDRESS, from).finish();
                    stream.write_all(&response).await.unwrap();
                }
            });
        }
    }

    #[tokio::test]
    async fn a_connection_for_simultaneous_open_has_the_port_that_the_server_sees() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let answering = tokio::spawn(answer_bindings(listener));
        let mut streams = PeerStreams::new(Tunnel::new(None).0);
        streams.map(server.ip(), server).unwrap();
        let PeerStreamEvent::Mapped { base, address } = streams.next().await else { panic!("not mapped") };
        assert_eq!(base, address);
        let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = (base, peer.local_addr().unwrap());
        streams.open(key, CandidateTransport::TcpSimultaneousOpen);
        let (_accepted, from) = peer.accept().await.unwrap();
        assert_eq!(from, base);
        let PeerStreamEvent::Opened(opened, _, Direction::Connected) = streams.next().await else {
            panic!("not opened")
        };
        assert_eq!(opened, key);
        // One that is still opening is given up, so that it can be opened again.
        let silent: SocketAddr = "192.0.2.1:9".parse().unwrap();
        streams.open((base, silent), CandidateTransport::TcpSimultaneousOpen);
        streams.close((base, silent));
        assert!(streams.opening.is_empty() || streams.opening.keys().all(|key| key.1 != silent));
        answering.abort();
    }
}
