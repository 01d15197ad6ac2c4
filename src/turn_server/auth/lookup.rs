//! User look-ups: their cached results, and the requests that wait for one.

use super::user_table::UserKeys;
use crate::limits::{Limit, NetworkPrefix};
use crate::turn_server::FiveTuple;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most requests of one worker that wait for a look-up.
pub(crate) const MAX_PENDING: usize = 512;
/// Most of them for users that no earlier look-up found.
pub(crate) const MAX_PENDING_UNKNOWN: usize = 384;
/// Most requests for such users from one network (IPv4 /24, IPv6 /48).
pub(crate) const MAX_PENDING_PER_NETWORK: usize = 32;
/// Longest request that waits.
pub(crate) const MAX_PENDING_LEN: usize = 2048;

/// A user to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserQuery {
    /// The user name.
    pub user: String,
    /// The realm of the request.
    pub realm: String,
}

/// The result of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupResult {
    /// The user exists.
    Known {
        /// The keys.
        keys: UserKeys,
        /// When the credentials expire (Unix seconds), if they do.
        expires_unix: Option<u64>,
    },
    /// The user does not exist.
    Unknown,
}

/// How long results are cached, and how many.
#[derive(Debug, Clone, Copy)]
pub struct LookupCacheConfig {
    /// How long a user that exists is cached.
    pub known: Duration,
    /// How long a user that does not exist is cached.
    pub unknown: Duration,
    /// Most results of either kind; the oldest is evicted.
    pub entries: usize,
}

/// The cached results, shared by all workers. Those of unknown users are stored separately, because anyone can cause any number of them.
#[derive(Debug)]
pub(super) struct LookupCache {
    limits: LookupCacheConfig,
    results: Mutex<[Results; 2]>,
}

/// The index of each kind of result.
const KNOWN: usize = 0;
const UNKNOWN: usize = 1;

#[derive(Debug, Default)]
struct Results {
    by_question: HashMap<Arc<UserQuery>, (LookupResult, Instant)>,
    /// By age; a result that was stored again is here twice and is evicted with the older entry.
    order: VecDeque<Arc<UserQuery>>,
}

impl Results {
    fn put(&mut self, query: Arc<UserQuery>, answer: (LookupResult, Instant), most: usize) {
        while self.order.len() >= most.max(1) {
            Limit::HookMaxCached.reached(most);
            let Some(oldest) = self.order.pop_front() else { break };
            self.by_question.remove(&oldest);
        }
        self.order.push_back(Arc::clone(&query));
        self.by_question.insert(query, answer);
    }
}

impl LookupCache {
    pub(super) fn new(limits: LookupCacheConfig) -> Self {
        Self { limits, results: Mutex::default() }
    }

    pub(super) fn get(&self, now: Instant, query: &UserQuery) -> Option<LookupResult> {
        let results = self.lock();
        let current = |results: &Results| {
            let known = results.by_question.get(query).filter(|(_, until)| now < *until);
            known.map(|(result, _)| *result)
        };
        results.iter().find_map(current)
    }

    /// Returns whether the last look-up found the user, however long ago.
    pub(super) fn is_known(&self, query: &UserQuery) -> bool {
        self.lock()[KNOWN].by_question.contains_key(query)
    }

    pub(super) fn put(&self, now: Instant, query: Arc<UserQuery>, result: LookupResult) {
        let (place, lifetime) = match result {
            LookupResult::Known { .. } => (KNOWN, self.limits.known),
            LookupResult::Unknown => (UNKNOWN, self.limits.unknown),
        };
        let mut results = self.lock();
        // An older result of the other kind is obsolete.
        results[1 - place].by_question.remove(&query);
        results[place].put(query, (result, now + lifetime), self.limits.entries);
    }

    fn lock(&self) -> MutexGuard<'_, [Results; 2]> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that wait for a user look-up: few, short, and only from addresses that have answered a challenge. A request that
/// exceeds the limits is dropped; its client retransmits it.
#[derive(Debug, Default)]
pub(crate) struct PendingLookups {
    pending: VecDeque<PendingLookup>,
}

#[derive(Debug)]
struct PendingLookup {
    query: Arc<UserQuery>,
    client: FiveTuple,
    /// Whether an earlier look-up found the user.
    is_known: bool,
    bytes: Vec<u8>,
}

/// What happens to a request whose user must be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupAction {
    /// It waits, and the look-up starts.
    Start,
    /// It waits for a look-up that has started.
    Wait,
    /// It is dropped: too many requests wait.
    Drop,
}

impl PendingLookups {
    /// Stores a request within the limits.
    #[must_use]
    pub(crate) fn insert(
        &mut self,
        query: &Arc<UserQuery>,
        client: FiveTuple,
        is_known: bool,
        bytes: &[u8],
    ) -> LookupAction {
        if self.pending.iter().any(|pending| pending.client == client && pending.bytes == bytes) {
            return LookupAction::Wait;
        }
        if bytes.len() > MAX_PENDING_LEN || !self.has_room(client, is_known) {
            return LookupAction::Drop;
        }
        let is_new = self.pending.iter().all(|pending| pending.query != *query);
        let (query, bytes) = (Arc::clone(query), bytes.to_vec());
        self.pending.push_back(PendingLookup { query, client, is_known, bytes });
        if is_new { LookupAction::Start } else { LookupAction::Wait }
    }

    fn has_room(&self, client: FiveTuple, is_known: bool) -> bool {
        let count =
            |of: &dyn Fn(&PendingLookup) -> bool| self.pending.iter().filter(|pending| of(pending)).count();
        let network = NetworkPrefix::site(client.client.ip());
        let of_network = |pending: &PendingLookup| NetworkPrefix::site(pending.client.client.ip()) == network;
        if self.pending.len() >= MAX_PENDING {
            Limit::ParkedRequests.reached(MAX_PENDING);
            return false;
        }
        if is_known {
            return true;
        }
        if count(&|pending| !pending.is_known) >= MAX_PENDING_UNKNOWN {
            Limit::ParkedRequests.reached(MAX_PENDING_UNKNOWN);
            return false;
        }
        let is_free = count(&|pending| !pending.is_known && of_network(pending)) < MAX_PENDING_PER_NETWORK;
        if !is_free {
            Limit::ParkedRequestsPerNetwork.reached(MAX_PENDING_PER_NETWORK);
        }
        is_free
    }

    /// Removes and returns the requests that waited for `query`, oldest first.
    pub(crate) fn take(&mut self, query: &UserQuery) -> Vec<(FiveTuple, Vec<u8>)> {
        let (ready, waiting) = self.pending.drain(..).partition(|pending| *pending.query == *query);
        self.pending = waiting;
        let ready: VecDeque<PendingLookup> = ready;
        ready.into_iter().map(|pending| (pending.client, pending.bytes)).collect()
    }

    /// Removes the requests of a client whose connection has closed.
    pub(crate) fn remove_client(&mut self, client: FiveTuple) {
        self.pending.retain(|pending| pending.client != client);
    }

    /// Returns the number of waiting requests.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether no request waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::turn_server::Transport;

    fn query(user: &str) -> Arc<UserQuery> {
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
        cache.put(start, query("alice"), known);
        cache.put(start, query("bob"), LookupResult::Unknown);
        assert_eq!(cache.get(start + 8 * second, &query("alice")), Some(known));
        assert_eq!(cache.get(start + 9 * second, &query("alice")), None);
        assert_eq!(cache.get(start, &query("bob")), Some(LookupResult::Unknown));
        assert_eq!(cache.get(start + second, &query("bob")), None);
        cache.put(start, query("carol"), known);
        cache.put(start, query("dave"), known);
        assert_eq!(cache.get(start, &query("alice")), None, "the oldest gave way");
        for round in 0..100 {
            cache.put(start, query(&format!("{round}")), known);
        }
        assert!(cache.lock()[KNOWN].by_question.len() <= 2);
    }

    #[test]
    fn names_that_nobody_has_crowd_out_none_that_somebody_has() {
        let second = Duration::from_secs(1);
        let cache = LookupCache::new(LookupCacheConfig { known: 9 * second, unknown: second, entries: 4 });
        let start = now().mono;
        let known = LookupResult::Known { keys: UserKeys::default(), expires_unix: None };
        cache.put(start, query("alice"), known);
        for round in 0..100 {
            cache.put(start, query(&format!("{round}")), LookupResult::Unknown);
        }
        assert_eq!(cache.get(start, &query("alice")), Some(known));
        assert!(cache.is_known(&query("alice")) && !cache.is_known(&query("99")));
        assert_eq!(cache.get(start + 9 * second, &query("alice")), None);
        assert!(cache.is_known(&query("alice")), "remembered for the reserve");
        cache.put(start, query("alice"), LookupResult::Unknown);
        assert_eq!(cache.get(start, &query("alice")), Some(LookupResult::Unknown));
        assert!(!cache.is_known(&query("alice")));
    }

    /// A client in network 198.51.`network`.0/24.
    fn client_in(network: u8, port: u16) -> FiveTuple {
        FiveTuple { client: ([198, 51, network, 1], port).into(), ..client(port) }
    }

    #[test]
    fn parked_requests_are_short_and_asked_for_once() {
        let mut pending_lookups = PendingLookups::default();
        let mut park =
            |user, port, bytes: &[u8]| pending_lookups.insert(&query(user), client(port), false, bytes);
        assert_eq!(park("alice", 1, b"one"), LookupAction::Start);
        assert_eq!(park("alice", 1, b"one"), LookupAction::Wait, "a retransmission");
        assert_eq!(park("alice", 2, b"two"), LookupAction::Wait, "already asked");
        assert_eq!(park("bob", 3, &[0; MAX_PENDING_LEN + 1]), LookupAction::Drop, "too long");
        assert_eq!(park("carol", 4, b"gone"), LookupAction::Start);
        pending_lookups.remove_client(client(4));
        assert_eq!(pending_lookups.take(&query("alice")).len(), 2);
        assert!(pending_lookups.is_empty());
    }

    #[test]
    fn a_network_has_its_share_and_names_that_were_known_a_reserve() {
        let mut pending_lookups = PendingLookups::default();
        let mut park = |network, port, is_known| {
            let query = query(&format!("{network} {port}"));
            pending_lookups.insert(&query, client_in(network, port), is_known, b"request")
                == LookupAction::Start
        };
        let mut pending = |network, is_known| (0..1000).filter(|port| park(network, *port, is_known)).count();
        assert_eq!(pending(0, false), MAX_PENDING_PER_NETWORK);
        assert_eq!(pending(1, false), MAX_PENDING_PER_NETWORK, "another network");
        let others: usize = (2..100).map(|network| pending(network, false)).sum();
        assert_eq!(others, MAX_PENDING_UNKNOWN - 2 * MAX_PENDING_PER_NETWORK);
        assert_eq!(pending(200, true), MAX_PENDING - MAX_PENDING_UNKNOWN, "the reserve");
        assert_eq!(pending_lookups.len(), MAX_PENDING);
    }
}
