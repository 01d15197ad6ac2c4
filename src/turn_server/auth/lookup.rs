//! Users that somebody else knows: what is asked, what was answered and for how long that counts, and the requests that wait for
//! an answer.

use super::users::UserKeys;
use crate::turn_server::FiveTuple;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most requests that wait for an answer at a time, of one worker.
pub const MAX_PARKED: usize = 256;
/// Longest request that waits.
pub const MAX_PARKED_LEN: usize = 2048;

/// A user that is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name, as presented.
    pub user: String,
    /// The realm it was presented in.
    pub realm: String,
}

/// What is known of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is such a user.
    Known {
        /// The keys.
        keys: UserKeys,
        /// When the credentials end (Unix seconds), if they do.
        expires_unix: Option<u64>,
    },
    /// There is none.
    Unknown,
}

/// How long answers count, and how many are kept.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// How long a known user is not asked for again.
    pub known: Duration,
    /// How long an unknown one is not.
    pub unknown: Duration,
    /// Most answers kept; the oldest gives way.
    pub entries: usize,
}

/// The answers of the last minutes, shared by all workers.
#[derive(Debug)]
pub(super) struct LookupCache {
    limits: CacheLimits,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    by_question: HashMap<Arc<Question>, (Verdict, Instant)>,
    /// In the order they came; an answer that was given again stands here twice and goes with the earlier of both.
    order: VecDeque<Arc<Question>>,
}

impl LookupCache {
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self { limits, answers: Mutex::default() }
    }

    pub(super) fn get(&self, now: Instant, question: &Question) -> Option<Verdict> {
        let answers = self.lock();
        answers.by_question.get(question).filter(|(_, until)| now < *until).map(|(verdict, _)| *verdict)
    }

    pub(super) fn put(&self, now: Instant, question: Arc<Question>, verdict: Verdict) {
        let lifetime = match verdict {
            Verdict::Known { .. } => self.limits.known,
            Verdict::Unknown => self.limits.unknown,
        };
        let mut answers = self.lock();
        while answers.order.len() >= self.limits.entries.max(1) {
            let Some(oldest) = answers.order.pop_front() else { break };
            answers.by_question.remove(&oldest);
        }
        answers.order.push_back(Arc::clone(&question));
        answers.by_question.insert(question, (verdict, now + lifetime));
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that wait until their user was looked up: few, short, and only from addresses that have answered a challenge. One
/// that finds no room is dropped; its client sends it again.
#[derive(Debug, Default)]
pub struct Parking {
    parked: VecDeque<Parked>,
}

#[derive(Debug)]
struct Parked {
    question: Arc<Question>,
    client: FiveTuple,
    bytes: Vec<u8>,
}

impl Parking {
    /// Keeps a request; returns whether its question is new, which the hands are then to ask.
    #[must_use]
    pub fn park(&mut self, question: &Arc<Question>, client: FiveTuple, bytes: &[u8]) -> bool {
        let is_new = self.parked.iter().all(|parked| parked.question != *question);
        let is_retransmission =
            self.parked.iter().any(|parked| parked.client == client && parked.bytes == bytes);
        if is_retransmission || self.parked.len() >= MAX_PARKED || bytes.len() > MAX_PARKED_LEN {
            return false;
        }
        self.parked.push_back(Parked { question: Arc::clone(question), client, bytes: bytes.to_vec() });
        is_new
    }

    /// Takes the requests that waited for `question`, in the order they came.
    pub fn take(&mut self, question: &Question) -> Vec<(FiveTuple, Vec<u8>)> {
        let (ready, waiting) = self.parked.drain(..).partition(|parked| *parked.question == *question);
        self.parked = waiting;
        let ready: VecDeque<Parked> = ready;
        ready.into_iter().map(|parked| (parked.client, parked.bytes)).collect()
    }

    /// Drops the requests of a client that is gone.
    pub fn forget(&mut self, client: FiveTuple) {
        self.parked.retain(|parked| parked.client != client);
    }

    /// Returns how many requests wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parked.len()
    }

    /// Returns whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::turn_server::Transport;

    fn question(user: &str) -> Arc<Question> {
        Arc::new(Question { user: user.to_owned(), realm: "r".to_owned() })
    }

    fn client(port: u16) -> FiveTuple {
        let server = "192.0.2.1:3478".parse().unwrap();
        FiveTuple { client: ([198, 51, 100, 1], port).into(), server, transport: Transport::Udp }
    }

    #[test]
    fn an_answer_counts_for_its_time_and_the_oldest_gives_way() {
        let second = Duration::from_secs(1);
        let cache = LookupCache::new(CacheLimits { known: 9 * second, unknown: second, entries: 2 });
        let start = now().mono;
        let known = Verdict::Known { keys: UserKeys::default(), expires_unix: None };
        cache.put(start, question("alice"), known);
        cache.put(start, question("bob"), Verdict::Unknown);
        assert_eq!(cache.get(start + 8 * second, &question("alice")), Some(known));
        assert_eq!(cache.get(start + 9 * second, &question("alice")), None);
        assert_eq!(cache.get(start, &question("bob")), Some(Verdict::Unknown));
        assert_eq!(cache.get(start + second, &question("bob")), None);
        cache.put(start, question("carol"), known);
        assert_eq!(cache.get(start, &question("alice")), None, "the oldest gave way");
        for round in 0..100 {
            cache.put(start, question(&format!("{round}")), known);
        }
        assert!(cache.lock().by_question.len() <= 2);
    }

    #[test]
    fn parked_requests_are_few_short_and_asked_for_once() {
        let mut parking = Parking::default();
        assert!(parking.park(&question("alice"), client(1), b"one"));
        assert!(!parking.park(&question("alice"), client(1), b"one"), "a retransmission");
        assert!(!parking.park(&question("alice"), client(2), b"two"), "already asked");
        assert!(!parking.park(&question("bob"), client(3), &[0; MAX_PARKED_LEN + 1]), "too long");
        assert!(parking.park(&question("carol"), client(4), b"gone"));
        parking.forget(client(4));
        assert_eq!(parking.take(&question("alice")).len(), 2);
        assert!(parking.is_empty());
        for port in 0..1000 {
            let _ = parking.park(&question("alice"), client(port), b"flood");
        }
        assert_eq!(parking.len(), MAX_PARKED);
    }
}
