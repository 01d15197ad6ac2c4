//! How clients reach the server: what the two ways have in common.

use crate::load::error::LoadError;
use std::io;
use std::time::{Duration, Instant};

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendResult {
    /// It is under way.
    Left,
    /// The kernel had no room, or the client is gone.
    HeldBack,
}

/// Takes what a client hears, with the moment after the receiving call.
pub(super) type MessageHandler<'a> = &'a mut dyn FnMut(Instant, usize, &[u8]);

/// The sockets of all clients.
pub(super) trait ClientSockets {
    /// Lets one more client in; they are numbered from 0.
    fn open(&mut self) -> Result<(), LoadError>;

    /// Sends a client's text.
    fn send(&mut self, client: usize, text: &str) -> Result<SendResult, LoadError>;

    /// Receives what has come, waiting for it as long as this at most.
    fn receive(&mut self, wait: Duration, on_message: MessageHandler<'_>) -> io::Result<()>;

    /// Returns how many clients the server has sent away.
    fn closed(&self) -> usize;
}
