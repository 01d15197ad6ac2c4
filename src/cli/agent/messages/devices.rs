//! `agent devices`: the devices of an account, its fingerprint, and those of others.

use super::account::{AccountOptions, party, utc};
use super::error::MessagingError;
use super::login::{DeviceOptions, label, parse_account};
use crate::cli::agent::OutputOptions;
use crate::cli::agent::error::CommandError;
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::messaging_client::{
    Account, AccountChange, DeviceCode, Fingerprint, PartyDevices, PartyName, Receive,
};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{self, Write};

/// Options of `agent devices`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::cli::agent) struct Devices {
    /// Show the fingerprint of this user instead of your own devices
    #[arg(value_parser = party)]
    name: Option<PartyName>,
    #[command(flatten)]
    account: AccountOptions,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a device to your account, with the code that `agent devices request` printed there
    Add {
        /// The code: ginnel-device:…
        #[arg(value_parser = code)]
        code: DeviceCode,
        #[command(flatten)]
        account: AccountOptions,
    },
    /// Remove a device of your account; messages that wait for it are lost
    Remove {
        /// Its number, which `agent devices` shows
        number: i64,
        #[command(flatten)]
        account: AccountOptions,
    },
    /// Give a device of your account another name
    Rename {
        /// Its number, which `agent devices` shows
        number: i64,
        /// The name
        #[arg(value_parser = label)]
        label: String,
        #[command(flatten)]
        account: AccountOptions,
    },
    /// Print the code with which your account adds this machine
    Request {
        /// The server, as for `agent login`
        server: String,
        /// The name of the account
        user: String,
        #[command(flatten)]
        device: DeviceOptions,
    },
    /// Trust another identity key of a user, in place of the one that was seen first
    Trust {
        /// The user
        #[arg(value_parser = party)]
        name: PartyName,
        /// The fingerprint that `agent devices` shows on the user's own device
        #[arg(required = true)]
        fingerprint: Vec<String>,
        #[command(flatten)]
        account: AccountOptions,
    },
}

fn code(text: &str) -> Result<DeviceCode, String> {
    text.parse().map_err(|error: crate::messaging_client::DeviceCodeError| error.to_string())
}

impl Devices {
    pub(super) fn output(&self) -> &OutputOptions {
        match &self.action {
            None => &self.account.output,
            Some(
                Action::Add { account, .. }
                | Action::Remove { account, .. }
                | Action::Rename { account, .. }
                | Action::Trust { account, .. },
            ) => &account.output,
            Some(Action::Request { device, .. }) => &device.output,
        }
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        match self.action {
            None => show(&self.account, self.name, report).await?,
            Some(Action::Add { code, account }) => add(&account, code, report).await?,
            Some(Action::Remove { number, account }) => {
                remove(&account, number, report).await?;
            }
            Some(Action::Rename { number, label, account }) => {
                rename(&account, number, label, report).await?;
            }
            Some(Action::Request { server, user, device }) => request(&server, &user, &device, report)?,
            Some(Action::Trust { name, fingerprint, account }) => {
                let fingerprint: Fingerprint =
                    fingerprint.join(" ").parse().map_err(|_| MessagingError::Input {
                        what: "a fingerprint has 8 groups of 4 hexadecimal digits",
                        hint: "agent devices trust NAME FINGERPRINT     `agent devices` shows it on the user's own device",
                    })?;
                trust(&account, &name, fingerprint, report).await?;
            }
        }
        Ok(0)
    }
}

async fn remove(options: &AccountOptions, number: i64, report: &Reporter) -> Result<(), CommandError> {
    let (account, client) = options.choice.connect(Receive::Nothing, report).await?;
    let found = client.devices(&account.party()).await.map_err(MessagingError::from)?;
    let own_key = account.signing_key().map_err(MessagingError::from)?;
    if found.devices.iter().any(|device| device.device == number && device.signing_key.0 == own_key) {
        return Err(MessagingError::Input {
            what: "this is the device that you use: without it you cannot log in again",
            hint: "agent devices     shows the numbers of the others",
        }
        .into());
    }
    let change = AccountChange::RemoveDevice(number);
    client.change_account(change).await.map_err(MessagingError::from)?;
    report.write(
        || format!("Removed  device {number}"),
        || json!({"v": VERSION, "t": "device_removed", "device": number}),
    );
    Ok(())
}

async fn rename(
    options: &AccountOptions,
    number: i64,
    label: String,
    report: &Reporter,
) -> Result<(), CommandError> {
    let (_, client) = options.choice.connect(Receive::Nothing, report).await?;
    let change = AccountChange::RenameDevice(number, label.clone());
    client.change_account(change).await.map_err(MessagingError::from)?;
    report.write(
        || format!("Renamed  device {number} to {}", escape::line(&label)),
        || json!({"v": VERSION, "t": "device_renamed", "device": number, "label": label}),
    );
    Ok(())
}

/// Trusts a fingerprint that the server shows. A pin from before stays if it shows another one: the fingerprint may be mistyped.
async fn trust(
    options: &AccountOptions,
    name: &PartyName,
    fingerprint: Fingerprint,
    report: &Reporter,
) -> Result<(), CommandError> {
    let (account, client) = options.choice.connect(Receive::Nothing, report).await?;
    if *name == account.party() {
        let (what, hint) = ("this is your own account", "agent devices trust NAME     of another user");
        return Err(MessagingError::Input { what, hint }.into());
    }
    let before = account.pinned(name).map_err(MessagingError::from)?;
    client.trust(name, fingerprint).await.map_err(MessagingError::from)?;
    let shown = client.devices(name).await;
    if let (Err(_), Some(before)) = (&shown, before) {
        client.trust(name, before).await.map_err(MessagingError::from)?;
    }
    client.close().await.map_err(MessagingError::from)?;
    shown.map_err(MessagingError::from)?;
    Ok(())
}

async fn add(account: &AccountOptions, code: DeviceCode, report: &Reporter) -> Result<(), CommandError> {
    let (account, client) = account.choice.connect(Receive::Nothing, report).await?;
    let label = code.label().to_owned();
    client.add_device(code).await.map_err(MessagingError::from)?;
    client.close().await.map_err(MessagingError::from)?;
    let fingerprint = account.fingerprint().map_err(MessagingError::from)?.map(|it| it.to_string());
    report.write(
        || {
            let key = fingerprint.as_deref().unwrap_or("unknown");
            format!(
                "Added    {}\nKey      {key}\n\nOn the new device run:\n    agent login {} {}",
                escape::line(&label),
                account.server(),
                account.user()
            )
        },
        || json!({"v": VERSION, "t": "device_added", "label": label, "fingerprint": fingerprint}),
    );
    Ok(())
}

fn request(server: &str, user: &str, device: &DeviceOptions, report: &Reporter) -> Result<(), CommandError> {
    let address = parse_account(server, user)?;
    let folder = device.state.folder_of(&address, user)?;
    let options = device.registration()?;
    let account = Account::prepare_device(&folder, &address, user, options).map_err(MessagingError::from)?;
    let code = account.device_code().map_err(MessagingError::from)?.to_string();
    report.write(
        || {
            format!(
                "On a device of the account run:\n    agent devices add {code}\nand then here:\n    agent login {server} {user}"
            )
        },
        || json!({"v": VERSION, "t": "device_code", "code": code}),
    );
    Ok(())
}

async fn show(
    options: &AccountOptions,
    name: Option<PartyName>,
    report: &Reporter,
) -> Result<(), CommandError> {
    let (account, client) = options.choice.connect(Receive::Nothing, report).await?;
    let party = name.unwrap_or_else(|| account.party());
    let found = client.devices(&party).await.map_err(MessagingError::from)?;
    client.close().await.map_err(MessagingError::from)?;
    let own_key = account.signing_key().map_err(MessagingError::from)?;
    write_devices(&party, &found, &own_key, report).map_err(CommandError::Output)
}

fn write_devices(
    party: &PartyName,
    found: &PartyDevices,
    own_key: &[u8; 32],
    report: &Reporter,
) -> io::Result<()> {
    let fingerprint = found.fingerprint.map(|fingerprint| fingerprint.to_string());
    let name = party.to_string();
    let mut text = match (report.is_json(), &fingerprint) {
        (true, _) => {
            json!({"v": VERSION, "t": "party", "party": name, "fingerprint": fingerprint}).to_string()
        }
        (false, Some(fingerprint)) => format!("{}  {fingerprint}", escape::name(&name)),
        (false, None) => format!("{}  no keys: messages are NOT ENCRYPTED", escape::name(&name)),
    };
    for device in &found.devices {
        let is_this = device.signing_key.0 == *own_key;
        let label = device.label.as_deref().unwrap_or_default();
        text.push('\n');
        text.push_str(&match report.is_json() {
            true => json!({
                "v": VERSION, "t": "device", "device": device.device, "label": device.label, "created_at": device.created_at,
                "this": is_this,
            })
            .to_string(),
            false => {
                let this = if is_this { "  (this device)" } else { "" };
                format!("{:>5}  {}  {}{this}", device.device, utc(device.created_at), escape::line(label))
            }
        });
    }
    text.push('\n');
    io::stdout().lock().write_all(text.as_bytes())
}
