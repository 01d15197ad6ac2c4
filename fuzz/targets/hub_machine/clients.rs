//! What clients do.

use super::model::{Asked, Claim};
use super::{Input, Leg, UDP, WEB, World};
use data_encoding::BASE64URL_NOPAD;
use ginnel::internals::signaling::wire::{Proof, Tag};
use ginnel::internals::signaling::{ConnId, NodeId, ServerPort};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

const SECRETS: [&str; 2] = ["the first owner's secret", "the second owner's secret"];
/// Clients mostly mean one of so many tags, or calls.
const RECENT: usize = 8;
const REVOKED_FOR: u64 = 60;

impl World {
    /// The leg of a client: its main socket, its hole socket, or its WebSocket if it has one.
    pub(super) fn leg(&self, client: u8, hole: bool) -> Option<Leg> {
        match client % (UDP + WEB) {
            client if client < UDP => {
                let port = 1000 + u16::from(client) * 2 + u16::from(hole);
                Some(Leg::Udp(([192, 0, 2, 1 + client / 2], port).into()))
            }
            client => self.webs.get(&client).map(|conn| Leg::Web(*conn)),
        }
    }

    /// The server that a client reaches.
    pub(super) fn home_of(&self, leg: Leg) -> usize {
        let count = self.hubs.len();
        match leg {
            Leg::Udp(SocketAddr::V4(address)) => usize::from(address.ip().octets()[3]) % count,
            Leg::Udp(SocketAddr::V6(_)) => 0,
            Leg::Web(conn) => conn as usize % count,
        }
    }

    /// One of the tags that were heard of last.
    fn tag(&self, which: u8) -> String {
        let known = self.model.tags.iter().rev().take(RECENT);
        known
            .clone()
            .nth(usize::from(which) % known.len().max(1))
            .cloned()
            .unwrap_or_else(|| "nobody".to_owned())
    }

    /// The client's own tag, or a foreign one.
    fn own_tag(&self, client: u8, which: u8) -> String {
        let own = self.leg(client, false).and_then(|leg| self.model.told.get(&leg));
        own.filter(|_| which < 0x80).cloned().unwrap_or_else(|| self.tag(which))
    }

    pub(super) fn is_open(&self, leg: Leg) -> bool {
        match leg {
            Leg::Udp(_) => true,
            Leg::Web(conn) => self.webs.values().any(|open| *open == conn),
        }
    }

    pub(super) fn open(&mut self, client: u8) {
        let client = UDP + client % WEB;
        if self.webs.contains_key(&client) {
            return;
        }
        self.next_conn += 1;
        let (conn, ip) = (self.next_conn, IpAddr::from([198, 51, 100, client]));
        self.webs.insert(client, conn);
        let home = self.home_of(Leg::Web(conn));
        self.hubs[home].handle_websocket_opened(self.now, ConnId(conn), ip);
        self.drain(home, None);
    }

    pub(super) fn close(&mut self, client: u8) {
        if let Some(conn) = self.webs.remove(&(UDP + client % WEB)) {
            self.model.forget(conn);
            let home = self.home_of(Leg::Web(conn));
            self.hubs[home].handle_websocket_closed(self.now, ConnId(conn));
            self.drain(home, None);
        }
    }

    /// Revokes a tag for a minute.
    pub(super) fn revoke(&mut self, which: u8) {
        let (tag, until) = (self.tag(which), self.now.unix + REVOKED_FOR);
        self.revoked.revoke(self.now.unix, &tag, until).expect("room");
        self.model.revoked.insert(tag.clone(), (self.at, until));
        let tag = Tag::new(tag).expect("a tag");
        let hub = NodeId::of_tag(&tag, self.hubs.len()).index();
        self.hubs[hub].handle_revoked(self.now, &tag);
        self.drain(hub, None);
    }

    fn say(&mut self, leg: Leg, door: ServerPort, bytes: &[u8]) {
        let home = self.home_of(leg);
        let hub = &mut self.hubs[home];
        match leg {
            Leg::Udp(from) => hub.handle_datagram(self.now, door, from, None, bytes),
            Leg::Web(conn) => match std::str::from_utf8(bytes) {
                Ok(text) => hub.handle_websocket_text(self.now, ConnId(conn), text),
                Err(_) => return,
            },
        }
        self.drain(home, None);
    }

    /// Asks from a leg, with so much room that any answer may come back.
    pub(super) fn ask(&mut self, leg: Leg, t: i64, params: &Value) -> i64 {
        self.mid += 1;
        // Only a datagram limits the length of its answer.
        let padding = "x".repeat(if matches!(leg, Leg::Udp(_)) { 500 } else { 0 });
        let message = json!({ "t": t, "mid": self.mid, "params": params, "pad": padding });
        let bytes = message.to_string().into_bytes();
        if let Leg::Web(conn) = leg {
            self.model.asked.insert((conn, self.mid));
        }
        self.last = Some((leg, bytes.clone()));
        self.say(leg, ServerPort::Main, &bytes);
        self.mid
    }

    /// Says again what was said last, as UDP and impatient clients do.
    pub(super) fn repeat(&mut self) {
        let Some((leg, bytes)) = self.last.clone() else { return };
        if self.is_open(leg) {
            self.say(leg, ServerPort::Main, &bytes);
        }
    }

    pub(super) fn register(&mut self, client: u8) {
        let Some(leg) = self.leg(client, false) else { return };
        self.claim(leg, Claim { owner: None, epoch: None, is_good: true }, json!({}));
    }

    fn claim(&mut self, leg: Leg, claim: Claim, mut params: Value) {
        if let Some(epoch) = claim.epoch {
            params["epoch"] = json!(epoch);
        }
        self.model.claims.insert((leg, self.mid + 1), claim);
        self.ask(leg, 1, &params);
    }

    /// The number that an owner shows: none, an older one, the last one, or a newer one.
    fn epoch(&self, owner: u8, which: u8) -> Option<i64> {
        let last = self.model.epochs.get(&owner).copied().unwrap_or(5);
        [None, None, Some(last - 1), Some(last), Some(last + 1)][usize::from(which) % 5]
    }

    /// Registers by a secret.
    pub(super) fn own(&mut self, client: u8, operand: u8) {
        let Some(leg) = self.leg(client, false) else { return };
        let owner = operand % 2;
        let claim = Claim { owner: Some(owner), epoch: self.epoch(owner, operand >> 1), is_good: true };
        self.claim(leg, claim, json!({ "secret": SECRETS[usize::from(owner)] }));
    }

    pub(super) fn challenge(&mut self, client: u8) {
        if let Some(leg) = self.leg(client, false) {
            self.ask(leg, 5, &json!({}));
        }
    }

    /// Registers by a key, with a nonce of its own or of somebody else, and a signature of what it shows or of something else.
    pub(super) fn prove(&mut self, client: u8, operand: u8) {
        let Some(leg) = self.leg(client, false) else { return };
        let (key, flaw) = (operand % 2, operand >> 5);
        let mut nonces = self.model.nonces.iter();
        let nonce = if flaw == 6 {
            nonces.find(|(whose, _)| **whose != leg)
        } else {
            nonces.find(|(whose, _)| **whose == leg)
        };
        let Some((_, nonce)) = nonce else { return };
        let pair = Ed25519KeyPair::from_seed_unchecked(&[key; 32]).expect("a key");
        let public: [u8; 32] = pair.public_key().as_ref().try_into().expect("32 bytes");
        let owner = SECRETS.len() as u8 + key;
        let epoch = self.epoch(owner, operand >> 1);
        let proof = Proof { public, nonce: nonce.clone(), signature: Vec::new() };
        let signed = if flaw == 7 { Some(1) } else { epoch };
        let signature = pair.sign(proof.text(signed).as_bytes());
        let [public, sig] = [&public[..], signature.as_ref()].map(|bytes| BASE64URL_NOPAD.encode(bytes));
        let params = json!({ "pub": public, "nonce": nonce, "sig": sig });
        self.claim(leg, Claim { owner: Some(owner), epoch, is_good: flaw != 6 && signed == epoch }, params);
    }

    pub(super) fn heartbeat(&mut self, client: u8, which: u8) {
        if let Some(leg) = self.leg(client, false) {
            self.ask(leg, 2, &json!({ "tag": self.own_tag(client, which) }));
        }
    }

    pub(super) fn list(&mut self, client: u8, which: u8) {
        if let Some(leg) = self.leg(client, false) {
            self.ask(leg, 3, &json!({ "tag": self.own_tag(client, which) }));
        }
    }

    pub(super) fn call(&mut self, client: u8, own: u8, other: u8) {
        if let Some(leg) = self.leg(client, true) {
            self.call_between(leg, self.own_tag(client, own), self.tag(other));
        }
    }

    pub(super) fn call_between(&mut self, leg: Leg, own: String, other: String) -> i64 {
        let params = json!({ "tag": own, "rtag": other });
        self.model.calls.push(Asked { leg, mid: self.mid + 1, own, other, since: self.at });
        self.ask(leg, 4, &params)
    }

    /// Begins to watch three tags from this one on, or ends it.
    pub(super) fn watch(&mut self, client: u8, which: u8, watch: bool) {
        let Some(leg) = self.leg(UDP + client % WEB, false) else { return };
        let tags: Vec<String> = (0..which / 64).map(|next| self.tag(which.wrapping_add(next))).collect();
        let params = json!({ "tags": tags, "watch": watch });
        self.model.watches.insert((leg, self.mid + 1), (tags, watch));
        self.ask(leg, 60, &params);
    }

    /// Answers a notification, or refuses it: from a leg of whoever heard it, or of somebody else.
    pub(super) fn answer(&mut self, client: u8, which: u8, refuse: bool) {
        let notices = self.model.notices.iter().rev().take(RECENT);
        let notice = notices.clone().nth(usize::from(which) % notices.len().max(1)).cloned();
        let Some((heard, mid, token)) = notice else { return };
        let leg = if client < 0x80 { Some(heard) } else { self.leg(client, which & 0x80 != 0) };
        let Some(leg) = leg.filter(|leg| self.is_open(*leg)) else { return };
        let same_host = match (leg, heard) {
            (Leg::Udp(one), Leg::Udp(other)) => one.ip() == other.ip(),
            (one, other) => one == other,
        };
        if !same_host {
            // A stranger cannot know the `mid`.
            return;
        }
        // The callee may answer from another socket than the one that it was notified on.
        self.model.acts.entry(token.clone()).or_default().legs.insert(leg);
        let code = if refuse { 204 } else { 200 };
        let t = if refuse { 51 } else { -51 };
        let message = json!({ "t": t, "mid": mid, "token": token, "code": code });
        self.say(leg, ServerPort::Aux, message.to_string().as_bytes());
    }

    /// Trickles, ends, or answers step 10, with a token that is its business or not.
    pub(super) fn about_an_act(&mut self, client: u8, which: u8, what: u8) {
        let acts = &self.model.acts;
        let Some((token, act)) = acts.iter().nth(usize::from(which) % acts.len().max(1)) else { return };
        let party = act.legs.iter().nth(usize::from(client) % act.legs.len().max(1)).copied();
        let leg = if what & 32 == 0 { party } else { self.leg(client, what & 0x80 != 0) };
        let (Some(leg), token) = (leg.filter(|leg| self.is_open(*leg)), token.clone()) else { return };
        self.mid += 1;
        let message = match what % 3 {
            0 => json!({ "t": 54, "mid": self.mid, "token": token, "params": { "cands": ["candidate:1"] } }),
            1 => json!({ "t": 55, "mid": self.mid, "token": token, "params": { "reason": "x" } }),
            _ => {
                json!({ "t": -53, "mid": self.mid, "token": token, "extra": { "punching": what & 64 == 0 } })
            }
        };
        self.say(leg, ServerPort::Main, message.to_string().as_bytes());
    }

    pub(super) fn babble(&mut self, client: u8, len: u8, input: &mut Input<'_>) {
        let bytes: Vec<u8> = (0..len % 64).map(|_| input.byte()).collect();
        if let Some(leg) = self.leg(client, false) {
            self.say(leg, ServerPort::Main, &bytes);
        }
    }
}
