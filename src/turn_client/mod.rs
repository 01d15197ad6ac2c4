//! A TURN client without I/O ([RFC 8656](https://www.rfc-editor.org/rfc/rfc8656)).
//!
//! [`TurnClient`] allocates a relayed transport address, installs permissions and channels for peers, refreshes them all, and releases the
//! allocation. It answers the server's challenge with SHA-256 where the server offers it, else with SHA-1 and MD5
//! ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)), and keeps the allocation when the client's address changes
//! ([RFC 8016](https://www.rfc-editor.org/rfc/rfc8016)).
//!
//! The caller owns the socket, and on a stream the framing. It passes each datagram or frame from the server to [`TurnClient::handle`]. After
//! each call it sends what [`TurnClient::poll_transmit`] returns, takes the events from [`TurnClient::poll_event`], and schedules
//! [`TurnClient::poll_timeout`]. A payload is sent behind the header that [`TurnClient::header`] returns.
//!
//! | file | content |
//! | --- | --- |
//! | `config.rs` | settings and credentials |
//! | `authentication.rs` | the server's challenge: algorithm, key, signature |
//! | `transaction.rs` | one request and its retransmissions |
//! | `peers.rs` | permissions and channels |
//! | `machine.rs`, `responses.rs` | [`TurnClient`]; what it does with responses |
//! | `error.rs` | why a request failed, with a hint for the user |

mod authentication;
mod config;
mod error;
mod machine;
#[cfg(test)]
mod machine_tests;
mod peers;
mod responses;
mod transaction;

pub use crate::turn_wire::FrameHeader;
pub use config::{AddressFamilies, ClientTransport, LongTermCredentials, TurnClientConfig};
pub use error::{TurnError, TurnRequest};
pub use machine::{Received, TurnClient, TurnEvent};
pub use peers::TooManyPeers;
