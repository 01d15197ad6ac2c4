//! The frames of a link between two nodes. `docs/wire/mesh.md` describes them.

use super::digest::DigestEntry;
use super::map::CAPACITY;
use super::node_id::NodeId;
use super::reader::{Reader, write_long};
use super::record::MAX_RECORD;

/// Longest frame.
pub(super) const MAX_FRAME: usize = 64 * 1024;
/// Most nodes that a routed frame passes.
pub(super) const MAX_HOPS: usize = 12;
/// Most entries of a digest: a full map and the own record, and some room for larger maps.
const MAX_DIGEST: usize = CAPACITY * 2;
/// Most records that are asked for at once.
pub(super) const MAX_WANTED: usize = CAPACITY + 1;
/// Longest sealed content.
pub(super) const MAX_SEALED: usize = 20 * 1024;
/// Longest packet of membership.
pub(super) const MAX_MEMBERSHIP: usize = 1000;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// For one node, over others where there is no link.
    Routed(Routed<'a>),
    /// Begins the comparison of two maps.
    Hello { fingerprint: [u8; 16] },
    /// Which records the sender has: all, or those that are news.
    Digest { is_full: bool, entries: Vec<DigestEntry> },
    /// Asks for the records of nodes with these prefixes.
    Want(Vec<u64>),
    /// Records, and whether the sender takes their nodes for online.
    Records(Vec<(bool, &'a [u8])>),
}

/// What is for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Routed<'a> {
    pub(super) source: NodeId,
    pub(super) destination: NodeId,
    /// The prefixes of the nodes that have forwarded it; it goes to none of them again.
    pub(super) visited: Vec<u64>,
    pub(super) payload: Payload<'a>,
}

/// The content of a routed frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload<'a> {
    /// A packet of SWIM.
    Membership(&'a [u8]),
    /// Sealed for the destination.
    Sealed(&'a [u8]),
    /// Asks on the way to the destination for a record of it that is newer than this sequence.
    LookUp { sequence: u32 },
    /// The answer.
    Found(&'a [u8]),
}

const ROUTED: u8 = 1;
const HELLO: u8 = 2;
const FULL_DIGEST: u8 = 3;
const NEWS: u8 = 4;
const WANT: u8 = 5;
const RECORDS: u8 = 6;

impl<'a> Frame<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Routed(routed) => {
                out.push(ROUTED);
                routed.encode(&mut out);
            }
            Self::Hello { fingerprint } => {
                out.push(HELLO);
                out.extend(fingerprint);
            }
            Self::Digest { is_full, entries } => {
                out.push(if *is_full { FULL_DIGEST } else { NEWS });
                entries.iter().for_each(|entry| entry.encode(&mut out));
            }
            Self::Want(prefixes) => {
                out.push(WANT);
                prefixes.iter().for_each(|prefix| out.extend(prefix.to_be_bytes()));
            }
            Self::Records(records) => {
                out.push(RECORDS);
                for (is_active, record) in records {
                    out.push(u8::from(*is_active));
                    write_long(&mut out, record);
                }
            }
        }
        out
    }

    /// Parses a frame; `None` if it is malformed, too long or of an unknown kind.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > MAX_FRAME {
            return None;
        }
        let mut reader = Reader(bytes);
        match reader.u8()? {
            ROUTED => Routed::parse(reader).map(Self::Routed),
            HELLO => {
                let fingerprint = reader.array()?;
                reader.end(Self::Hello { fingerprint })
            }
            kind @ (FULL_DIGEST | NEWS) => {
                let entries = DigestEntry::parse_all(reader, MAX_DIGEST)?;
                Some(Self::Digest { is_full: kind == FULL_DIGEST, entries })
            }
            WANT => {
                let (prefixes, rest) = reader.0.as_chunks::<8>();
                let fits = rest.is_empty() && prefixes.len() <= MAX_WANTED;
                fits.then(|| Self::Want(prefixes.iter().map(|prefix| u64::from_be_bytes(*prefix)).collect()))
            }
            RECORDS => {
                let mut records = Vec::new();
                while !reader.0.is_empty() {
                    let is_active = match reader.u8()? {
                        0 => false,
                        1 => true,
                        _ => return None,
                    };
                    records.push((is_active, reader.long(MAX_RECORD)?));
                }
                Some(Self::Records(records))
            }
            _ => None,
        }
    }
}

impl<'a> Routed<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.destination.bytes());
        out.extend(self.source.bytes());
        out.push(self.visited.len() as u8);
        for prefix in &self.visited {
            out.extend(prefix.to_be_bytes());
        }
        match self.payload {
            Payload::Membership(packet) => {
                out.push(1);
                out.extend(packet);
            }
            Payload::Sealed(sealed) => {
                out.push(2);
                out.extend(sealed);
            }
            Payload::LookUp { sequence } => {
                out.push(3);
                out.extend(sequence.to_be_bytes());
            }
            Payload::Found(record) => {
                out.push(4);
                out.extend(record);
            }
        }
    }

    fn parse(mut reader: Reader<'a>) -> Option<Self> {
        let (destination, source) = (reader.node()?, reader.node()?);
        let count = usize::from(reader.u8()?);
        if count > MAX_HOPS {
            return None;
        }
        let visited = (0..count).map(|_| reader.u64()).collect::<Option<_>>()?;
        let payload = match reader.u8()? {
            1 if reader.0.len() <= MAX_MEMBERSHIP => Payload::Membership(reader.0),
            2 if reader.0.len() <= MAX_SEALED => Payload::Sealed(reader.0),
            3 => {
                let sequence = reader.u32()?;
                reader.end(Payload::LookUp { sequence })?
            }
            4 if reader.0.len() <= MAX_RECORD => Payload::Found(reader.0),
            _ => return None,
        };
        Some(Self { source, destination, visited, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn examples() -> Vec<Frame<'static>> {
        let routed = |payload| {
            Frame::Routed(Routed {
                source: NodeId::of(&[1; 32]),
                destination: NodeId::of(&[2; 32]),
                visited: vec![7, u64::MAX],
                payload,
            })
        };
        let entry = DigestEntry { prefix: 9, sequence: 5, is_active: true };
        vec![
            routed(Payload::Membership(b"packet")),
            routed(Payload::Sealed(b"sealed")),
            routed(Payload::LookUp { sequence: 4 }),
            routed(Payload::Found(b"record")),
            Frame::Hello { fingerprint: [3; 16] },
            Frame::Digest { is_full: true, entries: vec![entry; 3] },
            Frame::Digest { is_full: false, entries: vec![DigestEntry { is_active: false, ..entry }] },
            Frame::Want(vec![1, 2, 3]),
            Frame::Records(vec![(true, b"one"), (false, b"")]),
        ]
    }

    #[test]
    fn frames_are_read_as_they_are_written() {
        for frame in examples() {
            assert_eq!(Frame::parse(&frame.encode()), Some(frame));
        }
    }

    #[test]
    fn frames_over_their_limits_are_refused() {
        let hops = Routed {
            source: NodeId::of(&[1; 32]),
            destination: NodeId::of(&[2; 32]),
            visited: vec![1; MAX_HOPS + 1],
            payload: Payload::Sealed(b""),
        };
        let mut frames = vec![Frame::Routed(hops.clone()).encode()];
        let (sealed, packet) = ([0; MAX_SEALED + 1], [0; MAX_MEMBERSHIP + 1]);
        for payload in [Payload::Sealed(&sealed), Payload::Membership(&packet)] {
            frames.push(Frame::Routed(Routed { visited: vec![], payload, ..hops }).encode());
        }
        frames.push(Frame::Want(vec![0; MAX_WANTED + 1]).encode());
        let entry = DigestEntry { prefix: 0, sequence: 0, is_active: false };
        frames.push(Frame::Digest { is_full: true, entries: vec![entry; MAX_DIGEST + 1] }.encode());
        frames.push(vec![RECORDS; MAX_FRAME + 1]);
        frames.push(Frame::Records(vec![(true, &[0; MAX_RECORD + 1])]).encode());
        for frame in frames {
            assert_eq!(Frame::parse(&frame), None, "{} bytes", frame.len());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(kind in 0_u8..8, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Some(frame) = Frame::parse(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
