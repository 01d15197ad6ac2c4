//! One WebSocket at `/messages`: reads texts at the pace of the service, sends what waits in the outbox, and pings.

use super::connection::{OpenConnection, RequestPace};
use super::machine::ConnectionId;
use super::outbox::Outgoing;
use super::service::{Handle, Protocol, ServiceEvent};
use crate::dataplane::stream_limits::{
    CLOSE_TIME, MESSAGE_TIME, UNAUTHENTICATED_MESSAGE, WRITE_TIME, evicted,
};
use crate::limits::{Limit, NetworkPrefix, Permit};
use crate::messaging_wire::MAX_FRAME;
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time::mono;
use crate::net::websocket::upgrade::{self, WebSocketStream};
use crate::net::websocket::{
    CloseCode, Message, MessageReader, MessageType, write_close, write_ping, write_pong,
};
use bytes::Bytes;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, timeout, timeout_at};

/// Between two pings.
const PING: Duration = Duration::from_secs(30);

/// Bytes of a message that are not counted, and bytes that are counted at once.
const UNCOUNTED: usize = 16 * 1024;
const CHUNK: usize = 16 * 1024;

/// The reading side.
struct Reader<'a> {
    connection: &'a OpenConnection<'a>,
    pings: mpsc::Sender<Vec<u8>>,
    /// A ping was sent and not answered.
    is_pinged: &'a AtomicBool,
}

/// The message that a client is sending.
struct Receiving {
    reader: MessageReader,
    is_authenticated: bool,
    /// When it must be complete.
    deadline: Option<Instant>,
    /// What it occupies beyond [`UNCOUNTED`].
    memory: Vec<Permit<NetworkPrefix>>,
}

impl Handle {
    /// Serves a WebSocket until it ends. Passwords are accepted where TLS protects it.
    pub(crate) async fn serve_websocket(
        &self,
        stream: WebSocketStream,
        (ip, is_secure): (IpAddr, bool),
        permit: ConnectionPermit,
    ) {
        let evicted = evicted(&permit);
        // What HTTP held is gone.
        let _ = permit.reserve_memory(0);
        let opened = self.open(Protocol::WebSocket { is_secure }, ip, permit).await;
        let Some((connection, mut outgoing)) = opened else { return };
        let (mut input, mut output) = tokio::io::split(stream);
        let (pings, mut pinged) = mpsc::channel(1);
        let (is_pinged, is_between_messages) = (AtomicBool::new(false), AtomicBool::new(true));
        let reader = Reader { connection: &connection, pings, is_pinged: &is_pinged };
        let code = tokio::select! {
            code = reader.read(&mut input) => code,
            code = self.write_messages(
                (&mut output, connection.id),
                (&mut outgoing, &mut pinged),
                (&is_pinged, &is_between_messages),
            ) => code,
            () = evicted => Some(CloseCode::TRY_AGAIN_LATER),
        };
        drop(outgoing);
        // Within a message a close frame would be taken for its payload.
        if let Some(code) = code.filter(|_| is_between_messages.load(Ordering::Relaxed)) {
            let _ = timeout(CLOSE_TIME, close(&mut input, &mut output, code)).await;
        }
    }

    /// Sends what waits, pongs and pings, until the machine closes the connection.
    async fn write_messages(
        &self,
        (output, connection): (&mut (impl AsyncWrite + Unpin), ConnectionId),
        (outgoing, pinged): (&mut Outgoing, &mut mpsc::Receiver<Vec<u8>>),
        (is_pinged, is_between_messages): (&AtomicBool, &AtomicBool),
    ) -> Option<CloseCode> {
        let mut ping = interval_at((mono() + PING).into(), PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut control = Vec::new();
            let queued: Option<Bytes> = tokio::select! {
                queued = outgoing.next() => match queued {
                    Some(queued) => Some(queued),
                    None => return Some(CloseCode::GOING_AWAY),
                },
                Some(payload) = pinged.recv() => {
                    write_pong(&payload, &mut control);
                    None
                }
                _ = ping.tick() => {
                    is_pinged.store(true, Ordering::Relaxed);
                    write_ping(&mut control);
                    None
                }
            };
            let bytes = queued.as_deref().unwrap_or(&control);
            is_between_messages.store(false, Ordering::Relaxed);
            let sent = async { output.write_all(bytes).await.and(output.flush().await) };
            if !matches!(timeout(WRITE_TIME, sent).await, Ok(Ok(()))) {
                return None;
            }
            is_between_messages.store(true, Ordering::Relaxed);
            if let Some(queued) = queued
                && outgoing.sent(queued.len())
            {
                self.send(ServiceEvent::Drained { connection }).await;
            }
        }
    }
}

impl Reader<'_> {
    /// Reads until the client closes or breaks a rule; returns the code to close with, if the client still reads.
    async fn read(&self, input: &mut (impl AsyncRead + Unpin)) -> Option<CloseCode> {
        let OpenConnection { handle, id, .. } = *self.connection;
        let mut pace = RequestPace::new();
        let mut receiving = Receiving {
            reader: MessageReader::new(MessageType::Text, UNAUTHENTICATED_MESSAGE),
            is_authenticated: false,
            deadline: None,
            memory: Vec::new(),
        };
        loop {
            let message = match self.message(&mut receiving, input).await {
                Ok(message) => message,
                Err(code) => return code,
            };
            match message {
                Message::Text(text) => {
                    self.connection.acquire_credit(text.len()).await.ok()?;
                    if !handle.send(ServiceEvent::Text { connection: id, text }).await {
                        return Some(CloseCode::GOING_AWAY);
                    }
                    receiving.memory.clear();
                    pace.wait(handle.limits().requests_per_connection).await;
                }
                // While a pong waits to be sent, further pings are not answered.
                Message::Ping(payload) => drop(self.pings.try_send(payload)),
                Message::Pong => {
                    if self.is_pinged.swap(false, Ordering::Relaxed) {
                        handle.send(ServiceEvent::Alive { connection: id }).await;
                    }
                }
                Message::Close(code) => return code.or(Some(CloseCode::NORMAL)),
                Message::Binary(_) => return Some(CloseCode::POLICY_VIOLATION),
            }
        }
    }

    /// Reads one message.
    async fn message(
        &self,
        receiving: &mut Receiving,
        input: &mut (impl AsyncRead + Unpin),
    ) -> Result<Message, Option<CloseCode>> {
        loop {
            if !receiving.is_authenticated && self.connection.permit.is_authenticated() {
                receiving.is_authenticated = true;
                receiving.reader.set_max_len(MAX_FRAME);
            }
            let message = receiving.reader.next().map_err(Some)?;
            if !receiving.reader.is_within_message() {
                receiving.deadline = None;
            }
            if let Some(message) = message {
                return Ok(message);
            }
            let reader = &mut receiving.reader;
            let read = match reader.is_within_message() {
                true => {
                    let deadline = *receiving.deadline.get_or_insert_with(|| mono() + MESSAGE_TIME);
                    let read = timeout_at(deadline.into(), upgrade::read(input, |bytes| reader.push(bytes)));
                    read.await.map_err(|_| Some(CloseCode::POLICY_VIOLATION))?
                }
                false => upgrade::read(input, |bytes| reader.push(bytes)).await,
            };
            if !matches!(read, Ok(Some(()))) {
                return Err(None);
            }
            self.reserve(receiving)?;
        }
    }

    /// Counts the memory of a message that has begun, of its connection, of its network and in all.
    fn reserve(&self, receiving: &mut Receiving) -> Result<(), Option<CloseCode>> {
        let buffered = receiving.reader.buffered();
        let too_much = Err(Some(CloseCode::TRY_AGAIN_LATER));
        if !self.connection.permit.reserve_message(buffered) {
            return too_much;
        }
        let quota = self.connection.handle.frame_memory();
        while buffered > UNCOUNTED + receiving.memory.len() * CHUNK {
            match quota.acquire(NetworkPrefix::subscriber(self.connection.ip), CHUNK) {
                Ok(memory) => receiving.memory.push(memory),
                Err(exceeded) => {
                    Limit::MessagingFrameBytes.reached(quota.max(exceeded));
                    return too_much;
                }
            }
        }
        Ok(())
    }
}

/// Sends a close frame and waits for the client's end, as unread data would make the system reset the connection.
async fn close(
    input: &mut (impl AsyncRead + Unpin),
    output: &mut (impl AsyncWrite + Unpin),
    code: CloseCode,
) -> io::Result<()> {
    let mut out = Vec::new();
    write_close(Some(code), &mut out);
    output.write_all(&out).await?;
    output.shutdown().await?;
    let mut unread = [0; 1024];
    while input.read(&mut unread).await? > 0 {}
    Ok(())
}
