//! The addresses of the host's interfaces, and their scopes.

use nix::ifaddrs::getifaddrs;
use std::io;
use std::net::IpAddr;

/// Lists every address of every interface.
///
/// # Errors
/// When the system does not list them.
pub(crate) fn addresses() -> io::Result<Vec<IpAddr>> {
    Ok(named_addresses()?.into_iter().map(|(_, ip)| ip).collect())
}

/// Lists every address with the name of its interface.
///
/// # Errors
/// When the system does not list them.
pub(crate) fn named_addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))?;
        Some((interface.interface_name, ip))
    });
    Ok(addresses.collect())
}

/// Where an address is valid, the widest scope first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AddressScope {
    /// The whole internet.
    Global,
    /// One site: RFC 1918, unique local, carrier NAT.
    Private,
    /// This host only.
    Loopback,
    /// One link; of no use without a scope.
    Link,
}

/// Returns the scope of `ip`.
#[must_use]
pub(crate) fn scope(ip: IpAddr) -> AddressScope {
    match ip {
        _ if ip.is_loopback() => AddressScope::Loopback,
        IpAddr::V4(v4) if v4.is_link_local() || v4.is_unspecified() => AddressScope::Link,
        IpAddr::V4(v4) if v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xC0 == 64) => {
            AddressScope::Private
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_unspecified() => AddressScope::Link,
        IpAddr::V6(v6) if v6.is_unique_local() => AddressScope::Private,
        _ => AddressScope::Global,
    }
}

/// Returns the address of one family in `own` with the widest scope; of equals the first.
#[must_use]
pub(crate) fn widest_scope(own: &[IpAddr], v6: bool) -> Option<IpAddr> {
    let usable = own.iter().filter(|ip| ip.is_ipv6() == v6 && scope(**ip) != AddressScope::Link);
    usable.min_by_key(|ip| scope(**ip)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_with_the_widest_scope_of_a_family_is_chosen() {
        let own: Vec<IpAddr> = ["127.0.0.1", "10.0.0.1", "198.41.0.4", "::1", "fe80::1", "169.254.1.1"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(widest_scope(&own, false), Some(own[2]));
        assert_eq!(widest_scope(&own[..2], false), Some(own[1]));
        assert_eq!(widest_scope(&own, true), Some(own[3]));
        assert_eq!(widest_scope(&own[4..], true), None);
        assert_eq!(widest_scope(&own[5..], false), None);
    }
}
