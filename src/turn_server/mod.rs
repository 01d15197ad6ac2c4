//! The relay: TURN, [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656).
//!
//! [`machine::Relay`] is the brain: clients' and peers' bytes in, what to forward as the return value, control through
//! `poll_output`.

mod admission;
mod allocate;
mod allocation;
pub(crate) mod alternate;
pub(crate) mod auth;
pub(crate) mod connections;
pub(crate) mod data;
mod denials;
mod directory;
mod five_tuple;
mod index;
mod links;
mod lookahead;
pub(crate) mod machine;
pub(crate) mod mobility;
mod moment;
mod peers;
mod permissions;
pub(crate) mod policy;
mod port_owners;
pub(crate) mod ports;
pub(crate) mod quota;
pub(crate) mod rate;
mod relay_port;
mod reply;
mod requests;
pub(crate) mod reservation;
mod tcp_relay;
pub(crate) mod wire;

pub use allocation::{CHANNEL_COOLDOWN, CHANNEL_LIFETIME};
pub use connections::ConnectionId;
pub use five_tuple::{FiveTuple, Transport};
pub use lookahead::LOOKAHEAD;
pub use machine::{Relay, Shared};
pub use permissions::PERMISSION_LIFETIME;
pub use port_owners::PortOwner;
pub use relay_port::{RelayId, RelaySocketError};

#[cfg(test)]
mod tests;
