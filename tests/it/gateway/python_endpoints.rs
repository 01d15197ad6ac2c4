//! An independent endpoint in Python (`tests/clients/gateway.py`), over every transport and in both dialling directions.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use ginnel::gateway::client::{ClientBuilder, Endpoint, Json, Key, Raw, ServerBuilder};
use serde_json::Value;

use super::{Gateway, KEY, TIMEOUT};
use crate::authority::Authority;
use crate::proc::{Proc, Stdout};
use crate::tools;

const RUN: Duration = Duration::from_secs(90);
const SERVER: u32 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server(u32),
}

/// A listener, and the options to connect to it.
#[derive(Clone)]
struct Target {
    address: SocketAddr,
    options: Vec<String>,
}

impl Target {
    fn new(address: SocketAddr, options: &[&str]) -> Self {
        Self { address, options: options.iter().map(ToString::to_string).collect() }
    }

    fn start(&self, role: Role, action: &str, rest: &[String]) -> Proc {
        let mut python = Command::new("python3");
        python.arg(tools::client("gateway.py")).args(&self.options);
        if let Role::Server(id) = role {
            python.args(["--id", &id.to_string(), "--key", KEY]);
        }
        python.arg(action).arg(self.address.to_string()).args(rest);
        Proc::start(&format!("gateway.py {action} {role:?}"), python, Stdout::Lines)
    }
}

fn ready(endpoint: &Proc) {
    endpoint.expect("ready", TIMEOUT, |line| line.contains("\"ready\"").then_some(()));
}

fn report(endpoint: &mut Proc) -> Value {
    endpoint.succeed(RUN);
    endpoint.expect("report", TIMEOUT, |line| {
        serde_json::from_str::<Value>(line).ok().filter(|event| event["event"] == "report")
    })
}

/// An echoing endpoint over plain TCP; `None` without Python.
pub(super) fn echoing(gateway: &Gateway, role: Role, options: &[&str]) -> Option<Proc> {
    let address = if role == Role::Client { gateway.clients() } else { gateway.md5 };
    let endpoint =
        tools::have(&["python3"]).then(|| Target::new(address, options).start(role, "echo", &[]))?;
    ready(&endpoint);
    Some(endpoint)
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// The client dials the server and then the server another client, each with eight virtual connections, closed from either side.
fn both_directions(client: &Target, server: &Target) {
    let echo = server.start(Role::Server(SERVER), "echo", &[]);
    ready(&echo);
    let arguments = words("7 --connections 8 --messages 50 --size 3000");
    let report_json = report(&mut client.start(Role::Client, "call", &arguments));
    assert_eq!(report_json["messages"], 400, "{report_json}");
    drop(echo);
    // A waiting client sends a Ping, so that it is recognised at once.
    let mut waiting = client.clone();
    waiting.options.push("--greet".to_owned());
    let echo = waiting.start(Role::Client, "echo", &words("--close-after 50"));
    ready(&echo);
    let arguments = words("2 --connections 20 --messages 50 --size 3000 --wait-for-close");
    let report_json = report(&mut server.start(Role::Server(SERVER + 1), "call", &arguments));
    assert_eq!(report_json["messages"], 1000, "{report_json}");
    let number = echo.lines(|line| line.contains("\"accepted\"").then(|| line.clone()));
    assert!(number.len() == 20 && number.iter().all(|line| line.contains("\"remote\": 8")), "{number:?}");
}

#[test]
fn python_endpoints_exchange_data_over_plain_tcp() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("");
    let (client, server) = (Target::new(gateway.clients(), &[]), Target::new(gateway.md5, &[]));
    both_directions(&client, &server);
}

#[test]
fn a_python_server_authenticates_by_hmac_and_respects_credit() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("");
    let (client, server) = (Target::new(gateway.clients(), &[]), Target::new(gateway.hmac, &["--hmac"]));
    both_directions(&client, &server);
    // More than a window, in both directions at once.
    let echo = server.start(Role::Server(SERVER), "echo", &[]);
    ready(&echo);
    let arguments = words("7 --connections 4 --messages 200 --size 10000");
    assert_eq!(report(&mut client.start(Role::Client, "call", &arguments))["messages"], 800);
}

#[test]
fn python_endpoints_exchange_data_inside_tls_with_server_certificates() {
    if !tools::have(&["python3"]) {
        return;
    }
    let authority = Authority::new();
    let gateway = Gateway::with_tls(&authority, &authority, "");
    let [root, certificate, key] = [authority.root(), authority.certificate(), authority.key()];
    let [root, certificate, key] = [&root, &certificate, &key].map(|path| path.to_str().unwrap());
    let client = Target::new(gateway.clients(), &["--tls", root]);
    let shown = ["--tls", root, "--certificate", certificate, "--private-key", key];
    both_directions(&client, &Target::new(gateway.mutual, &shown));
    let dedicated = Target::new(gateway.test_server.tls, &["--tls", root]);
    let echo = Target::new(gateway.mutual, &shown).start(Role::Server(SERVER), "echo", &[]);
    ready(&echo);
    report(&mut dedicated.start(Role::Client, "call", &words("7")));
}

#[test]
fn a_server_without_a_trusted_certificate_never_receives_the_challenge() {
    if !tools::have(&["python3"]) {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let gateway = Gateway::with_tls(&authority, &authority, "");
    let root = authority.root();
    let root = root.to_str().unwrap();
    let (certificate, key) = (other.certificate(), other.key());
    let foreign = [
        "--tls",
        root,
        "--certificate",
        certificate.to_str().unwrap(),
        "--private-key",
        key.to_str().unwrap(),
    ];
    for options in [&foreign[..2], &foreign[..]] {
        let mut server = Target::new(gateway.mutual, options).start(Role::Server(SERVER), "echo", &[]);
        server.wait(RUN);
        assert!(!server.printed().contains("\"ready\""), "{}", server.printed());
    }
}

#[test]
fn a_certificate_for_one_server_id_admits_no_other() {
    if !tools::have(&["python3"]) {
        return;
    }
    let (authority, servers) = (Authority::new(), Authority::naming(&["server-7"]));
    let gateway = Gateway::with_tls(&authority, &servers, "");
    let [root, certificate, key] = [authority.root(), servers.certificate(), servers.key()];
    let [root, certificate, key] = [&root, &certificate, &key].map(|path| path.to_str().unwrap());
    let target =
        Target::new(gateway.mutual, &["--tls", root, "--certificate", certificate, "--private-key", key]);
    let mut other = target.start(Role::Server(SERVER + 1), "echo", &[]);
    other.expect("end", RUN, |line| line.contains("\"ended\"").then_some(()));
    other.succeed(RUN);
    let echo = target.start(Role::Server(SERVER), "echo", &[]);
    ready(&echo);
    report(&mut Target::new(gateway.clients(), &[]).start(Role::Client, "call", &words("7")));
}

async fn echo(endpoint: Endpoint<Raw>) {
    while let Ok(mut connection) = endpoint.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(message)) = connection.receive().await {
                connection.send(message).await.unwrap();
            }
        });
    }
}

/// Waits for the report without blocking the runtime.
async fn report_of(mut endpoint: Proc) -> Value {
    tokio::task::spawn_blocking(move || report(&mut endpoint)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_library_and_python_endpoints_dial_each_other() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("");
    let key = || Key::new(KEY).unwrap();
    let (md5, hmac) = (gateway.md5.to_string(), gateway.hmac.to_string());
    let plain = Target::new(gateway.clients(), &[]);
    let arguments = |remote: &str| words(&format!("{remote} --connections 8 --messages 50 --size 5000"));
    for (server, id) in [(ServerBuilder::md5(md5, 1, key()), "1"), (ServerBuilder::hmac(hmac, 2, key()), "2")]
    {
        let server = server.connect().await.unwrap();
        // A Python client dials each server.
        tokio::spawn(echo(server.clone()));
        let report_json = report_of(plain.start(Role::Client, "call", &arguments(id))).await;
        assert_eq!(report_json["messages"], 400, "{report_json}");
    }
    let servers = [Target::new(gateway.md5, &[]), Target::new(gateway.hmac, &["--hmac"])];
    let client = ClientBuilder::new(gateway.clients().to_string());
    let bytes = client.connect().await.unwrap();
    for (target, id) in servers.iter().zip([3, 4]) {
        let server = target.start(Role::Server(id), "echo", &[]);
        ready(&server);
        let texts = client.clone().codec(Json::<Vec<String>>::new()).connect().await.unwrap();
        let mut connection = texts.dial(id).await.unwrap();
        for number in 0..100 {
            let value = vec![number.to_string(); number];
            connection.send(value.clone()).await.unwrap();
            assert_eq!(connection.receive().await.unwrap(), Some(value));
        }
        let mut connection = bytes.dial(id).await.unwrap();
        connection.send(Bytes::new()).await.unwrap();
        assert_eq!(connection.receive().await.unwrap(), Some(Bytes::new()));
    }
    // The third client is dialled by Python servers.
    tokio::spawn(echo(bytes));
    for (target, id) in servers.iter().zip([3, 4]) {
        let report_json = report_of(target.start(Role::Server(id), "call", &arguments("3"))).await;
        assert_eq!(report_json["messages"], 400, "{report_json}");
    }
}

#[test]
fn a_silent_client_inside_tls_can_be_dialled() {
    if !tools::have(&["python3"]) {
        return;
    }
    let authority = Authority::new();
    let gateway = Gateway::with_tls(&authority, &authority, "");
    let root = authority.root();
    let client = Target::new(gateway.clients(), &["--tls", root.to_str().unwrap()]);
    let echo = client.start(Role::Client, "echo", &[]);
    ready(&echo);
    report(&mut Target::new(gateway.md5, &[]).start(
        Role::Server(SERVER),
        "call",
        &words("1 --connections 2"),
    ));
}

#[test]
fn python_endpoints_exchange_data_over_websocket() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("");
    let client = Target::new(gateway.clients(), &["--web", "/gateway"]);
    let server = Target::new(gateway.clients(), &["--web", "/gateway/servers", "--hmac"]);
    both_directions(&client, &server);
}

#[test]
fn python_endpoints_exchange_data_over_websocket_inside_tls() {
    if !tools::have(&["python3"]) {
        return;
    }
    let authority = Authority::new();
    let gateway = Gateway::with_tls(&authority, &authority, "");
    let root = authority.root();
    let root = root.to_str().unwrap();
    let client = Target::new(gateway.clients(), &["--tls", root, "--web", "/gateway"]);
    let server = Target::new(gateway.clients(), &["--tls", root, "--web", "/gateway/servers", "--hmac"]);
    both_directions(&client, &server);
}

/// A client that never reads, and is the gateway's first one.
fn non_reading(gateway: &Gateway, options: &[&str]) -> Proc {
    let non_reading = Target::new(gateway.clients(), options).start(Role::Client, "pause", &[]);
    ready(&non_reading);
    non_reading
}

#[test]
fn a_non_reading_endpoint_over_tls_or_websocket_loses_only_its_own_virtual_connection() {
    if !tools::have(&["python3"]) {
        return;
    }
    let authority = Authority::new();
    let root = authority.root();
    let root = root.to_str().unwrap();
    for options in [&["--tls", root][..], &["--web", "/gateway"], &["--tls", root, "--web", "/gateway"]] {
        let gateway = Gateway::with_tls(&authority, &authority, super::backpressure::SHORT_PAUSE);
        let non_reading = non_reading(&gateway, options);
        super::backpressure::assert_harms_only_itself(&gateway);
        drop(non_reading);
        gateway.assert_becomes_empty();
    }
}

#[test]
fn a_python_endpoint_stays_connected_by_pings_only() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("[gateway.times]\nping = 1");
    let answering = echoing(&gateway, Role::Client, &["--greet"]).unwrap();
    let mute = echoing(&gateway, Role::Client, &["--greet", "--mute"]).unwrap();
    mute.expect("end", RUN, |line| line.contains("\"ended\"").then_some(()));
    let mut server = super::endpoint::Endpoint::server(&gateway, SERVER);
    server.answers = true;
    // It connected first, and has sent nothing but answers since.
    let conn = server.dial(1);
    let message = super::endpoint::data(conn, b"are you there?");
    server.send(&message);
    server.expect_frames(&[message]);
    server.dial_refused(2);
    drop(answering);
}

#[test]
fn a_message_that_is_not_exactly_one_frame_closes_its_websocket() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("");
    for bytes in ["05000000 00000000", "05000000 00000000 00 05", "03000000", "", "04000000 00000000"] {
        let target = Target::new(gateway.clients(), &["--web", "/gateway", "--timeout", "30"]);
        let report_json = report(&mut target.start(Role::Client, "raw", &[bytes.to_owned()]));
        assert_eq!(report_json["ended"], true, "{bytes}: {report_json}");
    }
}

#[test]
fn a_python_client_shows_its_token() {
    if !tools::have(&["python3"]) {
        return;
    }
    let gateway = Gateway::start("require_token = true");
    let token = super::tokens::token(&gateway, &["--ttl", "600"]);
    let echo = Target::new(gateway.md5, &[]).start(Role::Server(SERVER), "echo", &[]);
    ready(&echo);
    for options in [&["--token", &token][..], &["--token", &token, "--web", "/gateway"]] {
        let client = Target::new(gateway.clients(), options);
        report(&mut client.start(Role::Client, "call", &words("7 --connections 3")));
    }
    let mut without = Target::new(gateway.clients(), &[]).start(Role::Client, "call", &words("7"));
    assert!(!without.wait(RUN).success(), "{}", without.printed());
}
