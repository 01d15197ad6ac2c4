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
//! | [`agent`] | the peer |
//! | [`load`] | the load generator |
//! | [`net`] | sockets and demultiplexing |
//! | [`ids`], [`clock`] | values every room shares |
//!
//! # The run-loop contract
//!
//! A machine takes events and the time (`handle_*(now, …)`), and its hands then drain `poll_output` to `None` and arm a
//! timer for `poll_timeout`: *one mutation, then drain, then arm*. A machine never waits, never reads a clock and never
//! draws from a random source that it was not handed, so that the same seed and inputs give the same outputs.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod ids;
pub mod load;
pub mod net;
pub mod server;
pub mod signaling;
pub mod state;
pub mod stun;
pub mod stun_server;
pub mod telemetry;
pub mod turn_server;

pub use agent::{Agent, Connection};
pub use config::Config;
pub use server::{Config as ServerConfig, Server, ServerError};
pub use state::State;
