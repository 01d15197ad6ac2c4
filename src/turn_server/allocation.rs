//! One allocation: its relayed addresses, permissions, channels and peers, and when each of them expires.

use super::allocation_quota::QuotaPermit;
use super::auth::AllocationOwner;
use super::config::AllocationLimits;
use super::five_tuple::{FiveTuple, PackedTuple};
use super::mobility::Mobility;
use super::peer_table::{PeerEntry, PeerTable};
use super::pending_connections::ConnectionId;
use super::permissions::{PERMISSION_LIFETIME, Permissions};
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use super::reservation::{ReservationToken, ReservedPort};
use super::response::{Responder, StunErrorCode};
use crate::clock::Ticks;
use crate::limits::Limit;
use crate::limits::{RateLimiter, SharedRateLimiter};
use crate::stun::TransactionId;
use crate::turn_wire::CHANNELS;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a channel lasts ([RFC 8656 section 12](https://www.rfc-editor.org/rfc/rfc8656#section-12)).
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// How long neither the number nor the peer of an expired channel may be bound to another (same section).
pub const CHANNEL_COOLDOWN: Duration = Duration::from_secs(300);
/// The user name of the server's own allocation, which tests the relay at start-up.
const SELF_TEST: &str = "self-test";

/// An address family.
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

    /// Returns the value of the address-family attributes.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }
}

/// The transport between server and peers (REQUESTED-TRANSPORT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerTransport {
    Udp,
    /// [RFC 6062](https://www.rfc-editor.org/rfc/rfc6062).
    Tcp,
}

/// An Allocate request that waits for its relay sockets.
#[derive(Debug)]
pub(super) struct PendingAllocate {
    pub(super) responder: Responder,
    /// The next port and its token; the reservation's lifetime begins with the response.
    pub(super) reserved: Option<(ReservationToken, ReservedPort)>,
    /// The additional family that gets no relayed address, and why.
    pub(super) family_error: Option<(Family, StunErrorCode)>,
}

/// State of one allocation. What every packet reads is in two cache lines of 64 bytes: the client, the expiry, the rate limits and the
/// peer that most packets are for.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Allocation {
    client: PackedTuple,
    /// When the allocation expires; zero until the relay sockets are open.
    live_until: Ticks,
    pub(super) limiter: RateLimiter,
    pub(super) peer_table: PeerTable,
    pub(super) user_limiter: Arc<SharedRateLimiter>,
    pub(super) control: Box<ControlState>,
}

/// The part of an allocation that only requests read.
#[derive(Debug)]
pub(super) struct ControlState {
    /// The credentials of the Allocate or of the last Refresh.
    pub(super) owner: AllocationOwner,
    pub(super) peer_transport: PeerTransport,
    /// The last granted lifetime.
    pub(super) lifetime: Duration,
    /// Present until the relay sockets are open.
    pub(super) pending: Option<Box<PendingAllocate>>,
    /// The transaction of the Allocate, and its response once sent: a retransmission gets the same response again.
    pub(super) origin: (TransactionId, Option<Box<[u8]>>),
    /// Limits the rate of new peers.
    pub(super) new_peers: RateLimiter,
    /// This allocation's share of the quota.
    permit: QuotaPermit,
    /// Present if the client requested mobility tickets (RFC 8016).
    pub(super) mobility: Option<Mobility>,
    /// Connections to peers (RFC 6062).
    pub(super) connections: Vec<ConnectionId>,
    relay_ports: [Option<u32>; 2],
    pub(super) permissions: Permissions,
}

/// Why a channel cannot be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindError {
    /// The number is out of range, or the number or the peer is bound to another (400).
    Conflict,
    /// The allocation has as many channels as it may have (508).
    Full,
}

/// The parameters of a new allocation.
#[derive(Debug)]
pub(super) struct NewAllocation {
    pub(super) client: FiveTuple,
    pub(super) owner: AllocationOwner,
    pub(super) peer_transport: PeerTransport,
    pub(super) lifetime: Duration,
    pub(super) permit: QuotaPermit,
    pub(super) mobility: Option<Mobility>,
}

impl Allocation {
    pub(super) fn new(new: NewAllocation, pending: PendingAllocate) -> Self {
        Self {
            client: PackedTuple::new(new.client),
            live_until: Ticks::default(),
            limiter: RateLimiter::default(),
            peer_table: PeerTable::default(),
            user_limiter: Arc::clone(new.permit.bandwidth()),
            control: Box::new(ControlState {
                owner: new.owner,
                peer_transport: new.peer_transport,
                lifetime: new.lifetime,
                origin: (pending.responder.transaction(), None),
                pending: Some(Box::new(pending)),
                new_peers: RateLimiter::default(),
                permit: new.permit,
                mobility: new.mobility,
                connections: Vec::new(),
                relay_ports: [None; 2],
                permissions: Permissions::default(),
            }),
        }
    }

    pub(super) fn client(&self) -> FiveTuple {
        self.client.tuple()
    }

    pub(super) fn is_of(&self, client: &PackedTuple) -> bool {
        self.client == *client
    }

    pub(super) fn set_client(&mut self, client: FiveTuple) {
        self.client = PackedTuple::new(client);
    }

    /// Returns whether it is the server's own self-test, which is not logged as a client's.
    pub(super) fn is_self_test(&self) -> bool {
        self.user().strip_suffix(SELF_TEST).is_some_and(|time| time.ends_with(':'))
    }

    pub(super) fn user(&self) -> &Arc<str> {
        &self.control.owner.user
    }

    /// Counts a new peer; `false` when the allocation, or all of its user's, add peers too fast.
    pub(super) fn takes_new_peer(&mut self, limits: &AllocationLimits, now: Ticks) -> bool {
        if !self.control.new_peers.try_take(limits.new_peers, now, 1) {
            Limit::NewPeersPerSecond.reached(limits.new_peers.per_second());
            return false;
        }
        let passes = self.control.permit.new_peers().try_take(limits.user_new_peers, now, 1);
        if !passes {
            Limit::NewPeersPerUser.reached(limits.user_new_peers.per_second());
        }
        passes
    }

    /// Sets the allocation to expire `lifetime` after `now`.
    pub(super) fn refresh(&mut self, now: Ticks, lifetime: Duration) {
        self.control.lifetime = lifetime;
        self.live_until = now + lifetime;
    }

    /// Reads from both cache lines that every packet needs.
    pub(super) fn prefetch(&self) -> u64 {
        self.live_until.as_nanos() ^ self.peer_table.prefetch()
    }

    pub(super) fn live_until(&self) -> Ticks {
        self.live_until
    }

    /// Returns whether the relay sockets are open and the allocation has not expired.
    pub(super) fn is_live(&self, now: Ticks) -> bool {
        now < self.live_until
    }

    /// Returns the relay port of `family`.
    pub(super) fn relay_port(&self, family: Family) -> Option<RelayId> {
        self.control.relay_ports[family as usize].map(|relay| relay as usize)
    }

    /// Iterates over the relay ports, IPv4 first.
    pub(super) fn relay_ports(&self) -> impl Iterator<Item = RelayId> + use<> {
        self.control.relay_ports.into_iter().flatten().map(|relay| relay as usize)
    }

    pub(super) fn set_relay_port(&mut self, family: Family, relay: Option<RelayId>) {
        self.control.relay_ports[family as usize] = relay.map(|relay| relay as u32);
    }

    /// Returns whether there is a permission for the address of `peer`.
    pub(super) fn has_permission(&self, now: Ticks, peer: PeerAddr) -> bool {
        let until = match self.peer_table.get(peer) {
            Some(entry) => entry.permitted_until,
            None => self.control.permissions.expiry(peer),
        };
        now < until
    }

    /// Installs or refreshes a permission.
    pub(super) fn permit(&mut self, now: Ticks, peer: PeerAddr) {
        let until = now + PERMISSION_LIFETIME;
        self.peer_table.set_permission(peer, until);
        self.control.permissions.insert(peer, until);
    }

    /// Removes every permission for peers of `family`.
    pub(super) fn remove_permissions(&mut self, family: Family) {
        for peer in self.control.permissions.iter().filter(|peer| Family::of(peer.ip()) == family) {
            self.peer_table.set_permission(peer, Ticks::default());
        }
        self.control.permissions.remove_family(family);
    }

    /// Updates the entry of a peer.
    fn update_peer(&mut self, peer: PeerAddr, update: impl FnOnce(&mut PeerEntry)) {
        let permitted_until = self.control.permissions.expiry(peer);
        self.peer_table.update(peer, |entry| {
            entry.permitted_until = permitted_until;
            update(entry);
        });
    }

    /// Checks whether `number` may be bound to `peer`
    /// ([RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2)): neither is bound to another, nor was within
    /// [`CHANNEL_COOLDOWN`].
    pub(super) fn check_channel(
        &mut self,
        now: Ticks,
        number: u16,
        peer: PeerAddr,
        max: usize,
    ) -> Result<(), BindError> {
        if !CHANNELS.contains(&number) {
            return Err(BindError::Conflict);
        }
        self.remove_cooled_down_channels(now);
        let bound_peer = self.peer_table.by_channel(number).map(PeerEntry::peer);
        let bound_number = self.peer_table.get(peer).and_then(PeerEntry::channel);
        let channels = self.peer_table.iter().filter(|entry| entry.channel().is_some()).count();
        match (bound_peer, bound_number) {
            (None, None) if channels >= max => Err(BindError::Full),
            (None, None) => Ok(()),
            (Some(p), Some(n)) if p == peer && n == number => Ok(()),
            _ => Err(BindError::Conflict),
        }
    }

    /// Binds `number` to `peer`, or refreshes the binding. The peer was added and the channel [checked](Self::check_channel).
    pub(super) fn bind_channel(&mut self, now: Ticks, number: u16, peer: PeerAddr) {
        self.update_peer(peer, |entry| {
            entry.set_channel(Some(number));
            entry.bound_until = now + CHANNEL_LIFETIME;
        });
    }

    fn remove_cooled_down_channels(&mut self, now: Ticks) {
        let over =
            |entry: &&PeerEntry| entry.channel().is_some() && now >= entry.bound_until + CHANNEL_COOLDOWN;
        let over: Vec<_> = self.peer_table.iter().filter(over).map(PeerEntry::peer).collect();
        for peer in over {
            self.update_peer(peer, |entry| entry.set_channel(None));
        }
    }

    /// Returns the peer of a bound channel.
    pub(super) fn peer_of(&self, now: Ticks, number: u16) -> Option<PeerAddr> {
        self.peer_table.by_channel(number).filter(|entry| now < entry.bound_until).map(PeerEntry::peer)
    }

    /// Returns the channel that is bound to `peer`.
    pub(super) fn channel_of(&self, now: Ticks, peer: PeerAddr) -> Option<u16> {
        self.peer_table.get(peer).filter(|entry| now < entry.bound_until)?.channel()
    }

    /// Returns the relay port that sends to `peer`, if the client has sent there or bound a channel.
    pub(super) fn relay_to(&self, peer: PeerAddr) -> Option<RelayId> {
        self.peer_table.get(peer)?.relay()
    }

    /// Stores that `relay` sends to `peer`.
    pub(super) fn add_peer(&mut self, peer: PeerAddr, relay: RelayId, skips_port_check: bool) {
        self.update_peer(peer, |entry| {
            entry.set_relay(Some(relay));
            entry.set_skips_port_check(skips_port_check);
        });
    }

    /// Removes a peer, but for its channel, which lasts as long as the RFC promises.
    pub(super) fn remove_peer(&mut self, peer: PeerAddr) {
        self.update_peer(peer, |entry| entry.set_relay(None));
    }

    /// Iterates over the peers that the client has sent to.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerAddr> {
        self.peer_table.iter().filter(|entry| entry.relay().is_some()).map(PeerEntry::peer)
    }

    /// Returns whether the allocation has a permission for `peer`, or a channel that is bound or cooling down.
    pub(super) fn uses(&self, now: Ticks, peer: PeerAddr) -> bool {
        let bound =
            |entry: &PeerEntry| entry.channel().is_some() && now < entry.bound_until + CHANNEL_COOLDOWN;
        self.has_permission(now, peer) || self.peer_table.get(peer).is_some_and(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packet_needs_lies_in_two_cache_lines() {
        assert_eq!((size_of::<Allocation>(), std::mem::offset_of!(Allocation, peer_table)), (128, 64));
    }
}
