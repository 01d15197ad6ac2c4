//! Allocations that move with their clients (RFC 8016).

use super::*;

fn mobile(builder: Builder) -> Builder {
    udp(builder).attribute(attr::MOBILITY_TICKET, b"")
}

fn ticket(answer: &[u8]) -> Option<Vec<u8>> {
    Message::parse(answer).unwrap().unverified().get(attr::MOBILITY_TICKET).map(<[u8]>::to_vec)
}

fn begin(world: &mut World) -> Vec<u8> {
    let (code, answer) = world.ask(1, "alice", Method::ALLOCATE, mobile);
    assert_eq!(code, 0);
    ticket(&answer).unwrap()
}

fn resume(world: &mut World, port: u16, user: &str, sealed: &[u8]) -> (u16, Vec<u8>) {
    world.ask(port, user, Method::REFRESH, |b| b.attribute(attr::MOBILITY_TICKET, sealed))
}

#[test]
fn an_allocation_moves_with_its_client_and_keeps_address_permissions_and_quota() {
    let mut world = World::with(shared(1, 50_000..=50_009));
    let first = begin(&mut world);
    world.bind(1, 0x4001, PEER);
    let relay = world.only_socket();
    let (code, answer) = resume(&mut world, 2, "alice", &first);
    assert_eq!((code, world.shared.quota.held()), (0, 1));
    let second = ticket(&answer).unwrap();
    assert_ne!(first, second);
    assert_eq!(world.forward_to_peer(tuple(1), b"\x40\x01\0\0"), None, "the old place is dead");
    assert!(world.forward_to_peer(tuple(2), b"\x40\x01\0\0").is_some());
    let data = world.relay.handle_peer(world.now, relay, addr(PEER), IP_HEADER, b"x").unwrap();
    assert_eq!(data.client, tuple(2));
    assert_eq!(
        resume(&mut world, 3, "alice", &first).0,
        400,
        "a ticket that was used is worth nothing elsewhere"
    );
    assert_eq!(resume(&mut world, 2, "alice", &first).0, 0, "but the answer may have been lost");
    assert_eq!(resume(&mut world, 3, "alice", &second).0, 0);
    world.wait(600);
    assert!(world.relay.is_empty() && world.shared.quota.held() == 0);
}

#[test]
fn a_ticket_is_its_users_alone_and_cannot_be_made() {
    let mut world = World::new();
    let own = begin(&mut world);
    assert_eq!(resume(&mut world, 2, "bob", &own).0, 441);
    let mut forged = own.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(resume(&mut world, 2, "alice", &forged).0, 400);
    assert_eq!(resume(&mut world, 2, "alice", b"").0, 400);
    assert_eq!(resume(&mut world, 2, "alice", &own[..20]).0, 400);
    world.refresh(1, "alice", 0);
    assert_eq!(resume(&mut world, 2, "alice", &own).0, 437, "its allocation has ended");
    let other = begin(&mut world);
    assert_eq!(resume(&mut world, 2, "alice", &own).0, 437, "and the next one with its number is another");
    assert_eq!(resume(&mut world, 2, "alice", &other).0, 0);
}

#[test]
fn a_place_that_is_taken_is_no_place_to_move_to() {
    let mut world = World::new();
    let own = begin(&mut world);
    world.allocate(2);
    assert_eq!(resume(&mut world, 2, "alice", &own).0, 437);
    assert_eq!(resume(&mut world, 1, "alice", &own).0, 0, "from where it is the ticket is only renewed");
}

#[test]
fn mobility_can_be_forbidden_and_must_be_asked_for() {
    let mut world = World::new();
    let (_, answer) = world.ask(1, "alice", Method::ALLOCATE, udp);
    assert_eq!(ticket(&answer), None);
    let filled = |b: Builder| udp(b).attribute(attr::MOBILITY_TICKET, b"x");
    assert_eq!(world.ask(2, "alice", Method::ALLOCATE, filled).0, 400);
    let own = {
        let (_, answer) = world.ask(3, "alice", Method::ALLOCATE, mobile);
        ticket(&answer).unwrap()
    };
    world.relay.shared.features.mobility = false;
    assert_eq!(world.ask(4, "alice", Method::ALLOCATE, mobile).0, 405);
    assert_eq!(resume(&mut world, 5, "alice", &own).0, 405);
}

#[test]
fn another_workers_ticket_sends_the_client_there() {
    let mut world = World::new();
    let own = begin(&mut world);
    let elsewhere = SharedState { worker: 1, ..world.shared.clone() };
    let mut other = World::with(elsewhere);
    let builder = Builder::new(Class::Request, Method::REFRESH, other.transaction());
    let bytes = other.signed(tuple(9), "alice", builder.attribute(attr::MOBILITY_TICKET, &own));
    assert_eq!(other.forward_to_peer(tuple(9), &bytes), None);
    assert!(other.drain().is_empty());
    assert_eq!(other.others, [Output::ForwardRequest { client: tuple(9), worker: 0, bytes: bytes.clone() }]);
    other.allocate(8);
    let own_place = other.ask(8, "alice", Method::REFRESH, |b| b.attribute(attr::MOBILITY_TICKET, &own));
    assert_eq!(own_place.0, 437, "where this worker serves an allocation there is no room for that one's");
    let answer = world.send(tuple(9), &bytes);
    assert!(ticket(&answer).is_some());
    world.refresh(9, "alice", 0);
    assert!(world.others.contains(&Output::ClientLeft { client: tuple(9) }));
}
