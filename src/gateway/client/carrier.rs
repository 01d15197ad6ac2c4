//! What frames travel in: a stream of bytes, or WebSocket messages of one frame each.

use super::error::{Fault, Loss};
use super::line::Line;
use super::machine::{BATCH, Outgoing};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

/// A WebSocket message that no gateway sends. (TLS has `InvalidData` for what is wrong there.)
pub(super) const NOT_A_FRAME: io::ErrorKind = io::ErrorKind::InvalidInput;

/// Bytes in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

pub(super) type Io = Box<dyn Duplex>;

/// What frames travel in.
pub(super) enum Carrier {
    Stream(Io),
    WebSocket(Box<WebSocketStream<Io>>),
}

impl Carrier {
    /// Reads exactly `N` bytes: a piece of a handshake, which is one message of a WebSocket.
    pub(super) async fn piece<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut piece = [0; N];
        match self {
            Self::Stream(stream) => {
                stream.read_exact(&mut piece).await?;
            }
            Self::WebSocket(socket) => {
                let message = next(socket).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                piece = message.as_ref().try_into().map_err(|_| NOT_A_FRAME)?;
            }
        }
        Ok(piece)
    }

    /// Sends a piece of a handshake.
    pub(super) async fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                stream.write_all(piece).await?;
                stream.flush().await
            }
            Self::WebSocket(socket) => {
                socket.send(Message::Binary(Bytes::copy_from_slice(piece))).await.map_err(io_error)
            }
        }
    }

    pub(super) fn split(self, read_buffer: usize) -> (Reader, Writer) {
        match self {
            Self::Stream(stream) => {
                let (read, write) = tokio::io::split(stream);
                (Reader::Stream { read, buffer: BytesMut::new(), size: read_buffer }, Writer::Stream(write))
            }
            Self::WebSocket(socket) => {
                let (write, read) = socket.split();
                (Reader::WebSocket(read), Writer::WebSocket(write))
            }
        }
    }
}

/// The next binary message; `None` at the end.
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
        | WebSocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::UnexpectedEof.into()
        }
        other => io::Error::other(other),
    }
}

/// The half that reads.
pub(super) enum Reader {
    Stream { read: ReadHalf<Io>, buffer: BytesMut, size: usize },
    WebSocket(SplitStream<Box<WebSocketStream<Io>>>),
}

/// How long a reader waits for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a virtual connection to take what came for it.
    pub(super) receiver: Duration,
    /// For a word of the gateway; a probe is sent after a half of it.
    pub(super) silence: Duration,
}

impl Reader {
    /// Reads until the line is lost.
    pub(super) async fn run(mut self, line: &Line, patience: Patience) -> Loss {
        let mut silent = false;
        loop {
            let read = match timeout(patience.silence / 2, self.read(line)).await {
                Ok(Ok(Some(held))) => held,
                Ok(Ok(None)) => return Loss::Closed,
                Ok(Err(loss)) => return loss,
                Err(_) if silent => return Loss::Silent,
                Err(_) => {
                    silent = true;
                    line.probe();
                    continue;
                }
            };
            silent = false;
            let mut held = read;
            while held {
                if timeout(patience.receiver, line.wait_to_resume()).await.is_err() {
                    line.give_up_held();
                }
                held = match &mut self {
                    Self::Stream { buffer, .. } if !line.held() => match line.handle_bytes(buffer) {
                        Ok(held) => held,
                        Err(fault) => return Loss::Fault(fault),
                    },
                    _ => line.held(),
                };
            }
        }
    }

    /// Reads once; says whether a message is held, or `None` at the end.
    async fn read(&mut self, line: &Line) -> Result<Option<bool>, Loss> {
        match self {
            Self::Stream { read, buffer, size } => {
                if buffer.capacity() - buffer.len() < *size / 2 {
                    buffer.reserve(*size);
                }
                if read.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
                line.handle_bytes(buffer).map(Some).map_err(Loss::Fault)
            }
            Self::WebSocket(socket) => match next(socket).await {
                Ok(Some(frame)) => line.handle_frame(frame).map(Some).map_err(Loss::Fault),
                Ok(None) => Ok(None),
                Err(error) if error.kind() == NOT_A_FRAME => Err(Loss::Fault(Fault::Ragged)),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// The half that writes.
pub(super) enum Writer {
    Stream(WriteHalf<Io>),
    WebSocket(SplitSink<Box<WebSocketStream<Io>>, Message>),
}

impl Writer {
    /// Writes what the line has to send, all that waits at a time, until it is finished.
    pub(super) async fn run(mut self, line: &Line) -> Loss {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let more = line.poll_transmit(&mut batch);
            if !batch.is_empty() {
                if let Err(error) = self.write(&batch).await {
                    return error.into();
                }
                batch.clear();
            } else if more {
                line.wait_to_transmit().await;
            } else {
                let _ = self.close().await;
                return Loss::Here;
            }
        }
    }

    async fn write(&mut self, batch: &[Outgoing]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                let pieces = batch.iter().flat_map(Outgoing::pieces).filter(|piece| !piece.is_empty());
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
