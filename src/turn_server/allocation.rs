//! One allocation: its permissions and channels, and when each of them ends.

use super::auth::Tenancy;
use super::policy::PeerAddr;
use super::ports::PortLease;
use super::quota::Ticket;
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
/// Most permissions, and most channels, that one allocation holds at a time.
pub const MAX_PEERS: usize = 128;

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

/// State of one relayed transport address.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) client: FiveTuple,
    pub(super) user: Arc<str>,
    /// The credentials that made it, or refreshed it last.
    pub(super) tenancy: Tenancy,
    pub(super) relayed: PortLease,
    pub(super) expires: Instant,
    /// The Allocate that made it, and its answer once there is one: a retransmission gets the same answer again.
    pub(super) origin: (TransactionId, Option<Vec<u8>>),
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, Channel>,
    numbers: HashMap<SocketAddr, u16>,
    _ticket: Ticket,
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
    /// The allocation holds [`MAX_PEERS`] already (508).
    Full,
}

/// Who asks for an allocation, as far as the machine has established it.
#[derive(Debug)]
pub(super) struct Applicant {
    pub(super) client: FiveTuple,
    pub(super) tenancy: Tenancy,
    pub(super) transaction: TransactionId,
    pub(super) ticket: Ticket,
}

impl Allocation {
    pub(super) fn new(applicant: Applicant, relayed: PortLease, expires: Instant) -> Self {
        Self {
            client: applicant.client,
            user: Arc::clone(&applicant.tenancy.user),
            tenancy: applicant.tenancy,
            relayed,
            expires,
            origin: (applicant.transaction, None),
            permissions: HashMap::new(),
            channels: HashMap::new(),
            numbers: HashMap::new(),
            _ticket: applicant.ticket,
        }
    }

    /// Returns whether the relay socket is there and the lifetime has not run out.
    pub(super) fn is_live(&self, now: Instant) -> bool {
        self.origin.1.is_some() && now < self.expires
    }

    /// Returns whether data may flow between the client and `peer`'s address.
    pub(super) fn permits(&self, now: Instant, peer: IpAddr) -> bool {
        self.permissions.get(&peer).is_some_and(|expires| now < *expires)
    }

    /// Returns whether another `new` permissions have room.
    pub(super) fn has_room_for(&mut self, now: Instant, peers: &[PeerAddr]) -> bool {
        let unknown = peers.iter().filter(|peer| !self.permissions.contains_key(&peer.ip())).count();
        if self.permissions.len() + unknown > MAX_PEERS {
            self.permissions.retain(|_, expires| now < *expires);
        }
        self.permissions.len() + unknown <= MAX_PEERS
    }

    /// Installs or refreshes a permission.
    pub(super) fn permit(&mut self, now: Instant, peer: IpAddr) {
        self.permissions.insert(peer, now + PERMISSION_LIFETIME);
    }

    /// Binds `number` to `peer` or refreshes that binding, and its permission with it
    /// ([RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2)).
    pub(super) fn bind(&mut self, now: Instant, number: u16, peer: PeerAddr) -> Result<(), PeerRefusal> {
        if !CHANNELS.contains(&number) {
            return Err(PeerRefusal::Conflict);
        }
        self.forget_channel_if_expired(now, number);
        if let Some(other) = self.numbers.get(&peer.socket_addr()).copied() {
            self.forget_channel_if_expired(now, other);
        }
        let bound_peer = self.channels.get(&number).map(|channel| channel.peer);
        let bound_number = self.numbers.get(&peer.socket_addr()).copied();
        match (bound_peer, bound_number) {
            (None, None) if self.channels.len() >= MAX_PEERS => self.forget_expired_channels(now),
            (None, None) => {}
            (Some(p), Some(n)) if p == peer && n == number => {}
            _ => return Err(PeerRefusal::Conflict),
        }
        if self.channels.len() >= MAX_PEERS || !self.has_room_for(now, &[peer]) {
            return Err(PeerRefusal::Full);
        }
        self.channels.insert(number, Channel { peer, expires: now + CHANNEL_LIFETIME });
        self.numbers.insert(peer.socket_addr(), number);
        self.permit(now, peer.ip());
        Ok(())
    }

    fn forget_channel_if_expired(&mut self, now: Instant, number: u16) {
        if let Some(channel) = self.channels.get(&number).copied()
            && channel.expires <= now
        {
            self.channels.remove(&number);
            self.numbers.remove(&channel.peer.socket_addr());
        }
    }

    fn forget_expired_channels(&mut self, now: Instant) {
        self.channels.retain(|_, channel| now < channel.expires);
        let channels = &self.channels;
        self.numbers.retain(|_, number| channels.contains_key(number));
    }

    /// Returns the peer that `number` is bound to.
    pub(super) fn peer_of(&self, now: Instant, number: u16) -> Option<PeerAddr> {
        self.channels.get(&number).filter(|channel| now < channel.expires).map(|channel| channel.peer)
    }

    /// Returns the channel that `peer` is bound to.
    pub(super) fn channel_of(&self, now: Instant, peer: PeerAddr) -> Option<u16> {
        let number = *self.numbers.get(&peer.socket_addr())?;
        self.peer_of(now, number).map(|_| number)
    }
}
