//! [`TurnClient`]: its state, requests and timers.

use super::authentication::Challenge;
use super::config::{AddressFamilies, ClientTransport, TurnClientConfig};
use super::error::{TurnError, TurnRequest};
use super::peers::{Peers, TooManyPeers};
use super::transaction::{Due, Transaction};
use crate::stun::{Attributes, Builder, Class, Message, Method, TransactionId, attr};
use crate::turn_wire::{FrameHeader, parse_channel_data};
use ring::digest;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Requests in flight; further ones wait.
const MAX_IN_FLIGHT: usize = 8;
/// After a Refresh without a response, while the allocation has not expired.
const REFRESH_RETRY: Duration = Duration::from_secs(5);
/// Before the first retransmission of a release, for which nobody waits long.
const RELEASE_WAIT: Duration = Duration::from_millis(100);
/// REQUESTED-TRANSPORT and the address family attributes (RFC 8656 sections 18.8 and 18.6).
const UDP: [u8; 4] = [17, 0, 0, 0];
const IPV6: [u8; 4] = [2, 0, 0, 0];

/// An event for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TurnEvent {
    /// The allocation exists; see [`TurnClient::relayed_addresses`].
    Allocated {
        /// The relayed transport address; with [`AddressFamilies::Both`], the first one.
        relayed: SocketAddr,
        /// The client's address as the server sees it: its server-reflexive address.
        mapped: Option<SocketAddr>,
    },
    /// The server relays to this address. Repeated after an address was refused or removed, not at renewals.
    PermissionInstalled(IpAddr),
    /// The channel to this peer is bound.
    ChannelBound(SocketAddr),
    /// A permission or a channel was refused, or there was no response. The allocation remains; a request without a response is repeated.
    PeerFailed(TurnError),
    /// The allocation has moved to the client's new address.
    Migrated {
        /// The client's new address as the server sees it.
        mapped: Option<SocketAddr>,
    },
    /// The peer cannot be reached: the relay got an ICMP error (RFC 8656 section 11.5).
    PeerUnreachable(SocketAddr),
    /// The allocation was released.
    Released,
    /// There is no allocation, or no longer.
    Failed(TurnError),
}

/// What a datagram or frame from the server was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A payload.
    Data {
        /// The peer that sent it.
        peer: SocketAddr,
        /// Where it is in the bytes.
        payload: Range<usize>,
    },
    /// A response, or an indication without payload.
    Control,
    /// Nothing of this client: not a TURN message, a response to none of its requests, or one without valid integrity.
    Unrelated,
}

/// The allocation.
#[derive(Debug)]
pub(super) struct Allocated {
    pub(super) relayed: Vec<SocketAddr>,
    pub(super) mapped: Option<SocketAddr>,
    pub(super) ticket: Option<Vec<u8>>,
    pub(super) expires_at: Instant,
    /// `None` while a Refresh is waiting or in flight.
    pub(super) refresh_at: Option<Instant>,
    pub(super) is_migrating: bool,
}

/// A TURN client. See the [module](super) for how to drive it.
#[derive(Debug)]
pub struct TurnClient {
    pub(super) config: TurnClientConfig,
    seed: [u8; 32],
    counter: u64,
    pub(super) challenge: Option<Challenge>,
    pub(super) allocated: Option<Allocated>,
    pub(super) peers: Peers,
    pub(super) in_flight: Vec<Transaction>,
    waiting: VecDeque<TurnRequest>,
    transmits: VecDeque<Vec<u8>>,
    pub(super) events: VecDeque<TurnEvent>,
    /// The allocation that is requested is released as soon as it exists.
    pub(super) release_next: bool,
}

impl TurnClient {
    /// Makes a client. The seed must be random and secret: transaction ids follow from it (RFC 8489 section 5).
    #[must_use]
    pub fn new(config: TurnClientConfig, seed: [u8; 32]) -> Self {
        Self {
            config,
            seed,
            counter: 0,
            challenge: None,
            allocated: None,
            peers: Peers::default(),
            in_flight: Vec::new(),
            waiting: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            release_next: false,
        }
    }

    /// Requests an allocation; without effect if there is one.
    pub fn allocate(&mut self, now: Instant) {
        if self.allocated.is_none() {
            self.request(now, TurnRequest::Allocate);
        }
    }

    /// Installs and keeps a permission for an address; before the allocation exists, as soon as it does.
    ///
    /// # Errors
    /// [`TooManyPeers`] at [`TurnClientConfig::max_peers`].
    pub fn create_permission(&mut self, now: Instant, peer: IpAddr) -> Result<(), TooManyPeers> {
        if self.peers.add_permission(peer, self.config.max_peers)? && self.allocated.is_some() {
            self.request(now, TurnRequest::CreatePermission(peer));
        }
        Ok(())
    }

    /// Binds and keeps a channel to a peer, which permits its address too. Payload goes in Send indications until it is bound.
    ///
    /// # Errors
    /// [`TooManyPeers`] at [`TurnClientConfig::max_peers`], or after all 4096 channel numbers were used.
    pub fn bind_channel(&mut self, now: Instant, peer: SocketAddr) -> Result<(), TooManyPeers> {
        let is_new = self.peers.add_channel(peer, self.config.max_peers)?.is_some();
        if is_new && self.allocated.is_some() {
            self.request(now, TurnRequest::ChannelBind(peer));
        }
        Ok(())
    }

    /// Keeps the channel to a peer, and the permission of its address, no longer. They expire at the server.
    pub fn remove_peer(&mut self, peer: SocketAddr) {
        self.peers.remove(peer);
    }

    /// Moves the allocation to the client's new address, from which everything is sent from now on. Without a mobility ticket the
    /// allocation is given up, and the server makes a new one.
    pub fn migrate(&mut self, now: Instant) {
        self.in_flight.clear();
        self.waiting.clear();
        match &mut self.allocated {
            Some(allocated) if allocated.ticket.is_some() => {
                allocated.is_migrating = true;
                allocated.refresh_at = None;
                self.request(now, TurnRequest::Refresh);
            }
            _ => {
                self.allocated = None;
                self.request(now, TurnRequest::Allocate);
            }
        }
    }

    /// Releases the allocation; one that is requested, once the server has made it.
    pub fn release(&mut self, now: Instant) {
        self.waiting.clear();
        self.peers = Peers::default();
        self.config.first_wait = self.config.first_wait.min(RELEASE_WAIT);
        if let Some(allocated) = &mut self.allocated {
            allocated.refresh_at = None;
            self.in_flight.clear();
            self.request(now, TurnRequest::Release);
            return;
        }
        // Without credentials no request makes an allocation.
        self.in_flight.retain(|pending| pending.request == TurnRequest::Allocate && pending.is_signed);
        self.release_next = !self.in_flight.is_empty();
        if !self.release_next {
            self.events.push_back(TurnEvent::Released);
        }
    }

    /// Returns the relayed transport addresses; none without an allocation.
    #[must_use]
    pub fn relayed_addresses(&self) -> &[SocketAddr] {
        self.allocated.as_ref().map_or(&[], |allocated| &allocated.relayed)
    }

    /// Returns whether the server relays to this address.
    #[must_use]
    pub fn is_permitted(&self, peer: IpAddr) -> bool {
        self.allocated.is_some() && self.peers.is_permitted(peer)
    }

    /// Returns the number of the channel that is bound to a peer.
    #[must_use]
    pub fn bound_channel(&self, peer: SocketAddr) -> Option<u16> {
        self.allocated.as_ref()?;
        self.peers.bound_channel(peer)
    }

    /// Returns the header of a payload of `length` bytes to a peer: ChannelData if a channel is bound, else a Send indication. `None`
    /// without an allocation or a permission, or if the payload is too long. On a stream, and behind every Send indication, the payload is
    /// padded with zeros to a multiple of four bytes.
    pub fn header(&mut self, peer: SocketAddr, length: u16) -> Option<FrameHeader> {
        self.allocated.as_ref()?;
        if let Some(channel) = self.peers.bound_channel(peer) {
            return Some(FrameHeader::channel_data(channel, length));
        }
        if !self.peers.is_permitted(peer.ip()) {
            return None;
        }
        let transaction = self.random();
        FrameHeader::send_indication(peer, length, transaction)
    }

    /// Returns a payload with its header and padding; see [`TurnClient::header`].
    pub fn encode(&mut self, peer: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let header = self.header(peer, u16::try_from(payload.len()).ok()?)?;
        let mut bytes = [header.as_bytes(), payload].concat();
        let is_indication = bytes[0] == 0;
        if is_indication || self.config.transport == ClientTransport::Stream {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Some(bytes)
    }

    /// Returns the same as [`TurnClient::encode`], also while the request that permits the peer has no response yet: the server handles
    /// messages in order. Without the permission it drops the payload.
    pub(crate) fn encode_ahead(&mut self, peer: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        self.allocated.as_ref()?;
        let is_sent = |request| self.in_flight.iter().any(|transaction| transaction.request == request);
        if self.peers.is_permitted(peer.ip()) || !self.peers.requests_for(peer.ip()).any(is_sent) {
            return self.encode(peer, payload);
        }
        let (length, id) = (u16::try_from(payload.len()).ok()?, self.random());
        let header = FrameHeader::send_indication(peer, length, id)?;
        let mut bytes = [header.as_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Some(bytes)
    }

    /// Handles a datagram, or a frame of a stream, from the server.
    pub fn handle(&mut self, now: Instant, bytes: &[u8]) -> Received {
        if let Some((channel, payload)) = parse_channel_data(bytes) {
            let peer = self.allocated.as_ref().and_then(|_| self.peers.peer_of(channel));
            let payload = 4..4 + payload.len();
            return peer.map_or(Received::Unrelated, |peer| Received::Data { peer, payload });
        }
        let Ok(message) = Message::parse(bytes) else { return Received::Unrelated };
        match message.class() {
            Class::Indication if message.method() == Method::DATA && self.allocated.is_some() => {
                self.handle_data_indication(&message.unverified())
            }
            Class::Success | Class::Error => {
                let received = self.handle_response(now, &message);
                self.send_waiting(now);
                received
            }
            _ => Received::Unrelated,
        }
    }

    fn handle_data_indication(&mut self, attributes: &Attributes<'_>) -> Received {
        let Ok(Some(peer)) = attributes.xor_address(attr::XOR_PEER_ADDRESS) else {
            return Received::Unrelated;
        };
        // RFC 8656 section 11.4: nothing from a peer for which there is no permission.
        if !self.peers.is_wanted(peer.ip()) {
            return Received::Unrelated;
        }
        if attributes.get(attr::ICMP).is_some() {
            self.events.push_back(TurnEvent::PeerUnreachable(peer));
            return Received::Control;
        }
        let data = attributes.entries().find(|(kind, ..)| *kind == attr::DATA);
        match data {
            Some((_, at, data)) => Received::Data { peer, payload: at..at + data.len() },
            None => Received::Unrelated,
        }
    }

    /// Retransmits requests without a response, and renews what would expire.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut timed_out = Vec::new();
        let mut index = 0;
        while let Some(transaction) = self.in_flight.get_mut(index) {
            if transaction.due() > now {
                index += 1;
                continue;
            }
            match transaction.handle_timeout(now, self.config.first_wait) {
                Due::Retransmit(bytes) => {
                    self.transmits.push_back(bytes.to_vec());
                    index += 1;
                }
                Due::TimedOut => timed_out.push(self.in_flight.remove(index)),
            }
        }
        for transaction in timed_out {
            self.on_timed_out(now, &transaction);
        }
        if let Some(allocated) = &mut self.allocated
            && allocated.refresh_at.take_if(|at| *at <= now).is_some()
        {
            self.request(now, TurnRequest::Refresh);
        }
        if self.allocated.is_some() {
            for request in self.peers.take_due(now) {
                self.request(now, request);
            }
        }
        self.send_waiting(now);
    }

    /// A lost Refresh does not end an allocation before it expires: the network may be back before.
    fn on_timed_out(&mut self, now: Instant, transaction: &Transaction) {
        let request = transaction.request;
        let time = now - transaction.began;
        let error = TurnError::NoResponse { request, transmissions: transaction.transmissions, time };
        match request {
            TurnRequest::Refresh => match &mut self.allocated {
                Some(allocated) if now + REFRESH_RETRY < allocated.expires_at => {
                    allocated.refresh_at = Some(now + REFRESH_RETRY);
                }
                _ => self.fail(error),
            },
            TurnRequest::CreatePermission(_) | TurnRequest::ChannelBind(_) => {
                self.peers.on_timed_out(now, request);
                self.events.push_back(TurnEvent::PeerFailed(error));
            }
            TurnRequest::Allocate | TurnRequest::Release => self.fail(error),
        }
    }

    /// Returns when [`TurnClient::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let refresh = self.allocated.as_ref().map(|allocated| allocated.refresh_at);
        let renewal = self.allocated.as_ref().map(|_| self.peers.next_renewal());
        let in_flight = self.in_flight.iter().map(|transaction| Some(transaction.due()));
        in_flight.chain(refresh).chain(renewal).flatten().min()
    }

    /// Returns the next message for the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<TurnEvent> {
        self.events.pop_front()
    }

    /// Ends everything. A release always succeeds: what the server does not know is released.
    pub(super) fn fail(&mut self, error: TurnError) {
        let is_release =
            self.release_next || self.is_releasing() || error.request() == Some(TurnRequest::Release);
        self.allocated = None;
        self.in_flight.clear();
        self.waiting.clear();
        self.events.push_back(if is_release { TurnEvent::Released } else { TurnEvent::Failed(error) });
    }

    fn is_releasing(&self) -> bool {
        self.in_flight.iter().any(|transaction| transaction.request == TurnRequest::Release)
    }

    pub(super) fn request(&mut self, now: Instant, request: TurnRequest) {
        let is_known = self.in_flight.iter().any(|transaction| transaction.request == request);
        if !is_known && !self.waiting.contains(&request) {
            self.waiting.push_back(request);
        }
        self.send_waiting(now);
    }

    fn send_waiting(&mut self, now: Instant) {
        while self.in_flight.len() < MAX_IN_FLIGHT
            && let Some(request) = self.waiting.pop_front()
        {
            self.send(now, request, 0);
        }
    }

    pub(super) fn send(&mut self, now: Instant, request: TurnRequest, stale_nonces: u8) {
        let id = TransactionId::new(self.random());
        let method = match request {
            TurnRequest::Allocate => Method::ALLOCATE,
            TurnRequest::CreatePermission(_) => Method::CREATE_PERMISSION,
            TurnRequest::ChannelBind(_) => Method::CHANNEL_BIND,
            TurnRequest::Refresh | TurnRequest::Release => Method::REFRESH,
        };
        let message = self.fill(request, Builder::new(Class::Request, method, id));
        let bytes = match &self.challenge {
            Some(challenge) => challenge.sign(&self.config.credentials, message),
            None => message.finish(),
        };
        self.transmits.push_back(bytes.clone());
        let mut transaction = Transaction::new(now, &self.config, request, (id, bytes));
        transaction.is_signed = self.challenge.is_some();
        transaction.stale_nonces = stale_nonces;
        self.in_flight.push(transaction);
    }

    fn fill(&self, request: TurnRequest, message: Builder) -> Builder {
        match request {
            TurnRequest::Allocate => self.fill_allocate(message),
            TurnRequest::CreatePermission(peer) => {
                message.xor_address(attr::XOR_PEER_ADDRESS, SocketAddr::new(peer, 0))
            }
            TurnRequest::ChannelBind(peer) => {
                let [high, low] = self.peers.channel_number(peer).unwrap_or_default().to_be_bytes();
                message
                    .attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
                    .xor_address(attr::XOR_PEER_ADDRESS, peer)
            }
            TurnRequest::Refresh => {
                let message = self.fill_lifetime(message);
                let ticket = self.allocated.as_ref().and_then(|allocated| allocated.ticket.as_deref());
                // RFC 8016 section 3.2: every Refresh has the ticket; the 5-tuple may have changed unnoticed.
                ticket
                    .into_iter()
                    .fold(message, |message, ticket| message.attribute(attr::MOBILITY_TICKET, ticket))
            }
            TurnRequest::Release => message.attribute(attr::LIFETIME, &[0; 4]),
        }
    }

    fn fill_allocate(&self, message: Builder) -> Builder {
        let message = self.fill_lifetime(message.attribute(attr::REQUESTED_TRANSPORT, &UDP));
        let message = match self.config.families {
            AddressFamilies::V4 => message,
            AddressFamilies::V6 => message.attribute(attr::REQUESTED_ADDRESS_FAMILY, &IPV6),
            AddressFamilies::Both => message.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &IPV6),
        };
        if self.config.mobility { message.attribute(attr::MOBILITY_TICKET, &[]) } else { message }
    }

    fn fill_lifetime(&self, message: Builder) -> Builder {
        match self.config.lifetime {
            Some(lifetime) => {
                let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
                message.attribute(attr::LIFETIME, &seconds.to_be_bytes())
            }
            None => message,
        }
    }

    /// Twelve bytes that nobody can predict without the seed.
    fn random(&mut self) -> [u8; 12] {
        self.counter += 1;
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.seed);
        context.update(&self.counter.to_be_bytes());
        let mut random = [0; 12];
        random.copy_from_slice(&context.finish().as_ref()[..12]);
        random
    }
}
