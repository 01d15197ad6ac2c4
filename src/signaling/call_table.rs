//! The table of calls, indexed by token, mid, tag and deadline, with its limits.

use super::call::{Call, CallOutcome};
use super::config::Limits;
use super::wire::{ReportedPath, Tag, Token};
use crate::clock::Deadlines;
use crate::limits::{Limit, NetworkPrefix, Quota};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// The share of the memory for outstanding requests that one network may use: one part in this many.
const TEXT_SHARES: usize = 8;

/// The number of a call; random, so that its `mid`s cannot be predicted.
pub(super) type CallId = u32;

/// The number of random bits of a `mid`, which follow the call number; together below 2^53, so that browsers can echo it (S0-A16).
const MID_BITS: u32 = 20;

/// Calls that have ended, by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallOutcomes {
    /// The callee did not answer.
    pub unanswered: u64,
    /// The callee has refused.
    pub refused: u64,
    /// The callee has answered, and no side has reported a path; plain clients never do.
    pub answered: u64,
    /// From peer to peer.
    pub direct: u64,
    /// Through the relay.
    pub relayed: u64,
    /// No path was found.
    pub failed: u64,
}

impl CallOutcomes {
    fn count(&mut self, outcome: CallOutcome) {
        *match outcome {
            CallOutcome::Unanswered => &mut self.unanswered,
            CallOutcome::Refused => &mut self.refused,
            CallOutcome::Answered => &mut self.answered,
            CallOutcome::Path(ReportedPath::Direct) => &mut self.direct,
            CallOutcome::Path(ReportedPath::Relay) => &mut self.relayed,
            CallOutcome::Path(ReportedPath::Failed) => &mut self.failed,
        } += 1;
    }
}

/// All calls.
#[derive(Debug)]
pub(super) struct CallTable {
    /// The memory for outstanding requests.
    pub(super) texts: Arc<Quota<NetworkPrefix>>,
    cap: usize,
    cap_per_tag: usize,
    calls: HashMap<CallId, Call>,
    pub(super) outcomes: CallOutcomes,
    by_token: HashMap<Token, CallId>,
    by_tag: HashMap<Tag, Vec<CallId>>,
    timers: Deadlines<CallId>,
}

impl CallTable {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            texts: Quota::new(limits.call_bytes, limits.call_bytes.div_ceil(TEXT_SHARES)),
            cap: limits.calls,
            cap_per_tag: limits.calls_per_tag,
            calls: HashMap::new(),
            outcomes: CallOutcomes::default(),
            by_token: HashMap::new(),
            by_tag: HashMap::new(),
            timers: Deadlines::default(),
        }
    }

    /// Builds a `mid` of call `id`.
    pub(super) fn mid(id: CallId, random: u32) -> i64 {
        (i64::from(id) << MID_BITS) | i64::from(random >> (32 - MID_BITS))
    }

    /// Returns the call number in a `mid`.
    pub(super) fn of_mid(mid: i64) -> Option<CallId> {
        CallId::try_from(mid >> MID_BITS).ok()
    }

    /// Returns the call that a `mid` belongs to, if it exists.
    pub(super) fn by_mid(&self, mid: i64) -> Option<CallId> {
        Self::of_mid(mid).filter(|id| self.calls.contains_key(id))
    }

    pub(super) fn by_token(&self, token: &Token) -> Option<CallId> {
        self.by_token.get(token).copied()
    }

    /// Returns the calls of a tag.
    pub(super) fn by_tag(&self, tag: &Tag) -> Vec<CallId> {
        self.by_tag.get(tag).cloned().unwrap_or_default()
    }

    /// Returns whether the limits permit another call between these tags.
    pub(super) fn has_room(&self, caller: &Tag, callee: &Tag) -> bool {
        let count = |tag| self.by_tag.get(tag).map_or(0, Vec::len);
        let (limit, value) = if count(caller).max(count(callee)) >= self.cap_per_tag {
            (Limit::SignalingCallsPerTag, self.cap_per_tag)
        } else if self.calls.len() >= self.cap {
            (Limit::SignalingCalls, self.cap)
        } else {
            return true;
        };
        limit.reached(value);
        false
    }

    pub(super) fn is_free(&self, id: CallId) -> bool {
        !self.calls.contains_key(&id)
    }

    pub(super) fn insert(&mut self, id: CallId, call: Call) {
        self.by_token.insert(call.token.clone(), id);
        for tag in [&call.caller.tag, &call.callee.tag] {
            self.by_tag.entry(tag.clone()).or_default().push(id);
        }
        self.calls.insert(id, call);
        self.update(id);
    }

    pub(super) fn get(&self, id: CallId) -> Option<&Call> {
        self.calls.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: CallId) -> Option<&mut Call> {
        self.calls.get_mut(&id)
    }

    /// Updates the timer of a changed call, or removes the call if it has ended.
    pub(super) fn update(&mut self, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        if let Some(due) = call.due() {
            return self.timers.set(id, due);
        }
        self.timers.clear(id);
        if let Some(call) = self.calls.remove(&id) {
            self.outcomes.count(call.outcome);
            self.by_token.remove(&call.token);
            for tag in [&call.caller.tag, &call.callee.tag] {
                if let Some(ids) = self.by_tag.get_mut(tag) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        self.by_tag.remove(tag);
                    }
                }
            }
        }
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<CallId> {
        self.timers.pop_due(now)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }
}
