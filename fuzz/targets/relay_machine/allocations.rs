//! Requests about allocations, and what the replies promise.

use super::*;

impl World {
    pub(super) fn allocate(&mut self, client: u8, user: usize, options: u8, more: u8) {
        let (tcp, mobile) = (more & 1 != 0, more & 2 != 0);
        let token = self.token.clone();
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.ask(client, user, Method::ALLOCATE, |mut builder| {
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
            builder.attribute(attr::LIFETIME, &asked.to_be_bytes())
        });
        let Some(reply) = reply else { return };
        assert!(!self.lives.contains_key(&client), "one allocation a five-tuple");
        let message = Message::parse(&reply).unwrap();
        let attributes = message.unverified();
        let relayed: Vec<_> =
            attributes.xor_addresses(attr::XOR_RELAYED_ADDRESS).map(Result::unwrap).collect();
        let open: Vec<_> = if tcp { &self.listeners } else { &self.sockets }.values().copied().collect();
        assert!(!relayed.is_empty() && relayed.iter().all(|at| open.contains(at)));
        let wanted = if options & 3 == 3 { 2 } else { 1 };
        let missing = attributes.get(attr::ADDRESS_ERROR_CODE).is_some();
        assert_eq!(relayed.len() + usize::from(missing), wanted, "what is missing is said");
        match ((options >> 2) & 3, token) {
            (1 | 2, _) => assert!(relayed.iter().all(|address| address.port() % 2 == 0)),
            (3, Some((_, owner, port))) => assert_eq!((user, relayed[0].port()), (owner, port)),
            _ => {}
        }
        if let Some(token) = attributes.get(attr::RESERVATION_TOKEN) {
            self.token = Some((token.to_vec(), user, relayed[0].port() + 1));
            self.set_aside.push(self.now.mono + Duration::from_secs(30));
        }
        self.births += 1;
        let life = Life {
            birth: self.births,
            user,
            until: self.until(&reply),
            tcp,
            tickets: 0,
            began: self.now.mono,
            relayed: 0,
            permissions: HashMap::new(),
            channels: HashMap::new(),
            addresses: if tcp { Vec::new() } else { relayed },
        };
        self.lives.insert(client, life);
        assert_eq!(mobile, attributes.get(attr::MOBILITY_TICKET).is_some());
        self.keep_ticket(client, &reply);
    }

    pub(super) fn keep_ticket(&mut self, client: u8, reply: &[u8]) {
        let message = Message::parse(reply).unwrap();
        let Some(sealed) = message.unverified().get(attr::MOBILITY_TICKET).map(<[u8]>::to_vec) else {
            return;
        };
        let Some(life) = self.lives.get(&client) else { return };
        self.tickets.push(Ticket { sealed, birth: life.birth, number: life.tickets });
    }

    /// Comes with a ticket, whosever it is and however old.
    pub(super) fn resume(&mut self, client: u8, user: usize, which: u8, options: u8) {
        let count = self.tickets.len().max(1);
        let Some(Ticket { sealed, birth, number }) = self.tickets.get(usize::from(which) % count) else {
            return;
        };
        let (mut sealed, birth, number) = (sealed.clone(), *birth, *number);
        let forged = options & 1 != 0;
        if forged {
            let at = usize::from(options) % sealed.len();
            sealed[at] ^= 1;
        }
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let reply = self.ask(client, user, Method::REFRESH, |builder| {
            let builder = builder.attribute(attr::LIFETIME, &asked.to_be_bytes());
            builder.attribute(attr::MOBILITY_TICKET, &sealed)
        });
        let Some(reply) = reply else { return };
        assert!(!forged, "a ticket cannot be made");
        let before = self.lives.iter().find(|(_, life)| life.birth == birth).map(|(client, _)| *client);
        let before = before.expect("a ticket's allocation is there");
        let mut life = self.lives.remove(&before).unwrap();
        assert_eq!(life.user, user, "a ticket is its user's");
        assert!(number == life.tickets || number + 1 == life.tickets && before == client, "an old ticket");
        life.tickets += usize::from(number == life.tickets);
        life.until = self.until(&reply);
        assert!(self.lives.insert(client, life).is_none(), "a place that was taken");
        if asked == 0 {
            self.bury(client);
        }
        self.keep_ticket(client, &reply);
    }

    /// Reads until when a reply's LIFETIME reaches.
    pub(super) fn until(&self, reply: &[u8]) -> Instant {
        let seconds = Message::parse(reply).unwrap().unverified().u32(attr::LIFETIME).unwrap();
        assert!(seconds <= 3600);
        self.now.mono + Duration::from_secs(seconds.into())
    }

    pub(super) fn refresh(&mut self, client: u8, user: usize, options: u8) {
        let asked = LIFETIMES[usize::from(options >> 5) % LIFETIMES.len()];
        let family = (options & 3).min(2);
        let reply = self.ask(client, user, Method::REFRESH, |builder| {
            let builder = builder.attribute(attr::LIFETIME, &asked.to_be_bytes());
            match family {
                0 => builder,
                family => builder.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]),
            }
        });
        let Some(reply) = reply else { return };
        self.assert_owner(client, user);
        let until = self.until(&reply);
        let still_there = self.allocations() == self.lives.len();
        match self.lives.get_mut(&client) {
            Some(_) if asked == 0 && still_there => {
                assert_ne!(family, 0, "a whole allocation was to end");
            }
            Some(_) if asked == 0 => self.bury(client),
            Some(life) => life.until = until,
            None => {}
        }
    }

    pub(super) fn permit(&mut self, client: u8, user: usize, which: u8) {
        let peers: Vec<_> = [which, which / 10].iter().map(|peer| self.peer(*peer)).collect();
        let peers = &peers[..1 + usize::from(which > 128)];
        let reply = self.ask(client, user, Method::CREATE_PERMISSION, |builder| {
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
        let reply = self.ask(client, user, Method::CHANNEL_BIND, |builder| {
            let builder = builder.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]);
            builder.xor_address(attr::XOR_PEER_ADDRESS, peer)
        });
        if reply.is_none() {
            return;
        }
        self.assert_owner(client, user);
        self.grant(client, peer);
        let now = self.now.mono;
        let channels = &mut self.lives.get_mut(&client).unwrap().channels;
        let old = channels.insert(number, (peer, now + CHANNEL_LIFETIME));
        assert!(old.is_none_or(|(bound, until)| bound == peer || until <= now), "a channel keeps its peer");
        let others = channels.iter().filter(|(other, _)| **other != number);
        let twice = others.filter(|(_, (bound, until))| *bound == peer && *until > now).count();
        assert_eq!(twice, 0, "a peer has one channel");
    }
}
