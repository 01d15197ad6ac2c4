//! The 5-tuple that identifies a client, and its packed form.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// Datagrams inside DTLS.
    Dtls,
    /// A TCP stream.
    Tcp,
    /// A TCP stream inside TLS.
    Tls,
    /// Binary messages of a WebSocket.
    WebSocket,
}

impl Transport {
    /// Returns whether one TCP connection is one client: what RFC 6062 needs.
    #[must_use]
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Returns whether frames follow each other on a stream, where they are padded to four bytes.
    #[must_use]
    pub fn is_stream(self) -> bool {
        !matches!(self, Self::Udp | Self::Dtls)
    }
}

/// Identifies a client: its address as the server sees it, the server's address, and the transport
/// ([RFC 8656 section 3.2](https://www.rfc-editor.org/rfc/rfc8656#section-3.2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// The client's transport address.
    pub client: SocketAddr,
    /// The address the client reached the server at.
    pub server: SocketAddr,
    /// The transport between both.
    pub transport: Transport,
}

/// A 5-tuple in 48 bytes, without IPv6 flow labels, which the kernel fills in only on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedTuple {
    client_ip: [u8; 16],
    client_scope: u32,
    client_port: u16,
    server_port: u16,
    server_scope: u32,
    server_ip: [u8; 16],
    transport: Transport,
}

/// The scope of IPv4 addresses: an IPv4-mapped address from an IPv6 socket is another address.
const V4: u32 = u32::MAX;

fn pack(address: SocketAddr) -> ([u8; 16], u32) {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped().octets(), V4),
        SocketAddr::V6(v6) => (v6.ip().octets(), v6.scope_id()),
    }
}

fn unpack(ip: [u8; 16], scope: u32, port: u16) -> SocketAddr {
    let [.., a, b, c, d] = ip;
    match scope {
        V4 => SocketAddr::new(IpAddr::from([a, b, c, d]), port),
        scope => SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into(),
    }
}

impl PackedTuple {
    pub(super) fn new(tuple: FiveTuple) -> Self {
        let ((client_ip, client_scope), (server_ip, server_scope)) = (pack(tuple.client), pack(tuple.server));
        Self {
            client_ip,
            client_scope,
            client_port: tuple.client.port(),
            server_port: tuple.server.port(),
            server_scope,
            server_ip,
            transport: tuple.transport,
        }
    }

    pub(super) fn tuple(&self) -> FiveTuple {
        FiveTuple {
            client: unpack(self.client_ip, self.client_scope, self.client_port),
            server: unpack(self.server_ip, self.server_scope, self.server_port),
            transport: self.transport,
        }
    }

    /// Returns the hash's input. The server's IP address is left out: there are only a few.
    pub(super) fn key(&self) -> ([u8; 16], u64) {
        let numbers = [self.client_port, self.server_port, self.transport as u16, self.client_scope as u16];
        (self.client_ip, numbers.into_iter().fold(0, |sum, number| (sum << 16) | u64::from(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mapped_address_is_not_the_ipv4_address() {
        let tuple = |client: &str| FiveTuple {
            client: client.parse().unwrap(),
            server: "198.41.0.4:3478".parse().unwrap(),
            transport: Transport::Udp,
        };
        let (v4, mapped) = (tuple("8.8.8.8:80"), tuple("[::ffff:8.8.8.8]:80"));
        assert_ne!(PackedTuple::new(v4), PackedTuple::new(mapped));
        assert_eq!((PackedTuple::new(v4).tuple(), PackedTuple::new(mapped).tuple()), (v4, mapped));
        assert_eq!(size_of::<PackedTuple>(), 48);
    }

    proptest! {
        #[test]
        fn packing_loses_nothing_but_flow_labels(client: SocketAddr, server: SocketAddr, scope in 0..u32::MAX) {
            let without_label = |address| match address {
                SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope).into(),
                v4 => v4,
            };
            let tuple = FiveTuple {
                client: without_label(client),
                server: without_label(server),
                transport: Transport::Tls,
            };
            prop_assert_eq!(PackedTuple::new(tuple).tuple(), tuple);
        }
    }
}
