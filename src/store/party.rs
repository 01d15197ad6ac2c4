//! Users and devices by name. Pure.

use super::MAX_NAME;
use super::error::{StoreError, require_short};
use std::fmt;
use std::str::FromStr;

/// Who sends and receives: a user or a legacy device. Users and devices are separate name spaces (S4-A6).
///
/// The text form is `user:NAME` or `dev:ID`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// A legacy device, by its id.
    Device(String),
    /// A user, by the name of the account.
    User(String),
}

/// A text is not the text form of a [`Party`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither user:NAME nor dev:ID")]
pub struct PartyError;

impl Party {
    /// Returns the name without the name space.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::User(name) | Self::Device(name) => name,
        }
    }

    /// Refuses a name that is longer than a store accepts.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        require_short(self.name().len() <= MAX_NAME)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Device(id) => write!(f, "dev:{id}"),
        }
    }
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&crate::ids::Pii(self), f)
    }
}

impl FromStr for Party {
    type Err = PartyError;

    fn from_str(text: &str) -> Result<Self, PartyError> {
        match text.split_once(':') {
            Some(("user", name)) => Ok(Self::User(name.to_owned())),
            Some(("dev", id)) => Ok(Self::Device(id.to_owned())),
            _ => Err(PartyError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_read_back_and_keeps_the_name_spaces_apart() {
        for name in ["alice", "dev:alice", "user:", "", "a:b"] {
            for party in [Party::User(name.to_owned()), Party::Device(name.to_owned())] {
                assert_eq!(party.to_string().parse(), Ok(party));
            }
        }
        assert_eq!("alice".parse::<Party>(), Err(PartyError));
        assert_eq!("group:a".parse::<Party>(), Err(PartyError));
    }
}
