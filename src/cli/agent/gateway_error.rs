//! The errors of `agent share` and `agent connect --gateway`.

use super::error::{Description, STANDARD_OUTPUT, description};
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
        match &self.failure {
            GatewayFailure::Register(error) => describe_register(error),
            GatewayFailure::Connect(error) => describe_connect(error),
            GatewayFailure::Dial(DialError::Refused(_)) => description(
                3,
                "signal",
                "offline",
                "run `agent share --id` with this id there; the server limits the connections of one client",
            ),
            GatewayFailure::Dial(DialError::TimedOut(_)) => {
                description(6, "signal", "timed_out", "try again; is the gateway under load?")
            }
            GatewayFailure::Dial(_) | GatewayFailure::Lost(_) => {
                description(7, "connection", "lost", "try again")
            }
            GatewayFailure::Broken(_) => {
                description(7, "connection", "peer_ended", "read what `agent share` prints on the other side")
            }
            GatewayFailure::Output(_) => description(1, "local", "local", STANDARD_OUTPUT),
            GatewayFailure::Listen(_) => {
                description(1, "local", "local", "another address or port: --listen ADDRESS:PORT")
            }
        }
    }
}

fn describe_register(error: &ConnectError) -> Description {
    match error {
        ConnectError::Refused => description(
            4,
            "server",
            "refused",
            "the key that `ginnel key --gateway` prints there (--key-file FILE); with an access key, an --id from 2147483648 up",
        ),
        other => describe_connect(other),
    }
}

fn describe_connect(error: &ConnectError) -> Description {
    match error {
        ConnectError::Address(_) => {
            description(2, "usage", "usage", "--gateway HOST, --gateway HOST:PORT or --gateway wss://HOST")
        }
        ConnectError::Refused => description(
            4,
            "server",
            "refused",
            "this gateway may require tokens: --gateway-token gt_…, which `ginnel gateway token` prints there",
        ),
        ConnectError::DuplicateServer => description(
            4,
            "server",
            "taken",
            "is another `agent share` running with this --id? End it, or choose another --id",
        ),
        ConnectError::NotAuthenticated => description(
            4,
            "server",
            "impostor",
            "is this the gateway, and its key the one that `ginnel key --gateway` prints there?",
        ),
        ConnectError::Tls(_) => description(
            5,
            "server",
            "tls",
            "--ca FILE names a certificate to trust; without TLS: --gateway HOST:PORT",
        ),
        ConnectError::TimedOut(_) => {
            description(6, "server", "timed_out", "is the gateway up, and its port open on the way to it?")
        }
        _ => description(
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
