//! The ladder's last rung, for networks that let nothing out but one TCP connection at a time: the same QUIC tunnel, each datagram a message of
//! a virtual connection of the server's gateway.
//!
//! A listener that has the server's access key waits at the gateway under an id that only its ticket's holders can derive. The connector,
//! when it has given up everything else and with it the signalling line, dials that id with the one connection it may have.

use super::call::Call;
use super::call_auth::InitialKey;
use super::candidate::CandidatePath;
use super::config::ServerName;
use super::connection::Connection;
use super::error::{Error, Refusal, Stage};
use super::path::{PathInfo, PathKind};
use super::pinned_tls::{self, Role};
use super::quic;
use super::ticket::Secret;
use super::tunnel::Tunnel;
use crate::gateway::client::{
    ConnectError, DialClient, DialServer, Endpoint, Key, Raw, Settings, VirtualConnection,
};
use crate::limits::Backoff;
use crate::net::time;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long the gateway may take to let a connector in; a network that counts connections may still count the one before.
const ENTER_TIME: Duration = Duration::from_secs(8);
/// How long a dial may take.
const DIAL_TIME: Duration = Duration::from_secs(5);
/// Handshakes at a time; anybody may dial, but only who holds the ticket gets through one.
const SHAKING: usize = 8;
/// The first and the longest wait for a gateway that was not there when the listener began.
const AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// What carries the datagrams, where the tunnel asks for a lane.
const LANE: CandidatePath = CandidatePath::Relay;

/// Why the last rung is worth trying after this failure; `None` where it is not.
pub(super) fn reason(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoPath(_) => Some("neither a direct nor a relayed path came about"),
        Error::TimedOut(Stage::Server) | Error::Unreachable { .. } => {
            Some("the server's signalling does not answer")
        }
        _ => None,
    }
}

/// Says of an earlier failure that the gateway was tried too, and why that came to nothing where it tells more.
pub(super) fn explain(error: Error, failure: &Error) -> Error {
    tracing::debug!(%failure, "the gateway is no way either");
    match error {
        Error::NoPath(tried) => Error::NoPath(super::session::Tried { gateway: true, ..tried }),
        other => other,
    }
}

/// Reaches the ticket's listener through the gateway at `address`; `begun` is when the search for a path did.
pub(super) async fn connect(
    address: SocketAddr,
    secret: &Secret,
    (begun, reason): (Instant, &'static str),
) -> Result<Connection, Error> {
    let id = pinned_tls::gateway_id(secret).map_err(|error| Error::Local(error.to_string()))?;
    let entering = async {
        let stream = TcpStream::connect(address).await.map_err(|error| unreachable(address, &error))?;
        let local = stream.local_addr().map_err(|error| unreachable(address, &error))?;
        let _ = stream.set_nodelay(true);
        let settings = Settings { dial_timeout: DIAL_TIME, ..Settings::default() };
        let client = DialClient::new(address.to_string()).settings(settings).connect_over(stream).await;
        Ok((client.map_err(|error| unreachable(address, &error))?, local))
    };
    let entered = timeout(ENTER_TIME, entering).await.unwrap_or(Err(Error::TimedOut(Stage::Server)));
    let (endpoint, local) = entered?;
    let connection =
        endpoint.dial(id).await.map_err(|error| Error::Refused(Refusal::Told(error.to_string())))?;
    let road = PathEnds { local, remote: address, begun, reason };
    carry(connection, Some(endpoint), (secret, Role::Connector), road).await
}

fn unreachable(address: SocketAddr, problem: &dyn std::error::Error) -> Error {
    Error::Unreachable { server: address.to_string(), problem: problem.to_string() }
}

/// A listener at its server's gateway.
#[derive(Clone)]
pub(super) struct GatewayListener {
    pub(super) server: ServerName,
    pub(super) address: SocketAddr,
    pub(super) secret: Secret,
}

impl GatewayListener {
    /// Takes connections of those who hold the ticket, until nobody accepts them any more.
    pub(super) async fn run(self, key: String, done: mpsc::Sender<Result<Connection, Error>>) {
        tokio::select! {
            _ = self.wait(key, &done) => {}
            () = done.closed() => {}
        }
    }

    async fn wait(&self, key: String, done: &mpsc::Sender<Result<Connection, Error>>) -> Option<()> {
        let endpoint = self.register(key).await?;
        let mut shaking = JoinSet::new();
        loop {
            tokio::select! {
                accepted = endpoint.accept(), if shaking.len() < SHAKING => {
                    let local = endpoint.local_addr().unwrap_or(self.address);
                    shaking.spawn(self.clone().shake(accepted.ok()?, local, done.clone()));
                }
                Some(_) = shaking.join_next() => {}
            }
        }
    }

    /// Tries until the gateway is there; `None` where it lets nobody in, or there is none.
    async fn register(&self, key: String) -> Option<Endpoint<Raw>> {
        let (key, id) = (Key::new(key).ok()?, pinned_tls::gateway_id(&self.secret).ok()?);
        let server = DialServer::hmac(format!("ws://{}", self.server), id, key);
        let mut backoff = Backoff::new(AWAY, ChaCha20Rng::from_os_rng());
        loop {
            match server.connect().await {
                Ok(endpoint) => return Some(endpoint),
                Err(
                    error @ (ConnectError::Unreachable(_) | ConnectError::TimedOut(_) | ConnectError::Taken),
                ) => {
                    tracing::debug!(%error, "the gateway is away");
                    sleep(backoff.wait()).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "no way through the gateway");
                    return None;
                }
            }
        }
    }

    async fn shake(
        self,
        connection: VirtualConnection<Raw>,
        local: SocketAddr,
        done: mpsc::Sender<Result<Connection, Error>>,
    ) {
        let (begun, reason) = (time::now().mono, "the other side has no other path");
        let road = PathEnds { local, remote: self.address, begun, reason };
        match carry(connection, None, (&self.secret, Role::Listener), road).await {
            Ok(connection) => drop(done.send(Ok(connection)).await),
            // Anybody can dial; only who holds the ticket is worth a word.
            Err(error) => tracing::debug!(%error, "a call through the gateway came to nothing"),
        }
    }
}

/// What is told of the path.
struct PathEnds {
    local: SocketAddr,
    remote: SocketAddr,
    begun: Instant,
    reason: &'static str,
}

/// Shakes hands over a virtual connection. `endpoint` is closed with it.
async fn carry(
    connection: VirtualConnection<Raw>,
    endpoint: Option<Endpoint<Raw>>,
    (secret, role): (&Secret, Role),
    road: PathEnds,
) -> Result<Connection, Error> {
    let initial = InitialKey::without_call(secret).map_err(|error| Error::Local(error.to_string()))?;
    let (tunnel, _) = Tunnel::new();
    tunnel.set_active(Some(LANE));
    let (stop, stopped) = mpsc::channel(1);
    let (told, path) = watch::channel(None);
    let pump = pump(connection, Arc::clone(&tunnel), stopped);
    let task = tokio::spawn(async move {
        pump.await;
        if let Some(endpoint) = endpoint {
            endpoint.close().await;
        }
    });
    let established = match quic::establish(tunnel, secret, initial, role).await {
        Ok(established) => established,
        Err(error) => {
            Call::found(path, stop, task).end("the handshake failed").await;
            return Err(error);
        }
    };
    let PathEnds { local, remote, begun, reason } = road;
    told.send_replace(Some(PathInfo {
        kind: PathKind::Gateway,
        local,
        remote,
        rtt: Some(established.connection.rtt()),
        since: time::now().mono.saturating_duration_since(begun),
        reason: Some(reason.to_owned()),
    }));
    Ok(Connection::new(established, Call::found(path, stop, task)))
}

/// Carries datagrams as messages until either side wants no more.
async fn pump(connection: VirtualConnection<Raw>, tunnel: Arc<Tunnel>, mut stopped: mpsc::Receiver<String>) {
    let (mut sender, mut receiver) = connection.into_split();
    let outwards = async { while sender.send(tunnel.next_outgoing(LANE).await).await.is_ok() {} };
    let inwards = async {
        while let Ok(Some(datagram)) = receiver.receive().await {
            tunnel.deliver(LANE, &datagram);
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards => {}
        _ = stopped.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::session::Tried;

    #[test]
    fn the_gateway_is_tried_where_it_may_help_and_its_failure_is_told() {
        let no_path = Error::NoPath(Tried::default());
        let unreachable = Error::Unreachable { server: String::new(), problem: String::new() };
        for error in [&no_path, &unreachable, &Error::TimedOut(Stage::Server)] {
            assert!(reason(error).is_some(), "{error}");
        }
        for error in
            [Error::Offline, Error::Revoked, Error::Refused(Refusal::Busy), Error::TimedOut(Stage::Handshake)]
        {
            assert_eq!(reason(&error), None, "{error}");
        }
        let failed = explain(no_path, &Error::Offline);
        assert!(matches!(failed, Error::NoPath(Tried { gateway: true, .. })), "{failed:?}");
        assert!(matches!(explain(unreachable, &Error::Offline), Error::Unreachable { .. }));
    }

    #[test]
    fn an_id_is_derived_from_the_secret_and_one_that_access_keys_admit_to() {
        let ids: Vec<u32> =
            (0..100).map(|byte| pinned_tls::gateway_id(&Secret([byte; 16])).unwrap()).collect();
        assert_eq!(pinned_tls::gateway_id(&Secret([7; 16])).ok(), ids.get(7).copied());
        assert!(ids.iter().all(|id| *id >= 1 << 31));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 100);
    }
}
