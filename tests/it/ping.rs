//! `agent ping` and `agent doctor --peer`: a waiting listener answers both, and still accepts its one connection.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Host, Link, NatBehavior, RoutedNet};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(30);
const AGENT: &str = env!("CARGO_BIN_EXE_agent");

fn events(process: &Proc, kind: &str) -> Vec<Value> {
    process.lines(|line| serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == kind))
}

fn ticket_of(listener: &Proc) -> String {
    listener.expect("ticket", UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["ticket"].as_str().map(str::to_owned)
    })
}

/// Runs a command to its end and asserts that it succeeds.
fn finish(name: &str, mut command: Command) -> Proc {
    command.env_remove("AGENT_TICKET");
    let mut run = Proc::start(name, command, Stdout::Lines);
    run.succeed(UP);
    run
}

#[test]
fn a_waiting_listener_answers_pings_and_keeps_its_pipe() {
    let test_server = TestServer::on_loopback("");
    let server = test_server.address.to_string();
    let mut command = Command::new(AGENT);
    command.args(["listen", "--server", &server, "--json"]).env("AGENT_KEY", test_server.key());
    let mut listener = Proc::start("listen", command, Stdout::Pipe);
    let (to_listener, mut from_listener) = listener.take_pipes();
    let ticket = ticket_of(&listener);
    let mut command = Command::new(AGENT);
    command.args(["ping", &ticket]);
    let text = finish("ping", command);
    assert_eq!(
        text.lines(|line| (line.starts_with("pong via ") && !line.contains("relay")).then_some(())).len(),
        1,
        "{}",
        text.printed()
    );
    let mut command = Command::new(AGENT);
    command.args(["ping", &ticket, "--json", "-c", "2", "--no-until-direct"]);
    let pongs = events(&finish("ping --json", command), "pong");
    assert_eq!(pongs.iter().map(|pong| &pong["seq"]).collect::<Vec<_>>(), [1, 2], "{pongs:?}");
    assert!(events(&listener, "path").is_empty(), "{}", listener.printed());

    let mut command = Command::new(AGENT);
    command.args(["connect", &ticket]);
    let mut connector = Proc::start("connect", command, Stdout::Pipe);
    let (mut to_connector, _from_connector) = connector.take_pipes();
    to_connector.write_all(b"the one connection").unwrap();
    drop((to_connector, to_listener));
    let mut received = String::new();
    from_listener.read_to_string(&mut received).unwrap();
    assert_eq!(received, "the one connection");
    listener.succeed(UP);
    connector.succeed(UP);
}

#[test]
fn a_peer_that_is_not_there_is_offline() {
    let test_server = TestServer::on_loopback("");
    let nobody =
        ginnel::agent::Ticket::new(test_server.address.to_string().parse().unwrap(), "nobody2345", [7; 16]);
    let mut command = Command::new(AGENT);
    command.args(["ping", &nobody.to_string()]);
    let mut ping = Proc::start("ping", command, Stdout::Lines);
    assert_eq!(ping.wait(UP).code(), Some(3), "{}", ping.printed());
}

/// Two hosts behind NATs, of which the first waits.
struct Pair {
    test_server: TestServer,
    _listener: Proc,
    ticket: String,
    connector: Host,
    _hosts: Vec<crate::lab::RoutedHost>,
    _nats: [crate::lab::RoutedNat; 2],
    _net: RoutedNet,
}

impl Pair {
    fn new(behaviors: [NatBehavior; 2]) -> Self {
        let link = Link::with_delay(Duration::from_millis(10));
        let net = RoutedNet::new(1);
        let server_host = net.public(10, link);
        let test_server = TestServer::on(&server_host);
        let nats =
            [(behaviors[0], 21), (behaviors[1], 22)].map(|(behavior, octet)| net.nat(behavior, octet, link));
        let [there, here] = nats.each_ref().map(|nat| net.behind(nat));
        let mut command = there.command(AGENT);
        command.args(["listen", "--server", &test_server.address.to_string(), "--json"]);
        command.env("AGENT_KEY", test_server.key());
        let listener = Proc::start("listen", command, Stdout::Lines);
        let ticket = ticket_of(&listener);
        let connector = here.host.clone();
        let hosts = vec![server_host, there, here];
        Self { test_server, _listener: listener, ticket, connector, _hosts: hosts, _nats: nats, _net: net }
    }

    fn run(&self, arguments: &[&str]) -> Proc {
        let mut command = self.connector.command(AGENT);
        command.args(arguments).arg("--json").env("AGENT_KEY", self.test_server.key());
        finish(arguments[0], command)
    }

    fn predicted(&self) -> Value {
        let doctor = self.run(&["doctor", "--peer", &self.ticket]);
        let pair = events(&doctor, "pair").pop().unwrap_or_else(|| panic!("{}", doctor.printed()));
        assert!(!events(&doctor, "verdict").is_empty(), "{}", doctor.printed());
        json!([pair["expected_code"], pair["actual_kind"]])
    }
}

#[test]
fn pings_stop_once_the_path_is_direct_as_it_was_predicted() {
    if !tools::have_laboratory() {
        return;
    }
    let pair = Pair::new([NatBehavior::PORT_RESTRICTED; 2]);
    let ping = pair.run(&["ping", &pair.ticket]);
    let pongs = events(&ping, "pong");
    let direct = pongs.iter().filter(|pong| pong["kind"] == "direct").count();
    assert_eq!((direct, &pongs.last().unwrap()["kind"]), (1, &json!("direct")), "{}", ping.printed());
    assert_eq!(pair.predicted(), json!(["ice", "direct"]));
}

#[test]
fn pings_over_the_relay_say_why_it_is_used_as_it_was_predicted() {
    if !tools::have_laboratory() {
        return;
    }
    let pair = Pair::new([NatBehavior::RANDOM; 2]);
    let ping = pair.run(&["ping", &pair.ticket, "-c", "3"]);
    let pongs = events(&ping, "pong");
    assert!(pongs.len() == 3 && pongs.iter().all(|pong| pong["kind"] == "relay"), "{}", ping.printed());
    let note = events(&ping, "note").pop().unwrap();
    assert!(note["what"].as_str().unwrap().contains("both NATs change ports"), "{note}");
    assert_eq!(pair.predicted(), json!(["both_change_ports", "relay"]));
}
