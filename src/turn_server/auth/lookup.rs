//! Users that somebody else knows: what is asked, what was answered and for how long that counts, and the requests that wait for
//! an answer.

use super::user_table::UserKeys;
use crate::limits::{Limit, NetworkPrefix};
use crate::turn_server::FiveTuple;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most requests that wait for an answer at a time, of one worker.
pub const MAX_PENDING: usize = 512;
/// How many of them may be for names that were never known: the rest is kept for those that were.
pub const MAX_PENDING_UNKNOWN: usize = 384;
/// Most requests for such names that wait at a time, of one network (IPv4 /24, IPv6 /48).
pub const MAX_PENDING_PER_NETWORK: usize = 32;
/// Longest request that waits.
pub const MAX_PENDING_LEN: usize = 2048;

/// A user that is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserQuery {
    /// The name, as presented.
    pub user: String,
    /// The realm it was presented in.
    pub realm: String,
}

/// What is known of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupResult {
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
pub struct LookupCacheConfig {
    /// How long a known user is not asked for again.
    pub known: Duration,
    /// How long an unknown one is not.
    pub unknown: Duration,
    /// Most answers kept about known users, and as many about unknown ones; the oldest gives way.
    pub entries: usize,
}

/// The answers of the last minutes, shared by all workers. Those about names that nobody has are apart, as strangers can make any number of them.
#[derive(Debug)]
pub(super) struct LookupCache {
    limits: LookupCacheConfig,
    answers: Mutex<[Answers; 2]>,
}

/// Where the answers of either kind are.
const KNOWN: usize = 0;
const UNKNOWN: usize = 1;

#[derive(Debug, Default)]
struct Answers {
    by_question: HashMap<Arc<UserQuery>, (LookupResult, Instant)>,
    /// In the order they came; an answer that was given again stands here twice and goes with the earlier of both.
    order: VecDeque<Arc<UserQuery>>,
}

impl Answers {
    fn put(&mut self, question: Arc<UserQuery>, answer: (LookupResult, Instant), most: usize) {
        while self.order.len() >= most.max(1) {
            Limit::HookMaxCached.reached(most);
            let Some(oldest) = self.order.pop_front() else { break };
            self.by_question.remove(&oldest);
        }
        self.order.push_back(Arc::clone(&question));
        self.by_question.insert(question, answer);
    }
}

impl LookupCache {
    pub(super) fn new(limits: LookupCacheConfig) -> Self {
        Self { limits, answers: Mutex::default() }
    }

    pub(super) fn get(&self, now: Instant, question: &UserQuery) -> Option<LookupResult> {
        let answers = self.lock();
        let current = |answers: &Answers| {
            let known = answers.by_question.get(question).filter(|(_, until)| now < *until);
            known.map(|(verdict, _)| *verdict)
        };
        answers.iter().find_map(current)
    }

    /// Returns whether the last answer was that there is such a user, however long ago it was given.
    pub(super) fn is_known(&self, question: &UserQuery) -> bool {
        self.lock()[KNOWN].by_question.contains_key(question)
    }

    pub(super) fn put(&self, now: Instant, question: Arc<UserQuery>, verdict: LookupResult) {
        let (place, lifetime) = match verdict {
            LookupResult::Known { .. } => (KNOWN, self.limits.known),
            LookupResult::Unknown => (UNKNOWN, self.limits.unknown),
        };
        let mut answers = self.lock();
        // What was said before counts no more.
        answers[1 - place].by_question.remove(&question);
        answers[place].put(question, (verdict, now + lifetime), self.limits.entries);
    }

    fn lock(&self) -> MutexGuard<'_, [Answers; 2]> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that wait until their user was looked up: few, short, and only from addresses that have answered a challenge. One
/// that finds no room is dropped; its client sends it again.
#[derive(Debug, Default)]
pub struct PendingLookups {
    parked: VecDeque<PendingRequest>,
}

#[derive(Debug)]
struct PendingRequest {
    question: Arc<UserQuery>,
    client: FiveTuple,
    /// Whether the name was known before.
    is_known: bool,
    bytes: Vec<u8>,
}

/// What came of a request whose user is to be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupAction {
    /// It waits, and its question is to be asked.
    Start,
    /// It waits for an answer that others wait for, or waited already.
    Wait,
    /// There is no room for it.
    Drop,
}

impl PendingLookups {
    /// Keeps a request, if there is room.
    #[must_use]
    pub fn insert(
        &mut self,
        question: &Arc<UserQuery>,
        client: FiveTuple,
        is_known: bool,
        bytes: &[u8],
    ) -> LookupAction {
        if self.parked.iter().any(|parked| parked.client == client && parked.bytes == bytes) {
            return LookupAction::Wait;
        }
        if bytes.len() > MAX_PENDING_LEN || !self.has_room(client, is_known) {
            return LookupAction::Drop;
        }
        let is_new = self.parked.iter().all(|parked| parked.question != *question);
        let (question, bytes) = (Arc::clone(question), bytes.to_vec());
        self.parked.push_back(PendingRequest { question, client, is_known, bytes });
        if is_new { LookupAction::Start } else { LookupAction::Wait }
    }

    fn has_room(&self, client: FiveTuple, is_known: bool) -> bool {
        let count =
            |of: &dyn Fn(&PendingRequest) -> bool| self.parked.iter().filter(|parked| of(parked)).count();
        let network = NetworkPrefix::site(client.client.ip());
        let of_network = |parked: &PendingRequest| NetworkPrefix::site(parked.client.client.ip()) == network;
        if self.parked.len() >= MAX_PENDING {
            Limit::ParkedRequests.reached(MAX_PENDING);
            return false;
        }
        if is_known {
            return true;
        }
        if count(&|parked| !parked.is_known) >= MAX_PENDING_UNKNOWN {
            Limit::ParkedRequests.reached(MAX_PENDING_UNKNOWN);
            return false;
        }
        let is_free = count(&|parked| !parked.is_known && of_network(parked)) < MAX_PENDING_PER_NETWORK;
        if !is_free {
            Limit::ParkedRequestsPerNetwork.reached(MAX_PENDING_PER_NETWORK);
        }
        is_free
    }

    /// Takes the requests that waited for `question`, in the order they came.
    pub fn take(&mut self, question: &UserQuery) -> Vec<(FiveTuple, Vec<u8>)> {
        let (ready, waiting) = self.parked.drain(..).partition(|parked| *parked.question == *question);
        self.parked = waiting;
        let ready: VecDeque<PendingRequest> = ready;
        ready.into_iter().map(|parked| (parked.client, parked.bytes)).collect()
    }

    /// Drops the requests of a client that is gone.
    pub fn forget(&mut self, client: FiveTuple) {
        self.parked.retain(|parked| parked.client != client);
    }

    /// Returns how many requests wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.parked.len()
    }

    /// Returns whether none does.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::turn_server::Transport;

    fn question(user: &str) -> Arc<UserQuery> {
        Arc::new(UserQuery { user: user.to_owned(), realm: "r".to_owned() })
    }

    fn client(port: u16) -> FiveTuple {
        let server = "192.0.2.1:3478".parse().unwrap();
        FiveTuple { client: ([198, 51, 100, 1], port).into(), server, transport: Transport::Udp }
    }

    #[test]
    fn an_answer_counts_for_its_time_and_the_oldest_gives_way() {
        let second = Duration::from_secs(1);
        let cache = LookupCache::new(LookupCacheConfig { known: 9 * second, unknown: second, entries: 2 });
        let start = now().mono;
        let known = LookupResult::Known { keys: UserKeys::default(), expires_unix: None };
        cache.put(start, question("alice"), known);
        cache.put(start, question("bob"), LookupResult::Unknown);
        assert_eq!(cache.get(start + 8 * second, &question("alice")), Some(known));
        assert_eq!(cache.get(start + 9 * second, &question("alice")), None);
        assert_eq!(cache.get(start, &question("bob")), Some(LookupResult::Unknown));
        assert_eq!(cache.get(start + second, &question("bob")), None);
        cache.put(start, question("carol"), known);
        cache.put(start, question("dave"), known);
        assert_eq!(cache.get(start, &question("alice")), None, "the oldest gave way");
        for round in 0..100 {
            cache.put(start, question(&format!("{round}")), known);
        }
        assert!(cache.lock()[KNOWN].by_question.len() <= 2);
    }

    #[test]
    fn names_that_nobody_has_crowd_out_none_that_somebody_has() {
        let second = Duration::from_secs(1);
        let cache = LookupCache::new(LookupCacheConfig { known: 9 * second, unknown: second, entries: 4 });
        let start = now().mono;
        let known = LookupResult::Known { keys: UserKeys::default(), expires_unix: None };
        cache.put(start, question("alice"), known);
        for round in 0..100 {
            cache.put(start, question(&format!("{round}")), LookupResult::Unknown);
        }
        assert_eq!(cache.get(start, &question("alice")), Some(known));
        assert!(cache.is_known(&question("alice")) && !cache.is_known(&question("99")));
        assert_eq!(cache.get(start + 9 * second, &question("alice")), None);
        assert!(cache.is_known(&question("alice")), "remembered for the reserve");
        cache.put(start, question("alice"), LookupResult::Unknown);
        assert_eq!(cache.get(start, &question("alice")), Some(LookupResult::Unknown));
        assert!(!cache.is_known(&question("alice")));
    }

    /// A client in network 198.51.`network`.0/24.
    fn client_in(network: u8, port: u16) -> FiveTuple {
        FiveTuple { client: ([198, 51, network, 1], port).into(), ..client(port) }
    }

    #[test]
    fn parked_requests_are_short_and_asked_for_once() {
        let mut pending_lookups = PendingLookups::default();
        let mut park =
            |user, port, bytes: &[u8]| pending_lookups.insert(&question(user), client(port), false, bytes);
        assert_eq!(park("alice", 1, b"one"), LookupAction::Start);
        assert_eq!(park("alice", 1, b"one"), LookupAction::Wait, "a retransmission");
        assert_eq!(park("alice", 2, b"two"), LookupAction::Wait, "already asked");
        assert_eq!(park("bob", 3, &[0; MAX_PENDING_LEN + 1]), LookupAction::Drop, "too long");
        assert_eq!(park("carol", 4, b"gone"), LookupAction::Start);
        pending_lookups.forget(client(4));
        assert_eq!(pending_lookups.take(&question("alice")).len(), 2);
        assert!(pending_lookups.is_empty());
    }

    #[test]
    fn a_network_has_its_share_and_names_that_were_known_a_reserve() {
        let mut pending_lookups = PendingLookups::default();
        let mut park = |network, port, is_known| {
            let question = question(&format!("{network} {port}"));
            pending_lookups.insert(&question, client_in(network, port), is_known, b"request")
                == LookupAction::Start
        };
        let mut parked = |network, is_known| (0..1000).filter(|port| park(network, *port, is_known)).count();
        assert_eq!(parked(0, false), MAX_PENDING_PER_NETWORK);
        assert_eq!(parked(1, false), MAX_PENDING_PER_NETWORK, "another network");
        let others: usize = (2..100).map(|network| parked(network, false)).sum();
        assert_eq!(others, MAX_PENDING_UNKNOWN - 2 * MAX_PENDING_PER_NETWORK);
        assert_eq!(parked(200, true), MAX_PENDING - MAX_PENDING_UNKNOWN, "the reserve");
        assert_eq!(pending_lookups.len(), MAX_PENDING);
    }
}
