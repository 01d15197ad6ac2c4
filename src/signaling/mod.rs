//! Signalling: introduces two clients to each other, over JSON in UDP datagrams or WebSocket texts.
//!
//! Document 000's protocol of tag, token and notify, with fields of our own for ICE (`docs/wire/signaling.md`). A UDP
//! client and a WebSocket client reach each other, as both talk to one [`Hub`]. The hub follows the run-loop contract of
//! the crate: `handle_*`, then `poll_output` to `None`, then a timer for `poll_timeout`.

mod acts;
pub(crate) mod admission;
mod answers;
pub(crate) mod bus;
mod call;
mod calls;
pub(crate) mod config;
mod envelope;
mod gathers;
mod http;
mod identity;
mod inbox;
mod inner;
mod leg;
mod listing;
pub(crate) mod machine;
mod message;
mod name;
mod outbox;
mod presence;
mod quota;
mod rate;
mod registry;
#[cfg(test)]
mod scenarios;
pub(crate) mod service;
mod shards;
mod subscriptions;
mod talk;
mod texts;
pub(crate) mod udp;
mod watches;
mod websocket;
pub(crate) mod wire;

pub use admission::{AccessKey, Admitted, IceServers, Jwt, JwtKey, Origins, Realm, Realms, Refusal, Scopes};
pub use bus::{Address, Bus, Word};
pub use calls::Outcomes;
pub use config::{Config, Limits, NotifyFrom, Rate, Times};
pub(crate) use http::{bearer, pages_let_in, status_of};
pub use leg::{Conn, Door};
pub use machine::{Hub, Output};
pub use service::{Handle, Service, start};
pub use shards::Shard;
pub use udp::Sockets;
