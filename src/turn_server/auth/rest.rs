//! Time-limited credentials of the TURN REST API, which anyone who shares the secret can issue.

use data_encoding::{BASE32_NOPAD, BASE64};
use ring::hmac;

/// The shared secret of time-limited credentials: user name `expiry:name`, password `base64(HMAC(secret, user name))`.
#[derive(Debug, Clone)]
pub struct RestSecret {
    sha1: hmac::Key,
    sha256: hmac::Key,
}

/// Length of an account's name: 8 bytes in base32.
const ACCOUNT_LEN: usize = 13;

/// The HMAC that makes the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestHash {
    /// HMAC-SHA1, which other servers use.
    Sha1,
    /// HMAC-SHA256.
    Sha256,
}

/// Time-limited credentials for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestCredentials {
    /// `expiry:name`, the expiry in Unix seconds.
    pub username: String,
    /// The password.
    pub credential: String,
}

impl RestSecret {
    /// Creates it from the secret's bytes.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self {
            sha1: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret),
            sha256: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }

    /// Issues credentials for `name` that are valid until `expires_unix`, with HMAC-SHA1.
    #[must_use]
    pub fn issue(&self, name: &str, expires_unix: u64) -> RestCredentials {
        self.issue_with(RestHash::Sha1, name, expires_unix)
    }

    /// Issues credentials for `name` that are valid until `expires_unix`.
    #[must_use]
    pub fn issue_with(&self, hash: RestHash, name: &str, expires_unix: u64) -> RestCredentials {
        let username = format!("{expires_unix}:{name}");
        let credential = self.password(hash, &username);
        RestCredentials { username, credential }
    }

    /// Issues credentials that count towards an account: its quota and bandwidth are shared by all its names. Account 0 means none.
    #[must_use]
    pub fn issue_for_account(&self, account: u64, name: &str, expires_unix: u64) -> RestCredentials {
        match account {
            0 => self.issue(name, expires_unix),
            _ => {
                let account = BASE32_NOPAD.encode(&account.to_be_bytes()).to_lowercase();
                self.issue(&format!("{name}+{account}"), expires_unix)
            }
        }
    }

    pub(super) fn password(&self, hash: RestHash, username: &str) -> String {
        let key = match hash {
            RestHash::Sha1 => &self.sha1,
            RestHash::Sha256 => &self.sha256,
        };
        BASE64.encode(hmac::sign(key, username.as_bytes()).as_ref())
    }
}

/// Splits a time-limited user name: `expiry:name`, `name:expiry` or only the expiry, as other servers accept them. If both ends are
/// numbers, the first is the expiry.
fn parts(username: &str) -> Option<(u64, Option<&str>)> {
    let number = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
    if let Some((first, name)) = username.split_once(':')
        && let Some(expiry) = number(first)
    {
        return Some((expiry, Some(name)));
    }
    match username.rsplit_once(':') {
        Some((name, last)) => Some((number(last)?, Some(name))),
        None => Some((number(username)?, None)),
    }
}

/// Reads the expiry of a time-limited user name.
pub(super) fn expiry(username: &str) -> Option<u64> {
    parts(username).map(|(expiry, _)| expiry)
}

/// Reads the name without the expiry and the account.
pub(super) fn name(username: &str) -> Option<&str> {
    let name = parts(username)?.1?;
    Some(name.strip_suffix(account(username).unwrap_or_default()).unwrap_or(name))
}

/// Returns the names that credentials may have been issued for: what looks like an account may be part of the name.
pub(super) fn names(username: &str) -> impl Iterator<Item = &str> {
    let whole = parts(username).and_then(|(_, name)| name);
    whole.into_iter().chain(name(username))
}

/// Reads the account of a user name that this server has issued: `+` and [`ACCOUNT_LEN`] letters and digits at the end.
pub(super) fn account(username: &str) -> Option<&str> {
    let name = parts(username)?.1?;
    let at = name.rfind('+').filter(|at| name.len() - at == 1 + ACCOUNT_LEN)?;
    let (_, account) = name.split_at(at);
    account.bytes().skip(1).all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7')).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expiry_stands_before_or_behind_the_name_or_alone() {
        for (username, expiry_of, name_of) in [
            ("1700000000", Some(1_700_000_000), None),
            ("1700000000:alice", Some(1_700_000_000), Some("alice")),
            ("1700000000:", Some(1_700_000_000), Some("")),
            ("1700000000:@alice:example.org", Some(1_700_000_000), Some("@alice:example.org")),
            ("1700000000:alice@example.org", Some(1_700_000_000), Some("alice@example.org")),
            ("alice:1700000000", Some(1_700_000_000), Some("alice")),
            ("@alice:example.org:1700000000", Some(1_700_000_000), Some("@alice:example.org")),
            ("1700000000:1800000000", Some(1_700_000_000), Some("1800000000")),
            ("alice", None, None),
            ("alice:bob", None, None),
            ("", None, None),
            (":", None, None),
            ("+17:alice", None, None),
        ] {
            assert_eq!((expiry(username), name(username)), (expiry_of, name_of), "{username}");
        }
    }

    #[test]
    fn an_account_stands_behind_the_name_and_is_no_part_of_it() {
        let secret = RestSecret::new(b"north");
        let issued = secret.issue_for_account(7, "tag", 1_700_000_000);
        assert_eq!(issued.username, "1700000000:tag+aaaaaaaaaaaao");
        assert_eq!(
            (name(&issued.username), account(&issued.username)),
            (Some("tag"), Some("+aaaaaaaaaaaao"))
        );
        assert_eq!(secret.issue_for_account(0, "tag", 9), secret.issue("tag", 9));
        let like_one = secret.issue("bob+newslettersab", 9).username;
        for (username, name, is_of) in [
            (&issued.username, "tag", true),
            (&issued.username, "ta", false),
            (&like_one, "bob+newslettersab", true),
            (&like_one, "bob", true),
            (&secret.issue_for_account(7, "bob+newslettersab", 9).username, "bob+newslettersab", true),
            (&secret.issue_for_account(7, "bob+newslettersab", 9).username, "bob", false),
        ] {
            assert_eq!(names(username).any(|of| of == name), is_of, "{username} {name}");
        }
        for none in
            ["tag+aaaaaaaaaaaao", "9:tag", "9:tag+aaaaaaaaaaaa", "9:tag+aaaaaaaaaaaa1", "9:a+b@example.org"]
        {
            assert_eq!(account(none), None, "{none}");
        }
    }
}
