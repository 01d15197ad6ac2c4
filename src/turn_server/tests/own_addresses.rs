//! Addresses that this host gets and loses while allocations are there.

use super::*;

/// What this host's interfaces have from now on, besides the relay's own addresses.
fn now_has(server: &mut TestRelay, addresses: &[&str]) {
    let mut own: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    own.sort_unstable();
    server.relay.handle_own_addresses(own.into());
}

fn refused(server: &TestRelay) -> u64 {
    server.relay.denials().filter(|(rule, _)| *rule == "own address").map(|(_, count)| count).sum()
}

#[test]
fn an_address_that_this_host_acquires_is_denied_as_a_peer_until_it_is_removed() {
    let peers = [PEER, "[2606:4700::30]:5000"];
    let mut server = TestRelay::new();
    server.allocate(1);
    for (channel, peer) in (0x4000..).zip(peers) {
        assert_eq!(
            (server.create_permission(1, peer), server.bind_channel(1, channel, peer)),
            (0, 0),
            "{peer}"
        );
        assert!(server.send_from(1, peer), "{peer}");
    }
    let sockets: Vec<RelayId> = server.sockets.keys().copied().collect();
    let receives =
        |server: &mut TestRelay, peer| sockets.iter().any(|id| server.receive_from_peer(*id, peer).is_some());
    let channel_data_passes = |server: &mut TestRelay, channel: u16| {
        let [high, low] = channel.to_be_bytes();
        server.forward_to_peer(tuple(1), &[high, low, 0, 3, 1, 2, 3]).is_some()
    };
    assert!(peers.iter().all(|peer| receives(&mut server, peer)) && channel_data_passes(&mut server, 0x4000));

    now_has(&mut server, &["8.8.8.8", "2606:4700::30"]);
    for (channel, peer) in (0x4000..).zip(peers) {
        assert_eq!(
            (server.create_permission(1, peer), server.bind_channel(1, channel, peer)),
            (403, 403),
            "{peer}"
        );
        let before = (server.relay.drops().total(), refused(&server));
        assert!(!server.send_from(1, peer) && !channel_data_passes(&mut server, channel), "{peer}");
        assert_eq!((server.relay.drops().total(), refused(&server)), (before.0 + 2, before.1 + 2), "{peer}");
        assert!(!receives(&mut server, peer), "{peer}");
    }
    assert_eq!(server.create_permission(1, "8.8.4.4:0"), 0, "another one");

    now_has(&mut server, &["2606:4700::30"]);
    assert!(
        server.send_from(1, PEER) && channel_data_passes(&mut server, 0x4000) && receives(&mut server, PEER)
    );
    assert_eq!((server.create_permission(1, peers[0]), server.create_permission(1, peers[1])), (0, 403));
}

#[test]
fn own_listeners_are_denied_as_peers_in_every_form_of_their_addresses() {
    let mut shared = shared(10, 50_000..=50_099);
    let allow_peers = ["0.0.0.0/0", "::/0"].iter().map(|net| net.parse().unwrap()).collect();
    let policy = PolicyConfig { allow_peers, own_ports: vec![3478], ..Default::default() };
    shared.policy = Arc::new(PeerPolicy::new(policy, Arc::clone(&shared.ports)));
    let mut server = TestRelay::with(shared);
    server.allocate(1);
    for ip in ["127.0.0.1", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::1]", "[::ffff:0:127.0.0.1]"] {
        assert_eq!(server.create_permission(1, &format!("{ip}:1")), 0, "{ip}");
        assert!(!server.send_from(1, &format!("{ip}:3478")), "{ip}");
        assert!(server.send_from(1, &format!("{ip}:9")), "{ip}");
    }
}

#[test]
fn own_addresses_are_denied_as_tcp_peers() {
    let mut server = TestRelay::new();
    let by_tcp = FiveTuple { transport: Transport::Tcp, ..tuple(1) };
    let tcp = |builder: Builder| builder.attribute(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
    let peer = |builder: Builder| builder.xor_address(attr::XOR_PEER_ADDRESS, addr(PEER));
    assert_eq!(server.request_from(by_tcp, "alice", Method::ALLOCATE, tcp).0, 0);
    assert_eq!(server.request_from(by_tcp, "alice", Method::CREATE_PERMISSION, peer).0, 0);
    let relay = server.only_socket();
    now_has(&mut server, &["8.8.8.8"]);
    assert_eq!(server.request_from(by_tcp, "alice", Method::CONNECT, peer).0, 403);
    assert_eq!(server.relay.handle_accepted(server.now, relay, addr(PEER)), None);
    assert_eq!(refused(&server), 2);
    now_has(&mut server, &[]);
    assert!(server.relay.handle_accepted(server.now, relay, addr(PEER)).is_some());
}
