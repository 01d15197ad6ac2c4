//! WebSocket connections: one task per connection, between the socket and the hub.
//!
//! Most connections are idle: a task has one timer and no buffer. All queued texts are sent with one write.

use super::client_addr::ConnId;
use super::config::Times;
use super::event_queue::{EnqueueError, EventQueue};
use super::http::refuse_page;
use super::outbox::{OutboxEvent, OutboxReceiver, outbox};
use super::service::{Event, Shared};
use super::wire::MAX_TEXT;
use crate::limits::Limit;
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time::mono;
use crate::net::websocket::{self as framing, CloseCode, Message, MessageReader, MessageType, upgrade};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io;
use std::mem::take;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

/// Maximum time from the first to the last byte of a message.
const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// Bytes of a partial message that are not counted.
const UNCOUNTED: usize = 1024;

/// Answers `GET /ws`. A page of an origin that is not allowed gets 403; a request that is not from a page has no `Origin`.
pub(super) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    if let Some(refusal) = refuse_page(&shared.config.origins, &headers) {
        return refusal;
    }
    let connection = request.extensions().get::<ConnectionPermit>().cloned();
    upgrade::accept(request, None, async move |stream| {
        // From here on the limits of signalling apply to the connection.
        connection.iter().for_each(ConnectionPermit::release);
        let _ = connection.as_ref().is_none_or(|connection| connection.reserve_memory(0));
        serve(stream, shared, (peer, connection)).await;
    })
}

async fn serve(
    mut stream: upgrade::WebSocketStream,
    shared: Arc<Shared>,
    (peer, connection): (SocketAddr, Option<ConnectionPermit>),
) {
    let conn = shared.next_conn();
    let (outbox, texts) = outbox(&shared.config.limits, &shared.outbox_bytes);
    let queue = &shared.queue;
    // Rare futures are boxed to keep idle tasks small.
    if !Box::pin(queue.send(Event::Opened { conn, ip: peer.ip(), outbox })).await {
        return;
    }
    let ended = forward(&mut stream, &shared, (conn, queue), (texts, connection)).await;
    Box::pin(queue.send(Event::Closed { conn })).await;
    if ended != ConnectionEnd::Gone {
        let mut out = Vec::new();
        match ended {
            ConnectionEnd::Refused(limit) => {
                let reason = format!("limit reached: {}", limit.name());
                framing::write_close_reason(CloseCode::TRY_AGAIN_LATER, &reason, &mut out);
            }
            ConnectionEnd::Close(code) => framing::write_close(code, &mut out),
            ConnectionEnd::Gone => {}
        }
        let goodbye = async { stream.write_all(&out).await.and(stream.shutdown().await) };
        let _ = Box::pin(timeout(shared.config.times.ping, goodbye)).await;
    }
}

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
enum ConnectionEnd {
    /// Send a close frame with this code.
    Close(Option<CloseCode>),
    /// Send a close frame, because a limit is reached.
    Refused(Limit),
    /// The peer has disconnected.
    Gone,
}

/// Forwards texts in both directions until one side closes.
async fn forward(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    shared: &Shared,
    (conn, queue): (ConnId, &EventQueue),
    (mut texts, connection): (OutboxReceiver, Option<ConnectionPermit>),
) -> ConnectionEnd {
    let mut reader = MessageReader::new(MessageType::Text, MAX_TEXT);
    let (mut queued, mut out) = (VecDeque::new(), Vec::new());
    let mut partial = PartialMessage::new(connection);
    let mut keep_alive = KeepAlive::new(&shared.config.times);
    // The timer is reset only when it fires, because messages are frequent.
    let mut timer = pin!(sleep_until(keep_alive.next()));
    loop {
        tokio::select! {
            () = partial.evicted() => return ConnectionEnd::Close(Some(CloseCode::TRY_AGAIN_LATER)),
            received = upgrade::read(stream, |bytes| reader.push(bytes)) => {
                keep_alive.received = now();
                if !matches!(received, Ok(Some(()))) {
                    return ConnectionEnd::Gone;
                }
                loop {
                    match read_frames(&mut reader, (conn, queue), &mut out) {
                        Ok(None) => break,
                        Ok(Some(text)) => {
                            if !Box::pin(queue.send(Event::Text { conn, text })).await {
                                return ConnectionEnd::Close(Some(CloseCode::GOING_AWAY));
                            }
                        }
                        Err(end) => return end,
                    }
                }
                if !partial.reserve(reader.buffered()) {
                    return ConnectionEnd::Close(Some(CloseCode::TRY_AGAIN_LATER));
                }
                keep_alive.begun = reader.is_within_message().then(|| keep_alive.begun.unwrap_or(keep_alive.received));
                if keep_alive.next() < timer.deadline() {
                    timer.as_mut().reset(keep_alive.next());
                }
            }
            event = texts.next(&mut queued) => match event {
                OutboxEvent::Texts => {}
                OutboxEvent::Closed => return ConnectionEnd::Close(Some(CloseCode::GOING_AWAY)),
                OutboxEvent::Refused(limit) => return ConnectionEnd::Refused(limit),
                OutboxEvent::Overrun => return ConnectionEnd::Gone,
            },
            () = &mut timer => {
                let due = keep_alive.take(now());
                timer.as_mut().reset(keep_alive.next());
                match due {
                    Due::Nothing => {}
                    Due::Ping => framing::write_ping(&mut out),
                    Due::Close => return ConnectionEnd::Close(Some(CloseCode::GOING_AWAY)),
                }
            }
        }
        let (mut count, mut bytes) = (0, 0);
        for text in take(&mut queued) {
            (count, bytes) = (count + 1, bytes + text.len());
            framing::write_text(&text, &mut out);
        }
        if out.is_empty() {
            continue;
        }
        let out = take(&mut out);
        let sent = match send_at_once(stream, &out).await {
            Ok((_, true)) => true,
            Ok((taken, false)) => {
                Box::pin(send_in_time(stream, &out[taken..], (&texts, keep_alive.idle))).await
            }
            Err(_) => false,
        };
        texts.sent(count, bytes);
        if !sent {
            return ConnectionEnd::Gone;
        }
    }
}

/// The memory of a client's partial message, counted together with that of all unauthenticated clients.
struct PartialMessage {
    connection: Option<ConnectionPermit>,
    is_reserved: bool,
    /// Set once memory has been reserved.
    evicted: Option<oneshot::Receiver<()>>,
}

impl PartialMessage {
    fn new(connection: Option<ConnectionPermit>) -> Self {
        Self { connection, is_reserved: false, evicted: None }
    }

    /// Reserves memory for `bytes`; returns `false` if there is none.
    fn reserve(&mut self, bytes: usize) -> bool {
        let bytes = if bytes > UNCOUNTED { bytes } else { 0 };
        let Some(connection) = self.connection.as_ref().filter(|_| self.is_reserved || bytes > 0) else {
            return true;
        };
        if self.evicted.is_none() {
            let (sender, evicted) = oneshot::channel();
            connection.on_evict(move || {
                let _ = sender.send(());
            });
            self.evicted = Some(evicted);
        }
        self.is_reserved = bytes > 0;
        connection.reserve_message(bytes)
    }

    /// Waits until the memory is reclaimed.
    async fn evicted(&mut self) {
        let is_evicted = match &mut self.evicted {
            Some(evicted) => evicted.await.is_ok(),
            None => false,
        };
        if !is_evicted {
            self.evicted = None;
            pending().await
        }
    }
}

/// Writes without waiting; returns the number of bytes written, and whether everything was flushed.
async fn send_at_once(stream: &mut (impl AsyncWrite + Unpin), out: &[u8]) -> io::Result<(usize, bool)> {
    poll_fn(|context| {
        let mut stream = Pin::new(&mut *stream);
        let mut taken = 0;
        while taken < out.len() {
            match stream.as_mut().poll_write(context, &out[taken..])? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => taken += count,
                Poll::Pending => return Poll::Ready(Ok((taken, false))),
            }
        }
        // TLS buffers until it is flushed.
        Poll::Ready(Ok((taken, stream.poll_flush(context)?.is_ready())))
    })
    .await
}

/// Writes the rest within a time limit, so that a peer that does not read cannot hold this task.
async fn send_in_time(
    stream: &mut (impl AsyncWrite + Unpin),
    rest: &[u8],
    (texts, limit): (&OutboxReceiver, Duration),
) -> bool {
    let all = async { stream.write_all(rest).await.and(stream.flush().await) };
    tokio::select! {
        sent = timeout(limit, all) => matches!(sent, Ok(Ok(()))),
        () = texts.overrun() => false,
    }
}

/// Queues the complete texts; returns one that does not fit at the moment.
fn read_frames(
    reader: &mut MessageReader,
    (conn, queue): (ConnId, &EventQueue),
    out: &mut Vec<u8>,
) -> Result<Option<String>, ConnectionEnd> {
    loop {
        match reader.next() {
            Ok(None) => return Ok(None),
            Ok(Some(Message::Text(text))) => match queue.try_text(conn, text) {
                Ok(()) => {}
                Err(EnqueueError::Full(text)) => return Ok(Some(text)),
                Err(EnqueueError::Closed) => return Err(ConnectionEnd::Close(Some(CloseCode::GOING_AWAY))),
            },
            Ok(Some(Message::Ping(payload))) => framing::write_pong(&payload, out),
            Ok(Some(Message::Pong | Message::Binary(_))) => {}
            Ok(Some(Message::Close(code))) => return Err(ConnectionEnd::Close(code)),
            Err(code) => return Err(ConnectionEnd::Close(Some(code))),
        }
    }
}

fn now() -> Instant {
    Instant::from_std(mono())
}

/// Decides when a connection is pinged and when it is closed as silent.
struct KeepAlive {
    ping: Duration,
    idle: Duration,
    received: Instant,
    pinged: Instant,
    /// When the partial message has begun, if there is one.
    begun: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Ping,
    Close,
}

impl KeepAlive {
    fn new(times: &Times) -> Self {
        let start = now();
        Self {
            ping: times.ping.max(Duration::from_millis(1)),
            idle: times.idle,
            received: start,
            pinged: start,
            begun: None,
        }
    }

    fn next(&self) -> Instant {
        (self.pinged + self.ping).min(self.close_at())
    }

    /// Returns when the connection is closed if nothing more is received.
    fn close_at(&self) -> Instant {
        let silent = self.received + self.idle;
        self.begun.map_or(silent, |begun| silent.min(begun + MESSAGE_TIME))
    }

    fn take(&mut self, now: Instant) -> Due {
        if now >= self.close_at() {
            return Due::Close;
        }
        if now < self.pinged + self.ping {
            return Due::Nothing;
        }
        self.pinged = now;
        Due::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_pinged_and_closed_after_silence() {
        let start = now();
        let seconds = Duration::from_secs;
        let mut keep_alive =
            KeepAlive { ping: seconds(15), idle: seconds(40), received: start, pinged: start, begun: None };
        assert_eq!(
            (keep_alive.next(), keep_alive.take(start + seconds(14))),
            (start + seconds(15), Due::Nothing)
        );
        assert_eq!(keep_alive.take(start + seconds(15)), Due::Ping);
        keep_alive.received = start + seconds(20);
        assert_eq!(
            (keep_alive.next(), keep_alive.take(start + seconds(30))),
            (start + seconds(30), Due::Ping)
        );
        assert_eq!(keep_alive.take(start + seconds(45)), Due::Ping);
        assert_eq!(
            (keep_alive.next(), keep_alive.take(start + seconds(59))),
            (start + seconds(60), Due::Nothing)
        );
        assert_eq!(keep_alive.take(start + seconds(60)), Due::Close);
    }

    #[test]
    fn a_message_that_does_not_end_closes_the_connection_although_bytes_arrive() {
        let start = now();
        let seconds = Duration::from_secs;
        let mut keep_alive = KeepAlive {
            ping: seconds(100),
            idle: seconds(40),
            received: start + seconds(29),
            pinged: start,
            begun: Some(start),
        };
        assert_eq!(
            (keep_alive.next(), keep_alive.take(start + seconds(29))),
            (start + MESSAGE_TIME, Due::Nothing)
        );
        assert_eq!(keep_alive.take(start + MESSAGE_TIME), Due::Close);
    }
}
