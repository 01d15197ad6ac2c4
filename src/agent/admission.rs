//! Whom a listener admits: the secrets of its tickets and of its short code. Pure.
//!
//! A listener has the secret of its own ticket, those of tickets that were added, and those that the exchanges of its code have produced. An
//! offer states the *key id* of its secret, so that each call costs one MAC, whoever sends it; an offer without one means the listener's
//! own ticket, as older connectors do. A wrong key id only makes the MAC wrong.

use super::code::guesses::{CodeGuesses, CodeState};
use super::keys::Secret;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Maximum number of tickets of a listener.
pub(super) const MAX_TICKETS: usize = 256;

/// How long and how often a further ticket admits; by default without a limit, as long as its listener runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TicketLimits {
    lifetime: Option<Duration>,
    uses: Option<u32>,
}

impl TicketLimits {
    /// Returns the options of a ticket without limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits how long the ticket is valid. Then its connections end too.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// Limits how many connections the ticket admits. A connection that is resumed after a loss of its path counts once.
    #[must_use]
    pub fn uses(self, uses: u32) -> Self {
        Self { uses: Some(uses), ..self }
    }
}

/// All secrets of one listener.
#[derive(Debug)]
pub(super) struct Admission {
    own: Secret,
    tickets: HashMap<String, AdmittedTicket>,
    code: Option<CodeGuesses>,
}

#[derive(Debug)]
struct AdmittedTicket {
    secret: Secret,
    expires: Option<Instant>,
    uses: Option<u32>,
}

impl AdmittedTicket {
    fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

impl Admission {
    /// Returns the secrets of a listener that has only its own ticket.
    pub(super) fn new(own: Secret) -> Self {
        Self { own, tickets: HashMap::new(), code: None }
    }

    /// Adds a ticket; `false` if there are too many.
    pub(super) fn insert_ticket(&mut self, now: Instant, secret: Secret, limits: TicketLimits) -> bool {
        if self.tickets.len() + 1 >= MAX_TICKETS {
            return false;
        }
        // A lifetime beyond the clock is none.
        let expires = limits.lifetime.and_then(|lifetime| now.checked_add(lifetime));
        let ticket = AdmittedTicket { expires, uses: limits.uses, secret };
        self.tickets.insert(ticket.secret.key_id(), ticket);
        true
    }

    /// Removes a ticket that was added; returns whether it was there.
    pub(super) fn remove_ticket(&mut self, key_id: &str) -> bool {
        self.tickets.remove(key_id).is_some()
    }

    /// Sets the code; the one before is no longer valid.
    pub(super) fn set_code(&mut self, code: Option<CodeGuesses>) {
        self.code = code;
    }

    /// Returns the code.
    pub(super) fn code(&mut self) -> Option<&mut CodeGuesses> {
        self.code.as_mut()
    }

    /// Returns the secret with this key id, if it may begin a connection.
    pub(super) fn find(&self, now: Instant, key_id: Option<&str>) -> Option<Secret> {
        let Some(key_id) = key_id else { return Some(self.own.clone()) };
        if let Some(ticket) = self.tickets.get(key_id) {
            let is_valid = !ticket.is_expired(now) && ticket.uses != Some(0);
            return is_valid.then(|| ticket.secret.clone());
        }
        let own = Some(&self.own).filter(|own| own.key_id() == key_id);
        let of_code = || self.code.as_ref().and_then(|code| code.secret(now, key_id));
        own.or_else(of_code).cloned()
    }

    /// Records that a connection has begun with this secret.
    pub(super) fn admit(&mut self, secret: &Secret) {
        let key_id = secret.key_id();
        if let Some(uses) = self.tickets.get_mut(&key_id).and_then(|ticket| ticket.uses.as_mut()) {
            *uses = uses.saturating_sub(1);
        } else if let Some(code) = self.code.as_mut() {
            code.confirm(&key_id);
        }
    }

    /// Removes the tickets whose time is over; returns their key ids.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<String> {
        if let Some(code) = &mut self.code {
            code.expire(now);
        }
        let expired = self.tickets.extract_if(|_, ticket| ticket.is_expired(now));
        expired.map(|(key_id, _)| key_id).collect()
    }

    /// Removes the code if it can no longer be used; returns its state then.
    pub(super) fn take_ended_code(&mut self, now: Instant) -> Option<CodeState> {
        let state = self.code.as_ref()?.state(now);
        if state == CodeState::Valid {
            return None;
        }
        self.code = None;
        Some(state)
    }

    /// Returns when [`Admission::expire`] must be called.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let tickets = self.tickets.values().filter_map(|ticket| ticket.expires);
        tickets.chain(self.code.as_ref().map(CodeGuesses::next_due)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::keys::SECRET_LEN;
    use crate::net::time;

    fn secret(byte: u8) -> Secret {
        Secret([byte; SECRET_LEN])
    }

    fn admission() -> (Admission, Instant) {
        (Admission::new(secret(0)), time::now().mono)
    }

    fn is_admitted(admission: &Admission, now: Instant, byte: u8) -> bool {
        admission.find(now, Some(&secret(byte).key_id())) == Some(secret(byte))
    }

    #[test]
    fn an_offer_without_a_key_id_means_the_own_ticket() {
        let (mut admission, now) = admission();
        assert!(admission.insert_ticket(now, secret(1), TicketLimits::new()));
        assert_eq!(admission.find(now, None), Some(secret(0)));
        assert!(is_admitted(&admission, now, 0) && is_admitted(&admission, now, 1));
        assert_eq!(admission.find(now, Some("unknown")), None);
        assert!(admission.remove_ticket(&secret(1).key_id()) && !is_admitted(&admission, now, 1));
        assert!(!admission.remove_ticket(&secret(0).key_id()), "a listener keeps its own ticket");
    }

    #[test]
    fn a_ticket_ends_after_its_uses_and_its_lifetime() {
        let (mut admission, now) = admission();
        let lifetime = Duration::from_secs(10);
        admission.insert_ticket(now, secret(1), TicketLimits::new().uses(2));
        admission.insert_ticket(now, secret(2), TicketLimits::new().lifetime(lifetime));
        for _ in 0..2 {
            assert!(is_admitted(&admission, now, 1));
            admission.admit(&secret(1));
        }
        assert!(!is_admitted(&admission, now, 1));
        let end = now + lifetime;
        assert_eq!(admission.next_due(), Some(end));
        assert!(is_admitted(&admission, end - Duration::from_millis(1), 2));
        assert!(!is_admitted(&admission, end, 2));
        assert_eq!(admission.expire(end), [secret(2).key_id()]);
        assert_eq!(admission.next_due(), None);
    }

    #[test]
    fn a_lifetime_beyond_the_clock_is_no_limit() {
        let (mut admission, now) = admission();
        assert!(admission.insert_ticket(now, secret(1), TicketLimits::new().lifetime(Duration::MAX)));
        assert!(is_admitted(&admission, now, 1));
        assert_eq!(admission.next_due(), None);
    }

    #[test]
    fn the_number_of_tickets_is_limited() {
        let (mut admission, now) = admission();
        let numbered = |number: u16| {
            let mut bytes = [9; SECRET_LEN];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            Secret(bytes)
        };
        let added = (0..300).filter(|n| admission.insert_ticket(now, numbered(*n), TicketLimits::new()));
        assert_eq!(added.count(), MAX_TICKETS - 1);
    }
}
