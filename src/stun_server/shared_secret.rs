//! Shared Secret Requests ([RFC 3489 section 8.2](https://www.rfc-editor.org/rfc/rfc3489#section-8.2)), and the integrity of Binding
//! requests without magic cookie, which uses their credentials (section 8.1).
//!
//! The module stores no credentials. A user name consists of the second of its creation, random bytes and an HMAC over both; the password
//! is another HMAC over the name. Only this module has the keys: the relay does not know these users.

use crate::stun::{
    Builder, Class, ClassicText, Key, Message, Method, TransactionId, append_classic_integrity, attr,
    is_success,
};
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use std::fmt::Write as _;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The lifetime of credentials in seconds. The RFC guarantees 10 minutes and requires that they are refused after 30.
const LIFETIME: u64 = 20 * 60;
/// The tolerated clock difference between servers in seconds: a name may be that far from the future.
const LEEWAY: u64 = 60;
/// The prefix of a name.
const PREFIX: &str = "3489";
/// Hexadecimal digits of the second, the random bytes and the HMAC. With the prefix a name has 60: its length must be a multiple of four.
const SECOND_DIGITS: usize = 8;
const RANDOM_DIGITS: usize = 16;
const TAG_DIGITS: usize = 32;
const NAME_LEN: usize = PREFIX.len() + SECOND_DIGITS + RANDOM_DIGITS + TAG_DIGITS;
/// Length of a password in bytes before hexadecimal encoding: 160 bits.
const PASSWORD: usize = 20;

/// The HMAC keys of names and passwords.
#[derive(Debug)]
pub(crate) struct SecretKeys {
    name: hmac::Key,
    password: hmac::Key,
}

impl SecretKeys {
    /// Derives both keys from a secret key.
    #[must_use]
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, key);
        let derive =
            |purpose: &str| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, purpose.as_bytes()).as_ref());
        Self { name: derive("name"), password: derive("password") }
    }
}

/// Creates and verifies credentials.
#[derive(Debug)]
pub(crate) struct SharedSecrets {
    keys: Arc<SecretKeys>,
    rng: ChaCha20Rng,
}

/// The result of the integrity check of a Binding request.
#[derive(Debug)]
pub(crate) enum BindingCheck {
    /// The user name is not from this module: answer as a request without integrity.
    Open,
    /// The integrity is valid: sign the success response too.
    Signed(Key, ClassicText),
    /// Refuse the request with this code.
    Refused(u16),
}

impl BindingCheck {
    /// Signs a success response if the integrity of the request is valid.
    pub(crate) fn sign(&self, answer: &mut Vec<u8>) {
        if let Self::Signed(key, text) = self
            && is_success(answer)
        {
            append_classic_integrity(answer, key, *text);
        }
    }
}

/// Returns whether `message` is a Shared Secret Request of RFC 3489, which has no magic cookie.
#[must_use]
pub(crate) fn is_shared_secret_request(message: &Message<'_>) -> bool {
    (message.class(), message.method()) == (Class::Request, Method::SHARED_SECRET)
        && message.transaction().is_classic()
}

impl SharedSecrets {
    /// Creates it with a random source for names.
    #[must_use]
    pub(crate) fn new(keys: Arc<SecretKeys>, rng: ChaCha20Rng) -> Self {
        Self { keys, rng }
    }

    /// Answers a Shared Secret Request: with credentials over TLS, otherwise with 433.
    #[must_use]
    pub(crate) fn answer(&mut self, unix: u64, message: &Message<'_>, by_tls: bool) -> Vec<u8> {
        let id = message.transaction();
        if !by_tls {
            return refusal(Method::SHARED_SECRET, id, 433).finish();
        }
        let unknown = message.unverified().unknown(&[]);
        if !unknown.is_empty() {
            return refusal(Method::SHARED_SECRET, id, 420).unknown_attributes(&unknown).finish();
        }
        let name = self.name(unix);
        Builder::new(Class::Success, Method::SHARED_SECRET, id)
            .attribute(attr::USERNAME, name.as_bytes())
            .attribute(attr::PASSWORD, self.password(&name).as_bytes())
            .finish()
    }

    /// Checks the integrity of a Binding request (section 8.1). Other user names are ignored: ICE sends its own.
    #[must_use]
    pub(crate) fn check(&self, unix: u64, message: &Message<'_>) -> BindingCheck {
        if !message.transaction().is_classic() || !message.has_integrity() {
            return BindingCheck::Open;
        }
        if message.identity(attr::USERNAME).is_none() {
            return BindingCheck::Refused(432);
        }
        let Some((name, made)) = message.username().and_then(|name| Some((name, self.made(name)?))) else {
            return BindingCheck::Open;
        };
        if unix >= made.saturating_add(LIFETIME) || made > unix.saturating_add(LEEWAY) {
            return BindingCheck::Refused(430);
        }
        let key = Key::short_term(&self.password(name));
        match message.verify_classic(&key) {
            Some(text) => BindingCheck::Signed(key, text),
            None => BindingCheck::Refused(431),
        }
    }

    fn name(&mut self, unix: u64) -> String {
        let random: u64 = self.rng.random();
        // 32 bits of seconds last until 2106.
        let body = format!("{PREFIX}{:08x}{random:016x}", unix as u32);
        let tag = self.tag(&body);
        body + &tag
    }

    fn tag(&self, body: &str) -> String {
        digits(&hmac::sign(&self.keys.name, body.as_bytes()).as_ref()[..TAG_DIGITS / 2])
    }

    fn password(&self, name: &str) -> String {
        digits(&hmac::sign(&self.keys.password, name.as_bytes()).as_ref()[..PASSWORD])
    }

    /// Returns when a name was made; `None` where it was not made here.
    fn made(&self, name: &str) -> Option<u64> {
        let body = name.get(..NAME_LEN - TAG_DIGITS).filter(|_| name.len() == NAME_LEN)?;
        let is_own = bool::from(self.tag(body).as_bytes().ct_eq(&name.as_bytes()[body.len()..]));
        let second = body.get(PREFIX.len()..PREFIX.len() + SECOND_DIGITS).filter(|_| is_own)?;
        u64::from_str_radix(second, 16).ok()
    }
}

/// Begins an error response without a reason phrase, as its address may be forged.
pub(super) fn refusal(method: Method, id: TransactionId, code: u16) -> Builder {
    Builder::new(Class::Error, method, id).error(code, "")
}

/// Answers a Binding request whose integrity is refused.
#[must_use]
pub(crate) fn refused(message: &Message<'_>, code: u16) -> Vec<u8> {
    refusal(Method::BINDING, message.transaction(), code).finish()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::Attributes;
    use rand::SeedableRng;

    const ID: TransactionId = TransactionId([9; 16]);
    const NOW: u64 = 1_800_000_000;

    fn secrets() -> SharedSecrets {
        SharedSecrets::new(Arc::new(SecretKeys::new(&[1; 32])), ChaCha20Rng::from_seed([2; 32]))
    }

    fn text(attributes: &Attributes<'_>, kind: u16) -> String {
        String::from_utf8(attributes.get(kind).unwrap().to_vec()).unwrap()
    }

    fn credentials(secrets: &mut SharedSecrets) -> (String, String) {
        let request = Builder::new(Class::Request, Method::SHARED_SECRET, ID).finish();
        let answer = secrets.answer(NOW, &Message::parse(&request).unwrap(), true);
        let answer = Message::parse(&answer).unwrap();
        assert_eq!((answer.class(), answer.transaction()), (Class::Success, ID));
        assert_eq!(answer.as_bytes()[..2], [0x01, 0x02]);
        let attributes = answer.unverified();
        (text(&attributes, attr::USERNAME), text(&attributes, attr::PASSWORD))
    }

    fn binding(name: Option<&str>, password: Option<&str>) -> Vec<u8> {
        let mut request = Builder::new(Class::Request, Method::BINDING, ID);
        if let Some(name) = name {
            request = request.attribute(attr::USERNAME, name.as_bytes());
        }
        let mut bytes = request.finish();
        if let Some(password) = password {
            append_classic_integrity(&mut bytes, &Key::short_term(password), ClassicText::Padded);
        }
        bytes
    }

    fn code(secrets: &SharedSecrets, unix: u64, request: &[u8]) -> Option<u16> {
        match secrets.check(unix, &Message::parse(request).unwrap()) {
            BindingCheck::Open => None,
            BindingCheck::Signed(..) => Some(200),
            BindingCheck::Refused(code) => Some(code),
        }
    }

    #[test]
    fn credentials_are_long_enough_and_no_two_are_the_same() {
        let mut secrets = secrets();
        let (first, second) = (credentials(&mut secrets), credentials(&mut secrets));
        for (name, password) in [&first, &second] {
            assert_eq!((name.len() % 4, password.len() % 4), (0, 0));
            assert!(password.len() * 4 >= 128, "{password}");
        }
        assert!(first.0 != second.0 && first.1 != second.1);
    }

    #[test]
    fn credentials_are_good_for_ten_minutes_and_refused_after_thirty() {
        let mut secrets = secrets();
        let (name, password) = credentials(&mut secrets);
        let request = binding(Some(&name), Some(&password));
        for (minutes, expected) in [(0, 200), (10, 200), (30, 430), (600, 430)] {
            assert_eq!(code(&secrets, NOW + minutes * 60, &request), Some(expected), "{minutes} min");
        }
        assert_eq!(code(&secrets, NOW - 3600, &request), Some(430), "made in the future");
    }

    #[test]
    fn a_wrong_hmac_is_431_and_one_without_a_name_432() {
        let mut secrets = secrets();
        let (name, password) = credentials(&mut secrets);
        assert_eq!(code(&secrets, NOW, &binding(Some(&name), Some("guessed"))), Some(431));
        assert_eq!(code(&secrets, NOW, &binding(None, Some(&password))), Some(432));
        assert_eq!(code(&secrets, NOW, &binding(Some(&name), None)), None, "no integrity, none asked for");
    }

    #[test]
    fn names_that_were_not_made_here_are_answered_as_if_there_were_no_integrity() {
        let mut secrets = secrets();
        let (name, password) = credentials(&mut secrets);
        let other = SharedSecrets::new(Arc::new(SecretKeys::new(&[3; 32])), ChaCha20Rng::from_seed([2; 32]));
        let forged = format!("{}{}", &name[..NAME_LEN - 1], if name.ends_with('0') { '1' } else { '0' });
        for name in ["frag:frag", &forged, &name[..40], ""] {
            assert_eq!(code(&secrets, NOW, &binding(Some(name), Some(&password))), None, "{name}");
        }
        assert_eq!(code(&other, NOW, &binding(Some(&name), Some(&password))), None);
    }

    #[test]
    fn without_tls_there_is_433_and_unknown_attributes_get_420() {
        let mut secrets = secrets();
        let asked = |secrets: &mut SharedSecrets, request: Builder, by_tls| {
            let answer = secrets.answer(NOW, &Message::parse(&request.finish()).unwrap(), by_tls);
            assert_eq!(answer[..2], [0x01, 0x12]);
            Message::parse(&answer).unwrap().unverified().error_code()
        };
        let request = Builder::new(Class::Request, Method::SHARED_SECRET, ID);
        assert_eq!(asked(&mut secrets, request.clone(), false), Some(433));
        assert_eq!(asked(&mut secrets, request.attribute(0x7777, &[0; 4]), true), Some(420));
    }

    #[test]
    fn a_success_is_signed_with_the_same_key_and_an_error_is_not() {
        let mut secrets = secrets();
        let (name, password) = credentials(&mut secrets);
        let request = binding(Some(&name), Some(&password));
        let check = secrets.check(NOW, &Message::parse(&request).unwrap());
        let mut success = Builder::new(Class::Success, Method::BINDING, ID).finish();
        check.sign(&mut success);
        let key = Key::short_term(&password);
        assert_eq!(Message::parse(&success).unwrap().verify_classic(&key), Some(ClassicText::Padded));
        let mut error = Builder::new(Class::Error, Method::BINDING, ID).error(420, "").finish();
        check.sign(&mut error);
        assert!(!Message::parse(&error).unwrap().has_integrity());
    }
}
