//! Why a client, a request or the opening of an account fails. Pure.

use super::known_peers::Distrust;
use super::party_name::PartyName;
pub use crate::messaging_wire::ErrorCode;
use std::io;
use std::path::PathBuf;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The server refused it.
    #[error("the server refused: {message}")]
    Refused {
        /// The reason.
        code: ErrorCode,
        /// The reason in the server's words.
        message: String,
    },
    /// The server's statement about the other party is not trusted; nothing was sent.
    #[error("the keys of {party} are not trusted")]
    Distrusted {
        /// The other party.
        party: PartyName,
        /// Why.
        source: Distrust,
    },
    /// The recipient has keys, and no device that could receive a message.
    #[error("{party} has no device")]
    NoDevice {
        /// The recipient.
        party: PartyName,
    },
    /// The recipient has no keys, and only an encrypted message was to be sent.
    #[error("{party} reads no encrypted messages")]
    NotEncrypted {
        /// The recipient.
        party: PartyName,
    },
    /// The message is too long.
    #[error("the message is too long")]
    TooLong,
    /// The connection was lost before the answer.
    #[error("the connection was lost")]
    Disconnected,
    /// This device cannot do that: another one has the account's identity key.
    #[error("this device does not have the account's identity key")]
    NoIdentity,
    /// The client has ended.
    #[error("the client has ended")]
    Ended,
}

/// Why a client ended, or an account could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server cannot be reached, or is no messaging server.
    #[error("cannot reach the server {server}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// The error of the system, of TLS or of the WebSocket handshake.
        source: io::Error,
    },
    /// The server does not speak as this client expects.
    #[error("the server does not speak this protocol: {0}")]
    Protocol(String),
    /// The server refused the login or the registration.
    #[error("the server refused: {message}")]
    Refused {
        /// The reason.
        code: ErrorCode,
        /// The reason in the server's words.
        message: String,
    },
    /// Another client of this device reads its mailbox.
    #[error("another client of this device reads its mailbox")]
    Replaced,
    /// The device was removed from its account.
    #[error("this device was removed from the account")]
    DeviceRemoved,
    /// The folder of the account cannot be used.
    #[error("{}: {source}", path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}
