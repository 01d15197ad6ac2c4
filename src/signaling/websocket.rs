//! WebSocket connections: one task for each, between the socket and the hub.
//!
//! Most connections are idle: a task keeps no buffer, and one timer. What waits for a client leaves with one write.

use super::client_addr::ConnId;
use super::config::Times;
use super::event_queue::{EnqueueError, EventQueue};
use super::http::refuse_page;
use super::outbox::{News, Texts, outbox};
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

/// How long a message may take from its first byte to its last.
const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// Bytes of a begun message that are not counted.
const UNCOUNTED: usize = 1024;

/// Answers `GET /ws`. A page of an origin that is not let in gets 403; who is no page has no origin.
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
        // From now on the limits of signalling count it.
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
    let (outbox, texts) = outbox(&shared.config.limits, &shared.waiting);
    let queue = &shared.queue;
    // Rare futures are boxed, so that idle tasks are small.
    if !Box::pin(queue.send(Event::Opened { conn, ip: peer.ip(), outbox })).await {
        return;
    }
    let ended = converse(&mut stream, &shared, (conn, queue), (texts, connection)).await;
    Box::pin(queue.send(Event::Closed { conn })).await;
    if ended != CloseReason::Gone {
        let mut out = Vec::new();
        match ended {
            CloseReason::Refused(limit) => {
                let reason = format!("limit reached: {}", limit.name());
                framing::write_close_reason(CloseCode::TRY_AGAIN_LATER, &reason, &mut out);
            }
            CloseReason::Close(code) => framing::write_close(code, &mut out),
            CloseReason::Gone => {}
        }
        let goodbye = async { stream.write_all(&out).await.and(stream.shutdown().await) };
        let _ = Box::pin(timeout(shared.config.times.ping, goodbye)).await;
    }
}

/// How a conversation has ended.
#[derive(Debug, PartialEq, Eq)]
enum CloseReason {
    /// A close is due, with this code.
    Close(Option<CloseCode>),
    /// A close is due, since the connection is over a limit.
    Refused(Limit),
    /// The peer is gone.
    Gone,
}

/// Passes texts both ways until one side ends it.
async fn converse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    shared: &Shared,
    (conn, queue): (ConnId, &EventQueue),
    (mut texts, connection): (Texts, Option<ConnectionPermit>),
) -> CloseReason {
    let mut reader = MessageReader::new(MessageType::Text, MAX_TEXT);
    let (mut room, mut out) = (VecDeque::new(), Vec::new());
    let mut begun = PartialMessage::new(connection);
    let mut watch = KeepAlive::new(&shared.config.times);
    // One timer, set anew only when it has gone off: messages are many.
    let mut alarm = pin!(sleep_until(watch.next()));
    loop {
        tokio::select! {
            () = begun.evicted() => return CloseReason::Close(Some(CloseCode::TRY_AGAIN_LATER)),
            received = upgrade::read(stream, |bytes| reader.push(bytes)) => {
                watch.heard = moment();
                if !matches!(received, Ok(Some(()))) {
                    return CloseReason::Gone;
                }
                loop {
                    match read_frames(&mut reader, (conn, queue), &mut out) {
                        Ok(None) => break,
                        Ok(Some(text)) => {
                            if !Box::pin(queue.send(Event::Text { conn, text })).await {
                                return CloseReason::Close(Some(CloseCode::GOING_AWAY));
                            }
                        }
                        Err(end) => return end,
                    }
                }
                if !begun.hold(reader.buffered()) {
                    return CloseReason::Close(Some(CloseCode::TRY_AGAIN_LATER));
                }
                watch.begun = reader.is_within_message().then(|| watch.begun.unwrap_or(watch.heard));
                if watch.next() < alarm.deadline() {
                    alarm.as_mut().reset(watch.next());
                }
            }
            news = texts.next(&mut room) => match news {
                News::Texts => {}
                News::Over => return CloseReason::Close(Some(CloseCode::GOING_AWAY)),
                News::Refused(limit) => return CloseReason::Refused(limit),
                News::Overrun => return CloseReason::Gone,
            },
            () = &mut alarm => {
                let due = watch.take(moment());
                alarm.as_mut().reset(watch.next());
                match due {
                    Due::Nothing => {}
                    Due::Ping => framing::write_ping(&mut out),
                    Due::Close => return CloseReason::Close(Some(CloseCode::GOING_AWAY)),
                }
            }
        }
        let (mut count, mut bytes) = (0, 0);
        for text in take(&mut room) {
            (count, bytes) = (count + 1, bytes + text.len());
            framing::write_text(&text, &mut out);
        }
        if out.is_empty() {
            continue;
        }
        let out = take(&mut out);
        let sent = match send_at_once(stream, &out).await {
            Ok((_, true)) => true,
            Ok((taken, false)) => Box::pin(send_in_time(stream, &out[taken..], (&texts, watch.idle))).await,
            Err(_) => false,
        };
        texts.sent(count, bytes);
        if !sent {
            return CloseReason::Gone;
        }
    }
}

/// What a client holds of the memory of all that have shown no credentials: a message that has begun.
struct PartialMessage {
    connection: Option<ConnectionPermit>,
    holds: bool,
    /// There once it has held some.
    evicted: Option<oneshot::Receiver<()>>,
}

impl PartialMessage {
    fn new(connection: Option<ConnectionPermit>) -> Self {
        Self { connection, holds: false, evicted: None }
    }

    /// Notes how many bytes are kept; `false` when there is no memory for them.
    fn hold(&mut self, bytes: usize) -> bool {
        let bytes = if bytes > UNCOUNTED { bytes } else { 0 };
        let Some(connection) = self.connection.as_ref().filter(|_| self.holds || bytes > 0) else {
            return true;
        };
        if self.evicted.is_none() {
            let (say, evicted) = oneshot::channel();
            connection.on_evict(move || {
                let _ = say.send(());
            });
            self.evicted = Some(evicted);
        }
        self.holds = bytes > 0;
        connection.reserve_message(bytes)
    }

    /// Waits until the memory is wanted back.
    async fn evicted(&mut self) {
        let said = match &mut self.evicted {
            Some(evicted) => evicted.await.is_ok(),
            None => false,
        };
        if !said {
            self.evicted = None;
            pending().await
        }
    }
}

/// Sends what is taken without waiting; returns how much that is, and whether all has left.
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
        // TLS keeps what it could not send until it is flushed.
        Poll::Ready(Ok((taken, stream.poll_flush(context)?.is_ready())))
    })
    .await
}

/// Sends the rest; a peer that takes nothing in must not hold this task for ever.
async fn send_in_time(
    stream: &mut (impl AsyncWrite + Unpin),
    rest: &[u8],
    (texts, patience): (&Texts, Duration),
) -> bool {
    let all = async { stream.write_all(rest).await.and(stream.flush().await) };
    tokio::select! {
        sent = timeout(patience, all) => matches!(sent, Ok(Ok(()))),
        () = texts.overrun() => false,
    }
}

/// Queues the texts that were read; returns one that does not fit at the moment.
fn read_frames(
    reader: &mut MessageReader,
    (conn, queue): (ConnId, &EventQueue),
    out: &mut Vec<u8>,
) -> Result<Option<String>, CloseReason> {
    loop {
        match reader.next() {
            Ok(None) => return Ok(None),
            Ok(Some(Message::Text(text))) => match queue.try_text(conn, text) {
                Ok(()) => {}
                Err(EnqueueError::Full(text)) => return Ok(Some(text)),
                Err(EnqueueError::Over) => return Err(CloseReason::Close(Some(CloseCode::GOING_AWAY))),
            },
            Ok(Some(Message::Ping(payload))) => framing::write_pong(&payload, out),
            Ok(Some(Message::Pong | Message::Binary(_))) => {}
            Ok(Some(Message::Close(code))) => return Err(CloseReason::Close(code)),
            Err(code) => return Err(CloseReason::Close(Some(code))),
        }
    }
}

fn moment() -> Instant {
    Instant::from_std(mono())
}

/// Says when a connection is pinged, and when it has been silent for too long.
struct KeepAlive {
    ping: Duration,
    idle: Duration,
    heard: Instant,
    pinged: Instant,
    /// Since when a message has begun that is not whole.
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
        let now = moment();
        Self {
            ping: times.ping.max(Duration::from_millis(1)),
            idle: times.idle,
            heard: now,
            pinged: now,
            begun: None,
        }
    }

    fn next(&self) -> Instant {
        (self.pinged + self.ping).min(self.given_up())
    }

    /// Returns when the client is given up if nothing more comes of it.
    fn given_up(&self) -> Instant {
        let silent = self.heard + self.idle;
        self.begun.map_or(silent, |begun| silent.min(begun + MESSAGE_TIME))
    }

    fn take(&mut self, now: Instant) -> Due {
        if now >= self.given_up() {
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
        let start = moment();
        let seconds = Duration::from_secs;
        let mut watch =
            KeepAlive { ping: seconds(15), idle: seconds(40), heard: start, pinged: start, begun: None };
        assert_eq!((watch.next(), watch.take(start + seconds(14))), (start + seconds(15), Due::Nothing));
        assert_eq!(watch.take(start + seconds(15)), Due::Ping);
        watch.heard = start + seconds(20);
        assert_eq!((watch.next(), watch.take(start + seconds(30))), (start + seconds(30), Due::Ping));
        assert_eq!(watch.take(start + seconds(45)), Due::Ping);
        assert_eq!((watch.next(), watch.take(start + seconds(59))), (start + seconds(60), Due::Nothing));
        assert_eq!(watch.take(start + seconds(60)), Due::Close);
    }

    #[test]
    fn a_message_that_does_not_end_closes_the_connection_although_bytes_arrive() {
        let start = moment();
        let seconds = Duration::from_secs;
        let mut watch = KeepAlive {
            ping: seconds(100),
            idle: seconds(40),
            heard: start + seconds(29),
            pinged: start,
            begun: Some(start),
        };
        assert_eq!((watch.next(), watch.take(start + seconds(29))), (start + MESSAGE_TIME, Due::Nothing));
        assert_eq!(watch.take(start + MESSAGE_TIME), Due::Close);
    }
}
