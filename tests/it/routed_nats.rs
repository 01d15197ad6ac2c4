//! The router of the laboratory carries real packets as its logic promises: NAT kinds measured by an independent probe, delay, loss, IPv6.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Link, NatBehavior, NatKind, RoutedHost, RoutedNet};
use crate::proc::Proc;
use crate::tools;

const SHORT: Duration = Duration::from_secs(20);
const PROBE_SERVER: [&str; 2] = ["203.0.113.11", "203.0.113.12"];

macro_rules! laboratory {
    () => {
        if !tools::have_laboratory() {
            return;
        }
    };
}

fn delayed(millis: u64) -> Link {
    Link::with_delay(Duration::from_millis(millis))
}

/// The probe's server, on two public addresses.
fn probe_server(net: &RoutedNet) -> (RoutedHost, Proc) {
    let host = net.public(11, Link::default());
    host.add_address(12);
    net.set_prefixes(&host, PROBE_SERVER.map(|ip| (ip.parse().unwrap(), 32)).to_vec());
    let server = host.python("natprobe.py", &["serve", PROBE_SERVER[0], PROBE_SERVER[1]]);
    server.expect("readiness", SHORT, |line| (line == "ready").then_some(()));
    (host, server)
}

fn verdict(probe: &mut Proc) -> Value {
    let verdict = probe.expect("verdict", SHORT, |line| serde_json::from_str::<Value>(line).ok());
    probe.succeed(SHORT);
    verdict
}

fn ask(host: &RoutedHost) -> Proc {
    host.python("natprobe.py", &["ask", PROBE_SERVER[0], PROBE_SERVER[1]])
}

#[test]
fn routed_nats_map_and_filter_as_their_names_promise() {
    laboratory!();
    let net = RoutedNet::new(1);
    let (_host, _server) = probe_server(&net);
    let kinds = [
        (NatBehavior::FULL_CONE, "same", "none"),
        (NatBehavior::ADDRESS_RESTRICTED, "same", "address"),
        (NatBehavior::PORT_RESTRICTED, "same", "port"),
        (NatBehavior::SEQUENTIAL, "changes", "port"),
        (NatBehavior::BLOCK, "changes", "port"),
        (NatBehavior::RANDOM, "changes", "port"),
        (NatBehavior::UDP_BLOCKED, "blocked", "blocked"),
    ];
    let hosts = [21, 22, 23, 24, 25, 26, 27].into_iter().zip(kinds).map(|(octet, (behavior, ..))| {
        let nat = net.nat(behavior, octet, delayed(2));
        net.behind(&nat)
    });
    let hosts: Vec<_> = hosts.collect();
    let probes: Vec<_> = hosts.iter().map(ask).collect();
    for ((behavior, mapping, filtering), mut probe) in kinds.into_iter().zip(probes) {
        let verdict = verdict(&mut probe);
        let found = json!([verdict["mapping"], verdict["filtering"], verdict["tcp"]]);
        assert_eq!(found, json!([mapping, filtering, true]), "{behavior:?}: {verdict}");
        let port = |index: usize| verdict["seen"][index][1].as_u64().unwrap_or_default();
        let ports: Vec<u64> = (0..4).map(port).collect();
        let steps: Vec<u64> = ports.windows(2).map(|pair| pair[1].abs_diff(pair[0])).collect();
        if behavior == NatBehavior::SEQUENTIAL {
            assert_eq!(steps, [1, 1, 1], "{verdict}");
        }
        if behavior == NatBehavior::BLOCK {
            assert!(steps.iter().all(|step| *step < 512), "{verdict}");
        }
    }
}

#[test]
fn a_kernel_nat_has_its_place_on_the_routed_internet() {
    laboratory!();
    let net = RoutedNet::new(1);
    let (_host, _server) = probe_server(&net);
    let nat = net.kernel_nat(NatKind::PortRestricted, 21, delayed(2));
    let inner = net.net().behind(&nat);
    let mut probe = inner.python("natprobe.py", &["ask", PROBE_SERVER[0], PROBE_SERVER[1]]);
    let verdict = verdict(&mut probe);
    assert_eq!(json!([verdict["mapping"], verdict["filtering"]]), json!(["same", "port"]), "{verdict}");
}

fn udp(host: &RoutedHost, address: impl Into<IpAddr>) -> UdpSocket {
    let at = SocketAddr::new(address.into(), 0);
    host.inside(move || UdpSocket::bind(at)).unwrap()
}

/// Receives one datagram; returns its sender.
fn receive(socket: &UdpSocket) -> Option<SocketAddr> {
    receive_within(socket, SHORT)
}

/// Receives what comes soon; returns its sender, `None` where nothing is to come.
fn receive_soon(socket: &UdpSocket) -> Option<SocketAddr> {
    receive_within(socket, Duration::from_millis(500))
}

fn receive_within(socket: &UdpSocket, within: Duration) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(within)).unwrap();
    let mut buffer = [0; 100];
    socket.recv_from(&mut buffer).ok().map(|(_, from)| from)
}

#[test]
fn packets_take_their_time_and_are_counted() {
    laboratory!();
    let net = RoutedNet::new(1);
    let server = net.public(10, delayed(18));
    let nat = net.nat(NatBehavior::PORT_RESTRICTED, 21, delayed(7));
    let host = net.behind(&nat);
    let (outside, inside) = (udp(&server, server.address()), udp(&host, host.address()));
    let begun = Instant::now();
    inside.send_to(b"one", outside.local_addr().unwrap()).unwrap();
    let mapped = receive(&outside).unwrap();
    outside.send_to(b"two", mapped).unwrap();
    assert_eq!(receive(&inside), outside.local_addr().ok());
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(48), "{took:?}");
    let packets = net.packets(&host);
    assert_eq!((packets.sent_udp, packets.received_udp), (1, 1), "{packets:?}");

    net.reboot(&nat);
    outside.send_to(b"three", mapped).unwrap();
    assert_eq!(receive_soon(&inside), None);
    inside.send_to(b"four", outside.local_addr().unwrap()).unwrap();
    assert_ne!(receive(&outside).unwrap(), mapped);

    net.change(&nat, |_| NatBehavior::UDP_BLOCKED);
    inside.send_to(b"five", outside.local_addr().unwrap()).unwrap();
    assert_eq!(receive_soon(&outside), None);
}

#[test]
fn a_rule_drops_one_direction_and_a_lossy_link_its_share() {
    laboratory!();
    let net = RoutedNet::new(1);
    let server = net.public(10, Link::default());
    let nat = net.nat(NatBehavior::FULL_CONE, 21, Link::default());
    let host = net.behind(&nat);
    let (outside, inside) = (udp(&server, server.address()), udp(&host, host.address()));
    inside.send_to(b"one", outside.local_addr().unwrap()).unwrap();
    let mapped = receive(&outside).unwrap();
    net.set_link(&nat, Link { lost_per_mille: 500, ..Link::default() });
    for _ in 0..200 {
        inside.send_to(b"some", outside.local_addr().unwrap()).unwrap();
    }
    let arrived = std::iter::from_fn(|| receive_soon(&outside)).count();
    assert!((60..140).contains(&arrived), "{arrived}");

    net.set_link(&nat, Link::default());
    let from = server.address();
    net.add_rule(Box::new(move |_, header| header.source.ip() != from));
    inside.send_to(b"there", outside.local_addr().unwrap()).unwrap();
    assert!(receive(&outside).is_some());
    outside.send_to(b"back", mapped).unwrap();
    assert_eq!(receive_soon(&inside), None);
}

#[test]
fn tcp_carries_its_bytes_unharmed_through_two_nats() {
    laboratory!();
    const BYTES: usize = 4_000_000;
    let net = RoutedNet::new(1);
    let server = net.public(10, delayed(5));
    let carrier = net.nat(NatBehavior::RANDOM, 21, delayed(2));
    let home = net.nat_behind(&carrier, NatBehavior::PORT_RESTRICTED, 31);
    let host = net.behind(&home);
    let at = SocketAddr::new(server.address().into(), 5000);
    let listener = server.inside(|| TcpListener::bind(at)).unwrap();
    let mut sending = host.inside(|| TcpStream::connect(at)).unwrap();
    let (mut receiving, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), IpAddr::from([203, 0, 113, 21]));
    let text: Vec<u8> = (0..BYTES).map(|index| (index % 251) as u8).collect();
    let sent = text.clone();
    let writer = std::thread::spawn(move || sending.write_all(&sent));
    let mut received = Vec::new();
    receiving.read_to_end(&mut received).unwrap();
    writer.join().unwrap().unwrap();
    assert!(received == text, "{} bytes of {BYTES}, or others", received.len());
}

#[test]
fn ipv6_is_filtered_and_not_translated() {
    laboratory!();
    let net = RoutedNet::new(1);
    let open = net.public(10, Link::default());
    let (closed, _firewall) = net.behind_firewall(NatBehavior::FIREWALL, 21, Link::default());
    let [there, here]: [IpAddr; 2] = ["2001:db8::10", "2001:db8::21"].map(|ip| ip.parse().unwrap());
    net.add_ipv6(&open, "2001:db8::10");
    net.add_ipv6(&closed, "2001:db8::21");
    let (outside, inside) = (udp(&open, there), udp(&closed, here));
    outside.send_to(b"unasked", inside.local_addr().unwrap()).unwrap();
    assert_eq!(receive_soon(&inside), None);
    inside.send_to(b"one", outside.local_addr().unwrap()).unwrap();
    assert_eq!(receive(&outside), inside.local_addr().ok());
    outside.send_to(b"two", inside.local_addr().unwrap()).unwrap();
    assert_eq!(receive(&inside), outside.local_addr().ok());
}

#[test]
fn a_second_uplink_leaves_through_its_own_nat() {
    laboratory!();
    let net = RoutedNet::new(1);
    let server = net.public(10, Link::default());
    let (nat, vpn) = (
        net.nat(NatBehavior::PORT_RESTRICTED, 21, Link::default()),
        net.nat(NatBehavior::PORT_RESTRICTED, 51, Link::default()),
    );
    let host = net.behind(&nat);
    let second = net.second_uplink(&host, "tun0", &vpn);
    host.run("ip", &["route", "replace", "default", "dev", "tun0"]);
    let (outside, inside) = (udp(&server, server.address()), udp(&host, second.address()));
    inside.send_to(b"one", outside.local_addr().unwrap()).unwrap();
    assert_eq!(receive(&outside).unwrap().ip(), IpAddr::from([203, 0, 113, 51]));
    assert_eq!(net.packets(&host).sent_udp, 0);
}
