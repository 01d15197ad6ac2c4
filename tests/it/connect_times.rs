//! How long agents take to connect, and to go on after a break, with 50 ms to the server and 32 ms between the hosts (round trips).
//!
//! The long test measures and writes `docs/connect-times.md`; it depends on no time.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Link, NatBehavior, RoutedHost, RoutedNat, RoutedNet};
use crate::sessions::{Talk, stop};
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::{pause_under_test, wait_until};

const UP: Duration = Duration::from_secs(30);
/// One way, from a host and from the server to the middle of the internet.
const HOST_LINK: u64 = 8;
const SERVER_LINK: u64 = 17;
/// What a session does before it is disturbed: backup pairs have answered.
const CALM: Duration = Duration::from_secs(2);
/// How long a listener waits before it is called: it has its relayed address.
const READY: Duration = Duration::from_secs(1);
const SUSPENSION: Duration = Duration::from_secs(40);

const NOTHING: u8 = 0;
const DIRECT: u8 = 1;
const ALL: u8 = 2;

macro_rules! laboratory {
    () => {
        if !tools::have_laboratory() {
            return;
        }
    };
}

fn millis(link: u64) -> Link {
    Link::with_delay(Duration::from_millis(link))
}

/// A server and two hosts behind NATs.
struct World {
    talk: Option<Talk>,
    hosts: [RoutedHost; 2],
    nats: Vec<RoutedNat>,
    server: TestServer,
    server_host: RoutedHost,
    /// What does not pass: [`NOTHING`], [`DIRECT`] or [`ALL`].
    cut: Arc<AtomicU8>,
    net: RoutedNet,
}

impl World {
    /// Makes hosts behind one NAT each; without one, a host has a public address.
    fn new(seed: usize, behaviors: [Option<NatBehavior>; 2]) -> Self {
        let net = RoutedNet::new(seed as u64);
        let server_host = net.public(10, millis(SERVER_LINK));
        let mut nats = Vec::new();
        let hosts = [21, 22].map(|octet| match behaviors[usize::from(octet) - 21] {
            Some(behavior) => {
                let nat = net.nat(behavior, octet, millis(HOST_LINK));
                let host = net.behind(&nat);
                nats.push(nat);
                host
            }
            None => net.public(octet, millis(HOST_LINK)),
        });
        Self::start(net, server_host, hosts, nats)
    }

    /// Makes two hosts and the server in one network without delay.
    fn local(seed: usize) -> Self {
        let net = RoutedNet::new(seed as u64);
        let [server_host, listening, connecting] =
            [10, 21, 22].map(|octet| net.public(octet, Link::default()));
        Self::start(net, server_host, [listening, connecting], Vec::new())
    }

    fn start(net: RoutedNet, server_host: RoutedHost, hosts: [RoutedHost; 2], nats: Vec<RoutedNat>) -> Self {
        let cut = Arc::new(AtomicU8::new(NOTHING));
        let (is_cut, server) = (Arc::clone(&cut), server_host.address());
        net.add_rule(Box::new(move |_, header| match is_cut.load(Ordering::Relaxed) {
            NOTHING => true,
            DIRECT => header.source.ip() == server || header.destination.ip() == server,
            _ => false,
        }));
        let server = TestServer::on(&server_host);
        Self { talk: None, hosts, nats, server, server_host, cut, net }
    }

    fn connect(&mut self, options: &[&str]) -> &mut Talk {
        let [listening, connecting] = &self.hosts;
        let hosts = [&listening.host, &connecting.host];
        self.talk.insert(Talk::start_after(&self.server, hosts, options, READY))
    }

    /// A session on a direct path that has lasted for a moment.
    fn direct(seed: usize, behaviors: [Option<NatBehavior>; 2]) -> Self {
        let mut world = Self::new(seed, behaviors);
        world.connect(&[]).expect_path("direct");
        pause_under_test(CALM);
        world
    }

    fn interrupt(&mut self, name: &str, disturb: impl FnOnce(&mut Self)) -> Duration {
        let mut talk = self.talk.take().unwrap();
        let longest = talk.interrupt(name, || disturb(self));
        self.talk = Some(talk);
        longest
    }
}

const EASY: Option<NatBehavior> = Some(NatBehavior::PORT_RESTRICTED);

/// Returns how long the first byte took, and a path of this kind.
fn connect(mut world: World, kind: &str) -> [Duration; 2] {
    let talk = world.connect(&[]);
    let path = talk.wait_for_path(kind);
    [talk.first_byte(), path]
}

fn address_change(seed: usize) -> Duration {
    let mut world = World::direct(seed, [None, None]);
    world.interrupt("address changed", |world| {
        let host = &world.hosts[1];
        host.move_to(32);
        world.net.set_prefixes(host, vec![("203.0.113.32".parse().unwrap(), 32)]);
    })
}

/// Returns how long no byte arrived after the direct path had died, and how long a path that was back was not used.
fn direct_path_dies(seed: usize) -> [Duration; 2] {
    let mut world = World::direct(seed, [EASY, EASY]);
    let longest = world.interrupt("direct path died", |world| {
        world.cut.store(DIRECT, Ordering::Relaxed);
    });
    let talk = world.talk.as_ref().unwrap();
    talk.expect_path("relay");
    pause_under_test(CALM);
    let begun = Instant::now();
    world.cut.store(NOTHING, Ordering::Relaxed);
    talk.expect_path("direct");
    [longest, begun.elapsed()]
}

fn udp_blocked(seed: usize) -> Duration {
    let mut world = World::direct(seed, [EASY, EASY]);
    let longest = world.interrupt("UDP blocked", |world| {
        world.net.change(&world.nats[1], |_| NatBehavior::UDP_BLOCKED);
    });
    world.talk.unwrap().expect_path("relay tcp");
    longest
}

fn nat_reboot(seed: usize) -> Duration {
    let mut world = World::direct(seed, [EASY, EASY]);
    world.interrupt("NAT restarted", |world| world.net.reboot(&world.nats[1]))
}

fn server_restart(seed: usize, options: &[&str]) -> Duration {
    let mut world = World::new(seed, [EASY, EASY]);
    let kind = if options.is_empty() { "direct" } else { "relay" };
    world.connect(options).expect_path(kind);
    pause_under_test(CALM);
    world.interrupt("server restarted", |world| world.server.restart_on(&world.server_host))
}

/// Returns how long no byte arrived after the end of a suspension.
fn suspension(seed: usize) -> Duration {
    let mut world = World::direct(seed, [EASY, EASY]);
    let listener = world.talk.as_ref().unwrap().listener_id();
    let longest = world.interrupt("suspended", |_| stop(listener, SUSPENSION));
    longest.saturating_sub(SUSPENSION)
}

/// One line of the table.
struct Line {
    what: &'static str,
    limit: &'static str,
    times: Vec<Duration>,
}

impl Line {
    /// The value below which this share of the runs is.
    fn quantile(&self, percent: usize) -> u128 {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted[index].as_millis()
    }
}

/// Runs a measurement so many times; each run gives a time for each line.
fn measure<const N: usize>(
    lines: &mut Vec<Line>,
    titles: [(&'static str, &'static str); N],
    runs: usize,
    run: impl Fn(usize) -> [Duration; N],
) {
    let results: Vec<[Duration; N]> = (0..runs).map(run).collect();
    for (index, (what, limit)) in titles.into_iter().enumerate() {
        let line = Line { what, limit, times: results.iter().map(|result| result[index]).collect() };
        tools::print(&format!(
            "{what}: p50 {} ms, p95 {} ms of {runs}",
            line.quantile(50),
            line.quantile(95)
        ));
        lines.push(line);
    }
}

fn page(lines: &[Line]) -> String {
    let mut page = String::from(
        "# Times to connect, and to go on\n\n\
         Written by `scripts/test long times` (`GINNEL_LONG_RUNS` sets the number of runs): real processes in the laboratory, debug builds, a round trip of\n\
         50 ms to the server and of 32 ms between the hosts, except for the local network, which has no delay. Milliseconds depend on the load of the machine;\n\
         the limits are what the project wants to keep.\n\n\
         - **First byte**: from the start of `agent connect` until the connector's first byte leaves the listener. A registered listener waits, with its relayed address.\n\
         - **Direct**: from the same start until the connector reports a direct path.\n\
         - All others: the longest time without a byte, of a stream of one line each 20 ms.\n\n\
         | what | limit | runs | p50 (ms) | p95 (ms) |\n| --- | --- | --- | --- | --- |\n",
    );
    for line in lines {
        let (p50, p95) = (line.quantile(50), line.quantile(95));
        writeln!(page, "| {} | {} | {} | {p50} | {p95} |", line.what, line.limit, line.times.len()).unwrap();
    }
    page
}

#[test]
#[ignore = "long: times to connect and to go on, written to docs/connect-times.md"]
fn long_times() {
    laboratory!();
    let runs = tools::switch("GINNEL_LONG_RUNS", 20);
    let (sessions, suspensions) = (runs.div_ceil(2), runs.div_ceil(7));
    let hard = Some(NatBehavior::RANDOM);
    let mut lines = Vec::new();
    measure(&mut lines, [("first byte, over the relay", "p50 500 ms, p95 1 s")], runs, |seed| {
        let [first, _] = connect(World::new(seed, [EASY, hard]), "relay");
        [first]
    });
    let titles = [("first byte, direct", "p50 500 ms, p95 1 s"), ("direct path", "p50 420 ms, p95 1 s")];
    measure(&mut lines, titles, runs, |seed| connect(World::new(seed, [EASY, EASY]), "direct"));
    measure(&mut lines, [("direct path in a local network", "p95 100 ms")], runs, |seed| {
        let [_, direct] = connect(World::local(seed), "direct");
        [direct]
    });
    measure(&mut lines, [("first byte, UDP blocked at the connector", "1 s")], runs, |seed| {
        let [first, _] = connect(World::new(seed, [EASY, Some(NatBehavior::UDP_BLOCKED)]), "relay");
        [first]
    });
    let titles = [("the direct path dies", "1.5 s"), ("it is back: until it is used", "10 s")];
    measure(&mut lines, titles, sessions, direct_path_dies);
    measure(&mut lines, [("another address", "3 s")], sessions, |seed| [address_change(seed)]);
    measure(&mut lines, [("UDP is blocked: relay by TCP", "3 s")], sessions, |seed| [udp_blocked(seed)]);
    measure(&mut lines, [("the NAT forgets its mappings", "3 s")], sessions, |seed| [nat_reboot(seed)]);
    measure(&mut lines, [("the server restarts, direct path", "unnoticed")], sessions, |seed| {
        [server_restart(seed, &[])]
    });
    measure(&mut lines, [("the server restarts, relayed path", "5 s")], sessions, |seed| {
        [server_restart(seed, &["--relay-only"])]
    });
    measure(&mut lines, [("after 40 s of suspension", "3 s")], suspensions, |seed| [suspension(seed)]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/connect-times.md");
    std::fs::write(file, page(&lines)).unwrap();
}

#[test]
fn a_path_that_is_lost_and_back_is_reported() {
    laboratory!();
    let mut world = World::new(1, [EASY, EASY]);
    world.connect(&[]).expect_path("direct");
    world.cut.store(ALL, Ordering::Relaxed);
    let talk = world.talk.as_ref().unwrap();
    wait_until(UP, "the loss is not reported", || !talk.reports("path_lost").is_empty());
    let before = talk.reports("path").len();
    world.cut.store(NOTHING, Ordering::Relaxed);
    wait_until(UP, "the path is not reported again", || talk.reports("path").len() > before);
    assert!(talk.reports("path")[before]["lost_ms"].is_u64());
}
