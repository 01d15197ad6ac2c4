//! One WebSocket at `/messages`: reads texts at the pace of the service, sends what waits in the outbox, and pings.

use super::connection::{CREDITS, Closing, credits};
use super::json_wire::MAX_FRAME;
use super::machine::ConnectionId;
use super::outbox::{Outgoing, outbox};
use super::service::{Event, Handle, Opened, Protocol};
use crate::clock::{TickBase, Ticks};
use crate::dataplane::stream_limits::{
    CLOSE_TIME, MESSAGE_TIME, UNAUTHENTICATED_MESSAGE, WRITE_TIME, evicted,
};
use crate::limits::{Limit, NetworkPrefix, Permit, RateLimiter};
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time::mono;
use crate::net::websocket::upgrade::{self, WebSocketStream};
use crate::net::websocket::{
    CloseCode, Message, MessageReader, MessageType, write_close, write_ping, write_pong,
};
use bytes::Bytes;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout, timeout_at};

/// Between two pings.
const PING: Duration = Duration::from_secs(30);

/// Bytes of a message that are not counted, and bytes that are counted at once.
const UNCOUNTED: usize = 16 * 1024;
const CHUNK: usize = 16 * 1024;

/// A WebSocket and its limits.
struct Reader<'a> {
    handle: &'a Handle,
    connection: ConnectionId,
    ip: IpAddr,
    permit: &'a ConnectionPermit,
    credit: &'a Semaphore,
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
        let connection = self.next_connection();
        let (sender, mut outgoing) = outbox(self.limits(), self.waiting());
        let credit = Arc::new(Semaphore::new(CREDITS));
        let opened = Event::Opened(Box::new(Opened {
            connection,
            ip,
            protocol: Protocol::WebSocket { is_secure },
            outbox: sender,
            credit: Arc::clone(&credit),
            permit: permit.clone(),
        }));
        if !self.send(opened).await {
            return;
        }
        let _closing = Closing { handle: self, connection };
        let (mut input, mut output) = tokio::io::split(stream);
        let (pings, mut pinged) = mpsc::channel(1);
        let (is_pinged, is_between_messages) = (AtomicBool::new(false), AtomicBool::new(true));
        let (handle, permit, credit) = (self, &permit, &*credit);
        let reader = Reader { handle, connection, ip, permit, credit, pings, is_pinged: &is_pinged };
        let code = tokio::select! {
            code = reader.read(&mut input) => code,
            code = self.write_messages(
                (&mut output, connection),
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
                self.send(Event::Drained { connection }).await;
            }
        }
    }
}

impl Reader<'_> {
    /// Reads until the client closes or breaks a rule; returns the code to close with, if the client still reads.
    async fn read(&self, input: &mut (impl AsyncRead + Unpin)) -> Option<CloseCode> {
        let base = TickBase::new(mono());
        let rate = self.handle.limits().requests_per_connection;
        let mut limiter = RateLimiter::idle_at(Ticks::from_nanos(0));
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
                    let granted = self.credit.acquire_many(credits(text.len()) as u32).await.ok()?;
                    granted.forget();
                    let connection = self.connection;
                    if !self.handle.send(Event::Text { connection, text }).await {
                        return Some(CloseCode::GOING_AWAY);
                    }
                    receiving.memory.clear();
                    let wait = limiter.charge(rate, base.ticks(mono()), 1);
                    if !wait.is_zero() {
                        Limit::MessagingRequestsPerConnection.reached(rate.per_second());
                        sleep(wait).await;
                    }
                }
                // While a pong waits to be sent, further pings are not answered.
                Message::Ping(payload) => drop(self.pings.try_send(payload)),
                Message::Pong => {
                    if self.is_pinged.swap(false, Ordering::Relaxed) {
                        self.handle.send(Event::Alive { connection: self.connection }).await;
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
            if !receiving.is_authenticated && self.permit.is_authenticated() {
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
        if !self.permit.reserve_message(buffered) {
            return too_much;
        }
        let quota = self.handle.frame_memory();
        while buffered > UNCOUNTED + receiving.memory.len() * CHUNK {
            match quota.acquire(NetworkPrefix::subscriber(self.ip), CHUNK) {
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
