//! Users with long-term keys, and the credentials file.

use crate::stun::{PasswordAlgorithm, long_term_digest, long_term_digest_sha256, userhash};
use data_encoding::HEXLOWER_PERMISSIVE;
use std::collections::HashMap;
use std::sync::Arc;

/// Longest user name (RFC 8489 section 14.3: fewer than 509 bytes).
pub(super) const MAX_USERNAME: usize = 508;

/// The keys of a user: digests of name, realm and password.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserKeys {
    /// `MD5(user:realm:password)`, for every client; without it only clients of RFC 8489 are accepted.
    pub md5: Option<[u8; 16]>,
    /// `SHA-256(user:realm:password)`, for clients of RFC 8489.
    pub sha256: Option<[u8; 32]>,
}

impl UserKeys {
    /// Makes both keys of a password.
    #[must_use]
    pub fn of_password(user: &str, realm: &str, password: &str) -> Self {
        Self {
            md5: Some(long_term_digest(user, realm, password)),
            sha256: Some(long_term_digest_sha256(user, realm, password)),
        }
    }

    pub(super) fn key(&self, algorithm: PasswordAlgorithm) -> Option<&[u8]> {
        match algorithm {
            PasswordAlgorithm::Md5 => self.md5.as_ref().map(<[u8; 16]>::as_slice),
            PasswordAlgorithm::Sha256 => self.sha256.as_ref().map(<[u8; 32]>::as_slice),
        }
    }
}

/// The user that a request names.
#[derive(Debug, Clone, Copy)]
pub(super) enum UserId<'a> {
    /// USERNAME.
    Name(&'a str),
    /// USERHASH.
    Hash(&'a [u8]),
}

/// The users of one realm from one source.
#[derive(Debug, Default)]
pub(super) struct UserTable {
    by_name: HashMap<Arc<str>, UserKeys>,
    by_hash: HashMap<[u8; 32], Arc<str>>,
    /// Number of users without a SHA-256 key.
    without_sha256: usize,
}

impl UserTable {
    pub(super) fn new(realm: &str, users: impl IntoIterator<Item = (String, UserKeys)>) -> Self {
        let by_name: HashMap<Arc<str>, _> =
            users.into_iter().map(|(name, keys)| (name.into(), keys)).collect();
        let by_hash = by_name.keys().map(|name| (userhash(name, realm), Arc::clone(name))).collect();
        let without_sha256 = by_name.values().filter(|keys| keys.sha256.is_none()).count();
        Self { by_name, by_hash, without_sha256 }
    }

    pub(super) fn find(&self, identity: UserId<'_>) -> Option<(Arc<str>, UserKeys)> {
        let name = match identity {
            UserId::Name(name) => name,
            UserId::Hash(hash) => self.by_hash.get(hash)?,
        };
        self.by_name.get_key_value(name).map(|(name, keys)| (Arc::clone(name), *keys))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Returns whether every user has a SHA-256 key: a client tries only the first algorithm that is offered.
    pub(super) fn all_have_sha256(&self) -> bool {
        self.without_sha256 == 0
    }
}

/// Why a credentials file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {rule}")]
pub struct CredentialsError {
    /// The line, counted from 1.
    pub line: usize,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Reads a credentials file: `name:realm:md5hex[:sha256hex]` a line; empty lines and lines that begin with `#` are skipped.
///
/// # Errors
/// [`CredentialsError`] names the first malformed line; the whole file is rejected.
pub(crate) fn parse_credentials(text: &str) -> Result<Vec<(String, String, UserKeys)>, CredentialsError> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(line, text)| parse_line(text).map_err(|rule| CredentialsError { line, rule }))
        .collect()
}

fn parse_line(line: &str) -> Result<(String, String, UserKeys), &'static str> {
    let fields: Vec<&str> = line.split(':').collect();
    let (name, realm, md5, sha256) = match fields[..] {
        [name, realm, md5] => (name, realm, md5, None),
        [name, realm, md5, sha256] => (name, realm, md5, Some(sha256)),
        _ => return Err("must be name:realm:md5hex[:sha256hex]"),
    };
    if name.is_empty() || name.len() > MAX_USERNAME {
        return Err("the name must have 1 to 508 bytes");
    }
    let md5 = Some(hex_key(md5).ok_or("the MD5 key must be 32 hexadecimal digits")?);
    let sha256 = sha256.map(|text| hex_key(text).ok_or("the SHA-256 key must be 64 hexadecimal digits"));
    Ok((name.to_owned(), realm.to_owned(), UserKeys { md5, sha256: sha256.transpose()? }))
}

/// Decodes a key in hexadecimal digits.
#[must_use]
pub(crate) fn hex_key<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_is_read_whole_or_not_at_all() {
        let md5 = "00112233445566778899aabbccddeeff";
        let both = format!("# users\n\nalice:r:{md5}\nbob:r:{md5}:{md5}{md5}\n");
        let users = parse_credentials(&both).unwrap();
        assert_eq!((users.len(), users[0].0.as_str(), users[0].2.sha256), (2, "alice", None));
        assert!(users[1].2.sha256.is_some());
        for (line, text) in [
            (1, format!("alice:{md5}")),
            (2, format!("alice:r:{md5}\nbob:r:123")),
            (1, format!("alice:r:{md5}:123")),
            (1, format!(":r:{md5}")),
            (3, format!("#\n#\n{}:r:{md5}", "x".repeat(509))),
        ] {
            assert_eq!(parse_credentials(&text).unwrap_err().line, line, "{text}");
        }
    }
}
