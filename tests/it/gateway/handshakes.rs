//! Listeners for servers: keys, handshakes, and ids in use.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use super::endpoint::{ACCEPT, CLOSE, Endpoint, Pair, command};
use super::{Gateway, HERE, KEY, TIMEOUT};
use crate::proc::{Proc, Stdout};
use crate::test_server::{Lines, TestServer, free_ports};

/// The first id for access keys.
const UPPER: u32 = 0x8000_0000;

fn printed(gateway: &Gateway, arguments: &[&str]) -> String {
    let mut ginnel = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    let output = ginnel.args(arguments).arg("--state").arg(gateway.test_server.state()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_wrong_key_closes_the_connection_without_an_answer() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::authenticating(&gateway, 7, "the key of every test's gateways");
    server.assert_closed();
    assert!(Endpoint::hmac_server(&gateway, 7, "the key of every test's gateways").is_none());
    Endpoint::client(&gateway).dial_refused(7);
}

#[test]
fn an_answer_to_another_challenge_is_refused() {
    let gateway = Gateway::start("");
    let (mut one, mut other) = (Endpoint::connect(gateway.md5), Endpoint::connect(gateway.md5));
    let first = one.bytes(8).try_into().unwrap();
    other.bytes(8);
    other.send(&super::endpoint::md5_answer(first, KEY.as_bytes(), 7));
    other.assert_closed();
    one.send(&super::endpoint::md5_answer(first, KEY.as_bytes(), 7));
    one.fence();
}

#[test]
fn servers_that_do_not_answer_in_time_are_closed() {
    let gateway = Gateway::start("[gateway.times]\nhandshake = 1");
    for (address, challenge) in [(gateway.md5, 8), (gateway.hmac, 32)] {
        for begun in [0, 1, 19] {
            let mut server = Endpoint::connect(address);
            server.bytes(challenge);
            server.send(&vec![0; begun]);
            server.assert_closed();
        }
    }
}

#[test]
fn frames_may_follow_the_handshake_at_once() {
    let gateway = Gateway::start("");
    let mut server = Endpoint::connect(gateway.md5);
    let challenge = server.bytes(8).try_into().unwrap();
    let answer = super::endpoint::md5_answer(challenge, KEY.as_bytes(), 7);
    let (first, rest) = answer.split_at(5);
    server.send(first);
    server.send(&[rest, &command(super::endpoint::NEW, &[])].concat());
    assert_eq!(server.receive()[8], super::endpoint::OPEN);
}

#[test]
fn the_newest_server_of_an_id_replaces_the_older_one() {
    let gateway = Gateway::start("");
    let Pair { mut client, server: mut older, conn } = Pair::new(&gateway, 7);
    let mut newer = Endpoint::server(&gateway, 7);
    older.read_to_end();
    client.expect_frames(&[command(CLOSE, &[conn])]);
    let conn = client.dial(7);
    newer.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    Pair { client, server: newer, conn }.exchange_data();
}

#[test]
fn with_that_setting_a_second_server_of_an_id_is_refused() {
    let gateway = Gateway::start("duplicates = \"refuse\"");
    let mut pair = Pair::new(&gateway, 7);
    // The server that has the id is sent a Ping.
    pair.server.answers = true;
    Endpoint::authenticating(&gateway, 7, KEY).assert_closed();
    pair.server.fence();
    assert!(Endpoint::hmac_server(&gateway, 7, KEY).is_none());
    pair.server.fence();
    pair.exchange_data();
    let Pair { mut client, server, conn } = pair;
    drop(server);
    client.expect_frames(&[command(CLOSE, &[conn])]);
    Pair { conn: 0, server: Endpoint::server(&gateway, 7), client }.client.dial(7);
}

#[test]
fn the_hmac_and_md5_listeners_refuse_each_others_answers() {
    let gateway = Gateway::start("[gateway.times]\nhandshake = 1");
    let mut server = Endpoint::connect(gateway.hmac);
    let challenge = server.bytes(32);
    let part = challenge[..8].try_into().unwrap();
    server.send(&super::endpoint::md5_answer(part, KEY.as_bytes(), 7));
    server.assert_closed();
    Endpoint::client(&gateway).dial_refused(7);
}

#[test]
fn an_access_key_admits_only_to_free_ids_of_the_upper_half() {
    let gateway = Gateway::start("");
    let access = gateway.test_server.key();
    assert!(Endpoint::hmac_server(&gateway, 7, &access).is_none(), "an id of the lower half");
    assert!(Endpoint::hmac_server(&gateway, UPPER - 1, &access).is_none());
    let mut taken = Endpoint::hmac_server(&gateway, UPPER, KEY).unwrap();
    taken.answers = true;
    assert!(Endpoint::hmac_server(&gateway, UPPER, &access).is_none(), "taken from a live server");
    taken.fence();
    let mut agent = Endpoint::hmac_server(&gateway, UPPER + 1, &access).unwrap();
    let mut client = Endpoint::client(&gateway);
    let conn = client.dial(UPPER + 1);
    agent.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    // The MD5 listener accepts only the gateway's key.
    Endpoint::authenticating(&gateway, UPPER + 2, &access).assert_closed();
}

#[test]
fn without_a_configured_key_ginnel_prints_a_generated_one() {
    let port = free_ports();
    let rest = format!("[gateway]\nserver_port = {port}\nhmac_port = {}", port + 1);
    let test_server = TestServer::with(&[HERE], Lines { turn: &rest, ..Lines::default() });
    let at = |port| SocketAddr::new(HERE, port);
    let mut gateway = Gateway { test_server, md5: at(port), hmac: at(port + 1), mutual: at(0) };
    let key = printed(&gateway, &["key", "--gateway"]);
    assert!(key.len() >= 16 && key != gateway.test_server.key(), "{key}");
    for _ in 0..2 {
        Endpoint::authenticating(&gateway, 7, &key).fence();
        Endpoint::hmac_server(&gateway, 8, &key).unwrap();
        gateway.test_server.restart();
    }
    let file = gateway.test_server.process.printed();
    assert!(!file.contains(&key), "the key is in the log");
}

#[test]
fn a_key_of_less_than_sixteen_bytes_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (config, port) = (folder.path().join("ginnel.toml"), free_ports());
    for (key, good) in [("", false), ("fifteen bytes !", false)] {
        let text = format!(
            "state = {:?}\nlisten = [\"127.0.0.1\"]\nport = {port}\n[tls]\nport = 0\n[gateway]\nkey = {key:?}\n",
            folder.path().join("state")
        );
        std::fs::File::create(&config).unwrap().write_all(text.as_bytes()).unwrap();
        let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        serve.args(["serve", "--config"]).arg(&config);
        let mut server = Proc::start("ginnel serve", serve, Stdout::Lines);
        assert_eq!(server.wait(TIMEOUT).success(), good, "{}", server.printed());
        let response = server.printed();
        assert!(response.contains("gateway") && response.contains("16"), "{response}");
        assert!(key.is_empty() || !response.contains(key), "the key is printed: {response}");
    }
}

#[test]
fn by_default_servers_connect_only_on_loopback() {
    let second = Ipv4Addr::new(127, 0, 0, 2);
    let port = free_ports();
    let rest = format!("[gateway]\nserver_port = {port}\nhmac_port = {}\nkey = {KEY:?}", port + 1);
    let test_server = TestServer::with(&[HERE, second.into()], Lines { turn: &rest, ..Lines::default() });
    TcpStream::connect((second, test_server.address.port())).unwrap();
    for port in [port, port + 1] {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(TcpStream::connect((second, port)).is_err(), "{port}");
    }
}

#[test]
fn counters_are_readable_only_from_allowed_sources() {
    let gateway = Gateway::start("");
    assert!(gateway.get("/metrics", "").contains("ginnel_gateway_clients 0"));
    let by_a_proxy = gateway.get("/metrics", "X-Forwarded-For: 203.0.113.1\r\n");
    assert!(by_a_proxy.starts_with("HTTP/1.1 404"), "{by_a_proxy}");
    for (host, status) in [
        ("evil.example", 403),
        ("0.0.0.0", 403),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:3478", 200),
    ] {
        let response = gateway.get_of(host, "/metrics", "");
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {response}");
    }
    let named = Lines { top: "metrics_hosts = [\"monitored.example\"]", ..Lines::default() };
    let (test_server, at) = (TestServer::with(&[HERE], named), SocketAddr::new(HERE, 0));
    let response =
        Gateway { test_server, md5: at, hmac: at, mutual: at }.get_of("monitored.example", "/metrics", "");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let nobody = Lines { top: "metrics_from = []", ..Lines::default() };
    let test_server = TestServer::with(&[HERE], nobody);
    let at = SocketAddr::new(HERE, 0);
    let response = Gateway { test_server, md5: at, hmac: at, mutual: at }.get("/metrics", "");
    assert!(response.starts_with("HTTP/1.1 404"), "{response}");
}

#[test]
fn without_a_gateway_none_of_its_listeners_exists() {
    let port = free_ports();
    let rest = format!("[gateway]\nenabled = false\nserver_port = {port}\nhmac_port = {}", port + 1);
    let test_server = TestServer::with(&[HERE], Lines { turn: &rest, ..Lines::default() });
    let at = |port| SocketAddr::new(HERE, port);
    for port in [port, port + 1] {
        assert!(TcpStream::connect(at(port)).is_err(), "{port}");
    }
    let gateway = Gateway { test_server, md5: at(port), hmac: at(port + 1), mutual: at(0) };
    let mut client = Endpoint::connect(gateway.clients());
    client.send(&command(super::endpoint::NEW, &[]));
    client.assert_closed();
    Endpoint::connect(gateway.clients()).assert_closed();
    assert!(gateway.get("/gateway", "").starts_with("HTTP/1.1 404"));
}
