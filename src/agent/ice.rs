//! One lane: an ICE agent of `webrtc-ice` and the path it selects. The only file that names `webrtc_ice` and `webrtc_util`.
//!
//! A session has two of them that share credentials, because one such agent nominates a pair once and stays on it: the
//! relay lane takes the first pair that works, the direct lane waits a moment for inner addresses to win. What the crate's
//! defaults would get wrong here:
//!
//! - it stops checking a pair after seven requests, and a controlling agent never starts again, so a slow start of the other side
//!   would end the search: [`MAX_CHECKS`] is far above;
//! - it forgets its candidates after 30 s of silence, so that an outage could not heal: [`FORGET`] is an hour;
//! - it speaks TURN only over UDP and IPv4: for the rest a [`TurnTcpProxy`] stands in front;
//! - it gathers loopback addresses only when asked, which two agents on one machine need.

use super::candidate::CandidatePath;
use super::pinned_tls::Role;
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

/// Requests sent on one pair before it is given up; at one per check interval about half a minute.
const MAX_CHECKS: u16 = 300;
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);
const DISCONNECTED: Duration = Duration::from_secs(10);
const FORGET: Duration = Duration::from_secs(3600);
/// How long a reflexive address has to wait for an inner one to be found.
const REFLEXIVE_WAIT: Duration = Duration::from_millis(200);
const PEER_REFLEXIVE_WAIT: Duration = Duration::from_millis(300);
/// How long an agent may take to close, which includes giving its relayed address back.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Commands and events that wait.
const QUEUE: usize = 128;
const DATAGRAM: usize = 2048;

/// Time-limited credentials for the relay.
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

/// What a lane is made of.
#[derive(Debug, Clone)]
pub(super) struct IceAgentConfig {
    pub(super) kind: CandidatePath,
    pub(super) role: Role,
    pub(super) ufrag: String,
    pub(super) pwd: String,
    /// The server, for STUN and TURN.
    pub(super) server: SocketAddr,
    /// For the relay lane of a side that may use the relay.
    pub(super) relay: Option<RelayCredentials>,
    /// Whether UDP fails to reach the server, once that is known. A lane through the relay waits for it.
    pub(super) blocked: watch::Receiver<Option<bool>>,
}

/// What a lane tells its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IceEvent {
    /// A candidate of ours, as RFC 8839 has it but for `candidate:`.
    Candidate(String),
    /// There will be no more candidates.
    Gathered,
    /// A pair was selected.
    Valid(SelectedPair),
    /// No pair works, or the lane could not be set up.
    Failed,
}

/// The ends of the selected pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SelectedPair {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

enum Command {
    Start { ufrag: String, pwd: String },
    Candidate(String),
    Close,
}

/// A running lane; dropping it abandons it, [`IceAgent::close`] ends it in good order.
#[derive(Debug)]
pub(super) struct IceAgent {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl IceAgent {
    /// Starts gathering. Datagrams go through `tunnel`, everything else to `events`.
    pub(super) fn open(
        config: IceAgentConfig,
        tunnel: Arc<Tunnel>,
        events: mpsc::Sender<(CandidatePath, IceEvent)>,
    ) -> Self {
        let (commands, commands_rx) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            let kind = config.kind;
            let sink = EventSink { kind, events, tunnel };
            if let Err(error) = run(config, commands_rx, &sink).await {
                tracing::debug!(lane = kind.word(), %error, "the lane ended");
                sink.say(IceEvent::Failed).await;
            }
        });
        Self { commands, task }
    }

    /// Begins checks with the other side's credentials.
    pub(super) async fn start(&self, ufrag: String, pwd: String) {
        let _ = self.commands.send(Command::Start { ufrag, pwd }).await;
    }

    /// Adds a candidate of the other side.
    pub(super) async fn add_candidate(&self, text: String) {
        let _ = self.commands.send(Command::Candidate(text)).await;
    }

    /// Closes the sockets and gives the relayed address back.
    pub(super) async fn close(self) {
        let _ = self.commands.send(Command::Close).await;
        let mut task = self.task;
        if tokio::time::timeout(CLOSE_TIME + CLOSE_TIME, &mut task).await.is_err() {
            task.abort();
        }
    }
}

#[derive(Clone)]
struct EventSink {
    kind: CandidatePath,
    events: mpsc::Sender<(CandidatePath, IceEvent)>,
    tunnel: Arc<Tunnel>,
}

impl EventSink {
    async fn say(&self, event: IceEvent) {
        let _ = self.events.send((self.kind, event)).await;
    }
}

async fn run(
    mut config: IceAgentConfig,
    mut commands: mpsc::Receiver<Command>,
    sink: &EventSink,
) -> Result<(), Error> {
    let mut blocked = *config.blocked.borrow();
    if config.relay.is_some() && blocked.is_none() {
        // A sender that is gone leaves it unknown, and unknown is taken as open.
        blocked = config.blocked.wait_for(Option::is_some).await.ok().and_then(|blocked| *blocked);
    }
    let blocked = blocked == Some(true);
    let needs_leg = config.relay.is_some() && (blocked || config.server.is_ipv6());
    let leg = if needs_leg { Some(TurnTcpProxy::open(config.server).await?) } else { None };
    let relay_server = leg.as_ref().map_or(config.server, TurnTcpProxy::local_addr);
    let agent = Arc::new(Agent::new(agent_config(&config, relay_server, blocked)).await?);
    forward_events(&agent, sink);
    agent.gather_candidates()?;
    let mut checks = None;
    while let Some(command) = commands.recv().await {
        match command {
            Command::Candidate(text) => match unmarshal_candidate(&text) {
                Ok(candidate) => {
                    let candidate: Arc<dyn Candidate + Send + Sync> = Arc::new(candidate);
                    agent.add_remote_candidate(&candidate)?;
                }
                Err(error) => tracing::debug!(%error, "a candidate that cannot be used"),
            },
            Command::Start { ufrag, pwd } if checks.is_none() => {
                let (agent, sink) = (Arc::clone(&agent), sink.clone());
                checks = Some(tokio::spawn(async move {
                    if let Err(error) = carry(&agent, config.role, (ufrag, pwd), &sink).await {
                        tracing::debug!(%error, "the lane carries no more");
                        sink.say(IceEvent::Failed).await;
                    }
                }));
            }
            Command::Start { .. } => {}
            Command::Close => break,
        }
    }
    if let Some(checks) = checks {
        checks.abort();
    }
    // Closing waits for locks that a task of the crate may hold for as long as a lost request is repeated.
    let _ = tokio::time::timeout(CLOSE_TIME, agent.close()).await;
    drop(leg);
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
            sink.say(event).await;
        })
    }));
    let for_states = sink.clone();
    agent.on_connection_state_change(Box::new(move |state| {
        let sink = for_states.clone();
        Box::pin(async move {
            if state == ConnectionState::Failed {
                sink.say(IceEvent::Failed).await;
            }
        })
    }));
}

/// Waits for a pair and then carries datagrams both ways.
async fn carry(
    agent: &Agent,
    role: Role,
    (ufrag, pwd): (String, String),
    sink: &EventSink,
) -> Result<(), webrtc_util::Error> {
    // Kept to the end: its closing would cancel the checks.
    let (_keep, cancelled) = mpsc::channel(1);
    let wrong = |error: Error| webrtc_util::Error::Other(error.to_string());
    match role {
        Role::Connector => {
            let conn = agent.dial(cancelled, ufrag, pwd).await.map_err(wrong)?;
            exchange(agent, &*conn, sink).await
        }
        Role::Listener => {
            let conn = agent.accept(cancelled, ufrag, pwd).await.map_err(wrong)?;
            exchange(agent, &*conn, sink).await
        }
    }
}

async fn exchange(
    agent: &Agent,
    conn: &(impl Conn + Send + Sync),
    sink: &EventSink,
) -> Result<(), webrtc_util::Error> {
    let pair = agent.get_selected_candidate_pair();
    let pair = pair.ok_or_else(|| webrtc_util::Error::Other("no pair was selected".to_owned()))?;
    let (local, remote) = (pair.local.addr(), pair.remote.addr());
    sink.say(IceEvent::Valid(SelectedPair { local, remote })).await;
    let receive = async {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let len = conn.recv(&mut buffer).await?;
            sink.tunnel.deliver(sink.kind, &buffer[..len]);
        }
    };
    let send = async {
        loop {
            let datagram = sink.tunnel.next_outgoing(sink.kind).await;
            // A refused send is a lost datagram; whether the lane still works is for its pings to find out.
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
    let relay = config.relay.as_ref().filter(|_| config.kind == CandidatePath::Relay);
    let (urls, candidate_types) = match relay {
        Some(relay) => (vec![url(SchemeType::Turn, relay_server, Some(relay))], vec![CandidateType::Relay]),
        None if blocked => (vec![], vec![CandidateType::Host]),
        None => (
            vec![url(SchemeType::Stun, config.server, None)],
            vec![CandidateType::Host, CandidateType::ServerReflexive],
        ),
    };
    let wait = |time| Some(if config.kind == CandidatePath::Relay { Duration::ZERO } else { time });
    AgentConfig {
        urls,
        local_ufrag: config.ufrag.clone(),
        local_pwd: config.pwd.clone(),
        multicast_dns_mode: MulticastDnsMode::Disabled,
        disconnected_timeout: Some(DISCONNECTED),
        failed_timeout: Some(FORGET),
        keepalive_interval: Some(CONSENT_INTERVAL),
        network_types: vec![NetworkType::Udp4, NetworkType::Udp6],
        candidate_types,
        check_interval: CHECK_INTERVAL,
        max_binding_requests: Some(MAX_CHECKS),
        is_controlling: config.role == Role::Connector,
        host_acceptance_min_wait: Some(Duration::ZERO),
        srflx_acceptance_min_wait: wait(REFLEXIVE_WAIT),
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

/// The system's network, for a foreign TURN server in tests.
#[cfg(test)]
pub(super) fn system_net() -> Arc<webrtc_util::vnet::net::Net> {
    Arc::new(webrtc_util::vnet::net::Net::new(None))
}
