//! What a call and an ICE engine say to each other.
//!
//! An engine gathers candidates before the call has a role or credentials, so that a listener can have everything ready. It selects the path
//! and sets the tunnel's [`Outlet`](super::outlet::Outlet). [`IceEngine`](super::ice_engine::IceEngine) is the usual one;
//! [`WebRtcEngine`](super::webrtc_engine::WebRtcEngine) uses the crate `webrtc-ice`.

use super::candidate::CandidatePath;
use super::config::ServerName;
use super::hard_nat::SprayStatus;
use super::ice_engine::IceEngine;
use super::keys::AgentRole;
use super::path::{PathPolicy, PathTransport};
use super::tunnel::{EngineMessage, Tunnel};
use super::webrtc_engine::WebRtcEngine;
use crate::ice::IceCredentials;
use crate::net::dialer::Dialer;
use crate::signaling::wire::NatType;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Capacity of the queues of commands and events; a session sends and receives fewer candidates.
const QUEUE: usize = 256;
/// Time limit for closing, which includes the deallocation of the relayed address.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which ICE implementation an agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IceImplementation {
    /// [`crate::ice`].
    #[default]
    Ginnel,
    /// The crate `webrtc-ice`: for comparison. It selects one pair and keeps it.
    WebRtc,
}

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

/// The access key of the servers.
#[derive(Clone)]
pub(super) struct AccessKey(pub(super) String);

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessKey(..)")
    }
}

/// The parameters of an engine.
#[derive(Debug, Clone)]
pub(super) struct EngineConfig {
    /// The connector only pings.
    pub(super) is_ping: bool,
    /// Which one.
    pub(super) implementation: IceImplementation,
    /// The paths that may be used.
    pub(super) policy: PathPolicy,
    /// The STUN and TURN server.
    pub(super) server: SocketAddr,
    /// The name of that server.
    pub(super) name: ServerName,
    /// The servers beside it.
    pub(super) further_servers: Vec<ServerName>,
    /// The access key of all of them.
    pub(super) key: Option<AccessKey>,
    /// Opens TCP connections to it.
    pub(super) dialer: Dialer,
    /// Whether the router is asked to map ports.
    pub(super) port_mapping: bool,
    /// Whether ports of NATs may be predicted and probed.
    pub(super) is_spray_allowed: bool,
}

/// What a call tells its engine.
#[derive(Debug)]
pub(super) enum EngineCommand {
    /// The credentials of the TURN server; `None` if it grants no relay.
    Relay(Option<RelayCredentials>),
    /// The STUN and TURN server and its address, which may have changed. Its credentials follow.
    Server(ServerName, SocketAddr),
    /// The server may be dead.
    VerifyRelays,
    /// The STUN server's second port.
    SecondServer(SocketAddr),
    /// Whether the server allows to predict and probe ports.
    AllowSpray(bool),
    /// The role and the local ICE credentials.
    Begin(AgentRole, IceCredentials),
    /// New local ICE credentials. All candidates are reported again, then [`EngineEvent::Restarted`]; the path stays until a new one works.
    Restart(IceCredentials),
    /// The remote ICE credentials: checks start.
    Start(IceCredentials),
    /// A remote candidate in the syntax of RFC 8839.
    Candidate(String),
    /// The other side has no more candidates.
    EndOfCandidates,
    /// Release everything.
    Close,
}

/// The path that carries data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ActivePath {
    /// Its kind.
    pub(super) path: CandidatePath,
    /// How datagrams reach the peer or the relay of the other side.
    pub(super) transport: PathTransport,
    /// The local address.
    pub(super) local: SocketAddr,
    /// The peer's address.
    pub(super) remote: SocketAddr,
    /// The round-trip time of its checks.
    pub(super) rtt: Option<Duration>,
}

/// What an engine tells its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EngineEvent {
    /// A local candidate in the syntax of RFC 8839.
    Candidate(String),
    /// End of candidates.
    Gathered,
    /// The type of the local NAT.
    Nat(NatType),
    /// What became of the prediction of ports.
    Spray(SprayStatus),
    /// The first datagrams can be sent over a relay, of which no check has been answered.
    Provisional,
    /// Data goes over this path from now on, or its round-trip time is known now.
    Selected(ActivePath),
    /// Another server is used for STUN and TURN.
    ServerChanged(SocketAddr),
    /// ICE was restarted, and the candidates have been reported.
    Restarted,
    /// The host has other addresses.
    NetworkChanged,
    /// No path answers; checks go on.
    Disconnected,
    /// A path answers again.
    Connected,
    /// The engine could not be set up, or has given up.
    Failed,
}

/// A handle to a running engine. [`Engine::close`] ends it; dropping the handle does so without waiting.
#[derive(Debug)]
pub(super) struct Engine {
    commands: mpsc::Sender<EngineCommand>,
    task: JoinHandle<()>,
}

/// An engine's ends of the queues.
pub(super) struct EngineQueues {
    pub(super) commands: mpsc::Receiver<EngineCommand>,
    pub(super) events: mpsc::Sender<EngineEvent>,
    pub(super) messages: mpsc::Receiver<EngineMessage>,
}

impl EngineQueues {
    /// Sends an event. A call that does not read loses events, not its engine.
    pub(super) fn send(&self, event: EngineEvent) {
        let _ = self.events.try_send(event);
    }
}

impl Engine {
    /// Starts gathering.
    pub(super) fn start(
        config: EngineConfig,
        tunnel: Arc<Tunnel>,
        messages: mpsc::Receiver<EngineMessage>,
    ) -> (Self, mpsc::Receiver<EngineEvent>) {
        let (commands, commands_rx) = mpsc::channel(QUEUE);
        let (events, events_rx) = mpsc::channel(QUEUE);
        let queues = EngineQueues { commands: commands_rx, events, messages };
        let task = match config.implementation {
            IceImplementation::Ginnel => tokio::spawn(IceEngine::run(config, tunnel, queues)),
            IceImplementation::WebRtc => tokio::spawn(WebRtcEngine::run(config, tunnel, queues)),
        };
        (Self { commands, task }, events_rx)
    }

    /// Sends a command. The queue takes more than a session sends.
    pub(super) fn send(&self, command: EngineCommand) {
        let _ = self.commands.try_send(command);
    }

    /// Returns a sender of commands.
    pub(super) fn sender(&self) -> mpsc::Sender<EngineCommand> {
        self.commands.clone()
    }

    /// Closes the sockets and deallocates the relayed address.
    pub(super) async fn close(self) {
        let _ = self.commands.send(EngineCommand::Close).await;
        let mut task = self.task;
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }
}
