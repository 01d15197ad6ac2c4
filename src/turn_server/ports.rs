//! The relay ports: one table for all workers, leases that return on drop.

use rand::Rng;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which ports of which relay addresses are leased. Shared by the workers without a lock.
#[derive(Debug)]
pub struct RelayPorts {
    first: u16,
    count: u32,
    tables: Vec<Table>,
}

/// A local address that relay sockets are bound to, and what clients are told it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayAddress {
    /// The address on this host.
    pub local: IpAddr,
    /// The same address as peers see it; differs behind a 1:1 NAT.
    pub advertised: IpAddr,
}

#[derive(Debug)]
struct Table {
    address: RelayAddress,
    words: Box<[AtomicU64]>,
}

impl RelayPorts {
    /// Makes an empty table for `addresses` and the ports of `range`.
    #[must_use]
    pub fn new(addresses: &[RelayAddress], range: RangeInclusive<u16>) -> Self {
        let count = u32::from(range.end().saturating_sub(*range.start())) + 1;
        let words = |_| (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let tables =
            addresses.iter().map(|address| Table { address: *address, words: words(address) }).collect();
        Self { first: *range.start(), count, tables }
    }

    /// Returns whether relayed addresses are given out at the local address `ip`.
    #[must_use]
    pub fn serves(&self, ip: IpAddr) -> bool {
        self.tables.iter().any(|table| table.address.local == ip)
    }

    /// Returns the local name of an advertised relayed address, and any other address unchanged.
    #[must_use]
    pub fn local(&self, address: SocketAddr) -> SocketAddr {
        let table = self.tables.iter().find(|table| table.address.advertised == address.ip());
        SocketAddr::new(table.map_or(address.ip(), |table| table.address.local), address.port())
    }

    /// Returns what clients are told instead of a local relayed address, and any other address unchanged.
    #[must_use]
    pub fn advertised(&self, address: SocketAddr) -> SocketAddr {
        let table = self.tables.iter().find(|table| table.address.local == address.ip());
        let advertised = table.filter(|_| self.is_leased(address)).map(|table| table.address.advertised);
        SocketAddr::new(advertised.unwrap_or(address.ip()), address.port())
    }

    /// Returns how many ports are leased in all.
    #[must_use]
    pub fn leased(&self) -> u32 {
        let words = self.tables.iter().flat_map(|table| &table.words);
        words.map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }

    /// Returns whether `address` is a relayed address in use.
    #[must_use]
    pub fn is_leased(&self, address: SocketAddr) -> bool {
        let Some(table) = self.tables.iter().find(|table| table.address.local == address.ip()) else {
            return false;
        };
        let Some(index) = address.port().checked_sub(self.first) else { return false };
        let (word, bit) = (usize::from(index / 64), index % 64);
        u32::from(index) < self.count && table.words[word].load(Ordering::Relaxed) & (1 << bit) != 0
    }

    /// Leases a port of `ip`, drawn at random so that it cannot be guessed (RFC 8656 section 7.2).
    /// Returns `None` when the address is not served or all its ports are taken.
    pub fn lease(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> Option<PortLease> {
        let table = self.tables.iter().position(|table| table.address.local == ip)?;
        let start = rng.random_range(0..self.count);
        (0..self.count).find_map(|step| self.take(table, (start + step) % self.count))
    }

    /// Leases an even port of `ip` for EVEN-PORT, drawn as by [`RelayPorts::lease`].
    pub fn lease_even(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> Option<PortLease> {
        self.leases_of_even(ip, rng).next()
    }

    /// Leases an even port of `ip` and the next higher one, for EVEN-PORT with a reservation.
    pub fn lease_pair(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> Option<(PortLease, PortLease)> {
        self.leases_of_even(ip, rng).find_map(|even| {
            let odd = (even.index + 1 < self.count).then(|| self.take(even.table, even.index + 1))??;
            Some((even, odd))
        })
    }

    fn leases_of_even(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> impl Iterator<Item = PortLease> {
        let table = self.tables.iter().position(|table| table.address.local == ip);
        let start = rng.random_range(0..self.count);
        let even = |index: &u32| (u32::from(self.first) + index).is_multiple_of(2);
        let candidates = (0..self.count).map(move |step| (start + step) % self.count).filter(even);
        candidates.filter_map(move |index| self.take(table?, index))
    }

    fn take(self: &Arc<Self>, table: usize, index: u32) -> Option<PortLease> {
        let bit = 1 << (index % 64);
        let word = &self.tables[table].words[(index / 64) as usize];
        let free = word.fetch_or(bit, Ordering::Relaxed) & bit == 0;
        free.then(|| PortLease { ports: Arc::clone(self), table, index })
    }
}

/// One leased port; dropping it returns the port.
#[derive(Debug)]
pub struct PortLease {
    ports: Arc<RelayPorts>,
    table: usize,
    index: u32,
}

impl PortLease {
    /// Returns the leased address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let port = u32::from(self.ports.first) + self.index;
        SocketAddr::new(self.ports.tables[self.table].address.local, u16::try_from(port).unwrap_or(u16::MAX))
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        let word = &self.ports.tables[self.table].words[(self.index / 64) as usize];
        word.fetch_and(!(1 << (self.index % 64)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    #[test]
    fn pairs_begin_even_and_leave_no_port_behind() {
        let ip: IpAddr = "198.41.0.4".parse().unwrap();
        let ports = Arc::new(RelayPorts::new(&[RelayAddress { local: ip, advertised: ip }], 50_001..=50_006));
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let pairs: Vec<_> = std::iter::from_fn(|| ports.lease_pair(ip, &mut rng)).collect();
        assert_eq!(pairs.len(), 2, "50002 and 50003, 50004 and 50005; 50006 has no next");
        assert!(
            pairs.iter().all(|(even, odd)| even.address().port() % 2 == 0
                && odd.address().port() == even.address().port() + 1)
        );
        assert_eq!(ports.lease_even(ip, &mut rng).unwrap().address().port(), 50_006);
        drop(pairs);
        assert_eq!(std::iter::from_fn(|| ports.lease(ip, &mut rng).map(std::mem::forget)).count(), 6);
    }

    #[test]
    fn every_port_is_leased_once_and_comes_back() {
        let ip: IpAddr = "198.41.0.4".parse().unwrap();
        let ports = Arc::new(RelayPorts::new(&[RelayAddress { local: ip, advertised: ip }], 65_500..=65_535));
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let leases: Vec<_> = std::iter::from_fn(|| ports.lease(ip, &mut rng)).collect();
        let mut numbers: Vec<_> = leases.iter().map(|lease| lease.address().port()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (65_500..=65_535).collect::<Vec<_>>());
        assert!(ports.is_leased(leases[0].address()));
        let freed = leases[0].address();
        drop(leases);
        assert!(!ports.is_leased(freed));
        assert!(!ports.is_leased(SocketAddr::new(ip, 80)));
        assert!(ports.lease(ip, &mut rng).is_some());
        assert!(ports.lease("198.41.0.5".parse().unwrap(), &mut rng).is_none());
    }
}
