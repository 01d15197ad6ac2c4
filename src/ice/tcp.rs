//! TCP candidates ([RFC 6544](https://www.rfc-editor.org/rfc/rfc6544)): which connections are open, and which must be opened.
//!
//! A connection is named like a pair: by the base of the local candidate, which for an active one is its address with port 9, and by the
//! remote address. Both generations of a restart share it.

use super::candidate::CandidateTransport;
use super::generation::MAX_PAIRS;
use super::machine::{IceAgent, IceEvent, IceInput};
use super::pair::{Pair, PairKey};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

/// The state of a TCP connection; none for one that is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Opening,
    Open,
}

/// The connections of an agent, at most one for each pair.
#[derive(Debug, Default)]
pub(super) struct Connections(HashMap<PairKey, Connection>);

impl Connections {
    pub(super) fn is_open(&self, key: PairKey) -> bool {
        self.0.get(&key) == Some(&Connection::Open)
    }

    /// Returns whether checks of a pair can be sent.
    pub(super) fn carries(&self, key: PairKey) -> bool {
        !key.is_tcp || self.is_open(key)
    }
}

impl IceAgent {
    /// Handles a STUN message that arrived on a TCP connection, without the length before it (RFC 4571). `local` is the base of the
    /// candidate: the listener's address, or what [`IceEvent::Connect`] named.
    pub fn handle_tcp_message(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> IceInput {
        self.handle_stun(now, PairKey { is_tcp: true, local, remote }, bytes)
    }

    /// Handles that a TCP connection which [`IceEvent::Connect`] asked for is open. An accepted one becomes known by its first check; the
    /// caller closes those that have none soon.
    pub fn handle_tcp_connected(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) {
        let key = PairKey { is_tcp: true, local, remote };
        match self.connections.0.get_mut(&key) {
            Some(connection) => *connection = Connection::Open,
            None => return self.push_event(IceEvent::Close { local, remote }),
        }
        for pair in self.pairs_of_connection(key) {
            pair.on_connected(now);
        }
        self.update(now);
    }

    /// Handles that a TCP connection has ended or could not be opened. It is opened again when its pair is due.
    pub fn handle_tcp_closed(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) {
        let key = PairKey { is_tcp: true, local, remote };
        if self.connections.0.remove(&key).is_none() {
            return;
        }
        self.fail_connection(now, key);
        self.update(now);
    }

    /// Handles that authentic data of the peer has arrived on a TCP connection.
    pub fn handle_tcp_data_received(&mut self, local: SocketAddr, remote: SocketAddr) {
        self.on_data_received(PairKey { is_tcp: true, local, remote });
    }

    /// Has the connection of a pair opened.
    pub(super) fn open_connection(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pair_mut(key) else { return };
        let transport = pair.local.transport;
        pair.on_connecting(now);
        if !self.connections.0.contains_key(&key) && self.connections.0.len() >= MAX_PAIRS {
            return;
        }
        let replaced = self.connections.0.insert(key, Connection::Opening);
        let PairKey { local, remote, .. } = key;
        if replaced.is_some() {
            self.push_event(IceEvent::Close { local, remote });
        }
        self.push_event(IceEvent::Connect { local, remote, transport });
    }

    /// Has a connection closed on which nothing is answered.
    pub(super) fn close_connection(&mut self, now: Instant, key: PairKey) {
        if self.connections.0.remove(&key).is_some() {
            let PairKey { local, remote, .. } = key;
            self.push_event(IceEvent::Close { local, remote });
            self.fail_connection(now, key);
        }
    }

    /// Handles that a check arrived on an accepted connection.
    pub(super) fn on_accepted(&mut self, key: PairKey) {
        if key.is_tcp && self.connections.0.len() < MAX_PAIRS && self.current.pair(key).is_some() {
            self.connections.0.insert(key, Connection::Open);
        }
    }

    fn fail_connection(&mut self, now: Instant, key: PairKey) {
        for generation in [Some(&mut self.current), self.previous.as_mut()].into_iter().flatten() {
            match generation.pair_mut(key) {
                Some(pair) if pair.local.transport == CandidateTransport::TcpPassive => {
                    generation.remove_accepted(key);
                }
                Some(pair) => pair.on_closed(now),
                None => {}
            }
        }
    }

    fn pairs_of_connection(&mut self, key: PairKey) -> impl Iterator<Item = &mut Pair> {
        let generations = [Some(&mut self.current), self.previous.as_mut()].into_iter().flatten();
        generations.filter_map(move |generation| generation.pair_mut(key))
    }

    /// Has the connections closed that no pair uses any more.
    pub(super) fn close_unused_connections(&mut self) {
        let is_unused = |key: &&PairKey| self.pair(**key).is_none();
        let mut unused: Vec<PairKey> = self.connections.0.keys().filter(is_unused).copied().collect();
        unused.sort_unstable();
        for key in unused {
            self.connections.0.remove(&key);
            self.push_event(IceEvent::Close { local: key.local, remote: key.remote });
        }
    }
}
