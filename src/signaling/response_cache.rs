//! Cached responses, so that a retransmission gets the same one and takes effect once (S0-A14).

use super::client_addr::ClientAddr;
use super::wire::MessageType;
use crate::limits::Limit;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Identifies a request: client, type, `mid`, and a hash of the callee.
pub(super) type RequestKey = (ClientAddr, MessageType, i64, u64);

/// Approximate size of an entry besides its text.
const ENTRY: usize = 128;

/// Responses by request; the oldest are dropped at the end of their lifetime or at the limit.
#[derive(Debug)]
pub(super) struct ResponseCache {
    lifetime: Duration,
    cap: usize,
    bytes: usize,
    texts: HashMap<RequestKey, Arc<str>>,
    oldest: VecDeque<(Instant, RequestKey)>,
}

impl ResponseCache {
    pub(super) fn new(lifetime: Duration, cap: usize) -> Self {
        Self { lifetime, cap, bytes: 0, texts: HashMap::new(), oldest: VecDeque::new() }
    }

    pub(super) fn get(&mut self, id: RequestKey, now: Instant) -> Option<Arc<str>> {
        self.evict_while(|at, _| at <= now);
        self.texts.get(&id).cloned()
    }

    /// Caches the first response to a request.
    pub(super) fn insert(&mut self, id: RequestKey, text: &str, now: Instant) {
        if self.texts.contains_key(&id) {
            return;
        }
        self.bytes += text.len() + ENTRY;
        self.texts.insert(id, text.into());
        self.oldest.push_back((now + self.lifetime, id));
        let cap = self.cap;
        self.evict_while(|at, _| at <= now);
        if self.bytes > cap {
            Limit::SignalingAnswerBytes.reached(cap);
            self.evict_while(|_, bytes| bytes > cap);
        }
    }

    fn evict_while(&mut self, over: impl Fn(Instant, usize) -> bool) {
        while self.oldest.front().is_some_and(|(at, _)| over(*at, self.bytes)) {
            if let Some(text) = self.oldest.pop_front().and_then(|(_, id)| self.texts.remove(&id)) {
                self.bytes -= text.len() + ENTRY;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::signaling::client_addr::ConnId;

    #[test]
    fn the_first_response_is_cached_for_its_lifetime() {
        let (mut cache, start) = (ResponseCache::new(Duration::from_secs(30), 10_000), now().mono);
        let id = (ClientAddr::WebSocket(ConnId(1)), MessageType::Register, 7, 0);
        cache.insert(id, "one", start);
        cache.insert(id, "two", start);
        assert_eq!(cache.get(id, start + Duration::from_secs(29)).as_deref(), Some("one"));
        assert_eq!(cache.get((ClientAddr::WebSocket(ConnId(2)), MessageType::Register, 7, 0), start), None);
        assert_eq!(cache.get(id, start + Duration::from_secs(30)), None);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn the_oldest_responses_are_evicted_at_the_limit() {
        let (mut cache, start) = (ResponseCache::new(Duration::from_secs(30), 1000), now().mono);
        for mid in 0..100 {
            cache.insert((ClientAddr::WebSocket(ConnId(1)), MessageType::Register, mid, 0), "text", start);
            assert!(cache.bytes() <= 1000);
        }
        assert!(cache.get((ClientAddr::WebSocket(ConnId(1)), MessageType::Register, 99, 0), start).is_some());
        assert!(cache.get((ClientAddr::WebSocket(ConnId(1)), MessageType::Register, 0, 0), start).is_none());
    }
}
