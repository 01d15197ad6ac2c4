//! The first of two servers is dead, or gives no relay: a listener and a connector use the second one.

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Host, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::wait_until;

const UP: Duration = Duration::from_secs(30);
/// A host of the laboratory that answers nothing.
const DEAD: &str = "203.0.113.99:3478";

fn agent(name: &str, host: &Host, arguments: &[&str], key: Option<&str>) -> Proc {
    let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).arg("--json").env_remove("AGENT_KEY");
    if let Some(key) = key {
        command.env("AGENT_KEY", key);
    }
    Proc::start(name, command, Stdout::Pipe)
}

fn event(line: &str, kind: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == kind)
}

fn ticket(listener: &Proc) -> String {
    listener.expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()))
}

#[test]
fn the_second_server_is_used_where_the_first_is_dead() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let nats = [21, 22].map(|octet| net.nat(NatKind::PortRestricted, octet));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let (alive, key) = (test_server.address.to_string(), test_server.key());
    let servers = ["--server", DEAD, "--server", &alive];

    let begun = Instant::now();
    let mut listener = agent("listener", &hosts[0], &[&["listen"], &servers[..]].concat(), Some(&key));
    let _to_listener = listener.take_pipes();
    let ticket = ticket(&listener);
    eprintln!("the ticket after {:?}", begun.elapsed());
    let begun = Instant::now();
    let mut connector =
        agent("connector", &hosts[1], &[&["connect", &ticket], &servers[..]].concat(), Some(&key));
    let _to_connector = connector.take_pipes();
    connector.expect("direct path", UP, |line| event(line, "path").filter(|path| path["kind"] == "direct"));
    eprintln!("a direct path after {:?}", begun.elapsed());
}

/// The listener registers at the second server when the first one dies, and its ticket is still good.
#[test]
fn a_ticket_outlives_its_first_server() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let mut servers = [10, 11].map(|octet| TestServer::on(&net.public(octet)));
    let hosts = [21, 22].map(|octet| net.public(octet));
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    let arguments = ["listen", "--server", &addresses[0], "--server", &addresses[1]];
    // Without a key: the two servers have different ones.
    let mut listener = agent("listener", &hosts[0], &arguments, None);
    let _to_listener = listener.take_pipes();
    let ticket = ticket(&listener);
    servers[0].kill();
    let mut connector = None;
    wait_until(UP, "no connection by the second server", || {
        // The listener needs a moment to register again.
        let mut attempt = agent("connector", &hosts[1], &["connect", &ticket], None);
        let pipes = attempt.take_pipes();
        let path = attempt.wait_for(UP, |line| event(line, "path").or_else(|| event(line, "error")));
        let is_connected = path.is_some_and(|event| event["t"] == "path" && event["kind"] == "direct");
        connector = Some((attempt, pipes));
        is_connected
    });
    listener.expect("direct path", UP, |line| event(line, "path").filter(|path| path["kind"] == "direct"));
}

/// Both sides register at the second server, which has the same key, and relay there.
#[test]
fn a_relayed_session_goes_on_at_the_second_server_when_the_first_dies() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let server_hosts = [10, 11].map(|octet| net.public(octet));
    let mut servers = server_hosts.each_ref().map(TestServer::on);
    for file in ["secret", "key"] {
        std::fs::copy(servers[0].state().join(file), servers[1].state().join(file)).unwrap();
    }
    servers[1].restart_on(&server_hosts[1]);
    let key = servers[0].key();
    let nats = [21, 22].map(|octet| net.nat(NatKind::Symmetric, octet));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    let arguments = ["listen", "--server", &addresses[0], "--server", &addresses[1]];
    let mut listener = agent("listener", &hosts[0], &arguments, Some(&key));
    let (_to_connector, from_listener) = listener.take_pipes();
    let mut connector = agent("connector", &hosts[1], &["connect", &ticket(&listener)], Some(&key));
    let (mut to_listener, _from_connector) = connector.take_pipes();
    let relayed_by = |side: &Proc, server: &String| {
        side.expect("relayed path", UP, |line| {
            event(line, "path").filter(|path| path["kind"] == "relay" && path["remote"] == server.as_str())
        });
    };
    relayed_by(&listener, &addresses[0]);
    relayed_by(&connector, &addresses[0]);
    let begun = Instant::now();
    servers[0].kill();
    relayed_by(&listener, &addresses[1]);
    relayed_by(&connector, &addresses[1]);
    eprintln!("a relay of the second server after {:?}", begun.elapsed());
    to_listener.write_all(b"still there\n").unwrap();
    let mut line = String::new();
    BufReader::new(from_listener).read_line(&mut line).unwrap();
    assert_eq!(line, "still there\n");
}

/// The first server registers both sides and answers Binding requests, but has no relay port to give.
#[test]
fn the_relay_is_taken_from_another_server_where_the_first_one_gives_none() {
    let relay_port = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = relay_port.local_addr().unwrap().port();
    let allow = "allow_peers = [\"127.0.0.1/32\"]";
    let exhausted = TestServer::on_loopback(&format!("{allow}\nrelay_ports = \"{port}-{port}\""));
    let mut other = TestServer::on_loopback(allow);
    for file in ["secret", "key"] {
        std::fs::copy(exhausted.state().join(file), other.state().join(file)).unwrap();
    }
    other.restart();
    let key = exhausted.key();
    let start = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).args(["--relay-only", "--json"]).env("AGENT_KEY", &key);
        Proc::start(name, command, Stdout::Pipe)
    };
    let servers = [exhausted.address.to_string(), other.address.to_string()];
    let mut listener = start("listener", &["listen", "--server", &servers[0], "--server", &servers[1]]);
    let (_to_connector, from_listener) = listener.take_pipes();
    let mut connector = start("connector", &["connect", &ticket(&listener)]);
    let (mut to_listener, _from_connector) = connector.take_pipes();
    for side in [&listener, &connector] {
        side.expect("a relayed path of the second server", UP, |line| {
            event(line, "path")
                .filter(|path| path["kind"] == "relay" && path["remote"] == servers[1].as_str())
        });
    }
    to_listener.write_all(b"relayed there\n").unwrap();
    let mut line = String::new();
    BufReader::new(from_listener).read_line(&mut line).unwrap();
    assert_eq!(line, "relayed there\n");
}
