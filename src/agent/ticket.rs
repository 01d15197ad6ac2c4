//! Tickets: what one host needs to reach another, as one word of text.
//!
//! `agent:` and lower-case base32 (no padding) of: version (1 byte) · secret (16) · port (2, big-endian) · length of the
//! host (1) · host · tag · checksum (3, the low bytes of CRC-32 over all before). A ticket is a bearer credential and must be
//! handed over like a password; the server never sees its secret. Version 2 authenticates each call's messages; an agent of version 1
//! rejects it. Version 3 is version 2 for a server that is reached by TLS. Version 4 is for several servers: in place of port and host it has
//! their number (1), and for each one flags (1; bit 0 is TLS), port, length of the host, host.

use super::config::ServerName;
use super::keys::{SECRET_LEN, Secret};
use super::servers::MAX_SERVERS;
use data_encoding::{BASE32_NOPAD, DecodeError};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "agent:";
const VERSION: u8 = 2;
/// The version of tickets whose server is reached by TLS.
const VERSION_TLS: u8 = 3;
/// The version of tickets with several servers.
const VERSION_SERVERS: u8 = 4;
/// The flag of a server that is reached by TLS.
const FLAG_TLS: u8 = 1;
/// Most bytes of the servers of a ticket, so that its text stays within [`MAX_TEXT`]; further servers are left out.
const MAX_SERVER_BYTES: usize = 400;
const CHECKSUM_LEN: usize = 3;
const FIXED_LEN: usize = 1 + SECRET_LEN + 2 + 1;
/// The longest text that is parsed.
const MAX_TEXT: usize = 1024;

/// The server at which a listener is registered, its tag there, and the secret that both sides share.
///
/// Whoever holds a ticket may connect. `Debug` does not print the secret; `Display` prints the whole ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(super) server: ServerName,
    /// Where the listener registers when it cannot reach that server.
    pub(super) further: Vec<ServerName>,
    pub(super) tag: String,
    pub(super) secret: Secret,
}

/// Why a text is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not begin with `agent:`.
    #[error("a ticket begins with `agent:`")]
    Prefix,
    /// It is longer than any ticket.
    #[error("a ticket is at most {MAX_TEXT} characters long")]
    TooLong,
    /// A character that is not in the base32 alphabet.
    #[error("after `agent:` a ticket has only letters a-z and digits 2-7; character {position} is neither")]
    Character {
        /// Its position in the ticket, from 1.
        position: usize,
    },
    /// It is too short, or a part is missing.
    #[error("the ticket is incomplete")]
    Length,
    /// The checksum does not match: a character is wrong or missing.
    #[error("the ticket has a typing error: its checksum does not match")]
    Checksum,
    /// Made by an agent with another version of the protocol.
    #[error(
        "the ticket has version {0}, this agent supports version {VERSION_SERVERS}: update the older agent"
    )]
    Version(u8),
    /// The host or the tag is empty or not printable ASCII.
    #[error("the ticket names no server or no listener")]
    Names,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.head();
        bytes.extend_from_slice(self.tag.as_bytes());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Finds the ticket in the line that it was printed in, also in upper case and if it is broken into several words or lines.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        if text.len() > MAX_TEXT {
            return Err(TicketError::TooLong);
        }
        let text = text.to_ascii_lowercase();
        let (_, rest) = text.split_once(PREFIX).ok_or(TicketError::Prefix)?;
        let mut joined = String::new();
        let mut whole = Err(TicketError::Length);
        // The ticket may be followed by other words of the line.
        for word in rest.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')) {
            joined.push_str(word);
            match (Self::parse_body(&joined), &whole) {
                (Ok(ticket), _) => return Ok(ticket),
                (Err(error), Err(TicketError::Length | TicketError::Checksum)) => whole = Err(error),
                (Err(_), _) => {}
            }
        }
        whole
    }
}

impl Ticket {
    /// Returns the ticket of a listener that is registered as `tag` and shares `secret`.
    #[must_use]
    pub fn new(server: ServerName, tag: impl Into<String>, secret: [u8; 16]) -> Self {
        Self { server, further: Vec::new(), tag: tag.into(), secret: Secret(secret) }
    }

    /// Adds servers at which the listener registers when it cannot reach the first one.
    pub(super) fn with_further_servers(mut self, servers: impl IntoIterator<Item = ServerName>) -> Self {
        self.further.extend(servers.into_iter().take(MAX_SERVERS - 1));
        self
    }

    /// Returns all servers at which the listener may be registered.
    pub(super) fn servers(&self) -> Vec<ServerName> {
        std::iter::once(&self.server).chain(&self.further).cloned().collect()
    }

    /// Returns the server at which the listener is registered.
    #[must_use]
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// Returns the tag of the listener.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Everything before the tag.
    fn head(&self) -> Vec<u8> {
        if self.further.is_empty() {
            let mut bytes = vec![if self.server.tls { VERSION_TLS } else { VERSION }];
            bytes.extend_from_slice(&self.secret.0);
            push_server(&mut bytes, &self.server);
            return bytes;
        }
        let (mut count, mut servers) = (0, Vec::new());
        for server in self.servers() {
            let mut bytes = vec![if server.tls { FLAG_TLS } else { 0 }];
            push_server(&mut bytes, &server);
            if count == 0 || servers.len() + bytes.len() <= MAX_SERVER_BYTES {
                count += 1;
                servers.append(&mut bytes);
            }
        }
        let mut bytes = vec![VERSION_SERVERS];
        bytes.extend_from_slice(&self.secret.0);
        bytes.push(count);
        bytes.append(&mut servers);
        bytes
    }

    /// Parses what follows the prefix.
    fn parse_body(body: &str) -> Result<Self, TicketError> {
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(explain)?;
        if bytes.len() < FIXED_LEN + CHECKSUM_LEN {
            return Err(TicketError::Length);
        }
        let (bytes, sum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        if checksum(bytes) != sum {
            return Err(TicketError::Checksum);
        }
        let (version, rest) = (bytes[0], &bytes[1..]);
        let (secret, mut rest) = rest.split_first_chunk::<SECRET_LEN>().ok_or(TicketError::Length)?;
        let mut servers = Vec::new();
        match version {
            VERSION | VERSION_TLS => servers.push(take_server(&mut rest, version == VERSION_TLS)?),
            VERSION_SERVERS => {
                let (count, after) = rest.split_first().ok_or(TicketError::Length)?;
                rest = after;
                if !(1..=MAX_SERVERS).contains(&usize::from(*count)) {
                    return Err(TicketError::Names);
                }
                for _ in 0..*count {
                    let (flags, after) = rest.split_first().ok_or(TicketError::Length)?;
                    rest = after;
                    servers.push(take_server(&mut rest, flags & FLAG_TLS != 0)?);
                }
            }
            other => return Err(TicketError::Version(other)),
        }
        let tag = name(rest).ok_or(TicketError::Names)?;
        let further = servers.split_off(1);
        let server = servers.pop().ok_or(TicketError::Names)?;
        Ok(Self { further, ..Self::new(server, tag, *secret) })
    }
}

/// Appends port, length of the host and host.
fn push_server(bytes: &mut Vec<u8>, server: &ServerName) {
    let host = server.host.as_bytes();
    let host = &host[..host.len().min(255)];
    bytes.extend_from_slice(&server.port.to_be_bytes());
    bytes.push(u8::try_from(host.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(host);
}

/// Takes what [`push_server`] has appended from the front of `bytes`.
fn take_server(bytes: &mut &[u8], tls: bool) -> Result<ServerName, TicketError> {
    let ([high, low, length], rest) = bytes.split_first_chunk().ok_or(TicketError::Length)?;
    let (host, rest) = rest.split_at_checked((*length).into()).ok_or(TicketError::Length)?;
    *bytes = rest;
    let port = u16::from_be_bytes([*high, *low]);
    match name(host) {
        Some(host) if port != 0 => Ok(ServerName { host, port, tls }),
        _ => Err(TicketError::Names),
    }
}

fn name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty());
    text.filter(|text| text.chars().all(|c| c.is_ascii_graphic())).map(str::to_owned)
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
        Ticket::new("turn.example".parse().unwrap(), "k7q3mmzyrv2a", [7; SECRET_LEN])
    }

    #[test]
    fn a_formatted_ticket_can_be_parsed() {
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
    fn each_defect_of_a_ticket_has_its_error() {
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
    fn only_a_ticket_for_tls_has_the_newer_version() {
        let version = |text: &str| BASE32_NOPAD.decode(text[PREFIX.len()..].to_ascii_uppercase().as_bytes());
        let plain = ticket();
        let server = "wss://turn.example".parse().unwrap();
        let with_tls = Ticket { server, ..plain.clone() };
        assert_eq!(version(&plain.to_string()).unwrap()[0], 2);
        assert_eq!(version(&with_tls.to_string()).unwrap()[0], 3);
        assert_eq!(with_tls.to_string().parse(), Ok(with_tls));
    }

    #[test]
    fn a_ticket_may_have_further_servers() {
        let names =
            ["wss://b.example:443", "[2001:db8::7]:99", "d.example"].map(|name| name.parse().unwrap());
        let several = ticket().with_further_servers(names.clone());
        assert_eq!(several.servers()[1..], names);
        let text = several.to_string();
        assert_eq!(text.parse(), Ok(several.clone()));
        assert_eq!(BASE32_NOPAD.decode(text[PREFIX.len()..].to_ascii_uppercase().as_bytes()).unwrap()[0], 4);
        let capped = ticket().with_further_servers(names.iter().chain(&names).cloned());
        assert_eq!(capped, several);
    }

    #[test]
    fn servers_that_do_not_fit_are_left_out() {
        let long = |index: u16| ServerName { host: "a".repeat(180), port: index, tls: false };
        let ticket = ticket().with_further_servers([long(1), long(2), long(3)]);
        let text = ticket.to_string();
        assert!(text.len() <= MAX_TEXT, "{}", text.len());
        assert_eq!(text.parse::<Ticket>().unwrap().servers(), ticket.servers()[..3]);
    }

    #[test]
    fn debug_output_hides_the_secret() {
        assert!(!format!("{:?}", ticket()).contains("7, 7"));
    }

    proptest! {
        #[test]
        fn every_ticket_round_trips(
            host in "[a-z0-9.:-]{1,255}", port in 1_u16.., tag in "[a-z0-9]{1,60}", tls: bool, secret: [u8; SECRET_LEN],
        ) {
            let ticket = Ticket::new(ServerName { host, port, tls }, tag, secret);
            prop_assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            let _ = format!("agent:{text}").parse::<Ticket>();
            let _ = text.parse::<Ticket>();
        }
    }
}
