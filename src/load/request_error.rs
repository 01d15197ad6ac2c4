//! What went wrong between a client and the server, in words that say what to do.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnRequest {
    /// A relayed address.
    Allocate,
    /// That a peer may be reached by indications.
    Permit,
    /// That a peer may be reached by a channel.
    Bind,
    /// That the relayed address stays.
    Refresh,
    /// That it goes.
    Release,
}

impl TurnRequest {
    /// Returns the request's name in the RFC.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allocate => "Allocate",
            Self::Permit => "CreatePermission",
            Self::Bind => "ChannelBind",
            Self::Refresh | Self::Release => "Refresh",
        }
    }
}

/// Why a client cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The server answered with an error.
    #[error("{} ({code}{} in answer to {}){}", meaning(*.code, *.request), Space(.reason), .request.name(), Hint(hint(*.code)))]
    Answer {
        /// What was asked.
        request: TurnRequest,
        /// The error code.
        code: u16,
        /// The server's words.
        reason: String,
    },
    /// The server sends clients to another one.
    #[error("the server sends clients elsewhere, to {}: name that one as --server", Redirect(*.to))]
    Redirected {
        /// The other server, where it was told.
        to: Option<SocketAddr>,
    },
    /// The server did not answer.
    #[error("no answer to {} after {tries} tries in {} s: is it a TURN server, and is its port open?", .request.name(), .time.as_secs())]
    Silence {
        /// What was asked.
        request: TurnRequest,
        /// How often.
        tries: u32,
        /// For how long.
        time: Duration,
    },
    /// The server's answer makes no sense.
    #[error("the answer to {} lacks {what}: is it a TURN server?", .request.name())]
    Malformed {
        /// What was asked.
        request: TurnRequest,
        /// What is missing.
        what: &'static str,
    },
}

fn meaning(code: u16, request: TurnRequest) -> &'static str {
    match (code, request) {
        (401 | 441, _) => "the server refused these credentials",
        (403, TurnRequest::Permit | TurnRequest::Bind) => "the server refuses this peer",
        (437, TurnRequest::Allocate) => "the server still has an allocation of this very address and port",
        (437, _) => "the server knows the allocation no more",
        (438, _) => "the server finds every nonce stale, even its newest",
        (440 | 443, _) => "the server does not relay for this address family",
        (442, _) => "the server does not relay UDP",
        (486, _) => "the server's quota of allocations for this user is reached",
        (508, _) => "the server has no room for another allocation",
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
            None => f.write_str("an address that it does not tell"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_they_mean_and_what_to_change() {
        let text = |request, code, reason: &str| {
            RequestError::Answer { request, code, reason: reason.into() }.to_string()
        };
        assert_eq!(
            text(TurnRequest::Allocate, 486, "Allocation Quota Reached"),
            "the server's quota of allocations for this user is reached (486 Allocation Quota Reached in answer to Allocate); \
             ginnel: raise turn.allocations_per_user; coturn: user-quota"
        );
        assert!(
            text(TurnRequest::Allocate, 401, "").starts_with("the server refused these credentials (401 in")
        );
        assert!(text(TurnRequest::Bind, 403, "Forbidden").contains("turn.allow_peers"));
        assert_eq!(text(TurnRequest::Refresh, 400, "No"), "the server refused (400 No in answer to Refresh)");
    }
}
