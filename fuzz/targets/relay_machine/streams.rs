//! Connections to peers (RFC 6062).

use super::*;

impl World {
    pub(super) fn connect(&mut self, client: u8, user: usize, which: u8) {
        let peer = self.peer(which);
        let before: Vec<_> = self.links.keys().copied().collect();
        let reply = self
            .ask(client, user, Method::CONNECT, |builder| builder.xor_address(attr::XOR_PEER_ADDRESS, peer));
        assert!(reply.is_none(), "Connect is answered when the peer has accepted");
        let new = self.links.keys().copied().find(|connection| !before.contains(connection));
        if let Some(connection) = new {
            self.assert_owner(client, user);
            self.claim_link(client, connection);
        }
    }

    pub(super) fn claim_link(&mut self, client: u8, connection: ConnectionId) {
        let life = &self.lives[&client];
        assert!(life.tcp);
        let link = self.links.get_mut(&connection).unwrap();
        (link.birth, link.user) = (life.birth, life.user);
    }

    /// Lets a peer accept, or refuse.
    pub(super) fn settle(&mut self, which: usize, how: u8) {
        let Some((connection, link)) = nth(&self.links, which) else { return };
        let (stage, worker, birth) = (link.stage, link.worker, link.birth);
        let well = how & 1 == 0;
        self.relays[worker].handle_connected(self.now, connection, well);
        let replies = self.drain();
        assert_eq!(replies.len(), usize::from(stage == Stage::Connecting), "one Connect, one reply");
        let Some((to, reply)) = replies.first() else { return };
        assert_eq!(self.lives[&client_of(*to)].birth, birth);
        let message = Message::parse(reply).unwrap();
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), well.then_some(connection));
        assert_eq!(self.links.contains_key(&connection), well);
        if let Some(link) = self.links.get_mut(&connection) {
            (link.stage, link.since) = (Stage::Offered, self.now.mono);
        }
    }

    /// Lets a peer connect.
    pub(super) fn accept_connection(&mut self, which: usize, number: u8) {
        let Some(((worker, relay), _)) = nth(&self.listeners, which) else { return };
        let peer = canonical(self.peer(number));
        let accepted = self.relays[worker].handle_accepted(self.now, relay, peer);
        let replies = self.drain();
        assert_eq!(replies.len(), usize::from(accepted.is_some()), "the client is told");
        let (Some(connection), Some((to, attempt))) = (accepted, replies.first()) else { return };
        let client = client_of(*to);
        self.assert_permitted(client, peer);
        let message = Message::parse(attempt).unwrap();
        assert_eq!(message.unverified().u32(attr::CONNECTION_ID), Some(connection));
        self.link(connection, worker, Stage::Offered);
        self.claim_link(client, connection);
    }

    pub(super) fn join(&mut self, client: u8, user: usize, which: usize) {
        // Also one that is over: its name is good for nothing.
        let over = self.over.get(which.wrapping_sub(200)).map(|connection| (*connection, None));
        let there =
            nth(&self.links, which).map(|(connection, link)| (connection, Some((link.stage, link.user))));
        let Some((connection, link)) = over.or(there) else { return };
        let reply = self.ask(client, user, Method::CONNECTION_BIND, |builder| {
            builder.attribute(attr::CONNECTION_ID, &connection.to_be_bytes())
        });
        if reply.is_some() {
            assert_eq!(link, Some((Stage::Offered, user)), "a connection is its user's, and joined once");
            assert_eq!(self.links[&connection].stage, Stage::Joined);
            assert!(tuple(client).transport.is_tcp() && !self.lives.contains_key(&client));
        }
    }

    /// Ends a connection at the peer's, or at the client's end.
    pub(super) fn hang_up(&mut self, which: usize) {
        let Some((connection, link)) = nth(&self.links, which) else { return };
        let worker = link.worker;
        self.relays[worker].handle_connection_closed(connection);
        self.links.remove(&connection);
        self.over.push(connection);
        assert!(self.drain().is_empty());
    }
}
