//! Frames on a stream, found in place. Pure.

use crate::turn_wire::{FrameError, frame_len};

/// The whole frames at the start of a stream's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WholeFrames {
    /// Their length in bytes.
    pub(crate) len: usize,
    /// The error after them, if the next bytes begin no frame; the stream must close.
    pub(crate) broken: Option<FrameError>,
}

/// Finds the whole frames at the start of `bytes`.
pub(crate) fn whole_frames(bytes: &[u8]) -> WholeFrames {
    let mut len = 0;
    loop {
        match frame_len(&bytes[len..]) {
            Ok(Some(frame)) if frame <= bytes.len() - len => len += frame,
            Ok(_) => return WholeFrames { len, broken: None },
            Err(broken) => return WholeFrames { len, broken: Some(broken) },
        }
    }
}

/// Returns the length of the first of [`WholeFrames`]; the last one may lack padding, as on WebSocket.
pub(crate) fn first_len(run: &[u8]) -> usize {
    frame_len(run).ok().flatten().map_or(run.len(), |len| len.min(run.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_under_every_split() {
        let message = [&[0, 1, 0, 4][..], &[0; 16], b"attr"].concat();
        let channel_data = b"\x40\x01\0\x03abc\0".to_vec();
        let expected = [message.clone(), channel_data.clone(), message.clone()];
        let stream = expected.concat();
        for split in 0..stream.len() {
            let (mut buffer, mut frames) = (stream[..split].to_vec(), Vec::new());
            for rest in [&[][..], &stream[split..]] {
                buffer.extend_from_slice(rest);
                let whole = whole_frames(&buffer);
                assert_eq!(whole.broken, None);
                let mut whole: Vec<u8> = buffer.drain(..whole.len).collect();
                while !whole.is_empty() {
                    let len = first_len(&whole);
                    frames.push(whole.drain(..len).collect::<Vec<u8>>());
                }
            }
            assert_eq!(frames, expected, "split at {split}");
        }
    }

    #[test]
    fn frames_before_garbage_count_and_the_last_padding_may_be_missing() {
        let frame = b"\x40\x01\0\x03abc\0";
        let bytes = [&frame[..], b"\x80\x01"].concat();
        assert_eq!(whole_frames(&bytes), WholeFrames { len: frame.len(), broken: Some(FrameError) });
        assert_eq!(first_len(&frame[..7]), 7);
        assert_eq!(whole_frames(&[]), WholeFrames { len: 0, broken: None });
    }
}
