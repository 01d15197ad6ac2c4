//! The peers that an allocation sends to or has bound a channel to, and what a packet to or from each needs.
//!
//! Most allocations carry their data over one of them: the first, or the last that got a channel. That one is stored in the allocation
//! itself; the others are in sorted lists on the heap.

use super::policy::PeerAddr;
use super::relay_port::RelayId;
use crate::clock::Ticks;

/// No relay port.
const NO_RELAY: u32 = u32::MAX;
/// The highest bit of a channel number is zero: it holds this flag.
const SKIPS_PORT_CHECK: u16 = 0x8000;

/// One peer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PeerEntry {
    peer: PeerAddr,
    /// The channel's number, 0 without one, and [`SKIPS_PORT_CHECK`].
    bits: u16,
    relay: u32,
    /// When the channel expires.
    pub(super) bound_until: Ticks,
    /// When the permission for the peer's address expires.
    pub(super) permitted_until: Ticks,
}

impl PeerEntry {
    fn new(peer: PeerAddr) -> Self {
        Self { peer, relay: NO_RELAY, ..Self::default() }
    }

    pub(super) fn peer(&self) -> PeerAddr {
        self.peer
    }

    /// Returns whether the policy does not depend on the peer's port.
    pub(super) fn skips_port_check(&self) -> bool {
        self.bits & SKIPS_PORT_CHECK != 0
    }

    pub(super) fn set_skips_port_check(&mut self, any: bool) {
        self.bits = (self.bits & !SKIPS_PORT_CHECK) | if any { SKIPS_PORT_CHECK } else { 0 };
    }

    /// Returns the relay port that sends to the peer, if the client has sent there or bound a channel.
    pub(super) fn relay(&self) -> Option<RelayId> {
        (self.relay != NO_RELAY).then_some(self.relay as usize)
    }

    pub(super) fn set_relay(&mut self, relay: Option<RelayId>) {
        self.relay = relay.map_or(NO_RELAY, |relay| relay as u32);
    }

    /// Returns the channel number, also for some time after the channel has expired.
    pub(super) fn channel(&self) -> Option<u16> {
        Some(self.bits & !SKIPS_PORT_CHECK).filter(|number| *number != 0)
    }

    pub(super) fn set_channel(&mut self, number: Option<u16>) {
        self.bits = (self.bits & SKIPS_PORT_CHECK) | number.unwrap_or(0);
    }

    fn is_used(&self) -> bool {
        self.channel().is_some() || self.relay().is_some()
    }
}

/// All peers of one allocation.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    /// Present if its port is not 0: no peer has port 0.
    first: PeerEntry,
    overflow: Option<Box<Overflow>>,
}

#[derive(Debug, Default)]
struct Overflow {
    /// By peer.
    entries: Vec<PeerEntry>,
    /// The channels, by number.
    channels: Vec<(u16, PeerAddr)>,
}

impl Overflow {
    fn get(&self, peer: PeerAddr) -> Option<&PeerEntry> {
        let at = self.entries.binary_search_by_key(&peer, PeerEntry::peer).ok()?;
        self.entries.get(at)
    }

    fn insert(&mut self, entry: PeerEntry) {
        if let Err(at) = self.entries.binary_search_by_key(&entry.peer, PeerEntry::peer) {
            self.entries.insert(at, entry);
        }
        if let Some(number) = entry.channel()
            && let Err(at) = self.channels.binary_search_by_key(&number, |(number, _)| *number)
        {
            self.channels.insert(at, (number, entry.peer));
        }
    }

    fn remove(&mut self, peer: PeerAddr) -> Option<PeerEntry> {
        let at = self.entries.binary_search_by_key(&peer, PeerEntry::peer).ok()?;
        let entry = self.entries.remove(at);
        self.channels.retain(|(_, other)| *other != peer);
        Some(entry)
    }
}

impl PeerTable {
    fn first(&self) -> Option<&PeerEntry> {
        (self.first.peer.port() != 0).then_some(&self.first)
    }

    /// Reads from the entry that most packets need.
    pub(super) fn prefetch(&self) -> u64 {
        self.first.permitted_until.as_nanos()
    }

    /// Returns the entry of `peer`.
    pub(super) fn get(&self, peer: PeerAddr) -> Option<&PeerEntry> {
        if self.first.peer == peer {
            return self.first();
        }
        self.overflow.as_ref()?.get(peer)
    }

    /// Returns the entry that channel `number` is bound to.
    pub(super) fn by_channel(&self, number: u16) -> Option<&PeerEntry> {
        if self.first.channel() == Some(number) {
            return self.first();
        }
        let overflow = self.overflow.as_ref()?;
        let at = overflow.channels.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        overflow.get(overflow.channels.get(at)?.1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PeerEntry> {
        self.first().into_iter().chain(self.overflow.iter().flat_map(|overflow| &overflow.entries))
    }

    /// Updates the entry of `peer`, a new one if there is none; an entry that is no longer used is removed.
    pub(super) fn update(&mut self, peer: PeerAddr, update: impl FnOnce(&mut PeerEntry)) {
        let mut entry = self.take(peer).unwrap_or_else(|| PeerEntry::new(peer));
        update(&mut entry);
        if entry.is_used() {
            self.insert(entry);
        }
    }

    /// Sets the expiry of the permission for the address of `peer`.
    pub(super) fn set_permission(&mut self, peer: PeerAddr, until: Ticks) {
        let overflow = self.overflow.iter_mut().flat_map(|overflow| &mut overflow.entries);
        let has_address = |entry: &&mut PeerEntry| entry.peer.without_port() == peer.without_port();
        for entry in std::iter::once(&mut self.first).chain(overflow).filter(has_address) {
            entry.permitted_until = until;
        }
    }

    /// Updates for which peers the policy depends on the port.
    pub(super) fn set_port_checks(&mut self, checks: impl Fn(PeerAddr) -> bool) {
        let overflow = self.overflow.iter_mut().flat_map(|overflow| &mut overflow.entries);
        for entry in std::iter::once(&mut self.first).chain(overflow) {
            entry.set_skips_port_check(!checks(entry.peer));
        }
    }

    fn take(&mut self, peer: PeerAddr) -> Option<PeerEntry> {
        if self.first.peer == peer {
            return Some(std::mem::take(&mut self.first));
        }
        let overflow = self.overflow.as_mut()?;
        let entry = overflow.remove(peer);
        if overflow.entries.is_empty() {
            self.overflow = None;
        }
        entry
    }

    fn insert(&mut self, entry: PeerEntry) {
        let comes_first =
            self.first().is_none_or(|first| entry.channel().is_some() && first.channel().is_none());
        let apart = if comes_first { std::mem::replace(&mut self.first, entry) } else { entry };
        if apart.peer.port() != 0 {
            self.overflow.get_or_insert_default().insert(apart);
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
    fn a_peer_with_a_channel_comes_first() {
        let mut table = PeerTable::default();
        table.update(peer(1), |entry| entry.set_relay(Some(0)));
        table.update(peer(2), |entry| entry.set_relay(Some(0)));
        assert_eq!(table.first.peer, peer(1));
        table.update(peer(2), |entry| entry.set_channel(Some(0x4000)));
        assert_eq!(table.first.peer, peer(2));
        assert_eq!(size_of::<PeerTable>(), 48);
    }

    proptest! {
        #[test]
        fn entries_are_found_by_peer_and_by_channel(steps in proptest::collection::vec((0..12_u8, 0..4_u8), 0..60)) {
            let mut table = PeerTable::default();
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
                table.update(peer(number), |entry| {
                    entry.set_relay(relay);
                    entry.set_skips_port_check(true);
                    entry.set_channel(channel);
                });
                model.retain(|_, entry| *entry != (None, None));
                for number in 0..12 {
                    let found = table.get(peer(number)).map(|entry| (entry.relay(), entry.channel()));
                    prop_assert_eq!(found, model.get(&peer(number)).copied());
                    let bound = table.by_channel(0x4000 + u16::from(number)).map(PeerEntry::peer);
                    let is_bound = model.get(&peer(number)).is_some_and(|(_, channel)| channel.is_some());
                    prop_assert_eq!(bound, is_bound.then_some(peer(number)));
                }
                prop_assert_eq!(table.iter().count(), model.len());
                prop_assert!(table.iter().all(|entry| entry.skips_port_check()));
            }
        }
    }
}
