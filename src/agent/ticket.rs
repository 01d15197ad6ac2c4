//! Tickets: everything one machine must be told to reach another, as one word of text.
//!
//! `agent:` and lower-case base32 (no padding) of: version (1 byte) · secret (16) · port (2, big-endian) · length of the
//! host (1) · host · tag · checksum (3, the low bytes of CRC-32 over all before). Whoever holds a ticket may connect, so it is
//! to be handed over like a password; the server never sees the secret in it. Version 2 stands for handshakes whose messages are bound to
//! their call: agents that know only version 1 read no ticket of this one.

use data_encoding::{BASE32_NOPAD, DecodeError};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "agent:";
const VERSION: u8 = 2;
const CHECKSUM_LEN: usize = 3;
const FIXED_LEN: usize = 1 + SECRET_LEN + 2 + 1;
/// The longest ticket text that is looked at.
const MAX_TEXT: usize = 1024;
/// Bytes of a ticket's secret (128 bits).
pub(super) const SECRET_LEN: usize = 16;

/// The secret two agents share by a ticket; never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; SECRET_LEN]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a peer is to be found and how to prove that one was invited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Host name or address of the signalling server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The listener's tag on that server.
    pub tag: String,
    /// What both sides derive their keys from.
    pub secret: Secret,
}

/// Why a text is not a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not begin with `agent:`.
    #[error("a ticket begins with `agent:`")]
    Prefix,
    /// It is far longer than a ticket can be.
    #[error("a ticket is at most {MAX_TEXT} characters long")]
    TooLong,
    /// A character that base32 does not have.
    #[error(
        "a ticket has only the letters a-z and the digits 2-7 behind `agent:`; character {position} is something else"
    )]
    Character {
        /// Counted from 1, over the whole text.
        position: usize,
    },
    /// It ends too early, or was cut or joined somewhere.
    #[error("the ticket is not complete")]
    Length,
    /// The checksum does not match: a character was mistyped or lost.
    #[error("the ticket has a typing error (its checksum does not match)")]
    Checksum,
    /// Made by a newer or older agent.
    #[error(
        "the ticket is of version {0}, this agent knows version {VERSION}: update agent on the machine that has the older one"
    )]
    Version(u8),
    /// Host or tag are not text, or empty.
    #[error("the ticket names no server or no peer")]
    Names,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host.as_bytes()[..self.host.len().min(255)];
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.port.to_be_bytes());
        bytes.push(u8::try_from(host.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(host);
        bytes.extend_from_slice(self.tag.as_bytes());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Takes the ticket out of the line that it was printed in, in upper case too, and where it was broken into several words or lines.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        if text.len() > MAX_TEXT {
            return Err(TicketError::TooLong);
        }
        let text = text.to_ascii_lowercase();
        let (_, rest) = text.split_once(PREFIX).ok_or(TicketError::Prefix)?;
        let mut joined = String::new();
        let mut whole = Err(TicketError::Length);
        // What stands behind the ticket in the line may be another word.
        for word in rest.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')) {
            joined.push_str(word);
            match (Self::read(&joined), &whole) {
                (Ok(ticket), _) => return Ok(ticket),
                (Err(error), Err(TicketError::Length | TicketError::Checksum)) => whole = Err(error),
                (Err(_), _) => {}
            }
        }
        whole
    }
}

impl Ticket {
    /// Reads what follows the prefix.
    fn read(body: &str) -> Result<Self, TicketError> {
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(explain)?;
        if bytes.len() < FIXED_LEN + CHECKSUM_LEN {
            return Err(TicketError::Length);
        }
        let (bytes, sum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        if checksum(bytes) != sum {
            return Err(TicketError::Checksum);
        }
        if bytes[0] != VERSION {
            return Err(TicketError::Version(bytes[0]));
        }
        let (fixed, names) = bytes.split_at(FIXED_LEN);
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&fixed[1..=SECRET_LEN]);
        let port = u16::from_be_bytes([fixed[FIXED_LEN - 3], fixed[FIXED_LEN - 2]]);
        let (host, tag) =
            names.split_at_checked(usize::from(fixed[FIXED_LEN - 1])).ok_or(TicketError::Length)?;
        let name = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty());
            text.filter(|text| text.chars().all(|c| c.is_ascii_graphic())).map(str::to_owned)
        };
        match (name(host), name(tag)) {
            (Some(host), Some(tag)) if port != 0 => Ok(Self { host, port, tag, secret: Secret(secret) }),
            _ => Err(TicketError::Names),
        }
    }
}

fn explain(error: DecodeError) -> TicketError {
    match error.kind {
        data_encoding::DecodeKind::Symbol => {
            TicketError::Character { position: PREFIX.len() + error.position + 1 }
        }
        _ => TicketError::Length,
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let [_, low @ ..] = crc32fast::hash(bytes).to_be_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket() -> Ticket {
        Ticket {
            host: "turn.example".into(),
            port: 3478,
            tag: "k7q3mmzyrv2a".into(),
            secret: Secret([7; SECRET_LEN]),
        }
    }

    #[test]
    fn a_ticket_survives_being_written_and_read() {
        let text = ticket().to_string();
        assert!(text.starts_with("agent:"), "{text}");
        assert!(
            text["agent:".len()..].chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
            "{text}"
        );
        assert_eq!(text.parse(), Ok(ticket()));
    }

    #[test]
    fn a_pasted_ticket_is_taken_as_it_was_copied() {
        let text = ticket().to_string();
        let (left, right) = text.split_at(30);
        for pasted in [
            format!("  {text}\n"),
            format!("agent connect {text}"),
            format!("    agent connect {text} --relay-only\r\n"),
            format!("On the other machine run:\n    agent connect {text}\n"),
            format!("{left}\n{right}"),
            format!("agent connect {left} {right}\n"),
            format!("'{text}'"),
            text.to_uppercase(),
            format!("AGENT CONNECT {}", text.to_uppercase()),
        ] {
            assert_eq!(pasted.parse(), Ok(ticket()), "{pasted}");
        }
    }

    #[test]
    fn a_wrong_text_is_told_what_is_wrong_with_it() {
        let text = ticket().to_string();
        assert_eq!("7-crater-violin".parse::<Ticket>(), Err(TicketError::Prefix));
        assert_eq!("agent:".parse::<Ticket>(), Err(TicketError::Length));
        assert_eq!("agent:ab1c".parse::<Ticket>(), Err(TicketError::Character { position: 9 }));
        assert_eq!("agent:a".repeat(200).parse::<Ticket>(), Err(TicketError::TooLong));
        let flipped = text.replacen(&text[20..21], if &text[20..21] == "a" { "b" } else { "a" }, 1);
        assert_eq!(flipped.parse::<Ticket>(), Err(TicketError::Checksum));
        let cut = text[..text.len() - 8].parse::<Ticket>();
        assert!(matches!(cut, Err(TicketError::Checksum | TicketError::Length)), "{cut:?}");
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = vec![9; FIXED_LEN + 4];
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let text = format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase());
        assert_eq!(text.parse::<Ticket>(), Err(TicketError::Version(9)));
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        assert!(!format!("{:?}", ticket()).contains("7, 7"));
    }

    proptest! {
        #[test]
        fn every_ticket_round_trips(
            host in "[a-z0-9.:-]{1,255}", port in 1_u16.., tag in "[a-z0-9]{1,60}", secret: [u8; SECRET_LEN],
        ) {
            let ticket = Ticket { host, port, tag, secret: Secret(secret) };
            prop_assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,80}") {
            let _ = format!("agent:{text}").parse::<Ticket>();
            let _ = text.parse::<Ticket>();
        }
    }
}
