//! The checks of the relays against what was granted.

use super::*;

impl World {
    pub(super) fn remove_allocation(&mut self, client: u8) {
        self.granted.remove(&client);
    }

    pub(super) fn assert_owner(&self, client: u8, user: usize) {
        let allocation = self.granted.get(&client).expect("a success needs an allocation");
        assert_eq!(allocation.user, user, "only the user of an allocation controls it");
    }

    pub(super) fn grant(&mut self, client: u8, peer: SocketAddr) {
        assert!(!peer.ip().is_loopback(), "a denied peer");
        let expires = self.now.mono + PERMISSION_LIFETIME;
        self.granted.get_mut(&client).unwrap().permissions.insert(peer.ip(), expires);
    }

    pub(super) fn permits(&self, client: u8, peer: IpAddr) -> bool {
        let Some(allocation) = self.granted.get(&client) else { return false };
        self.now.mono < allocation.until
            && allocation.permissions.get(&peer).is_some_and(|expires| self.now.mono < *expires)
    }

    pub(super) fn assert_permitted(&self, client: u8, peer: SocketAddr) {
        assert!(self.permits(client, peer.ip()), "no relay without a permission");
        let own = [RELAY_V4, RELAY_V6].contains(&peer.ip());
        assert!(
            !own || self.shared.ports.is_leased(peer),
            "of our own addresses only relayed ones are reached"
        );
    }

    /// Returns whether the relay must forward data of `client` to `peer`.
    pub(super) fn must_reach(&self, client: u8, peer: SocketAddr) -> bool {
        let own = [RELAY_V4, RELAY_V6].contains(&peer.ip());
        let of_family = |address: &SocketAddr| address.is_ipv4() == peer.is_ipv4();
        let whole =
            self.granted.get(&client).is_some_and(|allocation| allocation.addresses.iter().any(of_family));
        let simple = !self.refusing && !self.is_capped();
        let datagrams = self.granted.get(&client).is_some_and(|allocation| !allocation.tcp);
        whole && simple && datagrams && !own && peer.port() != 0 && self.permits(client, peer.ip())
    }

    /// Whether bandwidth or new peers are limited.
    pub(super) fn is_capped(&self) -> bool {
        let AllocationLimits { new_peers, allocation_bandwidth, user_bandwidth, .. } = self.shared.limits;
        [new_peers, allocation_bandwidth, user_bandwidth].iter().any(|rate| rate.per_second() != 0)
    }

    /// Counts the bytes that were relayed for a client.
    pub(super) fn charge(&mut self, client: u8, bytes: usize) {
        let allocation = self.granted.get_mut(&client).unwrap();
        assert!(!allocation.tcp, "an allocation for TCP relays no datagrams");
        allocation.relayed += bytes as u64;
        let passed = self.now.mono.duration_since(allocation.start).as_secs();
        let most = BANDWIDTH * passed + BANDWIDTH / 2;
        assert!(
            self.shared.limits.allocation_bandwidth.per_second() == 0 || allocation.relayed <= most,
            "too fast"
        );
    }

    /// Checks what was forwarded of a client's frame.
    pub(super) fn check_sent(&mut self, client: u8, forward: Option<(Socket, SocketAddr, Vec<u8>)>) {
        let replies = self.drain();
        let granted = |reply: &[u8]| Message::parse(reply).unwrap().class() == Class::Success;
        assert!(replies.iter().all(|(to, reply)| *to == tuple(client) && !granted(reply)));
        let Some((relay, peer, payload)) = forward else { return };
        self.assert_permitted(client, peer);
        self.charge(client, payload.len());
        let Some(address) = self.sockets.get(&relay).copied() else {
            assert!(self.refusing, "the socket is there");
            return;
        };
        self.assert_owned(client, address);
    }

    /// Asserts that a relayed address belongs only to this client.
    pub(super) fn assert_owned(&mut self, client: u8, address: SocketAddr) {
        let owner = self.owner(address);
        assert!(owner.is_none_or(|owner| owner == client), "a relayed address of two clients");
        if owner.is_none() {
            self.granted.get_mut(&client).unwrap().addresses.push(address);
        }
    }

    /// Returns the owner of a relayed address, if it is known.
    pub(super) fn owner(&self, address: SocketAddr) -> Option<u8> {
        let mut granted = self.granted.iter();
        granted.find(|(_, allocation)| allocation.addresses.contains(&address)).map(|(client, _)| *client)
    }

    pub(super) fn allocations(&self) -> usize {
        self.relays.iter().map(Relay::len).sum()
    }

    /// Compares the relays with the model.
    pub(super) fn check(&self) {
        let (leased, open) = (self.shared.ports.leased() as usize, self.sockets.len() + self.listeners.len());
        assert_eq!(self.allocations(), self.granted.len(), "exactly the granted allocations exist");
        let held = self.shared.quota.held() as usize;
        let most = self.allocations() + self.reservations.len();
        assert!(
            (self.allocations()..=most).contains(&held),
            "one quota permit per allocation and reservation"
        );
        assert!(open >= self.granted.len(), "every allocation has a port of its own");
        assert!(
            leased == open || leased > open && !self.reservations.is_empty(),
            "{leased} leased, {open} open"
        );
        assert!(leased <= open + self.reservations.len());
        assert!(!self.granted.is_empty() || open == 0, "without allocations there are no sockets");
        for relay in &self.relays {
            assert!(relay.poll_timeout().is_none_or(|at| at > self.now.mono), "no timer is overdue");
        }
        assert!(self.granted.len() <= 5);
        for user in 0..USERS.len() {
            assert!(
                self.granted.values().filter(|allocation| allocation.user == user).count() <= 3,
                "the quota"
            );
        }
        for link in self.connections.values() {
            assert!(
                self.granted.values().any(|allocation| allocation.id == link.id),
                "a connection without allocation"
            );
            let waits = self.now.mono.duration_since(link.since) < CONNECTION_TIMEOUT;
            assert!(link.stage == Stage::Joined || waits, "a connection that waits for too long");
        }
    }

    /// Lets everything expire and checks that no state remains.
    pub(super) fn end(mut self) -> u64 {
        self.wait(3600);
        self.check();
        assert!(self.connections.is_empty());
        assert!(self.relays.iter().all(|relay| relay.is_empty() && relay.poll_timeout().is_none()));
        let (ports, quota) = (Arc::clone(&self.shared.ports), Arc::clone(&self.shared.quota));
        let log = self.log.finish();
        drop(self.relays);
        drop(self.shared);
        assert_eq!((ports.leased(), quota.held()), (0, 0), "every port and permit is released");
        log
    }
}
