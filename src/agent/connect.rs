//! The agent: listens with a ticket of its own making, or connects with somebody else's.

use super::call::{Call, CallRequest, CallResources, Signal};
use super::call_auth::{self, CallAuth};
use super::candidate::CandidatePath;
use super::config::{Config, ServerName};
use super::connection::Connection;
use super::error::Error;
use super::gateway_fallback;
use super::ice::RelayCredentials;
use super::listener::Listener;
use super::pinned_tls::{KeyError, Role};
use super::quic;
use super::session::{Mode, NO_PATH, SessionConfig};
use super::signaling_client::{self, Registered, Registration, ServerEvent, SignalingClient};
use super::ticket::{SECRET_LEN, Secret, Ticket};
use crate::net::time;
use crate::signaling::wire::{IceServer, Tag};
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

const QUEUE: usize = 64;
/// RFC 8445 section 5.3 asks for 24 bits; as the only fresh part of an offer it has 128.
const UFRAG_BYTES: usize = 16;
const TAG_SECRET_BYTES: usize = 20;

/// One side of connections between two machines.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    config: Config,
}

impl Agent {
    /// Makes an agent.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Registers with the configured server and makes a ticket for the other side.
    ///
    /// # Errors
    /// [`Error::Local`] without a server in the configuration; otherwise why the server did not take the registration.
    pub async fn listen(&self) -> Result<Listener, Error> {
        let server = self.config.server.clone();
        let server = server.ok_or_else(|| Error::Local("no server is configured".to_owned()))?;
        let mut registration = Registration {
            key: self.config.key.clone(),
            secret: Some(random_word(TAG_SECRET_BYTES)),
            epoch: None,
        };
        let (heard, heard_rx) = mpsc::channel(QUEUE);
        let line = register(&server, &registration, heard).await?;
        registration.epoch = line.welcome.epoch;
        let ticket = Ticket {
            host: server.host.clone(),
            port: server.port,
            tag: line.welcome.tag.to_string(),
            secret: Secret(rand::random::<[u8; SECRET_LEN]>()),
        };
        Ok(Listener::start(ticket, server, registration, self.config.mode, (line, heard_rx)))
    }

    /// Connects to the listener that made the ticket.
    ///
    /// # Errors
    /// [`Error`] says at which [`Stage`](super::Stage) it failed.
    pub async fn connect(&self, ticket: &Ticket) -> Result<Connection, Error> {
        let own = ServerName { host: ticket.host.clone(), port: ticket.port };
        let server = self.config.server.clone().unwrap_or(own);
        let callee = Tag::new(ticket.tag.clone()).ok_or(Error::Offline)?;
        let begun = time::now().mono;
        let name = server.to_string();
        let addresses = signaling_client::resolve(&server.host, server.port).await;
        let addresses = addresses.map_err(|error| Error::from_link(&name, &error))?;
        let connected = signaling_client::connect(&addresses).await;
        let (stream, address) = connected.map_err(|error| Error::from_link(&name, &error))?;
        match self.call(ticket, (&server, stream, address), callee).await {
            Ok(connection) => Ok(connection),
            Err(error) => {
                match gateway_fallback::reason(&error).filter(|_| self.config.mode != Mode::NoRelay) {
                    Some(reason) => {
                        let last = gateway_fallback::connect(address, &ticket.secret, (begun, reason)).await;
                        last.map_err(|failure| gateway_fallback::explain(error, &failure))
                    }
                    None => Err(error),
                }
            }
        }
    }

    /// Finds the listener through the server's signalling, and a path to it.
    async fn call(
        &self,
        ticket: &Ticket,
        (server, stream, address): (&ServerName, TcpStream, SocketAddr),
        callee: Tag,
    ) -> Result<Connection, Error> {
        let name = server.to_string();
        let ufrag = ufrag();
        let pwd = call_auth::connector_password(&ticket.secret, &ufrag).map_err(local)?;
        let mut setup =
            SessionConfig { role: Role::Connector, mode: self.config.mode, ufrag, pwd, own_relay: false };
        let mut resources = CallResources::new(address, None);
        let (stun2, stun2_rx) = oneshot::channel();
        resources.probe(async move { stun2_rx.await.ok().flatten() });
        if setup.mode.allows(CandidatePath::Direct) {
            resources.open_lane(CandidatePath::Direct, &setup, None);
        }

        let registration = Registration { key: self.config.key.clone(), secret: None, epoch: None };
        let (heard, heard_rx) = mpsc::channel(QUEUE);
        let opened = SignalingClient::open(stream, &server.host, &registration, heard).await;
        let (link, welcome) = opened.map_err(|error| Error::from_link(&name, &error))?;
        let _ = stun2.send(welcome.stun2.clone());
        let relay = relay_credentials(&welcome.ice_servers);
        setup.own_relay = relay.is_some();
        if setup.mode.allows(CandidatePath::Relay) {
            resources.open_lane(CandidatePath::Relay, &setup, relay);
        }
        let (signals, signals_rx) = mpsc::channel(QUEUE);
        tokio::spawn(pass_on(heard_rx, signals));
        let binding = CallAuth::of_connector(&ticket.secret, [&welcome.tag, &callee], &setup.ufrag);
        let opening = (CallRequest::Dial { tag: welcome.tag, callee }, binding.map_err(local)?);
        establish(resources, setup, &ticket.secret, opening, (link, signals_rx)).await
    }
}

/// A registered line to the server.
pub(super) struct ServerSession {
    pub(super) link: SignalingClient,
    pub(super) welcome: Registered,
    pub(super) server: SocketAddr,
    /// This side's address on it.
    pub(super) local: Option<IpAddr>,
}

/// Connects to a server and registers.
pub(super) async fn register(
    server: &ServerName,
    registration: &Registration,
    heard: mpsc::Sender<ServerEvent>,
) -> Result<ServerSession, Error> {
    let attempt = async {
        let addresses = signaling_client::resolve(&server.host, server.port).await?;
        let (stream, address) = signaling_client::connect(&addresses).await?;
        let local = stream.local_addr().ok().map(|local| local.ip());
        let (link, welcome) = SignalingClient::open(stream, &server.host, registration, heard).await?;
        Ok(ServerSession { link, welcome, server: address, local })
    };
    attempt.await.map_err(|error| Error::from_link(&server.to_string(), &error))
}

/// Draws a user name fragment for one call.
pub(super) fn ufrag() -> String {
    random_word(UFRAG_BYTES)
}

fn local(error: KeyError) -> Error {
    Error::Local(error.to_string())
}

/// Takes the relay's credentials from what registration brought, if any were given.
pub(super) fn relay_credentials(servers: &[IceServer]) -> Option<RelayCredentials> {
    let relay = servers.iter().find(|server| server.urls.iter().any(|url| url.starts_with("turn:")))?;
    Some(RelayCredentials { username: relay.username.clone()?, password: relay.credential.clone()? })
}

/// Negotiates a call and shakes hands over it.
pub(super) async fn establish(
    resources: CallResources,
    setup: SessionConfig,
    secret: &Secret,
    opening: (CallRequest, CallAuth),
    (link, signals): (SignalingClient, mpsc::Receiver<Signal>),
) -> Result<Connection, Error> {
    let (tunnel, role) = (resources.tunnel.clone(), setup.role);
    let mut call = Call::start(resources, setup, opening, link, signals);
    let initial = match call.ready().await {
        Ok(initial) => initial,
        Err(failure) => {
            let error = Error::from_call(failure);
            call.end(if matches!(error, Error::NoPath(_)) { NO_PATH } else { "it could not go on" }).await;
            return Err(error);
        }
    };
    match quic::establish(tunnel, secret, initial, role).await {
        Ok(established) => Ok(Connection::new(established, call)),
        Err(error) => {
            call.end("the handshake failed").await;
            Err(error)
        }
    }
}

async fn pass_on(mut heard: mpsc::Receiver<ServerEvent>, signals: mpsc::Sender<Signal>) {
    while let Some(heard) = heard.recv().await {
        let signal = match heard {
            ServerEvent::Request(request) => Signal::Request(request),
            ServerEvent::CallFailed { code, .. } | ServerEvent::Over(code) => Signal::Failed(code),
            ServerEvent::Closed => Signal::LineCut,
        };
        if signals.send(signal).await.is_err() {
            break;
        }
    }
}

/// Draws a lower-case word from the system's random source.
fn random_word(bytes: usize) -> String {
    let random: [u8; 32] = rand::random();
    data_encoding::BASE32_NOPAD.encode(&random[..bytes.min(32)]).to_ascii_lowercase()
}
