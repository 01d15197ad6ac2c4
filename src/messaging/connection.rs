//! One TCP connection: cuts frames out of the stream at the pace of the service, and sends what waits in the outbox.

use super::machine::ConnectionId;
use super::outbox::{Outgoing, outbox};
use super::service::{Handle, Opened, Protocol, ServiceEvent};
use super::wire::{HEADER_LEN, data_len};
use crate::clock::{TickBase, Ticks};
use crate::dataplane::stream_limits::{MESSAGE_TIME, WRITE_TIME, shut_down};
use crate::limits::{Limit, NetworkPrefix, Rate, RateLimiter};
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time::mono;
use bytes::{Bytes, BytesMut};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{AcquireError, Semaphore};
use tokio::time::{sleep, timeout};

/// Longest frame that needs no permit for its memory.
const SHORT: usize = 4096;
/// Bytes that one credit is good for, and the credits of a connection: so much may wait for the machine.
const CREDIT: usize = 4096;
const CREDITS: usize = 64;
/// Bytes that a buffer has at first.
const FIRST_READ: usize = 16 * 1024;

/// Returns the credits that a frame takes.
pub(super) fn credits(bytes: usize) -> usize {
    (bytes / CREDIT + 1).min(CREDITS)
}

/// A connection that the machine knows until this is dropped, and its limits.
pub(super) struct OpenConnection<'a> {
    pub(super) handle: &'a Handle,
    pub(super) id: ConnectionId,
    pub(super) ip: IpAddr,
    pub(super) permit: ConnectionPermit,
    credit: Arc<Semaphore>,
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.handle.closed(self.id);
    }
}

impl OpenConnection<'_> {
    /// Waits until the machine may take a frame of this length; fails when the machine has closed the connection.
    pub(super) async fn acquire_credit(&self, bytes: usize) -> Result<(), AcquireError> {
        self.credit.acquire_many(credits(bytes) as u32).await?.forget();
        Ok(())
    }
}

/// How fast a client may send.
pub(super) struct RequestPace {
    base: TickBase,
    limiter: RateLimiter,
}

impl RequestPace {
    pub(super) fn new() -> Self {
        Self { base: TickBase::new(mono()), limiter: RateLimiter::idle_at(Ticks::from_nanos(0)) }
    }

    /// Waits as long as a request comes too early.
    pub(super) async fn wait(&mut self, rate: Rate) {
        let wait = self.limiter.charge(rate, self.base.ticks(mono()), 1);
        if !wait.is_zero() {
            Limit::MessagingRequestsPerConnection.reached(rate.per_second());
            sleep(wait).await;
        }
    }
}

impl Handle {
    /// Opens a connection and the queue of what is sent to it; `None` when messaging has stopped.
    pub(super) async fn open(
        &self,
        protocol: Protocol,
        ip: IpAddr,
        permit: ConnectionPermit,
    ) -> Option<(OpenConnection<'_>, Outgoing)> {
        let id = self.next_connection();
        let (outbox, outgoing) = outbox(self.limits(), self.waiting());
        let credit = Arc::new(Semaphore::new(CREDITS));
        let opened = ServiceEvent::Opened(Box::new(Opened {
            connection: id,
            ip,
            protocol,
            outbox,
            credit: Arc::clone(&credit),
            permit: permit.clone(),
        }));
        let is_running = self.send(opened).await;
        is_running.then(|| (OpenConnection { handle: self, id, ip, permit, credit }, outgoing))
    }

    /// Serves a connection until it ends. On a legacy listener devices need no key.
    ///
    /// # Errors
    /// The stream's, and `InvalidData` for a frame that is too long.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin>(
        self,
        stream: S,
        (ip, is_legacy): (IpAddr, bool),
        permit: ConnectionPermit,
    ) -> io::Result<()> {
        let opened = Box::pin(self.open(Protocol::Frames { is_legacy }, ip, permit)).await;
        let Some((connection, mut outgoing)) = opened else { return Ok(()) };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let served = {
            let mut writing = pin!(self.write(&mut writer, connection.id, &mut outgoing));
            tokio::select! {
                read = connection.read_frames(&mut reader) => match read {
                    // The client has closed its sending side, and gets what is queued for it.
                    Ok(()) => writing.await,
                    Err(error) => Err(error),
                },
                written = &mut writing => written,
            }
        };
        drop(outgoing);
        let _ = Box::pin(shut_down(&mut writer)).await;
        served
    }

    async fn write(
        &self,
        writer: &mut (impl AsyncWrite + Send + Unpin),
        connection: ConnectionId,
        outgoing: &mut Outgoing,
    ) -> io::Result<()> {
        while let Some(bytes) = outgoing.next().await {
            // Boxed, as the reading of a frame is: most connections are idle.
            Box::pin(async {
                timeout(WRITE_TIME, async {
                    writer.write_all(&bytes).await?;
                    writer.flush().await
                })
                .await??;
                if outgoing.sent(bytes.len()) {
                    self.send(ServiceEvent::Drained { connection }).await;
                }
                io::Result::Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

impl OpenConnection<'_> {
    /// Reads frames until the client closes its sending side and all of them are answered.
    async fn read_frames(&self, reader: &mut (impl AsyncRead + Send + Unpin)) -> io::Result<()> {
        let mut pace = RequestPace::new();
        let mut header = [0; HEADER_LEN];
        loop {
            match reader.read_exact(&mut header).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
            // Boxed, so that an idle connection does not hold the memory for it.
            Box::pin(self.read_frame(reader, header, &mut pace)).await?;
        }
        // The credits are back when everything is answered.
        if self.credit.acquire_many(CREDITS as u32).await.is_ok() {
            Box::pin(self.handle.send(ServiceEvent::Finished { connection: self.id })).await;
        }
        Ok(())
    }

    async fn read_frame(
        &self,
        reader: &mut (impl AsyncRead + Send + Unpin),
        header: [u8; HEADER_LEN],
        pace: &mut RequestPace,
    ) -> io::Result<()> {
        let len = data_len(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.acquire_credit(len).await.map_err(io::Error::other)?;
        let _memory = match len > SHORT {
            true => Some(self.frame_permit(len).ok_or(io::ErrorKind::OutOfMemory)?),
            false => None,
        };
        let data = timeout(MESSAGE_TIME, read_data(reader, len)).await??;
        if !self.handle.send(ServiceEvent::Frame { connection: self.id, data }).await {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        pace.wait(self.handle.limits().requests_per_connection).await;
        Ok(())
    }

    /// Takes the memory of a long frame, of its network and in all.
    fn frame_permit(&self, len: usize) -> Option<impl Sized + use<>> {
        if !self.permit.reserve_message(len) {
            return None;
        }
        let quota = self.handle.frame_memory();
        let memory = quota.acquire(NetworkPrefix::subscriber(self.ip), len);
        memory.inspect_err(|exceeded| Limit::MessagingFrameBytes.reached(quota.max(*exceeded))).ok()
    }
}

/// Reads the data of a frame. The buffer grows with what arrives, not with what is announced.
async fn read_data(reader: &mut (impl AsyncRead + Unpin), len: usize) -> io::Result<Bytes> {
    let mut data = BytesMut::with_capacity(len.min(FIRST_READ));
    let mut reader = reader.take(len as u64);
    while data.len() < len {
        if reader.read_buf(&mut data).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(data.freeze())
}
