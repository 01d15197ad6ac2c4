//! Accounts, devices and offline messages (S4): the wire of the original programs over TCP, JSON over WebSocket, and the state machine behind
//! both.
//!
//! | file | content |
//! | --- | --- |
//! | `wire.rs`, `commands.rs` | frames; commands, codes and bodies |
//! | `json_wire.rs`, `signing.rs` | the objects of the WebSocket `/messages`; what keys sign there. The client uses both |
//! | `crypto.rs`, `password.rs` | the legacy key exchange and AES; password hashes |
//! | `machine.rs` | [`Machine`](machine::Machine): sessions and the order of their frames |
//! | `service.rs`, `connection.rs`, `outbox.rs`, `job_pool.rs`, `store_calls.rs` | its I/O |
//! | `dispatcher.rs` | which server a client connects to (S4-3) |
//! | `json_session.rs`, `json_login.rs`, `account_devices.rs`, `json_sending.rs`, `follow.rs`, `presence.rs` | the WebSocket's requests by topic |
//! | `websocket.rs` | its I/O |
//! | `login.rs`, `devices.rs`, `contacts.rs`, `sending.rs`, `delivery.rs` | its commands by topic |
//!
//! A client connects, gets the server's RSA key, may agree on a session key, authenticates as a user or a device, and sends and receives
//! messages. A message is acknowledged after the store has made it durable; it stays stored until its recipient acknowledges it or it
//! expires. `docs/wire/messaging.md` and `docs/wire/messages.md` describe the wires.

#[cfg(feature = "messaging")]
mod account_devices;
#[cfg(feature = "messaging")]
pub mod commands;
#[cfg(feature = "messaging")]
pub mod config;
#[cfg(feature = "messaging")]
mod connection;
#[cfg(feature = "messaging")]
mod contacts;
#[cfg(feature = "messaging")]
pub mod counters;
#[cfg(feature = "messaging")]
pub mod crypto;
#[cfg(feature = "messaging")]
mod delivery;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod delivery_tests;
#[cfg(feature = "messaging")]
mod devices;
#[cfg(feature = "messaging")]
pub(crate) mod dispatcher;
#[cfg(feature = "messaging")]
mod follow;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod follow_tests;
#[cfg(feature = "messaging")]
mod job_pool;
#[cfg(feature = "messaging")]
mod json_login;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod json_model_tests;
#[cfg(feature = "messaging")]
mod json_sending;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod json_sending_tests;
#[cfg(feature = "messaging")]
mod json_session;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod json_session_tests;
#[allow(dead_code)]
pub(crate) mod json_wire;
#[cfg(test)]
mod json_wire_tests;
#[cfg(feature = "messaging")]
mod login;
#[cfg(feature = "messaging")]
pub mod machine;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod machine_tests;
#[cfg(feature = "messaging")]
mod outbox;
#[cfg(feature = "messaging")]
pub mod password;
#[cfg(feature = "messaging")]
mod presence;
#[cfg(feature = "messaging")]
#[cfg(test)]
mod presence_tests;
#[cfg(feature = "messaging")]
mod rates;
#[cfg(feature = "messaging")]
mod sending;
#[cfg(feature = "messaging")]
pub(crate) mod service;
#[cfg(feature = "messaging")]
mod session;
#[allow(dead_code)]
pub(crate) mod signing;
#[cfg(feature = "messaging")]
pub mod store_calls;
#[cfg(feature = "messaging")]
pub mod store_request;
#[cfg(feature = "messaging")]
mod websocket;
#[cfg(feature = "messaging")]
pub mod wire;
