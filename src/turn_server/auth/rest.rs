//! Time-limited credentials that the relay and whoever shares its secret make without a word between them.

use data_encoding::BASE64;
use ring::hmac;

/// The shared secret of time-limited credentials: user name `expiry:name`, password `base64(HMAC(secret, user name))`, the form
/// that TURN REST clients and other servers use.
#[derive(Debug, Clone)]
pub struct RestSecret {
    sha1: hmac::Key,
    sha256: hmac::Key,
}

/// The HMAC that makes the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestHash {
    /// What other servers' tools use.
    Sha1,
    /// The stronger one.
    Sha256,
}

/// Time-limited credentials as a client presents them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minted {
    /// `expiry:name`, the expiry in Unix seconds.
    pub username: String,
    /// The password that goes with it.
    pub credential: String,
}

impl RestSecret {
    /// Takes the secret's bytes.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self {
            sha1: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret),
            sha256: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }

    /// Makes credentials for `name` that are good until `expires_unix`, with HMAC-SHA1.
    #[must_use]
    pub fn mint(&self, name: &str, expires_unix: u64) -> Minted {
        self.mint_with(RestHash::Sha1, name, expires_unix)
    }

    /// Makes credentials for `name` that are good until `expires_unix`.
    #[must_use]
    pub fn mint_with(&self, hash: RestHash, name: &str, expires_unix: u64) -> Minted {
        let username = format!("{expires_unix}:{name}");
        let credential = self.password(hash, &username);
        Minted { username, credential }
    }

    pub(super) fn password(&self, hash: RestHash, username: &str) -> String {
        let key = match hash {
            RestHash::Sha1 => &self.sha1,
            RestHash::Sha256 => &self.sha256,
        };
        BASE64.encode(hmac::sign(key, username.as_bytes()).as_ref())
    }
}

/// Reads the expiry in front of a time-limited user name.
pub(super) fn expiry(username: &str) -> Option<u64> {
    username.split(':').next()?.parse().ok()
}

/// Reads the name behind the expiry.
pub(super) fn name(username: &str) -> Option<&str> {
    username.split_once(':').map(|(_, name)| name)
}
