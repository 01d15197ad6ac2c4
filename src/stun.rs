//! The STUN codec: [RFC 8489](https://www.rfc-editor.org/rfc/rfc8489) messages, attributes, integrity and fingerprint.
//!
//! Reading borrows: [`Message`] is a checked view of the received bytes. Its ordinary attributes are reached only through
//! [`Message::verify`] or, where the protocol asks for no integrity, through [`Message::unverified`]; both stop at the
//! integrity attribute, so that nothing behind it is ever acted on (RFC 8489 section 14.5).
//! Writing goes through [`Builder`], whose padding is always zero.

mod attributes;
mod builder;
mod message;

pub use attributes::{AddressError, Attributes, attr};
pub use builder::Builder;
pub use message::{Class, Message, Method, ParseError, TransactionId};

use ring::hmac;

/// The value at bytes 4–7 of every message since RFC 5389.
pub const MAGIC_COOKIE: u32 = 0x2112_A442;
/// Bytes in front of the attributes.
pub const HEADER_LEN: usize = 20;

/// A key for MESSAGE-INTEGRITY (HMAC-SHA1).
#[derive(Debug, Clone)]
pub struct Key(hmac::Key);

impl Key {
    /// Makes the key of short-term credentials: the password itself.
    #[must_use]
    pub fn short_term(password: &str) -> Self {
        Self::from_bytes(password.as_bytes())
    }

    /// Makes the key of long-term credentials from the MD5 digest that [`long_term_digest`] gives.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, bytes))
    }
}

/// Digests long-term credentials to `MD5(user ":" realm ":" password)`
/// ([RFC 8489 section 9.2.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2.2)), which is all a server needs to keep.
#[must_use]
pub fn long_term_digest(user: &str, realm: &str, password: &str) -> [u8; 16] {
    use md5::{Digest, Md5};
    let mut md5 = Md5::new();
    for part in [user, ":", realm, ":", password] {
        md5.update(part.as_bytes());
    }
    md5.finalize().into()
}

const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// Computes MESSAGE-INTEGRITY over `before`, the bytes in front of the attribute, as if the message ended with it.
fn integrity(key: &Key, before: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&key.0);
    digest_with_length(before, 24, |part| context.update(part));
    context.sign()
}

/// Computes FINGERPRINT over `before`, the bytes in front of the attribute.
fn fingerprint(before: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    digest_with_length(before, 8, |part| crc.update(part));
    crc.finalize() ^ FINGERPRINT_XOR
}

/// Feeds `before` with its length field set as if an attribute of `attribute_len` bytes followed and ended the message.
fn digest_with_length(before: &[u8], attribute_len: usize, mut feed: impl FnMut(&[u8])) {
    let length = u16::try_from(before.len() + attribute_len - HEADER_LEN).unwrap_or(u16::MAX);
    feed(&before[..2]);
    feed(&length.to_be_bytes());
    feed(&before[4..]);
}

#[cfg(test)]
mod tests;
