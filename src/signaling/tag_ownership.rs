//! Ownership of tags: stateless nonces, and proofs with an Ed25519 key (RFC 8032).

use super::client_addr::ClientAddr;
use super::message::Proof;
use super::tag_id::{TAG_BYTES, TagId, base32};
use ring::{digest, hmac, signature};
use std::net::IpAddr;
use std::time::Duration;

/// A nonce consists of the second of its creation and a MAC of 96 bits.
const SECOND_BYTES: usize = 4;
const MAC_BYTES: usize = 12;

/// Issues and checks nonces without state. A nonce is valid for one address or connection and a limited time.
#[derive(Debug)]
pub(super) struct Challenges {
    key: hmac::Key,
    lifetime: Duration,
}

impl Challenges {
    pub(super) fn new(key: [u8; 32], lifetime: Duration) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), lifetime }
    }

    pub(super) fn issue(&self, addr: ClientAddr, unix: u64) -> String {
        self.at(addr, low(unix))
    }

    /// Returns whether `nonce` was issued to `addr` within the lifetime.
    pub(super) fn is_valid(&self, nonce: &str, addr: ClientAddr, unix: u64) -> bool {
        let upper = nonce.to_ascii_uppercase();
        let bytes = data_encoding::BASE32_NOPAD.decode(upper.as_bytes()).unwrap_or_default();
        let Some(second) = bytes.first_chunk::<SECOND_BYTES>() else { return false };
        let second = u32::from_be_bytes(*second);
        let age = Duration::from_secs(low(unix).wrapping_sub(second).into());
        // The MAC covers the second, so that a forged one is also detected here.
        age < self.lifetime
            && bool::from(subtle::ConstantTimeEq::ct_eq(self.at(addr, second).as_bytes(), nonce.as_bytes()))
    }

    fn at(&self, addr: ClientAddr, second: u32) -> String {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(&second.to_be_bytes());
        match addr {
            ClientAddr::WebSocket(conn) => mac.update(&conn.0.to_be_bytes()),
            ClientAddr::Udp(address) => {
                match address.ip() {
                    IpAddr::V4(ip) => mac.update(&ip.octets()),
                    IpAddr::V6(ip) => mac.update(&ip.octets()),
                }
                // The input has at least nine bytes more than that of a connection, so that the two cannot collide.
                mac.update(b"udp::");
                mac.update(&address.port().to_be_bytes());
            }
        }
        let mut nonce = second.to_be_bytes().to_vec();
        nonce.extend_from_slice(&mac.sign().as_ref()[..MAC_BYTES]);
        base32(&nonce)
    }
}

/// The low 32 bits of the Unix time, as in a nonce.
#[expect(clippy::cast_possible_truncation, reason = "only differences count")]
fn low(unix: u64) -> u32 {
    unix as u32
}

/// Returns whether the signature is right.
pub(super) fn is_proven(proof: &Proof, epoch: Option<i64>) -> bool {
    let key = signature::UnparsedPublicKey::new(&signature::ED25519, proof.public);
    key.verify(proof.text(epoch).as_bytes(), &proof.signature).is_ok()
}

/// Returns the tag of a key or a secret, the same on any server. The proof takes precedence. No secret has the tag of a key.
pub(super) fn owned_tag_id(secret: Option<&str>, proof: Option<&Proof>) -> Option<TagId> {
    let of_key = |proof: &Proof| name_of(b"ginnel key\0", &proof.public);
    let of_secret = |secret: &str| name_of(b"ginnel tag\0", secret.as_bytes());
    proof.map(of_key).or_else(|| secret.map(of_secret))
}

fn name_of(domain: &[u8], owner: &[u8]) -> TagId {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(domain);
    hash.update(owner);
    let mut name = [0; TAG_BYTES];
    name.copy_from_slice(&hash.finish().as_ref()[..TAG_BYTES]);
    TagId(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signaling::client_addr::ConnId;

    #[test]
    fn a_nonce_is_valid_only_for_its_client_and_lifetime() {
        let challenges = Challenges::new([1; 32], Duration::from_secs(30));
        let peers = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "[2001:db8::1]:1"];
        let peers: Vec<_> = peers.iter().map(|text| ClientAddr::Udp(text.parse().unwrap())).collect();
        let unix = u64::from(u32::MAX) - 5;
        for addr in peers.iter().chain(&[ClientAddr::WebSocket(ConnId(1)), ClientAddr::WebSocket(ConnId(2))])
        {
            let nonce = challenges.issue(*addr, unix);
            assert!(
                challenges.is_valid(&nonce, *addr, unix) && challenges.is_valid(&nonce, *addr, unix + 29)
            );
            assert!(
                !challenges.is_valid(&nonce, *addr, unix + 30)
                    && !challenges.is_valid(&nonce, *addr, unix - 1)
            );
            let others = peers.iter().filter(|other| *other != addr);
            assert!(others.into_iter().all(|other| !challenges.is_valid(&nonce, *other, unix)));
            let foreign = Challenges::new([2; 32], Duration::from_secs(30)).issue(*addr, unix);
            assert!(!challenges.is_valid(&foreign, *addr, unix));
        }
        for rubbish in ["", "a", "\u{e9}", "aaaaaaaaaaaaaaaaaaaaaaaaaa"] {
            assert!(!challenges.is_valid(rubbish, peers[0], unix));
        }
    }

    #[test]
    fn a_key_and_a_secret_never_have_the_same_tag() {
        let public = *b"thirty-two bytes of a public key";
        let proof = Proof { public, nonce: String::new(), signature: Vec::new() };
        let as_secret = std::str::from_utf8(&public).unwrap();
        assert_ne!(owned_tag_id(None, Some(&proof)), owned_tag_id(Some(as_secret), None));
    }
}
