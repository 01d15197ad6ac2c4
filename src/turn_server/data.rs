//! The data path: what passes between clients and peers, and by which allocation.

use super::FiveTuple;
use super::allocation::{Family, PeerTransport};
use super::denials::Way;
use super::links::Link;
use super::machine::{AllocationId, Marks, Passage, Relay, ToClient, ToPeer};
use super::moment::Moment;
use super::policy::PeerAddr;
use super::relay_port::{RelayId, Sharing};
use super::wire::{self, Header};
use crate::clock::Now;
use crate::stun::{COMPREHENSION_OPTIONAL, Class, Message, Method, attr};
use rand::Rng;
use std::net::SocketAddr;

/// An ICMP error about a datagram that a relay port sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerError {
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
            self.allocations.get(self.allocation_of(client)?)?.peer_of(self.epoch.moment(now.mono), channel)
        };
        bound().is_some()
    }

    pub(super) fn channel_data<'a>(
        &mut self,
        now: Moment,
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
        now: Moment,
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
        let forward = self.data_for_peer(now, id, self.peer_named(peer), payload)?;
        Some(ToPeer { dont_fragment, ..forward })
    }

    fn data_for_peer<'a>(
        &mut self,
        now: Moment,
        id: AllocationId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToPeer<'a>> {
        let allocation = self.allocations.get(id)?;
        if !allocation.is_live(now) || peer.port() == 0 {
            return None;
        }
        let known = allocation.links.of(peer).filter(|link| link.any_port_passes());
        let relay = match known.and_then(|link| Some((link.relay()?, link.permitted_until))) {
            Some((relay, permitted_until)) => (now < permitted_until).then_some(relay)?,
            None => self.reach(now, id, peer)?,
        };
        self.within_bandwidth(now, id, payload.len()).then_some(())?;
        if let Some((_, own)) = ice_fragments(payload)
            && self.relays[relay].sharing == Sharing::Shared
        {
            self.allocations[id].learn_fragment(own);
        }
        let peer = peer.socket_addr();
        Some(ToPeer { sender: id, relay, peer, payload, marks: Marks::default(), dont_fragment: false })
    }

    /// Returns the port to a peer that the allocation has not talked to, or whose port matters, if it may.
    fn reach(&mut self, now: Moment, id: AllocationId, peer: PeerAddr) -> Option<RelayId> {
        let allocation = &self.allocations[id];
        if !allocation.permits(now, peer) {
            return None;
        }
        if allocation.relay_to(peer).is_none() && allocation.cold.peer_transport == PeerTransport::Tcp {
            return None;
        }
        self.port_passes(now, Way::Send, peer).then_some(())?;
        self.claim(now, id, peer).ok()
    }

    /// Returns whether a peer with a permission may use its port: only at own addresses the port matters.
    fn port_passes(&mut self, now: Moment, way: Way, peer: PeerAddr) -> bool {
        if !self.shared.policy.judges_ports(peer.ip()) {
            return true;
        }
        let verdict = self.shared.policy.check(peer);
        if let Err(denied) = verdict {
            self.denials.note(now, way, peer, denied);
        }
        verdict.is_ok()
    }

    fn within_bandwidth(&mut self, now: Moment, id: AllocationId, bytes: usize) -> bool {
        let limits = &self.shared.limits;
        let allocation = &mut self.allocations[id];
        let within = allocation.meter.take(limits.allocation_bandwidth, now, bytes)
            && allocation.user_meter.take(limits.user_bandwidth, now, bytes);
        self.counters.over_bandwidth += u64::from(!within);
        within
    }

    pub(super) fn data_for_client<'a>(
        &mut self,
        now: Moment,
        relay: RelayId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let id = self.tenant_for(now, relay, peer, payload)?;
        self.data_to_tenant(now, id, peer, payload)
    }

    /// The same for what a client of this server sends.
    pub(super) fn data_from_within<'a>(
        &mut self,
        now: Moment,
        relay: RelayId,
        passage: Passage,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let fragment = ice_fragments(payload).map(|(receiver, _)| receiver);
        let id = self.partner_for(now, relay, passage, fragment)?;
        self.data_to_tenant(now, id, passage.way.from, payload)
    }

    fn data_to_tenant<'a>(
        &mut self,
        now: Moment,
        id: AllocationId,
        peer: PeerAddr,
        payload: &'a [u8],
    ) -> Option<ToClient<'a>> {
        let allocation = self.allocations.get(id)?;
        if !allocation.is_live(now) || !allocation.permits(now, peer) {
            return None;
        }
        if !allocation.links.of(peer).is_some_and(Link::any_port_passes) {
            self.port_passes(now, Way::Send, peer).then_some(())?;
        }
        self.within_bandwidth(now, id, payload.len()).then_some(())?;
        let length = u16::try_from(payload.len()).ok()?;
        let allocation = &self.allocations[id];
        let client = allocation.client();
        let (header, must_pad) = match allocation.channel_of(now, peer) {
            Some(channel) => (Header::channel_data(channel, length), client.transport.is_stream()),
            None => {
                let named = self.shared.ports.advertised(peer.socket_addr());
                (Header::data_indication(named, length, self.rng.random())?, true)
            }
        };
        let padding = if must_pad { payload.len().next_multiple_of(4) - payload.len() } else { 0 };
        Some(ToClient { client, header, payload, padding, marks: Marks::default() })
    }

    /// Says whose peer this is: the one that talks to that very transport address, else the only one that permits its IP address,
    /// else the one that an ICE connectivity check names.
    fn tenant_for(
        &mut self,
        now: Moment,
        relay: RelayId,
        peer: PeerAddr,
        payload: &[u8],
    ) -> Option<AllocationId> {
        if let Some(id) = self.claimant(relay, peer) {
            return Some(id);
        }
        let port = self.relays.get(relay)?;
        let may_be_meant = |id: &AllocationId| {
            self.allocations.get(*id).is_some_and(|a| a.is_live(now) && a.permits(now, peer))
        };
        let mut meant = self.permitting(relay, peer).filter(may_be_meant);
        let (first, second) = (meant.next()?, meant.next());
        if second.is_none() {
            drop(meant);
            if port.tenants > 1 && self.allocations[first].relay_to(peer).is_none() {
                // From now on it stays with this tenant, even when another one gets a permission for the address.
                let _ = self.claim(now, first, peer);
            }
            return Some(first);
        }
        let named = ice_fragments(payload).and_then(|(receiver, _)| {
            let known = |id: &AllocationId| self.allocations[*id].is_known_as(receiver);
            self.permitting(relay, peer).filter(may_be_meant).find(known)
        });
        drop(meant);
        self.counters.ambiguous += u64::from(named.is_none());
        named
    }

    /// Handles an ICMP error about a datagram that a relay port sent: the client is told in a Data indication
    /// ([RFC 8656 section 11.5](https://www.rfc-editor.org/rfc/rfc8656#section-11.5)).
    pub fn handle_peer_error(
        &mut self,
        now: Now,
        relay: RelayId,
        error: PeerError,
    ) -> Option<ToClient<'static>> {
        let peer = self.peer_named(error.peer);
        let id = self.claimant(relay, peer)?;
        let allocation = self.allocations.get(id)?;
        let at = self.epoch.moment(now.mono);
        if !allocation.is_live(at) || !allocation.permits(at, peer) {
            return None;
        }
        let client = allocation.client();
        let named = self.shared.ports.advertised(peer.socket_addr());
        let header = Header::icmp_indication(named, &error, self.rng.random())?;
        self.counters.icmp += 1;
        Some(ToClient { client, header, payload: &[], padding: 0, marks: Marks::default() })
    }

    /// Returns whether the allocation has, or now gets, a relayed address of the peer's family.
    pub(super) fn reaches(&mut self, id: AllocationId, family: Family) -> bool {
        if self.allocations[id].home(family).is_some() {
            return true;
        }
        let alone = self.allocations[id].homes().any(|relay| match self.relays[relay].sharing {
            Sharing::Shared => false,
            Sharing::Single => self.shared.limits.shared_ports > 0,
            Sharing::Connections => true,
        });
        self.shared.features.add_family && !alone && self.move_in(id, family)
    }
}

/// Returns receiver's and sender's user fragments of an ICE connectivity check
/// ([RFC 8445 section 7.2.2](https://www.rfc-editor.org/rfc/rfc8445#section-7.2.2)): USERNAME is `receiver:sender`.
fn ice_fragments(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    payload.starts_with(&[0, 1]).then_some(())?;
    let message = Message::parse(payload).ok()?;
    if (message.class(), message.method()) != (Class::Request, Method::BINDING) {
        return None;
    }
    let name = message.unverified().get(attr::USERNAME)?;
    let colon = name.iter().position(|byte| *byte == b':')?;
    Some((&name[..colon], &name[colon + 1..]))
}
