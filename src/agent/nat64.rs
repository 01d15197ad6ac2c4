//! IPv4 peers of a host that has only IPv6: their addresses in the network's NAT64 prefix
//! ([RFC 6052](https://www.rfc-editor.org/rfc/rfc6052), [RFC 7050](https://www.rfc-editor.org/rfc/rfc7050)).
//!
//! Only prefixes of 96 bits are used. A prefix that no NAT64 has costs a few checks that nobody answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The name whose IPv6 addresses show the prefix (RFC 7050 section 3).
pub(super) const WELL_KNOWN_NAME: &str = "ipv4only.arpa";
/// The IPv4 addresses of that name.
const WELL_KNOWN_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The prefix of a NAT64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nat64Prefix([u8; 12]);

impl Nat64Prefix {
    /// 64:ff9b::/96.
    pub(super) const WELL_KNOWN: Self = Self([0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]);

    /// Finds the prefix in an IPv6 address of [`WELL_KNOWN_NAME`].
    pub(super) fn of_answer(answer: Ipv6Addr) -> Option<Self> {
        let octets = answer.octets();
        let (prefix, inner) = octets.split_first_chunk::<12>()?;
        let inner: [u8; 4] = inner.try_into().ok()?;
        WELL_KNOWN_ADDRESSES.contains(&Ipv4Addr::from(inner)).then_some(Self(*prefix))
    }

    /// Returns the address by which the NAT64 reaches an IPv4 address of the internet; `None` for every other address.
    pub(super) fn synthesize(self, address: SocketAddr) -> Option<SocketAddr> {
        let IpAddr::V4(ip) = address.ip() else { return None };
        let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64;
        let is_local = ip.is_private() || ip.is_loopback() || ip.is_link_local() || is_shared;
        if is_local || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            return None;
        }
        let mut octets = [0; 16];
        octets[..12].copy_from_slice(&self.0);
        octets[12..].copy_from_slice(&ip.octets());
        Some(SocketAddr::new(Ipv6Addr::from(octets).into(), address.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_in_the_answer() {
        for (answer, expected) in [
            ("64:ff9b::192.0.0.170", Some("64:ff9b::203.0.113.9")),
            ("2001:db8:1::192.0.0.171", Some("2001:db8:1::203.0.113.9")),
            ("2001:db8::1", None),
        ] {
            let prefix = Nat64Prefix::of_answer(answer.parse().unwrap());
            let synthesized =
                prefix.and_then(|prefix| prefix.synthesize("203.0.113.9:5000".parse().unwrap()));
            let expected = expected.map(|ip| SocketAddr::new(ip.parse().unwrap(), 5000));
            assert_eq!(synthesized, expected, "{answer}");
        }
    }

    #[test]
    fn local_addresses_and_ipv6_are_not_translated() {
        for address in
            ["10.0.0.1:1", "100.64.0.1:1", "127.0.0.1:1", "169.254.1.1:1", "224.0.0.1:1", "[2001:db8::1]:1"]
        {
            assert_eq!(Nat64Prefix::WELL_KNOWN.synthesize(address.parse().unwrap()), None, "{address}");
        }
    }
}
