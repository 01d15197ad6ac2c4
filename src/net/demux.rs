//! Protocol detection by the first bytes of a datagram or a stream. All protocols share one port.
//!
//! The ranges are those of [RFC 7983](https://www.rfc-editor.org/rfc/rfc7983) and
//! [RFC 8656 section 12](https://www.rfc-editor.org/rfc/rfc8656#section-12); `{` begins a signalling message.

/// The protocol of one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatagramKind {
    /// First byte 0x00–0x03.
    Stun,
    /// First byte 0x14–0x19.
    Dtls,
    /// First byte 0x40–0x7F but for `{`: a channel number in front.
    ChannelData,
    /// First byte `{` (0x7B). A client that has bound a channel 0x7Bxx means that one.
    Signaling,
    /// Everything else, and the empty datagram. It is counted and dropped.
    Unknown,
}

/// Classifies one datagram by its first byte.
#[must_use]
pub(crate) fn datagram(payload: &[u8]) -> DatagramKind {
    match payload.first() {
        Some(0x00..=0x03) => DatagramKind::Stun,
        Some(0x14..=0x19) => DatagramKind::Dtls,
        Some(b'{') => DatagramKind::Signaling,
        Some(0x40..=0x7F) => DatagramKind::ChannelData,
        _ => DatagramKind::Unknown,
    }
}

/// The protocol of one accepted stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// A STUN message with the magic cookie at bytes 4–7, or a Shared Secret Request of RFC 3489, which has none.
    Stun,
    /// An HTTP/1 method; WebSocket begins this way too.
    Http,
    /// A TLS handshake record: 0x16 0x03. The protocol inside is detected after the handshake.
    Tls,
    /// A client of the gateway: its first frame is New or Ping, or a ticket.
    Gateway,
    /// A protocol that is not served.
    Unknown,
}

/// The head of a frame with the connection 0: a command of 1 byte, or a ticket of 44.
const GATEWAY: [[u8; 8]; 2] = [[0x05, 0, 0, 0, 0, 0, 0, 0], [0x31, 0, 0, 0, 0, 0, 0, 0]];
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const SHARED_SECRET_REQUEST: [u8; 2] = [0, 2];
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];
const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH "];

/// Classifies the start of a stream; `None` while more bytes are needed (never with 8 bytes).
#[must_use]
pub(crate) fn stream(start: &[u8]) -> Option<StreamKind> {
    let agrees = |pattern: &[u8]| pattern.iter().zip(start).all(|(a, b)| a == b);
    if METHODS.iter().any(|method| agrees(method)) {
        return METHODS
            .iter()
            .any(|method| start.len() >= method.len() && agrees(method))
            .then_some(StreamKind::Http);
    }
    if agrees(&TLS_HANDSHAKE) {
        return (start.len() >= TLS_HANDSHAKE.len()).then_some(StreamKind::Tls);
    }
    if GATEWAY.iter().any(|head| !start.is_empty() && agrees(head)) {
        return (start.len() >= GATEWAY[0].len()).then_some(StreamKind::Gateway);
    }
    if start.first().is_some_and(|byte| *byte > 0x03) {
        return Some(StreamKind::Unknown);
    }
    match start.get(4..8) {
        Some(cookie) if cookie == MAGIC_COOKIE => Some(StreamKind::Stun),
        // RFC 3489 has no cookie, and sends only this request on streams.
        Some(_) if start[..2] == SHARED_SECRET_REQUEST && start[3].is_multiple_of(4) => {
            Some(StreamKind::Stun)
        }
        Some(_) => Some(StreamKind::Unknown),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_has_one_meaning() {
        for byte in 0..=255_u8 {
            let expected = match byte {
                0..=3 => DatagramKind::Stun,
                20..=25 => DatagramKind::Dtls,
                0x7B => DatagramKind::Signaling,
                64..=127 => DatagramKind::ChannelData,
                _ => DatagramKind::Unknown,
            };
            assert_eq!(datagram(&[byte, 0]), expected, "{byte:#x}");
        }
        assert_eq!(datagram(&[]), DatagramKind::Unknown);
    }

    #[test]
    fn a_stream_is_known_by_its_first_eight_bytes() {
        let stun = [0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42];
        assert_eq!(stream(&stun), Some(StreamKind::Stun));
        assert_eq!(stream(&stun[..7]), None);
        assert_eq!(stream(b"GET / HT"), Some(StreamKind::Http));
        assert_eq!(stream(b"OPTIO"), None);
        assert_eq!(stream(b"OPTIONS "), Some(StreamKind::Http));
        assert_eq!(stream(b"P"), None);
        assert_eq!(stream(&[0, 1, 0, 0, 1, 2, 3, 4]), Some(StreamKind::Unknown));
        assert_eq!(stream(&[0, 2, 0, 0, 1, 2, 3, 4]), Some(StreamKind::Stun));
        assert_eq!(stream(&[0, 2, 0, 1, 1, 2, 3, 4]), Some(StreamKind::Unknown));
        assert_eq!(stream(&[0x16, 3]), Some(StreamKind::Tls));
        assert_eq!(stream(&[0x16]), None);
        assert_eq!(stream(&[0x16, 2]), Some(StreamKind::Unknown));
        assert_eq!(stream(b"SSH-"), Some(StreamKind::Unknown));
        for first in [5, 0x31] {
            assert_eq!(stream(&[first, 0, 0, 0, 0, 0, 0, 0]), Some(StreamKind::Gateway));
            assert_eq!(stream(&[first, 0, 0, 0, 0, 0, 0]), None);
            assert_eq!(stream(&[first, 0, 0, 0, 1]), Some(StreamKind::Unknown));
        }
    }
}
