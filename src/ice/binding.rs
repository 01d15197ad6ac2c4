//! The messages of a connectivity check ([RFC 8445 section 7](https://www.rfc-editor.org/rfc/rfc8445#section-7)).

use super::credentials::IceCredentials;
use super::machine::IceRole;
use crate::stun::{Attributes, Builder, Class, Key, Message, Method, TransactionId, attr};
use std::net::SocketAddr;

/// Attributes of ICE (RFC 8445 section 16.1); NOMINATION as in draft-thatcher-ice-renomination.
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const ICE_CONTROLLED: u16 = 0x8029;
const ICE_CONTROLLING: u16 = 0x802A;
const NOMINATION: u16 = 0xC001;
/// The comprehension-required attributes that a check may have.
const KNOWN: [u16; 3] = [attr::USERNAME, PRIORITY, USE_CANDIDATE];
/// The error code of a role conflict.
pub(super) const ROLE_CONFLICT: u16 = 487;

/// How a check nominates its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nomination {
    /// USE-CANDIDATE.
    Plain,
    /// USE-CANDIDATE with a number; the highest wins.
    Numbered(u32),
}

/// The content of a check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    pub(super) role: IceRole,
    pub(super) tie_breaker: u64,
    pub(super) priority: u32,
    pub(super) nomination: Option<Nomination>,
}

impl Check {
    /// Writes the request.
    pub(super) fn to_request(
        self,
        id: TransactionId,
        local: &IceCredentials,
        remote: &IceCredentials,
    ) -> Vec<u8> {
        let username = format!("{}:{}", remote.ufrag(), local.ufrag());
        let role = match self.role {
            IceRole::Controlling => ICE_CONTROLLING,
            IceRole::Controlled => ICE_CONTROLLED,
        };
        let mut message = Builder::new(Class::Request, Method::BINDING, id)
            .attribute(attr::USERNAME, username.as_bytes())
            .attribute(PRIORITY, &self.priority.to_be_bytes())
            .attribute(role, &self.tie_breaker.to_be_bytes());
        if let Some(nomination) = self.nomination {
            message = message.attribute(USE_CANDIDATE, &[]);
            if let Nomination::Numbered(number) = nomination {
                message = message.attribute(NOMINATION, &number.to_be_bytes());
            }
        }
        message.integrity(&remote.key()).fingerprint().finish()
    }

    /// Reads the attributes of a request whose integrity was verified; `None` if it is not one of ICE.
    pub(super) fn read(attributes: &Attributes<'_>) -> Option<Self> {
        let tie_breaker = |kind| attributes.get(kind)?.try_into().ok().map(u64::from_be_bytes);
        let (role, tie_breaker) = match (tie_breaker(ICE_CONTROLLING), tie_breaker(ICE_CONTROLLED)) {
            (Some(tie_breaker), None) => (IceRole::Controlling, tie_breaker),
            (None, Some(tie_breaker)) => (IceRole::Controlled, tie_breaker),
            _ => return None,
        };
        // A malformed number counts as none.
        let nomination = attributes
            .get(USE_CANDIDATE)
            .map(|_| attributes.u32(NOMINATION).map_or(Nomination::Plain, Nomination::Numbered));
        Some(Self { role, tie_breaker, priority: attributes.u32(PRIORITY)?, nomination })
    }
}

/// Returns the local user name fragment that a request is for.
pub(super) fn target_ufrag<'a>(request: &Message<'a>) -> Option<&'a str> {
    request.username()?.split_once(':').map(|(local, _)| local)
}

/// Returns the comprehension-required attributes that are unknown.
pub(super) fn unknown_attributes(attributes: &Attributes<'_>) -> Vec<u16> {
    attributes.unknown(&KNOWN)
}

/// Writes the success response: the address that the request came from.
pub(super) fn success(id: TransactionId, from: SocketAddr, key: &Key) -> Vec<u8> {
    Builder::new(Class::Success, Method::BINDING, id)
        .xor_address(attr::XOR_MAPPED_ADDRESS, from)
        .integrity(key)
        .fingerprint()
        .finish()
}

/// Writes an error response.
pub(super) fn error(id: TransactionId, code: u16, unknown: &[u16], key: &Key) -> Vec<u8> {
    let reason = if code == ROLE_CONFLICT { "Role Conflict" } else { "Unknown Attribute" };
    let message = Builder::new(Class::Error, Method::BINDING, id).error(code, reason);
    let message = if unknown.is_empty() { message } else { message.unknown_attributes(unknown) };
    message.integrity(key).fingerprint().finish()
}
