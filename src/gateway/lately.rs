//! Virtual connections that were closed a moment ago: what an honest end still had on the way when it was told is no violation. Pure.

use super::end::EndKey;
use super::wire::ConnId;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a message may be on the way.
const KEPT: Duration = Duration::from_secs(60);
/// How many are remembered; the oldest go first.
const MOST: usize = 65_536;

/// Which ends were told of a Close, and when.
#[derive(Debug, Default)]
pub(super) struct Lately {
    told: HashSet<(ConnId, EndKey)>,
    order: VecDeque<(Instant, ConnId, EndKey)>,
}

impl Lately {
    /// Notes that `end` is told that `conn` is closed.
    pub(super) fn note(&mut self, now: Instant, conn: ConnId, end: EndKey) {
        while let Some((at, conn, end)) = self.order.front().copied() {
            if self.order.len() < MOST && now.saturating_duration_since(at) < KEPT {
                break;
            }
            self.order.pop_front();
            self.told.remove(&(conn, end));
        }
        if self.told.insert((conn, end)) {
            self.order.push_back((now, conn, end));
        }
    }

    /// Says whether `end` may not know yet that `conn` is closed.
    pub(super) fn excuses(&self, conn: ConnId, end: EndKey) -> bool {
        self.told.contains(&(conn, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time;

    #[test]
    fn an_excuse_ends_and_so_does_the_memory_of_it() {
        let (start, end) = (time::now().mono, EndKey(1));
        let mut lately = Lately::default();
        lately.note(start, ConnId(1), end);
        assert!(lately.excuses(ConnId(1), end) && !lately.excuses(ConnId(1), EndKey(2)));
        lately.note(start + KEPT, ConnId(2), end);
        assert!(!lately.excuses(ConnId(1), end) && lately.excuses(ConnId(2), end));
        for conn in 0..100_000 {
            lately.note(start + KEPT, ConnId(conn), end);
        }
        assert!(lately.order.len() <= MOST && lately.told.len() == lately.order.len());
    }
}
