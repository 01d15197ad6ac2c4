//! Composition: starts and stops the workers, the listeners, signalling and the gateway. The first failure stops all.

mod auth;
mod auth_hook;
mod config;
mod credentials_file;
mod gateway;
mod gateway_websocket;
mod hosts;
mod http;
mod limits;
mod listeners;
#[cfg(feature = "messaging")]
mod messaging;
mod metrics;
mod page;
mod relay_config;
mod request_source;
mod revocation;
mod self_test;
mod server_info;
mod tcp_accept;
mod turn_websocket;
mod write_timeout;

use crate::dataplane::dtls::DtlsIdentity;
use crate::dataplane::inbox::{Inbox, WorkerMessage};
use crate::dataplane::worker_pool::{WorkerFailed, WorkerPool};
pub use crate::limits::{NetworkPrefix, PrefixError};
use crate::net::addresses::{AddressWatch, Addresses};
use crate::net::certificate::Certificate;
pub use crate::net::certificate::CertificateError;
use crate::net::connection_limiter::{ConnectionLimiter, ConnectionLimits};
use crate::net::heap;
use crate::net::time;
use crate::net::tls::Tls;
use crate::signaling::{self, AccessKey, Realms};
use crate::state::{State, StateError};
use crate::stun_server::SecretKeys;
use crate::turn_server::auth::RevocationList;
pub use auth::{AuthConfig, OauthConfig, RealmConfig, StaticUser};
pub use auth_hook::HookConfig;
use axum::Router;
use axum::middleware::from_fn_with_state;
pub use config::{Config, GatewayConfig, TlsConfig, TurnConfig};
pub use credentials_file::CredentialsFileError;
use gateway::GatewayAcceptor;
pub use gateway::GatewayAddrs;
use hosts::OwnHosts;
pub use limits::LimitsConfig;
use listeners::Listeners;
#[cfg(feature = "messaging")]
pub use messaging::MessagingConfig;
use metrics::{Metrics, Services};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rustix::process::{Resource, getrlimit};
pub use self_test::SelfTest;
pub use server_info::{ServerInfo, ice_offer};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tcp_accept::{Accepts, TcpAcceptor};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

/// Most TCP connections at a time.
const MAX_STREAMS: usize = 16_000;
/// Interval at which freed memory is returned to the system, and the closed connections that make it worthwhile.
const TRIM_INTERVAL: Duration = Duration::from_secs(3);
const TRIM_AFTER: u64 = 100;
/// Descriptors reserved for the server itself.
const SPARE_DESCRIPTORS: usize = 32;

/// Why a server did not start, or has stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A port could not be opened.
    #[error("cannot listen on {address} ({transport}): {source}")]
    Listen {
        /// The address and port.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A configured address of the relay is not this host's.
    #[error("turn.relay_addresses: {address}: {source}")]
    RelayAddress {
        /// The address.
        address: IpAddr,
        /// The system's error.
        source: io::Error,
    },
    /// No address of this host can carry relayed addresses.
    #[error("no address for the relay: no interface has a usable one; set turn.relay_addresses")]
    NoRelayAddress,
    /// The certificate cannot be used.
    #[error("tls: {0}")]
    Certificate(#[from] CertificateError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The system refused something else.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A credentials file cannot be used.
    #[error("{0}")]
    CredentialsFile(CredentialsFileError),
    /// A worker thread has ended.
    #[error("worker {index} stopped: {reason}")]
    Worker {
        /// Its index.
        index: usize,
        /// Its error.
        reason: String,
    },
    /// The gateway's thread has ended.
    #[error("the gateway stopped: {0}")]
    Gateway(String),
    /// The store of messaging cannot be used, or messaging has ended.
    #[cfg(feature = "messaging")]
    #[error("messaging failed")]
    Messaging(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A listener or signalling has ended.
    #[error("a task of the server stopped")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A running server. If it is dropped without [`Server::shutdown`], its threads end with the process.
#[derive(Debug)]
pub struct Server {
    info: ServerInfo,
    signaling: signaling::Service,
    gateway: Option<crate::gateway::Service>,
    #[cfg(feature = "messaging")]
    messaging: Option<crate::messaging::service::Service>,
    listeners: JoinSet<()>,
    workers: Vec<JoinHandle<()>>,
    inboxes: Arc<[Inbox]>,
    failures: mpsc::UnboundedReceiver<WorkerFailed>,
}

impl Server {
    /// Opens the ports and starts everything. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ServerError`] names what failed; nothing keeps running then.
    pub async fn start(config: Config, state: &State) -> Result<Self, ServerError> {
        let addresses = AddressWatch::start()?;
        let own = addresses.current();
        let certificate = certificate(&config, state)?;
        let (tls, identity) = (Tls::new(&certificate)?, DtlsIdentity::new(&certificate, &state.folder)?);
        let mut sockets = Listeners::open(&config, worker_count(&config)).await?;
        server_info::try_relay_addresses(&config.turn.relay_addresses)?;
        let mut info = ServerInfo::gather(&config, state, &own, &certificate, &sockets)?;
        let gateway_listeners =
            if config.gateway.enabled { gateway::open(&config.gateway).await? } else { vec![] };
        info.gateway =
            config.gateway.enabled.then(|| GatewayAddrs::collect(&gateway_listeners)).transpose()?;
        let mut seeds = ChaCha20Rng::from_os_rng();
        let revoked = revocation::open(state, config.signaling.limits.revocations)?;
        let signaling_config = signaling_config(&config, state, &info, &revoked);
        let signaling = signaling::start(signaling_config, sockets.sockets()?, seeds.random());
        let (authority, files) = auth::authority(&config.turn, &config.auth, state, Arc::clone(&revoked))?;
        let (hook, lookups) = auth_hook::open(config.auth.hook.clone(), &config.limits.unauthenticated)?;
        let mobility_key = config.auth.derive(state, "mobility tickets");
        let pool = WorkerPool {
            relay: relay_config::relay_config(&config, &own, &info, &authority, mobility_key),
            identity,
            discovery: sockets.discovery(&config),
            secret_keys: Arc::new(SecretKeys::new(&config.auth.derive(state, "shared secrets of RFC 3489"))),
            unauthenticated: config.limits.unauthenticated.clone(),
            signaling: signaling.handle(),
            lookups,
        };
        let (failed, failures) = mpsc::unbounded_channel();
        let (workers, inboxes) = pool.spawn(sockets.take_worker_sockets()?, &mut seeds, &failed)?;
        let revocation = revocation::RevocationState {
            revoked,
            signaling: signaling.handle(),
            workers: Arc::clone(&inboxes),
            ttl: config.turn.credentials_ttl,
            state: Mutex::new(Arc::new(state.clone())),
        };
        let gateway = gateway_service(&config, state, seeds.random())?;
        let mutual = gateway::mutual(&config.gateway, &certificate)?;
        let gateway_acceptor = gateway.as_ref().map(|service| GatewayAcceptor::new(service.handle(), mutual));
        #[cfg(feature = "messaging")]
        let messaging = messaging::start(&config.messaging, state, &info, seeds.random()).await?;
        let ready = Arc::new(AtomicBool::new(false));
        let router = router(&signaling, gateway_acceptor.as_ref(), &ready, &config.signaling.origins);
        #[cfg(feature = "messaging")]
        let router = messaging::add_routes(router, messaging.as_ref(), &config.signaling.origins);
        let hosts = OwnHosts::gather(&config, &certificate, addresses.subscribe());
        let connections = connections(&config.limits, config.turn.max_allocations);
        let services = Services::new(gateway.as_ref(), signaling.handle(), (&connections, &inboxes));
        #[cfg(feature = "messaging")]
        let services = services.with_messaging(messaging.as_ref());
        let metrics = Metrics::new(services, hosts, &config.metrics_from);
        let acceptor = TcpAcceptor {
            workers: Arc::clone(&inboxes),
            router: router.merge(metrics::router(metrics)).merge(revocation::router(revocation)),
            tls,
            gateway: gateway_acceptor,
            #[cfg(feature = "messaging")]
            messaging: messaging.as_ref().map(|messaging| messaging.acceptor.clone()),
            trusted: config.trusted_proxies.into(),
            connections,
        };
        let mut listeners = JoinSet::new();
        listeners.spawn(trim_heap(Arc::clone(&acceptor.connections)));
        listeners.spawn(crate::limits::report());
        listeners.spawn(forward_address_changes(addresses, own, Arc::clone(&inboxes)));
        listeners.spawn(files.watch(Arc::clone(&authority)));
        hook.map(|hook| listeners.spawn(hook.run(authority, Arc::clone(&inboxes))));
        let servers =
            gateway_listeners.into_iter().map(|(auth, listener)| (listener, Accepts::GatewayServers(auth)));
        let tcp = sockets.tcp.into_iter().map(|listener| (listener, Accepts::All));
        let tls = sockets.tls.into_iter().map(|listener| (listener, Accepts::All));
        for (listener, accepts) in tcp.chain(servers).chain(tls) {
            listeners.spawn(acceptor.clone().serve(listener, accepts));
        }
        #[cfg(feature = "messaging")]
        let messaging = messaging.map(|messaging| messaging.accept(&acceptor, &mut listeners));
        ready.store(true, Ordering::Release);
        Ok(Self {
            info,
            signaling,
            gateway,
            #[cfg(feature = "messaging")]
            messaging,
            listeners,
            workers,
            inboxes,
            failures,
        })
    }

    /// Returns what the server determined at its start.
    #[must_use]
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// Tests the first advertised address as a client: a Binding, and an allocation of each family that it relays in.
    pub async fn self_test(&self) -> SelfTest {
        let (Some(server), Some(secret)) = (self.info.advertised.first(), &self.info.ice.secret) else {
            return SelfTest::default();
        };
        let families: Vec<_> = self.info.relay.iter().map(|relay| relay.local).collect();
        self_test::run(*server, &families, &secret.issue("self-test", time::now().unix + 60)).await
    }

    /// Waits for the first failure of any part.
    pub async fn failed(&mut self) -> ServerError {
        #[cfg(feature = "messaging")]
        let messaging = messaging_failed(&mut self.messaging);
        #[cfg(not(feature = "messaging"))]
        let messaging = std::future::pending();
        tokio::select! {
            error = messaging => error,
            Some(WorkerFailed { index, reason }) = self.failures.recv() => ServerError::Worker { index, reason },
            error = panicked(&mut self.listeners) => error,
            error = self.signaling.failed() => ServerError::Task(error.into()),
            error = gateway_failed(&mut self.gateway) => error,
        }
    }

    /// Stops all parts and waits for them.
    pub async fn shutdown(mut self) {
        self.listeners.shutdown().await;
        self.signaling.shutdown().await;
        if let Some(gateway) = self.gateway {
            gateway.shutdown().await;
        }
        #[cfg(feature = "messaging")]
        if let Some(messaging) = self.messaging {
            messaging.shutdown().await;
        }
        for inbox in self.inboxes.iter() {
            inbox.send(WorkerMessage::Stop).await;
        }
        for worker in self.workers {
            let joined = tokio::task::spawn_blocking(|| worker.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::warn!("a worker panicked");
            }
        }
    }
}

/// Sends this host's addresses to the workers whenever they change.
async fn forward_address_changes(addresses: AddressWatch, mut sent: Addresses, workers: Arc<[Inbox]>) {
    let mut changes = addresses.subscribe();
    loop {
        let now = changes.borrow_and_update().clone();
        if now != sent {
            tracing::info!(count = now.len(), "this host's addresses have changed");
            for worker in workers.iter() {
                worker.send(WorkerMessage::OwnAddresses(Arc::clone(&now))).await;
            }
            sent = now;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Waits for a task that panics.
async fn panicked(tasks: &mut JoinSet<()>) -> ServerError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            return ServerError::Task(error.into());
        }
    }
    std::future::pending().await
}

/// Returns the configured certificate, or the server's own.
fn certificate(config: &Config, state: &State) -> Result<Certificate, CertificateError> {
    match &config.tls.certificate {
        Some((chain, key)) => Certificate::load(chain, key),
        None => Certificate::own(&state.folder),
    }
}

/// Routes the page, signalling, and the WebSockets of TURN and of the gateway.
fn router(
    signaling: &signaling::Service,
    gateway: Option<&GatewayAcceptor>,
    ready: &Arc<AtomicBool>,
    origins: &signaling::Origins,
) -> Router {
    let router = signaling.handle().router().merge(page::router(Arc::clone(ready)));
    let router = router.merge(turn_websocket::router());
    match gateway {
        Some(acceptor) => router.merge(
            gateway::router(acceptor)
                .layer(from_fn_with_state(Arc::new(origins.clone()), signaling::pages_let_in)),
        ),
        None => router,
    }
}

/// Starts the gateway, if it is enabled.
fn gateway_service(config: &Config, state: &State, seed: u64) -> io::Result<Option<crate::gateway::Service>> {
    let spawn = || crate::gateway::Service::spawn(config.gateway.filled_in(config, state), seed);
    config.gateway.enabled.then(spawn).transpose()
}

/// Waits for a failure of the gateway, if there is one.
async fn gateway_failed(gateway: &mut Option<crate::gateway::Service>) -> ServerError {
    match gateway {
        Some(service) => ServerError::Gateway(service.failed().await),
        None => std::future::pending().await,
    }
}

/// Waits for a failure of messaging, if it is enabled.
#[cfg(feature = "messaging")]
async fn messaging_failed(messaging: &mut Option<crate::messaging::service::Service>) -> ServerError {
    match messaging {
        Some(service) => ServerError::Messaging(Box::new(service.failed().await)),
        None => std::future::pending().await,
    }
}

/// Returns the number of workers: as configured, or else one per core.
fn worker_count(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, Into::into);
    config.workers.unwrap_or_else(cores).max(1)
}

/// Creates the table of connections with its limits.
fn connections(limits: &LimitsConfig, allocations: u32) -> Arc<ConnectionLimiter> {
    let caps = ConnectionLimits {
        total: MAX_STREAMS,
        descriptors: descriptors(allocations as usize),
        per_address: limits.connections_per_address,
        bytes: limits.unauthenticated_memory,
    };
    ConnectionLimiter::new(caps, &limits.unauthenticated.unlimited_from)
}

/// Returns freed memory to the system when many connections have closed.
async fn trim_heap(connections: Arc<ConnectionLimiter>) {
    let mut before = 0;
    loop {
        sleep(TRIM_INTERVAL).await;
        let gone = connections.counters().closed;
        if gone - before >= TRIM_AFTER {
            before = gone;
            // Off the runtime's threads, because it blocks.
            let _ = spawn_blocking(heap::trim).await;
        }
    }
}

/// Returns how many descriptors connections may use: those of the process, less what it has open and a share for relay sockets, so that
/// connections cannot starve the relay.
fn descriptors(allocations: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    share(limit, open + SPARE_DESCRIPTORS, allocations)
}

fn share(limit: usize, own: usize, allocations: usize) -> usize {
    let free = limit.saturating_sub(own);
    free - allocations.min(free / 2)
}

/// Completes the configuration of signalling from the rest of the server.
fn signaling_config(
    config: &Config,
    state: &State,
    info: &ServerInfo,
    revoked: &Arc<RevocationList>,
) -> signaling::Config {
    let mut signaling = config.signaling.clone();
    signaling.revoked = Arc::clone(revoked);
    signaling.realms = Realms::new(&config.auth.derive(state, "signaling realms"));
    signaling.access_keys.push(AccessKey::new(&state.access_key));
    signaling.admin_key = state.admin_key().map(AccessKey::new);
    signaling.ice_servers = info.ice.clone();
    let (first, aux) = (info.advertised.first(), info.aux_port);
    signaling.stun2 = first.zip(aux).map(|(first, port)| SocketAddr::new(first.ip(), port).to_string());
    if aux.is_none() {
        signaling.notify_from = signaling::NotifyFrom::Main;
    }
    signaling
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_sockets_keep_what_allocations_need_or_half_of_few_descriptors() {
        assert_eq!(share(100_000, 100, 10_000), 89_900);
        assert_eq!(share(1024, 124, 10_000), 450);
        assert_eq!(share(64, 100, 10_000), 0);
    }

    #[tokio::test]
    async fn a_minimal_server_has_one_port_and_its_relay_works() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state")).unwrap();
        let listen = vec![std::net::Ipv4Addr::LOCALHOST.into()];
        let config = Config { listen, port: 0, workers: Some(1), ..Config::minimal() };
        let server = Server::start(config, &state).await.unwrap();
        let info = server.info();
        assert_eq!((info.listen.len(), info.aux_port, info.tls_port), (1, None, None));
        assert!(info.gateway.is_none() && info.page_url().is_some());
        let test = server.self_test().await;
        assert!(test.stun && test.turn_udp && test.turn_tcp, "{test:?}");
        server.shutdown().await;
    }

    #[tokio::test]
    async fn a_task_that_panics_is_a_failure_and_one_that_ends_is_none() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        tasks.spawn(async { panic!("accept") });
        assert!(
            matches!(panicked(&mut tasks).await, ServerError::Task(error) if error.to_string().contains("panicked"))
        );
    }
}
