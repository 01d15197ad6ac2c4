//! One TCP connection: cuts frames out of the stream at the pace of the service, and sends what waits in the outbox.

use super::machine::ConnectionId;
use super::outbox::{Outgoing, outbox};
use super::service::{Event, Handle};
use super::wire::{HEADER_LEN, data_len};
use crate::clock::{TickBase, Ticks};
use crate::dataplane::stream_limits::{MESSAGE_TIME, WRITE_TIME, shut_down};
use crate::limits::{Limit, NetworkPrefix, RateLimiter};
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time::mono;
use bytes::{Bytes, BytesMut};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
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

/// Tells the machine that a connection has ended, however its task ends.
struct Closing<'a> {
    handle: &'a Handle,
    connection: ConnectionId,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.handle.closed(self.connection);
    }
}

impl Handle {
    /// Serves a connection until it ends. On a legacy listener devices need no key.
    ///
    /// # Errors
    /// The stream's, and `InvalidData` for a frame that is too long.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        (ip, is_legacy): (IpAddr, bool),
        permit: ConnectionPermit,
    ) -> io::Result<()> {
        let connection = self.next_connection();
        let (sender, mut outgoing) = outbox(self.limits(), self.waiting());
        let credit = Arc::new(Semaphore::new(CREDITS));
        let opened = Event::Opened {
            connection,
            ip,
            is_legacy,
            outbox: sender,
            credit: Arc::clone(&credit),
            permit: permit.clone(),
        };
        if !self.send(opened).await {
            return Ok(());
        }
        let _closing = Closing { handle: self, connection };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let served = tokio::select! {
            read = self.read(&mut reader, connection, (ip, &credit, &permit)) => read,
            written = self.write(&mut writer, connection, &mut outgoing) => written,
        };
        // What is still queued is dropped: a client that closes its sending side gets no answer to what it sent last.
        drop(outgoing);
        let _ = shut_down(&mut writer).await;
        served
    }

    async fn read(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        connection: ConnectionId,
        (ip, credit, permit): (IpAddr, &Semaphore, &ConnectionPermit),
    ) -> io::Result<()> {
        let base = TickBase::new(mono());
        let (rate, mut limiter) =
            (self.limits().requests_per_connection, RateLimiter::idle_at(Ticks::from_nanos(0)));
        loop {
            let mut header = [0; HEADER_LEN];
            match reader.read_exact(&mut header).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let len = data_len(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let Ok(granted) = credit.acquire_many(credits(len) as u32).await else { return Ok(()) };
            granted.forget();
            let _memory = match len > SHORT {
                true => match self.frame_permit(ip, len, permit) {
                    Some(memory) => Some(memory),
                    None => return Ok(()),
                },
                false => None,
            };
            let data = timeout(MESSAGE_TIME, read_data(reader, len)).await??;
            if !self.send(Event::Frame { connection, data }).await {
                return Ok(());
            }
            let wait = limiter.charge(rate, base.ticks(mono()), 1);
            if !wait.is_zero() {
                Limit::MessagingRequestsPerConnection.reached(rate.per_second());
                sleep(wait).await;
            }
        }
    }

    async fn write(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        connection: ConnectionId,
        outgoing: &mut Outgoing,
    ) -> io::Result<()> {
        while let Some(bytes) = outgoing.next().await {
            timeout(WRITE_TIME, async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            })
            .await??;
            if outgoing.sent(bytes.len()) {
                self.send(Event::Drained { connection }).await;
            }
        }
        Ok(())
    }

    /// Takes the memory of a long frame, of its network and in all.
    fn frame_permit(&self, ip: IpAddr, len: usize, permit: &ConnectionPermit) -> Option<impl Sized + use<>> {
        if !permit.reserve_message(len) {
            return None;
        }
        let memory = self.frame_memory().acquire(NetworkPrefix::subscriber(ip), len);
        memory
            .inspect_err(|exceeded| Limit::MessagingFrameBytes.reached(self.frame_memory().max(*exceeded)))
            .ok()
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
