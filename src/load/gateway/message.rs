//! The messages of a load, and a reader that checks them without storing them. Pure.
//!
//! ```text
//! ┌─────────┬──────────┬───────────┬────────────┬──────────────────────┬─────────┐
//! │ head(8) │ mark (4) │ flow (4)  │ number (4) │ ns since the run (8) │ filling │
//! └─────────┴──────────┴───────────┴────────────┴──────────────────────┴─────────┘
//! ```

use crate::gateway::wire::{self, Command, ConnId, Frame, HEADER_LEN, WireError};
use bytes::BufMut;

/// The shortest message.
pub(crate) const STAMP_LEN: usize = 20;
/// The longest message.
pub(crate) const MAX_MESSAGE: usize = 512 * 1024 - 4;
const STAMPED_HEADER_LEN: usize = HEADER_LEN + STAMP_LEN;
/// The period of the filling. It is no power of two, so that bytes shifted by a page do not match.
const PERIOD: usize = 251;
const PIECE: usize = 64 * 1024;

/// The fields of a message before its filling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageStamp {
    /// Twice the number of the virtual connection, plus one from servers to clients.
    pub(super) flow: u32,
    /// The number of the message in its flow, from 0.
    pub(super) number: u32,
    /// When it was created, in ns since the start of the run.
    pub(super) at: u64,
}

/// The constant parts of all messages of a run.
#[derive(Debug)]
pub(super) struct MessageTemplate {
    mark: u32,
    filling: Box<[u8]>,
}

/// A frame that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReceivedFrame<'a> {
    Command(Command<'a>),
    Message {
        conn: ConnId,
        /// `None` for a message that is not of this run.
        stamp: Option<MessageStamp>,
        /// Bytes of the message.
        len: u32,
        /// Whether the filling is unchanged.
        is_whole: bool,
    },
}

/// Reads a stream of frames in any pieces. Its size is 48 bytes for messages of any length.
#[derive(Debug, Default)]
pub(super) struct LoadMessageReader {
    head: [u8; STAMPED_HEADER_LEN],
    have: u8,
    is_damaged: bool,
    /// Bytes of the filling that have not arrived.
    left: u32,
}

impl MessageTemplate {
    pub(super) fn new(mark: u32) -> Self {
        Self { mark, filling: (0..PIECE + PERIOD).map(|at| (at % PERIOD) as u8).collect() }
    }

    /// Appends a whole frame whose message has `len` bytes.
    pub(super) fn emit(&self, conn: ConnId, stamp: MessageStamp, len: u32, to: &mut Vec<u8>) {
        wire::emit_header(to, conn, len as usize);
        to.put_u32_le(self.mark);
        to.put_u32_le(stamp.flow);
        to.put_u32_le(stamp.number);
        to.put_u64_le(stamp.at);
        let (mut at, mut left) = (0, (len as usize).saturating_sub(STAMP_LEN));
        while left > 0 {
            let piece = self.piece(stamp.number, at, left);
            to.extend_from_slice(piece);
            (at, left) = (at + piece.len(), left - piece.len());
        }
    }

    /// Returns the filling of message `number` from `at` on, at most one piece.
    fn piece(&self, number: u32, at: usize, most: usize) -> &[u8] {
        let from = (number as usize + at) % PERIOD;
        &self.filling[from..from + most.min(PIECE)]
    }

    fn fits(&self, number: u32, mut at: usize, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let piece = self.piece(number, at, bytes.len());
            let (now, rest) = bytes.split_at(piece.len());
            if now != piece {
                return false;
            }
            (at, bytes) = (at + piece.len(), rest);
        }
        true
    }

    fn stamp(&self, head: &[u8; STAMPED_HEADER_LEN]) -> Option<MessageStamp> {
        (u32_at(head, 8) == self.mark).then(|| MessageStamp {
            flow: u32_at(head, 12),
            number: u32_at(head, 16),
            at: u64::from(u32_at(head, 20)) | u64::from(u32_at(head, 24)) << 32,
        })
    }
}

impl LoadMessageReader {
    /// Reads the next bytes of the stream.
    ///
    /// # Errors
    /// [`WireError`]; [`WireError::Short`] for messages that are shorter than a stamp.
    pub(super) fn read(
        &mut self,
        template: &MessageTemplate,
        mut bytes: &[u8],
        on_frame: &mut impl FnMut(ReceivedFrame<'_>),
    ) -> Result<(), WireError> {
        loop {
            let Some(wanted) = self.head_len()? else {
                let taken = bytes.len().min(self.left as usize);
                let (now, rest) = bytes.split_at(taken);
                if !self.fill(template, now, on_frame) {
                    return Ok(());
                }
                bytes = rest;
                continue;
            };
            let have = usize::from(self.have);
            let taken = bytes.len().min(wanted - have);
            self.head[have..have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken as u8;
            bytes = &bytes[taken..];
            if taken < wanted - have {
                return Ok(());
            }
            if wanted > HEADER_LEN && u32_at(&self.head, 4) == 0 {
                if let Some((Frame::Command(command), _)) =
                    wire::frame(&self.head[..wanted], STAMPED_HEADER_LEN)?
                {
                    on_frame(ReceivedFrame::Command(command));
                }
                *self = Self::default();
            } else if wanted == STAMPED_HEADER_LEN {
                self.left = u32_at(&self.head, 0) + 4 - STAMPED_HEADER_LEN as u32;
            }
        }
    }

    /// Returns how long the header must be next; `None` if it is complete.
    fn head_len(&self) -> Result<Option<usize>, WireError> {
        let have = usize::from(self.have);
        if have < HEADER_LEN {
            return Ok(Some(HEADER_LEN));
        }
        let (len, conn) = (u32_at(&self.head, 0), u32_at(&self.head, 4));
        let frame = len as usize + 4;
        if conn == 0 {
            return if frame <= STAMPED_HEADER_LEN { Ok(Some(frame)) } else { Err(WireError::Long(len)) };
        }
        match frame {
            ..STAMPED_HEADER_LEN => Err(WireError::Short(len)),
            _ if have < STAMPED_HEADER_LEN => Ok(Some(STAMPED_HEADER_LEN)),
            _ => Ok(None),
        }
    }

    /// Checks bytes of a filling; returns whether the message is complete, and then passes it to `on_frame`.
    fn fill(
        &mut self,
        template: &MessageTemplate,
        bytes: &[u8],
        on_frame: &mut impl FnMut(ReceivedFrame<'_>),
    ) -> bool {
        let len = u32_at(&self.head, 0) - 4;
        let stamp = template.stamp(&self.head);
        if let Some(stamp) = stamp {
            let at = len - STAMP_LEN as u32 - self.left;
            self.is_damaged |= !template.fits(stamp.number, at as usize, bytes);
        }
        self.left -= bytes.len() as u32;
        if self.left > 0 {
            return false;
        }
        let conn = ConnId(u32_at(&self.head, 4));
        on_frame(ReceivedFrame::Message { conn, stamp, len, is_whole: !self.is_damaged });
        *self = Self::default();
        true
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnId = ConnId(9527);

    fn read_all(template: &MessageTemplate, pieces: &[&[u8]]) -> Result<Vec<String>, WireError> {
        let (mut reader, mut frames) = (LoadMessageReader::default(), Vec::new());
        for piece in pieces {
            reader.read(template, piece, &mut |frame| frames.push(format!("{frame:?}")))?;
        }
        Ok(frames)
    }

    fn stream(template: &MessageTemplate) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, len) in [(0, 20), (1, 100), (2, 21), (3, 70_000), (4, 100_000)] {
            Command::Ping.emit(&mut bytes);
            template.emit(CONN, MessageStamp { flow: 7, number, at: 1 << 40 }, len, &mut bytes);
            Command::Accept { conn: CONN, remote: 1 }.emit(&mut bytes);
        }
        bytes
    }

    #[test]
    fn frames_are_read_under_every_split() {
        let template = MessageTemplate::new(5);
        let bytes = stream(&template);
        let whole = read_all(&template, &[&bytes]).unwrap();
        assert_eq!(whole.len(), 15);
        let wanted = ReceivedFrame::Message {
            conn: CONN,
            stamp: Some(MessageStamp { flow: 7, number: 3, at: 1 << 40 }),
            len: 70_000,
            is_whole: true,
        };
        assert_eq!(whole[10], format!("{wanted:?}"));
        for size in [1, 3, 7, 8, 9, 17, 28, 29, 100, 4096, 65_536] {
            assert_eq!(
                read_all(&template, &bytes.chunks(size).collect::<Vec<_>>()).unwrap(),
                whole,
                "{size}"
            );
        }
    }

    #[test]
    fn a_changed_byte_and_a_foreign_message_are_detected() {
        let template = MessageTemplate::new(5);
        let mut bytes = Vec::new();
        template.emit(CONN, MessageStamp { flow: 1, number: 1, at: 1 }, 100, &mut bytes);
        for at in STAMPED_HEADER_LEN..bytes.len() {
            bytes[at] ^= 1;
            assert!(read_all(&template, &[&bytes]).unwrap()[0].contains("is_whole: false"), "{at}");
            bytes[at] ^= 1;
        }
        assert!(read_all(&MessageTemplate::new(6), &[&bytes]).unwrap()[0].contains("stamp: None"));
        assert_eq!(read_all(&template, &[b"\x10\0\0\0\x01\0\0\0"]), Err(WireError::Short(16)));
        assert_eq!(read_all(&template, &[b"\x19\0\0\0\0\0\0\0"]), Err(WireError::Long(25)));
    }
}
