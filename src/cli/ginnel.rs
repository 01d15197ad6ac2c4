//! `ginnel`: the commands of the server.

#[cfg(feature = "load")]
use super::load;
#[cfg(feature = "manual")]
use super::manual;
use super::{advice, credentials, key, serve};
use crate::config::{Config, ConfigError};
use anyhow::Context;
#[cfg(feature = "manual")]
use clap::CommandFactory;
use clap::{Parser, Subcommand};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use tokio::runtime::Runtime;

/// Runs `ginnel` with the arguments of the process.
#[must_use]
pub fn run_server() -> ExitCode {
    match run(Ginnel::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<advice::AlreadyLogged>() => ExitCode::FAILURE,
        Err(error) => {
            advice::print(advice::report(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: GinnelCommand) -> anyhow::Result<()> {
    match command {
        GinnelCommand::Serve(serve) => Runtime::new()?.block_on(serve.run()),
        GinnelCommand::Key(key) => key.run(),
        GinnelCommand::Gateway(gateway) => gateway.run(),
        GinnelCommand::Credentials(credentials) => credentials.run(),
        #[cfg(feature = "load")]
        GinnelCommand::Load(load) => load.run(),
        #[cfg(feature = "manual")]
        GinnelCommand::Completions(completions) => Ok(completions.run(Ginnel::command())?),
        #[cfg(feature = "manual")]
        GinnelCommand::Man(man) => Ok(man.run(Ginnel::command())?),
        GinnelCommand::Config { advanced } => {
            let reference = match advanced {
                false => include_str!("../../docs/ginnel.example.toml"),
                true => include_str!("../../docs/ginnel.advanced.toml"),
            };
            Ok(write!(io::stdout(), "{reference}")?)
        }
    }
}

/// Reads the configuration. An error names the file.
pub(super) fn load_config(file: Option<&Path>) -> anyhow::Result<Config> {
    let config = Config::load(file);
    match (&config, file) {
        // Named already.
        (Err(ConfigError::Read { path, .. }), Some(file)) if path == file => config.context("configuration"),
        (_, Some(file)) => config.with_context(|| format!("configuration {}", file.display())),
        (_, None) => config.context("configuration"),
    }
}

/// `ginnel`: STUN, TURN, signalling and a gateway on one port.
#[derive(Debug, Parser)]
#[command(
    name = "ginnel",
    version,
    about = "STUN, TURN, signalling and a gateway on one port: connects machines behind NATs"
)]
struct Ginnel {
    /// The command.
    #[command(subcommand)]
    command: GinnelCommand,
}

#[cfg(feature = "load")]
const LOAD_EXAMPLES: &str = "Examples:
  ginnel load binding  --server 127.0.0.1:3478
  ginnel load allocate --server 127.0.0.1:3478 --user u --password-file pw --count 1000 --concurrency 64
  ginnel load relay    --server 127.0.0.1:3478 --user u --password-file pw --allocations 100 --rate 50000
  ginnel load relay    --server 127.0.0.1:3478 --user u --password-file pw --allocations 100 --search

Each load ends by itself and releases its allocations. docs/load.md explains the reports.";

/// The commands of `ginnel`.
#[derive(Debug, Subcommand)]
enum GinnelCommand {
    /// Run the server; needs no configuration
    Serve(serve::Serve),
    /// Print the access key, with which clients register and use the relay
    Key(key::KeyCommand),
    /// Print tokens for clients of the gateway
    #[command(subcommand)]
    Gateway(key::GatewayCommand),
    /// Print minted credentials for a client of the relay, or the keys of a password
    Credentials(credentials::CredentialsCommand),
    #[cfg(feature = "load")]
    /// Put a STUN or TURN server under load and measure it
    #[command(subcommand, after_help = LOAD_EXAMPLES)]
    Load(load::LoadCommand),
    /// Print the configuration keys with their defaults, as TOML
    Config {
        /// Print the keys that only measurements and unusual deployments need
        #[arg(long)]
        advanced: bool,
    },
    #[cfg(feature = "manual")]
    /// Print the completions of a shell
    Completions(manual::CompletionsCommand),
    #[cfg(feature = "manual")]
    /// Write manual pages
    Man(manual::ManCommand),
}
