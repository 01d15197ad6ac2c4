//! What the workers ask of a datagram socket, and all they ask: batches in, batches out. What is put under them one day to pass the
//! kernel by takes the place of [`UdpPort`] here.

use super::{Haul, Intake, Letter, Route, UdpPort};
use std::io::{self, IoSlice};

/// A socket that receives and sends datagrams in batches.
pub trait BatchSocket {
    /// How the socket addresses one message.
    type Letter;

    /// Receives what waits, as [`UdpPort::recv`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; otherwise why the socket cannot.
    fn recv(&self, intake: &mut Intake) -> io::Result<Haul>;

    /// Addresses a message, as [`UdpPort::letter`].
    ///
    /// # Errors
    /// Whatever makes the route no route of this socket.
    fn letter(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<Self::Letter>;

    /// Sends messages in their order, as [`UdpPort::send_all`].
    fn send_all(&self, letters: &[Self::Letter], parts: &[IoSlice<'_>], lost: impl FnMut(usize, io::Error));
}

impl BatchSocket for UdpPort {
    type Letter = Letter;

    fn recv(&self, intake: &mut Intake) -> io::Result<Haul> {
        Self::recv(self, intake)
    }

    fn letter(&self, route: &Route, segment: Option<u16>, parts: usize) -> io::Result<Letter> {
        Self::letter(self, route, segment, parts)
    }

    fn send_all(&self, letters: &[Letter], parts: &[IoSlice<'_>], lost: impl FnMut(usize, io::Error)) {
        Self::send_all(self, letters, parts, lost);
    }
}
