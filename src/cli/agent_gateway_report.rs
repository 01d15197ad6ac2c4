//! What `agent serve` and `agent connect --gateway` say on standard error.

use super::agent_report::{Failed, Report, VERSION};
use crate::agent::{ServiceConnection, ServiceEvent};
use crate::gateway::client::{ConnectError, DialError, Loss, Status};
use serde_json::json;
use std::io;
use std::net::SocketAddr;

/// Why a gateway command has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// There is no connection to the gateway.
    #[error("{error}")]
    Connect { error: ConnectError, server: bool },
    /// There is none through it.
    #[error("{0}")]
    Dial(DialError),
    /// It has ended.
    #[error("{0}")]
    Lost(Loss),
    /// The other end broke it off.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// This machine would not.
    #[error("{0}")]
    Local(String),
}

impl Trouble {
    /// The exit code that goes with it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Connect { error, .. } => match error {
                ConnectError::Address(_) => 2,
                ConnectError::Refused | ConnectError::Taken | ConnectError::Impostor => 4,
                ConnectError::TimedOut(_) => 6,
                _ => 5,
            },
            Self::Dial(DialError::Refused(_)) => 3,
            Self::Dial(DialError::TimedOut(_)) => 6,
            Self::Dial(_) | Self::Lost(_) | Self::Broken(_) => 7,
            Self::Local(_) => 1,
        }
    }

    fn words(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Connect { error, server } => match (error, server) {
                (ConnectError::Address(_), _) => {
                    ("usage", "usage", "--gateway HOST, --gateway HOST:PORT or --gateway wss://HOST")
                }
                (ConnectError::Refused, true) => (
                    "server",
                    "refused",
                    "the key that `ginnel key --gateway` prints there (--key-file FILE); with an access key, an --id from 2147483648 up",
                ),
                (ConnectError::Taken, _) => (
                    "server",
                    "taken",
                    "is another `agent serve` running with this --id? End it, or choose another --id",
                ),
                (ConnectError::Refused, false) => (
                    "server",
                    "refused",
                    "this gateway may ask for tokens: --gateway-token gt_…, which `ginnel gateway token` prints there",
                ),
                (ConnectError::Impostor, _) => (
                    "server",
                    "impostor",
                    "is this the gateway, and its key the one that `ginnel key --gateway` prints there?",
                ),
                (ConnectError::Tls(_), _) => (
                    "server",
                    "tls",
                    "--ca FILE names a certificate to trust; without TLS: --gateway HOST:PORT",
                ),
                (ConnectError::TimedOut(_), _) => {
                    ("server", "timed_out", "is the gateway up, and its port open on the way to it?")
                }
                _ => (
                    "server",
                    "unreachable",
                    "is the name right, and `ginnel serve` running there with `[gateway] enabled = true`? `--gateway HOST:PORT` names another",
                ),
            },
            Self::Dial(DialError::Refused(_)) => (
                "signal",
                "offline",
                "run `agent serve --id` with this id there; one client may have no more than a few connections",
            ),
            Self::Dial(DialError::TimedOut(_)) => {
                ("signal", "timed_out", "try again; is the gateway under load?")
            }
            Self::Dial(_) | Self::Lost(_) => ("connection", "lost", "try again"),
            Self::Broken(_) => ("connection", "peer_ended", "see what `agent serve` says on the other side"),
            Self::Local(_) => ("local", "local", "run it again with `--log debug`: it tells more"),
        }
    }
}

impl Report {
    pub(super) fn trouble(&self, trouble: &Trouble, tried: &str) {
        let (stage, code, hint) = trouble.words();
        self.failed(&Failed { stage, code, what: trouble.to_string(), tried: Some(tried.to_owned()), hint });
    }

    /// A gateway that is not there yet, or has not given the id yet.
    pub(super) fn waiting_for(&self, trouble: &Trouble, gateway: &str) {
        let (_, code, hint) = trouble.words();
        self.waiting(gateway, code, &trouble.to_string(), hint);
    }

    pub(super) fn serving(&self, gateway: &str, id: u32, to: &str) {
        self.say(
            || format!("Serving  {to} as {id} at {gateway}"),
            || json!({"v": VERSION, "t": "serving", "gateway": gateway, "id": id, "to": to}),
        );
    }

    pub(super) fn visit(&self, visit: ServiceConnection, what: &ServiceEvent) {
        let ServiceConnection { client, conn } = visit;
        let event = |kind: &str, what: Option<String>| json!({"v": VERSION, "t": kind, "client": client, "conn": conn, "what": what});
        match what {
            ServiceEvent::Opened => self.say(|| format!("Found    {visit}"), || event("found", None)),
            ServiceEvent::Closed { sent, received } => self.say(
                || format!("Closed   {visit}: {sent} B out, {received} B in"),
                || {
                    json!({
                        "v": VERSION, "t": "closed", "client": client, "conn": conn, "bytes_in": received, "bytes_out": sent,
                    })
                },
            ),
            ServiceEvent::Unreachable(error) => self.say(
                || format!("Failed   {visit}: the service cannot be reached: {error}"),
                || event("failed", Some(error.to_string())),
            ),
            ServiceEvent::Broken(error) => {
                self.say(|| format!("Broken   {visit}: {error}"), || event("broken", Some(error.to_string())));
            }
        }
    }

    pub(super) fn status(&self, gateway: &str, status: &Status) {
        match status {
            Status::Reconnecting(loss) => self.say(
                || format!("Lost     {gateway}: {loss}; trying again"),
                || json!({"v": VERSION, "t": "lost", "gateway": gateway, "what": loss.to_string()}),
            ),
            Status::Connected => self.say(
                || format!("Back     {gateway}"),
                || json!({"v": VERSION, "t": "back", "gateway": gateway}),
            ),
            Status::Closed(_) => {}
        }
    }

    pub(super) fn reached(&self, gateway: &str, id: u32, conn: u32) {
        self.say(
            || format!("Found    {id} via gateway {gateway} · virtual connection {conn}"),
            || json!({"v": VERSION, "t": "found", "gateway": gateway, "id": id, "conn": conn}),
        );
    }

    pub(super) fn listening(&self, at: SocketAddr, gateway: &str, id: u32) {
        self.say(
            || format!("Listening {at} → {id} via gateway {gateway}"),
            || json!({"v": VERSION, "t": "listening", "at": at.to_string(), "gateway": gateway, "id": id}),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_trouble_with_a_gateway_has_the_exit_code_people_rely_on() {
        let connect = |error| Trouble::Connect { error, server: true };
        for (trouble, code) in [
            (connect(ConnectError::Address(String::new())), 2),
            (Trouble::Dial(DialError::Refused(7)), 3),
            (connect(ConnectError::Refused), 4),
            (connect(ConnectError::Taken), 4),
            (connect(ConnectError::Impostor), 4),
            (connect(ConnectError::Unreachable(io::ErrorKind::ConnectionRefused.into())), 5),
            (connect(ConnectError::WebSocket(String::new())), 5),
            (connect(ConnectError::TimedOut(Duration::ZERO)), 6),
            (Trouble::Dial(DialError::TimedOut(Duration::ZERO)), 6),
            (Trouble::Lost(Loss::Closed), 7),
            (Trouble::Broken(io::ErrorKind::ConnectionReset.into()), 7),
            (Trouble::Local(String::new()), 1),
        ] {
            assert_eq!(trouble.exit_code(), code, "{trouble}");
        }
    }
}
