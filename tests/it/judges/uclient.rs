//! coturn's `turnutils_uclient`: UDP and TCP clients, channels and Send, to each other and to a peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::proc::{Proc, Stdout};
use crate::test_server::{Lines, PASSWORD, TestServer, USER};
use crate::tools;

const MESSAGES: u64 = 100;
const CLIENTS: u64 = 4;
const TIMEOUT: Duration = Duration::from_secs(60);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const BOTH_RELAYED: &str = "relay_addresses = [\"127.0.0.1\", \"::1\"]";
/// How long a run of RFC 6062 takes at most: the time of its messages, of the client's own pauses, and far from the 30 seconds
/// that it waits for a connection that never comes.
const SOON: Duration = Duration::from_secs(20);

/// The final counts of `turnutils_uclient`: sent, received, lost.
#[derive(Debug, PartialEq, Eq)]
struct Totals {
    sent: u64,
    received: u64,
    lost: u64,
}

/// Reads `tot_send_msgs=…, tot_recv_msgs=…` and `Total lost packets …` of the last report.
fn totals(printed: &str) -> Option<Totals> {
    let after = |mark: &str| -> Option<u64> {
        let rest = &printed[printed.rfind(mark)? + mark.len()..];
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some(Totals {
        sent: after("tot_send_msgs=")?,
        received: after("tot_recv_msgs=")?,
        lost: after("Total lost packets")?,
    })
}

/// A run of it, against a server of its own.
struct Run<'a> {
    credentials: &'a [&'a str],
    /// Lines of the server's section `[turn]`.
    turn: &'a str,
    /// The server's addresses, the one that clients go to first.
    listen: &'a [IpAddr],
    /// Clients at a time.
    clients: u64,
    modes: &'a [&'a str],
}

impl Default for Run<'_> {
    fn default() -> Self {
        let credentials = &["-u", USER, "-w", PASSWORD];
        Self { credentials, turn: "", listen: &[V4], clients: CLIENTS, modes: &[] }
    }
}

impl Run<'_> {
    fn test_server(&self) -> TestServer {
        let turn = &format!("allow_peers = [\"127.0.0.1/32\", \"::1/128\"]\n{}", self.turn);
        let lines = Lines { turn, ..Lines::default() };
        if self.modes.contains(&"-S") {
            TestServer::with_tls(lines, None)
        } else {
            TestServer::with(self.listen, lines)
        }
    }

    /// Runs it for at most `limit`; returns its final counts and all output of it and of the server.
    fn totals(&self, test_server: &TestServer, limit: Duration) -> (Option<Totals>, String) {
        let own_peers = ["-y", "-T", "-P"].iter().any(|mode| self.modes.contains(mode));
        let ip = self.listen[0].to_string();
        let peer_port = (test_server.address.port() + 2).to_string();
        let _peer = (!own_peers).then(|| {
            let mut peer = Command::new("turnutils_peer");
            peer.args(["-p", &peer_port, "-L", &ip]);
            Proc::start("turnutils_peer", peer, Stdout::Lines)
        });
        let port =
            if self.modes.contains(&"-S") { test_server.tls.port() } else { test_server.address.port() };
        let mut uclient = Command::new("turnutils_uclient");
        uclient.arg("-c").args(self.credentials).args(["-p", &port.to_string()]);
        uclient.args(["-n", &MESSAGES.to_string(), "-m", &self.clients.to_string(), "-l", "170", "-z", "10"]);
        if !own_peers {
            uclient.args(["-e", &ip, "-r", &peer_port]);
        }
        uclient.args(self.modes).arg(&ip);
        let mut run = Proc::start("turnutils_uclient", uclient, Stdout::Lines);
        let status = run.ended_by(Instant::now() + limit);
        let printed = run.printed();
        (
            totals(&printed),
            format!("{:?} {status:?}\n{printed}\n{}", self.modes, test_server.process.printed()),
        )
    }

    fn assert_nothing_lost(&self) {
        if !tools::have(&["turnutils_uclient", "turnutils_peer"]) {
            return;
        }
        let (totals, printed) = self.totals(&self.test_server(), TIMEOUT);
        let all = MESSAGES * self.clients;
        assert_eq!(totals, Some(Totals { sent: all, received: all, lost: 0 }), "{printed}");
    }
}

macro_rules! modes {
    ($(fn $name:ident(): $modes:expr;)*) => {
        $(#[test]
        fn $name() {
            Run { modes: &$modes, ..Run::default() }.assert_nothing_lost();
        })*
    };
}

modes! {
    fn uclient_over_udp_loses_nothing_to_a_peer_in_channels(): [];
    fn uclient_over_udp_loses_nothing_to_a_peer_by_send(): ["-s"];
    fn uclient_over_udp_loses_nothing_client_to_client_in_channels(): ["-y"];
    fn uclient_over_udp_loses_nothing_client_to_client_by_send(): ["-y", "-s"];
    fn uclient_over_tcp_loses_nothing_to_a_peer_in_channels(): ["-t"];
    fn uclient_over_tcp_loses_nothing_to_a_peer_by_send(): ["-t", "-s"];
    fn uclient_over_tcp_loses_nothing_client_to_client_in_channels(): ["-t", "-y"];
    fn uclient_over_tcp_loses_nothing_client_to_client_by_send(): ["-t", "-y", "-s"];
    fn uclient_over_tls_loses_nothing_to_a_peer_in_channels(): ["-t", "-S"];
    fn uclient_over_tls_loses_nothing_to_a_peer_by_send(): ["-t", "-S", "-s"];
    fn uclient_over_tls_loses_nothing_client_to_client_in_channels(): ["-t", "-S", "-y"];
    fn uclient_over_tls_loses_nothing_client_to_client_by_send(): ["-t", "-S", "-y", "-s"];
    fn uclient_over_dtls_loses_nothing_to_a_peer_in_channels(): ["-S"];
    fn uclient_over_dtls_loses_nothing_to_a_peer_by_send(): ["-S", "-s"];
    fn uclient_over_dtls_loses_nothing_client_to_client_in_channels(): ["-S", "-y"];
    fn uclient_over_dtls_loses_nothing_client_to_client_by_send(): ["-S", "-y", "-s"];
    fn uclient_that_moves_over_udp_loses_nothing_in_channels(): ["-M", "-y"];
    fn uclient_that_moves_over_udp_loses_nothing_by_send(): ["-M", "-y", "-s"];
    fn uclient_that_moves_over_tcp_loses_nothing_in_channels(): ["-M", "-t", "-y"];
    fn uclient_with_dont_fragment_loses_nothing(): ["-g", "-y"];
    fn uclient_with_padded_channels_loses_nothing(): ["-D", "-y"];
    fn uclient_with_padded_channels_over_tcp_loses_nothing(): ["-D", "-t", "-y"];
    fn uclient_that_presents_forged_tickets_and_channels_loses_nothing(): ["-N", "-y"];
}

#[test]
fn uclient_with_time_limited_credentials_loses_nothing() {
    let secrets = "rest_secret = \"the one that mints\"\n[auth]\nrest_secrets = [\"one of former times\"]";
    for secret in ["the one that mints", "one of former times"] {
        let credentials = &["-u", "guest", "-W", secret];
        Run { credentials, turn: secrets, modes: &["-y"], ..Run::default() }.assert_nothing_lost();
    }
}

/// Runs all at the same time; they wait more than they work.
fn assert_nothing_lost(runs: &[Run<'_>]) {
    std::thread::scope(|scope| runs.iter().for_each(|run| drop(scope.spawn(|| run.assert_nothing_lost()))));
}

#[test]
fn uclient_relays_tcp_between_all_its_clients_without_loss() {
    let start = Instant::now();
    let run = |clients| Run { clients, modes: &["-T", "-y"], ..Run::default() };
    assert_nothing_lost(&[run(2), run(4), run(6)]);
    assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
}

/// Half of its clients are the peers then, who only write: half of what is sent can come back, at coturn's own server too.
#[test]
fn uclient_whose_peers_connect_gets_all_they_send() {
    if !tools::have(&["turnutils_uclient"]) {
        return;
    }
    let assert_half = |clients| {
        let run = Run { clients, modes: &["-P"], ..Run::default() };
        let (start, (totals, printed)) = (Instant::now(), run.totals(&run.test_server(), TIMEOUT));
        let (sent, received) = (MESSAGES * clients, MESSAGES * clients / 2);
        assert_eq!(totals, Some(Totals { sent, received, lost: sent - received }), "{printed}");
        assert!(start.elapsed() < SOON, "{clients} clients took {:?}", start.elapsed());
    };
    std::thread::scope(|scope| [2, 4].map(|clients| drop(scope.spawn(move || assert_half(clients)))));
}

#[test]
fn uclient_loses_nothing_in_any_pair_of_address_families() {
    let run = |listen, modes| Run { listen, modes, turn: BOTH_RELAYED, ..Run::default() };
    assert_nothing_lost(&[
        run(&[V6, V4], &["-x", "-y"]),
        run(&[V6, V4], &["-x", "-y", "-s"]),
        run(&[V6, V4], &["-x"]),
        run(&[V6, V4], &["-x", "-t", "-y"]),
        run(&[V6, V4], &["-x", "-T", "-y"]),
        run(&[V6, V4], &["-X", "-y"]),
        run(&[V4, V6], &["-x", "-y"]),
    ]);
}

/// With `-R` it alters bytes of its requests at random, and repeats for ever what gets no answer.
#[test]
fn uclients_negative_tests_do_not_affect_others() {
    if !tools::have(&["turnutils_uclient"]) {
        return;
    }
    let run = |modes| Run { clients: 2, modes, ..Run::default() };
    let test_server = run(&[]).test_server();
    for modes in
        [&["-R", "-y"][..], &["-R", "-N", "-y"], &["-R", "-t", "-y"], &["-N", "-T", "-y"], &["-R", "-T"]]
    {
        for _ in 0..3 {
            run(modes).totals(&test_server, Duration::from_millis(500));
        }
    }
    let (totals, printed) = run(&["-y"]).totals(&test_server, TIMEOUT);
    let all = 2 * MESSAGES;
    assert_eq!(totals, Some(Totals { sent: all, received: all, lost: 0 }), "{printed}");
    assert_eq!(
        test_server.process.lines(|line| line.contains("panicked").then_some(())).len(),
        0,
        "{printed}"
    );
}
