//! The relayed candidate of an agent: an allocation by UDP from a socket of a host candidate, or by TCP.

use super::candidate;
use super::datagram_queue::DatagramQueue;
use super::outlet::{Outlet, QueueFraming, RelayedPeer};
use super::udp_port::UdpPort;
use crate::turn_client::{
    AddressFamilies, ClientTransport, LongTermCredentials, Received, TurnClient, TurnClientConfig, TurnError,
    TurnEvent,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Before the first retransmission: the paths of most users are faster than the RFC's 500 ms.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Checks that wait for a permission.
const MAX_HELD: usize = 32;

/// How an allocation is reached.
#[derive(Debug)]
pub(super) enum RelayLink {
    /// By UDP, from the socket of a host candidate.
    Udp(Arc<UdpPort>),
    /// By TCP; the task writes the queue's frames and ends with the connection. Its local address is known once it is open.
    Stream { queue: Arc<DatagramQueue>, task: JoinHandle<()>, local: Option<IpAddr> },
}

/// One allocation.
#[derive(Debug)]
pub(super) struct RelayClient {
    turn: TurnClient,
    link: RelayLink,
    server: SocketAddr,
    /// One address of each family that the server has.
    relayed: Vec<SocketAddr>,
    /// The last check of each peer that has no permission yet.
    held: BTreeMap<SocketAddr, Vec<u8>>,
    /// The peer that carries data.
    active: Option<Arc<RelayedPeer>>,
    is_released: bool,
}

impl RelayClient {
    /// Requests an allocation; over TCP once the connection is open.
    pub(super) fn start(
        now: Instant,
        server: SocketAddr,
        credentials: Arc<LongTermCredentials>,
        link: RelayLink,
    ) -> Self {
        let mut config = TurnClientConfig::new(credentials);
        config.mobility = true;
        config.families = AddressFamilies::Both;
        config.first_wait = FIRST_WAIT;
        if matches!(link, RelayLink::Stream { .. }) {
            config.transport = ClientTransport::Stream;
        }
        let mut turn = TurnClient::new(config, rand::random());
        if matches!(link, RelayLink::Udp(_)) {
            turn.allocate(now);
        }
        Self {
            turn,
            link,
            server,
            relayed: Vec::new(),
            held: BTreeMap::new(),
            active: None,
            is_released: false,
        }
    }

    /// Returns the relayed addresses.
    pub(super) fn relayed(&self) -> &[SocketAddr] {
        &self.relayed
    }

    /// Returns the relayed address that a peer sends to.
    pub(super) fn relayed_for(&self, peer: SocketAddr) -> Option<SocketAddr> {
        self.relayed.iter().copied().find(|relayed| relayed.is_ipv4() == peer.is_ipv4())
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.link, RelayLink::Stream { .. })
    }

    /// Returns the socket that it uses.
    pub(super) fn port(&self) -> Option<SocketAddr> {
        match &self.link {
            RelayLink::Udp(port) => Some(port.local_addr()),
            RelayLink::Stream { .. } => None,
        }
    }

    /// Handles that the TCP connection is open, from this local address.
    pub(super) fn handle_open(&mut self, now: Instant, address: IpAddr) {
        if let RelayLink::Stream { local, .. } = &mut self.link {
            *local = Some(address);
        }
        // What was sent on an earlier connection has no response.
        self.turn.migrate(now);
    }

    /// Returns the local address of the TCP connection.
    pub(super) fn stream_address(&self) -> Option<IpAddr> {
        match &self.link {
            RelayLink::Udp(_) => None,
            RelayLink::Stream { local, .. } => *local,
        }
    }

    /// Returns whether the TCP connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        matches!(&self.link, RelayLink::Stream { task, .. } if task.is_finished())
    }

    /// Moves the allocation to another socket, or to another mapping of the same one.
    pub(super) fn migrate(&mut self, now: Instant, port: Option<Arc<UdpPort>>) {
        if let RelayLink::Udp(current) = &mut self.link {
            if let Some(port) = port {
                *current = port;
            }
            self.turn.migrate(now);
        }
    }

    /// Handles a datagram or frame of the server; returns a payload and its peer.
    pub(super) fn handle(&mut self, now: Instant, bytes: &[u8]) -> Option<(SocketAddr, Range<usize>)> {
        match self.turn.handle(now, bytes) {
            Received::Data { peer, payload } => Some((peer, payload)),
            Received::Control | Received::Unrelated => None,
        }
    }

    /// Has the relay pass what a peer sends, before anything is sent to it.
    pub(super) fn permit(&mut self, now: Instant, peer: IpAddr) {
        if self.may_reach(peer) {
            let _ = self.turn.create_permission(now, peer);
        }
    }

    /// Sends a check from the relayed address, right behind the request for a permission. One that cannot be sent yet waits.
    pub(super) fn send_check(&mut self, now: Instant, peer: SocketAddr, check: Vec<u8>) {
        if !self.may_reach(peer.ip()) {
            return;
        }
        if let Some(frame) = self.turn.encode(peer, &check) {
            return self.send(frame);
        }
        if self.turn.create_permission(now, peer.ip()).is_err() {
            return;
        }
        self.send_waiting();
        if let Some(frame) = self.turn.encode_ahead(peer, &check) {
            self.send(frame);
        } else if self.held.len() < MAX_HELD {
            self.held.insert(peer, check);
        }
    }

    /// A relay refuses private addresses; its own is one of the other side's relayed address.
    fn may_reach(&self, peer: IpAddr) -> bool {
        let of_family = self.relayed.iter().map(SocketAddr::ip).find(|own| own.is_ipv4() == peer.is_ipv4());
        of_family.is_some_and(|own| own == peer || candidate::is_global(peer))
    }

    /// Returns the path to a peer, and binds a channel for it.
    pub(super) fn outlet(&mut self, now: Instant, peer: SocketAddr) -> Outlet {
        let bound = self.turn.bound_channel(peer);
        if bound.is_none() {
            let _ = self.turn.bind_channel(now, peer);
        }
        let active = Arc::new(RelayedPeer::new(peer, bound));
        self.active = Some(Arc::clone(&active));
        match &self.link {
            RelayLink::Udp(port) => Outlet::relay(Arc::clone(port), self.server, active),
            RelayLink::Stream { queue, .. } => Outlet::Queue(Arc::clone(queue), QueueFraming::Relay(active)),
        }
    }

    /// Sends requests that are due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.turn.handle_timeout(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.turn.poll_timeout()
    }

    /// Sends what waits. Returns the error if there is no allocation, or no longer.
    pub(super) fn flush(&mut self, now: Instant) -> Result<(), TurnError> {
        let handled = self.handle_events(now);
        self.send_waiting();
        handled
    }

    /// Sends the requests that wait.
    pub(super) fn send_waiting(&mut self) {
        while let Some(message) = self.turn.poll_transmit() {
            self.send(message);
        }
    }

    /// Returns whether the allocation is released.
    pub(super) fn is_released(&self) -> bool {
        self.is_released
    }

    fn handle_events(&mut self, now: Instant) -> Result<(), TurnError> {
        while let Some(event) = self.turn.poll_event() {
            match event {
                TurnEvent::Allocated { .. } => {
                    self.relayed = self.turn.relayed_addresses().to_vec();
                    // The other side's relay is usually this server's: its addresses are permitted ahead.
                    for relayed in &self.relayed {
                        let _ = self.turn.create_permission(now, relayed.ip());
                    }
                }
                TurnEvent::PermissionInstalled(ip) => self.send_held(ip),
                TurnEvent::ChannelBound(peer) => {
                    let channel = self.turn.bound_channel(peer);
                    let active = self.active.as_ref().filter(|active| active.peer() == peer);
                    if let (Some(active), Some(channel)) = (active, channel) {
                        active.set_channel(channel);
                    }
                }
                TurnEvent::Failed(error) => {
                    self.relayed.clear();
                    return Err(error);
                }
                TurnEvent::Released => self.is_released = true,
                other => tracing::trace!(?other, "of the allocation"),
            }
        }
        Ok(())
    }

    fn send_held(&mut self, ip: IpAddr) {
        let ready: Vec<SocketAddr> = self.held.keys().copied().filter(|peer| peer.ip() == ip).collect();
        for peer in ready {
            let check = self.held.remove(&peer);
            if let Some(frame) = check.and_then(|check| self.turn.encode(peer, &check)) {
                self.send(frame);
            }
        }
    }

    fn send(&self, frame: Vec<u8>) {
        match &self.link {
            RelayLink::Udp(port) => port.send_message(self.server, &frame),
            RelayLink::Stream { queue, .. } => queue.push_message(frame.into()),
        }
    }

    /// Releases the allocation; [`RelayClient::flush`] sends the request.
    pub(super) fn release(&mut self, now: Instant) {
        self.turn.release(now);
    }
}

impl Drop for RelayClient {
    fn drop(&mut self) {
        if let RelayLink::Stream { task, .. } = &self.link {
            task.abort();
        }
    }
}
