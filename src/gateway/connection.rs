//! One virtual connection: its two endpoints, and what waits in either direction. Pure.

use super::endpoint::EndpointKey;
use std::time::Duration;

/// What waits for one endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direction {
    /// Bytes in its outbox.
    pub(super) waiting: usize,
    /// Whether the other endpoint is not read because of them.
    pub(super) pauses_sender: bool,
    /// How long it was not, since the last time nothing waited.
    pub(super) paused_for: Duration,
    /// How many bytes more this endpoint will take; without bound where it knows no credit.
    pub(super) window: i64,
    /// Bytes it has taken that the other endpoint has not been given credit for.
    pub(super) uncredited: usize,
    /// Whether the other endpoint sends on credit.
    pub(super) sender_uses_credit: bool,
}

impl Direction {
    /// Says whether a frame of `len` bytes finds no room. Whoever sends on credit may go below zero by its last frame (command 7), and
    /// must not be held for having done so.
    pub(super) fn is_full(&self, len: usize, queue: usize) -> bool {
        let over = if self.sender_uses_credit { self.waiting >= queue } else { self.waiting + len > queue };
        self.waiting > 0 && over
    }
}

/// A virtual connection. Index 0 is the endpoint that dialled.
#[derive(Debug)]
pub(super) struct RoutedConnection {
    /// `None` for an endpoint that has gone while bytes wait for the other.
    pub(super) endpoints: [Option<EndpointKey>; 2],
    /// What waits for the endpoint of the same index.
    pub(super) directions: [Direction; 2],
    /// It is closed, and only kept until what waits has left.
    pub(super) is_closed: bool,
}

impl RoutedConnection {
    /// `uses_credit` says which endpoints grant credit for what they are sent, and send on credit.
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

    /// Returns which of the two endpoints this is; `None` for a stranger.
    pub(super) fn side(&self, endpoint: EndpointKey) -> Option<usize> {
        self.endpoints.iter().position(|own| *own == Some(endpoint))
    }

    pub(super) fn is_drained(&self) -> bool {
        self.directions.iter().all(|direction| direction.waiting == 0)
    }
}
