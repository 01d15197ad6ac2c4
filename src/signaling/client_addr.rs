//! Where clients are: the doors of the server, and the legs on which a client is reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// One of the server's two UDP ports (S0-25).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerPort {
    /// Port 1, public: requests come here.
    Main,
    /// Port 2, from which the server speaks first (S0-27).
    Aux,
}

/// One WebSocket connection, numbered by the hands and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ClientAddr {
    Udp(SocketAddr),
    WebSocket(ConnId),
}

/// A way to reach a client: who, and for UDP from which local address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientRoute {
    pub(super) addr: ClientAddr,
    pub(super) local_ip: Option<IpAddr>,
}

impl ClientRoute {
    pub(super) fn udp(addr: SocketAddr, local_ip: Option<IpAddr>) -> Self {
        Self { addr: ClientAddr::Udp(addr), local_ip }
    }

    pub(super) fn websocket(conn: ConnId) -> Self {
        Self { addr: ClientAddr::WebSocket(conn), local_ip: None }
    }

    pub(super) fn udp_addr(&self) -> Option<SocketAddr> {
        match self.addr {
            ClientAddr::Udp(addr) => Some(addr),
            ClientAddr::WebSocket(_) => None,
        }
    }

    /// The longest message this route carries.
    pub(super) fn max_len(&self) -> usize {
        match self.addr {
            ClientAddr::Udp(_) => super::wire::MAX_DATAGRAM,
            ClientAddr::WebSocket(_) => super::wire::MAX_TEXT,
        }
    }
}

/// What one subscriber usually has: an IPv4 address, or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Network([u8; 16]);

impl Network {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 64 << 64).to_be_bytes()),
        }
    }

    /// What one site usually has, and its line: an IPv4 /24, or an IPv6 /48.
    pub(super) fn site(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::of(Ipv4Addr::from_bits(v4.to_bits() >> 8 << 8).into()),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 80 << 80).to_be_bytes()),
        }
    }

    /// Returns a number that spreads neighbouring networks evenly.
    pub(super) fn mixed(self) -> u64 {
        // Fibonacci hashing (Knuth, volume 3, section 6.4) of both halves.
        let number = u128::from_be_bytes(self.0);
        let folded = (number >> 64) as u64 ^ number as u64;
        folded.wrapping_mul(0x9e37_79b9_7f4a_7c15).swap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscribers_many_ipv6_addresses_are_one_network() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
