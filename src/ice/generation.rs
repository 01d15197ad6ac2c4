//! The pairs between two restarts: candidates of the peer, and the check list.

use super::candidate::{Candidate, CandidateKind};
use super::credentials::IceCredentials;
use super::machine::IceRole;
use super::pair::{Pair, PairKey, PairState};
use std::net::SocketAddr;
use std::time::Instant;

/// Most candidates of a kind that a peer may have; the oldest one gives way.
const MAX_REMOTE_PER_KIND: usize = 16;
/// Most pairs; the one with the lowest priority that has not succeeded gives way (RFC 8445 section 6.1.2.5).
const MAX_PAIRS: usize = 256;

/// The state of one side's credentials.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) local: IceCredentials,
    pub(super) remote: Option<IceCredentials>,
    remote_candidates: Vec<Candidate>,
    pub(super) pairs: Vec<Pair>,
    pub(super) is_end_of_candidates: bool,
    /// The pair that the peer nominated last, and the number that it had.
    pub(super) nominated: Option<(PairKey, Option<u32>)>,
}

impl Generation {
    pub(super) fn new(local: IceCredentials) -> Self {
        Self {
            local,
            remote: None,
            remote_candidates: Vec::new(),
            pairs: Vec::new(),
            is_end_of_candidates: false,
            nominated: None,
        }
    }

    pub(super) fn pair(&self, key: PairKey) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.key == key)
    }

    pub(super) fn pair_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.key == key)
    }

    /// Adds a local candidate: pairs it with those of the peer.
    pub(super) fn add_local(&mut self, role: IceRole, local: &Candidate) {
        for index in 0..self.remote_candidates.len() {
            let remote = self.remote_candidates[index].clone();
            self.add_pair(role, local, &remote);
        }
    }

    /// Adds a candidate of the peer; one with the same address takes the place of a peer-reflexive one.
    pub(super) fn add_remote(&mut self, role: IceRole, locals: &[Candidate], remote: Candidate) {
        let same = |known: &Candidate| known.address == remote.address && known.transport == remote.transport;
        if let Some(known) = self.remote_candidates.iter_mut().find(|known| same(known)) {
            if known.kind == CandidateKind::PeerReflexive && remote.kind != CandidateKind::PeerReflexive {
                *known = remote.clone();
                for pair in self.pairs.iter_mut().filter(|pair| pair.key.remote == remote.address) {
                    pair.remote = remote.clone();
                }
            }
            return;
        }
        let of_kind = |known: &Candidate| known.kind == remote.kind;
        if self.remote_candidates.iter().filter(|known| of_kind(known)).count() >= MAX_REMOTE_PER_KIND {
            let in_use = |known: &Candidate| {
                self.pairs.iter().any(|pair| pair.key.remote == known.address && pair.is_usable())
            };
            let oldest = self.remote_candidates.iter().position(|known| of_kind(known) && !in_use(known));
            let Some(oldest) = oldest else { return };
            let gone = self.remote_candidates.remove(oldest);
            self.pairs.retain(|pair| pair.key.remote != gone.address);
        }
        for local in locals {
            self.add_pair(role, local, &remote);
        }
        self.remote_candidates.push(remote);
    }

    /// RFC 8445 sections 6.1.2.2 and 6.1.2.4. Reflexive local candidates have the base of a host candidate: no pairs of their own.
    fn add_pair(&mut self, role: IceRole, local: &Candidate, remote: &Candidate) {
        let is_sender = matches!(local.kind, CandidateKind::Host | CandidateKind::Relayed);
        let fits = local.transport.checks(remote.transport) && is_same_network(local.base, remote.address);
        let key = PairKey { local: local.base, remote: remote.address };
        if !is_sender || !fits || self.pair(key).is_some() {
            return;
        }
        let pair = Pair::new(local, remote);
        if self.pairs.len() >= MAX_PAIRS {
            let spare = self.pairs.iter().enumerate().filter(|(_, pair)| !pair.is_usable());
            let lowest = spare.min_by_key(|(_, pair)| pair.priority(role)).map(|(index, _)| index);
            match lowest {
                Some(index) if self.pairs[index].priority(role) < pair.priority(role) => {
                    self.pairs.swap_remove(index);
                }
                _ => return,
            }
        }
        self.pairs.push(pair);
    }

    /// Finds or makes the pair on which a check of the peer arrived.
    pub(super) fn pair_of_check(
        &mut self,
        role: IceRole,
        locals: &[Candidate],
        key: PairKey,
        priority: u32,
    ) -> Option<&mut Pair> {
        let sends = |local: &&Candidate| {
            local.base == key.local && matches!(local.kind, CandidateKind::Host | CandidateKind::Relayed)
        };
        let local = locals.iter().find(sends)?;
        if self.pair(key).is_none() {
            let remote = Candidate::peer_reflexive(local.transport, key.remote, priority);
            self.add_remote(role, locals, remote);
            if self.pair(key).is_none() {
                // The other direction of a TCP connection, or a link-local address that only the peer can judge.
                let remote = Candidate::peer_reflexive(local.transport, key.remote, priority);
                if self.pairs.len() < MAX_PAIRS {
                    self.pairs.push(Pair::new(local, &remote));
                }
            }
        }
        self.pair_mut(key)
    }

    /// Forgets a local candidate and its pairs.
    pub(super) fn remove_local(&mut self, base: SocketAddr) {
        self.pairs.retain(|pair| pair.key.local != base);
    }

    /// Unfreezes pairs: all but those that wait for one with the same foundations (RFC 8445 section 6.1.4.2).
    pub(super) fn unfreeze(&mut self, now: Instant, role: IceRole) {
        if self.remote.is_none() {
            return;
        }
        let mut frozen: Vec<usize> =
            (0..self.pairs.len()).filter(|index| self.pairs[*index].state == PairState::Frozen).collect();
        frozen.sort_by_key(|index| std::cmp::Reverse(self.pairs[*index].priority(role)));
        for index in frozen {
            let is_first_round = |pair: &Pair| matches!(pair.state, PairState::Checking(sent) if sent < 3);
            let waits = self
                .pairs
                .iter()
                .any(|other| is_first_round(other) && other.has_same_foundations(&self.pairs[index]));
            if !waits {
                self.pairs[index].check_now(now);
            }
        }
    }

    /// Returns whether a pair is checked for the first time.
    pub(super) fn is_first_round(&self) -> bool {
        self.pairs.iter().any(|pair| matches!(pair.state, PairState::Frozen | PairState::Checking(0)))
    }
}

/// RFC 8445 section 6.1.2.2, and what no datagram can cross: address families; loopback and other hosts; link-local and other networks.
fn is_same_network(local: SocketAddr, remote: SocketAddr) -> bool {
    let link_local = |address: SocketAddr| match address {
        SocketAddr::V4(address) => address.ip().is_link_local(),
        SocketAddr::V6(address) => address.ip().is_unicast_link_local(),
    };
    local.is_ipv4() == remote.is_ipv4()
        && local.ip().is_loopback() == remote.ip().is_loopback()
        && (local.is_ipv4() || link_local(local) == link_local(remote))
}
