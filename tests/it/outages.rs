//! Agents that lose their network without a notification and return, and paths through NATs with short timeouts.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use ginnel::agent::Ticket;
use serde_json::{Value, json};

use crate::lab::{Host, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::signaling_client::SignalingClient;
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::pause_under_test;

const UP: Duration = Duration::from_secs(30);
/// How long a tag lives without its heartbeat, and how soon the server gives up a silent WebSocket.
const TTL: Duration = Duration::from_secs(5);
const TIMES: &str = "[signaling.times]\nping = 1\nidle = 3\ntag = 5\n";

fn agent(name: &str, host: &Host, arguments: &[&str]) -> Proc {
    let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).arg("--json").env_remove("AGENT_KEY").env_remove("AGENT_CODE");
    Proc::start(name, command, Stdout::Pipe)
}

fn ticket(listener: &Proc) -> Ticket {
    listener.expect("ticket", UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["ticket"].as_str()?.parse().ok()
    })
}

/// A client that watches one tag.
struct Watcher {
    line: SignalingClient,
    own: String,
    watched: String,
}

impl Watcher {
    fn new(mut line: SignalingClient, watched: &str) -> Self {
        let own = line.register(&json!({}));
        let answer = line.request(json!({"t": 60, "params": {"tags": [watched]}}));
        assert_eq!(answer["extra"]["online"], json!([watched]), "{answer}");
        Self { line, own, watched: watched.to_owned() }
    }

    /// The next presence event of the tag; `None` if none arrives in time.
    fn event(&mut self, within: Duration) -> Option<&'static str> {
        let event = self.line.receive_within(within, |message| message["t"] == 60)?;
        let names = |word: &&str| event["params"][*word] == json!([self.watched]);
        Some(["online", "offline"].into_iter().find(names).unwrap_or_else(|| panic!("{event}")))
    }

    fn listed(&mut self) -> Value {
        self.line.request(json!({"t": 3, "params": {"tag": self.own}}))["extra"]["tags"].clone()
    }

    fn call(&mut self) -> Value {
        self.line.request(json!({"t": 4, "params": {"tag": self.own, "rtag": self.watched}}))["code"].clone()
    }
}

/// Kills the network of an agent on `host` and gives it back.
fn assert_it_returns(net: &Net, host: &Host, kill: impl Fn(), give_back: impl Fn()) {
    let (server_host, other) = (net.island(10), net.public(11));
    let test_server = TestServer::on_with(&server_host, TIMES);
    let server = test_server.address.to_string();
    let mut listener = agent("listener", host, &["listen", "--server", &server]);
    let _pipes = listener.take_pipes();
    let ticket = ticket(&listener);
    let line = server_host.inside(|| SignalingClient::web(Ipv4Addr::UNSPECIFIED, test_server.address));
    let mut watcher = Watcher::new(line, ticket.tag());

    kill();
    assert_eq!(watcher.event(UP), Some("offline"), "{}", test_server.process.printed());
    assert_eq!((watcher.listed(), watcher.call()), (json!([]), json!(203)));

    give_back();
    assert_eq!(watcher.event(UP), Some("online"), "{}", listener.printed());
    // The end of the dead line, whenever it comes, takes nothing from the new one.
    assert_eq!(watcher.event(2 * TTL), None);
    assert_eq!(watcher.listed(), json!([ticket.tag()]));

    let mut connector = agent("connector", &other, &["connect", &ticket.to_string()]);
    let _more_pipes = connector.take_pipes();
    for side in [&connector, &listener] {
        side.expect("path", UP, |line| line.contains("\"t\":\"path\"").then_some(()));
    }
}

#[test]
fn an_agent_behind_a_nat_that_drops_everything_is_reported_offline_and_returns_once() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let nat = net.nat(NatKind::PortRestricted, 21);
    let host = net.behind(&nat);
    assert_it_returns(&net, &host, || nat.cut(), || nat.mend());
}

#[test]
fn an_agent_whose_link_goes_down_is_reported_offline_and_returns_once() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let host = net.public(21);
    assert_it_returns(&net, &host, || net.unplug(&host), || net.replug(&host));
}

/// S1-11: the hole is both NATs' mappings, and either is lost when nothing passes.
#[test]
fn a_path_through_nats_with_short_timeouts_outlives_silence() {
    if !tools::have_laboratory() {
        return;
    }
    const MEMORY: u8 = 8;
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let server = test_server.address.to_string();
    let nats = [21, 22].map(|octet| net.nat(NatKind::PortRestricted, octet));
    nats.iter().for_each(|nat| nat.forget_after(MEMORY));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let mut listener =
        agent("listener", &hosts[0], &["listen", "--server", &server, "--key", &test_server.key()]);
    let (_to_listener, from_listener) = listener.take_pipes();
    let mut connector = agent("connector", &hosts[1], &["connect", &ticket(&listener).to_string()]);
    let (mut to_listener, _from_connector) = connector.take_pipes();
    for side in [&listener, &connector] {
        side.expect("direct path", UP, |line| line.contains("\"kind\":\"direct\"").then_some(()));
    }
    let paths = |side: &Proc| side.lines(|line| line.contains("\"t\":\"path\"").then(|| line.clone()));
    let found = [paths(&listener), paths(&connector)];
    pause_under_test(Duration::from_secs(3 * u64::from(MEMORY)));
    to_listener.write_all(b"still there?\n").unwrap();
    let mut line = String::new();
    BufReader::new(from_listener).read_line(&mut line).unwrap();
    assert_eq!(line, "still there?\n");
    assert_eq!([paths(&listener), paths(&connector)], found);
}
