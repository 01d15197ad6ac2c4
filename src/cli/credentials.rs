//! `ginnel credentials`: minted credentials for a client, and the keys of a user's password.

use super::ginnel::load_config;
use crate::net::time;
use crate::server;
use crate::state::State;
use crate::stun::{long_term_digest, long_term_digest_sha256};
use crate::turn_server::auth::{RestCredentials, RestHash};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

/// Options of `ginnel credentials`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct CredentialsCommand {
    #[command(subcommand)]
    command: Option<PasswordCommand>,
    #[command(flatten)]
    mint: MintArgs,
}

#[derive(Debug, Subcommand)]
enum PasswordCommand {
    /// Print the keys of a user for the configuration or a credentials file; reads the password from standard input
    Key(PasswordKeyArgs),
}

#[derive(Debug, Args)]
struct PasswordKeyArgs {
    /// The user's name
    user: String,
    /// The realm of the keys
    #[arg(long, default_value = "ginnel")]
    realm: String,
    /// Print a line of a credentials file
    #[arg(long)]
    line: bool,
}

#[derive(Debug, Args)]
struct MintArgs {
    /// The server's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's state folder [default: the configuration's, else state]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The user: appears in the server's log, and has the quota of one user
    #[arg(long, default_value = "guest")]
    name: String,
    /// Their lifetime [default: the configuration's turn.credentials_ttl, else 86400]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// Derive the password with HMAC-SHA256 instead of HMAC-SHA1
    #[arg(long)]
    sha256: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    /// Print iceServers for a browser, as JSON
    #[arg(long, conflicts_with = "json")]
    ice: bool,
}

impl CredentialsCommand {
    /// Prints the credentials or keys.
    ///
    /// # Errors
    /// The state folder, the configuration or an argument cannot be used.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = match self.command {
            Some(PasswordCommand::Key(key)) => key.text(&mut io::stdin().lock())?,
            None => self.mint.text()?,
        };
        Ok(writeln!(io::stdout(), "{text}")?)
    }
}

impl PasswordKeyArgs {
    fn text(&self, input: &mut impl BufRead) -> anyhow::Result<String> {
        let Self { user, realm, line } = self;
        let mut password = String::new();
        input.read_line(&mut password).context("standard input")?;
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            bail!("no password; type: printf %s PASSWORD | ginnel credentials key {user} --realm {realm}");
        }
        let md5 = HEXLOWER.encode(&long_term_digest(user, realm, password));
        let sha256 = HEXLOWER.encode(&long_term_digest_sha256(user, realm, password));
        match line {
            true if user.contains(':') || realm.contains(':') => {
                bail!(
                    "a credentials file cannot contain names with a colon; use turn.users in the configuration"
                )
            }
            true => Ok(format!("{user}:{realm}:{md5}:{sha256}")),
            false => Ok(format!("{{ md5 = \"{md5}\", sha256 = \"{sha256}\" }}")),
        }
    }
}

impl MintArgs {
    fn text(&self) -> anyhow::Result<String> {
        let config = load_config(self.config.as_deref())?;
        let folder = self.state.as_ref().unwrap_or(&config.state);
        let state = State::existing(folder)?;
        let ttl = self.ttl.unwrap_or(config.server.turn.credentials_ttl.as_secs());
        if ttl == 0 || self.name.is_empty() || self.name.len() > 400 {
            bail!("--ttl must be at least 1 second, and --name must have 1 to 400 bytes");
        }
        let expires = time::now().unix.checked_add(ttl).context("--ttl is too large")?;
        let (secret, _) = config.server.auth.secrets(&config.server.turn, &state);
        let hash = if self.sha256 { RestHash::Sha256 } else { RestHash::Sha1 };
        let RestCredentials { username, credential } = secret.issue_with(hash, &self.name, expires);
        if self.ice {
            let ice = server::ice_offer(&config.server, &state).context("the addresses of this host")?;
            return Ok(serde_json::json!({ "iceServers": [
                { "urls": ice.stun_urls },
                { "urls": ice.turn_urls, "username": username, "credential": credential },
            ] })
            .to_string());
        }
        if self.json {
            let json = serde_json::json!({
                "username": username, "credential": credential, "ttl": ttl, "expires": expires,
                "realm": config.server.turn.realm,
            });
            return Ok(json.to_string());
        }
        Ok(format!("{username}\n{credential}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_password_are_those_of_the_rfc() {
        let key = |line| PasswordKeyArgs { user: "user".into(), realm: "realm".into(), line };
        let text = key(false).text(&mut &b"pass\n"[..]).unwrap();
        assert!(text.starts_with("{ md5 = \"8493fbc53ba582fb4c044c456bdc40eb\", sha256 = \""), "{text}");
        let line = key(true).text(&mut &b"pass"[..]).unwrap();
        let users = crate::turn_server::auth::parse_credentials(&line).unwrap();
        assert_eq!((users[0].0.as_str(), users[0].1.as_str()), ("user", "realm"));
        assert!(key(true).text(&mut &b""[..]).unwrap_err().to_string().contains("printf"));
    }
}
