//! Why an operation of an agent failed: one enum per operation.

use super::admission::MAX_TICKETS;
use super::path::PathPolicy;
use super::signaling_client::SignalingError;
use crate::net::dialer::DialError;
use crate::signaling::wire::{ErrorCode, NatType};
use std::error::Error as StdError;
use std::io;

/// An error of another crate, kept as the source of one of ours.
type BoxedError = Box<dyn StdError + Send + Sync>;

/// Why an agent could not register with its server, or lost its registration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistrationError {
    /// The configuration names no server, which a listener needs.
    #[error("no server is configured")]
    NoServer,
    /// The server's name cannot be resolved, nothing accepts connections there, or it is no WebSocket server.
    #[error("cannot reach the server {server}")]
    Unreachable {
        /// `host:port`.
        server: String,
        /// The error of the system or of the WebSocket handshake.
        source: BoxedError,
    },
    /// The server did not answer in time, or ended the signalling connection.
    #[error("the server {server} does not answer")]
    TimedOut {
        /// `host:port`.
        server: String,
    },
    /// The server does not accept the access key.
    #[error("the server does not accept the access key")]
    KeyRejected,
    /// The server refused the registration for another reason, which it states.
    #[error("the server refused: {0}")]
    Refused(String),
    /// A newer session uses the tag of this one.
    #[error("another session has taken over this ticket")]
    Replaced,
    /// The server's operator has revoked the tag.
    #[error("the server's operator has revoked this ticket")]
    Revoked,
    /// The server gave the listener another tag after a reconnection, so that the ticket is no longer valid.
    #[error("the server no longer has the tag of this ticket")]
    TagLost,
}

impl RegistrationError {
    pub(super) fn from_signaling(server: &str, error: SignalingError) -> Self {
        let server = server.to_owned();
        match error {
            SignalingError::Refused { code: ErrorCode::NotAllowed, .. } => Self::KeyRejected,
            SignalingError::Refused { code: ErrorCode::Replaced, .. } => Self::Replaced,
            SignalingError::Refused { code: ErrorCode::Revoked, .. } => Self::Revoked,
            SignalingError::Refused { text, .. } => Self::Refused(text),
            SignalingError::TimedOut => Self::TimedOut { server },
            SignalingError::Dial(DialError::Connect(source)) if source.kind() == io::ErrorKind::TimedOut => {
                Self::TimedOut { server }
            }
            SignalingError::Dial(error) => {
                Self::Unreachable { server, source: io::Error::from(error).into() }
            }
            error @ SignalingError::Handshake(_) => Self::Unreachable { server, source: error.into() },
        }
    }
}

/// Why the other side, or the server in its place, refused a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The listener has another ticket.
    #[error("the other side does not accept this ticket")]
    Ticket,
    /// The listener accepts no further connection.
    #[error(
        "the other side accepts no further connection now: the ticket has been used, or too many connect at once"
    )]
    Busy,
    /// No listener has this code.
    #[error("no listener has this code: its number is wrong, or it was used or has expired")]
    UnknownCode,
    /// The listener does not accept the code any more.
    #[error(
        "the other side does not accept this code any more: it was used, or tried too often with wrong words"
    )]
    SpentCode,
    /// The words of the code are not those of the listener.
    #[error("the words of the code are wrong, or something between the two sides interferes")]
    WrongCode,
    /// Another reason, as stated by the refusing side.
    #[error("{0}")]
    Stated(String),
}

/// Why a listener could not offer a code or a further ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The listener has ended.
    #[error("the listener has ended")]
    Ended,
    /// The listener has too many tickets.
    #[error("a listener has at most {MAX_TICKETS} tickets")]
    TooManyTickets,
    /// The server gives out no number for a code; what it states.
    #[error("the server gives out no number for a code: {0}")]
    NoLocator(String),
    /// The server does not answer.
    #[error("the server does not answer")]
    TimedOut,
}

/// Why no connection was established.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server cannot be used, or the registration with it was lost.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The other side is not online, or does not answer.
    #[error("the other side is not online")]
    Offline,
    /// The other side or the server refused the call.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The other side ended the call before there was a path.
    #[error("the other side ended the call: {0}")]
    Ended(String),
    /// No candidate pair worked.
    #[error("no path to the other side; tried {} local and {} remote candidates", .0.local, .0.remote)]
    NoPath(PathAttempts),
    /// The other side did not complete the handshake over the path in time.
    #[error("the other side did not complete the handshake in time")]
    HandshakeTimedOut,
    /// The other side does not hold the same ticket, or something between the two sides interferes.
    #[error("the other side could not prove that it holds the ticket")]
    Handshake(#[source] BoxedError),
    /// The local QUIC endpoint could not be set up.
    #[error("cannot set up QUIC")]
    Setup(#[source] BoxedError),
}

impl ConnectError {
    /// Maps a code of the server that ends a call. `text` is what the server states.
    pub(super) fn from_code(code: ErrorCode, text: Option<String>) -> Self {
        match code {
            ErrorCode::NotOnline | ErrorCode::NoAnswer => Self::Offline,
            ErrorCode::Replaced => RegistrationError::Replaced.into(),
            ErrorCode::Revoked => RegistrationError::Revoked.into(),
            // A text comes only with the server's own refusals.
            ErrorCode::NotAllowed if text.is_none() => Self::Refused(Refusal::Ticket),
            ErrorCode::TooMany if text.is_none() => Self::Refused(Refusal::Busy),
            code => Self::Refused(Refusal::Stated(text.unwrap_or_else(|| code.text().to_owned()))),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The other side closed it.
    #[error("the other side closed the connection: {0}")]
    PeerClosed(String),
    /// The other side stopped answering.
    #[error("the other side stopped answering")]
    PeerTimedOut,
    /// The connection was relayed by this server, which went away or restarted.
    #[error("the connection ran through the server {0}, which went away")]
    RelayLost(String),
    /// The other side runs a newer version of the protocol.
    #[error("the other side uses a newer version of the protocol: update this agent")]
    Version,
    /// The listener has revoked the ticket of the other side, or its time is over.
    #[error("the ticket of the other side is no longer valid")]
    Revoked,
    /// This side closed it.
    #[error("the connection was closed on this side")]
    Closed,
    /// A violation of QUIC by the other side, or a stream that broke.
    #[error("the connection broke")]
    Transport(#[source] BoxedError),
}

/// Why a datagram was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// It is larger than the path allows now.
    #[error("the datagram is too large for the path")]
    TooLarge,
    /// The other side runs a version without datagrams.
    #[error("the other side does not accept datagrams")]
    Unsupported,
    /// The connection has ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// The attempts to find a path, all of which failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PathAttempts {
    /// Number of local candidates that were sent.
    pub local: usize,
    /// Number of remote candidates that were checked.
    pub remote: usize,
    /// The paths that this side allowed.
    pub policy: PathPolicy,
    /// Both sides took part in direct checks.
    pub direct: bool,
    /// This side had a relay, and the other side allowed its use.
    pub own_relay: bool,
    /// The other side had a relay, and this side allowed its use.
    pub their_relay: bool,
    /// The server's gateway was tried.
    pub gateway: bool,
    /// The NAT of this side, if it was determined.
    pub own_nat: Option<NatType>,
    /// The NAT of the other side, if it is known.
    pub their_nat: Option<NatType>,
}

impl PathAttempts {
    /// Returns whether a relay was tried.
    #[must_use]
    pub fn relay(&self) -> bool {
        self.own_relay || self.their_relay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_the_listener_and_one_of_the_server_are_different_errors() {
        let by_listener = |code| ConnectError::from_code(code, None);
        let by_server = |code| ConnectError::from_code(code, Some("full".to_owned()));
        assert!(matches!(by_listener(ErrorCode::NotAllowed), ConnectError::Refused(Refusal::Ticket)));
        assert!(matches!(by_listener(ErrorCode::TooMany), ConnectError::Refused(Refusal::Busy)));
        for code in [ErrorCode::NotAllowed, ErrorCode::TooMany] {
            let error = by_server(code);
            assert!(
                matches!(&error, ConnectError::Refused(Refusal::Stated(text)) if text == "full"),
                "{error:?}"
            );
        }
        for code in [ErrorCode::NotOnline, ErrorCode::NoAnswer] {
            assert!(matches!(by_server(code), ConnectError::Offline));
        }
        let revoked = by_listener(ErrorCode::Revoked);
        assert!(matches!(revoked, ConnectError::Registration(RegistrationError::Revoked)), "{revoked:?}");
    }

    #[test]
    fn an_error_keeps_its_source() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let error =
            RegistrationError::from_signaling("h:1", SignalingError::Dial(DialError::Connect(refused())));
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused), "{error:?}");
        let error = ConnectError::from(error);
        assert!(error.source().is_some(), "{error:?}");
    }
}
