//! One virtual connection: its two endpoints, and what is queued in each direction. Pure.

use super::endpoint::EndpointKey;
use std::time::Duration;

/// The state of one direction, towards one endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direction {
    /// Bytes in the endpoint's outbox.
    pub(super) waiting: usize,
    /// Whether the sender is paused because of them.
    pub(super) pauses_sender: bool,
    /// For how long it was paused since the queue was last empty.
    pub(super) paused_for: Duration,
    /// Bytes that the endpoint accepts; unlimited where it grants no credit.
    pub(super) window: i64,
    /// Bytes it has taken that the sender has not been granted credit for.
    pub(super) uncredited: usize,
    /// Whether the sender sends on credit.
    pub(super) sender_uses_credit: bool,
}

impl Direction {
    /// Returns whether the queue has no space for a frame of `len` bytes. A sender on credit may exceed it by one frame (command 7) and must
    /// not be paused for that.
    pub(super) fn is_full(&self, len: usize, queue: usize) -> bool {
        let over = if self.sender_uses_credit { self.waiting >= queue } else { self.waiting + len > queue };
        self.waiting > 0 && over
    }
}

/// A virtual connection. Index 0 is the endpoint that dialled.
#[derive(Debug)]
pub(super) struct RoutedConnection {
    /// `None` for an endpoint that is gone while bytes are queued for the other.
    pub(super) endpoints: [Option<EndpointKey>; 2],
    /// By the receiving endpoint.
    pub(super) directions: [Direction; 2],
    /// Closed, and kept only until what is queued has been written.
    pub(super) is_closed: bool,
}

impl RoutedConnection {
    /// `uses_credit` states which endpoints grant credit and send on credit.
    pub(super) fn new(endpoints: [EndpointKey; 2], uses_credit: [bool; 2]) -> Self {
        let direction = |endpoint: usize| Direction {
            waiting: 0,
            pauses_sender: false,
            paused_for: Duration::ZERO,
            window: if uses_credit[endpoint] { 0 } else { i64::MAX },
            uncredited: 0,
            sender_uses_credit: uses_credit[1 - endpoint],
        };
        Self { endpoints: endpoints.map(Some), directions: [direction(0), direction(1)], is_closed: false }
    }

    /// Returns the index of an endpoint of this connection.
    pub(super) fn side(&self, endpoint: EndpointKey) -> Option<usize> {
        self.endpoints.iter().position(|own| *own == Some(endpoint))
    }

    pub(super) fn is_drained(&self) -> bool {
        self.directions.iter().all(|direction| direction.waiting == 0)
    }
}
