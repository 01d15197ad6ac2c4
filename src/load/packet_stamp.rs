//! The stamp that a packet carries: its sender and send time, in 12 bytes, the length of a transaction id.

/// Bytes of a stamp, and the smallest payload that can be measured.
pub(crate) const STAMP_LEN: usize = 12;
/// Times have 48 bits: 78 hours in nanoseconds.
const TIME_MASK: u64 = (1 << 48) - 1;

/// The first bytes of a payload, or a transaction id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PacketStamp {
    /// The run. Late packets of an earlier run have another tag.
    pub tag: u16,
    /// The sender, or the number of the request.
    pub number: u32,
    /// When it was sent, in ns since the start of the run.
    pub at: u64,
}

impl PacketStamp {
    /// Returns the bytes.
    #[must_use]
    pub(crate) fn bytes(self) -> [u8; STAMP_LEN] {
        let mut bytes = [0; STAMP_LEN];
        bytes[..2].copy_from_slice(&self.tag.to_be_bytes());
        bytes[2..6].copy_from_slice(&self.number.to_be_bytes());
        bytes[6..].copy_from_slice(&(self.at & TIME_MASK).to_be_bytes()[2..]);
        bytes
    }

    /// Reads the stamp at the start of `bytes`; `None` if they are too short.
    #[must_use]
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let &[t0, t1, n0, n1, n2, n3, ref at @ ..] = bytes.first_chunk::<STAMP_LEN>()?;
        let mut wide = [0; 8];
        wide[2..].copy_from_slice(at);
        Some(Self {
            tag: u16::from_be_bytes([t0, t1]),
            number: u32::from_be_bytes([n0, n1, n2, n3]),
            at: u64::from_be_bytes(wide),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = PacketStamp { tag: 0xABCD, number: 70_000, at: 3_600_000_000_000 };
        assert_eq!(PacketStamp::read(&stamp.bytes()), Some(stamp));
        assert_eq!(PacketStamp::read(&stamp.bytes()[..11]), None);
    }
}
