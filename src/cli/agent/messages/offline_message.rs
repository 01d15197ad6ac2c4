//! `agent connect --message`: a message for a listener that is offline.
//!
//! A listener whose user has logged in names the account in its ticket. The connector's own account must be at the same server.

use super::account::{AccountChoice, through_proxy};
use super::error::MessagingError;
use super::msg::{EMPTY, send_text};
use crate::agent::{Ticket, TicketAccount};
use crate::cli::agent::INTERRUPTED;
use crate::cli::agent::error::{CommandError, OFFLINE};
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::terminal::interrupted;
use crate::messaging_client::{Account, Client, PartyName, Receive};
use clap::Args;
use serde_json::json;
#[cfg(all(feature = "files", unix))]
use std::path::Path;

const USAGE: &str = "agent connect TICKET --message TEXT";

/// Options of `agent connect` for a message.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct MessageOptions {
    /// If the other side is offline, leave its user this message, end-to-end encrypted; both sides need `agent login`
    #[arg(long, value_name = "TEXT", conflicts_with = "gateway")]
    message: Option<String>,
    #[command(flatten)]
    choice: AccountChoice,
}

/// Options of `agent listen` for the account in its ticket.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct TicketOptions {
    /// Leave your account out of the ticket; with it, a caller can leave you a message while you are offline
    #[arg(long, conflicts_with = "account")]
    no_account: bool,
    #[command(flatten)]
    choice: AccountChoice,
}

/// A message that is sent if the other side is offline.
#[derive(Debug)]
pub(in crate::cli::agent) struct OfflineMessage {
    text: String,
    account: Account,
    recipient: PartyName,
}

impl MessageOptions {
    /// Returns the message, if there is one, with everything that it needs: a connector learns before its call what is missing.
    pub(in crate::cli::agent) fn message(
        &self,
        ticket: Option<&Ticket>,
        report: &Reporter,
    ) -> Result<Option<OfflineMessage>, CommandError> {
        let Some(text) = self.message.clone() else { return Ok(None) };
        if text.is_empty() {
            return Err(MessagingError::Input { what: EMPTY, hint: USAGE }.into());
        }
        let listener = ticket.and_then(Ticket::account).ok_or(MessagingError::NoTicketAccount)?;
        let recipient = PartyName::user(&listener.user).map_err(|_| MessagingError::NoTicketAccount)?;
        let account = self.choice.account()?;
        if !account.server().authority().eq_ignore_ascii_case(&listener.server) {
            let server = escape::line(&listener.server);
            return Err(MessagingError::OtherServer { server, account: account.server().to_string() }.into());
        }
        let account = through_proxy(account, report)?;
        Ok(Some(OfflineMessage { text, account, recipient }))
    }
}

impl OfflineMessage {
    /// Sends the message; returns the exit code for a peer that is offline.
    pub(in crate::cli::agent) async fn leave(self, report: &Reporter) -> Result<u8, CommandError> {
        let name = self.recipient.to_string();
        report.write(
            || format!("Offline  the other side is not online; leaving {} a message", escape::name(&name)),
            || json!({"v": VERSION, "t": "offline", "user": name}),
        );
        tokio::select! {
            sent = self.send(report) => sent.map(|()| OFFLINE).map_err(CommandError::from),
            () = interrupted() => Ok(INTERRUPTED),
        }
    }

    async fn send(&self, report: &Reporter) -> Result<(), MessagingError> {
        let mut client = Client::connect(&self.account, Receive::Nothing).await?;
        // An account that was made by `agent login` has keys.
        send_text(&mut client, &self.recipient, &self.text, true, report).await?;
        Ok(client.close().await?)
    }
}

impl TicketOptions {
    /// Returns the state folder, if it is not the default one.
    #[cfg(all(feature = "files", unix))]
    pub(in crate::cli::agent) fn state(&self) -> Option<&Path> {
        self.choice.state()
    }

    /// Returns the account for a ticket; none if nobody has logged in. One that cannot be read does not keep a listener from listening,
    /// unless it was asked for.
    pub(in crate::cli::agent) fn account(
        &self,
        report: &Reporter,
    ) -> Result<Option<TicketAccount>, CommandError> {
        if self.no_account {
            return Ok(None);
        }
        match self.choice.account() {
            Ok(account) if account.is_registered() => Ok(Some(TicketAccount {
                user: account.user().to_owned(),
                server: account.server().authority(),
            })),
            Ok(_) | Err(MessagingError::NoAccount(None)) => Ok(None),
            Err(error) if self.choice.is_named() => Err(error.into()),
            Err(error) => {
                let what = CommandError::from(error).message();
                report.note(&format!("the ticket names no account: {what}"));
                Ok(None)
            }
        }
    }
}
