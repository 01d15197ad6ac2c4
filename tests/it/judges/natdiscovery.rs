//! coturn's `turnutils_natdiscovery` names each kind of NAT.

use std::process::Command;
use std::time::Duration;

use crate::lab::{Host, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const SECOND: u8 = 11;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server with two addresses in the laboratory.
fn server(net: &Net) -> TestServer {
    let host = net.public(10);
    host.add_address(SECOND);
    TestServer::on_both(&host, std::net::Ipv4Addr::new(203, 0, 113, SECOND))
}

/// Everything that `turnutils_natdiscovery` prints on `host`.
fn discover(mut command: Command, test_server: &TestServer, flags: &[&str]) -> String {
    command.args(flags).arg(test_server.address.ip().to_string());
    let mut run = Proc::start("turnutils_natdiscovery", command, Stdout::Lines);
    run.wait(TIMEOUT);
    run.printed()
}

fn ready() -> bool {
    tools::have_laboratory() && tools::have(&["turnutils_natdiscovery"])
}

/// Runs the mapping and the filtering test on a host behind `kind`.
fn assert_named(kind: NatKind, mapping: &str, filtering: &str) {
    if !ready() {
        return;
    }
    let net = Net::new();
    let test_server = server(&net);
    let nat = net.nat(kind, 21);
    let inner = net.behind(&nat);
    assert_printed(&inner, &test_server, &["-m"], mapping);
    assert_printed(&inner, &test_server, &["-f"], filtering);
}

fn assert_printed(host: &Host, test_server: &TestServer, flags: &[&str], expected: &str) {
    let printed = discover(host.command("turnutils_natdiscovery"), test_server, flags);
    assert!(
        printed.contains(expected),
        "no \"{expected}\" with {flags:?}\n{printed}\n{}",
        test_server.process.printed()
    );
}

#[test]
fn natdiscovery_names_a_full_cone() {
    assert_named(
        NatKind::FullCone,
        "NAT with Endpoint Independent Mapping!",
        "NAT with Endpoint Independent Filtering!",
    );
}

#[test]
fn natdiscovery_names_an_address_restricted_nat() {
    assert_named(
        NatKind::AddressRestricted,
        "NAT with Endpoint Independent Mapping!",
        "NAT with Address Dependent Filtering!",
    );
}

#[test]
fn natdiscovery_names_a_port_restricted_nat() {
    assert_named(
        NatKind::PortRestricted,
        "NAT with Endpoint Independent Mapping!",
        "NAT with Address and Port Dependent Filtering!",
    );
}

#[test]
fn natdiscovery_names_a_symmetric_nat() {
    assert_named(
        NatKind::Symmetric,
        "NAT with Address and Port Dependent Mapping!",
        "NAT with Address and Port Dependent Filtering!",
    );
}

#[test]
fn natdiscovery_finds_no_nat_before_an_open_host() {
    if !ready() {
        return;
    }
    let net = Net::new();
    let test_server = server(&net);
    let open = net.public(20);
    assert_printed(
        &open,
        &test_server,
        &["-m", "-L", "203.0.113.20"],
        "No NAT! (Endpoint Independent Mapping)",
    );
    assert_printed(&open, &test_server, &["-f"], "NAT with Endpoint Independent Filtering!");
}

#[test]
fn natdiscovery_is_answered_at_the_port_it_names() {
    if !ready() {
        return;
    }
    let net = Net::new();
    let test_server = server(&net);
    let nat = net.nat(NatKind::PortRestricted, 21);
    // The second answer comes in by the binding that the first request made, at the asking of another one.
    assert_printed(&net.behind(&nat), &test_server, &["-t", "-T", "1"], "RFC 5780 response 2");
}

#[test]
fn natdiscovery_finds_out_whether_fragments_pass() {
    if !ready() {
        return;
    }
    let net = Net::new();
    let test_server = server(&net);
    let open = net.public(20);
    assert_printed(
        &open,
        &test_server,
        &["-m", "-P", "-L", "203.0.113.20"],
        "No NAT! (Endpoint Independent Mapping)",
    );
}
