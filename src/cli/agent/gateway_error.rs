//! The errors of `agent share` and `agent connect --gateway`.

use super::error::Description;
use crate::gateway::client::{ConnectError, ConnectionError, DialError};
use std::io;

/// Why a gateway command failed, and with which server.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub(super) struct GatewayError {
    #[source]
    pub(super) failure: GatewayFailure,
    /// The server id and the gateway.
    pub(super) target: String,
}

/// Why a connection to or through a gateway failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayFailure {
    #[error("{0}")]
    Register(ConnectError),
    #[error("{0}")]
    Connect(ConnectError),
    #[error("{0}")]
    Dial(DialError),
    #[error("{0}")]
    Lost(ConnectionError),
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("cannot listen on the local address: {0}")]
    Listen(io::Error),
}

impl GatewayFailure {
    /// Adds the target.
    pub(super) fn at(self, target: String) -> GatewayError {
        GatewayError { failure: self, target }
    }
}

impl GatewayError {
    pub(super) fn describe(&self) -> Description {
        let (exit_code, stage, code, hint) = match &self.failure {
            GatewayFailure::Register(error) => describe_register(error),
            GatewayFailure::Connect(error) => describe_connect(error),
            GatewayFailure::Dial(DialError::Refused(_)) => (
                3,
                "signal",
                "offline",
                "run `agent share --id` with this id there; the server limits the connections of one client",
            ),
            GatewayFailure::Dial(DialError::TimedOut(_)) => {
                (6, "signal", "timed_out", "try again; is the gateway under load?")
            }
            GatewayFailure::Dial(_) | GatewayFailure::Lost(_) => (7, "connection", "lost", "try again"),
            GatewayFailure::Broken(_) => {
                (7, "connection", "peer_ended", "read what `agent share` prints on the other side")
            }
            GatewayFailure::Output(_) => {
                (1, "local", "local", "a place that takes the output: agent connect … > FILE")
            }
            GatewayFailure::Listen(_) => {
                (1, "local", "local", "another address or port: --listen ADDRESS:PORT")
            }
        };
        Description { exit_code, stage, code, hint }
    }
}

type Parts = (u8, &'static str, &'static str, &'static str);

fn describe_register(error: &ConnectError) -> Parts {
    match error {
        ConnectError::Refused => (
            4,
            "server",
            "refused",
            "the key that `ginnel key --gateway` prints there (--key-file FILE); with an access key, an --id from 2147483648 up",
        ),
        other => describe_connect(other),
    }
}

fn describe_connect(error: &ConnectError) -> Parts {
    match error {
        ConnectError::Address(_) => {
            (2, "usage", "usage", "--gateway HOST, --gateway HOST:PORT or --gateway wss://HOST")
        }
        ConnectError::Refused => (
            4,
            "server",
            "refused",
            "this gateway may require tokens: --gateway-token gt_…, which `ginnel gateway token` prints there",
        ),
        ConnectError::DuplicateServer => (
            4,
            "server",
            "taken",
            "is another `agent share` running with this --id? End it, or choose another --id",
        ),
        ConnectError::NotAuthenticated => (
            4,
            "server",
            "impostor",
            "is this the gateway, and its key the one that `ginnel key --gateway` prints there?",
        ),
        ConnectError::Tls(_) => {
            (5, "server", "tls", "--ca FILE names a certificate to trust; without TLS: --gateway HOST:PORT")
        }
        ConnectError::TimedOut(_) => {
            (6, "server", "timed_out", "is the gateway up, and its port open on the way to it?")
        }
        _ => (
            5,
            "server",
            "unreachable",
            "is the name right, and `ginnel serve` running there with `[gateway] enabled = true`? `--gateway HOST:PORT` names another",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_failure_with_a_gateway_has_its_exit_code() {
        let register = GatewayFailure::Register;
        for (failure, code) in [
            (register(ConnectError::Address(String::new())), 2),
            (GatewayFailure::Dial(DialError::Refused(7)), 3),
            (register(ConnectError::Refused), 4),
            (register(ConnectError::DuplicateServer), 4),
            (register(ConnectError::NotAuthenticated), 4),
            (register(ConnectError::Unreachable(io::ErrorKind::ConnectionRefused.into())), 5),
            (register(ConnectError::WebSocket(std::io::ErrorKind::Other.into())), 5),
            (register(ConnectError::TimedOut(Duration::ZERO)), 6),
            (GatewayFailure::Dial(DialError::TimedOut(Duration::ZERO)), 6),
            (GatewayFailure::Lost(ConnectionError::Closed), 7),
            (GatewayFailure::Broken(io::ErrorKind::ConnectionReset.into()), 7),
            (GatewayFailure::Listen(io::ErrorKind::AddrInUse.into()), 1),
        ] {
            let error = failure.at("server 7".to_owned());
            assert_eq!(error.describe().exit_code, code, "{error}");
        }
    }
}
