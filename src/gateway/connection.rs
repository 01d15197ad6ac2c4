//! One virtual connection: its two ends, and what waits in either direction. Pure.

use super::end::EndKey;
use std::time::Duration;

/// What waits for one end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    /// Bytes in its outbox.
    pub(super) waiting: usize,
    /// Whether the other end is not read because of them.
    pub(super) holds: bool,
    /// How long it was not, since the last time nothing waited.
    pub(super) held_for: Duration,
    /// How many bytes more this end will take; without bound where it knows no credit.
    pub(super) window: i64,
    /// Bytes it has taken that the other end has not been given credit for.
    pub(super) owed: usize,
    /// Whether the other end sends on credit.
    pub(super) is_on_credit: bool,
}

impl Lane {
    /// Says whether a frame of `len` bytes finds no room. Whoever sends on credit may go below zero by its last frame (command 7), and
    /// must not be held for having done so.
    pub(super) fn is_full(&self, len: usize, queue: usize) -> bool {
        let over = if self.is_on_credit { self.waiting >= queue } else { self.waiting + len > queue };
        self.waiting > 0 && over
    }
}

/// A virtual connection. Index 0 is the end that dialled.
#[derive(Debug)]
pub(super) struct Connection {
    /// `None` for an end that has gone while bytes wait for the other.
    pub(super) ends: [Option<EndKey>; 2],
    /// What waits for the end of the same index.
    pub(super) lanes: [Lane; 2],
    /// It is closed, and only kept until what waits has left.
    pub(super) is_closed: bool,
}

impl Connection {
    /// `limited` says which ends grant credit for what they are sent, and send on credit.
    pub(super) fn new(ends: [EndKey; 2], limited: [bool; 2]) -> Self {
        let lane = |end: usize| Lane {
            waiting: 0,
            holds: false,
            held_for: Duration::ZERO,
            window: if limited[end] { 0 } else { i64::MAX },
            owed: 0,
            is_on_credit: limited[1 - end],
        };
        Self { ends: ends.map(Some), lanes: [lane(0), lane(1)], is_closed: false }
    }

    /// Returns which of the two ends this is; `None` for a stranger.
    pub(super) fn side(&self, end: EndKey) -> Option<usize> {
        self.ends.iter().position(|own| *own == Some(end))
    }

    pub(super) fn is_drained(&self) -> bool {
        self.lanes.iter().all(|lane| lane.waiting == 0)
    }
}
