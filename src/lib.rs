//! ginnel connects two hosts behind NATs: directly where the networks allow it, through a TURN relay where they do not.
//!
//! # What is in it
//!
//! | module | content |
//! | --- | --- |
//! | [`stun`] | the STUN codec ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489)) |
//! | [`stun_server`] | Binding, NAT behaviour discovery ([RFC 5780](https://www.rfc-editor.org/rfc/rfc5780)) |
//! | [`turn_client`] | the TURN client's state machine ([RFC 8656](https://www.rfc-editor.org/rfc/rfc8656)), [`turn_client::TurnClient`] |
//! | [`turn_server`] | the TURN server's state machine ([RFC 8656](https://www.rfc-editor.org/rfc/rfc8656)), [`Relay`] |
//! | [`signaling`] | signalling by tag, token and notify; its state machine, [`Hub`] |
//! | [`gateway`] | virtual connections; [`gateway::client`] dials and accepts them |
//! | [`ice`] | the ICE agent's state machine ([RFC 8445](https://www.rfc-editor.org/rfc/rfc8445)), [`ice::IceAgent`] |
//! | [`agent`] | the ICE peer, [`Agent`] |
//! | [`messaging_client`] | end-to-end encrypted messages to users who may be offline |
//! | [`server`] | all services on their ports, [`Server`] |
//!
//! # Calling contract of the state machines
//!
//! [`Relay`] and [`Hub`] do no I/O. The caller owns the sockets and the clock:
//!
//! 1. Pass each received packet to a `handle_*` method, with the time.
//! 2. Call `poll_output` until it returns `None`, and carry out each output.
//! 3. Schedule `handle_timeout` for the time that `poll_timeout` returns.
//!
//! A state machine never waits and never reads a clock. It draws random numbers only from the seed that it was created with: the same
//! seed and the same inputs give the same outputs.
//!
//! # Examples
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ginnel::{Server, ServerConfig, State};
//!
//! let state = State::open("/var/lib/ginnel".as_ref())?;
//! let server = Server::start(ServerConfig::default(), &state).await?;
//! println!("{}", server.info().ice_servers("guest"));
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

// What only one of the features uses is dead code without it.
#![cfg_attr(
    not(all(
        feature = "server",
        feature = "agent",
        feature = "forward",
        feature = "load",
        feature = "mesh",
        feature = "messaging",
        feature = "messaging-client",
        feature = "files",
        feature = "cli"
    )),
    allow(dead_code, unused_imports, unreachable_pub)
)]

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod clock;
#[cfg(all(feature = "server", feature = "cli"))]
mod config;
#[cfg(feature = "server")]
mod dataplane;
#[cfg(all(feature = "files", unix))]
pub(crate) mod file_transfer;
#[cfg(feature = "forward")]
mod forwarding;
#[cfg(any(feature = "server", feature = "gateway-client"))]
pub mod gateway;
#[cfg(feature = "agent")]
pub mod ice;
#[cfg(any(feature = "server", feature = "cli"))]
mod ids;
#[cfg(all(feature = "server", feature = "load"))]
#[doc(hidden)]
pub mod internals;
#[cfg(any(feature = "server", feature = "gateway-client", feature = "cli"))]
mod limits;
#[cfg(feature = "load")]
mod load;
#[cfg(feature = "messaging")]
mod messaging;
#[cfg(feature = "messaging-client")]
pub mod messaging_client;
#[cfg(any(feature = "messaging", feature = "messaging-client"))]
mod messaging_wire;
mod net;
#[cfg(feature = "server")]
pub mod server;
#[cfg(any(feature = "server", feature = "agent"))]
pub mod signaling;
#[cfg(feature = "server")]
mod state;
#[cfg(feature = "messaging")]
mod store;
pub mod stun;
#[cfg(feature = "server")]
pub mod stun_server;
#[cfg(feature = "cli")]
mod telemetry;
#[cfg(any(feature = "server", feature = "agent"))]
pub mod turn_client;
#[cfg(feature = "server")]
pub mod turn_server;
#[cfg(any(feature = "server", feature = "agent"))]
mod turn_wire;
#[cfg(any(feature = "server", feature = "messaging-client", feature = "files"))]
mod whole_file;

#[cfg(feature = "agent")]
pub use agent::{Agent, Connection};
pub use clock::Now;
#[cfg(feature = "server")]
pub use server::{Config as ServerConfig, Server, ServerError};
#[cfg(feature = "server")]
pub use signaling::Hub;
#[cfg(feature = "server")]
pub use state::{State, StateError};
#[cfg(feature = "server")]
pub use turn_server::Relay;
