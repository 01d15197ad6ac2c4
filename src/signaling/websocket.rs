//! The WebSocket hand: one task for each connection, between the socket and the hub.
//!
//! Most connections are idle: a task keeps no buffer, and one timer. What waits for a client leaves with one write.

use super::config::Times;
use super::framing::{self, Fault, Frame, Reader};
use super::http::refuse_page;
use super::inbox::{Inbox, Unsent};
use super::leg::Conn;
use super::outbox::{News, Texts, outbox};
use super::service::{Event, Shared};
use crate::limits::Limit;
use crate::net::time::mono;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::{MaybeUninit, take};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Bytes read at a time.
const READ_ROOM: usize = 8 * 1024;
/// The close code of a server that goes away, or of a client that has been silent for too long.
const AWAY: u16 = 1001;
/// The close code of a server that has no room at the moment
/// ([IANA](https://www.iana.org/assignments/websocket/websocket.xhtml#close-code-number)).
const TRY_AGAIN_LATER: u16 = 1013;

/// Answers `GET /ws`. A page of an origin that is not let in gets 403; who is no page has no origin.
pub(super) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    mut request: Request,
) -> Response {
    if let Some(refusal) = refuse_page(&shared.config.origins, &headers) {
        return refusal;
    }
    let Some(accept) = accept(&headers) else {
        let what = "this is a WebSocket: connect with version 13 (RFC 6455)\n";
        return (StatusCode::BAD_REQUEST, [(header::SEC_WEBSOCKET_VERSION, "13")], what).into_response();
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            serve(TokioIo::new(stream), shared, peer).await;
        }
    });
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

/// Returns what accepts a client's handshake (RFC 6455 section 4.2.1); none where it is no such thing.
fn accept(headers: &HeaderMap) -> Option<String> {
    let has = |name: HeaderName, token: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case(token)))
    };
    let asks = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks)?;
    Some(derive_accept_key(key.as_bytes()))
}

async fn serve(mut stream: TokioIo<Upgraded>, shared: Arc<Shared>, peer: SocketAddr) {
    let conn = shared.next_conn();
    let (outbox, texts) = outbox(&shared.config.limits, &shared.waiting);
    let Some(inbox) = shared.inbox_of(conn) else { return };
    // What is seldom done is boxed, so that those who wait have no room for it in their task.
    if !Box::pin(inbox.send(Event::Opened { conn, ip: peer.ip(), outbox })).await {
        return;
    }
    let ended = converse(&mut stream, &shared, (conn, inbox), texts).await;
    Box::pin(inbox.send(Event::Closed { conn })).await;
    if ended != End::Gone {
        let mut out = Vec::new();
        match ended {
            End::Refused(limit) => {
                let reason = format!("limit reached: {}", limit.name());
                framing::write_close_for(TRY_AGAIN_LATER, &reason, &mut out);
            }
            End::Close(code) => framing::write_close(code, &mut out),
            End::Gone => {}
        }
        let goodbye = async { stream.write_all(&out).await.and(stream.shutdown().await) };
        let _ = Box::pin(timeout(shared.config.times.ping, goodbye)).await;
    }
}

/// How a conversation has ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// A close is due, with this code.
    Close(Option<u16>),
    /// A close is due, as there is no room for the connection.
    Refused(Limit),
    /// There is nobody to tell.
    Gone,
}

/// Passes texts both ways until one side ends it.
async fn converse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    shared: &Shared,
    (conn, inbox): (Conn, &Inbox),
    mut texts: Texts,
) -> End {
    let (mut reader, mut room, mut out) = (Reader::default(), VecDeque::new(), Vec::new());
    let mut watch = Watch::new(&shared.config.times);
    // One timer, set anew only when it has gone off: messages are many.
    let mut alarm = pin!(sleep_until(watch.next()));
    loop {
        tokio::select! {
            received = receive(stream, &mut reader) => {
                watch.heard = moment();
                if !matches!(received, Ok(1..)) {
                    return End::Gone;
                }
                loop {
                    match hear(&mut reader, (conn, inbox), &mut out) {
                        Ok(None) => break,
                        Ok(Some(text)) => {
                            if !Box::pin(inbox.text(conn, text)).await {
                                return End::Close(Some(AWAY));
                            }
                        }
                        Err(end) => return end,
                    }
                }
            }
            news = texts.next(&mut room) => match news {
                News::Texts => {}
                News::Over => return End::Close(Some(AWAY)),
                News::Refused(limit) => return End::Refused(limit),
                News::Overrun => return End::Gone,
            },
            () = &mut alarm => {
                let due = watch.take(moment());
                alarm.as_mut().reset(watch.next());
                match due {
                    Due::Nothing => {}
                    Due::Ping => framing::write_ping(&mut out),
                    Due::Close => return End::Close(Some(AWAY)),
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
            return End::Gone;
        }
    }
}

/// Reads once, into room that is there for the moment alone.
async fn receive(stream: &mut (impl AsyncRead + Unpin), reader: &mut Reader) -> io::Result<usize> {
    poll_fn(|context| {
        let mut room = [const { MaybeUninit::uninit() }; READ_ROOM];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut room))?;
        reader.push(room.filled());
        Ok(room.filled().len()).into()
    })
    .await
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

/// Hands on what was read; returns what the hub has no room for at the moment.
fn hear(
    reader: &mut Reader,
    (conn, inbox): (Conn, &Inbox),
    out: &mut Vec<u8>,
) -> Result<Option<String>, End> {
    loop {
        match reader.next() {
            Ok(None) => return Ok(None),
            Ok(Some(Frame::Text(text))) => match inbox.try_text(conn, text) {
                Ok(()) => {}
                Err(Unsent::Full(text)) => return Ok(Some(text)),
                Err(Unsent::Over) => return Err(End::Close(Some(AWAY))),
            },
            Ok(Some(Frame::Ping(payload))) => framing::write_pong(&payload, out),
            Ok(Some(Frame::Pong)) => {}
            Ok(Some(Frame::Close(code))) => return Err(End::Close(code)),
            Err(Fault(code)) => return Err(End::Close(Some(code))),
        }
    }
}

fn moment() -> Instant {
    Instant::from_std(mono())
}

/// Says when a connection is pinged, and when it has been silent for too long.
struct Watch {
    ping: Duration,
    idle: Duration,
    heard: Instant,
    pinged: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Ping,
    Close,
}

impl Watch {
    fn new(times: &Times) -> Self {
        let now = moment();
        Self { ping: times.ping.max(Duration::from_millis(1)), idle: times.idle, heard: now, pinged: now }
    }

    fn next(&self) -> Instant {
        (self.pinged + self.ping).min(self.heard + self.idle)
    }

    fn take(&mut self, now: Instant) -> Due {
        if now >= self.heard + self.idle {
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
    fn a_connection_is_pinged_in_time_and_closed_when_nothing_is_heard() {
        let start = moment();
        let seconds = Duration::from_secs;
        let mut watch = Watch { ping: seconds(15), idle: seconds(40), heard: start, pinged: start };
        assert_eq!((watch.next(), watch.take(start + seconds(14))), (start + seconds(15), Due::Nothing));
        assert_eq!(watch.take(start + seconds(15)), Due::Ping);
        watch.heard = start + seconds(20);
        assert_eq!((watch.next(), watch.take(start + seconds(30))), (start + seconds(30), Due::Ping));
        assert_eq!(watch.take(start + seconds(45)), Due::Ping);
        assert_eq!((watch.next(), watch.take(start + seconds(59))), (start + seconds(60), Due::Nothing));
        assert_eq!(watch.take(start + seconds(60)), Due::Close);
    }
}
