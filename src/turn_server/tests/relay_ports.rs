//! Relay ports: each belongs to one allocation, whose client receives all datagrams that arrive there.

use super::*;
use rand::seq::SliceRandom;

/// A relay that allows 10 000 allocations to one user.
fn large_relay() -> TestRelay {
    let mut shared = shared(10_000, 49_152..=65_535);
    shared.quota = Arc::new(AllocationQuota::new(10_000, 10_000));
    // All allocations belong to one user.
    shared.limits.user_new_peers = crate::limits::Rate::UNLIMITED;
    TestRelay::with(shared)
}

/// Returns the relay port of a relayed address.
fn relay_of(server: &TestRelay, address: SocketAddr) -> RelayId {
    *server.sockets.iter().find(|(_, open)| **open == address).unwrap().0
}

/// Forwards a payload that a client sends over its channel 0x4001; returns the client that receives it.
fn forward_to_client(
    servers: &mut [TestRelay; 2],
    (server, client): (usize, u16),
    payload: &[u8],
) -> Option<u16> {
    let frame = [&[0x40, 1, 0, payload.len() as u8], payload].concat();
    let (received, passed) = match servers[server].handle(tuple(client), &frame) {
        Forward::LocalClient(received) => (received.clone(), &frame[received.payload]),
        Forward::OtherWorker(InternalPacket { worker, route, ip_header, payload }) => {
            let (receiver, payload) = (&mut servers[usize::from(worker)], &frame[payload]);
            let received = receiver.relay.handle_internal(receiver.now, route, ip_header, payload).ok()?;
            (received.clone(), &payload[received.payload])
        }
        _ => return None,
    };
    assert_eq!(passed, payload);
    Some(received.client.client.port())
}

#[test]
fn five_thousand_clients_of_one_peer_address_each_have_a_port_and_lose_nothing() {
    let mut server = large_relay();
    let mut relayed = HashMap::new();
    for client in 1..=5000 {
        let address = server.allocate(client);
        assert!((49_152..=65_535).contains(&address.port()));
        assert_eq!(relayed.insert(address, client), None, "a relayed address belongs to one allocation");
        assert_eq!(server.bind_channel(client, 0x4001, PEER), 0);
    }
    let relays: HashMap<_, _> = server.sockets.iter().map(|(relay, address)| (*address, *relay)).collect();
    for (address, client) in &relayed {
        let forward = server.forward_to_peer(tuple(*client), b"\x40\x01\0\x01x").unwrap();
        assert_eq!(forward.relay, relays[address]);
        let received =
            server.relay.handle_peer(server.now, relays[address], addr(PEER), IP_HEADER, b"x").unwrap();
        assert_eq!(received.client, tuple(*client));
    }
    for client in 1..=5000 {
        server.refresh(client, "alice", 0);
    }
    assert_eq!((server.sockets.len(), server.shared.ports.leased(), server.shared.quota.held()), (0, 0, 0));
}

#[test]
fn a_peer_that_sends_first_or_changes_its_port_reaches_the_client_it_sends_to() {
    let mut server = large_relay();
    let relayed: Vec<_> = (1..=40).map(|client| server.allocate(client)).collect();
    // All peers share one address, as behind one NAT, and every client has a permission for it before it sends.
    for client in 1..=40 {
        assert_eq!(server.create_permission(client, PEER), 0);
    }
    for (client, relayed) in (1..).zip(&relayed) {
        for port in [20_000 + client, 30_000 + client, 40_000] {
            let peer = format!("8.8.8.8:{port}");
            assert_eq!(server.receive_at(*relayed, &peer, b"first"), Some(client));
            assert_eq!(
                server.send_data(client, &peer, b"x"),
                Some(*relayed),
                "the reply leaves from the same address"
            );
        }
    }
}

#[test]
fn no_request_of_another_client_diverts_the_data_for_a_relayed_address() {
    let mut server = large_relay();
    let victim = server.allocate(1);
    assert_eq!(server.create_permission(1, PEER), 0);
    for client in 2..=20 {
        server.allocate(client);
        assert_eq!(server.bind_channel(client, 0x4001, PEER), 0);
        assert_eq!(server.bind_channel(client, 0x4002, &victim.to_string()), 0);
        server.send_data(client, PEER, b"x");
    }
    assert_eq!(server.receive_at(victim, PEER, b"x"), Some(1));
    server.advance(300);
    assert_eq!(server.receive_at(victim, PEER, b"x"), None, "no permission");
}

#[test]
fn pairs_of_clients_in_any_order_reach_each_other_across_workers() {
    let first = large_relay();
    let second = TestRelay::with(SharedState { worker: 1, ..first.shared.clone() });
    let mut servers = [first, second];
    let mut clients: Vec<(usize, u16)> =
        (0..100).map(|number| (usize::from(number % 2), number + 1)).collect();
    clients.shuffle(&mut ChaCha20Rng::from_seed([3; 32]));
    let relayed: Vec<_> =
        clients.iter().map(|(server, client)| servers[*server].allocate(*client).to_string()).collect();
    let mut order: Vec<usize> = (0..clients.len()).collect();
    order.shuffle(&mut ChaCha20Rng::from_seed([4; 32]));
    for number in &order {
        let (server, client) = clients[*number];
        assert_eq!(servers[server].bind_channel(client, 0x4001, &relayed[number ^ 1]), 0);
    }
    for number in order.into_iter().rev() {
        assert_eq!(forward_to_client(&mut servers, clients[number], b"x"), Some(clients[number ^ 1].1));
    }
}

#[test]
fn data_between_two_clients_is_forwarded_internally_by_the_same_rules() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_003));
    let (one, two) = (server.allocate(1), server.allocate(2));
    assert_eq!(server.bind_channel(1, 0x4001, &two.to_string()), 0);
    assert_eq!(server.bind_channel(1, 0x4002, PEER), 0);
    let to_peer = server.handle(tuple(1), b"\x40\x02\0\x02hi");
    assert!(matches!(to_peer, Forward::Peer(_)), "a remote peer");
    let frame = b"\x40\x01\0\x02hi";
    let refused = server.handle(tuple(1), frame);
    assert_eq!(refused, Forward::Drop(DropReason::NoPermission), "the other side has no permission");
    assert_eq!(server.bind_channel(2, 0x4005, &one.to_string()), 0);
    let Forward::LocalClient(forward) = server.handle(tuple(1), frame) else { panic!("not forwarded") };
    assert_eq!((forward.client, &frame[forward.payload]), (tuple(2), &b"hi"[..]));
    assert_eq!(forward.header.as_bytes(), [0x40, 5, 0, 2]);
    let counters = server.relay.counters();
    assert_eq!((counters.bytes_to_peers, counters.bytes_to_clients), (6, 2), "counted on both sides");
    server.refresh(2, "alice", 0);
    let gone = server.handle(tuple(1), frame);
    assert_eq!(gone, Forward::Drop(DropReason::PeerDenied), "the allocation has ended");
}

#[test]
fn an_internal_packet_for_a_closed_port_is_dropped() {
    let mut server = large_relay();
    let (one, two) = (server.allocate(1), server.allocate(2));
    assert_eq!(server.bind_channel(1, 0x4001, &two.to_string()), 0);
    assert_eq!(server.create_permission(2, &one.to_string()), 0);
    let relay = relay_of(&server, two);
    let route = InternalRoute { from: one, to: two, relay };
    assert!(server.relay.handle_internal(server.now, route, IP_HEADER, b"x").is_ok());
    server.refresh(2, "alice", 0);
    // The next client's port has the name that the one that has closed had.
    let third = server.allocate(3);
    assert_eq!((relay_of(&server, third), third == two), (relay, false));
    assert_eq!(server.create_permission(3, &one.to_string()), 0);
    assert_eq!(
        server.relay.handle_internal(server.now, route, IP_HEADER, b"x"),
        Err(DropReason::ClosedRelayPort)
    );
}

#[test]
fn a_permission_for_a_relayed_address_covers_all_relay_ports_and_no_other_port() {
    let mut server = TestRelay::new();
    let (one, two) = (server.allocate(1), server.allocate(2));
    for port in [1, 22, 3478, one.port()] {
        assert_eq!(
            server.create_permission(1, &SocketAddr::new(two.ip(), port).to_string()),
            0,
            "a permission names no port"
        );
    }
    assert_eq!(server.create_permission(2, &one.to_string()), 0);
    assert!(server.send_from(1, &two.to_string()));
    for port in [1, 22, 3478] {
        let other = SocketAddr::new(two.ip(), port).to_string();
        assert!(!server.send_from(1, &other), "{other}");
        assert_eq!(server.receive_at(one, &other, b"x"), None, "{other}");
        assert_eq!(server.bind_channel(1, 0x4001, &other), 403, "a channel names the port: {other}");
    }
}

#[test]
fn datagrams_for_a_leased_port_without_a_udp_allocation_are_dropped() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_003));
    server.allocate(1);
    let (_, pair) =
        server.request(2, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    let even = Message::parse(&pair).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    let even = even.unwrap().unwrap();
    let reserved = SocketAddr::new(even.ip(), even.port() + 1);
    assert_eq!(server.bind_channel(1, 0x4001, &reserved.to_string()), 0);
    let forward = server.handle(tuple(1), b"\x40\x01\0\x02hi");
    assert_eq!(forward, Forward::Drop(DropReason::ClosedRelayPort), "another program may listen there");
}

#[test]
fn an_allocate_without_a_free_descriptor_is_refused_at_once_and_not_counted_as_a_full_port_range() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_003));
    server.refuse_ports = (50_000..=50_003).collect();
    server.refusal = RelaySocketError::NoSocket;
    assert_eq!(server.request(1, "alice", Method::ALLOCATE, udp).0, 508);
    let counters = server.relay.counters();
    assert_eq!((counters.sockets_refused, counters.ports_exhausted), (1, 0), "no other port is tried");
    assert_eq!((server.shared.ports.leased(), server.shared.quota.held()), (0, 0));
    server.refuse_ports.clear();
    for client in 1..=4 {
        server.allocate(client);
    }
    assert_eq!(server.request(5, "alice", Method::ALLOCATE, udp).0, 508);
    let counters = server.relay.counters();
    assert_eq!((counters.sockets_refused, counters.ports_exhausted), (1, 1));
}

#[test]
fn a_port_pair_of_which_one_cannot_be_opened_is_replaced() {
    let mut server = TestRelay::with(shared(10, 50_000..=50_003));
    server.refuse_ports = HashSet::from([50_000]);
    let (code, pair) =
        server.request(1, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    let message = Message::parse(&pair).unwrap().unverified();
    let even = message.xor_address(attr::XOR_RELAYED_ADDRESS).unwrap().unwrap();
    assert_eq!((code, even.port(), server.shared.ports.leased()), (0, 50_002, 2));
    let token = message.get(attr::RESERVATION_TOKEN).unwrap().to_vec();
    let claim = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    let (code, next) = server.request(2, "alice", Method::ALLOCATE, claim);
    let next = Message::parse(&next).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    assert_eq!((code, next.unwrap().unwrap().port()), (0, 50_003));
}

#[test]
fn an_allocation_remembers_a_bounded_number_of_peers() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.limits.new_peers = crate::limits::Rate::UNLIMITED;
    shared.limits.user_new_peers = crate::limits::Rate::UNLIMITED;
    let mut server = TestRelay::with(shared);
    server.allocate(1);
    server.create_permission(1, PEER);
    assert!((1..2000).all(|port| server.send_from(1, &format!("8.8.8.8:{port}"))));
    let (_, allocation) = server.relay.allocations.iter().next().unwrap();
    assert_eq!(allocation.peers().count(), 512);
}

#[test]
fn sending_to_more_peers_than_are_remembered_is_limited_by_the_rate_of_new_peers() {
    let mut server = TestRelay::new();
    server.allocate(1);
    server.create_permission(1, PEER);
    server.refresh(1, "alice", 3600);
    let mut sent = 0;
    for number in 0..1000_u16 {
        if number % 32 == 0 {
            server.advance(1);
        }
        if number % 256 == 0 {
            server.create_permission(1, PEER);
        }
        sent += usize::from(server.send_from(1, &format!("8.8.8.8:{}", 1000 + number)));
    }
    assert_eq!((sent, server.relay.counters().new_peers_refused), (1000, 0));
}

#[test]
fn clients_behind_a_one_to_one_nat_reach_each_other_by_the_public_address() {
    let mut shared = shared(10, 50_000..=50_003);
    let (local, advertised): (IpAddr, IpAddr) = ("10.0.0.5".parse().unwrap(), "198.41.0.4".parse().unwrap());
    shared.addresses = [RelayAddress { local, advertised }].into();
    shared.ports = Arc::new(RelayPorts::new(&shared.addresses, 50_000..=50_003));
    let policy =
        PolicyConfig { own_addresses: vec![local, advertised], own_ports: vec![3478], ..Default::default() };
    shared.policy = Arc::new(PeerPolicy::new(policy, Arc::clone(&shared.ports)));
    let mut server = TestRelay::with(shared);
    let (one, two) = (server.allocate(1), server.allocate(2));
    assert_eq!((one.ip(), two.ip()), (advertised, advertised));
    assert_eq!(server.bind_channel(1, 0x4001, &two.to_string()), 0);
    assert_eq!(server.create_permission(2, &one.to_string()), 0);
    let on_wire = |address: SocketAddr| SocketAddr::new(local, address.port());
    let forward = server.handle(tuple(1), b"\x40\x01\0\x02hi");
    assert!(matches!(forward, Forward::LocalClient(to) if to.client == tuple(2)));
    let of_two = relay_of(&server, on_wire(two));
    let data = server.receive_from_peer(of_two, &on_wire(one).to_string()).unwrap();
    let named = Message::parse(&data).unwrap().unverified().xor_address(attr::XOR_PEER_ADDRESS);
    assert_eq!(named, Ok(Some(one)), "the client knows its peer by the public address");
    assert_eq!(server.create_permission(2, "198.41.0.4:22"), 0, "a permission names no port");
    assert!(
        !server.send_from(2, "198.41.0.4:22"),
        "a permission for the address does not open the server's own ports"
    );
    assert!(!server.send_from(2, "198.41.0.4:3478"));
}

#[test]
fn a_channel_remains_if_its_additional_relayed_address_cannot_be_opened_and_its_peer_gets_no_second_channel()
{
    const V6_PEER: &str = "[2606:4700::99]:7";
    let mut server = TestRelay::new();
    server.allocate(1);
    server.refuse_ports = (50_000..=50_099).collect();
    assert_eq!(server.bind_channel(1, 0x4001, V6_PEER), 0, "promised before the system has refused the port");
    assert!(!server.sockets.values().any(SocketAddr::is_ipv6));
    assert_eq!(server.bind_channel(1, 0x4002, V6_PEER), 400, "a peer has one channel");
    assert_eq!(server.bind_channel(1, 0x4001, PEER), 400, "and a channel one peer");
    server.refuse_ports.clear();
    let forward = server.forward_to_peer(tuple(1), b"\x40\x01\0\x02hi\0\0").unwrap();
    assert_eq!((forward.peer, forward.payload), (addr(V6_PEER), 4..6));
    let relay = forward.relay;
    server.drain();
    assert_eq!(server.receive_from_peer(relay, V6_PEER).unwrap()[..2], *b"\x40\x01");
}

#[test]
fn allocations_spread_over_all_addresses_of_a_family() {
    let mut shared = shared(100, 50_000..=50_001);
    let ips = [RELAY_IP, "198.41.0.5", "198.41.0.6"].map(|ip| ip.parse::<IpAddr>().unwrap());
    shared.addresses = ips.map(|ip| RelayAddress { local: ip, advertised: ip }).into();
    shared.ports = Arc::new(RelayPorts::new(&shared.addresses, 50_000..=50_001));
    let mut server = TestRelay::with(shared);
    let relayed: HashSet<_> = (1..=6).map(|client| server.allocate(client)).collect();
    assert_eq!(relayed.len(), 6);
    assert_eq!(server.request(7, "alice", Method::ALLOCATE, udp).0, 508);
    assert_eq!(server.relay.counters().ports_exhausted, 1);
}
