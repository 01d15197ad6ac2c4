//! Which way a packet takes: hosts and NATs as a tree below the internet. No I/O: packets and the time go in.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::nat_table::{NatTable, Way};
use super::packet::{Header, Protocol, parse, travel};

/// Hops from one NAT to another through the internet. A packet with a lower hop limit opens only the near NAT.
const HOPS: u8 = 10;

/// The way from a host or NAT to what is above it: the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Link {
    /// How long a packet takes.
    pub(crate) delay: Duration,
    /// How many packets of a thousand are lost.
    pub(crate) lost_per_mille: u16,
}

impl Link {
    /// A link without loss.
    pub(crate) fn with_delay(delay: Duration) -> Self {
        Self { delay, lost_per_mille: 0 }
    }
}

/// Packets that a host has sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Packets {
    pub(crate) sent_udp: u64,
    pub(crate) sent_tcp: u64,
    pub(crate) received_udp: u64,
    pub(crate) received_tcp: u64,
}

/// A host or a NAT.
pub(super) type NodeId = usize;

enum Kind {
    Host { prefixes: Vec<(IpAddr, u8)>, packets: Packets },
    Nat { table: Box<NatTable>, gateway: Ipv4Addr },
}

struct Node {
    kind: Kind,
    /// The NAT before it; `None` on the internet itself.
    parent: Option<NodeId>,
    link: Link,
}

/// Decides about each packet that crosses the internet, by its outer addresses; `false` drops it.
pub(crate) type Rule = Box<dyn FnMut(Instant, &Header) -> bool + Send>;

/// Hosts, NATs, and the rules of the internet between them.
pub(super) struct Topology {
    nodes: Vec<Node>,
    rules: Vec<Rule>,
    rng: ChaCha8Rng,
}

/// Where a packet arrives, and how long it takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) host: NodeId,
    pub(super) delay: Duration,
}

impl Topology {
    /// The internet without anybody.
    pub(super) fn new(seed: u64) -> Self {
        Self { nodes: Vec::new(), rules: Vec::new(), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Adds a host that answers for these prefixes.
    pub(super) fn add_host(
        &mut self,
        prefixes: Vec<(IpAddr, u8)>,
        parent: Option<NodeId>,
        link: Link,
    ) -> NodeId {
        self.add(Kind::Host { prefixes, packets: Packets::default() }, parent, link)
    }

    /// Adds a NAT; `gateway` is its own address inside.
    pub(super) fn add_nat(
        &mut self,
        table: NatTable,
        gateway: Ipv4Addr,
        parent: Option<NodeId>,
        link: Link,
    ) -> NodeId {
        self.add(Kind::Nat { table: Box::new(table), gateway }, parent, link)
    }

    fn add(&mut self, kind: Kind, parent: Option<NodeId>, link: Link) -> NodeId {
        self.nodes.push(Node { kind, parent, link });
        self.nodes.len() - 1
    }

    /// Adds a rule to the internet.
    pub(super) fn add_rule(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// Makes a host answer for these prefixes and no others.
    pub(super) fn set_prefixes(&mut self, host: NodeId, new: Vec<(IpAddr, u8)>) {
        if let Kind::Host { prefixes, .. } = &mut self.nodes[host].kind {
            *prefixes = new;
        }
    }

    /// Changes the link of a node.
    pub(super) fn set_link(&mut self, node: NodeId, link: Link) {
        self.nodes[node].link = link;
    }

    /// The packets of a host so far.
    pub(super) fn packets(&self, host: NodeId) -> Packets {
        match &self.nodes[host].kind {
            Kind::Host { packets, .. } => *packets,
            Kind::Nat { .. } => Packets::default(),
        }
    }

    /// The table of a NAT.
    pub(super) fn table_mut(&mut self, nat: NodeId) -> Option<&mut NatTable> {
        match &mut self.nodes[nat].kind {
            Kind::Nat { table, .. } => Some(table),
            Kind::Host { .. } => None,
        }
    }

    /// Takes a packet that a host sends, and translates it on its way; `None` where it is dropped.
    pub(super) fn route(&mut self, host: NodeId, packet: &mut [u8], now: Instant) -> Option<Delivery> {
        if let (Some(header), Kind::Host { packets, .. }) = (parse(packet), &mut self.nodes[host].kind) {
            packets.sent_udp += u64::from(header.protocol == Protocol::Udp);
            packets.sent_tcp += u64::from(header.protocol == Protocol::Tcp);
        }
        let (mut node, mut delay) = (host, Duration::ZERO);
        while let Some(parent) = self.nodes[node].parent {
            let to = parse(packet)?.destination.ip();
            let Kind::Nat { gateway, .. } = &self.nodes[parent].kind else { return None };
            if to == IpAddr::V4(*gateway) {
                return None;
            }
            delay += self.cross(node)?;
            if let Some(neighbor) = self.child(Some(parent), to) {
                return self.descend(neighbor, packet, (now, delay));
            }
            let table = self.table_mut(parent)?;
            if table.handle_outbound(packet, now)? == Way::In {
                let to = parse(packet)?.destination.ip();
                return self.descend(self.child(Some(parent), to)?, packet, (now, delay));
            }
            node = parent;
        }
        delay += self.cross(node)?;
        let header = parse(packet)?;
        if !self.rules.iter_mut().all(|rule| rule(now, &header)) || !travel(packet, HOPS) {
            return None;
        }
        self.descend(self.child(None, header.destination.ip())?, packet, (now, delay))
    }

    fn descend(
        &mut self,
        mut node: NodeId,
        packet: &mut [u8],
        (now, mut delay): (Instant, Duration),
    ) -> Option<Delivery> {
        loop {
            delay += self.cross(node)?;
            match &mut self.nodes[node].kind {
                Kind::Host { packets, .. } => {
                    let header = parse(packet)?;
                    packets.received_udp += u64::from(header.protocol == Protocol::Udp);
                    packets.received_tcp += u64::from(header.protocol == Protocol::Tcp);
                    return Some(Delivery { host: node, delay });
                }
                Kind::Nat { table, .. } => {
                    table.handle_inbound(packet, now)?;
                    node = self.child(Some(node), parse(packet)?.destination.ip())?;
                }
            }
        }
    }

    /// The delay of a node's link; `None` if the packet is lost there.
    fn cross(&mut self, node: NodeId) -> Option<Duration> {
        let link = self.nodes[node].link;
        let is_lost = link.lost_per_mille > 0 && self.rng.random_range(0..1000) < link.lost_per_mille;
        (!is_lost).then_some(link.delay)
    }

    /// The node below `parent`, or on the internet, that has an address; exact addresses before prefixes.
    fn child(&self, parent: Option<NodeId>, ip: IpAddr) -> Option<NodeId> {
        let here = |node: &NodeId| self.nodes[*node].parent == parent;
        let found =
            (0..self.nodes.len()).filter(here).filter_map(|node| Some((self.match_length(node, ip)?, node)));
        found.max_by_key(|(length, _)| *length).map(|(_, node)| node)
    }

    /// The length of the longest prefix of a node that has this address.
    fn match_length(&self, node: NodeId, ip: IpAddr) -> Option<u8> {
        match &self.nodes[node].kind {
            Kind::Host { prefixes, .. } => {
                let matching = prefixes.iter().filter(|(prefix, length)| covers(*prefix, *length, ip));
                matching.map(|(_, length)| *length).max()
            }
            Kind::Nat { table, .. } if table.translates(ip) => (ip == table.external()).then_some(32),
            Kind::Nat { .. } => self.child(Some(node), ip).map(|_| 128),
        }
    }
}

fn covers(prefix: IpAddr, length: u8, ip: IpAddr) -> bool {
    let length = u32::from(length);
    match (prefix, ip) {
        (IpAddr::V4(prefix), IpAddr::V4(ip)) => {
            (prefix.to_bits() ^ ip.to_bits()).leading_zeros() >= length.min(32)
        }
        (IpAddr::V6(prefix), IpAddr::V6(ip)) => {
            (prefix.to_bits() ^ ip.to_bits()).leading_zeros() >= length.min(128)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::nat_table::NatBehavior;
    use super::super::packet::packet_v4;
    use super::*;

    fn at(ip: &str) -> Vec<(IpAddr, u8)> {
        vec![(ip.parse().unwrap(), 32)]
    }

    fn nat(topology: &mut Topology, behavior: NatBehavior, octet: u8, parent: Option<NodeId>) -> NodeId {
        let external = match parent {
            Some(_) => Ipv4Addr::new(10, 21, 0, octet),
            None => Ipv4Addr::new(203, 0, 113, octet),
        };
        let table = NatTable::new(behavior, external, 1);
        let link = Link::with_delay(Duration::from_millis(7));
        topology.add_nat(table, Ipv4Addr::new(10, octet, 0, 1), parent, link)
    }

    struct World {
        topology: Topology,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { topology: Topology::new(1), now: Instant::now() }
        }

        /// Sends a packet; returns the host that it reaches, its source there, and how long it took.
        fn send(&mut self, host: NodeId, from: &str, to: &str) -> Option<(NodeId, String, u128)> {
            let mut packet = packet_v4(Protocol::Udp, from, to, b"text");
            let delivery = self.topology.route(host, &mut packet, self.now)?;
            let source = parse(&packet).unwrap().source.to_string();
            Some((delivery.host, source, delivery.delay.as_millis()))
        }
    }

    #[test]
    fn a_packet_takes_the_delay_of_both_links_and_comes_from_the_outer_address() {
        let mut world = World::new();
        let server =
            world.topology.add_host(at("203.0.113.10"), None, Link::with_delay(Duration::from_millis(18)));
        let left = nat(&mut world.topology, NatBehavior::PORT_RESTRICTED, 21, None);
        let host = world.topology.add_host(at("10.21.0.2"), Some(left), Link::default());
        let (reached, source, delay) = world.send(host, "10.21.0.2:5000", "203.0.113.10:3478").unwrap();
        assert_eq!((reached, delay), (server, 25));
        assert!(source.starts_with("203.0.113.21:"), "{source}");
        let back = world.send(server, "203.0.113.10:3478", &source).unwrap();
        assert_eq!(back, (host, "203.0.113.10:3478".to_owned(), 25));
        assert_eq!(world.send(server, "203.0.113.10:99", &source), None);
        let packets = world.topology.packets(host);
        assert_eq!((packets.sent_udp, packets.received_udp), (1, 1));
    }

    #[test]
    fn neighbors_behind_one_nat_reach_each_other_inside_and_foreign_private_addresses_lead_nowhere() {
        let mut world = World::new();
        let left = nat(&mut world.topology, NatBehavior::PORT_RESTRICTED, 21, None);
        let hosts =
            ["10.21.0.2", "10.21.0.3"].map(|ip| world.topology.add_host(at(ip), Some(left), Link::default()));
        let inside = world.send(hosts[0], "10.21.0.2:1", "10.21.0.3:2").unwrap();
        assert_eq!(inside, (hosts[1], "10.21.0.2:1".to_owned(), 0));
        assert_eq!(world.send(hosts[0], "10.21.0.2:1", "10.22.0.2:2"), None);
        assert_eq!(world.send(hosts[0], "10.21.0.2:1", "10.21.0.1:5351"), None);
    }

    #[test]
    fn a_packet_is_translated_by_each_layer_of_two() {
        let mut world = World::new();
        let server = world.topology.add_host(at("203.0.113.10"), None, Link::default());
        let carrier = nat(&mut world.topology, NatBehavior::PORT_RESTRICTED, 21, None);
        let home = nat(&mut world.topology, NatBehavior::PORT_RESTRICTED, 31, Some(carrier));
        let host = world.topology.add_host(at("10.31.0.2"), Some(home), Link::default());
        let (reached, source, delay) = world.send(host, "10.31.0.2:5000", "203.0.113.10:3478").unwrap();
        assert!(source.starts_with("203.0.113.21:"), "{source}");
        assert_eq!((reached, delay), (server, 14));
        assert_eq!(world.send(server, "203.0.113.10:3478", &source).unwrap().0, host);
    }

    #[test]
    fn two_homes_behind_one_carrier_meet_only_where_it_hairpins() {
        for hairpin in [false, true] {
            let mut world = World::new();
            let behavior = NatBehavior { hairpin, ..NatBehavior::FULL_CONE };
            let server = world.topology.add_host(at("203.0.113.10"), None, Link::default());
            let carrier = nat(&mut world.topology, behavior, 21, None);
            let homes = [31, 32].map(|octet| {
                let home = nat(&mut world.topology, NatBehavior::FULL_CONE, octet, Some(carrier));
                world.topology.add_host(at(&format!("10.{octet}.0.2")), Some(home), Link::default())
            });
            let (_, outer, _) = world.send(homes[1], "10.32.0.2:1", "203.0.113.10:1").unwrap();
            let reached = world.send(homes[0], "10.31.0.2:1", &outer);
            assert_eq!(reached.map(|(host, _, _)| host), hairpin.then_some(homes[1]));
            assert_ne!(server, homes[1]);
        }
    }

    #[test]
    fn a_firewall_lets_its_hosts_be_reached_by_their_own_addresses() {
        let mut world = World::new();
        let left = nat(&mut world.topology, NatBehavior::FIREWALL, 1, None);
        let host = world.topology.add_host(at("203.0.113.21"), Some(left), Link::default());
        let other = world.topology.add_host(at("203.0.113.22"), None, Link::default());
        assert_eq!(world.send(other, "203.0.113.22:1", "203.0.113.21:2"), None);
        assert_eq!(world.send(host, "203.0.113.21:2", "203.0.113.22:1").unwrap().0, other);
        assert_eq!(world.send(other, "203.0.113.22:1", "203.0.113.21:2").unwrap().0, host);
    }

    #[test]
    fn rules_drop_one_direction_and_loss_drops_its_share() {
        let mut world = World::new();
        let hosts =
            ["203.0.113.21", "203.0.113.22"].map(|ip| world.topology.add_host(at(ip), None, Link::default()));
        world.topology.set_link(hosts[0], Link { delay: Duration::ZERO, lost_per_mille: 300 });
        let arrived =
            (0..1000).filter(|_| world.send(hosts[0], "203.0.113.21:1", "203.0.113.22:1").is_some());
        let arrived = arrived.count();
        assert!((650..750).contains(&arrived), "{arrived}");
        let from = "203.0.113.22".parse::<IpAddr>().unwrap();
        world.topology.add_rule(Box::new(move |_, header| header.source.ip() != from));
        assert_eq!(world.send(hosts[1], "203.0.113.22:1", "203.0.113.21:1"), None);
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut world = World::new();
        let prefixes = vec![("203.0.113.0".parse().unwrap(), 24)];
        let wide = world.topology.add_host(prefixes, None, Link::default());
        let one = world.topology.add_host(at("203.0.113.21"), None, Link::default());
        assert_eq!(world.send(wide, "203.0.113.1:1", "203.0.113.21:1").unwrap().0, one);
        assert_eq!(world.send(one, "203.0.113.21:1", "203.0.113.22:1").unwrap().0, wide);
    }
}
