//! Limits on unauthenticated clients: responses and connections.

use crate::net::unauthenticated::UnauthenticatedLimits;

/// The limits on clients that have not authenticated.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Responses over UDP before integrity is verified; `unlimited_from` holds for connections too.
    pub unauthenticated: UnauthenticatedLimits,
    /// Simultaneous TCP connections of one address (IPv6: of one /64; a /56 twice, a /48 four times as many); default 256.
    pub connections_per_address: u32,
    /// Memory of all unauthenticated TCP connections together, in bytes; default 128 MiB.
    pub unauthenticated_memory: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            unauthenticated: UnauthenticatedLimits::default(),
            connections_per_address: 256,
            unauthenticated_memory: 128 << 20,
        }
    }
}
