//! What the client does with responses ([RFC 8656 sections 7.3, 8.3, 10.3, 12.3](https://www.rfc-editor.org/rfc/rfc8656#section-7.3)).

use super::authentication::{Challenge, ChallengeError};
use super::config::AddressFamilies;
use super::error::{TurnError, TurnRequest};
use super::machine::{Allocated, Received, TurnClient, TurnEvent};
use super::transaction::Transaction;
use crate::stun::{Attributes, Class, Message, attr};
use std::time::{Duration, Instant};

/// Consecutive 438 responses to one request before the client gives up.
const MAX_STALE_NONCES: u8 = 3;
/// The lifetime of an allocation if the response has none (RFC 8656 section 3.2).
const DEFAULT_LIFETIME: u32 = 600;
/// After a 500 response to a Refresh.
const SERVER_ERROR_RETRY: Duration = Duration::from_secs(5);

impl TurnClient {
    pub(super) fn handle_response(&mut self, now: Instant, message: &Message<'_>) -> Received {
        let found = self.in_flight.iter().position(|pending| pending.id == message.transaction());
        let Some(index) = found else { return Received::Unrelated };
        let transaction = &self.in_flight[index];
        // RFC 8489 section 9.2.5: what is not authentic is ignored, and the request goes on.
        let attributes = match &self.challenge {
            Some(challenge) if transaction.is_signed && must_be_authentic(message) => {
                message.verify(challenge.key())
            }
            _ => Some(message.unverified()),
        };
        let Some(attributes) = attributes else { return Received::Unrelated };
        let transaction = self.in_flight.remove(index);
        match message.class() {
            Class::Success => self.on_success(now, transaction.request, &attributes),
            _ => self.on_error(now, &transaction, &attributes),
        }
        Received::Control
    }

    fn on_success(&mut self, now: Instant, request: TurnRequest, attributes: &Attributes<'_>) {
        match request {
            TurnRequest::Allocate => self.on_allocated(now, attributes),
            TurnRequest::Refresh => self.on_refreshed(now, attributes),
            TurnRequest::CreatePermission(peer) => {
                let is_first = !self.peers.is_permitted(peer);
                self.peers.on_installed(now, request);
                if is_first && self.peers.is_permitted(peer) {
                    self.events.push_back(TurnEvent::PermissionInstalled(peer));
                }
            }
            TurnRequest::ChannelBind(peer) => {
                let is_first = self.peers.bound_channel(peer).is_none();
                self.peers.on_installed(now, request);
                if is_first && self.peers.bound_channel(peer).is_some() {
                    self.events.push_back(TurnEvent::ChannelBound(peer));
                }
            }
            TurnRequest::Release => {
                self.allocated = None;
                self.events.push_back(TurnEvent::Released);
            }
        }
    }

    fn on_allocated(&mut self, now: Instant, attributes: &Attributes<'_>) {
        let relayed: Vec<_> = attributes.xor_addresses(attr::XOR_RELAYED_ADDRESS).flatten().take(2).collect();
        let Some(first) = relayed.first().copied() else {
            let request = TurnRequest::Allocate;
            return self.fail(TurnError::Malformed { request, missing: "XOR-RELAYED-ADDRESS" });
        };
        let mapped = attributes.xor_address(attr::XOR_MAPPED_ADDRESS).ok().flatten();
        let lifetime = lifetime(attributes);
        self.allocated = Some(Allocated {
            relayed,
            mapped,
            ticket: attributes.get(attr::MOBILITY_TICKET).map(<[u8]>::to_vec),
            expires_at: now + lifetime,
            refresh_at: Some(now + lifetime / 2),
            is_migrating: false,
        });
        if std::mem::take(&mut self.release_next) {
            return self.release(now);
        }
        self.events.push_back(TurnEvent::Allocated { relayed: first, mapped });
        for request in self.peers.all() {
            self.request(now, request);
        }
    }

    fn on_refreshed(&mut self, now: Instant, attributes: &Attributes<'_>) {
        let Some(allocated) = &mut self.allocated else { return };
        let lifetime = lifetime(attributes);
        allocated.expires_at = now + lifetime;
        allocated.refresh_at = Some(now + lifetime / 2);
        if let Some(ticket) = attributes.get(attr::MOBILITY_TICKET) {
            allocated.ticket = Some(ticket.to_vec());
        }
        if std::mem::take(&mut allocated.is_migrating) {
            allocated.mapped = attributes.xor_address(attr::XOR_MAPPED_ADDRESS).ok().flatten();
            self.events.push_back(TurnEvent::Migrated { mapped: allocated.mapped });
            // What was in flight at the old address may not have arrived.
            for request in self.peers.all() {
                self.request(now, request);
            }
        }
    }

    fn on_error(&mut self, now: Instant, transaction: &Transaction, attributes: &Attributes<'_>) {
        let request = transaction.request;
        let code = attributes.error_code().unwrap_or(0);
        let is_stale = code == 438;
        if code == 401 && !transaction.is_signed || is_stale && transaction.stale_nonces < MAX_STALE_NONCES {
            return self.on_challenged(now, transaction, attributes, is_stale);
        }
        if request == TurnRequest::Allocate && code == 440 && self.config.families == AddressFamilies::Both {
            // The server has no IPv4, and does not leave out one of two families.
            self.config.families = AddressFamilies::V6;
            return self.request(now, request);
        }
        let error = refusal(request, code, attributes);
        match request {
            // 437: there is no allocation, so there can be no permission.
            TurnRequest::CreatePermission(_) | TurnRequest::ChannelBind(_) if code != 437 => {
                self.peers.on_refused(request);
                self.events.push_back(TurnEvent::PeerFailed(error));
            }
            TurnRequest::Refresh if code == 500 => match &mut self.allocated {
                Some(allocated) if now + SERVER_ERROR_RETRY < allocated.expires_at => {
                    allocated.refresh_at = Some(now + SERVER_ERROR_RETRY);
                }
                _ => self.fail(error),
            },
            _ => self.fail(error),
        }
    }

    fn on_challenged(
        &mut self,
        now: Instant,
        transaction: &Transaction,
        attributes: &Attributes<'_>,
        is_stale: bool,
    ) {
        let request = transaction.request;
        match Challenge::read(attributes, &self.config.credentials, self.challenge.as_ref()) {
            Ok(challenge) => {
                self.challenge = Some(challenge);
                self.send(now, request, transaction.stale_nonces + u8::from(is_stale));
            }
            Err(error) => {
                let missing = match error {
                    ChallengeError::Missing => "REALM or NONCE",
                    ChallengeError::BidDown => "PASSWORD-ALGORITHMS, which its nonce promises",
                    ChallengeError::NoAlgorithm => "a password algorithm that is known",
                };
                self.fail(TurnError::Malformed { request, missing });
            }
        }
    }
}

/// A challenge is not signed, and neither are the errors of many servers.
fn must_be_authentic(message: &Message<'_>) -> bool {
    let is_challenge = matches!(message.unverified().error_code(), Some(401 | 438));
    message.class() == Class::Success || message.has_integrity() && !is_challenge
}

/// At least 2 s, so that half of it is not zero.
fn lifetime(attributes: &Attributes<'_>) -> Duration {
    Duration::from_secs(attributes.u32(attr::LIFETIME).unwrap_or(DEFAULT_LIFETIME).max(2).into())
}

fn refusal(request: TurnRequest, code: u16, attributes: &Attributes<'_>) -> TurnError {
    if code == 300 {
        return TurnError::Redirected { to: attributes.plain_address(attr::ALTERNATE_SERVER).ok().flatten() };
    }
    let phrase = attributes.get(attr::ERROR_CODE).and_then(|value| value.get(4..));
    let reason = String::from_utf8_lossy(phrase.unwrap_or_default());
    // The text is printed on a terminal: no control characters.
    let reason = reason.chars().filter(|c| !c.is_control()).take(100).collect();
    TurnError::Refused { request, code, reason }
}
