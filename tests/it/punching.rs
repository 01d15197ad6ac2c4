//! Hole punching in the laboratory by clients that use only S0's JSON over UDP: the pairs of NATs that work, and the end where they do not.

use std::time::Duration;

use serde_json::Value;

use crate::lab::{Host, NatKind, Net};
use crate::proc::Proc;
use crate::test_server::TestServer;
use crate::tools;

use NatKind::{AddressRestricted, FullCone, PortRestricted, Symmetric};

/// How long two clients may take for all they do.
const UP: Duration = Duration::from_secs(60);
/// How long they look for a hole, in seconds.
const TIMEOUT: &str = "8";

/// How a pair has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With a hundred datagrams exchanged each way.
    Exchanged,
    /// Both report to the server that they have given up.
    NoHole,
    /// The server reports to the caller that the callee does not answer.
    NoAnswer,
}

/// The last event of that name that a client has printed.
fn event(client: &Proc, name: &str) -> Value {
    let of_name =
        |line: &String| serde_json::from_str::<Value>(line).ok().filter(|event| event["event"] == name);
    let output = client.lines(of_name).pop();
    output.unwrap_or_else(|| panic!("no {name}\n{}", client.printed()))
}

fn assert_end(callee: NatKind, caller: NatKind, rest: &str, end: End) {
    let net = Net::new();
    let server_host = net.island(10);
    let nats = [net.nat(callee, 21), net.nat(caller, 22)];
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let test_server = TestServer::on_with(&server_host, rest);
    let server = test_server.address.to_string();
    let client = |host: usize, role: &[&str]| {
        let usual = ["--server", &server, "--give-up", TIMEOUT];
        hosts[host].python("plain_client.py", &[&usual[..], role].concat())
    };
    let mut listener = client(0, &["listen"]);
    listener.expect("registration", UP, |line| line.contains("\"registered\"").then_some(()));
    let mut calling = client(1, &["call", "first"]);
    let called = calling.wait(UP);
    let output = [&calling, &listener].map(Proc::printed).join("\n") + &test_server.process.printed();
    let expected = if end == End::Exchanged { 0 } else { 1 };
    assert_eq!(called.code(), Some(expected), "{callee:?}, called from behind {caller:?}\n{output}");
    match end {
        End::Exchanged => {
            assert_eq!(event(&calling, "exchanged")["received"], 100);
            listener.succeed(UP);
        }
        End::NoHole => {
            assert_eq!(event(&calling, "failed")["reason"], "no hole", "{output}");
            assert_eq!(listener.wait(UP).code(), Some(1));
            assert_eq!(event(&listener, "failed")["reason"], "no hole");
        }
        End::NoAnswer => assert_eq!(event(&calling, "failed")["code"], 207, "{output}"),
    }
}

fn assert_ends(pairs: &[(NatKind, NatKind)], rest: &str, end: End) {
    if !tools::have_laboratory() {
        return;
    }
    for _ in 0..tools::switch("GINNEL_LAB_RUNS", 1) {
        pairs.iter().for_each(|(callee, caller)| assert_end(*callee, *caller, rest, end));
    }
}

/// Pairs of a callee with callers behind every kind of cone.
fn with_cones(callee: NatKind) -> [(NatKind, NatKind); 3] {
    [FullCone, AddressRestricted, PortRestricted].map(|caller| (callee, caller))
}

#[test]
fn plain_clients_punch_through_a_full_cone_and_every_other_cone() {
    assert_ends(&with_cones(FullCone), "", End::Exchanged);
}

#[test]
fn plain_clients_punch_through_an_address_restricted_cone_and_every_other_cone() {
    assert_ends(&with_cones(AddressRestricted), "", End::Exchanged);
}

#[test]
fn plain_clients_punch_through_a_port_restricted_cone_and_every_other_cone() {
    assert_ends(&with_cones(PortRestricted), "", End::Exchanged);
}

#[test]
fn plain_clients_punch_through_a_full_cone_and_a_symmetric_nat() {
    assert_ends(&[(FullCone, Symmetric), (Symmetric, FullCone)], "", End::Exchanged);
}

#[test]
fn a_punch_between_two_symmetric_nats_fails_in_time() {
    assert_ends(&[(Symmetric, Symmetric)], "", End::NoHole);
}

/// S0-A10: what comes from a port that a client never wrote to does not pass its port-restricted NAT.
#[test]
fn notifications_only_from_port_2_do_not_reach_a_callee_behind_a_port_restricted_nat() {
    assert_ends(&[(PortRestricted, PortRestricted)], "[signaling]\nnotify_from = \"aux\"", End::NoAnswer);
}

/// Has one plain client call another with these options, and both exchange their datagrams.
fn exchange([callee, caller]: [&Host; 2], server_host: &Host, options: &[&str]) -> [Proc; 2] {
    let test_server = TestServer::on(server_host);
    let server = test_server.address.to_string();
    let usual = [&["--server", &server][..], options].concat();
    let mut listener = callee.python("plain_client.py", &[&usual[..], &["listen"]].concat());
    listener.expect("registration", UP, |line| line.contains("\"registered\"").then_some(()));
    let mut calling = caller.python("plain_client.py", &[&usual[..], &["call", "first"]].concat());
    calling.succeed(UP);
    listener.succeed(UP);
    [listener, calling]
}

/// Punches with `--inner`; returns for callee and caller the answer to its registration and the punched address.
fn holes(hosts: [&Host; 2], server_host: &Host) -> [(Value, String); 2] {
    exchange(hosts, server_host, &["--inner"]).each_ref().map(|client| {
        let peer = event(client, "punched")["peer"].as_str().unwrap().to_owned();
        (event(client, "registered"), peer)
    })
}

/// S1-5, S1-7, S1-8: both send to all addresses; the NAT turns none back inside, so that the inner ones answer.
#[test]
fn two_clients_behind_one_nat_use_each_others_inner_addresses() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nat) = (net.island(10), net.nat(PortRestricted, 21));
    let (callee, caller) = (net.behind(&nat), net.behind(&nat));
    let [(of_callee, to_caller), (of_caller, to_callee)] = holes([&callee, &caller], &server);
    assert!(
        to_caller.starts_with("10.21.0.3:") && to_callee.starts_with("10.21.0.2:"),
        "{to_caller}, {to_callee}"
    );
    for output in [of_callee, of_caller] {
        let addr = output["addr"].as_str().unwrap();
        assert!(addr.starts_with("203.0.113.21:") && output["nat"] == true, "{output}");
    }
}

/// S1-3, S1-7, S1-9: an inner address behind another NAT leads nowhere, and the outer one answers.
#[test]
fn clients_behind_different_nats_use_outer_addresses_and_a_public_client_sees_no_nat() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nats) = (net.island(10), [21, 22].map(|octet| net.nat(PortRestricted, octet)));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let [(_, to_caller), (_, to_callee)] = holes([&hosts[0], &hosts[1]], &server);
    assert!(to_caller.starts_with("203.0.113.22:") && to_callee.starts_with("203.0.113.21:"));
    let [(_, to_caller), (of_caller, _)] = holes([&hosts[0], &net.public(11)], &server);
    assert!(to_caller.starts_with("203.0.113.11:") && of_caller["nat"] == false, "{to_caller}, {of_caller}");
}

/// S1-10: the outermost address is the one that others see.
#[test]
fn plain_clients_punch_through_two_layers_of_nat() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, outer, other) = (net.island(10), net.nat(PortRestricted, 21), net.nat(PortRestricted, 22));
    let inner = net.nat_behind(&outer, PortRestricted, 31);
    let (deep, host) = (net.behind(&inner), net.behind(&other));
    let [(output, to_other), (_, to_deep)] = holes([&deep, &host], &server);
    assert!(
        to_other.starts_with("203.0.113.22:") && to_deep.starts_with("203.0.113.21:"),
        "{to_other}, {to_deep}"
    );
    assert!(
        output["addr"].as_str().unwrap().starts_with("203.0.113.21:") && output["nat"] == true,
        "{output}"
    );
}

/// S0-22, S1-11.
#[test]
fn repeated_102_keeps_the_hole_open() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nats) = (net.island(10), [21, 22].map(|octet| net.nat(PortRestricted, octet)));
    nats.iter().for_each(|nat| nat.forget_after(5));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let ends = exchange([&hosts[0], &hosts[1]], &server, &["--silence", "15"]);
    for client in &ends {
        assert_eq!(event(client, "exchanged")["received"], 100);
    }
}

/// Punches with `--tcp`; returns for callee and caller how the stream was opened, and to which address.
fn streams([callee, caller]: [&Host; 2], server_host: &Host) -> [(String, String); 2] {
    let test_server = TestServer::on(server_host);
    let server = test_server.address.to_string();
    let usual = ["--server", &server, "--tcp"];
    let mut listener = callee.python("plain_client.py", &[&usual[..], &["listen"]].concat());
    listener.expect("registration", UP, |line| line.contains("\"registered\"").then_some(()));
    let mut calling = caller.python("plain_client.py", &[&usual[..], &["call", "first"]].concat());
    let ends = [calling.wait(UP), listener.wait(UP)];
    let output = [&calling, &listener].map(Proc::printed).join("\n") + &test_server.process.printed();
    assert!(ends.iter().all(|end| end.success()), "{output}");
    [&listener, &calling].map(|client| {
        let stream = event(client, "stream");
        assert_eq!(stream["received"], 65_536, "{output}");
        ["how", "peer"].map(|name| stream[name].as_str().unwrap().to_owned()).into()
    })
}

#[test]
fn after_the_punch_a_public_callee_is_reached_by_tcp() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nat) = (net.island(10), net.nat(PortRestricted, 22));
    let (callee, caller) = (net.public(21), net.behind(&nat));
    // Which side's SYN is the first is a matter of luck: behind the caller's own one, the callee's passes its NAT.
    let [(_, from), (_, to)] = streams([&callee, &caller], &server);
    assert!(from.starts_with("203.0.113.22:") && to.starts_with("203.0.113.21:"), "{from}, {to}");
}

/// S1-1: where only the callee is behind a NAT, it is the callee who connects.
#[test]
fn after_the_punch_a_callee_behind_a_nat_reaches_its_public_caller_by_tcp() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nat) = (net.island(10), net.nat(PortRestricted, 21));
    let (callee, caller) = (net.behind(&nat), net.public(22));
    let [(_, to), (_, from)] = streams([&callee, &caller], &server);
    assert!(from.starts_with("203.0.113.21:") && to.starts_with("203.0.113.22:"), "{from}, {to}");
}

#[test]
fn after_the_punch_two_clients_of_one_network_connect_by_tcp_inside_it() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nat) = (net.island(10), net.nat(PortRestricted, 21));
    let (callee, caller) = (net.behind(&nat), net.behind(&nat));
    let [(_, from), (_, to)] = streams([&callee, &caller], &server);
    assert!(from.starts_with("10.21.0.3:") && to.starts_with("10.21.0.2:"), "{from}, {to}");
}

#[test]
fn after_the_punch_simultaneous_open_connects_through_port_restricted_nats() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server, nats) = (net.island(10), [21, 22].map(|octet| net.nat(PortRestricted, octet)));
    let (callee, caller) = (net.behind(&nats[0]), net.behind(&nats[1]));
    let [(one, from), (other, to)] = streams([&callee, &caller], &server);
    assert_eq!((&*one, &*other), ("connected", "connected"), "nobody could accept: {from}, {to}");
    assert!(from.starts_with("203.0.113.22:") && to.starts_with("203.0.113.21:"), "{from}, {to}");
}
