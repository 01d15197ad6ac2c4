//! Carries frames: in a byte stream, or in WebSocket messages of one frame each.

use super::error::{ConnectionError, ProtocolError};
use super::gateway_connection::GatewayConnection;
use super::machine::{BATCH, OutgoingFrame};
use crate::net::dialer::Duplex;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError as WebSocketProtocolError;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

/// A WebSocket message that no gateway sends. (TLS uses `InvalidData` for its own errors.)
pub(super) const NOT_A_FRAME: io::ErrorKind = io::ErrorKind::InvalidInput;

pub(super) type Io = Box<dyn Duplex>;

/// What carries frames.
pub(super) enum FrameTransport {
    Stream(Io),
    WebSocket(Box<WebSocketStream<Io>>),
}

impl FrameTransport {
    /// Reads one part of a handshake: exactly `N` bytes, which are one message of a WebSocket.
    pub(super) async fn read_handshake<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut part = [0; N];
        match self {
            Self::Stream(stream) => {
                stream.read_exact(&mut part).await?;
            }
            Self::WebSocket(socket) => {
                let message = next(socket).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                part = message.as_ref().try_into().map_err(|_| NOT_A_FRAME)?;
            }
        }
        Ok(part)
    }

    /// Sends one part of a handshake.
    pub(super) async fn write_handshake(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::WebSocket(socket) => {
                socket.send(Message::Binary(Bytes::copy_from_slice(bytes))).await.map_err(io_error)
            }
        }
    }

    pub(super) fn split(self, read_buffer: usize) -> (TransportReader, TransportWriter) {
        match self {
            Self::Stream(stream) => {
                let (read, write) = tokio::io::split(stream);
                (
                    TransportReader::Stream { read, buffer: BytesMut::new(), size: read_buffer },
                    TransportWriter::Stream(write),
                )
            }
            Self::WebSocket(socket) => {
                let (write, read) = (*socket).split();
                (TransportReader::WebSocket(read), TransportWriter::WebSocket(write))
            }
        }
    }
}

/// Returns the next binary message; `None` at the end.
async fn next<S>(socket: &mut S) -> io::Result<Option<Bytes>>
where
    S: futures_util::Stream<Item = Result<Message, WebSocketError>> + Unpin,
{
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Text(_))) => return Err(NOT_A_FRAME.into()),
            Some(Ok(Message::Close(_))) | None => return Ok(None),
            Some(Err(error)) => return Err(io_error(error)),
        }
    }
}

fn io_error(error: WebSocketError) -> io::Error {
    match error {
        WebSocketError::Io(error) => error,
        WebSocketError::ConnectionClosed
        | WebSocketError::AlreadyClosed
        | WebSocketError::Protocol(WebSocketProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::UnexpectedEof.into()
        }
        other => io::Error::other(other),
    }
}

/// The reading half.
pub(super) enum TransportReader {
    Stream { read: ReadHalf<Io>, buffer: BytesMut, size: usize },
    WebSocket(SplitStream<WebSocketStream<Io>>),
}

/// Timeouts of a reader.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadTimeouts {
    /// For a virtual connection to take a blocked message.
    pub(super) receiver: Duration,
    /// For anything from the gateway; a probe is sent after half of it.
    pub(super) idle: Duration,
}

impl TransportReader {
    /// Reads until the connection fails.
    pub(super) async fn run(
        mut self,
        connection: &GatewayConnection,
        timeouts: ReadTimeouts,
    ) -> ConnectionError {
        let mut silent = false;
        loop {
            let mut is_blocked = match timeout(timeouts.idle / 2, self.read(connection)).await {
                Ok(Ok(Some(is_blocked))) => is_blocked,
                Ok(Ok(None)) => return ConnectionError::Closed,
                Ok(Err(error)) => return error,
                Err(_) if silent => return ConnectionError::TimedOut,
                Err(_) => {
                    silent = true;
                    connection.probe();
                    continue;
                }
            };
            silent = false;
            while is_blocked {
                if timeout(timeouts.receiver, connection.wait_to_resume()).await.is_err() {
                    connection.close_blocked();
                }
                is_blocked = match &mut self {
                    Self::Stream { buffer, .. } if !connection.is_blocked() => {
                        match connection.handle_bytes(buffer) {
                            Ok(is_blocked) => is_blocked,
                            Err(error) => return ConnectionError::Protocol(error),
                        }
                    }
                    _ => connection.is_blocked(),
                };
            }
        }
    }

    /// Reads once; returns whether a message is blocked, or `None` at the end.
    async fn read(&mut self, connection: &GatewayConnection) -> Result<Option<bool>, ConnectionError> {
        match self {
            Self::Stream { read, buffer, size } => {
                if buffer.capacity() - buffer.len() < *size / 2 {
                    buffer.reserve(*size);
                }
                if read.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
                connection.handle_bytes(buffer).map(Some).map_err(ConnectionError::Protocol)
            }
            Self::WebSocket(socket) => match next(socket).await {
                Ok(Some(frame)) => {
                    connection.handle_frame(frame).map(Some).map_err(ConnectionError::Protocol)
                }
                Ok(None) => Ok(None),
                Err(error) if error.kind() == NOT_A_FRAME => {
                    Err(ConnectionError::Protocol(ProtocolError::NotOneFrame))
                }
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// The writing half.
pub(super) enum TransportWriter {
    Stream(WriteHalf<Io>),
    WebSocket(SplitSink<WebSocketStream<Io>, Message>),
}

impl TransportWriter {
    /// Writes queued frames in batches until the connection is closed.
    pub(super) async fn run(mut self, connection: &GatewayConnection) -> ConnectionError {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let more = connection.poll_transmit(&mut batch);
            if !batch.is_empty() {
                if let Err(error) = self.write(&batch).await {
                    return error.into();
                }
                batch.clear();
            } else if more {
                connection.wait_to_transmit().await;
            } else {
                let _ = self.close().await;
                return ConnectionError::LocallyClosed;
            }
        }
    }

    async fn write(&mut self, batch: &[OutgoingFrame]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                let pieces = batch.iter().flat_map(OutgoingFrame::pieces).filter(|piece| !piece.is_empty());
                let mut slices: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
                let mut rest = slices.as_mut_slice();
                while !rest.is_empty() {
                    let written = stream.write_vectored(rest).await?;
                    if written == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    IoSlice::advance_slices(&mut rest, written);
                }
                stream.flush().await
            }
            Self::WebSocket(socket) => {
                for frame in batch {
                    socket.feed(Message::Binary(frame.pieces().concat().into())).await.map_err(io_error)?;
                }
                socket.flush().await.map_err(io_error)
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.shutdown().await,
            Self::WebSocket(socket) => socket.close().await.map_err(io_error),
        }
    }
}
