//! The relay ports: one table for all workers; leases are released on drop.

use super::port_owners::{PortOwner, PortOwners};
use rand::Rng;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which ports of which relay addresses are leased. Shared by the workers without a lock.
#[derive(Debug)]
pub struct RelayPorts {
    range: RangeInclusive<u16>,
    tables: Vec<PortTable>,
}

/// A local address that relay sockets are bound to, and the address that clients receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayAddress {
    /// The address on this host.
    pub local: IpAddr,
    /// The same address as peers see it; differs behind a 1:1 NAT.
    pub advertised: IpAddr,
}

impl From<IpAddr> for RelayAddress {
    fn from(ip: IpAddr) -> Self {
        Self { local: ip, advertised: ip }
    }
}

#[derive(Debug)]
struct PortTable {
    address: RelayAddress,
    /// A bit for each port there is.
    words: Box<[AtomicU64]>,
    owners: PortOwners,
}

/// Random ports that are tried before the range is searched from a random port on, which prefers the neighbours of leased ports
/// ([RFC 6056 section 3.3.2](https://www.rfc-editor.org/rfc/rfc6056#section-3.3.2)).
const GUESSES: usize = 8;
/// 64-bit words of a [`PortTable`].
const WORDS: usize = 1 << 10;

impl RelayPorts {
    /// Makes an empty table for `addresses` and the ports of `range`.
    #[must_use]
    pub fn new(addresses: &[RelayAddress], range: RangeInclusive<u16>) -> Self {
        let words = || (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let table = |address: &RelayAddress| PortTable {
            address: *address,
            words: words(),
            owners: PortOwners::new(&range),
        };
        let tables = addresses.iter().map(table).collect();
        Self { range, tables }
    }

    /// Returns whether `ip` is a local relay address.
    #[must_use]
    pub fn serves(&self, ip: IpAddr) -> bool {
        self.tables.iter().any(|table| table.address.local == ip)
    }

    /// Returns the local address of an advertised relayed address, and any other address unchanged.
    #[must_use]
    pub fn local(&self, address: SocketAddr) -> SocketAddr {
        let table = self.tables.iter().find(|table| table.address.advertised == address.ip());
        SocketAddr::new(table.map_or(address.ip(), |table| table.address.local), address.port())
    }

    /// Returns the advertised address of a local relayed address, and any other address unchanged.
    #[must_use]
    pub fn advertised(&self, address: SocketAddr) -> SocketAddr {
        let table = self.tables.iter().find(|table| table.address.local == address.ip());
        let advertised = table.filter(|_| self.is_leased(address)).map(|table| table.address.advertised);
        SocketAddr::new(advertised.unwrap_or(address.ip()), address.port())
    }

    /// Returns the owner of the local relayed address `address`, if it is open for datagrams.
    #[must_use]
    pub fn owner(&self, address: SocketAddr) -> Option<PortOwner> {
        let table = self.tables.iter().find(|table| table.address.local == address.ip())?;
        table.owners.get(address.port())
    }

    /// Returns whether the local relayed address `address` is open for connections.
    #[must_use]
    pub fn takes_connections(&self, address: SocketAddr) -> bool {
        let table = self.tables.iter().find(|table| table.address.local == address.ip());
        table.is_some_and(|table| table.owners.takes_connections(address.port()))
    }

    /// Returns the number of leased ports.
    #[must_use]
    pub fn leased(&self) -> u32 {
        let (first, last) = (usize::from(*self.range.start()), usize::from(*self.range.end()));
        let used = first / 64..=last.max(first) / 64;
        let words = self.tables.iter().flat_map(|table| &table.words[used.clone()]);
        words.map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }

    /// Returns the number of ports.
    #[must_use]
    pub fn count(&self) -> usize {
        self.range.len() * self.tables.len()
    }

    /// Returns whether `address` is a relayed address in use.
    #[must_use]
    pub fn is_leased(&self, address: SocketAddr) -> bool {
        let Some(table) = self.tables.iter().find(|table| table.address.local == address.ip()) else {
            return false;
        };
        let port = usize::from(address.port());
        table.words[port / 64].load(Ordering::Relaxed) & (1 << (port % 64)) != 0
    }

    /// Leases a port of `ip`, drawn at random so that it cannot be guessed (RFC 8656 section 7.2).
    /// Returns `None` when the address is not served or all its ports are taken.
    pub fn lease(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> Option<PortLease> {
        let table = self.table_of(ip)?;
        let guesses: [u16; GUESSES] = std::array::from_fn(|_| draw(&self.range, rng));
        let mut candidates = guesses.into_iter().chain(drawn(&self.range, rng));
        candidates.find_map(|port| self.take(table, port))
    }

    /// Leases an even port of `ip` for EVEN-PORT, drawn as by [`RelayPorts::lease`].
    pub fn lease_even(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> Option<PortLease> {
        self.leases_of_even(ip, rng).next()
    }

    /// Leases an even port of `ip` and the next higher one, for EVEN-PORT with a reservation.
    pub fn lease_pair(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> Option<(PortLease, PortLease)> {
        self.leases_of_even(ip, rng).find_map(|even| {
            let next = even.port.checked_add(1).filter(|next| self.range.contains(next))?;
            let odd = self.take(even.table, next)?;
            Some((even, odd))
        })
    }

    fn leases_of_even(self: &Arc<Self>, ip: IpAddr, rng: &mut impl Rng) -> impl Iterator<Item = PortLease> {
        let table = self.table_of(ip);
        let even = drawn(&self.range, rng).filter(|port| port % 2 == 0);
        even.filter_map(move |port| self.take(table?, port))
    }

    fn table_of(&self, ip: IpAddr) -> Option<usize> {
        self.tables.iter().position(|table| table.address.local == ip)
    }

    fn take(self: &Arc<Self>, table: usize, port: u16) -> Option<PortLease> {
        let bit = 1 << (port % 64);
        let word = &self.tables[table].words[usize::from(port) / 64];
        let free = word.fetch_or(bit, Ordering::Acquire) & bit == 0;
        free.then(|| PortLease { ports: Arc::clone(self), table, port })
    }
}

fn draw(range: &RangeInclusive<u16>, rng: &mut impl Rng) -> u16 {
    rng.random_range(*range.start()..=(*range.end()).max(*range.start()))
}

/// Lists the ports of `range`, from one that is drawn at random on and round.
fn drawn<R: Rng>(range: &RangeInclusive<u16>, rng: &mut R) -> impl Iterator<Item = u16> + use<R> {
    let (first, last) = (*range.start(), (*range.end()).max(*range.start()));
    let start = draw(range, rng);
    (start..=last).chain(first..start)
}

/// One leased port; dropping it returns the port.
#[derive(Debug)]
pub struct PortLease {
    ports: Arc<RelayPorts>,
    table: usize,
    port: u16,
}

impl PortLease {
    /// Returns the leased address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ports.tables[self.table].address.local, self.port)
    }

    /// Records the owner of a port that is open for datagrams, which [`RelayPorts::owner`] returns until the port is released.
    pub(super) fn set_owner(&self, owner: PortOwner) {
        self.ports.tables[self.table].owners.set(self.port, owner);
    }

    /// Notes that the port is open for connections, until it returns.
    pub(super) fn set_for_connections(&self) {
        self.ports.tables[self.table].owners.set_for_connections(self.port);
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        let table = &self.ports.tables[self.table];
        table.owners.clear(self.port);
        let word = &table.words[usize::from(self.port) / 64];
        // Behind what was just cleared, or it might clear the next one's entry.
        word.fetch_and(!(1 << (self.port % 64)), Ordering::Release);
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
