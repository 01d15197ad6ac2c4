//! Short codes: what one host tells another by voice, such as `7-crater-violin`, instead of a ticket.
//!
//! The number is a *locator*: the server resolves it to the listener's tag for as long as the code is valid. The words are a password of 22
//! bits for one run of SPAKE2 ([`exchange`]), whose messages travel in a call of their own; the result is the secret of a
//! connection, in the place of a ticket's. The server sees the locator and the messages of the exchange, from which neither the words
//! nor the secret can be computed: each guess of the words needs a run of its own with the listener. The listener counts the runs
//! ([`guesses`]) and discards the code after three that did not end in a connection. See `docs/wire/short-codes.md`.

pub(super) mod exchange;
pub(super) mod guesses;
pub(super) mod offered;
pub(super) mod resolve;

use bip39::Language;
use rand::Rng;
use std::fmt;
use std::str::FromStr;

/// Number of words in a code.
const WORDS: usize = 2;
/// The option of a call that carries an exchange in the place of an offer.
pub(super) const OPTION: &str = "code";
/// The reason with which a connector ends such a call: it holds the secret.
const DONE: &str = "the code was exchanged";
/// The reason with which a connector ends such a call: the words are wrong.
pub(super) const WRONG: &str = "the words of the code are wrong";
/// The longest text that is parsed.
const MAX_TEXT: usize = 128;
/// The highest locator.
const MAX_LOCATOR: u32 = 999_999;

/// A code for one connection.
///
/// `Display` prints it, `Debug` hides the words. Parsing accepts spaces instead of hyphens, upper case, and the first four letters of a
/// word, which are different for all words of the list.
#[derive(Clone, PartialEq, Eq)]
pub struct ShortCode {
    locator: u32,
    words: [&'static str; WORDS],
}

/// Why a text is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// It has another form.
    #[error("a code is a number and {WORDS} words, like 7-crater-violin")]
    Form,
    /// The number is out of range.
    #[error("the number of a code is from 1 to {MAX_LOCATOR}")]
    Number,
    /// A word is not in the list.
    #[error("`{word}` is not a word of a code{}", Suggestion(*.nearest))]
    Word {
        /// The word, without control characters.
        word: String,
        /// The word of the list that is most like it, if there is exactly one.
        nearest: Option<&'static str>,
    },
}

struct Suggestion(Option<&'static str>);

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |word| write!(f, "; did you mean `{word}`?"))
    }
}

impl fmt::Display for ShortCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.locator, self.password())
    }
}

impl fmt::Debug for ShortCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShortCode({}-…)", self.locator)
    }
}

impl FromStr for ShortCode {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, CodeError> {
        if text.len() > MAX_TEXT {
            return Err(CodeError::Form);
        }
        let text = text.trim().to_lowercase();
        let mut parts = text.split(|c: char| c == '-' || c.is_whitespace()).filter(|part| !part.is_empty());
        let number = parts.next().ok_or(CodeError::Form)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(CodeError::Form);
        }
        let words: Vec<&str> = parts.collect();
        let [first, second] = words[..] else { return Err(CodeError::Form) };
        let locator = number.parse().ok().filter(|number| (1..=MAX_LOCATOR).contains(number));
        Ok(Self { locator: locator.ok_or(CodeError::Number)?, words: [find(first)?, find(second)?] })
    }
}

impl ShortCode {
    /// Returns a code with random words for the listener with this locator.
    pub(super) fn random(locator: u32, rng: &mut impl Rng) -> Self {
        let list = Language::English.word_list();
        Self { locator, words: std::array::from_fn(|_| list[rng.random_range(0..list.len())]) }
    }

    /// Returns the number that the server resolves to the listener.
    #[must_use]
    pub fn locator(&self) -> u32 {
        self.locator
    }

    /// Returns the words as the password of the exchange.
    fn password(&self) -> String {
        self.words.join("-")
    }
}

/// Returns the word of the list that `text` is, or whose first four letters it begins with.
fn find(text: &str) -> Result<&'static str, CodeError> {
    let list = Language::English.word_list();
    if let Some(word) = list.iter().find(|word| **word == text) {
        return Ok(word);
    }
    let mut same_start = list.iter().filter(|word| text.len() >= 4 && word.starts_with(text));
    match (same_start.next(), same_start.next()) {
        (Some(word), None) => Ok(word),
        _ => Err(CodeError::Word {
            word: text.chars().filter(|c| !c.is_control()).take(32).collect(),
            nearest: nearest(text),
        }),
    }
}

/// Returns the only word of the list that differs from `text` by one letter that is wrong, missing, superfluous or exchanged with its neighbour.
fn nearest(text: &str) -> Option<&'static str> {
    let mut alike = Language::English.word_list().iter().filter(|word| differs_by_one(word, text));
    match (alike.next(), alike.next()) {
        (Some(word), None) => Some(word),
        _ => None,
    }
}

fn differs_by_one(left: &str, right: &str) -> bool {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let start = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let (left, right) = (&left[start..], &right[start..]);
    let rest = |text: &[char], skipped: usize| text.get(skipped..).map(<[char]>::to_vec);
    let is_exchanged = || match (left, right) {
        ([a, b, left @ ..], [c, d, right @ ..]) => (a, b) == (d, c) && left == right,
        _ => false,
    };
    let is_wrong = rest(left, 1).is_some() && rest(left, 1) == rest(right, 1);
    let is_missing = rest(left, 1).as_deref() == Some(right);
    let is_superfluous = rest(right, 1).as_deref() == Some(left);
    is_wrong || is_missing || is_superfluous || is_exchanged()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use std::collections::HashSet;

    #[test]
    fn a_code_is_read_as_it_is_printed_and_as_people_type_it() {
        let code: ShortCode = "7-crater-violin".parse().unwrap();
        assert_eq!(code.locator(), 7);
        assert_eq!(code.to_string(), "7-crater-violin");
        for typed in [" 7 crater violin\n", "7-CRATER-Violin", "7--crat viol", "007-crate-violi"] {
            assert_eq!(typed.parse::<ShortCode>().as_ref(), Ok(&code), "{typed}");
        }
        assert!(!format!("{code:?}").contains("crater"));
    }

    #[test]
    fn another_text_is_refused_with_a_reason() {
        for text in
            ["", "7", "7-crater", "7-crater-violin-x", "crater-violin-7", "-7-crater", "+7-crater-violin"]
        {
            assert_eq!(text.parse::<ShortCode>(), Err(CodeError::Form), "{text}");
        }
        for text in ["0-crater-violin", "1000000-crater-violin", "99999999999999-crater-violin"] {
            assert_eq!(text.parse::<ShortCode>(), Err(CodeError::Number), "{text}");
        }
        assert_eq!("7-crater-".repeat(100).parse::<ShortCode>(), Err(CodeError::Form));
        let word = |text: &str| text.parse::<ShortCode>().unwrap_err().to_string();
        for typed in ["7-crater-violim", "7-crater-vioiln", "7-crater-vioolin", "7-crater-vilin"] {
            assert!(word(typed).ends_with("did you mean `violin`?"), "{}", word(typed));
        }
        assert_eq!(word("7-crater-zzzz"), "`zzzz` is not a word of a code");
        assert!(!word("7-crater-\u{1b}[2J").contains('\u{1b}'));
    }

    #[test]
    fn random_codes_have_22_bits_of_words() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let codes: HashSet<String> = (0..2000).map(|_| ShortCode::random(7, &mut rng).to_string()).collect();
        assert!(codes.len() > 1990, "{}", codes.len());
        assert!(
            codes.iter().all(|code| code.parse::<ShortCode>().is_ok_and(|read| read.to_string() == *code))
        );
    }

    #[test]
    fn four_letters_determine_each_word() {
        let list = Language::English.word_list();
        for word in list {
            let start = &word[..word.len().min(4)];
            let same: Vec<_> = list.iter().filter(|other| other.starts_with(start)).collect();
            assert!(same.len() == 1 || word.len() < 4 || start == *word, "{word}: {same:?}");
        }
    }
}
