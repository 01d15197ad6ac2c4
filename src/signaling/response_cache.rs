//! Cached responses, so that a retransmission gets the same one and takes effect once (S0-A14).

use super::client_addr::ClientAddr;
use super::wire::MessageType;
use crate::limits::Limit;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names one request: who asked what, under which mid, about whom.
pub(super) type RequestId = (ClientAddr, MessageType, i64, u64);

/// What an entry costs besides its text, roughly.
const ENTRY: usize = 128;

/// Responses by request; the oldest are dropped at the end of their lifetime or at the limit.
#[derive(Debug)]
pub(super) struct ResponseCache {
    lifetime: Duration,
    cap: usize,
    bytes: usize,
    texts: HashMap<RequestId, Arc<str>>,
    oldest: VecDeque<(Instant, RequestId)>,
}

impl ResponseCache {
    pub(super) fn new(lifetime: Duration, cap: usize) -> Self {
        Self { lifetime, cap, bytes: 0, texts: HashMap::new(), oldest: VecDeque::new() }
    }

    pub(super) fn get(&mut self, asked: RequestId, now: Instant) -> Option<Arc<str>> {
        self.forget(|at, _| at <= now);
        self.texts.get(&asked).cloned()
    }

    /// Keeps the first answer to a request.
    pub(super) fn keep(&mut self, asked: RequestId, text: &str, now: Instant) {
        if self.texts.contains_key(&asked) {
            return;
        }
        self.bytes += text.len() + ENTRY;
        self.texts.insert(asked, text.into());
        self.oldest.push_back((now + self.lifetime, asked));
        let cap = self.cap;
        self.forget(|at, _| at <= now);
        if self.bytes > cap {
            Limit::SignalingAnswerBytes.reached(cap);
            self.forget(|_, bytes| bytes > cap);
        }
    }

    fn forget(&mut self, over: impl Fn(Instant, usize) -> bool) {
        while self.oldest.front().is_some_and(|(at, _)| over(*at, self.bytes)) {
            if let Some(text) = self.oldest.pop_front().and_then(|(_, asked)| self.texts.remove(&asked)) {
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
        let (mut answers, start) = (ResponseCache::new(Duration::from_secs(30), 10_000), now().mono);
        let asked = (ClientAddr::WebSocket(ConnId(1)), MessageType::Register, 7, 0);
        answers.keep(asked, "one", start);
        answers.keep(asked, "two", start);
        assert_eq!(answers.get(asked, start + Duration::from_secs(29)).as_deref(), Some("one"));
        assert_eq!(answers.get((ClientAddr::WebSocket(ConnId(2)), MessageType::Register, 7, 0), start), None);
        assert_eq!(answers.get(asked, start + Duration::from_secs(30)), None);
        assert_eq!(answers.bytes(), 0);
    }

    #[test]
    fn the_oldest_responses_are_evicted_at_the_limit() {
        let (mut answers, start) = (ResponseCache::new(Duration::from_secs(30), 1000), now().mono);
        for mid in 0..100 {
            answers.keep((ClientAddr::WebSocket(ConnId(1)), MessageType::Register, mid, 0), "text", start);
            assert!(answers.bytes() <= 1000);
        }
        assert!(
            answers.get((ClientAddr::WebSocket(ConnId(1)), MessageType::Register, 99, 0), start).is_some()
        );
        assert!(
            answers.get((ClientAddr::WebSocket(ConnId(1)), MessageType::Register, 0, 0), start).is_none()
        );
    }
}
