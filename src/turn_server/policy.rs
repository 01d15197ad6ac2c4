//! Which peers may be reached: one filter for every operation that names a peer.
//!
//! Addresses of IANA's special-purpose registries and of this host are denied by default. An IPv6 address that embeds an IPv4 address is
//! checked as both.

use super::ports::RelayPorts;
use crate::limits::NetworkPrefix;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A peer's transport address in canonical form: an IPv4-mapped IPv6 address cannot be built, it becomes IPv4.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerAddr {
    /// An IPv4 address in its mapped form.
    ip: [u8; 16],
    port: u16,
}

impl PeerAddr {
    /// Canonicalises `address`.
    #[must_use]
    pub(crate) fn new(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self { ip, port: address.port() }
    }

    /// Returns the address.
    #[must_use]
    pub(crate) fn ip(self) -> IpAddr {
        match self.ip {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, a, b, c, d] => IpAddr::from([a, b, c, d]),
            v6 => IpAddr::from(v6),
        }
    }

    /// Returns the port.
    #[must_use]
    pub(crate) fn port(self) -> u16 {
        self.port
    }

    /// Returns the address with port 0, which means any port.
    pub(super) fn without_port(self) -> Self {
        Self { port: 0, ..self }
    }

    /// Returns both, for the socket.
    #[must_use]
    pub(crate) fn socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }
}

impl fmt::Debug for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerAddr").field(&self.socket_addr()).finish()
    }
}

/// The rule that denied a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PolicyDenial {
    /// An address of this host, at a port that is not a relayed address.
    OwnAddress,
    /// A prefix of the special-purpose table.
    Special(&'static str),
    /// One of the operator's `deny_peers`.
    Operator(NetworkPrefix),
    /// The embedder's [`PermissionHandler`](super::PermissionHandler).
    PermissionHandler,
}

impl PolicyDenial {
    /// Returns the rule's name, for metrics: `own address`, `deny_peers`, `permission handler`, or the purpose in IANA's registry, such as `private`.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::OwnAddress => "own address",
            Self::Special(rule) => rule,
            Self::Operator(_) => "deny_peers",
            Self::PermissionHandler => "permission handler",
        }
    }
}

impl fmt::Display for PolicyDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(net) => write!(f, "deny_peers {net}"),
            _ => f.write_str(self.name()),
        }
    }
}

/// Configures which peers may be reached.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PolicyConfig {
    /// Prefixes allowed although the table denies them.
    pub allow_peers: Vec<NetworkPrefix>,
    /// Prefixes denied besides the table; they win over `allow_peers`.
    pub deny_peers: Vec<NetworkPrefix>,
    /// Addresses of this host as seen from outside; they do not change.
    pub own_addresses: Vec<IpAddr>,
    /// Those of its interfaces, sorted; `PeerPolicy::on_interfaces` replaces them when they change.
    pub interfaces: Arc<[IpAddr]>,
    /// Ports that this server listens on, those of every service: never reachable at an address that leads to this host, whatever is
    /// allowed.
    pub own_ports: Vec<u16>,
}

/// Decides which peers may be reached.
#[derive(Debug, Clone)]
pub(crate) struct PeerPolicy {
    config: PolicyConfig,
    relayed: Arc<RelayPorts>,
}

/// Special-purpose prefixes that no peer may have ([IANA](https://www.iana.org/assignments/iana-ipv4-special-registry)).
const SPECIAL: [(&str, &str); 36] = [
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.31.196.0/24", "AS112"),
    ("192.52.193.0/24", "AMT"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "AS112"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible"),
    ("64:ff9b:1::/48", "local NAT64"),
    ("100::/64", "discard"),
    ("100:0:0:1::/64", "dummy prefix"),
    ("2001:2::/48", "benchmarking"),
    ("2001:3::/32", "AMT"),
    ("2001:10::/28", "ORCHID"),
    ("2001:20::/28", "ORCHIDv2"),
    ("2001:30::/28", "drone remote id"),
    ("2001:db8::/32", "documentation"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
];

impl PeerPolicy {
    /// Creates the policy from the operator's lists and the table of relayed addresses, which remain reachable.
    #[must_use]
    pub(crate) fn new(config: PolicyConfig, relayed: Arc<RelayPorts>) -> Self {
        Self { config, relayed }
    }

    /// Decides whether `peer` may be reached. Port 0 means any port at an own address: a permission names
    /// no port (RFC 8656 section 9).
    ///
    /// # Errors
    /// [`PolicyDenial`] names the rule.
    pub(crate) fn check(&self, peer: PeerAddr) -> Result<(), PolicyDenial> {
        let ip = peer.ip();
        if self.relayed.serves(ip) && (peer.port() == 0 || self.relayed.is_leased(peer.socket_addr())) {
            return Ok(());
        }
        let embedded = || embedded(ip);
        let leads_here = self.checks_ports(ip);
        let within = |list: &[NetworkPrefix]| {
            embedded().find_map(|ip| list.iter().copied().find(|net| net.contains(ip)))
        };
        // The system treats the unspecified address as its own.
        if ip.is_unspecified() || (leads_here && self.config.own_ports.contains(&peer.port())) {
            return Err(PolicyDenial::OwnAddress);
        }
        if let Some(net) = within(&self.config.deny_peers) {
            return Err(PolicyDenial::Operator(net));
        }
        if within(&self.config.allow_peers).is_some() {
            return Ok(());
        }
        if embedded().any(|ip| self.is_own(ip)) {
            return Err(PolicyDenial::OwnAddress);
        }
        embedded().find_map(special).map_or(Ok(()), |rule| Err(PolicyDenial::Special(rule)))
    }

    /// Returns whether `ip` is an address of this host, where a permission does not open all ports.
    #[must_use]
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.relayed.serves(ip)
            || self.config.own_addresses.contains(&ip)
            // Loopback has a rule of its own, which `allow_peers` may lift.
            || (self.config.interfaces.binary_search(&ip).is_ok() && !ip.is_loopback())
    }

    /// Returns whether what `peer` may send or receive depends on its port: at every address that leads to this host in any spelling,
    /// groups that it may have joined among them.
    #[must_use]
    pub(crate) fn checks_ports(&self, ip: IpAddr) -> bool {
        let leads_here =
            |ip: IpAddr| self.is_own(ip) || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        embedded(ip).any(leads_here)
    }

    /// Returns the same policy for a host whose interfaces have other addresses.
    #[must_use]
    pub(crate) fn on_interfaces(&self, interfaces: Arc<[IpAddr]>) -> Self {
        let config = PolicyConfig { interfaces, ..self.config.clone() };
        Self { config, relayed: Arc::clone(&self.relayed) }
    }
}

/// Returns the rule that keeps `ip` from being a peer: one of the special-purpose table, or that it is no global unicast address
/// ([RFC 4291 section 2.4](https://www.rfc-editor.org/rfc/rfc4291#section-2.4) and
/// [IANA](https://www.iana.org/assignments/ipv6-address-space)).
fn special(ip: IpAddr) -> Option<&'static str> {
    let listed = TABLE.with(|table| table.iter().find(|(net, _)| net.contains(ip)).map(|(_, rule)| *rule));
    let IpAddr::V6(v6) = ip else { return listed };
    listed.or_else(|| match v6.segments() {
        // Teredo is judged by the IPv4 addresses inside.
        [0x2001, 1..=0x1ff, ..] => Some("protocol assignments"),
        [0x2000..=0x3fff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => None,
        _ => Some("not global unicast"),
    })
}

thread_local! {
    static TABLE: Vec<(NetworkPrefix, &'static str)> =
        SPECIAL.iter().filter_map(|(net, rule)| Some((net.parse().ok()?, *rule))).collect();
}

/// Lists an address and what it may lead to besides.
fn embedded(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    std::iter::once(ip).chain(embedded_v4(ip).map(IpAddr::V4))
}

/// Returns the IPv4 addresses inside an IPv6 address: IPv4-compatible, IPv4-translated (RFC 2765), 6to4, NAT64 (RFC 6052), Teredo's server
/// and client, and ISATAP's (RFC 5214), which can follow any prefix.
fn embedded_v4(ip: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let s = match ip {
        IpAddr::V4(_) => [0xffff; 8],
        IpAddr::V6(v6) => v6.segments(),
    };
    let pair = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    let by_prefix = match s {
        [0, 0, 0, 0, 0, 0, high, low] if Ipv6Addr::from(s) != Ipv6Addr::LOCALHOST => [pair(high, low), None],
        [0, 0, 0, 0, 0xffff, 0, high, low] => [pair(high, low), None],
        [0x2002, high, low, ..] => [pair(high, low), None],
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [pair(high, low), None],
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [pair(high, low), pair(!client_high, !client_low)]
        }
        _ => [None, None],
    };
    let by_interface = match s {
        [.., 0 | 0x200, 0x5efe, high, low] => pair(high, low),
        _ => None,
    };
    by_prefix.into_iter().chain([by_interface]).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn_server::ports::RelayAddress;

    fn policy(allow: &[&str], deny: &[&str]) -> PeerPolicy {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let relayed = RelayPorts::new(
            &[RelayAddress {
                local: "198.41.0.4".parse().unwrap(),
                advertised: "198.41.0.4".parse().unwrap(),
            }],
            50_000..=50_003,
        );
        PeerPolicy::new(
            PolicyConfig {
                allow_peers: nets(allow),
                deny_peers: nets(deny),
                own_addresses: vec!["198.41.0.9".parse().unwrap()],
                own_ports: vec![3478, 3480],
                ..PolicyConfig::default()
            },
            Arc::new(relayed),
        )
    }

    fn check(policy: &PeerPolicy, peer: &str) -> Result<(), PolicyDenial> {
        policy.check(PeerAddr::new(peer.parse().unwrap()))
    }

    #[test]
    fn special_addresses_are_denied_in_every_spelling() {
        let policy = policy(&[], &[]);
        for peer in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "0.1.2.3:80",
            "10.0.0.1:80",
            "172.31.0.1:80",
            "192.168.1.1:80",
            "169.254.169.254:80",
            "100.64.0.1:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "203.0.113.1:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:10.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[2002:7f00:1::]:80",
            "[64:ff9b::a00:1]:80",
            "[64:ff9b:1::1]:80",
            "[2001:0:1:1:1:1:80ff:fffe]:80",
            "[fe80::1]:80",
            "[fc00::1]:80",
            "[ff02::1]:80",
            "[2001:db8::1]:80",
            "[fec0::1]:80",
            "[2001:5::1]:80",
            "[2001:1ff::1]:80",
            "[2001:1::1]:80",
            "[::ffff:0:127.0.0.1]:80",
            "[::ffff:0:8.8.8.8]:80",
            "[fe80::5efe:7f00:1]:80",
            "[2a01:4f8::5efe:7f00:1]:80",
            "[2a01:4f8::200:5efe:10.0.0.1]:80",
            "[2002:808:808::5efe:127.0.0.1]:80",
            "[2001:0:7f00:1:0:0:f7f7:f7f7]:80",
            "[64:ff9b::7f00:1]:80",
            "[64:ff9c::808:808]:80",
            "[4000::1]:80",
            "[e000::1]:80",
            "[1fff::1]:80",
        ] {
            assert!(
                matches!(check(&policy, peer), Err(PolicyDenial::Special(_))),
                "{peer}: {:?}",
                check(&policy, peer)
            );
        }
        for peer in [
            "8.8.8.8:80",
            "[2606:4700::1]:80",
            "[64:ff9b::808:808]:80",
            "172.32.0.1:80",
            "[2000::1]:80",
            "[2001:200::1]:80",
            "[2a01:4f8::5efe:808:808]:80",
            "[2a01:4f8::9]:80",
        ] {
            assert_eq!(check(&policy, peer), Ok(()), "{peer}");
        }
    }

    #[test]
    fn own_addresses_are_denied_but_for_leased_relay_ports() {
        let policy = policy(&["198.41.0.0/24"], &[]);
        assert_eq!(check(&policy, "198.41.0.9:3478"), Err(PolicyDenial::OwnAddress));
        assert_eq!(check(&policy, "[::ffff:198.41.0.4]:3478"), Err(PolicyDenial::OwnAddress));
        let strict = super::tests::policy(&[], &[]);
        assert_eq!(check(&strict, "198.41.0.9:22"), Err(PolicyDenial::OwnAddress));
        assert_eq!(check(&strict, "198.41.0.4:50000"), Err(PolicyDenial::OwnAddress));
        assert_eq!(check(&strict, "[2002:c629:9::]:22"), Err(PolicyDenial::OwnAddress));
        assert_eq!(check(&strict, "198.41.0.4:0"), Ok(()));
    }

    #[test]
    fn the_operators_deny_wins_over_allow_and_allow_over_the_table() {
        let policy = policy(&["10.0.0.0/8", "8.8.0.0/16"], &["10.1.0.0/16", "8.8.8.8/32"]);
        assert_eq!(check(&policy, "10.0.0.1:80"), Ok(()));
        assert!(matches!(check(&policy, "10.1.0.1:80"), Err(PolicyDenial::Operator(_))));
        assert!(matches!(check(&policy, "8.8.8.8:80"), Err(PolicyDenial::Operator(_))));
        assert_eq!(check(&policy, "8.8.4.4:80"), Ok(()));
    }

    #[test]
    fn own_listeners_stay_closed_whatever_is_allowed() {
        let policy = policy(&["0.0.0.0/0", "::/0"], &[]);
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "198.41.0.4",
            "198.41.0.9",
            "224.0.0.1",
            "[::1]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
        ] {
            for port in [3478, 3480] {
                assert_eq!(
                    check(&policy, &format!("{ip}:{port}")),
                    Err(PolicyDenial::OwnAddress),
                    "{ip}:{port}"
                );
            }
        }
        for peer in ["0.0.0.0:0", "0.0.0.0:9", "0.0.0.0:3478", "[::]:0", "[::]:9", "[::ffff:0.0.0.0]:9"] {
            assert_eq!(check(&policy, peer), Err(PolicyDenial::OwnAddress), "{peer}");
        }
        for peer in ["127.0.0.1:0", "127.0.0.1:9", "198.41.0.9:9", "8.8.8.8:3478", "[4000::1]:9"] {
            assert_eq!(check(&policy, peer), Ok(()), "{peer}");
        }
    }

    #[test]
    fn addresses_come_and_go() {
        let before = policy(&[], &[]);
        let own = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Arc<[IpAddr]>>();
        let new = ["8.8.8.8:22", "[::ffff:8.8.8.8]:22", "[2606:4700::30]:22", "[64:ff9b::808:808]:22"];
        let after = before.on_interfaces(own(&["8.8.8.8", "127.0.0.1", "2606:4700::30"]));
        for peer in new {
            assert_eq!(check(&before, peer), Ok(()), "{peer}");
            assert_eq!(check(&after, peer), Err(PolicyDenial::OwnAddress), "{peer}");
        }
        assert!(after.checks_ports("8.8.8.8".parse().unwrap()));
        assert_eq!(check(&after, "198.41.0.9:22"), Err(PolicyDenial::OwnAddress), "what stays");
        assert!(matches!(check(&after, "127.0.0.1:22"), Err(PolicyDenial::Special("loopback"))));
        let again = after.on_interfaces(own(&[]));
        assert!(new.iter().all(|peer| check(&again, peer) == Ok(())));
    }

    #[test]
    fn ports_are_judged_at_every_spelling_of_an_own_address() {
        let policy = policy(&["0.0.0.0/0", "::/0"], &[]);
        for ip in ["::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::198.41.0.9", "2002:c629:9::1"] {
            assert!(policy.checks_ports(ip.parse().unwrap()), "{ip}");
        }
        assert!(!policy.checks_ports("64:ff9b::8.8.8.8".parse().unwrap()));
    }

    #[test]
    fn every_row_of_the_table_is_a_prefix() {
        TABLE.with(|table| assert_eq!(table.len(), SPECIAL.len()));
    }
}
