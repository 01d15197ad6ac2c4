//! A NAT64 of a [`RoutedNet`], and the DNS that tells its prefix.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::{Link, RoutedHost, RoutedNet};
use crate::proc::{Proc, Stdout};

const UP: Duration = Duration::from_secs(30);
const NAT64: u8 = 64;
/// Its IPv6 address, where it also answers DNS.
pub(crate) const NAT64_V6: &str = "2001:db8::64";
/// Tayga takes the laboratory's addresses for private ones, which the well-known prefix must not have.
const NAT64_PREFIX: &str = "2001:db8:64:ff9b::";

/// A running NAT64. The processes go before the host.
pub(crate) struct Nat64 {
    pub(crate) processes: Vec<Proc>,
    pub(crate) host: RoutedHost,
}

/// Starts a NAT64, stateful by the masquerade behind it, with its files in `folder`.
pub(crate) fn start_nat64(net: &RoutedNet, link: Link, folder: &Path) -> Nat64 {
    let host = net.public(NAT64, link);
    net.add_ipv6(&host, NAT64_V6);
    let [own, v6, wide]: [IpAddr; 3] = ["203.0.113.64", NAT64_V6, NAT64_PREFIX].map(|ip| ip.parse().unwrap());
    net.set_prefixes(&host, vec![(own, 32), (v6, 128), (wide, 96)]);
    let config = folder.join("tayga.conf");
    let text = format!(
        "tun-device nat64\nipv4-addr 192.168.255.1\nipv6-addr 2001:db8:64::1\nprefix {NAT64_PREFIX}/96\n\
         dynamic-pool 192.168.255.0/24\ndata-dir {}\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    host.run("tayga", &["--config", config, "--mktun"]);
    let script = format!(
        "
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        ip link set nat64 up; ip addr add 192.168.255.254 dev nat64
        ip route add 192.168.255.0/24 dev nat64; ip route add {NAT64_PREFIX}/96 dev nat64"
    );
    host.run("sh", &["-ec", &script]);
    host.nft(
        "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname eth0 ip saddr 192.168.255.0/24 masquerade; }; }",
    );
    let mut command = host.command("tayga");
    command.args(["--config", config, "--nodetach"]);
    let tayga = Proc::start("tayga", command, Stdout::Lines);
    let dns = host.python("dns64.py", &[NAT64_V6, NAT64_PREFIX]);
    dns.expect("start", UP, |line| (line == "ready").then_some(()));
    Nat64 { processes: vec![tayga, dns], host }
}
