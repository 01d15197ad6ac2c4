//! The command lines: what can be typed, and what is printed. One file per command.

pub mod advice;
pub mod agent;
mod agent_gateway;
mod agent_gateway_report;
mod agent_pipe;
mod agent_report;
mod agent_secrets;
pub mod credentials;
pub mod key;
pub mod load;
mod load_basics;
mod load_gateway;
mod load_processes;
mod load_report;
mod load_signaling;
pub mod serve;

use crate::config::{Config, ConfigError};
use crate::telemetry;
use anyhow::Context;
use clap::{Parser, Subcommand};
use std::path::Path;

/// Reads the configuration, and says which file is wrong.
fn load_config(file: Option<&Path>) -> anyhow::Result<Config> {
    let config = Config::load(file);
    match (&config, file) {
        // Named already.
        (Err(ConfigError::Read { path, .. }), Some(file)) if path == file => config.context("configuration"),
        (_, Some(file)) => config.with_context(|| format!("configuration {}", file.display())),
        (_, None) => config.context("configuration"),
    }
}

/// Says whether a terminal is to have colours (<https://no-color.org>).
fn has_colors() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Reads a log filter from the command line.
fn log_filter(text: &str) -> Result<String, String> {
    match telemetry::is_filter(text) {
        true => Ok(text.to_owned()),
        false => Err("write error, warn, info, debug or trace, or a filter such as ginnel=debug".to_owned()),
    }
}

/// `ginnel`: STUN, TURN, signalling and a gateway on one port.
#[derive(Debug, Parser)]
#[command(
    name = "ginnel",
    version,
    about = "STUN, TURN, signalling and a gateway on one port: gets two machines behind NATs talking"
)]
pub struct Ginnel {
    /// What to do.
    #[command(subcommand)]
    pub command: GinnelCommand,
}

const LOAD_EXAMPLES: &str = "Examples:
  ginnel load binding  --server 127.0.0.1:3478
  ginnel load allocate --server 127.0.0.1:3478 --user u --password-file pw --count 1000 --concurrency 64
  ginnel load relay    --server 127.0.0.1:3478 --user u --password-file pw --allocations 100 --rate 50000
  ginnel load relay    --server 127.0.0.1:3478 --user u --password-file pw --allocations 100 --search

Each ends by itself and gives back what it has taken. docs/load.md says how to read the reports.";

/// The commands of `ginnel`.
#[derive(Debug, Subcommand)]
pub enum GinnelCommand {
    /// Run the server; needs no configuration
    Serve(serve::Serve),
    /// Print the access key that admits clients to the relay
    Key(key::Key),
    /// Print what clients of the gateway need
    #[command(subcommand)]
    Gateway(key::Gateway),
    /// Print time-limited credentials for a client of the relay, or the keys of a password
    Credentials(credentials::Credentials),
    /// Put a STUN or TURN server, this or another, under load and measure it
    #[command(subcommand, after_help = LOAD_EXAMPLES)]
    Load(load::LoadCommand),
    /// Print every configuration key with its default, as TOML
    Config,
}
