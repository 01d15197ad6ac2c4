//! Virtual connections.

use super::codec::Codec;
use super::endpoint::EndpointGuard;
use super::error::{ReceiveError, SendError};
use super::gateway_connection::GatewayConnection;
use super::virtual_stream::VirtualStream;
use crate::gateway::wire::ConnId;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// One end of a virtual connection; dropping it closes the connection.
#[derive(Debug)]
pub(super) struct ConnectionHandle {
    connection: Arc<GatewayConnection>,
    conn: ConnId,
    remote: u32,
    /// Keeps the endpoint alive.
    _guard: Arc<EndpointGuard>,
}

impl ConnectionHandle {
    pub(super) fn poll_receive(&self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, ReceiveError>> {
        self.connection.poll_receive(self.conn, cx)
    }

    pub(super) fn poll_send(
        &self,
        cx: &Context<'_>,
        len: usize,
        message: impl FnOnce() -> Bytes,
    ) -> Poll<Result<(), SendError>> {
        self.connection.poll_send(self.conn, cx, len, message)
    }

    pub(super) fn max_message(&self) -> usize {
        self.connection.max_message()
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.connection.close(self.conn);
    }
}

/// A virtual connection: messages in both directions, in order (S2-25). Dropping it closes both ends, after the messages that were sent.
#[derive(Debug)]
pub struct VirtualConnection<C> {
    sender: Sender<C>,
    receiver: Receiver<C>,
}

/// The sending half of a [`VirtualConnection`].
#[derive(Debug)]
pub struct Sender<C> {
    handle: Arc<ConnectionHandle>,
    codec: C,
}

/// The receiving half of a [`VirtualConnection`].
#[derive(Debug)]
pub struct Receiver<C> {
    handle: Arc<ConnectionHandle>,
    codec: C,
}

impl<C: Codec> VirtualConnection<C> {
    pub(super) fn new(
        connection: Arc<GatewayConnection>,
        conn: ConnId,
        remote: u32,
        guard: Arc<EndpointGuard>,
        codec: C,
    ) -> Self {
        let handle = Arc::new(ConnectionHandle { connection, conn, remote, _guard: guard });
        let sender = Sender { handle: Arc::clone(&handle), codec: codec.clone() };
        Self { sender, receiver: Receiver { handle, codec } }
    }

    /// Returns the id of the virtual connection, the same at both ends.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.sender.handle.conn.0
    }

    /// Returns the id of the other end: a server's, or a client's where this endpoint is a server (S2-14).
    #[must_use]
    pub fn remote(&self) -> u32 {
        self.sender.handle.remote
    }

    /// Returns the bytes that a message may have.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.sender.handle.max_message()
    }

    /// Sends a message; waits while the gateway accepts none. A dropped call has sent nothing.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&mut self, value: C::Value) -> Result<(), SendError> {
        self.sender.send(value).await
    }

    /// Waits for the next message; `None` after the other end has closed and all its messages were received. A dropped call loses nothing.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&mut self) -> Result<Option<C::Value>, ReceiveError> {
        self.receiver.receive().await
    }

    /// Closes both ends, after the messages that were sent. Messages still on their way to this end are lost.
    pub fn close(self) {}

    /// Splits it into halves; dropping both closes it.
    #[must_use]
    pub fn into_split(self) -> (Sender<C>, Receiver<C>) {
        (self.sender, self.receiver)
    }

    /// Turns it into a byte stream; both ends must do so. Messages that were not received become the first bytes.
    #[must_use]
    pub fn into_stream(self) -> VirtualStream {
        VirtualStream::new(self.sender.handle)
    }
}

impl<C: Codec> Sender<C> {
    /// Sends a message as [`VirtualConnection::send`] does.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&mut self, value: C::Value) -> Result<(), SendError> {
        let message = self.codec.encode(value).map_err(|error| SendError::Codec(Box::new(error)))?;
        poll_fn(|cx| self.handle.poll_send(cx, message.len(), || message.clone())).await
    }
}

impl<C: Codec> Receiver<C> {
    /// Waits for the next message as [`VirtualConnection::receive`] does.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&mut self) -> Result<Option<C::Value>, ReceiveError> {
        let message = poll_fn(|cx| self.handle.poll_receive(cx)).await?;
        let value = message.map(|message| self.codec.decode(message)).transpose();
        value.map_err(|error| ReceiveError::Codec(Box::new(error)))
    }
}
