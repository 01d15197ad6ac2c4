//! Collects the payload of frames into whole messages. Pure.

use super::frame::{CloseCode, Event, FrameReader, MessageType};
use std::mem::take;

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Text(String),
    Binary(Vec<u8>),
    /// A ping with the payload that its pong repeats.
    Ping(Vec<u8>),
    Pong,
    /// A close with the code that answers it.
    Close(Option<CloseCode>),
}

/// Reads whole messages of one type.
#[derive(Debug)]
pub(crate) struct MessageReader {
    frames: FrameReader,
    /// The part of the current message that has arrived.
    message: Vec<u8>,
}

impl MessageReader {
    /// Accepts messages of this type, of at most `max_len` bytes.
    pub(crate) fn new(message_type: MessageType, max_len: usize) -> Self {
        Self { frames: FrameReader::new(message_type, max_len), message: Vec::new() }
    }

    /// Appends received bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// Sets the length of the longest message.
    pub(crate) fn set_max_len(&mut self, max_len: usize) {
        self.frames.set_max_len(max_len);
    }

    /// Returns the bytes of memory that a partial message occupies; 0 between messages.
    pub(crate) fn buffered(&self) -> usize {
        self.frames.buffered() + self.message.capacity()
    }

    /// Returns whether a message or a frame has begun and is not complete.
    pub(crate) fn is_within_message(&self) -> bool {
        self.frames.is_within_message() || self.frames.buffered() > 0
    }

    /// Returns the next complete message or control frame; `None` where more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, CloseCode> {
        Ok(match self.frames.next(&mut self.message)? {
            None => None,
            Some(Event::MessageEnd) => {
                let message = take(&mut self.message);
                Some(match self.frames.message_type() {
                    MessageType::Text => {
                        Message::Text(String::from_utf8(message).map_err(|_| CloseCode::INVALID_DATA)?)
                    }
                    MessageType::Binary => Message::Binary(message),
                })
            }
            Some(Event::Ping(payload)) => Some(Message::Ping(payload)),
            Some(Event::Pong) => Some(Message::Pong),
            Some(Event::Close(code)) => Some(Message::Close(code)),
        })
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
