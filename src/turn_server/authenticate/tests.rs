use super::*;
use crate::net::time::now;
use crate::stun::{Builder, Class, Key, TransactionId, attr, long_term_digest};
use crate::turn_server::Transport;
use crate::turn_server::auth::{
    Authenticator, AuthenticatorConfig, Expiry, LookupCacheConfig, LookupResult, MAX_PENDING_PER_NETWORK,
    MAX_PENDING_UNKNOWN, RealmCredentials, RestSecret, TokenKey, UserKeys,
};
use crate::turn_server::config::{RelayConfig, SharedState};
use crate::turn_server::output::RequestAuth;
use crate::turn_server::tests::handle;
use std::net::IpAddr;
use std::time::Duration;

/// Bytes of IP and UDP header, counted each way.
const HEADERS: usize = 28;

fn client(port: u16) -> FiveTuple {
    let server = "198.41.0.4:3478".parse().unwrap();
    FiveTuple { client: ([192, 0, 2, 7], port).into(), server, transport: Transport::Udp }
}

fn setup(realm: &str) -> AuthenticatorConfig {
    let users = [("alice".to_owned(), UserKeys::of_password("alice", realm, "pw"))].into();
    let realm = RealmCredentials { name: realm.to_owned(), users, ..RealmCredentials::default() };
    let limit = Duration::from_secs(60);
    let lookup = Some(LookupCacheConfig { known: limit, unknown: limit, entries: 10 });
    AuthenticatorConfig { realms: vec![realm], lookup, ..AuthenticatorConfig::default() }
}

fn relay(setup: AuthenticatorConfig) -> (Relay, SharedState) {
    let address: IpAddr = "198.41.0.4".parse().unwrap();
    let config = RelayConfig {
        ports: 50_000..=50_999,
        allocations_per_user: 1000,
        max_allocations: 1000,
        ..RelayConfig::new(Authenticator::with(setup, &[5; 32]), &[address.into()])
    };
    let shared = SharedState::new(config, [6; 32]);
    (Relay::with_shared(now(), shared.clone(), [7; 32]), shared)
}

fn bare(method: Method) -> Vec<u8> {
    Builder::new(Class::Request, method, TransactionId::new([1; 12])).finish()
}

fn signed(shared: &SharedState, now: Now, from: FiveTuple, user: &str) -> Vec<u8> {
    let challenge = shared.authenticator.challenge(now, &from);
    Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([2; 12]))
        .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(attr::USERNAME, user.as_bytes())
        .attribute(attr::REALM, challenge.realm.as_bytes())
        .attribute(attr::NONCE, challenge.nonce.as_bytes())
        .integrity(&Key::from_bytes(&long_term_digest(user, challenge.realm, "pw")))
        .finish()
}

fn reply(relay: &mut Relay) -> Option<(Vec<u8>, bool)> {
    match relay.poll_output()? {
        Output::Response { bytes, auth, .. } => Some((bytes, auth == RequestAuth::Verified)),
        other => panic!("{other:?}"),
    }
}

fn poll_look_up(relay: &mut Relay) -> Option<Arc<UserQuery>> {
    match relay.poll_output()? {
        Output::LookUpUser { query, .. } => Some(query),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_response_to_an_unauthenticated_request_is_three_times_its_length() {
    let long = "a".repeat(32);
    let tokens = vec![TokenKey::new("kid", &"b".repeat(20), &[0; 16]).unwrap()];
    for setup in [setup(&long), AuthenticatorConfig { tokens, ..setup("example.org.") }] {
        let (mut relay, shared) = relay(setup);
        let start = now();
        let fingerprinted =
            Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12])).fingerprint();
        let stale = {
            let bytes = signed(&shared, start, client(9), "alice");
            assert_eq!(Message::parse(&bytes).unwrap().nonce().map(str::len), Some(32));
            bytes
        };
        for request in [bare(Method::ALLOCATE), bare(Method::REFRESH), fingerprinted.finish(), stale] {
            handle(&mut relay, start, client(1), &request);
            let (answer, proven) = reply(&mut relay).unwrap();
            assert!(!proven);
            assert!(
                answer.len() + HEADERS <= 3 * (request.len() + HEADERS),
                "{} for {}",
                answer.len(),
                request.len()
            );
            assert_eq!(
                Message::parse(&answer).unwrap().has_fingerprint(),
                Message::parse(&request).unwrap().has_fingerprint()
            );
        }
        assert!(relay.pending_lookups.is_empty(), "no state is stored for unauthenticated clients");
    }
}

#[test]
fn a_request_waits_for_the_look_up_of_its_user() {
    let (mut relay, shared) = relay(setup("r"));
    let start = now();
    let request = signed(&shared, start, client(1), "dora");
    handle(&mut relay, start, client(1), &request);
    let query = poll_look_up(&mut relay).unwrap();
    handle(&mut relay, start, client(1), &request);
    assert_eq!(relay.poll_output(), None, "a retransmission starts no second look-up");
    let keys = UserKeys::of_password("dora", "r", "pw");
    shared.authenticator.store_lookup(
        start,
        Arc::clone(&query),
        LookupResult::Known { keys, expires_unix: None },
    );
    relay.handle_lookup_done(start, &query, true);
    assert!(matches!(relay.poll_output(), Some(Output::OpenRelaySocket { .. })));
    assert_eq!(relay.poll_output(), None);
    assert!(relay.pending_lookups.is_empty());
}

#[test]
fn a_failed_look_up_drops_the_request_and_the_client_retransmits_it() {
    let (mut relay, shared) = relay(setup("r"));
    let start = now();
    let request = signed(&shared, start, client(1), "dora");
    for _ in 0..3 {
        handle(&mut relay, start, client(1), &request);
        let query = poll_look_up(&mut relay).unwrap();
        relay.handle_lookup_done(start, &query, false);
        assert_eq!(relay.poll_output(), None);
        assert!(relay.pending_lookups.is_empty() && relay.is_empty());
    }
}

/// A client of a network of its own.
fn distant(network: u16) -> FiveTuple {
    let [high, low] = network.to_be_bytes();
    FiveTuple { client: ([10, high, low, 1], 4000).into(), ..client(1) }
}

#[test]
fn waiting_requests_of_unknown_users_are_limited_and_removed_with_their_client() {
    let (mut relay, shared) = relay(setup("r"));
    let start = now();
    let ask = |relay: &mut Relay, from: FiveTuple, name: &str| {
        handle(relay, start, from, &signed(&shared, start, from, name));
    };
    for port in 1..=1000 {
        ask(&mut relay, client(port), &format!("user {port}"));
    }
    assert_eq!(relay.pending_lookups.len(), MAX_PENDING_PER_NETWORK);
    for network in 1..=1000 {
        ask(&mut relay, distant(network), &format!("user {network} of many"));
    }
    assert_eq!(relay.pending_lookups.len(), MAX_PENDING_UNKNOWN);
    assert_eq!(relay.drops().total(), 2000 - MAX_PENDING_UNKNOWN as u64);
    let queries: Vec<_> = std::iter::from_fn(|| poll_look_up(&mut relay)).collect();
    assert_eq!(queries.len(), MAX_PENDING_UNKNOWN);
    relay.handle_client_gone(client(1));
    assert_eq!(relay.pending_lookups.len(), MAX_PENDING_UNKNOWN - 1);
    ask(&mut relay, client(2000), "alice");
    assert!(
        matches!(relay.poll_output(), Some(Output::OpenRelaySocket { .. })),
        "who is known here does not wait"
    );
    for query in queries {
        shared.authenticator.store_lookup(start, Arc::clone(&query), LookupResult::Unknown);
        relay.handle_lookup_done(start, &query, true);
    }
    assert!(relay.pending_lookups.is_empty());
    let refused = std::iter::from_fn(|| reply(&mut relay));
    assert!(
        refused
            .map(|(bytes, _)| Message::parse(&bytes).unwrap().unverified().error_code())
            .all(|c| c == Some(401))
    );
}

#[test]
fn a_user_that_was_found_before_has_a_place_when_unknown_users_fill_theirs() {
    let (mut relay, shared) = relay(setup("r"));
    let start = now();
    let keys = UserKeys::of_password("dora", "r", "pw");
    let query = Arc::new(UserQuery { user: "dora".into(), realm: "r".into() });
    shared.authenticator.store_lookup(start, query, LookupResult::Known { keys, expires_unix: None });
    let later = start.after(Duration::from_secs(61));
    for network in 1..=1000 {
        let from = distant(network);
        let request = signed(&shared, later, from, &format!("user {network}"));
        handle(&mut relay, later, from, &request);
    }
    while relay.poll_output().is_some() {}
    for (name, finds_room) in [("eve", false), ("dora", true)] {
        handle(&mut relay, later, client(7), &signed(&shared, later, client(7), name));
        let asks = match relay.poll_output() {
            Some(Output::LookUpUser { query, is_known, .. }) => is_known && query.user == name,
            _ => false,
        };
        assert_eq!(asks, finds_room, "{name}");
    }
}

#[test]
fn an_error_after_a_look_up_reports_the_length_of_its_request() {
    let (mut relay, shared) = relay(setup("r"));
    let start = now();
    let request = signed(&shared, start, client(1), "dora");
    handle(&mut relay, start, client(1), &request);
    let query = poll_look_up(&mut relay).unwrap();
    shared.authenticator.store_lookup(start, Arc::clone(&query), LookupResult::Unknown);
    relay.handle_lookup_done(start, &query, true);
    let Some(Output::Response { bytes, auth, .. }) = relay.poll_output() else { panic!("no answer") };
    assert_eq!(Message::parse(&bytes).unwrap().unverified().error_code(), Some(401));
    assert_eq!(auth, RequestAuth::Unverified { request_len: request.len() });
    assert!(bytes.len() + HEADERS <= 3 * (request.len() + HEADERS));
}

#[test]
fn only_an_authenticated_client_gets_an_alternate_server() {
    let (mut relay, shared) = relay(setup("r"));
    let start = now();
    handle(&mut relay, start, client(1), &signed(&shared, start, client(1), "alice"));
    let Some(Output::OpenRelaySocket { relay: port, .. }) = relay.poll_output() else {
        panic!("no allocation")
    };
    relay.handle_relay_opened(start, port, Ok(()));
    let _ = reply(&mut relay);
    let other = "192.0.2.99:3478".parse().unwrap();
    shared.alternates.set(vec![other], Some("b.example.org".into()));
    for (transport, domain) in [(Transport::Udp, None), (Transport::Tls, Some(&b"b.example.org"[..]))] {
        let from = FiveTuple { transport, ..client(2) };
        handle(&mut relay, start, from, &bare(Method::ALLOCATE));
        let (unauthenticated, _) = reply(&mut relay).unwrap();
        assert_eq!(Message::parse(&unauthenticated).unwrap().unverified().error_code(), Some(401));
        handle(&mut relay, start, from, &signed(&shared, start, from, "alice"));
        let (answer, proven) = reply(&mut relay).unwrap();
        let key = Key::from_bytes(&long_term_digest("alice", "r", "pw"));
        let attributes = Message::parse(&answer).unwrap().verify(&key).unwrap();
        assert_eq!((attributes.error_code(), proven), (Some(300), true));
        assert_eq!(attributes.plain_address(attr::ALTERNATE_SERVER), Ok(Some(other)));
        assert_eq!(attributes.get(attr::ALTERNATE_DOMAIN), domain);
    }
    handle(&mut relay, start, client(1), &signed(&shared, start, client(1), "alice"));
    let (again, _) = reply(&mut relay).unwrap();
    assert_eq!(Message::parse(&again).unwrap().class(), Class::Success, "who is here stays");
    shared.alternates.set(Vec::new(), None);
    handle(&mut relay, start, client(3), &signed(&shared, start, client(3), "alice"));
    assert!(matches!(relay.poll_output(), Some(Output::OpenRelaySocket { .. })));
}

#[test]
fn an_allocation_ends_with_the_token_that_made_it() {
    let key = TokenKey::new("kid", "here", &[7; 32]).unwrap();
    let token = key.seal(&[1; 20], now().unix, 300);
    let (mut relay, shared) = relay(AuthenticatorConfig { tokens: vec![key], ..setup("r") });
    let start = now();
    let nonce = shared.authenticator.challenge(start, &client(1)).nonce;
    let ask = |method, id, token: Option<&[u8]>| {
        let builder = Builder::new(Class::Request, method, TransactionId::new([id; 12]))
            .attribute(attr::USERNAME, b"kid")
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, nonce.as_bytes())
            .attribute(attr::LIFETIME, &3600_u32.to_be_bytes());
        let builder = match (method, token) {
            (Method::ALLOCATE, Some(token)) => builder
                .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(attr::ACCESS_TOKEN, token),
            (_, Some(token)) => builder.attribute(attr::ACCESS_TOKEN, token),
            (_, None) => builder,
        };
        builder.integrity(&Key::from_bytes(&[1; 20])).finish()
    };
    handle(&mut relay, start, client(1), &ask(Method::ALLOCATE, 1, Some(&token)));
    let Some(Output::OpenRelaySocket { relay: port, .. }) = relay.poll_output() else {
        panic!("no allocation")
    };
    relay.handle_relay_opened(start, port, Ok(()));
    let lifetime = |relay: &mut Relay| {
        let (answer, _) = reply(relay).unwrap();
        Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME)
    };
    assert!((300..=305).contains(&lifetime(&mut relay).unwrap()));
    let later = start.after(Duration::from_secs(100));
    handle(&mut relay, later, client(1), &ask(Method::REFRESH, 2, None));
    assert!((200..=205).contains(&lifetime(&mut relay).unwrap()));
    relay.handle_timeout(start.after(Duration::from_secs(306)));
    assert!(relay.is_empty());
}

#[test]
fn in_hard_mode_an_allocation_ends_in_the_second_in_which_its_credentials_expire() {
    let start = now();
    let issued = RestSecret::new(b"north").issue("tag", start.unix + 30);
    let realm = RealmCredentials {
        name: "r".into(),
        rest: vec![RestSecret::new(b"north")],
        ..RealmCredentials::default()
    };
    let (mut relay, shared) = relay(AuthenticatorConfig {
        realms: vec![realm],
        expiry: Expiry::Hard,
        ..AuthenticatorConfig::default()
    });
    let nonce = shared.authenticator.challenge(start, &client(1)).nonce;
    let ask = |method, id| {
        Builder::new(Class::Request, method, TransactionId::new([id; 12]))
            .attribute(attr::USERNAME, issued.username.as_bytes())
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, nonce.as_bytes())
            .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(attr::LIFETIME, &600_u32.to_be_bytes())
            .integrity(&Key::from_bytes(&long_term_digest(&issued.username, "r", &issued.credential)))
            .finish()
    };
    handle(&mut relay, start, client(1), &ask(Method::ALLOCATE, 1));
    let Some(Output::OpenRelaySocket { relay: port, .. }) = relay.poll_output() else {
        panic!("no allocation")
    };
    relay.handle_relay_opened(start, port, Ok(()));
    let (answer, _) = reply(&mut relay).unwrap();
    assert_eq!(Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME), Some(30));
    let later = start.after(Duration::from_secs(20));
    handle(&mut relay, later, client(1), &ask(Method::REFRESH, 2));
    let (answer, _) = reply(&mut relay).unwrap();
    assert_eq!(Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME), Some(10));
    relay.handle_timeout(start.after(Duration::from_secs(29)));
    assert_eq!(relay.len(), 1);
    relay.handle_timeout(start.after(Duration::from_secs(30)));
    assert!(relay.is_empty());
}

#[test]
fn revoking_a_name_ends_only_its_allocations() {
    let start = now();
    let realm = RealmCredentials {
        name: "r".into(),
        rest: vec![RestSecret::new(b"north")],
        ..RealmCredentials::default()
    };
    let (mut relay, shared) =
        relay(AuthenticatorConfig { realms: vec![realm], ..AuthenticatorConfig::default() });
    for (port, name) in [(1, "tag"), (2, "tag"), (3, "tags"), (4, "ag")] {
        let issued = RestSecret::new(b"north").issue(name, start.unix + u64::from(port) * 60);
        let request = Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([2; 12]))
            .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(attr::USERNAME, issued.username.as_bytes())
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, shared.authenticator.challenge(start, &client(port)).nonce.as_bytes())
            .integrity(&Key::from_bytes(&long_term_digest(&issued.username, "r", &issued.credential)))
            .finish();
        handle(&mut relay, start, client(port), &request);
    }
    let opened = std::iter::from_fn(|| relay.poll_output()).count();
    relay.handle_revoked("nobody");
    assert_eq!((opened, relay.len()), (4, 4));
    relay.handle_revoked("tag");
    let closed =
        std::iter::from_fn(|| relay.poll_output()).filter(|o| matches!(o, Output::CloseRelaySocket { .. }));
    assert_eq!(closed.count(), 2);
    assert_eq!((relay.len(), shared.quota.held()), (2, 2));
    relay.handle_revoked("tag");
    assert_eq!((relay.len(), relay.poll_output()), (2, None));
}
