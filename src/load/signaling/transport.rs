//! The interface of the two transports.

use crate::load::error::LoadError;
use std::io;
use std::time::{Duration, Instant};

/// The result of sending a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendResult {
    /// It was sent.
    Sent,
    /// The kernel's buffer is full, or the connection has ended.
    HeldBack,
}

/// Handles a message for a client, with the time after the receive call.
pub(super) type MessageHandler<'a> = &'a mut dyn FnMut(Instant, usize, &[u8]);

/// The sockets of all clients.
pub(super) trait ClientSockets {
    /// Adds a client; they are numbered from 0.
    fn open(&mut self) -> Result<(), LoadError>;

    /// Sends a client's message.
    fn send(&mut self, client: usize, text: &str) -> Result<SendResult, LoadError>;

    /// Waits at most `wait`, and receives.
    fn receive(&mut self, wait: Duration, on_message: MessageHandler<'_>) -> io::Result<()>;

    /// Returns how many connections the server has closed.
    fn closed(&self) -> usize;
}
