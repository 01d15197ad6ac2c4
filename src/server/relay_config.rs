//! The relay's configuration, from the server's.

use super::{Config, ServerInfo};
use crate::net::addresses::Addresses;
use crate::turn_server::{AlternateServers, Authenticator, PolicyConfig, RelayConfig};
use std::sync::Arc;

/// Makes the configuration of all workers' relays.
pub(crate) fn relay_config(
    config: &Config,
    own: &Addresses,
    info: &ServerInfo,
    authenticator: &Arc<Authenticator>,
    mobility_key: [u8; 32],
) -> RelayConfig {
    let turn = &config.turn;
    let second = config.nat_discovery.iter().map(|address| &address.public);
    let policy = PolicyConfig {
        allow_peers: turn.allow_peers.clone(),
        deny_peers: turn.deny_peers.clone(),
        own_addresses: config.public.iter().chain(second).copied().filter(|ip| !ip.is_loopback()).collect(),
        interfaces: Arc::clone(own),
        own_ports: info.ports(),
    };
    RelayConfig {
        authenticator: Arc::clone(authenticator),
        addresses: info.relay.clone(),
        ports: turn.relay_ports.clone(),
        policy,
        allocations_per_user: turn.allocations_per_user,
        max_allocations: turn.max_allocations,
        limits: turn.limits,
        features: turn.features,
        alternates: Arc::new(AlternateServers::new(
            turn.alternate_server.clone(),
            turn.alternate_domain.clone(),
        )),
        mobility_key: Some(mobility_key),
        permission_handler: None,
        quota_handler: None,
        event_handler: None,
    }
}
