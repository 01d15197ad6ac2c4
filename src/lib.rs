//! ginnel connects two hosts behind NATs: directly where the networks allow it, through a TURN relay where they do not.
//!
//! # What is in it
//!
//! | module | content |
//! | --- | --- |
//! | [`stun`] | the STUN codec ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489)) |
//! | [`stun_server`] | Binding, NAT behaviour discovery ([RFC 5780](https://www.rfc-editor.org/rfc/rfc5780)) |
//! | [`turn_server`] | the TURN server's state machine ([RFC 8656](https://www.rfc-editor.org/rfc/rfc8656)), [`Relay`] |
//! | [`signaling`] | signalling by tag, token and notify; its state machine, [`Hub`] |
//! | [`gateway`] | virtual connections; [`gateway::client`] dials and accepts them |
//! | [`agent`] | the ICE peer, [`Agent`] |
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
//! println!("{}", server.facts().ice_servers("guest"));
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

#[forbid(unsafe_code)]
pub mod agent;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
mod clock;
#[forbid(unsafe_code)]
mod config;
#[forbid(unsafe_code)]
pub(crate) mod dataplane;
#[forbid(unsafe_code)]
pub mod gateway;
#[forbid(unsafe_code)]
mod ids;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod internals;
#[forbid(unsafe_code)]
mod limits;
#[forbid(unsafe_code)]
mod load;
mod net; // only its modules udp and heap may contain unsafe code
#[forbid(unsafe_code)]
pub mod server;
#[forbid(unsafe_code)]
pub mod signaling;
#[forbid(unsafe_code)]
mod state;
#[forbid(unsafe_code)]
pub mod stun;
#[forbid(unsafe_code)]
pub mod stun_server;
#[forbid(unsafe_code)]
mod telemetry;
#[forbid(unsafe_code)]
pub mod turn_server;

pub use agent::{Agent, Connection};
pub use clock::Now;
pub use server::{Config as ServerConfig, Server, ServerError};
pub use signaling::Hub;
pub use state::{State, StateError};
pub use turn_server::Relay;
