//! Who is online in which realm, in the order of the tags.
//!
//! Only parts of the list are kept in order, by the first two letters; a part is sorted when somebody reads it. So being listed
//! costs a client four bytes.

use super::admission::Realm;
use super::name::{LETTERS, Name, base32};
use std::collections::{BTreeMap, HashMap};

/// The first two letters of a tag, by their ranks.
type Part = (u8, u8);

/// The numbers of clients by realm and part.
#[derive(Debug, Default)]
pub(super) struct Listing(HashMap<Realm, BTreeMap<Part, Vec<u32>>>);

/// How many letters of tags come before `letter`.
fn rank(letter: u8) -> u8 {
    LETTERS.iter().filter(|other| **other < letter).count() as u8
}

fn part_of(name: Name) -> Part {
    let text = base32(&name.0[..2]);
    let mut ranks = text.bytes().map(rank);
    (ranks.next().unwrap_or_default(), ranks.next().unwrap_or_default())
}

/// The first part that can have a tag after this one.
fn part_after(text: &str) -> Part {
    let mut letters = text.bytes();
    let (Some(first), second) = (letters.next(), letters.next().unwrap_or_default()) else { return (0, 0) };
    (rank(first), if LETTERS.contains(&first) { rank(second) } else { 0 })
}

impl Listing {
    pub(super) fn insert(&mut self, realm: &Realm, name: Name, id: u32) {
        if !self.0.contains_key(realm) {
            self.0.insert(*realm, BTreeMap::new());
        }
        if let Some(parts) = self.0.get_mut(realm) {
            parts.entry(part_of(name)).or_default().push(id);
        }
    }

    pub(super) fn remove(&mut self, realm: &Realm, name: Name, id: u32) {
        let Some(parts) = self.0.get_mut(realm) else { return };
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
            self.0.remove(realm);
        }
    }

    /// Lists the tags of a realm after `after`, in order, with the numbers of their clients.
    pub(super) fn after<'a>(
        &'a self,
        realm: &Realm,
        after: &'a str,
        name_of: impl Fn(u32) -> Option<Name> + 'a,
    ) -> impl Iterator<Item = (String, u32)> + 'a {
        let parts = self.0.get(realm).map(|parts| parts.range(part_after(after)..));
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

    proptest! {
        #[test]
        fn the_list_goes_on_after_any_text_in_the_order_of_texts(
            names in proptest::collection::vec(any::<[u8; 15]>(), 1..200),
            after in "[a-z2-7A-Z~ ]{0,3}",
        ) {
            let (mut listing, realm) = (Listing::default(), Realms::default().named("here"));
            for (id, name) in names.iter().enumerate() {
                let there = Realms::default().named(["here", "there"][id % 2]);
                listing.insert(&there, Name(*name), id as u32);
            }
            let listed: Vec<_> = listing.after(&realm, &after, |id| Some(Name(names[id as usize]))).collect();
            let mut expected: Vec<_> =
                names.iter().enumerate().step_by(2).map(|(id, name)| (base32(name), id as u32)).collect();
            expected.sort_unstable();
            expected.retain(|(text, _)| text.as_str() > after.as_str());
            prop_assert_eq!(listed, expected);
            for (id, name) in names.iter().enumerate() {
                let there = Realms::default().named(["here", "there"][id % 2]);
                listing.remove(&there, Name(*name), id as u32);
            }
            prop_assert!(listing.0.is_empty());
        }
    }
}
