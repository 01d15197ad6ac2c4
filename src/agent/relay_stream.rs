//! TURN over TCP, TLS or WebSocket: one connection whose frames are written from a queue and read into the tunnel.
//!
//! A proxy in front of the server may pass only HTTP. Where the server answers nothing to TURN, the WebSocket of `docs/wire/turn-websocket.md` is
//! used.

use super::config::ServerName;
use super::datagram_queue::DatagramQueue;
use super::engine::EngineConfig;
use super::tunnel::{EngineMessage, MessageSource, Tunnel};
use crate::net::dialer::{ALPN_HTTP, DialError, DialTarget, DialedStream, Dialer, Duplex};
use crate::turn_wire::{frame_len, parse_channel_data};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The application protocol of TURN (RFC 7443).
const ALPN: &[u8] = b"stun.turn";
/// The subprotocol of TURN over WebSocket.
const SUBPROTOCOL: &str = "turn";
/// Bytes that are not sent yet, at most: what waits in the system adds to every round trip.
const SEND_BUFFER: usize = 256 << 10;
/// How long the server may leave data unacknowledged: a NAT that forgot the connection answers nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// How long the server may take to answer the first request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const READ_BUFFER: usize = 64 << 10;
/// The longest message of the server: a STUN message.
const MAX_MESSAGE: usize = 65_552;

/// Where frames of TURN go by a byte stream.
#[derive(Clone, Copy)]
pub(super) struct StreamTarget<'a> {
    pub(super) name: &'a ServerName,
    /// Its address, if it is known.
    pub(super) address: Option<SocketAddr>,
    pub(super) dialer: &'a Dialer,
    pub(super) tls: bool,
}

impl StreamTarget<'_> {
    /// Opens a stream of frames.
    pub(super) async fn dial_turn(&self) -> Result<DialedStream, DialError> {
        self.dial(&[ALPN]).await
    }

    /// Opens a stream for a WebSocket.
    pub(super) async fn dial_http(&self) -> Result<DialedStream, DialError> {
        self.dial(&[ALPN_HTTP]).await
    }

    async fn dial(&self, alpn: &[&[u8]]) -> Result<DialedStream, DialError> {
        let target = DialTarget {
            host: &self.name.host,
            port: self.name.port,
            address: self.address,
            tls: self.tls.then_some(alpn),
            send_buffer: Some(SEND_BUFFER),
            silence_limit: Some(SILENCE_LIMIT),
        };
        self.dialer.dial(target, CONNECT_TIMEOUT).await
    }

    /// Opens the WebSocket for frames.
    pub(super) async fn upgrade(
        &self,
        stream: Box<dyn Duplex>,
    ) -> tungstenite::Result<WebSocketStream<Box<dyn Duplex>>> {
        let scheme = if self.tls { "wss" } else { "ws" };
        let mut request = format!("{scheme}://{}/turn", self.name.authority()).into_client_request()?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        Ok(client_async_with_config(request, stream, Some(config)).await?.0)
    }
}

/// What one connection works with.
struct Relaying<'a> {
    config: &'a EngineConfig,
    queue: &'a DatagramQueue,
    tunnel: &'a Tunnel,
}

/// How a connection ended.
enum Ended {
    /// No frame was received: this is no TURN server, or something lets only HTTP pass.
    Unanswered(io::Error),
    Broken(io::Error),
}

/// Connects, then forwards frames until the connection ends.
pub(super) async fn run(
    config: EngineConfig,
    queue: Arc<DatagramQueue>,
    tunnel: Arc<Tunnel>,
) -> io::Result<()> {
    let relaying = Relaying { config: &config, queue: &queue, tunnel: &tunnel };
    match relaying.run_stream().await {
        Ended::Broken(error) => Err(error),
        Ended::Unanswered(error) => {
            tracing::debug!(%error, "no TURN server answers over TCP; trying WebSocket");
            relaying.run_websocket().await
        }
    }
}

impl Relaying<'_> {
    fn target(&self) -> StreamTarget<'_> {
        let EngineConfig { name, server, dialer, .. } = self.config;
        StreamTarget { name, address: Some(*server), dialer, tls: name.tls }
    }

    /// The allocation is requested now.
    fn report_open(&self, local: IpAddr) {
        let source = MessageSource::StreamOpened { local };
        self.tunnel.deliver_message(EngineMessage { source, bytes: Bytes::new() });
    }

    /// TURN frames one after the other.
    async fn run_stream(&self) -> Ended {
        let opened = self.target().dial_turn().await.and_then(with_local);
        let (dialed, local) = match opened {
            Ok(opened) => opened,
            // A server of HTTP may refuse the application protocol.
            Err(error @ DialError::Tls(_)) => return Ended::Unanswered(error.into()),
            Err(error) => return Ended::Broken(error.into()),
        };
        let (mut reader, mut writer) = tokio::io::split(dialed.stream);
        self.report_open(local);
        let write = async {
            loop {
                let frame = self.queue.next().await;
                writer.write_all(&frame).await?;
                writer.flush().await?;
            }
        };
        let is_answered = AtomicBool::new(false);
        let read = async {
            let mut buffer = BytesMut::with_capacity(READ_BUFFER);
            loop {
                let wait = if is_answered.load(Ordering::Relaxed) { Duration::MAX } else { ANSWER_TIMEOUT };
                if timeout(wait, reader.read_buf(&mut buffer)).await?? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                while let Some(frame) = next_frame(&mut buffer)? {
                    is_answered.store(true, Ordering::Relaxed);
                    deliver(self.tunnel, frame);
                }
            }
        };
        let ended: io::Result<()> = tokio::select! {
            result = write => result,
            result = read => result,
        };
        let error = ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        if is_answered.load(Ordering::Relaxed) { Ended::Broken(error) } else { Ended::Unanswered(error) }
    }

    /// One frame in each binary message.
    async fn run_websocket(&self) -> io::Result<()> {
        let target = self.target();
        let (dialed, local) = with_local(target.dial_http().await?)?;
        let socket = timeout(CONNECT_TIMEOUT, target.upgrade(dialed.stream)).await?;
        let (mut sink, mut stream) = socket.map_err(io::Error::other)?.split();
        self.report_open(local);
        let write = async {
            loop {
                let frame = self.queue.next().await;
                sink.send(Message::Binary(frame)).await.map_err(io::Error::other)?;
            }
        };
        let read = async {
            while let Some(message) = stream.next().await {
                if let Message::Binary(frame) = message.map_err(io::Error::other)? {
                    deliver(self.tunnel, frame);
                }
            }
            Err(io::ErrorKind::UnexpectedEof.into())
        };
        tokio::select! {
            result = write => result,
            result = read => result,
        }
    }
}

/// Adds the local address.
fn with_local(dialed: DialedStream) -> Result<(DialedStream, IpAddr), DialError> {
    let local = dialed.local.ok_or_else(|| DialError::Connect(io::ErrorKind::NotConnected.into()))?.ip();
    Ok((dialed, local))
}

/// Takes the next whole frame out of what was read.
pub(super) fn next_frame(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let len = frame_len(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(len.filter(|len| *len <= buffer.len()).map(|len| buffer.split_to(len).freeze()))
}

/// Payload of QUIC goes to the tunnel, anything else to the ICE engine.
fn deliver(tunnel: &Tunnel, mut frame: Bytes) {
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
