//! The frames of the TCP protocol (S4-1): four bytes with the length of the data, big-endian, and a protobuf message.
//!
//! All fields have the defaults of proto3, so a heartbeat is a frame without data.

use bytes::Bytes;
use prost::Message;

/// Bytes of the length before the data.
pub const HEADER_LEN: usize = 4;
/// Longest data of a received frame, in bytes (S4-A14).
pub const MAX_DATA: usize = 1024 * 1024;

/// `BaseMsgPb`: the data of every frame.
#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    /// The number of the command.
    #[prost(int32, tag = "1")]
    pub cmd: i32,
    /// The sender's name for a message; a response repeats it (S4-2).
    #[prost(string, tag = "2")]
    pub msg_id: String,
    /// Whether `data` is encrypted with the session key; empty data never is.
    #[prost(bool, tag = "3")]
    pub is_encrypt: bool,
    /// The body of the command.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// Why received bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The length is over [`MAX_DATA`].
    #[error("a frame of {0} bytes")]
    TooLong(u32),
    /// The data is no protobuf message of this form.
    #[error("no valid message")]
    Malformed,
}

/// Returns the length of the data that follows a header.
///
/// # Errors
/// [`EnvelopeError::TooLong`] where it is over [`MAX_DATA`].
pub fn data_len(header: [u8; HEADER_LEN]) -> Result<usize, EnvelopeError> {
    let announced = u32::from_be_bytes(header);
    let len = usize::try_from(announced).ok().filter(|len| *len <= MAX_DATA);
    len.ok_or(EnvelopeError::TooLong(announced))
}

impl Envelope {
    /// Reads the data of a frame.
    ///
    /// # Errors
    /// [`EnvelopeError::Malformed`].
    pub fn parse(data: Bytes) -> Result<Self, EnvelopeError> {
        Self::decode(data).map_err(|_| EnvelopeError::Malformed)
    }

    /// Returns the frame with this message.
    #[must_use]
    pub fn to_frame(&self) -> Bytes {
        let len = self.encoded_len();
        let mut frame = Vec::with_capacity(HEADER_LEN + len);
        frame.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        // A Vec grows, so encoding into it does not fail.
        let _ = self.encode(&mut frame);
        frame.into()
    }
}

/// Returns the `msgId` of data that is not valid as a whole, where it stands before what is wrong (S4-A10).
#[must_use]
pub fn salvage_msg_id(data: &[u8]) -> String {
    const VARINT: u64 = 0;
    const BYTES: u64 = 2;
    let mut rest = data;
    while let Ok(key) = prost::encoding::decode_varint(&mut rest) {
        match (key >> 3, key & 7) {
            (_, VARINT) if prost::encoding::decode_varint(&mut rest).is_ok() => {}
            (field, BYTES) => {
                let len = prost::encoding::decode_varint(&mut rest).ok();
                let len = len.and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= rest.len());
                let Some(len) = len else { break };
                let (value, after) = rest.split_at(len);
                if field == 2 {
                    return std::str::from_utf8(value).unwrap_or_default().to_owned();
                }
                rest = after;
            }
            _ => break,
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope(cmd: i32, msg_id: &str, is_encrypt: bool, data: &[u8]) -> Envelope {
        Envelope { cmd, msg_id: msg_id.to_owned(), is_encrypt, data: Bytes::copy_from_slice(data) }
    }

    #[test]
    fn frames_have_the_bytes_of_the_original_programs() {
        let ok = br#"{"code":100,"msg":"ok"}"#;
        let key_ok = [&b"\0\0\0\x1b\x08\x02\x22\x17"[..], ok].concat();
        for (envelope, frame) in [
            (envelope(0, "", false, b""), &b"\0\0\0\0"[..]),
            (envelope(104, "", false, b""), b"\0\0\0\x02\x08\x68"),
            (envelope(103, "", false, b""), b"\0\0\0\x02\x08\x67"),
            (envelope(202, "", false, b""), b"\0\0\0\x03\x08\xca\x01"),
            (envelope(2, "", false, ok), &key_ok),
            (envelope(200, "ab", true, b"x"), b"\0\0\0\x0c\x08\xc8\x01\x12\x02ab\x18\x01\x22\x01x"),
        ] {
            assert_eq!(envelope.to_frame(), frame);
            let header = frame[..4].try_into().unwrap();
            assert_eq!(data_len(header), Ok(frame.len() - 4));
            assert_eq!(Envelope::parse(Bytes::copy_from_slice(&frame[4..])), Ok(envelope));
        }
    }

    #[test]
    fn a_length_over_one_mebibyte_is_refused() {
        assert_eq!(data_len([0; 4]), Ok(0));
        assert_eq!(data_len([0, 0x10, 0, 0]), Ok(MAX_DATA));
        assert_eq!(data_len([0, 0x10, 0, 1]), Err(EnvelopeError::TooLong(1_048_577)));
        assert_eq!(data_len([0xff; 4]), Err(EnvelopeError::TooLong(u32::MAX)));
    }

    #[test]
    fn the_message_id_of_broken_data_is_read_where_it_stands_before_the_fault() {
        let whole = envelope(200, "id-1", true, b"body").to_frame();
        let data = &whole[4..];
        assert_eq!(
            Envelope::parse(Bytes::copy_from_slice(&data[..data.len() - 1])),
            Err(EnvelopeError::Malformed)
        );
        assert_eq!(salvage_msg_id(&data[..data.len() - 1]), "id-1");
        assert_eq!(salvage_msg_id(&data[..5]), "", "in the middle of the id");
        assert_eq!(salvage_msg_id(b"\xff\xff\xff"), "");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            cmd: i32,
            msg_id in ".{0,40}",
            is_encrypt: bool,
            data in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let envelope = envelope(cmd, &msg_id, is_encrypt, &data);
            let frame = envelope.to_frame();
            prop_assert_eq!(salvage_msg_id(&frame[4..]), msg_id);
            prop_assert_eq!(Envelope::parse(frame.slice(4..)), Ok(envelope));
        }

        #[test]
        fn no_data_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = salvage_msg_id(&data);
            let _ = Envelope::parse(data.into());
        }
    }
}
