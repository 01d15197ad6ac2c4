//! What strangers may cost: how often they are answered, and how many connections they hold.

use crate::net::connections::Connections;
use crate::net::gate::GateConfig;
use std::sync::Arc;

/// The limits on those who have not shown credentials.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Answers over UDP before integrity is verified; its `unlimited_from` holds for connections too.
    pub unauthenticated: GateConfig,
    /// Simultaneous TCP connections of one address (IPv6: of one /64); default 256.
    pub connections_per_address: u32,
}

impl LimitsConfig {
    /// Makes the count of connections that keeps to these limits.
    pub(super) fn connections(&self) -> Arc<Connections> {
        Connections::new(self.connections_per_address, &self.unauthenticated.unlimited_from)
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { unauthenticated: GateConfig::default(), connections_per_address: 256 }
    }
}
