//! The routers that the default routes name, as Linux lists them; elsewhere none is known.

use nix::net::if_::if_nametoindex;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A router, and for a link-local address the index of the interface that reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) address: IpAddr,
    pub(crate) scope_id: u32,
}

/// Returns the routers of the default routes, of each family the one with the lowest metric.
pub(crate) fn default_gateways() -> Vec<Gateway> {
    let v4 = fs::read_to_string("/proc/net/route").ok().and_then(|table| v4_gateway(&table));
    let v6 = fs::read_to_string("/proc/net/ipv6_route").ok().and_then(|table| v6_gateway(&table));
    let v4 = v4.map(|address| Gateway { address: address.into(), scope_id: 0 });
    let v6 = v6.map(|(address, interface)| {
        let index = if_nametoindex(interface.as_str()).unwrap_or(0);
        Gateway { address: address.into(), scope_id: if address.is_unicast_link_local() { index } else { 0 } }
    });
    v4.into_iter().chain(v6).collect()
}

/// Reads `/proc/net/route`: interface, destination, gateway, flags, reference count, use, metric, mask.
fn v4_gateway(table: &str) -> Option<Ipv4Addr> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, destination, gateway, _, _, _, metric, mask, ..] = fields[..] else { return None };
        // The words are in the byte order of the host.
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        let is_default = destination == "00000000" && mask == "00000000" && !gateway.is_unspecified();
        is_default.then_some((metric.parse::<u32>().ok()?, gateway))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

/// Reads `/proc/net/ipv6_route`: destination and its prefix length, source and its prefix length, next hop, metric, …, interface.
fn v6_gateway(table: &str) -> Option<(Ipv6Addr, String)> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "00", _, _, gateway, metric, .., interface] = fields[..] else { return None };
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        let metric = u32::from_str_radix(metric, 16).ok()?;
        (!gateway.is_unspecified()).then(|| (metric, gateway, interface.to_owned()))
    });
    let best = routes.min_by_key(|(metric, ..)| *metric)?;
    Some((best.1, best.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0\n\
                     eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(v4_gateway(table), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(v4_gateway(""), None);
    }

    #[test]
    fn an_ipv6_route_names_its_interface() {
        let table = "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0\n\
                     00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000003 00000000 00000003     eth0\n\
                     00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        let expected = ("fe80::1".parse().unwrap(), "eth0".to_owned());
        assert_eq!(v6_gateway(table), Some(expected));
    }
}
