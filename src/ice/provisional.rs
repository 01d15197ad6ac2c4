//! Data before the first answer: a pair with a relay may carry it at once.
//!
//! Such a pair needs no mapping of a NAT, and signalling, which the caller authenticates, has told the peer's relayed address; or the peer's own
//! checks arrive on the pair. Until some pair has answered, data may be sent on at most [`MAX_PATHS`] of them, a few datagrams on each, which
//! count as checks in the budget of their address. Direct pairs never carry data before they have answered.

use super::candidate::CandidateKind;
use super::machine::{IceAgent, IceEvent, IceRole, IceState, SelectedPair};
use super::pair::{Pair, PairKey};
use std::time::Instant;

/// Pairs that may carry data before the first answer.
const MAX_PATHS: usize = 2;
/// Datagrams on each: the handshake of QUIC and its first packets.
pub(super) const DATAGRAMS: usize = 16;

impl IceAgent {
    /// Has the pairs checked that may carry data before the first answer; data follows the check.
    pub(super) fn mark_provisional(&mut self, now: Instant) {
        if self.state != IceState::Checking || self.selected.is_some() || self.current.remote.is_none() {
            return;
        }
        let marked: Vec<&Pair> = self.current.pairs.iter().filter(|pair| pair.is_provisional).collect();
        if marked.len() >= MAX_PATHS {
            return;
        }
        let is_controlling = self.role == IceRole::Controlling;
        // One from a host candidate and one from a relayed one: they fail for different reasons.
        let is_new = |pair: &&Pair| {
            !pair.is_provisional && !marked.iter().any(|known| is_relayed(known) == is_relayed(pair))
        };
        let is_eligible = |pair: &&Pair| pair.may_be_provisional(is_controlling) && is_new(pair);
        let eligible = self.current.pairs.iter().filter(is_eligible);
        let best = eligible.max_by_key(|pair| (pair.is_checked_by_peer, pair.priority(self.role)));
        if let Some(key) = best.map(|pair| pair.key)
            && let Some(pair) = self.current.pair_mut(key)
        {
            pair.is_provisional = true;
            pair.check_now(now);
            self.mark_provisional(now);
        }
    }

    /// Lets data follow the first check of a marked pair.
    pub(super) fn announce_provisional(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.current.pair_mut(key) else { return };
        if !pair.is_provisional || std::mem::replace(&mut pair.is_announced, true) {
            return;
        }
        let (local, remote) = (pair.local.clone(), pair.remote.clone());
        let pair = Box::new(SelectedPair { local, remote, round_trip: None });
        // Pairs that gave way to others count too.
        if self.current.announced >= MAX_PATHS {
            return;
        }
        self.current.announced += 1;
        let datagrams = self.budget.take_data(now, key.remote.ip(), DATAGRAMS);
        if datagrams > 0 {
            self.push_event(IceEvent::Provisional { pair, datagrams });
        }
    }
}

fn is_relayed(pair: &Pair) -> bool {
    pair.local.kind == CandidateKind::Relayed
}

impl Pair {
    /// Returns whether data may be sent before an answer: to a relayed address that signalling has told, if this side begins; else to where the
    /// peer's checks come from.
    fn may_be_provisional(&self, begins: bool) -> bool {
        let to_relay = self.remote.kind == CandidateKind::Relayed;
        let has_relay = to_relay || is_relayed(self);
        !self.key.is_tcp && has_relay && (self.is_checked_by_peer || begins && to_relay)
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::{Nat, Network};
    use super::*;
    use crate::ice::{Candidate, IceCredentials};
    use std::time::Duration;

    /// Returns when a side was told of provisional pairs, with their remote addresses, and when it selected one.
    fn told(network: &Network, side: usize) -> (Vec<(Duration, std::net::SocketAddr)>, Option<Duration>) {
        let events = network.sides[side].events.iter();
        let provisional = events.clone().filter_map(|(at, event)| match event {
            IceEvent::Provisional { pair, .. } => Some((*at, pair.remote.address)),
            _ => None,
        });
        let mut selected = events.filter(|(_, event)| matches!(event, IceEvent::Selected(_)));
        (provisional.collect(), selected.next().map(|(at, _)| *at))
    }

    #[test]
    fn data_may_follow_the_first_check_over_a_relay_and_is_answered_where_checks_come_from() {
        for nats in [[Nat::PortRestricted, Nat::Symmetric], [Nat::Symmetric, Nat::PortRestricted]] {
            let mut network = Network::new(nats, true, 3);
            network.sides.iter_mut().for_each(|side| side.log = Some(Vec::new()));
            network.signal();
            network.wait(Duration::from_secs(1), Network::is_connected).unwrap();
            for side in 0..2 {
                let (provisional, selected) = told(&network, side);
                let selected = selected.unwrap();
                assert!((1..=MAX_PATHS).contains(&provisional.len()), "{provisional:?}");
                assert!(provisional.iter().all(|(at, _)| *at < selected), "{provisional:?} {selected:?}");
                for (at, remote) in provisional {
                    let mut log = network.sides[side].log.as_ref().unwrap().iter();
                    assert!(log.any(|sent| sent.1 == remote && sent.0 <= at), "no check before the data");
                }
            }
            let (first, _) = told(&network, 0);
            assert!(first[0].0 < Duration::from_millis(10), "{first:?}: nothing is waited for");
        }
    }

    #[test]
    fn direct_pairs_carry_nothing_before_they_answer() {
        let mut network = Network::new([Nat::PortRestricted, Nat::PortRestricted], false, 3);
        network.signal();
        network.wait(Duration::from_secs(1), Network::is_connected).unwrap();
        assert!((0..2).all(|side| told(&network, side).0.is_empty()));
    }

    #[test]
    fn a_peer_with_many_relayed_addresses_gets_data_at_two_of_them() {
        let mut network = Network::new([Nat::Open, Nat::Open], true, 3);
        let (mut now, agent) = (network.now, &mut network.sides[0].agent);
        agent.set_remote_credentials(now, IceCredentials::new("peer", &"p".repeat(24)).unwrap());
        let (mut paths, mut total) = (0, 0);
        for number in 0..2000_u16 {
            let address = ([192, 0, (number >> 8) as u8, number as u8], 4000).into();
            agent.add_remote_candidate(now, Candidate::relayed(address, number));
            now += Duration::from_millis(10);
            agent.handle_timeout(now);
            while agent.poll_transmit().is_some() {}
            while let Some(event) = agent.poll_event() {
                if let IceEvent::Provisional { datagrams, .. } = event {
                    (paths, total) = (paths + 1, total + datagrams);
                }
            }
        }
        assert_eq!((paths, total), (MAX_PATHS, MAX_PATHS * DATAGRAMS));
    }
}
