//! Locators: short numbers that stand for a tag for a limited time (t=61 and 62). Pure.
//!
//! People tell each other a locator as the first part of a short code. It is no secret and no permission: who resolves one gets a tag.
//! Locators are random, from a range of which at most a quarter is in use, so that few guesses find one. A tag has at most one, so the
//! limits of tags are those of locators. The remainder of a locator by the number of nodes names the node that keeps it.

use super::nodes::NodeId;
use super::tag_id::TagId;
use crate::clock::Deadlines;
use rand::Rng;
use std::collections::HashMap;
use std::time::Instant;

/// The lowest and the highest number of digits.
const DIGITS: std::ops::RangeInclusive<u32> = 1..=6;
/// One number in this many is in use at most; beyond that locators get longer.
const SPARSENESS: usize = 4;
/// How often a random number is drawn before the range counts as full.
const DRAWS: usize = 64;

/// All locators of one hub.
#[derive(Debug, Default)]
pub(super) struct Locators {
    by_number: HashMap<u32, TagId>,
    by_tag: HashMap<TagId, u32>,
    expiry: Deadlines<u32>,
}

impl Locators {
    /// Gives a tag a new locator in the place of its former one. `None` if there are too many.
    pub(super) fn assign(
        &mut self,
        name: TagId,
        expires: Instant,
        (own, count): (NodeId, usize),
        rng: &mut impl Rng,
    ) -> Option<u32> {
        self.release(name);
        let number = self.draw((own, count), rng)?;
        self.by_number.insert(number, name);
        self.by_tag.insert(name, number);
        self.expiry.set(number, expires);
        Some(number)
    }

    fn draw(&self, (own, count): (NodeId, usize), rng: &mut impl Rng) -> Option<u32> {
        let own = own.index();
        let is_sparse = |digits: &u32| self.by_number.len() * SPARSENESS < 10_usize.pow(*digits) / count;
        let most = 10_u32.pow(DIGITS.into_iter().find(is_sparse)?);
        let mut draws = (0..DRAWS * count).map(|_| rng.random_range(1..most));
        draws.find(|number| *number as usize % count == own && !self.by_number.contains_key(number))
    }

    /// Takes the locator of a tag away.
    pub(super) fn release(&mut self, name: TagId) {
        if let Some(number) = self.by_tag.remove(&name) {
            self.by_number.remove(&number);
            self.expiry.clear(number);
        }
    }

    /// Returns the tag of a locator.
    pub(super) fn resolve(&self, number: u32) -> Option<TagId> {
        self.by_number.get(&number).copied()
    }

    /// Removes the locators whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(number) = self.expiry.pop_due(now) {
            if let Some(name) = self.by_number.remove(&number) {
                self.by_tag.remove(&name);
            }
        }
    }

    /// Returns when the next one expires.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.expiry.next()
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}
