//! A virtual connection as its user holds it.

use super::codec::Codec;
use super::endpoint::Guard;
use super::error::{ReceiveError, SendError};
use super::line::Line;
use super::stream::VirtualStream;
use crate::gateway::wire::ConnId;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// One end of a virtual connection; the last owner closes it.
#[derive(Debug)]
pub(super) struct Held {
    line: Arc<Line>,
    conn: ConnId,
    remote: u32,
    /// Keeps the endpoint alive.
    _guard: Arc<Guard>,
}

impl Held {
    pub(super) fn poll_receive(&self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, ReceiveError>> {
        self.line.poll_receive(self.conn, cx)
    }

    pub(super) fn poll_send(
        &self,
        cx: &Context<'_>,
        len: usize,
        message: impl FnOnce() -> Bytes,
    ) -> Poll<Result<(), SendError>> {
        self.line.poll_send(self.conn, cx, len, message)
    }

    pub(super) fn max_message(&self) -> usize {
        self.line.max_message()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.line.close(self.conn);
    }
}

/// A virtual connection: messages in both directions, in order (S2-25). Dropped, it is closed at both ends, after what was sent.
#[derive(Debug)]
pub struct VirtualConnection<C> {
    sender: Sender<C>,
    receiver: Receiver<C>,
}

/// The half of a [`VirtualConnection`] that sends.
#[derive(Debug)]
pub struct Sender<C> {
    held: Arc<Held>,
    codec: C,
}

/// The half of a [`VirtualConnection`] that receives.
#[derive(Debug)]
pub struct Receiver<C> {
    held: Arc<Held>,
    codec: C,
}

impl<C: Codec> VirtualConnection<C> {
    pub(super) fn new(line: Arc<Line>, conn: ConnId, remote: u32, guard: Arc<Guard>, codec: C) -> Self {
        let held = Arc::new(Held { line, conn, remote, _guard: guard });
        let sender = Sender { held: Arc::clone(&held), codec: codec.clone() };
        Self { sender, receiver: Receiver { held, codec } }
    }

    /// Returns the virtual connection's number, the same at both ends.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.sender.held.conn.0
    }

    /// Returns who is at the other end: a server's id, or a client's number where this endpoint is a server (S2-14).
    #[must_use]
    pub fn remote(&self) -> u32 {
        self.sender.held.remote
    }

    /// Returns how many bytes a message may have.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.sender.held.max_message()
    }

    /// Sends a message. Waits while the gateway takes none; a wait that is dropped has sent nothing.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&mut self, value: C::Value) -> Result<(), SendError> {
        self.sender.send(value).await
    }

    /// Waits for the next message; `None` when the other end has closed and all that it had sent was taken. The wait may be dropped.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&mut self) -> Result<Option<C::Value>, ReceiveError> {
        self.receiver.receive().await
    }

    /// Closes it at both ends, after what was sent; what the other end still sends is lost.
    pub fn close(self) {}

    /// Parts it in two halves; it is closed with the last of them.
    #[must_use]
    pub fn into_split(self) -> (Sender<C>, Receiver<C>) {
        (self.sender, self.receiver)
    }

    /// Makes a stream of bytes of it, where both ends do so. Whatever messages were not received become its first bytes.
    #[must_use]
    pub fn into_stream(self) -> VirtualStream {
        VirtualStream::new(self.sender.held)
    }
}

impl<C: Codec> Sender<C> {
    /// Sends a message, as [`VirtualConnection::send`] does.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&mut self, value: C::Value) -> Result<(), SendError> {
        let message = self.codec.encode(value).map_err(|error| SendError::Codec(Box::new(error)))?;
        poll_fn(|cx| self.held.poll_send(cx, message.len(), || message.clone())).await
    }
}

impl<C: Codec> Receiver<C> {
    /// Waits for the next message, as [`VirtualConnection::receive`] does.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&mut self) -> Result<Option<C::Value>, ReceiveError> {
        let message = poll_fn(|cx| self.held.poll_receive(cx)).await?;
        let value = message.map(|message| self.codec.decode(message)).transpose();
        value.map_err(|error| ReceiveError::Codec(Box::new(error)))
    }
}
