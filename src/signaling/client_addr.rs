//! Where clients are: the doors of the server, and the legs on which a client is reached.

use std::net::{IpAddr, SocketAddr};

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
