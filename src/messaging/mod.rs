//! Accounts, devices and offline messages (S4): the wire of the original programs over TCP, JSON over WebSocket, and the state machine behind
//! both.
//!
//! | file | content |
//! | --- | --- |
//! | `wire.rs`, `commands.rs` | frames; commands, codes and bodies |
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
//! expires. `docs/wire/messaging.md` and `docs/wire/messages.md` describe the wires; the JSON objects are in
//! [`messaging_wire`](crate::messaging_wire), which the client uses too.

mod account_devices;
pub mod commands;
pub mod config;
mod connection;
mod contacts;
pub mod counters;
pub mod crypto;
mod delivery;
#[cfg(test)]
mod delivery_tests;
mod devices;
pub(crate) mod dispatcher;
mod follow;
#[cfg(test)]
mod follow_tests;
mod job_pool;
mod json_login;
#[cfg(test)]
mod json_model_tests;
mod json_sending;
#[cfg(test)]
mod json_sending_tests;
mod json_session;
#[cfg(test)]
mod json_session_tests;
mod login;
pub mod machine;
#[cfg(test)]
mod machine_tests;
mod outbox;
pub mod password;
mod presence;
#[cfg(test)]
mod presence_tests;
mod rates;
mod sending;
pub(crate) mod service;
mod session;
pub mod store_calls;
pub mod store_request;
mod websocket;
pub mod wire;
