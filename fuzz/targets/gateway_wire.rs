//! The gateway's frames: however the bytes are cut, the same ones come out, and what is written can be read.

use ginnel::internals::gateway::wire::{self, Command, Frame, HEADER_LEN};

const MAX_PACKET: usize = 200;

/// The first byte is the length of the pieces; the rest is a stream.
pub(crate) fn run(data: &[u8]) {
    let [pieces, stream @ ..] = data else { return };
    let whole = frames(stream, |_| usize::MAX);
    assert_eq!(frames(stream, |_| 1), whole, "byte by byte");
    assert_eq!(frames(stream, |at| 1 + (at * 7 + usize::from(*pieces)) % 61), whole, "in pieces");
    for cut in 1..stream.len().min(64) {
        assert_eq!(frames(stream, |at| if at == 0 { cut } else { usize::MAX }), whole, "in two");
    }
}

/// Splits a stream that arrives in pieces into frames; also returns whether it ended in an error.
fn frames(stream: &[u8], piece: impl Fn(usize) -> usize) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut frames, mut at) = (Vec::new(), Vec::new(), 0);
    while at < stream.len() {
        let end = at.saturating_add(piece(at)).min(stream.len());
        buffer.extend_from_slice(&stream[at..end]);
        at = end;
        loop {
            match wire::frame(&buffer, MAX_PACKET) {
                Err(_) => return (frames, true),
                Ok(None) => break,
                Ok(Some((frame, len))) => {
                    assert!((HEADER_LEN..=4 + MAX_PACKET).contains(&len));
                    assert_eq!(wire::frame_len(&buffer, MAX_PACKET), Ok(Some(len)));
                    assert_eq!(written(frame), &buffer[..len], "a frame is written as it was read");
                    frames.push(buffer.drain(..len).collect());
                }
            }
        }
        assert!(buffer.len() < 4 + MAX_PACKET, "what waits is never more than a frame");
    }
    (frames, false)
}

fn written(frame: Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match frame {
        Frame::Command(command) => Command::emit(&command, &mut bytes),
        Frame::Data { conn, message } => {
            wire::emit_header(&mut bytes, conn, message.len());
            bytes.extend_from_slice(message);
        }
    }
    bytes
}
