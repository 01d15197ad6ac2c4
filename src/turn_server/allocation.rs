//! One allocation: its relayed addresses, permissions, channels and peers, and when each of them ends.

use super::auth::Tenancy;
use super::connections::ConnectionId;
use super::mobility::Mobility;
use super::policy::PeerAddr;
use super::ports::PortLease;
use super::quota::Ticket;
use super::rate::Meter;
use super::relay_port::RelayId;
use super::reply::{Fault, Reply};
use super::reservation::Token;
use super::wire::CHANNELS;
use crate::stun::TransactionId;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a permission lasts ([RFC 8656 section 9](https://www.rfc-editor.org/rfc/rfc8656#section-9)).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// How long a channel lasts ([RFC 8656 section 12](https://www.rfc-editor.org/rfc/rfc8656#section-12)).
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// How long neither the number nor the peer of a channel that ended is bound to another (same section).
pub const CHANNEL_COOLDOWN: Duration = Duration::from_secs(300);
/// Most transport addresses of peers that one allocation is remembered to talk with.
pub(super) const MAX_CLAIMS: usize = 512;
/// ICE user fragments of a client that are remembered.
const MAX_FRAGMENTS: usize = 4;
/// Longest ICE user fragment that is remembered (RFC 8445 section 5.3 asks for at least 4 characters; clients use 4 to 16).
const MAX_FRAGMENT: usize = 32;

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// Datagrams inside DTLS.
    Dtls,
    /// A TCP stream.
    Tcp,
    /// A TCP stream inside TLS.
    Tls,
    /// Binary messages of a WebSocket.
    WebSocket,
}

impl Transport {
    /// Returns whether one TCP connection is one client: what RFC 6062 needs.
    #[must_use]
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Returns whether frames follow each other on a stream, where they are padded to four bytes.
    #[must_use]
    pub fn is_stream(self) -> bool {
        !matches!(self, Self::Udp | Self::Dtls)
    }
}

/// What names a client: its address as the server sees it, the server's address, and the transport
/// ([RFC 8656 section 3.2](https://www.rfc-editor.org/rfc/rfc8656#section-3.2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// The client's transport address.
    pub client: SocketAddr,
    /// The address the client reached the server at.
    pub server: SocketAddr,
    /// The transport between both.
    pub transport: Transport,
}

/// IPv4 or IPv6, as the index of an allocation's relayed addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv6() { Self::V6 } else { Self::V4 }
    }

    /// Reads the first byte of the address-family attributes.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::V4),
            2 => Some(Self::V6),
            _ => None,
        }
    }

    /// Returns the byte that names it in attributes.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }
}

/// The transport between server and peers, REQUESTED-TRANSPORT's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerTransport {
    Udp,
    /// [RFC 6062](https://www.rfc-editor.org/rfc/rfc6062).
    Tcp,
}

/// An Allocate that waits for its relay sockets.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) reply: Reply,
    /// The next port, set aside with this one; it waits for its token from when the client knows it.
    pub(super) reserved: Option<(Token, PortLease)>,
    /// The relayed address that was asked for besides and could not be had, and why.
    pub(super) missing: Option<(Family, Fault)>,
}

/// State of one allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) client: FiveTuple,
    pub(super) user: Arc<str>,
    pub(super) peer_transport: PeerTransport,
    /// The credentials that made it, or refreshed it last.
    pub(super) tenancy: Tenancy,
    pub(super) expires: Instant,
    /// What LIFETIME said last.
    pub(super) lifetime: Duration,
    /// There while the sockets are not.
    pub(super) opening: Option<Opening>,
    /// The Allocate that made it, and its answer once there is one: a retransmission gets the same answer again.
    pub(super) origin: (TransactionId, Option<Vec<u8>>),
    pub(super) meter: Meter,
    /// When the next new peer may come, by [`Meter`]'s rule.
    pub(super) new_peers: Meter,
    pub(super) ticket: Ticket,
    /// There if the client asked for tickets (RFC 8016).
    pub(super) mobility: Option<Mobility>,
    /// Connections to peers (RFC 6062).
    pub(super) connections: Vec<ConnectionId>,
    homes: [Option<RelayId>; 2],
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, Channel>,
    /// The same the other way round. Not a part of `peers`: a channel outlives the port that its peer knew the client by.
    numbers: HashMap<PeerAddr, u16>,
    /// Peers that the client has sent to, or bound, and the port that each knows it by.
    peers: HashMap<PeerAddr, RelayId>,
    fragments: Vec<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy)]
struct Channel {
    peer: PeerAddr,
    expires: Instant,
}

/// Why a permission or a channel was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerRefusal {
    /// The number is out of range, or number and peer are bound to others (400).
    Conflict,
    /// The allocation holds as many as it may (508).
    Full,
}

/// Who asks for an allocation, as far as the machine has established it.
#[derive(Debug)]
pub(super) struct Applicant {
    pub(super) client: FiveTuple,
    pub(super) tenancy: Tenancy,
    pub(super) peer_transport: PeerTransport,
    pub(super) lifetime: Duration,
    pub(super) ticket: Ticket,
    pub(super) mobility: Option<Mobility>,
}

impl Allocation {
    pub(super) fn new(now: Instant, applicant: Applicant, opening: Opening) -> Self {
        Self {
            client: applicant.client,
            user: Arc::clone(&applicant.tenancy.user),
            tenancy: applicant.tenancy,
            peer_transport: applicant.peer_transport,
            expires: now + applicant.lifetime,
            lifetime: applicant.lifetime,
            origin: (opening.reply.transaction(), None),
            opening: Some(opening),
            meter: Meter::default(),
            new_peers: Meter::default(),
            ticket: applicant.ticket,
            mobility: applicant.mobility,
            connections: Vec::new(),
            homes: [None; 2],
            permissions: HashMap::new(),
            channels: HashMap::new(),
            numbers: HashMap::new(),
            peers: HashMap::new(),
            fragments: Vec::new(),
        }
    }

    /// Returns whether the relay socket is there and the lifetime has not run out.
    pub(super) fn is_live(&self, now: Instant) -> bool {
        self.opening.is_none() && now < self.expires
    }

    /// Returns the port of the relayed address of `family`.
    pub(super) fn home(&self, family: Family) -> Option<RelayId> {
        self.homes[family as usize]
    }

    /// Lists the ports of all relayed addresses, IPv4 first.
    pub(super) fn homes(&self) -> impl Iterator<Item = RelayId> + use<> {
        self.homes.into_iter().flatten()
    }

    pub(super) fn set_home(&mut self, family: Family, relay: Option<RelayId>) {
        self.homes[family as usize] = relay;
    }

    /// Returns whether data may flow between the client and `peer`'s address.
    pub(super) fn permits(&self, now: Instant, peer: IpAddr) -> bool {
        self.permissions.get(&peer).is_some_and(|expires| now < *expires)
    }

    /// Lists the addresses that permissions were ever installed for and not forgotten.
    pub(super) fn permitted(&self) -> impl Iterator<Item = IpAddr> {
        self.permissions.keys().copied()
    }

    /// Forgets every permission for peers of `family`.
    pub(super) fn forget_permissions(&mut self, family: Family) {
        self.permissions.retain(|ip, _| Family::of(*ip) != family);
    }

    /// Lists the permissions that are over and forgets them.
    pub(super) fn forget_expired_permissions(&mut self, now: Instant) -> Vec<IpAddr> {
        let over = |(ip, expires): (&IpAddr, &Instant)| (*expires <= now).then_some(*ip);
        let expired: Vec<_> = self.permissions.iter().filter_map(over).collect();
        for ip in &expired {
            self.permissions.remove(ip);
        }
        expired
    }

    /// Returns how many permissions there would be with `peers` too.
    pub(super) fn permissions_with(&self, peers: &[PeerAddr]) -> usize {
        let mut unknown: Vec<_> =
            peers.iter().map(|peer| peer.ip()).filter(|ip| !self.permissions.contains_key(ip)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        self.permissions.len() + unknown.len()
    }

    /// Installs or refreshes a permission.
    pub(super) fn permit(&mut self, now: Instant, peer: IpAddr) {
        self.permissions.insert(peer, now + PERMISSION_LIFETIME);
    }

    /// Checks whether `number` may be bound to `peer`
    /// ([RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2)): neither is bound to another, nor was within the
    /// cool-down.
    pub(super) fn may_bind(
        &mut self,
        now: Instant,
        number: u16,
        peer: PeerAddr,
        most: usize,
    ) -> Result<(), PeerRefusal> {
        if !CHANNELS.contains(&number) {
            return Err(PeerRefusal::Conflict);
        }
        self.forget_channels_after_cooldown(now);
        let bound_peer = self.channels.get(&number).map(|channel| channel.peer);
        let bound_number = self.numbers.get(&peer).copied();
        match (bound_peer, bound_number) {
            (None, None) if self.channels.len() >= most => Err(PeerRefusal::Full),
            (None, None) => Ok(()),
            (Some(p), Some(n)) if p == peer && n == number => Ok(()),
            _ => Err(PeerRefusal::Conflict),
        }
    }

    /// Binds `number` to `peer`, which was claimed and [may be bound](Self::may_bind), or refreshes that.
    pub(super) fn bind(&mut self, now: Instant, number: u16, peer: PeerAddr) {
        self.channels.insert(number, Channel { peer, expires: now + CHANNEL_LIFETIME });
        self.numbers.insert(peer, number);
    }

    fn forget_channels_after_cooldown(&mut self, now: Instant) {
        self.channels.retain(|_, channel| now < channel.expires + CHANNEL_COOLDOWN);
        self.numbers.retain(|_, number| self.channels.contains_key(number));
    }

    /// Returns the peer that `number` is bound to.
    pub(super) fn peer_of(&self, now: Instant, number: u16) -> Option<PeerAddr> {
        self.channels.get(&number).filter(|channel| now < channel.expires).map(|channel| channel.peer)
    }

    /// Returns the channel that `peer` is bound to.
    pub(super) fn channel_of(&self, now: Instant, peer: PeerAddr) -> Option<u16> {
        let number = *self.numbers.get(&peer)?;
        self.peer_of(now, number).map(|_| number)
    }

    /// Returns the port that `peer` knows the client by.
    pub(super) fn relay_to(&self, peer: PeerAddr) -> Option<RelayId> {
        self.peers.get(&peer).copied()
    }

    /// Notes the port that `peer` knows the client by from now on.
    pub(super) fn add_peer(&mut self, peer: PeerAddr, relay: RelayId) {
        self.peers.insert(peer, relay);
    }

    /// Forgets the port that `peer` knew the client by; its channel stays as long as the client was promised, on the next port.
    pub(super) fn forget_peer(&mut self, peer: PeerAddr) {
        self.peers.remove(&peer);
    }

    /// Lists all peers with the ports they know the client by.
    pub(super) fn peers(&self) -> impl Iterator<Item = (PeerAddr, RelayId)> {
        self.peers.iter().map(|(address, relay)| (*address, *relay))
    }

    /// Returns whether the allocation can still make use of its claim on `peer`: a permission, or a channel that may come back.
    pub(super) fn uses(&self, now: Instant, peer: PeerAddr) -> bool {
        let bound = |number| self.channels.get(number).is_some_and(|c| now < c.expires + CHANNEL_COOLDOWN);
        self.permits(now, peer.ip()) || self.numbers.get(&peer).is_some_and(bound)
    }

    pub(super) fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Remembers an ICE user fragment that the client names itself by.
    pub(super) fn learn_fragment(&mut self, fragment: &[u8]) {
        let known = self.fragments.iter().any(|known| **known == *fragment);
        if known || fragment.len() > MAX_FRAGMENT {
            return;
        }
        if self.fragments.len() == MAX_FRAGMENTS {
            self.fragments.remove(0);
        }
        self.fragments.push(fragment.into());
    }

    /// Returns whether the client has named itself by this ICE user fragment.
    pub(super) fn is_known_as(&self, fragment: &[u8]) -> bool {
        self.fragments.iter().any(|known| **known == *fragment)
    }
}
