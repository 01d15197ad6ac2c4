//! The agent: an end-to-end encrypted connection between two hosts behind NATs, direct or relayed.
//!
//! A listener registers with a server and creates a [`Ticket`]; whoever holds it can connect. Both sides run ICE ([RFC
//! 8445](https://www.rfc-editor.org/rfc/rfc8445)): data flows over the first path that works, usually the relay, and a direct one takes over
//! when it works. QUIC runs over the active path. Both sides' keys are derived from the ticket's secret, so that
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
//! | `servers`, `signaling_client` | the first server that answers; the WebSocket to it | tokio |
//! | `code` | short codes: words, exchange, guesses | pure but `resolve` |
//! | `admission` | the secrets of those whom a listener admits | pure |
//! | `call` | the task of one call | tokio |
//! | `session`, `candidate`, `relay_reason` | the negotiation of one call; why it is relayed | pure |
//! | `engine` | commands and events of an ICE engine | |
//! | `ice_engine`, `webrtc_engine` | the two engines | tokio |
//! | `gathering`, `nat`, `nat64` | server-reflexive addresses; the type of the local NAT; IPv4 peers through a NAT64 | pure |
//! | `hard_nat` | port prediction and spray, for NATs that change ports | pure |
//! | `host_addresses`, `udp_port`, `peer_streams` | sockets of host candidates, by UDP and TCP | tokio |
//! | `port_mapping`, `mdns` | ports that the router maps; names of candidates on the link | tokio |
//! | `relay_client`, `relay_stream` | allocations by UDP, TCP and WebSocket | tokio |
//! | `path` | the path in use | pure |
//! | `tunnel`, `outlet`, `datagram_queue` | one socket of QUIC over whatever path | tokio |
//! | `quic`, `connection`, `control_streams` | QUIC and its streams, and those that carry late candidates | tokio |
//! | `congestion`, `stall_recovery` | the congestion controller; what makes QUIC go on after a silence | |
//! | `resumption` | how a session goes on after a loss of its path, addresses or server | tokio |
//! | `gateway_fallback` | QUIC through the server's gateway, if nothing else works | tokio |
//! | `ticket`, `keys`, `call_auth`, `pinned_tls`, `initial_keys` | tickets, and the keys and authentication derived from them | pure |
//! | `protocol` | the name of the application protocol | pure |
//! | `ping` | what every listener answers beside its own protocol | tokio |
//! | `publish` | a TCP service at a gateway | tokio |
//! | `diagnosis` | what `agent doctor` finds out | in part |
//! | `mesh` | nodes that find each other and exchange messages without a server | pure |

mod admission;
mod call;
mod call_auth;
mod candidate;
mod code;
mod config;
mod congestion;
mod connect;
mod connection;
mod control_streams;
mod datagram_queue;
#[cfg(feature = "cli")]
pub(crate) mod diagnosis;
mod engine;
mod error;
mod gateway_fallback;
mod gathering;
mod hard_nat;
mod host_addresses;
mod ice_engine;
mod initial_keys;
mod keys;
mod listener;
mod mdns;
#[cfg(feature = "mesh")]
#[allow(dead_code, reason = "the service that drives it is not built yet")]
pub(crate) mod mesh;
mod nat;
mod nat64;
mod outlet;
mod path;
mod peer_streams;
pub(crate) mod ping;
mod pinned_tls;
mod port_mapping;
mod protocol;
mod publish;
mod quic;
mod relay_client;
mod relay_reason;
mod relay_stream;
mod resumption;
mod servers;
mod session;
mod signaling_client;
mod stall_recovery;
mod ticket;
mod tunnel;
mod udp_port;
mod webrtc_engine;

pub use crate::net::client_tls::Tls;
pub use crate::net::proxy_settings::{ProxySettings, ProxySettingsError};
pub use crate::signaling::wire::NatType;
pub use admission::TicketLimits;
pub use code::offered::{CodeEnd, CodeEvent, OfferedCode};
pub use code::{CodeError, ShortCode};
pub use config::{Config, ServerName, ServerNameError};
pub use connect::Agent;
pub use connection::{Connection, PathChanges, RecvStream, SendStream};
pub use engine::IceImplementation;
pub use error::{
    ConnectError, ConnectionError, DatagramError, OfferError, PathAttempts, Refusal, RegistrationError,
};
pub use listener::Listener;
pub use path::{PathInfo, PathKind, PathPolicy, PathTransport};
pub use protocol::{Protocol, ProtocolNameError};
pub(crate) use publish::{ServiceConnection, ServiceEvent, bridge, publish};
#[cfg(all(test, feature = "forward"))]
pub(crate) use quic::tests::connection_pair;
#[cfg(all(feature = "cli", feature = "messaging-client"))]
pub(crate) use ticket::TicketAccount;
pub use ticket::{Ticket, TicketError};
