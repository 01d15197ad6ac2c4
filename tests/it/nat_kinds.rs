//! The NAT kinds of the laboratory map and filter as their names promise, measured by an independent probe.

use std::time::Duration;

use serde_json::Value;

use crate::lab::{Host, NatKind, Net};
use crate::proc::Proc;
use crate::tools;

const SHORT: Duration = Duration::from_secs(15);

/// The line of JSON that a probe ends with.
fn verdict(probe: &mut Proc) -> Value {
    let verdict = probe.expect("verdict", SHORT, |line| serde_json::from_str::<Value>(line).ok());
    probe.succeed(SHORT);
    verdict
}

/// The probe's server, on two public addresses.
fn probe_server(net: &Net) -> (Host, Proc) {
    let host = net.public(11);
    host.add_address(12);
    let server = host.python("natprobe.py", &["serve", "203.0.113.11", "203.0.113.12"]);
    server.expect("readiness", SHORT, |line| (line == "ready").then_some(()));
    (host, server)
}

fn judged(kind: NatKind) -> Value {
    let net = Net::new();
    let (_host, _server) = probe_server(&net);
    let nat = net.nat(kind, 21);
    let inner = net.behind(&nat);
    verdict(&mut inner.python("natprobe.py", &["ask", "203.0.113.11", "203.0.113.12"]))
}

fn assert_kind(kind: NatKind, mapping: &str, filtering: &str) {
    if !tools::have_laboratory() {
        return;
    }
    let verdict = judged(kind);
    assert_eq!(verdict["mapping"], mapping, "{kind:?}: {verdict}");
    assert_eq!(verdict["filtering"], filtering, "{kind:?}: {verdict}");
    assert_eq!(verdict["tcp"], true, "{kind:?}: {verdict}");
}

#[test]
fn a_full_cone_nat_keeps_one_port_and_accepts_any_source() {
    assert_kind(NatKind::FullCone, "same", "none");
}

#[test]
fn an_address_restricted_nat_keeps_one_port_and_accepts_known_addresses_from_any_port() {
    assert_kind(NatKind::AddressRestricted, "same", "address");
}

#[test]
fn a_port_restricted_nat_keeps_one_port_and_accepts_only_known_ports() {
    assert_kind(NatKind::PortRestricted, "same", "port");
}

#[test]
fn a_symmetric_nat_maps_each_peer_to_another_port() {
    assert_kind(NatKind::Symmetric, "changes", "port");
}

#[test]
fn a_udp_blocking_nat_passes_only_tcp() {
    assert_kind(NatKind::UdpBlocked, "blocked", "blocked");
}

#[test]
fn an_open_host_keeps_its_address() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (_host, _server) = probe_server(&net);
    let open = net.public(20);
    let verdict = verdict(&mut open.python("natprobe.py", &["ask", "203.0.113.11", "203.0.113.12"]));
    assert_eq!(verdict["mapping"], "same", "{verdict}");
    assert_eq!(verdict["filtering"], "none", "{verdict}");
    assert_eq!(verdict["seen"][0][0], "203.0.113.20", "{verdict}");
    assert_eq!(verdict["seen"][0][1], verdict["local"], "{verdict}");
}

#[test]
fn an_unsolicited_packet_does_not_prevent_a_later_punch() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (left, right) = (net.nat(NatKind::PortRestricted, 21), net.nat(NatKind::PortRestricted, 22));
    let (left_host, right_host) = (net.behind(&left), net.behind(&right));
    right_host.python("natprobe.py", &["knock", "203.0.113.21", "5001", "5002"]).succeed(SHORT);
    let mut left_punch = left_host.python("natprobe.py", &["punch", "203.0.113.22", "5002", "5001"]);
    let mut right_punch = right_host.python("natprobe.py", &["punch", "203.0.113.21", "5001", "5002"]);
    assert_eq!(verdict(&mut left_punch)["source"], serde_json::json!(["203.0.113.22", 5002]));
    assert_eq!(verdict(&mut right_punch)["source"], serde_json::json!(["203.0.113.21", 5001]));
}

#[test]
fn a_symmetric_nat_cannot_be_punched_from_a_port_restricted_one() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (left, right) = (net.nat(NatKind::PortRestricted, 21), net.nat(NatKind::Symmetric, 22));
    let (left_host, right_host) = (net.behind(&left), net.behind(&right));
    let mut left_punch = left_host.python("natprobe.py", &["punch", "203.0.113.22", "5002", "5001"]);
    let mut right_punch = right_host.python("natprobe.py", &["punch", "203.0.113.21", "5001", "5002"]);
    assert!(verdict(&mut left_punch)["source"].is_null());
    assert!(verdict(&mut right_punch)["source"].is_null());
}

#[test]
fn packets_to_foreign_private_addresses_are_dropped_silently() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let nat = net.nat(NatKind::PortRestricted, 21);
    let hosts = [net.behind(&nat), net.public(20)];
    for host in hosts {
        let verdict = verdict(&mut host.python("natprobe.py", &["void", "10.99.0.7"]));
        assert_eq!(verdict["came"], serde_json::json!([]), "from {}", host.address());
    }
}

#[test]
fn two_hosts_behind_one_nat_reach_each_other_by_their_inner_addresses() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let nat = net.nat(NatKind::PortRestricted, 21);
    let (first, second) = (net.behind(&nat), net.behind(&nat));
    let mut here = first.python("natprobe.py", &["punch", "10.21.0.3", "5002", "5001"]);
    let mut there = second.python("natprobe.py", &["punch", "10.21.0.2", "5001", "5002"]);
    assert_eq!(verdict(&mut here)["source"], serde_json::json!(["10.21.0.3", 5002]));
    assert_eq!(verdict(&mut there)["source"], serde_json::json!(["10.21.0.2", 5001]));
}

/// A host behind `kind` and one behind a symmetric NAT send to each other; the first answers what it receives.
fn assert_symmetric_reaches(kind: NatKind) {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (left, right) = (net.nat(kind, 21), net.nat(NatKind::Symmetric, 22));
    let (left_host, right_host) = (net.behind(&left), net.behind(&right));
    let mut left_punch = left_host.python("natprobe.py", &["punch", "203.0.113.22", "5002", "5001"]);
    let mut right_punch = right_host.python("natprobe.py", &["punch", "203.0.113.21", "5001", "5002"]);
    let verdict_of_left = verdict(&mut left_punch);
    assert_eq!(verdict_of_left["source"][0], "203.0.113.22", "{verdict_of_left}");
    assert_ne!(verdict_of_left["source"][1], 5002, "{verdict_of_left}");
    assert_eq!(verdict(&mut right_punch)["source"], serde_json::json!(["203.0.113.21", 5001]));
}

#[test]
fn a_host_behind_a_symmetric_nat_reaches_a_full_cone() {
    assert_symmetric_reaches(NatKind::FullCone);
}

#[test]
fn a_host_behind_a_symmetric_nat_reaches_an_address_restricted_nat_after_its_packet() {
    assert_symmetric_reaches(NatKind::AddressRestricted);
}
