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

    /// Returns whether the owner of a public key has signed this.
    #[must_use]
    pub(crate) fn is_signed(&self, key: &[u8; 32], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, key).verify(&self.to_bytes(), signature).is_ok()
    }
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
    fn a_boundary_between_fields_cannot_be_moved() {
        let long = Statement::IdentityLogin { challenge: &[b'a'; 32], user: "" }.to_bytes();
        let other = Statement::Message { content: &[b'a'; 32] }.to_bytes();
        assert_ne!(long[25..], other[18..]);
    }
}
