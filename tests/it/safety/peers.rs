//! Denied peers, and peers that cannot be reached.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Net;
use crate::proc::{Proc, Stdout};
use crate::test_server::{PASSWORD, TestServer, USER};
use crate::tools;

const SHORT: Duration = Duration::from_secs(30);

fn python(arguments: &[&str]) -> Proc {
    let mut command = Command::new("python3");
    command.arg(tools::client("turn.py")).args(arguments);
    Proc::start(&format!("turn.py {}", arguments[0]), command, Stdout::Lines)
}

fn ready(witness: &Proc) {
    witness.expect("readiness", SHORT, |line| (line == "ready").then_some(()));
}

/// Asserts that every one of `peers` was refused three times, and that the witness received nothing. A permission names no port, so
/// that one for the address of relays is granted.
fn assert_refused(client: &mut Proc, peers: &[&str], relays: &str, witness: &Proc) {
    client.succeed(SHORT);
    let verdicts = client.lines(|line| serde_json::from_str::<Value>(line).ok());
    let expected: Vec<_> = peers
        .iter()
        .map(|peer| {
            let ip = peer.trim_start_matches("[::ffff:").split([':', ']']).next();
            let permit = if ip == Some(relays) { 200 } else { 403 };
            json!({ "peer": peer, "permit": permit, "bind": 403, "echoed": false })
        })
        .collect();
    assert_eq!(verdicts, expected);
    assert_eq!(witness.lines(|line| line.starts_with("received").then(|| line.clone())), [""; 0]);
}

#[test]
fn the_host_itself_is_denied_in_every_spelling() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let server = test_server.address.to_string();
    let witness_port = (test_server.address.port() + 2).to_string();
    let witness = python(&["witness", &witness_port]);
    ready(&witness);
    let aux = format!("127.0.0.1:{}", test_server.address.port() + 1);
    let peers = [
        "127.0.0.1",
        "127.0.0.53",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::1]",
        "0.0.0.0",
        "[::]",
        &server,
        &aux,
    ];
    // On a dual stack an IPv6 peer gets 443 on an IPv4 allocation; the denial has precedence.
    let mut client = python(&[&["refuse", &server, USER, PASSWORD, &witness_port], &peers[..]].concat());
    assert_refused(&mut client, &peers, "127.0.0.1", &witness);
}

#[test]
fn inner_networks_and_the_servers_own_port_are_denied() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server_host, client_host) = (net.island(10), net.public(20));
    // The denied addresses exist and would receive relayed data.
    for address in ["10.9.9.9/24", "172.16.5.5/24", "192.168.7.7/24", "169.254.169.254/32", "100.64.3.3/24"] {
        server_host.add_inner_address(address);
    }
    let test_server = TestServer::on(&server_host);
    let witness = server_host.python("turn.py", &["witness", "5000"]);
    ready(&witness);
    let peers = [
        "127.0.0.1",
        "[::ffff:127.0.0.1]",
        "10.9.9.9",
        "172.16.5.5",
        "192.168.7.7",
        "169.254.169.254",
        "100.64.3.3",
        "[::ffff:10.9.9.9]",
        "[::ffff:169.254.169.254]",
        "255.255.255.255",
        "224.0.0.1",
        "203.0.113.10:3478",
        "[::ffff:203.0.113.10]:3478",
        "203.0.113.10:3479",
    ];
    let server = test_server.address.to_string();
    let mut client =
        client_host.python("turn.py", &[&["refuse", &server, USER, PASSWORD, "5000"], &peers[..]].concat());
    assert_refused(&mut client, &peers, "203.0.113.10", &witness);
}

#[test]
fn an_unreachable_peer_does_not_affect_the_others() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server_host, client_host) = (net.island(10), net.public(20));
    let (good_host, _closed_host) = (net.public(11), net.public(12));
    let test_server = TestServer::on(&server_host);
    let good = good_host.python("turn.py", &["echo", "203.0.113.11:7000"]);
    ready(&good);
    let server = test_server.address.to_string();
    // A closed port, an unused address, and an address without a route.
    let bad = ["203.0.113.12:9", "203.0.113.77:9", "9.9.9.9:9"];
    let arguments = [&["others", &server, USER, PASSWORD, "203.0.113.11:7000"], &bad[..]].concat();
    let mut client = client_host.python("turn.py", &arguments);
    let mut verdict = client.expect("verdict", SHORT, |line| serde_json::from_str::<Value>(line).ok());
    client.succeed(SHORT);
    let icmp = verdict["icmp"].take();
    let port_unreachable = json!(["203.0.113.12", 3, 3]);
    assert!(
        icmp.as_array().unwrap().contains(&port_unreachable),
        "the client receives an ICMP error for the closed port: {icmp}"
    );
    let all = json!([200, 200, 200]);
    let expected = json!({
        "good": 200, "bad": all, "send": 100, "good bind": 200, "bad bind": all, "channel": 100, "refresh": 200,
        "icmp": null,
    });
    assert_eq!(verdict, expected, "{}", test_server.process.printed());
}
