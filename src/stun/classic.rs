//! MESSAGE-INTEGRITY of messages without magic cookie:
//! [RFC 3489 section 11.2.8](https://www.rfc-editor.org/rfc/rfc3489#section-11.2.8).

use super::{Class, HEADER_LEN, Integrity, Key, Message, attr, digest_with_length};
use ring::hmac;
use subtle::ConstantTimeEq;

/// The HMAC text is padded with zeros to a multiple of this.
const BLOCK: usize = 64;
/// Length of the whole attribute.
const LEN: usize = 4 + Integrity::Sha1.len();

/// The text of the HMAC of a classic message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassicText {
    /// The message and zeros up to a multiple of 64 bytes, as in RFC 3489.
    Padded,
    /// The message only, as in RFC 5389 and in some clients of RFC 3489.
    Plain,
}

impl ClassicText {
    fn sign(self, key: &Key, before: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&key.hmac);
        digest_with_length(before, LEN, |part| context.update(part));
        if self == Self::Padded {
            context.update(&[0; BLOCK][..before.len().next_multiple_of(BLOCK) - before.len()]);
        }
        context.sign()
    }
}

impl Message<'_> {
    /// Verifies MESSAGE-INTEGRITY in constant time; returns the text that it was computed over.
    #[must_use]
    pub fn verify_classic(&self, key: &Key) -> Option<ClassicText> {
        let at = self.sha1_at()?;
        let given = self.as_bytes().get(at + 4..at + LEN)?;
        let is_right =
            |text: &ClassicText| bool::from(text.sign(key, &self.as_bytes()[..at]).as_ref().ct_eq(given));
        [ClassicText::Padded, ClassicText::Plain].into_iter().find(is_right)
    }
}

/// Appends MESSAGE-INTEGRITY to a complete message.
pub fn append_classic_integrity(message: &mut Vec<u8>, key: &Key, text: ClassicText) {
    let tag = text.sign(key, message);
    message.extend_from_slice(&attr::MESSAGE_INTEGRITY.to_be_bytes());
    message.extend_from_slice(&[0, Integrity::Sha1.len() as u8]);
    message.extend_from_slice(tag.as_ref());
    let body = u16::try_from(message.len() - HEADER_LEN).unwrap_or(u16::MAX);
    message[2..4].copy_from_slice(&body.to_be_bytes());
}

/// Returns whether `message` is a success response.
#[must_use]
pub fn is_success(message: &[u8]) -> bool {
    Message::parse(message).is_ok_and(|message| message.class() == Class::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{Builder, Method, TransactionId};

    fn request(name: &str) -> Vec<u8> {
        let id = TransactionId([7; 16]);
        Builder::new(Class::Request, Method::BINDING, id).attribute(attr::USERNAME, name.as_bytes()).finish()
    }

    #[test]
    fn the_padded_text_is_the_message_and_zeros_to_a_multiple_of_64() {
        let key = Key::short_term("password");
        for name in ["four", "eight888", "name of a length of forty bytes, exactly"] {
            let mut bytes = request(name);
            let mut text = bytes.clone();
            append_classic_integrity(&mut bytes, &key, ClassicText::Padded);
            text[2..4].copy_from_slice(&u16::try_from(bytes.len() - HEADER_LEN).unwrap().to_be_bytes());
            text.resize(text.len().next_multiple_of(64), 0);
            let hmac = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"password");
            assert_eq!(bytes[bytes.len() - 20..], *hmac::sign(&hmac, &text).as_ref());
        }
    }

    #[test]
    fn both_forms_verify_and_neither_with_another_key_or_a_changed_byte() {
        let key = Key::short_term("password");
        for text in [ClassicText::Padded, ClassicText::Plain] {
            let mut bytes = request("user");
            append_classic_integrity(&mut bytes, &key, text);
            assert_eq!(Message::parse(&bytes).unwrap().verify_classic(&key), Some(text));
            assert_eq!(Message::parse(&bytes).unwrap().verify_classic(&Key::short_term("another")), None);
            bytes[25] ^= 1;
            assert_eq!(Message::parse(&bytes).unwrap().verify_classic(&key), None);
        }
        assert_eq!(Message::parse(&request("user")).unwrap().verify_classic(&key), None);
        let mut modern = request("user");
        append_classic_integrity(&mut modern, &key, ClassicText::Plain);
        assert!(Message::parse(&modern).unwrap().verify(&key).is_some(), "what RFC 5389 says too");
    }
}
