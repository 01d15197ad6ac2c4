//! The server that is put under load. One on a public address needs the user's consent.

use crate::net::interfaces::{AddressScope, scope};
use std::net::SocketAddr;

/// The transport between clients and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadTransport {
    /// UDP.
    Udp,
    /// TCP.
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

/// The server has a public address, and the user has not agreed to put it under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is neither on this host nor in a private network, and a load can put a server out of service")]
pub struct PublicTarget(pub SocketAddr);

impl Target {
    /// Accepts a server on loopback, on a link or in a private network; any other one only if `agreed`.
    ///
    /// # Errors
    /// [`PublicTarget`] otherwise.
    pub fn new(address: SocketAddr, transport: LoadTransport, agreed: bool) -> Result<Self, PublicTarget> {
        let near = scope(address.ip().to_canonical()) != AddressScope::Global;
        if near || agreed { Ok(Self { address, transport }) } else { Err(PublicTarget(address)) }
    }

    /// Returns its address.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        self.address
    }

    /// Returns the transport.
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
