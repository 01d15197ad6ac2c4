//! Decides how many packets may be sent now: by a rate, or by a window of packets in flight.

use super::process_share::ProcessShare;
use std::time::Duration;

/// How a load is paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// Packets per second, over all flows and directions, independent of arrivals.
    Rate(u64),
    /// Packets in flight: each arrival allows the next packet.
    Window(u32),
}

impl LoadMode {
    /// Returns the rate or the window.
    pub(super) fn settings(self) -> (Option<u64>, Option<u32>) {
        match self {
            Self::Rate(rate) => (Some(rate), None),
            Self::Window(window) => (None, Some(window)),
        }
    }

    /// Returns the share of one process.
    #[must_use]
    pub fn part(self, part: ProcessShare) -> Self {
        match self {
            Self::Rate(rate) => Self::Rate(part.share(rate)),
            Self::Window(window) => {
                Self::Window(u32::try_from(part.share(window.into())).unwrap_or(window).max(1))
            }
        }
    }
}

/// Packets sent between two receive calls, at most.
const MAX_BATCH: u64 = 128;
/// How far a rate may fall behind before packets are skipped.
const BEHIND: Duration = Duration::from_millis(100);
/// Packets in flight are counted by slots of 2^23 ns (8.4 ms); after 268 ms they are taken for lost.
const SLOT_BITS: u32 = 23;
const SLOTS: usize = 32;
/// The longest wait for an arrival while a window is full.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// The pacer. Times are in ns since the start of the run.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    mode: LoadMode,
    burst: u64,
    /// For a rate: packets that were sent or skipped.
    given: u64,
    left_out: u64,
    /// For a window: packets in flight, and their number by send time.
    in_flight: u64,
    slots: [u64; SLOTS],
    newest: u64,
}

impl Pace {
    /// Creates a pacer for bursts of `burst` packets.
    #[must_use]
    pub(crate) fn new(mode: LoadMode, burst: u32) -> Self {
        let burst = u64::from(burst.max(1));
        Self { mode, burst, given: 0, left_out: 0, in_flight: 0, slots: [0; SLOTS], newest: 0 }
    }

    /// Returns how many packets may be sent at `now`; a multiple of the burst.
    pub(crate) fn due(&mut self, now: u64) -> u64 {
        let due = match self.mode {
            LoadMode::Rate(rate) => {
                let owed = owed(rate, now).saturating_sub(self.given);
                let backlog = owed_in(rate, BEHIND).max(self.burst);
                if owed > backlog {
                    self.left_out += owed - backlog;
                    self.given += owed - backlog;
                }
                owed.min(backlog)
            }
            LoadMode::Window(window) => {
                self.age(now);
                u64::from(window).max(self.burst).saturating_sub(self.in_flight)
            }
        };
        let due = due.min(MAX_BATCH.max(self.burst));
        due - due % self.burst
    }

    /// Counts packets that were sent at `at`.
    pub(crate) fn sent(&mut self, at: u64, count: u64) {
        self.given += count;
        self.age(at);
        self.slots[slot(at)] += count;
        self.in_flight += count;
    }

    /// Counts packets that were due and that the kernel did not accept.
    pub(crate) fn held_back(&mut self, count: u64) {
        self.given += count;
    }

    /// Counts the arrival of a packet that was sent at `at`.
    pub(crate) fn arrived(&mut self, at: u64) {
        let known = (at >> SLOT_BITS) + SLOTS as u64 > self.newest && at >> SLOT_BITS <= self.newest;
        let outstanding = &mut self.slots[slot(at)];
        if known && *outstanding > 0 {
            *outstanding -= 1;
            self.in_flight -= 1;
        }
    }

    /// Returns the time until the next packet is due.
    #[must_use]
    pub(crate) fn wait(&self, now: u64) -> Duration {
        match self.mode {
            LoadMode::Window(_) => FULL_WAIT,
            LoadMode::Rate(rate) => {
                let at = u128::from(self.given + self.burst) * 1_000_000_000 / u128::from(rate.max(1));
                Duration::from_nanos(u64::try_from(at).unwrap_or(u64::MAX).saturating_sub(now))
            }
        }
    }

    /// Returns how many packets were skipped because this machine could not send them in time.
    #[must_use]
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Drops packets that were sent too long ago from the count.
    fn age(&mut self, now: u64) {
        let current = now >> SLOT_BITS;
        for number in (self.newest + 1..=current).take(SLOTS) {
            let old = std::mem::take(&mut self.slots[(number % SLOTS as u64) as usize]);
            self.in_flight -= old;
        }
        self.newest = self.newest.max(current);
    }
}

fn slot(at: u64) -> usize {
    ((at >> SLOT_BITS) % SLOTS as u64) as usize
}

fn owed(rate: u64, ns: u64) -> u64 {
    u64::try_from(u128::from(rate) * u128::from(ns) / 1_000_000_000).unwrap_or(u64::MAX)
}

fn owed_in(rate: u64, time: Duration) -> u64 {
    owed(rate, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_rate_sends_its_packets_in_time_and_skips_what_is_too_late() {
        let mut pace = Pace::new(LoadMode::Rate(1000), 1);
        assert_eq!((pace.due(0), pace.wait(0)), (0, Duration::from_millis(1)));
        assert_eq!(pace.due(10 * MS), 10);
        pace.sent(10 * MS, 10);
        assert_eq!(pace.due(10 * MS), 0);
        assert_eq!(pace.due(1010 * MS), 100);
        assert_eq!(pace.left_out(), 900);
    }

    #[test]
    fn bursts_are_sent_whole() {
        let mut pace = Pace::new(LoadMode::Rate(1000), 8);
        assert_eq!((pace.due(7 * MS), pace.due(9 * MS), pace.wait(0)), (0, 8, Duration::from_millis(8)));
        let mut pace = Pace::new(LoadMode::Window(4), 8);
        assert_eq!(pace.due(0), 8);
        pace.sent(0, 8);
        pace.arrived(0);
        assert_eq!(pace.due(0), 0);
    }

    #[test]
    fn a_window_is_refilled_by_arrivals_and_by_losses() {
        let mut pace = Pace::new(LoadMode::Window(10), 1);
        assert_eq!(pace.due(0), 10);
        pace.sent(0, 10);
        assert_eq!(pace.due(MS), 0);
        (0..3).for_each(|_| pace.arrived(0));
        assert_eq!(pace.due(2 * MS), 3);
        pace.sent(2 * MS, 3);
        assert_eq!((pace.due(200 * MS), pace.due(300 * MS)), (0, 10));
        pace.arrived(2 * MS);
        assert_eq!(pace.due(300 * MS), 10);
    }

    #[test]
    fn unknown_arrivals_do_not_open_the_window() {
        let mut pace = Pace::new(LoadMode::Window(2), 1);
        pace.sent(0, 2);
        pace.arrived(50 * MS);
        pace.arrived(u64::MAX);
        assert_eq!(pace.due(60 * MS), 0);
    }
}
