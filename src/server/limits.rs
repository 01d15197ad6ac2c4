//! What strangers may cost: how often they are answered, and how many connections they hold.

use crate::net::unauthenticated::UnauthenticatedLimits;

/// The limits on those who have not shown credentials.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Answers over UDP before integrity is verified; its `unlimited_from` holds for connections too.
    pub unauthenticated: UnauthenticatedLimits,
    /// Simultaneous TCP connections of one address (IPv6: of one /64; a /56 twice, a /48 four times as many); default 256.
    pub connections_per_address: u32,
    /// Bytes that all TCP connections together hold whose clients have shown no credentials; default 128 MiB.
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
