//! The members of SWIM: their identities, their packets, and which parts of a packet are passed on.
//!
//! An identity is an address and the epoch that its owner has signed in its record. SWIM takes "down" for final within one identity, so a
//! member whom others call down raises its epoch. Only an epoch that a verified record has is passed on to SWIM: nobody else can raise it, and
//! "down" under an epoch of the future is not believed.

use super::map::Map;
use super::node_id::NodeId;
use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Member, Message, State};

/// The identity of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MemberId {
    pub(super) node: NodeId,
    pub(super) epoch: u32,
}

const ID_LEN: usize = NodeId::LEN + 4;
const MEMBER_LEN: usize = ID_LEN + 3;
/// Where the receiver's identity is in a packet.
const RECEIVER_AT: usize = 2 + ID_LEN + 2;
const GOSSIP: u8 = 9;

impl Identity for MemberId {
    type Addr = NodeId;

    /// The machine renews the identity, together with its record.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.epoch > other.epoch
    }
}

/// The form of SWIM's packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemberCodec;

/// A packet that is malformed, or full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet of a member is malformed")]
pub(super) struct PacketError;

fn put_id(id: &MemberId, buf: &mut impl BufMut) {
    buf.put_slice(id.node.bytes());
    buf.put_u32(id.epoch);
}

fn get_id(buf: &mut impl Buf) -> Result<MemberId, PacketError> {
    let mut node = [0; NodeId::LEN];
    if buf.remaining() < ID_LEN {
        return Err(PacketError);
    }
    buf.copy_to_slice(&mut node);
    Ok(MemberId { node: NodeId::new(node), epoch: buf.get_u32() })
}

fn get_u8(buf: &mut impl Buf) -> Result<u8, PacketError> {
    if buf.has_remaining() { Ok(buf.get_u8()) } else { Err(PacketError) }
}

fn get_u16(buf: &mut impl Buf) -> Result<u16, PacketError> {
    if buf.remaining() >= 2 { Ok(buf.get_u16()) } else { Err(PacketError) }
}

/// The number of a message, its probe, and the third member that it names.
fn message_parts(message: &Message<MemberId>) -> (u8, u8, Option<&MemberId>) {
    match message {
        Message::Ping(probe) => (1, *probe, None),
        Message::Ack(probe) => (2, *probe, None),
        Message::PingReq { target, probe_number } => (3, *probe_number, Some(target)),
        Message::IndirectPing { origin, probe_number } => (4, *probe_number, Some(origin)),
        Message::IndirectAck { target, probe_number } => (5, *probe_number, Some(target)),
        Message::ForwardedAck { origin, probe_number } => (6, *probe_number, Some(origin)),
        Message::Announce => (7, 0, None),
        Message::Feed => (8, 0, None),
        Message::Gossip => (GOSSIP, 0, None),
        Message::Broadcast => (10, 0, None),
        Message::TurnUndead => (11, 0, None),
    }
}

impl Codec<MemberId> for MemberCodec {
    type Error = PacketError;

    fn encode_header(&mut self, header: &Header<MemberId>, mut buf: impl BufMut) -> Result<(), PacketError> {
        let (kind, probe, third) = message_parts(&header.message);
        if buf.remaining_mut() < RECEIVER_AT + 2 * ID_LEN {
            return Err(PacketError);
        }
        buf.put_slice(&[kind, probe]);
        put_id(&header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put_id(&header.dst, &mut buf);
        if let Some(third) = third {
            put_id(third, &mut buf);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<MemberId>, PacketError> {
        let (kind, probe_number) = (get_u8(&mut buf)?, get_u8(&mut buf)?);
        let src = get_id(&mut buf)?;
        let src_incarnation = get_u16(&mut buf)?;
        let dst = get_id(&mut buf)?;
        let message = match kind {
            1 => Message::Ping(probe_number),
            2 => Message::Ack(probe_number),
            3 => Message::PingReq { target: get_id(&mut buf)?, probe_number },
            4 => Message::IndirectPing { origin: get_id(&mut buf)?, probe_number },
            5 => Message::IndirectAck { target: get_id(&mut buf)?, probe_number },
            6 => Message::ForwardedAck { origin: get_id(&mut buf)?, probe_number },
            7 => Message::Announce,
            8 => Message::Feed,
            GOSSIP => Message::Gossip,
            11 => Message::TurnUndead,
            _ => return Err(PacketError),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<MemberId>, mut buf: impl BufMut) -> Result<(), PacketError> {
        if buf.remaining_mut() < MEMBER_LEN {
            return Err(PacketError);
        }
        put_id(member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<MemberId>, PacketError> {
        let id = get_id(&mut buf)?;
        let incarnation = get_u16(&mut buf)?;
        let state = match get_u8(&mut buf)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(PacketError),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

/// What of a packet SWIM may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filtered {
    /// This, from that node; so many updates were left out.
    Packet {
        from: NodeId,
        bytes: Vec<u8>,
        removed: usize,
    },
    /// No record is known in which this node has signed this epoch.
    Unknown(MemberId),
    Malformed,
}

/// Leaves out of a packet what no verified record supports. `is_known` tells whether the map, or the own record, has this identity.
pub(super) fn filter(packet: &[u8], is_known: impl Fn(&MemberId) -> bool) -> Filtered {
    let mut rest = packet;
    let Ok(header) = MemberCodec.decode_header(&mut rest) else { return Filtered::Malformed };
    let third = message_parts(&header.message).2.copied();
    if let Some(unknown) = [Some(header.src), third].into_iter().flatten().find(|id| !is_known(id)) {
        return Filtered::Unknown(unknown);
    }
    let head = packet.len() - rest.len();
    let from = header.src.node;
    if rest.is_empty() {
        return Filtered::Packet { from, bytes: packet.to_vec(), removed: 0 };
    }
    let Ok(count) = get_u16(&mut rest) else { return Filtered::Malformed };
    if rest.len() != usize::from(count) * MEMBER_LEN {
        return Filtered::Malformed;
    }
    let kept: Vec<&[u8]> = rest
        .chunks_exact(MEMBER_LEN)
        .filter(|update| MemberCodec.decode_member(*update).is_ok_and(|member| is_known(member.id())))
        .collect();
    let removed = usize::from(count) - kept.len();
    let mut bytes = packet[..head].to_vec();
    bytes.put_u16(kept.len() as u16);
    kept.iter().for_each(|update| bytes.extend(*update));
    Filtered::Packet { from, bytes, removed }
}

/// Returns whether the map has a record in which this identity is signed.
pub(super) fn is_in_map(map: &Map, id: &MemberId) -> bool {
    map.record(id.node).is_some_and(|record| record.epoch == id.epoch)
}

/// Addresses a packet of gossip to another member; gossip may go to any. `false` if it is another packet.
pub(super) fn redirect_gossip(packet: &mut [u8], to: MemberId) -> bool {
    let is_gossip = packet.first() == Some(&GOSSIP);
    if let Some(receiver) = packet.get_mut(RECEIVER_AT..RECEIVER_AT + ID_LEN).filter(|_| is_gossip) {
        receiver[..NodeId::LEN].copy_from_slice(to.node.bytes());
        receiver[NodeId::LEN..].copy_from_slice(&to.epoch.to_be_bytes());
    }
    is_gossip
}

#[cfg(test)]
pub(super) fn test_packet(
    source: MemberId,
    destination: MemberId,
    message: Message<MemberId>,
    updates: &[Member<MemberId>],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header { src: source, src_incarnation: 0, dst: destination, message };
    MemberCodec.encode_header(&header, &mut bytes).unwrap();
    bytes.put_u16(updates.len() as u16);
    for update in updates {
        MemberCodec.encode_member(update, &mut bytes).unwrap();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u8, epoch: u32) -> MemberId {
        MemberId { node: NodeId::of(&[number; 32]), epoch }
    }

    #[test]
    fn updates_about_identities_that_nobody_has_signed_are_left_out() {
        let updates = [
            Member::new(id(3, 1), 0, State::Alive),
            Member::new(id(3, 900), 0, State::Down),
            Member::new(id(9, 1), 0, State::Alive),
        ];
        let packet = test_packet(id(1, 1), id(2, 1), Message::Gossip, &updates);
        let known = |member: &MemberId| member.epoch == 1 && *member != id(9, 1);
        let expected = test_packet(id(1, 1), id(2, 1), Message::Gossip, &updates[..1]);
        let filtered = Filtered::Packet { from: id(1, 1).node, bytes: expected, removed: 2 };
        assert_eq!(filter(&packet, known), filtered);
        assert_eq!(filter(&packet, |member| *member != id(1, 1)), Filtered::Unknown(id(1, 1)));
        let request = Message::PingReq { target: id(4, 7), probe_number: 3 };
        let packet = test_packet(id(1, 1), id(2, 1), request, &[]);
        assert_eq!(filter(&packet, known), Filtered::Unknown(id(4, 7)));
    }

    #[test]
    fn gossip_is_redirected_and_nothing_else() {
        let mut packet = test_packet(id(1, 1), id(2, 1), Message::Gossip, &[]);
        assert!(redirect_gossip(&mut packet, id(3, 5)));
        assert_eq!(packet, test_packet(id(1, 1), id(3, 5), Message::Gossip, &[]));
        let mut packet = test_packet(id(1, 1), id(2, 1), Message::Ping(4), &[]);
        assert!(!redirect_gossip(&mut packet, id(3, 5)));
        assert_eq!(packet, test_packet(id(1, 1), id(2, 1), Message::Ping(4), &[]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_filter_panic(kind in 0_u8..13, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let packet = [&[kind][..], &bytes].concat();
            if let Filtered::Packet { bytes, removed: 0, .. } = filter(&packet, |_| true) {
                prop_assert_eq!(bytes, packet);
            }
        }
    }
}
