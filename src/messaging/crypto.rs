//! The cryptography of the legacy wire: the server's RSA key, and AES-128-ECB with the client's key. No other file names these crates.
//!
//! It protects against passive readers only: the server's key is not authenticated, and AES-ECB shows equal blocks and has no integrity.
//! The TLS port has the same frames inside TLS.

use aes::Aes128;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use rsa::PrivateKey;
use rsa::pkcs8::EncodePublicKey;
use std::fmt;
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// Length of the client's key, in bytes.
pub const SESSION_KEY_LEN: usize = 16;
/// Length of the RSA modulus, in bits and in bytes.
const MODULUS_BITS: usize = 2048;
/// Length of an encrypted session key, in bytes.
pub const ENCRYPTED_KEY_LEN: usize = MODULUS_BITS / 8;
const BLOCK_LEN: usize = 16;

/// Why the key exchange failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// The RSA key could not be made.
    #[error("RSA: {0}")]
    Rsa(#[from] rsa::Error),
    /// The public key could not be written.
    #[error("RSA public key: {0}")]
    Encoding(#[from] rsa::pkcs8::spki::Error),
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
}

/// The key pair of one process (S4-8).
pub struct ServerKey {
    private: PrivateKey,
    public: Bytes,
    /// A ciphertext in range, decrypted where a received one is out of range, so that both take the same time.
    stand_in: [u8; ENCRYPTED_KEY_LEN],
    random: SystemRandom,
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey(..)")
    }
}

impl ServerKey {
    /// Makes a key pair. It takes up to a second.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn generate() -> Result<Self, CryptoError> {
        let private = PrivateKey::new(&mut SystemGenerator(SystemRandom::new()), MODULUS_BITS)?;
        let public = private.to_public_key().to_public_key_der()?.into_vec().into();
        let random = SystemRandom::new();
        let mut stand_in = [0; ENCRYPTED_KEY_LEN];
        // The first byte stays zero: the number is less than the modulus.
        random.fill(&mut stand_in[1..]).map_err(|_| CryptoError::Random)?;
        Ok(Self { private, public, stand_in, random })
    }

    /// Returns the public key: SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn public(&self) -> Bytes {
        self.public.clone()
    }

    /// Decrypts a client's session key (S4-9, S4-10).
    ///
    /// A ciphertext that holds no key of 16 bytes with valid padding gives a random key, without a difference in the steps (S4-A8): a
    /// server that tells the two apart decrypts for anyone who asks often enough (Bleichenbacher, 1998).
    ///
    /// # Errors
    /// [`CryptoError::Random`].
    pub fn decrypt_session_key(
        &self,
        ciphertext: &[u8; ENCRYPTED_KEY_LEN],
    ) -> Result<SessionKey, CryptoError> {
        let mut key = [0; SESSION_KEY_LEN];
        self.random.fill(&mut key).map_err(|_| CryptoError::Random)?;
        // The crate rejects implicitly: a text of random length stands for one with wrong padding. It fails only for what everybody
        // can see: a number that is not less than the modulus.
        let plaintext = match self.private.pkcs1v15_decrypt(ciphertext) {
            Ok(plaintext) => plaintext,
            Err(_) => {
                let _ = self.private.pkcs1v15_decrypt(&self.stand_in);
                Vec::new()
            }
        };
        let is_key = plaintext.len().ct_eq(&SESSION_KEY_LEN);
        for (index, byte) in key.iter_mut().enumerate() {
            let decrypted = plaintext.get(index).copied().unwrap_or_default();
            *byte = u8::conditional_select(byte, &decrypted, is_key);
        }
        Ok(SessionKey(key))
    }
}

/// The system's random source, as the crate `rsa` takes it.
struct SystemGenerator(SystemRandom);

/// The system's random source failed.
#[derive(Debug, thiserror::Error)]
#[error("the system's random source failed")]
struct RandomFailed;

impl rsa::rand_core::TryRng for SystemGenerator {
    type Error = RandomFailed;

    fn try_next_u32(&mut self) -> Result<u32, RandomFailed> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, RandomFailed> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RandomFailed> {
        self.0.fill(bytes).map_err(|_| RandomFailed)
    }
}

impl rsa::rand_core::TryCryptoRng for SystemGenerator {}

/// The key of one session: AES-128-ECB with the padding of PKCS#7.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey([u8; SESSION_KEY_LEN]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

impl SessionKey {
    /// Makes one of its bytes.
    #[must_use]
    pub fn new(key: [u8; SESSION_KEY_LEN]) -> Self {
        Self(key)
    }

    /// Encrypts a text.
    #[must_use]
    pub fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        let padding = BLOCK_LEN - plaintext.len() % BLOCK_LEN;
        let mut text = Vec::with_capacity(plaintext.len() + padding);
        text.extend_from_slice(plaintext);
        text.resize(plaintext.len() + padding, padding as u8);
        let cipher = Aes128::new(&self.0.into());
        for block in text.chunks_exact_mut(BLOCK_LEN) {
            let mut whole = Block::<Aes128>::default();
            whole.copy_from_slice(block);
            cipher.encrypt_block(&mut whole);
            block.copy_from_slice(&whole);
        }
        text
    }

    /// Decrypts a text; `None` where it is not whole blocks with valid padding.
    #[must_use]
    pub fn decrypt(&self, ciphertext: &[u8]) -> Option<Vec<u8>> {
        if ciphertext.is_empty() || !ciphertext.len().is_multiple_of(BLOCK_LEN) {
            return None;
        }
        let mut text = ciphertext.to_vec();
        let cipher = Aes128::new(&self.0.into());
        for block in text.chunks_exact_mut(BLOCK_LEN) {
            let mut whole = Block::<Aes128>::default();
            whole.copy_from_slice(block);
            cipher.decrypt_block(&mut whole);
            block.copy_from_slice(&whole);
        }
        let padding = usize::from(*text.last()?);
        let len = text.len().checked_sub(padding).filter(|_| (1..=BLOCK_LEN).contains(&padding))?;
        let is_valid = text[len..].iter().all(|byte| usize::from(*byte) == padding);
        text.truncate(len);
        is_valid.then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsa::pkcs8::DecodePublicKey;
    use rsa::{BoxedUint, PublicKey};
    use std::sync::LazyLock;

    static SERVER: LazyLock<ServerKey> = LazyLock::new(|| ServerKey::generate().unwrap());

    fn public() -> PublicKey {
        PublicKey::from_public_key_der(&SERVER.public()).unwrap()
    }

    #[test]
    fn aes_has_the_bytes_of_the_original_programs() {
        let key = SessionKey::new(std::array::from_fn(|index| index as u8 * 0x11));
        let expected = "622c2a530ff6cbb2f3ff2f6b957dc270a41fc94160e85026cb09c5042215f76b";
        let encrypted = key.encrypt(br#"{"to":"dev1","msg":"hi"}"#);
        assert_eq!(data_encoding::HEXLOWER.encode(&encrypted), expected);
        assert_eq!(key.decrypt(&encrypted).unwrap(), br#"{"to":"dev1","msg":"hi"}"#);
    }

    #[test]
    fn texts_of_every_length_are_padded_and_others_refused() {
        let key = SessionKey::new([7; 16]);
        for len in 0..50 {
            let encrypted = key.encrypt(&vec![b'x'; len]);
            assert_eq!(encrypted.len(), (len / 16 + 1) * 16);
            assert_eq!(key.decrypt(&encrypted).unwrap().len(), len);
        }
        assert_eq!(key.decrypt(b""), None);
        assert_eq!(key.decrypt(&[0; 15]), None);
        let other = SessionKey::new([8; 16]).encrypt(b"some text");
        assert_ne!(key.decrypt(&other).as_deref(), Some(&b"some text"[..]));
    }

    #[test]
    fn the_public_key_is_a_subject_public_key_info_of_2048_bits() {
        let der = SERVER.public();
        assert_eq!((der.len(), &der[..4]), (294, &b"\x30\x82\x01\x22"[..]));
    }

    #[test]
    fn a_session_key_is_decrypted() {
        let encrypted = public().pkcs1v15_encrypt(&[9; 16]).unwrap().try_into().unwrap();
        assert_eq!(SERVER.decrypt_session_key(&encrypted).unwrap(), SessionKey::new([9; 16]));
    }

    #[test]
    fn everything_else_gives_a_random_key() {
        let modulus = |public: &PublicKey| {
            use rsa::traits::PublicKeyParts;
            let bytes: Box<[u8]> = AsRef::<BoxedUint>::as_ref(public.n()).to_be_bytes();
            <[u8; 256]>::try_from(&bytes[..]).unwrap()
        };
        let of_len = |len: usize| public().pkcs1v15_encrypt(&vec![9; len]).unwrap().try_into().unwrap();
        for (ciphertext, kind) in [
            (of_len(15), "a key of 15 bytes"),
            (of_len(17), "a key of 17 bytes"),
            (of_len(0), "no key"),
            ([0; 256], "zero"),
            ([1; 256], "no padding"),
            ([0xff; 256], "out of range"),
            (modulus(&public()), "the modulus"),
        ] {
            let keys = [(); 2].map(|()| SERVER.decrypt_session_key(&ciphertext).unwrap());
            assert_ne!(keys[0], keys[1], "{kind}");
        }
    }
}
