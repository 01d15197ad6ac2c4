//! The relay: TURN, [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656).
//!
//! [`machine::Relay`] is the brain: clients' and peers' bytes in, what to forward as the return value, control through
//! `poll_output`.

mod allocate;
mod allocation;
pub mod auth;
pub mod data;
mod denials;
pub mod machine;
mod peers;
pub mod policy;
pub mod ports;
pub mod quota;
pub mod rate;
mod relay_port;
mod reply;
mod requests;
pub mod reservation;
mod tenancy;
pub mod wire;

pub use allocation::{CHANNEL_COOLDOWN, CHANNEL_LIFETIME, FiveTuple, PERMISSION_LIFETIME, Transport};
pub use machine::{Relay, Shared};
pub use relay_port::RelayId;

#[cfg(test)]
mod tests;
