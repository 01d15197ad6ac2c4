//! The section `[auth]` and the users of `[turn]`.

use super::ConfigError;
use crate::server::{AuthConfig, HookConfig, OauthConfig, RealmConfig, StaticUser, TurnConfig};
use crate::turn_server::auth::{Expiry, MAX_REALM, UserKeys, hex_key};
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Auth {
    expiry: Option<ExpiryName>,
    fleet_key: Option<String>,
    username_anonymity: Option<bool>,
    credentials_file: Option<PathBuf>,
    rest_secrets: Vec<String>,
    realms: Vec<RealmSection>,
    hook: Option<HookSection>,
    oauth: Vec<Oauth>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExpiryName {
    AtAllocate,
    AtRefresh,
    Hard,
}

/// `name = "password"`, or `name = { md5 = "…", sha256 = "…" }`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a password, or { md5 = \"hex\", sha256 = \"hex\" }")]
pub(super) enum User {
    Password(String),
    Keys(Keys),
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User(..)")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    md5: Option<String>,
    sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RealmSection {
    name: String,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    #[serde(default)]
    users: HashMap<String, User>,
    credentials_file: Option<PathBuf>,
    #[serde(default)]
    rest_secrets: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HookSection {
    url: String,
    deadline_ms: Option<u64>,
    cache_seconds: Option<u64>,
    negative_cache_seconds: Option<u64>,
    max_cached: Option<usize>,
    max_in_flight: Option<usize>,
    per_network: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Oauth {
    kid: String,
    key: String,
    server_name: String,
}

fn value(key: &'static str, rule: &'static str) -> ConfigError {
    ConfigError::Value { key, rule }
}

/// Checks the name of a realm.
pub(super) fn realm_name(key: &'static str, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || name.len() > MAX_REALM {
        return Err(value(
            key,
            "must have 1 to 32 bytes: it is in every response to an unauthenticated client",
        ));
    }
    Ok(())
}

/// Checks static users.
pub(super) fn users(
    key: &'static str,
    users: HashMap<String, User>,
) -> Result<HashMap<String, StaticUser>, ConfigError> {
    let checked = |(name, user): (String, User)| {
        if name.is_empty() || name.len() > 508 {
            return Err(value(key, "must have names of 1 to 508 bytes"));
        }
        let user = match user {
            User::Password(password) if password.is_empty() => {
                return Err(value(key, "must have passwords: an empty one lets everybody in"));
            }
            User::Password(password) => StaticUser::Password(password),
            User::Keys(Keys { md5, sha256 }) => {
                StaticUser::Keys(user_keys(md5, sha256).ok_or_else(|| {
                    value(
                        key,
                        "must have md5 of 32 and sha256 of 64 hexadecimal digits, one of them at least",
                    )
                })?)
            }
        };
        Ok((name, user))
    };
    users.into_iter().map(checked).collect()
}

fn user_keys(md5: Option<String>, sha256: Option<String>) -> Option<UserKeys> {
    let md5 = match md5 {
        Some(text) => Some(hex_key(&text)?),
        None => None,
    };
    let sha256 = match sha256 {
        Some(text) => Some(hex_key(&text)?),
        None => None,
    };
    (md5.is_some() || sha256.is_some()).then_some(UserKeys { md5, sha256 })
}

fn secrets(key: &'static str, secrets: Vec<String>) -> Result<Vec<Vec<u8>>, ConfigError> {
    if secrets.len() > 8 || secrets.iter().any(|secret| secret.len() < 16) {
        return Err(value(key, "must be at most 8 secrets of at least 16 bytes"));
    }
    Ok(secrets.into_iter().map(String::into_bytes).collect())
}

impl Auth {
    pub(super) fn apply(self, turn: &TurnConfig, auth: &mut AuthConfig) -> Result<(), ConfigError> {
        auth.expiry = match self.expiry {
            None => auth.expiry,
            Some(ExpiryName::AtAllocate) => Expiry::AtAllocate,
            Some(ExpiryName::AtRefresh) => Expiry::AtRefresh,
            Some(ExpiryName::Hard) => Expiry::Hard,
        };
        if let Some(text) = &self.fleet_key {
            let key = hex_key(text).ok_or(value("auth.fleet_key", "must be 64 hexadecimal digits"))?;
            auth.fleet_key = Some(key);
        }
        auth.username_anonymity = self.username_anonymity;
        auth.credentials_file = self.credentials_file;
        auth.rest_secrets = secrets("auth.rest_secrets", self.rest_secrets)?;
        auth.realms = self.realms.into_iter().map(RealmSection::checked).collect::<Result<_, _>>()?;
        auth.hook = self.hook.map(HookSection::checked).transpose()?;
        auth.oauth = self.oauth.into_iter().map(Oauth::checked).collect::<Result<_, _>>()?;
        check_names(turn, auth)
    }
}

/// Checks what realms and token keys must be together.
fn check_names(turn: &TurnConfig, auth: &AuthConfig) -> Result<(), ConfigError> {
    let names: Vec<&str> = std::iter::once(&turn.realm)
        .chain(auth.realms.iter().map(|realm| &realm.name))
        .map(String::as_str)
        .collect();
    if names.iter().enumerate().any(|(index, name)| names[..index].contains(name)) {
        return Err(value("auth.realms.name", "must differ from the other realms'"));
    }
    let padded = |text: &str| text.len().next_multiple_of(4);
    if let Some(key) = auth.oauth.first()
        && names.iter().any(|name| padded(name) + padded(&key.server_name) > MAX_REALM)
    {
        return Err(value(
            "auth.oauth.server_name",
            "must have, with any realm, at most 32 bytes (each rounded up to four): both are in every response to an unauthenticated client",
        ));
    }
    Ok(())
}

impl RealmSection {
    fn checked(self) -> Result<RealmConfig, ConfigError> {
        realm_name("auth.realms.name", &self.name)?;
        Ok(RealmConfig {
            users: users("auth.realms.users", self.users)?,
            rest_secrets: secrets("auth.realms.rest_secrets", self.rest_secrets)?,
            name: self.name,
            addresses: self.addresses,
            credentials_file: self.credentials_file,
        })
    }
}

impl HookSection {
    fn checked(self) -> Result<HookConfig, ConfigError> {
        let is_http =
            |uri: &hyper::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !self.url.parse().is_ok_and(|uri| is_http(&uri)) {
            return Err(value("auth.hook.url", "must be http://HOST/PATH or https://HOST/PATH"));
        }
        let mut hook = HookConfig::new(&self.url);
        for (key, given, time) in [
            ("auth.hook.deadline_ms", self.deadline_ms.map(Duration::from_millis), &mut hook.deadline),
            ("auth.hook.cache_seconds", self.cache_seconds.map(Duration::from_secs), &mut hook.cache),
            (
                "auth.hook.negative_cache_seconds",
                self.negative_cache_seconds.map(Duration::from_secs),
                &mut hook.negative_cache,
            ),
        ] {
            match given {
                None => {}
                Some(given) if given.is_zero() || given > Duration::from_secs(86_400) => {
                    return Err(value(key, "must be more than nothing and at most a day"));
                }
                Some(given) => *time = given,
            }
        }
        for (key, given, limit) in [
            ("auth.hook.max_cached", self.max_cached, &mut hook.max_cached),
            ("auth.hook.max_in_flight", self.max_in_flight, &mut hook.max_in_flight),
        ] {
            match given {
                None => {}
                Some(0) => return Err(value(key, "must be at least 1")),
                Some(given) => *limit = given,
            }
        }
        hook.per_network = self.per_network.unwrap_or(hook.per_network);
        if hook.per_network == 0 {
            return Err(value("auth.hook.per_network", "must be at least 1"));
        }
        Ok(hook)
    }
}

impl Oauth {
    fn checked(self) -> Result<OauthConfig, ConfigError> {
        let key = HEXLOWER_PERMISSIVE.decode(self.key.as_bytes()).unwrap_or_default();
        if ![16, 32].contains(&key.len()) {
            return Err(value("auth.oauth.key", "must be 32 or 64 hexadecimal digits"));
        }
        if self.kid.is_empty() || self.kid.len() > 508 {
            return Err(value("auth.oauth.kid", "must have 1 to 508 bytes"));
        }
        if self.server_name.is_empty() {
            return Err(value(
                "auth.oauth.server_name",
                "must be the name that the authorization server knows",
            ));
        }
        Ok(OauthConfig { kid: self.kid, server_name: self.server_name, key })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn senseless_values_are_refused_by_name() {
        let long = "x".repeat(33);
        for (text, named) in [
            (format!("[turn]\nrealm = '{long}'"), "turn.realm"),
            ("[turn]\nusers = { a = 1 }".to_owned(), "users"),
            ("[turn]\nusers = { a = '' }".to_owned(), "`turn.users` must have passwords"),
            ("[[auth.realms]]\nname = 'a'\nusers = { b = '' }".to_owned(), "auth.realms.users"),
            (
                format!("[[auth.oauth]]\nkid = 'a'\nkey = '{}'\nserver_name = ''", "0".repeat(64)),
                "auth.oauth.server_name",
            ),
            ("[turn]\nusers = { a = {} }".to_owned(), "turn.users"),
            ("[turn]\nusers = { a = { md5 = '12' } }".to_owned(), "turn.users"),
            ("[turn]\nalternate_server = ['example.org:3478']".to_owned(), "alternate_server"),
            ("[auth]\nexpiry = 'never'".to_owned(), "expiry"),
            ("[auth]\nfleet_key = '12'".to_owned(), "auth.fleet_key"),
            ("[auth]\nrest_secrets = ['short']".to_owned(), "auth.rest_secrets"),
            ("[[auth.realms]]\nname = ''".to_owned(), "auth.realms.name"),
            ("[[auth.realms]]\nname = 'ginnel'".to_owned(), "auth.realms.name"),
            ("[[auth.realms]]\nname = 'a'\nuser = 1".to_owned(), "user"),
            ("[auth.hook]\nurl = 'ftp://x/'".to_owned(), "auth.hook.url"),
            ("[auth.hook]\nurl = 'http://x/'\ncache_seconds = 0".to_owned(), "auth.hook.cache_seconds"),
            ("[auth.hook]\nurl = 'http://x/'\nmax_in_flight = 0".to_owned(), "auth.hook.max_in_flight"),
            ("[[auth.oauth]]\nkid = 'a'\nkey = '12'\nserver_name = 'b'".to_owned(), "auth.oauth.key"),
            (
                format!(
                    "[[auth.oauth]]\nkid = 'a'\nkey = '{}'\nserver_name = '{}'",
                    "0".repeat(64),
                    &long[..25]
                ),
                "auth.oauth.server_name",
            ),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn passwords_and_keys_arrive_and_do_not_show() {
        let key = "0".repeat(32);
        let text = format!("[turn]\nusers = {{ alice = 'secret', bob = {{ md5 = '{key}' }} }}");
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.server.turn.users.len(), 2);
        assert!(!format!("{:?}", config.server.turn.users).contains("secret"));
    }
}
