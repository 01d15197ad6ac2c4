//! Who gets in and who gets a relay: access keys with scopes, and the ICE servers that are handed out with or without one.

use super::wire::IceServer;
use crate::clock::Now;
use crate::turn_server::auth::RestSecret;
use ring::hmac;
use std::fmt;
use std::time::Duration;

/// What a key lets its holder do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes {
    /// Register where that takes a key.
    pub register: bool,
    /// Be handed credentials of the relay.
    pub relay: bool,
    /// List and watch where that is switched off for the others.
    pub admin: bool,
}

impl Scopes {
    /// Everything.
    pub const ALL: Self = Self { register: true, relay: true, admin: true };

    fn with(self, other: Self) -> Self {
        Self {
            register: self.register | other.register,
            relay: self.relay | other.relay,
            admin: self.admin | other.admin,
        }
    }
}

/// A key that admits its holder to what its scopes say. It is kept as a MAC and compared in constant time.
#[derive(Clone)]
pub struct AccessKey {
    key: hmac::Key,
    mac: hmac::Tag,
    scopes: Scopes,
}

impl AccessKey {
    /// Takes the key as clients show it, with all scopes.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self::scoped(text, Scopes::ALL)
    }

    /// Takes the key as clients show it, with some scopes.
    #[must_use]
    pub fn scoped(text: &str, scopes: Scopes) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"ginnel access key");
        let mac = hmac::sign(&key, text.as_bytes());
        Self { key, mac, scopes }
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

/// Says what `shown` admits to, `None` where it is none of `keys`; looks at all of them, so that time does not tell which. A key
/// that stands there twice has the scopes of both.
#[must_use]
pub fn scopes(keys: &[AccessKey], shown: &str) -> Option<Scopes> {
    keys.iter().fold(None, |found: Option<Scopes>, key| match key.is(shown) {
        true => Some(found.unwrap_or_default().with(key.scopes)),
        false => found,
    })
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
        assert!(["one", "two"].iter().all(|key| scopes(&keys, key) == Some(Scopes::ALL)));
        assert_eq!([scopes(&keys, "on"), scopes(&keys, ""), scopes(&[], "one")], [None; 3]);
        assert_eq!(format!("{keys:?}"), "[AccessKey(..), AccessKey(..)]");
    }

    #[test]
    fn a_key_has_its_scopes_and_one_that_stands_twice_has_both() {
        let (register, relay) =
            (Scopes { register: true, ..Scopes::default() }, Scopes { relay: true, ..Scopes::default() });
        let keys =
            [AccessKey::scoped("a", register), AccessKey::scoped("b", relay), AccessKey::scoped("a", relay)];
        assert_eq!(scopes(&keys, "a"), Some(Scopes { admin: false, ..Scopes::ALL }));
        assert_eq!(scopes(&keys, "b"), Some(relay));
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
