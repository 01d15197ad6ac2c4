//! `agent connect`.

use super::OutputOptions;
use super::error::CommandError;
use super::gateway::DialOptions;
#[cfg(feature = "messaging-client")]
use super::messages;
use super::pipe::{self, Directions, StreamOrigin};
use super::reach::ReachOptions;
use super::report::Reporter;
#[cfg(feature = "messaging-client")]
use crate::agent::ConnectError;
use crate::agent::Protocol;
use clap::Args;

const AFTER_HELP: &str = "\
As the ProxyCommand of ssh, which needs no local port:
  ssh -o ProxyCommand='agent connect --ticket-file FILE' NAME       there: socat TCP:127.0.0.1:22 EXEC:'agent listen --server HOST'
  ssh -o ProxyCommand='agent connect --gateway HOST --id N' NAME    there: agent share --gateway HOST --id N --to 22
For several connections: agent share tcp 22 --name ssh there, agent forward 2222:ssh here.";

/// Options of `agent connect`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Connect {
    /// The code (with --server) or ticket that `agent listen` printed on the other machine, or the whole line. Default: --ticket-file, --code-fd, AGENT_TICKET, AGENT_CODE, or a prompt
    #[arg(value_name = "CODE|TICKET")]
    peer: Vec<String>,
    #[command(flatten)]
    reach: ReachOptions,
    #[command(flatten)]
    gateway: DialOptions,
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    message: messages::MessageOptions,
    #[command(flatten)]
    directions: Directions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Connect {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        if self.gateway.is_used() {
            let (ticket, tls) = (self.reach.environment_ticket.as_deref(), &self.reach.network.tls);
            return self.gateway.run(report, ticket, (tls, self.directions)).await;
        }
        let peer = self.peer.join(" ");
        let target = self.reach.target(Some(peer.as_str()).filter(|_| !self.peer.is_empty()), report)?;
        #[cfg(feature = "messaging-client")]
        let message = self.message.message(target.ticket(), report)?;
        let connection = self.reach.connect(&target, Protocol::PIPE, report).await;
        #[cfg(feature = "messaging-client")]
        if let (Err(CommandError::Connect { error: ConnectError::Offline, .. }), Some(message)) =
            (&connection, message)
        {
            return message.leave(report).await;
        }
        pipe::run(connection?, StreamOrigin::Local, self.directions, report).await
    }
}
