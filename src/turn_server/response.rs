//! Responses: error codes, and the attributes that every response has.

use super::alternate_servers::AlternateServer;
use super::auth::{AuthError, Challenge};
use crate::stun::{Builder, Class, Key, Message, Method, TransactionId, attr};

/// The error codes of authenticated requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StunErrorCode {
    BadRequest,
    Forbidden,
    MobilityForbidden,
    AllocationMismatch,
    UnsupportedFamily,
    WrongCredentials,
    UnsupportedTransport,
    PeerFamilyMismatch,
    ConnectionExists,
    ConnectionFailed,
    QuotaReached,
    InsufficientCapacity,
}

impl StunErrorCode {
    /// Codes and reasons of [RFC 8656 section 18.11](https://www.rfc-editor.org/rfc/rfc8656#section-18.11).
    fn code(self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "Bad Request"),
            Self::Forbidden => (403, "Forbidden"),
            Self::MobilityForbidden => (405, "Mobility Forbidden"),
            Self::AllocationMismatch => (437, "Allocation Mismatch"),
            Self::UnsupportedFamily => (440, "Address Family not Supported"),
            Self::WrongCredentials => (441, "Wrong Credentials"),
            Self::UnsupportedTransport => (442, "Unsupported Transport Protocol"),
            Self::PeerFamilyMismatch => (443, "Peer Address Family Mismatch"),
            Self::ConnectionExists => (446, "Connection Already Exists"),
            Self::ConnectionFailed => (447, "Connection Timeout or Failure"),
            Self::QuotaReached => (486, "Allocation Quota Reached"),
            Self::InsufficientCapacity => (508, "Insufficient Capacity"),
        }
    }
}

impl StunErrorCode {
    /// Returns class and number as the attributes encode the code.
    pub(super) fn class_and_number(self) -> [u8; 2] {
        let (code, _) = self.code();
        [(code / 100) as u8, (code % 100) as u8]
    }
}

/// Makes the response to one request.
#[derive(Debug, Clone)]
pub(super) struct Responder {
    method: Method,
    transaction: TransactionId,
    fingerprint: bool,
    key: Option<Key>,
}

impl Responder {
    /// Takes from the request what its response repeats.
    pub(super) fn to(request: &Message<'_>) -> Self {
        Self {
            method: request.method(),
            transaction: request.transaction(),
            fingerprint: request.has_fingerprint(),
            key: None,
        }
    }

    /// Signs the response with `key`.
    pub(super) fn signed(self, key: Key) -> Self {
        Self { key: Some(key), ..self }
    }

    pub(super) fn transaction(&self) -> TransactionId {
        self.transaction
    }

    pub(super) fn success(&self, fill: impl FnOnce(Builder) -> Builder) -> Vec<u8> {
        self.finish(fill(Builder::new(Class::Success, self.method, self.transaction)))
    }

    pub(super) fn error(&self, error_code: StunErrorCode) -> Vec<u8> {
        let (code, reason) = error_code.code();
        self.finish(self.begin_error(code, reason))
    }

    pub(super) fn unknown_attributes(&self, kinds: &[u16]) -> Vec<u8> {
        self.finish(self.begin_error(420, "Unknown Attribute").unknown_attributes(kinds))
    }

    /// Makes the response to a request whose credentials were not accepted. A challenge has no reason phrase: the source address may be
    /// forged, and the response must stay short.
    pub(super) fn auth_error(&self, error: &AuthError, challenge: &Challenge<'_>) -> Vec<u8> {
        let challenged = |code| {
            let builder = self
                .begin_error(code, "")
                .attribute(attr::REALM, challenge.realm.as_bytes())
                .attribute(attr::NONCE, challenge.nonce.as_bytes())
                .password_algorithms(challenge.algorithms);
            match challenge.third_party {
                Some(name) => builder.attribute(attr::THIRD_PARTY_AUTHORIZATION, name.as_bytes()),
                None => builder,
            }
        };
        self.finish(match error {
            AuthError::Malformed => self.begin_error(400, "Bad Request"),
            AuthError::Unauthorized | AuthError::Lookup(_) => challenged(401),
            AuthError::StaleNonce => challenged(438),
        })
    }

    /// Redirects an authenticated client to another server
    /// ([RFC 8489 section 10](https://www.rfc-editor.org/rfc/rfc8489#section-10)).
    pub(super) fn try_alternate(&self, alternate: &AlternateServer) -> Vec<u8> {
        let builder = self.begin_error(300, "Try Alternate");
        let builder = builder.plain_address(attr::ALTERNATE_SERVER, alternate.server);
        self.finish(match &alternate.domain {
            Some(domain) => builder.attribute(attr::ALTERNATE_DOMAIN, domain.as_bytes()),
            None => builder,
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
