//! `agent password`: sets the password of an account.

use super::account::AccountOptions;
use super::error::MessagingError;
use crate::cli::agent::OutputOptions;
use crate::cli::agent::error::{CommandError, UsageError};
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::secrets::{prompt_for, read_file};
use crate::messaging_client::{AccountChange, ClientError, ErrorCode, Receive};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Longest password, in bytes.
const MAX_PASSWORD: usize = 128;
const USAGE: &str = "agent password     or --password-file FILE";

/// Options of `agent password`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Password {
    /// File that contains the new password [default: a prompt]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    account: AccountOptions,
}

impl Password {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.account.output
    }

    fn password(&self) -> Result<String, CommandError> {
        let password = match &self.password_file {
            Some(file) => read_file("--password-file", file)?.lines().next().unwrap_or_default().to_owned(),
            None => {
                let first = prompt_for("New password")?.ok_or(UsageError::NoTerminal)?;
                let again = prompt_for("The same again")?.ok_or(UsageError::NoTerminal)?;
                if first != again {
                    let what = "the two passwords differ";
                    return Err(MessagingError::Input { what, hint: USAGE }.into());
                }
                first
            }
        };
        match (1..=MAX_PASSWORD).contains(&password.len()) {
            true => Ok(password),
            false => {
                let what = "a password has 1 to 128 bytes";
                Err(MessagingError::Input { what, hint: USAGE }.into())
            }
        }
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        if !self.account.choice.account()?.server().has_tls() {
            let message = "a password is sent inside TLS only".to_owned();
            let refused = ClientError::Refused { code: ErrorCode::TlsRequired, message };
            return Err(MessagingError::Client(refused).into());
        }
        let password = self.password()?;
        let (account, client) = self.account.choice.connect(Receive::Nothing, report).await?;
        let changed = client.change_account(AccountChange::SetPassword(password)).await;
        changed.map_err(MessagingError::from)?;
        report.write(
            || "Password set: clients of the TCP protocol log in with it".to_owned(),
            || json!({"v": VERSION, "t": "password_set", "user": account.user()}),
        );
        Ok(0)
    }
}
