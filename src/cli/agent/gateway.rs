//! `agent share` and `agent connect --gateway`: TCP services by id, through a gateway.

use super::error::{CommandError, UsageError};
use super::gateway_error::{GatewayError, GatewayFailure};
use super::pipe::{self, Directions, Input, Stop};
use super::report::Reporter;
use super::secrets::{KeySource, read_file};
use super::standard_streams;
use super::terminal::interrupted;
use super::{BACKOFF, INTERRUPTED, proxy_environment};
use crate::agent::{ServerName, ServiceConnection, ServiceEvent, bridge, publish};
use crate::gateway::client::{
    ClientBuilder, ConnectError, Endpoint, GatewayToken, Key, Raw, ServerBuilder, Settings, Tls,
    VirtualStream,
};
use crate::limits::Backoff;
use crate::net::network_changes::NetworkChanges;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The first characters of a gateway token.
pub(super) const TOKEN_PREFIX: &str = "gt_";
/// Maximum number of concurrent connections of a published service, and of `--listen`.
const MAX_CONNECTIONS: usize = 1024;

/// Time without a frame after which the gateway counts as gone; half of it is the keep-alive interval.
const SILENCE: Duration = Duration::from_secs(20);
/// Time limit for a blocked standard output on this side; that of the gateway is a minute.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(3600);

/// How a server registers at the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GatewayTransport {
    /// WebSocket on the gateway's main port, HMAC-SHA256 handshake
    Web,
    /// TCP, HMAC-SHA256 handshake [port: 3481]
    Hmac,
    /// TCP, MD5 handshake as fastway's servers use it [port: 3480]
    Md5,
}

#[derive(Debug, Args)]
pub(super) struct TlsOptions {
    /// File of CA certificates (PEM) to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Options of `agent share --gateway`.
#[derive(Debug, Args)]
pub(super) struct PublishOptions {
    /// Publish one TCP service at this gateway, under an id: HOST[:PORT], or a URL such as wss://HOST [default port: that of the transport]
    #[arg(long, value_name = "HOST[:PORT]", requires_all = ["id", "to"], conflicts_with = "server")]
    gateway: Option<String>,
    /// The id that clients dial; with an access key instead of the gateway's key, at least 2147483648
    #[arg(long, value_name = "N", requires = "gateway")]
    id: Option<u32>,
    /// The TCP service to publish; only a port means this machine
    #[arg(long, value_name = "HOST:PORT", value_parser = target, requires = "gateway")]
    to: Option<ServerName>,
    /// How to register at the gateway
    #[arg(long, alias = "door", value_enum, default_value = "web")]
    transport: GatewayTransport,
    /// File of the certificate chain (PEM), for a gateway that requires one
    #[arg(long, value_name = "FILE", requires_all = ["cert_key", "gateway"])]
    cert: Option<PathBuf>,
    /// File of its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
}

/// Options of `agent connect` for services by id.
#[derive(Debug, Args)]
pub(super) struct DialOptions {
    /// Connect through this gateway instead of with a ticket: HOST[:PORT], or a URL such as wss://HOST [default port: 3478]
    #[arg(long, value_name = "HOST[:PORT]", requires = "id")]
    gateway: Option<String>,
    /// The id under which `agent share` publishes the service
    #[arg(long, value_name = "N", requires = "gateway")]
    id: Option<u32>,
    /// Accept connections on this local address and connect each of them, instead of standard input and output
    #[arg(long, value_name = "ADDRESS:PORT", requires = "gateway")]
    listen: Option<SocketAddr>,
    /// The token, for a gateway that requires one; `ginnel gateway token` prints it there [env: AGENT_GATEWAY_TOKEN]
    #[arg(long, value_name = "gt_…")]
    gateway_token: Option<String>,
    /// The former name of `--gateway-token`
    #[arg(long = "ticket", hide = true)]
    former_token: Option<String>,
    #[arg(long, env = "AGENT_GATEWAY_TOKEN", hide = true, hide_env_values = true)]
    environment_token: Option<String>,
    /// File that contains the gateway token
    #[arg(long, value_name = "FILE", conflicts_with = "gateway_token")]
    gateway_token_file: Option<PathBuf>,
}

/// Parses `PORT` or `HOST:PORT`.
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

fn read_pem(option: &'static str, path: &Path) -> Result<Vec<u8>, UsageError> {
    let file = path.display().to_string();
    std::fs::read(path).map_err(|source| UsageError::File { option, file, source })
}

impl TlsOptions {
    pub(super) fn tls(&self) -> Result<Tls, UsageError> {
        let tls = Tls::system();
        Ok(match &self.ca {
            Some(file) => tls.roots(read_pem("--ca", file)?),
            None => tls,
        })
    }
}

impl PublishOptions {
    /// Returns whether a gateway was named.
    pub(super) fn is_used(&self) -> bool {
        self.gateway.is_some()
    }

    fn server(
        &self,
        (gateway, id): (&str, u32),
        key: &KeySource,
        tls: &TlsOptions,
    ) -> Result<ServerBuilder, UsageError> {
        let key = key.key(true)?.ok_or(UsageError::NoKey)?;
        let key = Key::new(key).map_err(|_| UsageError::ShortKey)?;
        let mut tls = tls.tls()?;
        if let (Some(cert), Some(cert_key)) = (&self.cert, &self.cert_key) {
            tls = tls.identity(read_pem("--cert", cert)?, read_pem("--cert-key", cert_key)?);
        }
        let (incoming, backlog) = (MAX_CONNECTIONS, MAX_CONNECTIONS);
        let settings = Settings { incoming, backlog, idle_timeout: SILENCE, ..Settings::default() };
        let gateway = gateway.trim();
        let server = match self.transport {
            GatewayTransport::Web if !gateway.contains("://") => {
                ServerBuilder::hmac(format!("ws://{gateway}"), id, key)
            }
            GatewayTransport::Web | GatewayTransport::Hmac => ServerBuilder::hmac(gateway, id, key),
            GatewayTransport::Md5 => ServerBuilder::md5(gateway, id, key),
        };
        Ok(server.tls(tls).settings(settings).proxies(proxy_environment::read()?))
    }

    /// Publishes the service and returns the exit code.
    pub(super) async fn run(
        &self,
        (key, tls): (&KeySource, &TlsOptions),
        report: &Reporter,
    ) -> Result<u8, CommandError> {
        let (Some(gateway), Some(id), Some(to)) = (&self.gateway, self.id, &self.to) else {
            return Ok(super::USAGE);
        };
        let server = self.server((gateway, id), key, tls)?;
        let published = PublishedService { gateway: gateway.clone(), id, to: to.clone() };
        tokio::select! {
            shared = published.share(&server, report) => Ok(shared?),
            () = interrupted() => Ok(INTERRUPTED),
        }
    }
}

/// A service under an id at a gateway.
struct PublishedService {
    gateway: String,
    id: u32,
    to: ServerName,
}

impl PublishedService {
    fn error(&self, failure: GatewayFailure) -> GatewayError {
        failure.at(format!("{} as server {}", self.gateway, self.id))
    }

    /// Registers; retries until the gateway is reachable and the id is free.
    async fn register(
        &self,
        server: &ServerBuilder,
        report: &Reporter,
    ) -> Result<Endpoint<Raw>, GatewayError> {
        let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
        let mut network = NetworkChanges::start();
        let mut reported = None;
        loop {
            let error = match server.connect().await {
                Ok(endpoint) => return Ok(endpoint),
                Err(
                    error @ (ConnectError::Unreachable(_)
                    | ConnectError::TimedOut(_)
                    | ConnectError::DuplicateServer),
                ) => self.error(GatewayFailure::Register(error)),
                Err(error) => return Err(self.error(GatewayFailure::Register(error))),
            };
            // The same reason is reported once.
            let reason = error.to_string();
            if reported.as_ref() != Some(&reason) {
                let description = error.describe();
                report.waiting(&error.target, description.code, &reason, description.hint);
                reported = Some(reason);
            }
            network.wait_to_retry(&mut backoff).await;
        }
    }

    async fn share(&self, server: &ServerBuilder, report: &Reporter) -> Result<u8, GatewayError> {
        let endpoint = self.register(server, report).await?;
        report.sharing(&self.gateway, self.id, &self.to.to_string());
        let mut changes = endpoint.changes();
        let on_event = {
            let report = report.clone();
            move |connection: ServiceConnection, event: ServiceEvent| {
                report.service_event(connection, &event);
            }
        };
        let publishing = publish(&endpoint, &self.to, on_event);
        tokio::pin!(publishing);
        loop {
            tokio::select! {
                loss = &mut publishing => return Err(self.error(GatewayFailure::Lost(loss))),
                Some(status) = changes.next() => report.status(&self.gateway, &status),
                () = interrupted() => break,
            }
        }
        endpoint.clone().close().await;
        Ok(INTERRUPTED)
    }
}

impl DialOptions {
    /// Returns whether a gateway was named.
    pub(super) fn is_used(&self) -> bool {
        self.gateway.is_some()
    }

    /// Returns the token. `environment_ticket` is the value of `AGENT_TICKET`, which once could contain it.
    fn token(
        &self,
        environment_ticket: Option<&str>,
        report: &Reporter,
    ) -> Result<Option<GatewayToken>, UsageError> {
        if self.former_token.is_some() {
            return Err(UsageError::FormerTicketOption);
        }
        let text = match &self.gateway_token_file {
            Some(file) => Some(read_file("--gateway-token-file", file)?),
            None => self.gateway_token.as_ref().or(self.environment_token.as_ref()).cloned(),
        };
        if environment_ticket.is_some_and(|text| text.trim().starts_with(TOKEN_PREFIX)) {
            if text.is_none() {
                return Err(UsageError::FormerVariable("AGENT_TICKET", "AGENT_GATEWAY_TOKEN"));
            }
            report.note("AGENT_TICKET is ignored: a gateway token is read from AGENT_GATEWAY_TOKEN");
        }
        text.map(|text| text.trim().parse()).transpose().map_err(|_| UsageError::Token)
    }

    /// Runs `agent connect --gateway` and returns the exit code.
    pub(super) async fn run(
        &self,
        report: &Reporter,
        environment_ticket: Option<&str>,
        (tls, directions): (&TlsOptions, Directions),
    ) -> Result<u8, CommandError> {
        let (Some(gateway), Some(id)) = (&self.gateway, self.id) else { return Ok(super::USAGE) };
        let (tls, token) = (tls.tls()?, self.token(environment_ticket, report)?);
        // A byte stream cannot continue over a new connection, and a blocked one delays no other.
        let settings = Settings { reconnect: None, receive_timeout: OUTPUT_TIMEOUT, ..Settings::default() };
        let client = ClientBuilder::new(gateway.trim()).tls(tls).settings(settings);
        let client = client.proxies(proxy_environment::read()?);
        let client = match token {
            Some(token) => client.token(token),
            None => client,
        };
        let dialer = ServiceDialer { client, gateway: gateway.clone(), id };
        let done = match self.listen {
            None => dialer.pipe(directions, report).await,
            Some(address) => dialer.listen(address, report).await,
        };
        Ok(done.map_err(|failure| dialer.error(failure))?)
    }
}

/// Dials one service.
#[derive(Debug, Clone)]
struct ServiceDialer {
    client: ClientBuilder,
    gateway: String,
    id: u32,
}

impl ServiceDialer {
    fn error(&self, failure: GatewayFailure) -> GatewayError {
        failure.at(format!("server {} via gateway {}", self.id, self.gateway))
    }

    async fn dial(&self) -> Result<(Endpoint<Raw>, VirtualStream, u32), GatewayFailure> {
        let endpoint = self.client.connect().await.map_err(GatewayFailure::Connect)?;
        let connection = endpoint.dial(self.id).await.map_err(GatewayFailure::Dial)?;
        let number = connection.id();
        Ok((endpoint, connection.into_stream(), number))
    }

    /// Connects standard input and output to the service.
    async fn pipe(&self, directions: Directions, report: &Reporter) -> Result<u8, GatewayFailure> {
        let (endpoint, stream, number) = tokio::select! {
            dialled = self.dial() => dialled?,
            () = interrupted() => return Ok(INTERRUPTED),
        };
        report.reached(&self.gateway, self.id, number);
        let (recv, mut send) = tokio::io::split(stream);
        let their_end = Notify::new();
        let up = async {
            let input = Input { directions, their_end: &their_end };
            let write = async |bytes: Bytes| send.write_all(&bytes).await;
            let total = input.send(write, std::future::pending(), || report.input_open()).await?;
            send.shutdown().await.map_err(Stop::Stream)?;
            Ok(total)
        };
        let down = async {
            let total = pipe::receive_output(recv, standard_streams::output()).await;
            their_end.notify_one();
            total
        };
        let moving = async {
            if directions.send_only {
                // The service's answer is discarded, and its end is not awaited.
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
            Stop::Stream(error) => GatewayFailure::Broken(error),
            Stop::Output(error) => GatewayFailure::Output(error),
        })?;
        report.closed(sent, received);
        Ok(0)
    }

    /// Accepts local connections. Each has a gateway connection of its own, so that none delays another.
    async fn listen(&self, address: SocketAddr, report: &Reporter) -> Result<u8, GatewayFailure> {
        let listener = TcpListener::bind(address).await.map_err(GatewayFailure::Listen)?;
        let local = listener.local_addr().map_err(GatewayFailure::Listen)?;
        report.listening(local, &self.gateway, self.id);
        let mut bridges = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if bridges.len() < MAX_CONNECTIONS => {
                    let (stream, _) = accepted.map_err(GatewayFailure::Listen)?;
                    let dialer = self.clone();
                    bridges.spawn(async move { dialer.bridge(stream).await });
                }
                Some(ended) = bridges.join_next() => match ended {
                    Ok(Ok((sent, received))) => report.closed(sent, received),
                    Ok(Err(failure)) => report.error(&self.error(failure).into()),
                    Err(_) => {}
                },
                () = interrupted() => return Ok(INTERRUPTED),
            }
        }
    }

    async fn bridge(&self, stream: TcpStream) -> Result<(u64, u64), GatewayFailure> {
        let _ = stream.set_nodelay(true);
        let (_endpoint, service, _) = self.dial().await?;
        bridge(service, stream).await.map_err(GatewayFailure::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_port_or_a_host_with_one() {
        for (text, expected) in [
            ("22", Some("127.0.0.1:22")),
            ("host:22", Some("host:22")),
            ("[::1]:22", Some("[::1]:22")),
            ("host", None),
            ("::1", None),
            ("host:", None),
            ("0", None),
            ("70000", None),
            ("", None),
        ] {
            assert_eq!(target(text).ok().map(|name| name.to_string()).as_deref(), expected, "{text}");
        }
    }
}
