//! Connections to peers (RFC 6062).

use super::*;

impl World {
    pub(super) fn connect(&mut self, client: u8, user: usize, which: u8) {
        let peer = self.peer(which);
        let before: Vec<_> = self.connections.keys().copied().collect();
        let reply = self.request(client, user, Method::CONNECT, |builder| {
            builder.xor_address(attr::XOR_PEER_ADDRESS, peer)
        });
        assert!(reply.is_none(), "Connect is answered when the peer has accepted");
        let new = self.connections.keys().copied().find(|connection| !before.contains(connection));
        if let Some(connection) = new {
            self.assert_owner(client, user);
            self.assign_connection(client, connection);
        }
    }

    pub(super) fn assign_connection(&mut self, client: u8, connection: ConnectionId) {
        let allocation = &self.granted[&client];
        assert!(allocation.tcp);
        let link = self.connections.get_mut(&connection).unwrap();
        (link.id, link.user) = (allocation.id, allocation.user);
    }

    /// Lets a peer accept or refuse a connection.
    pub(super) fn finish_connect(&mut self, which: usize, how: u8) {
        let Some((connection, link)) = nth(&self.connections, which) else { return };
        let (stage, worker, id) = (link.stage, link.worker, link.id);
        let well = how & 1 == 0;
        self.relays[worker].handle_connected(self.now, connection, well);
        let replies = self.drain();
        assert_eq!(replies.len(), usize::from(stage == Stage::Connecting), "one Connect, one reply");
        let Some((to, reply)) = replies.first() else { return };
        assert_eq!(self.granted[&client_of(*to)].id, id);
        let message = Message::parse(reply).unwrap();
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), well.then_some(connection));
        assert_eq!(self.connections.contains_key(&connection), well);
        if let Some(link) = self.connections.get_mut(&connection) {
            (link.stage, link.since) = (Stage::Offered, self.now.mono);
        }
    }

    /// Lets a peer connect.
    pub(super) fn accept_connection(&mut self, which: usize, number: u8) {
        let Some(((worker, relay), _)) = nth(&self.listeners, which) else { return };
        let peer = canonical(self.peer(number));
        let accepted = self.relays[worker].handle_accepted(self.now, relay, peer);
        let replies = self.drain();
        assert_eq!(replies.len(), usize::from(accepted.is_some()), "the client gets a ConnectionAttempt");
        let (Some(connection), Some((to, attempt))) = (accepted, replies.first()) else { return };
        let client = client_of(*to);
        self.assert_permitted(client, peer);
        let message = Message::parse(attempt).unwrap();
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
        self.add_connection(connection, worker, Stage::Offered);
        self.assign_connection(client, connection);
    }

    pub(super) fn bind_connection(&mut self, client: u8, user: usize, which: usize) {
        // Also an ended one, which cannot be bound.
        let over = self.closed.get(which.wrapping_sub(200)).map(|connection| (*connection, None));
        let there = nth(&self.connections, which)
            .map(|(connection, link)| (connection, Some((link.stage, link.user))));
        let Some((connection, link)) = over.or(there) else { return };
        let reply = self.request(client, user, Method::CONNECTION_BIND, |builder| {
            builder.attribute(attr::CONNECTION_ID, &connection.to_be_bytes())
        });
        if reply.is_some() {
            assert_eq!(link, Some((Stage::Offered, user)), "only its user binds a connection, and once");
            assert_eq!(self.connections[&connection].stage, Stage::Joined);
            assert!(tuple(client).transport.is_tcp() && !self.granted.contains_key(&client));
        }
    }

    /// Closes a connection.
    pub(super) fn close_connection(&mut self, which: usize) {
        let Some((connection, link)) = nth(&self.connections, which) else { return };
        let worker = link.worker;
        self.relays[worker].handle_connection_closed(connection);
        self.connections.remove(&connection);
        self.closed.push(connection);
        assert!(self.drain().is_empty());
    }
}
