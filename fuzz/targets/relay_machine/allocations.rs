//! Requests for allocations, permissions and channels, and the checks of their responses.

use super::*;

impl World {
    pub(super) fn allocate(&mut self, client: u8, user: usize, options: u8, more: u8) {
        let (tcp, mobile) = (more & 1 != 0, more & 2 != 0);
        let token = self.token.clone();
        let requested = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.request(client, user, Method::ALLOCATE, |mut builder| {
            builder = builder.attribute(attr::REQUESTED_TRANSPORT, &[if tcp { 6 } else { 17 }, 0, 0, 0]);
            if mobile {
                builder = builder.attribute(attr::MOBILITY_TICKET, b"");
            }
            builder = match options & 3 {
                0 => builder,
                3 => builder.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
                family => builder.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]),
            };
            builder = match ((options >> 2) & 3, &token) {
                (1, _) => builder.attribute(attr::EVEN_PORT, &[0]),
                (2, _) => builder.attribute(attr::EVEN_PORT, &[0x80]),
                (3, Some((token, ..))) => builder.attribute(attr::RESERVATION_TOKEN, token),
                _ => builder,
            };
            builder.attribute(attr::LIFETIME, &requested.to_be_bytes())
        });
        let Some(reply) = reply else { return };
        assert!(!self.granted.contains_key(&client), "one allocation per 5-tuple");
        let message = Message::parse(&reply).unwrap();
        let attributes = message.unverified();
        let relayed: Vec<_> =
            attributes.xor_addresses(attr::XOR_RELAYED_ADDRESS).map(Result::unwrap).collect();
        let open: Vec<_> = if tcp { &self.listeners } else { &self.sockets }.values().copied().collect();
        assert!(!relayed.is_empty() && relayed.iter().all(|at| open.contains(at)));
        let wanted = if options & 3 == 3 { 2 } else { 1 };
        let missing = attributes.get(attr::ADDRESS_ERROR_CODE).is_some();
        assert_eq!(relayed.len() + usize::from(missing), wanted, "a missing family is reported");
        match ((options >> 2) & 3, token) {
            (1 | 2, _) => assert!(relayed.iter().all(|address| address.port() % 2 == 0)),
            (3, Some((_, owner, port))) => assert_eq!((user, relayed[0].port()), (owner, port)),
            _ => {}
        }
        if let Some(token) = attributes.get(attr::RESERVATION_TOKEN) {
            self.token = Some((token.to_vec(), user, relayed[0].port() + 1));
            self.reservations.push(self.now.mono + Duration::from_secs(30));
        }
        self.allocated += 1;
        let allocation = Granted {
            id: self.allocated,
            user,
            until: self.until(&reply),
            tcp,
            tickets: 0,
            start: self.now.mono,
            relayed: 0,
            permissions: HashMap::new(),
            channels: HashMap::new(),
            addresses: if tcp { Vec::new() } else { relayed },
        };
        self.granted.insert(client, allocation);
        assert_eq!(mobile, attributes.get(attr::MOBILITY_TICKET).is_some());
        self.keep_ticket(client, &reply);
    }

    pub(super) fn keep_ticket(&mut self, client: u8, reply: &[u8]) {
        let message = Message::parse(reply).unwrap();
        let Some(sealed) = message.unverified().get(attr::MOBILITY_TICKET).map(<[u8]>::to_vec) else {
            return;
        };
        let Some(allocation) = self.granted.get(&client) else { return };
        self.tickets.push(Ticket { sealed, id: allocation.id, number: allocation.tickets });
    }

    /// Refreshes with any mobility ticket, also a foreign or an old one.
    pub(super) fn resume(&mut self, client: u8, user: usize, which: u8, options: u8) {
        let count = self.tickets.len().max(1);
        let Some(Ticket { sealed, id, number }) = self.tickets.get(usize::from(which) % count) else {
            return;
        };
        let (mut sealed, id, number) = (sealed.clone(), *id, *number);
        let forged = options & 1 != 0;
        if forged {
            let at = usize::from(options) % sealed.len();
            sealed[at] ^= 1;
        }
        let requested = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.request(client, user, Method::REFRESH, |builder| {
            let builder = builder.attribute(attr::LIFETIME, &requested.to_be_bytes());
            builder.attribute(attr::MOBILITY_TICKET, &sealed)
        });
        let Some(reply) = reply else { return };
        assert!(!forged, "a ticket cannot be forged");
        let before =
            self.granted.iter().find(|(_, allocation)| allocation.id == id).map(|(client, _)| *client);
        let before = before.expect("a ticket's allocation is there");
        let mut allocation = self.granted.remove(&before).unwrap();
        assert_eq!(allocation.user, user, "a ticket is valid only for its user");
        assert!(
            number == allocation.tickets || number + 1 == allocation.tickets && before == client,
            "an old ticket"
        );
        allocation.tickets += usize::from(number == allocation.tickets);
        allocation.until = self.until(&reply);
        assert!(self.granted.insert(client, allocation).is_none(), "the 5-tuple had an allocation");
        if requested == 0 {
            self.remove_allocation(client);
        }
        self.keep_ticket(client, &reply);
    }

    /// Returns the end of the lifetime in a response.
    pub(super) fn until(&self, reply: &[u8]) -> Instant {
        let seconds = Message::parse(reply).unwrap().unverified().u32(attr::LIFETIME).unwrap();
        assert!(seconds <= 3600);
        self.now.mono + Duration::from_secs(seconds.into())
    }

    pub(super) fn refresh(&mut self, client: u8, user: usize, options: u8) {
        let requested = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let family = (options & 3).min(2);
        let reply = self.request(client, user, Method::REFRESH, |builder| {
            let builder = builder.attribute(attr::LIFETIME, &requested.to_be_bytes());
            match family {
                0 => builder,
                family => builder.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]),
            }
        });
        let Some(reply) = reply else { return };
        self.assert_owner(client, user);
        let until = self.until(&reply);
        let still_there = self.allocations() == self.granted.len();
        match self.granted.get_mut(&client) {
            Some(_) if requested == 0 && still_there => {
                assert_ne!(family, 0, "a whole allocation ends");
            }
            Some(_) if requested == 0 => self.remove_allocation(client),
            Some(allocation) => allocation.until = until,
            None => {}
        }
    }

    pub(super) fn permit(&mut self, client: u8, user: usize, which: u8) {
        let peers: Vec<_> = [which, which / 10].iter().map(|peer| self.peer(*peer)).collect();
        let peers = &peers[..1 + usize::from(which > 128)];
        let reply = self.request(client, user, Method::CREATE_PERMISSION, |builder| {
            peers.iter().fold(builder, |builder, peer| builder.xor_address(attr::XOR_PEER_ADDRESS, *peer))
        });
        if reply.is_some() {
            self.assert_owner(client, user);
            peers.iter().for_each(|peer| self.grant(client, canonical(*peer)));
        }
    }

    pub(super) fn bind(&mut self, client: u8, user: usize, which: u8) {
        let (number, peer) = (0x4000 + u16::from(which % 4), canonical(self.peer(which / 4)));
        let [high, low] = number.to_be_bytes();
        let reply = self.request(client, user, Method::CHANNEL_BIND, |builder| {
            let builder = builder.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]);
            builder.xor_address(attr::XOR_PEER_ADDRESS, peer)
        });
        if reply.is_none() {
            return;
        }
        self.assert_owner(client, user);
        self.grant(client, peer);
        let now = self.now.mono;
        let channels = &mut self.granted.get_mut(&client).unwrap().channels;
        let old = channels.insert(number, (peer, now + CHANNEL_LIFETIME));
        assert!(old.is_none_or(|(bound, until)| bound == peer || until <= now), "a channel keeps its peer");
        let others = channels.iter().filter(|(other, _)| **other != number);
        let twice = others.filter(|(_, (bound, until))| *bound == peer && *until > now).count();
        assert_eq!(twice, 0, "a peer has one channel");
    }
}
