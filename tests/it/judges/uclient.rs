//! coturn's `turnutils_uclient`: UDP and TCP legs, channels and Send, to each other and to a peer.

use std::process::Command;
use std::time::Duration;

use crate::house::{House, Lines, PASSWORD, USER};
use crate::proc::{Proc, Stdout};
use crate::tools;

const MESSAGES: u64 = 100;
const CLIENTS: u64 = 4;

/// What `turnutils_uclient` says it sent, received and lost in the end.
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

/// Runs it with `modes` and asserts that nothing is lost.
fn assert_nothing_lost(modes: &[&str]) {
    assert_nothing_lost_by(&["-u", USER, "-w", PASSWORD], "", modes);
}

/// Does so with these credentials, at a server with these lines in its section `[turn]`.
fn assert_nothing_lost_by(credentials: &[&str], turn: &str, modes: &[&str]) {
    if !tools::have(&["turnutils_uclient", "turnutils_peer"]) {
        return;
    }
    let turn = &format!("allow_peers = [\"127.0.0.1/32\"]\n{turn}");
    let secure = modes.contains(&"-S");
    let house = match secure {
        true => House::with_tls(Lines { turn, ..Lines::default() }, None),
        false => House::on_loopback(turn),
    };
    let to_peer = !modes.contains(&"-y");
    let peer_port = (house.address.port() + 2).to_string();
    let _peer = to_peer.then(|| {
        let mut peer = Command::new("turnutils_peer");
        peer.args(["-p", &peer_port, "-L", "127.0.0.1"]);
        Proc::start("turnutils_peer", peer, Stdout::Lines)
    });
    let port = if secure { house.tls.port() } else { house.address.port() }.to_string();
    let mut uclient = Command::new("turnutils_uclient");
    uclient.arg("-c").args(credentials).args(["-p", &port]);
    uclient.args(["-n", &MESSAGES.to_string(), "-m", &CLIENTS.to_string(), "-l", "170", "-z", "10"]);
    if to_peer {
        uclient.args(["-e", "127.0.0.1", "-r", &peer_port]);
    }
    uclient.args(modes).arg("127.0.0.1");
    let mut run = Proc::start("turnutils_uclient", uclient, Stdout::Lines);
    let status = run.wait(Duration::from_secs(60));
    let printed = run.printed();
    let totals =
        totals(&printed).unwrap_or_else(|| panic!("{status}\n{printed}\n{}", house.server.printed()));
    let all = MESSAGES * CLIENTS;
    assert_eq!(totals, Totals { sent: all, received: all, lost: 0 }, "{modes:?} {status}\n{printed}");
}

macro_rules! modes {
    ($(fn $name:ident(): $modes:expr;)*) => {
        $(#[test]
        fn $name() {
            assert_nothing_lost(&$modes);
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
}

#[test]
fn uclient_with_time_limited_credentials_loses_nothing() {
    let secrets = "rest_secret = \"the one that mints\"\n[auth]\nrest_secrets = [\"one of former times\"]";
    for secret in ["the one that mints", "one of former times"] {
        assert_nothing_lost_by(&["-u", "guest", "-W", secret], secrets, &["-y"]);
    }
}
