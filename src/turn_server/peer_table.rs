//! An allocation's links: the peers it talks with or has bound a channel to, and what a packet to or from each has to know.
//!
//! Most allocations carry their data over one of them. That one, the first or the last to get a channel, lies with the allocation
//! itself; all others lie apart, in order.

use super::policy::PeerAddr;
use super::relay_port::RelayId;
use crate::clock::Ticks;

/// Names no relay port.
const NO_RELAY: u32 = u32::MAX;
/// Of the 16 bits of a channel number, the highest is zero.
const SKIPS_PORT_CHECK: u16 = 0x8000;

/// One peer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PeerEntry {
    peer: PeerAddr,
    /// The channel's number, 0 without one, and [`SKIPS_PORT_CHECK`].
    bits: u16,
    relay: u32,
    /// When the channel ends.
    pub(super) bound_until: Ticks,
    /// When the permission for the peer's address ends.
    pub(super) permitted_until: Ticks,
}

impl PeerEntry {
    fn new(peer: PeerAddr) -> Self {
        Self { peer, relay: NO_RELAY, ..Self::default() }
    }

    pub(super) fn peer(&self) -> PeerAddr {
        self.peer
    }

    /// Returns whether it is known that the policy does not judge the peer's port.
    pub(super) fn skips_port_check(&self) -> bool {
        self.bits & SKIPS_PORT_CHECK != 0
    }

    pub(super) fn set_skips_port_check(&mut self, any: bool) {
        self.bits = (self.bits & !SKIPS_PORT_CHECK) | if any { SKIPS_PORT_CHECK } else { 0 };
    }

    /// Returns the port that the peer knows the client by.
    pub(super) fn relay(&self) -> Option<RelayId> {
        (self.relay != NO_RELAY).then_some(self.relay as usize)
    }

    pub(super) fn set_relay(&mut self, relay: Option<RelayId>) {
        self.relay = relay.map_or(NO_RELAY, |relay| relay as u32);
    }

    /// Returns the channel's number, also while it cools down.
    pub(super) fn number(&self) -> Option<u16> {
        Some(self.bits & !SKIPS_PORT_CHECK).filter(|number| *number != 0)
    }

    pub(super) fn set_number(&mut self, number: Option<u16>) {
        self.bits = (self.bits & SKIPS_PORT_CHECK) | number.unwrap_or(0);
    }

    fn is_of_use(&self) -> bool {
        self.number().is_some() || self.relay().is_some()
    }
}

/// All links of one allocation.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    /// There if it has a port: no peer has port 0.
    first: PeerEntry,
    others: Option<Box<Overflow>>,
}

#[derive(Debug, Default)]
struct Overflow {
    /// By peer.
    links: Vec<PeerEntry>,
    /// The channels among them, by number.
    channels: Vec<(u16, PeerAddr)>,
}

impl Overflow {
    fn of(&self, peer: PeerAddr) -> Option<&PeerEntry> {
        let at = self.links.binary_search_by_key(&peer, PeerEntry::peer).ok()?;
        self.links.get(at)
    }

    fn insert(&mut self, link: PeerEntry) {
        if let Err(at) = self.links.binary_search_by_key(&link.peer, PeerEntry::peer) {
            self.links.insert(at, link);
        }
        if let Some(number) = link.number()
            && let Err(at) = self.channels.binary_search_by_key(&number, |(number, _)| *number)
        {
            self.channels.insert(at, (number, link.peer));
        }
    }

    fn remove(&mut self, peer: PeerAddr) -> Option<PeerEntry> {
        let at = self.links.binary_search_by_key(&peer, PeerEntry::peer).ok()?;
        let link = self.links.remove(at);
        self.channels.retain(|(_, other)| *other != peer);
        Some(link)
    }
}

impl PeerTable {
    fn first(&self) -> Option<&PeerEntry> {
        (self.first.peer.port() != 0).then_some(&self.first)
    }

    /// Reads from where most packets find their link.
    pub(super) fn prefetch(&self) -> u64 {
        self.first.permitted_until.as_nanos()
    }

    /// Returns the link to `peer`.
    pub(super) fn of(&self, peer: PeerAddr) -> Option<&PeerEntry> {
        if self.first.peer == peer {
            return self.first();
        }
        self.others.as_ref()?.of(peer)
    }

    /// Returns the link that channel `number` is bound to.
    pub(super) fn numbered(&self, number: u16) -> Option<&PeerEntry> {
        if self.first.number() == Some(number) {
            return self.first();
        }
        let others = self.others.as_ref()?;
        let at = others.channels.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        others.of(others.channels.get(at)?.1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PeerEntry> {
        self.first().into_iter().chain(self.others.iter().flat_map(|others| &others.links))
    }

    /// Changes the link to `peer`, a new one if there is none; one that is of no use any more is dropped.
    pub(super) fn change(&mut self, peer: PeerAddr, change: impl FnOnce(&mut PeerEntry)) {
        let mut link = self.take(peer).unwrap_or_else(|| PeerEntry::new(peer));
        change(&mut link);
        if link.is_of_use() {
            self.put(link);
        }
    }

    /// Notes that the permission for the address of `peer` now ends at `until`.
    pub(super) fn permit(&mut self, peer: PeerAddr, until: Ticks) {
        let others = self.others.iter_mut().flat_map(|others| &mut others.links);
        let of_address = |link: &&mut PeerEntry| link.peer.without_port() == peer.without_port();
        for link in std::iter::once(&mut self.first).chain(others).filter(of_address) {
            link.permitted_until = until;
        }
    }

    /// Notes anew of which peers the policy judges the port.
    pub(super) fn set_port_checks(&mut self, judges: impl Fn(PeerAddr) -> bool) {
        let others = self.others.iter_mut().flat_map(|others| &mut others.links);
        for link in std::iter::once(&mut self.first).chain(others) {
            link.set_skips_port_check(!judges(link.peer));
        }
    }

    fn take(&mut self, peer: PeerAddr) -> Option<PeerEntry> {
        if self.first.peer == peer {
            return Some(std::mem::take(&mut self.first));
        }
        let others = self.others.as_mut()?;
        let link = others.remove(peer);
        if others.links.is_empty() {
            self.others = None;
        }
        link
    }

    fn put(&mut self, link: PeerEntry) {
        let comes_first =
            self.first().is_none_or(|first| link.number().is_some() && first.number().is_none());
        let apart = if comes_first { std::mem::replace(&mut self.first, link) } else { link };
        if apart.peer.port() != 0 {
            self.others.get_or_insert_default().insert(apart);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn peer(number: u8) -> PeerAddr {
        PeerAddr::new(([8, 8, 8, number % 4], 1 + u16::from(number)).into())
    }

    #[test]
    fn a_channel_brings_its_link_to_the_front() {
        let mut links = PeerTable::default();
        links.change(peer(1), |link| link.set_relay(Some(0)));
        links.change(peer(2), |link| link.set_relay(Some(0)));
        assert_eq!(links.first.peer, peer(1));
        links.change(peer(2), |link| link.set_number(Some(0x4000)));
        assert_eq!(links.first.peer, peer(2));
        assert_eq!(size_of::<PeerTable>(), 48);
    }

    proptest! {
        #[test]
        fn links_are_found_by_peer_and_by_channel(steps in proptest::collection::vec((0..12_u8, 0..4_u8), 0..60)) {
            let mut links = PeerTable::default();
            let mut model = BTreeMap::<PeerAddr, (Option<usize>, Option<u16>)>::new();
            for (number, step) in steps {
                let entry = model.entry(peer(number)).or_default();
                match step {
                    0 => entry.0 = Some(3),
                    1 => entry.0 = None,
                    2 => entry.1 = Some(0x4000 + u16::from(number)),
                    _ => entry.1 = None,
                }
                let (relay, channel) = *entry;
                links.change(peer(number), |link| {
                    link.set_relay(relay);
                    link.set_skips_port_check(true);
                    link.set_number(channel);
                });
                model.retain(|_, entry| *entry != (None, None));
                for number in 0..12 {
                    let found = links.of(peer(number)).map(|link| (link.relay(), link.number()));
                    prop_assert_eq!(found, model.get(&peer(number)).copied());
                    let bound = links.numbered(0x4000 + u16::from(number)).map(PeerEntry::peer);
                    let is_bound = model.get(&peer(number)).is_some_and(|(_, channel)| channel.is_some());
                    prop_assert_eq!(bound, is_bound.then_some(peer(number)));
                }
                prop_assert_eq!(links.iter().count(), model.len());
                prop_assert!(links.iter().all(|link| link.skips_port_check()));
            }
        }
    }
}
