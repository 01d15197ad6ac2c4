//! The servers that share one signalling service, and the node of a tag, a token or a call.
//!
//! Each server runs one hub and is one node. A client's node is the one that it reaches. A tag belongs to the node that its last
//! character names, and so do its registration and all calls to it; a token and a call number name their node in the same way. No
//! table is consulted. New tags are drawn for the node that draws them; a tag that a secret or a key owns may belong to another node.

use super::tag_id::{TagId, base32};
use super::wire::{Tag, Token};
use std::num::NonZeroUsize;

/// Identifies one node among all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u8);

impl NodeId {
    /// Returns the node at this place of [`super::Hub::cluster`].
    #[must_use]
    pub fn new(index: u8) -> Self {
        Self(index)
    }

    /// Returns the node that a tag belongs to, of `count` nodes.
    #[must_use]
    pub fn of_tag(tag: &Tag, count: usize) -> Self {
        Nodes::any(count).of_tag(tag)
    }

    /// Returns the place in [`super::Hub::cluster`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of nodes.
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
        (0..Nodes::MAX as u8).map(NodeId).filter(move |node| self.0 & 1 << node.0 != 0)
    }
}

/// All nodes, from the view of one of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nodes {
    own: NodeId,
    count: NonZeroUsize,
}

impl Nodes {
    /// Maximum number of nodes.
    pub(super) const MAX: usize = 16;
    /// A single server.
    pub(super) const SINGLE: Self = Self { own: NodeId(0), count: NonZeroUsize::MIN };

    /// Returns the views of `count` nodes, at least one and at most [`Self::MAX`].
    pub(super) fn all(count: usize) -> impl Iterator<Item = Self> {
        let any = Self::any(count);
        (0..any.count()).map(move |own| Self { own: NodeId(own as u8), ..any })
    }

    fn any(count: usize) -> Self {
        let count = NonZeroUsize::new(count.min(Self::MAX)).unwrap_or(NonZeroUsize::MIN);
        Self { count, ..Self::SINGLE }
    }

    pub(super) fn own(&self) -> NodeId {
        self.own
    }

    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    /// Returns the other nodes.
    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let own = self.own;
        (0..self.count() as u8).map(NodeId).filter(move |node| *node != own)
    }

    fn at(&self, number: u32) -> NodeId {
        // There are at most sixteen.
        NodeId((number % self.count.get() as u32) as u8)
    }

    fn of_text(&self, text: &str) -> NodeId {
        self.at(text.bytes().last().unwrap_or_default().into())
    }

    pub(super) fn of_tag(&self, tag: &Tag) -> NodeId {
        self.of_text(tag.as_str())
    }

    pub(super) fn of_tag_id(&self, tag: TagId) -> NodeId {
        self.of_text(&base32(&tag.0))
    }

    pub(super) fn of_token(&self, token: &Token) -> NodeId {
        self.of_text(token.as_str())
    }

    /// Returns the node that keeps a locator.
    pub(super) fn of_locator(&self, number: u32) -> NodeId {
        self.at(number)
    }

    /// Returns the node that a call of this number belongs to.
    pub(super) fn of_call(&self, number: u32) -> NodeId {
        self.at(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_agree_on_the_node_of_a_tag_and_each_has_a_share() {
        for count in [0, 1, 2, 3, 16, 99] {
            let views: Vec<_> = Nodes::all(count).collect();
            assert_eq!(views.len(), count.clamp(1, Nodes::MAX));
            let mut used = std::collections::BTreeSet::new();
            for byte in 0..=255 {
                let tag = TagId([byte; 15]);
                let nodes: Vec<_> = views.iter().map(|view| view.of_tag_id(tag)).collect();
                assert!(nodes.iter().all(|node| *node == nodes[0]));
                assert_eq!(NodeId::of_tag(&tag.tag().unwrap(), count), nodes[0]);
                used.insert(nodes[0]);
            }
            assert_eq!(used.len(), views.len(), "no node is without tags");
            assert!(views.iter().all(|view| view.others().count() == views.len() - 1));
        }
    }

    #[test]
    fn a_node_set_contains_the_inserted_nodes() {
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
