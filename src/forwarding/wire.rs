//! The header of a stream, the reply to it, and the framing of UDP datagrams; `docs/wire/forwarding.md` has the format.
//!
//! Whoever opens a stream sends a [`Request`]. The other side sends a [`Reply`], and then the stream carries the connection. Both are frames: a
//! length of two bytes, and at most [`MAX_FRAME`] bytes.

use std::fmt;
use std::str::FromStr;

/// The largest frame, without its length.
pub(crate) const MAX_FRAME: usize = 1024;
/// The longest name of a service, in bytes.
pub(crate) const MAX_NAME: usize = 64;
/// The longest host name, in bytes (RFC 1035 section 2.3.4).
pub(crate) const MAX_HOST: usize = 255;
/// The longest path of a Unix socket, in bytes: `sun_path` without the final zero.
pub(crate) const MAX_PATH: usize = 107;
/// The longest text of a refusal, in bytes.
pub(crate) const MAX_DETAIL: usize = 512;
/// The largest UDP payload over IPv4.
pub(crate) const MAX_DATAGRAM: usize = 65_507;
/// Length of the flow id before the payload of a QUIC datagram.
pub(crate) const FLOW_ID_LEN: usize = 4;

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// A stream socket of the Unix domain.
    Unix,
}

impl Transport {
    fn code(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
            Self::Unix => 3,
        }
    }

    fn from_code(code: u8) -> Result<Self, WireError> {
        match code {
            1 => Ok(Self::Tcp),
            2 => Ok(Self::Udp),
            3 => Ok(Self::Unix),
            _ => Err(WireError::Malformed),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
        })
    }
}

/// A host name or address, and a port that is not 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    /// Name or address, without brackets.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
}

impl HostPort {
    /// Returns it if the host has no characters that a host name cannot have, and the port is not 0.
    pub(crate) fn new(host: &str, port: u16) -> Option<Self> {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c) || !c.is_ascii();
        let is_host = (1..=MAX_HOST).contains(&host.len()) && host.chars().all(is_valid);
        (is_host && !host.chars().any(char::is_control) && port != 0)
            .then(|| Self { host: host.to_owned(), port })
    }
}

/// `HOST:PORT`, with brackets around an IPv6 address.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The text is no `HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no HOST:PORT")]
pub(crate) struct HostPortError;

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or(HostPortError)?,
            None => text.split_once(':').ok_or(HostPortError)?,
        };
        let port = port.parse().map_err(|_| HostPortError)?;
        Self::new(host, port).ok_or(HostPortError)
    }
}

/// What a stream or a flow is to be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// A service that the other side has named.
    Service(String),
    /// A TCP port, resolved and connected by the other side.
    Tcp(HostPort),
    /// A UDP port, resolved by the other side.
    Udp(HostPort),
    /// The path of a Unix socket at the other side.
    Unix(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => f.write_str(name),
            Self::Tcp(target) => write!(f, "{target}"),
            Self::Udp(target) => write!(f, "{target}/udp"),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

/// The header of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Asks whether the target may be used, and what it speaks. Nothing follows.
    Query(Target),
    /// Asks for a connection. The stream carries its bytes.
    Connect(Target),
    /// Asks for a UDP flow, which lasts as long as the stream. QUIC datagrams with this id belong to it, and the stream carries the datagrams
    /// that do not fit.
    Flow {
        /// Chosen by the sender, and not used again within a connection.
        id: u32,
        /// Where its datagrams go.
        target: Target,
    },
    /// Asks the other side to listen for TCP connections as long as the stream lasts.
    Listen {
        /// Chosen by the sender.
        listener: u32,
        /// The address to listen at; empty for loopback.
        host: String,
        /// The port; 0 for any.
        port: u16,
    },
    /// A connection that arrived at a listener. The stream carries its bytes.
    Incoming {
        /// The listener of the other side's request.
        listener: u32,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RefusalCode {
    /// No service has this name.
    NoSuchService,
    /// The other side does not permit this target.
    NotPermitted,
    /// Nothing accepts connections there.
    ConnectionRefused,
    /// The target did not answer in time.
    TimedOut,
    /// The name does not exist, or no route leads to the host.
    HostUnreachable,
    /// A limit of the other side is reached.
    Busy,
    /// The address to listen at is in use, or is not one of the host's.
    AddressInUse,
    /// The other side does not know the request, or the service speaks another protocol.
    Unsupported,
    /// Any other failure of the other side.
    Failed,
}

impl RefusalCode {
    const ALL: [Self; 9] = [
        Self::NoSuchService,
        Self::NotPermitted,
        Self::ConnectionRefused,
        Self::TimedOut,
        Self::HostUnreachable,
        Self::Busy,
        Self::AddressInUse,
        Self::Unsupported,
        Self::Failed,
    ];

    fn code(self) -> u8 {
        match self {
            Self::NoSuchService => 1,
            Self::NotPermitted => 2,
            Self::ConnectionRefused => 3,
            Self::TimedOut => 4,
            Self::HostUnreachable => 5,
            Self::Busy => 6,
            Self::AddressInUse => 7,
            Self::Unsupported => 8,
            Self::Failed => 9,
        }
    }

    /// A code that this version does not know is a failure.
    fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|known| known.code() == code).unwrap_or(Self::Failed)
    }

    /// Returns its name in JSON events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoSuchService => "no_such_service",
            Self::NotPermitted => "not_permitted",
            Self::ConnectionRefused => "connection_refused",
            Self::TimedOut => "timed_out",
            Self::HostUnreachable => "host_unreachable",
            Self::Busy => "busy",
            Self::AddressInUse => "address_in_use",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
        }
    }
}

/// A refusal: its code, and a text of the refusing side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Refusal {
    /// The kind of refusal.
    pub(crate) code: RefusalCode,
    /// What the refusing side states.
    pub(crate) detail: String,
}

impl Refusal {
    /// Creates a refusal; a text that is too long is cut.
    pub(crate) fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        let end = (0..=MAX_DETAIL.min(detail.len())).rev().find(|at| detail.is_char_boundary(*at));
        detail.truncate(end.unwrap_or(0));
        Self { code, detail }
    }
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The request is carried out.
    Accepted {
        /// What the target speaks.
        transport: Transport,
        /// The port that is listened at; 0 for other requests.
        port: u16,
    },
    /// The request is refused, and the stream ends.
    Refused(Refusal),
}

/// Bytes that are no frame of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// A field is missing, too long or not valid.
    #[error("the other side sent a malformed header")]
    Malformed,
    /// A type of request that this version does not know.
    #[error("the other side sent a request that this version does not know")]
    UnknownRequest,
}

/// Reads the fields of a frame one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.bytes()?))
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.bytes()?))
    }

    /// Takes the rest as text of at most `max` bytes.
    fn text(&mut self, max: usize) -> Result<&'a str, WireError> {
        let rest = std::mem::take(&mut self.0);
        std::str::from_utf8(rest).ok().filter(|text| text.len() <= max).ok_or(WireError::Malformed)
    }

    fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Malformed) }
    }
}

const TARGET_SERVICE: u8 = 0;

impl Target {
    fn emit(&self, frame: &mut Vec<u8>) {
        let (kind, port, text) = match self {
            Self::Service(name) => (TARGET_SERVICE, None, name),
            Self::Tcp(target) => (Transport::Tcp.code(), Some(target.port), &target.host),
            Self::Udp(target) => (Transport::Udp.code(), Some(target.port), &target.host),
            Self::Unix(path) => (Transport::Unix.code(), None, path),
        };
        frame.push(kind);
        frame.extend(port.iter().flat_map(|port| port.to_be_bytes()));
        frame.extend_from_slice(text.as_bytes());
    }

    fn parse(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let kind = fields.u8()?;
        if kind == TARGET_SERVICE {
            return parse_name(fields.text(MAX_NAME)?).map(Self::Service);
        }
        match Transport::from_code(kind)? {
            Transport::Unix => {
                let path = fields.text(MAX_PATH)?;
                let is_valid = path.starts_with('/') && !path.contains('\0');
                is_valid.then(|| Self::Unix(path.to_owned())).ok_or(WireError::Malformed)
            }
            transport => {
                let port = fields.u16()?;
                let target = HostPort::new(fields.text(MAX_HOST)?, port).ok_or(WireError::Malformed)?;
                Ok(if transport == Transport::Tcp { Self::Tcp(target) } else { Self::Udp(target) })
            }
        }
    }
}

fn parse_name(name: &str) -> Result<String, WireError> {
    if name.is_empty() { Err(WireError::Malformed) } else { Ok(name.to_owned()) }
}

const QUERY: u8 = 1;
const CONNECT: u8 = 2;
const FLOW: u8 = 3;
const LISTEN: u8 = 4;
const INCOMING: u8 = 5;

impl Request {
    /// Returns the frame, with its length.
    pub(crate) fn emit(&self) -> Vec<u8> {
        frame(|frame| match self {
            Self::Query(target) => {
                frame.push(QUERY);
                target.emit(frame);
            }
            Self::Connect(target) => {
                frame.push(CONNECT);
                target.emit(frame);
            }
            Self::Flow { id, target } => {
                frame.push(FLOW);
                frame.extend_from_slice(&id.to_be_bytes());
                target.emit(frame);
            }
            Self::Listen { listener, host, port } => {
                frame.push(LISTEN);
                frame.extend_from_slice(&listener.to_be_bytes());
                frame.extend_from_slice(&port.to_be_bytes());
                frame.extend_from_slice(host.as_bytes());
            }
            Self::Incoming { listener } => {
                frame.push(INCOMING);
                frame.extend_from_slice(&listener.to_be_bytes());
            }
        })
    }

    /// Parses a frame without its length.
    ///
    /// # Errors
    /// [`WireError`] if it is not a request of this version.
    pub(crate) fn parse(frame: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(frame);
        let request = match fields.u8()? {
            QUERY => Self::Query(Target::parse(&mut fields)?),
            CONNECT => Self::Connect(Target::parse(&mut fields)?),
            FLOW => Self::Flow { id: fields.u32()?, target: Target::parse(&mut fields)? },
            LISTEN => {
                let (listener, port) = (fields.u32()?, fields.u16()?);
                Self::Listen { listener, port, host: fields.text(MAX_HOST)?.to_owned() }
            }
            INCOMING => Self::Incoming { listener: fields.u32()? },
            _ => return Err(WireError::UnknownRequest),
        };
        fields.end()?;
        Ok(request)
    }
}

const ACCEPTED: u8 = 0;

impl Reply {
    /// Returns the frame, with its length.
    pub(crate) fn emit(&self) -> Vec<u8> {
        frame(|frame| match self {
            Self::Accepted { transport, port } => {
                frame.extend_from_slice(&[ACCEPTED, transport.code()]);
                frame.extend_from_slice(&port.to_be_bytes());
            }
            Self::Refused(refusal) => {
                frame.push(refusal.code.code());
                frame.extend_from_slice(refusal.detail.as_bytes());
            }
        })
    }

    /// Parses a frame without its length.
    ///
    /// # Errors
    /// [`WireError::Malformed`] if it is not a reply of this version.
    pub(crate) fn parse(frame: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(frame);
        let reply = match fields.u8()? {
            ACCEPTED => {
                Self::Accepted { transport: Transport::from_code(fields.u8()?)?, port: fields.u16()? }
            }
            code => {
                let detail = fields.text(MAX_DETAIL)?.to_owned();
                Self::Refused(Refusal { code: RefusalCode::from_code(code), detail })
            }
        };
        fields.end()?;
        Ok(reply)
    }
}

fn frame(emit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = vec![0; 2];
    emit(&mut frame);
    // Every field is bounded, so that no frame is too long for its length.
    let length = u16::try_from(frame.len() - 2).unwrap_or(u16::MAX);
    frame[..2].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Returns the payload of a QUIC datagram: the flow, and what it carries.
pub(crate) fn emit_datagram(flow: u32, payload: &[u8]) -> Vec<u8> {
    [&flow.to_be_bytes(), payload].concat()
}

/// Returns the flow of a QUIC datagram and what it carries.
pub(crate) fn parse_datagram(datagram: &[u8]) -> Option<(u32, &[u8])> {
    let (flow, payload) = datagram.split_first_chunk::<FLOW_ID_LEN>()?;
    Some((u32::from_be_bytes(*flow), payload))
}

/// Returns a datagram of a flow's stream: its length and its payload, which is at most [`MAX_DATAGRAM`] bytes.
pub(crate) fn emit_stream_datagram(payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(MAX_DATAGRAM)];
    frame(|frame| frame.extend_from_slice(payload))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
