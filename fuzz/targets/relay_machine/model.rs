//! What was granted, and what follows from it for everything the relays do.

use super::*;

impl World {
    pub(super) fn bury(&mut self, client: u8) {
        self.lives.remove(&client);
    }

    pub(super) fn assert_owner(&self, client: u8, user: usize) {
        let life = self.lives.get(&client).expect("only an allocation can be asked for something");
        assert_eq!(life.user, user, "an allocation obeys its own user alone");
    }

    pub(super) fn grant(&mut self, client: u8, peer: SocketAddr) {
        assert!(!peer.ip().is_loopback(), "a denied peer");
        let expires = self.now.mono + PERMISSION_LIFETIME;
        self.lives.get_mut(&client).unwrap().permissions.insert(peer.ip(), expires);
    }

    pub(super) fn permits(&self, client: u8, peer: IpAddr) -> bool {
        let Some(life) = self.lives.get(&client) else { return false };
        self.now.mono < life.until
            && life.permissions.get(&peer).is_some_and(|expires| self.now.mono < *expires)
    }

    pub(super) fn assert_permitted(&self, client: u8, peer: SocketAddr) {
        assert!(self.permits(client, peer.ip()), "no relay without a permission");
        let own = [RELAY_V4, RELAY_V6].contains(&peer.ip());
        assert!(
            !own || self.shared.ports.is_leased(peer),
            "of our own addresses only relayed ones are reached"
        );
    }

    /// Returns whether nothing excuses the relay from passing data of `client` to `peer` on.
    pub(super) fn must_reach(&self, client: u8, peer: SocketAddr) -> bool {
        let own = [RELAY_V4, RELAY_V6].contains(&peer.ip());
        let of_family = |address: &SocketAddr| address.is_ipv4() == peer.is_ipv4();
        let whole = self.lives.get(&client).is_some_and(|life| life.addresses.iter().any(of_family));
        let simple = !self.refusing && !self.is_capped();
        let datagrams = self.lives.get(&client).is_some_and(|life| !life.tcp);
        whole && simple && datagrams && !own && peer.port() != 0 && self.permits(client, peer.ip())
    }

    /// Whether bandwidth or new peers are limited.
    pub(super) fn is_capped(&self) -> bool {
        let AllocationLimits { new_peers, allocation_bandwidth, user_bandwidth, .. } = self.shared.limits;
        [new_peers, allocation_bandwidth, user_bandwidth].iter().any(|rate| rate.per_second() != 0)
    }

    /// Counts what was relayed for a client.
    pub(super) fn spend(&mut self, client: u8, bytes: usize) {
        let life = self.lives.get_mut(&client).unwrap();
        assert!(!life.tcp, "an allocation for TCP relays no datagrams");
        life.relayed += bytes as u64;
        let passed = self.now.mono.duration_since(life.began).as_secs();
        let most = BANDWIDTH * passed + BANDWIDTH / 2;
        assert!(
            self.shared.limits.allocation_bandwidth.per_second() == 0 || life.relayed <= most,
            "too fast"
        );
    }

    /// Judges what a client has sent to a peer.
    pub(super) fn sent(&mut self, client: u8, forward: Option<(Socket, SocketAddr, Vec<u8>)>) {
        let replies = self.drain();
        let granted = |reply: &[u8]| Message::parse(reply).unwrap().class() == Class::Success;
        assert!(replies.iter().all(|(to, reply)| *to == tuple(client) && !granted(reply)));
        let Some((relay, peer, payload)) = forward else { return };
        self.assert_permitted(client, peer);
        self.spend(client, payload.len());
        let Some(address) = self.sockets.get(&relay).copied() else {
            assert!(self.refusing, "the socket is there");
            return;
        };
        self.assert_owned(client, address);
    }

    /// Asserts that a relayed address is this client's and nobody else's.
    pub(super) fn assert_owned(&mut self, client: u8, address: SocketAddr) {
        let owner = self.owner(address);
        assert!(owner.is_none_or(|owner| owner == client), "a relayed address of two clients");
        if owner.is_none() {
            self.lives.get_mut(&client).unwrap().addresses.push(address);
        }
    }

    /// Whose a relayed address is, if that is known.
    pub(super) fn owner(&self, address: SocketAddr) -> Option<u8> {
        let mut lives = self.lives.iter();
        lives.find(|(_, life)| life.addresses.contains(&address)).map(|(client, _)| *client)
    }

    pub(super) fn allocations(&self) -> usize {
        self.relays.iter().map(Relay::len).sum()
    }

    /// Compares the relays with the model.
    pub(super) fn check(&self) {
        let (leased, open) = (self.shared.ports.leased() as usize, self.sockets.len() + self.listeners.len());
        assert_eq!(self.allocations(), self.lives.len(), "exactly what was granted lives");
        let held = self.shared.quota.held() as usize;
        let most = self.allocations() + self.set_aside.len();
        assert!((self.allocations()..=most).contains(&held), "one ticket an allocation and a reservation");
        assert!(open >= self.lives.len(), "every allocation has a port of its own");
        assert!(
            leased == open || leased > open && !self.set_aside.is_empty(),
            "{leased} leased, {open} open"
        );
        assert!(leased <= open + self.set_aside.len());
        assert!(!self.lives.is_empty() || open == 0, "without allocations there are no sockets");
        for relay in &self.relays {
            assert!(relay.poll_timeout().is_none_or(|at| at > self.now.mono), "no timer is overdue");
        }
        assert!(self.lives.len() <= 5);
        for user in 0..USERS.len() {
            assert!(self.lives.values().filter(|life| life.user == user).count() <= 3, "the quota");
        }
        for link in self.links.values() {
            assert!(
                self.lives.values().any(|life| life.birth == link.birth),
                "a connection without allocation"
            );
            let waits = self.now.mono.duration_since(link.since) < PATIENCE;
            assert!(link.stage == Stage::Joined || waits, "a connection that waits for too long");
        }
    }

    /// Ends everything; nothing is left.
    pub(super) fn end(mut self) -> u64 {
        self.wait(3600);
        self.check();
        assert!(self.links.is_empty());
        assert!(self.relays.iter().all(|relay| relay.is_empty() && relay.poll_timeout().is_none()));
        let (ports, quota) = (Arc::clone(&self.shared.ports), Arc::clone(&self.shared.quota));
        let log = self.log.finish();
        drop(self.relays);
        drop(self.shared);
        assert_eq!((ports.leased(), quota.held()), (0, 0), "every port and ticket comes back");
        log
    }
}
