//! `agent` behind an HTTP or SOCKS 5 proxy, and TLS to the server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use ginnel::agent::Ticket;
use serde_json::Value;

use crate::authority::Authority;
use crate::bulk;
use crate::lab::{Host, Net};
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(30);
const BULK: usize = 5_000_000;
const SERVER: u8 = 10;
const PROXY: u8 = 11;

/// Lets a host reach nothing but the proxy.
const ONLY_THE_PROXY: &str = "
    table inet proxied {
      chain out { type filter hook output priority 0; policy drop;
                  oifname lo accept; ip daddr 203.0.113.11 tcp dport 3128 accept; }
      chain in { type filter hook input priority 0; policy drop;
                 iifname lo accept; ip saddr 203.0.113.11 tcp sport 3128 accept; }
    }";

fn event(line: &str, kind: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|event| event["t"] == kind)
}

fn agent(host: &Host, arguments: &[&str], key: &str) -> Command {
    let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).arg("--json").env("AGENT_KEY", key);
    command
}

/// Connects a host that reaches only a proxy, at which the server has the name `turn.test`, and moves the bulk both ways.
fn assert_relayed_through(protocol: &str, server: &str, port: u16) {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let server_host = net.island(SERVER);
    let (proxy_host, connector_host, listener_host) = (net.public(PROXY), net.public(22), net.public(21));
    let authority = Authority::naming(&["turn.test", "203.0.113.11"]);
    let test_server = TestServer::named(&server_host, &authority, if port == 443 { 443 } else { 5349 });
    let (certificate, key, only) = (authority.certificate(), authority.key(), port.to_string());
    let names = ["--user", "me:a secret", "--host", "turn.test=203.0.113.10", "--only", &only];
    let files = ["--certificate", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let proxy = proxy_host.python("proxy.py", &[&[protocol, "3128"], &names[..], &files].concat());
    proxy.expect("start", UP, |line| (line == "ready").then_some(()));
    connector_host.nft(ONLY_THE_PROXY);

    let key = test_server.key();
    let address = test_server.address.to_string();
    let listening = agent(&listener_host, &["listen", "--server", &address], &key);
    let mut listener = Proc::start("listener", listening, Stdout::Pipe);
    let ticket =
        listener.expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
    let root = authority.root();
    let arguments = ["connect", &ticket, "--server", server, "--ca", root.to_str().unwrap()];
    let mut connecting = agent(&connector_host, &arguments, &key);
    connecting.env("HTTPS_PROXY", format!("{protocol}://me:a%20secret@203.0.113.11:3128"));
    let begun = Instant::now();
    let mut connector = Proc::start("connector", connecting, Stdout::Pipe);

    let note = connector.expect("note", UP, |line| event(line, "note"));
    let text = note["what"].as_str().unwrap();
    assert!(text.contains(&format!("{protocol}://203.0.113.11:3128")) && !text.contains("secret"), "{text}");
    let sides = [(&mut listener, 1), (&mut connector, 2)].map(|(side, seed)| {
        let (stdin, stdout) = side.take_pipes();
        let go = bulk::feed(stdin, seed, BULK);
        (go, bulk::drain(stdout))
    });
    let path = connector.expect("path", UP, |line| event(line, "path"));
    eprintln!("{protocol} {server}: path after {:.1?}", begun.elapsed());
    for (go, _) in &sides {
        go.send(()).unwrap();
    }
    let [received_by_listener, received_by_connector] = sides.map(|(_, (_, output))| output);
    listener.succeed(UP);
    connector.succeed(UP);
    assert_eq!(received_by_listener.join().unwrap(), bulk::expected(2, BULK));
    assert_eq!(received_by_connector.join().unwrap(), bulk::expected(1, BULK));
    assert_eq!(path["kind"], "relay", "{path}\n{}", connector.printed());
    // One connection for the signalling, one for TURN.
    let expected = format!("connect turn.test {port}");
    let through = proxy.lines(|line| (*line == expected).then_some(()));
    assert!(through.len() >= 2, "{}", proxy.printed());
}

#[test]
fn a_host_that_reaches_only_an_http_proxy_connects_by_relay() {
    assert_relayed_through("http", "turn.test:3478", 3478);
}

#[test]
fn a_host_that_reaches_only_a_socks_proxy_connects_by_relay_inside_tls() {
    assert_relayed_through("socks5", "wss://turn.test:3478", 3478);
}

#[test]
fn a_host_that_reaches_only_a_proxy_inside_tls_that_allows_port_443_connects_by_relay() {
    assert_relayed_through("https", "https://turn.test:443", 443);
}

/// An account on a host that reaches only a proxy, at which the server has the name `turn.test`, and one that reaches the server.
#[test]
fn messages_pass_a_proxy_in_both_directions() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server_host, proxy_host) = (net.island(SERVER), net.public(PROXY));
    let (alices_host, bobs_host) = (net.public(22), net.public(21));
    let messaging = "[messaging]\nenabled = true\n[messaging.password]\nmemory_kib = 64\npasses = 1\n";
    let _server = TestServer::on_with(&server_host, messaging);
    let names = ["--user", "me:a secret", "--host", "turn.test=203.0.113.10"];
    let proxy = proxy_host.python("proxy.py", &[&["socks5", "3128"], &names[..]].concat());
    proxy.expect("start", UP, |line| (line == "ready").then_some(()));
    alices_host.nft(ONLY_THE_PROXY);
    let folder = tempfile::tempdir().unwrap();
    let run = |host: &Host, user: &str, arguments: &[&str]| {
        let mut command = host.command(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).env("AGENT_STATE", folder.path().join(user));
        if user == "alice" {
            command.env("ALL_PROXY", "socks5://me:a%20secret@203.0.113.11:3128");
        }
        let mut agent = Proc::start(user, command, Stdout::Lines);
        agent.succeed(UP);
        agent.printed()
    };
    let registered = run(&alices_host, "alice", &["login", "ws://turn.test:3478", "alice"]);
    let note = "TCP to turn.test passes the proxy socks5://203.0.113.11:3128";
    assert!(registered.contains(note) && !registered.contains("secret"), "{registered}");
    run(&bobs_host, "bob", &["login", "ws://203.0.113.10:3478", "bob"]);
    let sent = run(&alices_host, "alice", &["msg", "bob", "out"]);
    assert!(sent.contains(note) && sent.contains("Stored   for bob"), "{sent}");
    run(&bobs_host, "bob", &["msg", "alice", "in"]);
    assert!(run(&bobs_host, "bob", &["inbox"]).contains("  alice  out"));
    assert!(run(&alices_host, "alice", &["inbox"]).contains("  bob  in"));
    let through = proxy.lines(|line| (line == "connect turn.test 3478").then_some(()));
    assert_eq!(through.len(), 3, "{}", proxy.printed());
}

/// Runs `agent connect` with an environment; returns the exit code and what it printed.
fn connect(server: &str, variable: (&str, &str)) -> (Option<i32>, String) {
    let ticket = Ticket::new("turn.invalid".parse().unwrap(), "tag", [7; 16]).to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(["connect", &ticket, "--server", server]).env(variable.0, variable.1);
    let mut agent = Proc::start("agent", command, Stdout::Lines);
    let status = agent.wait(UP);
    (status.code(), agent.printed())
}

#[test]
fn the_refusal_of_a_proxy_is_printed() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let refusing = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 200];
        let len = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
        String::from_utf8_lossy(&request[..len]).into_owned()
    });
    let (code, printed) = connect("turn.invalid:99", ("ALL_PROXY", &proxy));
    assert!(refusing.join().unwrap().starts_with("CONNECT turn.invalid:99 HTTP/1.1\r\n"));
    assert_eq!(code, Some(5), "{printed}");
    assert!(printed.contains(&format!("the proxy {proxy} refused: 403 Forbidden")), "{printed}");
}

#[test]
fn a_variable_that_names_no_proxy_is_a_usage_error() {
    let (code, printed) = connect("turn.invalid", ("ALL_PROXY", "ftp://proxy.invalid"));
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("ALL_PROXY names no proxy"), "{printed}");
}

/// The ticket of a listener that uses TLS makes the connector use it too.
#[test]
fn both_agents_reach_a_server_by_tls() {
    let authority = Authority::new();
    let lines = crate::test_server::Lines { turn: "allow_peers = [\"127.0.0.1/32\"]", top: "" };
    let test_server = TestServer::with_tls(lines, Some(&authority));
    let root = authority.root();
    let trusted = ["--ca", root.to_str().unwrap(), "--relay-only", "--json"];
    let start = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(arguments).args(trusted).env("AGENT_KEY", test_server.key());
        Proc::start(name, command, Stdout::Pipe)
    };
    let server = format!("wss://{}", test_server.address);
    let mut listener = start("listener", &["listen", "--server", &server]);
    let ticket =
        listener.expect("ticket", UP, |line| Some(event(line, "ticket")?["ticket"].as_str()?.to_owned()));
    assert!(ticket.parse::<Ticket>().unwrap().server().tls);
    let mut connector = start("connector", &["connect", &ticket]);
    let (mut stdin, _output) = connector.take_pipes();
    stdin.write_all(b"hello").unwrap();
    drop(stdin);
    let (listeners_input, mut output) = listener.take_pipes();
    drop(listeners_input);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello", "{}\n{}", listener.printed(), connector.printed());
    listener.succeed(UP);
    connector.succeed(UP);
}

/// A server whose certificate is not trusted is not used.
#[test]
fn an_untrusted_certificate_is_refused() {
    let test_server = TestServer::with_tls(crate::test_server::Lines::default(), None);
    let (code, printed) = connect(&format!("https://{}", test_server.address), ("NO_PROXY", "*"));
    assert_eq!(code, Some(5), "{printed}");
    assert!(printed.contains("certificate"), "{printed}");
}
