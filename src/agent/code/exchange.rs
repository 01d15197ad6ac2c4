//! The exchange of a short code: one run of SPAKE2 with confirmation. Pure.
//!
//! The connector sends its SPAKE2 message; the listener returns its own with a confirmation, by which the connector learns whether both
//! have used the same words. The connector confirms with its next message: an offer that is authenticated with the resulting secret.
//! The crate `spake2` has no confirmation of its own and is used only here.
//!
//! The secret depends on the words, the locator, both tags, both roles and both messages. The QUIC certificates of both sides are derived
//! from it ([`super::super::pinned_tls`]), so that a server that exchanges anything ends with two sides that refuse each other.

use super::super::keys::{AgentRole, SECRET_LEN, Secret};
use super::ShortCode;
use data_encoding::BASE64URL_NOPAD;
use ring::{digest, hmac};
use spake2::{Ed25519Group, Identity, Password, Spake2};
use subtle::ConstantTimeEq;

const LABEL: &[u8] = b"ginnel/2 code";
/// Length of a SPAKE2 message over Ed25519: a byte for the side and a point.
const MESSAGE_LEN: usize = 33;
const CONFIRMATION_LEN: usize = 32;

/// Whose exchange it is, and through which locator. Both sides must mean the same.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Parties<'a> {
    pub(in crate::agent) connector: &'a str,
    pub(in crate::agent) listener: &'a str,
}

/// Why an exchange has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::agent) enum ExchangeError {
    #[error("a message of the exchange is malformed")]
    Malformed,
    #[error("the words of the code are wrong")]
    WrongWords,
}

/// The connector's side, between its message and the listener's.
pub(in crate::agent) struct ConnectorExchange {
    state: Spake2<Ed25519Group>,
    locator: u32,
    message: Vec<u8>,
}

impl ConnectorExchange {
    /// Starts an exchange and returns the message for the listener.
    pub(in crate::agent) fn start(code: &ShortCode, parties: Parties<'_>) -> (Self, String) {
        let [connector, listener] = identities(code.locator, parties);
        let password = Password::new(code.password().as_bytes());
        let (state, message) = Spake2::<Ed25519Group>::start_a(&password, &connector, &listener);
        let text = BASE64URL_NOPAD.encode(&message);
        (Self { state, locator: code.locator, message }, text)
    }

    /// Returns the secret of the connection, from the listener's answer.
    pub(in crate::agent) fn finish(
        self,
        answer: &str,
        parties: Parties<'_>,
    ) -> Result<Secret, ExchangeError> {
        let answer = decode(answer, MESSAGE_LEN + CONFIRMATION_LEN)?;
        let (message, confirmation) = answer.split_at(MESSAGE_LEN);
        let key = self.state.finish(message).map_err(|_| ExchangeError::Malformed)?;
        let keys = Keys::new(&key, &transcript(self.locator, parties, [&self.message, message]));
        let is_same: bool = keys.confirmation(AgentRole::Listener).ct_eq(confirmation).into();
        is_same.then(|| keys.secret()).ok_or(ExchangeError::WrongWords)
    }
}

/// The listener's side: returns the answer for the connector and the secret of the connection, which is worth something only once the connector has
/// used it.
pub(in crate::agent) fn answer(
    code: &ShortCode,
    message: &str,
    parties: Parties<'_>,
) -> Result<(String, Secret), ExchangeError> {
    let theirs = decode(message, MESSAGE_LEN)?;
    let [connector, listener] = identities(code.locator, parties);
    let password = Password::new(code.password().as_bytes());
    let (state, ours) = Spake2::<Ed25519Group>::start_b(&password, &connector, &listener);
    let key = state.finish(&theirs).map_err(|_| ExchangeError::Malformed)?;
    let keys = Keys::new(&key, &transcript(code.locator, parties, [&theirs, &ours]));
    let answer = [&ours[..], &keys.confirmation(AgentRole::Listener)].concat();
    Ok((BASE64URL_NOPAD.encode(&answer), keys.secret()))
}

/// The key that both sides have if they have used the same words, and the digest of all that they have agreed on.
struct Keys {
    key: hmac::Key,
    transcript: digest::Digest,
}

impl Keys {
    fn new(key: &[u8], transcript: &digest::Digest) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), transcript: *transcript }
    }

    fn derive(&self, label: &[u8]) -> hmac::Tag {
        hmac::sign(&self.key, &[LABEL, label, self.transcript.as_ref()].concat())
    }

    fn confirmation(&self, role: AgentRole) -> [u8; CONFIRMATION_LEN] {
        let tag = self.derive(match role {
            AgentRole::Listener => b" listener has the key ",
            AgentRole::Connector => b" connector has the key ",
        });
        let mut confirmation = [0; CONFIRMATION_LEN];
        confirmation.copy_from_slice(tag.as_ref());
        confirmation
    }

    fn secret(&self) -> Secret {
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&self.derive(b" secret ").as_ref()[..SECRET_LEN]);
        Secret(secret)
    }
}

fn identities(locator: u32, parties: Parties<'_>) -> [Identity; 2] {
    [("connector", parties.connector), ("listener", parties.listener)]
        .map(|(role, tag)| Identity::new(format!("ginnel/2 {role} {tag} of {locator}").as_bytes()))
}

/// The digest of what both sides must have seen alike; each part with its length.
fn transcript(locator: u32, parties: Parties<'_>, messages: [&[u8]; 2]) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    let locator = locator.to_be_bytes();
    let parts = [
        LABEL,
        &locator,
        parties.connector.as_bytes(),
        parties.listener.as_bytes(),
        messages[0],
        messages[1],
    ];
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish()
}

fn decode(text: &str, len: usize) -> Result<Vec<u8>, ExchangeError> {
    let decoded = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
    decoded.filter(|bytes| bytes.len() == len).ok_or(ExchangeError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bip39::Language;

    const PARTIES: Parties<'_> = Parties { connector: "caller", listener: "callee" };

    fn code(text: &str) -> ShortCode {
        text.parse().unwrap()
    }

    #[test]
    fn the_same_code_gives_both_sides_the_same_secret_and_each_run_another() {
        let code = code("7-crater-violin");
        let secrets: Vec<Secret> = (0..2)
            .map(|_| {
                let (connector, message) = ConnectorExchange::start(&code, PARTIES);
                let (reply, listener) = answer(&code, &message, PARTIES).unwrap();
                assert_eq!(connector.finish(&reply, PARTIES), Ok(listener.clone()));
                listener
            })
            .collect();
        assert_ne!(secrets[0], secrets[1]);
    }

    #[test]
    fn other_words_another_locator_and_other_parties_are_noticed() {
        let theirs = code("7-crater-violin");
        for (ours, parties) in [
            (code("7-crater-visit"), PARTIES),
            (code("7-violin-crater"), PARTIES),
            (code("8-crater-violin"), PARTIES),
            (code("7-crater-violin"), Parties { connector: "other", ..PARTIES }),
            (code("7-crater-violin"), Parties { listener: "other", ..PARTIES }),
        ] {
            let (connector, message) = ConnectorExchange::start(&theirs, PARTIES);
            let (reply, secret) = answer(&ours, &message, parties).unwrap();
            assert_eq!(connector.finish(&reply, PARTIES), Err(ExchangeError::WrongWords));
            let (_, message) = ConnectorExchange::start(&theirs, PARTIES);
            assert_ne!(answer(&theirs, &message, PARTIES).unwrap().1, secret);
        }
    }

    #[test]
    fn a_man_in_the_middle_without_the_words_is_refused_by_both_sides() {
        let code = code("7-crater-violin");
        let guess: ShortCode = "7-abandon-ability".parse().unwrap();
        let (connector, message) = ConnectorExchange::start(&code, PARTIES);
        let (reply, with_connector) = answer(&guess, &message, PARTIES).unwrap();
        assert_eq!(connector.finish(&reply, PARTIES), Err(ExchangeError::WrongWords));
        let (server, message) = ConnectorExchange::start(&guess, PARTIES);
        let (reply, with_listener) = answer(&code, &message, PARTIES).unwrap();
        assert_eq!(server.finish(&reply, PARTIES), Err(ExchangeError::WrongWords));
        assert_ne!(with_connector, with_listener);
    }

    #[test]
    fn malformed_messages_are_errors() {
        let code = code("7-crater-violin");
        let (_, message) = ConnectorExchange::start(&code, PARTIES);
        let (reply, _) = answer(&code, &message, PARTIES).unwrap();
        let zeros = BASE64URL_NOPAD.encode(&[0; MESSAGE_LEN]);
        for wrong in ["", "A", "ä", &message[1..], &reply, &zeros, &"A".repeat(10_000)] {
            assert_eq!(answer(&code, wrong, PARTIES).err(), Some(ExchangeError::Malformed), "{wrong}");
        }
        for wrong in ["", &message, &reply[1..], &"A".repeat(87)] {
            let (connector, _) = ConnectorExchange::start(&code, PARTIES);
            assert_eq!(connector.finish(wrong, PARTIES).err(), Some(ExchangeError::Malformed), "{wrong}");
        }
        // The connector's own message sent back is no answer.
        let (connector, message) = ConnectorExchange::start(&code, PARTIES);
        let mut echo = BASE64URL_NOPAD.decode(message.as_bytes()).unwrap();
        echo.extend_from_slice(&[0; CONFIRMATION_LEN]);
        assert!(connector.finish(&BASE64URL_NOPAD.encode(&echo), PARTIES).is_err());
    }

    /// What the server sees of one run.
    struct Transcript {
        connector: Vec<u8>,
        listener: Vec<u8>,
        confirmation: Vec<u8>,
    }

    impl Transcript {
        /// Records a run in which the connector uses `guess`.
        fn record(listening: &ShortCode, guess: &ShortCode) -> Self {
            let (_, message) = ConnectorExchange::start(guess, PARTIES);
            let (reply, _) = answer(listening, &message, PARTIES).unwrap();
            let reply = decode(&reply, MESSAGE_LEN + CONFIRMATION_LEN).unwrap();
            let (listener, confirmation) = reply.split_at(MESSAGE_LEN);
            Self {
                connector: decode(&message, MESSAGE_LEN).unwrap(),
                listener: listener.to_vec(),
                confirmation: confirmation.to_vec(),
            }
        }

        fn digest(&self) -> digest::Digest {
            transcript(7, PARTIES, [&self.connector, &self.listener])
        }

        /// Returns the words of the list whose key, as an eavesdropper computes it, gives the recorded confirmation.
        fn attack(&self, key_of: impl Fn(&Self, &ShortCode) -> Vec<u8>) -> Vec<String> {
            let words = Language::English.word_list().iter().step_by(32).chain(["crater"].iter());
            let guesses = words.map(|word| code(&format!("7-{word}-violin")));
            let explains = |guess: &ShortCode| {
                let keys = Keys::new(&key_of(self, guess), &self.digest());
                keys.confirmation(AgentRole::Listener)[..] == self.confirmation
            };
            guesses.filter(explains).map(|guess| guess.to_string()).collect()
        }
    }

    /// The key of an exchange without Diffie-Hellman, whose messages are random numbers.
    fn weak_key(seen: &Transcript, guess: &ShortCode) -> Vec<u8> {
        let parts = [guess.password().as_bytes(), &seen.connector, &seen.listener].concat();
        digest::digest(&digest::SHA256, &parts).as_ref().to_vec()
    }

    #[test]
    fn the_transcript_and_the_word_list_do_not_reveal_the_words() {
        let right = code("7-crater-violin");
        let seen = Transcript::record(&right, &right);
        // The attack finds the words of an exchange whose key depends on nothing but the words and the messages.
        let mut weak = Transcript { confirmation: Vec::new(), ..Transcript::record(&right, &right) };
        let keys = Keys::new(&weak_key(&weak, &right), &weak.digest());
        weak.confirmation = keys.confirmation(AgentRole::Listener).to_vec();
        assert_eq!(weak.attack(weak_key), [right.to_string()]);
        assert_eq!(seen.attack(weak_key), [] as [String; 0]);
        // An eavesdropper has none of the two secret scalars, so it can only bring its own.
        let [connector, listener] = identities(7, PARTIES);
        let as_connector = |seen: &Transcript, guess: &ShortCode| {
            let password = Password::new(guess.password().as_bytes());
            let (state, _) = Spake2::<Ed25519Group>::start_a(&password, &connector, &listener);
            state.finish(&seen.listener).unwrap()
        };
        let as_listener = |seen: &Transcript, guess: &ShortCode| {
            let password = Password::new(guess.password().as_bytes());
            let (state, _) = Spake2::<Ed25519Group>::start_b(&password, &connector, &listener);
            state.finish(&seen.connector).unwrap()
        };
        assert_eq!(seen.attack(as_connector), [] as [String; 0]);
        assert_eq!(seen.attack(as_listener), [] as [String; 0]);
        // Nor does a run with wrong words look different from one with the right ones.
        let wrong = Transcript::record(&right, &code("7-abandon-violin"));
        let form = |seen: &Transcript| [&seen.connector, &seen.listener, &seen.confirmation].map(Vec::len);
        assert_eq!(form(&seen), form(&wrong));
        assert_eq!((seen.connector[0], seen.listener[0]), (wrong.connector[0], wrong.listener[0]));
    }
}
