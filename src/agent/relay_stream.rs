//! TURN over TCP: one connection whose frames are written from a queue and read into the tunnel.

use super::datagram_queue::DatagramQueue;
use super::tunnel::{EngineMessage, MessageSource, Tunnel};
use crate::turn_wire::{frame_len, parse_channel_data};
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are not sent yet, at most: what waits in the system adds to every round trip.
const SEND_BUFFER: usize = 256 << 10;
/// How long the server may leave data unacknowledged, in milliseconds.
#[cfg(target_os = "linux")]
const SILENCE: u32 = 5000;
const READ_BUFFER: usize = 64 << 10;

/// Connects, then forwards frames until the connection ends.
pub(super) async fn run(
    server: SocketAddr,
    queue: Arc<DatagramQueue>,
    tunnel: Arc<Tunnel>,
) -> io::Result<()> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await.map_err(io::Error::from)??;
    stream.set_nodelay(true)?;
    let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
    limit_silence(&stream)?;
    let local = stream.local_addr()?.ip();
    let (mut reader, mut writer) = stream.into_split();
    tunnel.deliver_message(EngineMessage {
        source: MessageSource::StreamOpened { local },
        bytes: Bytes::new(),
    });
    let write = async {
        loop {
            let frame = queue.next().await;
            writer.write_all(&frame).await?;
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

/// A NAT that forgot the connection answers nothing, and the system would retransmit for minutes.
#[cfg(target_os = "linux")]
fn limit_silence(stream: &TcpStream) -> io::Result<()> {
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &SILENCE)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn limit_silence(_: &TcpStream) -> io::Result<()> {
    Ok(())
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
