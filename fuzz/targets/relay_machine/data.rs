//! Data in both directions, and ICMP errors.

use super::*;

impl World {
    pub(super) fn send(&mut self, client: u8, which: u8) {
        let peer = self.peer(which);
        let payload = [client, which, 3, 4, 5];
        let bytes = self
            .builder(Class::Indication, Method::SEND)
            .xor_address(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::DATA, &payload[..usize::from(which % 6)])
            .finish();
        let forward = self.send_frame(client, &bytes);
        assert!(forward.is_some() || !self.must_reach(client, canonical(peer)));
        if let Some((_, to, sent)) = &forward {
            assert_eq!((*to, &sent[..]), (canonical(peer), &payload[..usize::from(which % 6)]));
        }
        self.check_sent(client, forward);
    }

    pub(super) fn channel_data(&mut self, client: u8, which: u8) {
        let number = 0x4000 + u16::from(which % 4);
        let [high, low] = number.to_be_bytes();
        let now = self.now.mono;
        let allocation = self.granted.get(&client);
        let bound = allocation
            .and_then(|allocation| allocation.channels.get(&number))
            .filter(|(_, until)| now < *until);
        let bound = bound.map(|(peer, _)| *peer);
        let forward = self.send_frame(client, &[high, low, 0, 2, 9, which, 0, 0]);
        assert!(forward.is_some() || !bound.is_some_and(|peer| self.must_reach(client, peer)));
        if let Some((_, to, sent)) = &forward {
            assert_eq!((Some(*to), &sent[..]), (bound, &[9, which][..]));
        }
        self.check_sent(client, forward);
    }

    pub(super) fn raw(&mut self, client: u8, bytes: &[u8]) {
        let forward = self.send_frame(client, bytes);
        self.check_sent(client, forward);
    }

    pub(super) fn receive_from_peer(&mut self, which: usize, number: u8) {
        let Some((relay, address)) = nth(&self.sockets, which).map(|(key, at)| (key, *at)) else { return };
        let peer = canonical(self.peer(number));
        let payload = &[1, 2, 3, 4, 5, 6, 7][..usize::from(number) % 8];
        let owner = self.owner(address).filter(|owner| self.must_reach(*owner, peer));
        let forward = self.peer_sends(relay, peer, payload);
        assert!(self.drain().is_empty());
        let Some((client, bytes)) = forward else {
            assert!(owner.is_none(), "data of a permitted peer is lost");
            return;
        };
        self.assert_owned(client, address);
        self.charge(client, payload.len());
        self.assert_permitted(client, peer);
        assert!(bytes.len().is_multiple_of(4) || tuple(client).transport == Transport::Udp);
        if let Some((number, data)) = parse_channel_data(&bytes) {
            assert_eq!(data, payload);
            let (bound, until) = self.granted[&client].channels[&number];
            assert!(bound == peer && self.now.mono < until);
        } else {
            let message = Message::parse(&bytes).expect("a Data indication is sound");
            assert_eq!(message.unverified().get(attr::DATA), Some(payload));
            assert_eq!(message.unverified().xor_address(attr::XOR_PEER_ADDRESS), Ok(Some(peer)));
        }
    }

    pub(super) fn receive_icmp_error(&mut self, which: usize, number: u8) {
        let Some((relay, address)) = nth(&self.sockets, which).map(|(key, at)| (key, *at)) else { return };
        let peer = canonical(self.peer(number));
        if let Some((client, bytes)) = self.peer_refuses(relay, peer) {
            self.assert_permitted(client, peer);
            self.assert_owned(client, address);
            assert!(Message::parse(&bytes).is_ok());
        }
        assert!(self.drain().is_empty());
    }
}
