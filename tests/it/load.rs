//! `ginnel load` against our server and against coturn.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proc::{Proc, Stdout};
use crate::test_server::{PASSWORD, TestServer, USER, free_ports};
use crate::tools;
use crate::waiting::{wait_for, wait_until_steady};

const ALLOW: &str = "allow_peers = [\"127.0.0.0/8\"]";
const PASSWORD_VARIABLE: &str = "GINNEL_LOAD_TEST_PASSWORD";
/// Every way in which a server relays.
const WAYS: [&str; 9] = [
    "--direction up",
    "--direction down --size 12",
    "--direction both --size 1200 --burst 4",
    "--direction both --size 1200 --burst 4 --no-gso",
    "--direction echo",
    "--direction both --indications --size 173",
    "--direction echo --peers clients",
    "--direction both --transport tcp --size 173",
    "--direction echo --transport tcp --peers clients --indications",
];

fn load(server: SocketAddr, (user, password): (&str, &str), what: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    command.args(["load"]).args(what.split_whitespace()).args(["--server", &server.to_string()]);
    if what.starts_with("gateway") {
        command.args(["--key-env", PASSWORD_VARIABLE]).env(PASSWORD_VARIABLE, password);
    } else if !what.starts_with("binding") && !what.starts_with("signaling") {
        command.args(["--user", user]);
        if !what.contains("--rest-secret-file") {
            command.args(["--password-env", PASSWORD_VARIABLE]).env(PASSWORD_VARIABLE, password);
        }
    }
    command.output().unwrap()
}

fn report(server: SocketAddr, login: (&str, &str), what: &str) -> Value {
    let output = load(server, login, &format!("{what} --json"));
    assert!(output.status.success(), "{what}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{what}: {error}: {output:?}"))
}

/// Its output after a failure.
fn failure(server: SocketAddr, login: (&str, &str), what: &str) -> String {
    let output = load(server, login, what);
    assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn assert_nothing_lost(server: SocketAddr, login: (&str, &str), what: &str) {
    let report = report(server, login, &format!("{what} --rate 400 --seconds 1 --warm-up 0"));
    assert!(report["sent"].as_u64().unwrap() >= 200, "{what}: {report}");
    assert_eq!(report["received"], report["sent"], "{what}: {report}");
    assert_eq!(report["misdelivered"], 0, "{what}: {report}");
    let latency = &report["latency_us"];
    let [p50, p99, max] = ["p50", "p99", "max"].map(|name| latency[name].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{what}: {report}");
}

fn assert_all_ways_lose_nothing(server: SocketAddr, login: (&str, &str)) {
    assert_nothing_lost(server, login, "binding --sockets 4");
    assert_nothing_lost(server, login, "binding --sockets 4 --transport tcp");
    for way in WAYS {
        assert_nothing_lost(server, login, &format!("relay --allocations 6 {way}"));
    }
}

#[test]
fn our_server_loses_nothing_at_a_low_rate() {
    let test_server = TestServer::on_loopback(ALLOW);
    assert_all_ways_lose_nothing(test_server.address, (USER, PASSWORD));
}

#[test]
fn over_ipv6_clients_and_peers_have_addresses_of_that_family() {
    let test_server = TestServer::at(&[Ipv6Addr::LOCALHOST.into()], "allow_peers = [\"::1/128\"]");
    for way in ["--direction echo", "--peers clients --indications"] {
        assert_nothing_lost(test_server.address, (USER, PASSWORD), &format!("relay --allocations 4 {way}"));
    }
}

#[test]
fn coturn_loses_nothing_at_a_low_rate() {
    if !tools::have(&["turnserver"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports().to_string();
    let mut coturn = Command::new("turnserver");
    coturn
        .args(["-n", "-a", "-u", "u:p", "-r", "r", "-L", "127.0.0.1", "-E", "127.0.0.1", "-p", &port])
        .args(["--no-tls", "--no-dtls", "--allow-loopback-peers", "--no-cli", "--log-file", "stdout"])
        .arg("--userdb")
        .arg(folder.path().join("users"))
        .arg("--pidfile")
        .arg(folder.path().join("pid"));
    let coturn = Proc::start("turnserver", coturn, Stdout::Lines);
    let server = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !load(server, ("", ""), "binding --rate 10 --seconds 1 --warm-up 0").status.success() {
        assert!(Instant::now() < deadline, "{}", coturn.printed());
    }
    assert_all_ways_lose_nothing(server, ("u", "p"));
    let made = report(server, ("u", "p"), "allocate --count 50");
    assert_eq!(made["allocations"], 50);
    assert!(failure(server, ("u", "wrong"), "allocate").contains("the server refused these credentials"));
}

#[test]
fn a_window_is_kept_full_and_the_servers_cpu_time_is_reported() {
    let test_server = TestServer::on_loopback(ALLOW);
    let pid = test_server.process.id();
    for what in ["binding", "relay --allocations 4 --direction both --peers clients"] {
        let what = format!("{what} --window 8 --seconds 1 --warm-up 0 --pid {pid} --max-loss 1");
        let report = report(test_server.address, (USER, PASSWORD), &what);
        assert!(report["packets_per_second"].as_f64().unwrap() > 500.0, "{report}");
        assert!(report["server_cpu"]["us_each"].as_f64().unwrap() > 0.1, "{report}");
    }
}

#[test]
fn allocations_are_released() {
    let test_server = TestServer::on_loopback(ALLOW);
    for transport in ["udp", "tcp", "udp"] {
        let what = format!("allocate --count 20 --transport {transport} --pid {}", test_server.process.id());
        let made = report(test_server.address, (USER, PASSWORD), &what);
        assert_eq!(made["allocations"], 20);
        assert!(made["server_cpu"]["us_each"].as_f64().unwrap() > 1.0, "{made}");
    }
}

#[test]
fn an_interrupted_load_releases_its_allocations() {
    let test_server = TestServer::on_loopback("");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", test_server.process.id())).unwrap().count();
    // What the start has still open goes soon.
    let before = wait_until_steady(Duration::from_secs(20), Duration::from_secs(1), descriptors);
    for _ in 0..2 {
        let mut holding = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        holding.args(["load", "allocate", "--count", "120", "--hold", "--seconds", "600", "--json"]);
        holding.args(["--user", USER, "--password-env", PASSWORD_VARIABLE]).env(PASSWORD_VARIABLE, PASSWORD);
        holding.args(["--server", &test_server.address.to_string()]);
        let mut holding = Proc::start("ginnel load", holding, Stdout::Lines);
        wait_for(Duration::from_secs(20), || {
            if descriptors() >= before + 120 { Ok(()) } else { Err(holding.printed()) }
        });
        // 120 of the user's 128 are taken.
        assert!(failure(test_server.address, (USER, PASSWORD), "allocate --count 10").contains("486"));
        holding.terminate();
        holding.succeed(Duration::from_secs(10));
        assert_eq!(holding.lines(|line| line.contains("\"allocations\":120").then_some(())).len(), 1);
    }
}

#[test]
fn the_highest_rate_is_found_and_the_server_measured_at_half_of_it() {
    let test_server = TestServer::on_loopback(ALLOW);
    for what in ["binding --sockets 4", "relay --allocations 4"] {
        // Half may be lost: what a busy machine bears must be found, whatever it is.
        let found = report(
            test_server.address,
            (USER, PASSWORD),
            &format!("{what} --search=50 --trial 0.1 --seconds 1 --warm-up 0"),
        );
        let highest = found["highest_rate"].as_u64().unwrap();
        let trials = found["trials"].as_array().unwrap();
        assert!((1..=24).contains(&trials.len()), "{found}");
        assert!(trials.iter().any(|trial| trial["rate"] == highest && trial["passed"] == true), "{found}");
        assert_eq!(found["at_half"]["rate"], highest / 2, "{found}");
        assert!(found["at_half"]["received"].as_u64().unwrap() > 0, "{found}");
    }
}

#[test]
fn several_processes_share_a_load_and_report_as_one() {
    let test_server = TestServer::on_loopback(ALLOW);
    let login = (USER, PASSWORD);
    let pid = test_server.process.id();
    for what in ["binding --sockets 5", "relay --allocations 7", "relay --allocations 8 --peers clients"] {
        let what = format!("{what} --processes 3 --rate 400 --seconds 1 --warm-up 0 --pid {pid}");
        let report = report(test_server.address, login, &what);
        assert!(report["sent"].as_u64().unwrap() >= 200, "{report}");
        assert_eq!((&report["received"], &report["misdelivered"]), (&report["sent"], &0.into()), "{report}");
        assert_eq!((&report["processes"], &report["rate"]), (&3.into(), &400.into()), "{report}");
        assert!(report["server_cpu"]["us_each"].as_f64().unwrap() > 0.1, "{report}");
    }
    let made = report(test_server.address, login, &format!("allocate --count 20 --processes 3 --pid {pid}"));
    assert_eq!(made["allocations"], 20);
    assert!(made["server_bytes_each"].as_f64().is_some(), "{made}");
    let error = failure(test_server.address, login, "allocate --count 140 --processes 2");
    assert!(error.contains("turn.allocations_per_user"), "{error}");
    let error = failure(test_server.address, login, "allocate --count 2 --processes 3");
    assert!(error.contains("at most --count"), "{error}");
}

#[test]
fn processes_of_a_load_end_with_the_one_that_started_them() {
    let test_server = TestServer::on_loopback("");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", test_server.process.id())).unwrap().count();
    let before = descriptors();
    let await_descriptors = |expected: &dyn Fn(usize) -> bool| {
        wait_for(Duration::from_secs(20), || match descriptors() {
            count if expected(count) => Ok(()),
            count => Err(format!("{count} descriptors, {before} before")),
        });
    };
    let mut holding = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    holding.args("load allocate --count 30 --processes 3 --hold --seconds 600 --user".split(' '));
    holding.args([USER, "--password-env", PASSWORD_VARIABLE]).env(PASSWORD_VARIABLE, PASSWORD);
    holding.args(["--server", &test_server.address.to_string()]);
    let mut holding = holding.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The server may have closed some of its own since they were counted.
    await_descriptors(&|now| now >= before + 25);
    holding.kill().unwrap();
    holding.wait().unwrap();
    await_descriptors(&|now| now < before + 10);
}

#[test]
fn clients_may_have_sockets_of_their_own_on_loopback_too() {
    let test_server = TestServer::on_loopback(ALLOW);
    for way in ["--direction both", "--direction echo --peers clients --burst 4"] {
        assert_nothing_lost(
            test_server.address,
            (USER, PASSWORD),
            &format!("relay --allocations 6 --own-sockets {way}"),
        );
    }
}

#[test]
fn credentials_are_minted_from_a_shared_secret() {
    let test_server = TestServer::on_loopback(&format!("{ALLOW}\nrest_secret = \"north-north-north\""));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "north-north-north\n").unwrap();
    let what = format!("allocate --count 3 --rest-secret-file {}", secret.path().display());
    assert_eq!(report(test_server.address, ("load", ""), &what)["allocations"], 3);
}

#[test]
fn a_public_server_is_not_loaded_without_confirmation() {
    let public = SocketAddr::from(([203, 0, 113, 1], 3478));
    for what in ["binding", "allocate", "relay", "relay --transport tcp"] {
        let began = Instant::now();
        let error = failure(public, (USER, PASSWORD), what);
        assert!(error.contains("--yes") && error.contains("nothing was sent"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(3), "{what} has tried all the same");
    }
}

#[test]
fn failures_of_a_load_name_the_remedy() {
    let test_server = TestServer::on_loopback("");
    let valid = (USER, PASSWORD);
    for (login, what, expected) in [
        ((USER, "wrong"), "allocate", "the server refused these credentials (401"),
        (("nobody", PASSWORD), "relay", "the server refused these credentials (401"),
        (valid, "allocate --count 140 --concurrency 4", "turn.allocations_per_user"),
        (valid, "relay", "turn.allow_peers"),
        (valid, "relay --size 11", "--size must be 12 to 60000"),
        (valid, "relay --allocations 0", "--allocations must be 1 to"),
        (valid, "binding --seconds 4000", "at most 3600"),
        (valid, "binding --pid 4294967295", "process 4294967295 cannot be watched"),
        (valid, "binding --cpu 1000", "cannot run on processor 1000"),
        ((USER, ""), "allocate", "not set, or empty"),
    ] {
        let error = failure(test_server.address, login, what);
        assert!(error.contains(expected), "{what}: {error}");
    }
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_ports()));
    for what in ["binding", "allocate", "relay --transport tcp"] {
        let error = failure(nobody, valid, what);
        assert!(error.contains("nothing listens on"), "{what}: {error}");
    }
}

/// Rates that no load of these tests reaches.
const PLENTY: &str = "[signaling.limits]\nper_source = { burst = 1e6, per_second = 1e6 }\nper_pair = { burst = 1e6, per_second = 1e6 }";

#[test]
fn all_calls_of_clients_by_udp_and_by_websocket_are_answered() {
    let test_server = TestServer::on_loopback(PLENTY);
    for via in ["udp", "udp --own-sockets --rate 5", "ws", "ws --window 2"] {
        let rate = if via.contains("--") { "" } else { "--rate 100" };
        let pid = test_server.process.id();
        let what = format!("signaling --clients 8 --via {via} {rate} --seconds 1 --warm-up 0 --pid {pid}");
        let report = report(test_server.address, ("", ""), &what);
        let calls = &report["calls"];
        assert!(calls["answered"].as_u64().unwrap() >= 4, "{via}: {report}");
        assert_eq!(calls["answered"], calls["begun"], "{via}: {report}");
        assert_eq!((&calls["misdelivered"], &report["lost_tags"]), (&0.into(), &0.into()), "{via}: {report}");
        let [p50, max] = ["p50", "max"].map(|name| calls["latency_us"][name].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= max, "{via}: {report}");
        assert!(calls["server_cpu"]["us_each"].as_f64().unwrap() > 0.1, "{via}: {report}");
    }
}

#[test]
fn signalling_clients_stay_registered_and_the_servers_memory_is_reported() {
    let test_server = TestServer::on_loopback(PLENTY);
    for via in ["udp", "ws"] {
        let pid = test_server.process.id();
        let what = format!("signaling --clients 300 --via {via} --seconds 1 --warm-up 0 --pid {pid}");
        let report = report(test_server.address, ("", ""), &what);
        assert_eq!((&report["clients"], &report["calls"]), (&300.into(), &Value::Null), "{report}");
        assert!(report["server_bytes_each"].as_f64().unwrap() > 1.0, "{report}");
    }
}

#[test]
fn a_load_names_the_limit_of_a_server_that_admits_no_more_clients() {
    let test_server = TestServer::on_loopback("[signaling.limits]\ntags = 5\nconnections = 5");
    let run = |what: &str| failure(test_server.address, ("", ""), what);
    let closed = run("signaling --clients 8 --via ws");
    assert!(closed.contains("connections and connections_per_network"), "{closed}");
    for (what, expected) in [
        ("signaling --clients 0", "--clients must be 1 to"),
        ("signaling --clients 1 --rate 5", "at least 2"),
        ("signaling --clients 2 --heartbeat 0", "--heartbeat must be"),
        ("signaling --clients 2 --rate 0", "--rate must be"),
        ("signaling --clients 2 --key nobodys-key-at-all", "another --key"),
    ] {
        let error = run(what);
        assert!(error.contains(expected), "{what}: {error}");
    }
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_ports()));
    for via in ["udp", "ws"] {
        let error = failure(nobody, ("", ""), &format!("signaling --clients 2 --via {via}"));
        assert!(error.contains("nothing listens on"), "{via}: {error}");
    }
    let public = SocketAddr::from(([203, 0, 113, 1], 3478));
    let error = failure(public, ("", ""), "signaling");
    assert!(error.contains("--yes") && error.contains("nothing was sent"), "{error}");
}

const GATEWAY_KEY: &str = "the key of a test's gateway";

fn server_with_gateway() -> (TestServer, [(&'static str, u16); 2]) {
    let (md5, hmac) = (free_ports(), free_ports());
    let test_server = TestServer::on_loopback(&format!(
        "[gateway]\nenabled = true\nserver_listen = [\"127.0.0.1\"]\nserver_port = {md5}\nhmac_port = {hmac}\n\
         key = \"{GATEWAY_KEY}\"\n[gateway.limits]\nqueue = 131072\n[gateway.times]\npause = 0.5"
    ));
    (test_server, [("md5", md5), ("hmac", hmac)])
}

#[test]
fn all_gateway_messages_arrive_except_those_to_a_client_that_does_not_read() {
    let (test_server, listeners) = server_with_gateway();
    for (handshake, port) in listeners {
        let what = format!(
            "gateway --clients 20 --each 4 --size 100,102400 --non-reading 20 --seconds 3 --warm-up 0 \
             --handshake {handshake} --servers-at 127.0.0.1:{port} --pid {}",
            test_server.process.id()
        );
        let report = report(test_server.address, ("", GATEWAY_KEY), &what);
        let count = |name: &str| report[name].as_u64().unwrap();
        for nothing in ["lost", "doubled", "out_of_order", "misdelivered", "damaged", "closed", "dropped"] {
            assert_eq!(count(nothing), 0, "{nothing}: {report}");
        }
        assert_eq!((count("virtual_connections"), count("non_reading_clients")), (80, 1), "{report}");
        assert!(count("received") > 2000 && count("received") < count("sent"), "{report}");
        assert!(report["memory"]["peak"].as_u64().unwrap() > 0, "{report}");
    }
}

#[test]
fn a_load_names_the_limit_of_a_gateway_that_admits_nobody() {
    let (test_server, [(_, md5), (_, hmac)]) = server_with_gateway();
    let run = |key: &str, what: &str| {
        failure(test_server.address, ("", key), &format!("gateway --clients 2 {what}"))
    };
    let right = format!("--servers-at 127.0.0.1:{md5}");
    for (key, what, expected) in [
        (GATEWAY_KEY, format!("--each 9 --servers 1 {right}"), "gateway.limits.per_client"),
        ("not the key of this gateway", right.clone(), "key right?"),
        (
            "not the key of this gateway",
            format!("--handshake hmac --servers-at 127.0.0.1:{hmac}"),
            "key right?",
        ),
        ("too short a key", right.clone(), "at least 16 bytes"),
        (GATEWAY_KEY, format!("--size 19 {right}"), "--size must be at least 20"),
        (GATEWAY_KEY, "--servers-at 203.0.113.1:3480".to_owned(), "--yes"),
    ] {
        let error = run(key, &what);
        assert!(error.contains(expected), "{what}: {error}");
    }
}
