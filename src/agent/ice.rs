//! The ICE agent of one path, on top of `webrtc-ice`. The only file that names `webrtc_ice` and `webrtc_util`.
//!
//! A session has two agents with the same credentials, because an agent of the crate nominates one pair and keeps it. The
//! agent of the relay path nominates the first pair that works, the one of the direct path waits briefly for host candidates. Settings that
//! differ from the crate's defaults, and why:
//!
//! - [`MAX_CHECKS`]: the crate stops after seven checks of a pair, which a slow start of the other side would exhaust;
//! - [`FAILED_TIMEOUT`]: the crate removes its candidates after 30 s without an answer, so that it could not recover from an outage;
//! - [`TurnTcpProxy`]: the crate supports TURN only over UDP and IPv4;
//! - loopback candidates, which two agents on one host need.

use super::candidate::CandidatePath;
use super::keys::AgentRole;
use super::tunnel::Tunnel;
use super::turn_tcp_proxy::TurnTcpProxy;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use webrtc_ice::Error;
use webrtc_ice::agent::Agent;
use webrtc_ice::agent::agent_config::AgentConfig;
use webrtc_ice::candidate::candidate_base::unmarshal_candidate;
use webrtc_ice::candidate::{Candidate, CandidateType};
use webrtc_ice::mdns::MulticastDnsMode;
use webrtc_ice::network_type::NetworkType;
use webrtc_ice::state::ConnectionState;
use webrtc_ice::url::{ProtoType, SchemeType, Url};
use webrtc_util::Conn;

/// Maximum number of checks of one pair; at the check interval about half a minute.
const MAX_CHECKS: u16 = 300;
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);
const DISCONNECTED_TIMEOUT: Duration = Duration::from_secs(10);
const FAILED_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a pair with a server-reflexive candidate waits for one with a host candidate.
const SERVER_REFLEXIVE_WAIT: Duration = Duration::from_millis(200);
const PEER_REFLEXIVE_WAIT: Duration = Duration::from_millis(300);
/// Time limit for closing, which includes the deallocation of the relayed address.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const QUEUE: usize = 128;
const MAX_DATAGRAM: usize = 2048;

/// Time-limited TURN credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct RelayCredentials {
    pub(super) username: String,
    pub(super) password: String,
}

impl std::fmt::Debug for RelayCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelayCredentials(..)")
    }
}

/// The parameters of an [`IceAgent`].
#[derive(Debug, Clone)]
pub(super) struct IceAgentConfig {
    pub(super) path: CandidatePath,
    pub(super) role: AgentRole,
    pub(super) ufrag: String,
    pub(super) pwd: String,
    /// The STUN and TURN server.
    pub(super) server: SocketAddr,
    /// For the relay path of a side that may use the relay.
    pub(super) relay: Option<RelayCredentials>,
    /// Whether UDP fails to reach the server, once that is known. An agent with a relay waits for it.
    pub(super) udp_blocked: watch::Receiver<Option<bool>>,
}

/// An event of an [`IceAgent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IceEvent {
    /// A local candidate in the syntax of RFC 8839, without `candidate:`.
    Candidate(String),
    /// End of candidates.
    Gathered,
    /// A pair was selected.
    Selected(SelectedPair),
    /// No pair works, or the agent could not be set up.
    Failed,
}

/// The transport addresses of the selected pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SelectedPair {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

enum IceCommand {
    Start { ufrag: String, pwd: String },
    Candidate(String),
    Close,
}

/// A handle to a running agent. [`IceAgent::close`] ends it; dropping the handle does so without waiting.
#[derive(Debug)]
pub(super) struct IceAgent {
    commands: mpsc::Sender<IceCommand>,
    task: JoinHandle<()>,
}

impl IceAgent {
    /// Starts gathering. Datagrams go through `tunnel`, events to `events`.
    pub(super) fn start(
        config: IceAgentConfig,
        tunnel: Arc<Tunnel>,
        events: mpsc::Sender<(CandidatePath, IceEvent)>,
    ) -> Self {
        let (commands, commands_rx) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            let path = config.path;
            let sink = EventSink { path, events, tunnel };
            if let Err(error) = run(config, commands_rx, &sink).await {
                tracing::debug!(path = path.as_str(), %error, "the ICE agent failed");
                sink.send(IceEvent::Failed).await;
            }
        });
        Self { commands, task }
    }

    /// Starts the checks with the remote credentials.
    pub(super) async fn start_checks(&self, ufrag: String, pwd: String) {
        let _ = self.commands.send(IceCommand::Start { ufrag, pwd }).await;
    }

    /// Adds a remote candidate.
    pub(super) async fn add_candidate(&self, text: String) {
        let _ = self.commands.send(IceCommand::Candidate(text)).await;
    }

    /// Closes the sockets and deallocates the relayed address.
    pub(super) async fn close(self) {
        let _ = self.commands.send(IceCommand::Close).await;
        let mut task = self.task;
        if tokio::time::timeout(CLOSE_TIMEOUT + CLOSE_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }
}

#[derive(Clone)]
struct EventSink {
    path: CandidatePath,
    events: mpsc::Sender<(CandidatePath, IceEvent)>,
    tunnel: Arc<Tunnel>,
}

impl EventSink {
    async fn send(&self, event: IceEvent) {
        let _ = self.events.send((self.path, event)).await;
    }
}

async fn run(
    mut config: IceAgentConfig,
    mut commands: mpsc::Receiver<IceCommand>,
    sink: &EventSink,
) -> Result<(), Error> {
    let mut blocked = *config.udp_blocked.borrow();
    if config.relay.is_some() && blocked.is_none() {
        // If the probe ended without a result, UDP is assumed to work.
        blocked = config.udp_blocked.wait_for(Option::is_some).await.ok().and_then(|blocked| *blocked);
    }
    let blocked = blocked == Some(true);
    let needs_proxy = config.relay.is_some() && (blocked || config.server.is_ipv6());
    let proxy = if needs_proxy { Some(TurnTcpProxy::open(config.server).await?) } else { None };
    let relay_server = proxy.as_ref().map_or(config.server, TurnTcpProxy::local_addr);
    let agent = Arc::new(Agent::new(agent_config(&config, relay_server, blocked)).await?);
    forward_events(&agent, sink);
    agent.gather_candidates()?;
    let mut checks = None;
    while let Some(command) = commands.recv().await {
        match command {
            IceCommand::Candidate(text) => match unmarshal_candidate(&text) {
                Ok(candidate) => {
                    let candidate: Arc<dyn Candidate + Send + Sync> = Arc::new(candidate);
                    agent.add_remote_candidate(&candidate)?;
                }
                Err(error) => tracing::debug!(%error, "an unusable remote candidate"),
            },
            IceCommand::Start { ufrag, pwd } if checks.is_none() => {
                let (agent, sink) = (Arc::clone(&agent), sink.clone());
                checks = Some(tokio::spawn(async move {
                    if let Err(error) = connect(&agent, config.role, (ufrag, pwd), &sink).await {
                        tracing::debug!(%error, "the path has ended");
                        sink.send(IceEvent::Failed).await;
                    }
                }));
            }
            IceCommand::Start { .. } => {}
            IceCommand::Close => break,
        }
    }
    if let Some(checks) = checks {
        checks.abort();
    }
    // Closing waits for locks that a task of the crate may hold during the retransmissions of a lost request.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, agent.close()).await;
    drop(proxy);
    Ok(())
}

fn forward_events(agent: &Agent, sink: &EventSink) {
    let for_candidates = sink.clone();
    agent.on_candidate(Box::new(move |candidate| {
        let sink = for_candidates.clone();
        Box::pin(async move {
            let event = match candidate {
                Some(candidate) => IceEvent::Candidate(candidate.marshal()),
                None => IceEvent::Gathered,
            };
            sink.send(event).await;
        })
    }));
    let for_states = sink.clone();
    agent.on_connection_state_change(Box::new(move |state| {
        let sink = for_states.clone();
        Box::pin(async move {
            if state == ConnectionState::Failed {
                sink.send(IceEvent::Failed).await;
            }
        })
    }));
}

/// Waits for the selected pair and then forwards datagrams in both directions.
async fn connect(
    agent: &Agent,
    role: AgentRole,
    (ufrag, pwd): (String, String),
    sink: &EventSink,
) -> Result<(), webrtc_util::Error> {
    // Dropping the sender would cancel the checks.
    let (_keep, cancelled) = mpsc::channel(1);
    let convert = |error: Error| webrtc_util::Error::Other(error.to_string());
    match role {
        AgentRole::Connector => {
            let conn = agent.dial(cancelled, ufrag, pwd).await.map_err(convert)?;
            forward(agent, &*conn, sink).await
        }
        AgentRole::Listener => {
            let conn = agent.accept(cancelled, ufrag, pwd).await.map_err(convert)?;
            forward(agent, &*conn, sink).await
        }
    }
}

async fn forward(
    agent: &Agent,
    conn: &(impl Conn + Send + Sync),
    sink: &EventSink,
) -> Result<(), webrtc_util::Error> {
    let pair = agent.get_selected_candidate_pair();
    let pair = pair.ok_or_else(|| webrtc_util::Error::Other("no pair was selected".to_owned()))?;
    let (local, remote) = (pair.local.addr(), pair.remote.addr());
    sink.send(IceEvent::Selected(SelectedPair { local, remote })).await;
    let receive = async {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let len = conn.recv(&mut buffer).await?;
            sink.tunnel.deliver(sink.path, &buffer[..len]);
        }
    };
    let send = async {
        loop {
            let datagram = sink.tunnel.next_outgoing(sink.path).await;
            // A send error is a lost datagram; the path selector's pings find out whether the path still works.
            if let Err(error) = conn.send(&datagram).await {
                tracing::trace!(%error, "a datagram was not sent");
            }
        }
    };
    tokio::select! {
        result = receive => result,
        () = send => Ok(()),
    }
}

fn agent_config(config: &IceAgentConfig, relay_server: SocketAddr, blocked: bool) -> AgentConfig {
    let url = |scheme, server: SocketAddr, relay: Option<&RelayCredentials>| Url {
        scheme,
        host: match server.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        },
        port: server.port(),
        username: relay.map(|relay| relay.username.clone()).unwrap_or_default(),
        password: relay.map(|relay| relay.password.clone()).unwrap_or_default(),
        proto: ProtoType::Udp,
    };
    let relay = config.relay.as_ref().filter(|_| config.path == CandidatePath::Relay);
    let (urls, candidate_types) = match relay {
        Some(relay) => (vec![url(SchemeType::Turn, relay_server, Some(relay))], vec![CandidateType::Relay]),
        None if blocked => (vec![], vec![CandidateType::Host]),
        None => (
            vec![url(SchemeType::Stun, config.server, None)],
            vec![CandidateType::Host, CandidateType::ServerReflexive],
        ),
    };
    let wait = |time| Some(if config.path == CandidatePath::Relay { Duration::ZERO } else { time });
    AgentConfig {
        urls,
        local_ufrag: config.ufrag.clone(),
        local_pwd: config.pwd.clone(),
        multicast_dns_mode: MulticastDnsMode::Disabled,
        disconnected_timeout: Some(DISCONNECTED_TIMEOUT),
        failed_timeout: Some(FAILED_TIMEOUT),
        keepalive_interval: Some(CONSENT_INTERVAL),
        network_types: vec![NetworkType::Udp4, NetworkType::Udp6],
        candidate_types,
        check_interval: CHECK_INTERVAL,
        max_binding_requests: Some(MAX_CHECKS),
        is_controlling: config.role == AgentRole::Connector,
        host_acceptance_min_wait: Some(Duration::ZERO),
        srflx_acceptance_min_wait: wait(SERVER_REFLEXIVE_WAIT),
        prflx_acceptance_min_wait: wait(PEER_REFLEXIVE_WAIT),
        relay_acceptance_min_wait: Some(Duration::ZERO),
        ip_filter: Arc::new(Some(Box::new(|ip| !is_link_local(ip)))),
        include_loopback: config.server.ip().is_loopback(),
        ..AgentConfig::default()
    }
}

/// SignalingClient-local addresses need a scope, which candidates cannot carry.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The host's network, for the TURN server of the crate `turn` in tests.
#[cfg(test)]
pub(super) fn system_net() -> Arc<webrtc_util::vnet::net::Net> {
    Arc::new(webrtc_util::vnet::net::Net::new(None))
}
