//! The relay: TURN, [RFC 8656](https://www.rfc-editor.org/rfc/rfc8656).
//!
//! [`machine::Relay`] is the brain: clients' and peers' bytes in, what to forward as the return value, control through
//! `poll_output`.

mod admission;
mod allocation;
pub mod alternate;
pub mod auth;
pub mod machine;
pub mod policy;
pub mod ports;
pub mod quota;
mod reply;
mod requests;
pub mod reservation;
pub mod wire;

pub use allocation::{CHANNEL_LIFETIME, FiveTuple, MAX_PEERS, PERMISSION_LIFETIME, Transport};
pub use machine::{Relay, Shared};

#[cfg(test)]
mod tests;
