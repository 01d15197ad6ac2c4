//! The second ICE engine, on top of `webrtc-ice`. The only file that names `webrtc_ice` and `webrtc_util`.
//!
//! It selects one pair and keeps it: no better path later, no way round a dead one, and TURN only over UDP and IPv4. Settings that differ from
//! the crate's defaults, and why:
//!
//! - [`MAX_CHECKS`]: the crate stops after seven checks of a pair, which a slow start of the other side would exhaust;
//! - [`FAILED_TIMEOUT`]: the crate removes its candidates after 30 s without an answer, so that it could not recover from an outage;
//! - loopback candidates, which two agents on one host need.

use super::candidate::{self, CandidatePath};
use super::datagram_queue::DatagramQueue;
use super::engine::{ActivePath, EngineCommand, EngineConfig, EngineEvent, EngineQueues, RelayCredentials};
use super::keys::AgentRole;
use super::outlet::{Outlet, QueueFraming};
use super::path::{PathPolicy, PathTransport};
use super::tunnel::Tunnel;
use crate::ice::IceCredentials;
use bytes::Bytes;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
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
/// How long a pair waits for a better one, because it is kept: server-reflexive, peer-reflexive, relayed.
const WAITS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(300), Duration::from_millis(1500)];
/// Time limit for closing, which includes the deallocation of the relayed address.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DATAGRAM: usize = 2048;

/// See the [module](self).
pub(super) struct WebRtcEngine {
    config: EngineConfig,
    tunnel: Arc<Tunnel>,
    events: mpsc::Sender<EngineEvent>,
}

impl WebRtcEngine {
    /// Gathers, checks and forwards datagrams until the call closes the engine.
    pub(super) async fn run(config: EngineConfig, tunnel: Arc<Tunnel>, queues: EngineQueues) {
        let EngineQueues { mut commands, events, messages: _ } = queues;
        let engine = Arc::new(Self { config, tunnel, events });
        if let Err(error) = engine.clone().work(&mut commands).await {
            tracing::debug!(%error, "the ICE agent failed");
            engine.send(EngineEvent::Failed);
        }
    }

    fn send(&self, event: EngineEvent) {
        let _ = self.events.try_send(event);
    }

    async fn work(self: Arc<Self>, commands: &mut mpsc::Receiver<EngineCommand>) -> Result<(), Error> {
        let Some((relay, role, credentials)) = begin(commands).await else { return Ok(()) };
        let agent = Arc::new(Agent::new(self.agent_config(relay.as_ref(), role, &credentials)).await?);
        self.forward_events(&agent);
        agent.gather_candidates()?;
        let mut checks: Option<JoinHandle<()>> = None;
        while let Some(command) = commands.recv().await {
            match command {
                EngineCommand::Candidate(text) => match unmarshal_candidate(&text) {
                    Ok(candidate) => {
                        let candidate: Arc<dyn Candidate + Send + Sync> = Arc::new(candidate);
                        agent.add_remote_candidate(&candidate)?;
                    }
                    Err(error) => tracing::debug!(%error, "an unusable remote candidate"),
                },
                EngineCommand::Start(remote) if checks.is_none() => {
                    let (agent, engine) = (Arc::clone(&agent), Arc::clone(&self));
                    checks = Some(tokio::spawn(async move {
                        if let Err(error) = engine.connect(&agent, role, &remote).await {
                            tracing::debug!(%error, "the path has ended");
                            engine.send(EngineEvent::Failed);
                        }
                    }));
                }
                EngineCommand::Close => break,
                _ => {}
            }
        }
        if let Some(checks) = checks {
            checks.abort();
        }
        // Closing waits for locks that a task of the crate may hold during the retransmissions of a lost request.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, agent.close()).await;
        Ok(())
    }

    fn forward_events(self: &Arc<Self>, agent: &Agent) {
        let engine = Arc::clone(self);
        agent.on_candidate(Box::new(move |candidate| {
            engine.send(match candidate {
                Some(candidate) => EngineEvent::Candidate(candidate.marshal()),
                None => EngineEvent::Gathered,
            });
            Box::pin(async {})
        }));
        let engine = Arc::clone(self);
        agent.on_connection_state_change(Box::new(move |state| {
            match state {
                ConnectionState::Connected => engine.send(EngineEvent::Connected),
                ConnectionState::Disconnected => engine.send(EngineEvent::Disconnected),
                ConnectionState::Failed => engine.send(EngineEvent::Failed),
                _ => {}
            }
            Box::pin(async {})
        }));
    }

    /// Waits for the selected pair and then forwards datagrams in both directions.
    async fn connect(
        &self,
        agent: &Agent,
        role: AgentRole,
        remote: &IceCredentials,
    ) -> Result<(), webrtc_util::Error> {
        // Dropping the sender would cancel the checks.
        let (_keep, cancelled) = mpsc::channel(1);
        let (ufrag, pwd) = (remote.ufrag().to_owned(), remote.password().to_owned());
        let convert = |error: Error| webrtc_util::Error::Other(error.to_string());
        match role {
            AgentRole::Connector => {
                let conn = agent.dial(cancelled, ufrag, pwd).await.map_err(convert)?;
                self.forward(agent, &*conn).await
            }
            AgentRole::Listener => {
                let conn = agent.accept(cancelled, ufrag, pwd).await.map_err(convert)?;
                self.forward(agent, &*conn).await
            }
        }
    }

    async fn forward(
        &self,
        agent: &Agent,
        conn: &(impl Conn + Send + Sync),
    ) -> Result<(), webrtc_util::Error> {
        let pair = agent.get_selected_candidate_pair();
        let pair = pair.ok_or_else(|| webrtc_util::Error::Other("no pair was selected".to_owned()))?;
        let is_relay = [&pair.local, &pair.remote]
            .into_iter()
            .any(|candidate| candidate.candidate_type() == CandidateType::Relay);
        let path = if is_relay { CandidatePath::Relay } else { CandidatePath::Direct };
        let queue = Arc::new(DatagramQueue::default());
        self.tunnel.set_outlet(Some(Outlet::Queue(Arc::clone(&queue), QueueFraming::Datagrams)));
        let (local, remote) = (pair.local.addr(), pair.remote.addr());
        self.send(EngineEvent::Selected(ActivePath {
            path,
            transport: PathTransport::Udp,
            local,
            remote,
            rtt: None,
        }));
        let receive = async {
            let mut buffer = vec![0; MAX_DATAGRAM];
            loop {
                let len = conn.recv(&mut buffer).await?;
                self.tunnel.deliver(Bytes::copy_from_slice(&buffer[..len]));
            }
        };
        let send = async {
            loop {
                let datagram = queue.next().await;
                // A send error is a lost datagram.
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

    fn agent_config(
        &self,
        relay: Option<&RelayCredentials>,
        role: AgentRole,
        credentials: &IceCredentials,
    ) -> AgentConfig {
        let server = self.config.server;
        let url = |scheme, relay: Option<&RelayCredentials>| Url {
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
        let relay = relay.filter(|_| self.config.policy.allows(CandidatePath::Relay));
        let mut urls = vec![];
        let mut candidate_types = vec![];
        if self.config.policy != PathPolicy::RelayOnly || relay.is_none() {
            urls.push(url(SchemeType::Stun, None));
            candidate_types.extend([CandidateType::Host, CandidateType::ServerReflexive]);
        }
        if relay.is_some() {
            urls.push(url(SchemeType::Turn, relay));
            candidate_types.push(CandidateType::Relay);
        }
        AgentConfig {
            urls,
            local_ufrag: credentials.ufrag().to_owned(),
            local_pwd: credentials.password().to_owned(),
            multicast_dns_mode: MulticastDnsMode::Disabled,
            disconnected_timeout: Some(DISCONNECTED_TIMEOUT),
            failed_timeout: Some(FAILED_TIMEOUT),
            keepalive_interval: Some(CONSENT_INTERVAL),
            network_types: vec![NetworkType::Udp4, NetworkType::Udp6],
            candidate_types,
            check_interval: CHECK_INTERVAL,
            max_binding_requests: Some(MAX_CHECKS),
            is_controlling: role == AgentRole::Connector,
            host_acceptance_min_wait: Some(Duration::ZERO),
            srflx_acceptance_min_wait: Some(WAITS[0]),
            prflx_acceptance_min_wait: Some(WAITS[1]),
            relay_acceptance_min_wait: Some(WAITS[2]),
            ip_filter: Arc::new(Some(Box::new(|ip| !candidate::is_link_local(ip)))),
            include_loopback: server.ip().is_loopback(),
            ..AgentConfig::default()
        }
    }
}

/// Waits for what the crate needs before it can gather.
async fn begin(
    commands: &mut mpsc::Receiver<EngineCommand>,
) -> Option<(Option<RelayCredentials>, AgentRole, IceCredentials)> {
    let mut relay = None;
    loop {
        match commands.recv().await? {
            EngineCommand::Relay(credentials) => relay = credentials,
            EngineCommand::Begin(role, credentials) => return Some((relay, role, credentials)),
            EngineCommand::Close => return None,
            _ => {}
        }
    }
}

/// Returns a network for the TURN server of the crate `turn` in tests.
#[cfg(test)]
pub(super) fn system_net() -> Arc<webrtc_util::vnet::net::Net> {
    Arc::new(webrtc_util::vnet::net::Net::new(None))
}
