//! TURN over WebSocket: `GET /turn`; one binary message is one frame (`docs/wire/turn-websocket.md`).

use super::frames;
use super::inbox::{Inbox, Link, Replies, ToStream};
use super::stream::Places;
use crate::turn_server::FiveTuple;
use crate::turn_server::wire::{CHANNEL_HEADER_LEN, frame_len};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::SinkExt;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// The subprotocol, where the client offers it.
const PROTOCOL: &str = "turn";
/// The longest STUN message; ChannelData with its padding is shorter.
const MAX_MESSAGE: usize = 20 + 65_532;
/// Between two pings.
const PING: Duration = Duration::from_secs(15);
/// Silence, pongs counted, after which the client is gone; and how long it may take to take a message in.
const IDLE: Duration = Duration::from_secs(45);

/// Where an HTTP request comes from: the 5-tuple it has as a TURN client, and the worker it belongs to.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) client: FiveTuple,
    pub(super) worker: Inbox,
    /// What the connection occupies, also after HTTP has let go of it.
    pub(super) places: Places,
}

/// Routes `/turn`.
pub(super) fn router() -> Router {
    Router::new().route("/turn", get(upgrade))
}

async fn upgrade(Extension(origin): Extension<Origin>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| serve(socket, origin))
}

async fn serve(mut socket: WebSocket, origin: Origin) {
    let Origin { client, worker, places } = origin;
    let Some((link, replies)) = worker.open(client).await else { return };
    let code = carry(&mut socket, &link, replies).await;
    link.close().await;
    if let Some(code) = code {
        let frame = CloseFrame { code, reason: "".into() };
        // A client that does not hear why it is closed is closed all the same.
        let _ = timeout(PING, socket.send(Message::Close(Some(frame)))).await;
    }
    drop(places);
}

/// Carries frames both ways until either side ends it; returns the code to close with, where a close is still due.
async fn carry(socket: &mut WebSocket, link: &Link, mut replies: Replies) -> Option<u16> {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = 0;
    loop {
        let message = tokio::select! {
            received = socket.recv() => {
                silent = 0;
                match received {
                    Some(Ok(Message::Binary(bytes))) if is_one_frame(&bytes) => {
                        if link.hear(bytes).await {
                            continue;
                        }
                        return Some(close_code::AWAY);
                    }
                    Some(Ok(Message::Binary(_))) => return Some(close_code::INVALID),
                    Some(Ok(Message::Text(_))) => return Some(close_code::UNSUPPORTED),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Err(error)) => return Some(code_for(error)),
                    Some(Ok(Message::Close(_))) | None => return None,
                }
            }
            reply = replies.next() => match reply {
                Some(ToStream::Frames(run)) => {
                    let length = run.len();
                    if !matches!(timeout(IDLE, send_frames(socket, run)).await, Ok(Ok(()))) {
                        return None;
                    }
                    replies.written(length);
                    continue;
                }
                Some(ToStream::Join(_)) | None => return Some(close_code::AWAY),
            },
            _ = ping.tick() => {
                if PING * silent >= IDLE {
                    return Some(close_code::AWAY);
                }
                silent += 1;
                Message::Ping(Bytes::new())
            }
        };
        if !matches!(timeout(IDLE, socket.send(message)).await, Ok(Ok(()))) {
            return None;
        }
    }
}

/// Sends each frame as a message, all of them together.
async fn send_frames(socket: &mut WebSocket, mut run: Bytes) -> Result<(), axum::Error> {
    while !run.is_empty() {
        let frame = run.split_to(frames::first(&run));
        socket.feed(Message::Binary(frame)).await?;
    }
    socket.flush().await
}

/// Returns the code for a message that could not be read: too long, as a rule.
fn code_for(error: axum::Error) -> u16 {
    match error.into_inner().downcast_ref() {
        Some(tokio_tungstenite::tungstenite::Error::Capacity(_)) => close_code::SIZE,
        _ => close_code::PROTOCOL,
    }
}

/// Says whether a message is one STUN message, or one ChannelData with all, some or none of its padding.
fn is_one_frame(bytes: &[u8]) -> bool {
    let Ok(Some(padded)) = frame_len(bytes) else { return false };
    let least = match bytes.first() {
        Some(0x40..=0x7F) => CHANNEL_HEADER_LEN + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
        _ => padded,
    };
    (least..=padded).contains(&bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_exactly_one_frame_and_padding_is_optional() {
        let stun = [&[0, 1, 0, 4][..], &[0; 20]].concat();
        assert!(is_one_frame(&stun));
        assert!(!is_one_frame(&stun[..23]));
        assert!(!is_one_frame(&[&stun[..], &stun[..]].concat()));
        for (length, whole) in [(6, false), (7, true), (8, true), (9, false)] {
            let frame = [&[0x40, 1, 0, 3][..], &vec![7; length - 4]].concat();
            assert_eq!(is_one_frame(&frame), whole, "{length} bytes");
        }
        assert!(!is_one_frame(&[]) && !is_one_frame(b"\x40\x01") && !is_one_frame(b"GET / HTTP/1.1"));
    }
}
