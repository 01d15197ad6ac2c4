//! The error codes: `code` of a failure (S0-38, S0-A13).

/// The code of a failure (S0-A13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 201.
    Malformed,
    /// 202: the tag is unknown, expired or bound to another source; register again.
    UnknownTag,
    /// 203.
    NotOnline,
    /// 204.
    NotAllowed,
    /// 205: bad or expired token or nonce.
    BadToken,
    /// 206.
    TooMany,
    /// 207.
    NoAnswer,
    /// 208.
    Unsupported,
    /// 209.
    Internal,
    /// 210: a newer session has the tag; do not reconnect with this one.
    Replaced,
    /// 211: an operator has revoked the tag; do not reconnect with it.
    Revoked,
    /// A code that this version does not know.
    Other(i64),
}

const CODES: [(i64, ErrorCode, &str); 11] = [
    (201, ErrorCode::Malformed, "malformed"),
    (202, ErrorCode::UnknownTag, "unknown tag, register again"),
    (203, ErrorCode::NotOnline, "callee not online"),
    (204, ErrorCode::NotAllowed, "not allowed"),
    (205, ErrorCode::BadToken, "bad or expired token"),
    (206, ErrorCode::TooMany, "too many, try later"),
    (207, ErrorCode::NoAnswer, "callee did not answer"),
    (208, ErrorCode::Unsupported, "unsupported t"),
    (209, ErrorCode::Internal, "internal error"),
    (210, ErrorCode::Replaced, "replaced by a newer session"),
    (211, ErrorCode::Revoked, "revoked"),
];

impl ErrorCode {
    /// All codes of this version.
    pub const KNOWN: [Self; CODES.len()] = {
        let mut known = [Self::Internal; CODES.len()];
        let mut index = 0;
        while index < CODES.len() {
            known[index] = CODES[index].1;
            index += 1;
        }
        known
    };

    /// Returns the number on the wire.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Other(number) => number,
            known => CODES.iter().find(|row| row.1 == known).map_or(209, |row| row.0),
        }
    }

    /// Returns the text of the code (S0-39).
    #[must_use]
    pub fn text(self) -> &'static str {
        CODES.iter().find(|row| row.1 == self).map_or("failed", |row| row.2)
    }

    pub(super) fn from_number(number: i64) -> Self {
        CODES.iter().find(|row| row.0 == number).map_or(Self::Other(number), |row| row.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_error_code_has_a_unique_number_and_text() {
        // S0-39, S0-A13.
        assert!(CODES.iter().all(|row| (201..300).contains(&row.0)));
        let codes: HashSet<_> = CODES.iter().map(|row| row.1).collect();
        let numbers: HashSet<_> = codes.iter().map(|code| code.number()).collect();
        let texts: HashSet<_> = codes.iter().map(|code| code.text()).collect();
        assert_eq!([codes.len(), numbers.len(), texts.len()], [CODES.len(); 3]);
        for code in codes.into_iter().chain([ErrorCode::Other(299)]) {
            assert_eq!(ErrorCode::from_number(code.number()), code);
        }
    }
}
