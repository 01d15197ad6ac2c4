//! The section `[signaling]`.

mod measures;
pub(super) use measures::RateSection;

use super::ConfigError;
use crate::signaling::{AccessKey, Config, Jwt, JwtKey, NotifyFrom as From, Origins, Realms, Scopes};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SignalingSection {
    open: Option<bool>,
    keys: Vec<KeySection>,
    jwt: Option<JwtSection>,
    origins: Option<Vec<String>>,
    list: Option<bool>,
    presence: Option<bool>,
    spray: Option<bool>,
    notify_from: Option<NotifyFromValue>,
    times: measures::TimesSection,
    limits: measures::LimitsSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeySection {
    key: String,
    scopes: Vec<Scope>,
    #[serde(default)]
    realm: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    Register,
    Relay,
    Admin,
}

impl KeySection {
    fn read(&self) -> Result<AccessKey, ConfigError> {
        if !(16..=128).contains(&self.key.len()) {
            return Err(value("signaling.keys.key", "must have 16 to 128 bytes"));
        }
        if self.realm.len() > Realms::MAX_NAME {
            return Err(value("signaling.keys.realm", "must have at most 64 bytes"));
        }
        if self.scopes.is_empty() && self.realm.is_empty() {
            return Err(value("signaling.keys.scopes", "must have \"register\", \"relay\" or \"admin\""));
        }
        let has = |scope| self.scopes.contains(&scope);
        let scopes =
            Scopes { register: has(Scope::Register), relay: has(Scope::Relay), admin: has(Scope::Admin) };
        Ok(AccessKey::scoped(&self.key, scopes, &self.realm))
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Algorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// `[signaling.jwt]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtSection {
    algorithm: Algorithm,
    key: Option<String>,
    key_file: Option<PathBuf>,
    issuer: Option<String>,
    audience: Option<String>,
    max_lifetime: Option<u64>,
    leeway: Option<u64>,
}

impl std::fmt::Debug for JwtSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JwtSection(..)")
    }
}

impl JwtSection {
    fn read(self) -> Result<Jwt, ConfigError> {
        let text = match (self.key, self.key_file) {
            (Some(text), None) => text,
            (None, Some(path)) => read_file(&path)?,
            _ => return Err(value("signaling.jwt", "must have `key` or `key_file`, one of them")),
        };
        let key = match self.algorithm {
            Algorithm::Hs256 => JwtKey::hs256(text.trim_end().as_bytes())
                .ok_or(value("signaling.jwt.key", "must be a secret of at least 32 bytes for HS256"))?,
            Algorithm::EdDsa => JwtKey::ed_dsa(&text).ok_or(value(
                "signaling.jwt.key",
                "must be an Ed25519 public key for EdDSA: PEM, or 32 bytes in base64url",
            ))?,
        };
        for (key, name) in
            [("signaling.jwt.issuer", &self.issuer), ("signaling.jwt.audience", &self.audience)]
        {
            if name.as_ref().is_some_and(String::is_empty) {
                return Err(value(key, "must not be empty; leave it out for any"));
            }
        }
        let mut jwt = Jwt::new(key);
        (jwt.issuer, jwt.audience) = (self.issuer, self.audience);
        if let Some(seconds) = self.max_lifetime {
            if !(1..=31_536_000).contains(&seconds) {
                return Err(value("signaling.jwt.max_lifetime", "must be 1 to 31536000 seconds"));
            }
            jwt.max_lifetime = Duration::from_secs(seconds);
        }
        if let Some(seconds) = self.leeway {
            if seconds > 600 {
                return Err(value("signaling.jwt.leeway", "must be at most 600 seconds"));
            }
            jwt.leeway = Duration::from_secs(seconds);
        }
        Ok(jwt)
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn value(key: &'static str, rule: &'static str) -> ConfigError {
    ConfigError::Value { key, rule }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NotifyFromValue {
    Aux,
    Main,
    Both,
}

impl SignalingSection {
    pub(super) fn apply(self, signaling: &mut Config) -> Result<(), ConfigError> {
        self.times.apply(&mut signaling.times)?;
        self.limits.apply(&mut signaling.limits)?;
        signaling.open = self.open.unwrap_or(signaling.open);
        signaling.access_keys = self.keys.iter().map(KeySection::read).collect::<Result<_, _>>()?;
        signaling.jwt = self.jwt.map(JwtSection::read).transpose()?;
        if let Some(list) = self.origins {
            signaling.origins = Origins::only(list).ok_or(value(
                "signaling.origins",
                "must hold origins as browsers write them: https://app.example",
            ))?;
        }
        signaling.presence = self.presence.unwrap_or(signaling.presence);
        signaling.spray = self.spray.unwrap_or(signaling.spray);
        signaling.list = self.list.unwrap_or(signaling.list);
        signaling.notify_from = match self.notify_from {
            None => signaling.notify_from,
            Some(NotifyFromValue::Aux) => From::Aux,
            Some(NotifyFromValue::Main) => From::Main,
            Some(NotifyFromValue::Both) => From::Both,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn a_jwts_key_is_read_from_the_text_or_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwt.pem");
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
        std::fs::write(&path, pem).unwrap();
        let file = format!("[signaling.jwt]\nalgorithm = 'EdDSA'\nkey_file = {path:?}\naudience = 'relay'");
        let text = "[signaling.jwt]\nalgorithm = 'EdDSA'\nkey = '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo'\naudience = 'relay'";
        let jwt = |text: &str| format!("{:?}", Config::parse(text).unwrap().server.signaling.jwt.unwrap());
        assert_eq!(jwt(&file), jwt(text));
        let missing = file.replace("jwt.pem", "none.pem");
        assert!(Config::parse(&missing).unwrap_err().to_string().contains("none.pem"));
        let secret =
            "[signaling.jwt]\nalgorithm = 'HS256'\nkey = '0123456789abcdef0123456789abcdef'\nleeway = 5";
        let shown = jwt(secret);
        assert!(shown.contains("leeway: 5s") && !shown.contains("abcdef"), "{shown}");
    }

    #[test]
    fn senseless_values_are_refused_by_name() {
        let key = "key = '0123456789abcdef0123456789abcdef'";
        for (text, named) in [
            ("[[signaling.keys]]\nkey = 'short'\nscopes = []".to_owned(), "signaling.keys.key"),
            ("[[signaling.keys]]\nkey = '0123456789abcdef'\nscopes = ['all']".to_owned(), "scopes"),
            (
                format!(
                    "[[signaling.keys]]\nkey = '0123456789abcdef'\nscopes = []\nrealm = '{}'",
                    "r".repeat(65)
                ),
                "signaling.keys.realm",
            ),
            ("[[signaling.keys]]\nkey = '0123456789abcdef'\nscopes = []".to_owned(), "signaling.keys.scopes"),
            (format!("[signaling.jwt]\nalgorithm = 'HS256'\n{key}\nissuer = ''"), "signaling.jwt.issuer"),
            ("[signaling]\norigins = ['https://app.example/']".to_owned(), "signaling.origins"),
            ("[signaling.jwt]\nalgorithm = 'HS256'\nkey = 'short'".to_owned(), "signaling.jwt.key"),
            ("[signaling.jwt]\nalgorithm = 'HS256'".to_owned(), "key_file"),
            (format!("[signaling.jwt]\nalgorithm = 'HS256'\n{key}\nkey_file = 'a'"), "key_file"),
            (format!("[signaling.jwt]\nalgorithm = 'none'\n{key}"), "none"),
            (format!("[signaling.jwt]\nalgorithm = 'EdDSA'\n{key}"), "signaling.jwt.key"),
            (format!("[signaling.jwt]\n{key}"), "algorithm"),
            (
                format!("[signaling.jwt]\nalgorithm = 'HS256'\n{key}\nmax_lifetime = 0"),
                "signaling.jwt.max_lifetime",
            ),
            (format!("[signaling.jwt]\nalgorithm = 'HS256'\n{key}\nleeway = 601"), "signaling.jwt.leeway"),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
