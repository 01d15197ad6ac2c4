//! Composition: owns the workers, the listeners and signalling; one shutdown, and the first failure stops all.

mod auth;
mod auth_hook;
mod credentials_file;
mod doors;
mod dtls;
mod inbox;
mod legs;
mod limits;
mod neighbours;
mod page;
mod self_test;
mod stream;
mod tcp_relay;
mod websocket;
mod worker;

use crate::net::certificate::Certificate;
pub use crate::net::certificate::CertificateError;
use crate::net::connections::Connections;
use crate::net::gate::Gate;
use crate::net::interfaces;
use crate::net::time;
use crate::net::tls::Tls;
use crate::signaling::{self, AccessKey, IceServers};
use crate::state::State;
use crate::stun_server::Home;
use crate::turn_server::alternate::Alternates;
use crate::turn_server::auth::{Authority, RestSecret};
use crate::turn_server::machine::{Features, Limits, Relay, Shared};
use crate::turn_server::mobility::Tickets;
use crate::turn_server::policy::{PeerPolicy, PolicyConfig};
use crate::turn_server::ports::{RelayAddress, RelayPorts};
use crate::turn_server::quota::Quota;
pub use auth::{AuthConfig, OauthConfig, RealmConfig, StaticUser};
pub use auth_hook::HookConfig;
pub use credentials_file::CredentialsFileError;
use doors::Doors;
use dtls::{Dtls, Identity};
use inbox::{Inbox, ToWorker};
use ipnet::IpNet;
pub use limits::LimitsConfig;
use neighbours::{Inboxes, Neighbours};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
pub use self_test::SelfTest;
use std::collections::HashMap;
use std::hash::RandomState;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;
use stream::{Admits, StreamDoor};
use tcp_relay::PeerStreams;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use worker::{Parts, Worker};

/// Most TCP connections at a time.
const MAX_STREAMS: usize = 16_000;

/// What a server is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on; default all of both families.
    pub listen: Vec<IpAddr>,
    /// UDP and TCP port; default 3478.
    pub port: u16,
    /// Second UDP port; default 3479, or any when that is taken.
    pub aux_port: Option<u16>,
    /// Addresses clients are told, where they differ from the interfaces'; default none.
    pub public: Vec<IpAddr>,
    /// Threads of the data plane; default one per core.
    pub workers: Option<usize>,
    /// The addresses of NAT behaviour discovery, two of a family or none; each is listened on. Default none.
    pub nat_discovery: Vec<Home>,
    /// What strangers may cost.
    pub limits: LimitsConfig,
    /// Proxies whose PROXY headers name the real client; default none.
    pub proxies: Vec<IpNet>,
    /// TLS and DTLS.
    pub tls: TlsConfig,
    /// The relay.
    pub turn: TurnConfig,
    /// Where credentials come from.
    pub auth: AuthConfig,
    /// Signalling; its keys, ICE servers and second port are filled in by the server.
    pub signaling: signaling::Config,
}

/// What TLS and DTLS are to be.
#[derive(Debug, Clone, Default)]
pub struct TlsConfig {
    /// PEM files of the certificate chain and its key; default one that the server signs itself and keeps in the state folder.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The host of `turns:` URLs; default the certificate's first DNS name. Without a certificate of its own a server offers none.
    pub name: Option<String>,
    /// A port that takes TLS and DTLS alone; 0 for none; default 5349, or none where that is taken.
    pub port: Option<u16>,
}

/// What the relay is to be.
#[derive(Debug, Clone)]
pub struct TurnConfig {
    /// Realm of the long-term credentials; default `ginnel`.
    pub realm: String,
    /// Static users of the default realm; default none.
    pub users: HashMap<String, StaticUser>,
    /// Secret of time-limited credentials; default one derived from the state folder's.
    pub rest_secret: Option<Vec<u8>>,
    /// Servers that new clients are sent to, one of their own family; default none: they are served here.
    pub alternate_server: Vec<SocketAddr>,
    /// The name that those servers' certificates have; default none.
    pub alternate_domain: Option<String>,
    /// Ports of relayed addresses; default 49152–49215 where they are shared, 49152–65535 where not.
    pub relay_ports: Option<RangeInclusive<u16>>,
    /// Whether allocations share relay ports; default true.
    pub share_relay_ports: bool,
    /// Local addresses of relay sockets, one a family; default the farthest-reaching ones.
    pub relay_addresses: Vec<IpAddr>,
    /// Caps of one allocation. How many ports a worker shares is filled in by the server.
    pub limits: Limits,
    /// What clients may do.
    pub features: Features,
    /// Allocations of one user name; default 32.
    pub allocations_per_user: u32,
    /// Allocations in all; default 10 000.
    pub max_allocations: u32,
    /// How long minted credentials are good; default 24 h.
    pub credentials_ttl: Duration,
    /// Prefixes allowed although special-purpose; default none.
    pub allow_peers: Vec<IpNet>,
    /// Prefixes denied besides the special-purpose ones; default none.
    pub deny_peers: Vec<IpNet>,
}

impl TurnConfig {
    fn relay_ports(&self) -> RangeInclusive<u16> {
        let whole = if self.share_relay_ports { 49_152..=49_215 } else { 49_152..=65_535 };
        self.relay_ports.clone().unwrap_or(whole)
    }

    /// Shares out three quarters of the ports among the workers; the rest is for those who need a port of their own.
    fn limits(&self, workers: usize) -> Limits {
        let shared = self.relay_ports().len() * 3 / 4 / workers;
        Limits { shared_ports: if self.share_relay_ports { shared.max(1) } else { 0 }, ..self.limits }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            port: 3478,
            aux_port: None,
            public: Vec::new(),
            workers: None,
            nat_discovery: Vec::new(),
            limits: LimitsConfig::default(),
            proxies: Vec::new(),
            tls: TlsConfig::default(),
            turn: TurnConfig::default(),
            auth: AuthConfig::default(),
            signaling: signaling::Config::default(),
        }
    }
}

impl Default for TurnConfig {
    fn default() -> Self {
        Self {
            realm: "ginnel".to_owned(),
            users: HashMap::new(),
            rest_secret: None,
            relay_ports: None,
            share_relay_ports: true,
            alternate_server: Vec::new(),
            alternate_domain: None,
            relay_addresses: Vec::new(),
            limits: Limits::default(),
            features: Features::default(),
            allocations_per_user: 32,
            max_allocations: 10_000,
            credentials_ttl: Duration::from_secs(24 * 3600),
            allow_peers: Vec::new(),
            deny_peers: Vec::new(),
        }
    }
}

/// Why a server does not start, or has stopped.
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
        /// The system's answer.
        source: io::Error,
    },
    /// No address of this host can carry relayed addresses.
    #[error("no address for the relay: no interface has a usable one; set turn.relay_addresses")]
    NoRelayAddress,
    /// The certificate cannot be used.
    #[error("tls: {0}")]
    Certificate(#[from] CertificateError),
    /// The system refused something else.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A credentials file cannot be used.
    #[error("{0}")]
    CredentialsFile(CredentialsFileError),
    /// A worker thread has ended.
    #[error("worker {index} stopped: {reason}")]
    Worker {
        /// Which one.
        index: usize,
        /// Its last words.
        reason: String,
    },
    /// A listener or signalling has ended.
    #[error("a part of the server stopped: {0}")]
    Task(tokio::task::JoinError),
}

/// What the server found out and decided at its start.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where it listens, UDP and TCP alike.
    pub listen: Vec<SocketAddr>,
    /// The second UDP port.
    pub aux_port: u16,
    /// The port for TLS and DTLS alone; the main port takes both as well.
    pub tls_port: Option<u16>,
    /// Whether the server signs its certificate itself.
    pub tls_self_signed: bool,
    /// The host that `turns:` URLs name; none with a self-signed certificate.
    pub tls_name: Option<String>,
    /// What clients are told to use, the farthest-reaching first.
    pub advertised: Vec<SocketAddr>,
    /// Relay sockets' addresses and what peers see.
    pub relay: Vec<RelayAddress>,
    /// Threads of the data plane.
    pub workers: usize,
    ice: IceServers,
}

impl Facts {
    /// Makes the `iceServers` JSON for a browser, with credentials minted for `name`.
    #[must_use]
    pub fn ice_servers(&self, name: &str) -> serde_json::Value {
        serde_json::json!({ "iceServers": self.ice.admitted(time::now(), name) })
    }
}

/// A running server. Dropping it without [`Server::shutdown`] leaves its threads to end with the process.
#[derive(Debug)]
pub struct Server {
    facts: Facts,
    signaling: signaling::Service,
    listeners: JoinSet<()>,
    workers: Vec<JoinHandle<()>>,
    inboxes: Arc<[Inbox]>,
    failures: mpsc::UnboundedReceiver<ServerError>,
}

impl Server {
    /// Opens the ports and starts everything. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ServerError`] names what could not be had; nothing keeps running then.
    pub async fn start(config: Config, state: &State) -> Result<Self, ServerError> {
        let worker_count = config
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into))
            .max(1);
        let own = interfaces::addresses()?;
        let relay = relay_addresses(&config, &own)?;
        let certificate = match &config.tls.certificate {
            Some((chain, key)) => Certificate::load(chain, key)?,
            None => Certificate::own(&state.folder)?,
        };
        let (tls, identity) = (Tls::new(&certificate)?, Identity::new(&certificate, &state.folder)?);
        let doors = Doors::open(&config, worker_count).await?;
        let advertised = advertised(&config, &own, doors.port);
        let (secret, _) = config.auth.secrets(&config.turn, state);
        let mut ice = ice_servers(&config.turn, &advertised, secret);
        let tls_name = tls_name(&config.tls, &certificate);
        ice.turn_urls
            .extend(tls_name.as_deref().map(|name| turns_url(name, doors.tls_port.unwrap_or(doors.port))));
        let mut signaling_config = config.signaling.clone();
        signaling_config.access_keys.push(AccessKey::new(&state.access_key));
        signaling_config.ice_servers = ice.clone();
        signaling_config.stun2 =
            advertised.first().map(|a| SocketAddr::new(a.ip(), doors.aux_port).to_string());
        let mut seeds = ChaCha20Rng::from_os_rng();
        let signaling = signaling::start(signaling_config, doors.sockets()?, seed(&mut seeds));
        let (authority, files) = auth::authority(&config.turn, &config.auth, state)?;
        let (hook, lookups) = auth_hook::open(config.auth.hook.clone())?;
        let tickets = Tickets::new(&config.auth.derive(state, "mobility tickets"))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let shared = shared(&config, &own, &relay, (Arc::clone(&authority), tickets), &doors);
        let facts = Facts {
            listen: doors.listen.clone(),
            aux_port: doors.aux_port,
            tls_port: doors.tls_port,
            tls_self_signed: certificate.self_signed,
            tls_name,
            advertised,
            relay,
            workers: worker_count,
            ice,
        };

        let dropped = Arc::new(AtomicU64::new(0));
        let (failed, failures) = mpsc::unbounded_channel();
        let (mut workers, mut inboxes) = (Vec::new(), Vec::new());
        let (all_inboxes, peer_streams) = (Inboxes::default(), PeerStreams::default());
        let discovery = doors.discovery(&config);
        let elsewhere =
            (0..worker_count).map(|index| doors.elsewhere(index)).collect::<io::Result<Vec<_>>>()?;
        let strangers = &config.limits.unauthenticated;
        let connections = Connections::new(config.limits.connections_per_address, &strangers.unlimited_from);
        for (index, (doors, elsewhere)) in doors.per_worker.into_iter().zip(elsewhere).enumerate() {
            let parts = Parts {
                doors,
                elsewhere,
                discovery: discovery.clone(),
                dtls: Dtls::new(time::now(), identity.clone(), ChaCha20Rng::from_seed(seed(&mut seeds))),
                gate: Gate::new(strangers, worker_count, time::now(), RandomState::new()),
                relay: Relay::new(
                    time::now(),
                    Shared { worker: index as u16, ..shared.clone() },
                    ChaCha20Rng::from_seed(seed(&mut seeds)),
                ),
                signaling: signaling.handle(),
                lookups: lookups.of(index),
                neighbours: Neighbours::new(index as u16, Arc::clone(&all_inboxes)),
                peer_streams: peer_streams.clone(),
                dropped: Arc::clone(&dropped),
            };
            let (worker, inbox) = Worker::new(parts)?;
            inboxes.push(inbox);
            workers.push(spawn(index, worker, failed.clone())?);
        }
        let inboxes: Arc<[Inbox]> = inboxes.into();
        let _ = all_inboxes.set(Arc::clone(&inboxes));
        let door = StreamDoor {
            workers: Arc::clone(&inboxes),
            router: signaling.handle().router().merge(page::router()).merge(websocket::router()),
            tls,
            proxies: config.proxies.into(),
            room: Arc::new(Semaphore::new(MAX_STREAMS)),
            connections,
        };
        let mut listeners = JoinSet::new();
        listeners.spawn(files.watch(Arc::clone(&authority)));
        if let Some(hook) = hook {
            listeners.spawn(hook.run(authority, Arc::clone(&inboxes)));
        }
        for listener in doors.tcp {
            listeners.spawn(door.clone().serve(listener, Admits::All));
        }
        for listener in doors.tls {
            listeners.spawn(door.clone().serve(listener, Admits::Tls));
        }
        Ok(Self { facts, signaling, listeners, workers, inboxes, failures })
    }

    /// Returns what the server found out and decided.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Asks the first advertised address for a Binding and an allocation, as a client would.
    pub async fn self_test(&self) -> SelfTest {
        let Some(server) = self.facts.advertised.first() else { return SelfTest::default() };
        match &self.facts.ice.secret {
            Some(secret) => self_test::run(*server, &secret.mint("self-test", time::now().unix + 60)).await,
            None => SelfTest::default(),
        }
    }

    /// Waits for the first failure of any part; never returns while all is well.
    pub async fn failed(&mut self) -> ServerError {
        tokio::select! {
            Some(error) = self.failures.recv() => error,
            error = panicked(&mut self.listeners) => error,
            error = self.signaling.failed() => ServerError::Task(error),
        }
    }

    /// Ends every part and waits for it.
    pub async fn shutdown(mut self) {
        self.listeners.shutdown().await;
        self.signaling.shutdown().await;
        for inbox in self.inboxes.iter() {
            inbox.send(ToWorker::Stop).await;
        }
        for worker in self.workers {
            let joined = tokio::task::spawn_blocking(|| worker.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::warn!("a worker did not end well");
            }
        }
    }
}

/// Returns what clients of a server with this configuration are told to use, without starting one.
///
/// # Errors
/// The system does not tell this host's addresses.
pub fn ice_offer(config: &Config, state: &State) -> io::Result<IceServers> {
    let advertised = advertised(config, &interfaces::addresses()?, config.port);
    Ok(ice_servers(&config.turn, &advertised, config.auth.secrets(&config.turn, state).0))
}

fn spawn(
    index: usize,
    worker: Worker,
    failed: mpsc::UnboundedSender<ServerError>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("ginnel-{index}")).spawn(move || {
        if let Err(reason) = last_words(|| worker.run()) {
            // The receiver is gone only when the server is.
            let _ = failed.send(ServerError::Worker { index, reason });
        }
    })
}

/// Runs a worker to its end and says why it came, of a panic too: a server does not go on with a part of it missing.
fn last_words(run: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().copied();
            let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(format!("panicked: {}", said.unwrap_or("without a word")))
        }
    }
}

/// Waits for a task that panicked; never returns while none does.
async fn panicked(tasks: &mut JoinSet<()>) -> ServerError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            return ServerError::Task(error);
        }
    }
    std::future::pending().await
}

fn seed(seeds: &mut ChaCha20Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    seeds.fill_bytes(&mut seed);
    seed
}

/// Chooses one relay address a family: the configured one, else the one listened on, else the farthest-reaching.
fn relay_addresses(config: &Config, own: &[IpAddr]) -> Result<Vec<RelayAddress>, ServerError> {
    let specific: Vec<IpAddr> = config.listen.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    let listened = |v6| config.listen.iter().any(|ip| ip.is_ipv6() == v6);
    let of_family = |list: &[IpAddr], v6: bool| list.iter().copied().find(|ip| ip.is_ipv6() == v6);
    let choose = |v6: bool| {
        let local = of_family(&config.turn.relay_addresses, v6)
            .or_else(|| of_family(&specific, v6))
            .or_else(|| interfaces::farthest(own, v6).filter(|_| listened(v6)))?;
        Some(RelayAddress { local, advertised: of_family(&config.public, v6).unwrap_or(local) })
    };
    let chosen: Vec<_> = [choose(false), choose(true)].into_iter().flatten().collect();
    if chosen.is_empty() { Err(ServerError::NoRelayAddress) } else { Ok(chosen) }
}

/// Says which addresses clients are told: the public ones, else one a family.
fn advertised(config: &Config, own: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let mut addresses = config.public.clone();
    for v6 in [false, true] {
        if addresses.iter().any(|ip| ip.is_ipv6() == v6) {
            continue;
        }
        let specific = config.listen.iter().copied().find(|ip| ip.is_ipv6() == v6 && !ip.is_unspecified());
        let any = config.listen.iter().any(|ip| ip.is_ipv6() == v6);
        addresses.extend(specific.or_else(|| interfaces::farthest(own, v6).filter(|_| any)));
    }
    addresses.sort_by_key(|ip| interfaces::reach(*ip));
    let best = addresses.first().map(|ip| interfaces::reach(*ip));
    addresses.retain(|ip| Some(interfaces::reach(*ip)) == best || config.public.contains(ip));
    addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

fn ice_servers(turn: &TurnConfig, advertised: &[SocketAddr], secret: RestSecret) -> IceServers {
    let urls = |scheme: &str, query: &str| {
        advertised.iter().map(|a| format!("{scheme}:{a}{query}")).collect::<Vec<_>>()
    };
    IceServers {
        stun_urls: urls("stun", ""),
        turn_urls: [urls("turn", "?transport=udp"), urls("turn", "?transport=tcp")].concat(),
        ttl: turn.credentials_ttl,
        secret: Some(secret),
    }
}

/// Returns the host of `turns:` URLs: browsers verify the certificate, so there is none without a real one.
fn tls_name(config: &TlsConfig, certificate: &Certificate) -> Option<String> {
    if certificate.self_signed {
        return None;
    }
    config.name.clone().or_else(|| certificate.name())
}

fn turns_url(name: &str, port: u16) -> String {
    let host = match name.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => name.to_owned(),
    };
    format!("turns:{host}:{port}?transport=tcp")
}

fn shared(
    config: &Config,
    own: &[IpAddr],
    relay: &[RelayAddress],
    (authority, tickets): (Arc<Authority>, Tickets),
    doors: &Doors,
) -> Shared {
    let turn = &config.turn;
    let ports = Arc::new(RelayPorts::new(relay, turn.relay_ports()));
    let second = config.nat_discovery.iter().map(|home| &home.public);
    let policy = PolicyConfig {
        allow_peers: turn.allow_peers.clone(),
        deny_peers: turn.deny_peers.clone(),
        own_addresses: own
            .iter()
            .chain(&config.public)
            .chain(second)
            .copied()
            .filter(|ip| !ip.is_loopback())
            .collect(),
        own_ports: [doors.port, doors.aux_port].into_iter().chain(doors.tls_port).collect(),
    };
    Shared {
        authority,
        alternates: Arc::new(Alternates::new(turn.alternate_server.clone(), turn.alternate_domain.clone())),
        policy: Arc::new(PeerPolicy::new(policy, Arc::clone(&ports))),
        ports,
        reservations: Arc::default(),
        quota: Arc::new(Quota::new(turn.allocations_per_user, turn.max_allocations)),
        addresses: relay.into(),
        connections: Arc::default(),
        tickets: Arc::new(tickets),
        worker: 0,
        limits: turn.limits(doors.per_worker.len()),
        features: turn.features,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_reported_like_one_that_fails() {
        assert_eq!(last_words(|| Ok(())), Ok(()));
        assert_eq!(last_words(|| Err(io::Error::other("no poll"))), Err("no poll".to_owned()));
        assert_eq!(last_words(|| panic!("slot {}", 7)), Err("panicked: slot 7".to_owned()));
    }

    #[tokio::test]
    async fn a_task_that_panics_is_a_failure_and_one_that_ends_is_none() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        tasks.spawn(async { panic!("accept") });
        assert!(matches!(panicked(&mut tasks).await, ServerError::Task(error) if error.is_panic()));
    }
}
