//! Reads numbers and byte strings from the front of a slice. Numbers are big-endian.

use super::node_id::NodeId;

/// The rest of the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(first)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn node(&mut self) -> Option<NodeId> {
        self.array().map(NodeId::new)
    }

    /// Reads a byte string with a length of two bytes, at most `most`.
    pub(super) fn long(&mut self, most: usize) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?);
        if len > most { None } else { self.bytes(len) }
    }

    /// Returns `value` if nothing is left.
    pub(super) fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Writes a byte string with a length of two bytes. What is longer than that permits becomes empty, and is refused by the reader.
pub(super) fn write_long(out: &mut Vec<u8>, bytes: &[u8]) {
    let Ok(len) = u16::try_from(bytes.len()) else { return out.extend([0, 0]) };
    out.extend(len.to_be_bytes());
    out.extend(bytes);
}
