//! The data path: what passes between clients and peers, and by which allocation.

use super::FiveTuple;
use super::allocation::PeerTransport;
use super::denial_counters::PeerOperation;
use super::machine::{AllocationId, IpHeader, Relay, ToClient, ToPeer};
use super::peer_table::PeerEntry;
use super::policy::PeerAddr;
use super::relay_port::RelayId;
use super::wire::{self, FrameHeader};
use crate::clock::Now;
use crate::clock::Ticks;
use crate::limits::Limit;
use crate::stun::{COMPREHENSION_OPTIONAL, Message, attr};
use rand::Rng;
use std::net::SocketAddr;

/// An ICMP error about a datagram that a relay port sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram went.
    pub peer: SocketAddr,
    /// ICMP or ICMPv6 type, by the peer's family.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Its data, such as the next hop's MTU.
    pub data: [u8; 4],
}

impl Relay {
    /// Returns whether `bytes`, though they begin like a signalling message, are ChannelData of a channel `client` has bound.
    #[must_use]
    pub fn is_channel_data(&self, now: Now, client: FiveTuple, bytes: &[u8]) -> bool {
        let bound = || {
            let (channel, _) = wire::parse_channel_data(bytes)?;
            self.allocations
                .get(self.allocation_of(client)?)?
                .peer_of(self.tick_base.ticks(now.mono), channel)
        };
        bound().is_some()
    }

    pub(super) fn channel_data<'a>(
        &mut self,
        now: Ticks,
        client: FiveTuple,
        bytes: &'a [u8],
    ) -> Option<ToPeer<'a>> {
        let (channel, payload) = wire::parse_channel_data(bytes)?;
        let id = self.allocation_of(client)?;
        let peer = self.allocations.get(id)?.peer_of(now, channel)?;
        self.data_for_peer(now, id, peer, payload)
    }

    pub(super) fn send_indication<'a>(
        &mut self,
        now: Ticks,
        client: FiveTuple,
        message: &Message<'a>,
    ) -> Option<ToPeer<'a>> {
        let attributes = message.unverified();
        let (mut payload, mut dont_fragment) = (None, false);
        for (kind, value) in attributes.iter() {
            match kind {
                attr::DATA => payload = payload.or(Some(value)),
                attr::DONT_FRAGMENT => dont_fragment = true,
                attr::XOR_PEER_ADDRESS | COMPREHENSION_OPTIONAL.. => {}
                _ => return None,
            }
        }
        let peer = attributes.xor_address(attr::XOR_PEER_ADDRESS).ok()??;
        let payload = payload?;
        let id = self.allocation_of(client)?;
        let forward = self.data_for_peer(now, id, self.local_peer(peer), payload)?;
        Some(ToPeer { dont_fragment, ..forward })
    }

    fn data_for_peer<'a>(
        &mut self,
        now: Ticks,
        id: AllocationId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToPeer<'a>> {
        let allocation = self.allocations.get(id)?;
        if !allocation.is_live(now) || peer.port() == 0 {
            return None;
        }
        let known = allocation.peer_table.of(peer).filter(|link| link.skips_port_check());
        let relay = match known.and_then(|link| Some((link.relay()?, link.permitted_until))) {
            Some((relay, permitted_until)) => (now < permitted_until).then_some(relay)?,
            None => self.relay_port_for(now, id, peer)?,
        };
        self.within_bandwidth(now, id, payload.len()).then_some(())?;
        let peer = peer.socket_addr();
        Some(ToPeer { relay, peer, payload, marks: IpHeader::default(), dont_fragment: false })
    }

    /// Returns the port to a peer that the allocation has not talked to, or whose port matters, if it may.
    fn relay_port_for(&mut self, now: Ticks, id: AllocationId, peer: PeerAddr) -> Option<RelayId> {
        let allocation = &self.allocations[id];
        if !allocation.permits(now, peer) {
            return None;
        }
        if allocation.control.peer_transport == PeerTransport::Tcp {
            return None;
        }
        self.check_peer_port(now, PeerOperation::Send, peer).then_some(())?;
        self.add_peer(now, id, peer).ok()
    }

    /// Returns whether a peer with a permission may use its port: only at own addresses the port matters.
    fn check_peer_port(&mut self, now: Ticks, operation: PeerOperation, peer: PeerAddr) -> bool {
        if !self.shared.policy.checks_ports(peer.ip()) {
            return true;
        }
        let verdict = self.shared.policy.check(peer);
        if let Err(denied) = verdict {
            self.denials.note(now, operation, peer, denied);
        }
        verdict.is_ok()
    }

    fn within_bandwidth(&mut self, now: Ticks, id: AllocationId, bytes: usize) -> bool {
        let limits = &self.shared.limits;
        let allocation = &mut self.allocations[id];
        let (limit, rate) = if !allocation.limiter.try_take(limits.allocation_bandwidth, now, bytes) {
            (Limit::BandwidthPerAllocation, limits.allocation_bandwidth)
        } else if !allocation.user_limiter.try_take(limits.user_bandwidth, now, bytes) {
            (Limit::BandwidthPerUser, limits.user_bandwidth)
        } else {
            return true;
        };
        limit.reached(rate.per_second());
        self.counters.over_bandwidth += 1;
        false
    }

    pub(super) fn data_for_client<'a>(
        &mut self,
        now: Ticks,
        relay: RelayId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let id = self.relays.get(relay)?.owner;
        let allocation = self.allocations.get(id)?;
        if !allocation.is_live(now) || !allocation.permits(now, peer) {
            return None;
        }
        if !allocation.peer_table.of(peer).is_some_and(PeerEntry::skips_port_check) {
            self.check_peer_port(now, PeerOperation::Send, peer).then_some(())?;
        }
        self.within_bandwidth(now, id, payload.len()).then_some(())?;
        let length = u16::try_from(payload.len()).ok()?;
        let allocation = &self.allocations[id];
        let client = allocation.client();
        let (header, must_pad) = match allocation.channel_of(now, peer) {
            Some(channel) => (FrameHeader::channel_data(channel, length), client.transport.is_stream()),
            None => {
                let named = self.shared.ports.advertised(peer.socket_addr());
                (FrameHeader::data_indication(named, length, self.rng.random())?, true)
            }
        };
        let padding = if must_pad { payload.len().next_multiple_of(4) - payload.len() } else { 0 };
        Some(ToClient { client, header, payload, padding, marks: IpHeader::default() })
    }

    /// Handles an ICMP error about a datagram that a relay port sent: the client is told in a Data indication
    /// ([RFC 8656 section 11.5](https://www.rfc-editor.org/rfc/rfc8656#section-11.5)).
    pub fn handle_peer_error(
        &mut self,
        now: Now,
        relay: RelayId,
        error: IcmpError,
    ) -> Option<ToClient<'static>> {
        let peer = self.local_peer(error.peer);
        let id = self.relays.get(relay)?.owner;
        let allocation = self.allocations.get(id)?;
        let at = self.tick_base.ticks(now.mono);
        allocation.relay_to(peer)?;
        if !allocation.is_live(at) || !allocation.permits(at, peer) {
            return None;
        }
        let client = allocation.client();
        let named = self.shared.ports.advertised(peer.socket_addr());
        let header = FrameHeader::icmp_indication(named, &error, self.rng.random())?;
        self.counters.icmp += 1;
        Some(ToClient { client, header, payload: &[], padding: 0, marks: IpHeader::default() })
    }
}
