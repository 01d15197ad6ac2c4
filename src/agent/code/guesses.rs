//! How often a code may be tried, and the secrets that its exchanges have produced. Pure.

use super::super::keys::Secret;
use super::ShortCode;
use super::exchange::{self, ExchangeError, Parties};
use std::time::{Duration, Instant};

/// Number of exchanges that a code allows.
pub(in crate::agent) const MAX_GUESSES: u8 = 3;
/// How long a connector may take from the exchange to its authenticated call.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// What has become of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum CodeState {
    /// It can be used.
    Valid,
    /// A connection has used it.
    Used,
    /// It was tried too often with wrong words.
    Burnt,
    /// Its time is over.
    Expired,
}

/// One code of a listener.
#[derive(Debug)]
pub(in crate::agent) struct CodeGuesses {
    code: ShortCode,
    expires: Instant,
    guesses: u8,
    is_used: bool,
    /// The exchanges that no connector has confirmed.
    unconfirmed: Vec<Exchange>,
}

#[derive(Debug)]
struct Exchange {
    /// The token of the call that has carried it.
    token: String,
    secret: Secret,
    /// When it can no longer be confirmed.
    until: Instant,
}

impl CodeGuesses {
    /// A code that is valid until `expires`.
    pub(in crate::agent) fn new(code: ShortCode, expires: Instant) -> Self {
        Self { code, expires, guesses: 0, is_used: false, unconfirmed: Vec::new() }
    }

    /// Returns the locator of the code.
    pub(in crate::agent) fn locator(&self) -> u32 {
        self.code.locator()
    }

    /// Returns how many guesses are left.
    pub(in crate::agent) fn left(&self) -> u8 {
        MAX_GUESSES - self.guesses
    }

    /// Returns the state of the code.
    pub(in crate::agent) fn state(&self, now: Instant) -> CodeState {
        // The last exchange has its time to confirm.
        let is_pending = self.unconfirmed.iter().any(|exchange| now < exchange.until);
        if self.is_used {
            CodeState::Used
        } else if self.guesses >= MAX_GUESSES && !is_pending {
            CodeState::Burnt
        } else if now >= self.expires && !is_pending {
            CodeState::Expired
        } else {
            CodeState::Valid
        }
    }

    /// Answers a connector's message and counts a guess. `None` if the code cannot be tried any more.
    pub(in crate::agent) fn answer(
        &mut self,
        now: Instant,
        (token, message): (&str, &str),
        parties: Parties<'_>,
    ) -> Option<Result<String, ExchangeError>> {
        if self.is_used || self.guesses >= MAX_GUESSES || now >= self.expires {
            return None;
        }
        self.guesses += 1;
        let answered = exchange::answer(&self.code, message, parties);
        Some(answered.map(|(answer, secret)| {
            let token = token.to_owned();
            self.unconfirmed.push(Exchange { token, secret, until: now + CONFIRM_TIMEOUT });
            answer
        }))
    }

    /// Returns whether a call has carried an exchange.
    pub(in crate::agent) fn has_exchange(&self, token: &str) -> bool {
        self.unconfirmed.iter().any(|exchange| exchange.token == token)
    }

    /// Forgets an exchange whose connector has found the words wrong; returns whether there was one.
    pub(in crate::agent) fn reject(&mut self, token: &str) -> bool {
        let count = self.unconfirmed.len();
        self.unconfirmed.retain(|exchange| exchange.token != token);
        self.unconfirmed.len() < count
    }

    /// Returns the secret with this key id, if a call may be authenticated with it.
    pub(in crate::agent) fn secret(&self, now: Instant, key_id: &str) -> Option<&Secret> {
        let is_valid = |exchange: &&Exchange| now < exchange.until && exchange.secret.key_id() == key_id;
        self.unconfirmed.iter().filter(|_| !self.is_used).find(is_valid).map(|exchange| &exchange.secret)
    }

    /// Records that a connector has shown the secret with this key id: the code is used up.
    pub(in crate::agent) fn confirm(&mut self, key_id: &str) {
        if self.unconfirmed.iter().any(|exchange| exchange.secret.key_id() == key_id) {
            self.is_used = true;
            self.unconfirmed.clear();
        }
    }

    /// Forgets the exchanges that can no longer be confirmed.
    pub(in crate::agent) fn expire(&mut self, now: Instant) {
        self.unconfirmed.retain(|exchange| now < exchange.until);
    }

    /// Returns when the state of the code may change without a call.
    pub(in crate::agent) fn next_due(&self) -> Instant {
        self.unconfirmed.iter().map(|exchange| exchange.until).max().unwrap_or(self.expires)
    }
}

#[cfg(test)]
mod tests {
    use super::super::exchange::ConnectorExchange;
    use super::*;
    use crate::net::time;

    const PARTIES: Parties<'_> = Parties { connector: "caller", listener: "callee" };
    const LIFETIME: Duration = Duration::from_secs(600);

    fn offered() -> (CodeGuesses, Instant) {
        let now = time::now().mono;
        (CodeGuesses::new("7-crater-violin".parse().unwrap(), now + LIFETIME), now)
    }

    fn guess(offered: &mut CodeGuesses, now: Instant, words: &str) -> Option<Result<Secret, ExchangeError>> {
        let (connector, message) = ConnectorExchange::start(&words.parse().unwrap(), PARTIES);
        let answer = offered.answer(now, (words, &message), PARTIES)?.unwrap();
        Some(connector.finish(&answer, PARTIES))
    }

    #[test]
    fn a_code_serves_one_connection() {
        let (mut offered, now) = offered();
        let secret = guess(&mut offered, now, "7-crater-violin").unwrap().unwrap();
        assert_eq!(offered.secret(now, &secret.key_id()), Some(&secret));
        assert_eq!(offered.secret(now, "another"), None);
        assert_eq!(offered.state(now), CodeState::Valid);
        offered.confirm("another");
        assert_eq!(offered.state(now), CodeState::Valid);
        offered.confirm(&secret.key_id());
        assert_eq!(offered.state(now), CodeState::Used);
        assert_eq!(offered.secret(now, &secret.key_id()), None);
        assert!(guess(&mut offered, now, "7-crater-violin").is_none());
    }

    #[test]
    fn three_wrong_guesses_burn_a_code() {
        let (mut offered, now) = offered();
        for words in ["7-crater-visit", "7-abandon-violin", "7-violin-crater"] {
            assert_eq!(guess(&mut offered, now, words), Some(Err(ExchangeError::WrongWords)));
        }
        assert!(guess(&mut offered, now, "7-crater-violin").is_none());
        assert_eq!(offered.state(now + CONFIRM_TIMEOUT), CodeState::Burnt);
        // A connector that states that its words were wrong spares the listener the wait.
        assert_eq!(offered.state(now), CodeState::Valid);
        for words in ["7-crater-visit", "7-abandon-violin", "7-violin-crater"] {
            assert!(offered.reject(words) && !offered.reject(words));
        }
        assert_eq!(offered.state(now), CodeState::Burnt);
    }

    #[test]
    fn malformed_messages_count_as_guesses() {
        let (mut offered, now) = offered();
        for _ in 0..MAX_GUESSES {
            assert_eq!(offered.answer(now, ("token", "x"), PARTIES), Some(Err(ExchangeError::Malformed)));
        }
        assert!(guess(&mut offered, now, "7-crater-violin").is_none());
        assert_eq!(offered.state(now), CodeState::Burnt);
    }

    #[test]
    fn a_code_and_an_unconfirmed_exchange_expire() {
        let (mut offered, now) = offered();
        let late = now + LIFETIME - Duration::from_secs(1);
        let secret = guess(&mut offered, late, "7-crater-violin").unwrap().unwrap();
        // The connector that came in time may finish.
        assert_eq!(offered.state(now + LIFETIME), CodeState::Valid);
        assert!(offered.secret(now + LIFETIME, &secret.key_id()).is_some());
        let after = late + CONFIRM_TIMEOUT;
        assert_eq!(offered.next_due(), after);
        assert_eq!(
            (offered.state(after), offered.secret(after, &secret.key_id())),
            (CodeState::Expired, None)
        );
        assert!(guess(&mut offered, now + LIFETIME, "7-crater-violin").is_none());
    }
}
