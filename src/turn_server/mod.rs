//! The relay: TURN, [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656).
//!
//! [`machine::Relay`] is the brain: clients' and peers' bytes in, what to forward as the return value, control through
//! `poll_output`.

mod allocate;
mod allocation;
pub(crate) mod allocation_quota;
pub(crate) mod alternate_servers;
pub(crate) mod auth;
mod authenticate;
mod client_index;
pub(crate) mod data;
mod denial_counters;
mod five_tuple;
mod hash_index;
pub(crate) mod machine;
pub(crate) mod mobility;
mod peer_table;
mod peers;
pub(crate) mod pending_connections;
mod permissions;
pub(crate) mod policy;
mod port_owners;
pub(crate) mod ports;
mod prefetch;
mod relay_port;
mod requests;
pub(crate) mod reservation;
mod response;
mod tcp_allocations;
pub(crate) mod wire;

pub use allocation::{CHANNEL_COOLDOWN, CHANNEL_LIFETIME};
pub use five_tuple::{FiveTuple, Transport};
pub use machine::{Relay, Shared};
pub use pending_connections::ConnectionId;
pub use permissions::PERMISSION_LIFETIME;
pub use port_owners::PortOwner;
pub use prefetch::PREFETCH_BATCH;
pub use relay_port::{RelayId, RelaySocketError};

#[cfg(test)]
mod tests;
