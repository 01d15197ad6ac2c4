//! Stand-in until the hub's hands land: hears datagrams and drops them, serves no routes.

use super::{Config, Door};
use crate::net::udp::UdpPort;
use std::net::{IpAddr, SocketAddr};

/// Sockets to send from.
#[derive(Debug)]
pub struct Sockets {
    /// Port 1.
    pub main: Vec<UdpPort>,
    /// Port 2.
    pub aux: Vec<UdpPort>,
}

/// The running hub.
#[derive(Debug)]
pub struct Service;

/// A way to reach the hub.
#[derive(Debug, Clone)]
pub struct Handle;

/// Starts the hub.
#[must_use]
pub fn start(_config: Config, _sockets: Sockets, _seed: [u8; 32]) -> Service {
    Service
}

impl Service {
    /// Returns a handle.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle
    }

    /// Ends the hub.
    pub async fn shutdown(self) {}
}

impl Handle {
    /// Takes a datagram.
    #[must_use]
    pub fn datagram(
        &self,
        _door: Door,
        _from: SocketAddr,
        _local_ip: Option<IpAddr>,
        _payload: &[u8],
    ) -> bool {
        true
    }

    /// Returns the routes.
    #[must_use]
    pub fn router(&self) -> axum::Router {
        axum::Router::new()
    }
}
