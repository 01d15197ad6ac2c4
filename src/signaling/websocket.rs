//! The WebSocket hand: one task for each connection, between the socket and the hub.

use super::leg::Conn;
use super::outbox::{Texts, outbox};
use super::service::{Event, Shared};
use super::wire::MAX_TEXT;
use crate::net::time::now;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_tungstenite::tungstenite;

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
        .on_upgrade(move |socket| serve(socket, shared, peer))
}

async fn serve(mut socket: WebSocket, shared: Arc<Shared>, peer: SocketAddr) {
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
    let times = &shared.config.times;
    let mut ping = interval(times.ping.max(Duration::from_millis(1)));
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = after(times.idle);
    loop {
        let message = tokio::select! {
            received = socket.recv() => {
                idle = after(times.idle);
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
            text = texts.next() => match text {
                Some(text) => Message::Text(text.into()),
                None => return Some(close_code::AWAY),
            },
            _ = ping.tick() => Message::Ping(Vec::new().into()),
            () = sleep_until(idle) => return Some(close_code::AWAY),
        };
        // A peer that takes nothing in must not hold this task for ever.
        let sent = tokio::select! {
            sent = timeout(times.idle, socket.send(message)) => matches!(sent, Ok(Ok(()))),
            () = texts.overrun() => false,
        };
        if !sent {
            return None;
        }
    }
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

fn after(wait: Duration) -> Instant {
    Instant::from_std(now().mono) + wait
}
