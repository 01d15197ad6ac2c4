//! Logs: what is written, where to, and whether addresses show.

use crate::ids;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Debug, Clone)]
pub struct Config {
    /// A `tracing` filter such as `info` or `ginnel=debug`; default `info`.
    pub level: String,
    /// Whether addresses and names are written out; default false.
    pub addresses: bool,
    /// Whether lines are JSON; default false.
    pub json: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), addresses: false, json: false }
    }
}

/// Starts writing logs to standard error.
///
/// # Errors
/// When the filter cannot be read, or logs were started before.
pub fn start(config: &Config) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    ids::show_personal_data(config.addresses);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.level)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if config.json { lines.json().try_init() } else { lines.try_init() }
}
