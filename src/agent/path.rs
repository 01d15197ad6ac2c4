//! The path of a connection, as programs and people are told of it.

use super::candidate::CandidatePath;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What kind of path carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// From machine to machine.
    Direct,
    /// Through the relay.
    Relay,
    /// Through the server's gateway, as a virtual connection: the last resort.
    Gateway,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => CandidatePath::Direct.word(),
            Self::Relay => CandidatePath::Relay.word(),
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

/// The path that carries a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// Its kind.
    pub kind: PathKind,
    /// This side's end as the other side knows it; on a relay path the relayed address or the socket that reaches it.
    pub local: SocketAddr,
    /// The other side's address, or the server's on a relay or gateway path.
    pub remote: SocketAddr,
    /// The round trip to the other side, if it was measured yet.
    pub rtt: Option<Duration>,
    /// How long after the call began the path was in use.
    pub since: Duration,
    /// Why it is not a direct one.
    pub reason: Option<String>,
}

impl fmt::Display for PathInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.remote)?;
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
            local: "192.0.2.1:4000".parse().unwrap(),
            remote: "203.0.113.22:41641".parse().unwrap(),
            rtt: Some(Duration::from_millis(3)),
            since: Duration::ZERO,
            reason: None,
        };
        assert_eq!(direct.to_string(), "direct 203.0.113.22:41641 · 3 ms");
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
