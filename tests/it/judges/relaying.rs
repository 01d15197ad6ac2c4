//! Independent clients of RFC 6062, RFC 8016 and both address families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::test_server::{Lines, PASSWORD, TestServer, USER};
use crate::tools;

const LOOPBACK: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
const BOTH_LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const SECRET: &str = "the secret of a test";

/// A server with two workers, so that a client's second socket may be another worker's.
fn test_server(turn: &str) -> TestServer {
    let turn = format!("allow_peers = [\"127.0.0.1/32\"]\n{turn}");
    TestServer::with(&LOOPBACK, Lines { top: "workers = 2", turn: &turn })
}

#[test]
fn a_foreign_client_relays_tcp_to_and_from_peers() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = test_server("");
    let expected = json!({
        "stranger": {"closed": true, "reported": false},
        "carry": {"from": true, "up": true, "down": true, "half": "last word"},
        "incoming": {"permitted": 200, "named": true, "words": ["hello", "and back"], "ended": true},
        "closed port": 447,
        "twice": {"again": 446, "bound": true, "twice": 400},
        "usurpers": {
            "bare": 401,
            "wrong password": 401,
            "nobody": 401,
            "unknown name": 400,
            "by the control connection": 400,
            "right": "still here",
        },
        "own listeners": [403, 403, 403, 403, 403],
        "refresh": 200,
        "ends": ["", "", ""],
        "allocate by udp": 400,
    });
    let server = test_server.address.to_string();
    assert_eq!(test_server.report("turn_tcp.py", &["all", &server, USER, PASSWORD]), expected);
}

#[test]
fn a_foreign_client_moves_its_allocation_to_other_ports_and_transports() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = test_server(&format!("allocations_per_user = 1\nrest_secret = \"{SECRET}\""));
    let expected = json!({
        "bind": 200,
        "before": true,
        "moved": 32,
        "old ticket": 400,
        "forged": [400, 400, 400, 400, 400, 400, 400],
        "another user": 441,
        "second allocation": 486,
        "still there": true,
        "streams": [true, true, true, true, true],
        "second allocation again": 486,
        "end": 200,
        "after the end": 437,
        "a new one": 200,
    });
    let server = test_server.address.to_string();
    assert_eq!(test_server.report("turn_moves.py", &["all", &server, USER, PASSWORD, SECRET]), expected);
}

#[test]
fn a_foreign_client_of_either_family_reaches_peers_of_both() {
    if !tools::have(&["python3"]) {
        return;
    }
    let turn = "allow_peers = [\"127.0.0.1/32\", \"::1/128\"]\nrelay_addresses = [\"127.0.0.1\", \"::1\"]";
    let test_server = TestServer::with(&BOTH_LOOPBACKS, Lines { top: "workers = 2", turn });
    let talk = json!([200, true, 200, true]);
    let with = |family: Value, talks: usize| {
        let talks = talk.as_array().unwrap().iter().cycle().take(4 * talks).cloned();
        Value::from_iter([family].into_iter().chain(talks))
    };
    let expected = json!({
        "4 by 6": with(json!(true), 1),
        "6 by 4": with(json!(false), 1),
        "6 by 6": with(json!(true), 1),
        "both": with(json!([false, true]), 2),
        "refresh of each": [200, 200],
        "after the end of one": [200, 443],
        "later": with(json!([false]), 2),
        "later by tcp": with(json!([false]), 2),
        "both attributes": 400,
    });
    let (v4, v6) = (test_server.address.to_string(), test_server.address_at(BOTH_LOOPBACKS[1]).to_string());
    assert_eq!(test_server.report("turn_families.py", &["all", &v4, &v6, USER, PASSWORD]), expected);
}

#[test]
fn five_thousand_allocations_have_a_port_each_and_relay() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = test_server("allocations_per_user = 5000\nmax_allocations = 5000");
    let (server, id) = (test_server.address.to_string(), test_server.process.id().to_string());
    let seen = test_server.report("turn_crowd.py", &["many", &server, USER, PASSWORD, "5000", "200", &id]);
    let counts = ["allocations", "ports", "sockets", "permitted", "talked", "by their own address"]
        .map(|name| seen[name].as_u64().unwrap());
    assert_eq!(counts, [5000, 5000, 5000, 200, 200, 200], "{seen}");
}

#[test]
fn two_hundred_clients_of_one_peer_use_a_relayed_address_each() {
    if !tools::have(&["python3"]) {
        return;
    }
    let turn = "allow_peers = [\"127.0.0.1/32\"]\nallocations_per_user = 200\n";
    let test_server = TestServer::with(&LOOPBACK, Lines { top: "workers = 2", turn });
    let server = test_server.address.to_string();
    let seen = test_server.report("turn_crowd.py", &["same", &server, USER, PASSWORD, "200"]);
    let expected = json!({"permitted": 200, "own": 200, "again": 200});
    assert_eq!(seen, expected, "{}", test_server.process.printed());
}

#[test]
fn data_of_a_new_or_moved_peer_reaches_only_the_owner_of_the_relayed_address() {
    if !tools::have(&["python3"]) {
        return;
    }
    let turn = "allow_peers = [\"127.0.0.1/32\"]\nallocations_per_user = 40\n";
    let test_server = TestServer::with(&LOOPBACK, Lines { top: "workers = 2", turn });
    let server = test_server.address.to_string();
    let seen = test_server.report("turn_crowd.py", &["first", &server, USER, PASSWORD, "40"]);
    let expected = json!({"permitted": 40, "first": 40, "answered": 40, "moved": 40, "strange": 0});
    assert_eq!(seen, expected, "{}", test_server.process.printed());
}

#[test]
fn clients_of_one_server_reach_each_other_but_nothing_else_on_its_host() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::with(&LOOPBACK, Lines { top: "workers = 2", turn: "" });
    let server = test_server.address.to_string();
    let expected = json!({"permit": [200, 200], "send": 200, "bind": [200, 200], "channel": 200});
    assert_eq!(test_server.report("turn_crowd.py", &["mutual", &server, USER, PASSWORD]), expected);
}

#[test]
fn where_expiry_is_hard_relaying_stops_within_a_second() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = test_server(&format!("rest_secret = \"{SECRET}\"\n[auth]\nexpiry = \"hard\""));
    let seen = test_server.report("turn_crowd.py", &["until", &test_server.address.to_string(), SECRET, "3"]);
    for who in ["peer", "client"] {
        let last = seen[who].as_f64().unwrap();
        assert!((-1.0..=1.0).contains(&last), "{who} heard last {last} s after the end: {seen}");
    }
}
