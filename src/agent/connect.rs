//! [`Agent`], and how a connector reaches the listener of a ticket or code.

use super::call::{self, CallRequest, CallResources, Negotiation};
use super::call_auth::{self, CallAuth};
use super::code::{self, ShortCode};
use super::config::{Config, ServerName};
use super::connection::{Connection, PathHandle};
use super::engine::{AccessKey, EngineCommand, EngineConfig, RelayCredentials};
use super::error::{ConnectError, Refusal, RegistrationError};
use super::gateway_fallback;
use super::keys::{AgentRole, Secret};
use super::path::PathPolicy;
use super::protocol::Protocol;
use super::quic::{HANDSHAKE_TIMEOUT, QuicEndpoint};
use super::resumption::{Callee, Resumption};
use super::servers::{self, ServerStream};
use super::session::{NO_PATH, SessionConfig};
use super::signaling_client::{Registered, RegistrationParams, ServerEvent, SignalingClient};
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

/// Whom a connector calls.
#[derive(Debug, Clone, Copy)]
enum Destination<'a> {
    Ticket(&'a Ticket),
    Code(&'a ShortCode),
}

impl Destination<'_> {
    /// Returns the secret, if it is known without the listener.
    fn secret(self) -> Option<Secret> {
        match self {
            Self::Ticket(ticket) => Some(ticket.secret.clone()),
            Self::Code(_) => None,
        }
    }

    /// Returns the listener's tag, and the secret.
    async fn find(self, opened: &mut OpenedCall) -> Result<(Tag, Secret), ConnectError> {
        match self {
            Self::Ticket(ticket) => {
                let tag = Tag::new(ticket.tag.clone()).ok_or(ConnectError::Offline)?;
                Ok((tag, ticket.secret.clone()))
            }
            Self::Code(code) => {
                let server = opened.server.to_string();
                let signaling = (&opened.signaling, &mut opened.events);
                code::resolve::resolve(code, signaling, &opened.registered.tag, &server).await
            }
        }
    }
}

/// What a connector has before its call: sockets that gather, and a registration.
struct OpenedCall {
    server: ServerName,
    resources: CallResources,
    signaling: SignalingClient,
    events: mpsc::Receiver<ServerEvent>,
    registered: Registered,
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
        let servers = match &self.config.servers[..] {
            [] => ticket.servers(),
            configured => configured.to_vec(),
        };
        self.connect_to(Destination::Ticket(ticket), servers).await
    }

    /// Connects to the listener that offers the code, at a configured server.
    ///
    /// # Errors
    /// [`ConnectError`] states which step failed.
    pub async fn connect_code(&self, code: &ShortCode) -> Result<Connection, ConnectError> {
        self.connect_to(Destination::Code(code), self.config.servers.clone()).await
    }

    async fn connect_to(
        &self,
        destination: Destination<'_>,
        mut servers: Vec<ServerName>,
    ) -> Result<Connection, ConnectError> {
        let (started, all) = (time::now().mono, servers.clone());
        let mut failed = None;
        loop {
            let (index, stream) = match servers::connect_first(&self.config.dialer, &servers).await {
                Ok(connected) => connected,
                Err(error) => return Err(failed.unwrap_or_else(|| error.into())),
            };
            let (server, address) = (servers.remove(index), stream.address);
            let mut secret = destination.secret();
            let called = async {
                let further = all.iter().filter(|other| **other != server).cloned().collect();
                let mut opened = self.open(&server, stream, further).await?;
                let (callee, found) = destination.find(&mut opened).await?;
                self.call(opened, &callee, secret.insert(found), &all).await
            };
            let error = match called.await {
                Ok(connection) => return Ok(connection),
                // The listener may have registered with another server.
                Err(
                    error @ (ConnectError::Offline
                    | ConnectError::Registration(_)
                    | ConnectError::Refused(Refusal::UnknownCode)),
                ) if !servers.is_empty() => {
                    failed = Some(error);
                    continue;
                }
                Err(error) => error,
            };
            let reason =
                gateway_fallback::reason(&error).filter(|_| self.config.policy != PathPolicy::DirectOnly);
            let (Some(reason), Some(secret)) = (reason, secret) else { return Err(error) };
            let engine = self.engine_config(&server, address, Vec::new());
            let connected = gateway_fallback::connect(&engine, &secret, (started, reason)).await;
            return connected.map_err(|failure| gateway_fallback::add_attempt(error, &failure));
        }
    }

    /// Registers with the server, and begins to gather meanwhile, at the further servers too.
    async fn open(
        &self,
        server: &ServerName,
        stream: ServerStream,
        further: Vec<ServerName>,
    ) -> Result<OpenedCall, ConnectError> {
        let resources = CallResources::start(self.engine_config(server, stream.address, further))?;
        let registration = RegistrationParams { key: self.config.key.clone(), secret: None, epoch: None };
        let (events, events_rx) = mpsc::channel(QUEUE);
        let opened = SignalingClient::open(stream.stream, server, &registration, events).await;
        let (signaling, registered) =
            opened.map_err(|error| RegistrationError::from_signaling(&server.to_string(), error))?;
        resources.probe_second_port(registered.stun2.clone());
        resources.send(EngineCommand::AllowSpray(registered.spray));
        Ok(OpenedCall { server: server.clone(), resources, signaling, events: events_rx, registered })
    }

    /// Calls the listener through the server's signalling and finds a path to it. `servers` are those at which it may be.
    async fn call(
        &self,
        opened: OpenedCall,
        callee: &Tag,
        secret: &Secret,
        servers: &[ServerName],
    ) -> Result<Connection, ConnectError> {
        let OpenedCall { server, resources, signaling, events, registered } = opened;
        let ufrag = random_ufrag();
        let pwd = call_auth::connector_password(secret, &ufrag);
        let relay = relay_credentials(&registered.ice_servers);
        let config = SessionConfig {
            role: AgentRole::Connector,
            policy: self.config.policy,
            ufrag,
            pwd,
            own_relay: relay.is_some(),
        };
        resources.send(EngineCommand::Relay(relay));
        let auth = CallAuth::of_connector(secret, [&registered.tag, callee], &config.ufrag);
        // The one in use is the first.
        let others = servers.iter().filter(|other| **other != server).cloned();
        let resumption = Resumption::of_connector(Callee {
            servers: std::iter::once(server.clone()).chain(others).collect(),
            dialer: self.config.dialer.clone(),
            key: self.config.key.clone(),
            secret: secret.clone(),
            tag: callee.clone(),
            ufrag: config.ufrag.clone(),
            session: resources.endpoint.session(),
        });
        let request = CallRequest::Outgoing { tag: registered.tag, callee: callee.clone() };
        let endpoint = resources.endpoint.clone();
        let negotiation = call::negotiate(resources, config, request, auth, (signaling, events), resumption)?;
        establish(endpoint, (secret, AgentRole::Connector), negotiation).await
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
