//! TCP: accept, take off what a proxy put in front, sniff, and give each stream to the protocol it speaks; inside TLS the same
//! again.

use super::inbox::{Inbox, Link};
use super::websocket::Origin;
use crate::net::connections::Connections;
use crate::net::demux::{self, StreamKind};
use crate::net::prefixed::Prefixed;
use crate::net::proxy::{self, Start};
use crate::net::tls::{Chosen, Tls};
use crate::turn_server::wire::frame_len;
use crate::turn_server::{FiveTuple, Transport};
use axum::Router;
use axum::extract::ConnectInfo;
use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection may stay silent before its protocol is known.
const SNIFF_TIME: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
const TLS_TIME: Duration = Duration::from_secs(10);
/// How long an HTTP client may take over its request's head.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How long a STUN or TURN stream may stay silent: longer than any allocation lives without a Refresh.
const IDLE_TIME: Duration = Duration::from_secs(3660);
/// How long one write may hang on a client that does not read.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long a goodbye may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Bytes read at a time; a frame, and so the buffer, has at most 64 KiB.
const READ_ROOM: usize = 4096;
/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection may be given to.
#[derive(Debug, Clone)]
pub(super) struct StreamDoor {
    pub(super) workers: Arc<[Inbox]>,
    pub(super) router: Router,
    pub(super) tls: Tls,
    /// Who may say that it speaks for somebody else.
    pub(super) proxies: Arc<[IpNet]>,
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
}

/// Where a connection comes from, what it arrived at, and the worker it belongs to.
#[derive(Debug, Clone)]
struct Ends {
    client: SocketAddr,
    server: SocketAddr,
    worker: Inbox,
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
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let Some(counted) = self.connections.admit(client.ip()) else { continue };
                    turn = turn.wrapping_add(1);
                    let door = self.clone();
                    let worker = self.workers[turn % self.workers.len()].clone();
                    connections.spawn(async move {
                        if let Err(error) = door.connection(stream, client, worker, admits).await {
                            tracing::debug!(%error, "stream ended");
                        }
                        drop((permit, counted));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        client: SocketAddr,
        worker: Inbox,
        admits: Admits,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let server = stream.local_addr()?;
        self.stream(stream, Ends { client, server, worker }, admits).await
    }

    /// Serves one stream, whatever carries it.
    async fn stream<S>(self, stream: S, mut ends: Ends, admits: Admits) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut stream = Prefixed::new(stream);
        let from = ends.client.ip().to_canonical();
        if self.proxies.iter().any(|proxies| proxies.contains(&from)) {
            ends.client = timeout(SNIFF_TIME, proxied(&mut stream)).await??.unwrap_or(ends.client);
        }
        match (sniff(&mut stream).await?, admits) {
            (StreamKind::Tls, _) => {
                let (inside, chosen) = timeout(TLS_TIME, self.tls.accept(stream)).await??;
                let mut inside = Prefixed::new(inside);
                let kind = sniff(&mut inside).await?;
                if !chosen.allows(kind) {
                    return goodbye(&mut inside).await;
                }
                self.plain(inside, kind, ends, Transport::Tls).await
            }
            (kind, Admits::All) if Chosen::Any.allows(kind) => {
                self.plain(stream, kind, ends, Transport::Tcp).await
            }
            _ => Ok(()),
        }
    }

    /// Serves what is not TLS, or is inside it.
    async fn plain<S>(
        self,
        stream: Prefixed<S>,
        kind: StreamKind,
        ends: Ends,
        transport: Transport,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match kind {
            StreamKind::Http => self.http(stream, ends).await,
            StreamKind::Stun => turn(stream, ends.tuple(transport), &ends.worker).await,
            StreamKind::Tls | StreamKind::Unknown => Ok(()),
        }
    }

    async fn http<S>(self, stream: S, ends: Ends) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let origin = Origin { client: ends.tuple(Transport::WebSocket), worker: ends.worker };
        let router = self.router.layer(axum::Extension(ConnectInfo(ends.client)));
        let router = router.layer(axum::Extension(origin));
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades()
            .await
            .map_err(io::Error::other)
    }
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

/// Looks at a stream's first bytes without taking them.
async fn sniff<S: AsyncRead + Unpin>(stream: &mut Prefixed<S>) -> io::Result<StreamKind> {
    match timeout(SNIFF_TIME, stream.sniff(demux::stream)).await {
        Ok(kind) => Ok(kind?.unwrap_or(StreamKind::Unknown)),
        Err(_) => Ok(StreamKind::Unknown),
    }
}

/// Ends a stream in order: inside TLS the client is told.
async fn goodbye(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    timeout(CLOSE_TIME, stream.shutdown()).await?
}

/// Carries frames between one stream and its worker until either ends.
async fn turn<S: AsyncRead + AsyncWrite>(stream: S, client: FiveTuple, worker: &Inbox) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let Some((link, queue)) = worker.open(client).await else { return Ok(()) };
    let ended = tokio::select! {
        ended = read_frames(reader, &link) => ended,
        ended = write_replies(&mut writer, queue) => ended,
    };
    link.close().await;
    ended.and(goodbye(&mut writer).await)
}

async fn read_frames(mut reader: impl AsyncRead + Unpin, link: &Link) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(bytes) = next_frame(&mut buffer)? {
            if !link.hear(bytes).await {
                return Ok(());
            }
        }
        buffer.reserve(READ_ROOM);
        if timeout(IDLE_TIME, reader.read_buf(&mut buffer)).await?? == 0 {
            return Ok(());
        }
    }
}

/// Takes the first whole frame off `buffer`.
fn next_frame(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let frame = frame_len(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(frame.filter(|len| *len <= buffer.len()).map(|len| buffer.split_to(len).freeze()))
}

async fn write_replies(
    writer: &mut (impl AsyncWrite + Unpin),
    mut queue: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        // TLS keeps what it could not send until it is flushed.
        let sent = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        timeout(WRITE_TIME, sent).await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::inbox::ToWorker;
    use super::*;
    use crate::net::certificate::Certificate;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    #[test]
    fn frames_come_out_whole_under_every_split() {
        let message = [&[0, 1, 0, 4][..], &[0; 16], b"attr"].concat();
        let channel_data = b"\x40\x01\0\x03abc\0".to_vec();
        let stream = [message.clone(), channel_data.clone(), message.clone()].concat();
        for split in 0..stream.len() {
            let mut buffer = BytesMut::from(&stream[..split]);
            let mut frames = Vec::new();
            for rest in [&[][..], &stream[split..]] {
                buffer.extend_from_slice(rest);
                while let Some(frame) = next_frame(&mut buffer).unwrap() {
                    frames.push(frame.to_vec());
                }
            }
            assert_eq!(frames, [message.clone(), channel_data.clone(), message.clone()], "split at {split}");
        }
    }

    /// A door whose worker is the returned queue.
    fn door(proxies: &[&str]) -> (StreamDoor, mpsc::Receiver<ToWorker>, tempfile::TempDir) {
        let poll = mio::Poll::new().unwrap();
        let (inbox, queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let door = StreamDoor {
            workers: [inbox].into(),
            router: Router::new(),
            tls: Tls::new(&Certificate::own(folder.path()).unwrap()).unwrap(),
            proxies: proxies.iter().map(|net| net.parse().unwrap()).collect(),
            room: Arc::new(Semaphore::new(1)),
            connections: Connections::new(8, &[]),
        };
        (door, queue, folder)
    }

    const CLIENT: &str = "192.0.2.9:50000";
    const BINDING: &[u8] = b"\0\x01\0\0\x21\x12\xA4\x42transaction!";

    fn serve(door: &StreamDoor, admits: Admits) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, server) = tokio::io::duplex(4096);
        let worker = door.workers[0].clone();
        let ends =
            Ends { client: CLIENT.parse().unwrap(), server: "192.0.2.1:3478".parse().unwrap(), worker };
        (client, tokio::spawn(door.clone().stream(server, ends, admits)))
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
