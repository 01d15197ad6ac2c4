//! Agents that outlive their servers and networks: they wait, and come back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::house::House;
use crate::lab::Net;
use crate::proc::{Proc, Stdout};
use crate::tools;

/// Far longer than the waits between attempts, and shorter than it takes to notice a dead connection by its silence alone.
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

fn says(process: &Proc, start: &str) {
    process.expect(start, UP, |line| line.starts_with(start).then_some(()));
}

fn ticket(listener: &Proc) -> String {
    listener.expect("ticket", UP, |line| line.trim_start().strip_prefix("agent connect ").map(str::to_owned))
}

/// What comes back for a word through the gateway.
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
fn a_service_and_a_listener_that_begin_before_their_server_wait_for_it() {
    let mut house = House::on_loopback("");
    let (server, key) = (house.address.to_string(), house.key());
    house.stop();
    let to = echo().to_string();
    let serve = agent(here(), &["serve", "--gateway", &server, "--id", ID, "--to", &to], Some(&key));
    let mut listener = agent(here(), &["listen", "--server", &server], None);
    says(&serve, "Waiting  ");
    says(&listener, "Waiting  ");
    house.begin();
    says(&serve, "Serving  ");
    assert_eq!(word_through(&server), "word", "{}", serve.printed());
    let mut connector = agent(here(), &["connect", &ticket(&listener)], None);
    drop((listener.take_pipes(), connector.take_pipes()));
    listener.succeed(UP);
    connector.succeed(UP);
}

/// The kernel of a stopped process goes on answering for it.
#[test]
fn an_id_is_waited_for_while_its_server_lives_and_taken_when_it_is_frozen() {
    let house = House::on_loopback("");
    let (server, key, to) = (house.address.to_string(), house.key(), echo().to_string());
    let serve = || agent(here(), &["serve", "--gateway", &server, "--id", ID, "--to", &to], Some(&key));
    let before = serve();
    says(&before, "Serving  ");
    let mut after = serve();
    after.expect("reason", UP, |line| line.contains("another server has this id").then_some(()));
    after.expect("hint", UP, |line| line.contains("agent serve").then_some(()));
    assert_eq!(word_through(&server), "word", "{}", before.printed());
    assert!(after.ended_by(Instant::now()).is_none(), "{}", after.printed());
    let stopped = Command::new("sh").args(["-c", "kill -STOP \"$0\"", &before.id().to_string()]).status();
    assert!(stopped.unwrap().success());
    says(&after, "Serving  ");
    assert_eq!(word_through(&server), "word", "{}", after.printed());
}

/// Its old connection dies without a word: nothing of it arrives any more, on either side.
#[test]
fn a_service_and_a_listener_follow_their_hosts_address() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let house = House::on(&net.island(10));
    let (server, key) = (house.address.to_string(), house.key());
    let (host, other) = (net.public(21), net.public(22));
    let inside = || host.command(env!("CARGO_BIN_EXE_agent"));
    let to = host.inside(echo).to_string();
    let serve = agent(inside(), &["serve", "--gateway", &server, "--id", ID, "--to", &to], Some(&key));
    let mut listener = agent(inside(), &["listen", "--server", &server], None);
    says(&serve, "Serving  ");
    let ticket = ticket(&listener);
    host.move_to(31);
    says(&serve, "Lost     ");
    says(&serve, "Back     ");
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
