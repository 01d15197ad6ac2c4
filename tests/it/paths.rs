//! `agent connect` in the laboratory: bulk data both ways over the path that the two NATs permit.
//!
//! The path that the agents report is compared with the bytes counted on the server's host. `GINNEL_LAB_RUNS` repeats each pair (sides swapped in
//! every other run), `GINNEL_LAB_MB` sets the megabytes sent each way.

use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bulk::{self, Received};
use crate::lab::{Host, Nat, NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(30);
/// How long a direct path may take to be found where there is one.
const DIRECT: Duration = Duration::from_secs(20);
const BULK: Duration = Duration::from_secs(180);

const COUNTERS: &str = "
    table inet count {
      counter udp_in {} ; counter tcp_in {} ;
      chain in { type filter hook input priority 0;
                 iifname eth0 meta l4proto udp counter name udp_in; iifname eth0 meta l4proto tcp counter name tcp_in; }
    }";

/// Where one of the two agents is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the internet itself.
    Open,
    /// Behind a NAT of its own.
    Behind(NatKind),
}

/// The path a pair has to get in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Between the two outer addresses.
    Direct,
    /// Between the two inner addresses.
    Inner,
    /// Through the server, by UDP from both sides.
    Relay,
    /// Through the server, by TCP from one side.
    RelayByTcp,
    /// Through the server's gateway, by TCP from both sides.
    Gateway,
    /// Whichever comes up.
    Any,
}

impl Path {
    /// Whether a path event reports this path.
    fn matches(self, path: &Value) -> bool {
        let remote = path["remote"].as_str().unwrap_or_default();
        let kind = match self {
            Self::Direct | Self::Inner => "direct",
            Self::Relay | Self::RelayByTcp => "relay",
            Self::Gateway => "gateway",
            Self::Any => return !remote.is_empty(),
        };
        path["kind"] == kind && self.remote().iter().any(|start| remote.starts_with(start))
    }

    /// How the remote address of the last path has to begin.
    fn remote(self) -> &'static [&'static str] {
        match self {
            Self::Direct => &["203.0.113.21:", "203.0.113.22:"],
            Self::Inner => &["10.21.0."],
            Self::Relay | Self::RelayByTcp | Self::Gateway => &["203.0.113.10:"],
            Self::Any => &[],
        }
    }
}

/// One agent with its pipes going.
struct Side {
    agent: Proc,
    go: std::sync::mpsc::Sender<()>,
    arrival: Receiver<()>,
    output: JoinHandle<Received>,
}

/// How one side's run is to differ from the usual one.
#[derive(Clone, Copy)]
struct AgentOptions<'a> {
    key: Option<&'a str>,
    options: &'a [&'a str],
}

impl Side {
    fn start(
        name: &str,
        host: &Host,
        arguments: &[&str],
        options_of_agent: AgentOptions<'_>,
        (seed, bytes): (u64, usize),
    ) -> Self {
        let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).arg("--json").args(options_of_agent.options).env_remove("AGENT_KEY");
        if let Some(key) = options_of_agent.key {
            command.env("AGENT_KEY", key);
        }
        let mut agent = Proc::start(name, command, Stdout::Pipe);
        let (stdin, stdout) = agent.take_pipes();
        let go = bulk::feed(stdin, seed, bytes);
        let (arrival, output) = bulk::drain(stdout);
        Self { agent, go, arrival, output }
    }

    fn wait_for_path(&self, within: Duration, path: Path) -> Option<Value> {
        self.agent.wait_for(within, |line| event(line, "path").filter(|event| path.matches(event)))
    }

    fn last_path(&self) -> Value {
        self.agent.lines(|line| event(line, "path")).pop().unwrap_or_default()
    }
}

fn event(line: &str, kind: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == kind)
}

/// Bytes to send each way where `usual` megabytes are meant.
fn megabytes(usual: usize) -> usize {
    tools::switch("GINNEL_LAB_MB", usual) * 1_000_000
}

/// Percent of UDP packets that the NATs of a lossy scene throw away.
const LOSS: u8 = 3;

/// One internet with a server and two places.
struct Scene {
    listener: Host,
    connector: Host,
    nats: Vec<Nat>,
    test_server: TestServer,
    server_host: Host,
    /// Bytes to send each way.
    bulk: usize,
    _net: Net,
}

impl Scene {
    fn new(listener: Place, connector: Place, one_nat: bool) -> Self {
        let net = Net::new();
        let server_host = net.island(10);
        server_host.nft(COUNTERS);
        let mut nats = Vec::new();
        let mut put = |place: Place, octet: u8| match place {
            Place::Open => net.public(octet),
            Place::Behind(kind) => {
                if nats.is_empty() || !one_nat {
                    nats.push(net.nat(kind, octet));
                }
                net.behind(nats.last().unwrap())
            }
        };
        let (listener, connector) = (put(listener, 21), put(connector, 22));
        let test_server = TestServer::on(&server_host);
        Self { listener, connector, nats, test_server, server_host, bulk: megabytes(50), _net: net }
    }

    /// Connects, moves the bulk both ways, and holds every claim against `path`.
    fn assert_path(&self, path: Path, listening: AgentOptions<'_>, connecting: AgentOptions<'_>) -> String {
        let begun = Instant::now();
        let server = self.test_server.address.to_string();
        let listener = Side::start(
            "listener",
            &self.listener,
            &["listen", "--server", &server],
            listening,
            (1, self.bulk),
        );
        let ticket = listener
            .agent
            .expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
        let connector =
            Side::start("connector", &self.connector, &["connect", &ticket], connecting, (2, self.bulk));
        let sides = [&listener, &connector];
        let processes =
            || sides.map(|side| side.agent.printed()).join("\n") + "\n" + &self.test_server.process.printed();

        for side in sides {
            assert!(side.wait_for_path(UP, Path::Any).is_some(), "no path\n{}", processes());
            assert!(side.arrival.recv_timeout(UP).is_ok(), "the first bytes do not arrive\n{}", processes());
        }
        let first_bytes = begun.elapsed();
        for side in sides {
            assert!(side.wait_for_path(DIRECT, path).is_some(), "{path:?} is not found\n{}", processes());
        }
        let settled = begun.elapsed();
        let (udp, tcp) = self.counted();
        for side in sides {
            side.go.send(()).unwrap();
        }
        let outputs = self.finish([listener, connector], path);
        assert_eq!(outputs[0], bulk::expected(2, self.bulk), "listener's output");
        assert_eq!(outputs[1], bulk::expected(1, self.bulk), "connector's output");
        let (udp, tcp) = (self.counted().0 - udp, self.counted().1 - tcp);
        assert_counted(path, self.bulk as u64, udp, tcp);
        format!(
            "first bytes {first_bytes:.1?}, path {settled:.1?}, all {:.1?}, server udp {udp} tcp {tcp}",
            begun.elapsed()
        )
    }

    /// Waits for both ends, which have to be successes, and checks the last paths.
    fn finish(&self, mut sides: [Side; 2], path: Path) -> [Received; 2] {
        let deadline = Instant::now() + BULK;
        let ended = sides.each_mut().map(|side| side.agent.ended_by(deadline));
        let processes = sides.each_ref().map(|side| side.agent.printed()).join("\n")
            + &self.test_server.process.printed();
        for (side, status) in sides.iter().zip(ended) {
            assert!(status.is_some_and(|status| status.success()), "ended with {status:?}\n{processes}");
            let last = side.last_path();
            assert!(path.matches(&last), "{path:?}, but the agent reported {last}\n{processes}");
        }
        sides.map(|side| side.output.join().unwrap())
    }

    /// Bytes that reached the server's host by UDP and TCP.
    fn counted(&self) -> (u64, u64) {
        (self.server_host.counted("udp_in"), self.server_host.counted("tcp_in"))
    }
}

/// Compares what the server's host saw with what a path has to bring there; both directions together.
fn assert_counted(path: Path, bulk: u64, udp: u64, tcp: u64) {
    let little = bulk / 10;
    let (both, one) = (bulk * 2 - little, bulk - little);
    let true_to_it = match path {
        Path::Direct | Path::Inner => udp + tcp < little,
        Path::Relay => udp > both && tcp < little,
        // One client uses TCP in both directions, the other UDP: each carries one direction to the server.
        Path::RelayByTcp => tcp > one && udp > one,
        Path::Gateway => tcp > both && udp < little,
        Path::Any => true,
    };
    assert!(true_to_it, "{path:?}, but the server's host counted {udp} bytes by UDP and {tcp} by TCP");
}

fn assert_pair(first: Place, second: Place, path: Path) {
    if !tools::have_laboratory() {
        return;
    }
    for run in 0..tools::switch("GINNEL_LAB_RUNS", 1) {
        let (listener, connector) = if run % 2 == 0 { (first, second) } else { (second, first) };
        let scene = Scene::new(listener, connector, path == Path::Inner);
        let key = scene.test_server.key();
        let options_of_agent = AgentOptions { key: Some(&key), options: &[] };
        let facts = scene.assert_path(path, options_of_agent, options_of_agent);
        eprintln!("run {run}: {listener:?} x {connector:?}: {facts}");
    }
}

macro_rules! pairs {
    ($(fn $name:ident(): $first:expr, $second:expr => $path:expr;)*) => {
        $(#[test]
        fn $name() {
            use NatKind::*;
            use Place::*;
            assert_pair($first, $second, $path);
        })*
    };
}

pairs! {
    fn port_restricted_and_port_restricted_connect_directly(): Behind(PortRestricted), Behind(PortRestricted) => Path::Direct;
    fn full_cone_and_symmetric_connect_directly(): Behind(FullCone), Behind(Symmetric) => Path::Direct;
    fn address_restricted_and_symmetric_connect_directly(): Behind(AddressRestricted), Behind(Symmetric) => Path::Direct;
    fn open_and_symmetric_connect_directly(): Open, Behind(Symmetric) => Path::Direct;
    fn symmetric_and_symmetric_connect_by_relay(): Behind(Symmetric), Behind(Symmetric) => Path::Relay;
    fn two_hosts_behind_one_nat_connect_by_their_inner_addresses():
        Behind(PortRestricted), Behind(PortRestricted) => Path::Inner;
    fn two_hosts_behind_one_symmetric_nat_connect_by_their_inner_addresses():
        Behind(Symmetric), Behind(Symmetric) => Path::Inner;
    fn udp_blocked_and_symmetric_connect_by_a_relay_over_tcp():
        Behind(UdpBlocked), Behind(Symmetric) => Path::RelayByTcp;
    fn udp_blocked_and_port_restricted_connect_by_tcp_from_both_sides_at_once():
        Behind(UdpBlocked), Behind(PortRestricted) => Path::Direct;
    fn open_and_udp_blocked_connect_directly_by_tcp(): Open, Behind(UdpBlocked) => Path::Direct;
}

#[test]
fn port_restricted_and_symmetric_connect_by_relay_if_one_side_forbids_a_spray() {
    if !tools::have_laboratory() {
        return;
    }
    for run in 0..tools::switch("GINNEL_LAB_RUNS", 1) {
        let scene =
            Scene::new(Place::Behind(NatKind::PortRestricted), Place::Behind(NatKind::Symmetric), false);
        let key = scene.test_server.key();
        let usual = AgentOptions { key: Some(&key), options: &[] };
        let without = AgentOptions { options: &["--no-spray"], ..usual };
        let (listening, connecting) = if run % 2 == 0 { (without, usual) } else { (usual, without) };
        scene.assert_path(Path::Relay, listening, connecting);
    }
}

#[test]
fn a_connector_without_a_key_uses_the_listeners_relay() {
    if !tools::have_laboratory() {
        return;
    }
    let scene = Scene::new(Place::Behind(NatKind::Symmetric), Place::Behind(NatKind::Symmetric), false);
    let key = scene.test_server.key();
    let invited = AgentOptions { key: Some(&key), options: &[] };
    let without_key = AgentOptions { key: None, options: &[] };
    scene.assert_path(Path::Relay, invited, without_key);
}

#[test]
fn relay_only_stays_on_the_relay_where_a_direct_path_exists() {
    if !tools::have_laboratory() {
        return;
    }
    let scene = Scene::new(Place::Open, Place::Behind(NatKind::PortRestricted), false);
    let key = scene.test_server.key();
    let usual = AgentOptions { key: Some(&key), options: &[] };
    scene.assert_path(Path::Relay, usual, AgentOptions { options: &["--relay-only"], ..usual });
}

/// Lets a host have one TCP connection to the outside at a time, and nothing else.
const ONE_CONNECTION: &str = "
    table inet one {
      chain out { type filter hook output priority 0; policy drop;
                  oifname lo accept; ct state established,related accept;
                  meta l4proto tcp ct state new ct count over 1 drop; meta l4proto tcp accept; }
      chain in { type filter hook input priority 0; policy drop;
                 iifname lo accept; ct state established,related accept; }
    }";

/// Signalling needs the one connection until it has nothing more to offer; then the gateway gets it.
#[test]
fn the_gateway_carries_the_tunnel_where_only_one_tcp_connection_passes() {
    if !tools::have_laboratory() {
        return;
    }
    let mut scene =
        Scene::new(Place::Behind(NatKind::Symmetric), Place::Behind(NatKind::PortRestricted), false);
    scene.bulk = megabytes(5);
    scene.connector.nft(ONE_CONNECTION);
    let key = scene.test_server.key();
    let listening = AgentOptions { key: Some(&key), options: &[] };
    for connecting in [listening, AgentOptions { key: None, options: &["--relay-only"] }] {
        let facts = scene.assert_path(Path::Gateway, listening, connecting);
        eprintln!("{facts}");
    }
}

#[test]
fn a_lossy_path_delivers_everything_and_both_ends_exit_with_success() {
    if !tools::have_laboratory() {
        return;
    }
    let place = Place::Behind(NatKind::PortRestricted);
    for run in 0..tools::switch("GINNEL_LAB_RUNS", 1) {
        let mut scene = Scene::new(place, place, false);
        scene.bulk = megabytes(5);
        for nat in &scene.nats {
            nat.lose(LOSS);
        }
        let key = scene.test_server.key();
        let options_of_agent = AgentOptions { key: Some(&key), options: &[] };
        let facts = scene.assert_path(Path::Any, options_of_agent, options_of_agent);
        eprintln!("run {run}: {LOSS} % lost in each direction at each NAT: {facts}");
    }
}
