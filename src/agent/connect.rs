//! [`Agent`], and how a connector reaches the listener that made a ticket.

use super::call::{self, CallRequest, CallResources, Negotiation};
use super::call_auth::{self, CallAuth};
use super::config::{Config, ServerName};
use super::connection::{Connection, PathHandle};
use super::engine::{AccessKey, EngineCommand, EngineConfig, RelayCredentials};
use super::error::{ConnectError, RegistrationError};
use super::gateway_fallback;
use super::keys::{AgentRole, Secret};
use super::path::PathPolicy;
use super::protocol::Protocol;
use super::quic::{HANDSHAKE_TIMEOUT, QuicEndpoint};
use super::resumption::{Callee, Resumption};
use super::servers::{self, ServerStream};
use super::session::{NO_PATH, SessionConfig};
use super::signaling_client::{RegistrationParams, SignalingClient};
use super::ticket::Ticket;
use crate::net::time;
use crate::signaling::wire::{IceServer, Tag};
use std::net::SocketAddr;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

const QUEUE: usize = 64;
/// RFC 8445 section 5.3 requires 24 bits; this is the only fresh part of an offer and has 128.
const UFRAG_BYTES: usize = 16;

/// An agent: listens for connections or connects to a listener.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    pub(super) config: Config,
}

impl Agent {
    /// Returns an agent with this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Connects to the listener that made the ticket.
    ///
    /// # Errors
    /// [`ConnectError`] states which step failed.
    pub async fn connect(&self, ticket: &Ticket) -> Result<Connection, ConnectError> {
        let mut servers = match &self.config.servers[..] {
            [] => ticket.servers(),
            configured => configured.to_vec(),
        };
        let callee = Tag::new(ticket.tag.clone()).ok_or(ConnectError::Offline)?;
        let started = time::now().mono;
        let mut failed = None;
        loop {
            let (index, opened) = match servers::connect_first(&self.config.dialer, &servers).await {
                Ok(connected) => connected,
                Err(error) => return Err(failed.unwrap_or_else(|| error.into())),
            };
            let (server, address) = (servers.remove(index), opened.address);
            let error = match self.call(ticket, (&server, opened), callee.clone()).await {
                Ok(connection) => return Ok(connection),
                // The listener may have registered with another server.
                Err(error @ (ConnectError::Offline | ConnectError::Registration(_)))
                    if !servers.is_empty() =>
                {
                    failed = Some(error);
                    continue;
                }
                Err(error) => error,
            };
            let reason =
                gateway_fallback::reason(&error).filter(|_| self.config.policy != PathPolicy::DirectOnly);
            let Some(reason) = reason else { return Err(error) };
            let engine = self.engine_config(&server, address, Vec::new());
            let connected = gateway_fallback::connect(&engine, &ticket.secret, (started, reason)).await;
            return connected.map_err(|failure| gateway_fallback::add_attempt(error, &failure));
        }
    }

    /// Calls the listener through the server's signalling and finds a path to it.
    async fn call(
        &self,
        ticket: &Ticket,
        (server, opened): (&ServerName, ServerStream),
        callee: Tag,
    ) -> Result<Connection, ConnectError> {
        let ufrag = random_ufrag();
        let pwd = call_auth::connector_password(&ticket.secret, &ufrag);
        let mut config = SessionConfig {
            role: AgentRole::Connector,
            policy: self.config.policy,
            ufrag,
            pwd,
            own_relay: false,
        };
        let resources = CallResources::start(self.engine_config(
            server,
            opened.address,
            self.further_servers(ticket, server),
        ))?;
        let registration = RegistrationParams { key: self.config.key.clone(), secret: None, epoch: None };
        let (events, events_rx) = mpsc::channel(QUEUE);
        let opened = SignalingClient::open(opened.stream, server, &registration, events).await;
        let (signaling, registered) =
            opened.map_err(|error| RegistrationError::from_signaling(&server.to_string(), error))?;
        resources.probe_second_port(registered.stun2.clone());
        resources.send(EngineCommand::AllowSpray(registered.spray));
        let relay = relay_credentials(&registered.ice_servers);
        config.own_relay = relay.is_some();
        resources.send(EngineCommand::Relay(relay));
        let auth = CallAuth::of_connector(&ticket.secret, [&registered.tag, &callee], &config.ufrag);
        let resumption = Resumption::of_connector(Callee {
            servers: std::iter::once(server.clone()).chain(self.further_servers(ticket, server)).collect(),
            dialer: self.config.dialer.clone(),
            key: self.config.key.clone(),
            secret: ticket.secret.clone(),
            tag: callee.clone(),
            ufrag: config.ufrag.clone(),
            session: resources.endpoint.session(),
        });
        let request = CallRequest::Outgoing { tag: registered.tag, callee };
        let endpoint = resources.endpoint.clone();
        let negotiation =
            call::negotiate(resources, config, request, auth, (signaling, events_rx), resumption)?;
        establish(endpoint, (&ticket.secret, AgentRole::Connector), negotiation).await
    }

    /// Returns the other servers at which the listener may be.
    fn further_servers(&self, ticket: &Ticket, used: &ServerName) -> Vec<ServerName> {
        let mut known =
            if self.config.servers.is_empty() { ticket.servers() } else { self.config.servers.clone() };
        known.retain(|server| server != used);
        known
    }

    /// Returns the configuration of an ICE engine that uses the server `name` at the address `server`.
    pub(super) fn engine_config(
        &self,
        name: &ServerName,
        server: SocketAddr,
        further_servers: Vec<ServerName>,
    ) -> EngineConfig {
        EngineConfig {
            is_ping: self.config.protocol == Protocol::PING,
            implementation: self.config.ice,
            policy: self.config.policy,
            server,
            name: name.clone(),
            further_servers,
            key: self.config.key.clone().map(AccessKey),
            dialer: self.config.dialer.clone(),
            port_mapping: self.config.port_mapping,
            is_spray_allowed: self.config.spray,
        }
    }
}

/// Completes the QUIC handshake over a path that carries data.
pub(super) async fn handshake(
    endpoint: QuicEndpoint,
    (secret, role): (&Secret, AgentRole),
    initial: call_auth::InitialKey,
    path: PathHandle,
) -> Result<Connection, ConnectError> {
    match in_time(endpoint.handshake(secret, &initial, role)).await {
        Ok(quic) => Ok(Connection::new(quic, path)),
        Err(error) => {
            path.close("the handshake failed").await;
            Err(error)
        }
    }
}

/// Completes the QUIC handshake of a call as soon as its first datagrams can be sent, which may be before a path has answered.
pub(super) async fn establish(
    endpoint: QuicEndpoint,
    (secret, role): (&Secret, AgentRole),
    mut negotiation: Negotiation,
) -> Result<Connection, ConnectError> {
    let (_, never) = oneshot::channel();
    let initial = std::mem::replace(&mut negotiation.initial, never);
    let handshake = async {
        match initial.await {
            Ok(initial) => endpoint.handshake(secret, &initial, role).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::pin!(handshake);
    let connected = tokio::select! {
        connected = &mut handshake => connected,
        result = negotiation.result() => match result {
            Ok(()) => in_time(handshake).await,
            Err(error) => {
                let reason = if matches!(error, ConnectError::NoPath(_)) { NO_PATH } else { "it could not go on" };
                negotiation.path.close(reason).await;
                return Err(error);
            }
        },
    };
    match connected {
        Ok(quic) => Ok(Connection::new(quic, negotiation.path)),
        Err(error) => {
            negotiation.path.close("the handshake failed").await;
            Err(error)
        }
    }
}

async fn in_time<T>(handshake: impl Future<Output = Result<T, ConnectError>>) -> Result<T, ConnectError> {
    timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| ConnectError::HandshakeTimedOut)?
}

/// Returns the user name fragment of one call.
pub(super) fn random_ufrag() -> String {
    random_text(UFRAG_BYTES)
}

/// Returns the TURN credentials of a registration, if the server granted any.
pub(super) fn relay_credentials(servers: &[IceServer]) -> Option<RelayCredentials> {
    let relay = servers.iter().find(|server| server.urls.iter().any(|url| url.starts_with("turn:")))?;
    Some(RelayCredentials { username: relay.username.clone()?, password: relay.credential.clone()? })
}

/// Returns lower-case base32 of `bytes` random bytes.
pub(super) fn random_text(bytes: usize) -> String {
    let random: [u8; 32] = rand::random();
    data_encoding::BASE32_NOPAD.encode(&random[..bytes.min(32)]).to_ascii_lowercase()
}
