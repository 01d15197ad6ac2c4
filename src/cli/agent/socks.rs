//! `agent socks`.

use super::OutputOptions;
use super::error::CommandError;
use super::forward::{Forwarding, LocalSocket};
use super::forward_error::ForwardCommandError;
use super::forward_spec::parse_socks;
use super::reach::ReachOptions;
use super::report::Reporter;
use super::terminal::raise_descriptor_limit;
use clap::Args;

/// Options of `agent socks`.
#[derive(Debug, Args)]
pub(super) struct Socks {
    /// The local port of the SOCKS 5 server; on loopback by default
    #[arg(value_name = "[BIND:]PORT")]
    at: String,
    /// The ticket or name of the other side. Default: --ticket-file, AGENT_TICKET, or a prompt
    #[arg(value_name = "PEER")]
    peer: Vec<String>,
    #[command(flatten)]
    reach: ReachOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Socks {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let at = parse_socks(&self.at).ok_or_else(|| ForwardCommandError::SocksSyntax(self.at.clone()))?;
        raise_descriptor_limit();
        let sockets = vec![LocalSocket::socks(at, report).await?];
        let peer = (!self.peer.is_empty()).then(|| self.peer.join(" "));
        let peer = self.reach.target(peer.as_deref(), report)?;
        Forwarding { reach: &self.reach, peer, sockets, reverse: Vec::new(), report: report.clone() }
            .run()
            .await
    }
}
