//! What the workers ask of a datagram socket, and all they ask: batches in, batches out. What is put under them one day to pass the
//! kernel by takes the place of [`BatchUdpSocket`] here.

use super::{BatchUdpSocket, Route, RxBatch, RxBuffers, TxMessage};
use std::io::{self, IoSlice};

/// A socket that receives and sends datagrams in batches.
pub trait BatchSocket {
    /// How the socket addresses one message.
    type TxMessage;

    /// Receives what waits, as [`BatchUdpSocket::recv`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; otherwise why the socket cannot.
    fn recv(&self, rx: &mut RxBuffers) -> io::Result<RxBatch>;

    /// Addresses a message, as [`BatchUdpSocket::message`].
    ///
    /// # Errors
    /// Whatever makes the route no route of this socket.
    fn message(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<Self::TxMessage>;

    /// Sends messages in their order, as [`BatchUdpSocket::send_all`].
    fn send_all(
        &self,
        messages: &[Self::TxMessage],
        parts: &[IoSlice<'_>],
        lost: impl FnMut(usize, io::Error),
    );
}

impl BatchSocket for BatchUdpSocket {
    type TxMessage = TxMessage;

    fn recv(&self, rx: &mut RxBuffers) -> io::Result<RxBatch> {
        Self::recv(self, rx)
    }

    fn message(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<TxMessage> {
        Self::message(self, route, segment, parts)
    }

    fn send_all(&self, messages: &[TxMessage], parts: &[IoSlice<'_>], lost: impl FnMut(usize, io::Error)) {
        Self::send_all(self, messages, parts, lost);
    }
}
