//! `agent contacts`: lists, adds and removes contacts.

use super::account::{AccountOptions, party};
use super::error::MessagingError;
use crate::cli::agent::OutputOptions;
use crate::cli::agent::error::CommandError;
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::messaging_client::{Client, Contact, ErrorCode, PartyName, Receive, RequestError};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{self, Write};

/// Options of `agent contacts`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Contacts {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    account: AccountOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a user, or dev:ID for a device of the TCP protocol; two users who added each other see whether the other is online
    Add {
        /// The contact
        #[arg(value_parser = party)]
        name: PartyName,
    },
    /// Remove a contact
    Remove {
        /// The contact
        #[arg(value_parser = party)]
        name: PartyName,
    },
}

impl Contacts {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.account.output
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let (_, client) = self.account.choice.connect(Receive::Nothing, report).await?;
        match &self.action {
            None => {
                let contacts = client.contacts().await.map_err(MessagingError::from)?;
                write_contacts(&contacts, report).map_err(CommandError::Output)?;
            }
            Some(Action::Add { name }) => {
                add(&client, name).await?;
                report_change(report, "Added    ", "contact_added", name);
            }
            Some(Action::Remove { name }) => {
                client.remove_contact(name).await.map_err(MessagingError::from)?;
                report_change(report, "Removed  ", "contact_removed", name);
            }
        }
        client.close().await.map_err(MessagingError::from)?;
        Ok(0)
    }
}

/// Adds a contact that exists: the server accepts any name.
async fn add(client: &Client, name: &PartyName) -> Result<(), MessagingError> {
    if let Err(error @ RequestError::Refused { code: ErrorCode::NotFound, .. }) = client.devices(name).await {
        return Err(error.into());
    }
    Ok(client.add_contact(name).await?)
}

fn report_change(report: &Reporter, what: &str, code: &str, name: &PartyName) {
    report.write(
        || format!("{what}{}", escape::name(&name.to_string())),
        || json!({"v": VERSION, "t": code, "party": name.to_string()}),
    );
}

fn write_contacts(contacts: &[Contact], report: &Reporter) -> io::Result<()> {
    let mut text = String::new();
    for Contact { party, is_online } in contacts {
        let line = match report.is_json() {
            true => json!({"v": VERSION, "t": "contact", "party": party.to_string(), "online": is_online})
                .to_string(),
            false => {
                let state = match is_online {
                    Some(true) => "online",
                    Some(false) => "offline",
                    None => "–",
                };
                format!("{state:<8} {}", escape::name(&party.to_string()))
            }
        };
        text.push_str(&line);
        text.push('\n');
    }
    io::stdout().lock().write_all(text.as_bytes())
}
