//! A connection between two agents and its byte streams.

use super::config::ServerName;
use super::control_streams::{self, ControlEvent, ControlStreams};
use super::engine::EngineConfig;
use super::error::{ConnectionError, DatagramError};
use super::path::{PathInfo, PathKind};
use super::quic::{self, QuicConnection};
use super::stall_recovery::StallRecovery;
use crate::net::dialer::{DialTarget, Dialer};
use bytes::Bytes;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The first byte of every stream: the version of the stream's format. The other side learns of a stream only when data arrives.
const STREAM_VERSION: [u8; 1] = [1];
/// Application error code of a regular end (RFC 9000 section 20.2).
const DONE: u32 = 0;
/// Application error code of any other end.
const ABORTED: u32 = 1;
/// Application error code of a stream that the receiver does not want; no failure of either side.
const DECLINED: u32 = 2;
/// Time limit for the other side to use what it was sent.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a side that knows that everything was used waits for the other one to know it too.
const LAST_ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the last packet to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);
/// Time limit for a server to accept a TCP connection before it counts as gone.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// An encrypted connection to the other holder of a ticket.
///
/// It survives changes of the path. Dropping it closes it without waiting; [`Connection::finish`] waits until both sides have used
/// everything that they received.
#[derive(Debug)]
pub struct Connection {
    inner: quinn::Connection,
    endpoint: quinn::Endpoint,
    control: ControlStreams,
    path: PathHandle,
    is_revoked: Arc<AtomicBool>,
    _recovery: StallRecovery,
}

/// The sending half of a stream; [`SendStream::finish`] waits until everything has arrived.
///
/// A stream that is dropped before it was finished is reset, so that the other side cannot take a part for the whole.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    ended: bool,
}

/// The receiving half of a stream; reads 0 bytes after the other side has finished.
#[derive(Debug)]
pub struct RecvStream(quinn::RecvStream);

/// Follows the path of a connection.
#[derive(Debug, Clone)]
pub struct PathChanges(watch::Receiver<Option<PathInfo>>);

impl PathChanges {
    /// Waits for the next path; the first call returns the current one. `None` after the end of the connection.
    pub async fn next(&mut self) -> Option<PathInfo> {
        loop {
            self.0.changed().await.ok()?;
            let path = self.0.borrow_and_update().clone();
            if path.is_some() {
                return path;
            }
        }
    }
}

/// How it is tested whether the server is there: by TCP, through the proxy where there is one.
#[derive(Debug, Clone)]
pub(super) struct ServerProbe {
    name: ServerName,
    dialer: Dialer,
}

impl ServerProbe {
    pub(super) fn new(config: &EngineConfig) -> Self {
        Self { name: config.name.clone(), dialer: config.dialer.clone() }
    }

    /// Returns whether the server accepts a connection at this address.
    async fn is_up(&self, address: SocketAddr) -> bool {
        let target = DialTarget {
            host: &self.name.host,
            port: self.name.port,
            address: Some(address),
            tls: None,
            send_buffer: None,
            silence_limit: None,
        };
        timeout(SERVER_TIMEOUT, self.dialer.dial(target, SERVER_TIMEOUT))
            .await
            .is_ok_and(|dialed| dialed.is_ok())
    }
}

/// The task that keeps the path of a connection, and what it publishes. Dropping the handle ends the task.
#[derive(Debug)]
pub(super) struct PathHandle {
    current: watch::Receiver<Option<PathInfo>>,
    /// The signalling connection has been lost since the call started.
    signaling_lost: watch::Receiver<bool>,
    probe: ServerProbe,
    stop: mpsc::Sender<String>,
    task: JoinHandle<()>,
    /// For the candidates that the other side finds later.
    control: Option<mpsc::Sender<ControlEvent>>,
}

impl PathHandle {
    pub(super) fn new(
        current: watch::Receiver<Option<PathInfo>>,
        signaling_lost: watch::Receiver<bool>,
        probe: ServerProbe,
        stop: mpsc::Sender<String>,
        task: JoinHandle<()>,
    ) -> Self {
        Self { current, signaling_lost, probe, stop, task, control: None }
    }

    /// Has the call learn of the connection and of the other side's candidates.
    pub(super) fn with_control(self, control: mpsc::Sender<ControlEvent>) -> Self {
        Self { control: Some(control), ..self }
    }

    /// Returns the server that relays the connection if it is gone or was restarted, so that its allocations are lost.
    async fn lost_server(&self) -> Option<SocketAddr> {
        let path = self.current.borrow().clone().filter(|path| path.kind != PathKind::Direct)?;
        let is_lost = *self.signaling_lost.borrow();
        (is_lost || !self.probe.is_up(path.remote).await).then_some(path.remote)
    }

    /// Ends the call for this reason: informs the other side, closes the ICE agents and deallocates the relayed address.
    pub(super) async fn close(self, reason: &str) {
        let _ = self.stop.send(reason.to_owned()).await;
        let _ = self.task.await;
    }
}

impl Connection {
    pub(super) fn new(quic: QuicConnection, path: PathHandle) -> Self {
        let control = ControlStreams::start(quic.connection.clone(), path.control.clone());
        let QuicConnection { connection, endpoint, recovery, is_revoked } = quic;
        Self { inner: connection, endpoint, control, path, is_revoked, _recovery: recovery }
    }

    /// Returns whether the connector only pings.
    pub(super) fn is_ping(&self) -> bool {
        quic::is_ping(&self.inner)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`ConnectionError`] if the connection has ended.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let (mut send, recv) = self.inner.open_bi().await.map_err(convert)?;
        send.write_all(&STREAM_VERSION).await.map_err(transport)?;
        Ok((SendStream { inner: send, ended: false }, RecvStream(recv)))
    }

    /// Waits for the other side to open a stream.
    ///
    /// # Errors
    /// [`ConnectionError`] if the connection has ended.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        loop {
            let (send, mut recv) = self.inner.accept_bi().await.map_err(convert)?;
            let mut version = STREAM_VERSION;
            // The other side may have reset the stream before its first byte arrived. The connection goes on.
            if recv.read_exact(&mut version).await.is_err() {
                continue;
            }
            if version != STREAM_VERSION {
                return Err(ConnectionError::Version);
            }
            return Ok((SendStream { inner: send, ended: false }, RecvStream(recv)));
        }
    }

    /// Sends a datagram: not again if it is lost, and in no order. Datagrams that wait too long to be sent are dropped, the oldest first.
    ///
    /// # Errors
    /// [`DatagramError`] if it is larger than [`Connection::max_datagram_size`], or the connection has ended.
    pub fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramError> {
        self.inner.send_datagram(datagram).map_err(|error| match error {
            quinn::SendDatagramError::TooLarge => DatagramError::TooLarge,
            quinn::SendDatagramError::ConnectionLost(error) => DatagramError::Connection(convert(error)),
            _ => DatagramError::Unsupported,
        })
    }

    /// Waits for a datagram of the other side. Those that are not read soon enough are dropped, the oldest first.
    ///
    /// # Errors
    /// [`ConnectionError`] if the connection has ended.
    pub async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        self.inner.read_datagram().await.map_err(convert)
    }

    /// Returns the length of the largest datagram that can be sent now; it changes with the path. `None` if the other side runs a version
    /// without datagrams.
    #[must_use]
    pub fn max_datagram_size(&self) -> Option<usize> {
        self.inner.max_datagram_size()
    }

    /// Sets how many streams the other side may have open at a time.
    #[cfg(feature = "forward")]
    pub(crate) fn set_max_streams(&self, streams: u32) {
        self.inner.set_max_concurrent_bi_streams(streams.into());
    }

    /// Returns the path in use; `None` until the first one has been measured.
    #[must_use]
    pub fn path(&self) -> Option<PathInfo> {
        self.path.current.borrow().clone()
    }

    /// Returns the changes of the path, starting with the current one.
    #[must_use]
    pub fn path_changes(&self) -> PathChanges {
        let mut changes = self.path.current.clone();
        changes.mark_changed();
        PathChanges(changes)
    }

    /// Returns the round-trip time that QUIC measures.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.inner.rtt()
    }

    /// Waits until the connection has ended, and returns why.
    pub async fn closed(&self) -> ConnectionError {
        let error = self.inner.closed().await;
        self.explain(error).await
    }

    /// On a relayed path the server may be the reason why the other side stopped answering. Only the call closes the endpoint of a connection that
    /// is still in use: no path answers any more.
    async fn explain(&self, error: quinn::ConnectionError) -> ConnectionError {
        match error {
            quinn::ConnectionError::LocallyClosed if self.is_revoked.load(Ordering::Relaxed) => {
                ConnectionError::Revoked
            }
            quinn::ConnectionError::TimedOut | quinn::ConnectionError::LocallyClosed => {
                let server = self.path.lost_server().await;
                server.map_or(ConnectionError::PeerTimedOut, |server| {
                    ConnectionError::RelayLost(server.to_string())
                })
            }
            error => convert(error),
        }
    }

    /// Informs the other side that everything it sent was used, waits for the same from it, and closes the connection. Call this after the
    /// last stream was read to its end and [`SendStream::finish`] has returned.
    ///
    /// # Errors
    /// [`ConnectionError`] if the connection ended before the other side confirmed.
    pub async fn finish(self) -> Result<(), ConnectionError> {
        let result = match timeout(FINISH_TIMEOUT, self.exchange_done()).await {
            Ok(Err(quinn::ConnectionError::ApplicationClosed(close))) if close.error_code == DONE.into() => {
                Ok(())
            }
            Ok(Err(error)) => Err(self.explain(error).await),
            Ok(Ok(())) | Err(_) => Ok(()),
        };
        self.close(DONE, "done").await;
        result
    }

    async fn exchange_done(&self) -> Result<(), quinn::ConnectionError> {
        let stream = control_streams::send_done(&self.inner).await?;
        if !self.control.done().await {
            return Err(self.inner.closed().await);
        }
        // The other side has used everything. It may have left before its acknowledgement arrived.
        let _ = timeout(LAST_ACK_TIMEOUT, stream.stopped()).await;
        Ok(())
    }

    /// Closes the connection at once; the other side receives `reason`.
    pub async fn abort(self, reason: &str) {
        self.close(ABORTED, reason).await;
    }

    /// Closes the connection at once for a caller who shares it with others.
    #[cfg(feature = "forward")]
    pub(crate) async fn shut_down(&self, reason: &str) {
        self.inner.close(ABORTED.into(), reason.as_bytes());
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
        let _ = self.path.stop.send(reason.to_owned()).await;
    }

    async fn close(self, code: u32, reason: &str) {
        self.inner.close(code.into(), reason.as_bytes());
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
        self.path.close(reason).await;
    }
}

fn transport(error: impl std::error::Error + Send + Sync + 'static) -> ConnectionError {
    ConnectionError::Transport(Box::new(error))
}

fn convert(error: quinn::ConnectionError) -> ConnectionError {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            ConnectionError::PeerClosed(String::from_utf8_lossy(&close.reason).into_owned())
        }
        quinn::ConnectionError::TimedOut => ConnectionError::PeerTimedOut,
        quinn::ConnectionError::LocallyClosed => ConnectionError::Closed,
        other => transport(other),
    }
}

impl SendStream {
    /// Finishes the stream and waits until the other side has received everything, or has declined the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionReset`] if the connection ended first, [`io::ErrorKind::BrokenPipe`] if the other side stopped the stream.
    pub async fn finish(mut self) -> io::Result<()> {
        self.ended = true;
        // The stream may have been finished before.
        let _ = self.inner.finish();
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) if code == DECLINED.into() => Ok(()),
            Ok(Some(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionReset, error)),
        }
    }

    /// Resolves when the other side has stopped the stream, or has received all of a finished one, or the connection has ended.
    #[cfg(feature = "forward")]
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.inner.stopped();
        async move { drop(stopped.await) }
    }

    /// Sends bytes without a copy of them.
    pub(crate) async fn write_chunk(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.inner.write_chunk(bytes).await?)
    }

    /// Resolves when the other side has declined the stream; sending more is useless then, but no failure.
    pub(crate) fn declined(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.inner.stopped();
        async move {
            match stopped.await {
                Ok(Some(code)) if code == DECLINED.into() => {}
                _ => std::future::pending().await,
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.inner.reset(ABORTED.into());
        }
    }
}

impl RecvStream {
    /// Declines the stream: the other side may count it as done.
    pub(crate) fn decline(mut self) {
        let _ = self.0.stop(DECLINED.into());
    }

    /// Waits for data and fills `chunks` with what has arrived; returns how many. 0 after the other side has finished.
    #[cfg(feature = "forward")]
    pub(crate) async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        let read = self.0.read_chunks(chunks).await;
        Ok(read.map_err(|error| io::Error::new(io::ErrorKind::ConnectionReset, error))?.unwrap_or(0))
    }

    /// Stops the stream: the other side fails to send more.
    pub fn stop(mut self) {
        let _ = self.0.stop(ABORTED.into());
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.inner), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::proxy_settings::ProxySettings;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_server_behind_a_proxy_is_tested_through_it() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let name = ServerName { host: "name.invalid".to_owned(), port: 9, tls: false };
        let direct = ServerProbe { name: name.clone(), dialer: Dialer::default() };
        assert!(!direct.is_up(closed).await);
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxies = ProxySettings::new(&format!("http://{}", proxy.local_addr().unwrap()), "").unwrap();
        let through = ServerProbe { name, dialer: Dialer { proxies, ..Dialer::default() } };
        let answer = async {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            stream
        };
        let (is_up, _stream) = tokio::join!(through.is_up(closed), answer);
        assert!(is_up);
    }
}
