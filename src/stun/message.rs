//! Reading messages.

use super::{Attributes, HEADER_LEN, Integrity, Key, MAGIC_COOKIE, attr, fingerprint, integrity};
use subtle::ConstantTimeEq;

/// The class bits of a message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A request.
    Request,
    /// An indication, which has no response.
    Indication,
    /// A success response.
    Success,
    /// An error response.
    Error,
}

/// The method of a message type: 12 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(pub u16);

impl Method {
    /// Binding (RFC 8489).
    pub const BINDING: Self = Self(0x001);
    /// Shared Secret (RFC 3489; reserved since RFC 5389).
    pub const SHARED_SECRET: Self = Self(0x002);
    /// Allocate (RFC 8656).
    pub const ALLOCATE: Self = Self(0x003);
    /// Refresh (RFC 8656).
    pub const REFRESH: Self = Self(0x004);
    /// Send (RFC 8656), an indication from the client.
    pub const SEND: Self = Self(0x006);
    /// Data (RFC 8656), an indication to the client.
    pub const DATA: Self = Self(0x007);
    /// CreatePermission (RFC 8656).
    pub const CREATE_PERMISSION: Self = Self(0x008);
    /// ChannelBind (RFC 8656).
    pub const CHANNEL_BIND: Self = Self(0x009);
    /// Connect (RFC 6062).
    pub const CONNECT: Self = Self(0x00A);
    /// ConnectionBind (RFC 6062), on the new connection.
    pub const CONNECTION_BIND: Self = Self(0x00B);
    /// ConnectionAttempt (RFC 6062), an indication to the client.
    pub const CONNECTION_ATTEMPT: Self = Self(0x00C);
}

/// Bytes 4–19 of a message: the magic cookie and the 96-bit transaction id, or the 128-bit id of a classic message
/// (RFC 3489, without cookie). A response repeats them unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 16]);

impl TransactionId {
    /// Makes an id with the magic cookie from 96 random bits.
    #[must_use]
    pub fn new(random: [u8; 12]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        bytes[4..].copy_from_slice(&random);
        Self(bytes)
    }

    /// Returns whether the id has no magic cookie: the client follows RFC 3489, which has no XOR-MAPPED-ADDRESS.
    #[must_use]
    pub fn is_classic(&self) -> bool {
        self.0[..4] != MAGIC_COOKIE.to_be_bytes()
    }
}

/// Why bytes are not a STUN message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Fewer than 20 bytes, or the first two bits are not zero.
    #[error("no STUN header")]
    Header,
    /// The length field is not a multiple of four, or differs from the length of the bytes.
    #[error("the length field disagrees with the message")]
    Length,
    /// An attribute exceeds the message.
    #[error("an attribute runs past the message")]
    Attribute,
    /// FINGERPRINT is wrong or is not the last attribute.
    #[error("the fingerprint does not match")]
    Fingerprint,
}

/// A well-formed message: every attribute lies within it, and FINGERPRINT, if present, is correct.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// Where the attributes end that are not ignored: at the integrity attribute or at the end.
    body_end: usize,
    /// Where MESSAGE-INTEGRITY begins, unless it follows MESSAGE-INTEGRITY-SHA256 and is ignored.
    sha1_at: Option<usize>,
    /// Where MESSAGE-INTEGRITY-SHA256 begins, and the length of its value.
    sha256_at: Option<(usize, usize)>,
    has_fingerprint: bool,
}

impl<'a> Message<'a> {
    /// Parses `bytes`, which must be exactly one message.
    ///
    /// # Errors
    /// [`ParseError`] names the first rule that is violated (RFC 8489 section 6.3).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        if bytes.len() < HEADER_LEN || bytes[0] & 0xC0 != 0 {
            return Err(ParseError::Header);
        }
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if length % 4 != 0 || length + HEADER_LEN != bytes.len() {
            return Err(ParseError::Length);
        }
        let mut message =
            Self { bytes, body_end: bytes.len(), sha1_at: None, sha256_at: None, has_fingerprint: false };
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let kind = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let value_len = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
            let next = at + 4 + value_len.next_multiple_of(4);
            if next > bytes.len() {
                return Err(ParseError::Attribute);
            }
            match kind {
                attr::MESSAGE_INTEGRITY => {
                    let first = message.sha1_at.is_none() && message.sha256_at.is_none();
                    if first && value_len == Integrity::Sha1.len() {
                        message.sha1_at = Some(at);
                    }
                    message.body_end = message.body_end.min(at);
                }
                attr::MESSAGE_INTEGRITY_SHA256 => {
                    let sound = (16..=Integrity::Sha256.len()).contains(&value_len) && value_len % 4 == 0;
                    if message.sha256_at.is_none() && sound {
                        message.sha256_at = Some((at, value_len));
                    }
                    message.body_end = message.body_end.min(at);
                }
                attr::FINGERPRINT => {
                    let expected = fingerprint(&bytes[..at]).to_be_bytes();
                    if next != bytes.len() || value_len != 4 || bytes[at + 4..next] != expected {
                        return Err(ParseError::Fingerprint);
                    }
                    message.body_end = message.body_end.min(at);
                    message.has_fingerprint = true;
                }
                _ => {}
            }
            at = next;
        }
        Ok(message)
    }

    /// Returns the whole message.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> Class {
        match (self.bytes[0] & 1, self.bytes[1] & 0x10) {
            (0, 0) => Class::Request,
            (0, _) => Class::Indication,
            (_, 0) => Class::Success,
            _ => Class::Error,
        }
    }

    /// Returns the method.
    #[must_use]
    pub fn method(&self) -> Method {
        let bits = u16::from_be_bytes([self.bytes[0], self.bytes[1]]);
        Method((bits & 0x000F) | ((bits & 0x00E0) >> 1) | ((bits & 0x3E00) >> 2))
    }

    /// Returns the transaction id, which the response repeats.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.bytes[4..HEADER_LEN]);
        TransactionId(id)
    }

    /// Returns whether the message has a FINGERPRINT, which is correct.
    #[must_use]
    pub fn has_fingerprint(&self) -> bool {
        self.has_fingerprint
    }

    /// Returns where MESSAGE-INTEGRITY begins, unless it is ignored.
    pub(super) fn sha1_at(&self) -> Option<usize> {
        self.sha1_at
    }

    /// Returns whether the message has an integrity attribute of a valid length.
    #[must_use]
    pub fn has_integrity(&self) -> bool {
        self.strongest_integrity().is_some()
    }

    /// Returns the integrity attribute to verify: SHA-256 if both are present
    /// ([RFC 8489 section 9.1.3](https://www.rfc-editor.org/rfc/rfc8489#section-9.1.3)).
    #[must_use]
    pub fn strongest_integrity(&self) -> Option<Integrity> {
        let sha256 = self.sha256_at.map(|_| Integrity::Sha256);
        sha256.or(self.sha1_at.map(|_| Integrity::Sha1))
    }

    /// Returns USERNAME, which must be read before its integrity can be verified.
    #[must_use]
    pub fn username(&self) -> Option<&'a str> {
        self.text(attr::USERNAME)
    }

    /// Returns REALM, likewise.
    #[must_use]
    pub fn realm(&self) -> Option<&'a str> {
        self.text(attr::REALM)
    }

    /// Returns NONCE, likewise.
    #[must_use]
    pub fn nonce(&self) -> Option<&'a str> {
        self.text(attr::NONCE)
    }

    /// Returns an attribute that is needed to verify the integrity, such as USERNAME or NONCE.
    #[must_use]
    pub fn identity(&self, kind: u16) -> Option<&'a [u8]> {
        self.unverified().get(kind)
    }

    fn text(&self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.identity(kind)?).ok()
    }

    /// Verifies the integrity attribute of `key` in constant time; returns the attributes if it is correct.
    #[must_use]
    pub fn verify(&self, key: &Key) -> Option<Attributes<'a>> {
        self.verify_truncated(key, key.integrity().len())
    }

    /// Does the same for usages that allow MESSAGE-INTEGRITY-SHA256 truncated to `min_len` bytes, 16 or more; TURN and ICE do not
    /// ([RFC 8489 section 14.6](https://www.rfc-editor.org/rfc/rfc8489#section-14.6)).
    #[must_use]
    pub fn verify_truncated(&self, key: &Key, min_len: usize) -> Option<Attributes<'a>> {
        let (at, len) = match key.integrity() {
            Integrity::Sha1 => (self.sha1_at?, Integrity::Sha1.len()),
            Integrity::Sha256 => self.sha256_at?,
        };
        let right = integrity(key, &self.bytes[..at], len);
        let given = self.bytes.get(at + 4..at + 4 + len)?;
        let equal = bool::from(right.as_ref()[..len].ct_eq(given));
        (equal && len >= min_len).then(|| self.unverified())
    }

    /// Returns the attributes of a message that needs no integrity: Binding, indications, and responses to requests without it.
    #[must_use]
    pub fn unverified(&self) -> Attributes<'a> {
        Attributes::new(&self.bytes[HEADER_LEN..self.body_end], self.transaction())
    }
}
