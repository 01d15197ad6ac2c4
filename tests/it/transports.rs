//! Transports of STUN and TURN beside plain UDP and TCP: TLS with ALPN, DTLS, WebSocket, PROXY headers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::authority::Authority;
use crate::proc::{Proc, Stdout};
use crate::test_server::{Lines, PASSWORD, TestServer, USER};
use crate::tools;

const TIMEOUT: Duration = Duration::from_secs(20);
const BINDING: &[u8; 20] = b"\0\x01\0\0\x21\x12\xA4\x42transaction!";

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Sends a Binding request; returns the client's address as the server sees it, over IPv4.
fn mapped(stream: &mut (impl Read + Write)) -> SocketAddr {
    stream.write_all(BINDING).unwrap();
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..2], [1, 1], "no success: {head:?}");
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
    stream.read_exact(&mut body).unwrap();
    let at = body.windows(4).position(|start| start == [0, 0x20, 0, 8]).unwrap() + 4;
    let port = u16::from_be_bytes([body[at + 2] ^ 0x21, body[at + 3] ^ 0x12]);
    let ip: Vec<u8> = body[at + 4..at + 8].iter().zip(&BINDING[4..]).map(|(a, b)| a ^ b).collect();
    SocketAddr::from((<[u8; 4]>::try_from(ip).unwrap(), port))
}

/// A client that trusts only `authority`.
fn client_config(authority: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.root()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_root_certificates(roots).with_no_client_auth()
}

/// A TLS client on `stream` that starts the handshake with its first bytes.
fn tls_with(stream: TcpStream, config: ClientConfig) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

pub(crate) fn tls(stream: TcpStream, authority: &Authority) -> StreamOwned<ClientConnection, TcpStream> {
    tls_with(stream, client_config(authority))
}

/// Returns whether the server closes a connection that begins with `start`, without sending a byte.
fn is_closed(address: SocketAddr, start: &[u8]) -> bool {
    let mut stream = connect(address);
    stream.write_all(start).unwrap();
    let mut answer = Vec::new();
    // A reset is a close, too.
    stream.read_to_end(&mut answer).ok();
    answer.is_empty()
}

#[test]
fn a_real_certificate_is_shown_on_both_ports_and_turns_is_offered_for_it() {
    let authority = Authority::new();
    let test_server = TestServer::with_tls(Lines::default(), Some(&authority));
    for address in [test_server.tls, test_server.address] {
        let mut stream = tls(connect(address), &authority);
        let own = stream.sock.local_addr().unwrap();
        assert_eq!(mapped(&mut stream), own);
        let mut page = tls(connect(address), &authority);
        page.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        page.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok\n"), "{answer}");
    }
    let ice = test_server.printed_ice();
    assert!(ice.contains(&format!("turns:127.0.0.1:{}?transport=tcp", test_server.tls.port())), "{ice}");
}

#[test]
fn no_turns_url_is_offered_for_a_self_signed_certificate() {
    let test_server = TestServer::with_tls(Lines::default(), None);
    let ice = test_server.printed_ice();
    assert!(ice.contains("turn:127.0.0.1") && !ice.contains("turns:") && !ice.contains("stuns:"), "{ice}");
}

#[test]
fn unknown_protocols_and_nested_tls_are_closed_on_every_port() {
    let authority = Authority::new();
    let test_server = TestServer::with_tls(Lines::default(), Some(&authority));
    for address in [test_server.tls, test_server.address] {
        assert!(is_closed(address, b"SSH-2.0-client\r\n"));
        let mut outer = tls(connect(address), &authority);
        outer.write_all(b"\x16\x03\x01\x02\0\x01\0").unwrap();
        let mut answer = Vec::new();
        outer.read_to_end(&mut answer).ok();
        assert!(answer.is_empty(), "{answer:?}");
    }
}

#[test]
fn an_unusable_certificate_stops_the_start_and_is_named() {
    let authority = Authority::new();
    let other = Authority::new();
    std::fs::write(authority.folder().join("empty.pem"), "").unwrap();
    for (certificate, key, named) in [
        (authority.folder().join("empty.pem"), authority.key(), "empty.pem"),
        (authority.folder().join("missing.pem"), authority.key(), "missing.pem"),
        (authority.certificate(), authority.certificate(), "no private key"),
        (authority.certificate(), other.key(), "certificate and key"),
    ] {
        let config = authority.folder().join("ginnel.toml");
        let state = authority.folder().join("state");
        let text = format!(
            "state = {state:?}\nlisten = [\"127.0.0.1\"]\nport = 0\n[tls]\nport = 0\ncertificate = {certificate:?}\nkey = {key:?}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        serve.args(["serve", "--config"]).arg(&config);
        let mut serve = Proc::start("ginnel serve", serve, Stdout::Lines);
        assert!(!serve.wait(TIMEOUT).success(), "{}", serve.printed());
        assert!(serve.printed().contains(named), "{named}: {}", serve.printed());
    }
}

/// What `openssl s_client` prints that offers `protocols` and then writes `input`.
fn s_client(address: SocketAddr, protocols: &str, input: &str) -> String {
    let mut client = Command::new("timeout");
    client.args([
        "20",
        "openssl",
        "s_client",
        "-ign_eof",
        "-connect",
        &address.to_string(),
        "-alpn",
        protocols,
    ]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().unwrap();
    // A client whose handshake was refused does not read any more.
    client.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = client.wait_with_output().unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

#[test]
fn openssl_negotiates_each_alpn_protocol_and_may_use_only_that_one() {
    if !tools::have(&["openssl"]) {
        return;
    }
    let test_server = TestServer::with_tls(Lines::default(), None);
    let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let page = s_client(test_server.tls, "h2,http/1.1", request);
    assert!(page.contains("ALPN protocol: http/1.1") && page.contains("200 OK"), "{page}");
    for protocol in ["stun.turn", "stun.nat-discovery"] {
        let wrong = s_client(test_server.tls, protocol, request);
        assert!(wrong.contains(&format!("ALPN protocol: {protocol}")), "{wrong}");
        assert!(!wrong.contains("200 OK"), "{wrong}");
    }
    let unknown = s_client(test_server.tls, "h2,smtp", "");
    assert!(unknown.contains("no application protocol"), "{unknown}");
}

#[test]
fn a_client_that_negotiated_http_may_not_send_stun() {
    let authority = Authority::new();
    let test_server = TestServer::with_tls(Lines::default(), Some(&authority));
    for (protocol, served) in [("stun.turn", true), ("stun.nat-discovery", true), ("http/1.1", false)] {
        let mut config = client_config(&authority);
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let mut stream = tls_with(connect(test_server.tls), config);
        if served {
            mapped(&mut stream);
        } else {
            stream.write_all(BINDING).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok();
            assert!(answer.is_empty(), "{protocol}: {answer:?}");
        }
        assert_eq!(stream.conn.alpn_protocol(), Some(protocol.as_bytes()));
    }
}

#[test]
fn a_proxy_in_the_list_names_the_client_before_plain_and_before_tls() {
    let authority = Authority::new();
    let lines = Lines { top: "trusted_proxies = [\"127.0.0.1/32\"]", ..Lines::default() };
    let test_server = TestServer::with_tls(lines, Some(&authority));
    let v1 = b"PROXY TCP4 198.51.100.7 127.0.0.1 4000 3478\r\n".to_vec();
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C"[..], &[198, 51, 100, 7, 127, 0, 0, 1, 15, 160, 13, 150]]
        .concat();
    let named: SocketAddr = "198.51.100.7:4000".parse().unwrap();
    for header in [v1, v2] {
        let mut plain = connect(test_server.address);
        plain.write_all(&header).unwrap();
        assert_eq!(mapped(&mut plain), named);
        for address in [test_server.address, test_server.tls] {
            let mut stream = connect(address);
            stream.write_all(&header).unwrap();
            assert_eq!(mapped(&mut tls(stream, &authority)), named);
        }
    }
    // A health check of the proxy's own, and no header at all.
    for header in [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..], b"PROXY UNKNOWN\r\n", b""] {
        let mut plain = connect(test_server.address);
        plain.write_all(header).unwrap();
        let own = plain.local_addr().unwrap();
        assert_eq!(mapped(&mut plain), own);
    }
    assert!(is_closed(test_server.address, b"PROXY TCP4 nonsense\r\n"));
}

#[test]
fn a_proxy_header_from_an_unlisted_source_is_refused() {
    let test_server = TestServer::on_loopback("");
    assert!(is_closed(test_server.address, b"PROXY TCP4 198.51.100.7 127.0.0.1 4000 3478\r\n"));
    assert!(is_closed(test_server.address, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"));
}

/// Runs the Python client and returns it, ended.
fn websocket_client(arguments: &[&str]) -> Proc {
    let mut client = Command::new("python3");
    client.arg(tools::client("turn_websocket.py")).args(arguments);
    let mut client = Proc::start("turn_websocket.py", client, Stdout::Lines);
    client.succeed(TIMEOUT);
    client
}

#[test]
fn a_client_relays_over_a_websocket_and_over_one_inside_tls() {
    if !tools::have(&["python3"]) {
        return;
    }
    let authority = Authority::new();
    let lines = Lines { turn: "allow_peers = [\"127.0.0.1/32\"]", ..Lines::default() };
    let test_server = TestServer::with_tls(lines, Some(&authority));
    let peer = format!("127.0.0.1:{}", test_server.address.port() + 2);
    let mut echo = Command::new("python3");
    echo.arg(tools::client("turn.py")).args(["echo", &peer]);
    let echo = Proc::start("turn.py echo", echo, Stdout::Lines);
    echo.expect("socket", TIMEOUT, |line| (line == "ready").then_some(()));
    let root = authority.root().display().to_string();
    for url in [
        format!("ws://{}/turn", test_server.address),
        format!("wss://{}/turn", test_server.address),
        format!("wss://{}/turn", test_server.tls),
    ] {
        let client = websocket_client(&["echo", &url, USER, PASSWORD, &peer, &root]);
        assert!(client.printed().contains("echoed 80"), "{}", client.printed());
    }
}

#[test]
fn a_websocket_message_that_is_not_one_frame_closes_it_with_a_code() {
    if !tools::have(&["python3"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let url = format!("ws://{}/turn", test_server.address);
    for (what, code) in [("text", "1003"), ("two", "1007"), ("half", "1007"), ("huge", "1009")] {
        let client = websocket_client(&["code", &url, what]);
        assert!(client.printed().contains(&format!("closed {code}")), "{what}: {}", client.printed());
    }
}

/// The shortest first ClientHello there is: DTLS 1.2, one cipher suite, no extension.
fn first_hello(random: u32) -> Vec<u8> {
    let mut hello = vec![22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 54];
    hello.extend_from_slice(&[1, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 42, 0xFE, 0xFD]);
    hello.extend((0..8).flat_map(|_| random.to_be_bytes()));
    hello.extend_from_slice(&[0, 0, 0, 2, 0xC0, 0x2B, 1, 0]);
    hello
}

#[test]
fn a_million_dtls_hellos_from_sixty_thousand_addresses_leave_no_memory_behind() {
    const SOURCES: u32 = 60_000;
    const EACH: u32 = 17;
    let test_server = TestServer::with_tls(Lines::default(), None);
    let mut answered = 0;
    let mut flood = |sources: std::ops::Range<u32>| {
        for number in sources {
            // A /24 of its own for each.
            let (high, low) = (number / 240, number % 240);
            let ip = Ipv4Addr::new(127, u8::try_from(low + 1).unwrap(), u8::try_from(high).unwrap(), 7);
            let socket = UdpSocket::bind((ip, 0)).unwrap();
            socket.connect(test_server.tls).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            for copy in 0..EACH {
                let hello = first_hello(number * EACH + copy);
                assert_eq!(socket.send(&hello).unwrap(), 67);
            }
            // Waits for the first answer, so that the server's queue never runs over.
            let mut answer = [0; 100];
            if let Ok(length) = socket.recv(&mut answer) {
                assert_eq!((length, answer[0], answer[13]), (60, 22, 3));
                answered += 1;
            }
        }
    };
    flood(0..1000);
    let before = test_server.resident_kib();
    flood(0..SOURCES);
    let after = test_server.resident_kib();
    assert!(after.saturating_sub(before) < 4096, "{before} KiB before, {after} KiB after");
    assert!(answered > SOURCES * 9 / 10, "{answered} answers");
}
