//! What happens in the middle of an agents' session: the server restarts, an address changes, UDP is blocked, a path dies, an agent is stopped.
//!
//! Lines flow from the connector to the listener all the time. Each test breaks something and expects that lines arrive again, in order and without
//! a gap. Each prints how long the interruption lasts.

use std::io::{BufRead, BufReader, Write};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ginnel::agent::{Agent, Config};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Host, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::{pace, pause_under_test, wait_until};

const UP: Duration = Duration::from_secs(30);
/// Between two lines.
const PACE: Duration = Duration::from_millis(20);
/// How long an interruption may last in a test.
const BACK: Duration = Duration::from_secs(40);

/// Before the port of the server's addresses, the relayed ones too.
const SERVER: &str = "203.0.113.10:";

/// A session with lines in flight.
pub(crate) struct Talk {
    listener: Proc,
    connector: Proc,
    arrivals: Receiver<(u64, Instant)>,
    last: u64,
    /// When the connector was started, and when its first line arrived.
    started: Instant,
    first: Instant,
}

fn agent(name: &str, host: &Host, arguments: &[&str], key: &str) -> Proc {
    let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).arg("--json").env("AGENT_KEY", key).env_remove("AGENT_CODE");
    Proc::start(name, command, Stdout::Pipe)
}

fn path(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let word = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    (event["t"] == "path").then(|| format!("{} {}", word("kind"), word("transport")))
}

impl Talk {
    fn start(server: &TestServer, hosts: [&Host; 2], options: &[&str]) -> Self {
        Self::start_after(server, hosts, options, Duration::ZERO)
    }

    /// The same with a listener that has had this time to prepare for a call.
    pub(crate) fn start_after(
        server: &TestServer,
        [listening, connecting]: [&Host; 2],
        options: &[&str],
        ready: Duration,
    ) -> Self {
        let (address, key) = (server.address.to_string(), server.key());
        let arguments = [&["listen", "--server", &address], options].concat();
        let mut listener = agent("listener", listening, &arguments, &key);
        let (to_connector, from_listener) = listener.take_pipes();
        let ticket: String = listener.expect("ticket", UP, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            Some(event["ticket"].as_str()?.to_owned())
        });
        pause_under_test(ready);
        let started = Instant::now();
        let mut connector = agent("connector", connecting, &[&["connect", &ticket], options].concat(), &key);
        let (mut to_listener, from_connector) = connector.take_pipes();
        let (arrived, arrivals) = channel();
        std::thread::spawn(move || {
            let _keep = (to_connector, from_connector);
            for line in BufReader::new(from_listener).lines().map_while(Result::ok) {
                let number = line.parse().expect("a number");
                if arrived.send((number, Instant::now())).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            for number in 1_u64.. {
                if writeln!(to_listener, "{number}").is_err() {
                    return;
                }
                pace(PACE);
            }
        });
        let mut talk = Self { listener, connector, arrivals, last: 0, started, first: started };
        talk.first = talk.next(UP);
        talk
    }

    /// How long the first line took, from the start of the connector.
    pub(crate) fn first_byte(&self) -> Duration {
        self.first - self.started
    }

    /// Waits until the connector reports a path of this kind; returns when, from its start.
    pub(crate) fn wait_for_path(&self, kind: &str) -> Duration {
        let is_kind = |line: &str| path(line).is_some_and(|path| path.starts_with(kind));
        self.connector.expect(kind, UP, |line| is_kind(line).then_some(()));
        self.connector.time_of(|line| is_kind(line)).unwrap() - self.started
    }

    /// What the connector has reported of this type.
    pub(crate) fn reports(&self, kind: &str) -> Vec<Value> {
        let of_kind = |event: &Value| event["t"] == kind;
        self.connector.lines(|line| serde_json::from_str(line).ok().filter(of_kind))
    }

    pub(crate) fn listener_id(&self) -> u32 {
        self.listener.id()
    }

    /// Waits for the next line, which has the next number.
    fn next(&mut self, within: Duration) -> Instant {
        let next = self.arrivals.recv_timeout(within);
        let (number, at) = next.unwrap_or_else(|_| {
            panic!(
                "nothing after line {}\n{}\n{}",
                self.last,
                self.listener.printed(),
                self.connector.printed()
            )
        });
        assert_eq!(number, self.last + 1, "a line is missing or repeated");
        self.last = number;
        at
    }

    /// Breaks something, and returns how long no line arrived until lines of after the break did.
    pub(crate) fn interrupt(&mut self, name: &str, disturb: impl FnOnce()) -> Duration {
        while self.arrivals.try_recv().map(|(number, _)| self.last = number).is_ok() {}
        let from = self.next(UP);
        disturb();
        // What was sent after the break: later than all that waited meanwhile.
        let after = Instant::now();
        let (mut previous, mut longest) = (from, Duration::ZERO);
        let sent = self.last + u64::try_from((after - from).as_millis() / PACE.as_millis()).unwrap() + 25;
        while self.last < sent {
            let at = self.next(BACK);
            longest = longest.max(at - previous);
            previous = at;
        }
        eprintln!("{name}: {} ms without a line", longest.as_millis());
        longest
    }

    /// A direct path has no reason, and the server is not its remote side.
    fn assert_paths_are_true(&self) {
        for side in [&self.listener, &self.connector] {
            let wrong = side.lines(|line| {
                let event: Value = serde_json::from_str(line).ok()?;
                let is_server = event["remote"].as_str().is_some_and(|remote| remote.starts_with(SERVER));
                (event["kind"] == "direct" && (is_server || !event["reason"].is_null())).then(|| line.clone())
            });
            assert_eq!(wrong, [""; 0], "{}", side.printed());
        }
    }

    pub(crate) fn expect_path(&self, kind: &str) {
        let is_last =
            |side: &Proc| side.lines(|line| path(line)).pop().is_some_and(|path| path.starts_with(kind));
        let end = Instant::now() + UP;
        while !is_last(&self.connector) {
            assert!(Instant::now() < end, "no {kind} path\n{}", self.connector.printed());
            self.connector.wait_for(Duration::from_millis(100), |_| None::<()>);
        }
        self.assert_paths_are_true();
    }
}

/// Drops UDP in both directions, from and to one address or all, until the table is deleted.
fn block(host: &Host, peer: Option<&str>) {
    let chain = |name: &str, hook: &str| {
        let side = if hook == "input" { "saddr" } else { "daddr" };
        let rule =
            format!("{} meta l4proto udp", peer.map(|peer| format!("ip {side} {peer}")).unwrap_or_default());
        format!("chain {name} {{\n type filter hook {hook} priority -5;\n {rule} drop;\n}}\n")
    };
    host.nft(&format!("table inet block {{\n{}{}}}\n", chain("in", "input"), chain("out", "output")));
}

/// Lets a host reach only the server by TCP, so that there is no direct path by TCP.
fn without_direct_tcp(host: &Host) {
    let chain = |name: &str, hook: &str, side: &str| {
        let rule = format!("ip {side} != 203.0.113.10 meta l4proto tcp drop");
        format!("chain {name} {{\n type filter hook {hook} priority -6;\n {rule};\n}}\n")
    };
    let chains = [chain("in", "input", "saddr"), chain("out", "output", "daddr")].concat();
    host.nft(&format!("table inet without_tcp {{\n{chains}}}\n"));
}

fn unblock(host: &Host) {
    host.nft("delete table inet block");
}

/// Stops a process for a time.
pub(crate) fn stop(id: u32, time: Duration) {
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args([name, &id.to_string()]).status();
        assert!(status.unwrap().success());
    };
    signal("-STOP");
    pause_under_test(time);
    signal("-CONT");
}

macro_rules! laboratory {
    () => {
        if !tools::have_laboratory() {
            return;
        }
    };
}

#[test]
fn a_relayed_session_outlives_the_restart_of_its_server() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let mut server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &["--relay-only"]);
    talk.interrupt("server restarted, relayed", || server.restart_on(&server_host));
    talk.expect_path("relay udp");
}

#[test]
fn a_direct_session_does_not_notice_the_restart_of_its_server() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let mut server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    let longest = talk.interrupt("server restarted, direct", || server.restart_on(&server_host));
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

#[test]
fn a_session_survives_a_new_address_of_either_side() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    talk.interrupt("connector's address changed", || hosts[1].move_to(32));
    talk.interrupt("listener's address changed", || hosts[0].move_to(31));
    talk.expect_path("direct udp");
}

#[test]
fn a_session_goes_on_over_tcp_when_udp_is_blocked_and_returns() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    without_direct_tcp(&hosts[1]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    talk.interrupt("UDP blocked, relay", || block(&hosts[1], None));
    talk.expect_path("relay tcp");
    talk.interrupt("UDP allowed, relay", || unblock(&hosts[1]));
    talk.expect_path("direct udp");
}

#[test]
fn a_session_goes_on_directly_by_tcp_when_udp_is_blocked_and_returns() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    talk.interrupt("UDP blocked", || block(&hosts[1], None));
    talk.expect_path("direct tcp");
    talk.interrupt("UDP allowed", || unblock(&hosts[1]));
    talk.expect_path("direct udp");
}

#[test]
fn no_allocation_is_left_when_the_agents_have_ended() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let server = TestServer::on(&server_host);
    let sockets = || {
        let listed = std::fs::read_to_string(format!("/proc/{}/net/udp", server.process.id()));
        listed.unwrap().lines().count()
    };
    let before = sockets();
    let talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct");
    assert!(sockets() > before);
    talk.connector.signal("INT");
    wait_until(UP, "an allocation of a session is left", || sockets() == before);

    let arguments = ["listen", "--server", &server.address.to_string()];
    let mut listener = agent("listener", &hosts[0], &arguments, &server.key());
    let _pipes = listener.take_pipes();
    wait_until(UP, "a listener that waits has no allocation", || sockets() > before);
    listener.signal("INT");
    wait_until(UP, "an allocation of a listener is left", || sockets() == before);
}

#[test]
fn a_tcp_relay_is_replaced_when_its_address_is_gone() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    without_direct_tcp(&hosts[1]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    block(&hosts[1], None);
    talk.expect_path("relay");
    talk.interrupt("address changed while UDP is blocked", || hosts[1].move_to(32));
    talk.expect_path("relay");
}

#[test]
fn a_session_that_cannot_be_direct_from_the_start_becomes_so_later() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    without_direct_tcp(&hosts[1]);
    let server = TestServer::on(&server_host);
    block(&hosts[1], None);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("relay");
    // The call's token has expired then: the new relayed address is not told.
    pause_under_test(Duration::from_secs(16));
    talk.interrupt("UDP allowed", || unblock(&hosts[1]));
    talk.expect_path("direct");
}

/// The calls of the connector wait for the listener, and only the latest one is still of use.
#[test]
fn a_listener_that_was_stopped_for_long_takes_the_latest_of_several_calls() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct");
    let listener = talk.listener.id();
    talk.interrupt("listener stopped for long", || stop(listener, Duration::from_secs(30)));
    talk.expect_path("direct");
}

#[test]
fn a_dead_direct_path_is_left_for_the_relay_and_used_again() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    without_direct_tcp(&hosts[1]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    talk.interrupt("direct path died", || {
        block(&hosts[1], Some("203.0.113.21"));
    });
    talk.expect_path("relay udp");
    unblock(&hosts[1]);
    talk.expect_path("direct udp");
}

#[test]
fn a_session_survives_a_nat_that_forgets_its_mappings() {
    laboratory!();
    let net = Net::new();
    let server = TestServer::on(&net.island(10));
    let nats = [21, 22].map(|octet| net.nat(NatKind::PortRestricted, octet));
    let hosts = nats.each_ref().map(|nat| net.behind(nat));
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    talk.interrupt("NAT restarted", || {
        nats[1].forget_after(1);
        nats[1].cut();
        pause_under_test(Duration::from_secs(3));
        nats[1].forget_after(30);
        nats[1].mend();
    });
    talk.expect_path("direct udp");
}

#[test]
fn a_stopped_agent_goes_on_where_it_was() {
    laboratory!();
    let net = Net::new();
    let (server_host, hosts) = (net.island(10), [net.public(21), net.public(22)]);
    let server = TestServer::on(&server_host);
    let mut talk = Talk::start(&server, hosts.each_ref(), &[]);
    talk.expect_path("direct udp");
    let listener = talk.listener.id();
    let seconds = tools::switch("GINNEL_SUSPEND_SECONDS", 5);
    talk.interrupt("listener suspended", || stop(listener, Duration::from_secs(seconds as u64)));
    talk.expect_path("direct");
}

/// More sessions than may be negotiated at a time, all open together.
#[test]
fn a_listener_serves_many_connectors_at_once() {
    const CONNECTORS: usize = 20;
    let server = TestServer::on_loopback("allow_peers = [\"127.0.0.0/8\"]\n");
    let config = || Config::new().server(server.address.to_string().parse().unwrap()).key(server.key());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut listener = Agent::new(config()).listen().await.unwrap();
        let ticket = listener.ticket().clone();
        let echoes = tokio::spawn(async move {
            let mut connections = Vec::new();
            while connections.len() < CONNECTORS {
                let connection = listener.accept().await.unwrap().unwrap();
                let (mut send, mut recv) = connection.accept_bi().await.unwrap();
                tokio::io::copy(&mut recv, &mut send).await.unwrap();
                send.finish().await.unwrap();
                connections.push(connection);
            }
            connections
        });
        let mut connections = Vec::new();
        for number in 0..CONNECTORS {
            let connection = Agent::new(config()).connect(&ticket).await.unwrap();
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            send.write_all(format!("hello {number}").as_bytes()).await.unwrap();
            send.finish().await.unwrap();
            let mut echo = String::new();
            recv.read_to_string(&mut echo).await.unwrap();
            assert_eq!(echo, format!("hello {number}"));
            connections.push(connection);
        }
        let accepted = tokio::time::timeout(UP, echoes).await.unwrap().unwrap();
        assert_eq!((accepted.len(), connections.len()), (CONNECTORS, CONNECTORS));
    });
}
