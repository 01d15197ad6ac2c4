//! What the workers need of a UDP socket: receive a batch, send a batch. A socket that bypasses the kernel would implement
//! this trait.

use super::{BatchUdpSocket, Route, RxBatch, RxBuffers, TxMessage};
use std::io::{self, IoSlice};

/// A socket that receives and sends datagrams in batches.
pub(crate) trait BatchSocket {
    /// The header of one message.
    type TxMessage;

    /// Receives pending datagrams, like [`BatchUdpSocket::recv`].
    ///
    /// # Errors
    /// `WouldBlock` when none is pending; otherwise the socket's error.
    fn recv(&self, rx: &mut RxBuffers) -> io::Result<RxBatch>;

    /// Creates the header of a message, like [`BatchUdpSocket::message`].
    ///
    /// # Errors
    /// When the socket cannot use the route.
    fn message(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<Self::TxMessage>;

    /// Sends messages in order, like [`BatchUdpSocket::send_all`].
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
