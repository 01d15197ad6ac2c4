//! The agent: an end-to-end encrypted connection between two hosts behind NATs, direct or relayed.
//!
//! A listener registers with a server and creates a [`Ticket`]; whoever holds it can connect. Both sides run ICE ([RFC
//! 8445](https://www.rfc-editor.org/rfc/rfc8445)) for two paths at once: a relay path, which carries data as soon as it works, and a direct
//! path, which takes over when it works. QUIC runs over the active path. Both sides' keys are derived from the ticket's secret, so that
//! the server can neither read the data nor act as either side.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ginnel::agent::{Agent, Config};
//!
//! let mut listener = Agent::new(Config::new().server("turn.example".parse()?)).listen().await?;
//! println!("agent connect {}", listener.ticket());
//! let connection = listener.accept().await.ok_or("the ticket is no longer valid")??;
//! let (mut send, mut recv) = connection.accept_bi().await?;
//! tokio::io::copy(&mut recv, &mut send).await?;
//! send.finish().await?;
//! connection.finish().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | content | |
//! | --- | --- | --- |
//! | `connect`, `listener` | [`Agent`] and [`Listener`] | tokio |
//! | `signaling_client` | the WebSocket to the server | tokio |
//! | `call` | the task of one call | tokio |
//! | `session`, `candidate`, `relay_reason` | the negotiation of one call; why it is relayed | pure |
//! | `path_selector`, `path` | which path carries the data | pure |
//! | `ice`, `turn_tcp_proxy` | the ICE agent of one path; TURN over TCP | tokio |
//! | `nat_probe`, `nat` | the type of the local NAT | tokio, pure |
//! | `tunnel`, `quic`, `connection` | the paths as one socket, QUIC over it, its streams | tokio |
//! | `gateway_fallback` | QUIC through the server's gateway, if nothing else works | tokio |
//! | `ticket`, `keys`, `call_auth`, `pinned_tls`, `initial_keys` | tickets, and the keys and authentication derived from them | pure |
//! | `publish` | a TCP service at a gateway | tokio |

mod call;
mod call_auth;
mod candidate;
mod config;
mod connect;
mod connection;
mod error;
mod gateway_fallback;
mod ice;
mod initial_keys;
mod keys;
mod listener;
mod nat;
mod nat_probe;
mod path;
mod path_selector;
mod pinned_tls;
mod publish;
mod quic;
mod relay_reason;
mod session;
mod signaling_client;
mod ticket;
mod tunnel;
mod turn_tcp_proxy;

pub use crate::signaling::wire::NatType;
pub use config::{Config, ServerName, ServerNameError};
pub use connect::Agent;
pub use connection::{Connection, PathChanges, RecvStream, SendStream};
pub use error::{ConnectError, ConnectionError, PathAttempts, Refusal, RegistrationError};
pub use listener::Listener;
pub use path::{PathInfo, PathKind, PathPolicy};
pub(crate) use publish::{ServiceConnection, ServiceEvent, bridge, publish};
pub use ticket::{Ticket, TicketError};
