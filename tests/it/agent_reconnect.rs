//! Agents that wait for their server and reconnect after restarts and address changes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::Net;
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

/// Longer than the back-off between attempts, and shorter than the detection of a dead connection by silence.
const UP: Duration = Duration::from_secs(30);
/// An id that access keys admit to.
const ID: &str = "2147483777";

fn agent(mut command: Command, arguments: &[&str], key: Option<&str>) -> Proc {
    command.args(arguments).env_remove("AGENT_KEY").env_remove("AGENT_TICKET").env_remove("AGENT_CODE");
    if let Some(key) = key {
        command.env("AGENT_KEY", key);
    }
    Proc::start(arguments[0], command, Stdout::Pipe)
}

fn here() -> Command {
    Command::new(env!("CARGO_BIN_EXE_agent"))
}

/// A service that sends back what it gets.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).ok());
        }
    });
    address
}

fn expect_line(process: &Proc, start: &str) {
    process.expect(start, UP, |line| line.starts_with(start).then_some(()));
}

fn ticket(listener: &Proc) -> String {
    listener.expect("ticket", UP, |line| line.trim_start().strip_prefix("agent connect ").map(str::to_owned))
}

/// The echo of a line sent through the gateway.
fn word_through(gateway: &str) -> String {
    let mut connect = agent(here(), &["connect", "--gateway", gateway, "--id", ID], None);
    let (mut stdin, mut stdout) = connect.take_pipes();
    // An agent that has failed takes nothing.
    let _ = stdin.write_all(b"word");
    drop(stdin);
    let mut answer = String::new();
    stdout.read_to_string(&mut answer).unwrap();
    connect.wait(UP);
    answer
}

#[test]
fn a_service_and_a_listener_wait_for_a_server_that_starts_later() {
    let mut test_server = TestServer::on_loopback("");
    let (server, key) = (test_server.address.to_string(), test_server.key());
    test_server.stop();
    let to = echo().to_string();
    let share = agent(here(), &["share", "--gateway", &server, "--id", ID, "--to", &to], Some(&key));
    let mut listener = agent(here(), &["listen", "--ticket", "--server", &server], None);
    expect_line(&share, "Waiting  ");
    expect_line(&listener, "Waiting  ");
    test_server.begin();
    expect_line(&share, "Sharing  ");
    assert_eq!(word_through(&server), "word", "{}", share.printed());
    let mut connector = agent(here(), &["connect", &ticket(&listener)], None);
    drop((listener.take_pipes(), connector.take_pipes()));
    listener.succeed(UP);
    connector.succeed(UP);
}

/// The kernel still answers for a stopped process.
#[test]
fn a_service_waits_for_an_id_in_use_and_takes_it_from_a_frozen_server() {
    let test_server = TestServer::on_loopback("");
    let (server, key, to) = (test_server.address.to_string(), test_server.key(), echo().to_string());
    let share = || agent(here(), &["share", "--gateway", &server, "--id", ID, "--to", &to], Some(&key));
    let before = share();
    expect_line(&before, "Sharing  ");
    let mut after = share();
    after.expect("reason", UP, |line| line.contains("another server has this id").then_some(()));
    after.expect("hint", UP, |line| line.contains("agent share").then_some(()));
    assert_eq!(word_through(&server), "word", "{}", before.printed());
    assert!(after.ended_by(Instant::now()).is_none(), "{}", after.printed());
    let stopped = Command::new("sh").args(["-c", "kill -STOP \"$0\"", &before.id().to_string()]).status();
    assert!(stopped.unwrap().success());
    expect_line(&after, "Sharing  ");
    assert_eq!(word_through(&server), "word", "{}", after.printed());
}

/// Its old connection dies silently: no packet of it arrives on either side.
#[test]
fn a_service_and_a_listener_survive_an_address_change() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let test_server = TestServer::on(&net.island(10));
    let (server, key) = (test_server.address.to_string(), test_server.key());
    let (host, other) = (net.public(21), net.public(22));
    let inside = || host.command(env!("CARGO_BIN_EXE_agent"));
    let to = host.inside(echo).to_string();
    let share = agent(inside(), &["share", "--gateway", &server, "--id", ID, "--to", &to], Some(&key));
    let mut listener = agent(inside(), &["listen", "--ticket", "--server", &server], None);
    expect_line(&share, "Sharing  ");
    let ticket = ticket(&listener);
    host.move_to(31);
    expect_line(&share, "Lost     ");
    expect_line(&share, "Back     ");
    let deadline = Instant::now() + UP;
    let connected = loop {
        let mut connector = agent(other.command(env!("CARGO_BIN_EXE_agent")), &["connect", &ticket], None);
        let (stdin, _stdout) = connector.take_pipes();
        let found = connector.wait_for(UP, |line| line.starts_with("direct ").then_some(()));
        if found.is_some() {
            break (connector, stdin);
        }
        assert!(Instant::now() < deadline, "{}\n{}", connector.printed(), listener.printed());
    };
    let (mut connector, stdin) = connected;
    drop((stdin, listener.take_pipes()));
    listener.succeed(UP);
    connector.succeed(UP);
}
