//! Relayed addresses of both families, ICMP, and what passes from IP header to IP header.

use super::*;
use crate::turn_server::data::IcmpError;

const V6_PEER: &str = "[2606:4700::99]:5000";

fn addresses(answer: &[u8]) -> Vec<SocketAddr> {
    let message = Message::parse(answer).unwrap();
    message.unverified().xor_addresses(attr::XOR_RELAYED_ADDRESS).map(Result::unwrap).collect()
}

fn both(builder: Builder) -> Builder {
    udp(builder).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0])
}

#[test]
fn an_additional_family_comes_with_the_first() {
    let mut world = World::new();
    let (code, answer) = world.ask(1, "alice", Method::ALLOCATE, both);
    let relayed = addresses(&answer);
    assert_eq!((code, relayed.len()), (0, 2));
    assert!(relayed[0].is_ipv4() && relayed[1].is_ipv6());
    assert_eq!(world.permit(1, PEER), 0);
    assert_eq!(world.bind(1, 0x4001, V6_PEER), 0);
    assert_eq!(world.send_data(1, PEER, b"x"), Some(relayed[0]));
    assert_eq!(world.send_data(1, V6_PEER, b"x"), Some(relayed[1]));
    let zero_of = |family: u8| {
        move |b: Builder| {
            b.attribute(attr::LIFETIME, &[0; 4]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0])
        }
    };
    assert_eq!(world.ask(1, "alice", Method::REFRESH, zero_of(1)).0, 0);
    assert_eq!(world.sockets.values().copied().collect::<Vec<_>>(), [relayed[1]]);
    assert!(!world.indicate(1, PEER));
    assert_eq!(world.send_data(1, V6_PEER, b"x"), Some(relayed[1]));
    assert_eq!(world.ask(1, "alice", Method::REFRESH, zero_of(1)).0, 443);
    assert_eq!(world.ask(1, "alice", Method::REFRESH, zero_of(2)).0, 0);
    assert!(world.relay.is_empty() && world.sockets.is_empty());
}

#[test]
fn an_additional_family_that_is_not_there_is_an_address_error_and_no_refusal() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.addresses = shared.addresses.iter().copied().filter(|a| a.local.is_ipv4()).collect();
    let mut world = World::with(shared);
    let (code, answer) = world.ask(1, "alice", Method::ALLOCATE, both);
    assert_eq!((code, addresses(&answer).len()), (0, 1));
    let error = Message::parse(&answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE);
    assert_eq!(error, Some(&[2, 0, 4, 40][..]));
    assert_eq!(world.permit(1, V6_PEER), 443);
    let v6 = |b: Builder| udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    assert_eq!(world.ask(2, "alice", Method::ALLOCATE, v6).0, 440);
}

#[test]
fn an_additional_family_whose_port_cannot_be_opened_is_508_in_the_success() {
    let mut world = World::with(shared(10, 50_000..=50_000));
    let first = world.ask(1, "alice", Method::ALLOCATE, |b| {
        udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])
    });
    assert_eq!(first.0, 0);
    let (code, answer) = world.ask(2, "alice", Method::ALLOCATE, both);
    assert_eq!((code, addresses(&answer).len()), (0, 1));
    let error = Message::parse(&answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE);
    assert_eq!(error, Some(&[2, 0, 5, 8][..]));
}

#[test]
fn of_two_relayed_addresses_both_are_even_or_one_is_said_to_be_missing() {
    let even = |b: Builder| both(b).attribute(attr::EVEN_PORT, &[0]);
    let error = |answer: &[u8]| {
        Message::parse(answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE).map(<[u8]>::to_vec)
    };
    let mut world = World::with(shared(10, 50_000..=50_003));
    for client in 1..=2 {
        let (code, answer) = world.ask(client, "alice", Method::ALLOCATE, even);
        let ports: Vec<_> = addresses(&answer).iter().map(SocketAddr::port).collect();
        assert_eq!((code, ports.len(), error(&answer)), (0, 2, None));
        assert!(ports.iter().all(|port| port.is_multiple_of(2)), "{ports:?}");
    }
    assert_eq!(world.ask(3, "alice", Method::ALLOCATE, even).0, 508, "odd ones are left");
    let mut world = World::with(shared(10, 50_000..=50_001));
    let v6_even = |b: Builder| {
        udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]).attribute(attr::EVEN_PORT, &[0])
    };
    assert_eq!(world.ask(1, "alice", Method::ALLOCATE, v6_even).0, 0);
    let (code, answer) = world.ask(2, "alice", Method::ALLOCATE, even);
    assert_eq!((code, addresses(&answer).len(), error(&answer)), (0, 1, Some(vec![2, 0, 5, 8])));
}

#[test]
fn family_attributes_that_exclude_each_other_are_400() {
    let mut world = World::new();
    type Fill = fn(Builder) -> Builder;
    let cases: [(u16, Fill); 7] = [
        (400, |b| both(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0])),
        (400, |b| both(b).attribute(attr::EVEN_PORT, &[0x80])),
        (400, |b| both(b).attribute(attr::RESERVATION_TOKEN, &[0; 8])),
        (400, |b| udp(b).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[1, 0, 0, 0])),
        (400, |b| udp(b).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2])),
        (400, |b| udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[])),
        (0, |b| both(b).attribute(attr::EVEN_PORT, &[0])),
    ];
    for (code, fill) in cases {
        assert_eq!(world.ask(1, "alice", Method::ALLOCATE, fill).0, code);
    }
}

#[test]
fn a_permission_for_the_other_family_adds_its_relayed_address_unless_forbidden() {
    for (allowed, code) in [(true, 0), (false, 443)] {
        let mut shared = shared(10, 50_000..=50_009);
        shared.features.add_family = allowed;
        let mut world = World::with(shared);
        world.allocate(1);
        assert_eq!(world.permit(1, V6_PEER), code);
        assert_eq!(world.send_data(1, V6_PEER, b"x").is_some_and(|from| from.is_ipv6()), allowed);
        assert_eq!(world.bind(1, 0x4001, V6_PEER), code);
        world.refresh(1, "alice", 0);
        assert!(world.sockets.is_empty());
    }
}

#[test]
fn a_family_whose_port_could_not_be_had_is_tried_again_and_one_given_up_stays_away() {
    let mut world = World::with(shared(10, 50_000..=50_009));
    world.allocate(1);
    world.refuse_ports = (50_000..=50_009).collect();
    assert_eq!(world.permit(1, V6_PEER), 0);
    assert!(!world.sockets.values().any(SocketAddr::is_ipv6), "the system has refused every port");
    world.refuse_ports.clear();
    assert!(world.send_data(1, V6_PEER, b"x").is_some_and(|from| from.is_ipv6()));
    let given_up = |b: Builder| {
        b.attribute(attr::LIFETIME, &[0; 4]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])
    };
    assert_eq!(world.ask(1, "alice", Method::REFRESH, given_up).0, 0);
    assert!(!world.indicate(1, V6_PEER), "the client did not want it any more");
    assert!(!world.sockets.values().any(SocketAddr::is_ipv6));
}

#[test]
fn an_icmp_error_is_told_to_the_client_that_talks_to_the_peer() {
    let mut world = World::new();
    world.allocate(1);
    let relay = world.only_socket();
    world.permit(1, PEER);
    let error = IcmpError { peer: addr(PEER), kind: 3, code: 4, data: [0, 0, 5, 220] };
    let at = world.now;
    assert_eq!(world.relay.handle_peer_error(at, relay, error), None, "nothing was sent there");
    world.indicate(1, PEER);
    let told = world.relay.handle_peer_error(at, relay, error).unwrap();
    let message = Message::parse(told.header.as_bytes()).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
    assert_eq!(message.unverified().xor_address(attr::XOR_PEER_ADDRESS), Ok(Some(addr(PEER))));
    assert_eq!(message.unverified().get(attr::ICMP), Some(&[0, 0, 3 << 1, 4, 0, 0, 5, 220][..]));
    assert_eq!(message.unverified().get(attr::DATA), None);
    world.wait(300);
    let at = world.now;
    assert_eq!(world.relay.handle_peer_error(at, relay, error), None, "the permission is over");
}

#[test]
fn time_to_live_falls_by_one_and_differentiated_services_stay() {
    let mut world = World::new();
    world.allocate(1);
    let relay = world.only_socket();
    world.bind(1, 0x4001, PEER);
    for (came, leaves) in [(64, Some(63)), (2, Some(1)), (1, None), (0, Some(0))] {
        let ip_header = IpHeader { ttl: came, tos: 0xB9 };
        let expected = leaves.map(|ttl| IpHeader { ttl, tos: 0xB9 });
        let frame = ClientFrame::parse(b"\x40\x01\0\0").unwrap();
        let out = match world.relay.handle_client(world.now, tuple(1), ip_header, frame) {
            Forward::Peer(to) => Some(to.ip_header),
            forward => {
                assert_eq!(forward, Forward::Drop(DropReason::HopLimit));
                None
            }
        };
        assert_eq!(out, expected);
        let back = world.relay.handle_peer(world.now, relay, addr(PEER), ip_header, b"x");
        assert_eq!(back.map(|forward| forward.ip_header), expected.ok_or(DropReason::HopLimit));
    }
}

#[test]
fn dont_fragment_is_for_the_datagram_that_asks() {
    let mut world = World::new();
    world.allocate(1);
    world.permit(1, PEER);
    for asks in [true, false] {
        let mut builder = Builder::new(Class::Indication, Method::SEND, world.transaction())
            .xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
        if asks {
            builder = builder.attribute(attr::DONT_FRAGMENT, b"");
        }
        let bytes = builder.attribute(attr::DATA, b"x").finish();
        let forward = world.forward_to_peer(tuple(1), &bytes).unwrap();
        assert_eq!(forward.dont_fragment, asks);
    }
}
