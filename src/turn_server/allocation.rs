//! One allocation: its relayed addresses, permissions, channels and peers, and when each of them ends.

use super::allocation_quota::QuotaPermit;
use super::auth::AllocationOwner;
use super::five_tuple::{FiveTuple, PackedTuple};
use super::machine::Limits;
use super::mobility::Mobility;
use super::peer_table::{PeerEntry, PeerTable};
use super::pending_connections::ConnectionId;
use super::permissions::{PERMISSION_LIFETIME, Permissions};
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use super::reservation::{ReservationToken, ReservedPort};
use super::response::{Responder, StunErrorCode};
use super::wire::CHANNELS;
use crate::clock::Ticks;
use crate::limits::{Limit, RateLimiter, SharedRateLimiter};
use crate::stun::TransactionId;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a channel lasts ([RFC 8656 section 12](https://www.rfc-editor.org/rfc/rfc8656#section-12)).
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// How long neither the number nor the peer of a channel that ended is bound to another (same section).
pub const CHANNEL_COOLDOWN: Duration = Duration::from_secs(300);
/// The name under which the server allocates at its start to find out whether its relay works.
const SELF_TEST: &str = "self-test";

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
pub(super) struct PendingAllocate {
    pub(super) responder: Responder,
    /// The next port, set aside with this one; it waits for its token from when the client knows it.
    pub(super) reserved: Option<(ReservationToken, ReservedPort)>,
    /// The relayed address that was asked for besides and could not be had, and why.
    pub(super) missing: Option<(Family, StunErrorCode)>,
}

/// State of one allocation. What every packet has to look at lies in two cache lines of 64 bytes: the client, the ends, the meters
/// and the link that most of its packets take.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Allocation {
    client: PackedTuple,
    /// When the lifetime runs out; the beginning of time until the relay sockets are there.
    live_until: Ticks,
    pub(super) limiter: RateLimiter,
    pub(super) peer_table: PeerTable,
    pub(super) user_limiter: Arc<SharedRateLimiter>,
    pub(super) control: Box<ControlState>,
}

/// The part of an allocation that requests alone look at.
#[derive(Debug)]
pub(super) struct ControlState {
    /// The credentials that made it, or refreshed it last.
    pub(super) owner: AllocationOwner,
    pub(super) peer_transport: PeerTransport,
    /// What LIFETIME said last.
    pub(super) lifetime: Duration,
    /// There while the sockets are not.
    pub(super) pending: Option<Box<PendingAllocate>>,
    /// The Allocate that made it, and its answer once there is one: a retransmission gets the same answer again.
    pub(super) origin: (TransactionId, Option<Box<[u8]>>),
    /// When the next new peer may come, by [`RateLimiter`]'s rule.
    pub(super) new_peers: RateLimiter,
    /// The right to be there.
    permit: QuotaPermit,
    /// There if the client asked for tickets (RFC 8016).
    pub(super) mobility: Option<Mobility>,
    /// Connections to peers (RFC 6062).
    pub(super) connections: Vec<ConnectionId>,
    relay_ports: [Option<u32>; 2],
    pub(super) permissions: Permissions,
}

/// Why a permission or a channel was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindError {
    /// The number is out of range, or number and peer are bound to others (400).
    Conflict,
    /// The allocation holds as many as it may (508).
    Full,
}

/// Who asks for an allocation, as far as the machine has established it.
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

    /// Whether it is the server's own, by which it finds out at its start that its relay works: nothing to tell anybody of.
    pub(super) fn is_self_test(&self) -> bool {
        self.user().strip_suffix(SELF_TEST).is_some_and(|time| time.ends_with(':'))
    }

    pub(super) fn user(&self) -> &Arc<str> {
        &self.control.owner.user
    }

    /// Takes a peer that is new; `false` when there were too many in too short a time, of this allocation or of all of its user's.
    pub(super) fn takes_new_peer(&mut self, limits: &Limits, now: Ticks) -> bool {
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

    /// Lets the allocation live for `lifetime` from `now` on.
    pub(super) fn renew(&mut self, now: Ticks, lifetime: Duration) {
        self.control.lifetime = lifetime;
        self.live_until = now + lifetime;
    }

    /// Reads from both of the cache lines that every packet has to look at.
    pub(super) fn prefetch(&self) -> u64 {
        self.live_until.as_nanos() ^ self.peer_table.prefetch()
    }

    pub(super) fn live_until(&self) -> Ticks {
        self.live_until
    }

    /// Returns whether the relay socket is there and the lifetime has not run out.
    pub(super) fn is_live(&self, now: Ticks) -> bool {
        now < self.live_until
    }

    /// Returns the port of the relayed address of `family`.
    pub(super) fn relay_port(&self, family: Family) -> Option<RelayId> {
        self.control.relay_ports[family as usize].map(|relay| relay as usize)
    }

    /// Lists the ports of all relayed addresses, IPv4 first.
    pub(super) fn relay_ports(&self) -> impl Iterator<Item = RelayId> + use<> {
        self.control.relay_ports.into_iter().flatten().map(|relay| relay as usize)
    }

    pub(super) fn set_relay_port(&mut self, family: Family, relay: Option<RelayId>) {
        self.control.relay_ports[family as usize] = relay.map(|relay| relay as u32);
    }

    /// Returns whether data may flow between the client and `peer`'s address.
    pub(super) fn permits(&self, now: Ticks, peer: PeerAddr) -> bool {
        let until = match self.peer_table.of(peer) {
            Some(link) => link.permitted_until,
            None => self.control.permissions.until(peer),
        };
        now < until
    }

    /// Installs or refreshes a permission.
    pub(super) fn permit(&mut self, now: Ticks, peer: PeerAddr) {
        let until = now + PERMISSION_LIFETIME;
        self.peer_table.permit(peer, until);
        self.control.permissions.install(peer, until);
    }

    /// Forgets every permission for peers of `family`.
    pub(super) fn forget_permissions(&mut self, family: Family) {
        for peer in self.control.permissions.iter().filter(|peer| Family::of(peer.ip()) == family) {
            self.peer_table.permit(peer, Ticks::default());
        }
        self.control.permissions.forget(family);
    }

    /// Changes the link to a peer.
    fn change_link(&mut self, peer: PeerAddr, change: impl FnOnce(&mut PeerEntry)) {
        let permitted_until = self.control.permissions.until(peer);
        self.peer_table.change(peer, |link| {
            link.permitted_until = permitted_until;
            change(link);
        });
    }

    /// Checks whether `number` may be bound to `peer`
    /// ([RFC 8656 section 12.2](https://www.rfc-editor.org/rfc/rfc8656#section-12.2)): neither is bound to another, nor was within the
    /// cool-down.
    pub(super) fn may_bind(
        &mut self,
        now: Ticks,
        number: u16,
        peer: PeerAddr,
        most: usize,
    ) -> Result<(), BindError> {
        if !CHANNELS.contains(&number) {
            return Err(BindError::Conflict);
        }
        self.forget_channels_after_cooldown(now);
        let bound_peer = self.peer_table.numbered(number).map(PeerEntry::peer);
        let bound_number = self.peer_table.of(peer).and_then(PeerEntry::number);
        let channels = self.peer_table.iter().filter(|link| link.number().is_some()).count();
        match (bound_peer, bound_number) {
            (None, None) if channels >= most => Err(BindError::Full),
            (None, None) => Ok(()),
            (Some(p), Some(n)) if p == peer && n == number => Ok(()),
            _ => Err(BindError::Conflict),
        }
    }

    /// Binds `number` to `peer`, which was added and [may be bound](Self::may_bind), or refreshes that.
    pub(super) fn bind(&mut self, now: Ticks, number: u16, peer: PeerAddr) {
        self.change_link(peer, |link| {
            link.set_number(Some(number));
            link.bound_until = now + CHANNEL_LIFETIME;
        });
    }

    fn forget_channels_after_cooldown(&mut self, now: Ticks) {
        let over = |link: &&PeerEntry| link.number().is_some() && now >= link.bound_until + CHANNEL_COOLDOWN;
        let over: Vec<_> = self.peer_table.iter().filter(over).map(PeerEntry::peer).collect();
        for peer in over {
            self.change_link(peer, |link| link.set_number(None));
        }
    }

    /// Returns the peer that `number` is bound to.
    pub(super) fn peer_of(&self, now: Ticks, number: u16) -> Option<PeerAddr> {
        self.peer_table.numbered(number).filter(|link| now < link.bound_until).map(PeerEntry::peer)
    }

    /// Returns the channel that `peer` is bound to.
    pub(super) fn channel_of(&self, now: Ticks, peer: PeerAddr) -> Option<u16> {
        self.peer_table.of(peer).filter(|link| now < link.bound_until)?.number()
    }

    /// Returns the relay port to `peer`, if the client has sent there or bound a channel.
    pub(super) fn relay_to(&self, peer: PeerAddr) -> Option<RelayId> {
        self.peer_table.of(peer)?.relay()
    }

    /// Notes that the client sends to `peer` through `relay`.
    pub(super) fn add_peer(&mut self, peer: PeerAddr, relay: RelayId, skips_port_check: bool) {
        self.change_link(peer, |link| {
            link.set_relay(Some(relay));
            link.set_skips_port_check(skips_port_check);
        });
    }

    /// Forgets that the client sends to `peer`; its channel stays as long as the client was promised.
    pub(super) fn forget_peer(&mut self, peer: PeerAddr) {
        self.change_link(peer, |link| link.set_relay(None));
    }

    /// Lists all peers that the client sends to.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerAddr> {
        self.peer_table.iter().filter(|link| link.relay().is_some()).map(PeerEntry::peer)
    }

    /// Returns whether the allocation can still send to `peer`: there is a permission, or a channel that may come back.
    pub(super) fn uses(&self, now: Ticks, peer: PeerAddr) -> bool {
        let bound = |link: &PeerEntry| link.number().is_some() && now < link.bound_until + CHANNEL_COOLDOWN;
        self.permits(now, peer) || self.peer_table.of(peer).is_some_and(bound)
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
