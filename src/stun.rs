//! The STUN codec: [RFC 8489](https://www.rfc-editor.org/rfc/rfc8489) messages, attributes, integrity and fingerprint.
//!
//! [`Message`] is a checked view of received bytes. Its attributes are read through [`Message::verify`] or, where the protocol requires
//! no integrity, through [`Message::unverified`]. Both stop at the integrity attribute: attributes after it are ignored
//! (RFC 8489 section 14.5). [`Builder`] writes messages; padding is always zero.

mod attributes;
mod builder;
mod classic;
mod message;
mod password;

#[cfg(feature = "server")]
pub(crate) use attributes::COMPREHENSION_OPTIONAL;
pub use attributes::{AddressError, Attributes, attr, xor_address_value};
pub use builder::Builder;
pub use classic::{ClassicText, append_classic_integrity, is_success};
pub use message::{Class, Message, Method, ParseError, TransactionId};
pub use password::{PasswordAlgorithm, long_term_digest, long_term_digest_sha256, userhash};

use ring::hmac;

/// The magic cookie: bytes 4–7 of every message since RFC 5389.
pub const MAGIC_COOKIE: u32 = 0x2112_A442;
/// Length of the header.
pub const HEADER_LEN: usize = 20;

/// One of the two integrity attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY, HMAC-SHA1, which every client supports.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256 ([RFC 8489 section 14.6](https://www.rfc-editor.org/rfc/rfc8489#section-14.6)).
    Sha256,
}

impl Integrity {
    /// Returns the attribute's type.
    #[must_use]
    pub fn attribute(self) -> u16 {
        match self {
            Self::Sha1 => attr::MESSAGE_INTEGRITY,
            Self::Sha256 => attr::MESSAGE_INTEGRITY_SHA256,
        }
    }

    /// Returns the length of the untruncated value.
    const fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
}

/// A key for one of the two integrity attributes.
#[derive(Debug, Clone)]
pub struct Key {
    integrity: Integrity,
    hmac: hmac::Key,
}

impl Key {
    /// Makes a key for `integrity` from its bytes: a password, a digest of long-term credentials, or a token's key.
    #[must_use]
    pub fn new(integrity: Integrity, bytes: &[u8]) -> Self {
        let algorithm = match integrity {
            Integrity::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Integrity::Sha256 => hmac::HMAC_SHA256,
        };
        Self { integrity, hmac: hmac::Key::new(algorithm, bytes) }
    }

    /// Makes the MESSAGE-INTEGRITY key of short-term credentials: the password itself.
    #[must_use]
    pub fn short_term(password: &str) -> Self {
        Self::new(Integrity::Sha1, password.as_bytes())
    }

    /// Makes the MESSAGE-INTEGRITY key of long-term credentials from the result of [`long_term_digest`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::new(Integrity::Sha1, bytes)
    }

    /// Returns the attribute that the key is for.
    #[must_use]
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }
}

const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// Computes the integrity attribute over the bytes before it, as if the message ended with its `value_len` bytes.
fn integrity(key: &Key, before: &[u8], value_len: usize) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&key.hmac);
    digest_with_length(before, 4 + value_len, |part| context.update(part));
    context.sign()
}

/// Computes FINGERPRINT over the bytes before it.
fn fingerprint(before: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    digest_with_length(before, 8, |part| crc.update(part));
    crc.finalize() ^ FINGERPRINT_XOR
}

/// Passes `before` to `update` with the length field set as if an attribute of `attribute_len` bytes followed and ended the message.
fn digest_with_length(before: &[u8], attribute_len: usize, mut update: impl FnMut(&[u8])) {
    let length = u16::try_from(before.len() + attribute_len - HEADER_LEN).unwrap_or(u16::MAX);
    update(&before[..2]);
    update(&length.to_be_bytes());
    update(&before[4..]);
}

#[cfg(test)]
mod tests;
