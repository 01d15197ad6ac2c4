//! Which hub answers for what. Every name says by itself where it belongs, so that no table has to be asked.
//!
//! A client's *home* hears all it says: the hub of its network, or of its WebSocket. A tag, and all calls to it, belong to the hub
//! that the tag's last letter names; so does a token. The server makes its clients' tags so that their home is their hub; a tag
//! that somebody owns may belong to another one.

use super::client_addr::ConnId;
use super::tag_id::{TagId, base32};
use super::wire::{Tag, Token};
use crate::limits::NetworkPrefix;
use std::net::IpAddr;
use std::num::NonZeroUsize;

/// The place of a hub among all. Where it is asked for by the number of hubs, this is taken as [`super::Hub::several`] takes it: at
/// least one and at most sixteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u8);

impl NodeId {
    /// Says which of `hubs` hubs hears the datagrams from `ip`: the same one for all of an IPv6 /64.
    #[must_use]
    pub fn home_of(ip: IpAddr, hubs: usize) -> Self {
        Nodes::any(hubs).of_network(NetworkPrefix::subscriber(ip))
    }

    /// Says which of `hubs` hubs hears a WebSocket.
    #[must_use]
    pub fn home_of_conn(conn: ConnId, hubs: usize) -> Self {
        Nodes::any(hubs).of_conn(conn)
    }

    /// Says to which of `hubs` hubs a tag belongs, with all calls to it.
    #[must_use]
    pub fn of_tag(tag: &Tag, hubs: usize) -> Self {
        Nodes::any(hubs).of_tag(tag)
    }

    /// Returns the place as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A few of the hubs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NodeSet(u16);

impl NodeSet {
    pub(super) fn insert(&mut self, node: NodeId) {
        self.0 |= 1 << node.0;
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        self.0 &= !(1 << node.0);
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..Nodes::MOST as u8).map(NodeId).filter(move |node| self.0 & 1 << node.0 != 0)
    }
}

/// One hub's view of all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nodes {
    own: NodeId,
    count: NonZeroUsize,
}

impl Nodes {
    /// Most hubs of a server.
    pub(super) const MOST: usize = 16;
    /// A hub without others.
    pub(super) const ALONE: Self = Self { own: NodeId(0), count: NonZeroUsize::MIN };

    /// Lists the views of `count` hubs, at least one and at most [`Self::MOST`].
    pub(super) fn all(count: usize) -> impl Iterator<Item = Self> {
        let any = Self::any(count);
        (0..any.count()).map(move |own| Self { own: NodeId(own as u8), ..any })
    }

    /// The view of any one of `count` hubs.
    fn any(count: usize) -> Self {
        let count = NonZeroUsize::new(count.min(Self::MOST)).unwrap_or(NonZeroUsize::MIN);
        Self { count, ..Self::ALONE }
    }

    pub(super) fn own(&self) -> NodeId {
        self.own
    }

    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    /// Lists the others.
    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let own = self.own;
        (0..self.count() as u8).map(NodeId).filter(move |node| *node != own)
    }

    fn at(&self, number: u64) -> NodeId {
        // There are at most sixteen.
        NodeId((number % self.count.get() as u64) as u8)
    }

    fn of_name(&self, name: &str) -> NodeId {
        self.at(name.bytes().last().unwrap_or_default().into())
    }

    /// The home of UDP clients.
    pub(super) fn of_network(&self, network: NetworkPrefix) -> NodeId {
        self.at(network.spread())
    }

    /// The home of a WebSocket.
    pub(super) fn of_conn(&self, conn: ConnId) -> NodeId {
        self.at(conn.0)
    }

    pub(super) fn of_tag(&self, tag: &Tag) -> NodeId {
        self.of_name(tag.as_str())
    }

    pub(super) fn of_owned(&self, name: TagId) -> NodeId {
        self.of_name(&base32(&name.0))
    }

    pub(super) fn of_token(&self, token: &Token) -> NodeId {
        self.of_name(token.as_str())
    }

    /// Where the call with this number is, if there is one.
    pub(super) fn of_call(&self, number: u32) -> NodeId {
        self.at(number.into())
    }

    pub(super) fn is_own_name(&self, name: &str) -> bool {
        self.of_name(name) == self.own
    }

    pub(super) fn is_own_call(&self, number: u32) -> bool {
        self.of_call(number) == self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hubs_agree_on_where_things_are_and_each_has_its_part() {
        for count in [0, 1, 2, 3, 16, 99] {
            let views: Vec<_> = Nodes::all(count).collect();
            assert_eq!(views.len(), count.clamp(1, Nodes::MOST));
            let mut used = std::collections::BTreeSet::new();
            for number in 0..256_u32 {
                let network =
                    NetworkPrefix::subscriber(std::net::Ipv4Addr::from(0xc000_0200 + number).into());
                let places: Vec<_> = views.iter().map(|view| view.of_network(network)).collect();
                assert!(places.iter().all(|place| *place == places[0]));
                used.insert(places[0]);
            }
            assert_eq!(used.len(), views.len(), "no hub is idle");
            assert!(views.iter().all(|view| view.others().count() == views.len() - 1));
        }
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let mut set = NodeSet::default();
        [3, 15, 3].into_iter().for_each(|node| set.insert(NodeId(node)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [NodeId(3), NodeId(15)]);
        set.remove(NodeId(3));
        set.remove(NodeId(4));
        assert!(!set.is_empty());
        set.remove(NodeId(15));
        assert!(set.is_empty());
    }
}
