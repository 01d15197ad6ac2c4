//! The programs in `examples/` do what their first lines describe.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::proc::{Proc, Stdout};
use crate::test_server::{TestServer, free_ports};
use crate::tools;

const UP: Duration = Duration::from_secs(30);
const BINDING_REQUEST: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// A built example; `cargo test` builds them beside the binaries.
fn example(name: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_ginnel")).with_file_name("examples").join(name);
    assert!(binary.is_file(), "{} is not built: cargo build --examples", binary.display());
    Command::new(binary)
}

/// The address behind `listening on`.
fn listening(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on ")?.parse().ok()
}

/// The ports that a process listens on, by protocol.
fn open_ports(id: u32) -> BTreeSet<(&'static str, u16)> {
    let descriptors = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let own: Vec<_> = links.filter_map(|link| link.to_str().map(str::to_owned)).collect();
    let mut open = BTreeSet::new();
    for (protocol, table, state) in
        [("tcp", "tcp", "0A"), ("tcp", "tcp6", "0A"), ("udp", "udp", "07"), ("udp", "udp6", "07")]
    {
        for line in std::fs::read_to_string(format!("/proc/{id}/net/{table}")).unwrap().lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_own = own.contains(&format!("socket:[{}]", fields[9]));
            if is_own && fields[3] == state {
                let (_, port) = fields[1].rsplit_once(':').unwrap();
                open.insert((protocol, u16::from_str_radix(port, 16).unwrap()));
            }
        }
    }
    open
}

fn assert_answers(address: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(UP)).unwrap();
    socket.send_to(&BINDING_REQUEST, address).unwrap();
    let mut answer = [0; 512];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(
        (from, length >= 20, &answer[..2], &answer[4..20]),
        (address, true, &[1, 1][..], &BINDING_REQUEST[4..])
    );
}

#[test]
fn stun_only_answers_a_binding_request() {
    let mut command = example("stun_only");
    command.arg("127.0.0.1:0");
    let server = Proc::start("stun_only", command, Stdout::Lines);
    assert_answers(server.expect("address", UP, listening));
}

#[test]
fn embed_relay_relays_between_turnutils_uclient_and_a_peer() {
    const MESSAGES: u64 = 50;
    if !tools::have(&["turnutils_uclient", "turnutils_peer"]) {
        return;
    }
    let mut command = example("embed_relay");
    command.args(["127.0.0.1:0", "alice", "secret"]);
    let server = Proc::start("embed_relay", command, Stdout::Lines);
    let address = server.expect("address", UP, listening);
    let peer_port = (address.port() + 2).to_string();
    let mut command = Command::new("turnutils_peer");
    command.args(["-p", &peer_port, "-L", "127.0.0.1"]);
    let _peer = Proc::start("turnutils_peer", command, Stdout::Lines);
    for modes in
        [&["-e", "127.0.0.1", "-r", &peer_port][..], &["-s", "-e", "127.0.0.1", "-r", &peer_port], &["-y"]]
    {
        let mut command = Command::new("turnutils_uclient");
        command.args(["-c", "-u", "alice", "-w", "secret", "-p", &address.port().to_string()]);
        command
            .args(["-n", &MESSAGES.to_string(), "-m", "2", "-l", "170", "-z", "10"])
            .args(modes)
            .arg("127.0.0.1");
        let mut client = Proc::start("turnutils_uclient", command, Stdout::Lines);
        client.succeed(UP);
        let received = format!("tot_recv_msgs={}", 2 * MESSAGES);
        assert!(client.printed().contains(&received), "{modes:?}\n{}", client.printed());
    }
}

#[test]
fn embed_server_serves_until_its_input_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = example("embed_server");
    command.arg("127.0.0.1").arg(folder.path().join("state"));
    let mut server = Proc::start("embed_server", command, Stdout::Pipe);
    let (stdin, mut stdout) = server.take_pipes();
    let mut printed = String::new();
    let mut byte = [0; 1];
    while printed.lines().count() < 2 || !printed.ends_with('\n') {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{printed}\n{}", server.printed());
        printed.push(char::from(byte[0]));
    }
    let address = printed.lines().next().and_then(listening).unwrap_or_else(|| panic!("{printed}"));
    let (port, open) = (address.port(), open_ports(server.id()));
    assert_eq!(open, [("tcp", port), ("udp", port)].into(), "one port");
    assert_answers(address);
    let ice: serde_json::Value = serde_json::from_str(printed.lines().nth(1).unwrap()).unwrap();
    assert!(ice["iceServers"].to_string().contains("turn:"), "{ice}");
    drop(stdin);
    server.succeed(UP);
}

#[test]
fn messaging_client_exchanges_messages_between_two_accounts() {
    let messaging = format!("[messaging]\nenabled = true\nport = {}\n", free_ports());
    let test_server = TestServer::on_loopback(&messaging);
    let server = format!("ws://{}", test_server.address);
    let folder = tempfile::tempdir().unwrap();
    let start = |user: &str, peer: &str| {
        let mut command = example("messaging_client");
        command.args([&server, user]).arg(folder.path().join(user)).arg(peer);
        Proc::start(user, command, Stdout::Pipe)
    };
    let mut alice = start("alice", "bob");
    let (mut stdin, stdout) = alice.take_pipes();
    let mut lines = BufReader::new(stdout).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("alice: "));
    let mut bob = start("bob", "alice");
    let (bob_stdin, bob_stdout) = bob.take_pipes();
    let mut bob_lines = BufReader::new(bob_stdout).lines().map(Result::unwrap);
    assert!(bob_lines.next().unwrap().starts_with("bob: "));
    stdin.write_all(b"hello\n").unwrap();
    let received = bob_lines.find(|line| line.starts_with("alice: \""));
    assert_eq!(received.as_deref(), Some("alice: \"hello\""));
    assert!(lines.any(|line| line.starts_with("Delivered ")));
    drop((stdin, bob_stdin));
    alice.succeed(UP);
    bob.succeed(UP);
}

#[test]
fn echo_client_gets_its_text_back_from_echo_server() {
    let test_server = TestServer::on_loopback("");
    let key = test_server.key();
    let mut command = example("echo_server");
    command.arg(test_server.address.to_string()).arg(&key);
    let server = Proc::start("echo_server", command, Stdout::Lines);
    let ticket = server.expect("ticket", UP, |line| line.starts_with("agent:").then(|| line.to_owned()));
    // The second client shows that the ticket serves more than once.
    for text in ["first words", "second words"] {
        let mut command = example("echo_client");
        command.args([&ticket, text]);
        let mut client = Proc::start("echo_client", command, Stdout::Lines);
        client.succeed(UP);
        assert_eq!(client.lines(|line| (line == text).then_some(())).len(), 1, "{}", client.printed());
    }
}

/// The ticket that the example prints.
fn ticket_of(process: &Proc) -> String {
    process.expect("ticket", UP, |line| line.starts_with("agent:").then(|| line.to_owned()))
}

#[test]
fn chat_shows_the_lines_of_each_side_to_the_other() {
    let test_server = TestServer::on_loopback("");
    let mut command = example("chat");
    command.arg("listen").arg(test_server.address.to_string()).arg(test_server.key());
    let mut listener = Proc::start("chat listen", command, Stdout::Pipe);
    let (mut listener_input, output) = listener.take_pipes();
    let mut listener_lines = BufReader::new(output).lines().map(Result::unwrap);
    let ticket = listener_lines.next().unwrap();
    let mut command = example("chat");
    command.args(["connect", &ticket]);
    let mut connector = Proc::start("chat connect", command, Stdout::Pipe);
    let (mut connector_input, output) = connector.take_pipes();
    let mut connector_lines = BufReader::new(output).lines().map(Result::unwrap);
    assert_eq!(listener_lines.next().unwrap(), "*** connected");
    connector_input.write_all(b"hello\n").unwrap();
    assert_eq!(listener_lines.next().unwrap(), "hello");
    listener_input.write_all(b"\x1b[2J\n").unwrap();
    assert_eq!(connector_lines.next().unwrap(), "\\u{1b}[2J");
    drop((listener_input, connector_input));
    listener.succeed(UP);
    connector.succeed(UP);
    assert!(connector.printed().contains("*** direct"), "{}", connector.printed());
}

#[test]
fn port_forward_leads_a_local_port_to_a_service_of_the_other_side() {
    let test_server = TestServer::on_loopback("");
    let service = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = service.local_addr().unwrap().to_string();
    let mut command = example("port_forward");
    command.arg("share").arg(test_server.address.to_string()).arg(test_server.key()).arg(&target);
    let sharing = Proc::start("port_forward share", command, Stdout::Lines);
    let mut command = example("port_forward");
    command.args(["forward", &ticket_of(&sharing), "127.0.0.1:0"]);
    let forwarding = Proc::start("port_forward forward", command, Stdout::Lines);
    let local = forwarding.expect("address", UP, listening);
    let mut clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(local).unwrap()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("request {number}").as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
    }
    for _ in &clients {
        let (mut socket, _) = service.accept().unwrap();
        let mut request = String::new();
        socket.read_to_string(&mut request).unwrap();
        socket.write_all(format!("answer to {request}").as_bytes()).unwrap();
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("answer to request {number}"));
    }
}

#[test]
fn send_file_sends_a_file_and_overwrites_none() {
    let test_server = TestServer::on_loopback("");
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("some file.bin");
    let contents: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    std::fs::write(&file, &contents).unwrap();
    for is_first in [true, false] {
        let mut command = example("send_file");
        command.arg("send").arg(test_server.address.to_string()).arg(test_server.key()).arg(&file);
        let mut sender = Proc::start("send_file send", command, Stdout::Lines);
        let mut command = example("send_file");
        command.args(["receive", &ticket_of(&sender)]).arg(to.path());
        let mut receiver = Proc::start("send_file receive", command, Stdout::Lines);
        assert_eq!(receiver.wait(UP).success(), is_first, "{}", receiver.printed());
        assert_eq!(sender.wait(UP).success(), is_first, "{}", sender.printed());
        assert!(std::fs::read(to.path().join("some file.bin")).unwrap() == contents);
    }
}

#[test]
fn gateway_echo_client_gets_its_text_back_from_gateway_echo_server() {
    let test_server = TestServer::on_loopback("");
    let gateway = format!("ws://{}", test_server.address);
    let mut command = example("gateway_echo_server");
    command.args([&gateway, "7", &test_server.output_of(&["key", "--gateway"])]);
    let server = Proc::start("gateway_echo_server", command, Stdout::Lines);
    server.expect("start", UP, |line| (line == "serving 7").then_some(()));
    for address in [test_server.address.to_string(), gateway] {
        let mut command = example("gateway_echo_client");
        command.args([&address, "7", "some words"]);
        let mut client = Proc::start("gateway_echo_client", command, Stdout::Lines);
        client.succeed(UP);
        assert_eq!(
            client.lines(|line| (line == "some words").then_some(())).len(),
            1,
            "{}",
            client.printed()
        );
    }
}
