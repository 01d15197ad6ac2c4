//! The gateway's WebSocket connections: bridges the client's stream to a socket pair of the gateway's thread.

use crate::dataplane::stream_limits::CLOSE_TIME;
use crate::gateway::Handle;
use crate::gateway::handshake::ANSWER;
use crate::gateway::service::AuthenticatedServer;
use crate::gateway::websocket::{FrameDecoder, FrameEncoder};
use crate::net::websocket::upgrade::{WebSocketStream, read};
use crate::net::websocket::{Event, FrameReader, MessageType, write_binary, write_close, write_pong};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Authenticates a server; each part of the HMAC handshake is one message.
pub(super) async fn handshake(
    stream: &mut WebSocketStream,
    handle: &Handle,
) -> io::Result<(AuthenticatedServer, FrameDecoder)> {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    let (mut messages, mut answer) = (FrameReader::new(MessageType::Binary, ANSWER), Vec::new());
    let (challenge, mut out) = (handle.challenge()?, Vec::new());
    write_binary(&challenge, &mut out);
    loop {
        write(stream, &mut out).await?;
        match messages.next(&mut answer).map_err(io::Error::other)? {
            Some(Event::MessageEnd) => break,
            Some(Event::Ping(payload)) => write_pong(&payload, &mut out),
            Some(Event::Pong) => {}
            Some(Event::Close(_)) => return Err(refused()),
            None => read(stream, |bytes| messages.push(bytes)).await?.ok_or_else(refused)?,
        }
    }
    let answer: &[u8; ANSWER] = answer[..].try_into().map_err(|_| refused())?;
    let (server, proof) = handle.verify(&challenge, answer).ok_or_else(refused)?;
    write_binary(&proof, &mut out);
    write(stream, &mut out).await?;
    Ok((server, FrameDecoder::after_handshake(messages, max_message(handle))))
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), out: &mut Vec<u8>) -> io::Result<()> {
    if !out.is_empty() {
        stream.write_all(&std::mem::take(out)).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// Returns the longest message of an endpoint: one frame.
pub(super) fn max_message(handle: &Handle) -> usize {
    4 + handle.config().limits.max_packet
}

/// Bridges both directions until either side ends.
pub(super) async fn bridge(stream: WebSocketStream, decoder: FrameDecoder, pair: UnixStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut from_gateway, mut to_gateway) = pair.into_split();
    let (pings, mut pinged) = mpsc::channel(1);
    let is_between_messages = AtomicBool::new(true);
    let ended = tokio::select! {
        ended = forward_to_gateway(&mut reader, &mut to_gateway, decoder, pings) => ended,
        ended = forward_to_client(&mut writer, &mut from_gateway, &mut pinged, &is_between_messages) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "gateway WebSocket closed");
    }
    // Within a message a close frame would be taken for its payload.
    if is_between_messages.load(Ordering::Relaxed) {
        let mut out = Vec::new();
        write_close(None, &mut out);
        let close = async { writer.write_all(&out).await.and(writer.shutdown().await) };
        let _ = timeout(CLOSE_TIME, close).await;
    }
}

async fn forward_to_gateway(
    reader: &mut (impl AsyncRead + Unpin),
    gateway: &mut (impl AsyncWrite + Unpin),
    mut decoder: FrameDecoder,
    pings: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut out = Vec::new();
        let mut is_closed = false;
        while let Some(event) = decoder.next(&mut out).map_err(io::Error::other)? {
            match event {
                Event::MessageEnd | Event::Pong => {}
                // While a pong waits to be sent, further pings are not answered.
                Event::Ping(payload) => drop(pings.try_send(payload)),
                Event::Close(_) => {
                    is_closed = true;
                    break;
                }
            }
        }
        if !out.is_empty() {
            gateway.write_all(&out).await?;
        }
        drop(out);
        if is_closed || read(reader, |bytes| decoder.push(bytes)).await?.is_none() {
            return Ok(());
        }
    }
}

async fn forward_to_client(
    writer: &mut (impl AsyncWrite + Unpin),
    gateway: &mut (impl AsyncRead + Unpin),
    pinged: &mut mpsc::Receiver<Vec<u8>>,
    is_between_messages: &AtomicBool,
) -> io::Result<()> {
    let mut encoder = FrameEncoder::default();
    loop {
        let mut out = Vec::new();
        tokio::select! {
            ping = pinged.recv(), if encoder.is_between_messages() => match ping {
                Some(payload) => write_pong(&payload, &mut out),
                None => return Ok(()),
            },
            frames = read(gateway, <[u8]>::to_vec) => match frames? {
                Some(frames) => encoder.encode(&frames, &mut out),
                None => return Ok(()),
            },
        }
        is_between_messages.store(false, Ordering::Relaxed);
        write(writer, &mut out).await?;
        is_between_messages.store(encoder.is_between_messages(), Ordering::Relaxed);
    }
}
