//! The hub's part in presence: who comes (t=1), stays (2), is listed (3) and is watched (60).

use super::admission::{self, Scopes};
use super::identity::{self, TAG_BYTES};
use super::inner::Inner;
use super::leg::{Door, Network, Peer};
use super::machine::{Asker, Hub, Output, base32};
use super::rate::Verdict;
use super::wire::{Answer, Ask, Code, MAX_EPOCH, Proof, Request, Response, Seen, Tag};
use rand::RngCore;
use std::net::SocketAddr;
use std::time::Instant;

/// How much longer than its request the answer to t=60 may be, besides the tags.
const WATCH_ROOM: usize = 128;

/// New sessions are numbered by the clock, so that the numbers grow over a restart of the server, and so coarsely that a session
/// which counts on does not reach the next one's number.
const EPOCHS_PER_SECOND: i64 = 1000;

/// What a registration shows for a lasting tag.
#[derive(Debug, Clone)]
pub(super) struct Claim<'a> {
    pub(super) secret: Option<&'a str>,
    pub(super) epoch: Option<i64>,
    pub(super) proof: Option<&'a Proof>,
    pub(super) laddrs: Option<Vec<SocketAddr>>,
}

impl Hub {
    /// t=1. A leg that has a tag keeps it; a secret or a key brings its tag to wherever it is shown (S0-A18).
    pub(super) fn register(
        &mut self,
        asker: Asker,
        mid: Option<i64>,
        key: Option<&str>,
        claim: Claim<'_>,
    ) -> Result<Answer, Code> {
        let scopes = match key {
            Some(key) => admission::scopes(&self.config.access_keys, key).ok_or(Code::NotAllowed)?,
            None => Scopes::default(),
        };
        if !(self.config.open || scopes.register) {
            return Err(Code::NotAllowed);
        }
        let owned = self.owned_tag(asker, &claim)?;
        let (tag, epoch) = match (owned, self.registry.peer(asker.leg.peer)) {
            (Some(tag), _) => {
                let epoch = self.epoch(asker, &tag, claim.epoch)?;
                (tag, Some(epoch))
            }
            (None, Some(client)) => (client.tag.clone(), client.epoch),
            (None, None) => (self.fresh_tag()?, None),
        };
        self.enter(asker, &tag, epoch)?;
        if claim.proof.is_some() {
            // The nonce came back from there.
            self.registry.prove(asker.leg.peer);
        }
        self.registry.empower(asker.leg.peer, scopes.admin);
        let ice_servers = match scopes.relay {
            true => self.config.ice_servers.admitted(asker.now, tag.as_str()),
            false => self.config.ice_servers.public(),
        };
        let stun2 = self.config.stun2.clone();
        let seen = self.see(asker.leg.peer, claim.laddrs);
        let room = self.room(asker);
        let fits = |answer: &Answer| Response { mid, body: answer.clone() }.encode().len() <= room;
        let bare =
            Answer::Registered { tag: tag.clone(), ice_servers: Vec::new(), stun2: None, epoch, seen: None };
        let shorter =
            Answer::Registered { tag: tag.clone(), ice_servers: Vec::new(), stun2: None, epoch, seen };
        let full = Answer::Registered { tag, ice_servers, stun2, epoch, seen };
        Ok([full, shorter].into_iter().find(fits).unwrap_or(bare))
    }

    /// Notes what a client tells of its own network, and compares it with where it is seen (S1-2, S1-3).
    fn see(&mut self, peer: Peer, laddrs: Option<Vec<SocketAddr>>) -> Option<Seen> {
        if let Some(laddrs) = laddrs {
            self.registry.tell_inner(peer, Inner::new(laddrs));
        }
        let Peer::Udp(addr) = peer else { return None };
        let nat = self.registry.peer(peer)?.inner.is_behind_nat(addr);
        Some(Seen { addr, nat })
    }

    /// Says which tag a secret or a key has; none where neither was shown.
    fn owned_tag(&mut self, asker: Asker, claim: &Claim<'_>) -> Result<Option<Tag>, Code> {
        let Some(proof) = claim.proof else {
            let tag = |secret| identity::tag_of_secret(secret).ok_or(Code::Internal);
            return claim.secret.map(tag).transpose();
        };
        if !self.challenges.knows(&proof.nonce, asker.leg.peer, asker.now.unix) {
            return Err(Code::BadToken);
        }
        // A signature costs more than all else a message does.
        let network = self.network(asker.leg.peer)?;
        if self.proofs.take(network, asker.now.mono) != Verdict::Pass {
            return Err(Code::TooMany);
        }
        if !identity::is_proven(proof, claim.epoch) {
            return Err(Code::NotAllowed);
        }
        identity::tag_of_key(&proof.public).map(Some).ok_or(Code::Internal)
    }

    fn network(&self, peer: Peer) -> Result<Network, Code> {
        match peer {
            Peer::Udp(address) => Ok(Network::of(address.ip())),
            Peer::Web(conn) => self.webs.get(&conn).copied().ok_or(Code::Internal),
        }
    }

    /// Says under which number the asker may have an owned tag. One that shows a number proves itself newer than the holder by a
    /// higher one; one that shows none has just begun, and is the newest.
    fn epoch(&self, asker: Asker, tag: &Tag, shown: Option<i64>) -> Result<i64, Code> {
        let holder = self.registry.tag(tag);
        let held = holder.and_then(|client| client.epoch);
        let is_holder = holder.is_some_and(|client| client.leg.peer == asker.leg.peer);
        match (shown, held) {
            (Some(shown), Some(held)) if shown < held || shown == held && !is_holder => Err(Code::Replaced),
            (Some(shown), _) => Ok(shown),
            (None, Some(held)) if is_holder => Ok(held),
            (None, held) => {
                let clock =
                    i64::try_from(asker.now.unix).map_or(0, |unix| unix.saturating_mul(EPOCHS_PER_SECOND));
                Ok(held.map_or(0, |held| held + 1).max(clock).min(MAX_EPOCH))
            }
        }
    }

    /// Gives `tag` to the asker's leg, wherever it was before. Where that was is told why it is over.
    fn enter(&mut self, asker: Asker, tag: &Tag, epoch: Option<i64>) -> Result<(), Code> {
        let peer = asker.leg.peer;
        if self.registry.tag(tag).is_some_and(|client| client.leg.peer == peer) {
            self.registry.renew(tag, epoch);
            return Ok(());
        }
        let network = self.network(peer)?;
        // Whoever is refused takes nothing from the holder.
        if !self.registry.has_room(asker.now.mono, tag, peer, network) {
            return Err(Code::TooMany);
        }
        self.registry.remove_peer(peer);
        if let Some(older) = self.registry.remove_tag(tag) {
            // Nobody is sent a datagram for what was done in another's name.
            if older.proven {
                self.send(older.leg, Door::Main, &Response::failure(1, None, Code::Replaced).encode());
            }
            if let Peer::Web(conn) = older.leg.peer {
                self.close_web(asker.now, conn);
                self.outputs.push_back(Output::Close { conn });
            }
        }
        let entered = self.registry.enter(asker.now.mono, tag.clone(), asker.leg, network, epoch);
        entered.map_err(|_| Code::TooMany)
    }

    /// t=2.
    pub(super) fn heartbeat(&mut self, asker: Asker, tag: &Tag) -> Result<Answer, Code> {
        self.registry.touch(asker.now.mono, tag, asker.leg.peer).ok_or(Code::UnknownTag)?;
        Ok(Answer::Alive)
    }

    /// t=3: as many tags as the leg has room for (S0-A15).
    pub(super) fn list(
        &mut self,
        asker: Asker,
        mid: Option<i64>,
        tag: &Tag,
        after: Option<&Tag>,
    ) -> Result<Answer, Code> {
        let client = self.registry.touch(asker.now.mono, tag, asker.leg.peer).ok_or(Code::UnknownTag)?;
        if !(self.config.list || client.admin) {
            return Err(Code::NotAllowed);
        }
        let empty = Response { mid, body: Answer::Listed { tags: Vec::new(), more: true } };
        let room = self.room(asker).saturating_sub(empty.encode().len());
        let (tags, more) = self.registry.page(tag, after, room);
        Ok(Answer::Listed { tags, more })
    }

    /// t=60, over WebSocket alone: a datagram would need repetition, and its client asks again anyway.
    pub(super) fn watch(&mut self, asker: Asker, tags: Vec<Tag>, watch: bool) -> Result<Answer, Code> {
        let Peer::Web(conn) = asker.leg.peer else { return Err(Code::Unsupported) };
        let client = self.registry.peer(asker.leg.peer).ok_or(Code::UnknownTag)?;
        if !(self.config.presence || client.admin) {
            return Err(Code::NotAllowed);
        }
        if asker.size + WATCH_ROOM > asker.leg.room() {
            return Err(Code::TooMany);
        }
        if !watch {
            self.watches.stop(conn, &tags);
            return Ok(Answer::Watching { online: Vec::new(), offline: Vec::new() });
        }
        let registry = &self.registry;
        let told = self.watches.begin(conn, tags, |tag| registry.tag(tag).is_some());
        let (online, offline) = told.map_err(|_| Code::TooMany)?;
        Ok(Answer::Watching { online, offline })
    }

    /// Tells the watchers who came and who went. A tag that only moved did neither.
    pub(super) fn tell_changes(&mut self, now: Instant) {
        for tag in self.registry.take_changed() {
            self.watches.note(now, &tag, self.registry.tag(&tag).is_some());
        }
        while let Some(tag) = self.watches.pop_due(now) {
            self.watches.note(now, &tag, self.registry.tag(&tag).is_some());
        }
        for (conn, (online, offline)) in self.watches.take_news(now) {
            let event = Request { mid: None, body: Ask::Presence { online, offline } };
            self.outputs.push_back(Output::Text { conn, text: event.encode() });
        }
    }

    fn fresh_tag(&mut self) -> Result<Tag, Code> {
        let mut bytes = [0; TAG_BYTES];
        self.rng.fill_bytes(&mut bytes);
        Tag::new(base32(&bytes)).ok_or(Code::Internal)
    }
}
