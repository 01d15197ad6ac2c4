//! TURN over TCP or TLS: one connection whose frames are written from a queue and read into the tunnel.

use super::datagram_queue::DatagramQueue;
use super::engine::EngineConfig;
use super::tunnel::{EngineMessage, MessageSource, Tunnel};
use crate::net::dialer::DialTarget;
use crate::turn_wire::{frame_len, parse_channel_data};
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The application protocol of TURN (RFC 7443).
const ALPN: &[u8] = b"stun.turn";
/// Bytes that are not sent yet, at most: what waits in the system adds to every round trip.
const SEND_BUFFER: usize = 256 << 10;
/// How long the server may leave data unacknowledged: a NAT that forgot the connection answers nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
const READ_BUFFER: usize = 64 << 10;

/// Connects, then forwards frames until the connection ends.
pub(super) async fn run(
    config: EngineConfig,
    queue: Arc<DatagramQueue>,
    tunnel: Arc<Tunnel>,
) -> io::Result<()> {
    let alpn: &[&[u8]] = &[ALPN];
    let target = DialTarget {
        host: &config.name.host,
        port: config.name.port,
        address: Some(config.server),
        tls: config.name.tls.then_some(alpn),
        send_buffer: Some(SEND_BUFFER),
        silence_limit: Some(SILENCE_LIMIT),
    };
    let dialed = config.dialer.dial(target, CONNECT_TIMEOUT).await?;
    let local = dialed.local.ok_or(io::ErrorKind::NotConnected)?.ip();
    let (mut reader, mut writer) = tokio::io::split(dialed.stream);
    tunnel.deliver_message(EngineMessage {
        source: MessageSource::StreamOpened { local },
        bytes: Bytes::new(),
    });
    let write = async {
        loop {
            let frame = queue.next().await;
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
    };
    let read = async {
        let mut buffer = BytesMut::with_capacity(READ_BUFFER);
        loop {
            if reader.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let Some(frame) = next_frame(&mut buffer)? {
                deliver(&tunnel, frame).await;
            }
        }
    };
    tokio::select! {
        result = write => result,
        result = read => result,
    }
}

fn next_frame(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let len = frame_len(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(len.filter(|len| *len <= buffer.len()).map(|len| buffer.split_to(len).freeze()))
}

/// Payload of QUIC goes to the tunnel, anything else to the ICE engine.
async fn deliver(tunnel: &Tunnel, mut frame: Bytes) {
    let payload = parse_channel_data(&frame).map(|(_, payload)| payload);
    match payload {
        Some(payload) if payload.first().is_some_and(|first| *first > 3) => {
            let len = payload.len();
            frame.advance(4);
            frame.truncate(len);
            tunnel.deliver(frame);
        }
        _ => tunnel.deliver_message(EngineMessage { source: MessageSource::Stream, bytes: frame }),
    }
}
