//! The hub's part in presence: who comes (t=1), stays (2), is listed (3) and is watched (60).

use super::admission::{self, Admitted, Realm};
use super::bus::{Address, LISTED, Page, Said, Standing, Watchable};
use super::gathers::What;
use super::identity;
use super::inner::Inner;
use super::leg::{Conn, Door, Network, Peer};
use super::machine::{Asker, Hub, Output};
use super::name::{Name, TAG_BYTES, base32};
use super::rate::Verdict;
use super::registry::{Entry, Registration};
use super::shards::Shard;
use super::wire::{Answer, Ask, Code, MAX_EPOCH, Proof, Request, Response, Seen, Tag};
use crate::clock::Now;
use crate::limits::Limit;
use rand::RngCore;
use std::collections::{BTreeMap, HashMap};
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
        let admitted = match key {
            Some(key) => self.admit(asker, key)?,
            None => Admitted::default(),
        };
        let Admitted { scopes, realm, .. } = admitted;
        if !(self.config.open || scopes.register) {
            return Err(Code::NotAllowed);
        }
        let owned = self.owned_name(asker, &claim)?;
        let (name, epoch) = match (owned, self.registry.peer(asker.leg.peer)) {
            (Some(name), _) => (name, Some(self.epoch(asker, name, claim.epoch)?)),
            (None, Some(client)) => (client.name, client.epoch),
            (None, None) => (self.fresh_name(), None),
        };
        let tag = name.tag().ok_or(Code::Internal)?;
        if self.config.revoked.holds(asker.now.unix, tag.as_str()) {
            return Err(Code::Revoked);
        }
        let (leg, network, admin) = (asker.leg, asker.network, scopes.admin);
        self.enter(asker.now, Entry { name, leg, network, realm, admin, epoch })?;
        if claim.proof.is_some() {
            // The nonce came back from there.
            self.registry.prove(asker.leg.peer);
        }
        self.tell_home(asker, admin, realm);
        let ice_servers = match scopes.relay {
            true => self.config.ice_servers.admitted(asker.now, tag.as_str(), admitted),
            false => self.config.ice_servers.public(),
        };
        let stun2 = self.config.stun2.clone();
        let seen = self.see(asker.leg.peer, claim.laddrs);
        let room = self.room(asker);
        let fits = |answer: &Answer| Response { mid, body: answer.clone() }.encode().len() <= room;
        let only =
            |seen| Answer::Registered { tag: tag.clone(), ice_servers: Vec::new(), stun2: None, epoch, seen };
        let full = Answer::Registered { tag: tag.clone(), ice_servers, stun2, epoch, seen };
        Ok([full, only(seen)].into_iter().find(fits).unwrap_or_else(|| only(None)))
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

    /// Says what a key or JWT admits to; one that may cost a signature is taken as seldom as those of tags are.
    fn admit(&mut self, asker: Asker, shown: &str) -> Result<Admitted, Code> {
        if self.config.jwt.as_ref().is_some_and(|jwt| jwt.is_costly(shown)) {
            self.charge_signature(asker)?;
        }
        admission::admit(&self.config, asker.now, shown).map_err(|refusal| {
            tracing::debug!(%refusal, "not admitted");
            Code::NotAllowed
        })
    }

    /// A signature costs more than all else a message does.
    fn charge_signature(&mut self, asker: Asker) -> Result<(), Code> {
        let verdict = self.proofs.take(asker.network, asker.now.mono);
        if verdict == Verdict::Pass {
            return Ok(());
        }
        Limit::SignalingPerProof.reached(self.config.limits.per_proof.per_second as u64);
        Err(Code::TooMany)
    }

    /// Says which tag a secret or a key has; none where neither was shown.
    fn owned_name(&mut self, asker: Asker, claim: &Claim<'_>) -> Result<Option<Name>, Code> {
        if let Some(proof) = claim.proof {
            if !self.challenges.knows(&proof.nonce, asker.leg.peer, asker.now.unix) {
                return Err(Code::BadToken);
            }
            self.charge_signature(asker)?;
            if !identity::is_proven(proof, claim.epoch) {
                return Err(Code::NotAllowed);
            }
        }
        Ok(identity::owned_name(claim.secret, claim.proof))
    }

    /// Says under which number the asker may have an owned tag. One that shows a number proves itself newer than the holder by a
    /// higher one; one that shows none has just begun, and is the newest.
    fn epoch(&self, asker: Asker, name: Name, shown: Option<i64>) -> Result<i64, Code> {
        let holder = self.registry.name(name);
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

    /// Gives a tag to the asker's leg, wherever it was before. Where that was is told why it is over.
    fn enter(&mut self, now: Now, entry: Entry) -> Result<(), Code> {
        let (name, peer) = (entry.name, entry.leg.peer);
        if self.registry.name(name).is_some_and(|client| client.leg.peer == peer) {
            self.registry.renew(entry);
            return Ok(());
        }
        // Whoever is refused takes nothing from the holder.
        let left = self.registry.enter(now.mono, entry).map_err(|_| Code::TooMany)?;
        for older in left.into_iter().filter(|older| older.name == name) {
            self.dismiss(now, &older, Code::Replaced);
        }
        Ok(())
    }

    /// Tells the client's home which hub its tag belongs to.
    fn tell_home(&mut self, asker: Asker, admin: bool, realm: Realm) {
        let peer = asker.leg.peer;
        let (home, by) = (self.home_of(peer, asker.network), self.shards.own());
        match home == by {
            true => self.note_tag(asker.now, peer, by, (admin, realm)),
            false => self.say(Address::Hub(home), Said::Moved { peer, admin, realm, by }),
        }
    }

    /// Takes note, at a client's home, of the hub that its tag belongs to.
    pub(super) fn note_tag(&mut self, now: Now, peer: Peer, at: Shard, (admin, realm): (bool, Realm)) {
        let own = self.shards.own();
        if at != own {
            self.registry.remove_peer(peer);
        }
        let before = match peer {
            Peer::Udp(_) if at == own => self.away.remove(&peer),
            Peer::Udp(_) => self.away.insert(peer, at),
            Peer::Web(conn) => {
                let Some(web) = self.webs.get_mut(&conn) else {
                    // It has ended meanwhile.
                    return match at == own {
                        true => self.leave(now, peer),
                        false => self.say(Address::Hub(at), Said::Left { peer }),
                    };
                };
                web.admin = admin;
                if web.realm != realm {
                    web.realm = realm;
                    self.watches.forget(conn);
                }
                web.tag_at.replace(at)
            }
        };
        if let Some(before) = before.filter(|before| *before != at && *before != own) {
            self.say(Address::Hub(before), Said::Dropped { peer });
        }
    }

    /// The home of a client at this leg.
    fn home_of(&self, peer: Peer, network: Network) -> Shard {
        match peer {
            Peer::Udp(_) => self.shards.of_network(network),
            Peer::Web(conn) => self.shards.of_conn(conn),
        }
    }

    /// Tells the home of a UDP client that its tag is not here any more.
    fn tell_home_of(&mut self, (peer, network): (Peer, Network)) {
        let (home, by) = (self.home_of(peer, network), self.shards.own());
        if matches!(peer, Peer::Udp(_)) && home != by && self.registry.peer(peer).is_none() {
            self.say(Address::Hub(home), Said::Ended { peer, by });
        }
    }

    /// Tells a client that its tag is not its any more, before its connection is closed.
    fn dismiss(&mut self, now: Now, client: &Registration, why: Code) {
        // Nobody is sent a datagram for what was done in another's name.
        if client.proven {
            self.send(client.leg, Door::Main, &Response::failure(1, None, why).encode());
        }
        if let Peer::Web(conn) = client.leg.peer {
            self.hang_up(now, conn);
        }
    }

    /// Takes note that a tag of this hub was revoked: it is offline at once, and its calls end.
    pub fn handle_revoked(&mut self, now: Now, tag: &Tag) {
        self.withdraw(now, tag);
        // It may have called from where its tag is not any more.
        for hub in self.shards.others() {
            self.say(Address::Hub(hub), Said::Withdrawn { tag: tag.clone() });
        }
        if let Some(client) = Name::of(tag).and_then(|name| self.registry.remove_name(name)) {
            self.dismiss(now, &client, Code::Revoked);
        }
        self.tell_changes(now.mono);
    }

    /// Ends the calls of a revoked tag.
    pub(super) fn withdraw(&mut self, now: Now, tag: &Tag) {
        for id in self.calls.by_tag(tag) {
            self.with_call(now.mono, id, |call, at| call.withdraw(tag, at));
        }
    }

    /// t=2.
    pub(super) fn heartbeat(&mut self, asker: Asker, tag: &Tag) -> Result<Answer, Code> {
        self.registry.touch(asker.now.mono, tag, asker.leg.peer).ok_or(Code::UnknownTag)?;
        Ok(Answer::Alive)
    }

    /// t=3: as many tags as the leg has room for (S0-A15). What other hubs have is asked of them first.
    pub(super) fn list(
        &mut self,
        asker: Asker,
        mid: Option<i64>,
        own: Tag,
        after: Option<Tag>,
    ) -> Result<Option<Answer>, Code> {
        let client = self.registry.touch(asker.now.mono, &own, asker.leg.peer).ok_or(Code::UnknownTag)?;
        if !(self.config.list || client.admin) {
            return Err(Code::NotAllowed);
        }
        let realm = client.realm;
        let empty = Response { mid, body: Answer::Listed { tags: Vec::new(), more: true } };
        let room = self.room(asker).saturating_sub(empty.encode().len());
        let all = self.registry.len() * self.shards.count();
        if self.shared.take_list(asker.network, room.min(all * LISTED), asker.now.mono) != Verdict::Pass {
            Limit::SignalingPerList.reached(self.config.limits.per_list.per_second as u64);
            return Err(Code::TooMany);
        }
        let page = Page { realm, own, after, room };
        let (tags, more) = self.registry.page(&page);
        if self.shards.count() == 1 {
            return Ok(Some(Answer::Listed { tags, more }));
        }
        if self.gathers.is_full() {
            return Err(Code::TooMany);
        }
        let what = What::List { page: page.clone(), parts: vec![(tags, more)] };
        let id = self.gathers.begin(asker, mid, what, self.shards.others());
        let by = self.shards.own();
        for hub in self.shards.others() {
            self.say(Address::Hub(hub), Said::Page { id, by, page: Box::new(page.clone()) });
        }
        Ok(None)
    }

    /// t=60, over WebSocket alone: a datagram would need repetition, and its client asks again anyway.
    pub(super) fn watch(
        &mut self,
        asker: Asker,
        mid: Option<i64>,
        tags: Vec<Tag>,
        watch: bool,
    ) -> Result<Option<Answer>, Code> {
        let Peer::Web(conn) = asker.leg.peer else { return Err(Code::Unsupported) };
        let web = self.webs.get(&conn).filter(|web| web.tag_at.is_some()).ok_or(Code::UnknownTag)?;
        if !(self.config.presence || web.admin) {
            return Err(Code::NotAllowed);
        }
        if asker.size + WATCH_ROOM > asker.leg.room() {
            return Err(Code::TooMany);
        }
        let wanted: Vec<Watchable> = tags.into_iter().map(|tag| (web.realm, tag)).collect();
        if !watch {
            self.watches.stop(conn, &wanted);
            return Ok(Some(Answer::Watching { online: Vec::new(), offline: Vec::new() }));
        }
        if !self.watches.have_room(conn, &wanted) || self.gathers.is_full() {
            return Err(Code::TooMany);
        }
        let asked = self.unknown(&wanted);
        if asked.is_empty() {
            return self.begin_watch(conn, wanted, &HashMap::new()).map(Some);
        }
        // Those who watch some of it may be gone before all is known.
        let foreign = wanted.iter().filter(|what| self.shards.of_tag(&what.1) != self.shards.own());
        let known = foreign.filter_map(|what| Some((what.clone(), self.watches.state(what)?))).collect();
        let what = What::Watch { conn, wanted, known };
        let id = self.gathers.begin(asker, mid, what, asked.keys().copied());
        let by = self.shards.own();
        for (hub, wanted) in asked {
            self.say(Address::Hub(hub), Said::Watch { id, by, wanted });
        }
        Ok(None)
    }

    /// Sorts out what only other hubs know, by hub.
    fn unknown(&self, wanted: &[Watchable]) -> BTreeMap<Shard, Vec<Watchable>> {
        let mut asked: BTreeMap<Shard, Vec<Watchable>> = BTreeMap::new();
        for what in wanted.iter().filter(|what| !self.watches.has(what)) {
            let hub = self.shards.of_tag(&what.1);
            if hub != self.shards.own() {
                asked.entry(hub).or_default().push(what.clone());
            }
        }
        asked
    }

    pub(super) fn begin_watch(
        &mut self,
        conn: Conn,
        wanted: Vec<Watchable>,
        known: &HashMap<Watchable, bool>,
    ) -> Result<Answer, Code> {
        let registry = &self.registry;
        let is_online =
            |what: &Watchable| known.get(what).copied().unwrap_or_else(|| registry.is_online(what));
        let told = self.watches.begin(conn, wanted, is_online);
        let (online, offline) = told.map_err(|_| Code::TooMany)?;
        Ok(Answer::Watching { online, offline })
    }

    /// Tells the watchers who came and who went. A tag that only moved did neither.
    pub(super) fn tell_changes(&mut self, now: Instant) {
        let changes = self.registry.take_changes();
        for gone in changes.iter().filter_map(|change| change.gone) {
            self.tell_home_of(gone);
        }
        if !(self.watches.is_empty() && self.subscriptions.is_empty()) {
            let mut standing = Standing::new();
            for what in changes.into_iter().filter_map(|change| Some((change.realm, change.name.tag()?))) {
                let online = self.registry.is_online(&what);
                standing.push((what, online));
            }
            self.tell_hubs(&standing);
            self.note_standing(now, standing);
        }
        self.watches.handle_timeout(now);
        for (conn, (online, offline)) in self.watches.take_news(now) {
            let event = Request { mid: None, body: Ask::Presence { online, offline } };
            self.outputs.push_back(Output::Text { conn, text: event.encode() });
        }
        self.end_forsaken();
    }

    fn tell_hubs(&mut self, standing: &Standing) {
        let mut news: BTreeMap<Shard, Standing> = BTreeMap::new();
        for (what, online) in standing {
            for hub in self.subscriptions.of(what) {
                news.entry(hub).or_default().push((what.clone(), *online));
            }
        }
        for (hub, standing) in news {
            self.say(Address::Hub(hub), Said::Presence { standing });
        }
    }

    pub(super) fn note_standing(&mut self, now: Instant, standing: Standing) {
        for (what, online) in standing {
            self.watches.note(now, &what, online);
        }
    }

    /// Lets other hubs know of what nobody watches here any more.
    fn end_forsaken(&mut self) {
        let mut ended: BTreeMap<Shard, Vec<Watchable>> = BTreeMap::new();
        for what in self.watches.take_forsaken() {
            let hub = self.shards.of_tag(&what.1);
            if hub != self.shards.own() && !self.watches.has(&what) && !self.gathers.want(&what) {
                ended.entry(hub).or_default().push(what);
            }
        }
        let by = self.shards.own();
        for (hub, ended) in ended {
            self.say(Address::Hub(hub), Said::Unwatch { by, ended });
        }
    }

    /// Draws a tag that belongs to this hub.
    fn fresh_name(&mut self) -> Name {
        loop {
            let mut bytes = [0; TAG_BYTES];
            self.rng.fill_bytes(&mut bytes);
            if self.shards.is_own_name(&base32(&bytes)) {
                return Name(bytes);
            }
        }
    }
}
