//! TCP: accept, take off what a proxy put in front, sniff, and give each stream to the protocol it speaks; inside TLS the same
//! again.

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
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection may stay silent before its protocol is known.
const SNIFF_TIME: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
pub(super) const TLS_TIME: Duration = Duration::from_secs(10);
/// Bytes that a client may send before its TLS handshake is over.
const TLS_HANDSHAKE: usize = 12 * 1024;
/// Bytes that a TLS stream holds, as long as its client is a stranger.
const TLS_MEMORY: usize = 24 * 1024;
/// Bytes of TLS records that leave together.
const RECORDS: usize = 8 * 1024;
/// Connections that were ended for want of places and are not gone yet, beyond which new ones are let in at a slower pace.
const MOST_LEAVING: usize = 8;
const LEAVING_PAUSE: Duration = Duration::from_millis(5);
/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection may be given to.
#[derive(Debug, Clone)]
pub(super) struct StreamDoor {
    pub(super) workers: Arc<[Inbox]>,
    pub(super) router: Router,
    pub(super) tls: Tls,
    /// Who may say that it speaks for somebody else.
    pub(super) trusted: Arc<[NetworkPrefix]>,
    /// Who serves the gateway's clients and servers; `None` where there is no gateway.
    pub(super) gateway: Option<GatewayAcceptor>,
    /// The connections of all listeners.
    pub(super) connections: Arc<ConnectionLimiter>,
}

/// Which protocols a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admits {
    /// Everything that can be told apart.
    All,
    /// The gateway's servers, who are spoken to first.
    GatewayServers(ServerAuth),
}

/// Where a connection comes from, what it arrived at, and the worker it belongs to.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    server: SocketAddr,
    pub(super) worker: Inbox,
    /// What the connection occupies for as long as any part of the server holds it.
    pub(super) connection: ConnectionPermit,
}

/// What became of a stream.
#[derive(Debug)]
enum Bare<S> {
    /// STUN or TURN, for its worker.
    Turn(PeekedStream<S>, Ends),
    /// A client's, for the gateway.
    Gateway(PeekedStream<S>, Ends),
    /// It has ended.
    Served,
}

impl Ends {
    pub(super) fn tuple(&self, transport: Transport) -> FiveTuple {
        FiveTuple { client: self.client, server: self.server, transport }
    }
}

impl StreamDoor {
    /// Accepts until dropped.
    pub(super) async fn serve(self, listener: TcpListener, admits: Admits) {
        let mut connections = JoinSet::new();
        let mut turn = 0_usize;
        loop {
            if self.connections.counters().evicted > MOST_LEAVING {
                // Those that were ended have their descriptors still.
                tokio::time::sleep(LEAVING_PAUSE).await;
            }
            let accepted = tokio::select! {
                // Whoever has left is forgotten at once: what is left of a task takes memory.
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let Some(connection) = self.open_from(client.ip()) else { continue };
                    turn = turn.wrapping_add(1);
                    let door = self.clone();
                    let worker = self.workers[turn % self.workers.len()].clone();
                    connections.spawn(async move {
                        let evicted = evicted(&connection);
                        let served = door.connection(stream, (client, worker, connection), admits);
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

    /// Takes a place for a connection. Whom a proxy speaks for is not known yet.
    fn open_from(&self, client: IpAddr) -> Option<ConnectionPermit> {
        match forwarded::is_trusted(&self.trusted, client) {
            true => self.connections.admit(),
            false => self.connections.admit_from(client),
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        (client, worker, connection): (SocketAddr, Inbox, ConnectionPermit),
        admits: Admits,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let server = stream.local_addr()?;
        let ends = Ends { client, server, worker, connection };
        if let Admits::GatewayServers(door) = admits {
            if !ends.connection.assign_to(client.ip()) {
                return Ok(());
            }
            return Box::pin(self.gateway_server(stream, ends, door)).await;
        }
        let gateway = self.gateway.clone();
        match (self.stream(stream, ends).await?, gateway) {
            (Bare::Turn(stream, ends), _) => hand_over(stream, ends).await,
            (Bare::Gateway(stream, ends), Some(gateway)) => {
                let (early, socket) = stream.into_parts();
                gateway.client(socket, early, ends.client.ip(), ends.connection)
            }
            _ => Ok(()),
        }
    }

    /// Serves one stream, whatever carries it; returns it when it turns out to carry frames that need no task.
    async fn stream<S>(self, stream: S, mut ends: Ends) -> io::Result<Bare<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut stream = PeekedStream::new(stream);
        if forwarded::is_trusted(&self.trusted, ends.client.ip()) {
            ends.client = timeout(SNIFF_TIME, proxied(&mut stream)).await??.unwrap_or(ends.client);
        }
        // Only now, and not where a proxy has named nobody yet: its own address would count for everybody behind it.
        if !forwarded::is_trusted(&self.trusted, ends.client.ip())
            && !ends.connection.assign_to(ends.client.ip())
        {
            return Ok(Bare::Served);
        }
        // What is seldom needed is boxed, so that those who wait have no room for it in their task.
        match sniff(&mut stream).await? {
            StreamKind::Stun => return Ok(Bare::Turn(stream, ends)),
            StreamKind::Gateway => return Ok(Bare::Gateway(stream, ends)),
            StreamKind::Tls => Box::pin(self.tls(stream, ends)).await?,
            StreamKind::Http => http::serve(stream, (self.router, self.trusted), ends).await?,
            StreamKind::Unknown => {}
        }
        Ok(Bare::Served)
    }

    /// Serves what is inside TLS.
    async fn tls<S>(self, mut stream: PeekedStream<S>, ends: Ends) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if !ends.connection.reserve_memory(TLS_MEMORY) {
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
            carry_frames(inside, ends.tuple(Transport::Tls), (&ends.worker, &ends.connection)).await?;
        } else if kind == StreamKind::Http {
            http::serve(inside, (self.router, self.trusted), ends).await?;
        } else if let Some(gateway) = self.gateway {
            gateway.bridge(inside, ends.client.ip(), ends.connection).await?;
        }
        Ok(())
    }
}

/// Gives a socket to its worker, which serves it from now on.
async fn hand_over(stream: PeekedStream<TcpStream>, ends: Ends) -> io::Result<()> {
    let client = ends.tuple(Transport::Tcp);
    let (early, socket) = stream.into_parts();
    let connection = ends.connection.clone();
    let arrival = AcceptedSocket { client, socket: socket.into_std()?, early, connection: ends.connection };
    ends.worker.send(WorkerMessage::TcpAccepted(Box::new(arrival))).await;
    let (number, worker) = (connection.id(), ends.worker);
    // A worker that has no room for the word gives the client up when it has been silent for long enough.
    connection.on_evict(move || {
        let _ = worker.try_send(WorkerMessage::TcpEvicted { client, number });
    });
    Ok(())
}

/// Takes a PROXY header off the stream; returns the client it names.
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

/// Looks at a stream's first bytes without taking them. Who says nothing waits to be dialled by a server of the gateway (S2-A8).
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

    /// A door whose worker is the returned queue.
    fn door(proxies: &[&str]) -> (StreamDoor, mpsc::Receiver<WorkerMessage>, tempfile::TempDir) {
        let poll = mio::Poll::new().unwrap();
        let (inbox, queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let door = StreamDoor {
            workers: [inbox].into(),
            router: Router::new(),
            tls: Tls::new(&Certificate::own(folder.path()).unwrap()).unwrap(),
            trusted: proxies.iter().map(|net| net.parse().unwrap()).collect(),
            gateway: None,
            connections: connections(8),
        };
        (door, queue, folder)
    }

    fn connections(per_address: u32) -> Arc<ConnectionLimiter> {
        ConnectionLimiter::new(
            ConnectionLimits { total: 100, descriptors: 100, per_address, bytes: 1 << 20 },
            &[],
        )
    }

    const CLIENT: &str = "192.0.2.9:50000";
    const BINDING: &[u8] = b"\0\x01\0\0\x21\x12\xA4\x42transaction!";

    fn serve(door: &StreamDoor) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, server) = tokio::io::duplex(4096);
        let worker = door.workers[0].clone();
        let connection = door.connections.admit().unwrap();
        let ends = Ends {
            client: CLIENT.parse().unwrap(),
            server: "192.0.2.1:3478".parse().unwrap(),
            worker,
            connection,
        };
        let serving = door.clone().stream(server, ends);
        // What a worker would do with a socket is done by a task here, as inside TLS.
        let served = async {
            match serving.await? {
                Bare::Turn(stream, ends) => {
                    carry_frames(stream, ends.tuple(Transport::Tcp), (&ends.worker, &ends.connection)).await
                }
                Bare::Gateway(..) | Bare::Served => Ok(()),
            }
        };
        (client, tokio::spawn(served))
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_open_tls_handshake_is_given_up() {
        let (door, _queue, _folder) = door(&[]);
        let (mut client, served) = serve(&door);
        client.write_all(b"\x16\x03\x01\x02\0\x01").await.unwrap();
        let before = tokio::time::Instant::now();
        let ended = served.await.unwrap().unwrap_err();
        assert_eq!((ended.kind(), before.elapsed()), (io::ErrorKind::TimedOut, TLS_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_and_half_a_proxy_header_are_given_up() {
        let (door, _queue, _folder) = door(&["192.0.2.0/24"]);
        for start in [&b""[..], b"PROXY TCP4 "] {
            let (mut client, served) = serve(&door);
            client.write_all(start).await.unwrap();
            let before = tokio::time::Instant::now();
            assert!(served.await.unwrap().is_err());
            assert_eq!(before.elapsed(), SNIFF_TIME);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_silent_for_a_minute_or_with_credentials_for_an_hour() {
        for (proven, patience) in [(false, UNAUTHENTICATED_IDLE_TIME), (true, IDLE_TIME)] {
            let (door, mut queue, _folder) = door(&[]);
            let (mut client, served) = serve(&door);
            client.write_all(BINDING).await.unwrap();
            let Some(WorkerMessage::StreamOpened { path, .. }) = queue.recv().await else {
                panic!("not opened")
            };
            assert!(matches!(queue.recv().await, Some(WorkerMessage::Frames { .. })));
            path.authenticated.store(proven, std::sync::atomic::Ordering::Relaxed);
            let before = tokio::time::Instant::now();
            assert_eq!(served.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(before.elapsed(), patience);
        }
    }

    #[tokio::test]
    async fn connections_behind_a_proxy_count_for_whom_it_names() {
        let (mut door, _queue, _folder) = door(&["192.0.2.0/24"]);
        door.connections = connections(1);
        let mut kept = Vec::new();
        for (client, admitted) in [(7, true), (8, true), (7, false)] {
            let (mut stream, served) = serve(&door);
            let header = format!("PROXY TCP4 198.51.100.{client} 192.0.2.1 4000 3478\r\n");
            stream.write_all(&[header.as_bytes(), BINDING].concat()).await.unwrap();
            let closed = timeout(Duration::from_millis(200), stream.read_u8()).await.is_ok();
            assert_eq!(closed, !admitted, "{client}");
            kept.push((stream, served));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_does_not_end_is_given_up_though_bytes_come() {
        let (door, mut queue, _folder) = door(&[]);
        let (mut client, served) = serve(&door);
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
        for (proven, closed) in [(false, true), (true, false)] {
            let (door, mut queue, _folder) = door(&[]);
            let (mut client, served) = serve(&door);
            client.write_all(BINDING).await.unwrap();
            let Some(WorkerMessage::StreamOpened { path, .. }) = queue.recv().await else {
                panic!("not opened")
            };
            path.authenticated.store(proven, std::sync::atomic::Ordering::Relaxed);
            client
                .write_all(&[b"\0\x03\xFF\xFC\x21\x12\xA4\x42transaction!", &[0; 8000][..]].concat())
                .await
                .unwrap();
            let ended = timeout(Duration::from_millis(200), client.read_u8()).await;
            assert_eq!(ended.is_ok(), closed, "proven: {proven}");
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
            let (door, mut queue, _folder) = door(proxies);
            let (mut client, served) = serve(&door);
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
