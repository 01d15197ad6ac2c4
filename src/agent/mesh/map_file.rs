//! The form of the map file. The service writes it atomically; here is what can be read of any file.
//!
//! `GINMESH1`, then for each record: `R` `first seen` (4) `length` (2) `CRC-32` (4) `record`. The CRC covers what is before and after it.
//! A reader that finds something else goes on at the next byte, so that neither garbage nor a missing end costs more than it touches.

use super::map::Map;
use super::mesh_time::MeshTime;
use super::reader::Reader;
use super::record::{MAX_RECORD, VerifiedRecord};
use std::sync::Arc;

const MAGIC: &[u8] = b"GINMESH1";
const MARK: u8 = b'R';
/// Longest file that is read.
const MAX_FILE: usize = 2 << 20;

/// What a file had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MapFileReport {
    /// Records that were read.
    pub(super) records: usize,
    /// Entries with a wrong signature.
    pub(super) forged: usize,
    /// Bytes that belong to no entry.
    pub(super) garbage: usize,
}

/// Writes the records of a map.
pub(super) fn encode(map: &Map) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for (_, entry) in map.iter() {
        let bytes = entry.record.bytes();
        let mut head = vec![MARK];
        head.extend(entry.first_seen.0.to_be_bytes());
        head.extend((bytes.len() as u16).to_be_bytes());
        let sum = checksum(&head, bytes);
        out.extend(head);
        out.extend(sum.to_be_bytes());
        out.extend(bytes);
    }
    out
}

fn checksum(head: &[u8], record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(record);
    hasher.finalize()
}

/// Reads the records of a file that can be verified into a map.
pub(super) fn restore(map: &mut Map, file: &[u8], now: MeshTime) -> MapFileReport {
    let mut report = MapFileReport::default();
    let mut rest = &file[..file.len().min(MAX_FILE)];
    rest = rest.strip_prefix(MAGIC).unwrap_or(rest);
    while !rest.is_empty() {
        let Some((first_seen, record, after)) = read_entry(rest) else {
            rest = &rest[1..];
            report.garbage += 1;
            continue;
        };
        rest = after;
        match VerifiedRecord::verify(record) {
            Ok(record) => {
                report.records += 1;
                map.restore(Arc::clone(&record), first_seen, now);
            }
            Err(_) => report.forged += 1,
        }
    }
    report
}

/// Returns when a record was first seen, its bytes and what follows.
fn read_entry(bytes: &[u8]) -> Option<(MeshTime, &[u8], &[u8])> {
    let mut reader = Reader(bytes);
    if reader.u8()? != MARK {
        return None;
    }
    let (first_seen, len) = (MeshTime(reader.u32()?), usize::from(reader.u16()?));
    let sum = reader.u32()?;
    let record = if len <= MAX_RECORD { reader.bytes(len)? } else { return None };
    (sum == checksum(&bytes[..7], record)).then_some((first_seen, record, reader.0))
}
