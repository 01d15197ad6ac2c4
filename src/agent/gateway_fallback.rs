//! The last path to try: the QUIC tunnel through the server's gateway, one datagram per message of a virtual connection.
//!
//! It serves networks that allow nothing but one TCP connection at a time. A listener with the server's access key accepts connections at the
//! gateway under an id that only holders of its ticket can derive. A connector that has failed otherwise, and has closed its signalling
//! connection, dials that id.

use super::call_auth::InitialKey;
use super::connect;
use super::connection::{Connection, PathHandle, ServerProbe};
use super::datagram_queue::DatagramQueue;
use super::engine::EngineConfig;
use super::error::{ConnectError, PathAttempts, Refusal, RegistrationError};
use super::keys::{AgentRole, Secret};
use super::path::{PathInfo, PathKind, PathTransport};
use super::ping::{self, Describe};
use super::quic::QuicEndpoint;
use super::tunnel::Tunnel;
use crate::gateway::client::{
    ClientBuilder, ConnectError as GatewayError, Endpoint, Key, Raw, ServerBuilder, Settings,
    VirtualConnection,
};
use crate::limits::Backoff;
use crate::net::dialer::DialTarget;
use crate::net::time;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Time limit of the connection to the gateway; a network that limits connections may still count the previous one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of concurrent handshakes. Anybody may dial; only a holder of the ticket completes one.
const MAX_HANDSHAKES: usize = 8;
/// The first and the longest wait for a gateway that is not reachable.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Returns why the gateway may help after this error; `None` if it cannot.
pub(super) fn reason(error: &ConnectError) -> Option<&'static str> {
    match error {
        ConnectError::NoPath(_) => Some("no direct or relayed path was found"),
        ConnectError::Registration(
            RegistrationError::TimedOut { .. } | RegistrationError::Unreachable { .. },
        ) => Some("the server's signalling does not answer"),
        _ => None,
    }
}

/// Adds the failed attempt through the gateway to the earlier error.
pub(super) fn add_attempt(error: ConnectError, failure: &ConnectError) -> ConnectError {
    tracing::debug!(%failure, "no connection through the gateway");
    match error {
        ConnectError::NoPath(attempts) => ConnectError::NoPath(PathAttempts { gateway: true, ..attempts }),
        other => other,
    }
}

/// Connects to the ticket's listener through the gateway of the server. `started` is the time when the search for a path began.
pub(super) async fn connect(
    config: &EngineConfig,
    secret: &Secret,
    (started, reason): (Instant, &'static str),
) -> Result<Connection, ConnectError> {
    let connected = timeout(CONNECT_TIMEOUT, connect_gateway(config)).await;
    let timed_out = |_| RegistrationError::TimedOut { server: config.server.to_string() };
    let (endpoint, local) = connected.map_err(timed_out)??;
    let dialled = endpoint.dial(secret.gateway_id()).await;
    let connection = dialled.map_err(|error| ConnectError::Refused(Refusal::Stated(error.to_string())))?;
    let probe = ServerProbe::new(config);
    let ends = PathEnds { local, remote: config.server, probe, started, reason, is_ping: config.is_ping };
    handshake(connection, Some(endpoint), (secret, AgentRole::Connector), ends).await
}

async fn connect_gateway(config: &EngineConfig) -> Result<(Endpoint<Raw>, SocketAddr), RegistrationError> {
    let address = config.server;
    let target = DialTarget {
        host: &config.name.host,
        port: config.name.port,
        address: Some(address),
        tls: config.name.tls.then_some(&[]),
        send_buffer: None,
        silence_limit: None,
    };
    let dialed = config.dialer.dial(target, CONNECT_TIMEOUT).await;
    let dialed = dialed.map_err(|error| unreachable(address, io::Error::from(error)))?;
    let local =
        dialed.local.ok_or_else(|| unreachable(address, io::Error::from(io::ErrorKind::NotConnected)))?;
    let settings = Settings { dial_timeout: DIAL_TIMEOUT, ..Settings::default() };
    let client = ClientBuilder::new(address.to_string()).settings(settings).connect_over(dialed.stream).await;
    Ok((client.map_err(|error| unreachable(address, error))?, local))
}

fn unreachable(server: SocketAddr, source: impl StdError + Send + Sync + 'static) -> RegistrationError {
    RegistrationError::Unreachable { server: server.to_string(), source: Box::new(source) }
}

/// Accepts a listener's connections at its server's gateway.
#[derive(Clone)]
pub(super) struct GatewayListener {
    pub(super) config: EngineConfig,
    pub(super) secret: Secret,
    /// What a ping learns of this side's network.
    pub(super) describe: Describe,
}

impl GatewayListener {
    /// Accepts connections from holders of the ticket until the receiver of `accepted` is dropped.
    pub(super) async fn run(self, key: String, accepted: mpsc::Sender<Result<Connection, ConnectError>>) {
        tokio::select! {
            _ = self.accept(key, &accepted) => {}
            () = accepted.closed() => {}
        }
    }

    async fn accept(
        &self,
        key: String,
        accepted: &mpsc::Sender<Result<Connection, ConnectError>>,
    ) -> Option<()> {
        let endpoint = self.register(key).await?;
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                dialled = endpoint.accept(), if handshakes.len() < MAX_HANDSHAKES => {
                    let local = endpoint.local_addr().unwrap_or(self.config.server);
                    handshakes.spawn(self.clone().handshake(dialled.ok()?, local, accepted.clone()));
                }
                Some(_) = handshakes.join_next() => {}
            }
        }
    }

    /// Retries until the gateway is reachable; `None` if it refuses the listener, or the server has none.
    async fn register(&self, key: String) -> Option<Endpoint<Raw>> {
        let key = Key::new(key).ok()?;
        let (name, dialer) = (&self.config.name, &self.config.dialer);
        let url = format!("{}://{}", if name.tls { "wss" } else { "ws" }, name.authority());
        let server = ServerBuilder::hmac(url, self.secret.gateway_id(), key)
            .tls(dialer.tls.clone())
            .proxies(dialer.proxies.clone());
        let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
        loop {
            match server.connect().await {
                Ok(endpoint) => return Some(endpoint),
                Err(
                    error @ (GatewayError::Unreachable(_)
                    | GatewayError::TimedOut(_)
                    | GatewayError::DuplicateServer),
                ) => {
                    tracing::debug!(%error, "the gateway is not reachable");
                    sleep(backoff.wait()).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the gateway refuses this listener");
                    return None;
                }
            }
        }
    }

    async fn handshake(
        self,
        connection: VirtualConnection<Raw>,
        local: SocketAddr,
        accepted: mpsc::Sender<Result<Connection, ConnectError>>,
    ) {
        let (started, reason) = (time::now().mono, "the other side has no other path");
        let probe = ServerProbe::new(&self.config);
        let ends = PathEnds { local, remote: self.config.server, probe, started, reason, is_ping: false };
        match handshake(connection, None, (&self.secret, AgentRole::Listener), ends).await {
            Ok(connection) if connection.is_ping() => ping::respond(connection, self.describe).await,
            Ok(connection) => drop(accepted.send(Ok(connection)).await),
            // Anybody can dial: a failed handshake is not reported as a failed call.
            Err(error) => tracing::debug!(%error, "a handshake through the gateway failed"),
        }
    }
}

/// What a [`PathInfo`] states about the path through the gateway.
struct PathEnds {
    local: SocketAddr,
    remote: SocketAddr,
    probe: ServerProbe,
    started: Instant,
    reason: &'static str,
    is_ping: bool,
}

/// Completes the QUIC handshake over a virtual connection. `endpoint` is closed with the connection.
async fn handshake(
    connection: VirtualConnection<Raw>,
    endpoint: Option<Endpoint<Raw>>,
    (secret, role): (&Secret, AgentRole),
    ends: PathEnds,
) -> Result<Connection, ConnectError> {
    let queue = Arc::new(DatagramQueue::default());
    let tunnel = Tunnel::with_queue(Arc::clone(&queue));
    let quic = QuicEndpoint::new(Arc::clone(&tunnel))?.for_ping(ends.is_ping);
    let (stop, stopped) = mpsc::channel(1);
    let (path, path_rx) = watch::channel(None);
    let (_, signaling_lost) = watch::channel(false);
    let forwarding = forward(connection, (tunnel, queue), stopped);
    let task = tokio::spawn(async move {
        forwarding.await;
        if let Some(endpoint) = endpoint {
            endpoint.close().await;
        }
    });
    let handle = PathHandle::new(path_rx, signaling_lost, ends.probe, stop, task);
    let connection =
        connect::handshake(quic, (secret, role), InitialKey::without_call(secret), handle).await?;
    path.send_replace(Some(PathInfo {
        kind: PathKind::Gateway,
        transport: PathTransport::Tcp,
        local: ends.local,
        remote: ends.remote,
        rtt: Some(connection.rtt()),
        since: time::now().mono.saturating_duration_since(ends.started),
        reason: Some(ends.reason.to_owned()),
        is_lost: false,
    }));
    Ok(connection)
}

/// Forwards datagrams as messages until either side ends.
async fn forward(
    connection: VirtualConnection<Raw>,
    (tunnel, queue): (Arc<Tunnel>, Arc<DatagramQueue>),
    mut stopped: mpsc::Receiver<String>,
) {
    let (mut sender, mut receiver) = connection.into_split();
    let send = async { while sender.send(queue.next().await).await.is_ok() {} };
    let receive = async {
        while let Ok(Some(datagram)) = receiver.receive().await {
            tunnel.deliver(datagram);
        }
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
        _ = stopped.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out() -> ConnectError {
        RegistrationError::TimedOut { server: String::new() }.into()
    }

    #[test]
    fn the_gateway_is_tried_where_it_may_help_and_its_failure_is_reported() {
        let no_path = ConnectError::NoPath(PathAttempts::default());
        for error in [&no_path, &unreachable(([0; 4], 0).into(), std::fmt::Error).into(), &timed_out()] {
            assert!(reason(error).is_some(), "{error}");
        }
        for error in [
            ConnectError::Offline,
            RegistrationError::Revoked.into(),
            ConnectError::Refused(Refusal::Busy),
            ConnectError::HandshakeTimedOut,
        ] {
            assert_eq!(reason(&error), None, "{error}");
        }
        let failed = add_attempt(no_path, &ConnectError::Offline);
        assert!(matches!(failed, ConnectError::NoPath(PathAttempts { gateway: true, .. })), "{failed:?}");
        let failed = add_attempt(timed_out(), &ConnectError::Offline);
        assert!(
            matches!(failed, ConnectError::Registration(RegistrationError::TimedOut { .. })),
            "{failed:?}"
        );
    }
}
