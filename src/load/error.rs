//! Why a load ends before its time.

use super::request_error::RequestError;
use super::target::Target;
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A setting makes no sense.
    #[error("{what} must be {rule}")]
    Setting {
        /// Which one.
        what: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The process to watch is not there.
    #[error("process {pid} cannot be watched: {source}")]
    Process {
        /// Its id.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The processor to run on is not there.
    #[error("cannot run on processor {cpu}: {source}")]
    Pin {
        /// Its number.
        cpu: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// A client cannot be connected.
    #[error("no way to {transport} {address}: {source}")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// By what.
        transport: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Too many sockets.
    #[error(
        "out of descriptors after {opened} sockets: ask for fewer, spread them over --processes, or raise the limit (ulimit -n)"
    )]
    Descriptors {
        /// How many there were.
        opened: usize,
    },
    /// Nobody is there.
    #[error("nothing listens on {transport} {address}: is the server running, and is this its port?")]
    NobodyThere {
        /// The server.
        address: SocketAddr,
        /// By what.
        transport: &'static str,
    },
    /// The server has closed a connection.
    #[error(
        "the server closed connection {number} of {of} ({address}); ginnel: raise limits.connections_per_address"
    )]
    Closed {
        /// The server.
        address: SocketAddr,
        /// Which one.
        number: usize,
        /// Of how many.
        of: usize,
    },
    /// A client was refused something.
    #[error("client {number} of {of}: {error}")]
    Refused {
        /// Which one.
        number: usize,
        /// Of how many.
        of: usize,
        /// What it was told.
        error: RequestError,
    },
    /// The signalling does not let all clients in.
    #[error("{online} of {of} clients are registered, and no more get in{}", NoMore(*.closed, *.code))]
    NotRegistered {
        /// How many are.
        online: usize,
        /// Of how many.
        of: usize,
        /// How many connections the server has closed.
        closed: usize,
        /// What it has refused.
        code: Option<i64>,
    },
    /// A gateway does not let a server in.
    #[error(
        "server {id} does not get in at {address}: {source}; is the gateway on, is this the door that was meant, and its key?"
    )]
    ServerDoor {
        /// The door.
        address: SocketAddr,
        /// The server's id.
        id: u32,
        /// What happened.
        source: io::Error,
    },
    /// A gateway does not connect all clients to their servers.
    #[error("{up} of {of} virtual connections are up, and no more come{}", NotDialled(*.refused, *.gone))]
    NotDialled {
        /// How many are.
        up: usize,
        /// Of how many.
        of: usize,
        /// How many the gateway has refused.
        refused: u64,
        /// How many it has closed, connections or virtual ones.
        gone: u64,
    },
    /// It was interrupted before there was anything to report.
    #[error("interrupted")]
    Interrupted,
    /// The system does not play along.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Why the signalling lets nobody in, and what to change.
struct NoMore(usize, Option<i64>);

impl fmt::Display for NoMore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raise = "ginnel: raise in [signaling]";
        match *self {
            Self(closed @ 1.., _) => write!(
                f,
                ": the server closed {closed} connections; {raise} signaling.limits.connections and connections_per_network"
            ),
            Self(0, Some(204)) => f.write_str(": the server wants another --key (204)"),
            Self(0, Some(206)) => {
                write!(f, ": too many (206); {raise} signaling.limits.tags and tags_per_network")
            }
            Self(0, Some(code)) => write!(f, ": the server said {code}"),
            Self(0, None) => f.write_str(
                ": the server does not answer; does it run, and does it speak ginnel's signalling?",
            ),
        }
    }
}

/// Why a gateway connects no more, and what to change.
struct NotDialled(u64, u64);

impl fmt::Display for NotDialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(refused @ 1.., _) => write!(
                f,
                ": the gateway refused {refused}; ginnel: raise gateway.limits.per_client and virtual_connections"
            ),
            Self(0, gone @ 1..) => write!(
                f,
                ": the gateway closed {gone} connections; is the key right, does it want a --ticket? ginnel: raise limits.connections_per_address"
            ),
            Self(0, 0) => {
                f.write_str(": it does not answer; does it run, and does it speak a gateway's language?")
            }
        }
    }
}

impl LoadError {
    /// Names what kept a client from being connected.
    pub(super) fn connecting(target: Target, opened: usize, source: io::Error) -> Self {
        let (address, transport) = (target.address(), target.transport().name());
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE) => Self::Descriptors { opened },
            Some(Errno::ECONNREFUSED) => Self::NobodyThere { address, transport },
            _ => Self::Connect { address, transport, source },
        }
    }
}
