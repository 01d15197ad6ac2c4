//! The relay's rules: who gets an allocation, which bytes pass, and when everything ends. Pure.
//!
//! Control leaves through [`Relay::poll_output`]; relayed data leaves through the return values of
//! [`Relay::handle_client`] and [`Relay::handle_peer`], with the payload still borrowed from the caller's buffer.

use super::allocation::{Allocation, FiveTuple};
use super::alternate::Alternates;
use super::auth::{Authority, Parking, Question};
use super::policy::{PeerAddr, PeerPolicy};
use super::ports::RelayPorts;
use super::quota::Quota;
use super::reply::{Fault, Reply};
use super::reservation::{Reservations, Token};
use super::wire::{self, Header};
use crate::clock::{Deadlines, Now};
use crate::ids::Pii;
use crate::net::demux::{self, DatagramKind};
use crate::stun::{Class, Message, Method, attr};
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names one allocation for as long as its relay socket is open.
pub type AllocationId = usize;

/// Ports tried when the system has given one to somebody else.
const MAX_OPEN_ATTEMPTS: u8 = 16;

/// What all workers' relays share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Checks credentials.
    pub authority: Arc<Authority>,
    /// Sends clients elsewhere.
    pub alternates: Arc<Alternates>,
    /// Checks peers.
    pub policy: Arc<PeerPolicy>,
    /// Gives out relay ports.
    pub ports: Arc<RelayPorts>,
    /// Keeps ports that were set aside.
    pub reservations: Arc<Reservations>,
    /// Limits allocations.
    pub quota: Arc<Quota>,
    /// The addresses of relay sockets, at most one of each family, the default family first.
    pub addresses: Arc<[RelayAddress]>,
    /// Longest lifetime an allocation gets at a time.
    pub max_lifetime: Duration,
}

/// A local address that relay sockets are bound to, and what clients are told it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayAddress {
    /// The address on this host.
    pub local: IpAddr,
    /// The same address as peers see it; differs behind a 1:1 NAT.
    pub advertised: IpAddr,
}

/// What the hands are to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send `bytes` to a client.
    Reply {
        /// The client.
        client: FiveTuple,
        /// A whole STUN message.
        bytes: Vec<u8>,
        /// Whether the request's integrity was verified. What is not proven may come from a forged address: it is rate limited
        /// and never much larger than what asked for it.
        proven: bool,
    },
    /// Bind a UDP socket to `address` and say how that went with [`Relay::handle_relay_opened`].
    OpenRelay {
        /// The allocation it is for.
        id: AllocationId,
        /// The local address.
        address: SocketAddr,
    },
    /// Ask others about a user and say how that went with [`Relay::handle_lookup_done`].
    LookUp {
        /// What to ask.
        question: Arc<Question>,
    },
    /// Close the allocation's socket.
    CloseRelay {
        /// The allocation that ended.
        id: AllocationId,
    },
}

/// A payload on its way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToPeer<'a> {
    /// The allocation whose socket sends it.
    pub id: AllocationId,
    /// The peer.
    pub peer: SocketAddr,
    /// The bytes.
    pub payload: &'a [u8],
}

/// A payload on its way to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToClient<'a> {
    /// The client.
    pub client: FiveTuple,
    /// What goes in front.
    pub header: Header,
    /// The bytes.
    pub payload: &'a [u8],
    /// Zero bytes that go behind.
    pub padding: usize,
}

/// What a relay has counted since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations opened.
    pub allocations: u64,
    /// Payload bytes relayed from clients to peers.
    pub bytes_to_peers: u64,
    /// Payload bytes relayed from peers to clients.
    pub bytes_to_clients: u64,
    /// Packets dropped: no allocation, permission, channel or sense.
    pub dropped: u64,
    /// Requests refused for their credentials (401, 438).
    pub unauthorized: u64,
    /// Peers refused by the policy.
    pub denied_peers: u64,
}

/// One worker's relay.
#[derive(Debug)]
pub struct Relay {
    pub(super) shared: Shared,
    pub(super) rng: ChaCha20Rng,
    pub(super) allocations: Slab<Allocation>,
    pub(super) clients: HashMap<FiveTuple, AllocationId>,
    pub(super) opening: HashMap<AllocationId, Opening>,
    pub(super) deadlines: Deadlines<AllocationId>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Counters,
    pub(super) parking: Parking,
}

/// An allocation whose socket is not there yet.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) reply: Reply,
    pub(super) lifetime: Duration,
    /// The token of the port set aside with this one.
    pub(super) reserved: Option<Token>,
    pub(super) attempts: u8,
    /// Whether any other port serves as well.
    pub(super) replaceable: bool,
}

impl Relay {
    /// Makes a relay without allocations; `rng` draws ports and transaction ids.
    #[must_use]
    pub fn new(shared: Shared, rng: ChaCha20Rng) -> Self {
        Self {
            shared,
            rng,
            allocations: Slab::new(),
            clients: HashMap::new(),
            opening: HashMap::new(),
            deadlines: Deadlines::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            parking: Parking::default(),
        }
    }

    /// Handles one frame from a client: ChannelData, a Send indication or a request.
    pub fn handle_client<'a>(&mut self, now: Now, client: FiveTuple, bytes: &'a [u8]) -> Option<ToPeer<'a>> {
        let forward = match demux::datagram(bytes) {
            DatagramKind::ChannelData | DatagramKind::Signaling => self.channel_data(now.mono, client, bytes),
            DatagramKind::Stun => match Message::parse(bytes) {
                Ok(message) if message.class() == Class::Request => {
                    self.request(now, client, &message);
                    return None;
                }
                Ok(message) if (message.class(), message.method()) == (Class::Indication, Method::SEND) => {
                    self.send_indication(now.mono, client, &message)
                }
                _ => None,
            },
            _ => None,
        };
        match forward {
            Some(forward) => self.counters.bytes_to_peers += forward.payload.len() as u64,
            None => self.counters.dropped += 1,
        }
        forward
    }

    /// Returns whether `bytes`, though they begin like a signalling message, are ChannelData of a channel `client` has bound.
    #[must_use]
    pub fn is_channel_data(&self, now: Now, client: FiveTuple, bytes: &[u8]) -> bool {
        self.channel_data(now.mono, client, bytes).is_some()
    }

    /// Handles one datagram that arrived at an allocation's relayed address
    /// ([RFC 8656 section 11.3](https://www.rfc-editor.org/rfc/rfc8656#section-11.3)).
    pub fn handle_peer<'a>(
        &mut self,
        now: Now,
        id: AllocationId,
        from: SocketAddr,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let forward = self.data_for_client(now.mono, id, PeerAddr::new(from), payload);
        match forward {
            Some(_) => self.counters.bytes_to_clients += payload.len() as u64,
            None => self.counters.dropped += 1,
        }
        forward
    }

    /// Takes the system's answer to [`Output::OpenRelay`].
    pub fn handle_relay_opened(&mut self, now: Now, id: AllocationId, opened: bool) {
        let Some(opening) = self.opening.remove(&id) else { return };
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        if opened {
            let relayed = allocation.relayed.address();
            let advertised = self.shared.addresses.iter().find(|address| address.local == relayed.ip());
            let relayed = SocketAddr::new(advertised.map_or(relayed.ip(), |a| a.advertised), relayed.port());
            allocation.expires = now.mono + opening.lifetime;
            self.deadlines.set(id, allocation.expires);
            let bytes = opening.reply.success(|builder| {
                let builder = match opening.reserved {
                    Some(token) => builder.attribute(attr::RESERVATION_TOKEN, &token),
                    None => builder,
                };
                builder
                    .xor_address(attr::XOR_RELAYED_ADDRESS, relayed)
                    .attribute(attr::LIFETIME, &seconds(opening.lifetime))
                    .xor_address(attr::XOR_MAPPED_ADDRESS, allocation.client.client)
            });
            allocation.origin.1 = Some(bytes.clone());
            self.outputs.push_back(Output::Reply { client: allocation.client, bytes, proven: true });
            self.counters.allocations += 1;
            tracing::info!(user = %Pii(&allocation.user), client = %Pii(allocation.client.client), %id, "allocation opened");
            return;
        }
        let ip = allocation.relayed.address().ip();
        // EVEN-PORT and a reserved port cannot be had elsewhere; the client asks again.
        let replaceable = opening.replaceable && opening.attempts < MAX_OPEN_ATTEMPTS;
        match replaceable.then(|| self.shared.ports.lease(ip, &mut self.rng)).flatten() {
            Some(lease) => {
                allocation.relayed = lease;
                self.outputs.push_back(Output::OpenRelay { id, address: allocation.relayed.address() });
                self.opening.insert(id, Opening { attempts: opening.attempts + 1, ..opening });
            }
            None => {
                let client = allocation.client;
                self.forget(id);
                self.answer(client, opening.reply.error(Fault::InsufficientCapacity));
            }
        }
    }

    /// Ends the allocation of a client whose stream has closed.
    pub fn handle_client_gone(&mut self, client: FiveTuple) {
        self.parking.forget(client);
        if let Some(id) = self.clients.get(&client).copied() {
            self.end(id, "the client's connection closed");
        }
    }

    /// Ends the allocations whose lifetime is over.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(id) = self.deadlines.pop_due(now.mono) {
            self.end(id, "lifetime over");
        }
    }

    /// Returns the next thing to do, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Relay::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Returns what was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns how many allocations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.allocations.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allocations.is_empty()
    }

    fn channel_data<'a>(&self, now: Instant, client: FiveTuple, bytes: &'a [u8]) -> Option<ToPeer<'a>> {
        let (channel, payload) = wire::parse_channel_data(bytes)?;
        let id = *self.clients.get(&client)?;
        let peer = self.allocations.get(id)?.peer_of(now, channel)?;
        self.to_peer(now, id, peer, payload)
    }

    fn send_indication<'a>(
        &self,
        now: Instant,
        client: FiveTuple,
        message: &Message<'a>,
    ) -> Option<ToPeer<'a>> {
        let attributes = message.unverified();
        if !attributes.unknown(&KNOWN_IN_SEND).is_empty() {
            return None;
        }
        let peer = attributes.xor_address(attr::XOR_PEER_ADDRESS).ok()??;
        let payload = attributes.get(attr::DATA)?;
        let id = *self.clients.get(&client)?;
        self.to_peer(now, id, PeerAddr::new(peer), payload)
    }

    fn to_peer<'a>(
        &self,
        now: Instant,
        id: AllocationId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToPeer<'a>> {
        let allocation = self.allocations.get(id)?;
        let passes = allocation.is_live(now)
            && peer.port() != 0
            && allocation.permits(now, peer.ip())
            && self.port_passes(peer);
        passes.then_some(ToPeer { id, peer: peer.socket_addr(), payload })
    }

    /// Returns whether a peer with a permission may use its port: only at own addresses the port matters.
    fn port_passes(&self, peer: PeerAddr) -> bool {
        !self.shared.policy.judges_ports(peer.ip()) || self.shared.policy.check(peer).is_ok()
    }

    fn data_for_client<'a>(
        &mut self,
        now: Instant,
        id: AllocationId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let allocation = self.allocations.get(id)?;
        if !allocation.is_live(now) || !allocation.permits(now, peer.ip()) || !self.port_passes(peer) {
            return None;
        }
        let length = u16::try_from(payload.len()).ok()?;
        let client = allocation.client;
        let (header, must_pad) = match allocation.channel_of(now, peer) {
            Some(channel) => (Header::channel_data(channel, length), client.transport.is_stream()),
            None => (Header::data_indication(peer.socket_addr(), length, self.rng.random())?, true),
        };
        let padding = if must_pad { payload.len().next_multiple_of(4) - payload.len() } else { 0 };
        Some(ToClient { client, header, payload, padding })
    }

    pub(super) fn answer(&mut self, client: FiveTuple, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Reply { client, bytes, proven: true });
    }

    pub(super) fn end(&mut self, id: AllocationId, why: &'static str) {
        let user = self.allocations.get(id).map(|allocation| Arc::clone(&allocation.user));
        if let Some(user) = user {
            tracing::info!(user = %Pii(user), %id, why, "allocation ended");
            self.outputs.push_back(Output::CloseRelay { id });
            self.forget(id);
        }
    }

    pub(super) fn forget(&mut self, id: AllocationId) {
        if let Some(allocation) = self.allocations.try_remove(id) {
            self.clients.remove(&allocation.client);
            self.deadlines.clear(id);
            self.opening.remove(&id);
        }
    }
}

/// Comprehension-required attributes understood in Send indications.
const KNOWN_IN_SEND: [u16; 3] = [attr::XOR_PEER_ADDRESS, attr::DATA, attr::DONT_FRAGMENT];

pub(super) fn seconds(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}
