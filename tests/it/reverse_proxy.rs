//! The server behind an HTTP reverse proxy: client addresses, limits, and what a forwarded request may not do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::proc::{Proc, Stdout};
use crate::test_server::{Lines, TestServer, free_ports};
use crate::{signaling_client, tools};

const TIMEOUT: Duration = Duration::from_secs(20);
const TRUSTED: &str = "trusted_proxies = [\"127.0.0.1/32\"]";
const TWO_EACH: &str = "[signaling.limits]\nconnections_per_network = 2";
/// The close reason of a WebSocket over the limit.
const REASON: &str = "limit reached: signaling.limits.connections_per_network";

fn test_server(top: &str, rest: &str) -> TestServer {
    TestServer::with(&[Ipv4Addr::LOCALHOST.into()], Lines { top, turn: rest })
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// The status of a request with these header lines.
fn status(server: SocketAddr, request: &str, headers: &str) -> u16 {
    let mut stream = connect(server);
    write!(stream, "{request} HTTP/1.1\r\nHost: {server}\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
}

type Socket = WebSocket<TcpStream>;

/// Opens a WebSocket with one more header.
fn open(at: SocketAddr, path: &str, header: Option<(&'static str, &str)>) -> tungstenite::Result<Socket> {
    let mut request = format!("ws://{at}{path}").into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    match tungstenite::client(request, connect(at)) {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::HandshakeError::Failure(error)) => Err(error),
        Err(tungstenite::HandshakeError::Interrupted(_)) => panic!("no answer"),
    }
}

/// Registers over a WebSocket; returns the reason of the close where there is none.
fn register(socket: &mut Socket) -> Result<(), (u16, String)> {
    // One that is closed already may not take it.
    socket.send(Message::text(json!({"t": 1, "mid": 1}).to_string())).ok();
    loop {
        match socket.read().unwrap() {
            Message::Text(text) => {
                let answer: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(answer["code"], 200, "{answer}");
                return Ok(());
            }
            Message::Close(Some(close)) => return Err((close.code.into(), close.reason.to_string())),
            Message::Close(None) => return Err((0, String::new())),
            _ => {}
        }
    }
}

#[test]
fn clients_behind_a_trusted_proxy_have_their_own_limits_and_learn_which_one_they_reached() {
    let test_server = test_server(TRUSTED, TWO_EACH);
    let mut kept = Vec::new();
    for (header, admitted) in [
        ("192.0.2.1", true),
        ("192.0.2.1", true),
        ("192.0.2.2", true),
        // What the client has written itself stands on the left.
        ("192.0.2.77, 192.0.2.1", false),
        ("192.0.2.3, 127.0.0.1", true),
        ("192.0.2.3", true),
        ("192.0.2.3", false),
    ] {
        let mut socket = open(test_server.address, "/ws", Some(("x-forwarded-for", header))).unwrap();
        let refused = (1013, REASON.to_owned());
        assert_eq!(register(&mut socket), if admitted { Ok(()) } else { Err(refused) }, "{header}");
        kept.push(socket);
    }
    let mut socket =
        open(test_server.address, "/ws", Some(("forwarded", "for=\"192.0.2.1:99\";proto=https"))).unwrap();
    assert!(register(&mut socket).is_err(), "the other header counts as much");
}

#[test]
fn forwarding_headers_of_untrusted_sources_are_ignored() {
    let test_server = test_server("trusted_proxies = [\"127.0.0.2/32\"]", TWO_EACH);
    let mut kept = Vec::new();
    for (header, admitted) in [("192.0.2.1", true), ("192.0.2.2", true), ("192.0.2.3", false)] {
        let mut socket = open(test_server.address, "/ws", Some(("x-forwarded-for", header))).unwrap();
        assert_eq!(register(&mut socket).is_ok(), admitted, "{header}");
        kept.push(socket);
    }
}

#[test]
fn a_forwarded_request_is_always_limited_and_cannot_read_metrics() {
    // All sources are unlimited and may read the metrics, but not through a proxy.
    let everybody = "metrics_from = [\"0.0.0.0/0\"]\ntrusted_proxies = [\"127.0.0.1/32\"]";
    let limits = "[limits]\nunlimited_from = [\"0.0.0.0/0\"]\nconnections_per_address = 1";
    let test_server = test_server(everybody, limits);
    let mut kept = Vec::new();
    let header = Some(("x-forwarded-for", "192.0.2.1"));
    kept.push(open(test_server.address, "/turn", header).unwrap());
    let refused = open(test_server.address, "/turn", header).map(|_| ());
    assert!(matches!(refused, Err(tungstenite::Error::Http(response)) if response.status() == 429));
    for _ in 0..3 {
        kept.push(open(test_server.address, "/turn", None).unwrap());
    }
    assert_eq!(status(test_server.address, "GET /metrics", ""), 200);
    let admin = format!("Authorization: Bearer {}\r\n", test_server.output_of(&["key", "--admin"]));
    let revoke = |header: &str| {
        status(test_server.address, "POST /revoke?tag=a", &format!("{admin}{header}Content-Length: 0\r\n"))
    };
    assert_eq!(revoke(""), 200);
    for header in ["X-Forwarded-For: 192.0.2.9\r\n", "Forwarded: for=192.0.2.9\r\n", "X-Forwarded-For: x\r\n"]
    {
        assert_eq!(status(test_server.address, "GET /metrics", header), 404, "{header}");
        assert_eq!(status(test_server.address, "GET /healthz", header), 200, "{header}");
        assert_eq!(revoke(header), 403, "{header}");
    }
}

#[test]
fn empty_forwarding_headers_do_not_bypass_the_limit() {
    let test_server = test_server(TRUSTED, "[limits]\nconnections_per_address = 2");
    let mut kept = Vec::new();
    for (name, value, admitted) in [
        ("x-forwarded-for", "192.0.2.1, unknown", true),
        ("forwarded", "for=_hidden", true),
        ("x-forwarded-for", "127.0.0.1", false),
        ("forwarded", "for=_hidden", false),
        // Who is named has a count of his own.
        ("x-forwarded-for", "192.0.2.1", true),
    ] {
        let opened = open(test_server.address, "/turn", Some((name, value)));
        assert_eq!(opened.is_ok(), admitted, "{name}: {value}");
        kept.push(opened);
    }
    kept.push(open(test_server.address, "/turn", None));
    assert!(kept.iter().filter(|opened| opened.is_ok()).count() == 4, "the proxy's own requests");
}

#[test]
fn the_old_configuration_key_of_proxies_works_and_logs_its_new_name() {
    let test_server = test_server("proxy_protocol_from = [\"127.0.0.1/32\"]", TWO_EACH);
    let renamed = |line: &str| line.contains("proxy_protocol_from") && line.contains("trusted_proxies");
    assert_eq!(
        test_server.process.lines(|line| renamed(line).then_some(())).len(),
        1,
        "{}",
        test_server.process.printed()
    );
    let header = |last: u8| format!("192.0.2.{last}");
    let open = |last| open(test_server.address, "/ws", Some(("x-forwarded-for", &header(last)))).unwrap();
    let mut sockets: Vec<_> = (1..=5).map(open).collect();
    assert!(sockets.iter_mut().all(|socket| register(socket).is_ok()));
}

/// The part of `docs/reverse-proxy.md` that is in a block of `language`.
fn documented(language: &str) -> String {
    let page = include_str!("../../docs/reverse-proxy.md");
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn three_hundred_clients_connect_through_nginx_as_documented_and_the_next_one_learns_the_limit() {
    if !tools::have(&["nginx"]) {
        return;
    }
    let test_server = test_server(TRUSTED, TWO_EACH);
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports();
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    let location = documented("nginx")
        .replace("127.0.0.1:3478", &test_server.address.to_string())
        .replace("listen 443 ssl;", &format!("listen {at};"))
        .lines()
        .filter(|line| !line.trim_start().starts_with("ssl_"))
        .collect::<Vec<_>>()
        .join("\n");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};", path(name)))
        .join("\n");
    let config = format!(
        "daemon off;\nmaster_process off;\npid {};\nerror_log stderr notice;\nevents {{ worker_connections 2048; }}\n\
         http {{\naccess_log off;\n{temporary}\n{location}\n}}\n",
        path("pid")
    );
    std::fs::write(folder.path().join("nginx.conf"), &config).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.args(["-e", "stderr", "-p"]).arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
    let nginx = Proc::start("nginx", nginx, Stdout::Lines);
    nginx.expect("its start", TIMEOUT, |line| line.contains("using the \"epoll\"").then_some(()));
    let mut sockets = Vec::new();
    for client in 0..300_u16 {
        // All from this host, but each with an address of its own: 127.0.1.0 and on.
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 0).to_bits() + u32::from(client));
        let mut socket = through(from, at);
        assert_eq!(register(&mut socket), Ok(()), "{client}\n{}", nginx.printed());
        sockets.push(socket);
    }
    let first = Ipv4Addr::new(127, 0, 1, 0);
    let mut second = through(first, at);
    assert_eq!(register(&mut second), Ok(()));
    assert_eq!(register(&mut through(first, at)), Err((1013, REASON.to_owned())));
    assert_eq!(status(at, "GET /metrics", ""), 404);
    assert_eq!(status(at, "GET /healthz", ""), 200);
}

/// Opens a WebSocket from `ip`.
fn through(ip: Ipv4Addr, at: SocketAddr) -> Socket {
    let stream = signaling_client::connect(ip, at).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    tungstenite::client(format!("ws://{at}/ws"), stream).unwrap().0
}
