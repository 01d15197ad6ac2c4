//! Why there is no connection to the gateway, or none through it.

use crate::gateway::wire::WireError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What the gateway has sent that no gateway sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Bytes that are no frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A command that only endpoints send, or one about id 0.
    #[error("a command that a gateway does not send")]
    Unexpected,
    /// Far more commands than their answers are read.
    #[error("a flood of commands")]
    Flood,
    /// A WebSocket message that is not exactly one frame.
    #[error("a message that is not one frame")]
    Ragged,
}

/// Why no connection to the gateway came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address or URL says nothing that can be reached.
    #[error("{0:?} is no gateway: HOST:PORT, ws://HOST[:PORT] or wss://HOST[:PORT]")]
    Address(String),
    /// The system found no way there.
    #[error("no connection to the gateway: {0}")]
    Unreachable(#[source] io::Error),
    /// TLS could not be set up, or the gateway's certificate is not trusted.
    #[error("no TLS with the gateway: {0}")]
    Tls(#[source] io::Error),
    /// What answers there does not speak WebSocket, or has no gateway behind this path.
    #[error("no WebSocket with the gateway: {0}")]
    WebSocket(String),
    /// The gateway ended the connection: a wrong key or token, or an address that is not let in; where the MD5 handshake is spoken, also as
    /// [`ConnectError::Taken`].
    #[error("the gateway refused this endpoint")]
    Refused,
    /// The gateway took the key and ended the connection: another server has the id and keeps it.
    #[error("another server has this id")]
    Taken,
    /// What answered could not prove that it holds the key.
    #[error("what answers there does not hold the servers' key")]
    Impostor,
    /// Nothing came within this time.
    #[error("the gateway did not answer within {0:?}")]
    TimedOut(Duration),
}

/// Why a connection to the gateway has ended, and with it all virtual connections that ran through it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The gateway closed it.
    #[error("the gateway closed the connection")]
    Closed,
    /// The system did.
    #[error("the connection to the gateway broke: {0}")]
    Broken(Arc<io::Error>),
    /// It was of no use any more.
    #[error("what came from the gateway was {0}")]
    Fault(Fault),
    /// Nothing came any more, not even an answer.
    #[error("the gateway has fallen silent")]
    Silent,
    /// This endpoint ended it.
    #[error("this endpoint was closed")]
    Here,
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        Self::Broken(Arc::new(error))
    }
}

/// Why a dial came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The gateway knows no such remote, or this endpoint has as many virtual connections as it may have.
    #[error("the gateway refused a connection to {0}")]
    Refused(u32),
    /// No answer came within this time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection to the gateway ended meanwhile.
    #[error(transparent)]
    Lost(#[from] Loss),
}

/// Why nothing more can be accepted: the endpoint was closed, or lost the gateway and does not reconnect.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct AcceptError(#[from] pub Loss);

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than a packet of the gateway's may be.
    #[error("a message of {len} bytes; {max} are allowed")]
    TooLong {
        /// Bytes of the message.
        len: usize,
        /// Bytes that a message may have.
        max: usize,
    },
    /// The virtual connection has ended.
    #[error("the virtual connection is closed")]
    Closed,
    /// The connection to the gateway has ended.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// The codec would not encode it.
    #[error("the message cannot be encoded: {0}")]
    Codec(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why there is no next message, besides that the other end has closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Messages were not taken in time, and the virtual connection was closed for it.
    #[error("the virtual connection was closed: its messages were not taken in time")]
    Overrun,
    /// The connection to the gateway has ended.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// The codec would not decode it.
    #[error("a message cannot be decoded: {0}")]
    Codec(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::TooLong { .. } | SendError::Codec(_) => io::ErrorKind::InvalidInput,
            SendError::Closed => io::ErrorKind::BrokenPipe,
            SendError::Lost(_) => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, error)
    }
}

impl From<ReceiveError> for io::Error {
    fn from(error: ReceiveError) -> Self {
        let kind = match error {
            ReceiveError::Codec(_) => io::ErrorKind::InvalidData,
            ReceiveError::Overrun | ReceiveError::Lost(_) => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, error)
    }
}
