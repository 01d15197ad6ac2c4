//! The NAT's rules, packet by packet.

use super::super::packet::{assert_checksums, packet_v4, unreachable};
use super::*;

const SERVER: &str = "203.0.113.10:3478";
const AUX: &str = "203.0.113.10:3479";
const PEER: &str = "203.0.113.22:7000";
const SECOND: Duration = Duration::from_secs(1);

/// A NAT at 203.0.113.21 and a clock.
struct Bench {
    table: NatTable,
    now: Instant,
}

impl Bench {
    fn new(behavior: NatBehavior) -> Self {
        let table = NatTable::new(behavior, Ipv4Addr::new(203, 0, 113, 21), 7);
        Self { table, now: Instant::now() }
    }

    /// Sends from inside; returns the outer source address.
    fn send_by(&mut self, protocol: Protocol, from: &str, to: &str) -> Option<SocketAddr> {
        let mut packet = packet_v4(protocol, from, to, b"text");
        let way = self.table.handle_outbound(&mut packet, self.now)?;
        assert_eq!(way, Way::Out);
        assert_checksums(&packet);
        Some(parse(&packet).unwrap().source)
    }

    fn send(&mut self, from: &str, to: &str) -> Option<SocketAddr> {
        self.send_by(Protocol::Udp, from, to)
    }

    /// Sends from outside; returns the inner address that it reaches.
    fn reply_by(&mut self, protocol: Protocol, from: &str, to: SocketAddr) -> Option<SocketAddr> {
        let mut packet = packet_v4(protocol, from, &to.to_string(), b"text");
        self.table.handle_inbound(&mut packet, self.now)?;
        assert_checksums(&packet);
        Some(parse(&packet).unwrap().destination)
    }

    fn reply(&mut self, from: &str, to: SocketAddr) -> Option<SocketAddr> {
        self.reply_by(Protocol::Udp, from, to)
    }
}

const INNER: &str = "10.21.0.2:5000";

fn inner() -> Option<SocketAddr> {
    Some(INNER.parse().unwrap())
}

#[test]
fn an_endpoint_independent_mapping_is_one_for_all_destinations() {
    let mut bench = Bench::new(NatBehavior::PORT_RESTRICTED);
    let first = bench.send(INNER, SERVER).unwrap();
    assert_eq!(bench.send(INNER, PEER), Some(first));
    assert_ne!(bench.send("10.21.0.3:5000", PEER), Some(first));
    assert_eq!(first.ip(), IpAddr::from([203, 0, 113, 21]));
}

#[test]
fn filters_differ_in_whom_they_let_in() {
    let others = ["203.0.113.10:3478", "203.0.113.10:9999", "203.0.113.99:1"];
    for (behavior, passes) in [
        (NatBehavior::FULL_CONE, [true, true, true]),
        (NatBehavior::ADDRESS_RESTRICTED, [true, true, false]),
        (NatBehavior::PORT_RESTRICTED, [true, false, false]),
        (NatBehavior::FIREWALL, [true, false, false]),
    ] {
        let mut bench = Bench::new(behavior);
        let outer = bench.send(INNER, SERVER).unwrap();
        let passed = others.map(|from| bench.reply(from, outer) == inner());
        assert_eq!(passed, passes, "{behavior:?}");
    }
}

#[test]
fn nothing_comes_in_to_a_port_without_a_mapping() {
    let mut bench = Bench::new(NatBehavior::FULL_CONE);
    let outer = bench.send(INNER, SERVER).unwrap();
    assert_eq!(bench.reply(SERVER, SocketAddr::new(outer.ip(), outer.port() ^ 1)), None);
    assert_eq!(bench.reply_by(Protocol::Tcp, SERVER, outer), None);
}

#[test]
fn a_firewall_translates_nothing() {
    let mut bench = Bench::new(NatBehavior::FIREWALL);
    assert_eq!(bench.send(INNER, SERVER), inner());
    assert_eq!(bench.reply(SERVER, inner().unwrap()), inner());
}

#[test]
fn a_sequential_nat_takes_the_next_port_for_each_destination() {
    let mut bench = Bench::new(NatBehavior::SEQUENTIAL);
    let ports = [SERVER, AUX, PEER].map(|to| bench.send(INNER, to).unwrap().port());
    assert_eq!([ports[1] - ports[0], ports[2] - ports[1]], [1, 1]);
    assert_eq!(bench.send(INNER, AUX).unwrap().port(), ports[1]);
    let outer = bench.send(INNER, PEER).unwrap();
    assert_eq!(bench.reply(SERVER, outer), None);
    assert_eq!(bench.reply(PEER, outer), inner());
}

#[test]
fn a_block_nat_stays_in_its_block_and_a_random_one_does_not() {
    let spread = |behavior| {
        let mut bench = Bench::new(behavior);
        let ports: Vec<u16> =
            (1..200).map(|port| bench.send(INNER, &format!("203.0.113.10:{port}")).unwrap().port()).collect();
        let distinct: std::collections::HashSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), ports.len(), "a port is used twice");
        ports.iter().max().unwrap() - ports.iter().min().unwrap()
    };
    assert!(spread(NatBehavior::BLOCK) < 512);
    assert!(spread(NatBehavior::RANDOM) > 30_000);
}

#[test]
fn a_block_that_is_full_passes_nothing_new_until_mappings_expire() {
    let mut bench = Bench::new(NatBehavior::BLOCK);
    for port in 1..=512 {
        bench.send(INNER, &format!("203.0.113.10:{port}")).unwrap();
    }
    assert_eq!(bench.send(INNER, PEER), None);
    bench.now += 121 * SECOND;
    assert!(bench.send(INNER, PEER).is_some());
}

#[test]
fn an_idle_mapping_expires_and_a_used_one_does_not() {
    let mut bench = Bench::new(NatBehavior { idle: 30 * SECOND, ..NatBehavior::PORT_RESTRICTED });
    let outer = bench.send(INNER, SERVER).unwrap();
    for _ in 0..4 {
        bench.now += 20 * SECOND;
        assert_eq!(bench.reply(SERVER, outer), inner());
    }
    bench.now += 31 * SECOND;
    assert_eq!(bench.reply(SERVER, outer), None);
    assert_ne!(bench.send(INNER, SERVER), Some(outer));
    assert_eq!(bench.reply(SERVER, outer), None);
}

#[test]
fn a_flow_expires_on_its_own_where_others_keep_the_mapping() {
    let mut bench = Bench::new(NatBehavior { idle: 30 * SECOND, ..NatBehavior::PORT_RESTRICTED });
    let outer = bench.send(INNER, SERVER).unwrap();
    bench.send(INNER, PEER);
    for _ in 0..2 {
        bench.now += 20 * SECOND;
        assert_eq!(bench.send(INNER, SERVER), Some(outer));
    }
    assert_eq!(bench.reply(PEER, outer), None);
}

#[test]
fn a_lifetime_ends_a_mapping_in_use() {
    let mut bench = Bench::new(NatBehavior { lifetime: Some(60 * SECOND), ..NatBehavior::PORT_RESTRICTED });
    let outer = bench.send(INNER, SERVER).unwrap();
    for _ in 0..5 {
        bench.now += 10 * SECOND;
        assert_eq!(bench.send(INNER, SERVER), Some(outer));
    }
    bench.now += 10 * SECOND;
    assert_eq!(bench.reply(SERVER, outer), None);
    assert_ne!(bench.send(INNER, SERVER), Some(outer));
}

#[test]
fn a_reboot_forgets_all_mappings() {
    let mut bench = Bench::new(NatBehavior::PORT_RESTRICTED);
    let outer = bench.send(INNER, SERVER).unwrap();
    bench.table.reboot();
    assert_eq!(bench.reply(SERVER, outer), None);
    assert_ne!(bench.send(INNER, SERVER), Some(outer));
}

#[test]
fn tcp_keeps_its_port_and_is_mapped_endpoint_independently() {
    let mut bench = Bench::new(NatBehavior::RANDOM);
    let outer = bench.send_by(Protocol::Tcp, INNER, SERVER).unwrap();
    assert_eq!(outer.port(), 5000);
    assert_eq!(bench.send_by(Protocol::Tcp, INNER, PEER), Some(outer));
    assert_eq!(bench.reply_by(Protocol::Tcp, PEER, outer), inner());
    assert_eq!(bench.reply_by(Protocol::Tcp, AUX, outer), None);
    let other = bench.send_by(Protocol::Tcp, "10.21.0.3:5000", SERVER).unwrap();
    assert_ne!(other, outer);
}

#[test]
fn blocking_kinds_pass_only_tcp_or_only_port_443() {
    let mut bench = Bench::new(NatBehavior::UDP_BLOCKED);
    assert_eq!(bench.send(INNER, SERVER), None);
    assert!(bench.send_by(Protocol::Tcp, INNER, SERVER).is_some());
    let mut bench = Bench::new(NatBehavior::PORT_443);
    assert_eq!(bench.send(INNER, "203.0.113.10:443"), None);
    assert_eq!(bench.send_by(Protocol::Tcp, INNER, SERVER), None);
    let outer = bench.send_by(Protocol::Tcp, INNER, "203.0.113.10:443").unwrap();
    assert_eq!(bench.reply_by(Protocol::Tcp, "203.0.113.10:443", outer), inner());
}

#[test]
fn hairpinning_is_as_the_nat_has_it() {
    let packet = |to: SocketAddr| packet_v4(Protocol::Udp, "10.21.0.3:6000", &to.to_string(), b"text");
    let mut bench = Bench::new(NatBehavior { hairpin: true, ..NatBehavior::FULL_CONE });
    let outer = bench.send(INNER, SERVER).unwrap();
    let mut there = packet(outer);
    assert_eq!(bench.table.handle_outbound(&mut there, bench.now), Some(Way::In));
    assert_checksums(&there);
    let header = parse(&there).unwrap();
    assert_eq!((header.source.ip(), Some(header.destination)), (outer.ip(), inner()));

    let mut bench = Bench::new(NatBehavior::FULL_CONE);
    let outer = bench.send(INNER, SERVER).unwrap();
    assert_eq!(bench.table.handle_outbound(&mut packet(outer), bench.now), None);
}

#[test]
fn an_error_about_a_packet_comes_back_to_its_sender_in_both_directions() {
    let mut bench = Bench::new(NatBehavior::SEQUENTIAL);
    let mut packet = packet_v4(Protocol::Udp, INNER, PEER, b"text");
    bench.table.handle_outbound(&mut packet, bench.now).unwrap();
    let outer = parse(&packet).unwrap().source;
    let mut error = unreachable(&packet);
    assert_eq!(bench.table.handle_inbound(&mut error, bench.now), Some(Way::In));
    assert_checksums(&error);
    let header = parse(&error).unwrap();
    assert_eq!(header.destination.ip(), inner().unwrap().ip());
    assert_eq!(parse_quoted(&error, &header).unwrap().source, inner().unwrap());

    let mut packet = packet_v4(Protocol::Udp, PEER, &outer.to_string(), b"text");
    bench.table.handle_inbound(&mut packet, bench.now).unwrap();
    let mut error = unreachable(&packet);
    assert_eq!(bench.table.handle_outbound(&mut error, bench.now), Some(Way::Out));
    assert_checksums(&error);
    let header = parse(&error).unwrap();
    assert_eq!(header.source.ip(), outer.ip());
    assert_eq!(parse_quoted(&error, &header).unwrap().destination, outer);
}

#[test]
fn an_error_about_a_packet_that_was_never_sent_is_dropped() {
    let mut bench = Bench::new(NatBehavior::PORT_RESTRICTED);
    let outer = bench.send(INNER, SERVER).unwrap();
    let never = packet_v4(Protocol::Udp, &outer.to_string(), PEER, b"text");
    assert_eq!(bench.table.handle_inbound(&mut unreachable(&never), bench.now), None);
}
