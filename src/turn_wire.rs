//! What TURN's client and server share: ChannelData, the headers of Send and Data indications, and the framing on streams
//! ([RFC 8656 sections 11 and 12](https://www.rfc-editor.org/rfc/rfc8656#section-11)). Pure.

use crate::stun::{HEADER_LEN, TransactionId, attr, xor_address_value};
use std::net::SocketAddr;

/// Channel numbers that may be bound. RFC 8656 section 12 ends at 0x4FFF; clients that follow RFC 5766 section 11, coturn's
/// among them, draw from the whole range.
pub const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x7FFF;
/// Bytes in front of ChannelData's payload.
pub const CHANNEL_HEADER_LEN: usize = 4;

/// Reads ChannelData: its channel number and payload. Padding behind the payload is allowed on every transport.
#[must_use]
pub fn parse_channel_data(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<CHANNEL_HEADER_LEN>()?;
    let channel = u16::from_be_bytes([header[0], header[1]]);
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    CHANNELS.contains(&channel).then_some(())?;
    Some((channel, rest.get(..length)?))
}

/// The types of the indications that carry payload: class and method.
const SEND_INDICATION: [u8; 2] = [0x00, 0x16];
const DATA_INDICATION: [u8; 2] = [0x00, 0x17];

/// The bytes in front of a payload: a ChannelData header, or a Send or Data indication up to the value of DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl FrameHeader {
    /// The length of a Data indication with an ICMP error about an IPv6 peer.
    const MAX: usize = HEADER_LEN + 4 + 20 + 4 + 8;

    /// Makes a ChannelData header for a payload of `length` bytes.
    #[must_use]
    pub fn channel_data(channel: u16, length: u16) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[..2].copy_from_slice(&channel.to_be_bytes());
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        Self { bytes, len: 4 }
    }

    /// Makes the header of a Data indication from `peer` for a payload of `length` bytes; `None` when it exceeds a STUN message.
    #[must_use]
    pub fn data_indication(peer: SocketAddr, length: u16, transaction: [u8; 12]) -> Option<Self> {
        Self::indication(DATA_INDICATION, peer, length, transaction)
    }

    /// Does the same for a Send indication to `peer`.
    #[must_use]
    pub fn send_indication(peer: SocketAddr, length: u16, transaction: [u8; 12]) -> Option<Self> {
        Self::indication(SEND_INDICATION, peer, length, transaction)
    }

    fn indication(kind: [u8; 2], peer: SocketAddr, length: u16, transaction: [u8; 12]) -> Option<Self> {
        let transaction = TransactionId::new(transaction);
        let (address, address_len) = xor_address_value(peer, &transaction);
        let data_at = HEADER_LEN + 4 + address_len;
        let body = data_at + 4 - HEADER_LEN + usize::from(length).next_multiple_of(4);
        let body = u16::try_from(body).ok()?.to_be_bytes();
        let mut bytes = [0; Self::MAX];
        bytes[..2].copy_from_slice(&kind);
        bytes[2..4].copy_from_slice(&body);
        bytes[4..HEADER_LEN].copy_from_slice(&transaction.0);
        bytes[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&attr::XOR_PEER_ADDRESS.to_be_bytes());
        bytes[HEADER_LEN + 3] = address_len as u8;
        bytes[HEADER_LEN + 4..data_at].copy_from_slice(&address[..address_len]);
        bytes[data_at..data_at + 2].copy_from_slice(&attr::DATA.to_be_bytes());
        bytes[data_at + 2..data_at + 4].copy_from_slice(&length.to_be_bytes());
        Some(Self { bytes, len: (data_at + 4) as u8 })
    }

    /// Takes a whole message without payload; `None` if it is longer than the longest header.
    pub(crate) fn whole(message: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Self { bytes, len: u8::try_from(message.len()).ok()? })
    }

    /// Returns the header's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The bytes of a stream are neither a STUN message nor ChannelData.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither a STUN message nor ChannelData")]
pub struct FrameError;

/// Returns how long the frame at the start of a stream's `bytes` is, padding included; `None` while its header is not whole
/// ([RFC 8656 section 12.5](https://www.rfc-editor.org/rfc/rfc8656#section-12.5)).
///
/// # Errors
/// [`FrameError`] when the bytes begin neither a STUN message nor ChannelData.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(header) = bytes.first_chunk::<4>() else {
        return match bytes.first() {
            Some(0x00..=0x03 | 0x40..=0x7F) | None => Ok(None),
            Some(_) => Err(FrameError),
        };
    };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    match header[0] {
        0x00..=0x03 if length % 4 == 0 => Ok(Some(HEADER_LEN + length)),
        0x40..=0x7F => Ok(Some(CHANNEL_HEADER_LEN + length.next_multiple_of(4))),
        _ => Err(FrameError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{Class, Message, Method};
    use proptest::prelude::*;

    #[test]
    fn channel_data_may_carry_padding_but_not_lie_about_its_length() {
        assert_eq!(parse_channel_data(&[0x40, 1, 0, 2, 7, 8]), Some((0x4001, &[7, 8][..])));
        assert_eq!(parse_channel_data(&[0x40, 1, 0, 2, 7, 8, 0, 0]), Some((0x4001, &[7, 8][..])));
        assert_eq!(parse_channel_data(&[0x40, 1, 0, 3, 7, 8]), None);
        assert_eq!(parse_channel_data(&[0x80, 1, 0, 0]), None);
        assert_eq!(parse_channel_data(&[0x40, 1, 0]), None);
    }

    #[test]
    fn a_full_channel_data_frame_keeps_the_framing() {
        assert_eq!(frame_len(&[0x40, 0, 0xFF, 0xFF]), Ok(Some(4 + 65_536)));
        assert_eq!(frame_len(&[0x40, 0, 0, 5]), Ok(Some(12)));
        assert_eq!(frame_len(&[0, 1, 0, 8]), Ok(Some(28)));
        assert_eq!(frame_len(&[0, 1, 0, 7]), Err(FrameError));
        assert_eq!(frame_len(&[0x80]), Err(FrameError));
        assert_eq!(frame_len(&[0x40, 0]), Ok(None));
        assert_eq!(frame_len(&[]), Ok(None));
    }

    proptest! {
        #[test]
        fn a_data_indication_is_a_sound_message(peer in any::<SocketAddr>(), payload in proptest::collection::vec(any::<u8>(), 0..70)) {
            let header = FrameHeader::data_indication(peer, payload.len() as u16, [9; 12]).unwrap();
            let mut bytes = [header.as_bytes(), &payload].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
            let sent = FrameHeader::send_indication(peer, payload.len() as u16, [9; 12]).unwrap();
            prop_assert_eq!((&sent.as_bytes()[..2], &sent.as_bytes()[2..]), (&[0, 0x16][..], &header.as_bytes()[2..]));
            prop_assert_eq!(message.unverified().get(attr::DATA), Some(&payload[..]));
            let read = message.unverified().xor_address(attr::XOR_PEER_ADDRESS).unwrap().unwrap();
            prop_assert_eq!((read.ip(), read.port()), (peer.ip(), peer.port()));
        }
    }
}
