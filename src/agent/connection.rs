//! A connection between two agents and its byte streams.

use super::call::Call;
use super::error::Error;
use super::path::PathInfo;
use super::quic::Established;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;

/// Opens every stream, so that the other side learns of it before there is data.
const GREETING: [u8; 1] = [1];
/// Says that everything received was used.
const FAREWELL: &[u8] = b"done";
/// QUIC's code for an end in good order.
const DONE: u32 = 0;
/// QUIC's code for every other end.
const ABORTED: u32 = 1;
/// QUIC's code for a stream that is not wanted, which is no failure of either side.
const UNWANTED: u32 = 2;
/// How long an end in good order may wait for the other side to use what it was sent.
const FAREWELL_TIME: Duration = Duration::from_secs(3600);
/// How long the last packet may take to leave.
const CLOSE_TIME: Duration = Duration::from_millis(300);

/// An encrypted connection to the other holder of a ticket.
///
/// It survives changes of the path. Dropping it closes it without waiting; [`Connection::finish`] ends it in good order.
#[derive(Debug)]
pub struct Connection {
    inner: quinn::Connection,
    endpoint: quinn::Endpoint,
    call: Call,
}

/// The sending half of a stream; [`SendStream::finish`] waits until everything has arrived.
///
/// One that is dropped before its end was sent is broken off, so that the other side never takes a part for the whole.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    ended: bool,
}

/// The receiving half of a stream; reads 0 bytes once the other side has finished.
#[derive(Debug)]
pub struct RecvStream(quinn::RecvStream);

/// Follows the path of a connection.
#[derive(Debug, Clone)]
pub struct PathChanges(watch::Receiver<Option<PathInfo>>);

impl PathChanges {
    /// Waits for the next path; the first call returns the current one. `None` after the connection's end.
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

impl Connection {
    pub(super) fn new(established: Established, call: Call) -> Self {
        Self { inner: established.connection, endpoint: established.endpoint, call }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`Error::PeerEnded`] or [`Error::Local`] when the connection has ended.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), Error> {
        let (mut send, recv) = self.inner.open_bi().await.map_err(|error| Error::from_quic(&error))?;
        send.write_all(&GREETING).await.map_err(|error| Error::PeerEnded(error.to_string()))?;
        Ok((SendStream { inner: send, ended: false }, RecvStream(recv)))
    }

    /// Waits for the other side to open a stream.
    ///
    /// # Errors
    /// [`Error::PeerEnded`] or [`Error::Local`] when the connection has ended.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Error> {
        let (send, mut recv) = self.inner.accept_bi().await.map_err(|error| Error::from_quic(&error))?;
        let mut greeting = GREETING;
        recv.read_exact(&mut greeting).await.map_err(|error| Error::PeerEnded(error.to_string()))?;
        if greeting != GREETING {
            return Err(Error::PeerEnded("it speaks a newer version; update this agent".to_owned()));
        }
        Ok((SendStream { inner: send, ended: false }, RecvStream(recv)))
    }

    /// Returns the path in use; `None` until the first one is measured.
    #[must_use]
    pub fn path(&self) -> Option<PathInfo> {
        self.call.path.borrow().clone()
    }

    /// Returns a way to follow the path, beginning with the current one.
    #[must_use]
    pub fn path_changes(&self) -> PathChanges {
        let mut changes = self.call.path.clone();
        changes.mark_changed();
        PathChanges(changes)
    }

    /// Returns the round trip as QUIC measures it.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.inner.rtt()
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> Error {
        let error = self.inner.closed().await;
        self.explain(&error).await
    }

    /// The other side's silence may be its server's.
    async fn explain(&self, error: &quinn::ConnectionError) -> Error {
        match error {
            quinn::ConnectionError::TimedOut => match self.call.lost_server().await {
                Some(server) => Error::RelayLost(server.to_string()),
                None => Error::from_quic(error),
            },
            _ => Error::from_quic(error),
        }
    }

    /// Ends the connection in good order: tells the other side that everything it sent was used, waits for the same from it, and
    /// closes. To be called after the last stream was read to its end and [`SendStream::finish`] returned.
    ///
    /// # Errors
    /// [`Error::PeerEnded`] when the other side went away before it said so.
    pub async fn finish(self) -> Result<(), Error> {
        let parted = timeout(FAREWELL_TIME, self.part()).await;
        let result = match parted {
            Ok(Err(quinn::ConnectionError::ApplicationClosed(close))) if close.error_code == DONE.into() => {
                Ok(())
            }
            Ok(Err(error)) => Err(self.explain(&error).await),
            Ok(Ok(())) | Err(_) => Ok(()),
        };
        self.leave(DONE, "done").await;
        result
    }

    async fn part(&self) -> Result<(), quinn::ConnectionError> {
        let ended = || async { self.inner.closed().await };
        let mut farewell = self.inner.open_uni().await?;
        if farewell.write_all(FAREWELL).await.is_err() || farewell.finish().is_err() {
            return Err(ended().await);
        }
        let theirs = async {
            let mut stream = self.inner.accept_uni().await?;
            match stream.read_to_end(FAREWELL.len()).await {
                Ok(_) => Ok(()),
                Err(_) => Err(ended().await),
            }
        };
        let ours = async {
            match farewell.stopped().await {
                Ok(_) => Ok(()),
                Err(_) => Err(ended().await),
            }
        };
        tokio::try_join!(theirs, ours).map(|_| ())
    }

    /// Ends the connection at once; the other side is told `reason`.
    pub async fn abort(self, reason: &str) {
        self.leave(ABORTED, reason).await;
    }

    async fn leave(self, code: u32, reason: &str) {
        self.inner.close(code.into(), reason.as_bytes());
        let _ = timeout(CLOSE_TIME, self.endpoint.wait_idle()).await;
        self.call.end(reason).await;
    }
}

impl SendStream {
    /// Sends the end of the stream and waits until the other side has received everything.
    ///
    /// # Errors
    /// When the connection ended first, or the other side broke the stream off. One that has declined the stream is no error.
    pub async fn finish(mut self) -> io::Result<()> {
        self.ended = true;
        // A stream that was finished before only has to be waited for.
        let _ = self.inner.finish();
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) if code == UNWANTED.into() => Ok(()),
            Ok(Some(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionReset, error)),
        }
    }
}

impl SendStream {
    /// Resolves when the other side has declined the stream; sending more is of no use then, and no failure.
    pub fn declined(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.inner.stopped();
        async move {
            match stopped.await {
                Ok(Some(code)) if code == UNWANTED.into() => {}
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
    /// Tells the other side that nothing of the stream is wanted and that it may count as done.
    pub fn decline(mut self) {
        let _ = self.0.stop(UNWANTED.into());
    }

    /// Breaks the stream off: tells the other side that nothing more of it is taken.
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
