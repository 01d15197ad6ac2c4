//! The online tags of each realm, in order.
//!
//! Tags are grouped by their first two characters; a group is sorted when it is read. A listed client costs four bytes.

use super::access::Realm;
use super::tag_id::{LETTERS, TagId, base32};
use super::wire::Tag;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// The first two characters of a tag, by their ranks.
type Part = (u8, u8);

/// Maximum number of cached pages.
const PAGES: usize = 16;

/// The ids of clients by realm and group, and cached pages.
#[derive(Debug, Default)]
pub(super) struct OnlineList {
    realms: HashMap<Realm, BTreeMap<Part, Vec<u32>>>,
    pages: VecDeque<CachedPage>,
}

/// A cached page, valid until a tag in its range comes or goes.
#[derive(Debug)]
struct CachedPage {
    realm: Realm,
    after: String,
    most: usize,
    tags: Arc<[Tag]>,
}

impl CachedPage {
    fn holds(&self, realm: &Realm, text: &str) -> bool {
        let is_last = self.tags.len() < self.most;
        self.realm == *realm
            && text > self.after.as_str()
            && (is_last || self.tags.last().is_none_or(|last| text <= last.as_str()))
    }
}

/// Returns how many characters of tags sort before `letter`.
fn rank(letter: u8) -> u8 {
    LETTERS.iter().filter(|other| **other < letter).count() as u8
}

fn part_of(name: TagId) -> Part {
    let text = base32(&name.0[..2]);
    let mut ranks = text.bytes().map(rank);
    (ranks.next().unwrap_or_default(), ranks.next().unwrap_or_default())
}

/// Returns the first group that can contain a tag after `text`.
fn part_after(text: &str) -> Part {
    let mut letters = text.bytes();
    let (Some(first), second) = (letters.next(), letters.next().unwrap_or_default()) else { return (0, 0) };
    (rank(first), if LETTERS.contains(&first) { rank(second) } else { 0 })
}

impl OnlineList {
    pub(super) fn insert(&mut self, realm: &Realm, name: TagId, id: u32) {
        self.changed(realm, name);
        if !self.realms.contains_key(realm) {
            self.realms.insert(*realm, BTreeMap::new());
        }
        if let Some(parts) = self.realms.get_mut(realm) {
            parts.entry(part_of(name)).or_default().push(id);
        }
    }

    pub(super) fn remove(&mut self, realm: &Realm, name: TagId, id: u32) {
        self.changed(realm, name);
        let Some(parts) = self.realms.get_mut(realm) else { return };
        let part = part_of(name);
        if let Some(ids) = parts.get_mut(&part) {
            if let Some(place) = ids.iter().position(|other| *other == id) {
                ids.swap_remove(place);
            }
            if ids.is_empty() {
                parts.remove(&part);
            }
        }
        if parts.is_empty() {
            self.realms.remove(realm);
        }
    }

    /// Drops the cached pages that a change of this tag invalidates.
    fn changed(&mut self, realm: &Realm, name: TagId) {
        if !self.pages.is_empty() {
            let text = base32(&name.0);
            self.pages.retain(|page| !page.holds(realm, &text));
        }
    }

    /// Returns a cached page of at most `most` tags after `after`.
    pub(super) fn page(&self, realm: &Realm, after: &str, most: usize) -> Option<Arc<[Tag]>> {
        let is_it = |page: &&CachedPage| page.realm == *realm && page.after == after && page.most == most;
        self.pages.iter().find(is_it).map(|page| Arc::clone(&page.tags))
    }

    /// Caches a page.
    pub(super) fn keep(&mut self, realm: &Realm, after: &str, most: usize, tags: Arc<[Tag]>) {
        if self.pages.len() >= PAGES {
            self.pages.pop_front();
        }
        self.pages.push_back(CachedPage { realm: *realm, after: after.to_owned(), most, tags });
    }

    /// Returns the tags of a realm after `after`, in order, with the ids of their clients.
    pub(super) fn after<'a>(
        &'a self,
        realm: &Realm,
        after: &'a str,
        name_of: impl Fn(u32) -> Option<TagId> + 'a,
    ) -> impl Iterator<Item = (String, u32)> + 'a {
        let parts = self.realms.get(realm).map(|parts| parts.range(part_after(after)..));
        parts.into_iter().flatten().flat_map(move |(_, ids)| {
            let named = ids.iter().filter_map(|id| Some((base32(&name_of(*id)?.0), *id)));
            let mut named: Vec<_> = named.filter(|(text, _)| text.as_str() > after).collect();
            named.sort_unstable();
            named
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signaling::Realms;
    use proptest::prelude::*;

    #[test]
    fn a_page_is_cached_until_a_change_in_its_range() {
        let (mut listing, here) = (OnlineList::default(), Realms::default().named("here"));
        let there = Realms::default().named("there");
        let name = |byte: u8| TagId([byte; 15]);
        let tag = |byte: u8| name(byte).tag().unwrap();
        let read = |listing: &OnlineList| listing.page(&here, "", 3).is_some();
        let keep = |listing: &mut OnlineList| listing.keep(&here, "", 3, [1, 2, 3].map(tag).into());
        keep(&mut listing);
        assert!(listing.page(&here, "", 4).is_none() && listing.page(&there, "", 3).is_none());
        listing.insert(&there, name(2), 7);
        listing.insert(&here, name(4), 8);
        assert!(read(&listing), "neither is on it");
        listing.insert(&here, name(2), 9);
        assert!(!read(&listing));
        keep(&mut listing);
        listing.remove(&here, name(2), 9);
        assert!(!read(&listing));
        listing.keep(&here, "", 9, [1].map(tag).into());
        listing.insert(&here, name(200), 9);
        assert!(listing.page(&here, "", 9).is_none(), "the last page has room for it");
        for after in 0..100 {
            listing.keep(&here, &after.to_string(), 3, [1, 2, 3].map(tag).into());
        }
        assert_eq!(listing.pages.len(), PAGES);
    }

    proptest! {
        #[test]
        fn the_list_continues_after_any_text_in_sorted_order(
            names in proptest::collection::vec(any::<[u8; 15]>(), 1..200),
            after in "[a-z2-7A-Z~ ]{0,3}",
        ) {
            let (mut listing, realm) = (OnlineList::default(), Realms::default().named("here"));
            for (id, name) in names.iter().enumerate() {
                let there = Realms::default().named(["here", "there"][id % 2]);
                listing.insert(&there, TagId(*name), id as u32);
            }
            let listed: Vec<_> = listing.after(&realm, &after, |id| Some(TagId(names[id as usize]))).collect();
            let mut expected: Vec<_> =
                names.iter().enumerate().step_by(2).map(|(id, name)| (base32(name), id as u32)).collect();
            expected.sort_unstable();
            expected.retain(|(text, _)| text.as_str() > after.as_str());
            prop_assert_eq!(listed, expected);
            for (id, name) in names.iter().enumerate() {
                let there = Realms::default().named(["here", "there"][id % 2]);
                listing.remove(&there, TagId(*name), id as u32);
            }
            prop_assert!(listing.realms.is_empty());
        }
    }
}
