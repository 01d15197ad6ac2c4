//! Error messages of agents: the reason, what was tried, and what helps.

use std::process::Command;
use std::time::Duration;

use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use ginnel::agent::Ticket;

const UP: Duration = Duration::from_secs(120);

fn agent(arguments: &[&str], key: Option<&str>) -> Proc {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).env_remove("AGENT_KEY").env_remove("AGENT_TICKET").env_remove("AGENT_CODE");
    if let Some(key) = key {
        command.env("AGENT_KEY", key);
    }
    Proc::start(arguments[0], command, Stdout::Pipe)
}

fn ticket(listener: &Proc) -> String {
    listener.expect("ticket", UP, |line| line.trim_start().strip_prefix("agent connect ").map(str::to_owned))
}

/// Exits with this code; its last output contains all of `mentions` and nothing of `never`.
fn ends_with(mut process: Proc, code: i32, mentions: &[&str], never: &[&str]) {
    let status = process.wait(UP);
    let printed = process.printed();
    assert_eq!(status.code(), Some(code), "{printed}");
    for mention in mentions {
        assert!(printed.contains(mention), "no {mention:?}\n{printed}");
    }
    for word in never {
        assert!(!printed.contains(word), "{word:?}\n{printed}");
    }
}

#[test]
fn a_second_connector_learns_that_the_listener_takes_only_one() {
    let test_server = TestServer::on_loopback("");
    let mut listener = agent(&["listen", "--ticket", "--server", &test_server.address.to_string()], None);
    let ticket = ticket(&listener);
    let mut first = agent(&["connect", &ticket], None);
    let _pipes = (listener.take_pipes(), first.take_pipes());
    listener.expect("path", UP, |line| line.starts_with("direct ").then_some(()));
    let second = agent(&["connect", &ticket], None);
    ends_with(second, 4, &["accepts no further connection", "run it again"], &["not allowed", "this very"]);
}

#[test]
fn relay_only_without_a_key_fails_early_and_asks_for_one() {
    let test_server = TestServer::on_loopback("[gateway]\nenabled = false\n");
    let listener =
        agent(&["listen", "--ticket", "--server", &test_server.address.to_string(), "--relay-only"], None);
    let connector = agent(&["connect", &ticket(&listener), "--relay-only"], None);
    ends_with(connector, 5, &["--key-file", "ginnel key"], &["direct", "port 3478", "try --relay-only"]);
}

#[test]
fn contradicting_options_of_the_two_sides_are_named() {
    let test_server = TestServer::on_loopback("");
    let listener = agent(
        &["listen", "--ticket", "--server", &test_server.address.to_string(), "--relay-only"],
        Some(&test_server.key()),
    );
    let connector = agent(&["connect", &ticket(&listener), "--no-relay"], None);
    ends_with(connector, 5, &["--no-relay here or --relay-only on the other side", "tried   nothing"], &[]);
}

/// The server's relay may not send to loopback, so that only two relayed addresses could meet; the gateway is the way that is left.
#[test]
fn a_failed_call_before_the_gateway_fallback_is_no_error_of_the_listener() {
    let test_server = TestServer::on_loopback("");
    let listener = agent(
        &["listen", "--ticket", "--server", &test_server.address.to_string(), "--relay-only"],
        Some(&test_server.key()),
    );
    let connector = agent(&["connect", &ticket(&listener), "--relay-only"], None);
    for side in [&listener, &connector] {
        side.expect("path", UP, |line| line.starts_with("gateway ").then_some(()));
    }
    let printed = listener.printed();
    assert!(printed.contains("waiting for the next") && printed.contains("key"), "{printed}");
    assert!(!printed.contains("error:") && !printed.contains("port 3478"), "{printed}");
}

#[test]
fn a_side_without_a_key_learns_which_side_needs_one() {
    let test_server = TestServer::on_loopback("[gateway]\nenabled = false\n");
    let listener = agent(
        &["listen", "--ticket", "--server", &test_server.address.to_string(), "--relay-only"],
        Some(&test_server.key()),
    );
    let connector = agent(&["connect", &ticket(&listener), "--relay-only"], None);
    let mentions = ["tried   the relay of the other side", "give this side the key too"];
    ends_with(connector, 5, &mentions, &["direct", "port 3478"]);
    listener.expect("hint", UP, |line| line.contains("give the other side the key too").then_some(()));
}

#[test]
fn a_relayed_session_names_its_server_when_the_server_dies() {
    let mut test_server = TestServer::on_loopback("allow_peers = [\"127.0.0.0/8\"]\n");
    let (server, key) = (test_server.address.to_string(), test_server.key());
    let mut listener = agent(&["listen", "--ticket", "--server", &server, "--relay-only"], Some(&key));
    let mut connector = agent(&["connect", &ticket(&listener), "--relay-only"], Some(&key));
    let _pipes = (listener.take_pipes(), connector.take_pipes());
    for side in [&listener, &connector] {
        side.expect("path", UP, |line| line.starts_with("relay ").then_some(()));
    }
    test_server.stop();
    let reason = format!("ran through the server {server}");
    for side in [listener, connector] {
        ends_with(side, 5, &[&reason, "the server runs again"], &["the other side prints"]);
    }
}

#[test]
fn a_wrong_key_and_a_wrong_ticket_give_different_errors() {
    let test_server = TestServer::on_loopback("");
    let server = test_server.address.to_string();
    let refused = agent(&["listen", "--ticket", "--server", &server], Some("not the key of this server"));
    ends_with(refused, 4, &["access key", "ginnel key"], &["ticket"]);
    let listener = agent(&["listen", "--ticket", "--server", &server], None);
    let ticket: Ticket = ticket(&listener).parse().unwrap();
    let wrong = Ticket::new(ticket.server().clone(), ticket.tag(), [0; 16]);
    let refused = agent(&["connect", &wrong.to_string()], None);
    ends_with(refused, 4, &["does not accept this ticket", "this very `agent listen`"], &["access key"]);
}
