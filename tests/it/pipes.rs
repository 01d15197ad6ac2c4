//! Two `agent` processes on one host: their output and their exit.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::{ChildStdout, Command};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{NatKind, Net};
use crate::proc::{Proc, Stdout};
use crate::recording_proxy::RecordingProxy;
use crate::signaling_client::SignalingClient;
use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::wait_for;

const UP: Duration = Duration::from_secs(30);

fn agent(name: &str, arguments: &[&str], key: Option<&str>) -> Proc {
    start(name, Command::new(env!("CARGO_BIN_EXE_agent")), arguments, key)
}

fn start(name: &str, mut command: Command, arguments: &[&str], key: Option<&str>) -> Proc {
    command.args(arguments).env_remove("AGENT_KEY").env_remove("AGENT_CODE");
    if let Some(key) = key {
        command.env("AGENT_KEY", key);
    }
    Proc::start(name, command, Stdout::Pipe)
}

/// The ticket that a listener shows to people: the indented line under its heading.
fn ticket(listener: &Proc) -> String {
    let mut headed = false;
    listener.expect("ticket", UP, |line| {
        if headed {
            return line.strip_prefix("    agent connect ").map(str::to_owned);
        }
        headed = line == "On the other machine run:";
        None
    })
}

/// Everything that comes out of a pipe until its end, which has to come in time.
fn read_all(mut pipe: ChildStdout, processes: &[&Proc]) -> Vec<u8> {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        ended.send(bytes).ok();
    });
    let bytes = end.recv_timeout(UP);
    bytes.unwrap_or_else(|_| {
        let processes: Vec<_> = processes.iter().map(|side| side.printed()).collect();
        panic!("standard output does not end\n{}", processes.join("\n"))
    })
}

/// A server, a listener and a connector on this host; `key` only with the listener.
fn pair() -> (TestServer, Proc, Proc) {
    pair_with(&[], &[])
}

fn pair_with(listening: &[&str], connecting: &[&str]) -> (TestServer, Proc, Proc) {
    let test_server = TestServer::on_loopback("");
    let server = test_server.address.to_string();
    let arguments = [&["listen", "--ticket", "--server", &server], listening].concat();
    let listener = agent("listener", &arguments, Some(&test_server.key()));
    let connector = agent("connector", &[&["connect", &ticket(&listener)], connecting].concat(), None);
    (test_server, listener, connector)
}

fn ends_with(mut process: Proc, code: i32, mention: &str) {
    let status = process.wait(UP);
    let printed = process.printed();
    assert_eq!(status.code(), Some(code), "{printed}");
    assert!(printed.contains(mention), "no {mention:?}\n{printed}");
}

#[test]
fn two_agents_on_one_host_exchange_a_line_each_and_print_their_path() {
    let (_house, mut listener, mut connector) = pair();
    let (mut to_listener, from_listener) = listener.take_pipes();
    let (mut to_connector, from_connector) = connector.take_pipes();
    to_listener.write_all(b"hello from the listener\n").unwrap();
    to_connector.write_all(b"hello from the connector\n").unwrap();
    for side in [&listener, &connector] {
        side.expect("direct path", UP, |line| {
            (line.starts_with("direct ") && line.contains(" · ") && line.ends_with(" ms")).then_some(())
        });
    }
    drop((to_listener, to_connector));
    assert_eq!(read_all(from_listener, &[&listener, &connector]), b"hello from the connector\n");
    assert_eq!(read_all(from_connector, &[&listener, &connector]), b"hello from the listener\n");
    listener.succeed(UP);
    connector.succeed(UP);
}

#[test]
fn agents_with_different_ice_engines_connect() {
    for [listening, connecting] in [["webrtc", "webrtc"], ["webrtc", "ginnel"], ["ginnel", "webrtc"]] {
        let (_server, mut listener, mut connector) = pair_with(&["--ice", listening], &["--ice", connecting]);
        let (to_connector, from_listener) = listener.take_pipes();
        let (mut to_listener, from_connector) = connector.take_pipes();
        to_listener.write_all(b"hello").unwrap();
        drop((to_connector, to_listener));
        assert_eq!(read_all(from_listener, &[&listener, &connector]), b"hello", "{listening} {connecting}");
        assert_eq!(read_all(from_connector, &[&listener, &connector]), b"");
        listener.succeed(UP);
        connector.succeed(UP);
    }
}

#[test]
fn a_side_whose_input_has_ended_continues_to_receive() {
    let (_house, mut listener, mut connector) = pair();
    let (mut to_listener, from_listener) = listener.take_pipes();
    let (to_connector, from_connector) = connector.take_pipes();
    drop(to_connector);
    let nothing = read_all(from_listener, &[&listener, &connector]);
    // The listener's reader has seen the connector's end; only now does the listener send.
    let late = vec![b'x'; 1_000_000];
    to_listener.write_all(&late).unwrap();
    drop(to_listener);
    let all = read_all(from_connector, &[&listener, &connector]);
    assert!(nothing.is_empty() && all == late, "{} bytes, {} late ones", nothing.len(), all.len());
    listener.succeed(UP);
    connector.succeed(UP);
}

#[test]
fn an_interrupted_side_ends_the_other_one() {
    let (_house, mut listener, mut connector) = pair();
    let _pipes = (listener.take_pipes(), connector.take_pipes());
    for side in [&listener, &connector] {
        side.expect("path", UP, |line| line.starts_with("direct ").then_some(()));
    }
    listener.terminate();
    assert_eq!(listener.wait(UP).code(), Some(130), "{}", listener.printed());
    ends_with(connector, 7, "error: ");
}

#[test]
fn an_agent_without_a_server_prints_the_option() {
    ends_with(agent("listener", &["listen"], None), 2, "agent listen --server");
}

#[test]
fn an_unreadable_ticket_is_a_usage_error() {
    ends_with(agent("connector", &["connect", "agent:nonsense"], None), 2, "error: ");
}

#[test]
fn a_ticket_whose_listener_is_gone_is_reported_as_offline() {
    let test_server = TestServer::on_loopback("");
    let server = test_server.address.to_string();
    let mut listener = agent("listener", &["listen", "--ticket", "--server", &server], None);
    let ticket = ticket(&listener);
    listener.terminate();
    listener.wait(UP);
    ends_with(agent("connector", &["connect", &ticket], None), 3, "agent listen");
}

/// The registrations that passed, each with its answer, once there are `count` of them.
fn registrations(recorder: &RecordingProxy, count: usize) -> Vec<[Value; 2]> {
    wait_for(UP, || {
        let first = |texts: &[Value], t: i64| texts.iter().find(|text| text["t"] == t).cloned();
        let lines = recorder.texts();
        let passed: Vec<_> = lines
            .iter()
            .filter_map(|[registration, response]| Some([first(registration, 1)?, first(response, -1)?]))
            .collect();
        if passed.len() == count { Ok(passed) } else { Err(format!("{lines:?}")) }
    })
}

#[test]
fn a_listener_returns_as_a_newer_session_and_ends_when_replaced() {
    let test_server = TestServer::on_loopback("");
    let recorder = RecordingProxy::before(test_server.address);
    let listener =
        agent("listener", &["listen", "--ticket", "--server", &recorder.address.to_string()], None);
    ticket(&listener);
    recorder.cut();
    let passed = registrations(&recorder, 2);
    let epoch = passed[0][1]["extra"]["epoch"].as_i64().unwrap();
    assert_eq!(
        (&passed[0][0]["params"]["epoch"], &passed[1][0]["params"]["epoch"]),
        (&Value::Null, &json!(epoch + 1))
    );

    let mut newer = SignalingClient::web(Ipv4Addr::LOCALHOST, test_server.address);
    let tag = newer.register(&json!({"secret": passed[0][0]["params"]["secret"]}));
    assert_eq!(tag, passed[1][1]["extra"]["tag"]);
    ends_with(listener, 4, "error: another session has taken over this ticket");
    assert_eq!(newer.request(json!({"t": 2, "tag": tag}))["t"], -2);
}

#[test]
fn an_unreachable_server_is_reported_with_what_to_check() {
    let mut test_server = TestServer::on_loopback("");
    test_server.process.terminate();
    test_server.process.succeed(UP);
    let listener =
        agent("listener", &["listen", "--ticket", "--server", &test_server.address.to_string()], None);
    listener.expect("reason", UP, |line| line.starts_with("Waiting  ").then_some(()));
    listener.expect("what to check", UP, |line| line.contains("ginnel serve").then_some(()));
    listener.terminate();
    ends_with(listener, 130, "trying again");
}

/// A side with these options whose input stays open, and one that sends and is done.
fn assert_ends_by_itself(open: &[&str], done: &[&str], nowhere: bool) {
    for listener_sends in [true, false] {
        let test_server = TestServer::on_loopback("");
        let server = test_server.address.to_string();
        let options = |sends: bool| if sends { done } else { open };
        let run = |name: &str, arguments: &[&str], sends: bool| {
            if sends && nowhere {
                let mut shell = Command::new("sh");
                shell.args(["-c", "exec \"$@\" >/dev/null", "sh", env!("CARGO_BIN_EXE_agent")]);
                start(name, shell, &[arguments, options(sends)].concat(), None)
            } else {
                agent(name, &[arguments, options(sends)].concat(), None)
            }
        };
        let mut listener = run("listener", &["listen", "--ticket", "--server", &server], listener_sends);
        let mut connector = run("connector", &["connect", &ticket(&listener)], !listener_sends);
        let (sender, receiver) =
            if listener_sends { (&mut listener, &mut connector) } else { (&mut connector, &mut listener) };
        let (mut to_sender, _from_sender) = sender.take_pipes();
        let (_to_receiver, from_receiver) = receiver.take_pipes();
        let much = vec![b'x'; 1_000_000];
        to_sender.write_all(&much).unwrap();
        drop(to_sender);
        assert!(read_all(from_receiver, &[&listener, &connector]) == much);
        listener.succeed(UP);
        connector.succeed(UP);
    }
}

#[test]
fn a_receive_only_side_does_not_wait_for_its_input() {
    assert_ends_by_itself(&["--recv-only"], &[], false);
}

#[test]
fn a_send_only_side_does_not_wait_for_the_other_sides_input() {
    assert_ends_by_itself(&[], &["--send-only"], false);
}

#[test]
fn a_side_with_output_to_dev_null_ends_once_everything_is_sent() {
    assert_ends_by_itself(&[], &[], true);
}

#[test]
fn a_side_that_waits_for_its_input_prints_a_hint() {
    let (_house, mut listener, mut connector) = pair();
    let (to_listener, _from_listener) = listener.take_pipes();
    let (to_connector, _from_connector) = connector.take_pipes();
    drop(to_connector);
    listener.expect("reason", UP, |line| line.contains("--recv-only").then_some(()));
    drop(to_listener);
    listener.succeed(UP);
    connector.succeed(UP);
}

#[test]
fn a_ticket_is_accepted_with_the_line_around_it() {
    let test_server = TestServer::on_loopback("");
    let server = format!("http://{}/", test_server.address);
    let mut listener = agent("listener", &["listen", "--ticket", "--server", &server], None);
    let line = format!("agent connect {}", ticket(&listener).to_uppercase());
    let (start, end) = line.split_at(60);
    let words: Vec<&str> = start.split(' ').collect();
    let broken = format!("{}\n {end}\n", words.join(" "));
    let mut connector = agent("connector", &["connect", &broken], None);
    drop((listener.take_pipes(), connector.take_pipes()));
    listener.succeed(UP);
    connector.succeed(UP);
}

/// Two agents behind symmetric NATs that cannot have a path.
fn assert_no_path(options: &[&str], with_key: bool, mention: &str) {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let (left, right) = (net.nat(NatKind::Symmetric, 21), net.nat(NatKind::Symmetric, 22));
    let (left, right) = (net.behind(&left), net.behind(&right));
    let (key, server) = (test_server.key(), test_server.address.to_string());
    let key = with_key.then_some(key.as_str());
    let run = |name, host: &crate::lab::Host, arguments: &[&str]| {
        let arguments = [arguments, options].concat();
        start(name, host.command(env!("CARGO_BIN_EXE_agent")), &arguments, key)
    };
    let listener = run("listener", &left, &["listen", "--ticket", "--server", &server]);
    let connector = run("connector", &right, &["connect", &ticket(&listener)]);
    ends_with(connector, 5, mention);
    let printed = listener.printed();
    assert!(!printed.contains("error:"), "it goes on waiting: {printed}");
}

#[test]
fn no_relay_behind_two_symmetric_nats_ends_without_a_path() {
    assert_no_path(&["--no-relay"], true, "leave out --no-relay");
}

#[test]
fn two_agents_without_a_key_behind_symmetric_nats_are_advised_to_use_one() {
    assert_no_path(&[], false, "--key");
}
