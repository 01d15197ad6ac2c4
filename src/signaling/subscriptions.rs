//! The subscriptions of other hubs to tags of this one.

use super::bus::RealmTag;
use super::nodes::{NodeId, NodeSet};
use std::collections::HashMap;

/// Subscriptions by tag. Each belongs to at least one watch at another hub, where watches are limited.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(HashMap<RealmTag, NodeSet>);

impl Subscriptions {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn begin(&mut self, what: RealmTag, by: NodeId) {
        self.0.entry(what).or_default().insert(by);
    }

    pub(super) fn end(&mut self, what: &RealmTag, by: NodeId) {
        if let Some(hubs) = self.0.get_mut(what) {
            hubs.remove(by);
            if hubs.is_empty() {
                self.0.remove(what);
            }
        }
    }

    /// Returns the nodes that subscribe to a tag.
    pub(super) fn of(&self, what: &RealmTag) -> impl Iterator<Item = NodeId> + use<> {
        self.0.get(what).copied().unwrap_or_default().iter()
    }
}
