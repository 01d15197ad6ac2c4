//! Agents in simulated networks.

use super::simulation::{Nat, Network};
use super::*;
use crate::stun::{Builder, Class, Key, Method, TransactionId, attr};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn network(left: Nat, right: Nat, seed: u64) -> Network {
    let mut network = Network::new([left, right], true, seed);
    network.signal();
    network
}

fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

#[test]
fn every_pair_of_nats_ends_on_the_path_that_plain_ice_can_give() {
    use Nat::{AddressRestricted, Blocked, Firewall, FullCone, Open, PortRestricted, Symmetric};
    let nats = [Open, Firewall, FullCone, AddressRestricted, PortRestricted, Symmetric, Blocked];
    for left in nats {
        for right in nats {
            let filters_ports = |nat| matches!(nat, Firewall | PortRestricted | Symmetric);
            let is_possible = left != Blocked
                && right != Blocked
                && !(left == Symmetric && filters_ports(right) || right == Symmetric && filters_ports(left));
            for seed in 0..5 {
                let mut network = network(left, right, seed);
                assert!(network.wait(SECOND, Network::is_connected).is_some(), "{left:?} {right:?} {seed}");
                let direct = network.wait(10 * SECOND, Network::is_direct);
                assert_eq!(direct.is_some(), is_possible, "{left:?} {right:?} {seed}");
                network.run(5 * SECOND);
                assert!(network.is_agreed() && network.is_connected(), "{left:?} {right:?} {seed}");
            }
        }
    }
}

#[test]
fn data_flows_over_the_relay_first_and_directly_soon_after() {
    let (mut first, mut direct) = (Vec::new(), Vec::new());
    for seed in 0..50 {
        let mut network = network(Nat::PortRestricted, Nat::PortRestricted, seed);
        first.push(network.wait(SECOND, Network::is_connected).unwrap());
        direct.push(first[first.len() - 1] + network.wait(SECOND, Network::is_direct).unwrap());
    }
    // A round trip is 30 ms between the hosts, and 100 ms through both relays.
    assert!(percentile(first.clone(), 95) <= millis(150), "{:?}", percentile(first, 95));
    assert!(percentile(direct.clone(), 95) <= millis(350), "{:?}", percentile(direct, 95));
}

#[test]
fn lost_checks_are_repeated() {
    let mut times = Vec::new();
    for seed in 0..200 {
        let mut network = Network::new([Nat::PortRestricted, Nat::PortRestricted], true, seed);
        network.loss = 0.1;
        network.signal();
        times.push(network.wait(10 * SECOND, Network::is_direct).expect("no direct path"));
    }
    assert!(percentile(times.clone(), 50) <= millis(400), "{:?}", percentile(times, 50));
    assert!(percentile(times.clone(), 95) <= SECOND, "{:?}", percentile(times, 95));
}

#[test]
fn the_first_repetitions_of_many_pairs_do_not_wait_for_each_other() {
    let (start, mut agent) =
        (crate::net::time::mono(), IceAgent::new(IceConfig::new(IceRole::Controlled), [1; 32]));
    let address = |host: u8| std::net::SocketAddr::from(([192, 0, 2, host], 4000));
    agent.add_local_candidate(start, Candidate::host(CandidateTransport::Udp, address(1), 1));
    agent.set_remote_credentials(
        start,
        IceAgent::new(IceConfig::new(IceRole::Controlling), [2; 32]).local_credentials().clone(),
    );
    for host in 2..14 {
        agent.add_remote_candidate(start, Candidate::host(CandidateTransport::Udp, address(host), 1));
    }
    let mut checks = std::collections::BTreeMap::<std::net::SocketAddr, usize>::new();
    while let Some(at) = agent.poll_timeout().filter(|at| *at <= start + millis(400)) {
        agent.handle_timeout(at);
        while let Some(sent) = agent.poll_transmit() {
            *checks.entry(sent.remote).or_default() += 1;
        }
    }
    // At 0, 100 and 300 ms, with 5 ms between any two.
    assert_eq!(checks.into_values().collect::<Vec<_>>(), [3; 12]);
}

#[test]
fn a_direct_path_that_dies_is_left_and_used_again_when_it_is_back() {
    for seed in 0..20 {
        let mut network = network(Nat::PortRestricted, Nat::FullCone, seed);
        network.with_data = true;
        network.wait(5 * SECOND, Network::is_direct).unwrap();
        network.run(5 * SECOND);
        network.is_direct_up = false;
        network.run(60 * SECOND);
        assert!(network.is_connected() && network.is_agreed());
        for side in 0..2 {
            assert!(
                network.longest_gap(side) <= millis(1500),
                "seed {seed}: {:?}",
                network.longest_gap(side)
            );
        }
        network.is_direct_up = true;
        let back = network.wait(10 * SECOND, Network::is_direct);
        assert!(back.is_some(), "seed {seed}: not direct again within 10 s");
        for side in 0..2 {
            assert!(
                network.longest_gap(side) <= millis(1500),
                "seed {seed}: {:?}",
                network.longest_gap(side)
            );
        }
    }
}

#[test]
fn another_pair_is_confirmed_only_by_an_answer_after_the_selected_one_became_silent() {
    for is_relay_up in [true, false] {
        let mut network = network(Nat::Open, Nat::PortRestricted, 1);
        network.wait(5 * SECOND, Network::is_direct).unwrap();
        network.run(20 * SECOND);
        let before = network.sides[0].agent.selected().unwrap().remote.address;
        (network.is_direct_up, network.is_relay_up) = (false, is_relay_up);
        let is_other = |network: &Network| {
            let agent = &network.sides[0].agent;
            agent.selected().is_some_and(|pair| pair.remote.address != before)
                && agent.is_selected_confirmed()
        };
        assert_eq!(network.wait(8 * SECOND, is_other).is_some(), is_relay_up);
        assert_eq!(network.sides[0].agent.state() == IceState::Connected, is_relay_up);
    }
}

#[test]
fn a_path_that_was_away_for_a_moment_is_used_again_soon() {
    for seed in 0..20 {
        let mut network = network(Nat::Open, Nat::PortRestricted, seed);
        network.with_data = true;
        network.wait(5 * SECOND, Network::is_direct).unwrap();
        network.run(10 * SECOND);
        network.is_direct_up = false;
        network.run(3 * SECOND);
        network.is_direct_up = true;
        let back = network.wait(5 * SECOND, Network::is_direct);
        assert!(back.is_some(), "seed {seed}: not direct again within 5 s");
    }
}

#[test]
fn without_a_relay_a_path_that_becomes_possible_late_is_found() {
    let mut network = Network::new([Nat::PortRestricted, Nat::PortRestricted], false, 1);
    network.is_direct_up = false;
    network.signal();
    assert_eq!(network.wait(180 * SECOND, Network::is_connected), None);
    assert_eq!(network.sides[0].agent.state(), IceState::Failed);
    network.is_direct_up = true;
    assert!(network.wait(61 * SECOND, Network::is_direct).is_some());
    // At once, if the network says that it has changed.
    network.is_direct_up = false;
    network.run(180 * SECOND);
    assert!(!network.is_connected());
    network.is_direct_up = true;
    for side in 0..2 {
        let now = network.now;
        network.sides[side].agent.handle_network_change(now);
    }
    assert!(network.wait(SECOND, Network::is_direct).is_some());
}

#[test]
fn checks_of_a_hopeless_pair_become_rare() {
    let mut network = Network::new([Nat::Symmetric, Nat::Symmetric], false, 3);
    network.signal();
    network.run(40 * SECOND);
    let early = network.sides[0].sent;
    assert!(early <= 100, "{early} checks in 40 s");
    network.run(600 * SECOND);
    let late = network.sides[0].sent - early;
    assert!(late <= 200, "{late} checks in 600 s");
    assert!(late >= 10, "it has given up");
}

#[test]
fn an_idle_hour_costs_few_messages_and_keeps_the_path() {
    let mut network = network(Nat::PortRestricted, Nat::PortRestricted, 5);
    network.run(3600 * SECOND);
    assert!(network.is_direct());
    // The selected pair every 5 s from each side, with responses; backups every 10 s.
    let sent = network.sides[0].sent;
    assert!((1300..8000).contains(&sent), "{sent}");
    let changes = network.sides[0].events.iter().filter(|(_, event)| matches!(event, IceEvent::Selected(_)));
    assert!(changes.count() <= 3);
}

#[test]
fn a_restart_keeps_the_old_path_until_the_new_one_answers() {
    for seed in 0..20 {
        let mut network = network(Nat::PortRestricted, Nat::PortRestricted, seed);
        network.with_data = true;
        network.wait(5 * SECOND, Network::is_direct).unwrap();
        network.run(5 * SECOND);
        let before = network.sides[0].agent.local_credentials().clone();
        let now = network.now;
        network.sides[0].agent.restart(now);
        assert_ne!(*network.sides[0].agent.local_credentials(), before);
        // The offer takes a second; the other side restarts when it gets it.
        network.run(SECOND);
        let now = network.now;
        network.sides[1].agent.restart(now);
        network.signal_from(0);
        network.run(millis(300));
        network.signal_from(1);
        network.run(5 * SECOND);
        assert!(network.is_direct() && network.is_agreed());
        for side in 0..2 {
            let lost = network.sides[side].events.iter();
            let lost = lost.filter(|(_, event)| *event == IceEvent::State(IceState::Disconnected)).count();
            assert_eq!(lost, 0, "seed {seed}: the old path counted as lost");
            assert!(network.longest_gap(side) <= millis(300), "seed {seed}: {:?}", network.longest_gap(side));
            let agent = &network.sides[side].agent;
            assert!(agent.previous.is_none(), "the old generation is still there");
        }
    }
}

#[test]
fn a_peer_that_was_away_is_found_before_it_knows_of_a_restart() {
    for seed in 0..10 {
        let mut network = Network::new([Nat::PortRestricted, Nat::Open], false, seed);
        network.signal();
        network.wait(5 * SECOND, Network::is_direct).unwrap();
        network.run(SECOND);
        network.is_direct_up = false;
        network.run(12 * SECOND);
        assert!(network.sides.iter().all(|side| side.agent.state() == IceState::Disconnected));
        let now = network.now;
        network.sides[0].agent.restart(now);
        network.run(2 * SECOND);
        network.is_direct_up = true;
        // The open side checks, and the mapping of the other one is still there.
        let now = network.now;
        network.sides[1].agent.handle_network_change(now);
        let time = network.wait(SECOND / 4, Network::is_connected);
        assert!(time.is_some(), "seed {seed}");
    }
}

#[test]
fn conflicting_roles_are_repaired() {
    for role in [IceRole::Controlling, IceRole::Controlled] {
        for seed in 0..10 {
            let mut network = Network::new([Nat::Open, Nat::PortRestricted], true, seed);
            for side in &mut network.sides {
                side.agent.role = role;
            }
            network.signal();
            network.wait(5 * SECOND, Network::is_direct).unwrap();
            network.run(2 * SECOND);
            assert_ne!(network.sides[0].agent.role(), network.sides[1].agent.role(), "{role:?} {seed}");
            assert!(network.is_agreed());
        }
    }
}

#[test]
fn a_shorter_path_of_the_same_kind_is_taken_only_for_a_clear_gain() {
    let mut network = network(Nat::Open, Nat::Open, 2);
    network.wait(5 * SECOND, Network::is_direct).unwrap();
    let selected = network.sides[0].agent.selected.unwrap();
    let other: std::net::SocketAddr = "192.0.2.77:1".parse().unwrap();
    let agent = &mut network.sides[0].agent;
    let now = network.now;
    agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, other, 1));
    let key = super::pair::PairKey { local: other, ..selected };
    for (round_trip, is_taken) in [(29, false), (22, false), (12, true)] {
        let pair = agent.current.pair_mut(key).unwrap();
        pair.state = super::pair::PairState::Succeeded;
        pair.best_round_trip = Some(millis(round_trip));
        agent.select(now);
        assert_eq!(agent.selected == Some(key), is_taken, "{round_trip} ms");
    }
}

#[test]
fn a_peer_that_takes_one_nomination_gets_no_second_one_for_a_shorter_path_of_the_same_kind() {
    for (renomination, is_taken) in [(false, false), (true, true)] {
        let mut network = Network::new([Nat::Open, Nat::Open], false, 2);
        network.sides[0].agent.config.renomination = renomination;
        network.signal();
        network.wait(5 * SECOND, Network::is_direct).unwrap();
        network.run(SECOND);
        let selected = network.sides[0].agent.selected.unwrap();
        let agent = &mut network.sides[0].agent;
        let now = network.now;
        let other: std::net::SocketAddr = "192.0.2.77:1".parse().unwrap();
        agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, other, 1));
        let key = super::pair::PairKey { local: other, ..selected };
        let pair = agent.current.pair_mut(key).unwrap();
        pair.state = super::pair::PairState::Succeeded;
        pair.best_round_trip = Some(millis(1));
        agent.select(now);
        assert_eq!(agent.selected == Some(key), is_taken);
    }
}

#[test]
fn pairs_join_only_addresses_that_can_reach_each_other() {
    let mut network = Network::new([Nat::Open, Nat::Open], false, 1);
    let (now, agent) = (network.now, &mut network.sides[0].agent);
    let addresses = ["192.0.2.1:1", "127.0.0.1:2", "[2001:db8::1]:3", "[fe80::1]:4", "[::1]:5"];
    for address in addresses {
        agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, address.parse().unwrap(), 1));
        let candidate = Candidate::host(CandidateTransport::Udp, address.parse().unwrap(), 1);
        agent.add_remote_candidate(now, candidate.to_string().parse().unwrap());
    }
    let mut ports: Vec<(u16, u16)> =
        agent.current.pairs.iter().map(|pair| (pair.key.local.port(), pair.key.remote.port())).collect();
    ports.retain(|(local, _)| *local < 10);
    ports.sort_unstable();
    assert_eq!(ports, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
}

/// A check that an attacker sends.
pub(super) fn forged(agent: &IceAgent, password: &str) -> Vec<u8> {
    Builder::new(Class::Request, Method::BINDING, TransactionId::new([9; 12]))
        .attribute(attr::USERNAME, format!("{}:evil", agent.local_credentials().ufrag()).as_bytes())
        .attribute(0x0024, &1_u32.to_be_bytes())
        .attribute(0x802A, &7_u64.to_be_bytes())
        .integrity(&Key::short_term(password))
        .fingerprint()
        .finish()
}

#[test]
fn checks_without_the_password_get_no_response_and_change_nothing() {
    let mut network = network(Nat::Open, Nat::Open, 2);
    network.run(SECOND);
    let now = network.now;
    let agent = &mut network.sides[0].agent;
    let local = agent.local_candidates()[0].base;
    let bytes = forged(agent, "wrong");
    for port in 1..1000 {
        let from = ([192, 0, 2, 9], port).into();
        assert_eq!(agent.handle_message(now, local, from, &bytes), IceInput::Unrelated);
    }
    assert_eq!(agent.poll_transmit(), None);
    // Garbage of every length.
    for len in 0..200 {
        agent.handle_message(now, local, ([192, 0, 2, 9], 1).into(), &vec![0; len]);
    }
    assert_eq!(agent.poll_transmit(), None);
}

#[test]
fn a_peer_cannot_make_an_agent_send_more_than_it_gets_or_keep_more_than_it_may() {
    let mut network = network(Nat::Open, Nat::Open, 2);
    network.run(SECOND);
    let now = network.now;
    // The controlled side: it learns addresses of the forged checks.
    let agent = &mut network.sides[1].agent;
    let local = agent.local_candidates()[0].base;
    let password = agent.local_credentials().password().to_owned();
    let bytes = forged(agent, &password);
    for host in 1..100 {
        for port in 1..50 {
            agent.handle_message(now, local, ([192, 0, 2, host], port).into(), &bytes);
        }
    }
    assert!((10..=256).contains(&agent.current.pairs.len()), "{}", agent.current.pairs.len());
    assert!(agent.budget.addresses() <= 1024);
    let (mut responses, mut longest) = (0, 0);
    while let Some(transmit) = agent.poll_transmit() {
        (responses, longest) = (responses + 1, longest.max(transmit.bytes.len()));
    }
    assert!((1..=512).contains(&responses) && longest <= bytes.len(), "{responses} {longest}");
    for port in 1..5000_u16 {
        let text = format!("candidate:x{port} 1 udp 5 192.0.2.8 {port} typ host");
        agent.add_remote_candidate(now, text.parse().unwrap());
    }
    for port in 1..5000 {
        let address = ([10, 0, 0, 1], port).into();
        agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, address, 1));
    }
    assert_eq!(agent.local_candidates().len(), 64);
    assert_eq!(agent.current.pairs.len(), 256);
    for _ in 0..300 {
        agent.handle_message(now, local, ([192, 0, 2, 200], 1).into(), &bytes);
        while agent.poll_transmit().is_some() {}
    }
    let counters = agent.counters();
    assert!(counters.refused_local_candidates > 4000 && counters.excess_remote_candidates > 4000);
    assert!(counters.excess_pairs > 0 && counters.dropped_responses > 0, "{counters:?}");
    assert!(counters.dropped_messages > 0, "{counters:?}");
    assert_eq!(counters.postponed_checks, 0);
    // 10 s of checks towards addresses that never answer.
    let before = network.sides[1].sent;
    network.run(10 * SECOND);
    let sent = network.sides[1].sent - before;
    assert!(sent <= 1000, "{sent} messages in 10 s");
    assert!(network.sides[1].agent.counters().postponed_checks > 0);
    assert!(network.is_direct());
}

/// The most messages to one of the addresses in any second, and in all.
fn most_in_a_second(
    sent: &[(Duration, std::net::SocketAddr)],
    is_counted: impl Fn(&std::net::SocketAddr) -> bool,
) -> (usize, usize) {
    let times: Vec<Duration> = sent.iter().filter(|(_, to)| is_counted(to)).map(|(at, _)| *at).collect();
    let in_second =
        |at: &Duration| times.iter().filter(|other| *at <= **other && **other < *at + SECOND).count();
    (times.iter().map(in_second).max().unwrap_or(0), times.len())
}

/// A peer that names addresses of others, from candidates and as sources of its checks, gets few packets sent there.
#[test]
fn an_address_that_has_not_answered_gets_at_most_120_packets_a_second() {
    for is_restarting in [false, true] {
        let mut network = network(Nat::Open, Nat::Open, 3);
        network.run(SECOND);
        network.sides[1].log = Some(Vec::new());
        let victims: [std::net::IpAddr; 3] =
            [[10, 0, 0, 1].into(), [198, 51, 100, 9].into(), [192, 0, 2, 1].into()];
        for round in 0..200_u16 {
            let now = network.now;
            let agent = &mut network.sides[1].agent;
            let local = agent.local_candidates()[0].base;
            let password = agent.local_credentials().password().to_owned();
            let bytes = forged(agent, &password);
            for (number, ip) in victims.iter().enumerate() {
                for port in 0..20 {
                    let port = 1000 + round * 20 + port;
                    let kind = ["host", "srflx", "relay"][usize::from(port) % 3];
                    let text = format!("candidate:{number}x{port} 1 udp 4000000000 {ip} {port} typ {kind}");
                    agent.add_remote_candidate(now, text.parse().unwrap());
                    agent.handle_message(now, local, (*ip, port).into(), &bytes);
                }
            }
            if is_restarting && round % 20 == 0 {
                agent.restart(now);
                network.signal();
            }
            network.run(millis(100));
        }
        let sent = network.sides[1].log.take().unwrap();
        for ip in victims {
            let (in_second, in_all) = most_in_a_second(&sent, |to| to.ip() == ip);
            assert!(in_second <= 121, "{in_second} to {ip}");
            // 20 s at 20, and the burst.
            assert!((20..=521).contains(&in_all), "{in_all} to {ip}");
        }
        assert!(network.wait(5 * SECOND, Network::is_connected).is_some());
    }
}

#[test]
fn addresses_that_have_not_answered_get_at_most_50_checks_a_second_together() {
    let mut network = network(Nat::Open, Nat::Open, 3);
    network.run(SECOND);
    network.sides[0].log = Some(Vec::new());
    for round in 0..600_u16 {
        let now = network.now;
        for number in 0..20 {
            let (high, low) = ((round * 20 + number) / 250, (round * 20 + number) % 250);
            let text = format!("candidate:{round}x{number} 1 udp 4000000000 10.9.{high}.{low} 9 typ host");
            network.sides[0].agent.add_remote_candidate(now, text.parse().unwrap());
        }
        network.run(millis(100));
    }
    let sent = network.sides[0].log.take().unwrap();
    let (_, in_all) = most_in_a_second(&sent, |to| to.ip().to_string().starts_with("10.9."));
    // A minute at 50 a second, and the burst of 400.
    assert!((100..=3410).contains(&in_all), "{in_all}");
    assert!(network.is_direct());
}

/// What happens for each packet.
#[test]
fn inputs_for_one_pair_or_none_look_at_no_other() {
    let mut network = network(Nat::Open, Nat::Open, 2);
    network.run(SECOND);
    let now = network.now;
    let agent = &mut network.sides[0].agent;
    for number in 0..64_u16 {
        let kind = ["host", "srflx", "relay", "prflx"][usize::from(number) % 4];
        let text = format!("candidate:x{number} 1 udp 5 192.0.2.8 {} typ {kind}", 5000 + number);
        agent.add_remote_candidate(now, text.parse().unwrap());
        let address = ([10, 0, 0, 1], 5000 + number).into();
        agent.add_local_candidate(now, Candidate::host(CandidateTransport::Udp, address, 1));
    }
    assert_eq!(agent.current.pairs.len(), 256);
    let (local, remote) = agent.selected().map(|pair| (pair.local.base, pair.remote.address)).unwrap();
    let stray =
        Builder::new(Class::Success, Method::BINDING, TransactionId::new([9; 12])).fingerprint().finish();
    let before = super::check_list::visits();
    for _ in 0..1000 {
        agent.handle_data_sent(now);
        agent.handle_data_received(local, remote);
        assert_eq!(agent.handle_message(now, local, remote, &stray), IceInput::Unrelated);
        assert!(agent.poll_timeout().is_some());
    }
    assert_eq!(super::check_list::visits(), before);
}

#[test]
fn a_late_peer_reflexive_address_becomes_the_candidate_that_signalling_names() {
    let mut network = Network::new([Nat::Open, Nat::Open], false, 4);
    // The first side knows the other one; the other one learns of it by its checks.
    network.signal_from(1);
    network.run(millis(100));
    network.signal_from(0);
    network.wait(SECOND, Network::is_direct).unwrap();
    let pair = network.sides[1].agent.selected().unwrap();
    assert_eq!(pair.remote.kind, CandidateKind::Host);
}
