//! Long-term credentials: password algorithms and digests.

use ring::digest;

/// How a password becomes a key ([RFC 8489 section 18.5](https://www.rfc-editor.org/rfc/rfc8489#section-18.5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PasswordAlgorithm {
    /// MD5, which every client supports.
    Md5,
    /// SHA-256.
    Sha256,
}

impl PasswordAlgorithm {
    /// Returns the value of PASSWORD-ALGORITHM, which is also its entry in PASSWORD-ALGORITHMS: number, no parameters.
    #[must_use]
    pub const fn value(self) -> [u8; 4] {
        match self {
            Self::Md5 => [0, 1, 0, 0],
            Self::Sha256 => [0, 2, 0, 0],
        }
    }

    /// Reads the value of PASSWORD-ALGORITHM; neither algorithm has parameters.
    #[must_use]
    pub fn read(value: &[u8]) -> Option<Self> {
        [Self::Md5, Self::Sha256].into_iter().find(|algorithm| algorithm.value() == value)
    }
}

/// Digests long-term credentials to `MD5(user ":" realm ":" password)`
/// ([RFC 8489 section 9.2.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2.2)), which is all that a server stores.
#[must_use]
pub fn long_term_digest(user: &str, realm: &str, password: &str) -> [u8; 16] {
    use md5::{Digest, Md5};
    let mut md5 = Md5::new();
    for part in [user, ":", realm, ":", password] {
        md5.update(part.as_bytes());
    }
    md5.finalize().into()
}

/// Digests long-term credentials to `SHA-256(user ":" realm ":" password)`
/// ([RFC 8489 section 18.5.1.2](https://www.rfc-editor.org/rfc/rfc8489#section-18.5.1.2)).
#[must_use]
pub fn long_term_digest_sha256(user: &str, realm: &str, password: &str) -> [u8; 32] {
    sha256(&[user, ":", realm, ":", password])
}

/// Digests a user name to USERHASH, `SHA-256(user ":" realm)`
/// ([RFC 8489 section 14.4](https://www.rfc-editor.org/rfc/rfc8489#section-14.4)).
#[must_use]
pub fn userhash(user: &str, realm: &str) -> [u8; 32] {
    sha256(&[user, ":", realm])
}

fn sha256(parts: &[&str]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part.as_bytes());
    }
    let mut value = [0; 32];
    value.copy_from_slice(context.finish().as_ref());
    value
}
