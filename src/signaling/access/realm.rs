//! Realms: separate groups of clients on one server.

use ring::hmac;

/// A realm, stored as the first 8 bytes of a MAC of its name, so that its size does not depend on the name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Realm(u64);

/// Computes realms from names. The MAC has a key, so that nobody can compute a name that collides with another.
#[derive(Debug, Clone)]
pub struct Realms(hmac::Key);

impl Realms {
    /// Maximum length of a name in bytes.
    pub const MAX_NAME: usize = 64;

    /// Creates the key; all servers with the same realms need the same one.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Returns the realm of a name; the empty name is the default realm.
    #[must_use]
    pub fn named(&self, name: &str) -> Realm {
        if name.is_empty() {
            return Realm::default();
        }
        Realm(beginning(&hmac::sign(&self.0, name.as_bytes())))
    }

    /// Returns the id of an account: a truncated MAC, which reveals nothing about a key. Never 0.
    pub(super) fn account(&self, of: &[&str]) -> u64 {
        let mut mac = hmac::Context::with_key(&self.0);
        for part in of {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        beginning(&mac.sign()).max(1)
    }
}

fn beginning(mac: &hmac::Tag) -> u64 {
    mac.as_ref().iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

impl Default for Realms {
    /// Uses a public key, for a server whose realms all belong to its operator.
    fn default() -> Self {
        Self::new(&[0; 32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_one_realm_and_the_empty_name_the_default_realm() {
        let realms = Realms::default();
        assert_eq!(realms.named(""), Realm::default());
        assert_eq!(realms.named("blue"), realms.named("blue"));
        assert_ne!(realms.named("blue"), realms.named("green"));
        assert_ne!(realms.named("blue"), Realm::default());
        assert_ne!(realms.named("blue"), Realms::new(&[1; 32]).named("blue"));
    }
}
