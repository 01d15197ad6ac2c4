//! The usual ICE engine: sockets, gathering, relays and [`IceAgent`], in one task.
//!
//! The task owns the state machines. QUIC's endpoint reads the sockets and passes on what is not QUIC's (see [`Tunnel`]); the task sends checks
//! and sets the outlet to the selected pair. It looks at the data's signs of life every [`TICK`] while there is traffic.

mod extra_sockets;
mod further_servers;
mod mappings;
mod names;
mod provisional;
mod reflexive;
mod relays;
mod simultaneous_open;
mod translation;

use super::candidate::{self, CandidatePath};
use super::config::ServerName;
use super::datagram_queue::DatagramQueue;
use super::engine::{
    AccessKey, ActivePath, EngineCommand, EngineConfig, EngineEvent, EngineQueues, RelayCredentials,
};
use super::gathering::{Gathering, GatheringEvent};
use super::host_addresses::{host_addresses, source_address};
use super::keys::AgentRole;
use super::outlet::{Outlet, ProvisionalPath, QueueFraming};
use super::path::{PathPolicy, PathTransport};
use super::peer_streams::{Direction, PeerStreamEvent, PeerStreams};
use super::port_mapping::{MappedProtocol, MappingEvent, PortMapper, WantedMapping};
use super::relay_client::{RelayClient, RelayLink};
use super::relay_stream;
use super::tunnel::{EngineMessage, MessageSource, Tunnel};
use super::udp_port::UdpPort;
use crate::ice::{
    Candidate, CandidateError, CandidateKind, CandidateTransport, IceAgent, IceConfig, IceCredentials,
    IceEvent, IceRole, IceState, SelectedPair,
};
use crate::net::dialer::Dialer;
use crate::net::network_changes::NetworkChanges;
use crate::net::time;
use crate::turn_client::LongTermCredentials;
use extra_sockets::ExtraSockets;
use further_servers::FurtherServers;
use names::Names;
use relays::Relays;
use simultaneous_open::SimultaneousOpen;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use translation::Translation;

/// Between looks at the traffic.
const TICK: Duration = Duration::from_millis(100);
/// The relay by TCP is tried if the one by UDP is not ready after this time.
const STREAM_DELAY: Duration = Duration::from_millis(250);
/// The same while the server has not answered any datagram.
const STREAM_DELAY_WITHOUT_ANSWER: Duration = Duration::from_millis(100);
/// The relay by TCP is released when it has not been in use for this time.
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// The first and the longest wait before a lost relay is requested again.
const RELAY_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long the end of candidates waits for a relay.
const RELAY_TIME: Duration = Duration::from_secs(3);
/// A task that wakes this much too late was suspended.
const SUSPENDED: Duration = Duration::from_secs(3);
/// Between two attempts to repair a silent session's relays and mappings.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);
/// Time limit of the deallocation.
const RELEASE_TIME: Duration = Duration::from_millis(500);
/// Deadline of a timer that is not needed.
const FAR: Duration = Duration::from_secs(3600);
/// Addresses with TCP candidates; the better ones.
const MAX_TCP_HOSTS: usize = 4;
/// The port of active candidates (RFC 6544 section 4.5).
const ACTIVE_PORT: u16 = 9;
/// Between the preferences of two host candidates.
const PREFERENCE_STEP: u16 = 1_000;

/// See the [module](self).
pub(super) struct IceEngine {
    config: EngineConfig,
    tunnel: Arc<Tunnel>,
    queues: EngineQueues,
    ports: Vec<Arc<UdpPort>>,
    extra: ExtraSockets,
    streams: PeerStreams,
    simultaneous_open: SimultaneousOpen,
    gathering: Gathering,
    further: FurtherServers,
    network: NetworkChanges,
    mapper: PortMapper,
    names: Names,
    relays: Relays,
    translation: Translation,
    candidates: Vec<Candidate>,
    agent: Option<IceAgent>,
    /// The paths of the first datagrams, until a pair has answered.
    provisional: Vec<Arc<ProvisionalPath>>,
    /// What the call knows of the path.
    active: Option<ActivePath>,
    is_connected: bool,
    /// The call does not know that yet.
    is_connected_untold: bool,
    repaired_at: Option<Instant>,
    /// The next look at the traffic; `None` while there is none.
    tick: Option<Instant>,
    mappings_done: bool,
    gathered: bool,
}

impl IceEngine {
    /// Gathers, checks and keeps the path until the call closes the engine.
    pub(super) async fn run(config: EngineConfig, tunnel: Arc<Tunnel>, queues: EngineQueues) {
        let now = time::now().mono;
        let server = config.server;
        let mut engine = Self {
            mapper: PortMapper::start(Self::maps_ports(&config)),
            further: FurtherServers::start(&config.further_servers),
            extra: ExtraSockets::new(&config),
            config,
            streams: PeerStreams::new(Arc::clone(&tunnel)),
            tunnel,
            queues,
            ports: Vec::new(),
            simultaneous_open: SimultaneousOpen::default(),
            gathering: Gathering::new(now, server, rand::random()),
            network: NetworkChanges::start(),
            names: Names::default(),
            relays: Relays::default(),
            translation: Translation::default(),
            candidates: Vec::new(),
            agent: None,
            provisional: Vec::new(),
            active: None,
            is_connected: false,
            is_connected_untold: false,
            repaired_at: None,
            tick: None,
            mappings_done: false,
            gathered: false,
        };
        engine.open_ports(now);
        engine.look_for_nat64();
        engine.work().await;
        if let Some(agent) = &engine.agent {
            tracing::debug!(counters = ?agent.counters(), "the limits that ICE has reached");
        }
        let mapper = std::mem::replace(&mut engine.mapper, PortMapper::start(false));
        tokio::join!(mapper.close(), engine.release());
    }

    async fn work(&mut self) {
        loop {
            self.flush(time::now().mono);
            let due = self.next_timeout();
            let tunnel = Arc::clone(&self.tunnel);
            tokio::select! {
                command = self.queues.commands.recv() => match command {
                    Some(EngineCommand::Close) | None => return,
                    Some(command) => self.handle_command(time::now().mono, command),
                },
                Some(message) = self.queues.messages.recv() => self.handle_message(time::now().mono, message),
                event = self.streams.next() => self.handle_stream(time::now().mono, event),
                found = self.further.next() => self.handle_further_server(time::now().mono, found),
                event = self.mapper.next() => self.handle_mapping(time::now().mono, event),
                text = self.names.next() => self.add_remote_candidate(time::now().mono, &text),
                () = self.network.changed() => self.handle_network_change(time::now().mono),
                () = tunnel.activity(), if self.tick.is_none() && self.active.is_some() => {
                    self.tick = Some(time::now().mono + TICK);
                }
                () = sleep_until(due.into()) => self.handle_timeout(time::now().mono, due),
            }
        }
    }

    fn next_timeout(&self) -> Instant {
        let relays = self.relays.clients.iter().filter_map(RelayClient::poll_timeout).min();
        let patience = self.relays.patience.filter(|_| !self.gathered);
        [
            self.gathering.poll_timeout(),
            relays,
            self.agent.as_ref().and_then(IceAgent::poll_timeout),
            self.relays.stream_at,
            self.relays.retry_at,
            patience,
            self.relays.stream_used_at.map(|at| at + STREAM_IDLE),
            self.tick,
            self.simultaneous_open.retry_at,
            self.further.poll_timeout(),
            self.extra.hard_nat.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or_else(|| time::now().mono + FAR)
    }

    fn handle_command(&mut self, now: Instant, command: EngineCommand) {
        match command {
            EngineCommand::Relay(credentials) => self.set_relay(now, credentials),
            EngineCommand::Server(name, address) => self.set_server(now, name, address),
            EngineCommand::VerifyRelays => self.verify_relays(now),
            EngineCommand::SecondServer(server) => self.gathering.set_second_server(now, server),
            EngineCommand::AllowSpray(is_allowed) => self.extra.hard_nat.set_vetoed(now, !is_allowed),
            EngineCommand::Begin(role, credentials) => self.begin(now, role, credentials),
            EngineCommand::Restart(credentials) => self.restart(now, credentials),
            EngineCommand::Start(credentials) => {
                if let Some(agent) = &mut self.agent {
                    agent.set_remote_credentials(now, credentials);
                }
            }
            EngineCommand::Candidate(text) => self.add_remote_candidate(now, &text),
            EngineCommand::EndOfCandidates => {
                if let Some(agent) = &mut self.agent {
                    agent.handle_end_of_candidates(now);
                }
            }
            EngineCommand::Close => {}
        }
    }

    fn add_remote_candidate(&mut self, now: Instant, text: &str) {
        let candidate: Candidate = match text.parse() {
            Ok(candidate) => candidate,
            Err(CandidateError::HostName) => return self.names.resolve(text),
            Err(error) => return tracing::debug!(%error, "an unusable remote candidate"),
        };
        let translated = self.translate(&candidate);
        self.note_simultaneous_open(now, &candidate);
        if let Some(agent) = &mut self.agent {
            let ip = candidate.address.ip();
            for candidate in translated.into_iter().chain([candidate]) {
                agent.add_remote_candidate(now, candidate);
            }
            self.permit(now, ip);
        }
    }

    fn begin(&mut self, now: Instant, role: AgentRole, credentials: IceCredentials) {
        let role = match role {
            AgentRole::Connector => IceRole::Controlling,
            AgentRole::Listener => IceRole::Controlled,
        };
        let mut agent = IceAgent::with_credentials(IceConfig::new(role), credentials, rand::random());
        for candidate in self.candidates.iter().filter(|candidate| self.is_usable(candidate)) {
            agent.add_local_candidate(now, candidate.clone());
        }
        self.agent = Some(agent);
    }

    fn restart(&mut self, now: Instant, credentials: IceCredentials) {
        if let Some(agent) = &mut self.agent {
            agent.restart_with(now, credentials);
        }
        self.names = Names::default();
        for candidate in self.candidates.iter().filter(|candidate| !self.is_hidden(candidate)) {
            self.queues.send(EngineEvent::Candidate(candidate.to_string()));
        }
        if self.gathered {
            self.queues.send(EngineEvent::Gathered);
        }
        self.gathering.nat().into_iter().for_each(|nat| self.queues.send(EngineEvent::Nat(nat)));
        self.queues.send(EngineEvent::Restarted);
    }

    /// Returns whether a local candidate is not told to the other side.
    fn is_hidden(&self, candidate: &Candidate) -> bool {
        self.config.policy == PathPolicy::RelayOnly && candidate.kind != CandidateKind::Relayed
    }

    /// Returns whether checks are sent from a local candidate.
    fn is_usable(&self, candidate: &Candidate) -> bool {
        let is_relayed = candidate.kind == CandidateKind::Relayed;
        match self.config.policy {
            PathPolicy::All => true,
            PathPolicy::DirectOnly => !is_relayed,
            // Without a relay of its own, this side reaches the one of the other side.
            PathPolicy::RelayOnly => is_relayed || self.relays.is_granted == Some(false),
        }
    }

    fn add_candidate(&mut self, now: Instant, candidate: Candidate) {
        if !self.is_hidden(&candidate) {
            self.queues.send(EngineEvent::Candidate(candidate.to_string()));
        }
        if self.is_usable(&candidate)
            && let Some(agent) = &mut self.agent
        {
            agent.add_local_candidate(now, candidate.clone());
        }
        self.candidates.push(candidate);
    }

    fn remove_candidates(&mut self, now: Instant, base: SocketAddr) {
        self.candidates.retain(|candidate| candidate.base != base);
        if let Some(agent) = &mut self.agent {
            agent.remove_local_candidates(now, base);
        }
    }

    /// Opens a socket for each local address, and closes those whose address is gone.
    fn open_ports(&mut self, now: Instant) {
        let addresses = host_addresses(self.config.server);
        let (kept, gone): (Vec<_>, Vec<_>) =
            self.ports.drain(..).partition(|port| addresses.contains(&port.local_addr().ip()));
        for port in gone {
            let ip = port.local_addr().ip();
            let of_address = |candidate: &&Candidate| {
                candidate.kind != CandidateKind::Relayed && candidate.base.ip() == ip
            };
            let bases: Vec<SocketAddr> =
                self.candidates.iter().filter(of_address).map(|known| known.base).collect();
            for base in bases {
                self.remove_candidates(now, base);
            }
            self.streams.close_listeners(ip);
        }
        self.ports = kept;
        for (index, ip) in (0..).zip(addresses.iter().copied()) {
            if self.ports.iter().any(|port| port.local_addr().ip() == ip) {
                continue;
            }
            match UdpPort::bind(SocketAddr::new(ip, 0)) {
                Ok(port) => {
                    let preference = u16::MAX - index * PREFERENCE_STEP;
                    let host = Candidate::host(CandidateTransport::Udp, port.local_addr(), preference);
                    self.ports.push(Arc::new(port));
                    self.add_candidate(now, host);
                    if usize::from(index) < MAX_TCP_HOSTS {
                        self.add_tcp_candidates(now, ip, preference);
                    }
                }
                Err(error) => tracing::debug!(%error, %ip, "no socket for a host candidate"),
            }
        }
        self.close_lost_extra_sockets(now, &addresses);
        self.share_ports();
        let bases: Vec<SocketAddr> = self.ports.iter().map(|port| port.local_addr()).collect();
        self.gathering.set_ports(now, &bases);
        self.request_mappings();
    }

    /// A connection can be opened from every address, and accepted at it.
    fn add_tcp_candidates(&mut self, now: Instant, ip: IpAddr, preference: u16) {
        let active = SocketAddr::new(ip, ACTIVE_PORT);
        self.add_candidate(now, Candidate::host(CandidateTransport::TcpActive, active, preference));
        match self.streams.listen(SocketAddr::new(ip, 0)) {
            Ok(passive) => {
                self.add_candidate(now, Candidate::host(CandidateTransport::TcpPassive, passive, preference));
            }
            Err(error) => tracing::debug!(%error, %ip, "no listener for a host candidate"),
        }
    }

    fn handle_stream(&mut self, now: Instant, event: PeerStreamEvent) {
        let Some(agent) = &mut self.agent else { return };
        match event {
            PeerStreamEvent::Mapped { base, address } => self.handle_tcp_mapping(now, base, address),
            PeerStreamEvent::Unmapped { base } => self.handle_tcp_unmapped(now, base),
            PeerStreamEvent::Opened(key, stream, direction) => {
                if self.streams.start(key, stream, direction) && direction == Direction::Connected {
                    agent.handle_tcp_connected(now, key.0, key.1);
                }
            }
            PeerStreamEvent::Message((local, remote), bytes) => {
                if !self.streams.is_confirmed((local, remote)) && agent.is_authentic_check(&bytes) {
                    self.streams.confirm((local, remote));
                }
                agent.handle_tcp_message(now, local, remote, &bytes);
            }
            PeerStreamEvent::Closed(key) => {
                self.streams.close(key);
                agent.handle_tcp_closed(now, key.0, key.1);
            }
        }
    }

    /// Returns the socket from which the server is reached.
    fn server_port(&self) -> Option<Arc<UdpPort>> {
        let source = source_address(self.config.server.ip());
        let fits = |port: &&Arc<UdpPort>| port.local_addr().is_ipv4() == self.config.server.is_ipv4();
        let port = self.ports.iter().find(|port| Some(port.local_addr().ip()) == source);
        port.or_else(|| self.ports.iter().find(fits)).cloned()
    }

    /// The server answers again: requests that it has missed are not waited for.
    fn retry_relays(&mut self, now: Instant) {
        if self.is_connected || self.relays.clients.is_empty() {
            return;
        }
        self.relays.clients.retain(|relay| relay.is_stream() || !relay.relayed().is_empty());
        self.repaired_at = None;
        self.repair(now);
    }

    fn handle_message(&mut self, now: Instant, message: EngineMessage) {
        match message.source {
            MessageSource::StreamOpened { local } => {
                if let Some(relay) = self.relays.clients.iter_mut().find(|relay| relay.is_stream()) {
                    relay.handle_open(now, local);
                }
            }
            MessageSource::Stream => {
                let relay = self.relays.clients.iter().position(RelayClient::is_stream);
                self.handle_relay_message(now, relay, &message);
            }
            MessageSource::Port { local, remote } if remote == self.config.server => {
                if !self.handle_extra_server_message(now, local, &message.bytes)
                    && !self.gathering.handle(now, local, remote, &message.bytes)
                {
                    let of_port = |relay: &RelayClient| relay.port() == Some(local);
                    let relay = self.relays.clients.iter().position(of_port);
                    self.handle_relay_message(now, relay, &message);
                }
            }
            MessageSource::Port { local, remote } => {
                if !self.gathering.handle(now, local, remote, &message.bytes) {
                    self.handle_peer_message(now, (local, remote), &message.bytes);
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant, due: Instant) {
        if now.saturating_duration_since(due) > SUSPENDED {
            tracing::debug!("woken after a suspension");
            self.handle_network_change(now);
        }
        self.gathering.handle_timeout(now);
        for relay in &mut self.relays.clients {
            relay.handle_timeout(now);
        }
        if self.relays.stream_at.is_some_and(|at| at <= now) {
            self.consider_stream_relay(now);
        }
        if self.relays.retry_at.is_some_and(|at| at <= now) {
            self.relays.retry_at = None;
            self.start_udp_relay(now);
        }
        self.drop_silent_relays(now);
        self.ask_further_server(now);
        self.release_idle_stream(now);
        self.look_at_traffic(now);
        self.extra.hard_nat.handle_timeout(now);
        if let Some(agent) = &mut self.agent {
            agent.handle_timeout(now);
        }
        self.conclude_gathering(now);
        self.gather_simultaneous_open(now);
    }

    fn look_at_traffic(&mut self, now: Instant) {
        if self.tick.is_none_or(|at| at > now) {
            return;
        }
        let activity = self.tunnel.take_activity();
        self.count_relayed();
        let Some((agent, pair)) =
            self.agent.as_mut().and_then(|agent| agent.selected().map(|pair| (agent, pair)))
        else {
            self.tick = None;
            return;
        };
        if activity.received && pair.local.transport == CandidateTransport::Udp {
            agent.handle_data_received(pair.local.base, pair.remote.address);
        } else if activity.received {
            agent.handle_tcp_data_received(pair.local.base, pair.remote.address);
        }
        let patience = pair.round_trip.map_or(TICK, |round_trip| round_trip * 3 / 2).max(TICK);
        if activity.unanswered_since.is_some_and(|since| since + patience <= now) {
            agent.verify_selected(now);
            self.tunnel.reset_unanswered();
        }
        let has_traffic = activity.received || activity.unanswered_since.is_some();
        self.tick = has_traffic.then_some(now + TICK);
    }

    fn handle_network_change(&mut self, now: Instant) {
        tracing::debug!("the network has changed");
        self.queues.send(EngineEvent::NetworkChanged);
        self.open_ports(now);
        self.gathering.refresh(now);
        let (server_port, ports) = (self.server_port(), self.ports.clone());
        for relay in &mut self.relays.clients {
            let is_gone = !ports.iter().any(|port| Some(port.local_addr()) == relay.port());
            relay.migrate(now, server_port.clone().filter(|_| is_gone));
        }
        self.relays.failures = 0;
        self.replace_dead_stream(now);
        if self.relays.clients.is_empty() {
            self.start_udp_relay(now);
        }
        if let Some(agent) = &mut self.agent {
            agent.handle_network_change(now);
        }
        self.set_outlet(now);
    }

    /// A TCP connection does not survive its address.
    fn replace_dead_stream(&mut self, now: Instant) {
        let is_gone = |ip: IpAddr| !self.ports.iter().any(|port| port.local_addr().ip() == ip);
        let before = self.relays.clients.len();
        self.relays.clients.retain(|relay| !relay.stream_address().is_some_and(is_gone));
        if self.relays.clients.len() < before {
            self.start_stream_relay(now);
        }
    }

    /// No path answers: mappings and allocations may be gone, or UDP may be blocked.
    fn repair(&mut self, now: Instant) {
        if self.repaired_at.is_some_and(|at| now < at + REPAIR_PAUSE) {
            return;
        }
        self.repaired_at = Some(now);
        if let Some((name, address)) = self.relays.next_server.take() {
            self.set_server(now, name, address);
        }
        self.gathering.refresh(now);
        self.mapper.renew();
        self.verify_relays(now);
        self.relays.failures = 0;
        if self.relays.credentials.is_some() {
            self.start_stream_relay(now);
            if self.relays.clients.iter().all(RelayClient::is_stream) {
                self.start_udp_relay(now);
            }
        }
    }

    /// Sends what the state machines have to send, and handles their events, until none is left.
    fn flush(&mut self, now: Instant) {
        self.flush_gathering(now);
        self.flush_relays(now);
        self.watch_relays(now);
        self.flush_agent(now);
        self.flush_hard_nat(now);
        for relay in &mut self.relays.clients {
            relay.send_waiting();
        }
    }

    /// Tells the end of candidates once: mappings and relays are known, or had enough time.
    fn conclude_gathering(&mut self, now: Instant) {
        let relay_done = match self.relays.is_granted {
            None => false,
            Some(false) => true,
            Some(true) => {
                self.relays.clients.iter().any(|relay| !relay.relayed().is_empty())
                    || self.relays.patience.is_some_and(|at| at <= now)
            }
        };
        if !self.gathered && self.mappings_done && relay_done {
            self.gathered = true;
            self.queues.send(EngineEvent::Gathered);
        }
    }

    fn flush_agent(&mut self, now: Instant) {
        loop {
            let Some(agent) = &mut self.agent else { return };
            if let Some(check) = agent.poll_transmit() {
                match check.is_tcp {
                    true => self.streams.send_message((check.local, check.remote), &check.bytes),
                    false => self.send_check(now, check.local, check.remote, check.bytes),
                }
            } else if let Some(event) = agent.poll_event() {
                self.handle_agent_event(now, event);
            } else {
                break;
            }
        }
        // The path first: it may be another one than before.
        self.tell_path();
        if std::mem::take(&mut self.is_connected_untold) {
            self.queues.send(EngineEvent::Connected);
        }
    }

    fn send_check(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr, check: Vec<u8>) {
        if let Some(relay) = self.relays.clients.iter_mut().find(|relay| relay.relayed().contains(&local)) {
            relay.send_check(now, remote, check);
        } else if let Some(port) = self.port(local) {
            port.send_message(remote, &check);
        }
    }

    fn port(&self, base: SocketAddr) -> Option<&Arc<UdpPort>> {
        self.ports.iter().chain(self.extra.all()).find(|port| port.local_addr() == base)
    }

    fn handle_agent_event(&mut self, now: Instant, event: IceEvent) {
        match event {
            IceEvent::Selected(_) => self.set_outlet(now),
            IceEvent::Provisional { pair, datagrams } => self.add_provisional(now, &pair, datagrams),
            IceEvent::State(IceState::Connected) => {
                self.is_connected = true;
                self.tunnel.repeat_last();
                self.is_connected_untold = true;
            }
            IceEvent::State(IceState::Disconnected | IceState::Failed) => {
                (self.is_connected, self.is_connected_untold) = (false, false);
                self.queues.send(EngineEvent::Disconnected);
                self.repair(now);
            }
            IceEvent::Connect { local, remote, transport } => self.streams.open((local, remote), transport),
            IceEvent::Close { local, remote } => self.streams.close((local, remote)),
            other => tracing::trace!(?other, "of the ICE agent"),
        }
    }

    /// Sends the data over the selected pair.
    fn set_outlet(&mut self, now: Instant) {
        let Some(pair) = self.agent.as_ref().and_then(IceAgent::selected) else { return };
        self.provisional.clear();
        let outlet = self.outlet(now, &pair);
        if outlet.is_some() {
            let (local, remote) = (pair.local.base, pair.remote.address);
            tracing::debug!(%local, %remote, "selected a candidate pair");
            self.tunnel.set_outlet(outlet);
        }
    }

    /// Returns the path of a pair.
    fn outlet(&mut self, now: Instant, pair: &SelectedPair) -> Option<Outlet> {
        let (base, remote) = (pair.local.base, pair.remote.address);
        let relay = self.relays.clients.iter_mut().find(|relay| relay.relayed().contains(&base));
        match relay {
            Some(relay) => Some(relay.outlet(now, remote)),
            None if pair.local.transport != CandidateTransport::Udp => {
                let queue = self.streams.queue((base, remote)).cloned();
                queue.map(|queue| Outlet::Queue(queue, QueueFraming::Length))
            }
            None => self.port(base).map(|port| Outlet::Direct { port: Arc::clone(port), remote }),
        }
    }

    /// Tells the call which path is in use, whenever that or its description changes.
    fn tell_path(&mut self) {
        // If all paths have ended with the one that became silent, none of them is news.
        let agent = self.agent.as_ref().filter(|agent| agent.is_selected_confirmed());
        let Some(pair) = agent.and_then(IceAgent::selected) else { return };
        // A relayed address that the peer has not told yet is peer-reflexive. It usually has the address of this side's relay.
        let is_on_relay = |candidate: &Candidate| {
            let ip = candidate.address.ip();
            let mut relayed = self.relays.clients.iter().flat_map(RelayClient::relayed);
            candidate.kind == CandidateKind::PeerReflexive && relayed.any(|relayed| relayed.ip() == ip)
        };
        let is_relayed =
            |candidate: &Candidate| candidate.kind == CandidateKind::Relayed || is_on_relay(candidate);
        let is_relay = is_relayed(&pair.local) || is_relayed(&pair.remote);
        let path = if is_relay { CandidatePath::Relay } else { CandidatePath::Direct };
        let (local, remote) = (pair.local.address, pair.remote.address);
        let is_tcp = match self.relay_of(pair.local.base) {
            Some(relay) => relay.is_stream(),
            None => pair.local.transport != CandidateTransport::Udp,
        };
        let transport = if is_tcp { PathTransport::Tcp } else { PathTransport::Udp };
        let told = self.active.filter(|told| (told.path, told.local, told.remote) == (path, local, remote));
        if told.is_none_or(|told| told.rtt.is_none() && pair.round_trip.is_some()) {
            let active = ActivePath { path, transport, local, remote, rtt: pair.round_trip };
            self.active = Some(active);
            self.queues.send(EngineEvent::Selected(active));
        }
    }
}
