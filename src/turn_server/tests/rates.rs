//! Bandwidth, new peers, and allocations that end with their credentials.

use super::*;
use crate::limits::Rate;
use crate::turn_server::auth::{AuthenticatorConfig, Expiry, RealmCredentials, RestSecret};

#[test]
fn bandwidth_is_capped_for_an_allocation_and_for_a_user_in_both_directions() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.limits.allocation_bandwidth = Rate::bytes(20_000);
    shared.limits.user_bandwidth = Rate::bytes(30_000);
    let mut world = World::with(shared);
    let relayed = [world.allocate(1), world.allocate(2)];
    for client in [1, 2] {
        world.permit(client, PEER);
    }
    let passed = |world: &mut World, client: u16| {
        let out = (0..10).filter(|_| world.send_data(client, PEER, &[0; 1000]).is_some()).count();
        let to = relayed[usize::from(client) - 1];
        out + (0..10).filter(|_| world.receive_at(to, PEER, &[0; 1000]).is_some()).count()
    };
    assert_eq!(passed(&mut world, 1), 10, "half a second of the allocation's rate");
    assert_eq!(passed(&mut world, 2), 5, "what is left of the user's");
    world.wait(1);
    assert_eq!(passed(&mut world, 1), 10);
    assert_eq!(world.relay.drops().bandwidth, 35);
}

#[test]
fn new_peers_come_at_a_rate_and_known_ones_are_not_counted() {
    let mut world = World::new();
    world.allocate(1);
    world.permit(1, PEER);
    let scan = |world: &mut World, ports: std::ops::Range<u16>| {
        ports.filter(|port| world.indicate(1, &format!("8.8.8.8:{port}"))).count()
    };
    assert_eq!(scan(&mut world, 1..1000), 128);
    assert_eq!(world.bind(1, 0x4001, "8.8.8.8:2000"), 508);
    assert_eq!(scan(&mut world, 1..129), 128, "known ones");
    world.wait(1);
    assert_eq!(scan(&mut world, 1000..2000), 32);
    assert!(world.relay.counters().new_peers_refused > 1800);
}

#[test]
fn new_peers_of_all_allocations_of_a_user_are_counted_together_also_of_those_that_ended() {
    let mut shared = shared(10, 50_000..=50_099);
    shared.limits.user_new_peers = Rate::with_burst_time(10, Duration::from_secs(20));
    let mut world = World::with(shared);
    let scan = |world: &mut World, client: u16| {
        world.allocate(client);
        world.permit(client, PEER);
        (1..1000).filter(|port| world.indicate(client, &format!("8.8.8.8:{port}"))).count()
    };
    assert_eq!((scan(&mut world, 1), scan(&mut world, 2), scan(&mut world, 3)), (128, 72, 0));
    for client in [1, 2, 3] {
        assert_eq!(world.refresh(client, "alice", 0), 0);
    }
    assert_eq!(scan(&mut world, 4), 0, "nothing begins anew");
    world.wait(1);
    assert_eq!(scan(&mut world, 5), 10);
}

#[test]
fn an_allocation_ends_with_its_credentials_where_the_operator_wants_it() {
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
        let mut world = World::with(shared);
        let issued = secret.issue("tag", world.now.unix + 60);
        let key = Key::from_bytes(&long_term_digest(&issued.username, "r", &issued.credential));
        let nonce = world.shared.authenticator.challenge(world.now, &tuple(1)).nonce;
        let bytes = udp(Builder::new(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12])))
            .attribute(attr::USERNAME, issued.username.as_bytes())
            .attribute(attr::REALM, b"r")
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(&key)
            .finish();
        let answer = world.send(tuple(1), &bytes);
        let granted = Message::parse(&answer).unwrap().unverified().u32(attr::LIFETIME);
        assert_eq!(granted, Some(if expiry == Expiry::Hard { 60 } else { 600 }));
        world.wait(59);
        assert_eq!(world.relay.len(), 1);
        world.wait(1);
        assert_eq!(world.relay.len(), live);
    }
}
