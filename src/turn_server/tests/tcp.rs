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

fn allocate_tcp(server: &mut TestRelay) -> SocketAddr {
    let (code, answer) = server.request_from(stream(1), "alice", Method::ALLOCATE, tcp);
    assert_eq!(code, 0);
    let relayed = Message::parse(&answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    relayed.unwrap().unwrap()
}

/// Sends a Connect request; returns the error code, or the id of the connection to open.
fn connect(server: &mut TestRelay, peer: &str) -> Result<ConnectionId, u16> {
    let builder = Builder::new(Class::Request, Method::CONNECT, server.transaction());
    let bytes = server.sign(stream(1), "alice", builder.xor_address(attr::XOR_PEER_ADDRESS, addr(peer)));
    assert_eq!(server.forward_to_peer(stream(1), &bytes), None);
    let replies = server.drain();
    match server.others.pop() {
        Some(Output::Connect { connection, to, .. }) => {
            assert_eq!((to, replies.len()), (addr(peer), 0));
            Ok(connection)
        }
        _ => Err(Message::parse(&replies[0].1).unwrap().unverified().error_code().unwrap()),
    }
}

fn handle_connected(server: &mut TestRelay, connection: ConnectionId, is_connected: bool) -> u16 {
    server.relay.handle_connected(server.now, connection, is_connected);
    let replies = server.drain();
    let message = Message::parse(&replies[0].1).unwrap();
    if is_connected {
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
    }
    message.unverified().error_code().unwrap_or(0)
}

fn connection_bind(server: &mut TestRelay, client: FiveTuple, user: &str, connection: ConnectionId) -> u16 {
    let builder = Builder::new(Class::Request, Method::CONNECTION_BIND, server.transaction())
        .attribute(attr::CONNECTION_ID, &connection.to_be_bytes());
    let bytes = server.sign(client, user, builder);
    assert_eq!(server.forward_to_peer(client, &bytes), None);
    let replies = server.drain();
    let code = |bytes: &[u8]| Message::parse(bytes).unwrap().unverified().error_code();
    match (server.others.last(), replies.first()) {
        (Some(Output::BindConnection { response: reply, client: joined, connection: with, .. }), None) => {
            assert_eq!((code(reply), *joined, *with), (None, client, connection));
            server.others.pop();
            0
        }
        (_, Some((_, refusal))) => code(refusal).unwrap(),
        _ => panic!("no answer"),
    }
}

#[test]
fn a_client_connects_to_a_peer_and_binds_a_data_connection() {
    let mut server = TestRelay::new();
    let relayed = allocate_tcp(&mut server);
    assert_eq!(server.sockets.values().collect::<Vec<_>>(), [&relayed]);
    let connection = connect(&mut server, PEER).unwrap();
    assert_eq!(handle_connected(&mut server, connection, true), 0);
    assert_eq!(connect(&mut server, PEER), Err(446), "one connection per peer");
    assert_eq!(connection_bind(&mut server, stream(2), "alice", connection), 0);
    assert_eq!(connection_bind(&mut server, stream(3), "alice", connection), 400, "it is already bound");
    server.advance(40);
    assert!(server.others.is_empty(), "a bound connection is not timed");
    server.relay.handle_connection_closed(connection);
    assert!(connect(&mut server, PEER).is_ok());
}

#[test]
fn connect_to_a_relayed_address_requires_a_tcp_allocation_there() {
    let mut server = TestRelay::new();
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0x80]);
    let (code, answer) = server.request_from(stream(9), "bob", Method::ALLOCATE, even);
    assert_eq!(code, 0);
    let relayed = Message::parse(&answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    let relayed = relayed.unwrap().unwrap();
    let reserved = SocketAddr::new(relayed.ip(), relayed.port() + 1);
    let (code, answer) = server.request_from(stream(8), "bob", Method::ALLOCATE, tcp);
    assert_eq!(code, 0);
    let by_tcp = Message::parse(&answer).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    allocate_tcp(&mut server);
    assert_eq!(connect(&mut server, &relayed.to_string()), Err(403), "it is a UDP allocation");
    assert_eq!(connect(&mut server, &reserved.to_string()), Err(403), "no socket is open there");
    assert!(connect(&mut server, &by_tcp.unwrap().unwrap().to_string()).is_ok());
}

#[test]
fn a_peer_that_does_not_accept_is_447_at_once_or_after_thirty_seconds() {
    let mut server = TestRelay::new();
    allocate_tcp(&mut server);
    let connection = connect(&mut server, PEER).unwrap();
    assert_eq!(handle_connected(&mut server, connection, false), 447);
    let connection = connect(&mut server, PEER).unwrap();
    server.others.clear();
    server.now = server.now.after(Duration::from_secs(30));
    server.relay.handle_timeout(server.now);
    let replies = server.drain();
    assert_eq!(Message::parse(&replies[0].1).unwrap().unverified().error_code(), Some(447));
    assert!(server.others.contains(&Output::Disconnect { connection }));
    server.relay.handle_connected(server.now, connection, true);
    assert!(server.drain().is_empty(), "too late");
}

#[test]
fn a_connection_that_is_not_bound_is_closed_after_thirty_seconds() {
    let mut server = TestRelay::new();
    allocate_tcp(&mut server);
    let connection = connect(&mut server, PEER).unwrap();
    handle_connected(&mut server, connection, true);
    server.advance(29);
    assert!(server.others.is_empty());
    server.advance(1);
    assert!(server.others.contains(&Output::Disconnect { connection }));
    assert_eq!(connection_bind(&mut server, stream(2), "alice", connection), 400);
}

#[test]
fn a_connection_is_bound_only_by_its_user_and_only_over_tcp() {
    let mut server = TestRelay::new();
    allocate_tcp(&mut server);
    let connection = connect(&mut server, PEER).unwrap();
    handle_connected(&mut server, connection, true);
    assert_eq!(connection_bind(&mut server, stream(2), "bob", connection), 400);
    assert_eq!(connection_bind(&mut server, tuple(2), "alice", connection), 400);
    assert_eq!(
        connection_bind(&mut server, stream(1), "alice", connection),
        400,
        "a control connection cannot be bound"
    );
    let bare = Builder::new(Class::Request, Method::CONNECTION_BIND, TransactionId::new([8; 12]))
        .attribute(attr::CONNECTION_ID, &connection.to_be_bytes())
        .finish();
    let answer = server.send(stream(2), &bare);
    assert_eq!(Message::parse(&answer).unwrap().unverified().error_code(), Some(401));
    assert!(server.others.is_empty(), "the pending connection is unchanged");
    assert_eq!(connection_bind(&mut server, stream(2), "alice", connection), 0);
}

#[test]
fn a_peer_that_connects_is_announced_if_it_has_a_permission() {
    let mut server = TestRelay::new();
    let relayed = allocate_tcp(&mut server);
    let relay = server.only_socket();
    assert_eq!(server.relay.handle_accepted(server.now, relay, addr(PEER)), None);
    let permit = |b: Builder| b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
    assert_eq!(server.request_from(stream(1), "alice", Method::CREATE_PERMISSION, permit).0, 0);
    let connection = server.relay.handle_accepted(server.now, relay, addr(PEER_ON_ANOTHER_PORT)).unwrap();
    let replies = server.drain();
    let message = Message::parse(&replies[0].1).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::CONNECTION_ATTEMPT));
    assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
    let peer = message.unverified().xor_address(attr::XOR_PEER_ADDRESS);
    assert_eq!((replies[0].0, peer), (stream(1), Ok(Some(addr(PEER_ON_ANOTHER_PORT)))));
    assert_eq!(
        connect(&mut server, PEER_ON_ANOTHER_PORT),
        Err(446),
        "a connection between these addresses exists"
    );
    assert!(connect(&mut server, PEER).is_ok(), "another port is allowed");
    assert_eq!(connection_bind(&mut server, stream(2), "alice", connection), 0);
    let own_door = SocketAddr::new(relayed.ip(), 3478).to_string();
    assert_eq!(server.relay.handle_accepted(server.now, relay, addr(&own_door)), None);
}

#[test]
fn connect_to_a_denied_peer_gets_403() {
    let mut server = TestRelay::new();
    allocate_tcp(&mut server);
    for peer in ["127.0.0.1:80", "[::ffff:10.0.0.1]:80", "169.254.169.254:80", "198.41.0.4:3478"] {
        assert_eq!(connect(&mut server, peer), Err(403), "{peer}");
    }
    assert_eq!(connect(&mut server, "8.8.8.8:0"), Err(400));
    assert_eq!(connect(&mut server, "[2606:4700::99]:80"), Err(443));
}

#[test]
fn connect_to_a_udp_relayed_address_and_send_to_a_tcp_one_are_refused() {
    let mut server = TestRelay::new();
    let connections = allocate_tcp(&mut server);
    let datagrams = server.allocate(2);
    assert_eq!(connect(&mut server, &datagrams.to_string()), Err(403), "another program may listen there");
    assert_eq!(server.bind_channel(2, 0x4001, &connections.to_string()), 0);
    let forward = server.handle(tuple(2), b"\x40\x01\0\x02hi");
    assert_eq!(forward, Forward::Drop(DropReason::ClosedRelayPort));
}

#[test]
fn udp_and_tcp_allocations_refuse_each_others_requests() {
    let mut server = TestRelay::new();
    assert_eq!(
        server.request(1, "alice", Method::ALLOCATE, tcp).0,
        400,
        "a TCP allocation requires a control connection over TCP"
    );
    for kind in [attr::EVEN_PORT, attr::DONT_FRAGMENT, attr::RESERVATION_TOKEN] {
        let fill = |b: Builder| tcp(b).attribute(kind, &[0]);
        assert_eq!(server.request_from(stream(1), "alice", Method::ALLOCATE, fill).0, 400);
    }
    allocate_tcp(&mut server);
    let bound = server
        .request_from(stream(1), "alice", Method::CHANNEL_BIND, |b| channel_bind(b, 0x4001, addr(PEER)));
    assert_eq!(bound.0, 400);
    let udp_client = FiveTuple { transport: Transport::Tcp, ..tuple(7) };
    assert_eq!(server.request_from(udp_client, "alice", Method::ALLOCATE, udp).0, 0);
    let connect = |b: Builder| b.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
    assert_eq!(server.request_from(udp_client, "alice", Method::CONNECT, connect).0, 400);
    server.relay.shared.features.tcp = false;
    assert_eq!(server.request_from(stream(9), "alice", Method::ALLOCATE, tcp).0, 442);
}

#[test]
fn the_connections_of_an_allocation_close_when_it_ends() {
    let mut server = TestRelay::new();
    allocate_tcp(&mut server);
    let bound = connect(&mut server, PEER).unwrap();
    handle_connected(&mut server, bound, true);
    connection_bind(&mut server, stream(2), "alice", bound);
    let pending = connect(&mut server, PEER_ON_ANOTHER_PORT).unwrap();
    server.others.clear();
    server.relay.handle_client_gone(stream(1));
    server.drain();
    for connection in [bound, pending] {
        assert!(server.others.contains(&Output::Disconnect { connection }));
    }
    assert!(server.relay.is_empty() && server.sockets.is_empty());
    assert_eq!(server.relay.poll_timeout(), None);
}

#[test]
fn each_of_two_relayed_addresses_carries_connections_of_its_family() {
    let mut server = TestRelay::new();
    let both = |b: Builder| tcp(b).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    let bytes = both(Builder::new(Class::Request, Method::ALLOCATE, server.transaction()));
    let bytes = server.sign(stream(1), "alice", bytes);
    assert_eq!(server.forward_to_peer(stream(1), &bytes), None);
    let mut opened = Vec::new();
    while let Some(Output::OpenRelaySocket { relay, address, tcp }) = server.relay.poll_output() {
        opened.push((tcp, address.is_ipv6()));
        server.relay.handle_relay_opened(server.now, relay, Ok(()));
    }
    assert_eq!(opened, [(true, false), (true, true)]);
    let builder = Builder::new(Class::Request, Method::CONNECT, server.transaction());
    let to: SocketAddr = addr("[2606:4700::99]:80");
    let bytes = server.sign(stream(1), "alice", builder.xor_address(attr::XOR_PEER_ADDRESS, to));
    server.forward_to_peer(stream(1), &bytes);
    server.drain();
    assert!(matches!(server.others[..], [Output::Connect { from, .. }] if from.is_ipv6()));
}

#[test]
fn a_connect_refused_for_too_many_new_peers_leaves_no_connection() {
    let mut server = TestRelay::new();
    server.relay.shared.limits.new_peers = Rate::with_burst_time(1, Duration::from_secs(1));
    allocate_tcp(&mut server);
    let first = connect(&mut server, PEER).unwrap();
    assert_eq!(connect(&mut server, PEER_ON_ANOTHER_PORT), Err(508));
    server.advance(1);
    assert!(connect(&mut server, PEER_ON_ANOTHER_PORT).is_ok(), "the connection does not exist");
    server.relay.handle_connection_closed(first);
    assert_eq!(server.relay.counters().new_peers_refused, 1);
}
