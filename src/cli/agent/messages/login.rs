//! `agent login`: registers an account, or logs in with the one that is there.

use super::account::{StateFolder, through_proxy};
use super::error::MessagingError;
use crate::cli::agent::OutputOptions;
use crate::cli::agent::error::{CommandError, UsageError};
use crate::cli::agent::escape;
use crate::cli::agent::proxy_environment;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::secrets::{prompt_for, read_file};
use crate::messaging_client::{
    Account, Client, Fingerprint, Receive, RegistrationOptions, RequestError, ServerUrl,
};
use clap::Args;
use serde_json::json;
use std::io;
use std::path::PathBuf;

/// Longest name of a device, in bytes.
const MAX_LABEL: usize = 128;

/// Options of `agent login`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Login {
    /// The server: HOST[:PORT] or wss://HOST[:PORT] with TLS, ws://HOST[:PORT] without it [default port: 3478]
    server: String,
    /// The name of the account; one that is free is registered
    user: String,
    /// Prompt for a password, with which clients of the TCP protocol can log in too; needs TLS
    #[arg(long, conflicts_with = "password_file")]
    password: bool,
    /// File that contains the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceOptions,
}

/// Options of commands that make a device.
#[derive(Debug, Args)]
pub(super) struct DeviceOptions {
    /// The name of this device, which your other devices see [default: the name of this machine]
    #[arg(long, value_parser = label)]
    label: Option<String>,
    /// File of CA certificates (PEM) to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    pub(super) state: StateFolder,
    #[command(flatten)]
    pub(super) output: OutputOptions,
}

impl DeviceOptions {
    pub(super) fn registration(&self) -> Result<RegistrationOptions, UsageError> {
        let label = self.label.clone().or_else(host_name).unwrap_or_else(|| "device".to_owned());
        let options = RegistrationOptions::default().label(label).proxies(proxy_environment::read()?);
        Ok(match self.roots()? {
            Some(roots) => options.roots(roots),
            None => options,
        })
    }

    fn roots(&self) -> Result<Option<String>, UsageError> {
        self.ca.as_ref().map(read_pem).transpose()
    }
}

/// Parses the name of a device.
pub(super) fn label(text: &str) -> Result<String, String> {
    match (1..=MAX_LABEL).contains(&text.len()) && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("a device's name has 1 to 128 bytes and no control characters".to_owned()),
    }
}

/// Reads a file of certificates, which may be long.
fn read_pem(file: &PathBuf) -> Result<String, UsageError> {
    let read = std::fs::read_to_string(file).and_then(|text| match text.contains("-----BEGIN CERTIFICATE") {
        true => Ok(text),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "there is no certificate (PEM) in it")),
    });
    read.map_err(|source| UsageError::File { option: "--ca", file: file.display().to_string(), source })
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    name.map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty() && !name.chars().any(char::is_control))
}

/// Parses a server and a user, as `agent login` and `agent devices request` take them.
pub(super) fn parse_account(server: &str, user: &str) -> Result<ServerUrl, MessagingError> {
    if crate::messaging_client::PartyName::user(user).is_err() {
        let what = "a user name has 1 to 128 bytes and no control characters";
        return Err(MessagingError::Input { what, hint: "agent login SERVER USER" });
    }
    server.parse().map_err(|_| MessagingError::Server(server.to_owned()))
}

impl Login {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.device.output
    }

    fn password(&self) -> Result<Option<String>, UsageError> {
        match (&self.password_file, self.password) {
            (Some(file), _) => {
                let text = read_file("--password-file", file)?;
                Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
            }
            (None, true) => prompt_for("Password")?.map(Some).ok_or(UsageError::NoTerminal),
            (None, false) => Ok(None),
        }
    }

    /// What only a registration can set must not seem to be done.
    fn refuse_registration_options(&self) -> Result<(), MessagingError> {
        match (self.password || self.password_file.is_some(), self.device.label.is_some()) {
            (true, _) => Err(MessagingError::Input {
                what: "this account is registered: another command sets its password",
                hint: "agent password",
            }),
            (_, true) => Err(MessagingError::Input {
                what: "this device is registered: another command changes its label",
                hint: "agent devices rename N LABEL     `agent devices` shows N",
            }),
            _ => Ok(()),
        }
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let server = parse_account(&self.server, &self.user)?;
        let folder = self.device.state.folder_of(&server, &self.user)?;
        let existing = Account::open(&folder).map_err(MessagingError::from)?;
        let is_new =
            existing.as_ref().is_none_or(|account| !account.is_registered() && account.has_identity());
        let account = match existing.filter(|_| !is_new) {
            Some(mut account) => {
                self.refuse_registration_options()?;
                if let Some(roots) = self.device.roots()? {
                    account.set_roots(Some(roots)).map_err(MessagingError::from)?;
                }
                account.set_server(&server);
                log_in(through_proxy(account, report)?, report).await?
            }
            None => {
                let mut options = self.device.registration()?;
                let (host, port) = server.host_and_port();
                proxy_environment::report(report, host, port);
                if let Some(password) = self.password()? {
                    options = options.password(password);
                }
                let account = Account::register_with(&folder, &server, &self.user, options).await;
                account.map_err(MessagingError::from)?
            }
        };
        self.device.state.set_default(&account)?;
        let fingerprint = account.fingerprint().map_err(MessagingError::from)?;
        report_account(report, &account, is_new, fingerprint);
        Ok(0)
    }
}

/// Logs in once, and learns the own identity key on a device that was linked.
async fn log_in(mut account: Account, report: &Reporter) -> Result<Account, CommandError> {
    let client = Client::connect(&account, Receive::Nothing).await.map_err(MessagingError::from)?;
    let devices = client.devices(&account.party()).await.map_err(MessagingError::from)?;
    let own_key = account.signing_key().map_err(MessagingError::from)?;
    if !devices.devices.iter().any(|device| device.signing_key.0 == own_key) {
        let party = account.party();
        let source = crate::messaging_client::Distrust::Certificate;
        return Err(MessagingError::Request(RequestError::Distrusted { party, source }).into());
    }
    client.close().await.map_err(MessagingError::from)?;
    let is_linked_now = !account.is_registered();
    account.set_registered().map_err(MessagingError::from)?;
    if is_linked_now {
        report.note("compare the fingerprint below with the one on the device that added this one");
    }
    Ok(account)
}

fn report_account(report: &Reporter, account: &Account, is_new: bool, fingerprint: Option<Fingerprint>) {
    let (user, server) = (account.user(), account.server().to_string());
    let what = if is_new { "registered" } else { "logged in" };
    let fingerprint = fingerprint.map(|fingerprint| fingerprint.to_string());
    report.write(
        || {
            let fingerprint = fingerprint.as_deref().unwrap_or("unknown");
            let warning = match account.server().has_tls() {
                true => "",
                false => "\nNote     without TLS the network sees who writes to whom; messages are encrypted",
            };
            format!("Account  {} at {server}, {what}\nKey      {fingerprint}{warning}", escape::name(user))
        },
        || {
            json!({
                "v": VERSION, "t": "account", "user": user, "server": server, "registered": is_new,
                "fingerprint": fingerprint, "tls": account.server().has_tls(),
            })
        },
    );
}
