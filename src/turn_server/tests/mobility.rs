//! Allocations that move with their clients (RFC 8016).

use super::*;

fn mobile(builder: Builder) -> Builder {
    udp(builder).attribute(attr::MOBILITY_TICKET, b"")
}

fn ticket(answer: &[u8]) -> Option<Vec<u8>> {
    Message::parse(answer).unwrap().unverified().get(attr::MOBILITY_TICKET).map(<[u8]>::to_vec)
}

fn allocate_mobile(server: &mut TestRelay) -> Vec<u8> {
    let (code, answer) = server.request(1, "alice", Method::ALLOCATE, mobile);
    assert_eq!(code, 0);
    ticket(&answer).unwrap()
}

fn resume(server: &mut TestRelay, port: u16, user: &str, sealed: &[u8]) -> (u16, Vec<u8>) {
    server.request(port, user, Method::REFRESH, |b| b.attribute(attr::MOBILITY_TICKET, sealed))
}

#[test]
fn a_moved_allocation_keeps_its_relayed_address_permissions_and_quota() {
    let mut server = TestRelay::with(shared(1, 50_000..=50_009));
    let first = allocate_mobile(&mut server);
    server.bind_channel(1, 0x4001, PEER);
    let relay = server.only_socket();
    let (code, answer) = resume(&mut server, 2, "alice", &first);
    assert_eq!((code, server.shared.quota.held()), (0, 1));
    let second = ticket(&answer).unwrap();
    assert_ne!(first, second);
    assert_eq!(server.forward_to_peer(tuple(1), b"\x40\x01\0\0"), None, "the old 5-tuple has no allocation");
    assert!(server.forward_to_peer(tuple(2), b"\x40\x01\0\0").is_some());
    let data = server.relay.handle_peer(server.now, relay, addr(PEER), IP_HEADER, b"x").unwrap();
    assert_eq!(data.client, tuple(2));
    assert_eq!(
        resume(&mut server, 3, "alice", &first).0,
        400,
        "a used ticket is invalid from another address"
    );
    assert_eq!(resume(&mut server, 2, "alice", &first).0, 0, "the response may have been lost");
    assert_eq!(resume(&mut server, 3, "alice", &second).0, 0);
    server.advance(600);
    assert!(server.relay.is_empty() && server.shared.quota.held() == 0);
}

#[test]
fn a_mobility_ticket_is_valid_only_for_its_user_and_cannot_be_forged() {
    let mut server = TestRelay::new();
    let own = allocate_mobile(&mut server);
    assert_eq!(resume(&mut server, 2, "bob", &own).0, 441);
    let mut forged = own.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(resume(&mut server, 2, "alice", &forged).0, 400);
    assert_eq!(resume(&mut server, 2, "alice", b"").0, 400);
    assert_eq!(resume(&mut server, 2, "alice", &own[..20]).0, 400);
    server.refresh(1, "alice", 0);
    assert_eq!(resume(&mut server, 2, "alice", &own).0, 437, "its allocation has ended");
    let other = allocate_mobile(&mut server);
    assert_eq!(
        resume(&mut server, 2, "alice", &own).0,
        437,
        "its number has been reused by another allocation"
    );
    assert_eq!(resume(&mut server, 2, "alice", &other).0, 0);
}

#[test]
fn an_allocation_does_not_move_to_a_5_tuple_that_has_one() {
    let mut server = TestRelay::new();
    let own = allocate_mobile(&mut server);
    server.allocate(2);
    assert_eq!(resume(&mut server, 2, "alice", &own).0, 437);
    assert_eq!(
        resume(&mut server, 1, "alice", &own).0,
        0,
        "from the same 5-tuple the ticket is only renewed"
    );
}

#[test]
fn mobility_can_be_disabled_and_must_be_requested() {
    let mut server = TestRelay::new();
    let (_, answer) = server.request(1, "alice", Method::ALLOCATE, udp);
    assert_eq!(ticket(&answer), None);
    let filled = |b: Builder| udp(b).attribute(attr::MOBILITY_TICKET, b"x");
    assert_eq!(server.request(2, "alice", Method::ALLOCATE, filled).0, 400);
    let own = {
        let (_, answer) = server.request(3, "alice", Method::ALLOCATE, mobile);
        ticket(&answer).unwrap()
    };
    server.relay.shared.features.mobility = false;
    assert_eq!(server.request(4, "alice", Method::ALLOCATE, mobile).0, 405);
    assert_eq!(resume(&mut server, 5, "alice", &own).0, 405);
}

#[test]
fn a_ticket_of_another_worker_forwards_the_request_to_it() {
    let mut server = TestRelay::new();
    let own = allocate_mobile(&mut server);
    let of_worker_1 = SharedState { worker: 1, ..server.shared.clone() };
    let mut other = TestRelay::with(of_worker_1);
    let builder = Builder::new(Class::Request, Method::REFRESH, other.transaction());
    let bytes = other.sign(tuple(9), "alice", builder.attribute(attr::MOBILITY_TICKET, &own));
    assert_eq!(other.forward_to_peer(tuple(9), &bytes), None);
    assert!(other.drain().is_empty());
    assert_eq!(other.others, [Output::ForwardRequest { client: tuple(9), worker: 0, bytes: bytes.clone() }]);
    other.allocate(8);
    let occupied = other.request(8, "alice", Method::REFRESH, |b| b.attribute(attr::MOBILITY_TICKET, &own));
    assert_eq!(occupied.0, 437, "the 5-tuple has an allocation on this worker");
    let answer = server.send(tuple(9), &bytes);
    assert!(ticket(&answer).is_some());
    server.refresh(9, "alice", 0);
    assert!(server.others.contains(&Output::ClientLeft { client: tuple(9) }));
}
