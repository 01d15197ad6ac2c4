//! The address of a client, and the route to it.

use super::nodes::NodeId;
use std::net::{IpAddr, SocketAddr};

/// One of the server's two UDP ports (S0-25).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerPort {
    /// Port 1, which is public and receives requests.
    Main,
    /// Port 2, which sends the server's own requests (S0-27).
    Aux,
}

/// Identifies a WebSocket connection. Numbers are unique among all nodes and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// The address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ClientAddr {
    Udp(SocketAddr),
    WebSocket(ConnId),
}

/// The route to a client: its address, its node and, for UDP, the server's local address that the client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientRoute {
    pub(super) addr: ClientAddr,
    pub(super) node: NodeId,
    pub(super) local_ip: Option<IpAddr>,
}

impl ClientRoute {
    pub(super) fn udp(node: NodeId, addr: SocketAddr, local_ip: Option<IpAddr>) -> Self {
        Self { addr: ClientAddr::Udp(addr), node, local_ip }
    }

    pub(super) fn websocket(node: NodeId, conn: ConnId) -> Self {
        Self { addr: ClientAddr::WebSocket(conn), node, local_ip: None }
    }

    pub(super) fn udp_addr(&self) -> Option<SocketAddr> {
        match self.addr {
            ClientAddr::Udp(addr) => Some(addr),
            ClientAddr::WebSocket(_) => None,
        }
    }

    /// Maximum length of a message on this route.
    pub(super) fn max_len(&self) -> usize {
        match self.addr {
            ClientAddr::Udp(_) => super::wire::MAX_DATAGRAM,
            ClientAddr::WebSocket(_) => super::wire::MAX_TEXT,
        }
    }
}
