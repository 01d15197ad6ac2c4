//! Bandwidth, new peers, and allocations that end with their credentials.

use super::*;
use crate::limits::Rate;
use crate::turn_server::auth::{AuthenticatorConfig, Expiry, RealmCredentials, RestSecret};

#[test]
fn bandwidth_is_limited_per_allocation_and_per_user_in_both_directions() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.limits.allocation_bandwidth = Rate::bytes(20_000);
    shared.limits.user_bandwidth = Rate::bytes(30_000);
    let mut server = TestRelay::with(shared);
    let relayed = [server.allocate(1), server.allocate(2)];
    for client in [1, 2] {
        server.create_permission(client, PEER);
    }
    let passed = |server: &mut TestRelay, client: u16| {
        let out = (0..10).filter(|_| server.send_data(client, PEER, &[0; 1000]).is_some()).count();
        let to = relayed[usize::from(client) - 1];
        out + (0..10).filter(|_| server.receive_at(to, PEER, &[0; 1000]).is_some()).count()
    };
    assert_eq!(passed(&mut server, 1), 10, "half a second of the allocation's rate");
    assert_eq!(passed(&mut server, 2), 5, "the rest of the user's rate");
    server.advance(1);
    assert_eq!(passed(&mut server, 1), 10);
    assert_eq!(server.relay.drops().bandwidth, 35);
}

#[test]
fn the_rate_of_new_peers_is_limited_and_known_peers_are_not_counted() {
    let mut server = TestRelay::new();
    server.allocate(1);
    server.create_permission(1, PEER);
    let scan = |server: &mut TestRelay, ports: std::ops::Range<u16>| {
        ports.filter(|port| server.send_from(1, &format!("8.8.8.8:{port}"))).count()
    };
    assert_eq!(scan(&mut server, 1..1000), 128);
    assert_eq!(server.bind_channel(1, 0x4001, "8.8.8.8:2000"), 508);
    assert_eq!(scan(&mut server, 1..129), 128, "known peers are not limited");
    server.advance(1);
    assert_eq!(scan(&mut server, 1000..2000), 32);
    assert!(server.relay.counters().new_peers_refused > 1800);
}

#[test]
fn new_peers_of_all_allocations_of_a_user_share_one_rate_even_after_they_end() {
    let mut shared = shared(10, 50_000..=50_099);
    shared.limits.user_new_peers = Rate::with_burst_time(10, Duration::from_secs(20));
    let mut server = TestRelay::with(shared);
    let scan = |server: &mut TestRelay, client: u16| {
        server.allocate(client);
        server.create_permission(client, PEER);
        (1..1000).filter(|port| server.send_from(client, &format!("8.8.8.8:{port}"))).count()
    };
    assert_eq!((scan(&mut server, 1), scan(&mut server, 2), scan(&mut server, 3)), (128, 72, 0));
    for client in [1, 2, 3] {
        assert_eq!(server.refresh(client, "alice", 0), 0);
    }
    assert_eq!(scan(&mut server, 4), 0, "the rate is kept");
    server.advance(1);
    assert_eq!(scan(&mut server, 5), 10);
}

#[test]
fn an_allocation_ends_with_its_credentials_if_so_configured() {
    for (expiry, live) in [(Expiry::Hard, 0), (Expiry::AtRefresh, 1)] {
        let mut shared = shared(10, 50_000..=50_009);
        let secret = RestSecret::new(b"north");
        let realm = RealmCredentials {
            name: "r".to_owned(),
            rest: vec![secret.clone()],
            ..RealmCredentials::default()
        };
        let setup = AuthenticatorConfig { realms: vec![realm], expiry, ..AuthenticatorConfig::default() };
        shared.authenticator = Arc::new(Authenticator::with(setup, &[5; 32]));
        let mut server = TestRelay::with(shared);
        let issued = secret.issue("tag", server.now.unix + 60);
        let key = Key::from_bytes(&long_term_digest(&issued.username, "r", &issued.credential));
        let nonce = server.shared.authenticator.challenge(server.now, &tuple(1)).nonce;
        let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12])))
            .attribute(attr::USERNAME, issued.username.as_bytes())
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(&key)
            .finish();
        let answer = server.send(tuple(1), &bytes);
        let granted = Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME);
        assert_eq!(granted, Some(if expiry == Expiry::Hard { 60 } else { 600 }));
        server.advance(59);
        assert_eq!(server.relay.len(), 1);
        server.advance(1);
        assert_eq!(server.relay.len(), live);
    }
}
