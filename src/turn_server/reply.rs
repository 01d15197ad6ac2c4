//! Answers to requests: which error has which code, and what every answer carries.

use super::auth::Refusal;
use crate::stun::{Builder, Class, Key, Message, Method, TransactionId, attr};

/// Why an authenticated request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    BadRequest,
    Forbidden,
    AllocationMismatch,
    UnsupportedFamily,
    WrongCredentials,
    UnsupportedTransport,
    PeerFamilyMismatch,
    QuotaReached,
    InsufficientCapacity,
}

impl Fault {
    /// Codes and reasons of [RFC 8656 section 18.11](https://www.rfc-editor.org/rfc/rfc8656#section-18.11).
    fn code(self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "Bad Request"),
            Self::Forbidden => (403, "Forbidden"),
            Self::AllocationMismatch => (437, "Allocation Mismatch"),
            Self::UnsupportedFamily => (440, "Address Family not Supported"),
            Self::WrongCredentials => (441, "Wrong Credentials"),
            Self::UnsupportedTransport => (442, "Unsupported Transport Protocol"),
            Self::PeerFamilyMismatch => (443, "Peer Address Family Mismatch"),
            Self::QuotaReached => (486, "Allocation Quota Reached"),
            Self::InsufficientCapacity => (508, "Insufficient Capacity"),
        }
    }
}

impl Fault {
    /// Returns the code as error attributes carry it: hundreds, and the rest.
    pub(super) fn class_and_number(self) -> [u8; 2] {
        let (code, _) = self.code();
        [(code / 100) as u8, (code % 100) as u8]
    }
}

/// Makes the answer to one request.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    method: Method,
    transaction: TransactionId,
    fingerprint: bool,
    key: Option<Key>,
}

impl Reply {
    /// Takes from the request what its answer repeats.
    pub(super) fn to(request: &Message<'_>) -> Self {
        Self {
            method: request.method(),
            transaction: request.transaction(),
            fingerprint: request.has_fingerprint(),
            key: None,
        }
    }

    /// Signs the answer with `key`.
    pub(super) fn signed(self, key: Key) -> Self {
        Self { key: Some(key), ..self }
    }

    pub(super) fn transaction(&self) -> TransactionId {
        self.transaction
    }

    pub(super) fn success(&self, fill: impl FnOnce(Builder) -> Builder) -> Vec<u8> {
        self.finish(fill(Builder::new(Class::Success, self.method, self.transaction)))
    }

    pub(super) fn error(&self, fault: Fault) -> Vec<u8> {
        let (code, reason) = fault.code();
        self.finish(self.begin_error(code, reason))
    }

    pub(super) fn unknown_attributes(&self, kinds: &[u16]) -> Vec<u8> {
        self.finish(self.begin_error(420, "Unknown Attribute").unknown_attributes(kinds))
    }

    /// Answers a request whose credentials were not accepted.
    pub(super) fn refusal(&self, refusal: Refusal, realm: &str, nonce: &str) -> Vec<u8> {
        let challenge = |builder: Builder| {
            builder.attribute(attr::REALM, realm.as_bytes()).attribute(attr::NONCE, nonce.as_bytes())
        };
        self.finish(match refusal {
            Refusal::Malformed => self.begin_error(400, "Bad Request"),
            Refusal::Unauthorized => challenge(self.begin_error(401, "Unauthorized")),
            Refusal::StaleNonce => challenge(self.begin_error(438, "Stale Nonce")),
        })
    }

    fn begin_error(&self, code: u16, reason: &str) -> Builder {
        Builder::new(Class::Error, self.method, self.transaction).error(code, reason)
    }

    fn finish(&self, builder: Builder) -> Vec<u8> {
        let builder = match &self.key {
            Some(key) => builder.integrity(key),
            None => builder,
        };
        if self.fingerprint { builder.fingerprint().finish() } else { builder.finish() }
    }
}
