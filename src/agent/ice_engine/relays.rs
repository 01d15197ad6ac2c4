//! The relays of an [`IceEngine`]: when an allocation is requested, replaced and released, by UDP and by TCP.

use super::*;

/// The relays and when they are requested.
#[derive(Default)]
pub(super) struct Relays {
    pub(super) clients: Vec<RelayClient>,
    pub(super) credentials: Option<Arc<LongTermCredentials>>,
    /// Whether credentials are granted, once that is known.
    pub(super) is_granted: Option<bool>,
    pub(super) stream_at: Option<Instant>,
    /// Until then a server that answers datagrams may take to allocate.
    pub(super) patient_until: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    pub(super) failures: u32,
    /// When the end of candidates waits no longer.
    pub(super) patience: Option<Instant>,
    pub(super) stream_used_at: Option<Instant>,
    /// The server that is used once the relay that carries the data has died.
    pub(super) next_server: Option<(ServerName, SocketAddr)>,
    /// When a message of the server has arrived.
    pub(super) answered_at: Option<Instant>,
    /// Addresses of the peer that are permitted before anything is sent to them.
    pub(super) permitted: Vec<IpAddr>,
}

impl IceEngine {
    /// Uses another server, or the same one at another address. A relay that carries the data stays.
    pub(super) fn set_server(&mut self, now: Instant, name: ServerName, address: SocketAddr) {
        let selected = self.agent.as_ref().and_then(IceAgent::selected).map(|pair| pair.local.base);
        let is_in_use = self.is_connected && selected.is_some_and(|base| self.relay_of(base).is_some());
        self.relays.next_server = None;
        if address == self.config.server {
            self.config.name = name;
            return;
        }
        if is_in_use {
            self.relays.next_server = Some((name, address));
            return;
        }
        self.config.name = name;
        tracing::debug!(%address, "the server has another address");
        self.config.server = address;
        self.extra.hard_nat.add_server(address.ip());
        self.tunnel.set_turn_server(address);
        self.relays.clients.clear();
        self.gathering.set_server(address);
        let bases: Vec<SocketAddr> = self.ports.iter().map(|port| port.local_addr()).collect();
        self.gathering.set_ports(now, &bases);
    }

    pub(super) fn set_relay(&mut self, now: Instant, credentials: Option<RelayCredentials>) {
        let credentials = credentials.filter(|_| self.config.policy.allows(CandidatePath::Relay));
        self.relays.is_granted = Some(credentials.is_some());
        self.relays.credentials =
            credentials.map(|relay| Arc::new(LongTermCredentials::new(&relay.username, &relay.password)));
        self.retry_relays(now);
        if self.relays.credentials.is_some() && self.relays.clients.is_empty() {
            self.relays.patience = Some(now + RELAY_TIME);
            self.start_udp_relay(now);
        }
        self.conclude_gathering(now);
    }

    pub(super) fn start_udp_relay(&mut self, now: Instant) {
        let Some(credentials) = self.relays.credentials.clone() else { return };
        let wait = match self.gathering.is_udp_blocked(now) {
            Some(true) => Duration::ZERO,
            // The server has had time to answer Binding requests.
            None => STREAM_DELAY_WITHOUT_ANSWER,
            Some(false) => STREAM_DELAY,
        };
        self.relays.stream_at = Some(now + wait);
        self.relays.patient_until = Some(now + STREAM_DELAY);
        let has_udp = self.relays.clients.iter().any(|relay| !relay.is_stream());
        if let Some(port) = self.server_port().filter(|_| !has_udp) {
            let link = RelayLink::Udp(port);
            self.relays.clients.push(RelayClient::start(now, self.config.server, credentials, link));
        }
    }

    /// Requests a relay by TCP if the one by UDP has had enough time.
    pub(super) fn consider_stream_relay(&mut self, now: Instant) {
        self.relays.stream_at = None;
        let is_answered = self.gathering.is_udp_blocked(now) == Some(false);
        if self.relays.clients.iter().any(|relay| !relay.relayed().is_empty()) {
            return;
        }
        match self.relays.patient_until.filter(|at| is_answered && now < *at) {
            Some(at) => self.relays.stream_at = Some(at),
            None => self.start_stream_relay(now),
        }
    }

    pub(super) fn start_stream_relay(&mut self, now: Instant) {
        self.relays.stream_at = None;
        let Some(credentials) = self.relays.credentials.clone() else { return };
        if self.relays.clients.iter().any(RelayClient::is_stream) {
            return;
        }
        let queue = Arc::new(DatagramQueue::default());
        let (server, tunnel) = (self.config.server, Arc::clone(&self.tunnel));
        let running = relay_stream::run(self.config.clone(), Arc::clone(&queue), Arc::clone(&tunnel));
        let task = tokio::spawn(async move {
            if let Err(error) = running.await {
                tracing::debug!(%error, "the TCP connection to the TURN server has ended");
            }
            // The engine looks at its relays after each message.
            tunnel
                .deliver_message(EngineMessage { source: MessageSource::Stream, bytes: bytes::Bytes::new() });
        });
        let link = RelayLink::Stream { queue, task, local: None };
        self.relays.clients.push(RelayClient::start(now, server, credentials, link));
        self.relays.stream_used_at = Some(now);
    }

    pub(super) fn handle_relay_message(
        &mut self,
        now: Instant,
        relay: Option<usize>,
        message: &EngineMessage,
    ) {
        let Some(relay) = relay.and_then(|index| self.relays.clients.get_mut(index)) else { return };
        self.relays.answered_at = Some(now);
        let Some((peer, payload)) = relay.handle(now, &message.bytes) else { return };
        let payload = message.bytes.slice(payload);
        if payload.first().is_some_and(|first| *first > 3) {
            self.tunnel.deliver(payload);
        } else if let Some(relayed) = relay.relayed_for(peer) {
            self.handle_peer_message(now, (relayed, peer), &payload);
        }
    }

    /// The relay by TCP is needed only while no other one works.
    pub(super) fn release_idle_stream(&mut self, now: Instant) {
        let Some(used) = self.relays.stream_used_at else { return };
        let has_other =
            self.relays.clients.iter().any(|relay| !relay.is_stream() && !relay.relayed().is_empty());
        let selected = self.agent.as_ref().and_then(IceAgent::selected).map(|pair| pair.local.base);
        let of_stream = selected.and_then(|base| self.relay_of(base)).is_some_and(RelayClient::is_stream);
        if !has_other || !self.is_connected || of_stream {
            self.relays.stream_used_at = Some(now);
        } else if used + STREAM_IDLE <= now {
            self.relays.stream_used_at = None;
            self.relays.clients.retain(|relay| !relay.is_stream());
        }
    }

    pub(super) fn flush_relays(&mut self, now: Instant) {
        let mut index = 0;
        while let Some(relay) = self.relays.clients.get_mut(index) {
            let failed = relay.flush(now).is_err();
            if failed || relay.is_closed() {
                drop(self.relays.clients.remove(index));
                let wait = RELAY_RETRY.0 * 2_u32.pow(self.relays.failures.min(6));
                self.relays.retry_at = Some(now + wait.min(RELAY_RETRY.1));
                self.relays.failures += 1;
            } else {
                index += 1;
            }
        }
        let with_kind = |relay: &RelayClient| {
            let is_stream = relay.is_stream();
            relay.relayed().iter().map(move |address| (*address, is_stream)).collect::<Vec<_>>()
        };
        let mut relayed: Vec<(SocketAddr, bool)> = self.relays.clients.iter().flat_map(with_kind).collect();
        // The family by which the server is reached is the one that works.
        relayed.sort_by_key(|(address, _)| address.is_ipv4() != self.config.server.is_ipv4());
        let known: Vec<SocketAddr> = self
            .candidates
            .iter()
            .filter(|candidate| candidate.kind == CandidateKind::Relayed)
            .map(|candidate| candidate.base)
            .collect();
        for gone in known.iter().filter(|base| !relayed.iter().any(|(address, _)| address == *base)) {
            self.remove_candidates(now, *gone);
        }
        for (address, is_stream) in relayed.into_iter().filter(|(address, _)| !known.contains(address)) {
            self.relays.failures = 0;
            self.map_through_nat64(now, address);
            let is_other_family = address.is_ipv4() != self.config.server.is_ipv4();
            let preference = u16::MAX - if is_other_family { PREFERENCE_STEP } else { 0 };
            let candidate = match is_stream {
                true => Candidate::relayed_by_stream(address, preference),
                false => Candidate::relayed(address, preference),
            };
            self.add_candidate(now, candidate);
            self.conclude_gathering(now);
            let mut clients = self.relays.clients.iter_mut();
            if let Some(relay) = clients.find(|relay| relay.relayed().contains(&address)) {
                self.relays.permitted.iter().for_each(|ip| relay.permit(now, *ip));
            }
        }
    }

    /// Returns the relay with this relayed address.
    pub(super) fn relay_of(&self, relayed: SocketAddr) -> Option<&RelayClient> {
        self.relays.clients.iter().find(|relay| relay.relayed().contains(&relayed))
    }

    /// Releases the relayed addresses.
    pub(super) async fn release(&mut self) {
        let end = time::now().mono + RELEASE_TIME;
        for relay in &mut self.relays.clients {
            relay.release(time::now().mono);
        }
        loop {
            let now = time::now().mono;
            self.relays.clients.retain_mut(|relay| {
                relay.handle_timeout(now);
                relay.flush(now).is_ok() && !relay.is_released() && !relay.is_closed()
            });
            if self.relays.clients.is_empty() || now >= end {
                return;
            }
            let due = self.relays.clients.iter().filter_map(RelayClient::poll_timeout).min();
            tokio::select! {
                Some(message) = self.queues.messages.recv() => self.handle_message(time::now().mono, message),
                () = sleep_until(due.unwrap_or(end).min(end).into()) => {}
            }
        }
    }
}
