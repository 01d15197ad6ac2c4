//! The keys of a node, and signatures under a context.

use super::node_id::NodeId;
use crate::messaging_client::encryption;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;

/// What a signature is for; no signature of one purpose is valid for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Record,
    /// An owner names a friend.
    NameFriend,
    /// A friend agrees.
    AgreeFriend,
    /// The content of a sealed message.
    Sealed,
}

impl Purpose {
    fn context(self) -> &'static [u8] {
        match self {
            Self::Record => b"ginnel mesh record v1\0",
            Self::NameFriend => b"ginnel mesh friend named v1\0",
            Self::AgreeFriend => b"ginnel mesh friend agreed v1\0",
            Self::Sealed => b"ginnel mesh sealed v1\0",
        }
    }
}

/// The public keys of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublicKeys {
    /// Ed25519.
    pub(super) signing: [u8; 32],
    /// X25519.
    pub(super) encryption: [u8; 32],
}

impl PublicKeys {
    pub(super) fn id(&self) -> NodeId {
        NodeId::of(&self.signing)
    }
}

/// The secret keys of the own node.
pub(super) struct NodeKeys {
    signing: Ed25519KeyPair,
    encryption_secret: [u8; 32],
    public: PublicKeys,
}

impl NodeKeys {
    /// Returns the keys; `None` does not happen, every seed gives a key.
    pub(super) fn new(signing_seed: &[u8; 32], encryption_secret: [u8; 32]) -> Option<Self> {
        let signing = Ed25519KeyPair::from_seed_unchecked(signing_seed).ok()?;
        let public = PublicKeys {
            signing: signing.public_key().as_ref().try_into().ok()?,
            encryption: encryption::public_key(&encryption_secret),
        };
        Some(Self { signing, encryption_secret, public })
    }

    pub(super) fn public(&self) -> &PublicKeys {
        &self.public
    }

    pub(super) fn id(&self) -> NodeId {
        self.public.id()
    }

    pub(super) fn encryption_secret(&self) -> &[u8; 32] {
        &self.encryption_secret
    }

    pub(super) fn sign(&self, purpose: Purpose, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.signing.sign(&[purpose.context(), message].concat()).as_ref());
        bytes
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKeys({:?})", self.id())
    }
}

/// Returns whether `key` has signed `message` for this purpose.
pub(super) fn is_signed(key: &[u8; 32], purpose: Purpose, message: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(&[purpose.context(), message].concat(), signature).is_ok()
}

#[cfg(test)]
pub(super) fn test_keys(number: u64) -> NodeKeys {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    let mut secret = [2; 32];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    NodeKeys::new(&seed, secret).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_valid_for_its_purpose_key_and_message_only() {
        let (keys, other) = (test_keys(1), test_keys(2));
        let signature = keys.sign(Purpose::Record, b"text");
        let signing = keys.public().signing;
        assert!(is_signed(&signing, Purpose::Record, b"text", &signature));
        assert!(!is_signed(&signing, Purpose::Sealed, b"text", &signature));
        assert!(!is_signed(&signing, Purpose::Record, b"test", &signature));
        assert!(!is_signed(&other.public().signing, Purpose::Record, b"text", &signature));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(format!("{:?}", test_keys(1)).starts_with("NodeKeys(mesh1"));
    }
}
