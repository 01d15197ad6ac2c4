//! Who talks with whom among the clients of all workers: one table, behind a lock that no packet of an acquainted pair takes.

use super::machine::AllocationId;
use super::policy::PeerAddr;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A client with an allocation on any worker's relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Party {
    /// The worker.
    pub worker: u16,
    /// The allocation, by the name that it has there.
    pub allocation: AllocationId,
}

/// From one relayed address to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) from: PeerAddr,
    pub(super) to: PeerAddr,
}

impl Way {
    fn back(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

/// The table. Its parties have claimed a relayed address of this server as a peer.
#[derive(Debug, Default)]
pub(super) struct Introductions {
    book: Mutex<Book>,
    /// Changes whenever anybody's partner does.
    edition: AtomicU64,
}

#[derive(Debug, Default)]
struct Book {
    partners: HashMap<(Way, Party), Option<Party>>,
    /// Those without a partner.
    waiting: HashMap<Way, HashSet<Party>>,
    /// Those who have this party, which goes that way, as their partner.
    meant_by: HashMap<(Way, Party), Vec<Party>>,
}

impl Introductions {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Book) -> bool) {
        if change(&mut self.book()) {
            self.edition.fetch_add(1, Ordering::Release);
        }
    }

    /// Returns a number that is the same as long as nobody's partner has changed.
    pub(super) fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// Returns whether nobody has anybody to talk to.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let book = self.book();
        book.partners.is_empty() && book.waiting.is_empty() && book.meant_by.is_empty()
    }

    /// Returns the partner of `party` that way.
    pub(super) fn partner(&self, way: Way, party: Party) -> Option<Party> {
        self.book().partner(way, party)
    }

    /// Takes a party that has claimed `way.to` as a peer. It and whoever waits for it there become partners, if it is clear who that is.
    pub(super) fn announce(&self, way: Way, party: Party) {
        self.change(|book| {
            let is_new = book.enter(way, party);
            let other = book.only_other(way, party).filter(|_| is_new);
            other.is_some_and(|other| book.acquaint(way, party, other))
        });
    }

    /// Gives `party` a partner, whoever it was before. Nothing happens when one of them has gone.
    pub(super) fn attach(&self, way: Way, party: Party, partner: Party) {
        self.change(|book| book.set(way, party, partner));
    }

    /// Makes partners of two who have shown that they mean each other.
    pub(super) fn acquaint(&self, way: Way, party: Party, other: Party) {
        self.change(|book| book.acquaint(way, party, other));
    }

    /// Takes a party out whose claim has ended: those who meant it wait again.
    pub(super) fn withdraw(&self, way: Way, party: Party) {
        self.change(|book| book.withdraw(way, party));
    }
}

impl Book {
    fn partner(&self, way: Way, party: Party) -> Option<Party> {
        self.partners.get(&(way, party)).copied().flatten()
    }

    fn enter(&mut self, way: Way, party: Party) -> bool {
        let is_new = !self.partners.contains_key(&(way, party));
        if is_new {
            self.partners.insert((way, party), None);
            self.waiting.entry(way).or_default().insert(party);
        }
        is_new
    }

    /// Returns the only one who waits the other way, if nobody but `party` could be whom it waits for.
    fn only_other(&self, way: Way, party: Party) -> Option<Party> {
        let mut theirs = self.waiting.get(&way.back())?.iter().filter(|other| **other != party);
        let other = *theirs.next()?;
        let same_port = way.from == way.to;
        let is_rival = |rival: &&Party| **rival != party && !(same_port && **rival == other);
        let rivals = self.waiting.get(&way).into_iter().flatten().filter(is_rival).count();
        (theirs.next().is_none() && rivals == 0).then_some(other)
    }

    fn acquaint(&mut self, way: Way, party: Party, other: Party) -> bool {
        let there = self.set(way, party, other);
        self.set(way.back(), other, party) || there
    }

    /// Sets a partner, unless one of the two has gone.
    fn set(&mut self, way: Way, party: Party, partner: Party) -> bool {
        if !self.partners.contains_key(&(way, party)) || !self.partners.contains_key(&(way.back(), partner)) {
            return false;
        }
        let before = self.partners.insert((way, party), Some(partner)).flatten();
        if before == Some(partner) {
            return false;
        }
        self.no_longer_meant(way, party, before);
        self.no_longer_waits(way, party);
        self.meant_by.entry((way.back(), partner)).or_default().push(party);
        true
    }

    fn withdraw(&mut self, way: Way, party: Party) -> bool {
        let partner = self.partners.remove(&(way, party)).flatten();
        self.no_longer_meant(way, party, partner);
        self.no_longer_waits(way, party);
        let forsaken = self.meant_by.remove(&(way, party)).unwrap_or_default();
        for other in &forsaken {
            self.partners.insert((way.back(), *other), None);
            self.waiting.entry(way.back()).or_default().insert(*other);
        }
        partner.is_some() || !forsaken.is_empty()
    }

    fn no_longer_waits(&mut self, way: Way, party: Party) {
        if let Some(waiting) = self.waiting.get_mut(&way) {
            waiting.remove(&party);
            if waiting.is_empty() {
                self.waiting.remove(&way);
            }
        }
    }

    fn no_longer_meant(&mut self, way: Way, by: Party, partner: Option<Party>) {
        let Some(key) = partner.map(|partner| (way.back(), partner)) else { return };
        if let Some(meant_by) = self.meant_by.get_mut(&key) {
            meant_by.retain(|party| *party != by);
            if meant_by.is_empty() {
                self.meant_by.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(port: u16) -> PeerAddr {
        PeerAddr::new(([198, 51, 100, 1], port).into())
    }

    fn way(from: u16, to: u16) -> Way {
        Way { from: address(from), to: address(to) }
    }

    fn party(number: usize) -> Party {
        Party { worker: (number % 2) as u16, allocation: number / 2 }
    }

    #[test]
    fn two_who_wait_for_each_other_become_partners() {
        let all = Introductions::default();
        all.announce(way(1, 2), party(0));
        assert_eq!((all.partner(way(1, 2), party(0)), all.edition()), (None, 0));
        all.announce(way(2, 1), party(1));
        assert_eq!(all.partner(way(1, 2), party(0)), Some(party(1)));
        assert_eq!(all.partner(way(2, 1), party(1)), Some(party(0)));
        // Behind the same two addresses there is room for the next ones.
        all.announce(way(1, 2), party(2));
        all.announce(way(2, 1), party(3));
        assert_eq!(all.partner(way(1, 2), party(2)), Some(party(3)));
        assert_eq!(all.partner(way(1, 2), party(0)), Some(party(1)));
    }

    #[test]
    fn two_on_one_port_become_partners_and_nobody_its_own() {
        let all = Introductions::default();
        all.announce(way(1, 1), party(0));
        assert_eq!(all.partner(way(1, 1), party(0)), None);
        all.announce(way(1, 1), party(1));
        assert_eq!(all.partner(way(1, 1), party(0)), Some(party(1)));
    }

    #[test]
    fn nobody_is_guessed() {
        let all = Introductions::default();
        all.announce(way(1, 2), party(0));
        all.announce(way(1, 2), party(2));
        all.announce(way(2, 1), party(1));
        assert!((0..3).all(|number| all.partner(way(1, 2), party(number)).is_none()));
        assert_eq!(all.partner(way(2, 1), party(1)), None);
        all.acquaint(way(2, 1), party(1), party(2));
        assert_eq!(all.partner(way(1, 2), party(2)), Some(party(1)));
        all.announce(way(2, 1), party(3));
        assert_eq!(all.partner(way(1, 2), party(0)), Some(party(3)), "who is left over is clear");
    }

    #[test]
    fn who_leaves_sets_its_partner_free() {
        let all = Introductions::default();
        all.announce(way(1, 2), party(0));
        all.announce(way(2, 1), party(1));
        let edition = all.edition();
        all.withdraw(way(1, 2), party(0));
        assert_ne!(all.edition(), edition);
        assert_eq!(all.partner(way(2, 1), party(1)), None);
        all.announce(way(1, 2), party(2));
        assert_eq!(all.partner(way(2, 1), party(1)), Some(party(2)));
        all.withdraw(way(2, 1), party(1));
        all.withdraw(way(1, 2), party(2));
        assert!(all.is_empty());
    }

    proptest! {
        #[test]
        fn the_three_lists_agree(steps in proptest::collection::vec((0..4_u8, 0..6_usize, 0..6_usize, 1..3_u16, 1..3_u16), 0..80)) {
            let all = Introductions::default();
            let mut there = HashSet::new();
            for (step, one, other, from, to) in steps {
                let (one, other, way) = (party(one), party(other), way(from, to));
                match step {
                    0 => {
                        all.announce(way, one);
                        there.insert((way, one));
                    }
                    1 => {
                        all.withdraw(way, one);
                        there.remove(&(way, one));
                    }
                    _ if one == other => {}
                    2 => all.attach(way, one, other),
                    _ => all.acquaint(way, one, other),
                }
                let book = all.book();
                prop_assert_eq!(book.partners.keys().copied().collect::<HashSet<_>>(), there.clone());
                for (way, party) in &there {
                    let waits = book.waiting.get(way).is_some_and(|waiting| waiting.contains(party));
                    let partner = book.partner(*way, *party);
                    prop_assert_eq!(waits, partner.is_none());
                    if let Some(partner) = partner {
                        prop_assert!(there.contains(&(way.back(), partner)));
                        let meant_by = &book.meant_by[&(way.back(), partner)];
                        prop_assert_eq!(meant_by.iter().filter(|by| *by == party).count(), 1);
                    }
                }
                let meant: usize = book.meant_by.values().map(Vec::len).sum();
                prop_assert_eq!(meant, book.partners.values().flatten().count());
                prop_assert!(book.waiting.values().all(|waiting| !waiting.is_empty()));
            }
        }
    }
}
