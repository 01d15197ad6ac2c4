//! The registry of online clients: tags, their routes and their lifetimes.
//!
//! Each client has one tag. A UDP client's tag lasts while its heartbeats arrive (S0-41), a WebSocket client's as long as its connection
//! (S0-A23). Most clients are idle: each is stored once in a slab, and an index entry takes a few bytes.

use super::access::Realm;
use super::bus::{ListPage, RealmTag};
use super::client_addr::{ClientAddr, ClientRoute};
use super::config::Times;
use super::local_addresses::LocalAddresses;
use super::nodes::{NodeId, NodeSet};
use super::online_list::OnlineList;
use super::tag_id::TagId;
use super::wire::Tag;
use crate::clock::Deadlines;
use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use hashbrown::HashTable;
use slab::Slab;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The slab key of a client.
type ClientKey = u32;

/// A registered client.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) name: TagId,
    /// The client's address is proven: a forged source address cannot reach this state.
    pub(super) proven: bool,
    /// It may list and watch even where that is disabled for others.
    pub(super) admin: bool,
    /// Others may know this tag before its owner has used it, so that its use proves nothing.
    shown: bool,
    /// Its owner has used it.
    confirmed: bool,
    /// The nodes of the tags that it has called.
    pub(super) called: NodeSet,
    pub(super) route: ClientRoute,
    /// The session number; only for tags with an owner.
    pub(super) epoch: Option<i64>,
    pub(super) realm: Realm,
    /// Its local addresses (S1-2).
    pub(super) local_addresses: LocalAddresses,
    network: NetworkPrefix,
    permit: Option<Permit<NetworkPrefix>>,
    since: Instant,
}

/// A registration to insert.
#[derive(Debug, Clone)]
pub(super) struct NewRegistration {
    pub(super) name: TagId,
    pub(super) route: ClientRoute,
    pub(super) network: NetworkPrefix,
    pub(super) realm: Realm,
    pub(super) admin: bool,
    pub(super) epoch: Option<i64>,
}

/// A tag that came into a realm or left it, and the route of its client if that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PresenceChange {
    pub(super) name: TagId,
    pub(super) realm: Realm,
    pub(super) gone: Option<ClientRoute>,
}

/// Client ids, hashed by a field of the client.
#[derive(Debug, Default)]
struct Index {
    hasher: RandomState,
    ids: HashTable<ClientKey>,
}

impl Index {
    fn find(&self, key: &impl Hash, is_it: impl Fn(ClientKey) -> bool) -> Option<ClientKey> {
        self.ids.find(self.hasher.hash_one(key), |id| is_it(*id)).copied()
    }

    fn insert<K: Hash>(&mut self, key: &K, id: ClientKey, key_of: impl Fn(ClientKey) -> Option<K>) {
        let hasher = &self.hasher;
        let hash_of = |id: &ClientKey| key_of(*id).map_or(0, |key| hasher.hash_one(key));
        self.ids.insert_unique(hasher.hash_one(key), id, hash_of);
    }

    fn remove(&mut self, key: &impl Hash, id: ClientKey) {
        if let Ok(entry) = self.ids.find_entry(self.hasher.hash_one(key), |other| *other == id) {
            entry.remove();
        }
    }
}

/// All clients of one hub.
#[derive(Debug)]
pub(super) struct Registry {
    lifetime: Duration,
    grace: Duration,
    quota: Arc<Quota<NetworkPrefix>>,
    clients: Slab<Registration>,
    by_tag_id: Index,
    by_addr: Index,
    online_list: OnlineList,
    unconfirmed: BTreeSet<(Instant, ClientKey)>,
    expiry: Deadlines<ClientKey>,
    /// Changes since the last [`Registry::take_changes`].
    changes: Vec<PresenceChange>,
}

impl Registry {
    pub(super) fn new(times: &Times, quota: Arc<Quota<NetworkPrefix>>) -> Self {
        Self {
            lifetime: times.tag,
            grace: times.unconfirmed,
            quota,
            clients: Slab::new(),
            by_tag_id: Index::default(),
            by_addr: Index::default(),
            online_list: OnlineList::default(),
            unconfirmed: BTreeSet::new(),
            expiry: Deadlines::default(),
            changes: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    fn client(&self, id: ClientKey) -> Option<&Registration> {
        self.clients.get(id as usize)
    }

    fn client_mut(&mut self, id: ClientKey) -> Option<&mut Registration> {
        self.clients.get_mut(id as usize)
    }

    fn key_of_tag(&self, name: TagId) -> Option<ClientKey> {
        self.by_tag_id.find(&name, |id| self.client(id).is_some_and(|client| client.name == name))
    }

    fn key_of_addr(&self, addr: ClientAddr) -> Option<ClientKey> {
        self.by_addr.find(&addr, |id| self.client(id).is_some_and(|client| client.route.addr == addr))
    }

    pub(super) fn by_tag_id(&self, id: TagId) -> Option<&Registration> {
        self.client(self.key_of_tag(id)?)
    }

    pub(super) fn by_tag(&self, tag: &Tag) -> Option<&Registration> {
        self.by_tag_id(TagId::of(tag)?)
    }

    /// Returns whether a tag is online in a realm.
    pub(super) fn is_online(&self, (realm, tag): &RealmTag) -> bool {
        self.by_tag(tag).is_some_and(|client| client.realm == *realm)
    }

    pub(super) fn by_addr(&self, addr: ClientAddr) -> Option<&Registration> {
        self.client(self.key_of_addr(addr)?)
    }

    /// Inserts a client. Removes and returns the client with the same address and the one with the same tag. Changes nothing if a limit is
    /// reached.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        entry: NewRegistration,
    ) -> Result<Vec<Registration>, Exceeded> {
        let ids: BTreeSet<ClientKey> =
            self.key_of_tag(entry.name).into_iter().chain(self.key_of_addr(entry.route.addr)).collect();
        let permit = match self.permit_for(&ids, entry.network) {
            Err(Exceeded::Total) if self.evict(now) => self.permit_for(&ids, entry.network),
            other => other,
        };
        let permit = permit.inspect_err(|exceeded| {
            let limit = match exceeded {
                Exceeded::Key => Limit::SignalingTagsPerNetwork,
                Exceeded::Total => Limit::SignalingTags,
            };
            limit.reached(self.quota.max(*exceeded));
        })?;
        let left = ids.into_iter().filter_map(|id| self.remove(id)).collect();
        self.insert_new(now, entry, permit);
        Ok(left)
    }

    /// Returns a permit for `network`: that of a removed client where there is one, otherwise a new one.
    fn permit_for(
        &mut self,
        leaving: &BTreeSet<ClientKey>,
        network: NetworkPrefix,
    ) -> Result<Permit<NetworkPrefix>, Exceeded> {
        let stays = |id: &&ClientKey| self.client(**id).is_some_and(|client| client.network == network);
        let reused = leaving.iter().find(stays).or(leaving.first()).copied();
        let client = reused.and_then(|id| self.clients.get_mut(id as usize));
        let Some(permit) = client.map(|client| &mut client.permit) else {
            return self.quota.acquire(network, 1);
        };
        permit.as_mut().map_or(Ok(()), |permit| permit.reassign(network))?;
        permit.take().map_or_else(|| self.quota.acquire(network, 1), Ok)
    }

    fn insert_new(&mut self, now: Instant, entry: NewRegistration, permit: Permit<NetworkPrefix>) {
        let NewRegistration { name, route, network, realm, admin, epoch } = entry;
        let on_web = matches!(route.addr, ClientAddr::WebSocket(_));
        let client = Registration {
            name,
            proven: on_web,
            admin,
            // The owner of an owned tag can compute it.
            shown: epoch.is_some(),
            confirmed: on_web,
            called: NodeSet::default(),
            route,
            epoch,
            realm,
            local_addresses: LocalAddresses::default(),
            network,
            permit: Some(permit),
            since: now,
        };
        // There are never 2^32 clients.
        let id = self.clients.insert(client) as ClientKey;
        let clients = &self.clients;
        self.by_tag_id.insert(&name, id, |id| Some(clients.get(id as usize)?.name));
        self.by_addr.insert(&route.addr, id, |id| Some(clients.get(id as usize)?.route.addr));
        self.online_list.insert(&realm, name, id);
        if !on_web {
            self.expiry.set(id, now + self.lifetime);
            self.unconfirmed.insert((now, id));
        }
        self.changes.push(PresenceChange { name, realm, gone: None });
    }

    /// Updates the epoch, permissions and realm of a client that registers again.
    pub(super) fn renew(&mut self, entry: NewRegistration) {
        let Some(id) = self.key_of_tag(entry.name) else { return };
        let Some(client) = self.clients.get_mut(id as usize) else { return };
        (client.epoch, client.admin) = (entry.epoch, entry.admin);
        if client.realm != entry.realm {
            let (name, before) = (entry.name, std::mem::replace(&mut client.realm, entry.realm));
            self.online_list.remove(&before, name, id);
            self.online_list.insert(&entry.realm, name, id);
            self.changes.extend([before, entry.realm].map(|realm| PresenceChange {
                name,
                realm,
                gone: None,
            }));
        }
    }

    /// Records that a client has called a tag of another node.
    pub(super) fn record_call(&mut self, name: TagId, node: NodeId) {
        if let Some(client) = self.key_of_tag(name).and_then(|id| self.client_mut(id)) {
            client.called.insert(node);
        }
    }

    /// Evicts the oldest client that never used its tag, after its grace period.
    fn evict(&mut self, now: Instant) -> bool {
        let oldest = self.unconfirmed.first().copied();
        let Some((_, id)) = oldest.filter(|(since, _)| now.saturating_duration_since(*since) >= self.grace)
        else {
            return false;
        };
        self.remove(id).is_some()
    }

    /// Records that the owner of `tag` has used it from `addr`; returns `None` if `addr` is not its owner.
    pub(super) fn touch(&mut self, now: Instant, tag: &Tag, addr: ClientAddr) -> Option<&Registration> {
        let id = self.key_of_tag(TagId::of(tag)?)?;
        let client = self.clients.get_mut(id as usize).filter(|client| client.route.addr == addr)?;
        if !client.confirmed {
            client.confirmed = true;
            client.proven |= !client.shown;
            self.unconfirmed.remove(&(client.since, id));
        }
        if matches!(addr, ClientAddr::Udp(_)) {
            self.expiry.set(id, now + self.lifetime);
        }
        Some(client)
    }

    /// Marks `addr` as proven: it has returned something that was sent only to it.
    pub(super) fn prove(&mut self, addr: ClientAddr) {
        if let Some(client) = self.key_of_addr(addr).and_then(|id| self.client_mut(id)) {
            client.proven = true;
        }
    }

    /// Stores the local addresses of a client.
    pub(super) fn set_local_addresses(&mut self, addr: ClientAddr, local_addresses: LocalAddresses) {
        if let Some(client) = self.key_of_addr(addr).and_then(|id| self.client_mut(id)) {
            client.local_addresses = local_addresses;
        }
    }

    /// Returns one page of tags, sorted, and whether more follow (S0-A22).
    pub(super) fn page(&mut self, page: &ListPage) -> (Vec<Tag>, bool) {
        let after = page.after.as_ref().map_or("", Tag::as_str);
        // One tag more shows whether another page follows; another one may be the client's own.
        let (most, read) = (page.most(), page.most() + 2);
        let kept = self.online_list.page(&page.realm, after, read);
        let tags = kept.unwrap_or_else(|| self.read_page(&page.realm, after, read));
        let mut others: Vec<Tag> =
            tags.iter().filter(|tag| **tag != page.own).take(most + 1).cloned().collect();
        let more = others.len() > most;
        others.truncate(most);
        (others, more)
    }

    /// Reads a page and records that others know its tags from now on.
    fn read_page(&mut self, realm: &Realm, after: &str, most: usize) -> Arc<[Tag]> {
        let clients = &self.clients;
        let name_of = |id: ClientKey| Some(clients.get(id as usize)?.name);
        let listed: Vec<(String, ClientKey)> =
            self.online_list.after(realm, after, name_of).take(most).collect();
        for (_, id) in &listed {
            if let Some(client) = self.client_mut(*id) {
                client.shown |= !client.confirmed;
            }
        }
        let tags: Arc<[Tag]> = listed.into_iter().filter_map(|(text, _)| Tag::new(text)).collect();
        self.online_list.keep(realm, after, most, Arc::clone(&tags));
        tags
    }

    pub(super) fn remove_tag(&mut self, name: TagId) -> Option<Registration> {
        self.key_of_tag(name).and_then(|id| self.remove(id))
    }

    pub(super) fn remove_addr(&mut self, addr: ClientAddr) -> Option<Registration> {
        self.key_of_addr(addr).and_then(|id| self.remove(id))
    }

    /// Removes one client whose heartbeats have stopped.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Registration> {
        let id = self.expiry.pop_due(now)?;
        self.remove(id)
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.next()
    }

    /// Returns the changes since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<PresenceChange> {
        std::mem::take(&mut self.changes)
    }

    fn remove(&mut self, id: ClientKey) -> Option<Registration> {
        let mut client = self.clients.try_remove(id as usize)?;
        client.permit = None;
        self.by_tag_id.remove(&client.name, id);
        self.by_addr.remove(&client.route.addr, id);
        self.online_list.remove(&client.realm, client.name, id);
        self.unconfirmed.remove(&(client.since, id));
        self.expiry.clear(id);
        let gone = Some(client.route);
        self.changes.push(PresenceChange { name: client.name, realm: client.realm, gone });
        Some(client)
    }
}

impl Registration {
    pub(super) fn tag(&self) -> Option<Tag> {
        self.name.tag()
    }
}

#[cfg(test)]
mod tests;
