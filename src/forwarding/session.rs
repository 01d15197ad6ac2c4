//! One connection of a side that shares and one that forwards: its streams, and the datagrams of its flows.

use super::wire::{self, MAX_FRAME, Refusal, RefusalCode, Reply, Request, Target, Transport, WireError};
use super::{MAX_FLOWS, MAX_STREAMS};
use crate::agent::{Connection, ConnectionError, RecvStream, SendStream};
use crate::net::time;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Time limit for the header of a stream.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for a reply: longer than the other side takes to resolve a name and to connect.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What was transferred.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes to the other side.
    pub(crate) sent: AtomicU64,
    /// Bytes from the other side.
    pub(crate) received: AtomicU64,
    /// Connections and flows.
    pub(crate) connections: AtomicU64,
    /// Datagrams that were dropped because too many waited.
    pub(crate) dropped: AtomicU64,
}

/// Why a stream was not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The other side refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The reply is none of this version.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The connection to the other side has ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The stream, or the local socket, broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Handles the datagrams of one flow.
pub(super) type DatagramSink = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// See the [module](self).
pub(crate) struct Session {
    connection: Connection,
    started: Instant,
    flows: Mutex<HashMap<u32, DatagramSink>>,
    next_flow: AtomicU32,
    /// What was transferred.
    pub(crate) traffic: Traffic,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Session {
    /// Starts with a connection that has no streams yet.
    pub(crate) fn new(connection: Connection) -> Arc<Self> {
        connection.set_max_streams(MAX_STREAMS);
        Arc::new(Self {
            connection,
            started: time::now().mono,
            flows: Mutex::default(),
            next_flow: AtomicU32::new(0),
            traffic: Traffic::default(),
        })
    }

    /// Returns the connection.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns the time since the session started, in milliseconds.
    pub(super) fn elapsed_millis(&self) -> u64 {
        u64::try_from(time::now().mono.saturating_duration_since(self.started).as_millis())
            .unwrap_or(u64::MAX)
    }

    /// Opens a stream with this header.
    ///
    /// # Errors
    /// The connection has ended.
    pub(super) async fn open(&self, request: &Request) -> Result<(SendStream, RecvStream), OpenError> {
        let (mut send, recv) = self.connection.open_bi().await?;
        send.write_all(&request.emit()).await?;
        Ok((send, recv))
    }

    /// Returns what the target speaks, if the other side permits it.
    ///
    /// # Errors
    /// [`OpenError::Refused`] if it does not.
    pub(crate) async fn query(&self, target: &Target) -> Result<Transport, OpenError> {
        let (mut send, mut recv) = self.open(&Request::Query(target.clone())).await?;
        let (transport, _) = read_reply(&mut recv).await?;
        // The other side expects nothing more, and may have stopped the stream.
        let _ = send.shutdown().await;
        Ok(transport)
    }

    /// Delivers the datagrams of all flows until the connection ends.
    pub(crate) async fn deliver_datagrams(&self) -> ConnectionError {
        loop {
            let datagram = match self.connection.read_datagram().await {
                Ok(datagram) => datagram,
                Err(error) => return error,
            };
            let Some((flow, payload)) = wire::parse_datagram(&datagram) else { continue };
            let sink = self.flows().get(&flow).cloned();
            // Datagrams of a flow that has ended may still arrive.
            if let Some(sink) = sink {
                sink(payload);
            }
        }
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<u32, DatagramSink>> {
        // The table is consistent after every statement, so that a panic in another thread does no harm.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an id for a new flow.
    pub(super) fn next_flow_id(&self) -> u32 {
        self.next_flow.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a flow.
    ///
    /// # Errors
    /// [`RefusalCode::Busy`] if there are too many, or one has this id.
    pub(super) fn insert_flow(&self, id: u32, sink: DatagramSink) -> Result<(), Refusal> {
        let mut flows = self.flows();
        if flows.len() >= MAX_FLOWS || flows.contains_key(&id) {
            return Err(Refusal::new(RefusalCode::Busy, "too many UDP flows"));
        }
        flows.insert(id, sink);
        Ok(())
    }

    /// Removes a flow.
    pub(super) fn remove_flow(&self, id: u32) {
        self.flows().remove(&id);
    }

    /// Sends a datagram of a flow. Returns whether it fits into a QUIC datagram now.
    pub(super) fn send_datagram(&self, flow: u32, payload: &[u8]) -> bool {
        let length = payload.len() + wire::FLOW_ID_LEN;
        let fits = self.connection.max_datagram_size().is_some_and(|largest| length <= largest);
        fits && self.connection.send_datagram(Bytes::from(wire::emit_datagram(flow, payload))).is_ok()
    }
}

/// Reads a frame without its length.
async fn read_frame(recv: &mut RecvStream) -> Result<Vec<u8>, OpenError> {
    let length = usize::from(recv.read_u16().await?);
    if length > MAX_FRAME {
        return Err(WireError::Malformed.into());
    }
    let mut frame = vec![0; length];
    recv.read_exact(&mut frame).await?;
    Ok(frame)
}

/// Reads the header of a stream.
pub(super) async fn read_request(recv: &mut RecvStream) -> Result<Request, OpenError> {
    let frame = timeout(HEADER_TIMEOUT, read_frame(recv)).await.map_err(io::Error::from)??;
    Ok(Request::parse(&frame)?)
}

/// Reads the reply: what the target speaks, and the port that is listened at.
///
/// # Errors
/// [`OpenError::Refused`] if the other side refused.
pub(super) async fn read_reply(recv: &mut RecvStream) -> Result<(Transport, u16), OpenError> {
    let frame = timeout(REPLY_TIMEOUT, read_frame(recv)).await.map_err(io::Error::from)??;
    match Reply::parse(&frame)? {
        Reply::Accepted { transport, port } => Ok((transport, port)),
        Reply::Refused(refusal) => Err(refusal.into()),
    }
}

/// Sends a refusal, and ends the stream.
pub(super) async fn refuse((mut send, recv): (SendStream, RecvStream), refusal: Refusal) {
    if send.write_all(&Reply::Refused(refusal).emit()).await.is_ok() {
        // What the other side has already sent is not read.
        drop(recv);
        let _ = send.finish().await;
    }
}

/// Accepts a request.
pub(super) async fn accept(send: &mut SendStream, transport: Transport, port: u16) -> io::Result<()> {
    send.write_all(&Reply::Accepted { transport, port }.emit()).await
}
