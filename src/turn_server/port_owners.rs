//! Which relay has a relay port open: read for each packet, without a lock.

use super::relay_port::RelayId;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// The relay port of one worker's relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortOwner {
    /// The worker.
    pub worker: u16,
    /// The relay port, as that worker's relay names it.
    pub relay: RelayId,
}

/// Marks a port that is open for TCP connections.
const CONNECTIONS: u64 = 1;

/// The ports of one relay address.
#[derive(Debug)]
pub(super) struct PortOwners {
    /// The first port of the range.
    first: u16,
    /// For each port of the range the worker's number plus one above the relay port's 32 bits, or [`CONNECTIONS`]; 0 while it is closed.
    owners: Box<[AtomicU64]>,
}

impl PortOwners {
    /// Creates a table of the ports of `range` and at least its first one, all closed.
    pub(super) fn new(range: &RangeInclusive<u16>) -> Self {
        let (first, last) = (*range.start(), *range.end());
        Self { first, owners: (first..=last.max(first)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn entry(&self, port: u16) -> Option<&AtomicU64> {
        self.owners.get(usize::from(port.checked_sub(self.first)?))
    }

    fn store(&self, port: u16, value: u64) {
        if let Some(entry) = self.entry(port) {
            entry.store(value, Ordering::Release);
        }
    }

    /// Stores that `owner` has opened `port` for datagrams.
    pub(super) fn set(&self, port: u16, owner: PortOwner) {
        let packed = ((u64::from(owner.worker) + 1) << 32) | owner.relay as u64;
        self.store(port, packed);
    }

    /// Stores that `port` is open for connections.
    pub(super) fn set_for_connections(&self, port: u16) {
        self.store(port, CONNECTIONS);
    }

    /// Returns whether `port` is open for connections.
    pub(super) fn takes_connections(&self, port: u16) -> bool {
        self.entry(port).is_some_and(|entry| entry.load(Ordering::Acquire) == CONNECTIONS)
    }

    /// Stores that `port` is closed.
    pub(super) fn clear(&self, port: u16) {
        self.store(port, 0);
    }

    /// Returns the owner of `port`, if it is open for datagrams.
    pub(super) fn get(&self, port: u16) -> Option<PortOwner> {
        let packed = self.entry(port)?.load(Ordering::Acquire);
        let worker = (packed >> 32).checked_sub(1)?;
        Some(PortOwner { worker: worker as u16, relay: packed as u32 as RelayId })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_an_owner_while_it_is_open() {
        let owners = PortOwners::new(&(0..=65_535));
        assert_eq!(owners.get(65_535), None);
        let (first, last) =
            (PortOwner { worker: 0, relay: 0 }, PortOwner { worker: u16::MAX, relay: u32::MAX as usize });
        owners.set(65_535, first);
        owners.set(0, last);
        assert_eq!((owners.get(65_535), owners.get(0), owners.get(1)), (Some(first), Some(last), None));
        owners.clear(0);
        assert_eq!(owners.get(0), None);
    }

    #[test]
    fn a_port_outside_of_the_range_has_no_owner() {
        let owners = PortOwners::new(&(50_000..=50_003));
        assert_eq!(owners.owners.len(), 4);
        for port in [0, 49_999, 50_004, 65_535] {
            owners.set(port, PortOwner { worker: 0, relay: 0 });
            assert!(owners.get(port).is_none() && !owners.takes_connections(port), "{port}");
        }
        owners.set_for_connections(50_003);
        assert!(owners.takes_connections(50_003) && !owners.takes_connections(50_000));
    }
}
