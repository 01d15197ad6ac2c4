//! TURN over WebSocket: `GET /turn`; one binary message is one frame (`docs/wire/turn-websocket.md`).

use crate::dataplane::framing;
use crate::dataplane::inbox::{Inbox, ReplyReceiver, StreamLink, StreamMessage};
use crate::dataplane::stream_limits::{CLOSE_TIME, MESSAGE_TIME, UNAUTHENTICATED_MESSAGE, evicted};
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::websocket::{self, CloseCode, Message, MessageReader, MessageType, upgrade};
use crate::turn_server::FiveTuple;
use crate::turn_wire::{CHANNEL_HEADER_LEN, frame_len};
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use std::future::pending;
use std::io;
use std::mem::take;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, Sleep, interval, sleep, timeout};

/// Selected where the client offers it.
const SUBPROTOCOL: &str = "turn";
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
    pub(super) connection: ConnectionPermit,
}

/// Routes `/turn`.
pub(super) fn router() -> Router {
    Router::new().route("/turn", get(upgrade))
}

async fn upgrade(Extension(origin): Extension<Origin>, request: Request) -> Response {
    upgrade::accept(request, Some(SUBPROTOCOL), |stream| serve(stream, origin))
}

async fn serve(mut stream: upgrade::WebSocketStream, origin: Origin) {
    let Origin { client, worker, connection } = origin;
    let evicted = evicted(&connection);
    // What HTTP held is gone.
    let _ = connection.reserve_memory(0);
    let Some((link, replies)) = worker.open(client, Some(connection.clone())).await else { return };
    let code = tokio::select! {
        code = carry(&mut stream, (&link, &connection), replies) => code,
        () = evicted => Some(CloseCode::TRY_AGAIN_LATER),
    };
    link.close().await;
    if let Some(code) = code {
        let mut out = Vec::new();
        websocket::write_close(Some(code), &mut out);
        // The connection closes even if the client does not receive the close frame.
        // Unread data would make the system reset the connection, and the close frame would be lost.
        let shut_down = async {
            stream.write_all(&out).await?;
            stream.shutdown().await?;
            let mut room = [0; 1024];
            while stream.read(&mut room).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(CLOSE_TIME, shut_down).await;
    }
}

/// Carries frames both ways until either side ends; returns the code of the close frame, if one must be sent.
async fn carry(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    (link, connection): (&StreamLink, &ConnectionPermit),
    mut replies: ReplyReceiver,
) -> Option<CloseCode> {
    let mut reader = MessageReader::new(MessageType::Binary, UNAUTHENTICATED_MESSAGE);
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut silent, mut out) = (0, Vec::new());
    // Set while there is a partial message.
    let mut deadline: Option<Pin<Box<Sleep>>> = None;
    loop {
        let mut written = None;
        tokio::select! {
            received = upgrade::read(stream, |bytes| reader.push(bytes)) => {
                silent = 0;
                if !matches!(received, Ok(Some(()))) {
                    return None;
                }
                match send_received(&mut reader, link, &mut out).await {
                    Ok(true) => deadline = None,
                    Ok(false) => {}
                    Err(code) => return code,
                }
                if !reader.is_within_message() {
                    deadline = None;
                } else if deadline.is_none() {
                    deadline = Some(Box::pin(sleep(MESSAGE_TIME)));
                }
                if !connection.reserve_message(reader.buffered()) {
                    return Some(CloseCode::TRY_AGAIN_LATER);
                }
            }
            reply = replies.next() => match reply {
                Some(StreamMessage::Frames(mut run)) => {
                    written = Some(run.len());
                    while !run.is_empty() {
                        websocket::write_binary(&run.split_to(framing::first_len(&run)), &mut out);
                    }
                }
                Some(StreamMessage::Join(_)) | None => return Some(CloseCode::GOING_AWAY),
            },
            () = expired(&mut deadline) => return Some(CloseCode::POLICY_VIOLATION),
            _ = ping.tick() => {
                if PING * silent >= IDLE {
                    return Some(CloseCode::GOING_AWAY);
                }
                silent += 1;
                websocket::write_ping(&mut out);
            }
        }
        if !out.is_empty() {
            let out = take(&mut out);
            let sent = async { stream.write_all(&out).await.and(stream.flush().await) };
            if !matches!(timeout(IDLE, sent).await, Ok(Ok(()))) {
                return None;
            }
        }
        if let Some(length) = written {
            replies.written(length);
        }
    }
}

/// Waits for a deadline, if there is one.
async fn expired(deadline: &mut Option<Pin<Box<Sleep>>>) {
    match deadline {
        Some(deadline) => deadline.await,
        None => pending().await,
    }
}

/// Sends the received messages to the worker; returns whether there was a whole one.
///
/// # Errors
/// The code to close with; `None` after a close of the client.
async fn send_received(
    reader: &mut MessageReader,
    link: &StreamLink,
    out: &mut Vec<u8>,
) -> Result<bool, Option<CloseCode>> {
    let mut was_whole = false;
    loop {
        if link.is_authenticated() {
            reader.set_max_len(MAX_MESSAGE);
        }
        match reader.next() {
            Ok(None) => return Ok(was_whole),
            Ok(Some(Message::Binary(frame))) => {
                was_whole = true;
                if !is_one_frame(&frame) {
                    return Err(Some(CloseCode::INVALID_DATA));
                }
                if !link.send_frames(frame.into()).await {
                    return Err(Some(CloseCode::GOING_AWAY));
                }
            }
            Ok(Some(Message::Ping(payload))) => websocket::write_pong(&payload, out),
            Ok(Some(Message::Pong | Message::Text(_))) => {}
            Ok(Some(Message::Close(code))) => return Err(code.or(Some(CloseCode::NORMAL))),
            Err(code) => return Err(Some(code)),
        }
    }
}

/// Returns whether a message is one STUN message, or one ChannelData message with all, some or none of its padding.
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
