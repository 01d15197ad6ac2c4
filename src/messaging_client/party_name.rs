//! Names of users and legacy devices. Pure.

use std::fmt;
use std::str::FromStr;

const USER: &str = "user:";
const DEVICE: &str = "dev:";
/// Longest name that a server stores.
const MAX_NAME: usize = 128;

/// The name of a user, or the id of a device of the TCP protocol.
///
/// Parses `NAME` and `user:NAME` for a user, `dev:ID` for a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartyName(String);

/// A text that names no party.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 128 bytes and no control characters")]
pub struct PartyNameError;

impl PartyName {
    /// Returns the party of a user.
    ///
    /// # Errors
    /// [`PartyNameError`].
    pub fn user(name: &str) -> Result<Self, PartyNameError> {
        Self::new(USER, name)
    }

    fn new(name_space: &str, name: &str) -> Result<Self, PartyNameError> {
        let is_valid = (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
        if is_valid { Ok(Self(format!("{name_space}{name}"))) } else { Err(PartyNameError) }
    }

    /// Takes what the server names as a party. It may be any text, which nothing but the party's own keys gives a meaning.
    pub(super) fn from_wire(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns the form that the wire has.
    pub(crate) fn as_wire(&self) -> &str {
        &self.0
    }
}

impl FromStr for PartyName {
    type Err = PartyNameError;

    fn from_str(text: &str) -> Result<Self, PartyNameError> {
        match (text.strip_prefix(USER), text.strip_prefix(DEVICE)) {
            (Some(name), _) => Self::new(USER, name),
            (_, Some(id)) => Self::new(DEVICE, id),
            _ => Self::new(USER, text),
        }
    }
}

impl fmt::Display for PartyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.strip_prefix(USER) {
            // With its name space it would be read as another name.
            Some(name) if !name.starts_with(USER) && !name.starts_with(DEVICE) => f.write_str(name),
            _ => f.write_str(&self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_from_what_is_displayed() {
        for (text, wire, shown) in [
            ("bob", "user:bob", "bob"),
            ("user:bob", "user:bob", "bob"),
            ("dev:7", "dev:7", "dev:7"),
            ("user:dev:7", "user:dev:7", "user:dev:7"),
            ("a:b", "user:a:b", "a:b"),
        ] {
            let name: PartyName = text.parse().unwrap();
            assert_eq!((name.as_wire(), &*name.to_string()), (wire, shown));
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
            assert_eq!(PartyName::from_wire(name.as_wire()), name);
        }
    }

    #[test]
    fn a_name_without_content_or_with_control_characters_is_refused() {
        for text in ["", "user:", "dev:", "a\u{1b}[2J", &"x".repeat(129)] {
            assert_eq!(text.parse::<PartyName>(), Err(PartyNameError), "{text:?}");
        }
    }
}
