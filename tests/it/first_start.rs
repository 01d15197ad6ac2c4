//! A first start: its files, pages and credentials.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::Net;
use crate::proc::{Proc, Stdout};
use crate::test_server::TestServer;
use crate::tools;

const UP: Duration = Duration::from_secs(20);

/// Status line and body of a GET.
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let (head, body) = fetch(address, path);
    (head.lines().next().unwrap().to_owned(), body)
}

/// Head and body of a GET.
fn fetch(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(UP)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// User name and password of the TURN entry in an `iceServers` JSON.
fn turn_credentials(ice: &Value) -> (String, String) {
    let servers = ice["iceServers"].as_array().unwrap_or_else(|| panic!("{ice}"));
    let turn = servers.iter().find(|server| server["urls"].to_string().contains("turn:"));
    let turn = turn.unwrap_or_else(|| panic!("no turn: in {ice}"));
    let text = |name: &str| turn[name].as_str().unwrap_or_else(|| panic!("no {name}: {ice}")).to_owned();
    (text("username"), text("credential"))
}

/// Runs a foreign client that allocates with them.
fn assert_allocates(mut client: Command, server: &str, (user, password): &(String, String)) {
    client.arg(tools::client("turn.py")).args(["hold", server, user, password]);
    let client = Proc::start("turn.py hold", client, Stdout::Lines);
    client.expect("allocation", UP, |line| (line == "held").then_some(()));
}

#[test]
fn the_start_page_and_its_files_are_served() {
    let test_server = TestServer::on_loopback("");
    assert!(get(test_server.address, "/healthz").0.contains(" 200 "));
    let (status, page) = get(test_server.address, "/");
    assert!(status.contains(" 200 ") && page.contains("ginnel"), "{status}\n{page}");
    assert!(get(test_server.address, "/nothing-here").0.contains(" 404 "));
}

#[test]
fn health_checks_are_answered() {
    let test_server = TestServer::on_loopback("");
    for path in ["/healthz", "/livez", "/readyz"] {
        assert!(get(test_server.address, path).0.contains(" 200 "), "{path}");
    }
    // HAProxy's check, as it comes when nothing else is set.
    for (request, status) in [
        ("OPTIONS / HTTP/1.0\r\n\r\n", "204"),
        ("OPTIONS / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "204"),
        ("OPTIONS /healthz HTTP/1.0\r\n\r\n", "204"),
        ("HEAD /readyz HTTP/1.0\r\n\r\n", "200"),
    ] {
        let mut stream = TcpStream::connect(test_server.address).unwrap();
        stream.set_read_timeout(Some(UP)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request:?}: {answer}");
    }
}

#[test]
fn the_self_test_of_a_single_family_server_uses_that_family() {
    for listen in [&["::1"][..], &["127.0.0.1"], &["127.0.0.1", "::1"]] {
        let listen: Vec<_> = listen.iter().map(|ip| ip.parse().unwrap()).collect();
        let test_server = TestServer::at(&listen, "allow_peers = [\"127.0.0.0/8\"]");
        let tested = test_server
            .process
            .expect("self-test", UP, |line| line.contains("self-test").then(|| line.to_owned()));
        assert!(tested.contains("STUN ✓") && tested.contains("TURN udp ✓ tcp ✓"), "{listen:?}: {tested}");
    }
}

#[test]
fn the_client_modules_and_their_types_are_served_to_pages_of_any_origin() {
    let test_server = TestServer::on_loopback("");
    for (path, kind, holds) in [
        ("/ginnel.js", "text/javascript; charset=utf-8", "export async function connect("),
        ("/ginnel.d.ts", "text/plain; charset=utf-8", "export function connect("),
        ("/messages.js", "text/javascript; charset=utf-8", "export async function openMailbox("),
        ("/messages.d.ts", "text/plain; charset=utf-8", "export function openMailbox("),
    ] {
        let (head, body) = fetch(test_server.address, path);
        let head = head.to_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{path}: {head}");
        assert!(head.contains(&format!("content-type: {kind}\r\n")), "{path}: {head}");
        assert!(head.contains("access-control-allow-origin: *\r\n"), "{path}: {head}");
        assert!(body.contains(holds), "{path}: {body}");
    }
}

#[test]
fn ice_servers_require_the_access_key() {
    let test_server = TestServer::on_loopback("");
    for path in ["/ice", "/ice?key=", "/ice?key=another"] {
        let (status, body) = get(test_server.address, path);
        assert!(!body.contains("credential"), "{path}: {status}\n{body}");
    }
    let (status, body) = get(test_server.address, &format!("/ice?key={}", test_server.key()));
    assert!(status.contains(" 200 "), "{status}\n{body}");
    let credentials = turn_credentials(&serde_json::from_str(&body).unwrap());
    if tools::have(&["python3"]) {
        assert_allocates(Command::new("python3"), &test_server.address.to_string(), &credentials);
        let (user, _) = credentials;
        let mut client = Command::new("python3");
        client.arg(tools::client("turn.py")).args([
            "hold",
            &test_server.address.to_string(),
            &user,
            "guessed",
        ]);
        let mut refused = Proc::start("turn.py with a guessed password", client, Stdout::Lines);
        assert!(!refused.wait(UP).success(), "{}", refused.printed());
        assert!(refused.printed().contains("Refused: 401"), "{}", refused.printed());
    }
}

#[test]
fn the_state_folder_is_readable_only_by_its_owner() {
    let test_server = TestServer::on_loopback("");
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(test_server.state()), 0o700);
    for name in ["secret", "key"] {
        assert_eq!(mode(test_server.state().join(name)), 0o600, "{name}");
    }
    let key = test_server.key();
    assert!(
        !test_server.process.printed().contains(&key),
        "the key is in the log of a server without a terminal"
    );
}

#[test]
fn a_first_start_without_any_configuration_prints_ice_servers_that_work() {
    if !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server_host, client_host) = (net.public(10), net.public(20));
    let folder = tempfile::tempdir().unwrap();
    let mut serve = server_host.command(env!("CARGO_BIN_EXE_ginnel"));
    serve.args(["serve", "--print-ice"]).current_dir(folder.path());
    let mut server = Proc::start("ginnel serve --print-ice", serve, Stdout::Pipe);
    let (_, mut stdout) = server.take_pipes();
    server.expect("line that begins with Ready.", UP, |line| line.starts_with("Ready.").then_some(()));
    server.terminate();
    server.succeed(UP);
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).unwrap();
    let ice: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    assert!(ice.to_string().contains("stun:203.0.113.10:3478"), "{ice}");
    // They outlive a restart: the secret stays in the state folder.
    let mut serve = server_host.command(env!("CARGO_BIN_EXE_ginnel"));
    serve.arg("serve").current_dir(folder.path());
    let server = Proc::start("ginnel serve, again", serve, Stdout::Lines);
    server.expect("line that begins with Ready.", UP, |line| line.starts_with("Ready.").then_some(()));
    assert_allocates(client_host.command("python3"), "203.0.113.10:3478", &turn_credentials(&ice));
}
