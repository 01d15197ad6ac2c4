//! The application protocol of a connection: what its streams carry.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Longest name in bytes.
const MAX_LEN: usize = 32;

/// The name of an application protocol, such as `pipe/1`: up to 32 lower-case letters, digits, `.`, `-`, `_` and `/`.
///
/// Both sides of a connection state theirs, so that a command that meets another one fails with a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol(Cow<'static, str>);

/// A text that is not the name of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a protocol is 1 to {MAX_LEN} lower-case letters, digits, `.`, `-`, `_` and `/`, such as pipe/1")]
pub struct ProtocolNameError;

impl Protocol {
    /// One stream: standard input and output of `agent listen` and `agent connect`. The default.
    pub const PIPE: Self = Self(Cow::Borrowed("pipe/1"));
    /// Forwarded TCP, UDP and Unix sockets: `agent share`, `agent forward` and `agent socks`.
    pub const FORWARD: Self = Self(Cow::Borrowed("forward/1"));
    /// Files and folders: `agent send` and `agent recv`.
    pub const FILES: Self = Self(Cow::Borrowed("files/1"));
    /// Reachability: `agent ping`.
    pub const PING: Self = Self(Cow::Borrowed("ping/1"));

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Self::PIPE
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Protocol {
    type Err = ProtocolNameError;

    fn from_str(text: &str) -> Result<Self, ProtocolNameError> {
        let is_allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_/".contains(&byte);
        let is_valid = (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(is_allowed);
        is_valid.then(|| Self(Cow::Owned(text.to_owned()))).ok_or(ProtocolNameError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_lower_case() {
        for protocol in [Protocol::PIPE, Protocol::FORWARD, Protocol::FILES, Protocol::PING] {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        for text in ["", "Pipe/1", "pipe 1", "pipe/1\n", "pipë", &"a".repeat(33)] {
            assert_eq!(text.parse::<Protocol>(), Err(ProtocolNameError), "{text:?}");
        }
    }
}
