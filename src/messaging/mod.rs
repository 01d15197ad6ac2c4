//! Accounts, devices and offline messages over TCP (S4): the wire of the original programs, and the state machine behind it.
//!
//! | file | content |
//! | --- | --- |
//! | `wire.rs`, `commands.rs` | frames; commands, codes and bodies |
//! | `crypto.rs`, `password.rs` | the legacy key exchange and AES; password hashes |
//! | `machine.rs` | [`Machine`](machine::Machine): sessions and the order of their frames |
//! | `service.rs`, `connection.rs`, `outbox.rs`, `job_pool.rs`, `store_calls.rs` | its I/O |
//! | `dispatcher.rs` | which server a client connects to (S4-3) |
//! | `login.rs`, `devices.rs`, `contacts.rs`, `sending.rs`, `delivery.rs` | its commands by topic |
//!
//! A client connects, gets the server's RSA key, may agree on a session key, authenticates as a user or a device, and sends and receives
//! messages. A message is acknowledged after the store has made it durable; it stays stored until its recipient acknowledges it or it
//! expires. `docs/wire/messaging.md` describes the wire.

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
mod job_pool;
mod login;
pub mod machine;
#[cfg(test)]
mod machine_tests;
mod outbox;
pub mod password;
mod rates;
mod sending;
pub(crate) mod service;
mod session;
mod store_calls;
pub mod store_request;
pub mod wire;
