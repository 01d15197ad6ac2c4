//! Candidate attributes ([RFC 8839 section 5.1](https://www.rfc-editor.org/rfc/rfc8839#section-5.1)), as far as a session reads them.
//!
//! The extension attribute `lane` names the ICE agent of the session that a candidate belongs to; see [`CandidatePath`].

use std::net::{IpAddr, SocketAddr};

/// A path that a session tries; each has an ICE agent of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum CandidatePath {
    /// Between the two hosts.
    Direct,
    /// Through a relay of at least one side.
    Relay,
}

impl CandidatePath {
    /// Both, the preferred one first.
    pub(super) const ALL: [Self; 2] = [Self::Direct, Self::Relay];

    /// Returns the value of the candidate extension, which is also the name that users see.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}

/// The type of a candidate (RFC 8445 section 5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CandidateType {
    /// The address of an interface.
    Host,
    /// Discovered by a STUN server or by the peer.
    Reflexive,
    /// Allocated on a TURN server.
    Relayed,
}

/// A candidate of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteCandidate {
    /// The path that it is for.
    pub(super) path: CandidatePath,
    /// Its type.
    pub(super) kind: CandidateType,
    /// Its transport address.
    pub(super) address: SocketAddr,
    /// The attribute value without `candidate:`, for the ICE agent.
    pub(super) text: String,
}

const PREFIX: &str = "candidate:";
const PATH_EXTENSION: &str = "lane";

/// Formats a candidate of an ICE agent for the signalling.
pub(super) fn format(path: CandidatePath, text: &str) -> String {
    format!("{PREFIX}{text} {PATH_EXTENSION} {}", path.as_str())
}

/// Parses a candidate; `None` if no ICE agent can use it (TCP, a host name, a syntax error).
///
/// Without the extension a relayed candidate is for the relay path, and any other one for the direct path.
pub(super) fn parse(value: &str) -> Option<RemoteCandidate> {
    let text = value.trim().strip_prefix(PREFIX).unwrap_or(value.trim());
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_foundation, _component, transport, _priority, ip, port, "typ", typ, rest @ ..] = words.as_slice()
    else {
        return None;
    };
    if !transport.eq_ignore_ascii_case("udp") {
        return None;
    }
    let kind = match *typ {
        "host" => CandidateType::Host,
        "srflx" | "prflx" => CandidateType::Reflexive,
        "relay" => CandidateType::Relayed,
        _ => return None,
    };
    let address = SocketAddr::new(ip.parse::<IpAddr>().ok()?.to_canonical(), port.parse().ok()?);
    let is_unusable = address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast();
    let named = rest.chunks_exact(2).find(|pair| pair[0] == PATH_EXTENSION).map(|pair| pair[1]);
    let path = match named {
        Some(name) => CandidatePath::ALL.into_iter().find(|path| path.as_str() == name)?,
        None if kind == CandidateType::Relayed => CandidatePath::Relay,
        None => CandidatePath::Direct,
    };
    (!is_unusable).then(|| RemoteCandidate { path, kind, address, text: text.to_owned() })
}

/// Returns whether an address is globally reachable, so that a relay may send to it.
pub(super) fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64;
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: &str = "1 1 udp 2130706431 192.0.2.1 4000 typ host";

    #[test]
    fn a_formatted_candidate_can_be_parsed() {
        for path in CandidatePath::ALL {
            let parsed = parse(&format(path, HOST)).unwrap();
            assert_eq!((parsed.path, parsed.kind), (path, CandidateType::Host));
            assert_eq!(parsed.address, "192.0.2.1:4000".parse().unwrap());
        }
    }

    #[test]
    fn without_the_extension_the_type_decides() {
        assert_eq!(parse(HOST).unwrap().path, CandidatePath::Direct);
        let relay = "candidate:7 1 UDP 5 198.51.100.9 50000 typ relay raddr 10.0.0.1 rport 9 generation 0";
        assert_eq!(parse(relay).unwrap().path, CandidatePath::Relay);
        assert_eq!(parse(relay).unwrap().kind, CandidateType::Relayed);
    }

    #[test]
    fn an_unusable_candidate_is_rejected() {
        for text in [
            "",
            "candidate:",
            "1 1 tcp 5 192.0.2.1 9 typ host tcptype active",
            "1 1 udp 5 abc.local 9 typ host",
            "1 1 udp 5 0.0.0.0 9 typ host",
            "1 1 udp 5 192.0.2.1 0 typ host",
            "1 1 udp 5 224.0.0.1 9 typ host",
            "1 1 udp 5 192.0.2.1 9 typ wormhole",
            "1 1 udp 5 192.0.2.1 9 typ host lane slow",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,120}") {
            let _ = parse(&text);
        }
    }
}
