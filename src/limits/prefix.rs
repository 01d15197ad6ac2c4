//! Network prefixes: the lists of the configuration, and the network that several addresses of one client are counted as. Pure.

use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The length of the prefix that all IPv4-mapped addresses share.
const MAPPED: u8 = 96;

/// An IPv4 or IPv6 network, as in CIDR notation. IPv4-mapped IPv6 addresses are IPv4 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct NetworkPrefix {
    /// The first address; IPv4 is IPv4-mapped.
    first: [u8; 16],
    /// The length in bits, of 128 for IPv4 too.
    len: u8,
}

/// Why a text is no [`NetworkPrefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no prefix: write an address, or ADDRESS/LENGTH such as 10.0.0.0/8")]
pub struct PrefixError(String);

impl NetworkPrefix {
    /// Returns the network around `ip` whose prefix has `v4_len` bits for IPv4 and `v6_len` bits for IPv6; more than an address has
    /// are as many as it has.
    #[must_use]
    pub fn new(ip: IpAddr, v4_len: u8, v6_len: u8) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::from_bits(ip.to_ipv6_mapped().to_bits(), MAPPED + v4_len.min(32)),
            IpAddr::V6(ip) => Self::from_bits(ip.to_bits(), v6_len.min(128)),
        }
    }

    fn from_bits(bits: u128, len: u8) -> Self {
        Self { first: (bits & mask(len)).to_be_bytes(), len }
    }

    fn is_ipv4(&self) -> bool {
        self.len >= MAPPED && IpAddr::from(self.first).to_canonical().is_ipv4()
    }

    #[cfg(feature = "server")]
    /// Returns what one subscriber usually has: an IPv4 address, or an IPv6 /64.
    #[must_use]
    pub fn subscriber(ip: IpAddr) -> Self {
        Self::new(ip, 32, 64)
    }

    #[cfg(feature = "server")]
    /// Returns what one site usually has: an IPv4 /24, or an IPv6 /48.
    #[must_use]
    pub fn site(ip: IpAddr) -> Self {
        Self::new(ip, 24, 48)
    }

    #[cfg(feature = "server")]
    /// Returns the IPv4 and IPv6 loopback networks.
    #[must_use]
    pub fn loopback() -> Vec<Self> {
        vec![Self::new([127, 0, 0, 1].into(), 8, 8), Self::new(Ipv6Addr::LOCALHOST.into(), 128, 128)]
    }

    /// Returns whether `ip` is in the network. An IPv6 network has no IPv4 addresses.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (bits, is_ipv4) = match ip.to_canonical() {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), true),
            IpAddr::V6(ip) => (ip.to_bits(), false),
        };
        (bits ^ u128::from_be_bytes(self.first)) & mask(self.len) == 0 && is_ipv4 == self.is_ipv4()
    }

    #[cfg(any(feature = "server", feature = "forward"))]
    /// Returns whether `ip` is in one of `list`.
    #[must_use]
    pub fn any_contains(list: &[Self], ip: IpAddr) -> bool {
        list.iter().any(|prefix| prefix.contains(ip))
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl FromStr for NetworkPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let error = || PrefixError(text.to_owned());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let ip: IpAddr = address.parse().map_err(|_| error())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        // A sign is no digit.
        let is_number = |len: &&str| len.bytes().all(|byte| byte.is_ascii_digit());
        let len: u8 = match len {
            Some(len) => len.parse().ok().filter(|_| is_number(&len)).ok_or_else(error)?,
            None => longest,
        };
        if len > longest {
            return Err(error());
        }
        Ok(match ip {
            IpAddr::V4(ip) => Self::from_bits(ip.to_ipv6_mapped().to_bits(), MAPPED + len),
            IpAddr::V6(ip) => Self::from_bits(ip.to_bits(), len),
        })
    }
}

impl TryFrom<String> for NetworkPrefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl fmt::Display for NetworkPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = IpAddr::from(self.first);
        match self.is_ipv4() {
            true => write!(f, "{}/{}", first.to_canonical(), self.len - MAPPED),
            false => write!(f, "{first}/{}", self.len),
        }
    }
}

impl fmt::Debug for NetworkPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> NetworkPrefix {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_subscribers_many_ipv6_addresses_are_one_network() {
        let of = |text: &str| NetworkPrefix::subscriber(ip(text));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_site_is_a_24_or_a_48() {
        let of = |text: &str| NetworkPrefix::site(ip(text)).to_string();
        assert_eq!(of("192.0.2.129"), "192.0.2.0/24");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.0/24");
        assert_eq!(of("2001:db8:1:ffff::2"), "2001:db8:1::/48");
    }

    #[test]
    fn a_prefix_is_written_as_it_is_read_and_an_address_is_its_whole_length() {
        for (text, written) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
        ] {
            assert_eq!(prefix(text).to_string(), written, "{text}");
        }
        for text in
            ["", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "::/129", "10.0.0/8", "a/8", "10.0.0.0/8/8"]
        {
            let error = text.parse::<NetworkPrefix>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is no prefix: ")), "{error}");
        }
    }

    #[test]
    fn all_of_one_family_are_none_of_the_other() {
        assert!(prefix("0.0.0.0/0").contains(ip("192.0.2.1")) && prefix("::/0").contains(ip("2001:db8::1")));
        assert!(prefix("0.0.0.0/0").contains(ip("::ffff:192.0.2.1")));
        assert!(
            !prefix("0.0.0.0/0").contains(ip("2001:db8::1")) && !prefix("::/0").contains(ip("192.0.2.1"))
        );
        let loopback = NetworkPrefix::loopback();
        let within = |text| NetworkPrefix::any_contains(&loopback, ip(text));
        assert!(["127.0.0.1", "127.200.0.1", "::1", "::ffff:127.0.0.1"].into_iter().all(within));
        assert!(!["128.0.0.1", "::2"].into_iter().any(within));
    }

    proptest! {
        #[test]
        fn a_network_has_the_addresses_that_share_its_first_bits(
            bits: u128, flip in 0_u32..128, len in 0_u8..=128,
        ) {
            let (ip, other) = (Ipv6Addr::from_bits(bits), Ipv6Addr::from_bits(bits ^ (1 << (127 - flip))));
            prop_assume!(ip.to_ipv4_mapped().is_none() && other.to_ipv4_mapped().is_none());
            let network = NetworkPrefix::new(ip.into(), 0, len);
            prop_assert!(network.contains(ip.into()));
            prop_assert_eq!(network.contains(other.into()), u32::from(len) <= flip);
            prop_assert_eq!(prefix(&network.to_string()), network);
        }
    }
}
