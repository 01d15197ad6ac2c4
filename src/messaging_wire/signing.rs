//! What the keys of accounts and devices sign (Ed25519, [RFC 8032](https://www.rfc-editor.org/rfc/rfc8032)). Pure.
//!
//! The signed bytes are the name of the statement, a zero byte, and each field after its length as a 32-bit big-endian number. No signature
//! of one statement is a signature of another.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;

/// What a key states by signing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statement<'a> {
    /// The identity key: this device is one of the account's.
    Device {
        /// The name of the account.
        user: &'a str,
        /// The device's Ed25519 key.
        signing_key: &'a [u8; 32],
        /// The device's X25519 key.
        encryption_key: &'a [u8; 32],
    },
    /// The identity key: it is to be the account's.
    Registration {
        /// Of the connection.
        challenge: &'a [u8; 32],
        /// The name of the account.
        user: &'a str,
        /// The identity key itself.
        identity_key: &'a [u8; 32],
    },
    /// A device's key: the device logs in.
    DeviceLogin {
        /// Of the connection.
        challenge: &'a [u8; 32],
        /// The name of the account.
        user: &'a str,
        /// The signing key itself.
        signing_key: &'a [u8; 32],
    },
    /// The identity key: the account logs in without a device.
    IdentityLogin {
        /// Of the connection.
        challenge: &'a [u8; 32],
        /// The name of the account.
        user: &'a str,
    },
    /// A device's key: the device sends this message.
    Message {
        /// The content: JSON.
        content: &'a [u8],
    },
}

impl Statement<'_> {
    /// Returns the bytes that are signed.
    #[must_use]
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Device { user, signing_key, encryption_key } => {
                encode("ginnel device key v1", &[user.as_bytes(), signing_key, encryption_key])
            }
            Self::Registration { challenge, user, identity_key } => {
                encode("ginnel register v1", &[challenge, user.as_bytes(), identity_key])
            }
            Self::DeviceLogin { challenge, user, signing_key } => {
                encode("ginnel login v1", &[challenge, user.as_bytes(), signing_key])
            }
            Self::IdentityLogin { challenge, user } => {
                encode("ginnel identity login v1", &[challenge, user.as_bytes()])
            }
            Self::Message { content } => encode("ginnel message v1", &[content]),
        }
    }

    /// Returns whether the owner of a public key has signed this. With a key of small order anybody could have: it has signed nothing.
    #[must_use]
    pub(crate) fn is_signed(&self, key: &[u8; 32], signature: &[u8; 64]) -> bool {
        !is_small_order_signing_key(key)
            && UnparsedPublicKey::new(&ED25519, key).verify(&self.to_bytes(), signature).is_ok()
    }
}

/// The y coordinates of the points of small order on edwards25519, and those that are not reduced, little-endian without the sign.
const SMALL_ORDER_SIGNING_KEYS: [[u8; 32]; 7] = [
    number(0x00, 0x00, 0x00),
    number(0x01, 0x00, 0x00),
    [
        0x26, 0xE8, 0x95, 0x8F, 0xC2, 0xB2, 0x27, 0xB0, 0x45, 0xC3, 0xF4, 0x89, 0xF2, 0xEF, 0x98, 0xF0, 0xD5,
        0xDF, 0xAC, 0x05, 0xD3, 0xC6, 0x33, 0x39, 0xB1, 0x38, 0x02, 0x88, 0x6D, 0x53, 0xFC, 0x05,
    ],
    [
        0xC7, 0x17, 0x6A, 0x70, 0x3D, 0x4D, 0xD8, 0x4F, 0xBA, 0x3C, 0x0B, 0x76, 0x0D, 0x10, 0x67, 0x0F, 0x2A,
        0x20, 0x53, 0xFA, 0x2C, 0x39, 0xCC, 0xC6, 0x4E, 0xC7, 0xFD, 0x77, 0x92, 0xAC, 0x03, 0x7A,
    ],
    number(0xEC, 0xFF, 0x7F),
    number(0xED, 0xFF, 0x7F),
    number(0xEE, 0xFF, 0x7F),
];

/// The u coordinates of the points of small order on curve25519 and its twist, and those that are not reduced, without the highest bit.
pub(crate) const SMALL_ORDER_ENCRYPTION_KEYS: [[u8; 32]; 7] = [
    number(0x00, 0x00, 0x00),
    number(0x01, 0x00, 0x00),
    [
        0xE0, 0xEB, 0x7A, 0x7C, 0x3B, 0x41, 0xB8, 0xAE, 0x16, 0x56, 0xE3, 0xFA, 0xF1, 0x9F, 0xC4, 0x6A, 0xDA,
        0x09, 0x8D, 0xEB, 0x9C, 0x32, 0xB1, 0xFD, 0x86, 0x62, 0x05, 0x16, 0x5F, 0x49, 0xB8, 0x00,
    ],
    [
        0x5F, 0x9C, 0x95, 0xBC, 0xA3, 0x50, 0x8C, 0x24, 0xB1, 0xD0, 0xB1, 0x55, 0x9C, 0x83, 0xEF, 0x5B, 0x04,
        0x44, 0x5C, 0xC4, 0x58, 0x1C, 0x8E, 0x86, 0xD8, 0x22, 0x4E, 0xDD, 0xD0, 0x9F, 0x11, 0x57,
    ],
    number(0xEC, 0xFF, 0x7F),
    number(0xED, 0xFF, 0x7F),
    number(0xEE, 0xFF, 0x7F),
];

/// Returns a number by its lowest byte, those in the middle, and the highest.
const fn number(lowest: u8, middle: u8, highest: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = lowest;
    bytes[31] = highest;
    bytes
}

/// Returns whether an Ed25519 key is of small order: some signatures under it are good for many messages.
#[must_use]
pub(crate) fn is_small_order_signing_key(key: &[u8; 32]) -> bool {
    SMALL_ORDER_SIGNING_KEYS.contains(&without_highest_bit(key))
}

/// Returns whether an X25519 key is of small order: every shared secret with it is zero.
#[must_use]
pub(crate) fn is_small_order_encryption_key(key: &[u8; 32]) -> bool {
    SMALL_ORDER_ENCRYPTION_KEYS.contains(&without_highest_bit(key))
}

fn without_highest_bit(key: &[u8; 32]) -> [u8; 32] {
    let mut key = *key;
    key[31] &= 0x7F;
    key
}

fn encode(domain: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [domain.as_bytes(), &[0]].concat();
    for field in fields {
        // A frame has at most 256 KiB.
        bytes.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(*field);
    }
    bytes
}

/// A private Ed25519 key: of an identity or of a device.
pub(crate) struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Makes the key of 32 random bytes. `None` does not happen: every seed gives a key.
    #[must_use]
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    /// Returns the public key.
    #[must_use]
    pub(crate) fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.0.public_key().as_ref());
        public
    }

    /// Signs a statement.
    #[must_use]
    pub(crate) fn sign(&self, statement: &Statement<'_>) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(&statement.to_bytes()).as_ref());
        signature
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements<'a>(key: &'a [u8; 32], user: &'a str) -> [Statement<'a>; 5] {
        [
            Statement::Device { user, signing_key: key, encryption_key: key },
            Statement::Registration { challenge: key, user, identity_key: key },
            Statement::DeviceLogin { challenge: key, user, signing_key: key },
            Statement::IdentityLogin { challenge: key, user },
            Statement::Message { content: user.as_bytes() },
        ]
    }

    #[test]
    fn a_statement_has_the_bytes_of_the_protocol() {
        let bytes = Statement::IdentityLogin { challenge: &[7; 32], user: "al" }.to_bytes();
        let expected = [&b"ginnel identity login v1\0\0\0\0\x20"[..], &[7; 32], b"\0\0\0\x02al"].concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_signature_is_of_one_statement_and_one_key() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let other = SigningKey::from_seed(&[2; 32]).unwrap().public();
        let own = key.public();
        for (n, statement) in statements(&own, "alice").iter().enumerate() {
            let signature = key.sign(statement);
            assert!(statement.is_signed(&own, &signature));
            assert!(!statement.is_signed(&other, &signature));
            for (m, another) in statements(&own, "alice").iter().enumerate() {
                assert_eq!(another.is_signed(&own, &signature), n == m);
            }
            assert!(!statements(&own, "alicf")[n].is_signed(&own, &signature));
        }
    }

    #[test]
    fn a_key_of_small_order_has_signed_nothing() {
        // The neutral point as the key, the base point as R, and s = 1: s·B = R + h·A for every message.
        let key = number(0x01, 0x00, 0x00);
        let base = number(0x58, 0x66, 0x66);
        let signature: [u8; 64] = [base, number(0x01, 0x00, 0x00)].concat().try_into().unwrap();
        let statement = Statement::Message { content: b"never signed" };
        let verified = UnparsedPublicKey::new(&ED25519, key).verify(&statement.to_bytes(), &signature);
        assert!(verified.is_ok(), "the signature scheme itself accepts it");
        assert!(!statement.is_signed(&key, &signature));
        for mut key in SMALL_ORDER_SIGNING_KEYS {
            assert!(is_small_order_signing_key(&key));
            key[31] |= 0x80;
            assert!(is_small_order_signing_key(&key));
        }
        assert!(!is_small_order_signing_key(&SigningKey::from_seed(&[1; 32]).unwrap().public()));
    }

    #[test]
    fn a_boundary_between_fields_cannot_be_moved() {
        let long = Statement::IdentityLogin { challenge: &[b'a'; 32], user: "" }.to_bytes();
        let other = Statement::Message { content: &[b'a'; 32] }.to_bytes();
        assert_ne!(long[25..], other[18..]);
    }
}
