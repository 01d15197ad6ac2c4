//! The server's challenge, and the signature of requests ([RFC 8489 section 9.2](https://www.rfc-editor.org/rfc/rfc8489#section-9.2)).

use super::config::LongTermCredentials;
use crate::stun::{
    Attributes, Builder, Integrity, Key, PasswordAlgorithm, attr, long_term_digest, long_term_digest_sha256,
};
use data_encoding::BASE64;

/// The start of the nonces of an RFC 8489 server, in front of its feature bits.
const NONCE_COOKIE: &[u8] = b"obMatJos2";
/// The feature bit of PASSWORD-ALGORITHMS, in the first of three bytes (RFC 8489 section 18.1).
const PASSWORD_ALGORITHMS: u8 = 0x80;

/// What the server demands, and the key that follows from it.
#[derive(Debug)]
pub(super) struct Challenge {
    realm: String,
    nonce: Vec<u8>,
    /// The server's list of algorithms as it was received, and the choice; `None` for a server of RFC 5389.
    algorithms: Option<(Vec<u8>, PasswordAlgorithm)>,
    key: Key,
}

/// Why an error response is no usable challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChallengeError {
    /// REALM or NONCE is missing.
    Missing,
    /// The nonce promises PASSWORD-ALGORITHMS, and the response has none: it was removed on the path (section 9.2.1).
    BidDown,
    /// The server supports none of the client's algorithms.
    NoAlgorithm,
}

impl Challenge {
    /// Reads a 401 or 438 response. The key of an earlier challenge with the same realm and algorithm is used again.
    pub(super) fn read(
        attributes: &Attributes<'_>,
        credentials: &LongTermCredentials,
        earlier: Option<&Self>,
    ) -> Result<Self, ChallengeError> {
        let realm = attributes.get(attr::REALM).and_then(|realm| std::str::from_utf8(realm).ok());
        let (Some(realm), Some(nonce)) = (realm, attributes.get(attr::NONCE)) else {
            return Err(ChallengeError::Missing);
        };
        let algorithms = match attributes.get(attr::PASSWORD_ALGORITHMS) {
            Some(list) => Some((list.to_vec(), choose(list).ok_or(ChallengeError::NoAlgorithm)?)),
            None if promises_algorithms(nonce) => return Err(ChallengeError::BidDown),
            None => None,
        };
        let choice = algorithms.as_ref().map(|(_, choice)| *choice);
        let key = match earlier {
            Some(earlier) if earlier.realm == realm && earlier.choice() == choice => earlier.key.clone(),
            _ => key(credentials, realm, choice),
        };
        Ok(Self { realm: realm.to_owned(), nonce: nonce.to_vec(), algorithms, key })
    }

    #[cfg(test)]
    pub(super) fn nonce(&self) -> &[u8] {
        &self.nonce
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    fn choice(&self) -> Option<PasswordAlgorithm> {
        self.algorithms.as_ref().map(|(_, choice)| *choice)
    }

    /// Appends the credentials and the integrity attribute, and returns the message.
    pub(super) fn sign(&self, credentials: &LongTermCredentials, message: Builder) -> Vec<u8> {
        let message = message
            .attribute(attr::USERNAME, credentials.user.as_bytes())
            .attribute(attr::REALM, self.realm.as_bytes())
            .attribute(attr::NONCE, &self.nonce);
        let message = match &self.algorithms {
            Some((list, choice)) => message
                .attribute(attr::PASSWORD_ALGORITHMS, list)
                .attribute(attr::PASSWORD_ALGORITHM, &choice.value()),
            None => message,
        };
        message.integrity(&self.key).finish()
    }
}

/// SHA-256 if the server offers it, else MD5.
fn choose(list: &[u8]) -> Option<PasswordAlgorithm> {
    let mut offered = Vec::new();
    let mut rest = list;
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let parameters = usize::from(u16::from_be_bytes([head[2], head[3]])).next_multiple_of(4);
        offered.extend((parameters == 0).then(|| PasswordAlgorithm::read(head)).flatten());
        rest = tail.get(parameters..)?;
    }
    [PasswordAlgorithm::Sha256, PasswordAlgorithm::Md5].into_iter().find(|known| offered.contains(known))
}

fn promises_algorithms(nonce: &[u8]) -> bool {
    let bits = nonce.strip_prefix(NONCE_COOKIE).and_then(|rest| rest.get(..4));
    bits.and_then(|bits| BASE64.decode(bits).ok()).is_some_and(|bits| bits[0] & PASSWORD_ALGORITHMS != 0)
}

fn key(credentials: &LongTermCredentials, realm: &str, choice: Option<PasswordAlgorithm>) -> Key {
    let LongTermCredentials { user, password } = credentials;
    match choice {
        None => Key::from_bytes(&long_term_digest(user, realm, password)),
        Some(PasswordAlgorithm::Md5) => Key::new(Integrity::Sha256, &long_term_digest(user, realm, password)),
        Some(PasswordAlgorithm::Sha256) => {
            Key::new(Integrity::Sha256, &long_term_digest_sha256(user, realm, password))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{Class, Message, Method, TransactionId};

    fn read(nonce: &[u8], list: Option<&[u8]>) -> Result<Challenge, ChallengeError> {
        let response = Builder::new(Class::Error, Method::ALLOCATE, TransactionId::new([7; 12]))
            .attribute(attr::REALM, b"realm")
            .attribute(attr::NONCE, nonce);
        let response = match list {
            Some(list) => response.attribute(attr::PASSWORD_ALGORITHMS, list),
            None => response,
        };
        let bytes = response.finish();
        let message = Message::parse(&bytes).unwrap();
        Challenge::read(&message.unverified(), &LongTermCredentials::new("alice", "pw"), None)
    }

    #[test]
    fn sha256_is_preferred_and_an_unknown_algorithm_is_skipped() {
        let cases: [(&[u8], Option<PasswordAlgorithm>); 5] = [
            (&[0, 1, 0, 0, 0, 2, 0, 0], Some(PasswordAlgorithm::Sha256)),
            (&[0, 1, 0, 0], Some(PasswordAlgorithm::Md5)),
            (&[0, 9, 0, 3, 1, 2, 3, 0, 0, 1, 0, 0], Some(PasswordAlgorithm::Md5)),
            (&[0, 9, 0, 0], None),
            (&[0, 1, 0, 8], None),
        ];
        for (list, choice) in cases {
            assert_eq!(choose(list), choice, "{list:?}");
        }
    }

    #[test]
    fn a_list_that_the_nonce_promises_must_be_there() {
        assert_eq!(read(b"obMatJos2gAAAx", None).err(), Some(ChallengeError::BidDown));
        assert_eq!(read(b"obMatJos2gAAAx", Some(&[0, 9, 0, 0])).err(), Some(ChallengeError::NoAlgorithm));
        assert_eq!(
            read(b"obMatJos2gAAAx", Some(&[0, 2, 0, 0])).unwrap().key().integrity(),
            Integrity::Sha256
        );
        // A server of RFC 5389, and one without the feature.
        for nonce in [&b"obMatJos2AAAAx"[..], b"n"] {
            assert_eq!(read(nonce, None).unwrap().key().integrity(), Integrity::Sha1);
        }
    }
}
