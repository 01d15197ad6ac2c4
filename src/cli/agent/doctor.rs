//! `agent doctor`: what the network of this machine allows, and what would mend it.

use super::OutputOptions;
use super::error::{CommandError, UsageError};
use super::reach::ReachOptions;
use super::report::{Reporter, VERSION};
use crate::agent::diagnosis::{
    Diagnosis, NetworkDescription, PairObservations, Section, diagnose, pair_section, sections,
};
use crate::agent::{Config, Connection, PathInfo, PathKind, Protocol, ping};
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::time::Duration;
use tokio::time::timeout;

/// The exit code if nothing leads to others.
const NO_WAY: u8 = 5;
/// The longest measurement of how long a mapping lives, in seconds.
const LONGEST: u64 = 120;
/// How long the path to a peer may take to become direct.
const DIRECT_TIME: Duration = Duration::from_secs(8);

/// Options of `agent doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Predict the path to this peer, named as for `agent connect`, and compare it with the one that comes about; what the peer offers is not used up
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// Measure how long the NAT keeps a mapping without packets, for at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120", value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    lifetime: Option<u64>,
    #[command(flatten)]
    reach: ReachOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Doctor {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let config = self.reach.network.config(Protocol::PING)?;
        match &self.peer {
            Some(peer) => self.diagnose_pair(peer, config, report).await,
            None if self.reach.network.server.is_empty() => Err(UsageError::NoServerToTest.into()),
            None => Ok(self.diagnose_own(&config, report).await?.0),
        }
    }

    /// Reports about this machine; returns the exit code and the description.
    async fn diagnose_own(
        &self,
        config: &Config,
        report: &Reporter,
    ) -> Result<(u8, NetworkDescription), CommandError> {
        let seen = diagnose(config, self.lifetime.map(Duration::from_secs)).await;
        let diagnosis = Diagnosis::new(&seen);
        for section in sections(&seen, &diagnosis) {
            show(&section, report)?;
        }
        let code = if diagnosis.verdict.has_way() { 0 } else { NO_WAY };
        Ok((code, NetworkDescription::new(&seen, &diagnosis)))
    }

    /// Reports about this machine, then about the path to a peer.
    async fn diagnose_pair(&self, peer: &str, config: Config, report: &Reporter) -> Result<u8, CommandError> {
        let target = self.reach.target(Some(peer), report)?;
        let config = match self.reach.network.server.is_empty() {
            true => target.servers().into_iter().fold(config, Config::further_server),
            false => config,
        };
        let (_, own) = self.diagnose_own(&config, report).await?;
        let connection = self.reach.connect(&target, Protocol::PING, report).await?;
        let described = ping::description(&connection).await;
        let described = described.ok().and_then(|text| serde_json::from_str(&text).ok());
        let path = wait_for_direct(&connection).await;
        let pair = PairObservations { own: &own, peer: described.as_ref(), path: path.as_ref() };
        show(&pair_section(&pair), report)?;
        connection.abort("done").await;
        Ok(0)
    }
}

/// Waits until the path is direct, but not for long; returns the last one.
async fn wait_for_direct(connection: &Connection) -> Option<PathInfo> {
    let mut changes = connection.path_changes();
    let direct = async {
        while let Some(path) = changes.next().await {
            if path.kind == PathKind::Direct && !path.is_lost {
                break;
            }
        }
    };
    let _ = timeout(DIRECT_TIME, direct).await;
    connection.path()
}

/// Writes a section: text to standard output, or an event to standard error.
fn show(section: &Section, report: &Reporter) -> Result<(), CommandError> {
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
