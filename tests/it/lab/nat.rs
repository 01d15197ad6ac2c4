//! A NAT of a given kind: a namespace between an inner network and the internet, with nftables rules.

use std::cell::Cell;
use std::net::Ipv4Addr;

use super::{Host, Net, inside, ip, nft};

/// Mapping and filtering of a NAT, in terms of RFC 4787 and RFC 3489.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NatKind {
    /// One port for all peers; every source passes. One inner host only.
    FullCone,
    /// One port for all peers; known addresses pass from any port. One inner host only.
    AddressRestricted,
    /// One port for all peers; only known addresses and ports pass.
    PortRestricted,
    /// A random port for each peer; only that peer may answer.
    Symmetric,
    /// No UDP at all; TCP passes.
    UdpBlocked,
    /// Nothing but TCP to port 443, as in many offices.
    Port443,
}

impl NatKind {
    /// The first inner host gets what the outside begins, where the kind lets it in.
    fn ruleset(self, first_host: Ipv4Addr) -> String {
        let masquerade = match self {
            Self::Symmetric => "masquerade random,fully-random",
            _ => "masquerade",
        };
        let inbound = match self {
            Self::FullCone => format!("iifname out meta l4proto udp dnat to {first_host}"),
            Self::AddressRestricted => {
                format!("iifname out ip saddr . udp dport @written dnat to {first_host}")
            }
            Self::PortRestricted | Self::Symmetric | Self::UdpBlocked | Self::Port443 => String::new(),
        };
        let outbound = match self {
            Self::AddressRestricted => "iifname in meta l4proto udp update @written { ip daddr . udp sport }",
            Self::UdpBlocked => "meta l4proto udp drop",
            Self::Port443 => "iifname in tcp dport != 443 drop; iifname in meta l4proto != tcp drop",
            Self::FullCone | Self::PortRestricted | Self::Symmetric => "",
        };
        // Input drops unsolicited packets: one that got a conntrack entry of its own would take
        // the port that the inner host's next packet to that peer needs.
        format!(
            "table ip nat {{
               set written {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65535; }}
               chain pre {{ type nat hook prerouting priority dstnat; {inbound}; }}
               chain post {{ type nat hook postrouting priority srcnat; oifname out {masquerade}; }}
               chain input {{ type filter hook input priority filter; policy drop; ip protocol icmp accept; }}
               chain forward {{
                 type filter hook forward priority filter; policy drop;
                 {outbound}
                 iifname in accept
                 ct state established,related accept
                 ct status dnat accept
               }}
             }}"
        )
    }
}

impl Nat {
    /// Throws away `percent` of the UDP packets in each direction from now on.
    pub(crate) fn lose(&self, percent: u8) {
        nft(
            &self.namespace,
            &format!(
                "add chain ip nat loss {{ type filter hook forward priority -10; }}
                 add rule ip nat loss meta l4proto udp numgen random mod 100 < {percent} drop"
            ),
        );
    }
}

impl Nat {
    /// The router itself, at its outer address.
    pub(crate) fn router(&self) -> Host {
        Host { namespace: self.namespace.clone(), address: Ipv4Addr::new(203, 0, 113, self.octet) }
    }

    /// Throws away whatever comes, silently, until [`Nat::mend`].
    pub(crate) fn cut(&self) {
        nft(&self.namespace, "add chain ip nat cut { type filter hook forward priority -20; policy drop; }");
    }

    /// Forgets a UDP mapping that was idle for so many seconds.
    pub(crate) fn forget_after(&self, seconds: u8) {
        for kind in ["", "_stream"] {
            let file = format!("/proc/sys/net/netfilter/nf_conntrack_udp_timeout{kind}");
            inside(&self.namespace, &format!("echo {seconds} > {file}"));
        }
    }

    /// Lets everything through again.
    pub(crate) fn mend(&self) {
        nft(&self.namespace, "delete chain ip nat cut");
    }
}

/// A NAT with the outer address 203.0.113.`octet` and the inner network 10.`octet`.0.0/24.
pub(crate) struct Nat {
    namespace: String,
    octet: u8,
    hosts: Cell<u8>,
}

impl Net {
    /// Adds a NAT.
    pub(crate) fn nat(&self, kind: NatKind, octet: u8) -> Nat {
        let namespace = self.namespace(&format!("n{octet}"));
        self.plug(&namespace, "out", octet);
        ip(&namespace, "route add default via 203.0.113.1\n");
        translate(namespace, kind, octet)
    }

    /// Gives a NAT an outer address besides, outside the blocks for documentation, and returns it.
    pub(crate) fn add_outer_address(&self, nat: &Nat) -> Ipv4Addr {
        let (address, octet) = (Ipv4Addr::new(198, 41, 0, nat.octet), nat.octet);
        ip(&nat.namespace, &format!("addr add {address}/32 dev out\n"));
        ip(&format!("{}-inet", self.name), &format!("route add {address} via 203.0.113.{octet}\n"));
        address
    }

    /// Adds a NAT behind another one, on its inner network: for its hosts, the second of two layers.
    pub(crate) fn nat_behind(&self, outer: &Nat, kind: NatKind, octet: u8) -> Nat {
        let namespace = self.namespace(&format!("n{octet}"));
        self.connect(outer, &namespace, "out");
        translate(namespace, kind, octet)
    }

    /// Adds a host behind `nat`, on its inner network.
    pub(crate) fn behind(&self, nat: &Nat) -> Host {
        let namespace = self.namespace(&format!("n{}h{}", nat.octet, nat.hosts.get() + 2));
        let address = self.connect(nat, &namespace, "eth0");
        Host { namespace, address }
    }

    /// Puts a namespace on the inner network of `nat` and returns its address there.
    fn connect(&self, nat: &Nat, namespace: &str, device: &str) -> Ipv4Addr {
        let number = nat.hosts.get() + 2;
        nat.hosts.set(number - 1);
        let octet = nat.octet;
        ip(
            &nat.namespace,
            &format!(
                "link add p{number} type veth peer name {device} netns {namespace}\n\
                 link set p{number} master in up\n"
            ),
        );
        let address = Ipv4Addr::new(10, octet, 0, number);
        ip(
            namespace,
            &format!(
                "link set {device} up\n\
                 addr add {address}/24 dev {device}\n\
                 route add default via 10.{octet}.0.1\n"
            ),
        );
        address
    }
}

/// Makes a NAT of a namespace whose outer side stands.
pub(super) fn translate(namespace: String, kind: NatKind, octet: u8) -> Nat {
    ip(
        &namespace,
        &format!(
            "link add in type bridge\n\
             link set in up\n\
             addr add 10.{octet}.0.1/24 dev in\n"
        ),
    );
    inside(&namespace, "echo 1 > /proc/sys/net/ipv4/ip_forward");
    nft(&namespace, &kind.ruleset(Ipv4Addr::new(10, octet, 0, 2)));
    Nat { namespace, octet, hosts: Cell::new(0) }
}
