//! `ginnel key` and `ginnel gateway`: print keys and gateway tokens.

use super::ginnel::load_config;
use crate::gateway::token::TokenClaims;
use crate::net::time;
use crate::server;
use crate::state::State;
use anyhow::bail;
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;

/// The server's files.
#[derive(Debug, Args)]
struct ServerFiles {
    /// The server's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder of the server [default: the configuration's, else state]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl ServerFiles {
    fn open(&self) -> anyhow::Result<(server::Config, State)> {
        let config = load_config(self.config.as_deref())?;
        let state = State::existing(self.state.as_ref().unwrap_or(&config.state))?;
        Ok((config.server, state))
    }
}

/// Options of `ginnel key`.
#[derive(Debug, Args)]
pub(super) struct KeyCommand {
    #[command(flatten)]
    files: ServerFiles,
    /// Print the admin key, which lists and revokes tags. Never put it on a web page
    #[arg(long, conflicts_with = "gateway")]
    admin: bool,
    /// Print the key of the gateway's servers
    #[arg(long)]
    gateway: bool,
}

impl KeyCommand {
    /// Prints the key.
    ///
    /// # Errors
    /// The state folder or the configuration cannot be used.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (config, state) = self.files.open()?;
        let key = match (self.gateway, &config.gateway.service.key) {
            (false, _) if self.admin => match state.admin_key() {
                Some(key) => key.to_owned(),
                None => bail!(
                    "no admin key in {} yet: the server creates one at its next start",
                    state.folder.display()
                ),
            },
            (false, _) => state.access_key,
            (true, None) => config.gateway_key(&state),
            (true, Some(_)) => bail!(
                "the configuration sets the gateway's key: see gateway.key, or the file that gateway.key_file names"
            ),
        };
        Ok(writeln!(std::io::stdout(), "{key}")?)
    }
}

/// Commands of `ginnel gateway`.
#[derive(Debug, Subcommand)]
pub(super) enum GatewayCommand {
    /// Print a token with which a client may dial, for gateway.require_token
    #[command(alias = "ticket")]
    Token(TokenCommand),
}

/// Options of `ginnel gateway token`.
#[derive(Debug, Args)]
pub(super) struct TokenCommand {
    #[command(flatten)]
    files: ServerFiles,
    /// Its lifetime
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(1..))]
    ttl: u64,
    /// The only server that its bearer may dial [default: any]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    server: Option<u32>,
}

impl GatewayCommand {
    /// Prints the token.
    ///
    /// # Errors
    /// As [`KeyCommand::run`].
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self::Token(TokenCommand { files, ttl, server }) = self;
        let (config, state) = files.open()?;
        let claims = TokenClaims { server, expires: time::now().unix.saturating_add(ttl) };
        Ok(writeln!(std::io::stdout(), "{}", config.token_issuer(&state).issue(claims))?)
    }
}
