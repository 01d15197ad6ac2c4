//! The table of `docs/amplification.md`, measured.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ginnel::stun::{Builder, Class, Key, Method, TransactionId, attr};

use crate::test_server::{TestServer, USER};

/// Bytes of IP and UDP header that are counted with each datagram.
const HEADERS: usize = 28;
const PAGE: &str = include_str!("../../../docs/amplification.md");
const LAST: TransactionId = TransactionId([0x21, 0x12, 0xA4, 0x42, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);

/// A message and the most times that its answer may be larger.
type Row = (&'static str, f64, Vec<u8>);

fn request(method: Method) -> Builder {
    Builder::new(Class::Request, method, TransactionId::new(*b"twelve bytes"))
}

fn binding() -> Builder {
    request(Method::BINDING)
}

fn change(flags: u8) -> Builder {
    binding().attribute(attr::CHANGE_REQUEST, &[0, 0, 0, flags])
}

fn allocate() -> Builder {
    request(Method::ALLOCATE).attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
}

fn unknown(builder: Builder, count: u16) -> Builder {
    (0..count).fold(builder, |builder, kind| builder.attribute(0x7000 + kind, &[]))
}

fn with_peer(method: Method) -> Builder {
    request(method).xor_address(attr::XOR_PEER_ADDRESS, SocketAddr::from(([192, 0, 2, 1], 4000)))
}

fn guessed(builder: Builder) -> Builder {
    builder
        .attribute(attr::USERNAME, USER.as_bytes())
        .attribute(attr::REALM, b"ginnel")
        .attribute(attr::NONCE, b"a nonce of another server")
        .integrity(&Key::short_term("guessed"))
}

/// What a server with one address is asked over IPv4; RESPONSE-PORT names `port`.
fn rows(port: u16) -> Vec<Row> {
    let classic = |method| Builder::new(Class::Request, method, TransactionId([7; 16]));
    let guessed_key = Key::short_term("guessed");
    let response_port = || binding().attribute(attr::RESPONSE_PORT, &port.to_be_bytes());
    let rows = [
        ("Binding", 1.3, binding()),
        ("Binding, FINGERPRINT", 1.3, binding().fingerprint()),
        ("Binding, credentials", 1.3, guessed(binding())),
        ("Binding, classic", 1.3, classic(Method::BINDING)),
        ("Binding, classic, MESSAGE-INTEGRITY alone", 1.3, classic(Method::BINDING).integrity(&guessed_key)),
        ("Shared Secret, classic", 1.3, classic(Method::SHARED_SECRET)),
        ("Allocate, classic", 1.3, classic(Method::ALLOCATE)),
        ("Binding, one unknown attribute", 1.3, unknown(binding(), 1)),
        ("Binding, eight unknown attributes", 1.3, unknown(binding(), 8)),
        ("Binding, CHANGE-REQUEST without flags", 1.3, change(0)),
        ("Binding, CHANGE-REQUEST for the port", 1.3, change(2)),
        ("Binding, CHANGE-REQUEST for the address", 1.3, change(4)),
        ("Binding, CHANGE-REQUEST cut short", 1.3, binding().attribute(attr::CHANGE_REQUEST, &[0])),
        ("Binding, RESPONSE-PORT", 1.3, response_port()),
        ("Binding, PADDING of 0", 1.3, binding().attribute(attr::PADDING, &[])),
        ("Binding, PADDING of 1000", 1.3, binding().attribute(attr::PADDING, &[0; 1000])),
        ("Binding, PADDING of 4000", 1.3, binding().attribute(attr::PADDING, &[0; 4000])),
        ("Binding, PADDING and RESPONSE-PORT", 1.3, response_port().attribute(attr::PADDING, &[])),
        ("Allocate, bare", 3.0, request(Method::ALLOCATE)),
        ("Allocate, FINGERPRINT alone", 3.0, request(Method::ALLOCATE).fingerprint()),
        ("Allocate, REQUESTED-TRANSPORT", 3.0, allocate()),
        ("Allocate, eight unknown attributes", 3.0, unknown(allocate(), 8)),
        ("Allocate, MESSAGE-INTEGRITY alone", 3.0, allocate().integrity(&Key::short_term("guessed"))),
        ("Allocate, stale nonce", 3.0, guessed(allocate())),
        ("Refresh, bare", 3.0, request(Method::REFRESH)),
        ("Refresh, stale nonce", 3.0, guessed(request(Method::REFRESH))),
        ("CreatePermission, bare", 3.0, request(Method::CREATE_PERMISSION)),
        ("CreatePermission, one peer", 3.0, with_peer(Method::CREATE_PERMISSION)),
        ("ChannelBind, bare", 3.0, request(Method::CHANNEL_BIND)),
        ("ChannelBind, one peer", 3.0, with_peer(Method::CHANNEL_BIND)),
        ("Connect, bare", 3.0, request(Method(0x00A))),
        ("Connect, one peer", 3.0, with_peer(Method(0x00A))),
        ("ConnectionBind, bare", 3.0, request(Method(0x00B))),
        ("Unknown method", 3.0, request(Method(0x0FF))),
        ("Binding indication", 3.0, Builder::new(Class::Indication, Method::BINDING, LAST)),
        ("Binding response", 3.0, Builder::new(Class::Success, Method::BINDING, LAST)),
        (
            "Send indication",
            3.0,
            Builder::new(Class::Indication, Method::SEND, LAST).attribute(attr::DATA, b"data"),
        ),
    ];
    let raw: [Row; 7] = [
        ("DTLS ClientHello", 3.0, super::unauthenticated::client_hello()),
        ("Binding, length field wrong", 3.0, [&[0, 1, 0, 8], &binding().finish()[4..]].concat()),
        ("Binding, attribute past the end", 3.0, past_the_end()),
        ("ChannelData", 3.0, b"\x40\x00\x00\x04data".to_vec()),
        ("DTLS record, not a handshake", 3.0, b"\x17\xfe\xfd\0\0\0\0\0\0\0\0\0\x04data".to_vec()),
        ("Noise", 3.0, vec![0xFF; 64]),
        ("Empty datagram", 3.0, Vec::new()),
    ];
    rows.into_iter().map(|(name, most, builder)| (name, most, builder.finish())).chain(raw).collect()
}

/// A Binding request with an attribute length past the end of the message.
fn past_the_end() -> Vec<u8> {
    let mut bytes = binding().attribute(attr::USERNAME, b"user").finish();
    bytes[23] = 40;
    bytes
}

/// What is asked over IPv6.
fn rows_v6() -> Vec<Row> {
    [
        ("Binding, IPv6", 3.0, binding()),
        ("Binding, IPv6, FINGERPRINT", 3.0, binding().fingerprint()),
        ("Binding, IPv6, CHANGE-REQUEST for the port", 3.0, change(2)),
        ("Allocate, IPv6, bare", 3.0, request(Method::ALLOCATE)),
    ]
    .map(|(name, most, builder)| (name, most, builder.finish()))
    .to_vec()
}

/// What a server with two addresses is asked.
fn rows_of_two() -> Vec<Row> {
    [
        ("Binding, two addresses", 3.0, binding()),
        ("Binding, two addresses, FINGERPRINT", 3.0, binding().fingerprint()),
        (
            "Binding, two addresses, classic",
            3.0,
            Builder::new(Class::Request, Method::BINDING, TransactionId([7; 16])),
        ),
        ("Binding, two addresses, CHANGE-REQUEST for both", 3.0, change(6)),
        ("Binding, two addresses, PADDING of 1000", 3.0, binding().attribute(attr::PADDING, &[0; 1000])),
    ]
    .map(|(name, most, builder)| (name, most, builder.finish()))
    .to_vec()
}

/// The length of what comes back for `message` from `server`, to the asking socket or to `other`.
fn answer_to(message: &[u8], server: SocketAddr, other: &UdpSocket) -> Option<usize> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(message, server).unwrap();
    // One worker answers both, in their order: when the second answer is there, the first has been or never will be.
    let last = Builder::new(Class::Request, Method::BINDING, LAST).finish();
    socket.send_to(&last, server).unwrap();
    let mut buffer = [0; 65_536];
    let mut answer = None;
    loop {
        let (len, _) = socket.recv_from(&mut buffer).unwrap();
        if buffer[4..20] == LAST.0 {
            break;
        }
        assert_eq!(answer.replace(len), None, "two answers to one question");
    }
    answer.or_else(|| other.recv(&mut buffer).ok())
}

/// Measures `rows` and adds them to `table`.
fn measure(table: &mut String, rows: &[Row], server: SocketAddr, other: &UdpSocket) {
    for (name, most, message) in rows {
        let answer = answer_to(message, server, other);
        let ratio = answer.map_or(0.0, |answer| (answer + HEADERS) as f64 / (message.len() + HEADERS) as f64);
        assert!(ratio <= *most, "{name}: {} bytes ask, {answer:?} answer", message.len());
        let answer = answer.map_or("none".to_owned(), |answer| answer.to_string());
        writeln!(table, "| {name} | {} | {answer} | {ratio:.2} | {most} |", message.len()).unwrap();
    }
}

#[test]
fn every_unauthenticated_answer_has_the_documented_length() {
    let one = TestServer::at(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], "");
    let second = Ipv4Addr::new(127, 0, 0, 2);
    let two = TestServer::at(
        &[Ipv4Addr::LOCALHOST.into(), second.into()],
        &format!("[stun]\nnat_discovery = [\"127.0.0.1\", \"{second}\"]"),
    );
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let port = other.local_addr().unwrap().port();
    let mut table =
        "| message | bytes in | bytes out | ratio | at most |\n| --- | --- | --- | --- | --- |\n".to_owned();
    measure(&mut table, &rows(port), one.address, &other);
    measure(&mut table, &rows_v6(), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), one.address.port()), &other);
    measure(&mut table, &rows_of_two(), two.address, &other);
    assert!(PAGE.contains(&table), "docs/amplification.md has another table; measured:\n\n{table}");
}
