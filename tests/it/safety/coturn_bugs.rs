//! Bugs of coturn 4.6 or 4.17 that this server does not have.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ginnel::stun::{Builder, Class, Message, Method, TransactionId, attr};
use serde_json::{Value, json};

use crate::raw_turn::{RawTurnClient, by_udp};
use crate::test_server::{Lines, PASSWORD, TestServer, USER};
use crate::tools;

const METHODS: [Method; 5] =
    [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];

fn server_and_client() -> (TestServer, RawTurnClient) {
    let test_server = TestServer::on_loopback("allow_peers = [\"127.0.0.1/32\"]");
    let client = RawTurnClient::allocate(Ipv4Addr::LOCALHOST, test_server.address);
    (test_server, client)
}

/// What every one of [`METHODS`] needs, so that nothing else is wrong with the request.
fn complete(request: Builder) -> Builder {
    request
        .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
        .xor_address(attr::XOR_PEER_ADDRESS, ([127, 0, 0, 1], 9).into())
}

fn error_code(answer: &[u8]) -> Option<u16> {
    Message::parse(answer).unwrap().unverified().error_code()
}

#[test]
fn an_attribute_past_the_message_end_gets_no_success() {
    let (_server, mut client) = server_and_client();
    for method in METHODS {
        let sound = match method {
            Method::BINDING => client.begin(method),
            _ => complete(client.begin(method)),
        };
        // The last attribute's length passes the end of the message, with and without credentials.
        let mut unsigned = sound.clone().attribute(attr::LIFETIME, &[0, 0, 2, 88]).finish();
        let length_at = unsigned.len() - 5;
        unsigned[length_at] = 200;
        let mut signed = client.sign(sound.attribute(attr::LIFETIME, &[0, 0, 2, 88])).finish();
        let integrity_length_at = signed.len() - 21;
        assert_eq!(signed[integrity_length_at], 20);
        signed[integrity_length_at] = 24;
        for message in [unsigned, signed] {
            let answer = client.request_once(&message);
            let class = answer.as_deref().map(|answer| Message::parse(answer).unwrap().class());
            assert_ne!(class, Some(Class::Success), "{method:?}");
        }
    }
    // It was not silent for another reason.
    let refreshed = client.request_signed(Method::REFRESH, |request| request);
    assert_eq!(Message::parse(&refreshed).unwrap().class(), Class::Success);
}

#[test]
fn an_empty_or_odd_peer_address_is_a_bad_request() {
    let (_server, mut client) = server_and_client();
    let whole = [0, 1, 0x12, 0x12, 0x5e, 0x12, 0xa4, 0x43];
    for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        for value in
            [&[][..], &whole[..4], &whole[..7], &[&whole[..], &[0; 4]].concat(), &[0, 3, 0, 9, 127, 0, 0, 1]]
        {
            let answer = client.request_signed(method, |request| {
                request
                    .attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
                    .attribute(attr::XOR_PEER_ADDRESS, value)
            });
            assert_eq!(error_code(&answer), Some(400), "{method:?} {value:?}");
        }
        // A sound one beside it does not make it better.
        if method == Method::CREATE_PERMISSION {
            let answer = client
                .request_signed(method, |request| complete(request).attribute(attr::XOR_PEER_ADDRESS, &[]));
            assert_eq!(error_code(&answer), Some(400));
        }
        let answer = client.request_signed(method, complete);
        assert_eq!(Message::parse(&answer).unwrap().class(), Class::Success, "{method:?}");
    }
}

fn is_success(answer: &[u8]) -> bool {
    Message::parse(answer).unwrap().class() == Class::Success
}

#[test]
fn after_refresh_0_a_new_allocation_is_granted_at_once() {
    let (_server, mut client) = server_and_client();
    for _ in 0..20 {
        let ended =
            client.request_signed(Method::REFRESH, |request| request.attribute(attr::LIFETIME, &[0; 4]));
        assert!(is_success(&ended));
        for method in [Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
            assert_eq!(error_code(&client.request_signed(method, complete)), Some(437), "{method:?}");
        }
        let allocated = client.request_signed(Method::ALLOCATE, by_udp);
        assert!(is_success(&allocated), "{:?}", error_code(&allocated));
    }
}

#[test]
fn without_an_allocation_a_denied_peer_is_a_mismatch() {
    let test_server = TestServer::on_loopback("");
    let mut client = RawTurnClient::new(Ipv4Addr::LOCALHOST, test_server.address);
    for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        assert_eq!(error_code(&client.request_signed(method, complete)), Some(437), "{method:?}");
        assert_eq!(
            error_code(&client.request_signed(method, |request| request)),
            Some(437),
            "bare {method:?}"
        );
    }
}

#[test]
fn an_unknown_transport_gets_442() {
    let test_server = TestServer::on_loopback("");
    let mut client = RawTurnClient::new(Ipv4Addr::LOCALHOST, test_server.address);
    for protocol in [0, 1, 58, 132, 255] {
        let answer = client.request_signed(Method::ALLOCATE, |request| {
            request.attribute(attr::REQUESTED_TRANSPORT, &[protocol, 0, 0, 0])
        });
        assert_eq!(error_code(&answer), Some(442), "{protocol}");
    }
}

#[test]
fn a_send_to_port_0_does_not_end_relaying() {
    let (_server, mut client) = server_and_client();
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let peer_address = peer.local_addr().unwrap();
    let permitted = client.request_signed(Method::CREATE_PERMISSION, |request| {
        request.xor_address(attr::XOR_PEER_ADDRESS, peer_address)
    });
    assert!(is_success(&permitted));
    let send = |to: SocketAddr, data: &[u8]| {
        let indication = Builder::new(Class::Indication, Method::SEND, TransactionId::new([1; 12]));
        indication.xor_address(attr::XOR_PEER_ADDRESS, to).attribute(attr::DATA, data).finish()
    };
    for round in 0..20_u8 {
        client.send(&send(SocketAddr::new(peer_address.ip(), 0), b"nowhere"));
        client.send(&send(peer_address, &[round]));
        let mut buffer = [0; 64];
        let len = peer.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], [round]);
    }
}

/// What `turn_edges.py` finds at a server that relays to its own host, and has two workers; `None` where it cannot run.
fn edges(verb: &str) -> Option<Value> {
    tools::have(&["python3"]).then(|| {
        let lines = Lines { top: "workers = 2", turn: "allow_peers = [\"127.0.0.1/32\"]" };
        let test_server = TestServer::with(&[Ipv4Addr::LOCALHOST.into()], lines);
        test_server.report("turn_edges.py", &[verb, &test_server.address.to_string(), USER, PASSWORD])
    })
}

#[test]
fn after_refresh_0_nothing_passes_to_or_from_a_peer() {
    let Some(found) = edges("ended") else { return };
    assert_eq!(found, json!({"before": 20, "leaked": 0, "refused": 20, "again": 20}));
}

#[test]
fn the_longest_frames_keep_the_framing_of_a_stream() {
    let Some(found) = edges("framing") else { return };
    let kept = json!(["0x101", 200]);
    let expected = json!({"channel data without a channel": kept, "channel data": kept, "message": kept});
    assert_eq!(found, expected);
}

#[test]
fn unroutable_packets_do_not_end_relaying() {
    let Some(found) = edges("nowhere") else { return };
    let expected = json!({
        "permitted": [200, 200, 200, 200, 200],
        "bound": [200, 400, 200, 400, 200],
        "channel": 20,
        "send": 20,
        "refresh": 200,
    });
    assert_eq!(found, expected);
}

/// Even where the operator lets clients reach the server's own host. `turn_tcp.py` tries the same by Connect.
#[test]
fn the_servers_own_listeners_cannot_be_reached_through_the_relay() {
    let Some(found) = edges("listeners") else { return };
    // A permission names no port, and relayed addresses have the server's own IP address here: that one is granted.
    assert_eq!(found, json!({"permitted": [200, 403], "bound": [403], "answered": 0}));
}
