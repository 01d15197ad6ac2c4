//! A listener's code as its user sees it.

use super::ShortCode;
use super::guesses::CodeState;
use tokio::sync::mpsc;

/// A code that a listener accepts: for one connection, for at most ten minutes, and for three attempts.
#[derive(Debug)]
pub struct OfferedCode {
    code: ShortCode,
    events: mpsc::Receiver<CodeEvent>,
}

/// What happens to a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeEvent {
    /// A connector has used wrong words, or something between the two sides interferes.
    WrongWords {
        /// How many attempts are left.
        left: u8,
    },
    /// The code is no longer valid.
    Ended(CodeEnd),
}

/// Why a code is no longer valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeEnd {
    /// A connection has used it.
    Used,
    /// It was tried too often with wrong words.
    Burnt,
    /// Its time is over.
    Expired,
    /// The server no longer knows its number, or the listener has offered another code or ended.
    Lost,
}

impl From<CodeState> for CodeEnd {
    fn from(state: CodeState) -> Self {
        match state {
            CodeState::Used => Self::Used,
            CodeState::Burnt => Self::Burnt,
            CodeState::Expired => Self::Expired,
            CodeState::Valid => Self::Lost,
        }
    }
}

impl OfferedCode {
    pub(in crate::agent) fn new(code: ShortCode, events: mpsc::Receiver<CodeEvent>) -> Self {
        Self { code, events }
    }

    /// Returns the code to tell the other side.
    #[must_use]
    pub fn code(&self) -> &ShortCode {
        &self.code
    }

    /// Waits for the next event; after the end of the code it is always [`CodeEnd::Lost`].
    pub async fn next_event(&mut self) -> CodeEvent {
        self.events.recv().await.unwrap_or(CodeEvent::Ended(CodeEnd::Lost))
    }

    /// Waits until the code is no longer valid.
    pub async fn ended(mut self) -> CodeEnd {
        loop {
            if let CodeEvent::Ended(end) = self.next_event().await {
                return end;
            }
        }
    }
}
