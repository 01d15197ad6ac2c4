//! Relayed addresses of both families: a server that has only IPv6, and two agents that reach their server by different families.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;

const UP: Duration = Duration::from_secs(30);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const ALLOW: &str = "allow_peers = [\"127.0.0.1/32\", \"::1/128\"]";

fn agent(name: &str, arguments: &[&str], key: &str) -> Proc {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).args(["--relay-only", "--json"]).env("AGENT_KEY", key);
    Proc::start(name, command, Stdout::Pipe)
}

/// Sends a line over the relay between two agents that reach the server at these addresses.
fn assert_relayed(test_server: &TestServer, listening: SocketAddr, connecting: SocketAddr) {
    let key = test_server.key();
    let (listening, connecting) = (listening.to_string(), connecting.to_string());
    let mut listener = agent("listener", &["listen", "--server", &listening], &key);
    let (_to_connector, from_listener) = listener.take_pipes();
    let ticket = listener.expect("ticket", UP, |line| {
        Some(serde_json::from_str::<Value>(line).ok()?["ticket"].as_str()?.to_owned())
    });
    let mut connector = agent("connector", &["connect", &ticket, "--server", &connecting], &key);
    let (mut to_listener, _from_connector) = connector.take_pipes();
    for (side, server) in [(&listener, &listening), (&connector, &connecting)] {
        let path: Value = side.expect("path", UP, |line| {
            serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == "path")
        });
        assert_eq!((&path["kind"], &path["remote"]), (&"relay".into(), &server.as_str().into()), "{path}");
    }
    to_listener.write_all(b"by the relay\n").unwrap();
    let mut line = String::new();
    BufReader::new(from_listener).read_line(&mut line).unwrap();
    assert_eq!(line, "by the relay\n");
}

#[test]
fn a_server_that_has_only_ipv6_relays() {
    let test_server = TestServer::at(&[V6], ALLOW);
    assert_relayed(&test_server, test_server.address, test_server.address);
}

#[test]
fn agents_that_reach_the_server_by_different_families_are_relayed() {
    let test_server = TestServer::at(&[V4, V6], ALLOW);
    let addresses = [V4, V6].map(|ip| test_server.address_at(ip));
    assert_relayed(&test_server, addresses[0], addresses[1]);
}
