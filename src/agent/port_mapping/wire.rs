//! Requests and responses of PCP ([RFC 6887](https://www.rfc-editor.org/rfc/rfc6887)) and of NAT-PMP, its predecessor
//! ([RFC 6886](https://www.rfc-editor.org/rfc/rfc6886)). Both use one port; the version tells them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The router's port.
pub(super) const PORT: u16 = 5351;
const NAT_PMP: u8 = 0;
const PCP: u8 = 2;
const RESPONSE: u8 = 0x80;
const MAP: u8 = 1;
const ANNOUNCE: u8 = 0;
const HEADER_LEN: usize = 24;
const MAP_LEN: usize = 60;

/// The transport protocol of a mapped port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::agent) enum MappedProtocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl MappedProtocol {
    /// Returns its number in the IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }
}

/// Which of the two protocols a router speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// NAT-PMP.
    NatPmp,
    /// PCP.
    Pcp,
}

/// A mapping as it is requested: of the same parameters, for as long as it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapRequest {
    pub(super) protocol: MappedProtocol,
    pub(super) internal: SocketAddr,
    /// What the router gave before, or a wish.
    pub(super) external_port: u16,
    /// Zero deletes the mapping.
    pub(super) lifetime: Duration,
    pub(super) nonce: [u8; 12],
}

/// A mapping as the router grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    /// NAT-PMP tells the address by another request.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) lifetime: Duration,
}

/// A response to a map request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapResponse {
    Granted(Granted),
    /// The router refuses, for the reason of this number.
    Refused(u16),
}

/// Makes the request that every router of this version answers: PCP's ANNOUNCE, or that for NAT-PMP's external address.
pub(super) fn hello(version: Version, client: IpAddr) -> Vec<u8> {
    match version {
        Version::NatPmp => vec![NAT_PMP, ANNOUNCE],
        Version::Pcp => header(ANNOUNCE, Duration::ZERO, client),
    }
}

/// Reads a successful response to [`hello`]: the version, and NAT-PMP's external address.
pub(super) fn parse_hello(bytes: &[u8]) -> Option<(Version, Option<Ipv4Addr>)> {
    match *bytes {
        [NAT_PMP, RESPONSE, 0, 0, _, _, _, _, a, b, c, d, ..] => {
            Some((Version::NatPmp, Some(Ipv4Addr::new(a, b, c, d))))
        }
        [PCP, RESPONSE, _, 0, ..] if bytes.len() >= HEADER_LEN => Some((Version::Pcp, None)),
        _ => None,
    }
}

/// Makes a map request.
pub(super) fn map(version: Version, request: &MapRequest) -> Vec<u8> {
    let lifetime = seconds(request.lifetime).to_be_bytes();
    let (internal, external) = (request.internal.port().to_be_bytes(), request.external_port.to_be_bytes());
    match version {
        Version::NatPmp => {
            let mut bytes = vec![NAT_PMP, nat_pmp_opcode(request.protocol), 0, 0];
            bytes.extend_from_slice(&internal);
            bytes.extend_from_slice(&external);
            bytes.extend_from_slice(&lifetime);
            bytes
        }
        Version::Pcp => {
            let mut bytes = header(MAP, request.lifetime, request.internal.ip());
            bytes.extend_from_slice(&request.nonce);
            bytes.extend_from_slice(&[request.protocol.number(), 0, 0, 0]);
            bytes.extend_from_slice(&internal);
            bytes.extend_from_slice(&external);
            // RFC 6887 section 11.1: the address of all zeros in the family that is wanted.
            let any = if request.internal.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()
            } else {
                Ipv6Addr::UNSPECIFIED
            };
            bytes.extend_from_slice(&any.octets());
            bytes
        }
    }
}

/// Reads a response to `request`; `None` if it is none.
pub(super) fn parse_map(version: Version, request: &MapRequest, bytes: &[u8]) -> Option<MapResponse> {
    match version {
        Version::NatPmp => parse_nat_pmp_map(request, bytes),
        Version::Pcp => parse_pcp_map(request, bytes),
    }
}

fn parse_nat_pmp_map(request: &MapRequest, bytes: &[u8]) -> Option<MapResponse> {
    let opcode = RESPONSE | nat_pmp_opcode(request.protocol);
    let [NAT_PMP, found, high, low, rest @ ..] = bytes else { return None };
    if *found != opcode {
        return None;
    }
    let result = u16::from_be_bytes([*high, *low]);
    if result != 0 {
        return Some(MapResponse::Refused(result));
    }
    let (internal, port, lifetime) = (u16_at(rest, 4)?, u16_at(rest, 6)?, u32_at(rest, 8)?);
    let lifetime = Duration::from_secs(lifetime.into());
    let granted = Granted { address: None, port, lifetime };
    (internal == request.internal.port()).then_some(MapResponse::Granted(granted))
}

fn parse_pcp_map(request: &MapRequest, bytes: &[u8]) -> Option<MapResponse> {
    let [PCP, opcode, _, result, ..] = *bytes else { return None };
    if opcode != RESPONSE | MAP || bytes.len() < MAP_LEN {
        return None;
    }
    let is_ours = bytes[24..36] == request.nonce
        && bytes[36] == request.protocol.number()
        && u16_at(bytes, 40)? == request.internal.port();
    if !is_ours {
        return None;
    }
    if result != 0 {
        return Some(MapResponse::Refused(result.into()));
    }
    let address: [u8; 16] = bytes[44..60].try_into().ok()?;
    Some(MapResponse::Granted(Granted {
        address: Some(IpAddr::V6(address.into()).to_canonical()),
        port: u16_at(bytes, 42)?,
        lifetime: Duration::from_secs(u32_at(bytes, 4)?.into()),
    }))
}

fn nat_pmp_opcode(protocol: MappedProtocol) -> u8 {
    match protocol {
        MappedProtocol::Udp => 1,
        MappedProtocol::Tcp => 2,
    }
}

/// RFC 6887 section 7.1.
fn header(opcode: u8, lifetime: Duration, client: IpAddr) -> Vec<u8> {
    let client = match client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = vec![PCP, opcode, 0, 0];
    bytes.extend_from_slice(&seconds(lifetime).to_be_bytes());
    bytes.extend_from_slice(&client.octets());
    bytes
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(protocol: MappedProtocol) -> MapRequest {
        let internal = "10.0.0.5:4000".parse().unwrap();
        MapRequest {
            protocol,
            internal,
            external_port: 4000,
            lifetime: Duration::from_secs(3600),
            nonce: [7; 12],
        }
    }

    #[test]
    fn a_nat_pmp_request_is_that_of_the_rfc() {
        let bytes = map(Version::NatPmp, &request(MappedProtocol::Udp));
        assert_eq!(bytes, [0, 1, 0, 0, 0x0f, 0xa0, 0x0f, 0xa0, 0, 0, 0x0e, 0x10]);
        assert_eq!(hello(Version::NatPmp, [10, 0, 0, 5].into()), [0, 0]);
        assert_eq!(
            parse_hello(&[0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 7]),
            Some((Version::NatPmp, Some(Ipv4Addr::new(203, 0, 113, 7))))
        );
        assert_eq!(parse_hello(&[0, 128, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_nat_pmp_response_must_be_that_of_the_request() {
        let udp = request(MappedProtocol::Udp);
        let answer = [0, 129, 0, 0, 0, 0, 0, 9, 0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 60];
        let granted = Granted { address: None, port: 5000, lifetime: Duration::from_secs(60) };
        assert_eq!(parse_map(Version::NatPmp, &udp, &answer), Some(MapResponse::Granted(granted)));
        assert_eq!(parse_map(Version::NatPmp, &request(MappedProtocol::Tcp), &answer), None);
        let other = MapRequest { internal: "10.0.0.5:4001".parse().unwrap(), ..udp };
        assert_eq!(parse_map(Version::NatPmp, &other, &answer), None);
        let refused = [0, 129, 0, 2, 0, 0, 0, 9];
        assert_eq!(parse_map(Version::NatPmp, &udp, &refused), Some(MapResponse::Refused(2)));
    }

    #[test]
    fn a_pcp_response_has_the_nonce_of_its_request() {
        let udp = request(MappedProtocol::Udp);
        let mut answer = map(Version::Pcp, &udp);
        assert_eq!(answer.len(), MAP_LEN);
        assert_eq!(&answer[..8], [2, 1, 0, 0, 0, 0, 0x0e, 0x10]);
        assert_eq!(&answer[8..24], Ipv4Addr::new(10, 0, 0, 5).to_ipv6_mapped().octets());
        answer[1] |= RESPONSE;
        answer[42..44].copy_from_slice(&5000_u16.to_be_bytes());
        answer[44..60].copy_from_slice(&Ipv4Addr::new(203, 0, 113, 7).to_ipv6_mapped().octets());
        let granted = Granted {
            address: Some([203, 0, 113, 7].into()),
            port: 5000,
            lifetime: Duration::from_secs(3600),
        };
        assert_eq!(parse_map(Version::Pcp, &udp, &answer), Some(MapResponse::Granted(granted)));
        assert_eq!(parse_map(Version::Pcp, &MapRequest { nonce: [8; 12], ..udp }, &answer), None);
        answer[3] = 12;
        assert_eq!(parse_map(Version::Pcp, &udp, &answer), Some(MapResponse::Refused(12)));
    }

    proptest! {
        #[test]
        fn no_response_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), pcp: bool) {
            let version = if pcp { Version::Pcp } else { Version::NatPmp };
            let _ = parse_map(version, &request(MappedProtocol::Udp), &bytes);
            let _ = parse_hello(&bytes);
        }
    }
}
