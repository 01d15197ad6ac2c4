//! Who is online: tags, where their owners are, and how long they last.
//!
//! One leg has one tag. A UDP client's tag lives as long as its heartbeats come (S0-41), a WebSocket client's as long
//! as its connection (S0-A23).

use super::config::{Limits, Times};
use super::inner::Inner;
use super::leg::{Leg, Network, Peer};
use super::wire::Tag;
use crate::clock::Deadlines;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Numbers registrations in the order they came.
type Id = u64;

/// One client.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) tag: Tag,
    pub(super) leg: Leg,
    /// The client was shown to be at its address: nobody who only writes that address as a source gets this far.
    pub(super) proven: bool,
    /// The session's number; of owned tags only.
    pub(super) epoch: Option<i64>,
    /// It has shown a key that lets it list and watch in any case.
    pub(super) admin: bool,
    /// What it has told of its own network (S1-2).
    pub(super) inner: Inner,
    network: Network,
    since: Instant,
    /// Others were told this tag before its owner used it, so that using it proves nothing.
    shown: bool,
    /// Its owner has used it.
    confirmed: bool,
}

/// No more tags for this network, or none at all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All clients.
#[derive(Debug)]
pub(super) struct Registry {
    lifetime: Duration,
    grace: Duration,
    cap: usize,
    cap_per_network: usize,
    next: Id,
    clients: HashMap<Id, Registration>,
    by_tag: BTreeMap<Tag, Id>,
    by_peer: HashMap<Peer, Id>,
    by_network: HashMap<Network, usize>,
    unconfirmed: BTreeSet<Id>,
    expiry: Deadlines<Id>,
    /// Tags that came or went since somebody looked.
    changed: Vec<Tag>,
}

impl Registry {
    pub(super) fn new(times: &Times, limits: &Limits) -> Self {
        Self {
            lifetime: times.tag,
            grace: times.unconfirmed,
            cap: limits.tags,
            cap_per_network: limits.tags_per_network,
            next: 0,
            clients: HashMap::new(),
            by_tag: BTreeMap::new(),
            by_peer: HashMap::new(),
            by_network: HashMap::new(),
            unconfirmed: BTreeSet::new(),
            expiry: Deadlines::default(),
            changed: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn tag(&self, tag: &Tag) -> Option<&Registration> {
        self.clients.get(self.by_tag.get(tag)?)
    }

    pub(super) fn peer(&self, peer: Peer) -> Option<&Registration> {
        self.clients.get(self.by_peer.get(&peer)?)
    }

    /// Says whether `tag` could be entered for `peer` once what either has is removed.
    pub(super) fn has_room(&self, now: Instant, tag: &Tag, peer: Peer, network: Network) -> bool {
        let (holder, own) = (self.by_tag.get(tag), self.by_peer.get(&peer));
        let leaving: BTreeSet<&Id> = holder.into_iter().chain(own).collect();
        let of_network = |id: &&&Id| self.clients.get(id).is_some_and(|client| client.network == network);
        let left = leaving.iter().filter(of_network).count();
        self.by_network.get(&network).is_none_or(|count| count - left < self.cap_per_network)
            && (self.clients.len() - leaving.len() < self.cap || self.evictable(now).is_some())
    }

    /// Enters `tag` for `leg`. The caller has removed what either had before.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        tag: Tag,
        leg: Leg,
        network: Network,
        epoch: Option<i64>,
    ) -> Result<(), Full> {
        if self.by_network.get(&network).is_some_and(|count| *count >= self.cap_per_network) {
            return Err(Full);
        }
        if self.clients.len() >= self.cap {
            self.evict(now)?;
        }
        let id = self.next;
        self.next += 1;
        let on_web = matches!(leg.peer, Peer::Web(_));
        if !on_web {
            self.expiry.set(id, now + self.lifetime);
            self.unconfirmed.insert(id);
        }
        self.changed.push(tag.clone());
        self.by_tag.insert(tag.clone(), id);
        self.by_peer.insert(leg.peer, id);
        *self.by_network.entry(network).or_default() += 1;
        // The owner of an owned tag knows it without having been told.
        let (shown, confirmed, proven) = (epoch.is_some(), on_web, on_web);
        let client = Registration {
            tag,
            leg,
            proven,
            epoch,
            admin: false,
            inner: Inner::default(),
            network,
            since: now,
            shown,
            confirmed,
        };
        self.clients.insert(id, client);
        Ok(())
    }

    /// Moves the number of an owned tag's session on.
    pub(super) fn renew(&mut self, tag: &Tag, epoch: Option<i64>) {
        if let Some(client) = self.by_tag.get(tag).and_then(|id| self.clients.get_mut(id)) {
            client.epoch = epoch;
        }
    }

    /// Notes what key a client has shown last.
    pub(super) fn empower(&mut self, peer: Peer, admin: bool) {
        if let Some(client) = self.by_peer.get(&peer).and_then(|id| self.clients.get_mut(id)) {
            client.admin = admin;
        }
    }

    /// Notes what a client tells of its own network.
    pub(super) fn tell_inner(&mut self, peer: Peer, inner: Inner) {
        if let Some(client) = self.by_peer.get(&peer).and_then(|id| self.clients.get_mut(id)) {
            client.inner = inner;
        }
    }

    /// Makes room: the oldest client that never used its tag goes first, once it had its time.
    fn evict(&mut self, now: Instant) -> Result<(), Full> {
        let oldest = self.evictable(now).ok_or(Full)?;
        self.drop_id(oldest);
        Ok(())
    }

    fn evictable(&self, now: Instant) -> Option<Id> {
        let oldest = *self.unconfirmed.first()?;
        let since = self.clients.get(&oldest)?.since;
        (now.saturating_duration_since(since) >= self.grace).then_some(oldest)
    }

    /// Notes that the owner of `tag` has used it from `peer`; `None` where it is not the owner.
    pub(super) fn touch(&mut self, now: Instant, tag: &Tag, peer: Peer) -> Option<&Registration> {
        let id = *self.by_tag.get(tag)?;
        let client = self.clients.get_mut(&id).filter(|client| client.leg.peer == peer)?;
        if !client.confirmed {
            client.confirmed = true;
            client.proven |= !client.shown;
            self.unconfirmed.remove(&id);
        }
        if matches!(peer, Peer::Udp(_)) {
            self.expiry.set(id, now + self.lifetime);
        }
        Some(client)
    }

    /// Notes that an answer came back from `peer` to something that only it was told.
    pub(super) fn prove(&mut self, peer: Peer) {
        if let Some(client) = self.by_peer.get(&peer).and_then(|id| self.clients.get_mut(id)) {
            client.proven = true;
        }
    }

    /// Returns the tags after `after` but `own`, sorted, as many as fit into `room` bytes of JSON, and whether more
    /// are left (S0-A22).
    pub(super) fn page(&mut self, own: &Tag, after: Option<&Tag>, room: usize) -> (Vec<Tag>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut page, mut left) = (Vec::new(), room);
        for (tag, id) in self.by_tag.range::<Tag, _>((start, Bound::Unbounded)) {
            if tag == own {
                continue;
            }
            let cost = tag.as_str().len() + r#""","#.len();
            if cost > left {
                return (page, true);
            }
            left -= cost;
            page.push(tag.clone());
            if let Some(client) = self.clients.get_mut(id) {
                client.shown |= !client.confirmed;
            }
        }
        (page, false)
    }

    pub(super) fn remove_tag(&mut self, tag: &Tag) -> Option<Registration> {
        self.by_tag.get(tag).copied().and_then(|id| self.drop_id(id))
    }

    pub(super) fn remove_peer(&mut self, peer: Peer) -> Option<Registration> {
        self.by_peer.get(&peer).copied().and_then(|id| self.drop_id(id))
    }

    /// Removes one client whose heartbeats have stopped.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Registration> {
        let id = self.expiry.pop_due(now)?;
        self.drop_id(id)
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.next()
    }

    /// Returns the tags that came, went or moved since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<Tag> {
        std::mem::take(&mut self.changed)
    }

    fn drop_id(&mut self, id: Id) -> Option<Registration> {
        let client = self.clients.remove(&id)?;
        self.changed.push(client.tag.clone());
        self.by_tag.remove(&client.tag);
        self.by_peer.remove(&client.leg.peer);
        self.unconfirmed.remove(&id);
        self.expiry.clear(id);
        if let Some(count) = self.by_network.get_mut(&client.network) {
            *count -= 1;
            if *count == 0 {
                self.by_network.remove(&client.network);
            }
        }
        Some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;
    use crate::signaling::leg::Conn;
    use std::net::SocketAddr;

    fn registry(cap: usize, per_network: usize) -> Registry {
        let limits = Limits { tags: cap, tags_per_network: per_network, ..Limits::default() };
        Registry::new(&Times::default(), &limits)
    }

    fn tag(text: &str) -> Tag {
        Tag::new(text).unwrap()
    }

    fn enter(registry: &mut Registry, now: Instant, text: &str, address: &str) -> Result<(), Full> {
        let address: SocketAddr = address.parse().unwrap();
        registry.enter(now, tag(text), Leg::udp(address, None), Network::of(address.ip()), None)
    }

    #[test]
    fn one_network_cannot_take_all_tags() {
        let (mut registry, start) = (registry(10, 2), now().mono);
        assert_eq!(enter(&mut registry, start, "a", "192.0.2.1:1"), Ok(()));
        assert_eq!(enter(&mut registry, start, "b", "192.0.2.1:2"), Ok(()));
        assert_eq!(enter(&mut registry, start, "c", "192.0.2.1:3"), Err(Full));
        assert_eq!(enter(&mut registry, start, "c", "192.0.2.2:3"), Ok(()));
        registry.remove_tag(&tag("a"));
        assert_eq!(enter(&mut registry, start, "d", "192.0.2.1:3"), Ok(()));
    }

    #[test]
    fn clients_that_never_used_their_tag_make_room_first_and_only_after_their_time() {
        let (mut registry, start) = (registry(2, 10), now().mono);
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        enter(&mut registry, start, "used", "192.0.2.1:1").unwrap();
        enter(&mut registry, start, "unused", "192.0.2.1:2").unwrap();
        assert!(registry.touch(start, &tag("used"), Peer::Udp(address)).is_some());
        assert_eq!(enter(&mut registry, start, "late", "192.0.2.1:3"), Err(Full));
        let later = start + Duration::from_secs(10);
        assert_eq!(enter(&mut registry, later, "late", "192.0.2.1:3"), Ok(()));
        assert!(registry.tag(&tag("unused")).is_none() && registry.tag(&tag("used")).is_some());
        assert_eq!(registry.len(), 2);
    }

    #[test]
    fn using_a_tag_proves_the_address_only_if_nobody_else_knew_the_tag() {
        let (mut registry, start) = (registry(9, 9), now().mono);
        let peer = |text: &str| Peer::Udp(text.parse().unwrap());
        enter(&mut registry, start, "a", "192.0.2.1:1").unwrap();
        enter(&mut registry, start, "b", "192.0.2.1:2").unwrap();
        assert!(registry.touch(start, &tag("a"), peer("192.0.2.1:1")).unwrap().proven);
        assert_eq!(registry.page(&tag("a"), None, 100), (vec![tag("b")], false));
        assert!(!registry.touch(start, &tag("b"), peer("192.0.2.1:2")).unwrap().proven);
        registry.prove(peer("192.0.2.1:2"));
        assert!(registry.tag(&tag("b")).unwrap().proven);
    }

    #[test]
    fn a_web_clients_tag_outlives_any_silence() {
        let (mut registry, start) = (registry(9, 9), now().mono);
        let network = Network::of([192, 0, 2, 1].into());
        registry.enter(start, tag("web"), Leg::web(Conn(1)), network, None).unwrap();
        enter(&mut registry, start, "udp", "192.0.2.1:1").unwrap();
        let later = start + Duration::from_secs(60);
        assert_eq!(registry.expire(later).map(|gone| gone.tag), Some(tag("udp")));
        assert!(registry.expire(later).is_none() && registry.tag(&tag("web")).is_some());
    }

    #[test]
    fn pages_are_sorted_and_continue_where_the_last_one_ended() {
        let (mut registry, start) = (registry(9, 9), now().mono);
        for (port, name) in ["d", "a", "c", "b"].iter().enumerate() {
            enter(&mut registry, start, name, &format!("192.0.2.1:{}", port + 1)).unwrap();
        }
        let (page, more) = registry.page(&tag("b"), None, 9);
        assert_eq!((page, more), (vec![tag("a"), tag("c")], true));
        assert_eq!(registry.page(&tag("b"), Some(&tag("c")), 9), (vec![tag("d")], false));
    }
}
