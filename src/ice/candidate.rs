//! Candidates ([RFC 8445 section 5.1](https://www.rfc-editor.org/rfc/rfc8445#section-5.1)) and their text form
//! ([RFC 8839 section 5.1](https://www.rfc-editor.org/rfc/rfc8839#section-5.1)).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The type preference of a candidate whose relay is reached by UDP; 0, which RFC 8445 recommends, is left for TCP and TLS.
const UDP_RELAY_PREFERENCE: u8 = 2;
/// The component of all candidates: data and RTCP share it, or there is no RTCP.
const COMPONENT: u8 = 1;
/// Longest text of a foundation (RFC 8839 section 5.1).
const MAX_FOUNDATION: usize = 32;

/// The port of an active TCP candidate (RFC 6544 section 4.5): each connection has one of its own.
const DISCARD_PORT: u16 = 9;

/// How an address was discovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateKind {
    /// The address of an interface.
    Host,
    /// Discovered by the peer's check.
    PeerReflexive,
    /// Discovered by a STUN server, or mapped at a router.
    ServerReflexive,
    /// Allocated at a TURN server.
    Relayed,
}

impl CandidateKind {
    /// The type preference of RFC 8445 section 5.1.2.2.
    fn preference(self) -> u32 {
        match self {
            Self::Host => 126,
            Self::PeerReflexive => 110,
            Self::ServerReflexive => 100,
            Self::Relayed => 0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::PeerReflexive => "prflx",
            Self::ServerReflexive => "srflx",
            Self::Relayed => "relay",
        }
    }
}

/// The transport of a candidate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateTransport {
    /// UDP.
    #[default]
    Udp,
    /// TCP that connects ([RFC 6544 section 4.1](https://www.rfc-editor.org/rfc/rfc6544#section-4.1)).
    TcpActive,
    /// TCP that accepts.
    TcpPassive,
    /// TCP simultaneous open.
    TcpSimultaneousOpen,
}

impl CandidateTransport {
    fn tcp_type(self) -> Option<&'static str> {
        match self {
            Self::Udp => None,
            Self::TcpActive => Some("active"),
            Self::TcpPassive => Some("passive"),
            Self::TcpSimultaneousOpen => Some("so"),
        }
    }

    pub(super) fn is_tcp(self) -> bool {
        self != Self::Udp
    }

    /// Returns the transport of the other end (RFC 6544 section 6.2).
    pub(super) fn opposite(self) -> Self {
        match self {
            Self::TcpActive => Self::TcpPassive,
            Self::TcpPassive => Self::TcpActive,
            same => same,
        }
    }

    /// Returns whether a local candidate of this transport sends checks to a remote one of `remote` (RFC 6544 section 6.2).
    pub(super) fn checks(self, remote: Self) -> bool {
        matches!(
            (self, remote),
            (Self::Udp, Self::Udp)
                | (Self::TcpActive, Self::TcpPassive)
                | (Self::TcpSimultaneousOpen, Self::TcpSimultaneousOpen)
        )
    }

    /// RFC 6544 section 4.2: the direction part of the local preference. UDP is above all of TCP.
    fn preference(self, kind: CandidateKind) -> u32 {
        let reflexive = matches!(kind, CandidateKind::PeerReflexive | CandidateKind::ServerReflexive);
        match self {
            Self::Udp => 7,
            Self::TcpActive if reflexive => 4,
            Self::TcpActive => 6,
            Self::TcpPassive if reflexive => 2,
            Self::TcpPassive => 4,
            Self::TcpSimultaneousOpen if reflexive => 6,
            Self::TcpSimultaneousOpen => 2,
        }
    }
}

/// Why a text is no usable candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CandidateError {
    /// It violates the grammar of RFC 8839.
    #[error("the candidate is malformed")]
    Malformed,
    /// It is for another component than the first.
    #[error("the candidate is for another component")]
    Component,
    /// Its address is a host name, such as one of mDNS.
    #[error("the candidate has a host name")]
    HostName,
    /// Nothing can be sent to its address or port.
    #[error("the candidate's address cannot be used")]
    Address,
}

/// A candidate of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// How its address was discovered.
    pub kind: CandidateKind,
    /// Its transport.
    pub transport: CandidateTransport,
    /// The address that the peer sends to.
    pub address: SocketAddr,
    /// The local address that identifies the socket: of a host or relayed candidate its own address. Not part of the text form.
    pub base: SocketAddr,
    /// Its priority; higher is better.
    pub priority: u32,
    /// Equal for candidates that share kind, base address, server and transport.
    pub foundation: String,
}

impl Candidate {
    /// Makes a host candidate. One of [`CandidateTransport::TcpActive`] has port 9, whatever `address` has. Of several, the one with the higher preference is checked first; the usual order is IPv6 before IPv4, the default
    /// route's interface before others.
    #[must_use]
    pub fn host(transport: CandidateTransport, address: SocketAddr, preference: u16) -> Self {
        Self::local(CandidateKind::Host, transport, (address, address), preference)
    }

    /// Makes a server-reflexive candidate of the host candidate with address `base`.
    #[must_use]
    pub fn server_reflexive(
        transport: CandidateTransport,
        address: SocketAddr,
        base: SocketAddr,
        preference: u16,
    ) -> Self {
        Self::local(CandidateKind::ServerReflexive, transport, (address, base), preference)
    }

    /// Makes a relayed candidate; the relay sends from it by UDP, and is reached by UDP too.
    #[must_use]
    pub fn relayed(address: SocketAddr, preference: u16) -> Self {
        let relayed = Self::relayed_by_stream(address, preference);
        Self { priority: relayed.priority | u32::from(UDP_RELAY_PREFERENCE) << 24, ..relayed }
    }

    /// Makes a relayed candidate whose relay is reached by TCP or TLS: any other one is better.
    #[must_use]
    pub fn relayed_by_stream(address: SocketAddr, preference: u16) -> Self {
        Self::local(CandidateKind::Relayed, CandidateTransport::Udp, (address, address), preference)
    }

    /// Returns whether its relay is reached by TCP or TLS.
    pub(super) fn is_relayed_by_stream(&self) -> bool {
        self.kind == CandidateKind::Relayed && self.priority >> 24 == 0
    }

    fn local(
        kind: CandidateKind,
        transport: CandidateTransport,
        (mut address, mut base): (SocketAddr, SocketAddr),
        preference: u16,
    ) -> Self {
        if transport == CandidateTransport::TcpActive {
            address.set_port(DISCARD_PORT);
            base.set_port(DISCARD_PORT);
        }
        let priority = priority(kind, transport, preference);
        let foundation = foundation(kind, transport, base.ip());
        Self { kind, transport, address, base, priority, foundation }
    }

    /// Makes the candidate of a peer whose check came from an unknown address (RFC 8445 section 7.3.1.3).
    pub(super) fn peer_reflexive(transport: CandidateTransport, address: SocketAddr, priority: u32) -> Self {
        let kind = CandidateKind::PeerReflexive;
        Self { kind, transport, address, base: address, priority, foundation: format!("p{address}") }
    }

    /// The priority that a peer-reflexive candidate of the same base would have: the value of PRIORITY (RFC 8445 section 7.1.1).
    pub(super) fn reflexive_priority(&self) -> u32 {
        let kind = CandidateKind::PeerReflexive;
        // All but the type and the direction, which RFC 6544 prefers in another order then.
        let rest = self.priority & 0x001F_FFFF;
        kind.preference() << 24 | self.transport.preference(kind) << 21 | rest
    }
}

/// RFC 8445 section 5.1.2.1. The direction takes the upper three bits of the local preference.
fn priority(kind: CandidateKind, transport: CandidateTransport, preference: u16) -> u32 {
    let local = transport.preference(kind) << 13 | u32::from(preference) >> 3;
    kind.preference() << 24 | local << 8 | (256 - u32::from(COMPONENT))
}

/// RFC 8445 section 5.1.1.3; a hash, so that the text does not show the base.
fn foundation(kind: CandidateKind, transport: CandidateTransport, base: IpAddr) -> String {
    let text = format!("{} {:?} {base}", kind.name(), transport.tcp_type());
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Candidate {
    /// Writes the value of the `candidate` attribute. The related address is hidden (RFC 8839 section 5.1 permits 0.0.0.0).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, transport, address, priority, foundation, .. } = self;
        let protocol = if *transport == CandidateTransport::Udp { "udp" } else { "tcp" };
        let (ip, port, name) = (address.ip(), address.port(), kind.name());
        write!(f, "candidate:{foundation} {COMPONENT} {protocol} {priority} {ip} {port} typ {name}")?;
        if *kind != CandidateKind::Host {
            f.write_str(if ip.is_ipv4() { " raddr 0.0.0.0 rport 0" } else { " raddr :: rport 0" })?;
        }
        match transport.tcp_type() {
            Some(tcp_type) => write!(f, " tcptype {tcp_type}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Candidate {
    type Err = CandidateError;

    /// Reads the value of a `candidate` attribute, with or without `candidate:`. Unknown extensions are ignored.
    fn from_str(text: &str) -> Result<Self, CandidateError> {
        let text = text.trim();
        let words: Vec<&str> =
            text.strip_prefix("candidate:").unwrap_or(text).split_ascii_whitespace().collect();
        let [foundation, component, protocol, priority, ip, port, "typ", kind, extensions @ ..] = &words[..]
        else {
            return Err(CandidateError::Malformed);
        };
        if component.parse() != Ok(COMPONENT) {
            return Err(CandidateError::Component);
        }
        let kinds = [
            CandidateKind::Host,
            CandidateKind::PeerReflexive,
            CandidateKind::ServerReflexive,
            CandidateKind::Relayed,
        ];
        let kind = kinds.into_iter().find(|known| known.name() == *kind).ok_or(CandidateError::Malformed)?;
        let extension = |name| extensions.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let transport = match protocol.to_ascii_lowercase().as_str() {
            "udp" => CandidateTransport::Udp,
            "tcp" => {
                let transports = [
                    CandidateTransport::TcpActive,
                    CandidateTransport::TcpPassive,
                    CandidateTransport::TcpSimultaneousOpen,
                ];
                let named = extension("tcptype");
                transports
                    .into_iter()
                    .find(|known| known.tcp_type() == named)
                    .ok_or(CandidateError::Malformed)?
            }
            _ => return Err(CandidateError::Malformed),
        };
        let priority = priority.parse().map_err(|_| CandidateError::Malformed)?;
        let port: u16 = port.parse().map_err(|_| CandidateError::Malformed)?;
        if foundation.is_empty() || foundation.len() > MAX_FOUNDATION {
            return Err(CandidateError::Malformed);
        }
        let ip: IpAddr = ip.parse().map_err(|_| CandidateError::HostName)?;
        let address = SocketAddr::new(ip.to_canonical(), port);
        // An active TCP candidate has the discard port, or none (RFC 6544 section 4.5).
        let has_port = port != 0 || transport == CandidateTransport::TcpActive;
        if !has_port || ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255; 4]) {
            return Err(CandidateError::Address);
        }
        Ok(Self { kind, transport, address, base: address, priority, foundation: (*foundation).to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "192.0.2.1:4000";

    fn address() -> SocketAddr {
        A.parse().unwrap()
    }

    #[test]
    fn what_is_formatted_can_be_parsed() {
        let reflexive = "198.51.100.7:5000".parse().unwrap();
        for candidate in [
            Candidate::host(CandidateTransport::Udp, address(), 65_535),
            Candidate::host(CandidateTransport::TcpActive, address(), 7),
            Candidate::host(CandidateTransport::TcpPassive, address(), 7),
            Candidate::server_reflexive(CandidateTransport::TcpSimultaneousOpen, reflexive, address(), 9),
            Candidate::server_reflexive(CandidateTransport::Udp, reflexive, address(), 9),
            Candidate::relayed("[2001:db8::1]:50000".parse().unwrap(), 0),
        ] {
            let text = candidate.to_string();
            assert!(candidate.kind == CandidateKind::Host || !text.contains("192.0.2.1"), "{text}");
            let parsed: Candidate = text.parse().unwrap();
            let base = parsed.address;
            assert_eq!(parsed, Candidate { base, ..candidate });
        }
    }

    #[test]
    fn priorities_follow_the_kind_then_the_transport_then_the_preference() {
        let host = |transport, preference| Candidate::host(transport, address(), preference).priority;
        let order = [
            host(CandidateTransport::Udp, 65_535),
            host(CandidateTransport::Udp, 100),
            host(CandidateTransport::TcpActive, 65_535),
            host(CandidateTransport::TcpPassive, 65_535),
            host(CandidateTransport::TcpSimultaneousOpen, 65_535),
            Candidate::server_reflexive(CandidateTransport::Udp, address(), address(), 65_535).priority,
            Candidate::relayed(address(), 65_535).priority,
        ];
        assert!(order.is_sorted_by(|better, worse| better > worse), "{order:?}");
        let active: Candidate = Candidate::host(CandidateTransport::TcpActive, address(), 0);
        assert_eq!(
            (active.base.port(), active.to_string().contains(" 9 typ host tcptype active")),
            (9, true)
        );
        // Reflexive directions are preferred in another order (RFC 6544 section 4.2).
        let reflexive = |transport| Candidate::host(transport, address(), 65_535).reflexive_priority();
        let order = [
            reflexive(CandidateTransport::Udp),
            reflexive(CandidateTransport::TcpSimultaneousOpen),
            reflexive(CandidateTransport::TcpActive),
            reflexive(CandidateTransport::TcpPassive),
        ];
        assert!(order.is_sorted_by(|better, worse| better > worse), "{order:?}");
        // The example of RFC 8445 section 5.1.2.1: 2^24 × 126 + 2^8 × 65535 + 255.
        assert_eq!(host(CandidateTransport::Udp, 65_535), 2_130_706_431);
        let reflexive = Candidate::host(CandidateTransport::Udp, address(), 65_535).reflexive_priority();
        assert_eq!(reflexive, 110 << 24 | 65_535 << 8 | 255);
    }

    #[test]
    fn unusable_candidates_are_refused_with_their_reason() {
        for (text, error) in [
            ("", CandidateError::Malformed),
            ("1 2 udp 5 192.0.2.1 9 typ host", CandidateError::Component),
            ("1 1 udp 5 d2a4.local 9 typ host", CandidateError::HostName),
            ("1 1 udp 5 0.0.0.0 9 typ host", CandidateError::Address),
            ("1 1 udp 5 192.0.2.1 0 typ host", CandidateError::Address),
            ("1 1 udp 5 224.0.0.1 9 typ host", CandidateError::Address),
            ("1 1 udp 5 192.0.2.1 9 typ tunnel", CandidateError::Malformed),
            ("1 1 tcp 5 192.0.2.1 9 typ host", CandidateError::Malformed),
            ("1 1 udp 5 192.0.2.1 70000 typ host", CandidateError::Malformed),
        ] {
            assert_eq!(text.parse::<Candidate>(), Err(error), "{text}");
        }
        let chromium = "candidate:842163049 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 0.0.0.0 rport 0 generation 0 ufrag EEtu network-cost 999";
        assert_eq!(chromium.parse::<Candidate>().unwrap().kind, CandidateKind::ServerReflexive);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,160}") {
            let _ = text.parse::<Candidate>();
        }
    }
}
