//! Relaying: ChannelData and Send indications from clients, datagrams and ICMP errors from peers.

use super::FiveTuple;
use super::allocation::PeerTransport;
use super::denial_counters::PeerOperation;
use super::forward::{
    ClientFrame, DropReason, Forward, InternalPacket, InternalRoute, IpHeader, ToClient, ToPeer,
};
use super::machine::{AllocationId, Relay};
use super::peer_table::PeerEntry;
use super::peers::AddPeerError;
use super::policy::PeerAddr;
use super::port_owners::PortOwner;
use super::relay_port::RelayId;
use crate::clock::Now;
use crate::clock::Ticks;
use crate::limits::Limit;
use crate::stun::{Builder, COMPREHENSION_OPTIONAL, Class, Message, Method, TransactionId, attr};
use crate::turn_wire::{self as wire, CHANNEL_HEADER_LEN, FrameHeader};
use rand::Rng;
use std::net::SocketAddr;
use std::ops::Range;

/// An ICMP error about a datagram that a relay port sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// The destination of the datagram.
    pub peer: SocketAddr,
    /// ICMP or ICMPv6 type, by the peer's family.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Its data, such as the next hop's MTU.
    pub data: [u8; 4],
}

impl Relay {
    /// Handles one message from a client: ChannelData, a Send indication or a request.
    ///
    /// A payload for a relayed address of this server does not leave it: the same rules apply as if the datagram were sent
    /// and received again. Both clients need a permission for each other, and both are charged.
    pub fn handle_client(
        &mut self,
        now: Now,
        client: FiveTuple,
        ip_header: IpHeader,
        frame: ClientFrame<'_>,
    ) -> Forward {
        let ticks = self.tick_base.ticks(now.mono);
        let outgoing = match frame {
            ClientFrame::ChannelData(bytes) => self.handle_channel_data(ticks, client, bytes),
            // RFC 3489 has neither relays nor the magic cookie.
            ClientFrame::Stun(message) if message.transaction().is_classic() => {
                Err(DropReason::UnexpectedMessage)
            }
            ClientFrame::Stun(message) => match (message.class(), message.method()) {
                (Class::Indication, Method::SEND) => self.handle_send_indication(ticks, client, &message),
                (Class::Request, _) => match self.handle_request(now, client, &message) {
                    Ok(()) => return Forward::Control,
                    Err(reason) => Err(reason),
                },
                _ => Err(DropReason::UnexpectedMessage),
            },
        };
        let forward = outgoing.and_then(|outgoing| {
            let outgoing = ToPeer { ip_header: ip_header.forwarded()?, ..outgoing };
            self.counters.bytes_to_peers += outgoing.payload.len() as u64;
            self.forward_to_peer(ticks, outgoing)
        });
        forward.unwrap_or_else(|reason| {
            self.drops.increment(reason);
            Forward::Drop(reason)
        })
    }

    /// Handles one datagram that arrived at a relay port
    /// ([RFC 8656 section 11.3](https://www.rfc-editor.org/rfc/rfc8656#section-11.3)).
    ///
    /// # Errors
    /// [`DropReason`] when nothing is sent to the client; the drop is counted.
    pub fn handle_peer(
        &mut self,
        now: Now,
        relay: RelayId,
        from: SocketAddr,
        ip_header: IpHeader,
        payload: &[u8],
    ) -> Result<ToClient, DropReason> {
        let ticks = self.tick_base.ticks(now.mono);
        let forward = ip_header.forwarded().and_then(|ip_header| {
            self.forward_to_client(ticks, relay, self.local_peer(from), 0..payload.len(), ip_header)
        });
        forward.inspect_err(|reason| self.drops.increment(*reason))
    }

    /// Handles the payload of an [`InternalPacket`] that another worker's relay returned. The relay port may have been closed
    /// meanwhile and its number reused.
    ///
    /// # Errors
    /// [`DropReason`] when nothing is sent to the client; the drop is counted.
    pub fn handle_internal(
        &mut self,
        now: Now,
        route: InternalRoute,
        ip_header: IpHeader,
        payload: &[u8],
    ) -> Result<ToClient, DropReason> {
        let ticks = self.tick_base.ticks(now.mono);
        let forward = ip_header
            .forwarded()
            .and_then(|ip_header| self.forward_within_relay(ticks, route, 0..payload.len(), ip_header));
        forward.inspect_err(|reason| self.drops.increment(*reason))
    }

    /// Handles an ICMP error about a datagram that a relay port sent: returns the Data indication for the client
    /// ([RFC 8656 section 11.5](https://www.rfc-editor.org/rfc/rfc8656#section-11.5)), if it permits the peer.
    pub fn handle_peer_error(&mut self, now: Now, relay: RelayId, error: IcmpError) -> Option<ToClient> {
        let peer = self.local_peer(error.peer);
        let id = self.relays.get(relay)?.owner;
        let allocation = self.allocations.get(id)?;
        let ticks = self.tick_base.ticks(now.mono);
        allocation.relay_to(peer)?;
        if !allocation.is_live(ticks) || !allocation.has_permission(ticks, peer) {
            return None;
        }
        let client = allocation.client();
        let advertised = self.shared.ports.advertised(peer.socket_addr());
        let header = icmp_indication(advertised, &error, self.rng.random())?;
        self.counters.icmp_errors += 1;
        Some(ToClient { client, header, payload: 0..0, padding: 0, ip_header: IpHeader::default() })
    }

    /// Returns whether `bytes`, although they begin like a signalling message, are ChannelData of a channel that `client` has
    /// bound.
    pub(crate) fn is_channel_data(&self, now: Now, client: FiveTuple, bytes: &[u8]) -> bool {
        let bound = || {
            let (channel, _) = wire::parse_channel_data(bytes)?;
            self.allocations
                .get(self.allocation_of(client)?)?
                .peer_of(self.tick_base.ticks(now.mono), channel)
        };
        bound().is_some()
    }

    /// Follows [RFC 8656 section 12.6](https://www.rfc-editor.org/rfc/rfc8656#section-12.6).
    fn handle_channel_data(
        &mut self,
        now: Ticks,
        client: FiveTuple,
        bytes: &[u8],
    ) -> Result<ToPeer, DropReason> {
        // The length field must not exceed the message.
        let (channel, payload) = wire::parse_channel_data(bytes).ok_or(DropReason::Malformed)?;
        // The channel must be bound on the client's allocation.
        let id = self.allocation_of(client).ok_or(DropReason::NoAllocation)?;
        let peer = self.allocations[id].peer_of(now, channel).ok_or(DropReason::UnboundChannel)?;
        // The payload goes to the bound peer.
        self.authorize_payload(now, id, peer, CHANNEL_HEADER_LEN..CHANNEL_HEADER_LEN + payload.len())
    }

    /// Follows [RFC 8656 section 11.2](https://www.rfc-editor.org/rfc/rfc8656#section-11.2).
    fn handle_send_indication(
        &mut self,
        now: Ticks,
        client: FiveTuple,
        message: &Message<'_>,
    ) -> Result<ToPeer, DropReason> {
        let attributes = message.unverified();
        let (mut peer, mut payload, mut dont_fragment) = (None, None, false);
        for (kind, start, value) in attributes.entries() {
            match kind {
                // Of several attributes of a type the first one counts.
                attr::XOR_PEER_ADDRESS if peer.is_none() => {
                    peer = Some(attributes.decode_xor_address(value).map_err(|_| DropReason::Malformed)?);
                }
                attr::DATA if payload.is_none() => payload = Some(start..start + value.len()),
                attr::DONT_FRAGMENT => dont_fragment = true,
                attr::XOR_PEER_ADDRESS | attr::DATA | COMPREHENSION_OPTIONAL.. => {}
                // Unknown comprehension-required attributes: the indication is dropped.
                _ => return Err(DropReason::Malformed),
            }
        }
        // XOR-PEER-ADDRESS and DATA must be present.
        let (peer, payload) = peer.zip(payload).ok_or(DropReason::Malformed)?;
        // The 5-tuple must have an allocation, and that a permission for the peer.
        let id = self.allocation_of(client).ok_or(DropReason::NoAllocation)?;
        let outgoing = self.authorize_payload(now, id, self.local_peer(peer), payload)?;
        Ok(ToPeer { dont_fragment, ..outgoing })
    }

    /// Checks lifetime, permission, policy and bandwidth of a payload for `peer`, and finds the relay port that sends it.
    fn authorize_payload(
        &mut self,
        now: Ticks,
        id: AllocationId,
        peer: PeerAddr,
        payload: Range<usize>,
    ) -> Result<ToPeer, DropReason> {
        let allocation = &self.allocations[id];
        if !allocation.is_live(now) {
            return Err(DropReason::NoAllocation);
        }
        if peer.port() == 0 {
            return Err(DropReason::UnreachablePeer);
        }
        let known = allocation.peer_table.get(peer).filter(|entry| entry.skips_port_check());
        let relay = match known.and_then(|entry| Some((entry.relay()?, entry.permitted_until))) {
            Some((relay, permitted_until)) if now < permitted_until => relay,
            Some(_) => return Err(DropReason::NoPermission),
            None => self.relay_port_for(now, id, peer)?,
        };
        self.charge_bandwidth(now, id, payload.len())?;
        let peer = peer.socket_addr();
        Ok(ToPeer { relay, peer, payload, ip_header: IpHeader::default(), dont_fragment: false })
    }

    /// Returns the relay port for a peer that is new to the allocation, or whose port the policy checks.
    fn relay_port_for(
        &mut self,
        now: Ticks,
        id: AllocationId,
        peer: PeerAddr,
    ) -> Result<RelayId, DropReason> {
        let allocation = &self.allocations[id];
        if !allocation.has_permission(now, peer) {
            return Err(DropReason::NoPermission);
        }
        if allocation.control.peer_transport == PeerTransport::Tcp {
            return Err(DropReason::UnreachablePeer);
        }
        self.check_peer_port(now, PeerOperation::Send, peer)?;
        self.add_peer(now, id, peer).map_err(|error| match error {
            AddPeerError::Family => DropReason::UnreachablePeer,
            AddPeerError::TooMany => DropReason::NewPeerRate,
        })
    }

    /// Checks a permitted peer's port where the policy depends on it: at addresses of this host.
    fn check_peer_port(
        &mut self,
        now: Ticks,
        operation: PeerOperation,
        peer: PeerAddr,
    ) -> Result<(), DropReason> {
        if !self.shared.policy.checks_ports(peer.ip()) {
            return Ok(());
        }
        self.shared.policy.check(peer).map_err(|denial| {
            self.denials.record(now, operation, peer, denial);
            DropReason::PeerDenied
        })
    }

    fn charge_bandwidth(&mut self, now: Ticks, id: AllocationId, bytes: usize) -> Result<(), DropReason> {
        let limits = &self.shared.limits;
        let allocation = &mut self.allocations[id];
        let (limit, rate) = if !allocation.limiter.try_take(limits.allocation_bandwidth, now, bytes) {
            (Limit::BandwidthPerAllocation, limits.allocation_bandwidth)
        } else if !allocation.user_limiter.try_take(limits.user_bandwidth, now, bytes) {
            (Limit::BandwidthPerUser, limits.user_bandwidth)
        } else {
            return Ok(());
        };
        limit.reached(rate.per_second());
        Err(DropReason::Bandwidth)
    }

    /// Finds out whether the peer is a relayed address of this server, of this relay or of another worker's.
    fn forward_to_peer(&mut self, now: Ticks, outgoing: ToPeer) -> Result<Forward, DropReason> {
        let Some(PortOwner { worker, relay }) = self.shared.ports.owner(outgoing.peer) else {
            // A port that takes only connections or waits for its Allocate: another program may listen there.
            let is_leased = self.shared.ports.is_leased(outgoing.peer);
            return if is_leased { Err(DropReason::ClosedRelayPort) } else { Ok(Forward::Peer(outgoing)) };
        };
        let Some(port) = self.relays.get(outgoing.relay) else { return Ok(Forward::Peer(outgoing)) };
        let route = InternalRoute { from: port.address(), to: outgoing.peer, relay };
        let ToPeer { ip_header, payload, .. } = outgoing;
        if worker != self.shared.worker {
            return Ok(Forward::OtherWorker(InternalPacket { worker, route, ip_header, payload }));
        }
        self.forward_within_relay(now, route, payload, ip_header.forwarded()?).map(Forward::LocalClient)
    }

    fn forward_within_relay(
        &mut self,
        now: Ticks,
        route: InternalRoute,
        payload: Range<usize>,
        ip_header: IpHeader,
    ) -> Result<ToClient, DropReason> {
        let InternalRoute { from, to, relay } = route;
        let port = self.relays.get(relay).ok_or(DropReason::ClosedRelayPort)?;
        if port.address() != to || !port.serves(PeerTransport::Udp) {
            return Err(DropReason::ClosedRelayPort);
        }
        self.forward_to_client(now, relay, PeerAddr::new(from), payload, ip_header)
    }

    /// Follows [RFC 8656 section 11.3](https://www.rfc-editor.org/rfc/rfc8656#section-11.3), and section 12.7 for channels.
    fn forward_to_client(
        &mut self,
        now: Ticks,
        relay: RelayId,
        peer: PeerAddr,
        payload: Range<usize>,
        ip_header: IpHeader,
    ) -> Result<ToClient, DropReason> {
        // The relay port belongs to one allocation.
        let id = self.relays.get(relay).ok_or(DropReason::NoAllocation)?.owner;
        let allocation = self.allocations.get(id).ok_or(DropReason::NoAllocation)?;
        if !allocation.is_live(now) {
            return Err(DropReason::NoAllocation);
        }
        // The allocation must have a permission for the peer.
        if !allocation.has_permission(now, peer) {
            return Err(DropReason::NoPermission);
        }
        if !allocation.peer_table.get(peer).is_some_and(PeerEntry::skips_port_check) {
            self.check_peer_port(now, PeerOperation::Send, peer)?;
        }
        self.charge_bandwidth(now, id, payload.len())?;
        // ChannelData if a channel is bound to the peer, else a Data indication.
        let length = u16::try_from(payload.len()).map_err(|_| DropReason::PayloadTooLong)?;
        let allocation = &self.allocations[id];
        let client = allocation.client();
        let (header, is_padded) = match allocation.channel_of(now, peer) {
            Some(channel) => (FrameHeader::channel_data(channel, length), client.transport.is_stream()),
            None => {
                let advertised = self.shared.ports.advertised(peer.socket_addr());
                let header = FrameHeader::data_indication(advertised, length, self.rng.random());
                (header.ok_or(DropReason::PayloadTooLong)?, true)
            }
        };
        let padding = if is_padded { payload.len().next_multiple_of(4) - payload.len() } else { 0 };
        self.counters.bytes_to_clients += payload.len() as u64;
        Ok(ToClient { client, header, payload, padding, ip_header })
    }
}

/// Makes the Data indication of an ICMP error about `peer`, which has no payload
/// ([RFC 8656 section 18.13](https://www.rfc-editor.org/rfc/rfc8656#section-18.13)).
fn icmp_indication(peer: SocketAddr, error: &IcmpError, transaction: [u8; 12]) -> Option<FrameHeader> {
    // 16 reserved bits, 7 of type, 9 of code.
    let type_and_code = (u16::from(error.kind) << 9) | u16::from(error.code);
    let value = [&[0, 0], &type_and_code.to_be_bytes()[..], &error.data].concat();
    let message = Builder::new(Class::Indication, Method::DATA, TransactionId::new(transaction))
        .xor_address(attr::XOR_PEER_ADDRESS, peer)
        .attribute(attr::ICMP, &value)
        .finish();
    FrameHeader::whole(&message)
}
