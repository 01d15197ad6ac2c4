//! End-to-end encryption of messages: HPKE ([RFC 9180](https://www.rfc-editor.org/rfc/rfc9180)) around a content that the sending device
//! signs. Pure; the only file that names `hpke`.
//!
//! The suite is DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM in base mode. A body is `enc (32) ‖ ciphertext ‖ tag (16)`, its plaintext
//! `signature (64) ‖ JSON`. The JSON has spaces at its end up to a multiple of 256 bytes, which hide its length.

use crate::messaging_wire::signing::{SigningKey, Statement};
use crate::messaging_wire::{Key, Signature};
use hpke::aead::{Aead, AeadTag, AesGcm256};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem, X25519HkdfSha256};
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use rand::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// The `info` of RFC 9180 section 5.1.
const INFO: &[u8] = b"ginnel message v1";
const ENC_LEN: usize = 32;
const TAG_LEN: usize = 16;
const SIGNATURE_LEN: usize = 64;
/// The length of a content is a multiple of this.
const PADDING: usize = 256;
/// Longest body that a server stores.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// What a sending device signs and encrypts for one receiving device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    /// The sender.
    pub(super) from: String,
    /// The signing key of the sending device.
    pub(super) from_key: Key,
    /// The recipient.
    pub(super) to: String,
    /// The encryption key of the receiving device.
    pub(super) to_key: Key,
    /// The sender's name for the message.
    pub(super) message_id: String,
    /// When it was sent, in Unix milliseconds.
    pub(super) sent_at: u64,
    /// What shows that the sending device is one of the sender's, also after it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<Certificate>,
    /// Of what this is a copy, which the sender made for its other devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) copy_of: Option<CopyOf>,
    /// The message.
    pub(super) text: String,
}

/// The statement of the identity key about the sending device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Certificate {
    /// The encryption key of the device.
    pub(super) encryption_key: Key,
    /// [`Statement::Device`] by the identity key.
    pub(super) signature: Signature,
}

/// A message that the sender has sent to somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CopyOf {
    /// Its recipient.
    pub(super) to: String,
    /// Its id.
    pub(super) message_id: String,
}

/// Why a message cannot be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SealError {
    #[error("the message is too long")]
    TooLong,
    #[error("the encryption key of a device is invalid")]
    Key,
}

/// Why a body is no message for this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    #[error("it is not encrypted for this device")]
    Undecryptable,
    #[error("its content cannot be read")]
    Content,
    #[error("its signature is wrong")]
    Signature,
}

/// Returns the public key of an X25519 secret.
pub(crate) fn public_key(secret: &[u8; 32]) -> [u8; 32] {
    // Any 32 bytes are a secret.
    PrivateKey::from_bytes(secret).map_or([0; 32], |key| X25519HkdfSha256::sk_to_pk(&key).to_bytes().into())
}

/// Signs a content and encrypts it for the device that it names.
pub(super) fn seal(
    content: &Content,
    sender: &SigningKey,
    random: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let mut json = serde_json::to_vec(content).map_err(|_| SealError::TooLong)?;
    json.resize(json.len().next_multiple_of(PADDING), b' ');
    if ENC_LEN + SIGNATURE_LEN + json.len() + TAG_LEN > MAX_BODY {
        return Err(SealError::TooLong);
    }
    let mut plaintext = sender.sign(&Statement::Message { content: &json }).to_vec();
    plaintext.append(&mut json);
    encrypt::<AesGcm256>(&content.to_key.0, (INFO, b""), &plaintext, random)
}

/// Decrypts a body and verifies that the device whose key is [`Content::from_key`] has signed it. Whose device that is, and whether the rest is
/// true, [`assess_message`](super::known_peers::assess_message) decides.
pub(super) fn open(body: &[u8], secret: &[u8; 32]) -> Result<Content, OpenError> {
    let plaintext = decrypt::<AesGcm256>(secret, (INFO, b""), body).ok_or(OpenError::Undecryptable)?;
    let (signature, json) = plaintext.split_first_chunk::<SIGNATURE_LEN>().ok_or(OpenError::Content)?;
    let content: Content = serde_json::from_slice(json).map_err(|_| OpenError::Content)?;
    match (Statement::Message { content: json }).is_signed(&content.from_key.0, signature) {
        true => Ok(content),
        false => Err(OpenError::Signature),
    }
}

/// Encrypts bytes for the holder of an X25519 key, under these `info` and `aad`; `None` if the key is invalid.
pub(crate) fn encrypt_bytes(
    recipient: &[u8; 32],
    context: (&[u8], &[u8]),
    plaintext: &[u8],
    random: &mut impl CryptoRng,
) -> Option<Vec<u8>> {
    encrypt::<AesGcm256>(recipient, context, plaintext, random).ok()
}

/// Decrypts what [`encrypt_bytes`] has encrypted.
pub(crate) fn decrypt_bytes(secret: &[u8; 32], context: (&[u8], &[u8]), body: &[u8]) -> Option<Vec<u8>> {
    decrypt::<AesGcm256>(secret, context, body)
}

/// Encrypts a single message (RFC 9180 section 6.1) with these `info` and `aad`.
fn encrypt<A: Aead>(
    recipient: &[u8; 32],
    (info, aad): (&[u8], &[u8]),
    plaintext: &[u8],
    random: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let recipient = PublicKey::from_bytes(recipient).map_err(|_| SealError::Key)?;
    let mut text = plaintext.to_vec();
    let (enc, tag) = hpke::single_shot_seal_inout_detached_with_rng::<A, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &recipient,
        info,
        InOutBuf::from(text.as_mut_slice()),
        aad,
        &mut NewerRng(random),
    )
    // A key of low order, with which the shared secret would be known.
    .map_err(|_| SealError::Key)?;
    Ok([enc.to_bytes().as_slice(), &text, &tag.to_bytes()].concat())
}

fn decrypt<A: Aead>(secret: &[u8; 32], (info, aad): (&[u8], &[u8]), body: &[u8]) -> Option<Vec<u8>> {
    let secret = PrivateKey::from_bytes(secret).ok()?;
    let (enc, rest) = body.split_at_checked(ENC_LEN)?;
    let (text, tag) = rest.split_at_checked(rest.len().checked_sub(TAG_LEN)?)?;
    let mut text = text.to_vec();
    hpke::single_shot_open_inout_detached::<A, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &secret,
        &EncappedKey::from_bytes(enc).ok()?,
        info,
        InOutBuf::from(text.as_mut_slice()),
        aad,
        &AeadTag::from_bytes(tag).ok()?,
    )
    .ok()?;
    Some(text)
}

/// A generator with the traits of the version of `rand_core` that newer crates use.
pub(crate) struct NewerRng<R>(pub(crate) R);

impl<R: RngCore> TryRng for NewerRng<R> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

impl<R: RngCore + CryptoRng> TryCryptoRng for NewerRng<R> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messaging_wire::signing::{SMALL_ORDER_ENCRYPTION_KEYS, is_small_order_encryption_key};
    use crate::messaging_wire::{Body, FixedBytes};
    use data_encoding::HEXLOWER_PERMISSIVE;
    use hpke::aead::AesGcm128;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use serde_json::Value;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        HEXLOWER_PERMISSIVE.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    fn random() -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(1)
    }

    fn content(sender: &SigningKey, recipient: &[u8; 32], text: &str) -> Content {
        Content {
            from: "user:alice".into(),
            from_key: FixedBytes(sender.public()),
            to: "user:bob".into(),
            to_key: FixedBytes(public_key(recipient)),
            message_id: "m1".into(),
            sent_at: 5,
            certificate: None,
            copy_of: None,
            text: text.into(),
        }
    }

    #[test]
    fn what_is_sealed_for_a_device_is_opened_by_it_and_by_no_other() {
        let (sender, recipient) = (SigningKey::from_seed(&[1; 32]).unwrap(), [2; 32]);
        let content = content(&sender, &recipient, "hello");
        let body = seal(&content, &sender, &mut random()).unwrap();
        assert_eq!(open(&body, &recipient), Ok(content));
        assert_eq!(open(&body, &[3; 32]), Err(OpenError::Undecryptable));
    }

    #[test]
    fn a_body_that_was_changed_anywhere_is_refused() {
        let (sender, recipient) = (SigningKey::from_seed(&[1; 32]).unwrap(), [2; 32]);
        let body = seal(&content(&sender, &recipient, "hello"), &sender, &mut random()).unwrap();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &recipient).is_err(), "byte {at}");
        }
        for len in 0..body.len() {
            assert!(open(&body[..len], &recipient).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_content_that_another_device_has_signed_or_none_is_refused() {
        let (sender, other) =
            (SigningKey::from_seed(&[1; 32]).unwrap(), SigningKey::from_seed(&[9; 32]).unwrap());
        let content = content(&sender, &[2; 32], "hello");
        // Signed by another key than the one that the content names.
        let body = seal(&content, &other, &mut random()).unwrap();
        assert_eq!(open(&body, &[2; 32]), Err(OpenError::Signature));
        let encrypt = |plaintext: &[u8]| {
            encrypt::<AesGcm256>(&public_key(&[2; 32]), (INFO, b""), plaintext, &mut random()).unwrap()
        };
        let json = serde_json::to_vec(&content).unwrap();
        assert_eq!(open(&encrypt(&json), &[2; 32]), Err(OpenError::Content));
        assert_eq!(open(&encrypt(b"short"), &[2; 32]), Err(OpenError::Content));
        let unsigned = [&[0; SIGNATURE_LEN][..], &json].concat();
        assert_eq!(open(&encrypt(&unsigned), &[2; 32]), Err(OpenError::Signature));
    }

    #[test]
    fn a_signature_covers_every_field_of_the_content() {
        let sender = SigningKey::from_seed(&[1; 32]).unwrap();
        let signed = content(&sender, &[2; 32], "hello");
        let signature = sender.sign(&Statement::Message { content: &serde_json::to_vec(&signed).unwrap() });
        let changes: [fn(&mut Content); 6] = [
            |content| content.from = "user:mallory".into(),
            |content| content.to = "user:carol".into(),
            |content| content.to_key = FixedBytes([7; 32]),
            |content| content.message_id = "m2".into(),
            |content| content.sent_at = 6,
            |content| content.text = "hallo".into(),
        ];
        for change in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            let plaintext = [&signature[..], &serde_json::to_vec(&changed).unwrap()].concat();
            let body = encrypt::<AesGcm256>(&public_key(&[2; 32]), (INFO, b""), &plaintext, &mut random());
            assert_eq!(open(&body.unwrap(), &[2; 32]), Err(OpenError::Signature), "{changed:?}");
        }
    }

    #[test]
    fn the_length_of_a_short_text_is_hidden_and_a_text_that_is_too_long_is_refused() {
        let (sender, recipient) = (SigningKey::from_seed(&[1; 32]).unwrap(), [2; 32]);
        let length = |text: &str| {
            seal(&content(&sender, &recipient, text), &sender, &mut random()).map(|body| body.len())
        };
        assert_eq!(length(""), length("a text of some length"));
        assert_eq!(length("").unwrap() % PADDING, (ENC_LEN + SIGNATURE_LEN + TAG_LEN) % PADDING);
        assert!(length(&"x".repeat(64_000)).is_ok());
        assert_eq!(length(&"x".repeat(65_300)), Err(SealError::TooLong));
    }

    #[test]
    fn a_key_of_low_order_is_refused() {
        let sender = SigningKey::from_seed(&[1; 32]).unwrap();
        for mut key in SMALL_ORDER_ENCRYPTION_KEYS {
            for highest_bit in [0, 0x80] {
                key[31] |= highest_bit;
                let content = Content { to_key: FixedBytes(key), ..content(&sender, &[2; 32], "hello") };
                assert_eq!(seal(&content, &sender, &mut random()), Err(SealError::Key));
                assert!(is_small_order_encryption_key(&key), "a server refuses it too");
            }
        }
        assert!(!is_small_order_encryption_key(&public_key(&[2; 32])));
    }

    /// A generator that returns given bytes.
    struct Given([u8; 32]);

    impl RngCore for Given {
        fn next_u32(&mut self) -> u32 {
            0
        }

        fn next_u64(&mut self) -> u64 {
            0
        }

        fn fill_bytes(&mut self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0);
        }
    }

    impl CryptoRng for Given {}

    /// RFC 9180 appendix A.1.1, whose suite differs from ours only in the AEAD.
    #[test]
    fn the_test_vector_of_rfc_9180_is_met() {
        let recipient = hex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8");
        let public: [u8; 32] = hex("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d");
        let info: [u8; 20] = hex("4f6465206f6e2061204772656369616e2055726e");
        let mut random = Given(hex("7268600d403fce431561aef583ee1613527cff655c1343f29812e66706df3234"));
        let expected: [u8; 77] = hex(concat!(
            "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9",
            "6d8770ac83d07bea87e13c512a"
        ));
        let text = b"Beauty is truth, truth beauty";
        assert_eq!(public_key(&recipient), public);
        let with = (&info[..], &b"Count-0"[..]);
        assert_eq!(encrypt::<AesGcm128>(&public, with, text, &mut random).unwrap(), expected);
        assert_eq!(decrypt::<AesGcm128>(&recipient, with, &expected).as_deref(), Some(&text[..]));
    }

    /// A whole message, made by another implementation; `web/` can use the same file.
    #[test]
    fn a_message_of_another_implementation_is_opened() {
        let vector: Value =
            serde_json::from_str(include_str!("../../tests/vectors/message_encryption.json")).unwrap();
        let expected: Content = serde_json::from_value(vector["content"].clone()).unwrap();
        let body: Body = serde_json::from_value(vector["body"].clone()).unwrap();
        let secret = hex(vector["recipient_encryption_secret"].as_str().unwrap());
        assert_eq!(open(&body.0, &secret), Ok(expected));
    }
}
