//! Signalling: connects two clients, with JSON in UDP datagrams or WebSocket texts.
//!
//! The protocol of tag, token and notify (S0-1 to S0-40) with further fields for ICE (`docs/wire/signaling.md`). A UDP
//! client and a WebSocket client reach each other, since both are clients of one [`Hub`]. After each `handle_*`, drain
//! `poll_output` and set a timer for `poll_timeout`.

#[cfg(feature = "server")]
pub(crate) mod access;
#[cfg(feature = "server")]
pub(crate) mod bus;
#[cfg(feature = "server")]
mod call;
#[cfg(feature = "server")]
mod call_requests;
#[cfg(feature = "server")]
mod call_table;
#[cfg(feature = "server")]
mod client_addr;
#[cfg(feature = "server")]
pub(crate) mod config;
#[cfg(feature = "server")]
mod connections;
#[cfg(feature = "server")]
mod counters;
#[cfg(any(feature = "server", feature = "agent"))]
mod envelope;
#[cfg(any(feature = "server", feature = "agent"))]
mod error_code;
#[cfg(feature = "server")]
mod event_queue;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod hub_messages;
#[cfg(any(feature = "server", feature = "agent"))]
mod ice_description;
#[cfg(feature = "server")]
mod local_addresses;
#[cfg(feature = "server")]
pub(crate) mod machine;
#[cfg(any(feature = "server", feature = "agent"))]
mod message;
#[cfg(any(feature = "server", feature = "agent"))]
mod message_type;
#[cfg(feature = "server")]
pub(crate) mod nodes;
#[cfg(feature = "server")]
mod online_list;
#[cfg(feature = "server")]
mod outbox;
#[cfg(feature = "server")]
mod pending_queries;
#[cfg(feature = "server")]
mod pending_request;
#[cfg(feature = "server")]
mod presence;
#[cfg(feature = "server")]
mod registry;
#[cfg(feature = "server")]
mod replies;
#[cfg(feature = "server")]
mod response_cache;
#[cfg(test)]
mod scenarios;
#[cfg(feature = "server")]
pub(crate) mod service;
#[cfg(feature = "server")]
mod subscriptions;
#[cfg(feature = "server")]
mod tag_id;
#[cfg(feature = "server")]
mod tag_ownership;
#[cfg(feature = "server")]
pub(crate) mod udp;
#[cfg(feature = "server")]
mod watches;
#[cfg(feature = "server")]
mod websocket;
#[cfg(any(feature = "server", feature = "agent"))]
pub(crate) mod wire;

#[cfg(feature = "server")]
pub use crate::limits::Rate;
#[cfg(feature = "server")]
pub use access::{AccessKey, Jwt, JwtKey, Origins, Realm, Realms, Scopes};
#[cfg(feature = "server")]
pub(crate) use access::{Admitted, IceServers, Refusal};
#[cfg(feature = "server")]
pub use bus::{Bus, Destination, HubMessage, SingleServer, Undelivered};
#[cfg(feature = "server")]
pub use call_table::CallOutcomes;
#[cfg(feature = "server")]
pub use client_addr::{ConnId, ServerPort};
#[cfg(feature = "server")]
pub use config::{Config, Limits, NotifyFrom, Times};
#[cfg(feature = "server")]
pub use counters::{HubCounters, RequestCounts};
#[cfg(feature = "server")]
pub(crate) use http::{bearer, pages_let_in, status_of};
#[cfg(feature = "server")]
pub use machine::{Hub, Output};
#[cfg(feature = "server")]
pub use nodes::NodeId;
#[cfg(feature = "server")]
pub(crate) use service::{Handle, Service, start};
#[cfg(feature = "server")]
pub(crate) use udp::Sockets;
