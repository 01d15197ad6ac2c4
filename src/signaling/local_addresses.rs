//! The local addresses that a client reports (S1-2), compared with its server-reflexive address.

use std::net::SocketAddr;

/// The local addresses of a client. Most clients report none, so that the box costs one pointer.
#[expect(clippy::box_collection, reason = "one pointer instead of three words for each client")]
#[derive(Debug, Clone, Default)]
pub(super) struct LocalAddresses(Option<Box<Vec<SocketAddr>>>);

impl LocalAddresses {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self((!addresses.is_empty()).then(|| Box::new(addresses)))
    }

    /// Returns whether the client is behind a NAT: its server-reflexive IP is not among its local ones (S1-3). Returns `None` if it has
    /// reported none. Ports are not compared, because a client registers from one socket and punches from another (S0-28).
    pub(super) fn is_behind_nat(&self, reflexive: SocketAddr) -> Option<bool> {
        let reflexive = reflexive.ip().to_canonical();
        self.0.as_ref().map(|local| local.iter().all(|local| local.ip().to_canonical() != reflexive))
    }

    /// Returns the addresses as text, for peers.
    pub(super) fn texts(&self) -> Vec<String> {
        self.0.iter().flat_map(|local| local.iter()).map(SocketAddr::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_whose_reflexive_address_is_not_local_is_behind_a_nat() {
        let local = LocalAddresses::new(["10.0.0.2:5000", "[2001:db8::2]:5000"].map(address).to_vec());
        for (seen, behind) in [
            ("10.0.0.2:5000", false),
            ("[::ffff:10.0.0.2]:5000", false),
            ("[2001:db8::2]:5000", false),
            ("10.0.0.2:5001", false),
            ("10.0.0.3:5000", true),
            ("203.0.113.2:5000", true),
        ] {
            assert_eq!(local.is_behind_nat(address(seen)), Some(behind), "{seen}");
        }
        assert_eq!(LocalAddresses::default().is_behind_nat(address("10.0.0.2:5000")), None);
    }

    #[test]
    fn a_client_without_local_addresses_costs_one_pointer() {
        assert_eq!(size_of::<LocalAddresses>(), size_of::<usize>());
        assert!(LocalAddresses::new(Vec::new()).0.is_none());
    }
}
