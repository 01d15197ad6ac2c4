//! Relayed addresses of both families, ICMP errors, and the IP header fields that are forwarded.

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
fn an_additional_address_family_is_allocated_with_the_first() {
    let mut server = TestRelay::new();
    let (code, answer) = server.request(1, "alice", Method::ALLOCATE, both);
    let relayed = addresses(&answer);
    assert_eq!((code, relayed.len()), (0, 2));
    assert!(relayed[0].is_ipv4() && relayed[1].is_ipv6());
    assert_eq!(server.create_permission(1, PEER), 0);
    assert_eq!(server.bind_channel(1, 0x4001, V6_PEER), 0);
    assert_eq!(server.send_data(1, PEER, b"x"), Some(relayed[0]));
    assert_eq!(server.send_data(1, V6_PEER, b"x"), Some(relayed[1]));
    let zero_of = |family: u8| {
        move |b: Builder| {
            b.attribute(attr::LIFETIME, &[0; 4]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0])
        }
    };
    assert_eq!(server.request(1, "alice", Method::REFRESH, zero_of(1)).0, 0);
    assert_eq!(server.sockets.values().copied().collect::<Vec<_>>(), [relayed[1]]);
    assert!(!server.send_from(1, PEER));
    assert_eq!(server.send_data(1, V6_PEER, b"x"), Some(relayed[1]));
    assert_eq!(server.request(1, "alice", Method::REFRESH, zero_of(1)).0, 443);
    assert_eq!(server.request(1, "alice", Method::REFRESH, zero_of(2)).0, 0);
    assert!(server.relay.is_empty() && server.sockets.is_empty());
}

#[test]
fn an_unsupported_additional_family_is_an_address_error_code_in_the_success_response() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.addresses = shared.addresses.iter().copied().filter(|a| a.local.is_ipv4()).collect();
    let mut server = TestRelay::with(shared);
    let (code, answer) = server.request(1, "alice", Method::ALLOCATE, both);
    assert_eq!((code, addresses(&answer).len()), (0, 1));
    let error = Message::parse(&answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE);
    assert_eq!(error, Some(&[2, 0, 4, 40][..]));
    assert_eq!(server.create_permission(1, V6_PEER), 443);
    let v6 = |b: Builder| udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    assert_eq!(server.request(2, "alice", Method::ALLOCATE, v6).0, 440);
}

#[test]
fn a_server_without_ipv4_allocates_the_additional_family() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.addresses = shared.addresses.iter().copied().filter(|a| a.local.is_ipv6()).collect();
    let mut server = TestRelay::with(shared);
    let (code, answer) = server.request(1, "alice", Method::ALLOCATE, both);
    let relayed = addresses(&answer);
    assert_eq!((code, relayed.len()), (0, 1));
    assert!(relayed[0].is_ipv6());
    let error = Message::parse(&answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE);
    assert_eq!(error, Some(&[1, 0, 4, 40][..]));
}

#[test]
fn an_additional_family_whose_port_cannot_be_opened_is_508_in_the_success_response() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_000));
    let first = server.request(1, "alice", Method::ALLOCATE, |b| {
        udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])
    });
    assert_eq!(first.0, 0);
    let (code, answer) = server.request(2, "alice", Method::ALLOCATE, both);
    assert_eq!((code, addresses(&answer).len()), (0, 1));
    let error = Message::parse(&answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE);
    assert_eq!(error, Some(&[2, 0, 5, 8][..]));
}

#[test]
fn with_even_port_both_relayed_addresses_are_even_or_one_has_an_address_error_code() {
    let even = |b: Builder| both(b).attribute(attr::EVEN_PORT, &[0]);
    let error = |answer: &[u8]| {
        Message::parse(answer).unwrap().unverified().get(attr::ADDRESS_ERROR_CODE).map(<[u8]>::to_vec)
    };
    let mut server = TestRelay::with(shared(10, 50_000..=50_003));
    for client in 1..=2 {
        let (code, answer) = server.request(client, "alice", Method::ALLOCATE, even);
        let ports: Vec<_> = addresses(&answer).iter().map(SocketAddr::port).collect();
        assert_eq!((code, ports.len(), error(&answer)), (0, 2, None));
        assert!(ports.iter().all(|port| port.is_multiple_of(2)), "{ports:?}");
    }
    assert_eq!(server.request(3, "alice", Method::ALLOCATE, even).0, 508, "only odd ports are free");
    let mut server = TestRelay::with(shared(10, 50_000..=50_001));
    let v6_even = |b: Builder| {
        udp(b).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]).attribute(attr::EVEN_PORT, &[0])
    };
    assert_eq!(server.request(1, "alice", Method::ALLOCATE, v6_even).0, 0);
    let (code, answer) = server.request(2, "alice", Method::ALLOCATE, even);
    assert_eq!((code, addresses(&answer).len(), error(&answer)), (0, 1, Some(vec![2, 0, 5, 8])));
}

#[test]
fn family_attributes_that_exclude_each_other_are_400() {
    let mut server = TestRelay::new();
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
        assert_eq!(server.request(1, "alice", Method::ALLOCATE, fill).0, code);
    }
}

#[test]
fn a_permission_for_the_other_family_adds_its_relayed_address_unless_forbidden() {
    for (allowed, code) in [(true, 0), (false, 443)] {
        let mut shared = shared(10, 50_000..=50_009);
        shared.features.add_family = allowed;
        let mut server = TestRelay::with(shared);
        server.allocate(1);
        assert_eq!(server.create_permission(1, V6_PEER), code);
        assert_eq!(server.send_data(1, V6_PEER, b"x").is_some_and(|from| from.is_ipv6()), allowed);
        assert_eq!(server.bind_channel(1, 0x4001, V6_PEER), code);
        server.refresh(1, "alice", 0);
        assert!(server.sockets.is_empty());
    }
}

#[test]
fn a_family_whose_port_could_not_be_opened_is_retried_and_a_deleted_one_is_not() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_009));
    server.allocate(1);
    server.refuse_ports = (50_000..=50_009).collect();
    assert_eq!(server.create_permission(1, V6_PEER), 0);
    assert!(!server.sockets.values().any(SocketAddr::is_ipv6), "no port could be opened");
    server.refuse_ports.clear();
    assert!(server.send_data(1, V6_PEER, b"x").is_some_and(|from| from.is_ipv6()));
    let given_up = |b: Builder| {
        b.attribute(attr::LIFETIME, &[0; 4]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])
    };
    assert_eq!(server.request(1, "alice", Method::REFRESH, given_up).0, 0);
    assert!(!server.send_from(1, V6_PEER), "the client has deleted it");
    assert!(!server.sockets.values().any(SocketAddr::is_ipv6));
}

#[test]
fn an_icmp_error_is_forwarded_to_the_client_with_a_permission_for_the_peer() {
    let mut server = TestRelay::new();
    server.allocate(1);
    let relay = server.only_socket();
    server.create_permission(1, PEER);
    let error = IcmpError { peer: addr(PEER), kind: 3, code: 4, data: [0, 0, 5, 220] };
    let at = server.now;
    assert_eq!(server.relay.handle_peer_error(at, relay, error), None, "nothing was sent there");
    server.send_from(1, PEER);
    let data = server.relay.handle_peer_error(at, relay, error).unwrap();
    let message = Message::parse(data.header.as_bytes()).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
    assert_eq!(message.unverified().xor_address(attr::XOR_PEER_ADDRESS), Ok(Some(addr(PEER))));
    assert_eq!(message.unverified().get(attr::ICMP), Some(&[0, 0, 3 << 1, 4, 0, 0, 5, 220][..]));
    assert_eq!(message.unverified().get(attr::DATA), None);
    server.advance(300);
    let at = server.now;
    assert_eq!(server.relay.handle_peer_error(at, relay, error), None, "the permission has expired");
}

#[test]
fn the_time_to_live_is_decremented_and_the_dscp_is_preserved() {
    let mut server = TestRelay::new();
    server.allocate(1);
    let relay = server.only_socket();
    server.bind_channel(1, 0x4001, PEER);
    for (came, leaves) in [(64, Some(63)), (2, Some(1)), (1, None), (0, Some(0))] {
        let ip_header = IpHeader { ttl: came, tos: 0xB9 };
        let expected = leaves.map(|ttl| IpHeader { ttl, tos: 0xB9 });
        let frame = ClientFrame::parse(b"\x40\x01\0\0").unwrap();
        let out = match server.relay.handle_client(server.now, tuple(1), ip_header, frame) {
            Forward::Peer(to) => Some(to.ip_header),
            forward => {
                assert_eq!(forward, Forward::Drop(DropReason::HopLimit));
                None
            }
        };
        assert_eq!(out, expected);
        let back = server.relay.handle_peer(server.now, relay, addr(PEER), ip_header, b"x");
        assert_eq!(back.map(|forward| forward.ip_header), expected.ok_or(DropReason::HopLimit));
    }
}

#[test]
fn dont_fragment_applies_to_the_datagram_that_requests_it() {
    let mut server = TestRelay::new();
    server.allocate(1);
    server.create_permission(1, PEER);
    for asks in [true, false] {
        let mut builder = Builder::new(Class::Indication, Method::SEND, server.transaction())
            .xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
        if asks {
            builder = builder.attribute(attr::DONT_FRAGMENT, b"");
        }
        let bytes = builder.attribute(attr::DATA, b"x").finish();
        let forward = server.forward_to_peer(tuple(1), &bytes).unwrap();
        assert_eq!(forward.dont_fragment, asks);
    }
}
