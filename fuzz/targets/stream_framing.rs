//! Frames on a stream: however the bytes are cut, the same frames come out, and no more is kept than one frame needs.

use ginnel::internals::turn_server::wire::{
    CHANNEL_HEADER_LEN, CHANNELS, FrameHeader, frame_len, parse_channel_data,
};
use ginnel::stun::{HEADER_LEN, Message, ParseError};
use std::net::{Ipv4Addr, SocketAddr};

/// The longest frame: ChannelData of 65 535 bytes with its padding.
const MAX_FRAME: usize = CHANNEL_HEADER_LEN + 65_536;

/// The first byte is the length of the pieces, the next two are that of a payload; the rest is a stream, and the
/// payloads of frames that are put on one.
pub(crate) fn run(data: &[u8]) {
    let [pieces, high, low, rest @ ..] = data else { return };
    let whole = frames(rest, |_| usize::MAX);
    assert_eq!(frames(rest, |_| 1), whole, "byte by byte");
    assert_eq!(frames(rest, |at| 1 + (at * 7 + usize::from(*pieces)) % 61), whole, "in pieces");
    if rest.len() <= 64 {
        for cut in 1..rest.len() {
            assert_eq!(frames(rest, |at| if at == 0 { cut } else { usize::MAX }), whole, "in two");
        }
    }
    whole.0.iter().for_each(|frame| sound(frame));
    prefixes(rest);
    built(usize::from(u16::from_be_bytes([*high, *low])), *pieces, rest);
}

/// Splits a stream that arrives in pieces into frames, as its reader does; also returns whether it ended in an error.
fn frames(stream: &[u8], piece: impl Fn(usize) -> usize) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut frames, mut at) = (Vec::new(), Vec::new(), 0);
    while at < stream.len() {
        let end = at.saturating_add(piece(at)).min(stream.len());
        buffer.extend_from_slice(&stream[at..end]);
        at = end;
        loop {
            match frame_len(&buffer) {
                Err(_) => return (frames, true),
                Ok(Some(len)) if len <= buffer.len() => {
                    assert!((CHANNEL_HEADER_LEN..=MAX_FRAME).contains(&len) && len % 4 == 0);
                    frames.push(buffer.drain(..len).collect());
                }
                Ok(wanted) => {
                    assert!(wanted.is_some() || buffer.len() < 4, "four bytes tell a frame's length");
                    break;
                }
            }
        }
        assert!(buffer.len() < MAX_FRAME, "what waits is never more than a frame");
    }
    (frames, false)
}

/// A whole frame is ChannelData that can be read, or has a header and a length that STUN allows.
fn sound(frame: &[u8]) {
    if frame[0] >= 0x40 {
        let (channel, payload) = parse_channel_data(frame).expect("ChannelData that can be read");
        assert!(CHANNELS.contains(&channel));
        assert_eq!(frame.len(), CHANNEL_HEADER_LEN + payload.len().next_multiple_of(4));
    } else {
        let refused = Message::parse(frame).err();
        assert!(!matches!(refused, Some(ParseError::Header | ParseError::Length)), "{refused:?}");
    }
}

/// More bytes never change what fewer have shown.
fn prefixes(stream: &[u8]) {
    let full = frame_len(stream);
    for end in 0..stream.len().min(HEADER_LEN) {
        match frame_len(&stream[..end]) {
            Ok(None) => {}
            told => assert_eq!(told, full),
        }
    }
}

/// Frames that the relay writes come out as they went in.
fn built(length: usize, seed: u8, stuff: &[u8]) {
    let mut written = Vec::new();
    for (turn, payload) in
        [&stuff[..length.min(stuff.len())], &stuff[..stuff.len() / 2], &[]].into_iter().enumerate()
    {
        let len = u16::try_from(payload.len()).unwrap();
        let peer = SocketAddr::from((Ipv4Addr::from([seed; 4]), u16::from(seed)));
        let header = match (turn + usize::from(seed)) % 2 {
            0 => Some(FrameHeader::channel_data(0x4000 | u16::from(seed), len)),
            _ => FrameHeader::data_indication(peer, len, [seed; 12]),
        };
        let Some(header) = header else { continue };
        let mut frame = [header.as_bytes(), payload].concat();
        frame.resize(frame.len().next_multiple_of(4), 0);
        written.push(frame);
    }
    let stream = written.concat();
    for size in [1, 1 + usize::from(seed), usize::MAX] {
        let (read, failed) = frames(&stream, |_| size);
        assert!(!failed && read == written);
    }
}
