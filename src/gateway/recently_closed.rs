//! Recently closed virtual connections. A message that was in flight when its sender received Close is no violation. Pure.

use super::endpoint::EndpointKey;
use super::wire::ConnId;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a message may be in flight.
const KEPT: Duration = Duration::from_secs(60);
/// How many are kept; the oldest are removed first.
const MOST: usize = 65_536;

/// Which endpoints were sent Close, and when.
#[derive(Debug, Default)]
pub(super) struct RecentlyClosed {
    sent_close: HashSet<(ConnId, EndpointKey)>,
    order: VecDeque<(Instant, ConnId, EndpointKey)>,
}

impl RecentlyClosed {
    /// Records that `endpoint` is sent Close for `conn`.
    pub(super) fn note(&mut self, now: Instant, conn: ConnId, endpoint: EndpointKey) {
        while let Some((at, conn, endpoint)) = self.order.front().copied() {
            if self.order.len() < MOST && now.saturating_duration_since(at) < KEPT {
                break;
            }
            self.order.pop_front();
            self.sent_close.remove(&(conn, endpoint));
        }
        if self.sent_close.insert((conn, endpoint)) {
            self.order.push_back((now, conn, endpoint));
        }
    }

    /// Returns whether `endpoint` was sent Close for `conn` recently.
    pub(super) fn excuses(&self, conn: ConnId, endpoint: EndpointKey) -> bool {
        self.sent_close.contains(&(conn, endpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time;

    #[test]
    fn entries_expire_and_their_number_is_limited() {
        let (start, endpoint) = (time::now().mono, EndpointKey(1));
        let mut recently_closed = RecentlyClosed::default();
        recently_closed.note(start, ConnId(1), endpoint);
        assert!(
            recently_closed.excuses(ConnId(1), endpoint)
                && !recently_closed.excuses(ConnId(1), EndpointKey(2))
        );
        recently_closed.note(start + KEPT, ConnId(2), endpoint);
        assert!(
            !recently_closed.excuses(ConnId(1), endpoint) && recently_closed.excuses(ConnId(2), endpoint)
        );
        for conn in 0..100_000 {
            recently_closed.note(start + KEPT, ConnId(conn), endpoint);
        }
        assert!(
            recently_closed.order.len() <= MOST
                && recently_closed.sent_close.len() == recently_closed.order.len()
        );
    }
}
