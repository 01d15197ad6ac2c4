//! The errors of `agent`: exit codes, names in JSON events, and what to type.

use super::gateway_error::GatewayError;
use crate::agent::{
    CodeError, ConnectError, ConnectionError, NatType, PathAttempts, PathPolicy, ProxySettingsError, Refusal,
    RegistrationError, TicketError,
};
use std::error::Error as StdError;
use std::io;

/// Why a command cannot run as typed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error("no server given")]
    NoServer,
    #[error("no server given")]
    NoServerToTest,
    #[error("no code or ticket given")]
    NoTicket,
    #[error("a code or ticket is given twice")]
    TwoTickets,
    #[error("this is not a valid code")]
    Code(#[from] CodeError),
    #[error("no server given: a code does not name it")]
    NoCodeServer,
    #[error("a code is for one connection, so that a test would use it up")]
    CodeToPing,
    #[error("this is not a valid ticket")]
    Ticket(#[from] TicketError),
    #[error("this is a gateway token, not a ticket")]
    TokenAsTicket,
    #[error("{0} is not read any more")]
    FormerVariable(&'static str, &'static str),
    #[error("--ticket is now --gateway-token")]
    FormerTicketOption,
    #[cfg(not(feature = "forward"))]
    #[error("no gateway given")]
    NoGateway,
    #[error("a gateway token begins with gt_")]
    Token,
    #[error("no key given")]
    NoKey,
    #[error("the key is too short")]
    ShortKey,
    #[error("{variable} names no proxy")]
    Proxy { variable: &'static str, source: ProxySettingsError },
    #[error("there is no terminal to prompt on")]
    NoTerminal,
    #[error("interrupted")]
    Interrupted,
    #[error("cannot read {file} ({option})")]
    File { option: &'static str, file: String, source: io::Error },
}

impl UsageError {
    fn hint(&self) -> &'static str {
        match self {
            Self::NoServer => {
                "agent listen --server HOST[:PORT] [--key KEY]     HOST runs `ginnel serve`; `ginnel key` prints its key there"
            }
            Self::TwoTickets => "leave out one of them: the argument, --ticket-file, or --code-fd",
            Self::NoTicket => {
                "agent connect --server HOST[:PORT] CODE     `agent listen` on the other machine prints it"
            }
            Self::Code(_) => {
                "the code that `agent listen` printed on the other machine: a number and two words"
            }
            Self::CodeToPing => "agent listen --ticket     and the ticket in the place of the code",
            Self::NoCodeServer => {
                "agent connect --server HOST[:PORT] CODE     the same server as on the other machine"
            }
            Self::NoServerToTest => "agent doctor --server HOST[:PORT] [--key-file FILE]",
            Self::Ticket(_) => "copy the whole line that `agent listen` printed on the other machine",
            Self::TokenAsTicket => {
                "agent connect --gateway HOST --id N     with the token in AGENT_GATEWAY_TOKEN or --gateway-token-file"
            }
            Self::FormerVariable(..) => "AGENT_GATEWAY_TOKEN=gt_… agent connect --gateway HOST --id N",
            Self::FormerTicketOption => "agent connect --gateway HOST --id N --gateway-token gt_…",
            #[cfg(not(feature = "forward"))]
            Self::NoGateway => "agent share --gateway HOST --id N --to PORT",
            Self::Token => "a token that `ginnel gateway token` printed on the gateway",
            Self::NoKey | Self::ShortKey => {
                "agent share --key-file FILE …     the file contains the key that `ginnel key --gateway` prints on the gateway"
            }
            Self::Proxy { .. } => {
                "HTTPS_PROXY=http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT; NO_PROXY=HOST,… for exceptions"
            }
            Self::NoTerminal => {
                "--key-file FILE, or AGENT_KEY in the environment; for a password --password-file FILE"
            }
            Self::Interrupted => "the same command again",
            Self::File { option: "--key-file", .. } => {
                "--key-file FILE     the file contains the key that `ginnel key` prints on the server"
            }
            Self::File { option: "--code-fd", .. } => "agent connect --code-fd 3 3< FILE",
            Self::File { option: "--ticket-file", .. } => {
                "--ticket-file FILE     the file contains the ticket that `agent listen` printed on the other machine"
            }
            Self::File { option: "--gateway-token-file", .. } => {
                "--gateway-token-file FILE     the file contains a token that `ginnel gateway token` printed on the gateway"
            }
            Self::File { .. } => "--ca, --cert and --cert-key name PEM files",
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error("{error}")]
    Connect {
        #[source]
        error: ConnectError,
        /// The server that was used.
        server: String,
    },
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[cfg(feature = "forward")]
    #[error(transparent)]
    Forward(#[from] super::forward_error::ForwardCommandError),
    #[cfg(feature = "messaging-client")]
    #[error(transparent)]
    Messaging(#[from] super::messages::MessagingError),
    #[cfg(all(feature = "files", unix))]
    #[error(transparent)]
    Files(#[from] super::files::error::FilesError),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// How a kind of error appears to programs and users.
pub(super) struct Description {
    pub(super) exit_code: u8,
    /// Its `stage` in JSON events.
    pub(super) stage: &'static str,
    /// Its `code` in JSON events.
    pub(super) code: &'static str,
    pub(super) hint: &'static str,
}

/// Creates a [`Description`].
pub(super) const fn description(
    exit_code: u8,
    stage: &'static str,
    code: &'static str,
    hint: &'static str,
) -> Description {
    Description { exit_code, stage, code, hint }
}

/// The exit code of a peer that is offline or unknown.
pub(super) const OFFLINE: u8 = 3;
/// Hints of several commands.
pub(super) const LATER: &str = "try again later";
pub(super) const SERVER_TIMED_OUT: &str = "is the server up, and TCP 3478 open on the way to it?";
pub(super) const STANDARD_OUTPUT: &str = "a place that takes the output: agent … > FILE";
pub(super) const LOG: &str = "run it again with `--log debug`, which prints more";

impl CommandError {
    /// Returns the error of a registration or a call at `server`.
    pub(super) fn at(server: &str, error: impl Into<ConnectError>) -> Self {
        Self::Connect { error: error.into(), server: server.to_owned() }
    }

    /// Returns the error and its causes as one line.
    pub(super) fn message(&self) -> String {
        let mut message = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Some libraries repeat the cause in the text.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        // Reasons of the other side and of servers are foreign text.
        super::escape::line(&message)
    }

    /// Returns the exit code.
    pub(super) fn exit_code(&self) -> u8 {
        self.describe().exit_code
    }

    /// Returns what to type.
    pub(super) fn hint(&self) -> &'static str {
        self.describe().hint
    }

    /// Returns what was tried, if the message does not contain it.
    pub(super) fn tried(&self) -> Option<String> {
        match self {
            Self::Connect { error: ConnectError::NoPath(attempts), .. } => Some(list_attempts(attempts)),
            Self::Connect { error, server } => {
                Some(format!("server {server}")).filter(|_| !error.to_string().contains(server))
            }
            Self::Gateway(error) => Some(error.target.clone()),
            _ => None,
        }
    }

    pub(super) fn describe(&self) -> Description {
        match self {
            Self::Usage(UsageError::Interrupted) => description(130, "usage", "interrupted", LOG),
            Self::Usage(error) => description(2, "usage", "usage", error.hint()),
            Self::Connect { error, .. } => describe_connect(error),
            Self::Connection(error) => describe_connection(error),
            Self::Gateway(error) => error.describe(),
            #[cfg(feature = "forward")]
            Self::Forward(error) => error.describe(),
            #[cfg(feature = "messaging-client")]
            Self::Messaging(error) => error.describe(),
            #[cfg(all(feature = "files", unix))]
            Self::Files(error) => error.describe(),
            Self::Output(_) => description(1, "local", "local", STANDARD_OUTPUT),
        }
    }
}

fn describe_registration(error: &RegistrationError) -> Description {
    match error {
        RegistrationError::NoServer => description(2, "usage", "usage", UsageError::NoServer.hint()),
        RegistrationError::Unreachable { .. } => description(
            5,
            "server",
            "unreachable",
            "is the name right, `ginnel serve` running there, and TCP 3478 open? `--server HOST:PORT` names another",
        ),
        RegistrationError::TimedOut { .. } => description(6, "server", "timed_out", SERVER_TIMED_OUT),
        RegistrationError::KeyRejected => description(
            4,
            "signal",
            "refused",
            "--key-file FILE     the file contains the key that `ginnel key` prints on the server",
        ),
        RegistrationError::Replaced => description(
            4,
            "signal",
            "replaced",
            "only one listener uses a ticket at a time: use the newer one, or run `agent listen` again for a new ticket",
        ),
        RegistrationError::Revoked => description(
            4,
            "signal",
            "revoked",
            "ask the server's operator, or run `agent listen` again for a new ticket",
        ),
        RegistrationError::TagLost => {
            description(4, "signal", "refused", "run `agent listen` again for a new ticket")
        }
        RegistrationError::Refused(_) => description(4, "signal", "refused", LATER),
    }
}

fn describe_connect(error: &ConnectError) -> Description {
    const SAME_LISTENER: &str =
        "use the ticket that this very `agent listen` printed; it is valid only while that runs";
    match error {
        ConnectError::Registration(error) => describe_registration(error),
        ConnectError::Offline => description(
            OFFLINE,
            "signal",
            "offline",
            "run `agent listen` on the other machine and use the ticket that it prints; --message TEXT leaves its user a message",
        ),
        ConnectError::Refused(Refusal::Ticket) => description(4, "signal", "refused", SAME_LISTENER),
        ConnectError::Refused(Refusal::Busy) => description(
            4,
            "signal",
            "refused",
            "one `agent listen` accepts one connection: run it again on the other machine and use its new ticket",
        ),
        ConnectError::Refused(Refusal::UnknownCode) => description(OFFLINE, "code", "unknown_code", NEW_CODE),
        ConnectError::Refused(Refusal::SpentCode) => description(4, "code", "spent_code", NEW_CODE),
        ConnectError::Refused(Refusal::WrongCode) => description(
            4,
            "code",
            "wrong_code",
            "type the code that `agent listen` shows now; three attempts with wrong words make it invalid",
        ),
        ConnectError::Refused(_) => description(4, "signal", "refused", LATER),
        ConnectError::Ended(_) => description(7, "connection", "peer_ended", PEER_ENDED),
        ConnectError::NoPath(attempts) => description(5, "path", "no_path", no_path_hint(attempts)),
        ConnectError::HandshakeTimedOut => description(6, "handshake", "timed_out", "try again"),
        ConnectError::Handshake(_) => description(4, "handshake", "handshake", SAME_LISTENER),
        _ => description(1, "local", "local", LOG),
    }
}

const NEW_CODE: &str =
    "use the code that `agent listen` on the other machine shows now, with the same --server";
pub(super) const PEER_ENDED: &str = "read what the other side prints, if it still runs, and start both again";

fn describe_connection(error: &ConnectionError) -> Description {
    match error {
        ConnectionError::RelayLost(_) => description(
            5,
            "connection",
            "relay_lost",
            "check that the server runs again; then run `agent listen` and `agent connect` with a new ticket",
        ),
        ConnectionError::Revoked => description(4, "connection", "revoked", LATER),
        ConnectionError::Closed => description(1, "local", "local", LOG),
        _ => description(7, "connection", "peer_ended", PEER_ENDED),
    }
}

/// Returns what may lead to a path, after these attempts.
fn no_path_hint(attempts: &PathAttempts) -> &'static str {
    match (attempts.policy, attempts.own_relay, attempts.their_relay) {
        (PathPolicy::DirectOnly, ..) if !attempts.direct => {
            "leave out --no-relay here or --relay-only on the other side: together they allow no path"
        }
        (PathPolicy::DirectOnly, ..) => "leave out --no-relay: the server's relay needs no direct path",
        (_, false, false) => {
            "give one side the server's relay: --key-file FILE with the key that `ginnel key` prints on the server"
        }
        (_, true, true) => {
            "is the server's port 3478 open for UDP or TCP on both sides, and may its relay send to itself (`turn.allow_peers`)?"
        }
        (_, true, false) => {
            "give the other side the key too (--key-file FILE): this side's relay could not reach it"
        }
        (_, false, true) => {
            "give this side the key too (--key-file FILE): the other side's relay could not reach it"
        }
    }
}

fn list_attempts(attempts: &PathAttempts) -> String {
    let nat = |nat: Option<NatType>| match nat {
        Some(NatType::Open) => "open",
        Some(NatType::Easy) => "one port for every peer",
        Some(NatType::Hard) => "changes ports",
        Some(NatType::Blocked) => "UDP blocked",
        None => "unknown",
    };
    let direct = format!("direct (NAT here: {}, there: {})", nat(attempts.own_nat), nat(attempts.their_nat));
    let relay = match (attempts.own_relay, attempts.their_relay) {
        (true, true) => "the relay of both sides",
        (true, false) => "the relay of this side",
        _ => "the relay of the other side",
    };
    let list = [
        attempts.direct.then_some(direct.as_str()),
        attempts.relay().then_some(relay),
        attempts.gateway.then_some("the gateway"),
    ];
    let list: Vec<&str> = list.into_iter().flatten().collect();
    if list.is_empty() { "nothing".to_owned() } else { list.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_exit_code() {
        let unreachable = |server: &str| RegistrationError::Unreachable {
            server: server.to_owned(),
            source: Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)),
        };
        let at = |error: ConnectError| CommandError::at("h:1", error);
        let table: [(CommandError, u8); 15] = [
            (UsageError::NoTicket.into(), 2),
            (UsageError::Interrupted.into(), 130),
            (at(ConnectError::Offline), 3),
            (at(ConnectError::Refused(Refusal::Busy)), 4),
            (at(ConnectError::Refused(Refusal::WrongCode)), 4),
            (at(ConnectError::Refused(Refusal::UnknownCode)), 3),
            (at(ConnectError::Handshake("no".into())), 4),
            (at(RegistrationError::Replaced.into()), 4),
            (at(RegistrationError::Revoked.into()), 4),
            (at(ConnectError::NoPath(PathAttempts::default())), 5),
            (at(unreachable("h:1").into()), 5),
            (ConnectionError::RelayLost(String::new()).into(), 5),
            (at(RegistrationError::TimedOut { server: String::new() }.into()), 6),
            (ConnectionError::PeerClosed(String::new()).into(), 7),
            (CommandError::Output(io::ErrorKind::BrokenPipe.into()), 1),
        ];
        for (error, code) in table {
            assert_eq!(error.exit_code(), code, "{error}");
        }
        let error = at(unreachable("h:1").into());
        assert_eq!(error.message(), "cannot reach the server h:1: connection refused");
        assert_eq!(error.tried(), None);
        assert_eq!(at(ConnectError::Offline).tried().as_deref(), Some("server h:1"));
    }

    #[test]
    fn only_actual_attempts_are_listed() {
        let attempts = PathAttempts::default();
        assert_eq!(list_attempts(&attempts), "nothing");
        let mut direct = attempts;
        direct.direct = true;
        direct.policy = PathPolicy::DirectOnly;
        assert_eq!(list_attempts(&direct), "direct (NAT here: unknown, there: unknown)");
        let mut all = direct;
        (all.own_relay, all.gateway, all.own_nat) = (true, true, Some(NatType::Hard));
        assert_eq!(
            list_attempts(&all),
            "direct (NAT here: changes ports, there: unknown), the relay of this side, the gateway"
        );
        assert_eq!(
            list_attempts(&PathAttempts { their_relay: true, ..attempts }),
            "the relay of the other side"
        );
    }
}
