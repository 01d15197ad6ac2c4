//! The frames of messaging: what is written is read back, and nothing panics.

use ginnel::internals::messaging::wire::{Envelope, HEADER_LEN, MAX_DATA, data_len, salvage_msg_id};

/// The input is taken for a stream of frames, and what follows its first byte for the data of one.
pub(crate) fn run(data: &[u8]) {
    let [_, stream @ ..] = data else { return };
    check(stream);
    let mut rest = stream;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let Ok(len) = data_len(*header) else {
            assert!(u32::from_be_bytes(*header) as usize > MAX_DATA);
            return;
        };
        let Some((data, after)) = after.split_at_checked(len) else { return };
        check(data);
        rest = after;
    }
}

fn check(data: &[u8]) {
    let msg_id = salvage_msg_id(data);
    let Ok(envelope) = Envelope::parse(data.to_vec().into()) else { return };
    let frame = envelope.to_frame();
    assert_eq!(
        frame.len(),
        HEADER_LEN + u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize
    );
    assert_eq!(Envelope::parse(frame.slice(HEADER_LEN..)), Ok(envelope.clone()));
    assert_eq!(salvage_msg_id(&frame[HEADER_LEN..]), envelope.msg_id);
    assert!(msg_id.len() <= data.len());
}
