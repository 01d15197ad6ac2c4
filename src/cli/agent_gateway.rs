//! `agent serve` and `agent connect --gateway`: TCP services by id, through a gateway.

use super::agent::{BACK_OFF, INTERRUPTED, USAGE, UsageError, Voice, interrupted};
use super::agent_gateway_report::Trouble;
use super::agent_pipe::{self, Directions, Input, Stop};
use super::agent_report::Report;
use super::agent_secrets::{KeySource, read_file};
use crate::agent::{ServerName, ServiceConnection, ServiceEvent, bridge, publish};
use crate::gateway::client::{
    ConnectError, DialClient, DialServer, Endpoint, GatewayToken, Key, Raw, Settings, Tls, VirtualStream,
};
use crate::limits::Backoff;
use crate::net::roaming::Roaming;
use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Clients that a published service may have at a time, and local connections of `--listen`.
const VISITS: usize = 1024;

/// How long the gateway may be silent; it is asked for an answer after half of that.
const SILENCE: Duration = Duration::from_secs(20);
/// How long standard output may take nothing, as far as this side is concerned; the gateway gives up after a minute.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How a server gets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Door {
    /// A WebSocket on the gateway's main port
    Web,
    /// TCP, HMAC-SHA256 handshake [port: 3481]
    Hmac,
    /// TCP, MD5 handshake, as fastway's servers [port: 3480]
    Md5,
}

#[derive(Debug, Args)]
struct Trust {
    /// File of certificates (PEM) to trust inside TLS, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Options of `agent serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The gateway: HOST[:PORT], or a URL such as wss://HOST [default port: 3478, or the door's]
    #[arg(long, value_name = "HOST[:PORT]")]
    gateway: String,
    /// The id that clients dial; with an access key in place of the gateway's own, one from 2147483648 up
    #[arg(long, value_name = "N")]
    id: u32,
    /// The TCP service to publish; a port alone is one of this machine
    #[arg(long, value_name = "HOST:PORT", value_parser = target)]
    to: ServerName,
    #[command(flatten)]
    key: KeySource,
    /// How to get in
    #[arg(long, value_enum, default_value = "web")]
    door: Door,
    #[command(flatten)]
    trust: Trust,
    /// File of the certificate chain (PEM) for a gateway that asks servers for one
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// File of its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
    #[command(flatten)]
    pub(super) voice: Voice,
}

/// Options of `agent connect` for services by id.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// Connect through this gateway in place of a ticket: HOST[:PORT], or a URL such as wss://HOST [default port: 3478]
    #[arg(long, value_name = "HOST[:PORT]", requires = "id")]
    gateway: Option<String>,
    /// The id under which `agent serve` publishes the service
    #[arg(long, value_name = "N", requires = "gateway")]
    id: Option<u32>,
    /// Take connections at this local address and connect each of them, in place of standard input and output
    #[arg(long, value_name = "ADDRESS:PORT", requires = "gateway")]
    listen: Option<SocketAddr>,
    /// The token of a gateway that asks for one; `ginnel gateway token` prints it there. Without this and the file it is taken from AGENT_GATEWAY_TOKEN
    #[arg(long, visible_alias = "ticket", value_name = "gt_…")]
    gateway_token: Option<String>,
    /// The token in the environment
    #[arg(long, env = "AGENT_GATEWAY_TOKEN", hide = true, hide_env_values = true)]
    environment_token: Option<String>,
    /// File that holds the gateway's token
    #[arg(long, value_name = "FILE", conflicts_with = "gateway_token")]
    gateway_token_file: Option<PathBuf>,
    #[command(flatten)]
    trust: Trust,
}

/// Reads `PORT` or `HOST:PORT`.
fn target(text: &str) -> Result<ServerName, String> {
    let whole = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("127.0.0.1:{text}")
    } else {
        text.to_owned()
    };
    let named: Option<ServerName> = whole.parse().ok();
    named
        .filter(|name| {
            whole.ends_with(&format!(":{}", name.port))
                && (whole.starts_with('[') || whole.matches(':').count() == 1)
        })
        .ok_or_else(|| "a service is HOST:PORT, or a port of this machine".to_owned())
}

/// Why a command cannot be run as typed.
#[derive(Debug, thiserror::Error)]
enum Mistyped {
    #[error(transparent)]
    Key(#[from] UsageError),
    #[error("no key given")]
    NoKey,
    #[error(transparent)]
    ShortKey(#[from] crate::gateway::client::ShortKey),
    #[error("{file}: {problem}")]
    File { file: String, problem: std::io::Error },
}

impl Mistyped {
    fn hint(&self) -> &'static str {
        match self {
            Self::Key(error) => error.hint(),
            Self::NoKey | Self::ShortKey(_) => {
                "agent serve --key-file FILE …     `ginnel key --gateway` on the gateway prints what belongs into it"
            }
            Self::File { .. } => "--ca, --cert and --cert-key name PEM files",
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Mistyped> {
    std::fs::read(path).map_err(|problem| Mistyped::File { file: path.display().to_string(), problem })
}

impl Trust {
    fn tls(&self) -> Result<Tls, Mistyped> {
        let tls = Tls::system();
        Ok(match &self.ca {
            Some(file) => tls.roots(read(file)?),
            None => tls,
        })
    }
}

impl Serve {
    fn server(&self) -> Result<DialServer, Mistyped> {
        let key = self.key.key(true)?.ok_or(Mistyped::NoKey)?;
        let (key, id) = (Key::new(key)?, self.id);
        let mut tls = self.trust.tls()?;
        if let (Some(cert), Some(cert_key)) = (&self.cert, &self.cert_key) {
            tls = tls.identity(read(cert)?, read(cert_key)?);
        }
        let settings =
            Settings { incoming: VISITS, backlog: VISITS, silence: SILENCE, ..Settings::default() };
        let gateway = self.gateway.trim();
        let server = match self.door {
            Door::Web if !gateway.contains("://") => DialServer::hmac(format!("ws://{gateway}"), id, key),
            Door::Web | Door::Hmac => DialServer::hmac(gateway, id, key),
            Door::Md5 => DialServer::md5(gateway, id, key),
        };
        Ok(server.tls(tls).settings(settings))
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(&self, report: Report) -> u8 {
        let server = match self.server() {
            Ok(server) => server,
            Err(Mistyped::Key(UsageError::Interrupted)) => return INTERRUPTED,
            Err(error) => {
                report.usage(&error.to_string(), error.hint());
                return USAGE;
            }
        };
        let report = Arc::new(report);
        let served = tokio::select! {
            served = self.serve(&server, &report) => served,
            () = interrupted() => return INTERRUPTED,
        };
        served.unwrap_or_else(|trouble| {
            report.trouble(&trouble, &format!("{} as server {}", self.gateway, self.id));
            trouble.exit_code()
        })
    }

    /// Connects, however long it takes until the gateway is there and the id is free.
    async fn connect(&self, server: &DialServer, report: &Report) -> Result<Endpoint<Raw>, Trouble> {
        let mut backoff = Backoff::new(BACK_OFF, ChaCha20Rng::from_os_rng());
        let mut roaming = Roaming::start();
        let mut told = None;
        loop {
            let error = match server.connect().await {
                Ok(endpoint) => return Ok(endpoint),
                Err(
                    error @ (ConnectError::Unreachable(_) | ConnectError::TimedOut(_) | ConnectError::Taken),
                ) => error,
                Err(error) => return Err(Trouble::Connect { error, server: true }),
            };
            let trouble = Trouble::Connect { error, server: true };
            // The same reason is told once.
            let what = trouble.to_string();
            if told.as_ref() != Some(&what) {
                report.waiting_for(&trouble, &format!("{} as server {}", self.gateway, self.id));
                told = Some(what);
            }
            roaming.pause(&mut backoff).await;
        }
    }

    async fn serve(&self, server: &DialServer, report: &Arc<Report>) -> Result<u8, Trouble> {
        let endpoint = self.connect(server, report).await?;
        report.serving(&self.gateway, self.id, &self.to.to_string());
        let mut changes = endpoint.changes();
        let tell = {
            let report = Arc::clone(report);
            move |visit: ServiceConnection, what: ServiceEvent| report.visit(visit, &what)
        };
        let publishing = publish(&endpoint, &self.to, tell);
        tokio::pin!(publishing);
        loop {
            tokio::select! {
                loss = &mut publishing => return Err(Trouble::Lost(loss)),
                Some(status) = changes.next() => report.status(&self.gateway, &status),
                () = interrupted() => break,
            }
        }
        endpoint.clone().close().await;
        Ok(INTERRUPTED)
    }
}

impl Reach {
    /// Says whether a gateway was named.
    pub(super) fn is_wanted(&self) -> bool {
        self.gateway.is_some()
    }

    /// Returns the gateway's token: as given for it, or as `environment` has it under its former name.
    fn token(&self, environment: Option<&String>) -> Result<Option<GatewayToken>, UsageError> {
        let text = match &self.gateway_token_file {
            Some(file) => Some(read_file("--gateway-token-file", file)?),
            None => {
                let token = self.gateway_token.as_ref().or(self.environment_token.as_ref());
                token.or(environment).cloned()
            }
        };
        Ok(text.map(|text| text.trim().parse()).transpose()?)
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(&self, report: &Report, token: Option<&String>, directions: Directions) -> u8 {
        let (Some(gateway), Some(id)) = (&self.gateway, self.id) else { return USAGE };
        let (tls, token) = match self.trust.tls().and_then(|tls| Ok((tls, self.token(token)?))) {
            Ok(prepared) => prepared,
            Err(error) => {
                report.usage(&error.to_string(), error.hint());
                return USAGE;
            }
        };
        // A connection is one byte stream: what would come after a loss is another, and nobody else is kept waiting by it.
        let settings = Settings { reconnect: None, receive_patience: PATIENCE, ..Settings::default() };
        let client = DialClient::new(gateway.trim()).tls(tls).settings(settings);
        let client = match token {
            Some(token) => client.token(token),
            None => client,
        };
        let way = Way { client, gateway: gateway.clone(), id };
        let done = match self.listen {
            None => way.pipe(directions, report).await,
            Some(at) => way.listen(at, report).await,
        };
        done.unwrap_or_else(|trouble| {
            report.trouble(&trouble, &way.tried());
            trouble.exit_code()
        })
    }
}

/// A way to a service.
#[derive(Debug, Clone)]
struct Way {
    client: DialClient,
    gateway: String,
    id: u32,
}

impl Way {
    fn tried(&self) -> String {
        format!("server {} via gateway {}", self.id, self.gateway)
    }

    async fn open(&self, report: &Report) -> Result<(Endpoint<Raw>, VirtualStream), Trouble> {
        let connected = self.client.connect().await;
        let endpoint = connected.map_err(|error| Trouble::Connect { error, server: false })?;
        let connection = endpoint.dial(self.id).await.map_err(Trouble::Dial)?;
        report.reached(&self.gateway, self.id, connection.id());
        Ok((endpoint, connection.into_stream()))
    }

    /// Standard input and output through one connection.
    async fn pipe(&self, directions: Directions, report: &Report) -> Result<u8, Trouble> {
        let (endpoint, stream) = tokio::select! {
            opened = self.open(report) => opened?,
            () = interrupted() => return Ok(INTERRUPTED),
        };
        let (recv, mut send) = tokio::io::split(stream);
        let their_end = Notify::new();
        let up = async {
            let input = Input { directions, their_end: &their_end };
            let total = input.send(&mut send, std::future::pending(), || report.input_open()).await?;
            send.shutdown().await.map_err(Stop::Stream)?;
            Ok(total)
        };
        let down = async {
            let total = agent_pipe::downwards(recv, tokio::io::stdout()).await;
            their_end.notify_one();
            total
        };
        let moving = async {
            if directions.send_only {
                // The service's answer is of no interest, and neither is its end.
                tokio::pin!(down);
                tokio::select! {
                    total = up => total.map(|total| (total, 0)),
                    Err(stop) = down => Err(stop),
                }
            } else {
                tokio::try_join!(up, down)
            }
        };
        let moved = tokio::select! {
            moved = moving => moved,
            () = interrupted() => {
                endpoint.close().await;
                return Ok(INTERRUPTED);
            }
        };
        endpoint.close().await;
        let (sent, received) = moved.map_err(|stop| match stop {
            Stop::Stream(error) => Trouble::Broken(error),
            Stop::Output(error) => Trouble::Local(format!("standard output: {error}")),
        })?;
        report.closed(sent, received);
        Ok(0)
    }

    /// A local port; each of its connections has one of its own to the gateway, so that none waits for another.
    async fn listen(&self, at: SocketAddr, report: &Report) -> Result<u8, Trouble> {
        let failed = |error: std::io::Error| Trouble::Local(format!("{at}: {error}"));
        let listener = TcpListener::bind(at).await.map_err(failed)?;
        report.listening(listener.local_addr().map_err(failed)?, &self.gateway, self.id);
        let mut bridges = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if bridges.len() < VISITS => match accepted {
                    Ok((stream, _)) => {
                        let way = self.clone();
                        bridges.spawn(async move { way.carry(stream).await });
                    }
                    Err(error) => return Err(failed(error)),
                },
                Some(ended) = bridges.join_next() => match ended {
                    Ok(Ok((sent, received))) => report.closed(sent, received),
                    Ok(Err(trouble)) => report.trouble(&trouble, &self.tried()),
                    Err(_) => {}
                },
                () = interrupted() => return Ok(INTERRUPTED),
            }
        }
    }

    async fn carry(&self, stream: TcpStream) -> Result<(u64, u64), Trouble> {
        let _ = stream.set_nodelay(true);
        let connected = self.client.connect().await;
        let endpoint = connected.map_err(|error| Trouble::Connect { error, server: false })?;
        let connection = endpoint.dial(self.id).await.map_err(Trouble::Dial)?;
        bridge(connection.into_stream(), stream).await.map_err(Trouble::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_port_or_a_host_with_one() {
        for (text, expected) in [
            ("22", Some("127.0.0.1:22")),
            ("desk:22", Some("desk:22")),
            ("[::1]:22", Some("[::1]:22")),
            ("desk", None),
            ("::1", None),
            ("desk:", None),
            ("0", None),
            ("70000", None),
            ("", None),
        ] {
            assert_eq!(target(text).ok().map(|name| name.to_string()).as_deref(), expected, "{text}");
        }
    }
}
