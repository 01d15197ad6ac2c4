//! The networks of one cell, with its server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::authority::Authority;
use crate::lab::{
    Host, Link, NAT64_V6, Nat, NatBehavior, NatKind, RoutedHost, RoutedNat, RoutedNet, start_nat64,
};
use crate::port_mapping::{Daemon, start_daemon};
use crate::proc::Proc;
use crate::test_server::TestServer;

use super::cells::{Class, Setting};

const UP: Duration = Duration::from_secs(30);
const SERVER: u8 = 10;
const SERVER_V4: &str = "203.0.113.10:3478";
/// An address that nobody has.
const DEAD: &str = "203.0.113.99:3478";
const SERVER_V6: &str = "2001:db8::10";
const PROXY: u8 = 11;
/// One way: 50 ms to the server and back, 30 ms between the peers and back.
const TO_SERVER: Duration = Duration::from_micros(17_500);
const TO_PEER: Duration = Duration::from_micros(7_500);

/// Lets a host reach nothing but the proxy.
const ONLY_THE_PROXY: &str = "
    table inet proxied {
      chain out { type filter hook output priority 0; policy drop;
                  oifname lo accept; ip daddr 203.0.113.11 tcp dport 3128 accept; }
      chain in { type filter hook input priority 0; policy drop;
                 iifname lo accept; ip saddr 203.0.113.11 tcp sport 3128 accept; }
    }";

/// Takes the requests of PCP away from a router, whose daemon speaks it together with NAT-PMP.
const WITHOUT_PCP: &str = "
    table inet without_pcp {
      chain in { type filter hook input priority -50; udp dport 5351 @th,64,8 2 drop; }
    }";

/// One agent's place.
pub(super) struct Side {
    pub(super) host: Host,
    /// The server as this side names it.
    pub(super) server: String,
    pub(super) options: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
}

/// Everything around the two agents of a cell. The processes go before the networks that they are in.
pub(super) struct Scene {
    pub(super) server: TestServer,
    _processes: Vec<Proc>,
    _daemons: Vec<Daemon>,
    pub(super) sides: [Side; 2],
    pub(super) nats: Vec<RoutedNat>,
    _others: Vec<RoutedHost>,
    _authority: Authority,
    pub(super) net: RoutedNet,
}

/// A scene that is being built.
struct Builder {
    net: RoutedNet,
    link: Link,
    nats: Vec<RoutedNat>,
    others: Vec<RoutedHost>,
    processes: Vec<Proc>,
    daemons: Vec<Daemon>,
    authority: Authority,
}

impl Scene {
    /// Builds the networks of a setting and starts the server; so many packets of a thousand are lost at each peer's link and at the server's.
    pub(super) fn new(setting: Setting, seed: u64, lost_per_mille: u16) -> Self {
        let net = RoutedNet::new(seed);
        let link = Link { delay: TO_PEER, lost_per_mille };
        let server_host = net.public(SERVER, Link { delay: TO_SERVER, lost_per_mille });
        net.add_ipv6(&server_host, SERVER_V6);
        let authority = Authority::naming(&["turn.test", "203.0.113.10"]);
        let addresses = [server_host.address().into(), SERVER_V6.parse::<IpAddr>().unwrap()];
        let server = TestServer::on_routed(&server_host, &addresses, &authority);
        let mut builder = Builder {
            net,
            link,
            nats: Vec::new(),
            others: vec![server_host],
            processes: Vec::new(),
            daemons: Vec::new(),
            authority,
        };
        let sides = builder.sides(setting);
        let Builder { net, nats, others, processes, daemons, authority, .. } = builder;
        Self {
            server,
            _processes: processes,
            _daemons: daemons,
            sides,
            nats,
            _others: others,
            _authority: authority,
            net,
        }
    }
}

impl Builder {
    fn sides(&mut self, setting: Setting) -> [Side; 2] {
        match setting {
            Setting::Apart(first, second) => [self.place(first, 21), self.place(second, 22)],
            Setting::OneNat(class) => {
                let nat = self.nat(class.behavior().unwrap(), 21);
                let sides = [(); 2].map(|()| side(self.net.behind(&nat)));
                self.nats.push(nat);
                sides
            }
            Setting::DoubleNat => {
                let carrier = self.nat(NatBehavior::PORT_RESTRICTED, 21);
                let sides = [self.home_of(&carrier, 31), self.place(Class::PortRestricted, 22)];
                self.nats.push(carrier);
                sides
            }
            Setting::OneCarrier { hairpin } => {
                let carrier = self.nat(NatBehavior { hairpin, ..NatBehavior::PORT_RESTRICTED }, 21);
                let sides = [31, 32].map(|octet| self.home_of(&carrier, octet));
                self.nats.push(carrier);
                sides
            }
            Setting::DualStack => [21, 22].map(|octet| {
                let nat = self.nat(NatBehavior::PORT_RESTRICTED, octet);
                let host = self.net.behind(&nat);
                self.net.add_ipv6(&host, &format!("2001:db8::{octet}"));
                self.nats.push(nat);
                side(host)
            }),
            Setting::PortMapping { only_nat_pmp } => {
                [self.with_port_mapping(only_nat_pmp), self.place(Class::Random, 22)]
            }
            Setting::MappedLayer { is_outer } => {
                [self.behind_mapped_layer(is_outer), self.place(Class::Random, 22)]
            }
            Setting::DeadServer => [21, 22].map(|octet| {
                let alive = vec!["--server".to_owned(), SERVER_V4.to_owned()];
                Side { server: DEAD.to_owned(), options: alive, ..self.place(Class::PortRestricted, octet) }
            }),
            Setting::Port443 => {
                let nat = self.nat(NatBehavior::PORT_443, 21);
                let mut first = side(self.net.behind(&nat));
                self.nats.push(nat);
                first.server = "https://203.0.113.10:443".to_owned();
                first.options = vec!["--ca".to_owned(), self.authority.root().to_str().unwrap().to_owned()];
                [first, self.place(Class::PortRestricted, 22)]
            }
            Setting::Proxy(protocol) => self.proxied(protocol),
            Setting::Bridges => {
                let first = self.place(Class::PortRestricted, 21);
                for bridge in 0..20 {
                    let (name, address) = (format!("docker{bridge}"), format!("10.{}.0.1/16", 100 + bridge));
                    first.host.run("ip", &["link", "add", &name, "type", "bridge"]);
                    first.host.run("ip", &["addr", "add", &address, "dev", &name]);
                    first.host.run("ip", &["link", "set", &name, "up"]);
                }
                [first, self.place(Class::PortRestricted, 22)]
            }
            Setting::OneWay => {
                let [from, to] = [21, 22].map(|octet| IpAddr::V4(Ipv4Addr::new(203, 0, 113, octet)));
                self.net.add_rule(Box::new(move |_, header| {
                    (header.source.ip(), header.destination.ip()) != (from, to)
                }));
                [self.place(Class::Open, 21), self.place(Class::Open, 22)]
            }
            Setting::Vpn => {
                let first = self.place(Class::PortRestricted, 21);
                let vpn = self.nat(NatBehavior::PORT_RESTRICTED, 51);
                let second = self.net.second_uplink(&first.host, "tun0", &vpn);
                first.host.run("ip", &["route", "add", "0.0.0.0/1", "dev", "tun0"]);
                first.host.run("ip", &["route", "add", "128.0.0.0/1", "dev", "tun0"]);
                self.others.push(second);
                self.nats.push(vpn);
                [first, self.place(Class::PortRestricted, 22)]
            }
        }
    }

    fn nat(&self, behavior: NatBehavior, octet: u8) -> RoutedNat {
        self.net.nat(behavior, octet, self.link)
    }

    fn place(&mut self, class: Class, octet: u8) -> Side {
        match (class, class.behavior()) {
            (Class::Ipv6Only, _) => self.ipv6_only(octet),
            (_, None) => side(self.net.public(octet, self.link)),
            (Class::Firewall, Some(behavior)) => {
                let (host, firewall) = self.net.behind_firewall(behavior, octet, self.link);
                self.nats.push(firewall);
                side(host)
            }
            (_, Some(behavior)) => {
                let nat = self.nat(behavior, octet);
                let host = self.net.behind(&nat);
                self.nats.push(nat);
                side(host)
            }
        }
    }

    /// A home behind a carrier's NAT.
    fn home_of(&mut self, carrier: &RoutedNat, octet: u8) -> Side {
        let home = self.net.nat_behind(carrier, NatBehavior::PORT_RESTRICTED, octet);
        let host = self.net.behind(&home);
        self.nats.push(home);
        side(host)
    }

    /// A host behind a symmetric NAT of the kernel that maps ports on request.
    fn with_port_mapping(&mut self, only_nat_pmp: bool) -> Side {
        let nat = self.net.kernel_nat(NatKind::Symmetric, 21, self.link);
        let external = Ipv4Addr::new(198, 41, 0, 21);
        let router = nat.router();
        router.run("ip", &["addr", "add", &format!("{external}/32"), "dev", "out"]);
        if only_nat_pmp {
            router.nft(WITHOUT_PCP);
        }
        self.daemons.push(start_daemon(&router, external, (!only_nat_pmp, true)));
        self.behind_kernel(&nat)
    }

    /// A host behind two NATs of the kernel, of which the symmetric one maps ports.
    fn behind_mapped_layer(&mut self, is_outer: bool) -> Side {
        let kinds = [NatKind::Symmetric, NatKind::PortRestricted];
        let [outer_kind, inner_kind] = if is_outer { kinds } else { [kinds[1], kinds[0]] };
        let outer = self.net.kernel_nat(outer_kind, 21, self.link);
        let inner = self.net.net().nat_behind(&outer, inner_kind, 31);
        let external = Ipv4Addr::new(198, 41, 0, 21);
        let outer_router = outer.router();
        outer_router.run("ip", &["addr", "add", &format!("{external}/32"), "dev", "out"]);
        // The inner router tells the address that it has: a private one.
        let (router, external) = match is_outer {
            true => (outer_router, external),
            false => (inner.router(), Ipv4Addr::new(10, 21, 0, 2)),
        };
        self.daemons.push(start_daemon(&router, external, (true, true)));
        self.behind_kernel(&inner)
    }

    fn behind_kernel(&self, nat: &Nat) -> Side {
        Side {
            host: self.net.net().behind(nat),
            server: SERVER_V4.to_owned(),
            options: Vec::new(),
            environment: Vec::new(),
        }
    }

    fn ipv6_only(&mut self, octet: u8) -> Side {
        if self.others.len() == 1 {
            let nat64 = start_nat64(&self.net, self.link, self.authority.folder());
            self.others.push(nat64.host);
            self.processes.extend(nat64.processes);
        }
        let address = format!("2001:db8:6::{octet}");
        let (host, firewall) = self.net.ipv6_only(NatBehavior::FIREWALL, &address, self.link);
        self.nats.push(firewall);
        host.resolve_at(NAT64_V6);
        Side { server: format!("[{SERVER_V6}]:3478"), ..side(host) }
    }

    fn proxied(&mut self, protocol: &str) -> [Side; 2] {
        let proxy_host = self.net.public(PROXY, self.link);
        let names = ["--user", "me:a secret", "--host", "turn.test=203.0.113.10"];
        let proxy = proxy_host.python("proxy.py", &[&[protocol, "3128"], &names[..]].concat());
        proxy.expect("start", UP, |line| (line == "ready").then_some(()));
        self.processes.push(proxy);
        self.others.push(proxy_host);
        let mut first = self.place(Class::Open, 21);
        first.host.nft(ONLY_THE_PROXY);
        first.server = "turn.test:3478".to_owned();
        first.environment = vec![("HTTPS_PROXY", format!("{protocol}://me:a%20secret@203.0.113.11:3128"))];
        [first, self.place(Class::PortRestricted, 22)]
    }
}

/// A side that reaches the server by its IPv4 address.
fn side(host: RoutedHost) -> Side {
    Side { host: host.host, server: SERVER_V4.to_owned(), options: Vec::new(), environment: Vec::new() }
}
