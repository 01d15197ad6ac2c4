//! TCP: accept, take off what a proxy put in front, sniff, and give each stream to the protocol it speaks; inside TLS the same
//! again.

use super::frames;
use super::gateway::{GatewayDoor, ServerDoor};
use super::inbox::{Inbox, Link, Replies, ToStream, ToWorker};
use super::patience::Patient;
use super::request_source::{self, RequestSource};
use super::tcp_leg::Arrival;
use super::tcp_relay::Joint;
use super::websocket::Origin;
use crate::limits::{Limit, sampled};
use crate::net::connections::{Connections, Permit};
use crate::net::demux::{self, StreamKind};
use crate::net::forwarded;
use crate::net::prefixed::Prefixed;
use crate::net::proxy::{self, Start};
use crate::net::time;
use crate::net::tls::Tls;
use crate::turn_server::{FiveTuple, Transport};
use axum::Router;
use axum::middleware::from_fn_with_state;
use bytes::BytesMut;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// How long a connection may stay silent before its protocol is known.
const SNIFF_TIME: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
pub(super) const TLS_TIME: Duration = Duration::from_secs(10);
/// How long an HTTP client may take over its request's head.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How long a STUN or TURN stream may stay silent: longer than any allocation lives without a Refresh.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(3660);
/// The same before the client has shown good credentials.
pub(super) const STRANGER_TIME: Duration = Duration::from_secs(60);
/// How long one write may hang on a client that does not read.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long a goodbye may take.
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Bytes read at a time; a frame, and so what is kept of one that is not whole, has at most 64 KiB.
pub(super) const READ_ROOM: usize = 16 * 1024;
/// Bytes of TLS records that leave together.
const RECORDS: usize = 8 * 1024;
/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection may be given to.
#[derive(Debug, Clone)]
pub(super) struct StreamDoor {
    pub(super) workers: Arc<[Inbox]>,
    pub(super) router: Router,
    pub(super) tls: Tls,
    /// Who may say that it speaks for somebody else.
    pub(super) trusted: Arc<[IpNet]>,
    /// Who serves the gateway's clients and servers; `None` where there is no gateway.
    pub(super) gateway: Option<GatewayDoor>,
    /// Permits for connections, over all listeners.
    pub(super) room: Arc<Semaphore>,
    /// Permits for the connections of one address.
    pub(super) connections: Arc<Connections>,
}

/// Which protocols a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admits {
    /// Everything that can be told apart.
    All,
    /// TLS alone, and inside it everything.
    Tls,
    /// The gateway's servers, who are spoken to first.
    GatewayServers(ServerDoor),
}

/// Where a connection comes from, what it arrived at, and the worker it belongs to.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    client: SocketAddr,
    server: SocketAddr,
    worker: Inbox,
    pub(super) places: Places,
}

/// What became of a stream.
#[derive(Debug)]
enum Bare<S> {
    /// STUN or TURN, for its worker.
    Turn(Prefixed<S>, Ends),
    /// A client's, for the gateway.
    Gateway(Prefixed<S>, Ends),
    /// It has ended.
    Served,
}

/// What a connection occupies for as long as any part of the server holds it.
#[derive(Debug, Clone)]
pub(super) struct Places {
    _room: Arc<OwnedSemaphorePermit>,
    /// Of the client's address, once it is known.
    address: Option<Arc<Permit>>,
}

impl Places {
    /// The same, counted for the client that a proxy has named.
    pub(super) fn counted_for(self, permit: Permit) -> Self {
        Self { address: Some(Arc::new(permit)), ..self }
    }
}

#[cfg(test)]
impl Places {
    /// Of a server with room for one.
    pub(super) fn free() -> Self {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Self { _room: Arc::new(room), address: None }
    }
}

impl Ends {
    fn tuple(&self, transport: Transport) -> FiveTuple {
        FiveTuple { client: self.client, server: self.server, transport }
    }
}

impl StreamDoor {
    /// Accepts until dropped.
    pub(super) async fn serve(self, listener: TcpListener, admits: Admits) {
        let mut connections = JoinSet::new();
        let mut turn = 0_usize;
        loop {
            while connections.try_join_next().is_some() {}
            if self.room.available_permits() == 0 {
                Limit::TcpConnections.reached(super::MAX_STREAMS);
            }
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    turn = turn.wrapping_add(1);
                    let door = self.clone();
                    let worker = self.workers[turn % self.workers.len()].clone();
                    connections.spawn(async move {
                        let places = Places { _room: Arc::new(permit), address: None };
                        if let Err(error) = door.connection(stream, (client, worker, places), admits).await {
                            tracing::debug!(%error, "stream ended");
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

    async fn connection(
        self,
        stream: TcpStream,
        (client, worker, places): (SocketAddr, Inbox, Places),
        admits: Admits,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let server = stream.local_addr()?;
        let mut ends = Ends { client, server, worker, places };
        if let Admits::GatewayServers(door) = admits {
            let Some(counted) = self.connections.admit(client.ip()) else { return Ok(()) };
            ends.places.address = Some(Arc::new(counted));
            return self.gateway_server(stream, ends, door).await;
        }
        let gateway = self.gateway.clone();
        match (self.stream(stream, ends, admits).await?, gateway) {
            (Bare::Turn(stream, ends), _) => hand_over(stream, ends).await,
            (Bare::Gateway(stream, ends), Some(gateway)) => {
                let (early, socket) = stream.into_parts();
                gateway.client(socket, early, ends.client.ip(), ends.places)
            }
            _ => Ok(()),
        }
    }

    /// Serves one stream, whatever carries it; returns it when it turns out to carry frames that need no task.
    async fn stream<S>(self, stream: S, mut ends: Ends, admits: Admits) -> io::Result<Bare<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut stream = Prefixed::new(stream);
        if forwarded::is_trusted(&self.trusted, ends.client.ip()) {
            ends.client = timeout(SNIFF_TIME, proxied(&mut stream)).await??.unwrap_or(ends.client);
        }
        // Only now, and not where a proxy has named nobody yet: its own address would count for everybody behind it.
        if !forwarded::is_trusted(&self.trusted, ends.client.ip()) {
            let Some(counted) = self.connections.admit(ends.client.ip()) else { return Ok(Bare::Served) };
            ends.places.address = Some(Arc::new(counted));
        }
        match (sniff(&mut stream).await?, admits) {
            (StreamKind::Tls, _) => {
                let stream = BufWriter::with_capacity(RECORDS, stream);
                let (inside, chosen) = timeout(TLS_TIME, self.tls.accept(stream)).await??;
                let mut inside = Prefixed::new(inside);
                let kind = sniff(&mut inside).await?;
                if !chosen.allows(kind) {
                    goodbye(&mut inside).await?;
                } else if kind == StreamKind::Stun {
                    turn(inside, ends.tuple(Transport::Tls), &ends.worker).await?;
                } else if kind == StreamKind::Http {
                    self.http(inside, ends).await?;
                } else if let Some(gateway) = self.gateway {
                    gateway.carry(inside, ends.client.ip(), ends.places).await?;
                }
            }
            (StreamKind::Stun, Admits::All) => return Ok(Bare::Turn(stream, ends)),
            (StreamKind::Gateway, Admits::All) => return Ok(Bare::Gateway(stream, ends)),
            (StreamKind::Http, Admits::All) => self.http(stream, ends).await?,
            _ => {}
        }
        Ok(Bare::Served)
    }

    async fn http<S>(self, stream: S, ends: Ends) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let client = ends.tuple(Transport::WebSocket);
        let origin = Origin { client, worker: ends.worker, places: ends.places };
        let source = RequestSource { trusted: self.trusted, connections: self.connections, origin };
        let router = self.router.layer(from_fn_with_state(source, request_source::name_client));
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .serve_connection(
                TokioIo::new(Patient::new(stream, WRITE_TIME)),
                TowerToHyperService::new(router),
            )
            .with_upgrades()
            .await
            .map_err(io::Error::other)
    }
}

/// Gives a socket to its worker, which serves it from now on.
async fn hand_over(stream: Prefixed<TcpStream>, ends: Ends) -> io::Result<()> {
    let client = ends.tuple(Transport::Tcp);
    let (early, socket) = stream.into_parts();
    let arrival = Arrival { client, socket: socket.into_std()?, early, places: ends.places };
    ends.worker.send(ToWorker::Arrived(Box::new(arrival))).await;
    Ok(())
}

/// Takes a PROXY header off the stream; returns the client it names.
async fn proxied<S: AsyncRead + Unpin>(stream: &mut Prefixed<S>) -> io::Result<Option<SocketAddr>> {
    let found = stream.sniff(|start| proxy::parse(start).transpose()).await?;
    match found {
        Some(Ok(Start::Header { len, client })) => {
            stream.skip(len);
            Ok(client)
        }
        Some(Ok(Start::Absent)) | None => Ok(None),
        Some(Err(error)) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Looks at a stream's first bytes without taking them. Who says nothing waits to be dialled by a server of the gateway (S2-A8).
async fn sniff<S: AsyncRead + Unpin>(stream: &mut Prefixed<S>) -> io::Result<StreamKind> {
    match timeout(SNIFF_TIME, stream.sniff(demux::stream)).await {
        Ok(kind) => Ok(kind?.unwrap_or(StreamKind::Unknown)),
        Err(_) if stream.is_silent() => Ok(StreamKind::Gateway),
        Err(_) => Ok(StreamKind::Unknown),
    }
}

/// Ends a stream in order: inside TLS the client is told.
pub(super) async fn goodbye(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    timeout(CLOSE_TIME, stream.shutdown()).await?
}

/// Carries frames between one stream and its worker until either ends.
async fn turn<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    client: FiveTuple,
    worker: &Inbox,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let Some((link, queue)) = worker.open(client).await else { return Ok(()) };
    let mut buffer = BytesMut::new();
    let ended = tokio::select! {
        ended = read_frames(&mut reader, &mut buffer, &link) => ended.map(|()| None),
        ended = write_replies(&mut writer, queue) => ended,
    };
    link.close().await;
    match ended {
        Ok(Some(joint)) => joint.run(reader.unsplit(writer), buffer).await,
        ended => ended.map(drop).and(goodbye(&mut writer).await),
    }
}

async fn read_frames(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    link: &Link,
) -> io::Result<()> {
    loop {
        let run = frames::run(buffer);
        if run.len > 0 && !link.hear(buffer.split_to(run.len).freeze()).await {
            return Ok(());
        }
        if let Some(broken) = run.broken {
            return Err(io::Error::new(io::ErrorKind::InvalidData, broken));
        }
        buffer.reserve(READ_ROOM);
        let mut silent = Duration::ZERO;
        let read = loop {
            match timeout(STRANGER_TIME, reader.read_buf(buffer)).await {
                Ok(read) => break read?,
                Err(elapsed) => silent += waited(link, silent, elapsed)?,
            }
        };
        if read == 0 {
            return Ok(());
        }
    }
}

/// Says how long a client was waited for, or that it was long enough.
fn waited(link: &Link, silent: Duration, elapsed: Elapsed) -> io::Result<Duration> {
    let patient = link.is_proven() && silent + STRANGER_TIME < IDLE_TIME;
    if patient { Ok(STRANGER_TIME) } else { Err(elapsed.into()) }
}

/// Writes frames until the worker has no more use for the stream, or wants it to carry a peer's bytes.
async fn write_replies(
    writer: &mut (impl AsyncWrite + Unpin),
    mut queue: Replies,
) -> io::Result<Option<Box<Joint>>> {
    while let Some(told) = queue.next().await {
        let mut run = match told {
            ToStream::Frames(run) => run,
            ToStream::Join(joint) => return Ok(Some(joint)),
        };
        let length = run.len();
        // Inside TLS each becomes a record of its own: some clients take but one frame from a record.
        while !run.is_empty() {
            let frame = run.split_to(frames::first(&run));
            timeout(WRITE_TIME, writer.write_all(&frame)).await??;
        }
        // TLS keeps what it could not send until it is flushed.
        timeout(WRITE_TIME, writer.flush()).await??;
        queue.written(length);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::certificate::Certificate;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    /// A door whose worker is the returned queue.
    fn door(proxies: &[&str]) -> (StreamDoor, mpsc::Receiver<ToWorker>, tempfile::TempDir) {
        let poll = mio::Poll::new().unwrap();
        let (inbox, queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let door = StreamDoor {
            workers: [inbox].into(),
            router: Router::new(),
            tls: Tls::new(&Certificate::own(folder.path()).unwrap()).unwrap(),
            trusted: proxies.iter().map(|net| net.parse().unwrap()).collect(),
            gateway: None,
            room: Arc::new(Semaphore::new(8)),
            connections: Connections::new(8, &[]),
        };
        (door, queue, folder)
    }

    const CLIENT: &str = "192.0.2.9:50000";
    const BINDING: &[u8] = b"\0\x01\0\0\x21\x12\xA4\x42transaction!";

    fn serve(door: &StreamDoor, admits: Admits) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, server) = tokio::io::duplex(4096);
        let worker = door.workers[0].clone();
        let room = Arc::clone(&door.room).try_acquire_owned().unwrap();
        let places = Places { _room: Arc::new(room), address: None };
        let ends = Ends {
            client: CLIENT.parse().unwrap(),
            server: "192.0.2.1:3478".parse().unwrap(),
            worker,
            places,
        };
        let serving = door.clone().stream(server, ends, admits);
        // What a worker would do with a socket is done by a task here, as inside TLS.
        let served = async {
            match serving.await? {
                Bare::Turn(stream, ends) => turn(stream, ends.tuple(Transport::Tcp), &ends.worker).await,
                Bare::Gateway(..) | Bare::Served => Ok(()),
            }
        };
        (client, tokio::spawn(served))
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_open_tls_handshake_is_given_up() {
        let (door, _queue, _folder) = door(&[]);
        let (mut client, served) = serve(&door, Admits::All);
        client.write_all(b"\x16\x03\x01\x02\0\x01").await.unwrap();
        let before = tokio::time::Instant::now();
        let ended = served.await.unwrap().unwrap_err();
        assert_eq!((ended.kind(), before.elapsed()), (io::ErrorKind::TimedOut, TLS_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_and_half_a_proxy_header_are_given_up() {
        let (door, _queue, _folder) = door(&["192.0.2.0/24"]);
        for start in [&b""[..], b"PROXY TCP4 "] {
            let (mut client, served) = serve(&door, Admits::All);
            client.write_all(start).await.unwrap();
            let before = tokio::time::Instant::now();
            assert!(served.await.unwrap().is_err());
            assert_eq!(before.elapsed(), SNIFF_TIME);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_silent_for_a_minute_or_with_credentials_for_an_hour() {
        for (proven, patience) in [(false, STRANGER_TIME), (true, IDLE_TIME)] {
            let (door, mut queue, _folder) = door(&[]);
            let (mut client, served) = serve(&door, Admits::All);
            client.write_all(BINDING).await.unwrap();
            let Some(ToWorker::Opened { leg, .. }) = queue.recv().await else { panic!("not opened") };
            assert!(matches!(queue.recv().await, Some(ToWorker::Frames { .. })));
            leg.proven.store(proven, std::sync::atomic::Ordering::Relaxed);
            let before = tokio::time::Instant::now();
            assert_eq!(served.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(before.elapsed(), patience);
        }
    }

    #[tokio::test]
    async fn connections_behind_a_proxy_count_for_whom_it_names() {
        let (mut door, _queue, _folder) = door(&["192.0.2.0/24"]);
        door.connections = Connections::new(1, &[]);
        let mut kept = Vec::new();
        for (client, admitted) in [(7, true), (8, true), (7, false)] {
            let (mut stream, served) = serve(&door, Admits::All);
            let header = format!("PROXY TCP4 198.51.100.{client} 192.0.2.1 4000 3478\r\n");
            stream.write_all(&[header.as_bytes(), BINDING].concat()).await.unwrap();
            let closed = timeout(Duration::from_millis(200), stream.read_u8()).await.is_ok();
            assert_eq!(closed, !admitted, "{client}");
            kept.push((stream, served));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_tls_port_closes_what_is_plain() {
        let (door, mut queue, _folder) = door(&[]);
        for start in [BINDING, b"GET / HTTP/1.1\r\n\r\n"] {
            let (mut client, served) = serve(&door, Admits::Tls);
            client.write_all(start).await.unwrap();
            served.await.unwrap().unwrap();
            assert!(queue.try_recv().is_err(), "a worker has heard of it");
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
            let (mut client, served) = serve(&door, Admits::All);
            client.write_all(start).await.unwrap();
            drop(client);
            let _ = served.await.unwrap();
            let opened = match queue.try_recv() {
                Ok(ToWorker::Opened { client, .. }) => Some(client.client),
                _ => None,
            };
            assert_eq!(opened, named.map(|address| address.parse().unwrap()), "{proxies:?}");
        }
    }
}
