//! Checks of the peer ([RFC 8445 section 7.3](https://www.rfc-editor.org/rfc/rfc8445#section-7.3)).

use super::binding::{Check, Nomination, ROLE_CONFLICT, error, success, target_ufrag, unknown_attributes};
use super::machine::{IceAgent, IceEvent, IceRole};
use super::pair::PairKey;
use crate::stun::Message;
use std::time::Instant;

/// The error code of an unknown comprehension-required attribute.
const UNKNOWN_ATTRIBUTE: u16 = 420;

impl IceAgent {
    /// Answers a check and learns from it; `None` if it is not for this agent, or not authentic. Such a request gets no response: a forged
    /// source address would receive it.
    pub(super) fn handle_request(&mut self, now: Instant, key: PairKey, message: &Message<'_>) -> Option<()> {
        let ufrag = target_ufrag(message)?;
        let is_current = self.current.local.ufrag() == ufrag;
        let previous = self.previous.as_ref().filter(|previous| previous.local.ufrag() == ufrag);
        let local = if is_current { &self.current.local } else { &previous?.local };
        let response_key = local.key();
        let attributes = message.verify(&response_key)?;
        let unknown = unknown_attributes(&attributes);
        if !unknown.is_empty() {
            let bytes = error(message.transaction(), UNKNOWN_ATTRIBUTE, &unknown, &response_key);
            return self.respond(now, key, bytes);
        }
        let check = Check::read(&attributes)?;
        if !self.settle_roles(&check) {
            let bytes = error(message.transaction(), ROLE_CONFLICT, &[], &response_key);
            return self.respond(now, key, bytes);
        }
        if is_current {
            self.learn(now, key, &check);
            self.on_accepted(key);
        } else if let Some(pair) = self.previous.as_mut().and_then(|previous| previous.pair_mut(key)) {
            // The peer does not know of the restart, and may have been away.
            if !pair.is_usable() || pair.is_suspect {
                pair.was_triggered = true;
                pair.check_now(now);
            }
            if !self.config.renomination {
                pair.on_alive();
            }
        }
        self.respond(now, key, success(message.transaction(), key.remote, &response_key))
    }

    /// Queues a response, unless the address has had too many without ever answering: a peer can forge where its checks come from.
    fn respond(&mut self, now: Instant, key: PairKey, bytes: Vec<u8>) -> Option<()> {
        if self.budget.take_response(now, key.remote.ip()) {
            self.push_transmit(key, bytes);
        } else {
            self.counters.dropped_responses += 1;
        }
        Some(())
    }

    /// RFC 8445 section 7.3.1.1; `false` if the peer must change its role.
    fn settle_roles(&mut self, check: &Check) -> bool {
        if check.role != self.role {
            return true;
        }
        let wins = self.tie_breaker >= check.tie_breaker;
        // Of two controlling agents the one with the larger tie-breaker stays; of two controlled ones it changes.
        if wins == (self.role == IceRole::Controlling) {
            return false;
        }
        self.switch_role();
        true
    }

    pub(super) fn switch_role(&mut self) {
        self.role = self.role.other();
        self.current.nominated = None;
        for pair in self.current.pairs.iter_mut() {
            pair.is_to_be_nominated = false;
        }
        self.push_event(IceEvent::Role(self.role));
    }

    /// RFC 8445 sections 7.3.1.3 to 7.3.1.5: a peer-reflexive candidate, a triggered check, a nomination.
    fn learn(&mut self, now: Instant, key: PairKey, check: &Check) {
        let is_browser = !self.config.renomination;
        let pair = self.current.pair_of_check(self.role, &self.locals, key, check.priority);
        let Some(pair) = pair else { return };
        pair.is_checked_by_peer = true;
        if !pair.is_usable() || pair.is_suspect {
            pair.was_triggered = true;
            pair.check_now(now);
        }
        if pair.is_usable() && is_browser {
            pair.on_alive();
        }
        let Some(nomination) = check.nomination.filter(|_| self.role == IceRole::Controlled) else { return };
        let number = match nomination {
            Nomination::Plain => None,
            Nomination::Numbered(number) => Some(number),
        };
        let known = self.current.nominated.and_then(|(_, known)| known);
        // A check that was overtaken by a later nomination.
        if number.is_none() || number >= known {
            self.current.nominated = Some((key, number));
        }
    }
}
