//! The extra sockets of an [`IceEngine`], for NATs that change ports: what [`HardNat`] decides is done here.
//!
//! QUIC's endpoint reads these sockets like the others, so that one of them can carry data as soon as it is selected. A socket at which an
//! authentic check arrives becomes a candidate and stays open.

use super::*;
use crate::agent::hard_nat::limits::{HostLock, MAX_SOCKETS, SprayRecord};
use crate::agent::hard_nat::{HardNat, HardNatConfig, HardNatOutput, ProbeSource, SprayMessage};
use std::sync::LazyLock;

/// Most extra sockets that are candidates at a time; the oldest gives way.
const MAX_CANDIDATES: usize = 4;
/// How long a check that arrived may take to become a path before another socket is made a candidate.
const ADOPTION_TIME: Duration = Duration::from_millis(300);

/// One process sprays at a time on a host.
static RECORD: LazyLock<SprayRecord> = LazyLock::new(|| SprayRecord::new(lock_host));

/// Takes a name that the system releases when the process ends; it is local to the network namespace.
#[cfg(target_os = "linux")]
fn lock_host() -> Option<HostLock> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = SocketAddr::from_abstract_name(b"ginnel-agent-spray").ok()?;
    UnixListener::bind_addr(&name).ok().map(|held| Box::new(held) as HostLock)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "other systems have such a lock")]
fn lock_host() -> Option<HostLock> {
    Some(Box::new(()))
}

/// The sockets, and the machine that uses them.
pub(super) struct ExtraSockets {
    pub(super) hard_nat: HardNat,
    /// By the machine's index; `None` for one that could not be opened, or has become a candidate.
    probing: Vec<Option<Arc<UdpPort>>>,
    /// Those that have become candidates.
    candidates: Vec<Arc<UdpPort>>,
    adopted_at: Option<Instant>,
    /// The tunnel's count of bytes when the path became relayed.
    relayed_from: u64,
}

impl ExtraSockets {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let hard_nat = HardNat::new(HardNatConfig {
            is_allowed: config.is_spray_allowed && config.policy == PathPolicy::All,
            servers: vec![config.server.ip()],
            record: RECORD.clone(),
            seed: rand::random(),
        });
        Self { hard_nat, probing: Vec::new(), candidates: Vec::new(), adopted_at: None, relayed_from: 0 }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<UdpPort>> {
        self.candidates.iter().chain(self.probing.iter().flatten())
    }
}

impl IceEngine {
    /// Has QUIC's endpoint read all sockets.
    pub(super) fn share_ports(&self) {
        self.tunnel.set_ports(self.ports.iter().chain(self.extra.all()).cloned().collect());
    }

    /// Handles a message of STUN of the peer, or of whoever uses its address.
    pub(super) fn handle_peer_message(
        &mut self,
        now: Instant,
        (local, remote): (SocketAddr, SocketAddr),
        bytes: &[u8],
    ) {
        let Some(agent) = &mut self.agent else { return };
        if let Some(message) = agent.read_control_message(bytes).and_then(SprayMessage::parse) {
            return self.extra.hard_nat.handle_message(now, message, agent.remote_candidates());
        }
        let index = self.extra.probing.iter().position(|port| has_address(port.as_ref(), local));
        if let Some(index) = index {
            if !agent.is_authentic_check(bytes) {
                return;
            }
            self.adopt(now, index);
        }
        if let Some(agent) = &mut self.agent {
            agent.handle_message(now, local, remote, bytes);
        }
    }

    /// Handles a message of the server; `false` if it did not arrive at an extra socket.
    pub(super) fn handle_extra_server_message(
        &mut self,
        now: Instant,
        local: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let index = self.extra.probing.iter().position(|port| has_address(port.as_ref(), local));
        if let Some(index) = index {
            self.extra.hard_nat.handle_server_message(now, index, bytes);
        }
        index.is_some()
    }

    /// Makes a socket a candidate: a check of the peer has arrived at it.
    fn adopt(&mut self, now: Instant, index: usize) {
        self.extra.hard_nat.handle_hit(now);
        if self.extra.adopted_at.is_some_and(|at| now < at + ADOPTION_TIME) {
            return;
        }
        let Some(port) = self.extra.probing.get_mut(index).and_then(Option::take) else { return };
        tracing::debug!(local = %port.local_addr(), "a check has arrived at an extra socket");
        self.extra.adopted_at = Some(now);
        let candidate = Candidate::host(CandidateTransport::Udp, port.local_addr(), 0);
        self.extra.candidates.push(port);
        if let Some(agent) = &mut self.agent {
            agent.add_probed_candidate(candidate);
        }
        if self.extra.candidates.len() > MAX_CANDIDATES {
            let selected = self.agent.as_ref().and_then(IceAgent::selected).map(|pair| pair.local.base);
            let spare = self.extra.candidates.iter().position(|port| Some(port.local_addr()) != selected);
            let gone = self.extra.candidates.remove(spare.unwrap_or(0)).local_addr();
            self.remove_candidates(now, gone);
            self.share_ports();
        }
    }

    /// Informs the machine, and does what it decides.
    pub(super) fn flush_hard_nat(&mut self, now: Instant) {
        let path = self.active.map(|active| active.path).filter(|_| self.is_connected);
        if self.extra.hard_nat.path() != path {
            self.extra.relayed_from = self.tunnel.transferred();
            self.extra.hard_nat.set_path(now, path);
        }
        self.extra.hard_nat.set_nat(self.gathering.nat(), self.gathering.ipv4_mapping());
        while let Some(output) = self.extra.hard_nat.poll_output() {
            match output {
                HardNatOutput::Message(message) => self.send_control(now, message),
                HardNatOutput::OpenSockets(count) => self.open_extra_sockets(count),
                HardNatOutput::Ask { socket, bytes } => {
                    if let Some(port) = self.extra.probing.get(socket).and_then(Option::as_ref) {
                        port.send_message(self.config.server, &bytes);
                    }
                }
                HardNatOutput::Probe { from, to, ttl } => self.send_probe(from, to, ttl),
                HardNatOutput::CloseSockets => {
                    self.extra.probing.clear();
                    self.share_ports();
                }
                HardNatOutput::Status(status) => self.queues.send(EngineEvent::Spray(status)),
            }
        }
    }

    /// Tells the machine how much was relayed.
    pub(super) fn count_relayed(&mut self) {
        self.extra.hard_nat.set_relayed(self.tunnel.transferred().saturating_sub(self.extra.relayed_from));
    }

    fn send_control(&mut self, now: Instant, message: SprayMessage) {
        let Some(agent) = &mut self.agent else { return };
        let pair = agent.selected().map(|pair| (pair.local.base, pair.remote.address));
        if let (Some((local, remote)), Some(bytes)) = (pair, agent.control_message(&message.encode())) {
            self.send_check(now, local, remote, bytes);
        }
    }

    fn send_probe(&mut self, from: ProbeSource, to: SocketAddr, ttl: Option<u8>) {
        let port = match from {
            ProbeSource::Main => self.gathering.main().and_then(|base| self.port(base)),
            ProbeSource::Extra(index) => self.extra.probing.get(index).and_then(Option::as_ref),
        };
        let Some(port) = port.cloned() else { return };
        let to = if port.local_addr().is_ipv6() { self.translate_address(to) } else { Some(to) };
        let (Some(to), Some(agent)) = (to, &mut self.agent) else { return };
        if let Some(bytes) = agent.probe() {
            port.send_probe(to, &bytes, ttl);
        }
    }

    /// Opens sockets up to a number. Where the system refuses more, there are fewer.
    fn open_extra_sockets(&mut self, count: usize) {
        let Some(main) = self.gathering.main() else { return };
        for _ in self.extra.probing.len()..count.min(MAX_SOCKETS) {
            let port = UdpPort::bind(SocketAddr::new(main.ip(), 0));
            if let Err(error) = &port {
                tracing::debug!(%error, "no extra socket");
            }
            self.extra.probing.push(port.ok().map(Arc::new));
        }
        self.share_ports();
    }

    /// Closes those whose address is gone.
    pub(super) fn close_lost_extra_sockets(&mut self, now: Instant, addresses: &[IpAddr]) {
        let is_lost = |port: &Arc<UdpPort>| !addresses.contains(&port.local_addr().ip());
        let lost: Vec<SocketAddr> =
            self.extra.candidates.iter().filter(|port| is_lost(port)).map(|port| port.local_addr()).collect();
        self.extra.candidates.retain(|port| !is_lost(port));
        self.extra.probing.retain(|port| !port.as_ref().is_some_and(is_lost));
        for base in lost {
            self.remove_candidates(now, base);
        }
    }
}

fn has_address(port: Option<&Arc<UdpPort>>, address: SocketAddr) -> bool {
    port.is_some_and(|port| port.local_addr() == address)
}
