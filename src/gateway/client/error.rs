//! Errors of the client library.

use crate::gateway::wire::WireError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How the gateway broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Bytes that are not a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A command that only endpoints send, or one about id 0.
    #[error("a command that a gateway does not send")]
    UnexpectedCommand,
    /// More commands than the gateway reads answers to.
    #[error("too many commands")]
    TooManyCommands,
    /// A WebSocket message that is not exactly one frame.
    #[error("a message that is not exactly one frame")]
    NotOneFrame,
}

/// Why an endpoint could not connect to the gateway.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address or URL is invalid.
    #[error("{0:?} is not a gateway address: HOST:PORT, ws://HOST[:PORT] or wss://HOST[:PORT]")]
    Address(String),
    /// The network connection failed.
    #[error("cannot connect to the gateway: {0}")]
    Unreachable(#[source] io::Error),
    /// TLS could not be set up, or the gateway's certificate is not trusted.
    #[error("TLS with the gateway failed: {0}")]
    Tls(#[source] io::Error),
    /// The peer does not use WebSocket, or has no gateway at this path.
    #[error("WebSocket with the gateway failed: {0}")]
    WebSocket(#[source] io::Error),
    /// The gateway closed the connection: a wrong key or token, or an address that is not allowed. With the MD5 handshake it also stands for
    /// [`ConnectError::DuplicateServer`].
    #[error("the gateway refused this endpoint")]
    Refused,
    /// The gateway accepted the key and closed the connection: another server has the id.
    #[error("another server has this id")]
    DuplicateServer,
    /// The peer could not prove that it holds the servers' key, or is not a gateway.
    #[error("the peer does not hold the servers' key")]
    NotAuthenticated,
    /// The gateway did not answer within this time.
    #[error("the gateway did not answer within {0:?}")]
    TimedOut(Duration),
}

/// Why a connection to the gateway ended, and all its virtual connections with it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The gateway closed it.
    #[error("the gateway closed the connection")]
    Closed,
    /// The network connection failed.
    #[error("the connection to the gateway broke: {0}")]
    Io(#[source] Arc<io::Error>),
    /// The gateway broke the protocol.
    #[error("the gateway sent {0}")]
    Protocol(#[source] ProtocolError),
    /// The gateway sent nothing, not even an answer to a probe.
    #[error("the gateway does not answer")]
    TimedOut,
    /// This endpoint closed it.
    #[error("this endpoint was closed")]
    LocallyClosed,
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a dial failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The gateway does not know the remote, or this endpoint has reached its limit of virtual connections.
    #[error("the gateway refused a connection to {0}")]
    Refused(u32),
    /// The gateway did not answer within this time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection to the gateway ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// Why nothing more can be accepted: the endpoint was closed, or lost the gateway and does not reconnect.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct AcceptError(#[from] pub ConnectionError);

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is longer than a packet may be.
    #[error("a message of {len} bytes; {max} are allowed")]
    TooLong {
        /// Bytes of the message.
        len: usize,
        /// Bytes that a message may have.
        max: usize,
    },
    /// The virtual connection is closed.
    #[error("the virtual connection is closed")]
    Closed,
    /// The connection to the gateway ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The codec could not encode the message.
    #[error("the message cannot be encoded: {0}")]
    Codec(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why no message could be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The virtual connection was closed because its messages were not received in time.
    #[error("the virtual connection was closed: its messages were not received in time")]
    Overflow,
    /// The connection to the gateway ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The codec could not decode the message.
    #[error("a message cannot be decoded: {0}")]
    Codec(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::TooLong { .. } | SendError::Codec(_) => io::ErrorKind::InvalidInput,
            SendError::Closed => io::ErrorKind::BrokenPipe,
            SendError::Connection(_) => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, error)
    }
}

impl From<ReceiveError> for io::Error {
    fn from(error: ReceiveError) -> Self {
        let kind = match error {
            ReceiveError::Codec(_) => io::ErrorKind::InvalidData,
            ReceiveError::Overflow | ReceiveError::Connection(_) => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, error)
    }
}
