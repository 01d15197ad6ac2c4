//! Why there is no connection, or none any more.

use super::call::CallFailure;
use super::session::{Failure, Tried};
use super::signaling_client::SignalingError;
use crate::signaling::wire::ErrorCode;

/// Where between two agents something went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// On this machine.
    Local,
    /// Reaching the server.
    Server,
    /// Calling the other side through the server.
    Signal,
    /// Finding a path.
    Path,
    /// Proving who one is over the path.
    Handshake,
    /// With the connection in use.
    Connection,
}

impl Stage {
    /// Returns the stage's name in `--json` events.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Server => "server",
            Self::Signal => "signal",
            Self::Path => "path",
            Self::Handshake => "handshake",
            Self::Connection => "connection",
        }
    }
}

/// Who said no, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The server does not accept the access key.
    #[error("the server does not accept the access key")]
    Key,
    /// The listener does not accept what this side has derived from the ticket.
    #[error("the other side does not accept this ticket")]
    Ticket,
    /// The listener takes no further connection.
    #[error("the other side takes no further connection: somebody else has used the ticket")]
    Busy,
    /// For another reason, in the words of who said no.
    #[error("{0}")]
    Told(String),
}

/// Why there is no connection, or none any more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be reached.
    #[error("no connection to the server {server}: {problem}")]
    Unreachable {
        /// `host:port`.
        server: String,
        /// What happened.
        problem: String,
    },
    /// The other side is not there.
    #[error("the other side is not online")]
    Offline,
    /// The server or the other side said no.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// A newer session of this side has its tag; this one is over.
    #[error("another session has taken over this ticket; this one has ended")]
    Replaced,
    /// An operator has taken this side's tag back; it is good for nothing any more.
    #[error("the server's operator has revoked this ticket")]
    Revoked,
    /// Nothing got through between the two.
    #[error("no path to the other side; tried {} own and {} of its candidates", .0.local, .0.remote)]
    NoPath(Tried),
    /// Somebody did not answer in time.
    #[error("no answer in time ({})", .0.word())]
    TimedOut(Stage),
    /// The other side does not hold the same ticket, or something stands between.
    #[error("the other side could not prove that it holds the ticket: {0}")]
    Handshake(String),
    /// The other side went away.
    #[error("the other side ended the connection: {0}")]
    PeerEnded(String),
    /// The connection ran through this server, which went away or lost it.
    #[error("the connection ran through the server {0}, which went away")]
    RelayLost(String),
    /// This machine would not.
    #[error("{0}")]
    Local(String),
}

impl Error {
    /// Says where it went wrong.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            Self::Unreachable { .. } => Stage::Server,
            Self::Offline | Self::Refused(_) | Self::Replaced | Self::Revoked => Stage::Signal,
            Self::NoPath(_) => Stage::Path,
            Self::TimedOut(stage) => *stage,
            Self::Handshake(_) => Stage::Handshake,
            Self::PeerEnded(_) | Self::RelayLost(_) => Stage::Connection,
            Self::Local(_) => Stage::Local,
        }
    }

    pub(super) fn from_link(server: &str, error: &SignalingError) -> Self {
        let problem = match error {
            SignalingError::Refused { code: ErrorCode::NotAllowed, .. } => {
                return Self::Refused(Refusal::Key);
            }
            SignalingError::Refused { code: code @ (ErrorCode::Replaced | ErrorCode::Revoked), .. } => {
                return Self::from_loss(*code);
            }
            SignalingError::Refused { text, .. } => return Self::Refused(Refusal::Told(text.clone())),
            SignalingError::Silent => return Self::TimedOut(Stage::Server),
            SignalingError::Connect(source) if source.kind() == std::io::ErrorKind::TimedOut => {
                return Self::TimedOut(Stage::Server);
            }
            SignalingError::Name(source) | SignalingError::Connect(source) => source.to_string(),
            SignalingError::Protocol(source) => format!("{error} ({source})"),
        };
        Self::Unreachable { server: server.to_owned(), problem }
    }

    /// Says why this side's tag is not its any more.
    pub(super) fn from_loss(code: ErrorCode) -> Self {
        if code == ErrorCode::Revoked { Self::Revoked } else { Self::Replaced }
    }

    pub(super) fn from_call(failure: CallFailure) -> Self {
        match failure {
            CallFailure::Session(Failure::NoAnswer) => Self::Offline,
            CallFailure::Session(Failure::Ended(reason)) => {
                Self::PeerEnded(reason.unwrap_or_else(|| "before there was a path".to_owned()))
            }
            CallFailure::Session(Failure::BadOffer) => {
                Self::Refused(Refusal::Told("the other side speaks no ICE".to_owned()))
            }
            CallFailure::Session(Failure::NoPath(tried)) => Self::NoPath(tried),
            CallFailure::Refused(ErrorCode::NotOnline | ErrorCode::NoAnswer, _) => Self::Offline,
            CallFailure::Refused(code @ (ErrorCode::Replaced | ErrorCode::Revoked), _) => {
                Self::from_loss(code)
            }
            CallFailure::Refused(_, text) => Self::Refused(Refusal::Told(text)),
            CallFailure::Declined(ErrorCode::TooMany) => Self::Refused(Refusal::Busy),
            CallFailure::Declined(ErrorCode::NotOnline | ErrorCode::NoAnswer) => Self::Offline,
            CallFailure::Declined(ErrorCode::NotAllowed) => Self::Refused(Refusal::Ticket),
            CallFailure::Declined(code @ (ErrorCode::Replaced | ErrorCode::Revoked)) => Self::from_loss(code),
            CallFailure::Declined(code) => Self::Refused(Refusal::Told(code.text().to_owned())),
            CallFailure::Impostor => Self::Handshake("its answer was not made for this call".to_owned()),
            CallFailure::LineCut => Self::TimedOut(Stage::Server),
        }
    }

    pub(super) fn from_quic(error: &quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => {
                Self::PeerEnded(String::from_utf8_lossy(&close.reason).into_owned())
            }
            E::TimedOut => Self::PeerEnded("it has fallen silent".to_owned()),
            E::LocallyClosed => Self::Local("the connection was closed here".to_owned()),
            other => Self::PeerEnded(other.to_string()),
        }
    }
}
