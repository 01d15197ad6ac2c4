//! Which local addresses become host candidates, and in which order.
//!
//! A host with containers has many addresses that no peer can reach. The addresses of the default routes go first, those of container bridges
//! last, and there are at most [`MAX_HOSTS`]. Among equals the families take turns, so that a broken one does not delay the other
//! ([RFC 8421 section 4](https://www.rfc-editor.org/rfc/rfc8421#section-4)).

use crate::net::interfaces::{self, AddressScope, scope};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Most host candidates.
const MAX_HOSTS: usize = 8;
/// Interfaces of containers and virtual machines.
const BRIDGES: [&str; 8] = ["docker", "br-", "veth", "virbr", "cni", "podman", "lxc", "flannel"];
/// Addresses that stand for the internet (RFC 5737, RFC 3849); nothing is sent to them.
const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))];

/// Lists the addresses of host candidates, the best first. Loopback addresses serve only a server on this host.
pub(super) fn host_addresses(server: SocketAddr) -> Vec<IpAddr> {
    let named = interfaces::named_addresses().unwrap_or_default();
    let default = ELSEWHERE.into_iter().chain([server.ip()]).filter_map(source_address);
    order(named, &default.collect::<Vec<_>>(), server.ip().is_loopback())
}

fn order(named: Vec<(String, IpAddr)>, default: &[IpAddr], with_loopback: bool) -> Vec<IpAddr> {
    let is_usable = |ip: &IpAddr| match scope(*ip) {
        AddressScope::Link => false,
        AddressScope::Loopback => with_loopback,
        AddressScope::Global | AddressScope::Private => true,
    };
    let mut ordered: Vec<(String, IpAddr)> = named.into_iter().filter(|(_, ip)| is_usable(ip)).collect();
    let rank = |(name, ip): &(String, IpAddr)| {
        (!default.contains(ip), BRIDGES.iter().any(|bridge| name.starts_with(bridge)))
    };
    ordered.sort_by_key(|named| (rank(named), scope(named.1)));
    let mut places = HashMap::new();
    let mut placed: Vec<_> = ordered
        .into_iter()
        .map(|named| {
            let place = places.entry((rank(&named), named.1.is_ipv4())).or_insert(0);
            *place += 1;
            (rank(&named), *place, named.1)
        })
        .collect();
    placed.sort_by_key(|(rank, place, ip)| (*rank, *place, ip.is_ipv4()));
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (_, _, ip) in placed {
        if addresses.len() < MAX_HOSTS && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

/// Returns the local address from which the system would send to `remote`.
pub(super) fn source_address(remote: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((remote, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_routes_go_first_and_bridges_last() {
        let mut named: Vec<(String, IpAddr)> =
            (0..20_u8).map(|index| (format!("docker{index}"), IpAddr::from([172, 17, index, 1]))).collect();
        for (name, ip) in [
            ("lo", "127.0.0.1"),
            ("eth1", "10.9.0.2"),
            ("eth0", "192.168.1.7"),
            ("eth0", "2001:db8::7"),
            ("eth0", "fe80::7"),
            ("wg0", "10.64.0.2"),
        ] {
            named.push((name.to_owned(), ip.parse().unwrap()));
        }
        let default = ["192.168.1.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let ordered = order(named.clone(), &default, false);
        assert_eq!(ordered.len(), MAX_HOSTS);
        let first: Vec<String> = ordered[..4].iter().map(IpAddr::to_string).collect();
        assert_eq!(first, ["2001:db8::7", "192.168.1.7", "10.9.0.2", "10.64.0.2"]);
        assert!(order(named, &default, true).contains(&IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn the_families_take_turns() {
        let many = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "10.0.0.1", "10.0.0.2"];
        let named = |name: &str| ("eth0".to_owned(), name.parse().unwrap());
        let ordered = order(many.map(named).to_vec(), &["2001:db8::4".parse().unwrap()], false);
        let ordered: Vec<String> = ordered.iter().map(IpAddr::to_string).collect();
        let expected = ["2001:db8::4", "2001:db8::1", "10.0.0.1", "2001:db8::2", "10.0.0.2", "2001:db8::3"];
        assert_eq!(ordered, expected);
    }
}
