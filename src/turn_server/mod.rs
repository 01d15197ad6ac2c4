//! The TURN server: [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656), with TCP allocations
//! ([RFC 6062](https://www.rfc-editor.org/rfc/rfc6062)) and mobility ([RFC 8016](https://www.rfc-editor.org/rfc/rfc8016)).
//!
//! [`Relay`] is a state machine without I/O. [`Relay::handle_client`] and [`Relay::handle_peer`] return what to forward;
//! [`Relay::poll_output`] returns responses and sockets to open or close.

mod allocate;
mod allocation;
pub(crate) mod allocation_quota;
pub(crate) mod alternate_servers;
pub(crate) mod auth;
mod authenticate;
mod channel_bind;
mod client_index;
pub(crate) mod config;
mod counters;
mod create_permission;
mod data;
mod denial_counters;
mod five_tuple;
mod forward;
mod handlers;
mod hash_index;
mod machine;
pub(crate) mod mobility;
mod output;
mod peer_table;
mod peers;
pub(crate) mod pending_connections;
mod permissions;
pub(crate) mod policy;
mod port_owners;
pub(crate) mod ports;
mod prefetch;
mod refresh;
mod relay_port;
mod requests;
pub(crate) mod reservation;
mod response;
mod tcp_allocations;

pub use crate::limits::{NetworkPrefix, PrefixError, Rate};
pub use crate::turn_wire::FrameHeader;
pub use allocation::{CHANNEL_COOLDOWN, CHANNEL_LIFETIME};
pub use alternate_servers::AlternateServers;
pub use auth::{
    Authenticator, AuthenticatorConfig, Expiry, LookupCacheConfig, LookupResult, RealmCredentials,
    RestSecret, RevocationList, TokenKey, UserKeys, UserQuery,
};
pub use config::{AllocationLimits, RelayConfig, RelayFeatures};
pub use counters::Counters;
pub use data::IcmpError;
pub use five_tuple::{FiveTuple, Transport};
pub use forward::{
    ClientFrame, DropCounters, DropReason, Forward, InternalPacket, InternalRoute, IpHeader, ToClient, ToPeer,
};
pub use handlers::{AuthHandler, EventHandler, PermissionHandler, QuotaHandler};
pub use machine::Relay;
pub use output::{Output, RequestAuth};
pub use pending_connections::{ConnectionId, UserBandwidth};
pub use permissions::PERMISSION_LIFETIME;
pub use policy::PolicyConfig;
pub use ports::RelayAddress;
pub use prefetch::PREFETCH_BATCH;
pub use relay_port::{RelayId, RelaySocketError};

#[cfg(test)]
mod tests;
