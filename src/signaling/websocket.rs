//! The WebSocket hand: one task for each connection, between the socket and the hub.

use super::config::Times;
use super::leg::Conn;
use super::outbox::{News, Texts, outbox};
use super::service::{Event, Shared};
use super::wire::MAX_TEXT;
use crate::net::time::now;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::SinkExt;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite;

/// Bytes read at a time, kept for each connection: most are idle, and most messages shorter.
const READ_ROOM: usize = 512;
/// Bytes that leave with one write, as a rule; a connection keeps as much room as it has ever needed.
const WRITE_ROOM: usize = 8 * 1024;

/// Answers `GET /ws`. A page of an origin that is not let in gets 403; who is no page has no origin.
pub(super) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !headers.get_all(header::ORIGIN).iter().all(|origin| shared.config.origins.hold(origin.as_bytes())) {
        return (StatusCode::FORBIDDEN, "pages of this origin are not let in\n").into_response();
    }
    upgrade
        .max_message_size(MAX_TEXT)
        .max_frame_size(MAX_TEXT)
        .read_buffer_size(READ_ROOM)
        .write_buffer_size(WRITE_ROOM)
        .on_upgrade(move |socket| {
            // A task of its own holds nothing of the upgrade, and the socket but once.
            tokio::spawn(serve(Box::new(socket), shared, peer));
            std::future::ready(())
        })
}

async fn serve(mut socket: Box<WebSocket>, shared: Arc<Shared>, peer: SocketAddr) {
    let conn = shared.next_conn();
    let (outbox, texts) = outbox(&shared.config.limits, &shared.waiting);
    let Some(inbox) = shared.inbox_of(conn) else { return };
    if inbox.send(Event::Opened { conn, ip: peer.ip(), outbox }).await.is_err() {
        return;
    }
    let code = converse(&mut socket, &shared, (conn, inbox), texts).await;
    let _ = inbox.send(Event::Closed { conn }).await;
    if let Some(code) = code {
        let frame = CloseFrame { code, reason: "".into() };
        let _ = timeout(shared.config.times.ping, socket.send(Message::Close(Some(frame)))).await;
    }
}

/// Passes texts both ways until one side ends it; returns the code to close with, where a close is still due.
async fn converse(
    socket: &mut WebSocket,
    shared: &Shared,
    (conn, inbox): (Conn, &mpsc::Sender<Event>),
    mut texts: Texts,
) -> Option<u16> {
    let mut watch = Watch::new(&shared.config.times);
    // One timer, set anew only when it has gone off: messages are many.
    let mut alarm = pin!(sleep_until(watch.next()));
    let mut room = VecDeque::new();
    loop {
        let ping = tokio::select! {
            received = socket.recv() => {
                watch.heard = moment();
                match received {
                    Some(Ok(Message::Text(text))) => {
                        let text = text.as_str().to_owned();
                        if inbox.send(Event::Text { conn, text }).await.is_err() {
                            return Some(close_code::AWAY);
                        }
                        continue;
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Binary(_))) => return Some(close_code::UNSUPPORTED),
                    Some(Err(error)) => return code_for(error),
                    Some(Ok(Message::Close(_))) | None => return None,
                }
            }
            news = texts.next(&mut room) => match news {
                News::Texts => false,
                News::Over => return Some(close_code::AWAY),
                News::Overrun => return None,
            },
            () = &mut alarm => {
                let due = watch.take(moment());
                alarm.as_mut().reset(watch.next());
                match due {
                    Due::Nothing => continue,
                    Due::Close => return Some(close_code::AWAY),
                    Due::Ping => true,
                }
            }
        };
        let (count, bytes) = (room.len(), room.iter().map(String::len).sum());
        // A peer that takes nothing in must not hold this task for ever.
        let sent = tokio::select! {
            sent = timeout(watch.idle, pass(socket, ping, &mut room)) => matches!(sent, Ok(Ok(()))),
            () = texts.overrun() => false,
        };
        texts.sent(count, bytes);
        if !sent {
            return None;
        }
    }
}

/// Sends a ping, where one is due, and all texts, with one write as a rule.
async fn pass(socket: &mut WebSocket, ping: bool, texts: &mut VecDeque<String>) -> Result<(), axum::Error> {
    if ping {
        socket.feed(Message::Ping(Bytes::new())).await?;
    }
    for text in std::mem::take(texts) {
        socket.feed(Message::Text(text.into())).await?;
    }
    socket.flush().await
}

/// Returns the code for what could not be read; `None` where there is nobody to tell.
fn code_for(error: axum::Error) -> Option<u16> {
    match error.into_inner().downcast_ref()? {
        tungstenite::Error::Capacity(_) => Some(close_code::SIZE),
        tungstenite::Error::Utf8(_) => Some(close_code::INVALID),
        tungstenite::Error::Protocol(_) => Some(close_code::PROTOCOL),
        _ => None,
    }
}

fn moment() -> Instant {
    Instant::from_std(now().mono)
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
