//! The send queue of one endpoint: whole frames in order, in runs as they were received. Pure.
//!
//! A long run stays in its receive buffer; a short one is copied, because it would keep a whole receive buffer alive. The frames' headers show which
//! frames were written, so nothing else is stored for each.

use super::wire::{self, Command, ConnId};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// A run of at least this many bytes is shared instead of copied.
pub(super) const SHARED: usize = 16 * 1024;
/// The initial capacity of a piece of short runs.
const PIECE: usize = 512;
/// The longest piece of short runs.
const MAX_PIECE: usize = 64 * 1024;

/// The frames for one endpoint.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    runs: VecDeque<Bytes>,
    /// Short runs, behind all others.
    tail: BytesMut,
    len: usize,
    /// Bytes of queued commands.
    control: usize,
    /// The frame that was written in part, and how many of its bytes are left.
    begun: Option<(ConnId, usize)>,
    /// Its whole length.
    begun_len: usize,
}

impl Outbox {
    /// Returns how many bytes are queued.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many of them are commands.
    pub(super) fn control(&self) -> usize {
        self.control
    }

    /// Appends a run of whole frames with messages.
    pub(super) fn push(&mut self, run: BytesMut) {
        self.len += run.len();
        if run.len() < SHARED {
            self.append(&run);
        } else {
            self.seal();
            self.runs.push_back(run.freeze());
        }
    }

    /// Appends a command.
    pub(super) fn push_command(&mut self, command: Command<'_>) {
        let mut frame = [0; wire::MAX_COMMAND];
        let mut rest = &mut frame[..];
        command.emit(&mut rest);
        let len = wire::MAX_COMMAND - rest.len();
        self.append(&frame[..len]);
        self.len += len;
        self.control += len;
    }

    /// Fills `slices` with what is to be written next, in order; returns how many are used.
    pub(super) fn peek<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        let pieces = self.runs.iter().map(|run| &run[..]).chain([&self.tail[..]]);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces.filter(|piece| !piece.is_empty())) {
            *slice = std::io::IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Returns the first frame, or what is left of it.
    pub(super) fn first(&self) -> &[u8] {
        let piece = self.runs.front().map_or(&self.tail[..], |run| &run[..]);
        let rest = match self.begun {
            Some((_, rest)) => rest,
            None => wire::frame_len(piece, usize::MAX).ok().flatten().unwrap_or(piece.len()),
        };
        &piece[..rest.min(piece.len())]
    }

    /// Removes `count` written bytes; calls `written` with each virtual connection whose frames were written completely, and their bytes.
    pub(super) fn advance(&mut self, mut count: usize, mut written: impl FnMut(ConnId, usize)) {
        let mut done: Option<(ConnId, usize)> = None;
        self.len = self.len.saturating_sub(count);
        while count > 0 {
            let from_tail = self.runs.is_empty();
            let piece = self.runs.front().map_or(&self.tail[..], |run| &run[..]);
            let mut taken = 0;
            while taken < count.min(piece.len()) {
                let (conn, rest) = match self.begun.take() {
                    Some(begun) => begun,
                    None => {
                        let frame = &piece[taken..];
                        let Some(conn) = wire::conn_of(frame) else { break };
                        let Ok(Some(len)) = wire::frame_len(frame, usize::MAX) else { break };
                        self.begun_len = len;
                        (conn, len)
                    }
                };
                let part = rest.min(count - taken);
                taken += part;
                if part < rest {
                    self.begun = Some((conn, rest - part));
                } else if conn.0 == 0 {
                    self.control -= self.begun_len;
                } else {
                    match &mut done {
                        Some((same, bytes)) if *same == conn => *bytes += self.begun_len,
                        _ => {
                            if let Some((conn, bytes)) = done.replace((conn, self.begun_len)) {
                                written(conn, bytes);
                            }
                        }
                    }
                }
            }
            if taken == 0 {
                break;
            }
            count -= taken;
            if from_tail {
                self.tail.advance(taken);
            } else if let Some(run) = self.runs.front_mut() {
                run.advance(taken);
                if run.is_empty() {
                    self.runs.pop_front();
                }
            }
        }
        if self.len == 0 {
            // Most endpoints are idle most of the time.
            (self.tail, self.runs) = (BytesMut::new(), VecDeque::new());
        }
        if let Some((conn, bytes)) = done {
            written(conn, bytes);
        }
    }

    /// Drops the frames of one virtual connection except one that was written in part; returns how many bytes were dropped.
    pub(super) fn remove_connection(&mut self, forgotten: ConnId) -> usize {
        self.seal();
        let before = self.len;
        let mut begun = self.begun.map_or(0, |(_, rest)| rest);
        let mut kept = VecDeque::new();
        for mut run in std::mem::take(&mut self.runs) {
            let mut at = begun;
            begun = 0;
            while at < run.len() {
                let Ok(Some(len)) = wire::frame_len(&run[at..], usize::MAX) else { break };
                if wire::conn_of(&run[at..]) == Some(forgotten) {
                    let front = run.split_to(at);
                    run.advance(len);
                    if !front.is_empty() {
                        kept.push_back(front);
                    }
                    self.len -= len;
                    at = 0;
                } else {
                    at += len;
                }
            }
            if !run.is_empty() {
                kept.push_back(run);
            }
        }
        self.runs = kept;
        before - self.len
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.tail.len() + bytes.len() > MAX_PIECE {
            self.seal();
        }
        if self.tail.capacity() == 0 {
            self.tail.reserve(bytes.len().max(PIECE));
        }
        self.tail.extend_from_slice(bytes);
    }

    /// Appends the short runs to the others, so that a long run can follow them.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.runs.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::io::IoSlice;

    fn frame(conn: u32, len: usize) -> BytesMut {
        let mut bytes = BytesMut::new();
        wire::emit_header(&mut bytes, ConnId(conn), len);
        bytes.resize(wire::HEADER_LEN + len, u8::try_from(conn).unwrap());
        bytes
    }

    fn whole(outbox: &Outbox) -> Vec<u8> {
        let mut slices = vec![IoSlice::new(&[]); 1000];
        let count = outbox.peek(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn a_long_run_is_not_copied_and_order_is_kept() {
        let mut outbox = Outbox::default();
        let long = frame(2, SHARED);
        let place = long.as_ptr();
        let mut expected = Vec::new();
        for run in [frame(1, 5), long, frame(3, 0)] {
            expected.extend_from_slice(&run);
            outbox.push(run);
        }
        assert_eq!(whole(&outbox), expected);
        let mut slices = [IoSlice::new(&[]); 3];
        assert_eq!(outbox.peek(&mut slices), 3);
        assert_eq!(slices[1].as_ptr(), place, "where it was received");
    }

    #[test]
    fn removing_a_connection_keeps_a_frame_that_was_written_in_part() {
        let mut outbox = Outbox::default();
        outbox.push(BytesMut::from(&[&frame(1, 50)[..], &frame(1, 9), &frame(2, 9)].concat()[..]));
        outbox.advance(20, |_, _| panic!("no frame was written completely"));
        assert_eq!(outbox.remove_connection(ConnId(1)), 17);
        assert_eq!(outbox.first(), &frame(1, 50)[20..]);
        assert_eq!(whole(&outbox), [&frame(1, 50)[20..], &frame(2, 9)].concat());
    }

    proptest! {
        /// Frames stay in order and the counts are right, however the bytes are written.
        #[test]
        fn each_queued_frame_is_written_once_and_accounted_for(
            pushed in proptest::collection::vec((0_u32..4, prop_oneof![9 => 0_usize..200, 1 => Just(SHARED)]), 1..12),
            pieces in proptest::collection::vec(1_usize..3000, 1..20),
            forgotten in 1_u32..4,
        ) {
            let mut outbox = Outbox::default();
            let (mut stream, mut waiting) = (Vec::new(), HashMap::<u32, usize>::new());
            for (conn, len) in &pushed {
                if *conn == 0 {
                    outbox.push_command(Command::Ping);
                    Command::Ping.emit(&mut stream);
                } else {
                    stream.extend_from_slice(&frame(*conn, *len));
                    *waiting.entry(*conn).or_default() += wire::HEADER_LEN + len;
                    outbox.push(frame(*conn, *len));
                }
            }
            prop_assert_eq!(outbox.len(), stream.len());
            prop_assert_eq!(whole(&outbox), &stream[..]);
            let mut at = 0;
            for (index, piece) in pieces.iter().enumerate() {
                let piece = (*piece).min(outbox.len());
                outbox.advance(piece, |conn, bytes| *waiting.get_mut(&conn.0).unwrap() -= bytes);
                at += piece;
                if index == pieces.len() / 2 {
                    let dropped = outbox.remove_connection(ConnId(forgotten));
                    *waiting.entry(forgotten).or_default() -= dropped;
                    stream = [&stream[..at], &whole(&outbox)].concat();
                }
                prop_assert_eq!(whole(&outbox), &stream[at..]);
                prop_assert_eq!(outbox.len(), stream.len() - at);
            }
            let rest = outbox.len();
            outbox.advance(rest, |conn, bytes| *waiting.get_mut(&conn.0).unwrap() -= bytes);
            prop_assert!(outbox.is_empty() && outbox.control() == 0);
            prop_assert!(waiting.values().all(|bytes| *bytes == 0), "{:?}", waiting);
        }
    }
}
