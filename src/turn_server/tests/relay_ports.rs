//! Relay ports: each belongs to one allocation, and all that arrives there to its client.

use super::*;
use rand::seq::SliceRandom;

/// A world with room for very many allocations.
fn roomy() -> World {
    let mut shared = shared(10_000, 49_152..=65_535);
    shared.quota = Arc::new(AllocationQuota::new(10_000, 10_000));
    // All of them are one user's here.
    shared.limits.user_new_peers = crate::limits::Rate::UNLIMITED;
    World::with(shared)
}

/// Returns the relay port of a relayed address.
fn relay_of(world: &World, address: SocketAddr) -> RelayId {
    *world.sockets.iter().find(|(_, open)| **open == address).unwrap().0
}

/// Passes on what a client sends over its channel 0x4001; returns which client of the server has it now.
fn tell(worlds: &mut [World; 2], (world, client): (usize, u16), payload: &[u8]) -> Option<u16> {
    let frame = [&[0x40, 1, 0, payload.len() as u8], payload].concat();
    let (received, passed) = match worlds[world].handle(tuple(client), &frame) {
        Forward::LocalClient(received) => (received.clone(), &frame[received.payload]),
        Forward::OtherWorker(InternalPacket { worker, route, ip_header, payload }) => {
            let (receiver, payload) = (&mut worlds[usize::from(worker)], &frame[payload]);
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
    let mut world = roomy();
    let mut relayed = HashMap::new();
    for client in 1..=5000 {
        let address = world.allocate(client);
        assert!((49_152..=65_535).contains(&address.port()));
        assert_eq!(relayed.insert(address, client), None, "a relayed address belongs to one allocation");
        assert_eq!(world.bind(client, 0x4001, PEER), 0);
    }
    let relays: HashMap<_, _> = world.sockets.iter().map(|(relay, address)| (*address, *relay)).collect();
    for (address, client) in &relayed {
        let forward = world.forward_to_peer(tuple(*client), b"\x40\x01\0\x01x").unwrap();
        assert_eq!(forward.relay, relays[address]);
        let heard = world.relay.handle_peer(world.now, relays[address], addr(PEER), IP_HEADER, b"x").unwrap();
        assert_eq!(heard.client, tuple(*client));
    }
    for client in 1..=5000 {
        world.refresh(client, "alice", 0);
    }
    assert_eq!((world.sockets.len(), world.shared.ports.leased(), world.shared.quota.held()), (0, 0, 0));
}

#[test]
fn a_peer_that_speaks_first_or_moves_is_heard_by_whom_it_speaks_to() {
    let mut world = roomy();
    let relayed: Vec<_> = (1..=40).map(|client| world.allocate(client)).collect();
    // All peers share one address, as behind one NAT, and every client permits it before it has sent anything.
    for client in 1..=40 {
        assert_eq!(world.permit(client, PEER), 0);
    }
    for (client, relayed) in (1..).zip(&relayed) {
        for port in [20_000 + client, 30_000 + client, 40_000] {
            let peer = format!("8.8.8.8:{port}");
            assert_eq!(world.receive_at(*relayed, &peer, b"first"), Some(client));
            assert_eq!(world.send_data(client, &peer, b"x"), Some(*relayed), "and it is answered from there");
        }
    }
}

#[test]
fn nothing_that_others_do_brings_a_client_what_is_sent_to_another_ones_address() {
    let mut world = roomy();
    let victim = world.allocate(1);
    assert_eq!(world.permit(1, PEER), 0);
    for client in 2..=20 {
        world.allocate(client);
        assert_eq!(world.bind(client, 0x4001, PEER), 0);
        assert_eq!(world.bind(client, 0x4002, &victim.to_string()), 0);
        world.send_data(client, PEER, b"x");
    }
    assert_eq!(world.receive_at(victim, PEER, b"x"), Some(1));
    world.wait(300);
    assert_eq!(world.receive_at(victim, PEER, b"x"), None, "without a permission it is nobody's");
}

#[test]
fn pairs_of_clients_in_any_order_reach_each_other_across_workers() {
    let first = roomy();
    let second = World::with(SharedState { worker: 1, ..first.shared.clone() });
    let mut worlds = [first, second];
    let mut clients: Vec<(usize, u16)> =
        (0..100).map(|number| (usize::from(number % 2), number + 1)).collect();
    clients.shuffle(&mut ChaCha20Rng::from_seed([3; 32]));
    let relayed: Vec<_> =
        clients.iter().map(|(world, client)| worlds[*world].allocate(*client).to_string()).collect();
    let mut order: Vec<usize> = (0..clients.len()).collect();
    order.shuffle(&mut ChaCha20Rng::from_seed([4; 32]));
    for number in &order {
        let (world, client) = clients[*number];
        assert_eq!(worlds[world].bind(client, 0x4001, &relayed[number ^ 1]), 0);
    }
    for number in order.into_iter().rev() {
        assert_eq!(tell(&mut worlds, clients[number], b"x"), Some(clients[number ^ 1].1));
    }
}

#[test]
fn data_between_two_clients_takes_the_short_way_by_the_same_rules() {
    let mut world = World::with(shared(10, 50_000..=50_003));
    let (one, two) = (world.allocate(1), world.allocate(2));
    assert_eq!(world.bind(1, 0x4001, &two.to_string()), 0);
    assert_eq!(world.bind(1, 0x4002, PEER), 0);
    let to_peer = world.handle(tuple(1), b"\x40\x02\0\x02hi");
    assert!(matches!(to_peer, Forward::Peer(_)), "a peer elsewhere");
    let frame = b"\x40\x01\0\x02hi";
    let refused = world.handle(tuple(1), frame);
    assert_eq!(refused, Forward::Drop(DropReason::NoPermission), "the other side permits nobody yet");
    assert_eq!(world.bind(2, 0x4005, &one.to_string()), 0);
    let Forward::LocalClient(forward) = world.handle(tuple(1), frame) else { panic!("not forwarded") };
    assert_eq!((forward.client, &frame[forward.payload]), (tuple(2), &b"hi"[..]));
    assert_eq!(forward.header.as_bytes(), [0x40, 5, 0, 2]);
    let counters = world.relay.counters();
    assert_eq!((counters.bytes_to_peers, counters.bytes_to_clients), (6, 2), "counted on both sides");
    world.refresh(2, "alice", 0);
    let gone = world.handle(tuple(1), frame);
    assert_eq!(gone, Forward::Drop(DropReason::PeerDenied), "nobody has that address any more");
}

#[test]
fn a_packet_on_its_way_to_a_port_that_has_closed_reaches_nobody() {
    let mut world = roomy();
    let (one, two) = (world.allocate(1), world.allocate(2));
    assert_eq!(world.bind(1, 0x4001, &two.to_string()), 0);
    assert_eq!(world.permit(2, &one.to_string()), 0);
    let relay = relay_of(&world, two);
    let route = InternalRoute { from: one, to: two, relay };
    assert!(world.relay.handle_internal(world.now, route, IP_HEADER, b"x").is_ok());
    world.refresh(2, "alice", 0);
    // The next client's port has the name that the one that has closed had.
    let third = world.allocate(3);
    assert_eq!((relay_of(&world, third), third == two), (relay, false));
    assert_eq!(world.permit(3, &one.to_string()), 0);
    assert_eq!(
        world.relay.handle_internal(world.now, route, IP_HEADER, b"x"),
        Err(DropReason::ClosedRelayPort)
    );
}

#[test]
fn a_permission_for_a_relayed_address_ignores_the_port_and_other_ports_stay_closed() {
    let mut world = World::new();
    let (one, two) = (world.allocate(1), world.allocate(2));
    for port in [1, 22, 3478, one.port()] {
        assert_eq!(
            world.permit(1, &SocketAddr::new(two.ip(), port).to_string()),
            0,
            "a permission names no port"
        );
    }
    assert_eq!(world.permit(2, &one.to_string()), 0);
    assert!(world.indicate(1, &two.to_string()));
    for port in [1, 22, 3478] {
        let other = SocketAddr::new(two.ip(), port).to_string();
        assert!(!world.indicate(1, &other), "{other}");
        assert_eq!(world.receive_at(one, &other, b"x"), None, "{other}");
        assert_eq!(world.bind(1, 0x4001, &other), 403, "a channel names the port: {other}");
    }
}

#[test]
fn datagrams_do_not_leave_for_a_leased_port_that_takes_none() {
    let mut world = World::with(shared(10, 50_000..=50_003));
    world.allocate(1);
    let (_, pair) = world.ask(2, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    let even = Message::parse(&pair).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    let even = even.unwrap().unwrap();
    let reserved = SocketAddr::new(even.ip(), even.port() + 1);
    assert_eq!(world.bind(1, 0x4001, &reserved.to_string()), 0);
    let forward = world.handle(tuple(1), b"\x40\x01\0\x02hi");
    assert_eq!(forward, Forward::Drop(DropReason::ClosedRelayPort), "another program may listen there");
}

#[test]
fn without_a_socket_to_have_an_allocate_is_refused_at_once_and_counted_apart_from_a_full_range() {
    let mut world = World::with(shared(10, 50_000..=50_003));
    world.refuse_ports = (50_000..=50_003).collect();
    world.refusal = RelaySocketError::NoSocket;
    assert_eq!(world.ask(1, "alice", Method::ALLOCATE, udp).0, 508);
    let counters = world.relay.counters();
    assert_eq!((counters.sockets_refused, counters.ports_exhausted), (1, 0), "no other port is tried");
    assert_eq!((world.shared.ports.leased(), world.shared.quota.held()), (0, 0));
    world.refuse_ports.clear();
    for client in 1..=4 {
        world.allocate(client);
    }
    assert_eq!(world.ask(5, "alice", Method::ALLOCATE, udp).0, 508);
    let counters = world.relay.counters();
    assert_eq!((counters.sockets_refused, counters.ports_exhausted), (1, 1));
}

#[test]
fn a_pair_of_which_the_system_refuses_one_is_replaced_by_another_pair() {
    let mut world = World::with(shared(10, 50_000..=50_003));
    world.refuse_ports = HashSet::from([50_000]);
    let (code, pair) =
        world.ask(1, "alice", Method::ALLOCATE, |b| udp(b).attribute(attr::EVEN_PORT, &[0x80]));
    let message = Message::parse(&pair).unwrap().unverified();
    let even = message.xor_address(attr::XOR_RELAYED_ADDRESS).unwrap().unwrap();
    assert_eq!((code, even.port(), world.shared.ports.leased()), (0, 50_002, 2));
    let token = message.get(attr::RESERVATION_TOKEN).unwrap().to_vec();
    let claim = |b: Builder| udp(b).attribute(attr::RESERVATION_TOKEN, &token);
    let (code, next) = world.ask(2, "alice", Method::ALLOCATE, claim);
    let next = Message::parse(&next).unwrap().unverified().xor_address(attr::XOR_RELAYED_ADDRESS);
    assert_eq!((code, next.unwrap().unwrap().port()), (0, 50_003));
}

#[test]
fn an_allocation_remembers_a_bounded_number_of_peers() {
    let mut shared = shared(10, 50_000..=50_009);
    shared.limits.new_peers = crate::limits::Rate::UNLIMITED;
    shared.limits.user_new_peers = crate::limits::Rate::UNLIMITED;
    let mut world = World::with(shared);
    world.allocate(1);
    world.permit(1, PEER);
    assert!((1..2000).all(|port| world.indicate(1, &format!("8.8.8.8:{port}"))));
    let (_, allocation) = world.relay.allocations.iter().next().unwrap();
    assert_eq!(allocation.peers().count(), 512);
}

#[test]
fn a_client_may_send_to_more_peers_than_are_remembered_at_the_rate_of_new_ones() {
    let mut world = World::new();
    world.allocate(1);
    world.permit(1, PEER);
    world.refresh(1, "alice", 3600);
    let mut sent = 0;
    for number in 0..1000_u16 {
        if number % 32 == 0 {
            world.wait(1);
        }
        if number % 256 == 0 {
            world.permit(1, PEER);
        }
        sent += usize::from(world.indicate(1, &format!("8.8.8.8:{}", 1000 + number)));
    }
    assert_eq!((sent, world.relay.counters().new_peers_refused), (1000, 0));
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
    let mut world = World::with(shared);
    let (one, two) = (world.allocate(1), world.allocate(2));
    assert_eq!((one.ip(), two.ip()), (advertised, advertised));
    assert_eq!(world.bind(1, 0x4001, &two.to_string()), 0);
    assert_eq!(world.permit(2, &one.to_string()), 0);
    let on_wire = |address: SocketAddr| SocketAddr::new(local, address.port());
    let forward = world.handle(tuple(1), b"\x40\x01\0\x02hi");
    assert!(matches!(forward, Forward::LocalClient(to) if to.client == tuple(2)));
    let of_two = relay_of(&world, on_wire(two));
    let data = world.receive_from_peer(of_two, &on_wire(one).to_string()).unwrap();
    let named = Message::parse(&data).unwrap().unverified().xor_address(attr::XOR_PEER_ADDRESS);
    assert_eq!(named, Ok(Some(one)), "the client knows its peer by the public address");
    assert_eq!(world.permit(2, "198.41.0.4:22"), 0, "a permission names no port");
    assert!(
        !world.indicate(2, "198.41.0.4:22"),
        "a permission for the address does not open the server's own ports"
    );
    assert!(!world.indicate(2, "198.41.0.4:3478"));
}

#[test]
fn a_channel_outlives_a_relayed_address_that_could_not_be_had_and_its_peer_gets_no_second_one() {
    const V6_PEER: &str = "[2606:4700::99]:7";
    let mut world = World::new();
    world.allocate(1);
    world.refuse_ports = (50_000..=50_099).collect();
    assert_eq!(world.bind(1, 0x4001, V6_PEER), 0, "promised before the system has refused the port");
    assert!(!world.sockets.values().any(SocketAddr::is_ipv6));
    assert_eq!(world.bind(1, 0x4002, V6_PEER), 400, "a peer has one channel");
    assert_eq!(world.bind(1, 0x4001, PEER), 400, "and a channel one peer");
    world.refuse_ports.clear();
    let forward = world.forward_to_peer(tuple(1), b"\x40\x01\0\x02hi\0\0").unwrap();
    assert_eq!((forward.peer, forward.payload), (addr(V6_PEER), 4..6));
    let relay = forward.relay;
    world.drain();
    assert_eq!(world.receive_from_peer(relay, V6_PEER).unwrap()[..2], *b"\x40\x01");
}

#[test]
fn allocations_spread_over_all_addresses_of_a_family() {
    let mut shared = shared(100, 50_000..=50_001);
    let ips = [RELAY_IP, "198.41.0.5", "198.41.0.6"].map(|ip| ip.parse::<IpAddr>().unwrap());
    shared.addresses = ips.map(|ip| RelayAddress { local: ip, advertised: ip }).into();
    shared.ports = Arc::new(RelayPorts::new(&shared.addresses, 50_000..=50_001));
    let mut world = World::with(shared);
    let relayed: HashSet<_> = (1..=6).map(|client| world.allocate(client)).collect();
    assert_eq!(relayed.len(), 6);
    assert_eq!(world.ask(7, "alice", Method::ALLOCATE, udp).0, 508);
    assert_eq!(world.relay.counters().ports_exhausted, 1);
}
