//! Files and folders over a stream of a [`Connection`](crate::agent::Connection): `docs/wire/files.md`.
//!
//! A sender names what it has, file after file, and the receiver answers which it needs, and from where on. Content goes out in groups of 1 MiB,
//! each verified with its chaining value of the BLAKE3 tree when it arrives. After a lost connection, or the end of either process, the transfer
//! goes on behind the last verified group, and nothing that was verified is read or hashed again.
//!
//! [`service::offer`] and [`service::receive_offer`] begin a connection; each gives what runs it. Reading, hashing and writing is done on a thread
//! of its own, which exchanges blocks of the stream with the task of the connection.
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `wire` | messages | pure |
//! | `names` | names from the other side | pure |
//! | `plan` | what exists, what is kept, how much is sent ahead | pure |
//! | `tree` | the hashes of a file | pure |
//! | `journal` | the chaining values on disk | files |
//! | `walk` | finds what is sent | files |
//! | `folders`, `part` | creates what is received | files |
//! | `sending`, `receiving` | the threads | files |
//! | `service` | the stream | tokio |
//! | `progress`, `error` | what the user sees | |

mod error;
mod folders;
mod journal;
mod names;
mod part;
mod plan;
mod progress;
mod receiving;
mod sending;
mod service;
mod tree;
mod walk;
mod wire;

pub(crate) use error::TransferError;
pub(crate) use plan::{ExistingPolicy, RootPlan, plan_roots};
pub(crate) use progress::{Figures, Progress};
pub(crate) use receiving::Destination;
pub(crate) use sending::{Source, Summary};
pub(crate) use service::{Incoming, Visitor, receive_offer};
pub(crate) use walk::{Root, Survey};
pub(crate) use wire::{CancelReason, Id, Offer, OfferedRoot};

#[cfg(test)]
mod transfer_tests;
