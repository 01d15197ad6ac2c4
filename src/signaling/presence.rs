//! Presence: the handlers of registration (t=1), heartbeat (2), list (3) and watch (60).

use super::access::{self, Admitted, Realm};
use super::bus::{Destination, HubPayload, LISTED, ListPage, Presence, RealmTag};
use super::client_addr::{ClientAddr, ClientRoute, ConnId, ServerPort};
use super::local_addresses::LocalAddresses;
use super::machine::{Hub, Output, RequestOrigin};
use super::nodes::NodeId;
use super::pending_queries::Query;
use super::registry::{NewRegistration, Registration};
use super::tag_id::{TAG_BYTES, TagId};
use super::tag_ownership;
use super::wire::{
    ErrorCode, MAX_EPOCH, MessageType, Proof, ReflexiveAddress, Request, RequestBody, Response, ResponseBody,
    Tag,
};
use crate::clock::Now;
use crate::limits::Limit;
use rand::RngCore;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

/// The maximum length of the answer to t=60, without the tags, minus that of the request.
const WATCH_OVERHEAD: usize = 128;

/// New sessions are numbered by the clock, so that the numbers grow across restarts of the server. The step per second is large, so that
/// a session that increments its number does not reach that of the next one.
const EPOCHS_PER_SECOND: i64 = 1000;

/// The claim to a tag in a registration: a secret or a proof, with the epoch.
#[derive(Debug, Clone)]
pub(super) struct TagClaim<'a> {
    pub(super) secret: Option<&'a str>,
    pub(super) epoch: Option<i64>,
    pub(super) proof: Option<&'a Proof>,
    pub(super) laddrs: Option<Vec<SocketAddr>>,
}

impl Hub {
    /// Handles t=1. A client keeps the tag that it has; a secret or a key moves its tag to the requester (S0-A18).
    pub(super) fn handle_register(
        &mut self,
        origin: RequestOrigin,
        mid: Option<i64>,
        key: Option<&str>,
        claim: TagClaim<'_>,
    ) -> Result<ResponseBody, ErrorCode> {
        let admitted = match key {
            Some(key) => self.admit(origin, key)?,
            None => Admitted::default(),
        };
        let Admitted { scopes, realm, .. } = admitted;
        if !(self.config.open || scopes.register) {
            return Err(ErrorCode::NotAllowed);
        }
        let owned = self.owned_tag_id(origin, &claim)?;
        let (name, epoch) = match (owned, self.registry.by_addr(origin.route.addr)) {
            (Some(name), _) => (name, Some(self.epoch(origin, name, claim.epoch)?)),
            (None, Some(client)) => (client.name, client.epoch),
            (None, None) => (self.new_tag_id(), None),
        };
        let tag = name.tag().ok_or(ErrorCode::Internal)?;
        if self.config.revoked.holds(origin.now.unix, tag.as_str()) {
            return Err(ErrorCode::Revoked);
        }
        let (route, network, admin) = (origin.route, origin.network, scopes.admin);
        self.assign_tag(origin.now, NewRegistration { name, route, network, realm, admin, epoch })?;
        if claim.proof.is_some() {
            // The nonce was sent to this address.
            self.registry.prove(origin.route.addr);
        }
        self.notify_assigned(origin, admin, realm);
        let ice_servers = match scopes.relay {
            true => self.config.ice_servers.admitted(origin.now, tag.as_str(), admitted),
            false => self.config.ice_servers.public(),
        };
        let (stun2, spray) = (self.config.stun2.clone(), self.config.spray);
        let seen = self.reflexive_address(origin.route.addr, claim.laddrs);
        let max_len = self.max_len(origin);
        let fits = |answer: &ResponseBody| Response { mid, body: answer.clone() }.encode().len() <= max_len;
        let only = |seen| ResponseBody::Registered {
            tag: tag.clone(),
            ice_servers: Vec::new(),
            stun2: None,
            spray,
            epoch,
            seen,
        };
        let full = ResponseBody::Registered { tag: tag.clone(), ice_servers, stun2, spray, epoch, seen };
        Ok([full, only(seen)].into_iter().find(fits).unwrap_or_else(|| only(None)))
    }

    /// Stores the local addresses of a client and compares them with its reflexive address (S1-2, S1-3).
    fn reflexive_address(
        &mut self,
        addr: ClientAddr,
        laddrs: Option<Vec<SocketAddr>>,
    ) -> Option<ReflexiveAddress> {
        if let Some(laddrs) = laddrs {
            self.registry.set_local_addresses(addr, LocalAddresses::new(laddrs));
        }
        let ClientAddr::Udp(seen) = addr else { return None };
        let nat = self.registry.by_addr(addr)?.local_addresses.is_behind_nat(seen);
        Some(ReflexiveAddress { addr: seen, nat })
    }

    /// Checks a key or JWT; a signature check is charged like that of a tag.
    fn admit(&mut self, origin: RequestOrigin, shown: &str) -> Result<Admitted, ErrorCode> {
        if self.config.jwt.as_ref().is_some_and(|jwt| jwt.is_costly(shown)) {
            self.charge_signature(origin)?;
        }
        access::admit(&self.config, origin.now, shown).map_err(|refusal| {
            tracing::debug!(%refusal, "not admitted");
            ErrorCode::NotAllowed
        })
    }

    /// Charges a signature check, the most expensive operation of a message.
    fn charge_signature(&mut self, origin: RequestOrigin) -> Result<(), ErrorCode> {
        if self.proofs.try_take(&origin.network, origin.now.mono, 1) {
            return Ok(());
        }
        Limit::SignalingPerProof.reached(self.config.limits.per_proof.per_second());
        Err(ErrorCode::TooMany)
    }

    /// Returns the tag of a secret or a key; `None` without either.
    fn owned_tag_id(
        &mut self,
        origin: RequestOrigin,
        claim: &TagClaim<'_>,
    ) -> Result<Option<TagId>, ErrorCode> {
        if let Some(proof) = claim.proof {
            if !self.challenges.is_valid(&proof.nonce, origin.route.addr, origin.now.unix) {
                return Err(ErrorCode::BadToken);
            }
            self.charge_signature(origin)?;
            if !tag_ownership::is_proven(proof, claim.epoch) {
                return Err(ErrorCode::NotAllowed);
            }
        }
        Ok(tag_ownership::owned_tag_id(claim.secret, claim.proof))
    }

    /// Returns the session number of an owned tag. A session with a number is newer than the holder if its number is higher; one without a
    /// number is new and gets the highest.
    fn epoch(&self, origin: RequestOrigin, name: TagId, shown: Option<i64>) -> Result<i64, ErrorCode> {
        let holder = self.registry.by_tag_id(name);
        let held = holder.and_then(|client| client.epoch);
        let is_holder = holder.is_some_and(|client| client.route.addr == origin.route.addr);
        match (shown, held) {
            (Some(shown), Some(held)) if shown < held || shown == held && !is_holder => {
                Err(ErrorCode::Replaced)
            }
            (Some(shown), _) => Ok(shown),
            (None, Some(held)) if is_holder => Ok(held),
            (None, held) => {
                let clock =
                    i64::try_from(origin.now.unix).map_or(0, |unix| unix.saturating_mul(EPOCHS_PER_SECOND));
                Ok(held.map_or(0, |held| held + 1).max(clock).min(MAX_EPOCH))
            }
        }
    }

    /// Assigns a tag to the origin. The former owner is notified.
    fn assign_tag(&mut self, now: Now, entry: NewRegistration) -> Result<(), ErrorCode> {
        let (name, addr) = (entry.name, entry.route.addr);
        if self.registry.by_tag_id(name).is_some_and(|client| client.route.addr == addr) {
            self.registry.renew(entry);
            return Ok(());
        }
        // A refused registration does not affect the holder.
        let left = self.registry.insert(now.mono, entry).map_err(|_| ErrorCode::TooMany)?;
        for older in left.into_iter().filter(|older| older.name == name) {
            self.disconnect_owner(now, &older, ErrorCode::Replaced);
        }
        Ok(())
    }

    /// Notifies the client's node that this node has its tag.
    fn notify_assigned(&mut self, origin: RequestOrigin, admin: bool, realm: Realm) {
        let ClientRoute { addr, node, .. } = origin.route;
        let by = self.nodes.own();
        match node == by {
            true => self.record_assignment(origin.now, addr, by, (admin, realm)),
            false => {
                self.publish(Destination::Node(node), HubPayload::TagAssigned { addr, admin, realm, by })
            }
        }
    }

    /// Records, at a client's node, which node its tag belongs to.
    pub(super) fn record_assignment(
        &mut self,
        now: Now,
        addr: ClientAddr,
        at: NodeId,
        (admin, realm): (bool, Realm),
    ) {
        let own = self.nodes.own();
        if at != own {
            self.registry.remove_addr(addr);
        }
        let before = match addr {
            ClientAddr::Udp(_) if at == own => self.away.remove(&addr),
            ClientAddr::Udp(_) => self.away.insert(addr, at),
            ClientAddr::WebSocket(conn) => {
                let Some(web) = self.websockets.get_mut(&conn) else {
                    // The WebSocket has been closed in the meantime.
                    return match at == own {
                        true => self.remove_client(now, addr),
                        false => self.publish(Destination::Node(at), HubPayload::ClientGone { addr }),
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
            self.publish(Destination::Node(before), HubPayload::ClientReleased { addr });
        }
    }

    /// Notifies the node of a UDP client that its tag has ended here.
    fn notify_ended(&mut self, ClientRoute { addr, node, .. }: ClientRoute) {
        let by = self.nodes.own();
        if matches!(addr, ClientAddr::Udp(_)) && node != by && self.registry.by_addr(addr).is_none() {
            self.publish(Destination::Node(node), HubPayload::TagEnded { addr, by });
        }
    }

    /// Notifies a client that it has lost its tag, and closes its WebSocket.
    fn disconnect_owner(&mut self, now: Now, client: &Registration, why: ErrorCode) {
        // Nothing is sent to an unproven address.
        if client.proven {
            self.send(
                client.route,
                ServerPort::Main,
                &Response::failure(MessageType::Register, None, why).encode(),
            );
        }
        let ClientRoute { addr, node, .. } = client.route;
        match addr {
            ClientAddr::WebSocket(conn) if node == self.nodes.own() => self.disconnect(now, conn),
            ClientAddr::WebSocket(conn) => self.publish(Destination::Node(node), HubPayload::Close { conn }),
            ClientAddr::Udp(_) => {}
        }
    }

    /// Handles the revocation of a tag: it is offline at once, and its calls end.
    pub fn handle_revoked(&mut self, now: Now, tag: &Tag) {
        self.end_calls_of(now, tag);
        // Other hubs may have calls of this tag.
        for hub in self.nodes.others() {
            self.publish(Destination::Node(hub), HubPayload::CallerRevoked { tag: tag.clone() });
        }
        if let Some(client) = TagId::of(tag).and_then(|name| self.registry.remove_tag(name)) {
            self.disconnect_owner(now, &client, ErrorCode::Revoked);
        }
        self.send_presence_changes(now.mono);
    }

    /// Ends the calls of a revoked tag.
    pub(super) fn end_calls_of(&mut self, now: Now, tag: &Tag) {
        for id in self.calls.by_tag(tag) {
            self.with_call(now.mono, id, |call, at| call.revoke(tag, at));
        }
    }

    /// Handles t=2.
    pub(super) fn handle_heartbeat(
        &mut self,
        origin: RequestOrigin,
        tag: &Tag,
    ) -> Result<ResponseBody, ErrorCode> {
        self.registry.touch(origin.now.mono, tag, origin.route.addr).ok_or(ErrorCode::UnknownTag)?;
        Ok(ResponseBody::Alive)
    }

    /// Handles t=3: returns as many tags as fit (S0-A15). Other hubs are queried first.
    pub(super) fn handle_list(
        &mut self,
        origin: RequestOrigin,
        mid: Option<i64>,
        own: Tag,
        after: Option<Tag>,
    ) -> Result<Option<ResponseBody>, ErrorCode> {
        let client =
            self.registry.touch(origin.now.mono, &own, origin.route.addr).ok_or(ErrorCode::UnknownTag)?;
        if !(self.config.list || client.admin) {
            return Err(ErrorCode::NotAllowed);
        }
        let realm = client.realm;
        let empty = Response { mid, body: ResponseBody::Listed { tags: Vec::new(), more: true } };
        let max_len = self.max_len(origin).saturating_sub(empty.encode().len());
        let all = self.registry.len() * self.nodes.count();
        if !self.lists.try_take(&origin.network, origin.now.mono, 1) {
            Limit::SignalingPerList.reached(self.config.limits.per_list.per_second());
            return Err(ErrorCode::TooMany);
        }
        self.lists.charge(&origin.network, origin.now.mono, max_len.min(all * LISTED));
        let page = ListPage { realm, own, after, max_len };
        let (tags, more) = self.registry.page(&page);
        if self.nodes.count() == 1 {
            return Ok(Some(ResponseBody::Listed { tags, more }));
        }
        if self.queries.is_full() {
            return Err(ErrorCode::TooMany);
        }
        let what = Query::List { page: page.clone(), parts: vec![(tags, more)] };
        let id = self.queries.begin(origin, mid, what, self.nodes.others());
        let by = self.nodes.own();
        for hub in self.nodes.others() {
            self.publish(Destination::Node(hub), HubPayload::List { id, by, page: Box::new(page.clone()) });
        }
        Ok(None)
    }

    /// Handles t=60, only over WebSocket: UDP clients poll with t=3.
    pub(super) fn handle_watch(
        &mut self,
        origin: RequestOrigin,
        mid: Option<i64>,
        tags: Vec<Tag>,
        watch: bool,
    ) -> Result<Option<ResponseBody>, ErrorCode> {
        let ClientAddr::WebSocket(conn) = origin.route.addr else { return Err(ErrorCode::Unsupported) };
        let web =
            self.websockets.get(&conn).filter(|web| web.tag_at.is_some()).ok_or(ErrorCode::UnknownTag)?;
        if !(self.config.presence || web.admin) {
            return Err(ErrorCode::NotAllowed);
        }
        if origin.size + WATCH_OVERHEAD > origin.route.max_len() {
            return Err(ErrorCode::TooMany);
        }
        let wanted: Vec<RealmTag> = tags.into_iter().map(|tag| (web.realm, tag)).collect();
        if !watch {
            self.watches.stop(conn, &wanted);
            return Ok(Some(ResponseBody::Watching { online: Vec::new(), offline: Vec::new() }));
        }
        if !self.watches.has_room(conn, &wanted) || self.queries.is_full() {
            return Err(ErrorCode::TooMany);
        }
        let missing = self.missing_states(&wanted);
        if missing.is_empty() {
            return self.begin_watch(conn, wanted, &HashMap::new()).map(Some);
        }
        // Other watchers may leave before all answers have arrived, so known states are copied.
        let foreign = wanted.iter().filter(|what| self.nodes.of_tag(&what.1) != self.nodes.own());
        let known = foreign.filter_map(|what| Some((what.clone(), self.watches.state(what)?))).collect();
        let what = Query::Watch { conn, wanted, known };
        let id = self.queries.begin(origin, mid, what, missing.keys().copied());
        let by = self.nodes.own();
        for (hub, wanted) in missing {
            self.publish(Destination::Node(hub), HubPayload::Watch { id, by, wanted });
        }
        Ok(None)
    }

    /// Returns the tags whose state only other hubs know, by hub.
    fn missing_states(&self, wanted: &[RealmTag]) -> BTreeMap<NodeId, Vec<RealmTag>> {
        let mut missing: BTreeMap<NodeId, Vec<RealmTag>> = BTreeMap::new();
        for what in wanted.iter().filter(|what| !self.watches.has(what)) {
            let hub = self.nodes.of_tag(&what.1);
            if hub != self.nodes.own() {
                missing.entry(hub).or_default().push(what.clone());
            }
        }
        missing
    }

    pub(super) fn begin_watch(
        &mut self,
        conn: ConnId,
        wanted: Vec<RealmTag>,
        known: &HashMap<RealmTag, bool>,
    ) -> Result<ResponseBody, ErrorCode> {
        let registry = &self.registry;
        let is_online =
            |what: &RealmTag| known.get(what).copied().unwrap_or_else(|| registry.is_online(what));
        let states = self.watches.begin(conn, wanted, is_online);
        let (online, offline) = states.map_err(|_| ErrorCode::TooMany)?;
        Ok(ResponseBody::Watching { online, offline })
    }

    /// Notifies the watchers of tags that went online or offline. A tag that only moved did neither.
    pub(super) fn send_presence_changes(&mut self, now: Instant) {
        let changes = self.registry.take_changes();
        for gone in changes.iter().filter_map(|change| change.gone) {
            self.notify_ended(gone);
        }
        if !(self.watches.is_empty() && self.subscriptions.is_empty()) {
            let mut presence = Presence::new();
            for what in changes.into_iter().filter_map(|change| Some((change.realm, change.name.tag()?))) {
                let online = self.registry.is_online(&what);
                presence.push((what, online));
            }
            self.publish_presence(&presence);
            self.apply_presence(now, presence);
        }
        self.watches.handle_timeout(now);
        for (conn, (online, offline)) in self.watches.take_news(now) {
            let event = Request { mid: None, body: RequestBody::Presence { online, offline } };
            self.outputs.push_back(Output::Text { conn, text: event.encode() });
        }
        self.end_unused_subscriptions();
    }

    fn publish_presence(&mut self, presence: &Presence) {
        let mut news: BTreeMap<NodeId, Presence> = BTreeMap::new();
        for (what, online) in presence {
            for hub in self.subscriptions.of(what) {
                news.entry(hub).or_default().push((what.clone(), *online));
            }
        }
        for (hub, presence) in news {
            self.publish(Destination::Node(hub), HubPayload::Presence { presence });
        }
    }

    pub(super) fn apply_presence(&mut self, now: Instant, presence: Presence) {
        for (what, online) in presence {
            self.watches.apply(now, &what, online);
        }
    }

    /// Ends the subscriptions that no watch of this hub needs any more.
    fn end_unused_subscriptions(&mut self) {
        let mut ended: BTreeMap<NodeId, Vec<RealmTag>> = BTreeMap::new();
        for what in self.watches.take_unsubscribed() {
            let hub = self.nodes.of_tag(&what.1);
            if hub != self.nodes.own() && !self.watches.has(&what) && !self.queries.want(&what) {
                ended.entry(hub).or_default().push(what);
            }
        }
        let by = self.nodes.own();
        for (hub, ended) in ended {
            self.publish(Destination::Node(hub), HubPayload::Unwatch { by, ended });
        }
    }

    /// Generates a tag that belongs to this node.
    fn new_tag_id(&mut self) -> TagId {
        loop {
            let mut bytes = [0; TAG_BYTES];
            self.rng.fill_bytes(&mut bytes);
            if self.nodes.of_tag_id(TagId(bytes)) == self.nodes.own() {
                return TagId(bytes);
            }
        }
    }
}
