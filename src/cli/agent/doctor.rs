//! `agent doctor`: what the network of this machine allows, and what would mend it.

use super::error::{CommandError, UsageError};
use super::gateway::TlsOptions;
use super::report::{Reporter, VERSION};
use super::secrets::KeySource;
use super::{OutputOptions, proxy_environment};
use crate::agent::diagnosis::{Diagnosis, Section, diagnose, sections};
use crate::agent::{Config, ServerName};
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::time::Duration;

/// The exit code if nothing leads to others.
const NO_WAY: u8 = 5;
/// The longest measurement of how long a mapping lives, in seconds.
const LONGEST: u64 = 120;

/// Options of `agent doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The server: HOST[:PORT], or https://HOST[:PORT] for TLS; again for further ones, at most four [default port: 3478]
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Vec<ServerName>,
    #[command(flatten)]
    key: KeySource,
    #[command(flatten)]
    tls: TlsOptions,
    /// Do not ask the router to map ports
    #[arg(long)]
    no_port_mapping: bool,
    /// Measure how long the NAT keeps a mapping without packets, for at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120", value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    lifetime: Option<u64>,
    #[command(flatten)]
    pub(super) output: OutputOptions,
}

impl Doctor {
    fn config(&self) -> Result<Config, UsageError> {
        if self.server.is_empty() {
            return Err(UsageError::NoServerToTest);
        }
        let mut config = Config::new()
            .port_mapping(!self.no_port_mapping)
            .tls(self.tls.tls()?)
            .proxies(proxy_environment::read()?);
        for server in &self.server {
            config = config.further_server(server.clone());
        }
        Ok(match self.key.key(false)? {
            Some(key) => config.key(key),
            None => config,
        })
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let config = self.config()?;
        let lifetime = self.lifetime.map(Duration::from_secs);
        let seen = diagnose(&config, lifetime).await;
        let diagnosis = Diagnosis::new(&seen);
        for section in sections(&seen, &diagnosis) {
            show(&section, report)?;
        }
        Ok(if diagnosis.verdict.has_way() { 0 } else { NO_WAY })
    }
}

/// Writes a section: text to standard output, or an event to standard error.
pub(super) fn show(section: &Section, report: &Reporter) -> Result<(), CommandError> {
    if report.is_json() {
        let mut event = section.fields();
        event.insert("v".to_owned(), json!(VERSION));
        event.insert("t".to_owned(), json!(section.event));
        report.write(String::new, || Value::Object(event));
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(format!("{}\n", section.text()).as_bytes()).and_then(|()| stdout.flush());
    written.map_err(CommandError::Output)
}
