//! The server that is put under load, and whether that needs saying twice.

use crate::net::interfaces::{AddressScope, scope};
use std::net::SocketAddr;

/// How clients reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadTransport {
    /// By datagrams, a socket each.
    Udp,
    /// By a connection each.
    Tcp,
}

impl LoadTransport {
    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A server that may be put under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    address: SocketAddr,
    transport: LoadTransport,
}

/// The server is others' too, and nobody has said that it may be flooded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is neither on this host nor in a private network, and a load can put a server out of service")]
pub struct TransportMismatch(pub SocketAddr);

impl Target {
    /// Takes a server on loopback, of a link or of a private network; any other one only if that was `agreed`.
    ///
    /// # Errors
    /// [`TransportMismatch`] otherwise.
    pub fn new(
        address: SocketAddr,
        transport: LoadTransport,
        agreed: bool,
    ) -> Result<Self, TransportMismatch> {
        let near = scope(address.ip().to_canonical()) != AddressScope::Global;
        if near || agreed { Ok(Self { address, transport }) } else { Err(TransportMismatch(address)) }
    }

    /// Returns its address.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        self.address
    }

    /// Returns how it is reached.
    #[must_use]
    pub fn transport(self) -> LoadTransport {
        self.transport
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_private_networks_need_no_agreement() {
        for (near, address) in [
            (true, "127.0.0.1:3478"),
            (true, "[::1]:3478"),
            (true, "10.1.2.3:3478"),
            (true, "172.31.0.1:3478"),
            (true, "192.168.1.1:3478"),
            (true, "100.64.0.1:3478"),
            (true, "169.254.1.1:3478"),
            (true, "[fd00::1]:3478"),
            (true, "[::ffff:10.0.0.1]:3478"),
            (false, "8.8.8.8:3478"),
            (false, "172.32.0.1:3478"),
            (false, "[2001:4860::1]:3478"),
            (false, "[::ffff:8.8.8.8]:3478"),
            (false, "224.0.0.1:3478"),
            (false, "255.255.255.255:3478"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(Target::new(address, LoadTransport::Udp, false).is_ok(), near, "{address}");
            assert!(Target::new(address, LoadTransport::Udp, true).is_ok());
        }
    }
}
