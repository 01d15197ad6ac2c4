//! The local addresses that a client reports (S1-2), compared with its server-reflexive address.

use std::net::SocketAddr;

/// The local addresses of a client. Most clients report none, which costs one pointer.
#[derive(Debug, Clone, Default)]
pub(super) struct LocalAddresses(Option<Box<Told>>);

#[derive(Debug, Clone)]
struct Told(Vec<SocketAddr>);

impl LocalAddresses {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self((!addresses.is_empty()).then(|| Box::new(Told(addresses))))
    }

    fn addresses(&self) -> &[SocketAddr] {
        self.0.as_ref().map_or(&[], |told| &told.0)
    }

    /// Returns whether a NAT stands between, judging by the IP that was seen (S1-3); `None` where the client has told none. Ports say
    /// nothing: it registers from one socket and punches from another (S0-28).
    pub(super) fn is_behind_nat(&self, seen: SocketAddr) -> Option<bool> {
        let seen = seen.ip().to_canonical();
        self.0.as_ref().map(|told| told.0.iter().all(|inner| inner.ip().to_canonical() != seen))
    }

    /// Returns them as text, for peers.
    pub(super) fn texts(&self) -> Vec<String> {
        self.addresses().iter().map(SocketAddr::to_string).collect()
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
        let inner = LocalAddresses::new(["10.0.0.2:5000", "[2001:db8::2]:5000"].map(address).to_vec());
        for (seen, behind) in [
            ("10.0.0.2:5000", false),
            ("[::ffff:10.0.0.2]:5000", false),
            ("[2001:db8::2]:5000", false),
            ("10.0.0.2:5001", false),
            ("10.0.0.3:5000", true),
            ("203.0.113.2:5000", true),
        ] {
            assert_eq!(inner.is_behind_nat(address(seen)), Some(behind), "{seen}");
        }
        assert_eq!(LocalAddresses::default().is_behind_nat(address("10.0.0.2:5000")), None);
    }

    #[test]
    fn a_client_without_local_addresses_costs_one_pointer() {
        assert_eq!(size_of::<LocalAddresses>(), size_of::<usize>());
        assert!(LocalAddresses::new(Vec::new()).0.is_none());
    }
}
