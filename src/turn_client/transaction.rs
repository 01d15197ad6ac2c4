//! One request, and its retransmissions ([RFC 8489 section 6.2](https://www.rfc-editor.org/rfc/rfc8489#section-6.2)).

use super::config::{ClientTransport, TurnClientConfig};
use super::error::TurnRequest;
use crate::stun::TransactionId;
use std::time::{Duration, Instant};

/// A request without a response.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) request: TurnRequest,
    pub(super) id: TransactionId,
    bytes: Vec<u8>,
    pub(super) is_signed: bool,
    /// Consecutive 438 responses.
    pub(super) stale_nonces: u8,
    pub(super) began: Instant,
    due: Instant,
    wait: Duration,
    pub(super) transmissions: u32,
    most: u32,
}

/// What a due transaction does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due<'a> {
    /// The request is sent again.
    Retransmit(&'a [u8]),
    /// There was no response.
    TimedOut,
}

impl Transaction {
    /// Begins one whose request is sent at `now`.
    pub(super) fn new(
        now: Instant,
        config: &TurnClientConfig,
        request: TurnRequest,
        (id, bytes): (TransactionId, Vec<u8>),
    ) -> Self {
        let (wait, most) = match config.transport {
            ClientTransport::Datagram => (config.first_wait, config.transmissions),
            ClientTransport::Stream => (config.stream_wait, 1),
        };
        Self {
            request,
            id,
            bytes,
            is_signed: false,
            stale_nonces: 0,
            began: now,
            due: now + wait,
            wait,
            transmissions: 1,
            most,
        }
    }

    /// Returns when [`Transaction::handle_timeout`] is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Retransmits after a wait that doubles; gives up at most 16 first waits after the last transmission (Rm of section 6.2.1).
    pub(super) fn handle_timeout(&mut self, now: Instant, first_wait: Duration) -> Due<'_> {
        if self.transmissions >= self.most {
            return Due::TimedOut;
        }
        self.transmissions += 1;
        self.wait *= 2;
        let last = self.transmissions == self.most;
        self.due = now + if last { (first_wait * 16).min(self.wait) } else { self.wait };
        Due::Retransmit(&self.bytes)
    }
}
