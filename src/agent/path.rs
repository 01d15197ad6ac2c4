//! The paths that a connection may use, and the one in use.

use super::candidate::CandidatePath;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// The paths that an agent may use, as the ICE transport policy of WebRTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PathPolicy {
    /// All: the best one carries the connection.
    #[default]
    All,
    /// Only the relay and the gateway; host addresses are not sent to the other side.
    RelayOnly,
    /// Only the direct path.
    DirectOnly,
}

impl PathPolicy {
    /// Returns whether a path may be used.
    pub(super) fn allows(self, path: CandidatePath) -> bool {
        match self {
            Self::All => true,
            Self::RelayOnly => path == CandidatePath::Relay,
            Self::DirectOnly => path == CandidatePath::Direct,
        }
    }
}

/// The kind of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathKind {
    /// Between the two hosts, without the server.
    Direct,
    /// Through a TURN relay.
    Relay,
    /// Through the server's gateway, as a virtual connection; used only if nothing else works.
    Gateway,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => CandidatePath::Direct.as_str(),
            Self::Relay => CandidatePath::Relay.as_str(),
            Self::Gateway => "gateway",
        })
    }
}

impl From<CandidatePath> for PathKind {
    fn from(kind: CandidatePath) -> Self {
        match kind {
            CandidatePath::Direct => Self::Direct,
            CandidatePath::Relay => Self::Relay,
        }
    }
}

/// How the datagrams of a path are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PathTransport {
    /// By UDP.
    #[default]
    Udp,
    /// By TCP: UDP is blocked.
    Tcp,
}

/// The path that carries a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathInfo {
    /// Its kind.
    pub kind: PathKind,
    /// Its transport on this side.
    pub transport: PathTransport,
    /// The local transport address as the other side sees it; on a relay path the relayed address or the socket that reaches it.
    pub local: SocketAddr,
    /// The transport address of the other side, or of the server on a relay or gateway path.
    pub remote: SocketAddr,
    /// The round-trip time to the other side, if it has been measured.
    pub rtt: Option<Duration>,
    /// Time from the start of the call until this path was in use.
    pub since: Duration,
    /// Why the path is not direct.
    pub reason: Option<String>,
    /// Nothing answers on it any more: another path, or the same one, is looked for.
    pub is_lost: bool,
}

impl fmt::Display for PathInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_lost {
            return f.write_str("path lost, looking for another");
        }
        let transport = if self.transport == PathTransport::Tcp { " tcp" } else { "" };
        write!(f, "{}{transport} {}", self.kind, self.remote)?;
        if let Some(rtt) = self.rtt {
            match rtt.as_millis() {
                0 => write!(f, " · <1 ms")?,
                millis => write!(f, " · {millis} ms")?,
            }
        }
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " · {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_line_with_address_time_and_reason() {
        let direct = PathInfo {
            kind: PathKind::Direct,
            transport: PathTransport::Udp,
            local: "192.0.2.1:4000".parse().unwrap(),
            remote: "203.0.113.22:41641".parse().unwrap(),
            rtt: Some(Duration::from_millis(3)),
            since: Duration::ZERO,
            reason: None,
            is_lost: false,
        };
        assert_eq!(direct.to_string(), "direct 203.0.113.22:41641 · 3 ms");
        let by_tcp = PathInfo { transport: PathTransport::Tcp, ..direct.clone() };
        assert_eq!(by_tcp.to_string(), "direct tcp 203.0.113.22:41641 · 3 ms");
        let lost = PathInfo { is_lost: true, ..direct.clone() };
        assert_eq!(lost.to_string(), "path lost, looking for another");
        let relay = PathInfo {
            kind: PathKind::Relay,
            remote: "203.0.113.10:3478".parse().unwrap(),
            rtt: Some(Duration::from_micros(300)),
            reason: Some("both NATs change ports".into()),
            ..direct.clone()
        };
        assert_eq!(relay.to_string(), "relay 203.0.113.10:3478 · <1 ms · both NATs change ports");
        assert_eq!(PathInfo { rtt: None, reason: None, ..relay }.to_string(), "relay 203.0.113.10:3478");
    }
}
