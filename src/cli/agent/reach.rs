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
use super::secrets::{prompt_for, read_descriptor, read_file};
use super::terminal::{close_politely, interrupted};
use crate::agent::{Agent, Connection, Protocol, ServerName, ShortCode, Ticket};
use clap::Args;
use std::path::PathBuf;

/// See the [module](self).
#[derive(Debug, Args)]
pub(super) struct ReachOptions {
    /// File that contains the ticket or code
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,
    #[arg(long, env = "AGENT_TICKET", hide = true, hide_env_values = true)]
    pub(super) environment_ticket: Option<String>,
    /// Descriptor from which the code or ticket is read, such as 3 with `3< FILE`
    #[arg(long, value_name = "N")]
    code_fd: Option<u32>,
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
    /// The listener that offers the code.
    Code(ShortCode),
}

impl Target {
    /// Parses a ticket, or the line that it was printed in, or a code.
    fn parse(text: &str) -> Result<Self, UsageError> {
        if text.trim().starts_with(gateway::TOKEN_PREFIX) {
            return Err(UsageError::TokenAsTicket);
        }
        // A code is often pasted with its command; the number begins the last three words.
        let word = text.split_whitespace().last().unwrap_or_default();
        let code = text.parse().or_else(|error| word.parse().map_err(|_| error));
        match code {
            Ok(code) => Ok(Self::Code(code)),
            Err(error) if text.trim_start().starts_with(|c: char| c.is_ascii_digit()) => {
                Err(UsageError::Code(error))
            }
            Err(_) => Ok(Self::Ticket(text.parse()?)),
        }
    }

    /// Returns the ticket, if the peer was named by one.
    #[cfg(any(feature = "messaging-client", feature = "files"))]
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Ticket(ticket) => Some(ticket),
            Self::Code(_) => None,
        }
    }
}

impl Target {
    /// Returns the servers at which the peer may be.
    pub(super) fn servers(&self) -> Vec<ServerName> {
        match self {
            Self::Ticket(ticket) => ticket.servers(),
            // Those of the command line.
            Self::Code(_) => Vec::new(),
        }
    }
}

impl ReachOptions {
    /// Returns whether a peer is named by an option or the environment.
    #[cfg(feature = "files")]
    pub(super) fn is_given(&self) -> bool {
        self.ticket_file.is_some()
            || self.code_fd.is_some()
            || self.environment_ticket.is_some()
            || self.environment_code.is_some()
    }

    /// Returns whom to connect to: the argument, or else a file, a descriptor, the environment or the answer to a prompt.
    pub(super) fn target(&self, argument: Option<&str>, report: &Reporter) -> Result<Target, UsageError> {
        let given = [
            argument.map(|text| Ok(text.to_owned())),
            self.ticket_file.as_ref().map(|file| read_file("--ticket-file", file)),
            self.code_fd.map(|number| read_descriptor("--code-fd", number)),
        ];
        let mut given = given.into_iter().flatten();
        let text = match (given.next(), given.next()) {
            (Some(_), Some(_)) => return Err(UsageError::TwoTickets),
            (Some(text), None) => text?,
            (None, _) => match (&self.environment_ticket, &self.environment_code) {
                (Some(ticket), code) => {
                    if code.is_some() {
                        report.note("AGENT_CODE is ignored: a ticket is read from AGENT_TICKET");
                    }
                    ticket.clone()
                }
                (None, Some(code)) => code.clone(),
                (None, None) => prompt_for("Code or ticket")?.ok_or(UsageError::NoTicket)?,
            },
        };
        Target::parse(&text)
    }

    /// Connects. An interrupted call informs the other side.
    pub(super) async fn connect(
        &self,
        target: &Target,
        protocol: Protocol,
        report: &Reporter,
    ) -> Result<Connection, CommandError> {
        let agent = Agent::new(self.network.config(protocol.clone())?);
        let named = self.network.server.first();
        let name = match target {
            Target::Ticket(ticket) => named.unwrap_or(ticket.server()),
            Target::Code(_) if protocol == Protocol::PING => return Err(UsageError::CodeToPing.into()),
            Target::Code(_) => named.ok_or(UsageError::NoCodeServer)?,
        };
        proxy_environment::report(report, &name.host, name.port);
        let server = name.to_string();
        let connecting = async {
            match target {
                Target::Ticket(ticket) => agent.connect(ticket).await,
                Target::Code(code) => agent.connect_code(code).await,
            }
        };
        let connection = tokio::select! {
            connection = connecting => connection,
            () = interrupted() => {
                close_politely().await;
                return Err(UsageError::Interrupted.into());
            }
        };
        connection.map_err(|error| CommandError::at(&server, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_or_ticket_is_found_in_what_is_pasted() {
        for text in ["7-crater-violin", "7 crater violin\n", "agent connect --server h 7-crater-violin"] {
            let Ok(Target::Code(code)) = Target::parse(text) else { panic!("{text}") };
            assert_eq!(code.to_string(), "7-crater-violin");
        }
        let ticket = Ticket::new("h".parse().unwrap(), "tag", [1; 16]).to_string();
        for text in [ticket.clone(), format!("    agent connect {ticket}\n")] {
            assert!(matches!(Target::parse(&text), Ok(Target::Ticket(_))), "{text}");
        }
        assert!(matches!(Target::parse("7-crater-violim"), Err(UsageError::Code(_))));
        assert!(matches!(Target::parse("something"), Err(UsageError::Ticket(_))));
        assert!(matches!(Target::parse("gt_x"), Err(UsageError::TokenAsTicket)));
    }
}
