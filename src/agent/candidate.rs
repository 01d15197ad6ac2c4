//! Candidate attribute values of [RFC 8839 section 5.1](https://www.rfc-editor.org/rfc/rfc8839#section-5.1), as far as a
//! session must understand them, and their extension `lane`: the one of a session's two ICE agents that they belong to.

use std::net::{IpAddr, SocketAddr};

/// One of the two ICE agents of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidatePath {
    /// From machine to machine.
    Direct,
    /// Through a relay of at least one side.
    Relay,
}

impl CandidatePath {
    /// Both, in the order of preference.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Relay];

    /// Returns the word of the candidate extension, which is also how people are told of the path.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}

/// How a candidate came to be (RFC 8445 section 5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// An interface's own address.
    Host,
    /// Seen by a STUN server or by the peer.
    Reflexive,
    /// A relay's address.
    Relayed,
}

/// What a session reads from a peer's candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteCandidate {
    /// The lane it is for.
    pub lane: CandidatePath,
    /// How it came to be.
    pub origin: Origin,
    /// Where it leads.
    pub address: SocketAddr,
    /// The text without `candidate:` in front, for the ICE agent.
    pub text: String,
}

const PREFIX: &str = "candidate:";

/// Writes an ICE agent's candidate as it goes on the signalling wire.
#[must_use]
pub(super) fn write(lane: CandidatePath, text: &str) -> String {
    format!("{PREFIX}{text} lane {}", lane.word())
}

/// Reads a candidate from the signalling wire; `None` for what no lane can use (TCP, names instead of addresses, rubbish).
///
/// Without the extension a relayed candidate is for the relay lane and every other one for the direct lane.
#[must_use]
pub(super) fn read(value: &str) -> Option<RemoteCandidate> {
    let text = value.trim().strip_prefix(PREFIX).unwrap_or(value.trim());
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_foundation, _component, transport, _priority, ip, port, "typ", typ, rest @ ..] = words.as_slice()
    else {
        return None;
    };
    if !transport.eq_ignore_ascii_case("udp") {
        return None;
    }
    let origin = match *typ {
        "host" => Origin::Host,
        "srflx" | "prflx" => Origin::Reflexive,
        "relay" => Origin::Relayed,
        _ => return None,
    };
    let address = SocketAddr::new(ip.parse::<IpAddr>().ok()?.to_canonical(), port.parse().ok()?);
    let unusable = address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast();
    let named = rest.chunks_exact(2).find(|pair| pair[0] == "lane").map(|pair| pair[1]);
    let lane = match named {
        Some(word) => CandidatePath::ALL.into_iter().find(|lane| lane.word() == word)?,
        None if origin == Origin::Relayed => CandidatePath::Relay,
        None => CandidatePath::Direct,
    };
    (!unusable).then(|| RemoteCandidate { lane, origin, address, text: text.to_owned() })
}

/// Says whether an address can be reached from anywhere, so that a relay may be asked to send there.
#[must_use]
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
    fn what_is_written_can_be_read() {
        for lane in CandidatePath::ALL {
            let read = read(&write(lane, HOST)).unwrap();
            assert_eq!((read.lane, read.origin), (lane, Origin::Host));
            assert_eq!(read.address, "192.0.2.1:4000".parse().unwrap());
        }
    }

    #[test]
    fn without_the_extension_the_type_decides() {
        assert_eq!(read(HOST).unwrap().lane, CandidatePath::Direct);
        let relay = "candidate:7 1 UDP 5 198.51.100.9 50000 typ relay raddr 10.0.0.1 rport 9 generation 0";
        assert_eq!(read(relay).unwrap().lane, CandidatePath::Relay);
        assert_eq!(read(relay).unwrap().origin, Origin::Relayed);
    }

    #[test]
    fn what_no_lane_can_use_is_left_out() {
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
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,120}") {
            let _ = read(&text);
        }
    }
}
