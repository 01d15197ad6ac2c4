//! The TLS port, proxies, the policy, and clients that close their sending side.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};

use serde_json::{Value, json};

use super::{CHEAP, Client, Messaging, PATIENCE, connect};
use crate::authority::Authority;
use crate::metrics;
use crate::test_server::{Lines, TestServer, free_ports};
use crate::transports::tls;
use crate::waiting::wait_until;

#[test]
fn the_tls_port_has_the_same_frames_and_needs_device_keys() {
    let authority = Authority::new();
    let port = free_ports();
    let turn = format!("[messaging]\nenabled = true\nport = 0\ntls_port = {port}\n{CHEAP}");
    let lines = Lines { top: "workers = 1", turn: &turn };
    let server = TestServer::with_tls(lines, Some(&authority));
    let printed = server.process.lines(|line| line.contains("messaging").then(|| line.clone()));
    let summary = format!("messaging {port} TLS · /messages by WebSocket");
    assert!(printed.iter().any(|line| line.ends_with(&summary)), "{printed:?}");
    let open = || {
        let stream = connect(SocketAddr::new(server.address.ip(), port));
        let mut client = Client { stream: tls(stream, &authority) };
        client.expect_key();
        client
    };
    let (mut alice, mut lamp) = (open(), open());
    alice.log_in("alice");
    let without_key = json!({"version": "1", "id": "lamp", "abilities": []});
    assert_eq!(lamp.code(101, &without_key), 200, "the port is never legacy");
    let with_key = json!({"version": "1", "id": "lamp", "abilities": [], "deviceKey": "0123456789abcdef"});
    assert_eq!(lamp.code(101, &with_key), 100);
    alice.send(200, "1", br#"{"to":"lamp","msg":"on"}"#);
    assert_eq!(alice.frame(), (200, "1".to_owned(), false, vec![]));
    let (cmd, _, _, data) = lamp.frame();
    assert_eq!((cmd, &*data), (201, &br#"[{"from":"alice","to":"lamp","msg":"on","msgid":"1"}]"#[..]));
}

#[test]
fn with_the_policy_contacts_only_who_was_added_may_write() {
    let messaging = Messaging::start(&format!("policy = \"contacts\"\n{CHEAP}"));
    let (mut alice, mut lamp) = (messaging.user("alice"), messaging.connect());
    assert_eq!(lamp.code(101, &json!({"version": "1", "id": "lamp", "abilities": []})), 100);
    assert_eq!(lamp.code(200, &json!({"to": "alice", "msg": "hello"})), 200, "alice has not added it");
    assert_eq!(alice.code(200, &json!({"to": "lamp", "msg": "on"})), 200);
    assert_eq!(alice.code(203, &json!({"deviceId": "lamp"})), 100);
    alice.send(200, "1", br#"{"to":"lamp","msg":"on"}"#);
    assert_eq!(alice.frame(), (200, "1".to_owned(), false, vec![]));
    assert_eq!(lamp.frame().0, 201);
    lamp.send(200, "1", br#"{"to":"alice","msg":"is on"}"#);
    assert_eq!(lamp.frame(), (200, "1".to_owned(), false, vec![]));
    assert_eq!(alice.frame().0, 201);
    let mut bob = messaging.user("bob");
    assert_eq!(bob.code(200, &json!({"to": "alice", "msg": "x"})), 200, "nor has she added bob");
    assert_eq!(bob.code(200, &json!({"to": "lamp", "msg": "x"})), 200);
}

#[test]
fn a_trusted_proxy_names_the_clients_and_others_may_not() {
    let port = free_ports();
    let rates = "registrations_per_network = { burst = 2, per_second = 0.001 }";
    let turn = format!("[messaging]\nenabled = true\nport = {port}\n[messaging.limits]\n{rates}\n{CHEAP}");
    let lines = Lines { top: "workers = 1\ntrusted_proxies = [\"127.0.0.1\"]", turn: &turn };
    let server = TestServer::with(&[Ipv4Addr::LOCALHOST.into()], lines);
    let address = SocketAddr::new(server.address.ip(), port);
    let through_proxy = |client: u8| {
        let mut stream = connect(address);
        write!(stream, "PROXY TCP4 198.51.100.{client} 192.0.2.1 4000 8888\r\n").unwrap();
        let mut client = Client { stream };
        client.expect_key();
        client
    };
    let register =
        |client: &mut Client, name: &str| client.code(102, &json!({"username": name, "password": "x"}));
    let (mut first, mut second) = (through_proxy(1), through_proxy(2));
    let codes = ["a", "b", "c"].map(|name| register(&mut first, name));
    assert_eq!(codes, [100, 100, 200], "the limit of one client");
    assert_eq!(register(&mut second, "d"), 100, "another client has its own");
    // Without a header the proxy's own address counts, after the server has waited for one.
    let mut without = Client { stream: connect(address) };
    without.expect_key();
    assert_eq!(register(&mut without, "e"), 100);
    let direct = Messaging::start(CHEAP);
    let mut client = direct.connect();
    client.stream.write_all(b"PROXY TCP4 198.51.100.1 192.0.2.1 4000 8888\r\n").unwrap();
    assert!(client.is_closed(), "a header of anybody else is a frame that is too long");
}

#[test]
fn a_client_that_closes_its_sending_side_gets_its_answers() {
    let messaging = Messaging::start(CHEAP);
    drop(messaging.user("bob"));
    let mut alice = messaging.user("alice");
    for id in 0..50 {
        alice.send(200, &id.to_string(), br#"{"to":"bob","msg":"x"}"#);
    }
    alice.send(999, "last", b"");
    alice.stream.shutdown(Shutdown::Write).unwrap();
    let answers: Vec<_> = (0..51).map(|_| alice.frame()).collect();
    let stored = answers.iter().filter(|answer| answer.0 == 200 && answer.3.is_empty());
    assert!(stored.map(|answer| answer.1.clone()).eq((0..50).map(|id| id.to_string())), "{answers:?}");
    assert!(answers.iter().any(|answer| answer.1 == "last") && alice.is_closed());
    let online = || metrics::value(messaging.server.address, "ginnel_messaging_online");
    wait_until(PATIENCE, "alice is offline", || online() == 0);
    let mut bob = messaging.user("bob");
    bob.send(202, "", b"");
    let pushed: Vec<Value> = serde_json::from_slice(&bob.frame().3).unwrap();
    assert_eq!(pushed.len(), 50);
}

#[test]
fn there_are_at_most_so_many_users_and_devices() {
    let messaging = Messaging::start(&format!("[messaging.limits]\nparties = 2\n{CHEAP}"));
    let mut client = messaging.connect();
    let register =
        |client: &mut Client, name: &str| client.code(102, &json!({"username": name, "password": "x"}));
    assert_eq!(register(&mut client, "a"), 100);
    let mut device = |id: &str| client.code(101, &json!({"version": "1", "id": id, "abilities": []}));
    assert_eq!((device("lamp"), device("door"), device("lamp")), (100, 200, 100));
    assert_eq!(register(&mut client, "b"), 200);
    let reached = "ginnel_limit_reached_total{limit=\"store_parties\"}";
    assert_eq!(metrics::value(messaging.server.address, reached), 2);
}
