//! Writing messages.

use super::attributes::write_address;
use super::{Class, HEADER_LEN, Key, Method, PasswordAlgorithm, TransactionId, attr, fingerprint, integrity};
use std::net::SocketAddr;

/// Writes one message. The length field is correct after every step; padding is zero.
#[derive(Debug, Clone)]
pub struct Builder {
    bytes: Vec<u8>,
    transaction: TransactionId,
}

impl Builder {
    /// Begins a message.
    #[must_use]
    pub fn new(class: Class, method: Method, transaction: TransactionId) -> Self {
        Self::reuse(Vec::with_capacity(160), class, method, transaction)
    }

    /// Begins a message in the buffer of an old one, which saves an allocation.
    #[must_use]
    pub fn reuse(mut bytes: Vec<u8>, class: Class, method: Method, transaction: TransactionId) -> Self {
        let class_bits = match class {
            Class::Request => 0x000,
            Class::Indication => 0x010,
            Class::Success => 0x100,
            Class::Error => 0x110,
        };
        let m = method.0;
        let kind = (m & 0x000F) | ((m & 0x0070) << 1) | ((m & 0x0F80) << 2) | class_bits;
        bytes.clear();
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&transaction.0);
        Self { bytes, transaction }
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        debug_assert!(value.len() <= usize::from(u16::MAX) - HEADER_LEN);
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(&value[..usize::from(len)]);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let body = u16::try_from(self.bytes.len() - HEADER_LEN).unwrap_or(u16::MAX);
        self.bytes[2..4].copy_from_slice(&body.to_be_bytes());
        self
    }

    /// Appends an XOR address (RFC 8489 section 14.2).
    #[must_use]
    pub fn xor_address(self, kind: u16, address: SocketAddr) -> Self {
        self.address(kind, address, false)
    }

    /// Appends an address that is not XORed, in the format of MAPPED-ADDRESS (RFC 8489 section 14.1).
    #[must_use]
    pub fn mapped_address(self, address: SocketAddr) -> Self {
        self.plain_address(attr::MAPPED_ADDRESS, address)
    }

    /// Appends an address without XOR, such as ALTERNATE-SERVER.
    #[must_use]
    pub fn plain_address(self, kind: u16, address: SocketAddr) -> Self {
        self.address(kind, address, true)
    }

    fn address(self, kind: u16, address: SocketAddr, plain: bool) -> Self {
        let mut value = [0; 20];
        let len = write_address(&mut value, address, &self.transaction, plain);
        self.attribute(kind, &value[..len])
    }

    /// Appends ERROR-CODE with its reason phrase.
    #[must_use]
    pub fn error(self, code: u16, reason: &str) -> Self {
        let mut value = vec![0, 0, (code / 100) as u8, (code % 100) as u8];
        value.extend_from_slice(reason.as_bytes());
        self.attribute(attr::ERROR_CODE, &value)
    }

    /// Appends UNKNOWN-ATTRIBUTES.
    #[must_use]
    pub fn unknown_attributes(self, kinds: &[u16]) -> Self {
        let value: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        self.attribute(attr::UNKNOWN_ATTRIBUTES, &value)
    }

    /// Appends PASSWORD-ALGORITHMS, the preferred one first.
    #[must_use]
    pub fn password_algorithms(self, algorithms: &[PasswordAlgorithm]) -> Self {
        let value: Vec<u8> = algorithms.iter().flat_map(|algorithm| algorithm.value()).collect();
        self.attribute(attr::PASSWORD_ALGORITHMS, &value)
    }

    /// Appends the integrity attribute of `key` over everything so far. Of both, SHA-1's comes first.
    #[must_use]
    pub fn integrity(self, key: &Key) -> Self {
        let tag = integrity(key, &self.bytes, key.integrity().len());
        self.attribute(key.integrity().attribute(), tag.as_ref())
    }

    /// Appends FINGERPRINT over everything so far.
    #[must_use]
    pub fn fingerprint(self) -> Self {
        let value = fingerprint(&self.bytes).to_be_bytes();
        self.attribute(attr::FINGERPRINT, &value)
    }

    /// Returns the message.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
