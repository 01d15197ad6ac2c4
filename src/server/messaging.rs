//! Starts messaging and accepts its connections: the legacy port, the TLS port, and the dispatcher.

use super::ServerError;
use super::listeners::open_tcp;
use super::request_source::IsSecure;
use super::server_info::ServerInfo;
use super::tcp_accept::{Accepts, ConnectionInfo, Serving, TLS_TIME, TcpAcceptor};
use super::turn_websocket::Origin;
use crate::messaging::dispatcher::{Ring, ServerHost};
use crate::messaging::service::{Handle, Service};
use crate::net::forwarded::is_trusted;
use crate::net::peeked_stream::PeekedStream;
use crate::net::tls::Tls;
use crate::net::websocket::upgrade;
use crate::signaling;
use crate::state::State as ServerState;
use crate::store::{SqliteConfig, SqliteStore, StoreLimits, StrangerLimits};
use axum::extract::{Query, Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;
use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::BufWriter;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The database in the state folder.
const DATABASE: &str = "messaging.sqlite";
/// Bytes of TLS records that are written together, and memory of a TLS stream before the client has authenticated.
const RECORDS: usize = 8 * 1024;
const TLS_MEMORY: usize = 24 * 1024;
/// Between two health checks of the other servers, and the longest that one takes.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const CHECK_TIME: Duration = Duration::from_secs(2);

/// Configuration of messaging: its ports, and the service.
#[derive(Debug, Clone)]
pub struct MessagingConfig {
    /// Whether it is enabled; default no.
    pub enabled: bool,
    /// The TCP port of the original protocol; 0 for none; default 8888.
    pub port: u16,
    /// Whether devices without a key are accepted on `port`; default yes.
    pub legacy: bool,
    /// The port of the same protocol inside TLS, where devices need a key; default none.
    pub tls_port: Option<u16>,
    /// The dispatcher's own port; default none: it is at `/?id=` on the main port.
    pub dispatcher_port: Option<u16>,
    /// The servers between which the dispatcher chooses, HOST and port; default only this one.
    pub servers: Vec<(String, u16)>,
    /// The service.
    pub(crate) service: crate::messaging::config::Config,
}

impl Default for MessagingConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            port: 8888,
            legacy: true,
            tls_port: None,
            dispatcher_port: None,
            servers: Vec::new(),
            service: crate::messaging::config::Config::default(),
        }
    }
}

/// What a port of messaging accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessagingPort {
    /// The protocol without TLS.
    Plain,
    /// The protocol inside TLS.
    Tls,
    /// HTTP for the dispatcher.
    Dispatcher,
}

/// Accepts connections for running messaging.
#[derive(Debug, Clone)]
pub(super) struct MessagingAcceptor {
    handle: Handle,
    dispatcher: Dispatcher,
    is_legacy: bool,
}

/// Messaging with its open ports.
#[derive(Debug)]
pub(super) struct OpenMessaging {
    pub(super) service: Service,
    pub(super) acceptor: MessagingAcceptor,
    listeners: Vec<(MessagingPort, TcpListener)>,
}

/// Opens the store and the ports and starts messaging, where it is enabled.
///
/// # Errors
/// [`ServerError`].
pub(super) async fn start(
    config: &MessagingConfig,
    state: &ServerState,
    info: &ServerInfo,
    seed: [u8; 32],
) -> Result<Option<OpenMessaging>, ServerError> {
    if !config.enabled {
        return Ok(None);
    }
    let mut listeners = Vec::new();
    for (kind, port) in [
        (MessagingPort::Plain, config.port),
        (MessagingPort::Tls, config.tls_port.unwrap_or(0)),
        (MessagingPort::Dispatcher, config.dispatcher_port.unwrap_or(0)),
    ] {
        for ip in info.listen.iter().map(SocketAddr::ip).filter(|_| port != 0) {
            let address = SocketAddr::new(ip, port);
            let opened = open_tcp(address).await;
            let listener =
                opened.map_err(|source| ServerError::Listen { address, transport: "tcp", source })?;
            listeners.push((kind, listener));
        }
    }
    let limits = &config.service.limits;
    let limits = StoreLimits {
        messages_per_mailbox: limits.messages_per_mailbox,
        bytes_per_mailbox: limits.bytes_per_mailbox,
        strangers: StrangerLimits::of(limits.messages_per_mailbox, limits.bytes_per_mailbox),
        stored_bytes: limits.stored_bytes,
        parties: limits.parties,
        contacts_per_party: limits.contacts,
        ..StoreLimits::default()
    };
    let path = state.folder.join(DATABASE);
    let open = move || SqliteStore::open(&path, SqliteConfig { limits, ..SqliteConfig::default() });
    let opened = tokio::task::spawn_blocking(open).await.map_err(|error| ServerError::Task(error.into()))?;
    let store = opened.map_err(|error| ServerError::Messaging(Box::new(error)))?;
    let service = crate::messaging::service::start(config.service.clone(), Arc::new(store), seed);
    warn(config);
    let dispatcher = Dispatcher::new(config, info.advertised.first().map(SocketAddr::ip));
    let acceptor = MessagingAcceptor { handle: service.handle(), dispatcher, is_legacy: config.legacy };
    Ok(Some(OpenMessaging { service, acceptor, listeners }))
}

fn warn(config: &MessagingConfig) {
    if config.legacy && config.port != 0 {
        tracing::warn!(
            port = config.port,
            "messaging.legacy: the old protocol does not protect passwords and messages from an active attacker, \
             and devices prove nothing but their network; see docs/wire/messaging.md"
        );
    }
    if config.servers.len() > 1 {
        tracing::warn!(
            "messaging.servers: each server stores its own accounts and messages; they reach nobody on another server"
        );
    }
}

impl OpenMessaging {
    /// Starts to accept connections.
    pub(super) fn accept(self, acceptor: &TcpAcceptor, tasks: &mut JoinSet<()>) -> Service {
        tasks.spawn(self.acceptor.dispatcher.check_health());
        for (port, listener) in self.listeners {
            tasks.spawn(acceptor.clone().serve(listener, Accepts::Messaging(port)));
        }
        self.service
    }
}

/// Adds `/messages`, and the answer at `/?id=` to a router that has a page at `/` (S4-A15), where messaging is enabled.
pub(super) fn add_routes(
    router: Router,
    messaging: Option<&OpenMessaging>,
    origins: &signaling::Origins,
) -> Router {
    let Some(messaging) = messaging else { return router };
    let websocket =
        Router::new().route("/messages", get(websocket)).with_state(messaging.acceptor.handle.clone());
    let pages = from_fn_with_state(Arc::new(origins.clone()), signaling::pages_let_in);
    messaging.acceptor.dispatcher.layer(router.merge(websocket.layer(pages)))
}

/// Serves the modern protocol.
async fn websocket(
    State(handle): State<Handle>,
    Extension(origin): Extension<Origin>,
    Extension(IsSecure(is_secure)): Extension<IsSecure>,
    request: Request,
) -> Response {
    let ip = origin.client.client.ip().to_canonical();
    upgrade::accept(request, None, move |stream| async move {
        handle.serve_websocket(stream, (ip, is_secure), origin.connection).await;
    })
}

impl TcpAcceptor {
    /// Serves a connection to a port of messaging until it ends.
    pub(super) fn messaging(self, stream: TcpStream, info: ConnectionInfo, port: MessagingPort) -> Serving {
        let stream = PeekedStream::new(stream);
        if is_trusted(&self.trusted, info.client.ip()) {
            return Box::pin(self.messaging_behind_proxy(stream, info, port));
        }
        match info.connection.assign_to(info.client.ip()) {
            true => self.messaging_port(stream, info, port),
            false => Box::pin(ready(Ok(()))),
        }
    }

    /// Reads the PROXY header first.
    async fn messaging_behind_proxy(
        self,
        mut stream: PeekedStream<TcpStream>,
        mut info: ConnectionInfo,
        port: MessagingPort,
    ) -> io::Result<()> {
        match self.name_client(&mut stream, &mut info).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // A client waits for our first message; without a PROXY header it has the proxy's address.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && stream.is_empty() => {}
            Err(error) => return Err(error),
        }
        self.messaging_port(stream, info, port).await
    }

    /// Serves one port. Each has a future of its own, so that an idle client holds no memory for the others.
    fn messaging_port(
        self,
        stream: PeekedStream<TcpStream>,
        info: ConnectionInfo,
        port: MessagingPort,
    ) -> Serving {
        let Some(MessagingAcceptor { handle, dispatcher, is_legacy }) = self.messaging else {
            return Box::pin(ready(Ok(())));
        };
        let ip = info.client.ip().to_canonical();
        match port {
            MessagingPort::Plain => Box::pin(handle.serve(stream, (ip, is_legacy), info.connection)),
            MessagingPort::Tls => Box::pin(serve_tls(handle, stream, (info, self.tls))),
            MessagingPort::Dispatcher => {
                let router = Router::new().fallback(move |query| async move { dispatcher.answer(query) });
                Box::pin(super::http::serve(stream, (router, self.trusted), info))
            }
        }
    }
}

async fn serve_tls(
    handle: Handle,
    stream: PeekedStream<TcpStream>,
    (info, tls): (ConnectionInfo, Tls),
) -> io::Result<()> {
    if !info.connection.reserve_memory(TLS_MEMORY) {
        return Ok(());
    }
    let stream = BufWriter::with_capacity(RECORDS, stream);
    let (inside, _) = timeout(TLS_TIME, tls.accept(stream)).await??;
    handle.serve(inside, (info.client.ip().to_canonical(), false), info.connection).await
}

/// Answers which server a client connects to.
#[derive(Debug, Clone)]
pub(super) struct Dispatcher {
    ring: Arc<Ring>,
    /// By index; `true` for servers that accepted the last connection.
    healthy: Arc<[AtomicBool]>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    id: Option<String>,
}

impl Dispatcher {
    fn new(config: &MessagingConfig, advertised: Option<IpAddr>) -> Self {
        let own = advertised.map(|ip| (ip.to_string(), config.port));
        let servers =
            if config.servers.is_empty() { own.into_iter().collect() } else { config.servers.clone() };
        let servers: Vec<_> = servers.into_iter().map(|(host, port)| ServerHost { host, port }).collect();
        let healthy = servers.iter().map(|_| AtomicBool::new(true)).collect();
        Self { ring: Arc::new(Ring::new(servers)), healthy }
    }

    fn answer(&self, query: Result<Query<Asked>, axum::extract::rejection::QueryRejection>) -> Response {
        let id = query.ok().and_then(|Query(asked)| asked.id);
        let is_healthy = |index: usize| self.healthy.get(index).is_some_and(|up| up.load(Ordering::Relaxed));
        ([(header::CONTENT_TYPE, "text/plain")], self.ring.answer(id.as_deref(), is_healthy)).into_response()
    }

    /// Answers `/?id=` before the router.
    fn layer(&self, router: Router) -> Router {
        let dispatcher = self.clone();
        router.layer(from_fn(move |request: Request, next: Next| {
            let dispatcher = dispatcher.clone();
            async move {
                let is_asked = request.uri().path() == "/"
                    && request.uri().query().is_some_and(|query| {
                        query.split('&').any(|pair| pair == "id" || pair.starts_with("id="))
                    });
                match is_asked {
                    true => dispatcher.answer(Query::try_from_uri(request.uri())),
                    false => next.run(request).await,
                }
            }
        }))
    }

    /// Checks which servers accept connections, if there are several.
    pub(super) async fn check_health(self) {
        if self.ring.servers().len() < 2 {
            return;
        }
        loop {
            for (server, healthy) in self.ring.servers().iter().zip(&*self.healthy) {
                let connected = timeout(CHECK_TIME, TcpStream::connect((&*server.host, server.port))).await;
                let is_up = matches!(connected, Ok(Ok(_)));
                if healthy.swap(is_up, Ordering::Relaxed) != is_up {
                    tracing::warn!(server = %crate::ids::Pii(&server.host), is_up, "messaging server");
                }
            }
            sleep(CHECK_EVERY).await;
        }
    }
}
