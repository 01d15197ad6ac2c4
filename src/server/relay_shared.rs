//! What the relays of all workers share.

use super::{Config, Facts};
use crate::net::addresses::Addresses;
use crate::turn_server::allocation_quota::AllocationQuota;
use crate::turn_server::alternate_servers::AlternateServers;
use crate::turn_server::auth::Authenticator;
use crate::turn_server::machine::Shared;
use crate::turn_server::mobility::MobilityTickets;
use crate::turn_server::policy::{PeerPolicy, PolicyConfig};
use crate::turn_server::ports::RelayPorts;
use std::sync::Arc;

/// Makes what all workers' relays share.
pub(crate) fn shared(
    config: &Config,
    own: &Addresses,
    facts: &Facts,
    (authority, tickets): (Arc<Authenticator>, MobilityTickets),
) -> Shared {
    let turn = &config.turn;
    let ports = Arc::new(RelayPorts::new(&facts.relay, turn.relay_ports.clone()));
    let second = config.nat_discovery.iter().map(|home| &home.public);
    let policy = PolicyConfig {
        allow_peers: turn.allow_peers.clone(),
        deny_peers: turn.deny_peers.clone(),
        own_addresses: config.public.iter().chain(second).copied().filter(|ip| !ip.is_loopback()).collect(),
        interfaces: Arc::clone(own),
        own_ports: facts.ports(),
    };
    Shared {
        authority,
        alternates: Arc::new(AlternateServers::new(
            turn.alternate_server.clone(),
            turn.alternate_domain.clone(),
        )),
        policy: Arc::new(PeerPolicy::new(policy, Arc::clone(&ports))),
        ports,
        reservations: Arc::default(),
        quota: Arc::new(AllocationQuota::new(turn.allocations_per_user, turn.max_allocations)),
        addresses: facts.relay.as_slice().into(),
        connections: Arc::default(),
        tickets: Arc::new(tickets),
        worker: 0,
        limits: turn.limits,
        features: turn.features,
    }
}
