//! Connections to peers (RFC 6062).

use super::*;
use crate::limits::Rate;
use crate::turn_server::ConnectionId;

const PEER_ON_ANOTHER_PORT: &str = "8.8.8.8:5001";

fn stream(port: u16) -> FiveTuple {
    FiveTuple { transport: Transport::Tcp, ..tuple(port) }
}

fn tcp(builder: Builder) -> Builder {
    builder.attribute(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0])
}

fn begin(world: &mut World) -> SocketAddr {
    let (code, answer) = world.ask_from(stream(1), "alice", Method::ALLOCATE, tcp);
    assert_eq!(code, 0);
    let relayed = Message::parse(&answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    relayed.unwrap().unwrap()
}

/// Sends a Connect request; returns the error code, or the id of the connection to open.
fn connect(world: &mut World, peer: &str) -> Result<ConnectionId, u16> {
    let builder = Builder::new(Class::Request, Method::CONNECT, world.transaction());
    let bytes = world.signed(stream(1), "alice", builder.xor_address(attr::XOR_PEER_ADDRESS, addr(peer)));
    assert_eq!(world.forward_to_peer(stream(1), &bytes), None);
    let replies = world.drain();
    match world.others.pop() {
        Some(Output::Connect { connection, to, .. }) => {
            assert_eq!((to, replies.len()), (addr(peer), 0));
            Ok(connection)
        }
        _ => Err(Message::parse(&replies[0].1).unwrap().unverified().error_code().unwrap()),
    }
}

fn connected(world: &mut World, connection: ConnectionId, well: bool) -> u16 {
    world.relay.handle_connected(world.now, connection, well);
    let replies = world.drain();
    let message = Message::parse(&replies[0].1).unwrap();
    if well {
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
    }
    message.unverified().error_code().unwrap_or(0)
}

fn bind(world: &mut World, client: FiveTuple, user: &str, connection: ConnectionId) -> u16 {
    let builder = Builder::new(Class::Request, Method::CONNECTION_BIND, world.transaction())
        .attribute(attr::CONNECTION_ID, &connection.to_be_bytes());
    let bytes = world.signed(client, user, builder);
    assert_eq!(world.forward_to_peer(client, &bytes), None);
    let replies = world.drain();
    let code = |bytes: &[u8]| Message::parse(bytes).unwrap().unverified().error_code();
    match (world.others.last(), replies.first()) {
        (Some(Output::BindConnection { response: reply, client: joined, connection: with, .. }), None) => {
            assert_eq!((code(reply), *joined, *with), (None, client, connection));
            world.others.pop();
            0
        }
        (_, Some((_, refusal))) => code(refusal).unwrap(),
        _ => panic!("no answer"),
    }
}

#[test]
fn a_client_connects_to_a_peer_and_binds_a_connection_of_its_own() {
    let mut world = World::new();
    let relayed = begin(&mut world);
    assert_eq!(world.sockets.values().collect::<Vec<_>>(), [&relayed]);
    let connection = connect(&mut world, PEER).unwrap();
    assert_eq!(connected(&mut world, connection, true), 0);
    assert_eq!(connect(&mut world, PEER), Err(446), "one connection a peer");
    assert_eq!(bind(&mut world, stream(2), "alice", connection), 0);
    assert_eq!(bind(&mut world, stream(3), "alice", connection), 400, "once");
    world.wait(40);
    assert!(world.others.is_empty(), "a bound connection is not timed");
    world.relay.handle_connection_closed(connection);
    assert!(connect(&mut world, PEER).is_ok());
}

#[test]
fn only_relayed_addresses_that_take_connections_are_connected_to() {
    let mut world = World::new();
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0x80]);
    let (code, answer) = world.ask_from(stream(9), "bob", Method::ALLOCATE, even);
    assert_eq!(code, 0);
    let relayed = Message::parse(&answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    let relayed = relayed.unwrap().unwrap();
    let reserved = SocketAddr::new(relayed.ip(), relayed.port() + 1);
    let (code, answer) = world.ask_from(stream(8), "bob", Method::ALLOCATE, tcp);
    assert_eq!(code, 0);
    let by_tcp = Message::parse(&answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    begin(&mut world);
    assert_eq!(connect(&mut world, &relayed.to_string()), Err(403), "it takes datagrams");
    assert_eq!(connect(&mut world, &reserved.to_string()), Err(403), "nobody has opened it");
    assert!(connect(&mut world, &by_tcp.unwrap().unwrap().to_string()).is_ok());
}

#[test]
fn a_peer_that_does_not_accept_is_447_at_once_or_after_thirty_seconds() {
    let mut world = World::new();
    begin(&mut world);
    let connection = connect(&mut world, PEER).unwrap();
    assert_eq!(connected(&mut world, connection, false), 447);
    let connection = connect(&mut world, PEER).unwrap();
    world.others.clear();
    world.now = world.now.after(Duration::from_secs(30));
    world.relay.handle_timeout(world.now);
    let replies = world.drain();
    assert_eq!(Message::parse(&replies[0].1).unwrap().unverified().error_code(), Some(447));
    assert!(world.others.contains(&Output::Disconnect { connection }));
    world.relay.handle_connected(world.now, connection, true);
    assert!(world.drain().is_empty(), "too late");
}

#[test]
fn a_connection_nobody_binds_is_closed_after_thirty_seconds() {
    let mut world = World::new();
    begin(&mut world);
    let connection = connect(&mut world, PEER).unwrap();
    connected(&mut world, connection, true);
    world.wait(29);
    assert!(world.others.is_empty());
    world.wait(1);
    assert!(world.others.contains(&Output::Disconnect { connection }));
    assert_eq!(bind(&mut world, stream(2), "alice", connection), 400);
}

#[test]
fn a_connection_is_bound_by_its_user_alone_and_by_tcp() {
    let mut world = World::new();
    begin(&mut world);
    let connection = connect(&mut world, PEER).unwrap();
    connected(&mut world, connection, true);
    assert_eq!(bind(&mut world, stream(2), "bob", connection), 400);
    assert_eq!(bind(&mut world, tuple(2), "alice", connection), 400);
    assert_eq!(bind(&mut world, stream(1), "alice", connection), 400, "the control connection stays one");
    let bare = Builder::new(Class::Request, Method::CONNECTION_BIND, TransactionId::new([8; 12]))
        .attribute(attr::CONNECTION_ID, &connection.to_be_bytes())
        .finish();
    let answer = world.send(stream(2), &bare);
    assert_eq!(Message::parse(&answer).unwrap().unverified().error_code(), Some(401));
    assert!(world.others.is_empty(), "nothing happened to the pending connection");
    assert_eq!(bind(&mut world, stream(2), "alice", connection), 0);
}

#[test]
fn a_peer_that_connects_is_announced_if_it_has_a_permission() {
    let mut world = World::new();
    let relayed = begin(&mut world);
    let relay = world.only_socket();
    assert_eq!(world.relay.handle_accepted(world.now, relay, addr(PEER)), None);
    let permit = |b: Builder| b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
    assert_eq!(world.ask_from(stream(1), "alice", Method::CREATE_PERMISSION, permit).0, 0);
    let connection = world.relay.handle_accepted(world.now, relay, addr(PEER_ON_ANOTHER_PORT)).unwrap();
    let replies = world.drain();
    let message = Message::parse(&replies[0].1).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::CONNECTION_ATTEMPT));
    assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
    let peer = message.unverified().xor_address(attr::XOR_PEER_ADDRESS);
    assert_eq!((replies[0].0, peer), (stream(1), Ok(Some(addr(PEER_ON_ANOTHER_PORT)))));
    assert_eq!(connect(&mut world, PEER_ON_ANOTHER_PORT), Err(446), "its ends are taken");
    assert!(connect(&mut world, PEER).is_ok(), "another port is another connection");
    assert_eq!(bind(&mut world, stream(2), "alice", connection), 0);
    let own_door = SocketAddr::new(relayed.ip(), 3478).to_string();
    assert_eq!(world.relay.handle_accepted(world.now, relay, addr(&own_door)), None);
}

#[test]
fn denied_peers_are_no_peers_of_connect_either() {
    let mut world = World::new();
    begin(&mut world);
    for peer in ["127.0.0.1:80", "[::ffff:10.0.0.1]:80", "169.254.169.254:80", "198.41.0.4:3478"] {
        assert_eq!(connect(&mut world, peer), Err(403), "{peer}");
    }
    assert_eq!(connect(&mut world, "8.8.8.8:0"), Err(400));
    assert_eq!(connect(&mut world, "[2606:4700::99]:80"), Err(443));
}

#[test]
fn a_relayed_address_of_datagrams_is_no_peer_of_connect_and_one_of_connections_none_of_send() {
    let mut world = World::new();
    let connections = begin(&mut world);
    let datagrams = world.allocate(2);
    assert_eq!(connect(&mut world, &datagrams.to_string()), Err(403), "another program may listen there");
    assert_eq!(world.bind(2, 0x4001, &connections.to_string()), 0);
    let forward = world.handle(tuple(2), b"\x40\x01\0\x02hi");
    assert_eq!(forward, Forward::Drop(DropReason::ClosedRelayPort));
}

#[test]
fn datagrams_and_streams_keep_apart() {
    let mut world = World::new();
    assert_eq!(world.ask(1, "alice", Method::ALLOCATE, tcp).0, 400, "TCP relaying comes by TCP");
    for kind in [attr::EVEN_PORT, attr::DONT_FRAGMENT, attr::RESERVATION_TOKEN] {
        let fill = |b: Builder| tcp(b).attribute(kind, &[0]);
        assert_eq!(world.ask_from(stream(1), "alice", Method::ALLOCATE, fill).0, 400);
    }
    begin(&mut world);
    let bound =
        world.ask_from(stream(1), "alice", Method::CHANNEL_BIND, |b| channel_bind(b, 0x4001, addr(PEER)));
    assert_eq!(bound.0, 400);
    let udp_client = FiveTuple { transport: Transport::Tcp, ..tuple(7) };
    assert_eq!(world.ask_from(udp_client, "alice", Method::ALLOCATE, udp).0, 0);
    let connect = |b: Builder| b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
    assert_eq!(world.ask_from(udp_client, "alice", Method::CONNECT, connect).0, 400);
    world.relay.shared.features.tcp = false;
    assert_eq!(world.ask_from(stream(9), "alice", Method::ALLOCATE, tcp).0, 442);
}

#[test]
fn the_end_of_an_allocation_is_the_end_of_its_connections() {
    let mut world = World::new();
    begin(&mut world);
    let bound = connect(&mut world, PEER).unwrap();
    connected(&mut world, bound, true);
    bind(&mut world, stream(2), "alice", bound);
    let pending = connect(&mut world, PEER_ON_ANOTHER_PORT).unwrap();
    world.others.clear();
    world.relay.handle_client_gone(stream(1));
    world.drain();
    for connection in [bound, pending] {
        assert!(world.others.contains(&Output::Disconnect { connection }));
    }
    assert!(world.relay.is_empty() && world.sockets.is_empty());
    assert_eq!(world.relay.poll_timeout(), None);
}

#[test]
fn each_of_two_relayed_addresses_carries_connections_of_its_family() {
    let mut world = World::new();
    let both = |b: Builder| tcp(b).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    let bytes = both(Builder::new(Class::Request, Method::ALLOCATE, world.transaction()));
    let bytes = world.signed(stream(1), "alice", bytes);
    assert_eq!(world.forward_to_peer(stream(1), &bytes), None);
    let mut opened = Vec::new();
    while let Some(Output::OpenRelaySocket { relay, address, tcp }) = world.relay.poll_output() {
        opened.push((tcp, address.is_ipv6()));
        world.relay.handle_relay_opened(world.now, relay, Ok(()));
    }
    assert_eq!(opened, [(true, false), (true, true)]);
    let builder = Builder::new(Class::Request, Method::CONNECT, world.transaction());
    let to: SocketAddr = addr("[2606:4700::99]:80");
    let bytes = world.signed(stream(1), "alice", builder.xor_address(attr::XOR_PEER_ADDRESS, to));
    world.forward_to_peer(stream(1), &bytes);
    world.drain();
    assert!(matches!(world.others[..], [Output::Connect { from, .. }] if from.is_ipv6()));
}

#[test]
fn a_connect_refused_for_too_many_new_peers_leaves_no_connection() {
    let mut world = World::new();
    world.relay.shared.limits.new_peers = Rate::with_burst_time(1, Duration::from_secs(1));
    begin(&mut world);
    let first = connect(&mut world, PEER).unwrap();
    assert_eq!(connect(&mut world, PEER_ON_ANOTHER_PORT), Err(508));
    world.wait(1);
    assert!(connect(&mut world, PEER_ON_ANOTHER_PORT).is_ok(), "it does not exist already");
    world.relay.handle_connection_closed(first);
    assert_eq!(world.relay.counters().new_peers_refused, 1);
}
