//! The client against scripted answers, with a fake clock.

use super::*;
use crate::net::time::now;

const RELAYED: &str = "198.51.100.1:49152";
const PEER: &str = "203.0.113.9:7";

fn client(stream: bool) -> TurnClient {
    let credentials = Arc::new(LoadCredentials::new("alice", "pw"));
    TurnClient::new(ClientSettings { credentials, stream, v6: false }, 7)
}

fn key() -> Key {
    LoadCredentials::new("alice", "pw").key("r")
}

/// The one request that is to be sent.
fn transmitted(client: &mut TurnClient) -> Vec<u8> {
    let bytes = client.poll_transmit().unwrap();
    assert_eq!(client.poll_transmit(), None);
    bytes
}

fn answer(class: Class, request: &[u8]) -> Builder {
    let request = Message::parse(request).unwrap();
    Builder::new(class, request.method(), request.transaction())
}

fn handle(client: &mut TurnClient, at: Instant, answer: Builder) {
    client.handle(at, &Message::parse(&answer.finish()).unwrap());
}

fn challenge(client: &mut TurnClient, at: Instant, code: u16, nonce: &[u8]) {
    let request = transmitted(client);
    let answer = answer(Class::Error, &request).error(code, "");
    handle(client, at, answer.attribute(attr::REALM, b"r").attribute(attr::NONCE, nonce));
}

fn grant(client: &mut TurnClient, at: Instant) {
    let request = transmitted(client);
    let message = Message::parse(&request).unwrap();
    assert!(message.verify(&key()).is_some(), "{:?} is not signed", message.method());
    let answer = answer(Class::Success, &request)
        .xor_address(attr::XOR_RELAYED_ADDRESS, RELAYED.parse().unwrap())
        .attribute(attr::LIFETIME, &600_u32.to_be_bytes());
    handle(client, at, answer.integrity(&key()));
}

fn allocated(at: Instant) -> TurnClient {
    let mut client = client(false);
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    grant(&mut client, at);
    assert_eq!(client.poll_event(), Some(ClientEvent::Allocated { relayed: RELAYED.parse().unwrap() }));
    client
}

#[test]
fn a_client_answers_the_challenge_binds_a_channel_and_releases() {
    let at = now().mono;
    let mut client = allocated(at);
    client.permit(at, PEER.parse().unwrap(), true);
    grant(&mut client, at);
    assert_eq!(client.poll_event(), Some(ClientEvent::PermissionInstalled));
    client.release(at);
    grant(&mut client, at);
    assert_eq!((client.poll_event(), client.relayed()), (Some(ClientEvent::Released), None));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn allocation_and_permission_are_refreshed_before_they_expire() {
    let at = now().mono;
    let mut client = allocated(at);
    client.permit(at, PEER.parse().unwrap(), false);
    grant(&mut client, at);
    client.poll_event();
    let mut methods = Vec::new();
    let mut at = at;
    while methods.len() < 5 {
        // A request that was due at the same time waits for the answer.
        if client.transmits.is_empty() {
            at = client.poll_timeout().unwrap();
            client.handle_timeout(at);
        }
        let bytes = client.transmits.front().unwrap().clone();
        methods.push(Message::parse(&bytes).unwrap().method());
        grant(&mut client, at);
        client.poll_event();
    }
    let (permit, refresh) = (Method::CREATE_PERMISSION, Method::REFRESH);
    assert_eq!(methods, [permit, refresh, permit, refresh, permit]);
}

#[test]
fn wrong_credentials_give_a_readable_error() {
    let at = now().mono;
    let mut client = client(false);
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    challenge(&mut client, at, 401, b"n");
    let Some(ClientEvent::Failed(error)) = client.poll_event() else { panic!("went on") };
    assert!(error.to_string().starts_with("the server refused these credentials (401"));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_stale_nonce_is_replaced_a_limited_number_of_times() {
    let at = now().mono;
    let mut client = client(false);
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    for nonce in [b"1", b"2", b"3"] {
        challenge(&mut client, at, 438, nonce);
        let next = client.transmits.front().unwrap();
        assert_eq!(Message::parse(next).unwrap().nonce().unwrap().as_bytes(), nonce);
    }
    challenge(&mut client, at, 438, b"4");
    assert!(matches!(client.poll_event(), Some(ClientEvent::Failed(RequestError::Answer { code: 438, .. }))));
}

#[test]
fn a_request_is_retransmitted_and_then_times_out() {
    let at = now().mono;
    let mut client = client(false);
    client.allocate(at);
    let first = transmitted(&mut client);
    let mut again = 0;
    while let Some(due) = client.poll_timeout() {
        client.handle_timeout(due);
        while let Some(bytes) = client.poll_transmit() {
            assert_eq!(bytes, first);
            again += 1;
        }
    }
    assert_eq!(again, TRIES - 1);
    let Some(ClientEvent::Failed(error)) = client.poll_event() else { panic!("it did not time out") };
    assert!(error.to_string().starts_with("no answer to Allocate after 5 tries in 7 s"), "{error}");
}

#[test]
fn nothing_is_retransmitted_over_a_stream() {
    let mut client = client(true);
    client.allocate(now().mono);
    transmitted(&mut client);
    client.handle_timeout(client.poll_timeout().unwrap());
    assert_eq!(client.poll_transmit(), None);
    assert!(matches!(client.poll_event(), Some(ClientEvent::Failed(RequestError::Silence { tries: 1, .. }))));
}

#[test]
fn a_success_response_with_wrong_integrity_is_ignored() {
    let at = now().mono;
    let mut client = client(false);
    client.allocate(at);
    challenge(&mut client, at, 401, b"n");
    let request = transmitted(&mut client);
    let forged = answer(Class::Success, &request)
        .xor_address(attr::XOR_RELAYED_ADDRESS, RELAYED.parse().unwrap())
        .integrity(&Key::short_term("no"));
    handle(&mut client, at, forged);
    assert_eq!((client.poll_event(), client.relayed()), (None, None));
    assert!(client.poll_timeout().is_some());
}

#[test]
fn the_error_names_the_alternate_server() {
    let at = now().mono;
    let mut client = client(false);
    client.allocate(at);
    let request = transmitted(&mut client);
    let redirect = answer(Class::Error, &request).error(300, "Try Alternate");
    handle(&mut client, at, redirect.plain_address(attr::ALTERNATE_SERVER, PEER.parse().unwrap()));
    let Some(ClientEvent::Failed(error)) = client.poll_event() else { panic!("went on") };
    assert!(error.to_string().contains(PEER), "{error}");
}

#[test]
fn control_characters_of_a_reason_phrase_are_removed() {
    let at = now().mono;
    let mut client = client(false);
    client.allocate(at);
    let request = transmitted(&mut client);
    handle(&mut client, at, answer(Class::Error, &request).error(500, "\u{1b}[2J no"));
    let Some(ClientEvent::Failed(error)) = client.poll_event() else { panic!("went on") };
    assert!(error.to_string().contains("500 [2J no"), "{error}");
}
