//! Addresses that this host gets and loses while allocations are there.

use super::*;

/// What this host's interfaces have from now on, besides the relay's own addresses.
fn now_has(world: &mut World, addresses: &[&str]) {
    let mut own: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    own.sort_unstable();
    world.relay.handle_own_addresses(own.into());
}

fn refused(world: &World) -> u64 {
    world.relay.denials().filter(|(rule, _)| *rule == "own address").map(|(_, count)| count).sum()
}

#[test]
fn a_peer_whose_address_this_host_gets_is_none_until_it_goes() {
    let peers = [PEER, "[2606:4700::30]:5000"];
    let mut world = World::new();
    world.allocate(1);
    for (channel, peer) in (0x4000..).zip(peers) {
        assert_eq!((world.permit(1, peer), world.bind(1, channel, peer)), (0, 0), "{peer}");
        assert!(world.indicate(1, peer), "{peer}");
    }
    let sockets: Vec<RelayId> = world.sockets.keys().copied().collect();
    let heard =
        |world: &mut World, peer| sockets.iter().any(|id| world.receive_from_peer(*id, peer).is_some());
    let told = |world: &mut World, channel: u16| {
        let [high, low] = channel.to_be_bytes();
        world.forward_to_peer(tuple(1), &[high, low, 0, 3, 1, 2, 3]).is_some()
    };
    assert!(peers.iter().all(|peer| heard(&mut world, peer)) && told(&mut world, 0x4000));

    now_has(&mut world, &["8.8.8.8", "2606:4700::30"]);
    for (channel, peer) in (0x4000..).zip(peers) {
        assert_eq!((world.permit(1, peer), world.bind(1, channel, peer)), (403, 403), "{peer}");
        let before = (world.relay.drops().total(), refused(&world));
        assert!(!world.indicate(1, peer) && !told(&mut world, channel), "{peer}");
        assert_eq!((world.relay.drops().total(), refused(&world)), (before.0 + 2, before.1 + 2), "{peer}");
        assert!(!heard(&mut world, peer), "{peer}");
    }
    assert_eq!(world.permit(1, "8.8.4.4:0"), 0, "another one");

    now_has(&mut world, &["2606:4700::30"]);
    assert!(world.indicate(1, PEER) && told(&mut world, 0x4000) && heard(&mut world, PEER));
    assert_eq!((world.permit(1, peers[0]), world.permit(1, peers[1])), (0, 403));
}

#[test]
fn own_listeners_are_not_sent_to_under_another_spelling_whatever_is_allowed() {
    let mut shared = shared(10, 50_000..=50_099);
    let allow_peers = ["0.0.0.0/0", "::/0"].iter().map(|net| net.parse().unwrap()).collect();
    let policy = PolicyConfig { allow_peers, own_ports: vec![3478], ..Default::default() };
    shared.policy = Arc::new(PeerPolicy::new(policy, Arc::clone(&shared.ports)));
    let mut world = World::with(shared);
    world.allocate(1);
    for ip in ["127.0.0.1", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::1]", "[::ffff:0:127.0.0.1]"] {
        assert_eq!(world.permit(1, &format!("{ip}:1")), 0, "{ip}");
        assert!(!world.indicate(1, &format!("{ip}:3478")), "{ip}");
        assert!(world.indicate(1, &format!("{ip}:9")), "{ip}");
    }
}

#[test]
fn own_addresses_by_tcp_are_no_peers_either() {
    let mut world = World::new();
    let by_tcp = FiveTuple { transport: Transport::Tcp, ..tuple(1) };
    let tcp = |builder: Builder| builder.attribute(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
    let peer = |builder: Builder| builder.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
    assert_eq!(world.ask_from(by_tcp, "alice", Method::ALLOCATE, tcp).0, 0);
    assert_eq!(world.ask_from(by_tcp, "alice", Method::CREATE_PERMISSION, peer).0, 0);
    let relay = world.only_socket();
    now_has(&mut world, &["8.8.8.8"]);
    assert_eq!(world.ask_from(by_tcp, "alice", Method::CONNECT, peer).0, 403);
    assert_eq!(world.relay.handle_accepted(world.now, relay, addr(PEER)), None);
    assert_eq!(refused(&world), 2);
    now_has(&mut world, &[]);
    assert!(world.relay.handle_accepted(world.now, relay, addr(PEER)).is_some());
}
