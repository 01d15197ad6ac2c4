//! Signalling: two clients exchange their addresses through the server, as JSON in UDP datagrams or WebSocket texts.
//!
//! The protocol of tag, token and notify (S0-1 to S0-40), with further fields for ICE; see `docs/wire/signaling.md`. UDP and WebSocket clients
//! can call each other: both are clients of the same [`Hub`].

// The messages, which the agent also uses.
mod envelope;
mod error_code;
mod ice_description;
mod message;
mod message_type;
pub(crate) mod wire;

// The server.
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
#[cfg(feature = "server")]
mod event_queue;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod hub_messages;
#[cfg(feature = "server")]
mod local_addresses;
#[cfg(feature = "server")]
mod locate_requests;
#[cfg(feature = "server")]
mod locators;
#[cfg(feature = "server")]
pub(crate) mod machine;
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

#[cfg(test)]
mod scenarios;

#[cfg(feature = "server")]
pub use {
    crate::limits::Rate,
    access::{AccessKey, Jwt, JwtKey, Origins, Realm, Realms, Scopes},
    bus::{Bus, Destination, HubMessage, SingleServer, Undelivered},
    call_table::CallOutcomes,
    client_addr::{ConnId, ServerPort},
    config::{Config, Limits, NotifyFrom, Times},
    counters::{HubCounters, RequestCounts},
    machine::{Hub, Output},
    nodes::NodeId,
};
#[cfg(feature = "server")]
pub(crate) use {
    access::{Admitted, IceServers, Refusal},
    http::{bearer, pages_let_in, status_of},
    service::{Handle, Service, start},
    udp::Sockets,
};
