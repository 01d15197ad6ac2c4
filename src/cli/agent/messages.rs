//! The commands of `agent` for messages: `login`, `msg`, `inbox`, `contacts`, `devices`, `password`.

mod account;
mod contacts;
mod devices;
mod error;
mod inbox;
mod login;
mod msg;
mod offline_message;
mod password;

use super::OutputOptions;
use super::error::CommandError;
use super::report::Reporter;
use clap::Subcommand;
pub(super) use error::MessagingError;
pub(super) use offline_message::{MessageOptions, TicketOptions};

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum MessagesCommand {
    /// Log in to a messaging account, or register it
    Login(login::Login),
    /// Send a message, end-to-end encrypted; the recipient may be offline
    Msg(msg::Msg),
    /// Show the messages that have arrived
    Inbox(inbox::Inbox),
    /// List contacts and whether they are online
    Contacts(contacts::Contacts),
    /// Show the devices of your account, or the fingerprint of another user
    Devices(devices::Devices),
    /// Set the password of your account, with which clients of the TCP protocol can log in too; needs TLS
    Password(password::Password),
}

impl MessagesCommand {
    pub(super) fn output(&self) -> &OutputOptions {
        match self {
            Self::Login(login) => login.output(),
            Self::Msg(msg) => msg.output(),
            Self::Inbox(inbox) => inbox.output(),
            Self::Contacts(contacts) => contacts.output(),
            Self::Devices(devices) => devices.output(),
            Self::Password(password) => password.output(),
        }
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        match self {
            Self::Login(login) => login.run(report).await,
            Self::Msg(msg) => msg.run(report).await,
            Self::Inbox(inbox) => inbox.run(report).await,
            Self::Contacts(contacts) => contacts.run(report).await,
            Self::Devices(devices) => devices.run(report).await,
            Self::Password(password) => password.run(report).await,
        }
    }
}
