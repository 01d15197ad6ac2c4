//! ginnel gets two machines behind NATs talking: by the shortest path there is, through the relay where there is none.
//!
//! # Map
//!
//! | room | holds |
//! | --- | --- |
//! | [`stun`] | the STUN codec |
//! | [`stun_server`] | Binding |
//! | [`turn_server`] | the relay |
//! | [`signaling`] | tag, token and notify |
//! | [`gateway`] | virtual connections |
//! | [`agent`] | the peer |
//! | [`limits`] | what happens when a limit is reached |
//! | [`load`] | the load generator |
//! | [`net`] | sockets and demultiplexing |
//! | [`ids`], [`clock`] | values every room shares |
//!
//! # The run-loop contract
//!
//! A machine takes events and the time (`handle_*(now, …)`), and its hands then drain `poll_output` to `None` and arm a
//! timer for `poll_timeout`: *one mutation, then drain, then arm*. A machine never waits, never reads a clock and never
//! draws from a random source that it was not handed, so that the same seed and inputs give the same outputs.

#[forbid(unsafe_code)]
pub mod agent;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod clock;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod gateway;
#[forbid(unsafe_code)]
pub mod ids;
#[forbid(unsafe_code)]
pub mod limits;
#[forbid(unsafe_code)]
pub mod load;
pub mod net; // of its modules udp and heap alone may hold unsafe code
#[forbid(unsafe_code)]
pub mod server;
#[forbid(unsafe_code)]
pub mod signaling;
#[forbid(unsafe_code)]
pub mod state;
#[forbid(unsafe_code)]
pub mod stun;
#[forbid(unsafe_code)]
pub mod stun_server;
#[forbid(unsafe_code)]
pub mod telemetry;
#[forbid(unsafe_code)]
pub mod turn_server;

pub use agent::{Agent, Connection};
pub use config::Config;
pub use server::{Config as ServerConfig, Server, ServerError};
pub use state::State;
