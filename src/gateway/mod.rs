//! The gateway: virtual connections between clients on the public side and servers on the inner side, each of which holds one TCP
//! connection to it. The wire is the seven-command version of fastway's (document 002, S2-1 … S2-28); `docs/wire/gateway.md`
//! describes it, with what we add: command 7 (credit) for servers of the HMAC door, command 8 (token) for clients.
//!
//! | file | holds |
//! | --- | --- |
//! | [`wire`] | frames and commands |
//! | [`handshake`] | how servers prove that they hold the key |
//! | [`token`] | how clients prove that they were let in, where that is asked of them |
//! | [`machine`] | who is connected, and where each frame goes |
//! | [`service`] | doors, and the thread that has all sockets |
//! | [`client`] | the library: dial, accept, send and receive |

mod budget;
pub mod client;
mod commands;
pub(crate) mod config;
mod connection;
mod counters;
mod endpoint;
mod flow_control;
pub(crate) mod handshake;
mod liveness;
pub(crate) mod machine;
mod outbox;
mod recently_closed;
mod refusals;
#[cfg(test)]
mod scenarios;
pub(crate) mod service;
mod socket;
pub(crate) mod token;
pub(crate) mod websocket;
pub(crate) mod wire;
mod worker;

pub use config::{Config, Duplicates, Limits, RouterConfig, Times};
pub use counters::{CloseReason, Counters, DialRefusal};
pub use endpoint::EndpointKey;
pub use machine::Router;
pub use service::{Handle, Service};
