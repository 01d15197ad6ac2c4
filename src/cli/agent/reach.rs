//! Whom a command goes to: the options of everyone who connects to a peer.
//!
//! A command flattens [`ReachOptions`] into its own, beside an argument for the peer, which it names as it likes. Its run has two steps:
//!
//! ```ignore
//! let target = self.reach.target(self.peer.as_deref(), report)?; // argument, file, environment or prompt
//! let connection = self.reach.connect(&target, Protocol::PIPE, report).await?;
//! path_line::show_while(report, connection.path_changes(), work(connection)).await
//! ```
//!
//! Both errors end the command as they are: they have an exit code and say what to type. Ctrl-C is [`UsageError::Interrupted`].

use super::error::{CommandError, UsageError};
use super::gateway;
use super::network::NetworkOptions;
use super::proxy_environment;
use super::report::Reporter;
use super::secrets::{prompt_for, read_file};
use super::terminal::{close_politely, interrupted};
use crate::agent::{Agent, Connection, Protocol, ServerName, Ticket};
use clap::Args;
use std::path::PathBuf;

/// See the [module](self).
#[derive(Debug, Args)]
pub(super) struct ReachOptions {
    /// File that contains the ticket
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,
    #[arg(long, env = "AGENT_TICKET", hide = true, hide_env_values = true)]
    pub(super) environment_ticket: Option<String>,
    /// Reserved for short codes
    #[arg(long, env = "AGENT_CODE", hide = true, hide_env_values = true)]
    environment_code: Option<String>,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

/// Whom a command goes to.
#[derive(Debug)]
pub(super) enum Target {
    /// The listener that made the ticket.
    Ticket(Ticket),
}

#[cfg(any(feature = "messaging-client", feature = "files"))]
impl Target {
    /// Returns the ticket, if the peer was named by one.
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Ticket(ticket) => Some(ticket),
        }
    }
}

impl Target {
    /// Returns the servers at which the peer may be.
    pub(super) fn servers(&self) -> Vec<ServerName> {
        match self {
            Self::Ticket(ticket) => ticket.servers(),
        }
    }
}

impl ReachOptions {
    /// Returns whether a peer is named by an option or the environment.
    #[cfg(feature = "files")]
    pub(super) fn is_given(&self) -> bool {
        self.ticket_file.is_some() || self.environment_ticket.is_some() || self.environment_code.is_some()
    }

    /// Returns whom to connect to: the argument, or else the file, the environment or the answer to a prompt.
    pub(super) fn target(&self, argument: Option<&str>, report: &Reporter) -> Result<Target, UsageError> {
        let text = match (argument, &self.ticket_file, &self.environment_ticket) {
            (Some(_), Some(_), _) => return Err(UsageError::TwoTickets),
            (Some(argument), ..) => Some(argument.to_owned()),
            (None, Some(file), _) => Some(read_file("--ticket-file", file)?),
            (None, None, ticket) => ticket.clone(),
        };
        let text = match (text, &self.environment_code) {
            (Some(text), None) => text,
            (Some(text), Some(_)) => {
                report.note("AGENT_CODE is ignored: a ticket is read from AGENT_TICKET");
                text
            }
            (None, Some(_)) => return Err(UsageError::FormerVariable("AGENT_CODE", "AGENT_TICKET")),
            (None, None) => prompt_for("Ticket")?.ok_or(UsageError::NoTicket)?,
        };
        if text.trim().starts_with(gateway::TOKEN_PREFIX) {
            return Err(UsageError::TokenAsTicket);
        }
        Ok(Target::Ticket(text.parse()?))
    }

    /// Connects. An interrupted call informs the other side.
    pub(super) async fn connect(
        &self,
        target: &Target,
        protocol: Protocol,
        report: &Reporter,
    ) -> Result<Connection, CommandError> {
        let agent = Agent::new(self.network.config(protocol)?);
        let Target::Ticket(ticket) = target;
        let name = self.network.server.first().unwrap_or(ticket.server());
        proxy_environment::report(report, &name.host, name.port);
        let server = name.to_string();
        let connection = tokio::select! {
            connection = agent.connect(ticket) => connection,
            () = interrupted() => {
                close_politely().await;
                return Err(UsageError::Interrupted.into());
            }
        };
        connection.map_err(|error| CommandError::at(&server, error))
    }
}
