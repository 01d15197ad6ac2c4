//! The errors of `agent share`, `agent forward` and `agent socks`.

use super::error::{Description, PEER_ENDED, description};
use crate::forwarding::policy::PolicyError;
use crate::forwarding::session::OpenError;
use crate::forwarding::wire::{RefusalCode, Transport};
use std::io;

/// Why one of these commands failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardCommandError {
    #[error("\"{0}\" is no forwarding")]
    Syntax(String),
    #[error("\"{0}\" is no reverse forwarding")]
    ReverseSyntax(String),
    #[error("\"{0}\" is no address of a SOCKS server")]
    SocksSyntax(String),
    #[error("nothing to forward")]
    NothingForwarded,
    #[error("nothing to share")]
    NothingShared,
    #[error("{0} is followed by no service")]
    Service(String),
    #[error("--name {0} has no service")]
    NameWithoutService(String),
    #[error("--allow-net has no effect without `any`")]
    NetworkWithoutAny,
    #[error("\"{0}\" is no port, range or ADDRESS:PORT")]
    Ports(String),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("{target} is a {transport} service")]
    OtherTransport { target: String, transport: Transport },
    #[error("cannot listen at {address}")]
    Listen { address: String, source: io::Error },
    #[error("the other side refuses {target}")]
    Refused { target: String, source: OpenError },
}

impl ForwardCommandError {
    pub(super) fn describe(&self) -> Description {
        match self {
            Self::Listen { source, .. } => description(1, "local", "local", listen_hint(source)),
            Self::Refused { source: OpenError::Refused(refusal), .. } => describe_refusal(refusal.code),
            Self::Refused { .. } => description(7, "connection", "peer_ended", PEER_ENDED),
            error => description(2, "usage", "usage", usage_hint(error)),
        }
    }
}

fn usage_hint(error: &ForwardCommandError) -> &'static str {
    use ForwardCommandError as E;
    match error {
        E::ReverseSyntax(_) => {
            "agent forward -R [BIND:]PORT:HOST:PORT     PORT there is connected to HOST:PORT here"
        }
        E::SocksSyntax(_) => "agent socks [BIND:]PORT     such as 1080",
        E::NothingShared | E::Service(_) => {
            "agent share tcp PORT, tcp HOST:PORT, udp PORT, unix PATH or any     several one after the other; --name NAME for each"
        }
        E::NameWithoutService(_) | E::Policy(PolicyError::Name(_) | PolicyError::DuplicateName(_)) => {
            "one --name NAME for each service, in their order: letters, digits, `-`, `_` and `.`"
        }
        E::Policy(PolicyError::Path(_)) => "agent share unix /ABSOLUTE/PATH",
        E::Policy(PolicyError::TooMany) => "a second `agent share` for the others",
        E::NetworkWithoutAny => "agent share any --allow-net 192.168.1.0/24",
        E::Ports(_) => "--allow-reverse=8080, --allow-reverse=8000-8999 or --allow-reverse=0.0.0.0:8080",
        E::OtherTransport { transport: Transport::Udp, .. } => {
            "agent forward PORT:NAME/udp     the suffix says that datagrams are forwarded"
        }
        E::OtherTransport { .. } => "agent forward PORT:NAME     without /udp",
        _ => {
            "agent forward [BIND:]PORT:TARGET[/udp] or /PATH:TARGET     TARGET is a name that `agent share` printed, HOST:PORT or /PATH; -R for the reverse"
        }
    }
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another port or path before the first colon; `ss -lntup` lists who has this one"
        }
        io::ErrorKind::PermissionDenied => "a port above 1023, or a path in a folder that you may write to",
        io::ErrorKind::AddrNotAvailable => "an address of this host before the port, or none for loopback",
        _ => "another port or path before the first colon",
    }
}

fn describe_refusal(code: RefusalCode) -> Description {
    match code {
        RefusalCode::NoSuchService => description(
            4,
            "forward",
            "no_such_service",
            "agent forward PORT:NAME     with a name that `agent share` prints on the other machine",
        ),
        RefusalCode::NotPermitted => description(
            4,
            "forward",
            "not_permitted",
            "on the other machine: agent share tcp HOST:PORT, or --allow-reverse for -R; or forward a name that it shares",
        ),
        RefusalCode::AddressInUse => description(
            4,
            "forward",
            "address_in_use",
            "another port before the first colon of -R: this one is in use on the other machine",
        ),
        RefusalCode::Busy => description(
            4,
            "forward",
            "busy",
            "end some of the connections on the other machine, and try again",
        ),
        _ => description(
            4,
            "forward",
            "failed",
            "update the agent on the other machine, or read what it prints",
        ),
    }
}
