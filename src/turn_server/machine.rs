//! The relay's rules: who gets an allocation, which bytes pass, and when everything ends. Pure.
//!
//! Control leaves through [`Relay::poll_output`]; relayed data leaves through the return values of
//! [`Relay::handle_client`] and [`Relay::handle_peer`], with the payload still borrowed from the caller's buffer.

use super::FiveTuple;
use super::allocation::{Allocation, PeerTransport};
use super::allocation_quota::AllocationQuota;
use super::alternate_servers::AlternateServers;
use super::auth::{self, Authenticator, PendingLookups, UserQuery};
use super::client_index::ClientIndex;
use super::denial_counters::DenialCounters;
use super::mobility::MobilityTickets;
use super::pending_connections::{ConnectionId, PendingConnections, UserBandwidth};
use super::policy::{PeerAddr, PeerPolicy};
use super::port_owners::PortOwner;
use super::ports::{RelayAddress, RelayPorts};
use super::relay_port::{RelayId, RelayPort};
use super::reservation::Reservations;
use super::tcp_allocations::PeerConnection;
use super::wire::FrameHeader;
use crate::clock::TickBase;
use crate::clock::{Deadlines, Now};
use crate::ids::Pii;
use crate::limits::Rate;
use crate::net::demux::{self, DatagramKind};
use crate::stun::{Class, Message, Method};
use rand_chacha::ChaCha20Rng;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names one allocation of a worker for as long as it lives.
pub type AllocationId = usize;

/// What all workers' relays share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Checks credentials.
    pub authority: Arc<Authenticator>,
    /// Sends clients elsewhere.
    pub alternates: Arc<AlternateServers>,
    /// Checks peers.
    pub policy: Arc<PeerPolicy>,
    /// Gives out relay ports.
    pub ports: Arc<RelayPorts>,
    /// Keeps ports that were set aside.
    pub reservations: Arc<Reservations>,
    /// Limits allocations.
    pub quota: Arc<AllocationQuota>,
    /// The addresses of relay sockets; an allocation gets one of its family.
    pub addresses: Arc<[RelayAddress]>,
    /// Peer connections that wait to be bound.
    pub connections: Arc<PendingConnections>,
    /// Seals mobility tickets.
    pub tickets: Arc<MobilityTickets>,
    /// Which worker's relay this is, as tickets name it.
    pub worker: u16,
    /// How much is enough.
    pub limits: Limits,
    /// What the operator lets clients do.
    pub features: Features,
}

/// Caps of one allocation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest lifetime an allocation gets at a time; default 3600 s.
    pub max_lifetime: Duration,
    /// Permissions, and channels, at a time; default 128.
    pub permissions: usize,
    /// How fast transport addresses of peers may be new, against port scans; default 32 a second after the first 128.
    pub new_peers: Rate,
    /// The same for all allocations of one user; default 128 a second after the first 4096.
    pub user_new_peers: Rate,
    /// Bytes relayed for one allocation, both directions; default 25 MB/s.
    pub allocation_bandwidth: Rate,
    /// Bytes relayed for all allocations of one user; default 50 MB/s.
    pub user_bandwidth: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_lifetime: Duration::from_secs(3600),
            permissions: 128,
            new_peers: Rate::with_burst_time(32, Duration::from_secs(4)),
            user_new_peers: Rate::with_burst_time(128, Duration::from_secs(32)),
            allocation_bandwidth: Rate::bytes(25_000_000),
            user_bandwidth: Rate::bytes(50_000_000),
        }
    }
}

/// What the operator lets clients do.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// Whether an allocation gets a relayed address of the other family when a permission first names a peer there.
    pub add_family: bool,
    /// Whether clients may take their allocations along to another address (RFC 8016).
    pub mobility: bool,
    /// Whether clients may reach peers by TCP (RFC 6062).
    pub tcp: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self { add_family: true, mobility: true, tcp: true }
    }
}

/// Whether it is known who has sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestAuth {
    /// Its integrity was verified.
    Verified,
    /// It may come from a forged address: the answer is rate limited and never much larger than what asked for it.
    Unverified {
        /// Length of the request, which may have come long before.
        request_len: usize,
    },
}

/// What the hands are to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send `bytes` to a client.
    Response {
        /// The client.
        client: FiveTuple,
        /// A whole STUN message.
        bytes: Vec<u8>,
        /// Whether it is known who asked.
        auth: RequestAuth,
    },
    /// Bind a socket to `address` and say how that went with [`Relay::handle_relay_opened`].
    OpenRelaySocket {
        /// The relay port it is for.
        relay: RelayId,
        /// The local address.
        address: SocketAddr,
        /// What it is to carry: datagrams, or with `true` connections that peers open.
        tcp: bool,
    },
    /// Ask others about a user and say how that went with [`Relay::handle_lookup_done`].
    LookUpUser {
        /// What to ask.
        question: Arc<UserQuery>,
        /// Whose request makes it necessary; its address has answered a challenge.
        from: IpAddr,
        /// Whether others have said before that there is such a user.
        is_known: bool,
    },
    /// Close a relay port's socket.
    CloseRelaySocket {
        /// The relay port.
        relay: RelayId,
    },
    /// Connect to a peer by TCP and say how that went with [`Relay::handle_connected`].
    Connect {
        /// The connection's name from now on.
        connection: ConnectionId,
        /// The local address.
        from: SocketAddr,
        /// The peer.
        to: SocketAddr,
    },
    /// Join a client's connection with the connection to a peer: after the response bytes pass between them unread.
    BindConnection {
        /// The client's connection.
        client: FiveTuple,
        /// The peer's.
        connection: ConnectionId,
        /// The answer to the client's request, which goes first.
        response: Vec<u8>,
        /// How fast bytes may pass.
        bandwidth: UserBandwidth,
    },
    /// Close a connection to a peer and whatever it was joined with.
    Disconnect {
        /// The connection.
        connection: ConnectionId,
    },
    /// Give this request to another worker's relay, and from now on everything from that client.
    ForwardRequest {
        /// The client.
        client: FiveTuple,
        /// The worker.
        worker: u16,
        /// The request.
        bytes: Vec<u8>,
    },
    /// Nothing more is to be expected of a client whose allocation has moved on or ended: other workers need not pass it on.
    ClientLeft {
        /// The client.
        client: FiveTuple,
    },
}

/// What a deadline is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Timer {
    Allocation(AllocationId),
    Connection(ConnectionId),
    /// The ports set aside, of all workers.
    Reservations,
}

/// What stands in an IP header and passes through the relay
/// ([RFC 8656 section 14](https://www.rfc-editor.org/rfc/rfc8656#section-14)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IpHeader {
    /// Time to live or hop limit; 0 when unknown, as on streams.
    pub ttl: u8,
    /// Differentiated services and ECN.
    pub tos: u8,
}

impl IpHeader {
    /// Returns what leaves for a packet that came with these marks, `None` when it has travelled far enough.
    fn passed_on(self) -> Option<Self> {
        match self.ttl {
            0 => Some(self),
            1 => None,
            ttl => Some(Self { ttl: ttl - 1, ..self }),
        }
    }
}

/// A payload on its way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToPeer<'a> {
    /// The relay port whose socket sends it.
    pub relay: RelayId,
    /// The peer.
    pub peer: SocketAddr,
    /// The bytes.
    pub payload: &'a [u8],
    /// For the IP header.
    pub marks: IpHeader,
    /// Whether routers must not fragment it (DONT-FRAGMENT).
    pub dont_fragment: bool,
}

/// A payload on its way to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToClient<'a> {
    /// The client.
    pub client: FiveTuple,
    /// What goes in front.
    pub header: FrameHeader,
    /// The bytes.
    pub payload: &'a [u8],
    /// Zero bytes that go behind.
    pub padding: usize,
    /// For the IP header.
    pub marks: IpHeader,
}

/// From one relayed address of this server to another, by their local names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalRoute {
    /// The sender's.
    pub from: SocketAddr,
    /// The receiver's.
    pub to: SocketAddr,
    /// The receiver's port, as its worker's relay names it.
    pub relay: RelayId,
}

/// A payload on its way to another worker's relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalPacket<'a> {
    /// The worker.
    pub worker: u16,
    /// From whom and to whom.
    pub route: InternalRoute,
    /// As it would have arrived.
    pub marks: IpHeader,
    /// The bytes.
    pub payload: &'a [u8],
}

/// Where a payload for a peer goes on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward<'a> {
    /// To the peer, by the relay port's socket.
    Peer(ToPeer<'a>),
    /// The peer is a relayed address of this relay: to the client behind it, without leaving the server.
    LocalClient(ToClient<'a>),
    /// The peer is a relayed address of another worker's relay, which takes it by [`Relay::handle_internal`].
    OtherWorker(InternalPacket<'a>),
    /// Nowhere: the peer is a relayed address of this server where nobody takes datagrams from this one.
    Drop,
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
    /// Packets dropped because the allocation's or the user's bandwidth was used up.
    pub over_bandwidth: u64,
    /// Peers refused because there were too many new ones in too short a time.
    pub over_new_peers: u64,
    /// Times that no relay port was free.
    pub ports_exhausted: u64,
    /// Relay sockets that the system had no room for.
    pub sockets_refused: u64,
    /// ICMP errors passed on to clients.
    pub icmp: u64,
    /// Requests refused for their credentials (401, 438).
    pub unauthorized: u64,
}

/// One worker's relay.
#[derive(Debug)]
pub struct Relay {
    pub(super) shared: Shared,
    pub(super) rng: ChaCha20Rng,
    pub(super) allocations: Slab<Allocation>,
    pub(super) relays: Slab<RelayPort>,
    pub(super) directory: ClientIndex,
    pub(super) connections: HashMap<ConnectionId, PeerConnection>,
    pub(super) deadlines: Deadlines<Timer>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: Counters,
    pub(super) denials: DenialCounters,
    pub(super) tick_base: TickBase,
    pub(super) pending_lookups: PendingLookups,
}

impl Relay {
    /// Makes a relay without allocations that begins at `now`; `rng` draws ports and transaction ids.
    #[must_use]
    pub fn new(now: Now, shared: Shared, rng: ChaCha20Rng) -> Self {
        Self {
            shared,
            directory: ClientIndex::new(&rng),
            rng,
            allocations: Slab::new(),
            relays: Slab::new(),
            connections: HashMap::new(),
            deadlines: Deadlines::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            denials: DenialCounters::default(),
            tick_base: TickBase::new(now.mono),
            pending_lookups: PendingLookups::default(),
        }
    }

    /// Handles one frame from a client: ChannelData, a Send indication or a request.
    pub fn handle_client<'a>(
        &mut self,
        now: Now,
        client: FiveTuple,
        marks: IpHeader,
        bytes: &'a [u8],
    ) -> Option<ToPeer<'a>> {
        let at = self.tick_base.ticks(now.mono);
        let forward = match demux::datagram(bytes) {
            DatagramKind::ChannelData | DatagramKind::Signaling => self.channel_data(at, client, bytes),
            DatagramKind::Stun => match Message::parse(bytes) {
                // RFC 3489 knows neither relays nor the magic cookie.
                Ok(message) if message.transaction().is_classic() => None,
                Ok(message) if message.class() == Class::Request => {
                    self.request(now, client, &message);
                    return None;
                }
                Ok(message) if (message.class(), message.method()) == (Class::Indication, Method::SEND) => {
                    self.send_indication(at, client, &message)
                }
                _ => None,
            },
            _ => None,
        };
        let forward = forward.and_then(|forward| Some(ToPeer { marks: marks.passed_on()?, ..forward }));
        match forward {
            Some(forward) => self.counters.bytes_to_peers += forward.payload.len() as u64,
            None => self.counters.dropped += 1,
        }
        forward
    }

    /// Handles one datagram that arrived at a relay port
    /// ([RFC 8656 section 11.3](https://www.rfc-editor.org/rfc/rfc8656#section-11.3)).
    pub fn handle_peer<'a>(
        &mut self,
        now: Now,
        relay: RelayId,
        from: SocketAddr,
        marks: IpHeader,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let at = self.tick_base.ticks(now.mono);
        let forward = self.data_for_client(at, relay, self.local_peer(from), payload);
        self.passed_to_client(forward, marks)
    }

    /// Takes the short way to a peer that is a client of this server too. The same rules hold as if the datagram had left and come
    /// back: both sides have to permit each other, and both are charged.
    pub fn route<'a>(&mut self, now: Now, forward: ToPeer<'a>) -> Forward<'a> {
        let ToPeer { relay, peer, payload, marks, .. } = forward;
        let Some(PortOwner { worker, relay: to_relay }) = self.shared.ports.owner(peer) else {
            if self.shared.ports.is_leased(peer) {
                // It takes connections alone or waits for its Allocate: whatever else listens there on this host is nobody's peer.
                self.counters.dropped += 1;
                return Forward::Drop;
            }
            return Forward::Peer(forward);
        };
        let Some(port) = self.relays.get(relay) else { return Forward::Peer(forward) };
        let route = InternalRoute { from: port.address(), to: peer, relay: to_relay };
        if worker != self.shared.worker {
            return Forward::OtherWorker(InternalPacket { worker, route, marks, payload });
        }
        self.handle_internal(now, route, marks, payload).map_or(Forward::Drop, Forward::LocalClient)
    }

    /// Handles what a client of this server, perhaps of another worker's relay, sends to a relayed address of this relay, as if it
    /// had arrived there. The port may have closed meanwhile, and another one have its number.
    pub fn handle_internal<'a>(
        &mut self,
        now: Now,
        route: InternalRoute,
        marks: IpHeader,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let InternalRoute { from, to, relay } = route;
        let takes = |port: &&RelayPort| port.address() == to && port.serves(PeerTransport::Udp);
        let is_open = self.relays.get(relay).filter(takes).is_some();
        let at = self.tick_base.ticks(now.mono);
        let forward =
            is_open.then(|| self.data_for_client(at, relay, PeerAddr::new(from), payload)).flatten();
        self.passed_to_client(forward, marks)
    }

    fn passed_to_client<'a>(
        &mut self,
        forward: Option<ToClient<'a>>,
        marks: IpHeader,
    ) -> Option<ToClient<'a>> {
        let forward = forward.and_then(|forward| Some(ToClient { marks: marks.passed_on()?, ..forward }));
        match forward {
            Some(forward) => self.counters.bytes_to_clients += forward.payload.len() as u64,
            None => self.counters.dropped += 1,
        }
        forward
    }

    /// Ends the allocation of a client whose stream has closed.
    pub fn handle_client_gone(&mut self, client: FiveTuple) {
        self.pending_lookups.forget(client);
        if let Some(id) = self.allocation_of(client) {
            self.end_allocation(id, "the client's connection closed");
        }
    }

    /// Ends every allocation that time-limited credentials for `name` have made: they were revoked.
    pub fn handle_revoked(&mut self, name: &str) {
        let of_name = |(_, allocation): &(_, &Allocation)| auth::is_issued_for(allocation.user(), name);
        let ids: Vec<_> = self.allocations.iter().filter(of_name).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.end_allocation(id, "revoked"));
    }

    /// Ends what has lasted its time: allocations, offers of connections, ports set aside.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.deadlines.pop_due(now.mono) {
            match timer {
                Timer::Allocation(id) => self.end_allocation(id, "lifetime over"),
                Timer::Connection(connection) => self.connection_timed_out(connection),
                Timer::Reservations => self.set_reservation_timer(now),
            }
        }
    }

    /// Returns the next thing to do, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns whether there is a next thing to do.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
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

    /// Lists the rules that have refused peers, and how often.
    pub fn denials(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.denials.counts()
    }

    /// Returns the user of the client's allocation, and when its lifetime is over.
    #[must_use]
    pub fn served(&self, client: FiveTuple) -> Option<(Arc<str>, Instant)> {
        let allocation = self.allocations.get(self.allocation_of(client)?)?;
        Some((Arc::clone(allocation.user()), self.tick_base.instant(allocation.live_until())))
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

    /// Returns `peer` as it is seen on the wire: canonical, and a relayed address of this server by its local name.
    pub(super) fn local_peer(&self, peer: SocketAddr) -> PeerAddr {
        PeerAddr::new(self.shared.ports.local(PeerAddr::new(peer).socket_addr()))
    }

    pub(super) fn respond(&mut self, client: FiveTuple, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Response { client, bytes, auth: RequestAuth::Verified });
    }

    /// Sets the timer of an allocation to its end.
    pub(super) fn set_expiry_timer(&mut self, id: AllocationId) {
        let end = self.tick_base.instant(self.allocations[id].live_until());
        self.deadlines.set(Timer::Allocation(id), end);
    }

    /// Gives back what was set aside for too long, and sets the timer to the next port's end.
    pub(super) fn set_reservation_timer(&mut self, now: Now) {
        if let Some(next) = self.shared.reservations.expire(now.mono) {
            self.deadlines.set(Timer::Reservations, next);
        }
    }

    pub(super) fn end_allocation(&mut self, id: AllocationId, why: &'static str) {
        if let Some(allocation) = self.allocations.get(id) {
            if !allocation.is_self_test() {
                tracing::info!(user = %Pii(allocation.user()), %id, why, "allocation ended");
            }
            self.remove_allocation(id);
        }
    }

    /// Drops an allocation with everything it holds: ports, connections, quota.
    pub(super) fn remove_allocation(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.try_remove(id) else { return };
        let client = allocation.client();
        self.remove_client(client, id);
        self.deadlines.clear(Timer::Allocation(id));
        if allocation.control.mobility.is_some() {
            self.outputs.push_back(Output::ClientLeft { client });
        }
        for connection in &allocation.control.connections {
            self.close_connection(*connection);
        }
        for relay in allocation.relay_ports() {
            self.close_relay_port(relay);
        }
    }
}
