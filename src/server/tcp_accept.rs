//! Accepts TCP connections: reads a PROXY header, detects the protocol by the first bytes, and hands the stream to its service; the same again
//! inside TLS.

use super::gateway::{GatewayAcceptor, ServerAuth};
use super::http;
use crate::dataplane::inbox::{Inbox, WorkerMessage};
use crate::dataplane::stream_limits::{evicted, shut_down};
use crate::dataplane::stream_task::carry_frames;
use crate::dataplane::tcp_connections::AcceptedSocket;
use crate::limits::NetworkPrefix;
use crate::limits::sampled;
use crate::net::connection_limiter::{ConnectionLimiter, ConnectionPermit};
use crate::net::demux::{self, StreamKind};
use crate::net::forwarded;
use crate::net::peeked_stream::PeekedStream;
use crate::net::proxy::{self, Start};
use crate::net::time;
use crate::net::tls::Tls;
use crate::turn_server::{FiveTuple, Transport};
use axum::Router;
use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longest silence before the protocol is known.
const SNIFF_TIME: Duration = Duration::from_secs(5);
/// Time for a TLS handshake.
pub(super) const TLS_TIME: Duration = Duration::from_secs(10);
/// Bytes that a client may send during its TLS handshake.
const TLS_HANDSHAKE: usize = 12 * 1024;
/// Memory of a TLS stream of an unauthenticated client, in bytes.
const TLS_MEMORY: usize = 24 * 1024;
/// Bytes of TLS records that are written together.
const RECORDS: usize = 8 * 1024;
/// Evicted connections that have not closed yet, beyond which accepting slows down.
const MAX_EVICTED: usize = 8;
const EVICTION_PAUSE: Duration = Duration::from_millis(5);
/// Pause after a failed accept, usually for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The services that connections are handed to.
#[derive(Debug, Clone)]
pub(super) struct TcpAcceptor {
    pub(super) workers: Arc<[Inbox]>,
    pub(super) router: Router,
    pub(super) tls: Tls,
    /// Proxies that may name the client.
    pub(super) trusted: Arc<[NetworkPrefix]>,
    /// The gateway, if it is enabled.
    pub(super) gateway: Option<GatewayAcceptor>,
    /// Messaging, if it is enabled.
    #[cfg(feature = "messaging")]
    pub(super) messaging: Option<super::messaging::MessagingAcceptor>,
    /// Connections of all listeners.
    pub(super) connections: Arc<ConnectionLimiter>,
}

/// What a listener accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepts {
    /// All protocols, detected by the first bytes.
    All,
    /// Servers of the gateway, which wait for our first message.
    GatewayServers(ServerAuth),
    /// Clients of messaging, which wait for our first message too, and those of its dispatcher.
    #[cfg(feature = "messaging")]
    Messaging(super::messaging::MessagingPort),
}

/// The addresses, worker and permit of a connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionInfo {
    pub(super) client: SocketAddr,
    server: SocketAddr,
    /// Whether the protocol is inside our TLS.
    pub(super) is_tls: bool,
    pub(super) worker: Inbox,
    /// Held until the connection closes.
    pub(super) connection: ConnectionPermit,
}

/// A connection that is being served.
pub(super) type Serving = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The protocol of a stream.
#[derive(Debug)]
enum Sniffed<S> {
    /// STUN or TURN, for its worker.
    Turn(PeekedStream<S>, ConnectionInfo),
    /// A gateway client.
    Gateway(PeekedStream<S>, ConnectionInfo),
    /// Served, and closed.
    Served,
}

impl ConnectionInfo {
    fn new(
        stream: &TcpStream,
        (client, worker, connection): (SocketAddr, Inbox, ConnectionPermit),
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { client, server: stream.local_addr()?, is_tls: false, worker, connection })
    }

    pub(super) fn tuple(&self, transport: Transport) -> FiveTuple {
        FiveTuple { client: self.client, server: self.server, transport }
    }
}

impl TcpAcceptor {
    /// Accepts connections until dropped.
    pub(super) async fn serve(self, listener: TcpListener, accepts: Accepts) {
        let mut connections = JoinSet::new();
        let mut accepted_count = 0_usize;
        loop {
            if self.connections.counters().evicted > MAX_EVICTED {
                // Evicted connections still hold their descriptors.
                tokio::time::sleep(EVICTION_PAUSE).await;
            }
            let accepted = tokio::select! {
                // Ended tasks are removed at once, because they hold memory.
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let Some(connection) = self.admit(client.ip()) else { continue };
                    accepted_count = accepted_count.wrapping_add(1);
                    let acceptor = self.clone();
                    let worker = self.workers[accepted_count % self.workers.len()].clone();
                    connections.spawn(async move {
                        let evicted = evicted(&connection);
                        let served = acceptor.connection(stream, (client, worker, connection), accepts);
                        tokio::select! {
                            served = served => if let Err(error) = served {
                                tracing::debug!(%error, "stream ended");
                            },
                            () = evicted => tracing::debug!("unauthenticated stream evicted"),
                        }
                    });
                }
                Err(error) => {
                    sampled!(warn, time::now().mono, %error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Admits a connection. The client behind a proxy is not known yet.
    fn admit(&self, client: IpAddr) -> Option<ConnectionPermit> {
        match forwarded::is_trusted(&self.trusted, client) {
            true => self.connections.admit(),
            false => self.connections.admit_from(client),
        }
    }

    /// Serves a connection until it ends. Boxed by what it serves: an idle client of one service holds no memory for the others.
    fn connection(
        self,
        stream: TcpStream,
        client: (SocketAddr, Inbox, ConnectionPermit),
        accepts: Accepts,
    ) -> Serving {
        let info = match ConnectionInfo::new(&stream, client) {
            Ok(info) => info,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        match accepts {
            Accepts::All => Box::pin(self.any_protocol(stream, info)),
            Accepts::GatewayServers(_) if !info.connection.assign_to(info.client.ip()) => {
                Box::pin(ready(Ok(())))
            }
            Accepts::GatewayServers(auth) => Box::pin(self.gateway_server(stream, info, auth)),
            #[cfg(feature = "messaging")]
            Accepts::Messaging(port) => self.messaging(stream, info, port),
        }
    }

    async fn any_protocol(self, stream: TcpStream, info: ConnectionInfo) -> io::Result<()> {
        let gateway = self.gateway.clone();
        match (self.stream(stream, info).await?, gateway) {
            (Sniffed::Turn(stream, info), _) => move_to_worker(stream, info).await,
            (Sniffed::Gateway(stream, info), Some(gateway)) => {
                let (early, socket) = stream.into_parts();
                gateway.client(socket, early, info.client.ip(), info.connection)
            }
            _ => Ok(()),
        }
    }

    /// Reads the PROXY header of a trusted proxy, and counts the connection for its client; `false` where that has too many.
    ///
    /// # Errors
    /// The stream's, `InvalidData`, and `TimedOut` where a trusted proxy says nothing.
    pub(super) async fn name_client<S: AsyncRead + Unpin>(
        &self,
        stream: &mut PeekedStream<S>,
        info: &mut ConnectionInfo,
    ) -> io::Result<bool> {
        if forwarded::is_trusted(&self.trusted, info.client.ip()) {
            info.client = timeout(SNIFF_TIME, proxied(stream)).await??.unwrap_or(info.client);
        }
        // A proxy without a PROXY header names the client later; its own address would count for all its clients.
        Ok(forwarded::is_trusted(&self.trusted, info.client.ip())
            || info.connection.assign_to(info.client.ip()))
    }

    /// Serves one stream, unless its protocol needs no task here: then it returns the stream.
    async fn stream<S>(self, stream: S, mut info: ConnectionInfo) -> io::Result<Sniffed<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut stream = PeekedStream::new(stream);
        if !self.name_client(&mut stream, &mut info).await? {
            return Ok(Sniffed::Served);
        }
        // Boxed, so that waiting tasks stay small.
        match sniff(&mut stream).await? {
            StreamKind::Stun => return Ok(Sniffed::Turn(stream, info)),
            StreamKind::Gateway => return Ok(Sniffed::Gateway(stream, info)),
            StreamKind::Tls => Box::pin(self.tls(stream, info)).await?,
            StreamKind::Http => http::serve(stream, (self.router, self.trusted), info).await?,
            StreamKind::Unknown => {}
        }
        Ok(Sniffed::Served)
    }

    /// Serves the protocol inside TLS.
    async fn tls<S>(self, mut stream: PeekedStream<S>, info: ConnectionInfo) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if !info.connection.reserve_memory(TLS_MEMORY) {
            return Ok(());
        }
        stream.limit(TLS_HANDSHAKE);
        let stream = BufWriter::with_capacity(RECORDS, stream);
        let (mut inside, chosen) = timeout(TLS_TIME, self.tls.accept(stream)).await??;
        inside.get_mut().0.get_mut().lift_limit();
        let mut inside = PeekedStream::new(inside);
        let kind = sniff(&mut inside).await?;
        if !chosen.allows(kind) {
            shut_down(&mut inside).await?;
        } else if kind == StreamKind::Stun {
            carry_frames(inside, info.tuple(Transport::Tls), (&info.worker, &info.connection)).await?;
        } else if kind == StreamKind::Http {
            http::serve(inside, (self.router, self.trusted), ConnectionInfo { is_tls: true, ..info }).await?;
        } else if let Some(gateway) = self.gateway {
            gateway.bridge(inside, info.client.ip(), info.connection).await?;
        }
        Ok(())
    }
}

/// Moves a socket to its worker.
async fn move_to_worker(stream: PeekedStream<TcpStream>, info: ConnectionInfo) -> io::Result<()> {
    let client = info.tuple(Transport::Tcp);
    let (early, socket) = stream.into_parts();
    let connection = info.connection.clone();
    let accepted = AcceptedSocket { client, socket: socket.into_std()?, early, connection: info.connection };
    info.worker.send(WorkerMessage::TcpAccepted(Box::new(accepted))).await;
    let (number, worker) = (connection.id(), info.worker);
    // If the worker's queue is full, the client is closed after its longest silence instead.
    connection.on_evict(move || {
        let _ = worker.try_send(WorkerMessage::TcpEvicted { client, number });
    });
    Ok(())
}

/// Reads a PROXY header; returns the client that it names.
async fn proxied<S: AsyncRead + Unpin>(stream: &mut PeekedStream<S>) -> io::Result<Option<SocketAddr>> {
    let found = stream.peek(|start| proxy::parse(start).transpose()).await?;
    match found {
        Some(Ok(Start::Header { len, client })) => {
            stream.consume(len);
            Ok(client)
        }
        Some(Ok(Start::Absent)) | None => Ok(None),
        Some(Err(error)) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Detects the protocol by the first bytes without consuming them. A silent client waits to be dialled by a server of the gateway (S2-A8).
async fn sniff<S: AsyncRead + Unpin>(stream: &mut PeekedStream<S>) -> io::Result<StreamKind> {
    match timeout(SNIFF_TIME, stream.peek(demux::stream)).await {
        Ok(kind) => Ok(kind?.unwrap_or(StreamKind::Unknown)),
        Err(_) if stream.is_empty() => Ok(StreamKind::Gateway),
        Err(_) => Ok(StreamKind::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::stream_limits::{IDLE_TIME, MESSAGE_TIME, UNAUTHENTICATED_IDLE_TIME};
    use crate::net::certificate::Certificate;
    use crate::net::connection_limiter::ConnectionLimits;
    use tokio::io::AsyncWriteExt;
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    /// An acceptor whose worker is the returned queue.
    fn acceptor(proxies: &[&str]) -> (TcpAcceptor, mpsc::Receiver<WorkerMessage>, tempfile::TempDir) {
        let poll = mio::Poll::new().unwrap();
        let (inbox, queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let acceptor = TcpAcceptor {
            workers: [inbox].into(),
            router: Router::new(),
            tls: Tls::new(&Certificate::own(folder.path()).unwrap()).unwrap(),
            trusted: proxies.iter().map(|net| net.parse().unwrap()).collect(),
            gateway: None,
            #[cfg(feature = "messaging")]
            messaging: None,
            connections: connections(8),
        };
        (acceptor, queue, folder)
    }

    fn connections(per_address: u32) -> Arc<ConnectionLimiter> {
        ConnectionLimiter::new(
            ConnectionLimits { total: 100, descriptors: 100, per_address, bytes: 1 << 20 },
            &[],
        )
    }

    const CLIENT: &str = "192.0.2.9:50000";
    const BINDING: &[u8] = b"\0\x01\0\0\x21\x12\xA4\x42transaction!";

    fn serve(acceptor: &TcpAcceptor) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, server) = tokio::io::duplex(4096);
        let worker = acceptor.workers[0].clone();
        let connection = acceptor.connections.admit().unwrap();
        let info = ConnectionInfo {
            is_tls: false,
            client: CLIENT.parse().unwrap(),
            server: "192.0.2.1:3478".parse().unwrap(),
            worker,
            connection,
        };
        let serving = acceptor.clone().stream(server, info);
        // A task stands in for the worker, as inside TLS.
        let served = async {
            match serving.await? {
                Sniffed::Turn(stream, info) => {
                    carry_frames(stream, info.tuple(Transport::Tcp), (&info.worker, &info.connection)).await
                }
                Sniffed::Gateway(..) | Sniffed::Served => Ok(()),
            }
        };
        (client, tokio::spawn(served))
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_open_tls_handshake_is_given_up() {
        let (acceptor, _queue, _folder) = acceptor(&[]);
        let (mut client, served) = serve(&acceptor);
        client.write_all(b"\x16\x03\x01\x02\0\x01").await.unwrap();
        let before = tokio::time::Instant::now();
        let ended = served.await.unwrap().unwrap_err();
        assert_eq!((ended.kind(), before.elapsed()), (io::ErrorKind::TimedOut, TLS_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_and_half_a_proxy_header_are_given_up() {
        let (acceptor, _queue, _folder) = acceptor(&["192.0.2.0/24"]);
        for start in [&b""[..], b"PROXY TCP4 "] {
            let (mut client, served) = serve(&acceptor);
            client.write_all(start).await.unwrap();
            let before = tokio::time::Instant::now();
            assert!(served.await.unwrap().is_err());
            assert_eq!(before.elapsed(), SNIFF_TIME);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_silent_for_a_minute_or_with_credentials_for_an_hour() {
        for (is_authenticated, idle_time) in [(false, UNAUTHENTICATED_IDLE_TIME), (true, IDLE_TIME)] {
            let (acceptor, mut queue, _folder) = acceptor(&[]);
            let (mut client, served) = serve(&acceptor);
            client.write_all(BINDING).await.unwrap();
            let Some(WorkerMessage::StreamOpened { path, .. }) = queue.recv().await else {
                panic!("not opened")
            };
            assert!(matches!(queue.recv().await, Some(WorkerMessage::Frames { .. })));
            path.authenticated.store(is_authenticated, std::sync::atomic::Ordering::Relaxed);
            let before = tokio::time::Instant::now();
            assert_eq!(served.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(before.elapsed(), idle_time);
        }
    }

    #[tokio::test]
    async fn connections_behind_a_proxy_count_for_whom_it_names() {
        let (mut acceptor, _queue, _folder) = acceptor(&["192.0.2.0/24"]);
        acceptor.connections = connections(1);
        let mut kept = Vec::new();
        for (client, admitted) in [(7, true), (8, true), (7, false)] {
            let (mut stream, served) = serve(&acceptor);
            let header = format!("PROXY TCP4 198.51.100.{client} 192.0.2.1 4000 3478\r\n");
            stream.write_all(&[header.as_bytes(), BINDING].concat()).await.unwrap();
            let closed = timeout(Duration::from_millis(200), stream.read_u8()).await.is_ok();
            assert_eq!(closed, !admitted, "{client}");
            kept.push((stream, served));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_does_not_end_is_given_up_though_bytes_come() {
        let (acceptor, mut queue, _folder) = acceptor(&[]);
        let (mut client, served) = serve(&acceptor);
        client.write_all(b"\0\x03\x01\0\x21\x12\xA4\x42transaction!").await.unwrap();
        let Some(WorkerMessage::StreamOpened { path: _leg, .. }) = queue.recv().await else {
            panic!("not opened")
        };
        let before = tokio::time::Instant::now();
        while client.write_all(b"x").await.is_ok() && !served.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(served.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(before.elapsed() <= MESSAGE_TIME + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_stranger_that_begins_a_long_frame_is_closed_and_others_are_not() {
        for (is_authenticated, closed) in [(false, true), (true, false)] {
            let (acceptor, mut queue, _folder) = acceptor(&[]);
            let (mut client, served) = serve(&acceptor);
            client.write_all(BINDING).await.unwrap();
            let Some(WorkerMessage::StreamOpened { path, .. }) = queue.recv().await else {
                panic!("not opened")
            };
            path.authenticated.store(is_authenticated, std::sync::atomic::Ordering::Relaxed);
            client
                .write_all(&[b"\0\x03\xFF\xFC\x21\x12\xA4\x42transaction!", &[0; 8000][..]].concat())
                .await
                .unwrap();
            let ended = timeout(Duration::from_millis(200), client.read_u8()).await;
            assert_eq!(ended.is_ok(), closed, "authenticated: {is_authenticated}");
            drop(served);
        }
    }

    #[tokio::test]
    async fn a_listed_proxy_names_the_client_and_others_are_refused() {
        let header = b"PROXY TCP4 198.51.100.7 192.0.2.1 4000 3478\r\n";
        for (proxies, start, named) in [
            (&["192.0.2.0/24"][..], &[&header[..], BINDING].concat(), Some("198.51.100.7:4000")),
            (&["192.0.2.0/24"], &BINDING.to_vec(), Some(CLIENT)),
            (&["203.0.113.0/24"], &[&header[..], BINDING].concat(), None),
            (&[], &BINDING.to_vec(), Some(CLIENT)),
            (&["192.0.2.0/24"], &[&b"PROXY TCP4 nonsense\r\n"[..], BINDING].concat(), None),
        ] {
            let (acceptor, mut queue, _folder) = acceptor(proxies);
            let (mut client, served) = serve(&acceptor);
            client.write_all(start).await.unwrap();
            drop(client);
            let _ = served.await.unwrap();
            let opened = match queue.try_recv() {
                Ok(WorkerMessage::StreamOpened { client, .. }) => Some(client.client),
                _ => None,
            };
            assert_eq!(opened, named.map(|address| address.parse().unwrap()), "{proxies:?}");
        }
    }
}
