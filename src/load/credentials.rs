//! Credentials of the load's clients: a name and a password, or minted ones.

use crate::stun::{Key, long_term_digest};
use crate::turn_server::auth::RestSecret;
use std::fmt;

/// Long-term credentials ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)), in the form that every
/// server supports: MD5 and MESSAGE-INTEGRITY.
#[derive(Clone, PartialEq, Eq)]
pub struct LoadCredentials {
    user: String,
    password: String,
}

impl LoadCredentials {
    /// Uses a user's name and password.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned() }
    }

    /// Mints credentials of the TURN REST scheme for `name`, valid until `expires_unix`.
    #[must_use]
    pub fn rest(name: &str, secret: &[u8], expires_unix: u64) -> Self {
        let minted = RestSecret::new(secret).issue(name, expires_unix);
        Self { user: minted.username, password: minted.credential }
    }

    /// Returns the value of USERNAME.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Derives the key for `realm`.
    #[must_use]
    pub fn key(&self, realm: &str) -> Key {
        Key::from_bytes(&long_term_digest(&self.user, realm, &self.password))
    }
}

impl fmt::Debug for LoadCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadCredentials").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_neither_name_nor_password() {
        let text = format!("{:?}", LoadCredentials::new("alice", "secret"));
        assert!(!text.contains("alice") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn rest_credentials_are_those_of_the_scheme() {
        let credentials = LoadCredentials::rest("load", b"north", 1_700_000_000);
        assert_eq!(credentials.user(), "1700000000:load");
        assert_eq!(credentials.password.len(), 28);
    }
}
