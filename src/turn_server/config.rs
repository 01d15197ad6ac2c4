//! How a relay is configured, and what the relays of several workers share.

use super::allocation_quota::AllocationQuota;
use super::alternate_servers::AlternateServers;
use super::auth::Authenticator;
use super::handlers::{EventHandler, PermissionHandler, QuotaHandler};
use super::mobility::MobilityTickets;
use super::pending_connections::PendingConnections;
use super::policy::{PeerPolicy, PolicyConfig};
use super::ports::{RelayAddress, RelayPorts};
use super::reservation::Reservations;
use crate::limits::Rate;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// Configures a [`Relay`](super::Relay). [`RelayConfig::new`] sets the defaults.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Checks credentials.
    pub authenticator: Arc<Authenticator>,
    /// The addresses of relay sockets; an allocation gets one of its family.
    pub addresses: Vec<RelayAddress>,
    /// Ports of relay sockets; default 49152–65535.
    pub ports: RangeInclusive<u16>,
    /// Which peers may be reached; by default none on this host and none in special-purpose networks.
    pub policy: PolicyConfig,
    /// Most allocations of one user; default 128.
    pub allocations_per_user: u32,
    /// Most allocations in all; default 10 000.
    pub max_allocations: u32,
    /// Limits of one allocation and of one user.
    pub limits: AllocationLimits,
    /// Optional protocol features.
    pub features: RelayFeatures,
    /// The servers that new clients are redirected to; default none.
    pub alternates: Arc<AlternateServers>,
    /// The key of mobility tickets; by default derived from the relay's seed.
    pub mobility_key: Option<[u8; 32]>,
    /// Decides on peers that the policy allows; default none.
    pub permission_handler: Option<Arc<dyn PermissionHandler>>,
    /// Decides on allocations within the quota; default none.
    pub quota_handler: Option<Arc<dyn QuotaHandler>>,
    /// Receives events about allocations, permissions and channels; default none.
    pub event_handler: Option<Arc<dyn EventHandler>>,
}

impl RelayConfig {
    /// Creates a configuration with the defaults for relay sockets at `addresses`.
    #[must_use]
    pub fn new(authenticator: Authenticator, addresses: &[RelayAddress]) -> Self {
        Self {
            authenticator: Arc::new(authenticator),
            addresses: addresses.to_vec(),
            ports: 49_152..=65_535,
            policy: PolicyConfig::default(),
            allocations_per_user: 128,
            max_allocations: 10_000,
            limits: AllocationLimits::default(),
            features: RelayFeatures::default(),
            alternates: Arc::default(),
            mobility_key: None,
            permission_handler: None,
            quota_handler: None,
            event_handler: None,
        }
    }
}

/// What the relays of all workers share.
#[derive(Debug, Clone)]
pub struct SharedState {
    /// Checks credentials.
    pub authenticator: Arc<Authenticator>,
    /// Leases relay ports.
    pub ports: Arc<RelayPorts>,
    /// Limits the number of allocations.
    pub quota: Arc<AllocationQuota>,
    /// Limits of one allocation and of one user.
    pub limits: AllocationLimits,
    pub(super) alternates: Arc<AlternateServers>,
    pub(super) policy: Arc<PeerPolicy>,
    pub(super) reservations: Arc<Reservations>,
    pub(super) addresses: Arc<[RelayAddress]>,
    pub(super) connections: Arc<PendingConnections>,
    pub(super) tickets: Arc<MobilityTickets>,
    /// This worker's number, which mobility tickets and port owners contain.
    pub(super) worker: u16,
    pub(super) features: RelayFeatures,
    pub(super) permission_handler: Option<Arc<dyn PermissionHandler>>,
    pub(super) quota_handler: Option<Arc<dyn QuotaHandler>>,
    pub(super) event_handler: Option<Arc<dyn EventHandler>>,
}

impl SharedState {
    /// Creates the state; `key` is that of mobility tickets unless the configuration has one.
    #[must_use]
    pub fn new(config: RelayConfig, key: [u8; 32]) -> Self {
        let ports = Arc::new(RelayPorts::new(&config.addresses, config.ports));
        Self {
            authenticator: config.authenticator,
            policy: Arc::new(PeerPolicy::new(config.policy, Arc::clone(&ports))),
            ports,
            quota: Arc::new(AllocationQuota::new(config.allocations_per_user, config.max_allocations)),
            limits: config.limits,
            alternates: config.alternates,
            reservations: Arc::default(),
            addresses: config.addresses.into(),
            connections: Arc::default(),
            tickets: Arc::new(MobilityTickets::new(&config.mobility_key.unwrap_or(key))),
            worker: 0,
            features: config.features,
            permission_handler: config.permission_handler,
            quota_handler: config.quota_handler,
            event_handler: config.event_handler,
        }
    }

    /// Returns the same state for another worker.
    #[must_use]
    pub fn for_worker(&self, worker: u16) -> Self {
        Self { worker, ..self.clone() }
    }
}

/// Limits of one allocation and of one user.
#[derive(Debug, Clone, Copy)]
pub struct AllocationLimits {
    /// The longest lifetime that is granted; default 3600 s.
    pub max_lifetime: Duration,
    /// Most permissions, and most channels, of one allocation; default 128.
    pub permissions: usize,
    /// New peers of one allocation, against port scans; default 32 a second after the first 128.
    pub new_peers: Rate,
    /// New peers of all allocations of one user; default 128 a second after the first 4096.
    pub user_new_peers: Rate,
    /// Bytes relayed for one allocation in both directions; default 25 MB/s.
    pub allocation_bandwidth: Rate,
    /// Bytes relayed for all allocations of one user; default 50 MB/s.
    pub user_bandwidth: Rate,
}

impl Default for AllocationLimits {
    fn default() -> Self {
        Self {
            max_lifetime: Duration::from_secs(3600),
            permissions: 128,
            new_peers: Rate::with_burst_time(32, Duration::from_secs(4)),
            user_new_peers: Rate::with_burst_time(128, Duration::from_secs(32)),
            allocation_bandwidth: Rate::bytes(25_000_000),
            user_bandwidth: Rate::bytes(50_000_000),
        }
    }
}

/// Optional protocol features; all are on by default.
#[derive(Debug, Clone, Copy)]
pub struct RelayFeatures {
    /// Whether an allocation gets a relayed address of the other family when a request first names a peer there.
    pub add_family: bool,
    /// Whether clients may move their allocations to another 5-tuple (RFC 8016).
    pub mobility: bool,
    /// Whether clients may reach peers by TCP (RFC 6062). The driver must then carry out the outputs for TCP.
    pub tcp: bool,
}

impl Default for RelayFeatures {
    fn default() -> Self {
        Self { add_family: true, mobility: true, tcp: true }
    }
}
