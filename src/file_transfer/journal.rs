//! The chaining values of a file that is sent or received, on disk: one record after the other, so that a process that dies loses none.
//!
//! The receiver's is beside the partial file; a group is recorded after its content was written. The sender's is in its state folder; a group is
//! recorded before it is sent. Neither is flushed to the disk: the page cache survives the process. A restart of the machine is another matter:
//! the header names the boot, and after another one the receiver hashes the partial file again.

use super::tree::{HASH_LEN, Hash};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 16] = *b"ginnel journal 1";
/// Magic, key, boot.
const HEADER_LEN: u64 = (MAGIC.len() + 2 * HASH_LEN) as u64;
/// Records that are read at once.
const BATCH: u64 = 4096;

/// A journal that is open for writing.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    records: u64,
}

/// What a journal says of an earlier process.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) journal: Journal,
    /// It was written since the machine started, so that everything it says is in the page cache or on the disk.
    pub(super) is_this_boot: bool,
}

/// Returns a hash of the number of this boot; none where the system has no such number.
pub(super) fn boot() -> Option<Hash> {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    Some(*blake3::hash(&id).as_bytes())
}

fn offset(record: u64) -> u64 {
    HEADER_LEN + record * HASH_LEN as u64
}

impl Journal {
    /// Begins a journal in an empty file. `key` identifies the file that is transferred, and its state.
    pub(super) fn create(file: File, key: &Hash) -> io::Result<Self> {
        file.set_len(0)?;
        let header = [&MAGIC[..], key, &boot().unwrap_or_default()].concat();
        file.write_all_at(&header, 0)?;
        Ok(Self { file, records: 0 })
    }

    /// Opens a journal that an earlier process has left, if it has this key.
    pub(super) fn open(file: File, key: &Hash) -> Option<Recorded> {
        let mut header = [0; HEADER_LEN as usize];
        file.read_exact_at(&mut header, 0).ok()?;
        let (magic, rest) = header.split_at(MAGIC.len());
        let (of, booted) = rest.split_at(HASH_LEN);
        if magic != MAGIC || of != key {
            return None;
        }
        let is_this_boot = boot().is_some_and(|boot| boot == booted);
        let records = file.metadata().ok()?.len().saturating_sub(HEADER_LEN) / HASH_LEN as u64;
        Some(Recorded { journal: Self { file, records }, is_this_boot })
    }

    /// Returns the number of groups that are recorded.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Records the next group.
    pub(super) fn append(&mut self, value: &Hash) -> io::Result<()> {
        self.file.write_all_at(value, offset(self.records))?;
        self.records += 1;
        Ok(())
    }

    /// Forgets all groups but the first ones.
    pub(super) fn truncate(&mut self, records: u64) -> io::Result<()> {
        self.records = self.records.min(records);
        self.file.set_len(offset(self.records))
    }

    /// Calls `each` with the first `count` values, in order.
    pub(super) fn read(&self, count: u64, mut each: impl FnMut(&Hash)) -> io::Result<()> {
        let mut at = 0;
        while at < count {
            let batch = BATCH.min(count - at);
            let mut bytes = vec![0; usize::try_from(batch).unwrap_or(0) * HASH_LEN];
            self.file.read_exact_at(&mut bytes, offset(at))?;
            bytes.as_chunks::<HASH_LEN>().0.iter().for_each(&mut each);
            at += batch;
        }
        Ok(())
    }

    /// Returns the hash of the first values, as the other side computes it.
    pub(super) fn prefix(&self, count: u64) -> io::Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        self.read(count, |value| {
            hasher.update(value);
        })?;
        Ok(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::Path;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn records_outlive_the_process_and_belong_to_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(open(&path), &[1; 32]).unwrap();
        for value in 0..5 {
            journal.append(&[value; 32]).unwrap();
        }
        drop(journal);
        assert!(Journal::open(open(&path), &[2; 32]).is_none());
        let recorded = Journal::open(open(&path), &[1; 32]).unwrap();
        assert_eq!(recorded.is_this_boot, boot().is_some());
        let mut journal = recorded.journal;
        assert_eq!(journal.records(), 5);
        let mut values = Vec::new();
        journal.read(5, |value| values.push(value[0])).unwrap();
        assert_eq!(values, [0, 1, 2, 3, 4]);
        assert_eq!(journal.prefix(2).unwrap(), super::super::tree::hash_of_values(&[[0; 32], [1; 32]]));
        journal.truncate(2).unwrap();
        journal.append(&[9; 32]).unwrap();
        let recorded = Journal::open(open(&path), &[1; 32]).unwrap();
        assert_eq!(recorded.journal.records(), 3);
    }

    #[test]
    fn a_torn_or_foreign_journal_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, b"something else").unwrap();
        assert!(Journal::open(open(&path), &[1; 32]).is_none());
        let mut journal = Journal::create(open(&path), &[1; 32]).unwrap();
        journal.append(&[1; 32]).unwrap();
        let len = std::fs::metadata(&path).unwrap().len();
        open(&path).set_len(len - 1).unwrap();
        assert_eq!(Journal::open(open(&path), &[1; 32]).unwrap().journal.records(), 0);
    }
}
