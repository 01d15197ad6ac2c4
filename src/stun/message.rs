//! Reading: a checked view of one message.

use super::{Attributes, HEADER_LEN, Key, MAGIC_COOKIE, attr, fingerprint, integrity};
use subtle::ConstantTimeEq;

/// The class bits of a message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Asks for a response.
    Request,
    /// Asks for nothing.
    Indication,
    /// Answers a request that was granted.
    Success,
    /// Answers a request that was refused.
    Error,
}

/// The method of a message type: 12 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(pub u16);

impl Method {
    /// Binding (RFC 8489).
    pub const BINDING: Self = Self(0x001);
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
    /// Makes a modern id from 96 random bits.
    #[must_use]
    pub fn new(random: [u8; 12]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        bytes[4..].copy_from_slice(&random);
        Self(bytes)
    }

    /// Returns whether the id has no magic cookie: a client of RFC 3489, which knows no XOR-MAPPED-ADDRESS.
    #[must_use]
    pub fn is_classic(&self) -> bool {
        self.0[..4] != MAGIC_COOKIE.to_be_bytes()
    }
}

/// Why bytes are no STUN message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Fewer than 20 bytes, or the first two bits are not zero.
    #[error("no STUN header")]
    Header,
    /// The length field is not a multiple of four, or does not agree with the bytes that are there.
    #[error("the length field disagrees with the message")]
    Length,
    /// An attribute runs past the end of the message.
    #[error("an attribute runs past the message")]
    Attribute,
    /// FINGERPRINT is there and wrong, or is not the last attribute.
    #[error("the fingerprint does not match")]
    Fingerprint,
}

/// A structurally sound message: every attribute lies within it, and a FINGERPRINT, if there is one, is right.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// Where the attributes that may be acted on end: at the integrity attribute or at the end.
    body_end: usize,
    integrity_at: Option<usize>,
    has_fingerprint: bool,
}

impl<'a> Message<'a> {
    /// Checks the header and the attributes' bounds of `bytes`, which must be exactly one message.
    ///
    /// # Errors
    /// [`ParseError`] names the first rule that is broken (RFC 8489 section 6.3).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        if bytes.len() < HEADER_LEN || bytes[0] & 0xC0 != 0 {
            return Err(ParseError::Header);
        }
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if length % 4 != 0 || length + HEADER_LEN != bytes.len() {
            return Err(ParseError::Length);
        }
        let mut message = Self { bytes, body_end: bytes.len(), integrity_at: None, has_fingerprint: false };
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let kind = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let value_len = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
            let next = at + 4 + value_len.next_multiple_of(4);
            if next > bytes.len() {
                return Err(ParseError::Attribute);
            }
            match kind {
                attr::MESSAGE_INTEGRITY | attr::MESSAGE_INTEGRITY_SHA256 => {
                    message.body_end = message.body_end.min(at);
                    if kind == attr::MESSAGE_INTEGRITY && message.integrity_at.is_none() && value_len == 20 {
                        message.integrity_at = Some(at);
                    }
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

    /// Returns bytes 4–19, for the response.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.bytes[4..HEADER_LEN]);
        TransactionId(id)
    }

    /// Returns whether the message ends in a (right) FINGERPRINT.
    #[must_use]
    pub fn has_fingerprint(&self) -> bool {
        self.has_fingerprint
    }

    /// Returns whether a MESSAGE-INTEGRITY of the right size is there, whatever its worth.
    #[must_use]
    pub fn has_integrity(&self) -> bool {
        self.integrity_at.is_some()
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

    fn text(&self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.unverified().get(kind)?).ok()
    }

    /// Returns the attributes if MESSAGE-INTEGRITY is there and right under `key`, compared in constant time.
    #[must_use]
    pub fn verify(&self, key: &Key) -> Option<Attributes<'a>> {
        let at = self.integrity_at?;
        let right = integrity(key, &self.bytes[..at]);
        let given = self.bytes.get(at + 4..at + 24)?;
        bool::from(right.as_ref().ct_eq(given)).then(|| self.unverified())
    }

    /// Returns the attributes of a message whose protocol asks for no integrity: Binding, indications, and responses
    /// to a request that carried none.
    #[must_use]
    pub fn unverified(&self) -> Attributes<'a> {
        Attributes::new(&self.bytes[HEADER_LEN..self.body_end], self.transaction())
    }
}
