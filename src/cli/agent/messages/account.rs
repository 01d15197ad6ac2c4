//! What the messaging commands of `agent` share: the folders of accounts, and connections.

use super::error::MessagingError;
use crate::cli::agent::OutputOptions;
use crate::cli::agent::error::{CommandError, UsageError};
use crate::cli::agent::escape;
use crate::cli::agent::proxy_environment;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::messaging_client::{Account, Client, Fingerprint, PartyName, Receive, RequestError, ServerUrl};
use clap::Args;
use serde_json::json;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of the accounts in the state folder, and the file in it that names the default one.
const ACCOUNTS: &str = "messages";
const DEFAULT: &str = "default";
/// Longest name of a folder that is made of a name.
const MAX_FOLDER: usize = 200;

/// Where the accounts are.
#[derive(Debug, Args)]
pub(super) struct StateFolder {
    /// The folder of the accounts and their keys [default: $XDG_STATE_HOME/ginnel-agent or ~/.local/state/ginnel-agent]
    #[arg(long, env = "AGENT_STATE", value_name = "DIR", hide_env_values = true)]
    state: Option<PathBuf>,
}

/// Which account to use.
#[derive(Debug, Args)]
pub(super) struct AccountChoice {
    #[command(flatten)]
    state: StateFolder,
    /// The account [default: the one of the last `agent login`]
    #[arg(long, value_name = "USER@SERVER")]
    account: Option<String>,
}

/// Options of commands that use an account.
#[derive(Debug, Args)]
pub(super) struct AccountOptions {
    #[command(flatten)]
    pub(super) choice: AccountChoice,
    #[command(flatten)]
    pub(super) output: OutputOptions,
}

impl AccountChoice {
    /// Returns the state folder, if it is not the default one.
    #[cfg(all(feature = "files", unix))]
    pub(super) fn state(&self) -> Option<&Path> {
        self.state.state.as_deref()
    }
}

impl StateFolder {
    fn accounts(&self) -> Result<PathBuf, MessagingError> {
        let state = match (&self.state, std::env::var_os("XDG_STATE_HOME"), std::env::home_dir()) {
            (Some(state), ..) => state.clone(),
            (None, Some(base), _) if !base.is_empty() => Path::new(&base).join("ginnel-agent"),
            (None, _, Some(home)) => home.join(".local/state/ginnel-agent"),
            _ => {
                let what = "there is no home folder for the account";
                return Err(MessagingError::Input { what, hint: "--state DIR" });
            }
        };
        Ok(state.join(ACCOUNTS))
    }

    /// Returns the folder of an account.
    pub(super) fn folder_of(&self, server: &ServerUrl, user: &str) -> Result<PathBuf, MessagingError> {
        Ok(self.accounts()?.join(folder_name(&server.authority())).join(folder_name(user)))
    }

    /// Makes an account the default one.
    pub(super) fn set_default(&self, account: &Account) -> Result<(), MessagingError> {
        let path = self.accounts()?.join(DEFAULT);
        let text = format!("{}\n{}\n", account.server(), account.user());
        fs::write(&path, text).map_err(|source| MessagingError::State { path, source })
    }

    fn default_account(&self) -> Result<(ServerUrl, String), MessagingError> {
        let path = self.accounts()?.join(DEFAULT);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MessagingError::NoAccount(None));
            }
            Err(source) => return Err(MessagingError::State { path, source }),
        };
        let (server, user) =
            text.trim_end_matches('\n').split_once('\n').ok_or(MessagingError::NoAccount(None))?;
        Ok((server.parse().map_err(|_| MessagingError::NoAccount(None))?, user.to_owned()))
    }
}

impl AccountChoice {
    /// Returns whether the command names the account.
    pub(super) fn is_named(&self) -> bool {
        self.account.is_some()
    }

    /// Opens the account.
    pub(super) fn account(&self) -> Result<Account, MessagingError> {
        let (server, user) = match self.account.as_deref().map(|account| account.rsplit_once('@')) {
            Some(Some((user, server))) => {
                (server.parse().map_err(|_| MessagingError::Server(server.to_owned()))?, user.to_owned())
            }
            Some(None) => {
                let (server, _) = self.state.default_account()?;
                (server, self.account.clone().unwrap_or_default())
            }
            None => self.state.default_account()?,
        };
        let folder = self.state.folder_of(&server, &user)?;
        Account::open(&folder)?.ok_or_else(|| MessagingError::NoAccount(self.account.clone()))
    }

    /// Opens the account and connects.
    pub(super) async fn connect(
        &self,
        receive: Receive,
        report: &Reporter,
    ) -> Result<(Account, Client), CommandError> {
        let account = through_proxy(self.account()?, report)?;
        let client = Client::connect(&account, receive).await.map_err(MessagingError::from)?;
        Ok((account, client))
    }
}

/// Lets the connections of an account pass the proxy that the environment names.
pub(super) fn through_proxy(account: Account, report: &Reporter) -> Result<Account, UsageError> {
    let (host, port) = account.server().host_and_port();
    proxy_environment::report(report, host, port);
    Ok(account.proxies(proxy_environment::read()?))
}

/// Returns why a request failed; of a client that has ended, why that has.
pub(super) async fn cause(client: &mut Client, error: RequestError) -> MessagingError {
    if error == RequestError::Ended {
        loop {
            if let Err(error) = client.next_event().await {
                return error.into();
            }
        }
    }
    error.into()
}

/// Reports an identity key that was pinned.
pub(super) fn report_pinned(report: &Reporter, party: &PartyName, fingerprint: &Fingerprint) {
    let (party, fingerprint) = (party.to_string(), fingerprint.to_string());
    report.write(
        || format!("New key  of {}: {fingerprint}", escape::name(&party)),
        || json!({"v": VERSION, "t": "pinned", "party": party, "fingerprint": fingerprint}),
    );
}

/// Parses the name of a user or a device of the TCP protocol.
pub(super) fn party(text: &str) -> Result<PartyName, String> {
    text.parse().map_err(|error: crate::messaging_client::PartyNameError| error.to_string())
}

/// Returns a name for a folder that is different for each name, on file systems that distinguish case.
fn folder_name(name: &str) -> String {
    let mut folder = String::new();
    for (n, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => folder.push(char::from(byte)),
            b'.' if n > 0 => folder.push('.'),
            b':' => folder.push('+'),
            _ => folder.push_str(&format!("%{byte:02X}")),
        }
    }
    if folder.len() > MAX_FOLDER {
        let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        let digest = data_encoding::HEXLOWER.encode(&digest.as_ref()[..16]);
        folder.truncate(MAX_FOLDER - digest.len());
        folder.push_str(&digest);
    }
    folder
}

/// Returns a time as `YYYY-MM-DD hh:mm`, in UTC.
pub(super) fn utc(unix_ms: u64) -> String {
    let minutes = unix_ms / 60_000;
    let days = minutes / 1440;
    // Howard Hinnant's algorithm: years begin in March, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_name_gives_one_safe_folder() {
        let long = "x/".repeat(128);
        let names = [
            "bob",
            "Bob",
            "..",
            ".",
            ".x",
            "a/b",
            "a%2Fb",
            "im.example:3478",
            "[::1]:9",
            "ü",
            &long,
            &long[1..],
        ];
        let folders: Vec<_> = names.iter().map(|name| folder_name(name)).collect();
        assert_eq!(folders.iter().collect::<HashSet<_>>().len(), names.len());
        for folder in &folders {
            let is_safe = folder.bytes().all(|b| b.is_ascii_alphanumeric() || b"%+-_.".contains(&b));
            assert!(is_safe && !folder.starts_with('.') && folder.len() <= MAX_FOLDER, "{folder}");
        }
        assert_eq!(folders[7], "im.example+3478");
    }

    #[test]
    fn a_time_is_shown_as_a_date_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (1_709_251_199, "2024-02-29 23:59"),
            (1_795_305_600, "2026-11-22 00:00"),
        ] {
            assert_eq!(utc(seconds * 1000), text);
        }
    }
}
