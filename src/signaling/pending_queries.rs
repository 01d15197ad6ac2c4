//! Client requests that wait for the answers of other hubs.

use super::bus::{ListPage, Presence, RealmTag};
use super::client_addr::ConnId;
use super::machine::RequestOrigin;
use super::nodes::{NodeId, NodeSet};
use super::wire::Tag;
use crate::limits::Limit;
use std::collections::{BTreeMap, HashMap};

/// Maximum number of pending queries.
const MAX_QUERIES: usize = 4096;

/// A client request.
#[derive(Debug)]
pub(super) struct PendingQuery {
    pub(super) origin: RequestOrigin,
    pub(super) mid: Option<i64>,
    missing: NodeSet,
    pub(super) what: Query,
}

#[derive(Debug)]
pub(super) enum Query {
    /// t=3: the part of each hub.
    List { page: ListPage, parts: Vec<(Vec<Tag>, bool)> },
    /// t=60: the state of tags of other hubs.
    Watch { conn: ConnId, wanted: Vec<RealmTag>, known: HashMap<RealmTag, bool> },
}

/// All pending queries.
#[derive(Debug, Default)]
pub(super) struct PendingQueries {
    next: u64,
    waiting: BTreeMap<u64, PendingQuery>,
}

impl PendingQueries {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        let is_full = self.waiting.len() >= MAX_QUERIES;
        if is_full {
            Limit::HubQueries.reached(MAX_QUERIES);
        }
        is_full
    }

    /// Adds a query that missing for `hubs`; returns its id.
    pub(super) fn begin(
        &mut self,
        origin: RequestOrigin,
        mid: Option<i64>,
        what: Query,
        hubs: impl Iterator<Item = NodeId>,
    ) -> u64 {
        let (id, mut missing) = (self.next, NodeSet::default());
        self.next += 1;
        hubs.for_each(|hub| missing.insert(hub));
        self.waiting.insert(id, PendingQuery { origin, mid, missing, what });
        id
    }

    /// Applies the answer of a hub; returns the query if it is complete.
    pub(super) fn take(
        &mut self,
        id: u64,
        by: NodeId,
        answer: impl FnOnce(&mut Query),
    ) -> Option<PendingQuery> {
        let query = self.waiting.get_mut(&id)?;
        answer(&mut query.what);
        query.missing.remove(by);
        if query.missing.is_empty() { self.waiting.remove(&id) } else { None }
    }

    /// Removes a query that cannot be completed.
    pub(super) fn remove(&mut self, id: u64) -> Option<PendingQuery> {
        self.waiting.remove(&id)
    }

    /// Applies a presence change that arrived after a hub's answer.
    pub(super) fn apply(&mut self, presence: &Presence) {
        for query in self.waiting.values_mut() {
            let Query::Watch { known, .. } = &mut query.what else { continue };
            for (what, online) in presence {
                known.entry(what.clone()).and_modify(|known| *known = *online);
            }
        }
    }

    /// Returns whether a pending query needs this tag.
    pub(super) fn want(&self, what: &RealmTag) -> bool {
        self.waiting.values().any(|query| match &query.what {
            Query::Watch { wanted, .. } => wanted.contains(what),
            Query::List { .. } => false,
        })
    }
}

/// Merges the pages of several hubs: as many tags as fit, and none beyond the end of a hub's incomplete page.
pub(super) fn merged(parts: Vec<(Vec<Tag>, bool)>, most: usize) -> (Vec<Tag>, bool) {
    let cut = parts.iter().filter(|(_, more)| *more).filter_map(|(tags, _)| tags.last()).min().cloned();
    let none_fits = parts.iter().any(|(tags, more)| *more && tags.is_empty());
    let mut tags: Vec<Tag> = parts.into_iter().flat_map(|(tags, _)| tags).collect();
    tags.sort_unstable();
    let all = tags.len();
    tags.retain(|tag| cut.as_ref().is_none_or(|cut| tag <= cut));
    tags.truncate(if none_fits { 0 } else { most });
    let more = tags.len() < all || cut.is_some() || none_fits;
    (tags, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_merged_from_several_hubs_equal_those_of_one_hub(
            names in proptest::collection::btree_set("[a-c]{1,4}", 0..40),
            hubs in 1..5_usize,
            most in 1..6_usize,
        ) {
            let all: Vec<Tag> = names.iter().map(|name| Tag::new(name.clone()).unwrap()).collect();
            let (mut listed, mut after) = (Vec::new(), None::<Tag>);
            loop {
                let part = |hub: usize| {
                    let of_hub = all.iter().enumerate().filter(|(index, _)| index % hubs == hub);
                    let left: Vec<Tag> = of_hub.map(|(_, tag)| tag.clone()).filter(|tag| Some(tag) > after.as_ref()).collect();
                    (left.iter().take(most).cloned().collect::<Vec<_>>(), left.len() > most)
                };
                let (tags, more) = merged((0..hubs).map(part).collect(), most);
                prop_assert!(tags.len() <= most && (!more || !tags.is_empty()));
                after = tags.last().cloned().or(after);
                listed.extend(tags);
                if !more {
                    break;
                }
            }
            prop_assert_eq!(listed, all);
        }
    }
}
