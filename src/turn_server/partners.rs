//! Who talks with whom inside the server: when the peer of a client is a relayed address that several clients share, its address
//! alone does not say who is meant.
//!
//! Between two clients of one relay the sender is known, not only the address that it would have sent from. So no client has to
//! leave its relayed address for another one's sake, and what a client sends goes to its *partner* behind the other address: the
//! tenant that an ICE connectivity check has named, or the only one there that addresses the sender's relayed address and has no
//! other partner behind it. Two clients become partners of each other when the second of them first addresses the first, unless
//! others wait behind the same two addresses just then.

use super::machine::{AllocationId, Relay};
use super::moment::Moment;
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use std::collections::HashMap;

/// For clients that address a relayed address of this relay: who is meant behind it.
#[derive(Debug, Default)]
pub(super) struct Partners {
    meant: HashMap<(AllocationId, PeerAddr), AllocationId>,
}

impl Partners {
    /// Returns whom `sender` means by a relayed address.
    pub(super) fn of(&self, sender: AllocationId, address: PeerAddr) -> Option<AllocationId> {
        self.meant.get(&(sender, address)).copied()
    }

    fn set(&mut self, sender: AllocationId, address: PeerAddr, receiver: AllocationId) {
        self.meant.insert((sender, address), receiver);
    }

    /// Forgets whom `sender` means.
    fn part(&mut self, sender: AllocationId, address: PeerAddr) {
        self.meant.remove(&(sender, address));
    }
}

impl Relay {
    /// Returns whether `peer` is a relayed address of this server that is in use.
    pub(super) fn is_within(&self, peer: PeerAddr) -> bool {
        self.shared.ports.home(peer.socket_addr()).is_some()
    }

    /// Makes partners of `id`, which has just claimed `peer` on its own relayed address, and of the one behind `peer` that waits
    /// for it, if it is clear who that is.
    pub(super) fn introduce(&mut self, id: AllocationId, home: RelayId, peer: PeerAddr) {
        let Some(there) = self.relay_at(peer.socket_addr()) else { return };
        let own = PeerAddr::new(self.relays[home].address());
        let mut theirs = self.unattached(there, own).filter(|other| *other != id);
        let (Some(other), None) = (theirs.next(), theirs.next()) else { return };
        let waits_too = |rival: &AllocationId| *rival != id && (*rival != other || there != home);
        if self.unattached(home, peer).any(|rival| waits_too(&rival)) {
            return;
        }
        drop(theirs);
        self.partners.set(id, peer, other);
        self.partners.set(other, own, id);
    }

    /// Lists the tenants of a port that address `peer`, a relayed address, and have no partner behind it.
    fn unattached(&self, relay: RelayId, peer: PeerAddr) -> impl Iterator<Item = AllocationId> {
        self.claimants(relay, peer).filter(move |id| self.partners.of(*id, peer).is_none())
    }

    /// Says for whom on port `relay` is what the client `sender`, whose relayed address is `from`, sends there. Of a client of another
    /// worker's relay only the address is known.
    pub(super) fn partner_for(
        &mut self,
        now: Moment,
        relay: RelayId,
        (sender, from): (Option<AllocationId>, PeerAddr),
        fragment: Option<&[u8]>,
    ) -> Option<AllocationId> {
        let here = PeerAddr::new(self.relays.get(relay)?.address());
        let hears = |id: &AllocationId| {
            Some(*id) != sender
                && self.allocations.get(*id).is_some_and(|a| a.is_live(now) && a.permits(now, from))
        };
        let known = sender.and_then(|sender| self.partners.of(sender, here));
        let named = fragment.and_then(|fragment| {
            let is_named = |id: &AllocationId| self.allocations[*id].is_known_as(fragment);
            known
                .filter(hears)
                .filter(is_named)
                .or_else(|| self.permitting(relay, from).filter(hears).find(is_named))
        });
        if let Some(meant) = named.or(known.filter(hears)) {
            if let Some(sender) = sender.filter(|_| known != Some(meant)) {
                self.attach(sender, here, (meant, relay, from));
            }
            return Some(meant);
        }
        let is_free = |id: &AllocationId| {
            let partner = self.partners.of(*id, from);
            partner.is_none() || partner == sender
        };
        let mut waiting = self.claimants(relay, from).filter(hears).filter(is_free);
        let (first, second) = (waiting.next(), waiting.next());
        drop(waiting);
        if let (Some(only), None) = (first, second) {
            if let Some(sender) = sender {
                self.attach(sender, here, (only, relay, from));
            }
            return first;
        }
        let mut permitting = self.permitting(relay, from).filter(hears).filter(is_free);
        let (any, more) = (permitting.next(), permitting.next());
        drop(permitting);
        if first.is_some() || more.is_some() {
            self.counters.ambiguous += 1;
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

    /// Remembers whom `sender` means by `here`, as long as that one addresses the sender too: its claim, when it ends, ends this.
    fn attach(
        &mut self,
        sender: AllocationId,
        here: PeerAddr,
        (meant, relay, from): (AllocationId, RelayId, PeerAddr),
    ) {
        if self.allocations[meant].relay_to(from) == Some(relay) {
            self.partners.set(sender, here, meant);
        }
    }

    /// Parts `id`, whose claim of `peer` on `relay` ends, from whoever is its partner, or means it, behind that address.
    pub(super) fn part(&mut self, id: AllocationId, relay: RelayId, peer: PeerAddr) {
        self.partners.part(id, peer);
        let Some(own) = self.relays.get(relay).map(|port| PeerAddr::new(port.address())) else { return };
        let Some(there) = self.relay_at(peer.socket_addr()) else { return };
        let mean_it: Vec<_> =
            self.claimants(there, own).filter(|other| self.partners.of(*other, own) == Some(id)).collect();
        for other in mean_it {
            self.partners.part(other, own);
        }
    }
}
