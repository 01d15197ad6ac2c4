//! How many stream connections one client may hold at a time. Pure.

use crate::limits::Limit;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts the open connections of each address, of IPv6 each /64; an address without any is not kept.
#[derive(Debug)]
pub struct Connections {
    held: Mutex<HashMap<IpAddr, u32>>,
    limit: u32,
    unlimited_from: Vec<IpNet>,
}

/// One counted connection; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    connections: Arc<Connections>,
    /// `None` for an address without a limit.
    address: Option<IpAddr>,
}

impl Connections {
    /// Allows `limit` connections at a time to every address outside of `unlimited_from`.
    #[must_use]
    pub fn new(limit: u32, unlimited_from: &[IpNet]) -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), limit, unlimited_from: unlimited_from.to_vec() })
    }

    /// Takes a permit for a connection from `client`; `None` when it holds as many as it may.
    #[must_use]
    pub fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let client = client.to_canonical();
        if self.unlimited_from.iter().any(|prefix| prefix.contains(&client)) {
            return Some(Permit { connections: Arc::clone(self), address: None });
        }
        self.admit_forwarded(client)
    }

    /// Does the same for a client that a proxy names: whoever is without limits is so on a connection of his own alone.
    #[must_use]
    pub fn admit_forwarded(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let client = client.to_canonical();
        let address = counted(client);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count >= self.limit {
            Limit::ConnectionsPerAddress.reached(self.limit);
            return None;
        }
        *count += 1;
        Some(Permit { connections: Arc::clone(self), address: Some(address) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut held = self.connections.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&address);
            }
        }
    }
}

/// One subscriber of IPv6 has a /64 as a rule.
fn counted(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_its_own_count_and_gets_it_back() {
        let connections = Connections::new(2, &[]);
        let first = connections.admit(ip("192.0.2.1")).unwrap();
        let _second = connections.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert!(connections.admit(ip("192.0.2.1")).is_none());
        assert!(connections.admit(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(connections.admit(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn an_ipv6_address_is_its_64() {
        let connections = Connections::new(1, &[]);
        let _held = connections.admit(ip("2001:db8::1")).unwrap();
        assert!(connections.admit(ip("2001:db8::ffff:1")).is_none());
        assert!(connections.admit(ip("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn listed_prefixes_have_no_limit() {
        let connections = Connections::new(1, &["127.0.0.0/8".parse().unwrap()]);
        let held: Vec<_> = (0..10).map(|_| connections.admit(ip("127.0.0.1")).unwrap()).collect();
        drop(held);
        assert!(connections.held.lock().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_left() {
        let connections = Connections::new(3, &[]);
        let permits: Vec<_> =
            (0..900_u32).filter_map(|n| connections.admit(IpAddr::from((n % 300).to_be_bytes()))).collect();
        assert_eq!((permits.len(), connections.held.lock().unwrap().len()), (900, 300));
        drop(permits);
        assert!(connections.held.lock().unwrap().is_empty());
    }
}
