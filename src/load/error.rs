//! Errors of loads.

use super::target::Target;
use crate::turn_client::TurnError;
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A setting is out of range.
    #[error("{what} must be {rule}")]
    Setting {
        /// The option.
        what: &'static str,
        /// The allowed values.
        rule: &'static str,
    },
    /// The process to watch does not exist.
    #[error("process {pid} cannot be watched: {source}")]
    Process {
        /// Its id.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The processor does not exist.
    #[error("cannot run on processor {cpu}: {source}")]
    Pin {
        /// Its number.
        cpu: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// A client cannot be connected.
    #[error("cannot connect to {transport} {address}: {source}")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// The transport.
        transport: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Too many sockets.
    #[error(
        "no file descriptors left after {opened} sockets: use fewer clients or more --processes, or raise the limit (ulimit -n)"
    )]
    Descriptors {
        /// Sockets that were opened.
        opened: usize,
    },
    /// The port is closed.
    #[error("nothing listens on {transport} {address}: is the server running, and is this its port?")]
    NobodyThere {
        /// The server.
        address: SocketAddr,
        /// The transport.
        transport: &'static str,
    },
    /// The server has closed a connection.
    #[error(
        "the server closed connection {number} of {of} ({address}); ginnel: raise limits.connections_per_address"
    )]
    Closed {
        /// The server.
        address: SocketAddr,
        /// Its number.
        number: usize,
        /// The number of clients.
        of: usize,
    },
    /// A request of a client failed.
    #[error("client {number} of {of}: {error}")]
    Refused {
        /// Its number.
        number: usize,
        /// The number of clients.
        of: usize,
        /// Why.
        error: TurnError,
    },
    /// The server does not register all clients.
    #[error("{online} of {of} clients are registered, and no more are accepted{}", RegistrationHint(*.closed, *.code))]
    NotRegistered {
        /// Registered clients.
        online: usize,
        /// The number of clients.
        of: usize,
        /// Connections that the server closed.
        closed: usize,
        /// The last error code.
        code: Option<i64>,
    },
    /// The gateway does not accept a server.
    #[error(
        "the gateway does not accept server {id} at {address}: {source}; is it enabled, and are port, handshake and key right?"
    )]
    ServerRefused {
        /// The address for servers.
        address: SocketAddr,
        /// The server's id.
        id: u32,
        /// Why.
        source: io::Error,
    },
    /// The gateway does not connect all clients to their servers.
    #[error("{up} of {of} virtual connections are open, and no more are accepted{}", DialHint(*.refused, *.gone))]
    NotDialled {
        /// Open virtual connections.
        up: usize,
        /// The number of clients.
        of: usize,
        /// Dials that the gateway refused.
        refused: u64,
        /// Connections and virtual connections that it closed.
        gone: u64,
    },
    /// It was interrupted before the measurement.
    #[error("interrupted")]
    Interrupted,
    /// A system call failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Why no more clients are registered, and what to change.
struct RegistrationHint(usize, Option<i64>);

impl fmt::Display for RegistrationHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raise = "ginnel: raise in [signaling]";
        match *self {
            Self(closed @ 1.., _) => write!(
                f,
                ": the server closed {closed} connections; {raise} signaling.limits.connections and connections_per_network"
            ),
            Self(0, Some(204)) => f.write_str(": the server requires another --key (204)"),
            Self(0, Some(206)) => {
                write!(f, ": too many (206); {raise} signaling.limits.tags and tags_per_network")
            }
            Self(0, Some(code)) => write!(f, ": the server answered {code}"),
            Self(0, None) => {
                f.write_str(": the server does not answer; does it run, and is it ginnel's signalling?")
            }
        }
    }
}

/// Why the gateway connects no more, and what to change.
struct DialHint(u64, u64);

impl fmt::Display for DialHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(refused @ 1.., _) => write!(
                f,
                ": the gateway refused {refused}; ginnel: raise gateway.limits.per_client and virtual_connections"
            ),
            Self(0, gone @ 1..) => write!(
                f,
                ": the gateway closed {gone} connections; is the key right, does it require a --ticket? ginnel: raise limits.connections_per_address"
            ),
            Self(0, 0) => f.write_str(": it does not answer; does it run, and is it a gateway?"),
        }
    }
}

impl LoadError {
    /// Maps an I/O error of connecting a client.
    pub(super) fn connecting(target: Target, opened: usize, source: io::Error) -> Self {
        let (address, transport) = (target.address(), target.transport().name());
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE) => Self::Descriptors { opened },
            Some(Errno::ECONNREFUSED) => Self::NobodyThere { address, transport },
            _ => Self::Connect { address, transport, source },
        }
    }
}
