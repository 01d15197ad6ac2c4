//! Gateway frames inside WebSocket: each binary message is exactly one frame. Pure.
//!
//! Bytes of a message are passed on as they arrive, so that an incomplete frame occupies only the gateway's own bounded memory.

use crate::net::websocket::{CloseCode, Event, FrameReader, MessageType, write_binary_header};

/// Why a client's connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// The client broke RFC 6455, or sent a text message or one that is too long.
    #[error(transparent)]
    WebSocket(#[from] CloseCode),
    /// A message that is not exactly one frame.
    #[error("a message that is not exactly one frame")]
    NotOneFrame,
}

/// Bytes of a frame's length field.
const LENGTH: usize = 4;

/// Extracts frames from a client's messages.
#[derive(Debug)]
pub(crate) struct FrameDecoder {
    messages: FrameReader,
    max_message: usize,
    /// Bytes of the current message that have arrived.
    received: usize,
    /// The first of them.
    length: [u8; LENGTH],
}

impl FrameDecoder {
    /// Accepts frames of at most `max_message` bytes.
    pub(crate) fn new(max_message: usize) -> Self {
        let messages = FrameReader::new(MessageType::Binary, max_message);
        Self { messages, max_message, received: 0, length: [0; LENGTH] }
    }

    /// Continues with what `messages` has not read of the stream, after a handshake.
    pub(crate) fn after_handshake(mut messages: FrameReader, max_message: usize) -> Self {
        messages.set_max_len(max_message);
        Self { messages, ..Self::new(max_message) }
    }

    /// Appends received bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.messages.push(bytes);
    }

    /// Appends bytes of frames to `out` up to the next event; `None` where more bytes are needed.
    pub(crate) fn next(&mut self, out: &mut Vec<u8>) -> Result<Option<Event>, MessageError> {
        let before = out.len();
        let event = self.messages.next(out)?;
        for (to, byte) in self.length.iter_mut().skip(self.received).zip(&out[before..]) {
            *to = *byte;
        }
        self.received += out.len() - before;
        let expected = match self.received {
            LENGTH.. => Some((u32::from_le_bytes(self.length) as usize).saturating_add(LENGTH)),
            _ => None,
        };
        if expected.is_some_and(|len| self.received > len || len > self.max_message) {
            return Err(MessageError::NotOneFrame);
        }
        if event == Some(Event::MessageEnd) {
            if expected != Some(self.received) {
                return Err(MessageError::NotOneFrame);
            }
            self.received = 0;
        }
        Ok(event)
    }
}

/// Turns a stream of frames into messages.
#[derive(Debug, Default)]
pub(crate) struct FrameEncoder {
    length: Vec<u8>,
    remaining: usize,
}

impl FrameEncoder {
    /// Returns whether every message that was begun is complete.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.remaining == 0
    }

    /// Takes bytes of frames and appends what is to be written.
    pub(crate) fn encode(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let wanted = if self.remaining == 0 { LENGTH - self.length.len() } else { self.remaining };
            let (some, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.remaining > 0 {
                out.extend_from_slice(some);
                self.remaining -= some.len();
                continue;
            }
            self.length.extend_from_slice(some);
            if let Ok(length) = <[u8; LENGTH]>::try_from(&self.length[..]) {
                let length = u32::from_le_bytes(length) as usize;
                write_binary_header(length + LENGTH, out);
                out.append(&mut self.length);
                self.remaining = length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::websocket::write_binary;
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

    const LONGEST: usize = 70_000;

    /// A frame as a client sends it.
    fn sent(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader { is_final, opcode, mask: Some([1, 2, 3, 250]), ..FrameHeader::default() };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.to_vec().into()).format(&mut bytes).unwrap();
        bytes
    }

    fn frame(len: usize) -> Vec<u8> {
        let length = u32::try_from(len).unwrap().to_le_bytes();
        [&length[..], &(0..len).map(|byte| byte as u8).collect::<Vec<u8>>()].concat()
    }

    /// Decodes all of `bytes`; returns the frames and the events besides their ends.
    fn decode(decoder: &mut FrameDecoder, bytes: &[u8]) -> Result<(Vec<u8>, Vec<Event>), MessageError> {
        let (mut out, mut events) = (Vec::new(), Vec::new());
        decoder.push(bytes);
        while let Some(event) = decoder.next(&mut out)? {
            events.extend(Some(event).filter(|event| *event != Event::MessageEnd));
        }
        Ok((out, events))
    }

    fn frames_of(bytes: &[u8]) -> Result<Vec<u8>, MessageError> {
        decode(&mut FrameDecoder::new(LONGEST), bytes).map(|(frames, _)| frames)
    }

    #[test]
    fn a_message_is_one_frame_in_however_many_pieces() {
        let binary = OpCode::Data(Data::Binary);
        for len in [4, 5, 200, 65_000] {
            let frame = frame(len);
            assert_eq!(frames_of(&sent(binary, true, &frame)), Ok(frame.clone()));
            let (first, second) = frame.split_at(3);
            let ping = sent(OpCode::Control(Control::Ping), true, b"?");
            let rest = sent(OpCode::Data(Data::Continue), true, second);
            assert_eq!(frames_of(&[sent(binary, false, first), ping, rest].concat()), Ok(frame));
        }
        for wrong in [frame(9)[..12].to_vec(), [frame(9), vec![0]].concat(), vec![1, 0], vec![], vec![255; 4]]
        {
            assert_eq!(frames_of(&sent(binary, true, &wrong)), Err(MessageError::NotOneFrame));
        }
        assert_eq!(frames_of(&sent(binary, true, &frame(LONGEST))), Err(CloseCode(1009).into()));
    }

    #[test]
    fn what_has_no_place_here_is_refused() {
        let binary = OpCode::Data(Data::Binary);
        for (bytes, code, what) in [
            (sent(OpCode::Data(Data::Text), true, b"t"), 1003, "a text"),
            (sent(OpCode::Data(Data::Continue), true, b"t"), 1002, "a continuation of nothing"),
            (sent(binary, false, &frame(9)[..5]).repeat(2), 1002, "a message within a message"),
            (b"\x82\x04aaaa".to_vec(), 1002, "no mask"),
            (b"\x89\xfe\x00\xff1234".to_vec(), 1002, "a long ping"),
            (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff1234".to_vec(), 1009, "an endless message"),
        ] {
            assert_eq!(frames_of(&bytes), Err(CloseCode(code).into()), "{what}");
        }
    }

    #[test]
    fn bytes_behind_a_handshakes_message_are_the_first_frames() {
        let mut messages = FrameReader::new(MessageType::Binary, 3);
        let binary = OpCode::Data(Data::Binary);
        let (answer, next) = (sent(binary, true, b"abc"), sent(binary, true, &frame(9)));
        messages.push(&[answer, next.clone()].concat());
        let mut out = Vec::new();
        assert_eq!((messages.next(&mut out), &out[..]), (Ok(Some(Event::MessageEnd)), &b"abc"[..]));
        let mut decoder = FrameDecoder::after_handshake(messages, LONGEST);
        let control = |control, payload: &[u8]| sent(OpCode::Control(control), true, payload);
        let rest = [control(Control::Ping, b"hi"), control(Control::Close, b"")].concat();
        let expected = (frame(9), vec![Event::Ping(b"hi".to_vec()), Event::Close(None)]);
        assert_eq!(decode(&mut decoder, &rest), Ok(expected));
    }

    proptest! {
        #[test]
        fn nothing_depends_on_how_bytes_are_cut(
            lens in proptest::collection::vec(4_usize..300, 1..6),
            cuts in proptest::collection::vec(1_usize..50, 1..80),
        ) {
            let frames: Vec<u8> = lens.iter().flat_map(|len| frame(*len)).collect();
            let mut sent: Vec<u8> =
                lens.iter().flat_map(|len| sent(OpCode::Data(Data::Binary), true, &frame(*len))).collect();
            let (mut decoder, mut encoder) = (FrameDecoder::new(LONGEST), FrameEncoder::default());
            let (mut came, mut written, mut cuts) = (Vec::new(), Vec::new(), cuts.into_iter().cycle());
            while !sent.is_empty() {
                let rest = sent.split_off(cuts.next().unwrap().min(sent.len()));
                came.extend(decode(&mut decoder, &sent).unwrap().0);
                sent = rest;
            }
            prop_assert_eq!(&came, &frames);
            let mut left = &frames[..];
            while !left.is_empty() {
                let (some, rest) = left.split_at(cuts.next().unwrap().min(left.len()));
                encoder.encode(some, &mut written);
                left = rest;
            }
            prop_assert!(encoder.is_between_messages());
            let mut expected = Vec::new();
            lens.iter().for_each(|len| write_binary(&frame(*len), &mut expected));
            prop_assert_eq!(written, expected);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let frames = frames_of(&bytes).unwrap_or_default();
            prop_assert!(frames.len() <= bytes.len());
        }
    }
}
