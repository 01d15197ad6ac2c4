//! Digests: which records a node has, in 12 bytes each.

use super::mesh_time::MAX_NUMBER;
use super::node_id::NodeId;
use super::reader::Reader;

/// One record of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DigestEntry {
    /// [`NodeId::prefix`].
    pub(super) prefix: u64,
    pub(super) sequence: u32,
    /// The sender takes the node for online.
    pub(super) is_active: bool,
}

/// What two maps have to exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Records that the other side lacks, or has older.
    pub(super) send: Vec<NodeId>,
    /// Records that the other side has, and this one lacks or has older.
    pub(super) want: Vec<u64>,
    /// Nodes that the other side takes for online, whose record is the same here.
    pub(super) active: Vec<NodeId>,
}

impl DigestEntry {
    pub(super) const LEN: usize = 12;

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.prefix.to_be_bytes());
        out.extend((self.sequence & MAX_NUMBER | u32::from(self.is_active) << 31).to_be_bytes());
    }

    pub(super) fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        let (prefix, number) = (reader.u64()?, reader.u32()?);
        Some(Self { prefix, sequence: number & MAX_NUMBER, is_active: number >> 31 == 1 })
    }

    /// Reads entries up to the end, at most `most`.
    pub(super) fn parse_all(mut reader: Reader<'_>, most: usize) -> Option<Vec<Self>> {
        if reader.0.len() > most * Self::LEN {
            return None;
        }
        let mut entries = Vec::with_capacity(reader.0.len() / Self::LEN);
        while !reader.0.is_empty() {
            entries.push(Self::parse(&mut reader)?);
        }
        Some(entries)
    }
}
