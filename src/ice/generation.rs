//! The pairs between two restarts: candidates of the peer, and the check list.

use super::candidate::{Candidate, CandidateKind, CandidateTransport};
use super::check_list::CheckList;
use super::credentials::IceCredentials;
use super::machine::IceRole;
use super::pair::{Pair, PairKey, PairState};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Instant;

/// Most candidates of a kind that a peer may have; the oldest one gives way.
const MAX_REMOTE_PER_KIND: usize = 16;
/// Most pairs; the one with the lowest priority that has not succeeded gives way (RFC 8445 section 6.1.2.5).
pub(super) const MAX_PAIRS: usize = 256;

/// The state of one side's credentials.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) local: IceCredentials,
    pub(super) remote: Option<IceCredentials>,
    pub(super) remote_candidates: Vec<Candidate>,
    pub(super) pairs: CheckList,
    pub(super) is_end_of_candidates: bool,
    /// How many pairs were announced that may carry data before they answer.
    pub(super) announced: usize,
    /// How often the limits of candidates and of pairs were reached.
    pub(super) excess_candidates: u64,
    pub(super) excess_pairs: u64,
    /// The pair that the peer nominated last, and the number that it had.
    pub(super) nominated: Option<(PairKey, Option<u32>)>,
}

impl Generation {
    pub(super) fn new(local: IceCredentials) -> Self {
        Self {
            local,
            remote: None,
            remote_candidates: Vec::new(),
            pairs: CheckList::default(),
            is_end_of_candidates: false,
            announced: 0,
            excess_candidates: 0,
            excess_pairs: 0,
            nominated: None,
        }
    }

    pub(super) fn pair(&self, key: PairKey) -> Option<&Pair> {
        self.pairs.get(key)
    }

    pub(super) fn pair_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        self.pairs.get_mut(key)
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
                let is_tcp = remote.transport.is_tcp();
                let of_remote =
                    |pair: &&mut Pair| (pair.key.remote, pair.key.is_tcp) == (remote.address, is_tcp);
                for pair in self.pairs.iter_mut().filter(of_remote) {
                    pair.remote = remote.clone();
                }
            }
            return;
        }
        let of_kind = |known: &Candidate| known.kind == remote.kind;
        if self.remote_candidates.iter().filter(|known| of_kind(known)).count() >= MAX_REMOTE_PER_KIND {
            self.excess_candidates += 1;
            let in_use: HashSet<(SocketAddr, bool)> =
                self.pairs.iter().filter(|pair| pair.is_usable()).map(Pair::remote_key).collect();
            let is_spare = |known: &Candidate| {
                of_kind(known) && !in_use.contains(&(known.address, known.transport.is_tcp()))
            };
            let Some(oldest) = self.remote_candidates.iter().position(is_spare) else { return };
            let gone = self.remote_candidates.remove(oldest);
            let gone = (gone.address, gone.transport.is_tcp());
            self.pairs.retain(|pair| pair.remote_key() != gone);
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
        let pair = Pair::new(local, remote);
        if !is_sender || !fits || self.pair(pair.key).is_some() {
            return;
        }
        if self.pairs.len() >= MAX_PAIRS {
            self.excess_pairs += 1;
            let spare = self.pairs.iter().filter(|pair| !pair.is_usable());
            let lowest = spare.map(|pair| (pair.priority(role), pair.key)).min();
            match lowest {
                Some((priority, key)) if priority < pair.priority(role) => drop(self.pairs.remove(key)),
                _ => return,
            }
        }
        self.pairs.insert(pair);
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
            (local.base, local.transport.is_tcp()) == (key.local, key.is_tcp)
                && matches!(local.kind, CandidateKind::Host | CandidateKind::Relayed)
        };
        let local = locals.iter().find(sends)?;
        // A connection that was opened from here has its pair, or is being closed.
        if self.pair(key).is_none() && local.transport != CandidateTransport::TcpActive {
            let remote = Candidate::peer_reflexive(local.transport.opposite(), key.remote, priority);
            self.add_remote(role, locals, remote.clone());
            // The accepting side of a TCP connection, or a link-local address that only the peer can judge.
            if self.pair(key).is_none() && self.pairs.len() < MAX_PAIRS {
                self.pairs.insert(Pair::new(local, &remote));
            }
        }
        self.pair_mut(key)
    }

    /// Forgets a TCP connection that the peer opened: it cannot be opened from here.
    pub(super) fn remove_accepted(&mut self, key: PairKey) {
        self.pairs.remove(key);
        self.remote_candidates.retain(|known| {
            known.address != key.remote
                || known.transport != CandidateTransport::TcpActive
                || known.kind != CandidateKind::PeerReflexive
        });
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
        let mut frozen: Vec<&Pair> =
            self.pairs.iter().filter(|pair| pair.state == PairState::Frozen).collect();
        if frozen.is_empty() {
            return;
        }
        frozen.sort_by_key(|pair| std::cmp::Reverse(pair.priority(role)));
        let is_first_round = |pair: &&Pair| matches!(pair.state, PairState::Checking(sent) if sent < 3);
        let mut checked: HashSet<_> =
            self.pairs.iter().filter(is_first_round).map(Pair::foundations).collect();
        let unfrozen: Vec<PairKey> = frozen
            .into_iter()
            .filter(|pair| checked.insert(pair.foundations()))
            .map(|pair| pair.key)
            .collect();
        for key in unfrozen {
            if let Some(pair) = self.pairs.get_mut(key) {
                pair.check_now(now);
            }
        }
    }

    /// Returns whether a pair is checked for the first time, or its first check is being repeated.
    pub(super) fn is_first_round(&self) -> bool {
        self.pairs.iter().any(Pair::is_new)
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
