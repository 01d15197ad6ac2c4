//! A ticket's secret and the keys derived from it.
//!
//! Every key is one block of HKDF-SHA256 ([RFC 5869](https://www.rfc-editor.org/rfc/rfc5869)) with a label of its own, so that no key
//! reveals another. The labels carry the version of the handshake.

use ring::hmac;
use std::fmt;

/// Length of a ticket's secret in bytes (128 bits).
pub(super) const SECRET_LEN: usize = 16;
/// Length of a derived key in bytes.
const KEY_LEN: usize = 32;
/// Length of a key id in bytes.
const KEY_ID_LEN: usize = 10;
const SALT: &[u8] = b"ginnel/2";

/// The secret that both holders of a ticket share; `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) [u8; SECRET_LEN]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One of the two ends of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentRole {
    /// Made the ticket; the QUIC server and the controlled ICE agent.
    Listener,
    /// Received the ticket; the QUIC client and the controlling ICE agent.
    Connector,
}

impl AgentRole {
    /// Returns the other end.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Listener => Self::Connector,
            Self::Connector => Self::Listener,
        }
    }
}

impl Secret {
    /// Derives the seed of a role's Ed25519 key.
    pub(super) fn signing_seed(&self, role: AgentRole) -> [u8; KEY_LEN] {
        self.derive(match role {
            AgentRole::Listener => b"ginnel/2 listener key",
            AgentRole::Connector => b"ginnel/2 connector key",
        })
    }

    /// Derives the key that authenticates the signalling of all calls of the ticket.
    pub(super) fn call_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.derive(b"ginnel/2 call"))
    }

    /// Derives the name by which an offer tells the listener with which of its secrets it is authenticated; it reveals nothing of the secret.
    pub(super) fn key_id(&self) -> String {
        let id = &self.derive(b"ginnel/2 key id")[..KEY_ID_LEN];
        data_encoding::BASE32_NOPAD.encode(id).to_ascii_lowercase()
    }

    /// Derives the gateway id at which the ticket's listener accepts connections: one of the upper half, which access keys admit to.
    pub(super) fn gateway_id(&self) -> u32 {
        let [a, b, c, d, ..] = self.derive(b"ginnel/2 gateway id");
        u32::from_be_bytes([a, b, c, d]) | 1 << 31
    }

    /// HKDF with one block of output: `T(1) = HMAC(PRK, info | 0x01)`.
    fn derive(&self, label: &[u8]) -> [u8; KEY_LEN] {
        let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SALT), &self.0);
        let mut expand = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref()));
        expand.update(label);
        expand.update(&[1]);
        let mut key = [0; KEY_LEN];
        key.copy_from_slice(expand.sign().as_ref());
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::hkdf;
    use std::collections::HashSet;

    #[test]
    fn keys_are_hkdf_sha256_of_the_secret() {
        for secret in [[0; SECRET_LEN], [7; SECRET_LEN], *b"0123456789abcdef"] {
            let label = b"ginnel/2 call";
            let mut expected = [0; KEY_LEN];
            let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&secret);
            prk.expand(&[label], hkdf::HKDF_SHA256).unwrap().fill(&mut expected).unwrap();
            assert_eq!(Secret(secret).derive(label), expected);
        }
    }

    #[test]
    fn a_gateway_id_is_derived_from_the_secret_and_one_that_access_keys_admit_to() {
        let ids: Vec<u32> = (0..100).map(|byte| Secret([byte; SECRET_LEN]).gateway_id()).collect();
        assert_eq!(Secret([7; SECRET_LEN]).gateway_id(), ids[7]);
        assert!(ids.iter().all(|id| *id >= 1 << 31));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 100);
    }
}
