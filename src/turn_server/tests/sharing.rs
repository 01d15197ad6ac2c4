//! Relay ports that many allocations share.

use super::*;

const SAME_IP: &str = "8.8.8.8:6000";

/// A world whose allocations all begin on one port, with three more to spill over to.
fn crowded() -> World {
    let mut shared = shared(10_000, 50_000..=50_003);
    shared.limits.shared_ports = 1;
    World::with(shared)
}

/// An ICE connectivity check from `sender` to `receiver`.
fn check(receiver: &str, sender: &str) -> Vec<u8> {
    Builder::new(Class::Request, Method::BINDING, TransactionId::new([3; 12]))
        .attribute(attr::USERNAME, format!("{receiver}:{sender}").as_bytes())
        .integrity(&Key::short_term("x"))
        .finish()
}

#[test]
fn five_thousand_allocations_fit_in_sixty_four_ports() {
    let mut shared = shared(10_000, 50_000..=50_063);
    shared.quota = Arc::new(Quota::new(10_000, 10_000));
    (shared.limits.shared_ports, shared.limits.homes) = (48, 48);
    let mut world = World::with(shared);
    let peer = |client: u16| format!("9.{}.{}.1:7", client / 250, client % 250);
    let mut relayed = HashMap::new();
    for client in 1..=5000 {
        relayed.insert(client, world.allocate(client));
        assert_eq!(world.permit(client, &peer(client)), 0);
    }
    let mut tenants: HashMap<_, usize> = HashMap::new();
    relayed.values().for_each(|address| *tenants.entry(*address).or_default() += 1);
    assert_eq!((tenants.len(), world.sockets.len()), (48, 48));
    assert!(
        tenants.values().all(|count| (104..=105).contains(count)),
        "the emptiest port is next: {tenants:?}"
    );
    for client in 1..=5000 {
        assert_eq!(world.send_data(client, &peer(client), b"x"), Some(relayed[&client]));
        assert_eq!(world.hear_at(relayed[&client], &peer(client), b"x"), Some(client));
    }
    for client in 1..=5000 {
        world.refresh(client, "alice", 0);
    }
    assert!(world.sockets.is_empty() && world.relay.is_empty(), "the ports come back");
}

#[test]
fn few_homes_are_enough_until_clients_want_the_same_peer() {
    let mut shared = shared(10_000, 50_000..=50_063);
    shared.quota = Arc::new(Quota::new(1000, 1000));
    let ports = RelayPorts::new(&shared.addresses, 50_000..=50_063).with_spill(51_000..=51_999);
    shared.ports = Arc::new(ports);
    shared.limits.shared_ports = 48;
    let mut world = World::with(shared);
    for client in 1..=100 {
        world.allocate(client);
        world.bind(client, 0x4001, &format!("9.9.9.9:{client}"));
    }
    assert_eq!(world.sockets.len(), 4);
    for client in 1..=100 {
        assert_eq!(world.bind(client, 0x4002, PEER), 0);
    }
    assert!(world.sockets.len() >= 100, "one for each of them");
    let homes: HashSet<_> = (101..=200).map(|client| world.allocate(client)).collect();
    assert_eq!(homes.len(), 44, "others settle where there is room now, none where clients are not told of");
}

#[test]
fn ports_are_shared_only_when_there_are_more_allocations_than_ports() {
    let mut shared = shared(10, 50_000..=50_007);
    shared.limits.shared_ports = 4;
    let mut world = World::with(shared);
    let relayed: HashSet<_> = (1..=4).map(|client| world.allocate(client)).collect();
    assert_eq!(relayed.len(), 4);
    assert!(relayed.contains(&world.allocate(5)));
}

#[test]
fn tenants_of_one_port_hear_their_own_peers() {
    let mut world = crowded();
    let shared = world.allocate(1);
    assert_eq!(world.allocate(2), shared);
    world.permit(1, PEER);
    world.bind(2, 0x4001, "8.8.4.4:9");
    assert_eq!(world.send_data(1, PEER, b"x"), Some(shared));
    assert_eq!(world.hear_at(shared, PEER, b"x"), Some(1));
    assert_eq!(
        world.hear_at(shared, "8.8.8.8:1234", b"x"),
        Some(1),
        "the only one with a permission for the address"
    );
    assert_eq!(world.hear_at(shared, "8.8.4.4:9", b"x"), Some(2));
    assert_eq!(world.hear_at(shared, "9.9.9.9:9", b"x"), None);
    assert_eq!(world.relay.counters().spilled, 0);
}

#[test]
fn the_second_client_of_a_peer_spills_over_to_another_port_and_both_work() {
    let mut world = crowded();
    let shared = world.allocate(1);
    world.allocate(2);
    world.permit(1, PEER);
    world.permit(2, PEER);
    assert_eq!(world.send_data(1, PEER, b"x"), Some(shared));
    // The port is opened by the first packet, as a resolution would be; the hands open it before the next.
    let second = world.bind(2, 0x4001, PEER);
    assert_eq!(second, 0);
    let other = world.send_data(2, PEER, b"x").unwrap();
    assert_ne!(other, shared);
    assert_eq!(world.hear_at(shared, PEER, b"x"), Some(1));
    assert_eq!(world.hear_at(other, PEER, b"x"), Some(2));
    assert_eq!(world.hear_at(other, SAME_IP, b"x"), None, "nobody lives there");
    assert_eq!(world.relay.counters().spilled, 1);
    world.refresh(2, "alice", 0);
    assert_eq!(world.sockets.len(), 1, "the port they spilled over to comes back");
    world.refresh(1, "alice", 0);
    assert!(world.sockets.is_empty());
}

#[test]
fn when_every_port_is_taken_for_a_peer_a_channel_gets_508_and_send_is_dropped() {
    let mut world = crowded();
    for client in 1..=5 {
        world.allocate(client);
        world.permit(client, PEER);
    }
    for client in 1..=4 {
        assert_eq!(world.bind(client, 0x4001, PEER), 0);
    }
    assert_eq!(world.bind(5, 0x4001, PEER), 508);
    assert!(!world.indicate(5, PEER));
    assert!(world.indicate(5, SAME_IP), "another port of the same host is another peer");
    world.refresh(1, "alice", 0);
    assert_eq!(world.bind(5, 0x4001, PEER), 0);
}

#[test]
fn a_popular_peer_has_more_clients_than_there_are_relay_ports() {
    let mut shared = shared(10_000, 50_000..=50_003);
    let ports = RelayPorts::new(&shared.addresses, 50_000..=50_003).with_spill(51_000..=51_999);
    shared.ports = Arc::new(ports);
    shared.quota = Arc::new(Quota::new(1000, 1000));
    shared.limits.shared_ports = 3;
    let mut world = World::with(shared);
    let mut seen = HashMap::new();
    for client in 1..=300 {
        assert!((50_000..=50_003).contains(&world.allocate(client).port()), "what clients are told");
        assert_eq!(world.bind(client, 0x4001, PEER), 0);
        let from = world.send_data(client, PEER, b"x").unwrap();
        assert_eq!(seen.insert(from, client), None, "the peer can tell its clients apart");
    }
    for (from, client) in &seen {
        assert_eq!(world.hear_at(*from, PEER, b"x"), Some(*client));
    }
    for client in 1..=300 {
        world.refresh(client, "alice", 0);
    }
    assert_eq!((world.sockets.len(), world.shared.ports.leased()), (0, 0));
}

#[test]
fn a_peer_whose_permission_is_over_can_be_claimed_by_the_next() {
    let mut world = crowded();
    let shared = world.allocate(1);
    world.allocate(2);
    world.permit(1, PEER);
    world.indicate(1, PEER);
    world.wait(300);
    world.permit(2, PEER);
    assert_eq!(world.send_data(2, PEER, b"x"), Some(shared));
    assert_eq!(world.hear_at(shared, PEER, b"x"), Some(2));
    world.permit(1, PEER);
    assert_ne!(world.bind(1, 0x4001, PEER), 400);
    assert_ne!(world.send_data(1, PEER, b"x"), Some(shared));
}

#[test]
fn a_connectivity_check_finds_the_tenant_it_names() {
    let mut world = crowded();
    let shared = world.allocate(1);
    world.allocate(2);
    world.permit(1, PEER);
    world.permit(2, PEER);
    assert_eq!(world.hear_at(shared, PEER, &check("one", "peer")), None, "nobody is known by a name yet");
    world.send_data(1, SAME_IP, &check("somebody", "one"));
    world.send_data(2, "8.8.8.8:6001", &check("peer", "two"));
    assert_eq!(world.hear_at(shared, PEER, &check("two", "peer")), Some(2));
    assert_eq!(world.hear_at(shared, PEER, &check("one", "peer")), Some(1));
    assert_eq!(world.hear_at(shared, PEER, &check("three", "peer")), None);
    assert_eq!(world.hear_at(shared, PEER, b"no check"), None);
    assert_eq!(world.relay.counters().ambiguous, 3);
    assert_eq!(world.send_data(2, PEER, b"data"), Some(shared));
    assert_eq!(world.hear_at(shared, PEER, b"no check"), Some(2), "it has claimed the peer by answering");
}

#[test]
fn a_peer_that_was_heard_stays_with_the_only_tenant_that_permitted_it() {
    let mut world = crowded();
    let shared = world.allocate(1);
    world.allocate(2);
    world.permit(1, PEER);
    assert_eq!(world.hear_at(shared, PEER, b"x"), Some(1));
    world.permit(2, PEER);
    assert_eq!(world.hear_at(shared, PEER, b"x"), Some(1), "another client cannot take a peer over");
}

/// Sends `payload` over a client's channel 0x4001; returns which client of the server has it now.
fn tell(world: &mut World, client: u16, payload: &[u8]) -> Option<u16> {
    let frame = [&[0x40, 1, 0, payload.len() as u8], payload].concat();
    let forward = world.relay.handle_client(world.now, tuple(client), MARKS, &frame)?;
    match world.relay.onward(world.now, forward) {
        Onward::Back(forward) => Some(forward.client.client.port()),
        _ => None,
    }
}

#[test]
fn two_clients_with_the_same_relayed_address_reach_each_other() {
    let mut world = crowded();
    let shared = world.allocate(1);
    assert_eq!(world.allocate(2), shared);
    for client in [1, 2] {
        assert_eq!(world.bind(client, 0x4001, &shared.to_string()), 0);
    }
    assert_eq!(tell(&mut world, 1, b"x"), Some(2), "not its own echo");
    assert_eq!(tell(&mut world, 2, b"x"), Some(1));
    assert_eq!(world.sockets.len(), 1);
}

#[test]
fn pairs_of_clients_reach_each_other_however_few_addresses_they_share() {
    for homes in 1..=3 {
        let mut shared = shared(10_000, 50_000..=50_003);
        shared.quota = Arc::new(Quota::new(1000, 1000));
        (shared.limits.shared_ports, shared.limits.homes) = (3, homes);
        let mut world = World::with(shared);
        let relayed: Vec<_> = (0..60).map(|client| world.allocate(client).to_string()).collect();
        for client in 0..60 {
            assert_eq!(world.bind(client, 0x4001, &relayed[usize::from(client) ^ 1]), 0);
        }
        for client in 0..60 {
            assert_eq!(tell(&mut world, client, b"x"), Some(client ^ 1), "with {homes} homes");
        }
        assert_eq!(world.sockets.len(), homes, "nobody leaves its home for another client's sake");
        assert_eq!((world.relay.counters().ambiguous, world.relay.counters().spilled), (0, 0));
    }
}

#[test]
fn whom_a_connectivity_check_names_takes_the_place_of_who_was_there_first() {
    let mut world = crowded();
    let shared = world.allocate(1).to_string();
    world.allocate(2);
    world.allocate(3);
    // The third client wants what is meant for the second.
    assert_eq!(world.bind(3, 0x4001, &shared), 0);
    assert_eq!(world.bind(1, 0x4001, &shared), 0);
    assert_eq!(tell(&mut world, 1, b"x"), Some(3), "as far as can be known");
    assert_eq!(world.bind(2, 0x4001, &shared), 0);
    tell(&mut world, 2, &check("one", "two"));
    assert_eq!(tell(&mut world, 1, &check("two", "one")), Some(2));
    assert_eq!(tell(&mut world, 1, b"x"), Some(2), "from now on");
    assert_eq!(tell(&mut world, 2, &check("one", "two")), Some(1));
    assert_eq!(tell(&mut world, 2, b"x"), Some(1));
}

#[test]
fn who_waits_behind_one_address_with_others_is_nobodys_partner() {
    let mut world = crowded();
    let shared = world.allocate(1).to_string();
    (2..=4).for_each(|client| {
        world.allocate(client);
    });
    for client in 1..=4 {
        world.permit(client, &shared);
    }
    assert_eq!(world.bind(1, 0x4001, &shared), 0);
    assert_eq!(tell(&mut world, 1, b"x"), None, "three permit the address");
    assert_eq!(world.relay.counters().ambiguous, 1);
}

#[test]
fn a_partner_that_has_gone_leaves_its_place_to_nobody() {
    let mut world = crowded();
    let shared = world.allocate(1).to_string();
    world.allocate(2);
    for client in [1, 2] {
        assert_eq!(world.bind(client, 0x4001, &shared), 0);
    }
    assert_eq!(tell(&mut world, 1, b"x"), Some(2));
    world.refresh(2, "alice", 0);
    // They take the place that was the partner's, and permit the address.
    for client in [3, 4] {
        world.allocate(client);
        world.permit(client, &shared);
    }
    assert_eq!(tell(&mut world, 1, b"x"), None);
    assert_eq!(world.bind(4, 0x4001, &shared), 0);
    assert_eq!(tell(&mut world, 1, b"x"), Some(4), "who asks for it is the next");
}

#[test]
fn nothing_is_left_of_who_talked_with_whom_whoever_goes_first() {
    for first in [1, 2] {
        let mut world = World::with(shared(10, 50_000..=50_003));
        let ports = Arc::clone(&world.relay.shared.ports);
        let (one, two) = (world.allocate(1), world.allocate(2));
        assert_ne!(one, two);
        assert_eq!(world.bind(1, 0x4001, &two.to_string()), 0);
        assert!(!ports.introductions.is_empty());
        // The other one may have gone, and its port been closed, before a packet was sent.
        for client in [first, 3 - first] {
            world.refresh(client, "alice", 0);
        }
        assert!(ports.introductions.is_empty(), "client {first} went first");
    }
}

#[test]
fn data_between_two_clients_takes_the_short_way_by_the_same_rules() {
    let mut world = World::with(shared(10, 50_000..=50_003));
    let (one, two) = (world.allocate(1), world.allocate(2));
    assert_eq!(world.bind(1, 0x4001, &two.to_string()), 0);
    assert_eq!(world.bind(1, 0x4002, PEER), 0);
    let onward = |world: &mut World, frame: &'static [u8]| {
        let forward = world.relay.handle_client(world.now, tuple(1), MARKS, frame).unwrap();
        world.relay.onward(world.now, forward)
    };
    assert!(matches!(onward(&mut world, b"\x40\x02\0\x02hi"), Onward::Out(_)), "a peer elsewhere");
    assert_eq!(onward(&mut world, b"\x40\x01\0\x02hi"), Onward::Nowhere, "the other side permits nobody yet");
    assert_eq!(world.bind(2, 0x4005, &one.to_string()), 0);
    let Onward::Back(forward) = onward(&mut world, b"\x40\x01\0\x02hi") else { panic!("not handed over") };
    assert_eq!((forward.client, forward.payload), (tuple(2), &b"hi"[..]));
    assert_eq!(forward.header.as_bytes(), [0x40, 5, 0, 2]);
    let counters = world.relay.counters();
    assert_eq!((counters.bytes_to_peers, counters.bytes_to_clients), (6, 2), "counted on both sides");
    world.refresh(2, "alice", 0);
    let gone = world.relay.handle_client(world.now, tuple(1), MARKS, b"\x40\x01\0\x02hi");
    assert_eq!(gone, None, "nobody lives there any more");
}

#[test]
fn even_ports_are_nobodys_but_their_clients() {
    let mut world = crowded();
    let even = |b: Builder| udp(b).attribute(attr::EVEN_PORT, &[0]);
    assert_eq!(world.ask(1, "alice", Method::ALLOCATE, even).0, 0);
    let alone = *world.sockets.values().next().unwrap();
    assert_ne!(world.allocate(2), alone);
    assert_ne!(world.allocate(3), alone);
    world.permit(2, PEER);
    world.permit(3, PEER);
    world.bind(2, 0x4001, PEER);
    world.bind(3, 0x4001, PEER);
    assert_ne!(world.send_data(3, PEER, b"x"), Some(alone));
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
    let forward = world.relay.handle_client(world.now, tuple(1), MARKS, b"\x40\x01\0\x02hi").unwrap();
    assert_eq!(forward.peer, on_wire(two));
    let of_two = *world.sockets.iter().find(|(_, address)| **address == on_wire(two)).unwrap().0;
    let data = world.hear_peer(of_two, &on_wire(one).to_string()).unwrap();
    let named = Message::parse(&data).unwrap().unverified().xor_address(attr::XOR_PEER_ADDRESS);
    assert_eq!(named, Ok(Some(one)), "the client knows its peer by the public address");
    assert_eq!(world.permit(2, "198.41.0.4:22"), 403);
    assert!(
        !world.indicate(2, "198.41.0.4:22"),
        "a permission for the address does not open the server's own ports"
    );
    assert!(!world.indicate(2, "198.41.0.4:3478"));
}

#[test]
fn a_channel_outlives_the_port_that_its_peer_knew_and_its_peer_gets_no_second_one() {
    let mut world = crowded();
    // Both permit the peer; it is the first one's on the port that they share, so the second one's needs another port.
    world.allocate(1);
    world.allocate(2);
    world.refuse_ports = (50_000..=50_099).collect();
    assert_eq!(world.bind(1, 0x4001, PEER), 0);
    assert_eq!(world.bind(2, 0x4001, PEER), 0, "promised before the system has refused the port");
    assert_eq!(world.bind(2, 0x4002, PEER), 400, "a peer has one channel");
    assert_eq!(world.bind(2, 0x4001, "8.8.4.4:1"), 400, "and a channel one peer");
    world.refuse_ports.clear();
    let forward = world.relay.handle_client(world.now, tuple(2), MARKS, b"\x40\x01\0\x02hi\0\0").unwrap();
    assert_eq!((forward.peer, forward.payload), (addr(PEER), &b"hi"[..]));
    let relay = forward.relay;
    world.drain();
    assert_eq!(world.hear_peer(relay, PEER).unwrap()[..2], *b"\x40\x01");
}
