//! Signalling: introduces two clients to each other, over JSON in UDP datagrams or WebSocket texts.
//!
//! Document 000's protocol of tag, token and notify, with fields of our own for ICE (`docs/wire/signaling.md`). A UDP
//! client and a WebSocket client reach each other, as both talk to one [`Hub`]. The hub follows the run-loop contract of
//! the crate: `handle_*`, then `poll_output` to `None`, then a timer for `poll_timeout`.

pub(crate) mod access;
pub(crate) mod bus;
mod call;
mod call_requests;
mod call_table;
mod client_addr;
pub(crate) mod config;
mod envelope;
mod event_queue;
mod http;
mod hub_messages;
mod local_addresses;
pub(crate) mod machine;
mod message;
mod nodes;
mod online_list;
mod outbox;
mod pending_queries;
mod presence;
mod quota;
mod rate;
mod registry;
mod response_cache;
#[cfg(test)]
mod scenarios;
pub(crate) mod service;
mod subscriptions;
mod tag_id;
mod tag_ownership;
mod text_budget;
pub(crate) mod udp;
mod watches;
mod websocket;
pub(crate) mod wire;

pub use access::{AccessKey, Admitted, IceServers, Jwt, JwtKey, Origins, Realm, Realms, Refusal, Scopes};
pub use bus::{Bus, Destination, HubMessage};
pub use call_table::CallOutcomes;
pub use client_addr::{ConnId, ServerPort};
pub use config::{Config, Limits, NotifyFrom, Rate, Times};
pub(crate) use http::{bearer, pages_let_in, status_of};
pub use machine::{Hub, Output};
pub use nodes::NodeId;
pub use service::{Handle, Service, start};
pub use udp::Sockets;
