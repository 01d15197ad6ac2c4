//! The errors of the messaging commands of `agent`.

use crate::cli::agent::error::{Description, LATER, LOG, SERVER_TIMED_OUT, description};
use crate::messaging_client::{ClientError, Distrust, ErrorCode, RequestError};
use std::io;
use std::path::PathBuf;

/// Why a messaging command failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli::agent) enum MessagingError {
    /// With the account that was named, if one was.
    #[error("there is no account {}on this machine", .0.as_ref().map(|name| format!("{name} ")).unwrap_or_default())]
    NoAccount(Option<String>),
    #[error("{0} is no server")]
    Server(String),
    #[error("the ticket names no account to which a message could be left")]
    NoTicketAccount,
    #[error("the account of the ticket is at {server}, yours at {account}")]
    OtherServer { server: String, account: String },
    #[error("{what}")]
    Input { what: &'static str, hint: &'static str },
    #[error("the server has not confirmed the message within {0} s")]
    NotStored(u64),
    #[error("not delivered within {0} s")]
    NotDelivered(u64),
    #[error("{}: {source}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

const LOGIN: &str = "agent login SERVER USER     SERVER runs `ginnel serve` with `messaging.enabled = true`";
const NO_TICKET_ACCOUNT: &str = "leave out --message; or, on the other machine, `agent login` and then `agent listen`, whose ticket names the account";
const OTHER_SERVER: &str = "agent login SERVER USER     at the server of the ticket's account; or --account USER@SERVER for one that is there";
const LINK: &str = "if the account is yours: `agent devices request SERVER USER` here, and `agent devices add CODE` on a device of the account";
const TOO_LONG: &str =
    "send a shorter text: at most 64000 bytes; to four and more devices 180000 bytes divided by their number";
const ACCOUNT: &str = "--account USER@SERVER as `agent login` printed them, such as alice@ws://im.example:3478; without it the last one is used";
const TRUST: &str = "ask the other side for the fingerprint that `agent devices` shows there; if it is the new one: agent devices trust NAME FINGERPRINT";

impl MessagingError {
    pub(in crate::cli::agent) fn describe(&self) -> Description {
        match self {
            Self::NoAccount(None) | Self::Server(_) => description(2, "usage", "usage", LOGIN),
            Self::NoAccount(Some(_)) => description(2, "usage", "usage", ACCOUNT),
            Self::NoTicketAccount => description(2, "usage", "usage", NO_TICKET_ACCOUNT),
            Self::OtherServer { .. } => description(2, "usage", "usage", OTHER_SERVER),
            Self::Input { hint, .. } => description(2, "usage", "usage", hint),
            Self::NotStored(_) => description(
                6,
                "server",
                "timed_out",
                "it may be stored nevertheless: sent again it has another id, and may arrive twice",
            ),
            Self::NotDelivered(_) => description(
                6,
                "delivery",
                "timed_out",
                "it stays stored; `agent inbox` shows when it is delivered",
            ),
            Self::State { .. } => description(1, "local", "local", "another folder: --state DIR"),
            Self::Client(error) => describe_client(error),
            Self::Request(error) => describe_request(error),
        }
    }
}

fn describe_client(error: &ClientError) -> Description {
    match error {
        ClientError::Unreachable { source, .. } => describe_unreachable(source),
        ClientError::Refused { code, .. } => describe_code(*code),
        ClientError::Replaced => {
            description(4, "server", "replaced", "end the other `agent inbox` of this account")
        }
        ClientError::DeviceRemoved => description(4, "server", "device_removed", LINK),
        ClientError::Storage { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            description(1, "local", "busy", "wait until the other `agent` has ended")
        }
        ClientError::Storage { .. } => {
            description(1, "local", "local", "another folder: --state DIR, or move the account's folder away")
        }
        _ => description(1, "server", "protocol", "update this agent or the server"),
    }
}

fn describe_unreachable(error: &io::Error) -> Description {
    match error.kind() {
        io::ErrorKind::TimedOut => description(6, "server", "timed_out", SERVER_TIMED_OUT),
        io::ErrorKind::InvalidData if error.to_string().contains("not valid for name") => description(
            5,
            "server",
            "certificate",
            "use the name that the certificate is for; or ws://HOST without TLS: the network then sees who writes to whom",
        ),
        io::ErrorKind::InvalidData => description(
            5,
            "server",
            "certificate",
            "--ca FILE     the file contains the server's certificate; or ws://HOST without TLS: the network then sees who writes to whom",
        ),
        io::ErrorKind::Unsupported => description(
            5,
            "server",
            "not_enabled",
            "`messaging.enabled = true` in the server's configuration",
        ),
        _ => description(
            5,
            "server",
            "unreachable",
            "is the name right, `ginnel serve` running there, and TCP 3478 open?",
        ),
    }
}

fn describe_code(code: ErrorCode) -> Description {
    match code {
        ErrorCode::NotFound => description(3, "server", "not_found", "is the name right?"),
        ErrorCode::NameTaken => description(4, "server", "name_taken", LINK),
        ErrorCode::WrongCredentials => description(4, "server", "wrong_credentials", LINK),
        ErrorCode::TlsRequired => description(2, "usage", "tls_required", "wss://HOST instead of ws://HOST"),
        ErrorCode::RegistrationClosed => {
            description(4, "server", "registration_closed", "ask the server's operator")
        }
        ErrorCode::MailboxFull => {
            description(4, "server", "mailbox_full", "try again when the other side has read its messages")
        }
        ErrorCode::SenderShareFull => description(
            4,
            "server",
            "sender_share_full",
            "the other side must read your messages, or add you: agent contacts add YOUR-NAME",
        ),
        ErrorCode::StorageFull | ErrorCode::DiskFull => {
            description(4, "server", "storage_full", "the server's operator must make room; try again later")
        }
        ErrorCode::ContactsOnly => description(
            4,
            "server",
            "contacts_only",
            "the other side must add you: agent contacts add YOUR-NAME",
        ),
        ErrorCode::TooManyDevices => description(
            4,
            "server",
            "too_many_devices",
            "agent devices remove N     `agent devices` lists them",
        ),
        ErrorCode::ContactExists => {
            description(4, "server", "contact_exists", "agent contacts     lists them")
        }
        _ => description(4, "server", "refused", LATER),
    }
}

fn describe_request(error: &RequestError) -> Description {
    match error {
        RequestError::Refused { code, .. } => describe_code(*code),
        RequestError::Distrusted { source: Distrust::IdentityChanged { .. }, .. } => {
            description(4, "trust", "identity_changed", TRUST)
        }
        RequestError::Distrusted { .. } => description(
            4,
            "trust",
            "distrusted",
            "the server may be lying: ask the other side in another way",
        ),
        RequestError::NoDevice { .. } => {
            description(3, "server", "no_device", "the other side must run `agent login` on a device")
        }
        RequestError::NotEncrypted { .. } => {
            description(4, "trust", "not_encrypted", "leave out --encrypted-only to send it in plaintext")
        }
        RequestError::TooLong => description(2, "usage", "too_long", TOO_LONG),
        RequestError::Disconnected => description(7, "connection", "lost", "try again"),
        RequestError::NoIdentity => {
            description(4, "local", "no_identity", "run it on the device that registered the account")
        }
        _ => description(1, "local", "local", LOG),
    }
}
