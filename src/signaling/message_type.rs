//! The type of a message: `t`.

/// The type of a message: `t` on the wire, negative in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// 1.
    Register,
    /// 2.
    Heartbeat,
    /// 3.
    List,
    /// 4.
    Call,
    /// 5.
    Challenge,
    /// 51.
    Notify,
    /// 52.
    Answered,
    /// 53.
    Status,
    /// 54.
    Trickle,
    /// 55.
    End,
    /// 60.
    Watch,
    /// 61.
    Locator,
    /// 62.
    Locate,
    /// 101.
    Open,
    /// 102.
    Punch,
    /// 103.
    Punched,
    /// A type that this version does not know; 0 for a type that cannot be read.
    Other(i64),
}

const MESSAGE_TYPES: [(i64, MessageType); 16] = [
    (1, MessageType::Register),
    (2, MessageType::Heartbeat),
    (3, MessageType::List),
    (4, MessageType::Call),
    (5, MessageType::Challenge),
    (51, MessageType::Notify),
    (52, MessageType::Answered),
    (53, MessageType::Status),
    (54, MessageType::Trickle),
    (55, MessageType::End),
    (60, MessageType::Watch),
    (61, MessageType::Locator),
    (62, MessageType::Locate),
    (101, MessageType::Open),
    (102, MessageType::Punch),
    (103, MessageType::Punched),
];

impl MessageType {
    /// Returns the number on the wire, without the sign of a response.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Other(number) => number,
            known => MESSAGE_TYPES.iter().find(|row| row.1 == known).map_or(0, |row| row.0),
        }
    }

    /// Returns the type of this number.
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        MESSAGE_TYPES.iter().find(|row| row.0 == number).map_or(Self::Other(number), |row| row.1)
    }

    /// Returns whether this is a type of request that this version knows.
    pub(super) fn is_request(self) -> bool {
        !matches!(self, Self::Other(_) | Self::Punched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_message_type_has_a_unique_number() {
        let numbers: HashSet<_> = MESSAGE_TYPES.iter().map(|row| row.0).collect();
        assert_eq!(numbers.len(), MESSAGE_TYPES.len());
        for (number, message_type) in MESSAGE_TYPES.into_iter().chain([(99, MessageType::Other(99))]) {
            assert_eq!(MessageType::from_number(number), message_type);
            assert_eq!(message_type.number(), number);
        }
    }
}
