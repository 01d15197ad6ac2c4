//! The limits of port prediction and of the spray, and what this process has done.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most extra sockets that are open at a time.
pub(in crate::agent) const MAX_SOCKETS: usize = 256;
/// Most packets of one attempt on each side; all go to one address.
pub(in crate::agent) const MAX_PACKETS: usize = 1024;
/// Between two packets, and how many may be caught up with after a late timer: at most 200 in any second.
pub(super) const PACE: Duration = Duration::from_micros(5_100);
pub(super) const CATCH_UP: u32 = 3;
/// When an attempt ends, and its sockets are closed.
pub(in crate::agent) const MAX_TIME: Duration = Duration::from_secs(15);
/// How long after a session became relayed a user waits for a direct path.
pub(super) const USER_WAITS: Duration = Duration::from_secs(30);
/// Later, this much must have been relayed.
pub(super) const MIN_RELAYED: u64 = 1 << 20;
/// The same pair of hosts is not sprayed again for this long after a failure.
pub(super) const SPRAY_PAUSE: Duration = Duration::from_secs(3600);
/// The same after a success: a NAT that was restarted is crossed again.
pub(super) const PAUSE_AFTER_SUCCESS: Duration = Duration::from_secs(10);
/// Sprays for the same pair in [`SPRAY_PAUSE`], all but the last of them with success.
const MAX_SPRAYS: usize = 4;
/// Predictions, of a few packets each, for the same pair in that time.
const MAX_PREDICTIONS: usize = 8;
/// Attempts that are remembered.
const MAX_HISTORY: usize = 256;

/// Keeps other processes of the host from spraying until it is dropped.
pub(in crate::agent) type HostLock = Box<dyn Send>;

/// What is remembered of an attempt.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    pair: [IpAddr; 2],
    at: Instant,
    is_prediction: bool,
    has_succeeded: bool,
}

#[derive(Debug, Default)]
struct Record {
    is_busy: bool,
    history: VecDeque<Attempt>,
}

/// The attempts of a process: one at a time.
#[derive(Debug, Clone)]
pub(in crate::agent) struct SprayRecord {
    record: Arc<Mutex<Record>>,
    lock_host: fn() -> Option<HostLock>,
}

/// The right to take part in an attempt.
pub(in crate::agent) struct SprayPermit {
    record: SprayRecord,
    has_entered: bool,
    _host: HostLock,
}

impl SprayRecord {
    /// Takes the function that keeps other processes from spraying; `None` if one does.
    pub(in crate::agent) fn new(lock_host: fn() -> Option<HostLock>) -> Self {
        Self { record: Arc::default(), lock_host }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // The record is consistent after every statement.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the right to take part in an attempt; `None` while the host takes part in another.
    pub(super) fn acquire(&self) -> Option<SprayPermit> {
        let mut record = self.lock();
        if record.is_busy {
            return None;
        }
        let host = (self.lock_host)()?;
        record.is_busy = true;
        Some(SprayPermit { record: self.clone(), has_entered: false, _host: host })
    }
}

impl SprayPermit {
    /// Enters an attempt; `false` if the same pair had too many, or a spray without success.
    pub(super) fn enter(&mut self, now: Instant, pair: [IpAddr; 2], is_prediction: bool) -> bool {
        let mut record = self.record.lock();
        record.history.retain(|attempt| now < attempt.at + SPRAY_PAUSE);
        let same = |attempt: &&Attempt| attempt.pair == pair && attempt.is_prediction == is_prediction;
        let has_failed = record.history.iter().filter(same).any(|attempt| !attempt.has_succeeded);
        let most = if is_prediction { MAX_PREDICTIONS } else { MAX_SPRAYS };
        let is_full =
            record.history.iter().filter(same).count() >= most || record.history.len() >= MAX_HISTORY;
        if is_full || (has_failed && !is_prediction) {
            return false;
        }
        record.history.push_back(Attempt { pair, at: now, is_prediction, has_succeeded: false });
        self.has_entered = true;
        true
    }

    /// Notes that the attempt has led to a direct path.
    pub(super) fn succeed(&self) {
        // Attempts exclude each other: the last one is that of this permit.
        if let Some(attempt) = self.record.lock().history.back_mut().filter(|_| self.has_entered) {
            attempt.has_succeeded = true;
        }
    }
}

impl Drop for SprayPermit {
    fn drop(&mut self) {
        self.record.lock().is_busy = false;
    }
}

impl std::fmt::Debug for SprayPermit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SprayPermit")
    }
}

/// When the next packet may be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pacer(Instant);

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Self(now)
    }

    pub(super) fn next(self) -> Instant {
        self.0
    }

    /// Takes a packet; `false` if it must wait.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let is_due = self.0 <= now;
        if is_due {
            let earliest = now.checked_sub(PACE * CATCH_UP).unwrap_or(now);
            self.0 = self.0.max(earliest) + PACE;
        }
        is_due
    }
}

#[cfg(test)]
pub(super) fn unlocked() -> Option<HostLock> {
    Some(Box::new(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::mono;

    const PAIR: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST); 2];

    #[test]
    fn one_attempt_runs_at_a_time() {
        let record = SprayRecord::new(unlocked);
        let permit = record.acquire().unwrap();
        assert!(record.clone().acquire().is_none());
        drop(permit);
        assert!(record.acquire().is_some());
        assert!(SprayRecord::new(|| None).acquire().is_none(), "another process sprays");
    }

    #[test]
    fn a_pair_is_sprayed_once_an_hour_and_predicted_a_few_times() {
        let (record, start) = (SprayRecord::new(unlocked), mono());
        let mut permit = record.acquire().unwrap();
        let other = [PAIR[0], "192.0.2.1".parse().unwrap()];
        assert!(permit.enter(start, PAIR, false) && permit.enter(start, other, false));
        assert!(!permit.enter(start + SPRAY_PAUSE - PACE, PAIR, false));
        let predicted = (0..20).filter(|_| permit.enter(start, PAIR, true)).count();
        assert_eq!(predicted, MAX_PREDICTIONS);
        assert!(permit.enter(start + SPRAY_PAUSE, PAIR, false));
    }

    #[test]
    fn after_a_success_a_pair_is_sprayed_again_but_not_without_end() {
        let (record, start) = (SprayRecord::new(unlocked), mono());
        record.acquire().unwrap().succeed();
        for _ in 0..MAX_SPRAYS {
            let mut permit = record.acquire().unwrap();
            assert!(permit.enter(start, PAIR, false));
            permit.succeed();
        }
        assert!(!record.acquire().unwrap().enter(start, PAIR, false), "too many");
        let later = start + SPRAY_PAUSE;
        assert!(record.acquire().unwrap().enter(later, PAIR, false));
        let mut permit = record.acquire().unwrap();
        permit.succeed();
        assert!(!permit.enter(later, PAIR, false), "it has succeeded without having been entered");
    }

    #[test]
    fn the_record_is_bounded() {
        let (record, start) = (SprayRecord::new(unlocked), mono());
        let mut permit = record.acquire().unwrap();
        let pair = |number: u32| [PAIR[0], IpAddr::V4(std::net::Ipv4Addr::from_bits(number))];
        assert_eq!((0..1000).filter(|number| permit.enter(start, pair(*number), false)).count(), MAX_HISTORY);
        assert!(permit.enter(start + SPRAY_PAUSE, pair(7), false));
        assert_eq!(record.lock().history.len(), 1);
    }

    #[test]
    fn no_second_has_more_than_200_packets() {
        let start = mono();
        // Timers that fire each millisecond, and late ones.
        for tick in [1, 5, 7, 20, 100, 900] {
            let (mut pacer, mut sent) = (Pacer::new(start), Vec::new());
            for millis in (0..10_000).step_by(tick) {
                let now = start + Duration::from_millis(millis);
                while pacer.take(now) {
                    sent.push(now);
                }
            }
            let most = sent.iter().enumerate().map(|(index, at)| {
                sent[index..].iter().take_while(|later| **later < *at + Duration::from_secs(1)).count()
            });
            assert!(most.max().is_some_and(|most| most <= 200), "{tick}");
            assert!(tick > 5 || sent.len() > 1900, "{tick}: {}", sent.len());
        }
    }
}
