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

#[cfg(feature = "server")]
mod budget;
#[cfg(feature = "gateway-client")]
pub mod client;
#[cfg(feature = "server")]
mod commands;
#[cfg(feature = "server")]
pub(crate) mod config;
#[cfg(feature = "server")]
mod connection;
#[cfg(feature = "server")]
mod counters;
#[cfg(feature = "server")]
mod endpoint;
#[cfg(feature = "server")]
mod flow_control;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod handshake;
#[cfg(feature = "server")]
mod liveness;
#[cfg(feature = "server")]
pub(crate) mod machine;
#[cfg(feature = "server")]
mod outbox;
#[cfg(feature = "server")]
mod recently_closed;
#[cfg(feature = "server")]
mod refusals;
#[cfg(test)]
mod scenarios;
#[cfg(feature = "server")]
pub(crate) mod service;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod token;
#[cfg(feature = "server")]
pub(crate) mod websocket;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub(crate) mod wire;
#[cfg(feature = "server")]
mod worker;

#[cfg(feature = "server")]
pub use config::{Config, Duplicates, Limits, RouterConfig, Times};
#[cfg(feature = "server")]
pub use counters::{CloseReason, Counters, DialRefusal};
#[cfg(feature = "server")]
pub use endpoint::EndpointKey;
#[cfg(feature = "server")]
pub use machine::Router;
#[cfg(feature = "server")]
pub use service::{Handle, Service};
