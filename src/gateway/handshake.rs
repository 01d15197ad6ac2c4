//! How a server proves that it holds the gateway's key (S2-15 to S2-18). Each mode has ports of its own, so no connection can be
//! downgraded:
//!
//! - **MD5**, the original: the gateway sends 8 random bytes; the server answers `MD5(challenge ‖ key)` and its id (4 bytes,
//!   little-endian).
//!   Silence means success. The digest does not cover the id, and an attacker who records one exchange can try keys offline.
//! - **HMAC-SHA256**, an extension: both sides contribute 32 random bytes, the id is covered, and the gateway proves itself too.
//!
//! ```text
//! gateway ─ challenge (32) ─────────────────────────────────────────► server
//! server  ─ nonce (32) ‖ id (4) ‖ HMAC(key, SERVER ‖ challenge ‖ nonce ‖ id) ─► gateway
//! gateway ─ HMAC(key, GATEWAY ‖ nonce ‖ challenge ‖ id) (32) ───────► server
//! ```

use md5::{Digest, Md5};
use ring::hmac;
use std::fmt;
use subtle::ConstantTimeEq;

/// Bytes of the MD5 challenge.
pub(crate) const MD5_CHALLENGE: usize = 8;
/// Bytes of the MD5 answer: digest and id.
pub(crate) const MD5_ANSWER: usize = 16 + 4;
/// Bytes of the HMAC challenge, and of the server's nonce.
pub(crate) const CHALLENGE: usize = 32;
/// Bytes of the HMAC answer: nonce, id, code.
pub(crate) const ANSWER: usize = CHALLENGE + 4 + 32;
/// Bytes of the gateway's proof.
pub(crate) const PROOF: usize = 32;
/// The shortest key.
pub(crate) const MIN_KEY: usize = 16;

const SERVER: &[u8] = b"ginnel gateway, server v1";
const GATEWAY: &[u8] = b"ginnel gateway, gateway v1";

/// The secret that gateway and servers share.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

/// The key has fewer than 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a gateway key must have at least {MIN_KEY} bytes")]
pub struct ShortKey;

impl Key {
    /// Uses these bytes as the key.
    ///
    /// # Errors
    /// [`ShortKey`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, ShortKey> {
        let bytes = bytes.into();
        if bytes.len() < MIN_KEY { Err(ShortKey) } else { Ok(Self(bytes)) }
    }

    /// Computes the answer to an MD5 challenge.
    #[must_use]
    pub(crate) fn md5_answer(&self, challenge: &[u8; MD5_CHALLENGE], id: u32) -> [u8; MD5_ANSWER] {
        joined(&md5_code(challenge, &self.0), &id.to_le_bytes())
    }

    /// Verifies the answer to an MD5 challenge in constant time; returns the server's id.
    #[must_use]
    pub(crate) fn verify_md5(
        &self,
        challenge: &[u8; MD5_CHALLENGE],
        answer: &[u8; MD5_ANSWER],
    ) -> Option<u32> {
        let (code, id) = answer.split_first_chunk::<16>()?;
        let good = bool::from(md5_code(challenge, &self.0).ct_eq(code));
        good.then_some(u32::from_le_bytes(id.try_into().ok()?))
    }

    /// Computes the answer to an HMAC challenge.
    #[must_use]
    pub(crate) fn answer(
        &self,
        challenge: &[u8; CHALLENGE],
        nonce: &[u8; CHALLENGE],
        id: u32,
    ) -> [u8; ANSWER] {
        let code = self.code(&[SERVER, challenge, nonce, &id.to_le_bytes()]);
        let named: [u8; CHALLENGE + 4] = joined(nonce, &id.to_le_bytes());
        joined(&named, code.as_ref())
    }

    /// Verifies the answer to an HMAC challenge in constant time; returns the server's id and the gateway's proof.
    #[must_use]
    pub(crate) fn verify(
        &self,
        challenge: &[u8; CHALLENGE],
        answer: &[u8; ANSWER],
    ) -> Option<(u32, [u8; PROOF])> {
        let (nonce, rest) = answer.split_first_chunk::<CHALLENGE>()?;
        let (id, code) = rest.split_first_chunk::<4>()?;
        let expected = self.code(&[SERVER, challenge, nonce, id]);
        let good = bool::from(expected.as_ref().ct_eq(code));
        good.then(|| (u32::from_le_bytes(*id), self.proof(challenge, nonce, *id)))
    }

    /// Verifies the gateway's proof in constant time.
    #[must_use]
    pub(crate) fn verify_proof(
        &self,
        challenge: &[u8; CHALLENGE],
        nonce: &[u8; CHALLENGE],
        id: u32,
        proof: &[u8; PROOF],
    ) -> bool {
        self.proof(challenge, nonce, id.to_le_bytes()).ct_eq(proof).into()
    }

    fn proof(&self, challenge: &[u8; CHALLENGE], nonce: &[u8; CHALLENGE], id: [u8; 4]) -> [u8; PROOF] {
        joined(self.code(&[GATEWAY, nonce, challenge, &id]).as_ref(), &[])
    }

    fn code(&self, parts: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        for part in parts {
            context.update(part);
        }
        context.sign()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Hashes the challenge and the raw key behind it.
fn md5_code(challenge: &[u8; MD5_CHALLENGE], key: &[u8]) -> [u8; 16] {
    Md5::new().chain_update(challenge).chain_update(key).finalize().into()
}

/// Concatenates two slices into an array; extra bytes are cut off, missing ones are zero.
fn joined<const N: usize>(first: &[u8], second: &[u8]) -> [u8; N] {
    let mut whole = [0; N];
    whole.iter_mut().zip(first.iter().chain(second)).for_each(|(to, from)| *to = *from);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_md5_vector_of_the_reference() {
        let answer = Key(b"123".to_vec()).md5_answer(&[1, 2, 3, 4, 5, 6, 7, 8], 123);
        let expected = *b"\xed\xf3\xad\x78\xfb\xf7\x3d\x14\xe3\x9f\x20\x1c\xc1\x5a\xc9\x0c\x7b\0\0\0";
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_key_has_sixteen_bytes_and_is_never_printed() {
        assert_eq!(Key::new(*b"fifteen bytes !"), Err(ShortKey));
        let key = Key::new(*b"sixteen bytes !!").unwrap();
        assert_eq!(format!("{key:?}"), "Key(..)");
    }

    #[test]
    fn any_changed_bit_is_refused() {
        let key = Key::new(*b"sixteen bytes !!").unwrap();
        let good = key.md5_answer(&[7; 8], 5);
        assert_eq!(key.verify_md5(&[7; 8], &good), Some(5));
        assert_eq!(key.verify_md5(&[8; 8], &good), None);
        for bit in 0..16 * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.verify_md5(&[7; 8], &bad), None, "{bit}");
        }
        let good = key.answer(&[1; 32], &[2; 32], 5);
        let (id, proof) = key.verify(&[1; 32], &good).unwrap();
        assert!(id == 5 && key.verify_proof(&[1; 32], &[2; 32], 5, &proof));
        assert!(!key.verify_proof(&[1; 32], &[2; 32], 6, &proof), "the id is covered");
        assert!(!key.verify_proof(&[1; 32], &[3; 32], 5, &proof), "the nonce is covered");
        for bit in 0..ANSWER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.verify(&[1; 32], &bad), None, "{bit}: the id is covered as well");
        }
    }
}
