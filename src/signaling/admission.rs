//! Who gets a relay: access keys, and the ICE servers that are handed out with or without one.

use super::wire::IceServer;
use crate::clock::Now;
use crate::turn_server::auth::RestSecret;
use ring::hmac;
use std::fmt;
use std::time::Duration;

/// A key that admits its holder to the relay. It is kept as a MAC and compared in constant time.
#[derive(Clone)]
pub struct AccessKey {
    key: hmac::Key,
    mac: hmac::Tag,
}

impl AccessKey {
    /// Takes the key as clients show it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"ginnel access key");
        let mac = hmac::sign(&key, text.as_bytes());
        Self { key, mac }
    }

    /// Says whether `shown` is this key.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        hmac::verify(&self.key, shown.as_bytes(), self.mac.as_ref()).is_ok()
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKey(..)")
    }
}

/// Says whether one of `keys` was shown; looks at all of them, so that time does not tell which.
#[must_use]
pub fn admits(keys: &[AccessKey], shown: &str) -> bool {
    keys.iter().fold(false, |found, key| found | key.is(shown))
}

/// The servers that clients are told to use.
#[derive(Debug, Clone)]
pub struct IceServers {
    /// `stun:` addresses, for everybody.
    pub stun_urls: Vec<String>,
    /// `turn:` addresses, for those who are admitted.
    pub turn_urls: Vec<String>,
    /// How long minted credentials are good; default 24 h.
    pub ttl: Duration,
    /// Mints the credentials; without it no relay is handed out.
    pub secret: Option<RestSecret>,
}

impl Default for IceServers {
    fn default() -> Self {
        let ttl = Duration::from_secs(24 * 3600);
        Self { stun_urls: Vec::new(), turn_urls: Vec::new(), ttl, secret: None }
    }
}

impl IceServers {
    /// Returns the entries for everybody: no relay.
    #[must_use]
    pub fn public(&self) -> Vec<IceServer> {
        let urls = self.stun_urls.clone();
        if urls.is_empty() { Vec::new() } else { vec![IceServer { urls, username: None, credential: None }] }
    }

    /// Returns the entries for an admitted client, with credentials minted for `name`.
    #[must_use]
    pub fn admitted(&self, now: Now, name: &str) -> Vec<IceServer> {
        let mut entries = self.public();
        if let Some(secret) = self.secret.as_ref().filter(|_| !self.turn_urls.is_empty()) {
            let minted = secret.mint(name, now.unix.saturating_add(self.ttl.as_secs()));
            entries.push(IceServer {
                urls: self.turn_urls.clone(),
                username: Some(minted.username),
                credential: Some(minted.credential),
            });
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::now;

    #[test]
    fn only_the_right_key_admits_and_none_is_shown_in_a_log() {
        let keys = [AccessKey::new("one"), AccessKey::new("two")];
        assert!(admits(&keys, "one") && admits(&keys, "two"));
        assert!(!admits(&keys, "on") && !admits(&keys, "") && !admits(&[], "one"));
        assert_eq!(format!("{keys:?}"), "[AccessKey(..), AccessKey(..)]");
    }

    #[test]
    fn strangers_get_no_relay_and_the_admitted_get_one_that_expires() {
        let servers = IceServers {
            stun_urls: vec!["stun:192.0.2.1:3478".into()],
            turn_urls: vec!["turn:192.0.2.1:3478".into()],
            secret: Some(RestSecret::new(b"secret")),
            ..IceServers::default()
        };
        assert_eq!(servers.public().len(), 1);
        let now = now();
        let entries = servers.admitted(now, "name");
        assert_eq!(entries[1].username, Some(format!("{}:name", now.unix + 86_400)));
        assert_eq!(IceServers { secret: None, ..servers }.admitted(now, "name").len(), 1);
    }
}
