//! The gateway: virtual connections between clients on the public side and servers on the inner side, each of which has one connection to
//! it.
//!
//! The protocol is fastway's with seven commands (S2-1 to S2-28). Extensions: command 7 (Credit) for servers that authenticate by HMAC, and
//! command 8 (Token) for clients. `docs/wire/gateway.md` describes both.
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `wire` | frames and commands | pure |
//! | `handshake` | how servers authenticate | pure |
//! | `token` | how clients authenticate, where that is required | pure |
//! | `machine` | the `Router`: endpoints, virtual connections, forwarding | pure |
//! | `worker` | the thread that owns the sockets | mio |
//! | `service` | starts the thread, passes it connections | tokio |
//! | [`client`] | the client library: dial, accept, send, receive | tokio |

// The frames and handshakes, which both ends use.
pub(crate) mod handshake;
pub(crate) mod token;
pub(crate) mod wire;

#[cfg(feature = "gateway-client")]
pub mod client;

// The server.
#[cfg(feature = "server")]
mod budget;
#[cfg(feature = "server")]
mod commands;
#[cfg(feature = "server")]
pub(crate) mod config;
#[cfg(feature = "server")]
mod connection;
#[cfg(feature = "server")]
mod counters;
#[cfg(feature = "server")]
pub(crate) mod endpoint;
#[cfg(feature = "server")]
mod flow_control;
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
#[cfg(feature = "server")]
pub(crate) mod service;
#[cfg(feature = "server")]
pub(crate) mod websocket;
#[cfg(feature = "server")]
mod worker;

#[cfg(test)]
mod scenarios;

#[cfg(feature = "server")]
pub use config::{Config, Duplicates, Limits, Times};
#[cfg(test)]
pub(crate) use counters::CloseReason;
#[cfg(feature = "server")]
pub(crate) use service::{Handle, Service};
