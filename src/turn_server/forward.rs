//! What the relay decides about one packet: where its payload goes, or why it is dropped.

use super::FiveTuple;
use super::relay_port::RelayId;
use crate::net::demux::{self, DatagramKind};
use crate::stun::Message;
use crate::turn_wire::FrameHeader;
use std::net::SocketAddr;
use std::ops::Range;

/// One message from a client, classified by its first byte.
#[derive(Debug, Clone, Copy)]
pub enum ClientFrame<'a> {
    /// A STUN message.
    Stun(Message<'a>),
    /// A ChannelData message, not parsed yet.
    ChannelData(&'a [u8]),
}

impl<'a> ClientFrame<'a> {
    /// Classifies a datagram, or a frame of a stream; `None` when it is neither a well-formed STUN message nor ChannelData.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match demux::datagram(bytes) {
            DatagramKind::Stun => Message::parse(bytes).ok().map(Self::Stun),
            DatagramKind::ChannelData | DatagramKind::Signaling => Some(Self::ChannelData(bytes)),
            _ => None,
        }
    }
}

/// The fields of an IP header that the relay preserves
/// ([RFC 8656 section 14](https://www.rfc-editor.org/rfc/rfc8656#section-14)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct IpHeader {
    /// Time to live or hop limit; 0 when unknown, as on streams.
    pub ttl: u8,
    /// Differentiated services and ECN.
    pub tos: u8,
}

impl IpHeader {
    /// Returns the fields of the outgoing packet, with the TTL decremented.
    pub(super) fn forwarded(self) -> Result<Self, DropReason> {
        match self.ttl {
            0 => Ok(self),
            1 => Err(DropReason::HopLimit),
            ttl => Ok(Self { ttl: ttl - 1, ..self }),
        }
    }
}

/// A payload for a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToPeer {
    /// The relay port whose socket sends it.
    pub relay: RelayId,
    /// The peer.
    pub peer: SocketAddr,
    /// The range of the payload in the frame that was handled.
    pub payload: Range<usize>,
    /// For the IP header.
    pub ip_header: IpHeader,
    /// Whether routers must not fragment it (DONT-FRAGMENT).
    pub dont_fragment: bool,
}

/// A payload for a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToClient {
    /// The client.
    pub client: FiveTuple,
    /// The bytes in front of the payload.
    pub header: FrameHeader,
    /// The range of the payload in the frame or datagram that was handled.
    pub payload: Range<usize>,
    /// Zero bytes after the payload.
    pub padding: usize,
    /// For the IP header.
    pub ip_header: IpHeader,
}

/// The source and destination of a payload between two clients of this server: their local relayed addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InternalRoute {
    /// The sender's relayed address.
    pub from: SocketAddr,
    /// The receiver's relayed address.
    pub to: SocketAddr,
    /// The receiver's relay port, as its worker's relay names it.
    pub relay: RelayId,
}

/// A payload for another worker's relay, which handles it with [`Relay::handle_internal`](super::Relay::handle_internal).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InternalPacket {
    /// The worker.
    pub worker: u16,
    /// The source and destination.
    pub route: InternalRoute,
    /// For the IP header.
    pub ip_header: IpHeader,
    /// The range of the payload in the frame that was handled.
    pub payload: Range<usize>,
}

/// What becomes of one message from a client. Payloads are ranges of that message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Forward {
    /// Send the payload to a peer from a relay port's socket.
    Peer(ToPeer),
    /// Send the payload to a client of this relay: the peer is that client's relayed address.
    LocalClient(ToClient),
    /// Pass the payload to another worker's relay: the peer is a relayed address of one of its clients.
    OtherWorker(InternalPacket),
    /// Nothing to forward: the message was a request. Its response comes from [`Relay::poll_output`](super::Relay::poll_output).
    Control,
    /// Nothing to forward: the message was dropped and counted.
    Drop(DropReason),
}

/// Defines [`DropReason`] and [`DropCounters`] with one variant, one field and one name for each reason.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident => $name:ident,)+) => {
        /// Why the relay dropped a packet.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[doc = $doc])+ $reason,)+
        }

        impl DropReason {
            /// Returns the reason's name, for metrics and logs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => stringify!($name),)+
                }
            }
        }

        /// How many packets a relay dropped, by [`DropReason`].
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct DropCounters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl DropCounters {
            pub(super) fn increment(&mut self, reason: DropReason) {
                match reason {
                    $(DropReason::$reason => self.$name += 1,)+
                }
            }

            /// Iterates over the reasons' names and counts.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }

            /// Returns the sum over all reasons.
            #[must_use]
            pub fn total(&self) -> u64 {
                self.iter().map(|(_, count)| count).sum()
            }
        }
    };
}

drop_reasons! {
    /// The ChannelData message or the attributes of the Send indication are malformed.
    Malformed => malformed,
    /// A STUN message that a TURN server does not process: a response, an unknown method or indication, no magic cookie.
    UnexpectedMessage => unexpected_message,
    /// The client has no allocation, or the relay port no owner, or the allocation has expired.
    NoAllocation => no_allocation,
    /// The channel number is not bound, or the binding has expired.
    UnboundChannel => unbound_channel,
    /// The allocation has no permission for the peer's address.
    NoPermission => no_permission,
    /// The peer policy denies the peer's port.
    PeerDenied => peer_denied,
    /// The peer has port 0, or the allocation has no relayed address that sends datagrams to the peer's family.
    UnreachablePeer => unreachable_peer,
    /// The allocation or its user sends to new peers faster than allowed.
    NewPeerRate => new_peer_rate,
    /// The bandwidth of the allocation or of its user is used up.
    Bandwidth => bandwidth,
    /// The TTL or hop limit is exhausted.
    HopLimit => hop_limit,
    /// The payload does not fit into the message for the client.
    PayloadTooLong => payload_too_long,
    /// The peer is a relayed address of this server that is not open for datagrams.
    ClosedRelayPort => closed_relay_port,
    /// The request needs a user look-up, and too many requests wait for one.
    LookupQueueFull => lookup_queue_full,
    /// The request needed a user look-up that failed.
    LookupFailed => lookup_failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_drop_reason_has_its_own_counter_and_name() {
        let mut counters = DropCounters::default();
        counters.increment(DropReason::NoPermission);
        counters.increment(DropReason::Bandwidth);
        counters.increment(DropReason::Bandwidth);
        assert_eq!((counters.no_permission, counters.bandwidth, counters.total()), (1, 2, 3));
        let named: Vec<_> = counters.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(named, [("no_permission", 1), ("bandwidth", 2)]);
        assert_eq!(DropReason::NoPermission.name(), "no_permission");
    }

    #[test]
    fn a_client_frame_is_told_apart_by_its_first_byte() {
        assert!(matches!(ClientFrame::parse(&[0x40, 0, 0, 0]), Some(ClientFrame::ChannelData(_))));
        assert!(matches!(ClientFrame::parse(b"{\0\0\0"), Some(ClientFrame::ChannelData(_))));
        let request = [&[0, 1, 0, 0][..], &[0x21, 0x12, 0xA4, 0x42], &[7; 12]].concat();
        assert!(matches!(ClientFrame::parse(&request), Some(ClientFrame::Stun(_))));
        assert!(ClientFrame::parse(&request[..19]).is_none());
        assert!(ClientFrame::parse(&[0x16, 0xFE, 0xFD]).is_none());
        assert!(ClientFrame::parse(&[]).is_none());
    }

    #[test]
    fn a_packet_whose_hop_limit_is_used_up_is_not_forwarded() {
        let with = |ttl| IpHeader { ttl, tos: 3 }.forwarded().map(|header| header.ttl);
        assert_eq!([with(0), with(1), with(64)], [Ok(0), Err(DropReason::HopLimit), Ok(63)]);
    }
}
