//! Endpoints, and the task that keeps an endpoint connected.

use super::address::{Address, EndpointCredentials, refused};
use super::codec::Codec;
use super::error::{AcceptError, ConnectError, ConnectionError, DialError};
use super::gateway_connection::GatewayConnection;
use super::machine::Mux;
use super::settings::Settings;
use super::transport::{FrameTransport, ReadTimeouts};
use super::virtual_connection::VirtualConnection;
use crate::limits::Backoff;
use crate::net::dialer::Dialer;
use crate::net::network_changes::NetworkChanges;
use crate::net::time;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long closing waits for queued messages to be sent.
const FLUSH: Duration = Duration::from_secs(2);

/// How long the gateway may take to answer a probe after the host's addresses have changed.
const PROBE: Duration = Duration::from_secs(1);

/// The state of an endpoint's connection to the gateway.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Status {
    /// Connected.
    Connected,
    /// The connection was lost; the endpoint tries to reconnect.
    Reconnecting(ConnectionError),
    /// The endpoint has ended.
    Closed(ConnectionError),
}

#[derive(Debug, Clone)]
enum LinkState {
    Connected(Arc<GatewayConnection>),
    Reconnecting(ConnectionError),
    Closed(ConnectionError),
}

/// Ends the endpoint when its last user drops it.
#[derive(Debug)]
pub(super) struct EndpointGuard {
    stop: watch::Sender<bool>,
}

/// Stops accepting when the last [`Endpoint`] is dropped.
#[derive(Debug)]
struct AcceptGuard {
    state: watch::Receiver<LinkState>,
}

impl Drop for AcceptGuard {
    /// Later dials to this endpoint are closed at once; the connection lives as long as its virtual connections.
    fn drop(&mut self) {
        if let LinkState::Connected(connection) = &*self.state.borrow() {
            connection.stop_accepting();
        }
    }
}

/// How to reach the gateway.
#[derive(Debug, Clone)]
pub(super) struct GatewayTarget {
    pub(super) address: Address,
    pub(super) dialer: Dialer,
    pub(super) credentials: EndpointCredentials,
    pub(super) settings: Settings,
}

/// One endpoint of a gateway: a client or a server. Cheap to clone. The endpoint ends when its last clone and its last virtual connection
/// are dropped.
///
/// Incoming virtual connections wait in a backlog until [`Endpoint::accept`] takes them. When the connection to the gateway is lost, all
/// virtual connections end with [`ConnectionError`]; `dial` and `accept` continue with the next connection.
#[derive(Debug, Clone)]
pub struct Endpoint<C> {
    state: watch::Receiver<LinkState>,
    guard: Arc<EndpointGuard>,
    _accept_guard: Arc<AcceptGuard>,
    dial_timeout: Duration,
    codec: C,
}

type Running = Pin<Box<dyn Future<Output = ConnectionError> + Send>>;

impl<C: Codec> Endpoint<C> {
    /// Connects, and reconnects later if that is configured.
    pub(super) async fn connect(target: GatewayTarget, codec: C) -> Result<Self, ConnectError> {
        let (stop, shutdown) = watch::channel(false);
        let first = target.establish(shutdown.clone()).await?;
        Ok(Self::start(first, Some(target.clone()), (stop, shutdown), &target.settings, codec))
    }

    /// Uses an existing stream, and does not reconnect.
    pub(super) async fn over(
        transport: FrameTransport,
        credentials: &EndpointCredentials,
        settings: &Settings,
        codec: C,
    ) -> Result<Self, ConnectError> {
        let (stop, shutdown) = watch::channel(false);
        let first = establish((transport, None), credentials, settings, shutdown.clone()).await?;
        Ok(Self::start(first, None, (stop, shutdown), settings, codec))
    }

    fn start(
        (connection, running): (Arc<GatewayConnection>, Running),
        target: Option<GatewayTarget>,
        (stop, shutdown): (watch::Sender<bool>, watch::Receiver<bool>),
        settings: &Settings,
        codec: C,
    ) -> Self {
        let (state_sender, state) = watch::channel(LinkState::Connected(Arc::clone(&connection)));
        let dial_timeout = settings.dial_timeout;
        tokio::spawn(run_endpoint(connection, running, target, state_sender, shutdown));
        let accept_guard = Arc::new(AcceptGuard { state: state.clone() });
        Self {
            state,
            guard: Arc::new(EndpointGuard { stop }),
            _accept_guard: accept_guard,
            dial_timeout,
            codec,
        }
    }

    /// Connects to the server with this id, or to the client where this endpoint is a server (S2-23, S2-13). Several dials may run at a
    /// time.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, remote: u32) -> Result<VirtualConnection<C>, DialError> {
        let dialling = async {
            let connection = self.connected().await?;
            let conn = connection.dial(remote).await?.ok_or(DialError::Refused(remote))?;
            Ok(VirtualConnection::new(connection, conn, remote, Arc::clone(&self.guard), self.codec.clone()))
        };
        timeout(self.dial_timeout, dialling).await.unwrap_or(Err(DialError::TimedOut(self.dial_timeout)))
    }

    /// Waits until the endpoint is connected.
    async fn connected(&self) -> Result<Arc<GatewayConnection>, ConnectionError> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                LinkState::Connected(connection) if connection.error().is_none() => {
                    return Ok(Arc::clone(connection));
                }
                LinkState::Closed(error) => return Err(error.clone()),
                LinkState::Connected(_) | LinkState::Reconnecting(_) => {}
            }
            state.changed().await.map_err(|_| ConnectionError::LocallyClosed)?;
        }
    }

    /// Waits for the next incoming virtual connection (S2-24). Several calls may wait; a dropped call loses nothing.
    ///
    /// # Errors
    /// [`AcceptError`]: the endpoint has ended.
    pub async fn accept(&self) -> Result<VirtualConnection<C>, AcceptError> {
        let mut state = self.state.clone();
        loop {
            let connection = match &*state.borrow_and_update() {
                LinkState::Connected(connection) => Some(Arc::clone(connection)),
                LinkState::Reconnecting(_) => None,
                LinkState::Closed(error) => return Err(error.clone().into()),
            };
            let accepted = async {
                match &connection {
                    Some(connection) => connection.accept().await,
                    None => std::future::pending().await,
                }
            };
            let (conn, remote) = tokio::select! {
                accepted = accepted => accepted,
                changed = state.changed() => {
                    changed.map_err(|_| ConnectionError::LocallyClosed)?;
                    continue;
                }
            };
            if let Some(connection) = connection {
                let guard = Arc::clone(&self.guard);
                return Ok(VirtualConnection::new(connection, conn, remote, guard, self.codec.clone()));
            }
        }
    }

    /// Returns the local address while the endpoint is connected over TCP.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &*self.state.borrow() {
            LinkState::Connected(connection) => connection.local,
            LinkState::Reconnecting(_) | LinkState::Closed(_) => None,
        }
    }

    /// Returns the state of the connection to the gateway.
    #[must_use]
    pub fn status(&self) -> Status {
        status(&self.state.borrow())
    }

    /// Returns a stream of all later changes of [`Endpoint::status`].
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut state = self.state.clone();
        state.borrow_and_update();
        Changes(state)
    }

    /// Closes all virtual connections and ends the endpoint. Queued messages are sent first, for at most two seconds.
    pub async fn close(self) {
        self.guard.stop.send_replace(true);
        let mut state = self.state;
        let _ = state.wait_for(|state| matches!(state, LinkState::Closed(_))).await;
    }
}

/// Changes of an endpoint's [`Status`].
#[derive(Debug)]
pub struct Changes(watch::Receiver<LinkState>);

impl Changes {
    /// Waits for the next change; returns only the last of several. `None` after the end.
    pub async fn next(&mut self) -> Option<Status> {
        self.0.changed().await.ok()?;
        Some(status(&self.0.borrow_and_update()))
    }
}

fn status(state: &LinkState) -> Status {
    match state {
        LinkState::Connected(_) => Status::Connected,
        LinkState::Reconnecting(error) => Status::Reconnecting(error.clone()),
        LinkState::Closed(error) => Status::Closed(error.clone()),
    }
}

impl GatewayTarget {
    async fn establish(
        &self,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(Arc<GatewayConnection>, Running), ConnectError> {
        let settings = &self.settings;
        let opened = self.address.open(&self.dialer, settings.max_packet, settings.connect_timeout).await?;
        establish(opened, &self.credentials, settings, shutdown).await
    }
}

/// Authenticates and waits for the gateway's first answer.
async fn establish(
    (mut transport, local): (FrameTransport, Option<SocketAddr>),
    credentials: &EndpointCredentials,
    settings: &Settings,
    shutdown: watch::Receiver<bool>,
) -> Result<(Arc<GatewayConnection>, Running), ConnectError> {
    let limit = settings.auth_timeout;
    let establishing = async {
        credentials.authenticate(&mut transport).await?;
        let mux = Mux::new(settings.limits(), credentials.credit(), credentials.token());
        let connection = Arc::new(GatewayConnection::new(mux, local));
        let mut running: Running =
            Box::pin(run(Arc::clone(&connection), transport, settings.clone(), shutdown));
        tokio::select! {
            biased;
            () = connection.ready() => Ok((connection, running)),
            error = &mut running => Err(match error {
                ConnectionError::Protocol(_) => ConnectError::NotAuthenticated,
                // Both sides have proven that they know the key.
                ConnectionError::Closed | ConnectionError::Io(_) if credentials.credit() => ConnectError::DuplicateServer,
                ConnectionError::Io(error) => refused(io::Error::new(error.kind(), error)),
                _ => ConnectError::Refused,
            }),
        }
    };
    timeout(limit, establishing).await.unwrap_or(Err(ConnectError::TimedOut(limit)))
}

/// Resolves when the endpoint is to end, or when its last user is gone.
async fn stop(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|shutdown| *shutdown).await;
}

/// Reads and writes until the connection fails or the endpoint is to end.
async fn run(
    connection: Arc<GatewayConnection>,
    transport: FrameTransport,
    settings: Settings,
    mut shutdown: watch::Receiver<bool>,
) -> ConnectionError {
    let timeouts = ReadTimeouts { receiver: settings.receive_timeout, idle: settings.idle_timeout };
    let (reader, writer) = transport.split(settings.read_buffer.max(1));
    let (reading, writing) = (reader.run(&connection, timeouts), writer.run(&connection));
    tokio::pin!(reading, writing);
    let error = tokio::select! {
        error = &mut reading => error,
        error = &mut writing => error,
        () = stop(&mut shutdown) => {
            connection.finish();
            let _ = timeout(FLUSH, &mut writing).await;
            ConnectionError::LocallyClosed
        }
    };
    connection.fail(error.clone());
    error
}

/// Keeps an endpoint connected.
async fn run_endpoint(
    mut connection: Arc<GatewayConnection>,
    mut running: Running,
    target: Option<GatewayTarget>,
    state_sender: watch::Sender<LinkState>,
    mut shutdown: watch::Receiver<bool>,
) {
    let plan = target.as_ref().and_then(|target| Some((target, target.settings.reconnect?)));
    let mut backoff = plan.map(|(_, range)| Backoff::new(range, ChaCha20Rng::from_os_rng()));
    // Clients reconnect when they are used; a server is of use only while it is connected.
    let mut network =
        plan.filter(|(target, _)| target.credentials.is_server()).map(|_| NetworkChanges::start());
    loop {
        let connected_at = time::mono();
        let (error, soon) = tokio::select! {
            error = &mut running => (error, false),
            () = network_lost(&connection, network.as_mut()) => {
                connection.fail(ConnectionError::TimedOut);
                (ConnectionError::TimedOut, true)
            }
        };
        // Closes the old socket before a new one is opened.
        drop(running);
        let again = plan.zip(backoff.as_mut()).filter(|_| !matches!(error, ConnectionError::LocallyClosed));
        let Some(((target, _), backoff)) = again else {
            state_sender.send_replace(LinkState::Closed(error));
            return;
        };
        tracing::debug!(%error, "connection to the gateway lost");
        if soon {
            backoff.reset();
        }
        backoff.reset_after(time::mono().saturating_duration_since(connected_at));
        state_sender.send_replace(LinkState::Reconnecting(error));
        let stopping = shutdown.clone();
        let reconnecting = reconnect(target, (backoff, soon), network.as_mut(), &stopping);
        (connection, running) = tokio::select! {
            connected = reconnecting => connected,
            () = stop(&mut shutdown) => {
                state_sender.send_replace(LinkState::Closed(ConnectionError::LocallyClosed));
                return;
            }
        };
        state_sender.send_replace(LinkState::Connected(Arc::clone(&connection)));
    }
}

/// Tries until the gateway accepts this endpoint; waits less when the network has changed.
async fn reconnect(
    target: &GatewayTarget,
    (backoff, mut soon): (&mut Backoff, bool),
    mut network: Option<&mut NetworkChanges>,
    shutdown: &watch::Receiver<bool>,
) -> (Arc<GatewayConnection>, Running) {
    loop {
        match &mut network {
            Some(network) if soon => network.wait_after_change(backoff).await,
            Some(network) => network.wait_to_retry(backoff).await,
            None => sleep(backoff.wait()).await,
        }
        tokio::select! {
            established = target.establish(shutdown.clone()) => match established {
                Ok(established) => return established,
                Err(error) => {
                    soon = false;
                    tracing::debug!(%error, "cannot reconnect to the gateway");
                }
            },
            () = changed(network.as_deref_mut()) => soon = true,
        }
    }
}

async fn changed(network: Option<&mut NetworkChanges>) {
    match network {
        Some(network) => network.changed().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the network has changed and the connection no longer works.
async fn network_lost(connection: &GatewayConnection, mut network: Option<&mut NetworkChanges>) {
    loop {
        changed(network.as_deref_mut()).await;
        if connection.local.zip(network.as_deref()).is_some_and(|(at, network)| network.has_lost(at.ip())) {
            return;
        }
        let received_count = connection.received_count();
        connection.probe();
        sleep(PROBE).await;
        if connection.received_count() == received_count {
            return;
        }
    }
}
