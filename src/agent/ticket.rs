//! Tickets: what one host needs to reach another, as one word of text.
//!
//! `agent:` and lower-case base32 (no padding) of: version (1 byte) · secret (16) · port (2, big-endian) · length of the
//! host (1) · host · tag · checksum (3, the low bytes of CRC-32 over all before). A ticket is a bearer credential and must be
//! handed over like a password; the server never sees its secret. Version 2 authenticates each call's messages; an agent of version 1
//! rejects it. Version 3 is version 2 for a server that is reached by TLS. Version 4 is for several servers: in place of port and host it has
//! their number (1), and for each one flags (1; bit 0 is TLS), port, length of the host, host.
//!
//! Version 5 is version 4 with the messaging account of the listener's user. After the servers it has: length of the user name (1) · user name ·
//! length of the account's server (1) · `HOST:PORT` of that server. The last is empty if it is the first server of the ticket.

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
/// The version of tickets with an account, and one server or several.
const VERSION_ACCOUNT: u8 = 5;
/// The flag of a server that is reached by TLS.
const FLAG_TLS: u8 = 1;
/// Most bytes of the servers of a ticket, so that its text stays within [`MAX_TEXT`]; further servers are left out.
const MAX_SERVER_BYTES: usize = 400;
const CHECKSUM_LEN: usize = 3;
const FIXED_LEN: usize = 1 + SECRET_LEN + 2 + 1;
/// The longest text that is parsed.
const MAX_TEXT: usize = 1536;
/// Longest name of a user, in bytes.
const MAX_USER: usize = 128;

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
    account: Option<TicketAccount>,
}

/// The messaging account of a listener's user, which gets messages while the listener is offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TicketAccount {
    /// The name of the user.
    pub(crate) user: String,
    /// `HOST:PORT` of its server.
    pub(crate) server: String,
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
        "the ticket has version {0}, this agent supports version {VERSION_ACCOUNT}: update the older agent"
    )]
    Version(u8),
    /// The host or the tag is empty or not printable ASCII, or the account has no valid name.
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
        Self { server, further: Vec::new(), tag: tag.into(), secret: Secret(secret), account: None }
    }

    /// Returns a ticket of the same listener with another secret.
    pub(super) fn with_secret(&self, secret: [u8; SECRET_LEN]) -> Self {
        Self { secret: Secret(secret), account: None, ..self.clone() }
    }

    /// Adds servers at which the listener registers when it cannot reach the first one.
    pub(super) fn with_further_servers(mut self, servers: impl IntoIterator<Item = ServerName>) -> Self {
        self.further.extend(servers.into_iter().take(MAX_SERVERS - 1));
        self
    }

    /// Returns all servers at which the listener may be registered.
    pub(crate) fn servers(&self) -> Vec<ServerName> {
        std::iter::once(&self.server).chain(&self.further).cloned().collect()
    }

    /// Names the account of the listener's user, if there is one. One that is too long for a ticket is left out.
    #[cfg_attr(
        not(any(test, all(feature = "cli", feature = "messaging-client"))),
        expect(dead_code, reason = "only the command line has accounts")
    )]
    pub(crate) fn with_account(self, account: Option<TicketAccount>) -> Self {
        Self { account: account.filter(TicketAccount::is_valid), ..self }
    }

    /// Returns the account of the listener's user, if the ticket names one.
    #[cfg_attr(
        not(any(test, all(feature = "cli", feature = "messaging-client"))),
        expect(dead_code, reason = "only the command line has accounts")
    )]
    pub(crate) fn account(&self) -> Option<&TicketAccount> {
        self.account.as_ref()
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
        if self.further.is_empty() && self.account.is_none() {
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
        let mut bytes = vec![if self.account.is_some() { VERSION_ACCOUNT } else { VERSION_SERVERS }];
        bytes.extend_from_slice(&self.secret.0);
        bytes.push(count);
        bytes.append(&mut servers);
        if let Some(account) = &self.account {
            let is_elsewhere = account.server != self.server.authority();
            push_text(&mut bytes, &account.user);
            push_text(&mut bytes, if is_elsewhere { &account.server } else { "" });
        }
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
            VERSION_SERVERS | VERSION_ACCOUNT => {
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
        let further = servers.split_off(1);
        let server = servers.pop().ok_or(TicketError::Names)?;
        let account = (version == VERSION_ACCOUNT).then(|| TicketAccount::parse(&mut rest, &server));
        let account = account.transpose()?;
        let tag = name(rest).ok_or(TicketError::Names)?;
        Ok(Self { further, account, ..Self::new(server, tag, *secret) })
    }
}

impl TicketAccount {
    fn parse(rest: &mut &[u8], ticket_server: &ServerName) -> Result<Self, TicketError> {
        let user = str::from_utf8(take_text(rest)?).map_err(|_| TicketError::Names)?.to_owned();
        let server = match take_text(rest)? {
            [] => ticket_server.authority(),
            server => name(server).ok_or(TicketError::Names)?,
        };
        Some(Self { user, server }).filter(Self::is_valid).ok_or(TicketError::Names)
    }

    fn is_valid(&self) -> bool {
        (1..=MAX_USER).contains(&self.user.len())
            && !self.user.chars().any(char::is_control)
            && (1..=usize::from(u8::MAX)).contains(&self.server.len())
            && is_name(&self.server)
    }
}

/// Appends a text after its length in one byte; what is longer is cut.
fn push_text(bytes: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    bytes.push(length);
    bytes.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

/// Takes what [`push_text`] has appended.
fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], TicketError> {
    let (length, after) = rest.split_first().ok_or(TicketError::Length)?;
    let (text, after) = after.split_at_checked(usize::from(*length)).ok_or(TicketError::Length)?;
    *rest = after;
    Ok(text)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

/// Appends port, length of the host and host.
fn push_server(bytes: &mut Vec<u8>, server: &ServerName) {
    bytes.extend_from_slice(&server.port.to_be_bytes());
    push_text(bytes, &server.host);
}

/// Takes what [`push_server`] has appended from the front of `bytes`.
fn take_server(bytes: &mut &[u8], tls: bool) -> Result<ServerName, TicketError> {
    let (port, rest) = bytes.split_first_chunk().ok_or(TicketError::Length)?;
    *bytes = rest;
    match (name(take_text(bytes)?), u16::from_be_bytes(*port)) {
        (Some(host), port) if port != 0 => Ok(ServerName { host, port, tls }),
        _ => Err(TicketError::Names),
    }
}

fn name(bytes: &[u8]) -> Option<String> {
    str::from_utf8(bytes).ok().filter(|text| is_name(text)).map(str::to_owned)
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
        assert_eq!("agent:a".repeat(300).parse::<Ticket>(), Err(TicketError::TooLong));
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

    fn bytes(ticket: &Ticket) -> Vec<u8> {
        let text = ticket.to_string().to_ascii_uppercase();
        BASE32_NOPAD.decode(&text.as_bytes()[PREFIX.len()..]).unwrap()
    }

    fn account(user: &str, server: &str) -> TicketAccount {
        TicketAccount { user: user.to_owned(), server: server.to_owned() }
    }

    #[test]
    fn only_a_ticket_for_tls_or_with_an_account_has_a_newer_version() {
        let plain = ticket();
        let server = "wss://turn.example".parse().unwrap();
        let with_tls = Ticket { server, ..plain.clone() };
        let alice = account("alice", "im.example:99");
        for (ticket, version) in [
            (plain.clone(), 2),
            (with_tls.clone(), 3),
            (plain.with_account(Some(alice.clone())), 5),
            (with_tls.clone().with_account(Some(alice.clone())), 5),
            (with_tls.clone().with_further_servers([with_tls.server]).with_account(Some(alice)), 5),
        ] {
            assert_eq!(bytes(&ticket)[0], version);
            assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }
    }

    #[test]
    fn the_server_of_an_account_is_written_only_if_it_is_another() {
        let same = ticket().with_account(Some(account("Zoë", "turn.example:3478")));
        let other = ticket().with_account(Some(account("Zoë", "turn.example:3479")));
        // The number of servers, the flags of one, and two lengths.
        assert_eq!(bytes(&same).len(), bytes(&ticket()).len() + 4 + "Zoë".len());
        assert_eq!(bytes(&other).len(), bytes(&same).len() + "turn.example:3479".len());
        let parsed: Ticket = same.to_string().parse().unwrap();
        assert_eq!(parsed.account(), Some(&account("Zoë", "turn.example:3478")));
    }

    #[test]
    fn an_account_without_a_valid_name_is_not_written_and_refused() {
        let long = "x".repeat(MAX_USER + 1);
        for (user, server) in [("", "h:1"), ("a\u{1b}", "h:1"), (&*long, "h:1"), ("a", ""), ("a", "h 1")] {
            let invalid = account(user, server);
            assert_eq!(ticket().with_account(Some(invalid.clone())), ticket(), "{invalid:?}");
            let text = Ticket { account: Some(invalid.clone()), ..ticket() }.to_string();
            let parsed = text.parse::<Ticket>();
            // An empty server is the ticket's.
            assert_eq!(parsed.err(), Some(TicketError::Names).filter(|_| !server.is_empty()), "{invalid:?}");
        }
        let longest = account(&long[1..], &"h".repeat(255));
        let host = format!("{}.example", "h".repeat(247));
        let server = ServerName { host, port: 65535, tls: true };
        let longest = Ticket::new(server, "t".repeat(60), [7; SECRET_LEN]).with_account(Some(longest));
        assert_eq!(format!("On the other machine run:\n    agent connect {longest}\n").parse(), Ok(longest));
    }

    #[test]
    fn an_account_that_is_cut_off_is_refused() {
        let whole = bytes(&ticket().with_account(Some(account("alice", "im.example:99"))));
        let names = FIXED_LEN + 2 + "turn.example".len();
        for length in names..names + 8 {
            let mut cut = whole[..length].to_vec();
            let sum = checksum(&cut);
            cut.extend_from_slice(&sum);
            let text = format!("{PREFIX}{}", BASE32_NOPAD.encode(&cut).to_ascii_lowercase());
            assert_eq!(text.parse::<Ticket>(), Err(TicketError::Length), "{length}");
        }
    }

    #[test]
    fn a_ticket_may_have_further_servers() {
        let names =
            ["wss://b.example:443", "[2001:db8::7]:99", "d.example"].map(|name| name.parse().unwrap());
        let several = ticket().with_further_servers(names.clone());
        assert_eq!(several.servers()[1..], names);
        let text = several.to_string();
        assert_eq!(text.parse(), Ok(several.clone()));
        assert_eq!(bytes(&several)[0], 4);
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
            account in proptest::option::of(("[a-zé@ ]{1,60}", "[a-z0-9.:-]{1,255}")),
        ) {
            let account = account.map(|(user, server)| TicketAccount { user, server });
            let ticket = Ticket::new(ServerName { host, port, tls }, tag, secret).with_account(account.clone());
            prop_assert_eq!(ticket.account(), account.as_ref());
            prop_assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            let _ = format!("agent:{text}").parse::<Ticket>();
            let _ = text.parse::<Ticket>();
        }
    }
}
