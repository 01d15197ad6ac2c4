//! The peer: two machines behind NATs get an end-to-end encrypted connection, direct or relayed.
//!
//! A listener registers with a server and makes a [`Ticket`]; whoever is handed it connects. Both sides gather candidates and
//! check them ([RFC 8445](https://www.rfc-editor.org/rfc/rfc8445)), twice at once: one lane through the relay, which carries
//! data as soon as it works, and a direct one, which takes over when it works. QUIC runs over whichever lane is in use, with
//! both sides' keys derived from the ticket's secret, so that the server can neither read nor impersonate.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ginnel::agent::{Agent, Config};
//!
//! let config = Config { server: Some("turn.example".parse()?), ..Config::default() };
//! let mut listener = Agent::new(config).listen().await?;
//! println!("agent connect {}", listener.ticket());
//! let connection = listener.accept().await.ok_or("nobody can call any more")??;
//! let (mut send, mut recv) = connection.accept_bi().await?;
//! tokio::io::copy(&mut recv, &mut send).await?;
//! send.finish().await?;
//! connection.finish().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | room | holds | |
//! | --- | --- | --- |
//! | `session`, `reason`, `candidate` | one call's negotiation and how it is explained | pure |
//! | `lanes` | which lane carries the data | pure |
//! | `ticket`, `identity`, `binding`, `nat` | tickets, the keys in them and those of one call, what a NAT does | pure |
//! | `initial` | the call's key in QUIC's first packets | pure |
//! | `call` | the hands of one call | tokio |
//! | `ice` | a lane: the only file that names `webrtc_ice` | tokio |
//! | `tcp_leg`, `probe`, `link` | TURN over TCP, STUN to the server, signalling over WebSocket | tokio |
//! | `tunnel`, `quic`, `connection` | lanes as one socket, QUIC over it, its streams | tokio |
//! | `gateway` | a TCP service published at a gateway | tokio |
//! | `rung` | the last path to try: QUIC through the server's gateway | tokio |
//! | `peer`, `listener` | [`Agent`] and [`Listener`] | tokio |

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

pub use config::{Config, ServerName, ServerNameError};
pub use connect::Agent;
pub use connection::{Connection, PathChanges, RecvStream, SendStream};
pub use error::{Error, Refusal, Stage};
pub use listener::Listener;
pub use path::{PathInfo, PathKind};
pub use publish::{ServiceConnection, ServiceEvent, bridge, publish};
pub use session::{Mode, Tried};
pub use ticket::{Secret, Ticket, TicketError};
