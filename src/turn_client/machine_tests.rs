//! The client against scripted responses, with a fake clock.

use super::*;
use crate::net::time::now;
use crate::stun::{
    Builder, Class, Integrity, Key, Message, Method, attr, long_term_digest, long_term_digest_sha256,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RELAYED: &str = "198.51.100.1:49152";
const PEER: &str = "203.0.113.9:7";

fn peer() -> SocketAddr {
    PEER.parse().unwrap()
}

fn config() -> TurnClientConfig {
    TurnClientConfig::new(Arc::new(LongTermCredentials::new("alice", "pw")))
}

fn client() -> TurnClient {
    TurnClient::new(config(), [7; 32])
}

fn key() -> Key {
    Key::from_bytes(&long_term_digest("alice", "r", "pw"))
}

/// The next request to be sent.
fn transmitted(client: &mut TurnClient) -> Vec<u8> {
    client.poll_transmit().unwrap()
}

fn method(request: &[u8]) -> Method {
    Message::parse(request).unwrap().method()
}

fn response(class: Class, request: &[u8]) -> Builder {
    let request = Message::parse(request).unwrap();
    Builder::new(class, request.method(), request.transaction())
}

fn handle(client: &mut TurnClient, at: Instant, response: Builder) -> Received {
    client.handle(at, &response.finish())
}

fn refuse(client: &mut TurnClient, at: Instant, code: u16) {
    let request = transmitted(client);
    handle(client, at, response(Class::Error, &request).error(code, "No"));
}

fn challenge(client: &mut TurnClient, at: Instant, code: u16, nonce: &[u8]) {
    let request = transmitted(client);
    let response = response(Class::Error, &request).error(code, "");
    handle(client, at, response.attribute(attr::REALM, b"r").attribute(attr::NONCE, nonce));
}

fn success(request: &[u8]) -> Builder {
    response(Class::Success, request)
        .xor_address(attr::XOR_RELAYED_ADDRESS, RELAYED.parse().unwrap())
        .xor_address(attr::XOR_MAPPED_ADDRESS, "192.0.2.5:5000".parse().unwrap())
        .attribute(attr::LIFETIME, &600_u32.to_be_bytes())
}

/// Grants the next request, which must be signed; returns its method.
fn grant(client: &mut TurnClient, at: Instant) -> Method {
    let request = transmitted(client);
    assert!(
        Message::parse(&request).unwrap().verify(&key()).is_some(),
        "{:?} is not signed",
        method(&request)
    );
    assert_eq!(handle(client, at, success(&request).integrity(&key())), Received::Control);
    method(&request)
}

fn allocated(at: Instant) -> TurnClient {
    allocated_with(at, config())
}

fn allocated_with(at: Instant, config: TurnClientConfig) -> TurnClient {
    let mut client = TurnClient::new(config, [7; 32]);
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    assert_eq!(grant(&mut client, at), Method::ALLOCATE);
    let mapped = Some("192.0.2.5:5000".parse().unwrap());
    assert_eq!(client.poll_event(), Some(TurnEvent::Allocated { relayed: RELAYED.parse().unwrap(), mapped }));
    client
}

fn failure(client: &mut TurnClient) -> TurnError {
    match client.poll_event() {
        Some(TurnEvent::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Lets time pass until a request is due, and returns it.
fn next_request(client: &mut TurnClient, at: &mut Instant) -> Vec<u8> {
    loop {
        if let Some(request) = client.poll_transmit() {
            return request;
        }
        *at = client.poll_timeout().unwrap();
        client.handle_timeout(*at);
    }
}

#[test]
fn a_client_answers_the_challenge_binds_a_channel_and_releases() {
    let at = now().mono;
    let mut client = allocated(at);
    client.bind_channel(at, peer()).unwrap();
    assert_eq!(grant(&mut client, at), Method::CHANNEL_BIND);
    assert_eq!(client.poll_event(), Some(TurnEvent::ChannelBound(peer())));
    client.release(at);
    assert_eq!(grant(&mut client, at), Method::REFRESH);
    assert_eq!(client.poll_event(), Some(TurnEvent::Released));
    assert_eq!((client.relayed_addresses(), client.poll_timeout()), (&[][..], None));
}

#[test]
fn permissions_and_channels_from_before_the_allocation_are_installed_after_it() {
    let at = now().mono;
    let mut client = client();
    client.create_permission(at, "203.0.113.7".parse().unwrap()).unwrap();
    client.bind_channel(at, peer()).unwrap();
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    let methods = [grant(&mut client, at), grant(&mut client, at), grant(&mut client, at)];
    assert_eq!(methods, [Method::ALLOCATE, Method::CREATE_PERMISSION, Method::CHANNEL_BIND]);
}

#[test]
fn allocation_permission_and_channel_are_renewed_before_they_expire() {
    let mut at = now().mono;
    let mut client = allocated(at);
    client.create_permission(at, "203.0.113.7".parse().unwrap()).unwrap();
    client.bind_channel(at, peer()).unwrap();
    let start = at;
    let mut last = std::collections::HashMap::new();
    while at < start + Duration::from_secs(3600) {
        let request = next_request(&mut client, &mut at);
        handle(&mut client, at, success(&request).integrity(&key()));
        if let Some(before) = last.insert(method(&request).0, at) {
            let limit = if method(&request) == Method::REFRESH { 600 } else { 300 };
            assert!(at - before < Duration::from_secs(limit), "{:?}", method(&request));
        }
    }
    assert_eq!(last.len(), 3);
}

#[test]
fn payload_is_framed_as_channel_data_or_as_send_indications() {
    let at = now().mono;
    let mut client = allocated(at);
    assert_eq!(client.encode(peer(), b"hi"), None);
    client.create_permission(at, peer().ip()).unwrap();
    assert_eq!(client.encode(peer(), b"hi"), None);
    grant(&mut client, at);
    assert_eq!(client.poll_event(), Some(TurnEvent::PermissionInstalled(peer().ip())));
    let bytes = client.encode(peer(), b"hi").unwrap();
    let indication = Message::parse(&bytes).unwrap();
    assert_eq!((indication.class(), indication.method()), (Class::Indication, Method::SEND));
    assert_eq!(indication.unverified().get(attr::DATA), Some(&b"hi"[..]));
    client.bind_channel(at, peer()).unwrap();
    grant(&mut client, at);
    assert_eq!(client.encode(peer(), b"hi").unwrap(), [0x40, 0, 0, 2, b'h', b'i']);
    client.config.transport = ClientTransport::Stream;
    assert_eq!(client.encode(peer(), b"hi").unwrap(), [0x40, 0, 0, 2, b'h', b'i', 0, 0]);
}

#[test]
fn payload_may_follow_the_request_for_a_permission_without_waiting() {
    let at = now().mono;
    let mut client = allocated(at);
    assert_eq!(client.encode_ahead(peer(), b"hello"), None);
    client.create_permission(at, peer().ip()).unwrap();
    assert_eq!(client.encode(peer(), b"hello"), None);
    let ahead = client.encode_ahead(peer(), b"hello").unwrap();
    assert_eq!(grant(&mut client, at), Method::CREATE_PERMISSION);
    assert_eq!(client.encode(peer(), b"hello").unwrap().len(), ahead.len());
}

#[test]
fn payload_of_both_framings_is_received_with_its_peer() {
    let at = now().mono;
    let mut client = allocated(at);
    client.bind_channel(at, peer()).unwrap();
    let data = Received::Data { peer: peer(), payload: 4..6 };
    assert_eq!(client.handle(at, &[0x40, 0, 0, 2, 7, 8, 0, 0]), data);
    assert_eq!(client.handle(at, &[0x40, 1, 0, 2, 7, 8]), Received::Unrelated);
    let other: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
    let header = FrameHeader::data_indication(other, 3, [1; 12]).unwrap();
    let bytes = [header.as_bytes(), &[1, 2, 3, 0]].concat();
    assert_eq!(client.handle(at, &bytes), Received::Unrelated);
    client.create_permission(at, other.ip()).unwrap();
    let Received::Data { peer, payload } = client.handle(at, &bytes) else { panic!("no data") };
    assert_eq!((peer, &bytes[payload]), (other, &[1, 2, 3][..]));
}

#[test]
fn a_server_with_sha256_gets_requests_signed_with_it() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    let request = transmitted(&mut client);
    let response = response(Class::Error, &request)
        .error(401, "")
        .attribute(attr::REALM, b"r")
        .attribute(attr::NONCE, b"obMatJos2gAAAn")
        .attribute(attr::PASSWORD_ALGORITHMS, &[0, 1, 0, 0, 0, 2, 0, 0]);
    handle(&mut client, at, response);
    let request = transmitted(&mut client);
    let message = Message::parse(&request).unwrap();
    let key = Key::new(Integrity::Sha256, &long_term_digest_sha256("alice", "r", "pw"));
    let attributes = message.verify(&key).unwrap();
    assert_eq!(attributes.get(attr::PASSWORD_ALGORITHM), Some(&[0, 2, 0, 0][..]));
    assert_eq!(attributes.get(attr::PASSWORD_ALGORITHMS), Some(&[0, 1, 0, 0, 0, 2, 0, 0][..]));
}

#[test]
fn a_challenge_without_the_algorithms_that_its_nonce_promises_is_refused() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    challenge(&mut client, at, 401, b"obMatJos2gAAAn");
    assert!(matches!(failure(&mut client), TurnError::Malformed { .. }));
}

#[test]
fn wrong_credentials_give_a_readable_error() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    challenge(&mut client, at, 401, b"n");
    assert!(failure(&mut client).to_string().starts_with("the server refused these credentials (401"));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_stale_nonce_is_replaced_a_limited_number_of_times() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    for nonce in [b"1", b"2", b"3"] {
        challenge(&mut client, at, 438, nonce);
        assert_eq!(client.challenge.as_ref().unwrap().nonce(), nonce);
    }
    challenge(&mut client, at, 438, b"4");
    assert!(matches!(failure(&mut client), TurnError::Refused { code: 438, .. }));
}

#[test]
fn a_request_is_retransmitted_as_the_rfc_says_and_then_times_out() {
    let start = now().mono;
    let mut client = client();
    client.allocate(start);
    let first = transmitted(&mut client);
    let mut times = vec![0];
    let mut at = start;
    while let Some(due) = client.poll_timeout() {
        at = due;
        client.handle_timeout(at);
        while let Some(bytes) = client.poll_transmit() {
            assert_eq!(bytes, first);
            times.push((at - start).as_millis());
        }
    }
    // RFC 8489 section 6.2.1.
    assert_eq!(times, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
    assert_eq!((at - start).as_millis(), 39_500);
    let text = failure(&mut client).to_string();
    assert!(text.starts_with("no answer to Allocate after 7 tries in 39 s"), "{text}");
}

#[test]
fn nothing_is_retransmitted_over_a_stream() {
    let mut config = config();
    config.transport = ClientTransport::Stream;
    let mut client = TurnClient::new(config, [7; 32]);
    client.allocate(now().mono);
    transmitted(&mut client);
    client.handle_timeout(client.poll_timeout().unwrap());
    assert_eq!(client.poll_transmit(), None);
    assert!(matches!(failure(&mut client), TurnError::NoResponse { transmissions: 1, .. }));
}

#[test]
fn responses_with_wrong_integrity_are_ignored() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    let request = transmitted(&mut client);
    let forged = success(&request).integrity(&Key::short_term("no"));
    assert_eq!(handle(&mut client, at, forged), Received::Unrelated);
    assert_eq!(handle(&mut client, at, success(&request)), Received::Unrelated);
    let refusal = response(Class::Error, &request).error(486, "").integrity(&Key::short_term("no"));
    assert_eq!(handle(&mut client, at, refusal), Received::Unrelated);
    assert_eq!((client.poll_event(), client.relayed_addresses().len()), (None, 0));
    handle(&mut client, at, success(&request).integrity(&key()));
    assert_eq!(client.relayed_addresses(), [RELAYED.parse().unwrap()]);
}

#[test]
fn a_refused_peer_leaves_the_allocation_and_the_other_peers() {
    let at = now().mono;
    let mut client = allocated(at);
    client.create_permission(at, "10.0.0.1".parse().unwrap()).unwrap();
    refuse(&mut client, at, 403);
    let Some(TurnEvent::PeerFailed(error)) = client.poll_event() else { panic!("no event") };
    assert!(error.to_string().contains("turn.allow_peers"), "{error}");
    client.bind_channel(at, peer()).unwrap();
    grant(&mut client, at);
    assert_eq!(client.poll_event(), Some(TurnEvent::ChannelBound(peer())));
    // It is not requested again by itself.
    assert!(!client.is_permitted("10.0.0.1".parse().unwrap()));
    assert_eq!(client.peers.all(), [TurnRequest::ChannelBind(peer())]);
}

#[test]
fn a_server_that_lost_the_allocation_ends_it() {
    let at = now().mono;
    for request in [0, 1] {
        let mut client = allocated(at);
        match request {
            0 => client.bind_channel(at, peer()).unwrap(),
            _ => {
                let due = client.poll_timeout().unwrap();
                client.handle_timeout(due);
            }
        }
        refuse(&mut client, at, 437);
        assert!(failure(&mut client).to_string().starts_with("the server no longer has the allocation"));
        assert_eq!((client.relayed_addresses().len(), client.poll_timeout()), (0, None));
        client.allocate(at);
        assert_eq!(grant(&mut client, at), Method::ALLOCATE);
    }
}

#[test]
fn a_silent_network_does_not_end_an_allocation_before_it_expires() {
    let start = now().mono;
    let mut client = allocated(start);
    let mut at = start;
    while let Some(due) = client.poll_timeout() {
        at = due;
        client.handle_timeout(at);
    }
    assert!(at - start >= Duration::from_secs(560), "{:?}", at - start);
    assert!(matches!(failure(&mut client), TurnError::NoResponse { request: TurnRequest::Refresh, .. }));
}

#[test]
fn a_channel_whose_request_was_lost_is_requested_again() {
    let mut at = now().mono;
    let mut client = allocated(at);
    client.bind_channel(at, peer()).unwrap();
    for _ in 0..7 {
        assert_eq!(method(&next_request(&mut client, &mut at)), Method::CHANNEL_BIND);
    }
    let again = next_request(&mut client, &mut at);
    assert!(matches!(client.poll_event(), Some(TurnEvent::PeerFailed(TurnError::NoResponse { .. }))));
    handle(&mut client, at, success(&again).integrity(&key()));
    assert_eq!(client.poll_event(), Some(TurnEvent::ChannelBound(peer())));
}

#[test]
fn both_address_families_are_requested_and_returned() {
    let at = now().mono;
    let mut config = config();
    config.families = AddressFamilies::Both;
    let mut client = TurnClient::new(config, [7; 32]);
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    let request = transmitted(&mut client);
    let attributes = Message::parse(&request).unwrap().unverified();
    assert_eq!(attributes.get(attr::ADDITIONAL_ADDRESS_FAMILY), Some(&[2, 0, 0, 0][..]));
    let v6: SocketAddr = "[2001:db8::5]:50000".parse().unwrap();
    let response = success(&request).xor_address(attr::XOR_RELAYED_ADDRESS, v6);
    handle(&mut client, at, response.integrity(&key()));
    assert_eq!(client.relayed_addresses(), [RELAYED.parse().unwrap(), v6]);
}

#[test]
fn an_allocation_with_a_ticket_moves_to_a_new_address() {
    let at = now().mono;
    let mut config = config();
    config.mobility = true;
    let mut client = TurnClient::new(config, [7; 32]);
    client.bind_channel(at, peer()).unwrap();
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    let request = transmitted(&mut client);
    assert_eq!(Message::parse(&request).unwrap().unverified().get(attr::MOBILITY_TICKET), Some(&[][..]));
    handle(&mut client, at, success(&request).attribute(attr::MOBILITY_TICKET, b"one").integrity(&key()));
    grant(&mut client, at);
    while client.poll_event().is_some() {}
    client.migrate(at);
    // The nonce is valid for the old address only.
    challenge(&mut client, at, 438, b"m");
    let request = transmitted(&mut client);
    let attributes = Message::parse(&request).unwrap().unverified();
    assert_eq!(attributes.get(attr::MOBILITY_TICKET), Some(&b"one"[..]));
    let moved = response(Class::Success, &request)
        .xor_address(attr::XOR_MAPPED_ADDRESS, "192.0.2.6:6".parse().unwrap())
        .attribute(attr::MOBILITY_TICKET, b"two")
        .integrity(&key());
    handle(&mut client, at, moved);
    assert_eq!(
        client.poll_event(),
        Some(TurnEvent::Migrated { mapped: Some("192.0.2.6:6".parse().unwrap()) })
    );
    assert_eq!(client.relayed_addresses(), [RELAYED.parse().unwrap()]);
    assert_eq!(grant(&mut client, at), Method::CHANNEL_BIND);
}

#[test]
fn an_allocation_without_a_ticket_is_replaced_at_a_new_address() {
    let at = now().mono;
    let mut client = allocated(at);
    client.bind_channel(at, peer()).unwrap();
    grant(&mut client, at);
    client.migrate(at);
    assert_eq!(client.relayed_addresses(), []);
    assert_eq!([grant(&mut client, at), grant(&mut client, at)], [Method::ALLOCATE, Method::CHANNEL_BIND]);
}

#[test]
fn the_error_names_the_alternate_server() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    let request = transmitted(&mut client);
    let redirect = response(Class::Error, &request).error(300, "Try Alternate");
    handle(&mut client, at, redirect.plain_address(attr::ALTERNATE_SERVER, peer()));
    let text = failure(&mut client).to_string();
    assert!(text.contains(PEER), "{text}");
}

#[test]
fn control_characters_of_a_reason_phrase_are_removed() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    let request = transmitted(&mut client);
    handle(&mut client, at, response(Class::Error, &request).error(500, "\u{1b}[2J no"));
    let text = failure(&mut client).to_string();
    assert!(text.contains("500 [2J no"), "{text}");
}

#[test]
fn peers_and_requests_in_flight_are_limited() {
    let at = now().mono;
    let mut config = config();
    config.max_peers = 20;
    let mut client = allocated_with(at, config);
    let address = |n: u8| -> IpAddr { [203, 0, 113, n].into() };
    for n in 0..20 {
        client.create_permission(at, address(n)).unwrap();
    }
    assert_eq!(client.create_permission(at, address(20)), Err(TooManyPeers));
    assert!(client.create_permission(at, address(19)).is_ok());
    let mut sent = 0;
    while client.poll_transmit().is_some() {
        sent += 1;
    }
    assert_eq!(sent, 8);
    client.remove_peer(SocketAddr::new(address(3), 0));
    assert!(client.create_permission(at, address(20)).is_ok());
}

#[test]
fn an_icmp_error_names_its_peer() {
    let at = now().mono;
    let mut client = allocated(at);
    client.bind_channel(at, peer()).unwrap();
    let error = Builder::new(Class::Indication, Method::DATA, crate::stun::TransactionId::new([3; 12]))
        .xor_address(attr::XOR_PEER_ADDRESS, peer())
        .attribute(attr::ICMP, &[0, 0, 6, 3, 0, 0, 0, 0]);
    assert_eq!(handle(&mut client, at, error), Received::Control);
    assert_eq!(client.poll_event(), Some(TurnEvent::PeerUnreachable(peer())));
}

#[test]
fn a_lost_release_is_repeated_soon() {
    let mut at = now().mono;
    let mut client = allocated(at);
    client.release(at);
    let begun = at;
    let first = transmitted(&mut client);
    for _ in 0..2 {
        assert_eq!(next_request(&mut client, &mut at), first);
    }
    assert!(at <= begun + Duration::from_millis(300), "{:?}", at - begun);
}

#[test]
fn an_allocation_that_was_requested_is_released_once_it_exists() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    challenge(&mut client, at, 401, b"nonce");
    client.release(at);
    assert_eq!(client.poll_event(), None, "the server may have made it");
    assert_eq!(grant(&mut client, at), Method::ALLOCATE);
    assert_eq!(client.poll_event(), None);
    assert_eq!(grant(&mut client, at), Method::REFRESH);
    assert_eq!(client.poll_event(), Some(TurnEvent::Released));
}

#[test]
fn a_client_without_an_allocation_is_released_at_once() {
    let at = now().mono;
    let mut client = client();
    client.allocate(at);
    client.release(at);
    assert_eq!(client.poll_event(), Some(TurnEvent::Released));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_server_without_ipv4_is_asked_for_ipv6() {
    let at = now().mono;
    let mut client =
        TurnClient::new(TurnClientConfig { families: AddressFamilies::Both, ..config() }, [7; 32]);
    client.allocate(at);
    challenge(&mut client, at, 401, b"nonce");
    refuse(&mut client, at, 440);
    let request = transmitted(&mut client);
    let message = Message::parse(&request).unwrap();
    let attributes = message.unverified();
    assert_eq!(attributes.get(attr::REQUESTED_ADDRESS_FAMILY), Some(&[2, 0, 0, 0][..]));
    assert_eq!(attributes.get(attr::ADDITIONAL_ADDRESS_FAMILY), None);
}
