//! TCP candidates in simulated networks.

use super::pair::PairKey;
use super::simulation::{Nat, Network};
use super::*;
use std::net::SocketAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Two sides with TCP candidates whose datagrams do not pass.
fn network(left: Nat, right: Nat, seed: u64) -> Network {
    let mut network = Network::new([left, right], false, seed);
    network.is_direct_up = false;
    network.gather_tcp(0);
    network.gather_tcp(1);
    network.signal();
    network
}

fn transports(network: &Network) -> [CandidateTransport; 2] {
    [0, 1].map(|side| network.sides[side].agent.selected().unwrap().local.transport)
}

#[test]
fn with_udp_blocked_the_side_behind_a_nat_connects_to_the_open_one() {
    use CandidateTransport::{TcpActive, TcpPassive};
    for seed in 0..10 {
        for (left, right, expected) in [
            (Nat::Open, Nat::Symmetric, [TcpPassive, TcpActive]),
            (Nat::Symmetric, Nat::Open, [TcpActive, TcpPassive]),
        ] {
            let mut network = network(left, right, seed);
            let connected = network.wait(SECOND, Network::is_connected);
            assert!(connected.is_some(), "{left:?} {right:?} {seed}");
            network.run(5 * SECOND);
            assert_eq!(transports(&network), expected, "{left:?} {right:?} {seed}");
            let [left, right] = [0, 1].map(|side| network.sides[side].agent.selected().unwrap());
            assert!(left.local.base == right.remote.address || right.local.base == left.remote.address);
        }
    }
}

#[test]
fn two_nats_are_crossed_by_simultaneous_open() {
    for seed in 0..10 {
        for nat in [Nat::FullCone, Nat::AddressRestricted, Nat::PortRestricted, Nat::Firewall] {
            let mut network = network(nat, Nat::PortRestricted, seed);
            assert!(network.wait(5 * SECOND, Network::is_connected).is_some(), "{nat:?} {seed}");
            network.run(5 * SECOND);
            assert_eq!(transports(&network), [CandidateTransport::TcpSimultaneousOpen; 2], "{nat:?} {seed}");
        }
    }
}

#[test]
fn a_connection_is_left_for_datagrams_that_pass_and_used_again_when_they_do_not() {
    for seed in 0..10 {
        let mut network = network(Nat::Open, Nat::PortRestricted, seed);
        network.with_data = true;
        network.wait(5 * SECOND, Network::is_connected).unwrap();
        network.run(5 * SECOND);
        network.is_direct_up = true;
        let is_udp = |network: &Network| transports(network) == [CandidateTransport::Udp; 2];
        assert!(network.wait(61 * SECOND, is_udp).is_some(), "seed {seed}");
        network.run(10 * SECOND);
        network.is_direct_up = false;
        network.run(10 * SECOND);
        assert!(network.is_connected() && !is_udp(&network), "seed {seed}");
        for side in 0..2 {
            let gap = network.longest_gap(side);
            assert!(gap <= Duration::from_millis(1500), "seed {seed}: {gap:?}");
        }
    }
}

#[test]
fn a_connection_that_ends_or_falls_silent_is_opened_again() {
    for seed in 0..10 {
        for is_silent in [false, true] {
            let mut network = network(Nat::Open, Nat::PortRestricted, seed);
            network.with_data = true;
            network.wait(5 * SECOND, Network::is_connected).unwrap();
            network.run(5 * SECOND);
            if is_silent {
                network.tcp.forget();
            } else {
                let now = network.now;
                let (index, local, remote) = *network.tcp.open.keys().next().unwrap();
                network.tcp.forget();
                network.sides[index].agent.handle_tcp_closed(now, local, remote);
            }
            network.run(8 * SECOND);
            assert!(network.is_connected(), "seed {seed} {is_silent}");
            for side in 0..2 {
                let gap = network.longest_gap(side);
                assert!(gap <= Duration::from_millis(5500), "seed {seed} {is_silent}: {gap:?}");
            }
        }
    }
}

#[test]
fn a_restart_keeps_the_connections() {
    let mut network = network(Nat::Open, Nat::PortRestricted, 1);
    network.with_data = true;
    network.wait(5 * SECOND, Network::is_connected).unwrap();
    network.run(5 * SECOND);
    let attempts = network.tcp.attempts;
    for side in 0..2 {
        let now = network.now;
        network.sides[side].agent.restart(now);
    }
    network.signal();
    network.run(10 * SECOND);
    assert!(network.is_connected());
    let agents = network.sides.iter().map(|side| &side.agent);
    assert!(agents.clone().all(|agent| agent.previous.is_none()), "the old generation is still there");
    let gap = network.longest_gap(0).max(network.longest_gap(1));
    assert!(gap <= Duration::from_millis(300), "{gap:?}");
    assert!(network.tcp.attempts[1] <= attempts[1] + 1, "{attempts:?} {:?}", network.tcp.attempts);
}

#[test]
fn a_listener_and_a_datagram_socket_of_one_address_are_two_bases() {
    let mut network = network(Nat::Open, Nat::Open, 1);
    network.is_direct_up = true;
    network.run(5 * SECOND);
    let agent = &mut network.sides[0].agent;
    let pairs: Vec<PairKey> = agent.current.pairs.iter().map(|pair| pair.key).collect();
    let host = network.sides[0].host;
    assert!(pairs.iter().any(|key| key.local == host && !key.is_tcp));
    assert_eq!(transports(&network), [CandidateTransport::Udp; 2]);
    // A check over TCP makes no pair of the datagram socket.
    let (now, remote) = (network.now, SocketAddr::from(([203, 0, 113, 77], 5)));
    let side = &mut network.sides[1];
    let (agent, host) = (&mut side.agent, side.host);
    let password = agent.local_credentials().password().to_owned();
    let bytes = super::machine_tests::forged(agent, &password);
    assert_eq!(agent.handle_tcp_message(now, host, remote, &bytes), IceInput::Handled);
    assert!(agent.current.pair(PairKey { is_tcp: true, local: host, remote }).is_some());
    assert!(agent.current.pair(PairKey { is_tcp: false, local: host, remote }).is_none());
}

#[test]
fn connections_that_no_pair_needs_are_closed() {
    let mut network = network(Nat::Open, Nat::PortRestricted, 1);
    network.wait(5 * SECOND, Network::is_connected).unwrap();
    network.run(SECOND);
    assert!(!network.tcp.open.is_empty());
    for side in 0..2 {
        let (now, agent) = (network.now, &mut network.sides[side].agent);
        let bases: Vec<SocketAddr> =
            agent.local_candidates().iter().map(|candidate| candidate.base).collect();
        for base in bases {
            agent.remove_local_candidates(now, base);
        }
    }
    network.run(SECOND);
    assert!(network.tcp.open.is_empty());
}

#[test]
fn forged_candidates_cost_few_connection_attempts() {
    let mut network = network(Nat::Open, Nat::Open, 1);
    network.tcp.is_down = true;
    let now = network.now;
    for port in 1..500_u16 {
        let text = format!("candidate:x{port} 1 tcp 5 203.0.113.200 {port} typ host tcptype passive");
        network.sides[0].agent.add_remote_candidate(now, text.parse().unwrap());
    }
    network.run(SECOND);
    let early = network.tcp.attempts[0];
    assert!(early <= 40, "{early} attempts in a second");
    network.run(600 * SECOND);
    let late = network.tcp.attempts[0] - early;
    assert!(late <= 1500, "{late} attempts in ten minutes");
}
