//! Errors of a client's requests, with a hint for the user.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TurnRequest {
    /// Allocate.
    Allocate,
    /// CreatePermission for an address.
    CreatePermission(IpAddr),
    /// ChannelBind for a peer.
    ChannelBind(SocketAddr),
    /// Refresh.
    Refresh,
    /// Refresh with lifetime 0.
    Release,
}

impl TurnRequest {
    /// Returns the request's name in the RFC.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allocate => "Allocate",
            Self::CreatePermission(_) => "CreatePermission",
            Self::ChannelBind(_) => "ChannelBind",
            Self::Refresh | Self::Release => "Refresh",
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The server refused the request.
    #[error("{} ({code}{} in answer to {}){}", meaning(*.code, *.request), Space(.reason), .request.name(), Hint(hint(*.code)))]
    Refused {
        /// The request.
        request: TurnRequest,
        /// The error code.
        code: u16,
        /// The reason phrase.
        reason: String,
    },
    /// The server redirects clients (300 Try Alternate).
    #[error("the server redirects clients to {}: use that one as --server", Redirect(*.to))]
    Redirected {
        /// The alternate server, if it was given.
        to: Option<SocketAddr>,
    },
    /// The server did not answer.
    #[error("no answer to {} after {transmissions} tries in {} s: is it a TURN server, and is its port open?", .request.name(), .time.as_secs())]
    NoResponse {
        /// The request.
        request: TurnRequest,
        /// How often it was sent.
        transmissions: u32,
        /// The time spent.
        time: Duration,
    },
    /// The server's answer is malformed.
    #[error("the answer to {} lacks {missing}: is it a TURN server?", .request.name())]
    Malformed {
        /// The request.
        request: TurnRequest,
        /// What is missing.
        missing: &'static str,
    },
}

impl TurnError {
    /// Returns the request that failed.
    pub(super) fn request(&self) -> Option<TurnRequest> {
        match self {
            Self::Refused { request, .. }
            | Self::NoResponse { request, .. }
            | Self::Malformed { request, .. } => Some(*request),
            Self::Redirected { .. } => None,
        }
    }
}

fn meaning(code: u16, request: TurnRequest) -> &'static str {
    match (code, request) {
        (401 | 441, _) => "the server refused these credentials",
        (403, TurnRequest::CreatePermission(_) | TurnRequest::ChannelBind(_)) => {
            "the server refuses this peer"
        }
        (437, TurnRequest::Allocate) => "the server still has an allocation for this address and port",
        (437, _) => "the server no longer has the allocation",
        (438, _) => "the server refuses every nonce as stale",
        (440 | 443, _) => "the server does not relay for this address family",
        (442, _) => "the server does not relay UDP",
        (486, _) => "the server's quota of allocations for this user is reached",
        (508, _) => "the server has no capacity for another allocation",
        _ => "the server refused",
    }
}

fn hint(code: u16) -> &'static str {
    match code {
        401 | 441 => "check --user and its password or secret, and the server's realm",
        403 => {
            "ginnel refuses peers on loopback and in private networks until turn.allow_peers names them; coturn: --allow-loopback-peers"
        }
        437 => "wait until it has expired, or start again from other ports",
        440 | 443 => "ginnel: turn.relay_addresses",
        486 => "ginnel: raise turn.allocations_per_user; coturn: user-quota",
        508 => {
            "ginnel: raise turn.max_allocations and widen turn.relay_ports; coturn: total-quota, min-port, max-port"
        }
        _ => "",
    }
}

/// Puts a space before a text that is not empty.
struct Space<'a>(&'a str);

impl fmt::Display for Space<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " {}", self.0) }
    }
}

struct Hint(&'static str);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; {}", self.0) }
    }
}

struct Redirect(Option<SocketAddr>);

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("an address that it does not give"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_a_meaning_and_a_hint() {
        let text = |request, code, reason: &str| {
            TurnError::Refused { request, code, reason: reason.into() }.to_string()
        };
        assert_eq!(
            text(TurnRequest::Allocate, 486, "Allocation Quota Reached"),
            "the server's quota of allocations for this user is reached (486 Allocation Quota Reached in answer to Allocate); \
             ginnel: raise turn.allocations_per_user; coturn: user-quota"
        );
        assert!(
            text(TurnRequest::Allocate, 401, "").starts_with("the server refused these credentials (401 in")
        );
        assert!(
            text(TurnRequest::ChannelBind("192.0.2.1:7".parse().unwrap()), 403, "Forbidden")
                .contains("turn.allow_peers")
        );
        assert_eq!(text(TurnRequest::Refresh, 400, "No"), "the server refused (400 No in answer to Refresh)");
    }
}
