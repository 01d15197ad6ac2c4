//! How many packets may leave now: so many a second, or as many as keep so many under way.

use super::process_share::ProcessShare;
use std::time::Duration;

/// What drives a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// Packets a second, over all flows and directions, whatever comes back.
    Rate(u64),
    /// Packets under way: each arrival lets the next one leave.
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

    /// Returns what drives one part of a load.
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

/// The most packets that leave between two looks at what has arrived.
const MOST_AT_ONCE: u64 = 128;
/// How far a rate may fall behind before packets are left out.
const BEHIND: Duration = Duration::from_millis(100);
/// Ages of packets under way are known by slots of 2^23 ns (8.4 ms), and lost when they fall off the end, after 268 ms.
const SLOT_BITS: u32 = 23;
const SLOTS: usize = 32;
/// The longest wait for something to arrive while a window is full.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// Says how many packets may leave. LoadTimes are in ns since the beginning of the run.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    mode: LoadMode,
    burst: u64,
    /// Of a rate: packets that left or were left out.
    given: u64,
    left_out: u64,
    /// Of a window: packets under way, by when they left.
    under_way: u64,
    slots: [u64; SLOTS],
    newest: u64,
}

impl Pace {
    /// Begins a run in which packets leave in bursts of `burst`.
    #[must_use]
    pub(crate) fn new(mode: LoadMode, burst: u32) -> Self {
        let burst = u64::from(burst.max(1));
        Self { mode, burst, given: 0, left_out: 0, under_way: 0, slots: [0; SLOTS], newest: 0 }
    }

    /// Returns how many packets may leave at `now`, whole bursts.
    pub(crate) fn due(&mut self, now: u64) -> u64 {
        let due = match self.mode {
            LoadMode::Rate(rate) => {
                let owed = owed(rate, now).saturating_sub(self.given);
                let bearable = owed_in(rate, BEHIND).max(self.burst);
                if owed > bearable {
                    self.left_out += owed - bearable;
                    self.given += owed - bearable;
                }
                owed.min(bearable)
            }
            LoadMode::Window(window) => {
                self.age(now);
                u64::from(window).max(self.burst).saturating_sub(self.under_way)
            }
        };
        let due = due.min(MOST_AT_ONCE.max(self.burst));
        due - due % self.burst
    }

    /// Counts packets that have left at `at`.
    pub(crate) fn left(&mut self, at: u64, count: u64) {
        self.given += count;
        self.age(at);
        self.slots[slot(at)] += count;
        self.under_way += count;
    }

    /// Counts packets that were due and could not leave.
    pub(crate) fn held_back(&mut self, count: u64) {
        self.given += count;
    }

    /// Counts the arrival of a packet that left at `at`.
    pub(crate) fn arrived(&mut self, at: u64) {
        let known = (at >> SLOT_BITS) + SLOTS as u64 > self.newest && at >> SLOT_BITS <= self.newest;
        let outstanding = &mut self.slots[slot(at)];
        if known && *outstanding > 0 {
            *outstanding -= 1;
            self.under_way -= 1;
        }
    }

    /// Returns how long nothing will be due.
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

    /// Returns how many packets were left out because this machine could not send them in time.
    #[must_use]
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Forgets what left too long ago to be still under way.
    fn age(&mut self, now: u64) {
        let current = now >> SLOT_BITS;
        for number in (self.newest + 1..=current).take(SLOTS) {
            let old = std::mem::take(&mut self.slots[(number % SLOTS as u64) as usize]);
            self.under_way -= old;
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
    fn a_rate_lets_its_packets_leave_in_time_and_leaves_out_what_is_too_late() {
        let mut pace = Pace::new(LoadMode::Rate(1000), 1);
        assert_eq!((pace.due(0), pace.wait(0)), (0, Duration::from_millis(1)));
        assert_eq!(pace.due(10 * MS), 10);
        pace.left(10 * MS, 10);
        assert_eq!(pace.due(10 * MS), 0);
        assert_eq!(pace.due(1010 * MS), 100);
        assert_eq!(pace.left_out(), 900);
    }

    #[test]
    fn bursts_leave_whole() {
        let mut pace = Pace::new(LoadMode::Rate(1000), 8);
        assert_eq!((pace.due(7 * MS), pace.due(9 * MS), pace.wait(0)), (0, 8, Duration::from_millis(8)));
        let mut pace = Pace::new(LoadMode::Window(4), 8);
        assert_eq!(pace.due(0), 8);
        pace.left(0, 8);
        pace.arrived(0);
        assert_eq!(pace.due(0), 0);
    }

    #[test]
    fn a_window_is_refilled_by_arrivals_and_by_losses() {
        let mut pace = Pace::new(LoadMode::Window(10), 1);
        assert_eq!(pace.due(0), 10);
        pace.left(0, 10);
        assert_eq!(pace.due(MS), 0);
        (0..3).for_each(|_| pace.arrived(0));
        assert_eq!(pace.due(2 * MS), 3);
        pace.left(2 * MS, 3);
        assert_eq!((pace.due(200 * MS), pace.due(300 * MS)), (0, 10));
        pace.arrived(2 * MS);
        assert_eq!(pace.due(300 * MS), 10);
    }

    #[test]
    fn arrivals_from_nowhere_make_no_room() {
        let mut pace = Pace::new(LoadMode::Window(2), 1);
        pace.left(0, 2);
        pace.arrived(50 * MS);
        pace.arrived(u64::MAX);
        assert_eq!(pace.due(60 * MS), 0);
    }
}
