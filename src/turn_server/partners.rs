//! Who talks with whom inside the server: when the peer of a client is a relayed address that several clients share, its address
//! alone does not say who is meant.
//!
//! Between two clients of one server the sender is known, not only the address that it would have sent from. So no client has to
//! leave its relayed address for another one's sake, and what a client sends goes to its *partner* behind the other address. Two
//! clients become partners of each other when an ICE connectivity check of one names the other, or when the second of them first
//! addresses the first, unless others wait behind the same two addresses just then. What is for nobody in particular is dropped
//! and counted, and from then on new allocations spread over more ports.

use super::introductions::{Party, Way};
use super::machine::{AllocationId, Passage, Relay};
use super::moment::Moment;
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use std::collections::HashMap;

/// What a relay knows of the [`Introductions`](super::introductions::Introductions) without asking again: all that its own clients
/// have there, so that whatever was announced is withdrawn, under the addresses that it was announced with.
#[derive(Debug, Default)]
pub(super) struct Partners {
    known: HashMap<(AllocationId, PeerAddr), Known>,
}

#[derive(Debug)]
struct Known {
    way: Way,
    edition: u64,
    partner: Option<Party>,
}

impl Relay {
    /// Returns whether `peer` is a relayed address of this server that is in use.
    pub(super) fn is_within(&self, peer: PeerAddr) -> bool {
        self.shared.ports.home(peer.socket_addr()).is_some()
    }

    fn party(&self, allocation: AllocationId) -> Party {
        Party { worker: self.shared.worker, allocation }
    }

    fn way(&self, relay: RelayId, peer: PeerAddr) -> Option<Way> {
        Some(Way { from: PeerAddr::new(self.relays.get(relay)?.address()), to: peer })
    }

    /// Notes that `id` has claimed `peer`, a relayed address of this server, on its own one.
    pub(super) fn introduce(&mut self, id: AllocationId, home: RelayId, peer: PeerAddr) {
        if let Some(way) = self.way(home, peer) {
            self.passage(id, way);
        }
    }

    /// Parts `id`, whose claim of `peer` ends, from whoever is its partner, or means it, behind that address.
    pub(super) fn part(&mut self, id: AllocationId, peer: PeerAddr) {
        if let Some(known) = self.partners.known.remove(&(id, peer)) {
            self.shared.ports.introductions.withdraw(known.way, self.party(id));
        }
    }

    /// Returns what goes before a payload of `sender` to a relayed address of this server.
    pub(super) fn passage(&mut self, sender: AllocationId, way: Way) -> Passage {
        let party = self.party(sender);
        let introductions = &self.shared.ports.introductions;
        let edition = introductions.edition();
        let before = self.partners.known.get(&(sender, way.to));
        if let Some(known) = before.filter(|known| known.way == way && known.edition == edition) {
            return Passage { sender: party, partner: known.partner, way };
        }
        match before.map(|known| known.way) {
            Some(announced) if announced == way => {}
            announced => {
                // The port has got another address since, before it was open.
                announced.into_iter().for_each(|announced| introductions.withdraw(announced, party));
                introductions.announce(way, party);
            }
        }
        let partner = introductions.partner(way, party);
        self.partners.known.insert((sender, way.to), Known { way, edition, partner });
        Passage { sender: party, partner, way }
    }

    /// Says which tenant of port `relay` a passage is for.
    pub(super) fn partner_for(
        &mut self,
        now: Moment,
        relay: RelayId,
        passage: Passage,
        fragment: Option<&[u8]>,
    ) -> Option<AllocationId> {
        let Passage { sender, partner, way } = passage;
        let from = way.from;
        let hears = |id: &AllocationId| {
            self.party(*id) != sender
                && self.allocations.get(*id).is_some_and(|a| a.is_live(now) && a.permits(now, from))
        };
        let known = partner
            .filter(|partner| partner.worker == self.shared.worker)
            .map(|partner| partner.allocation)
            .filter(hears);
        let is_named = |fragment: &[u8], id: &AllocationId| self.allocations[*id].is_known_as(fragment);
        let named = fragment.and_then(|fragment| {
            known
                .filter(|id| is_named(fragment, id))
                .or_else(|| self.permitting(relay, from).filter(hears).find(|id| is_named(fragment, id)))
        });
        let introductions = &self.shared.ports.introductions;
        if let Some(meant) = named {
            // Its claim, when it ends, ends this.
            if self.allocations[meant].relay_to(from) == Some(relay) {
                introductions.acquaint(way, sender, self.party(meant));
            }
            return named;
        }
        if known.is_some() {
            return known;
        }
        let back = Way { from: way.to, to: way.from };
        let is_free = |id: &AllocationId| {
            introductions.partner(back, self.party(*id)).is_none_or(|partner| partner == sender)
        };
        let mut waiting = self.claimants(relay, from).filter(hears).filter(is_free);
        let (first, second) = (waiting.next(), waiting.next());
        drop(waiting);
        if let (Some(only), None) = (first, second) {
            introductions.attach(way, sender, self.party(only));
            return first;
        }
        let mut permitting = self.permitting(relay, from).filter(hears).filter(is_free);
        let (any, more) = (permitting.next(), permitting.next());
        drop(permitting);
        if first.is_some() || more.is_some() {
            self.counters.ambiguous += 1;
            self.spread();
            return None;
        }
        if let Some(only) = any
            && self.allocations[only].relay_to(from).is_none()
        {
            // From now on it stays with this tenant, even when another one gets a permission for the address.
            let _ = self.claim(now, only, from);
        }
        any
    }
}
