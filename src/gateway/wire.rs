//! Frames: a length, the id of a virtual connection, a message. Little-endian. With id 0 the message is a command.
//!
//! ```text
//! ┌────────────┬─────────────┬──────────────────┐
//! │ Length (4) │ Conn ID (4) │ Length - 4 bytes │
//! └────────────┴─────────────┴──────────────────┘
//! ```

use bytes::BufMut;
use std::fmt;

/// Bytes of a frame's header: length and connection id.
pub const HEADER_LEN: usize = 8;
/// The least value of a length: the connection id.
const MIN_LENGTH: usize = 4;
/// The default limit of a packet: connection id and message.
pub const MAX_PACKET: usize = 512 * 1024;
/// Bytes of the longest frame with a command other than Token.
pub const MAX_COMMAND: usize = HEADER_LEN + 1 + 8;

/// The id of a virtual connection, the same at both endpoints; 0 for the gateway itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u32);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The type of a command: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum CommandType {
    New = 0,
    Open = 1,
    Dial = 2,
    Refuse = 3,
    Accept = 4,
    Close = 5,
    Ping = 6,
    Credit = 7,
    Token = 8,
}

impl CommandType {
    /// All types, by their value.
    const ALL: [Self; 9] = [
        Self::New,
        Self::Open,
        Self::Dial,
        Self::Refuse,
        Self::Accept,
        Self::Close,
        Self::Ping,
        Self::Credit,
        Self::Token,
    ];
}

impl TryFrom<u8> for CommandType {
    type Error = WireError;

    fn try_from(value: u8) -> Result<Self, WireError> {
        Self::ALL.get(usize::from(value)).copied().ok_or(WireError::Unknown(value))
    }
}

/// Commands between endpoint and gateway (S2-6 to S2-12; Credit and Token are extensions).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// From an endpoint: requests an id.
    New,
    /// To the endpoint that requested it: the id.
    Open(ConnId),
    /// From an endpoint: connects the id to `remote`.
    Dial {
        /// The opened id.
        conn: ConnId,
        /// A server's id where a client dials, a client's where a server does.
        remote: u32,
    },
    /// To the endpoint that dialled: no connection; the id is released.
    Refuse(ConnId),
    /// To both endpoints: the connection carries messages.
    Accept {
        /// The id.
        conn: ConnId,
        /// The id of the other endpoint.
        remote: u32,
    },
    /// From either endpoint and to both: the id is released.
    Close(ConnId),
    /// To an endpoint: requests a Ping. From an endpoint: the answer.
    Ping,
    /// Between the gateway and servers that use HMAC: the receiver may send this many more bytes on the connection, headers included.
    Credit {
        /// The id.
        conn: ConnId,
        /// Bytes of whole frames.
        bytes: u32,
    },
    /// A client's first frame where a token is required; see `super::token`.
    Token(&'a [u8]),
}

/// A complete frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// To or from the gateway.
    Command(Command<'a>),
    /// To the other endpoint of a virtual connection.
    Data {
        /// The virtual connection.
        conn: ConnId,
        /// Its message, possibly empty.
        message: &'a [u8],
    },
}

/// Why a stream of frames is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A length below that of the connection id.
    #[error("a frame of {0} bytes: shorter than its connection id")]
    Short(u32),
    /// A length above the limit.
    #[error("a frame of {0} bytes: longer than allowed")]
    Long(u32),
    /// A command frame without a type.
    #[error("a command without a type")]
    Untyped,
    /// An unknown type.
    #[error("command {0} is unknown")]
    Unknown(u8),
    /// Arguments of the wrong length.
    #[error("command {0} with arguments of a wrong length")]
    Arguments(u8),
}

/// Returns the length of the frame at the start of `bytes`, the length field included; `None` while fewer than four bytes have arrived.
///
/// # Errors
/// [`WireError::Short`]; [`WireError::Long`] for a packet of more than `max_packet` bytes.
pub fn frame_len(bytes: &[u8], max_packet: usize) -> Result<Option<usize>, WireError> {
    let Some(length) = u32_at(bytes, 0) else { return Ok(None) };
    match length as usize {
        packet if packet < MIN_LENGTH => Err(WireError::Short(length)),
        packet if packet > max_packet => Err(WireError::Long(length)),
        packet => Ok(Some(4 + packet)),
    }
}

/// Parses the frame at the start of `bytes`; returns it and its length, or `None` while it is incomplete.
///
/// # Errors
/// [`WireError`]: the stream cannot be read on.
pub fn frame(bytes: &[u8], max_packet: usize) -> Result<Option<(Frame<'_>, usize)>, WireError> {
    let Some(length) = frame_len(bytes, max_packet)? else { return Ok(None) };
    let (Some(conn), Some(message)) = (u32_at(bytes, 4), bytes.get(HEADER_LEN..length)) else {
        return Ok(None);
    };
    let frame = match conn {
        0 => Frame::Command(command(message)?),
        conn => Frame::Data { conn: ConnId(conn), message },
    };
    Ok(Some((frame, length)))
}

fn command(message: &[u8]) -> Result<Command<'_>, WireError> {
    let (kind, arguments) = message.split_first().ok_or(WireError::Untyped)?;
    let wrong = WireError::Arguments(*kind);
    let none = || if arguments.is_empty() { Ok(()) } else { Err(wrong) };
    let one = || match arguments.len() {
        4 => u32_at(arguments, 0).map(ConnId).ok_or(wrong),
        _ => Err(wrong),
    };
    let two = || match (arguments.len(), u32_at(arguments, 0), u32_at(arguments, 4)) {
        (8, Some(conn), Some(value)) => Ok((ConnId(conn), value)),
        _ => Err(wrong),
    };
    match CommandType::try_from(*kind)? {
        CommandType::New => none().map(|()| Command::New),
        CommandType::Open => one().map(Command::Open),
        CommandType::Dial => two().map(|(conn, remote)| Command::Dial { conn, remote }),
        CommandType::Refuse => one().map(Command::Refuse),
        CommandType::Accept => two().map(|(conn, remote)| Command::Accept { conn, remote }),
        CommandType::Close => one().map(Command::Close),
        CommandType::Ping => none().map(|()| Command::Ping),
        CommandType::Credit => two().map(|(conn, bytes)| Command::Credit { conn, bytes }),
        CommandType::Token => Ok(Command::Token(arguments)),
    }
}

impl Command<'_> {
    /// Appends the command as a frame.
    pub fn emit(&self, to: &mut impl BufMut) {
        let (kind, arguments): (CommandType, &[u32]) = match self {
            Self::New => (CommandType::New, &[]),
            Self::Open(conn) => (CommandType::Open, &[conn.0]),
            Self::Dial { conn, remote } => (CommandType::Dial, &[conn.0, *remote]),
            Self::Refuse(conn) => (CommandType::Refuse, &[conn.0]),
            Self::Accept { conn, remote } => (CommandType::Accept, &[conn.0, *remote]),
            Self::Close(conn) => (CommandType::Close, &[conn.0]),
            Self::Ping => (CommandType::Ping, &[]),
            Self::Credit { conn, bytes } => (CommandType::Credit, &[conn.0, *bytes]),
            Self::Token(_) => (CommandType::Token, &[]),
        };
        let token = if let Self::Token(token) = self { token } else { &[][..] };
        emit_header(to, ConnId(0), 1 + 4 * arguments.len() + token.len());
        to.put_u8(kind as u8);
        for argument in arguments {
            to.put_u32_le(*argument);
        }
        to.put_slice(token);
    }
}

/// Appends the header of a message of `len` bytes. The caller observes the packet limit, which is below 4 GiB.
pub fn emit_header(to: &mut impl BufMut, conn: ConnId, len: usize) {
    to.put_u32_le(u32::try_from(MIN_LENGTH + len).unwrap_or(u32::MAX));
    to.put_u32_le(conn.0);
}

/// Returns the connection id in a frame's header.
#[must_use]
pub fn conn_of(bytes: &[u8]) -> Option<ConnId> {
    u32_at(bytes, 4).map(ConnId)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn emitted(command: Command<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        command.emit(&mut bytes);
        bytes
    }

    /// The layouts of S2-27 (connection 9527, remote 1), with New as 0.
    #[test]
    fn the_worked_layouts_are_these_bytes() {
        let conn = ConnId(9527);
        for (command, bytes) in [
            (Command::New, &b"\x05\0\0\0\0\0\0\0\0"[..]),
            (Command::Open(conn), b"\x09\0\0\0\0\0\0\0\x01\x37\x25\0\0"),
            (Command::Dial { conn, remote: 1 }, b"\x0d\0\0\0\0\0\0\0\x02\x37\x25\0\0\x01\0\0\0"),
            (Command::Refuse(ConnId(2)), b"\x09\0\0\0\0\0\0\0\x03\x02\0\0\0"),
            (Command::Accept { conn, remote: 1 }, b"\x0d\0\0\0\0\0\0\0\x04\x37\x25\0\0\x01\0\0\0"),
            (Command::Close(conn), b"\x09\0\0\0\0\0\0\0\x05\x37\x25\0\0"),
            (Command::Ping, b"\x05\0\0\0\0\0\0\0\x06"),
            (Command::Credit { conn, bytes: 65_536 }, b"\x0d\0\0\0\0\0\0\0\x07\x37\x25\0\0\0\0\x01\0"),
            (Command::Token(b"let me"), b"\x0b\0\0\0\0\0\0\0\x08let me"),
        ] {
            assert_eq!(emitted(command), bytes);
            assert_eq!(frame(bytes, MAX_PACKET), Ok(Some((Frame::Command(command), bytes.len()))));
        }
        let hello = b"\x09\0\0\0\x37\x25\0\0Hello";
        assert_eq!(
            frame(hello, MAX_PACKET),
            Ok(Some((Frame::Data { conn, message: b"Hello" }, hello.len())))
        );
        let mut bytes = Vec::new();
        emit_header(&mut bytes, conn, 5);
        assert_eq!(bytes, hello[..HEADER_LEN]);
        assert_eq!(conn_of(hello), Some(conn));
    }

    #[test]
    fn an_empty_message_is_a_frame() {
        let bytes = b"\x04\0\0\0\x01\0\0\0";
        assert_eq!(frame(bytes, MAX_PACKET), Ok(Some((Frame::Data { conn: ConnId(1), message: b"" }, 8))));
    }

    #[test]
    fn each_invalid_frame_has_its_error() {
        for (bytes, error) in [
            (&b"\x03\0\0\0"[..], WireError::Short(3)),
            (b"\x01\0\x08\0", WireError::Long(MAX_PACKET as u32 + 1)),
            (b"\x04\0\0\0\0\0\0\0", WireError::Untyped),
            (b"\x05\0\0\0\0\0\0\0\x09", WireError::Unknown(9)),
            (b"\x08\0\0\0\0\0\0\0\x05\x01\0\0", WireError::Arguments(5)),
            (b"\x06\0\0\0\0\0\0\0\0\x01", WireError::Arguments(0)),
            (b"\x0a\0\0\0\0\0\0\0\x05\x01\0\0\0\0", WireError::Arguments(5)),
        ] {
            assert_eq!(frame(bytes, MAX_PACKET), Err(error));
        }
        assert_eq!(frame_len(b"\0\0\x08\0", MAX_PACKET), Ok(Some(MAX_PACKET + 4)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_and_a_frame_never_exceeds_them(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, length))) = frame(&bytes, MAX_PACKET) {
                prop_assert!((HEADER_LEN..=bytes.len()).contains(&length));
            }
        }

        #[test]
        fn a_frame_is_read_only_when_it_is_whole(conn in 1_u32.., message: Vec<u8>) {
            let mut bytes = Vec::new();
            emit_header(&mut bytes, ConnId(conn), message.len());
            bytes.extend_from_slice(&message);
            for split in 0..bytes.len() {
                prop_assert_eq!(frame(&bytes[..split], MAX_PACKET), Ok(None));
            }
            let data = Frame::Data { conn: ConnId(conn), message: &message };
            prop_assert_eq!(frame(&bytes, MAX_PACKET), Ok(Some((data, bytes.len()))));
        }
    }
}
