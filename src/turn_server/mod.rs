//! The relay: TURN, [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656).
//!
//! [`machine::Relay`] is the brain: clients' and peers' bytes in, what to forward as the return value, control through
//! `poll_output`.

mod admission;
mod allocate;
mod allocation;
pub mod alternate;
pub mod auth;
pub mod connections;
pub mod data;
mod denials;
mod directory;
mod five_tuple;
mod index;
mod links;
mod lookahead;
pub mod machine;
pub mod mobility;
mod moment;
mod peers;
mod permissions;
pub mod policy;
mod port_owners;
pub mod ports;
pub mod quota;
pub mod rate;
mod relay_port;
mod reply;
mod requests;
pub mod reservation;
mod tcp_relay;
pub mod wire;

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
