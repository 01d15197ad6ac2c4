//! Room that is kept on the disk, so that messages can be removed when it is full.
//!
//! A removal needs room in the log before it gives pages back, and the log is copied into the database only if that can grow. The reserve is a
//! file that is deleted when a commit finds the disk full. The store is short of room from then on: what removes uses the room of the reserve,
//! and what adds is carried out only if free pages inside the database suffice, so that it does not grow. The reserve is made again when the
//! disk has room for it.

use super::mailboxes::PAGE_BYTES;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Of a small file system the reserve is this part.
const PART: u64 = 8;
/// After how many pages the log is copied into the database, at most.
const MAX_CHECKPOINT_PAGES: u64 = 4000;
const MIN_CHECKPOINT_PAGES: u64 = 64;

/// The file.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    is_kept: bool,
}

impl Reserve {
    /// Makes the reserve beside a database: `most` bytes, or an eighth of a small file system.
    pub(super) fn open(database: &Path, most: u64) -> io::Result<Self> {
        let mut path = database.as_os_str().to_owned();
        path.push("-reserve");
        let file_system = statvfs(database)?;
        let total = file_system.f_blocks.saturating_mul(file_system.f_frsize);
        let bytes = most.min(total / PART);
        let mut reserve = Self { path: path.into(), bytes, is_kept: false };
        reserve.is_kept = fs::metadata(&reserve.path).is_ok_and(|file| file.len() == bytes);
        if !reserve.restore() {
            reserve.report_short();
        }
        Ok(reserve)
    }

    /// Returns how many pages the log may have before it is copied into the database. The database then grows by less than the reserve.
    pub(super) fn checkpoint_pages(&self) -> u64 {
        (self.bytes / PAGE_BYTES / 2).clamp(MIN_CHECKPOINT_PAGES, MAX_CHECKPOINT_PAGES)
    }

    /// Returns how many bytes one transaction may store; one call may be larger.
    pub(super) fn batch_bytes(&self) -> usize {
        usize::try_from(self.bytes / 4).unwrap_or(usize::MAX)
    }

    /// Returns whether the disk was found full and the reserve is in use.
    pub(super) fn is_short(&self) -> bool {
        !self.is_kept
    }

    /// Gives the room to others. Returns false if it was given before.
    pub(super) fn release(&mut self) -> bool {
        if !std::mem::take(&mut self.is_kept) {
            return false;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the reserve cannot be deleted");
        }
        self.report_short();
        true
    }

    fn report_short(&self) {
        tracing::warn!(
            reserve = self.bytes,
            path = %self.path.display(),
            "the disk is full: messages are refused until some were removed or there is room"
        );
    }

    /// Makes the reserve if it is missing and there is room; returns whether it is there.
    pub(super) fn restore(&mut self) -> bool {
        if !self.is_kept && self.has_room() {
            match self.create() {
                Ok(()) => self.is_kept = true,
                Err(_) => drop(fs::remove_file(&self.path)),
            }
        }
        self.is_kept
    }

    /// The disk must have more than the reserve, so that it is not made and given away by turns.
    fn has_room(&self) -> bool {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        statvfs(folder).is_ok_and(|it| it.f_bavail.saturating_mul(it.f_frsize) / 3 * 2 > self.bytes)
    }

    fn create(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        if fallocate(&file, FallocateFlags::empty(), 0, self.bytes).is_err() {
            self.fill(&mut file)?;
        }
        file.sync_all()
    }

    /// Writes the file, on a file system that does not allocate otherwise.
    fn fill(&self, file: &mut File) -> io::Result<()> {
        file.set_len(0)?;
        let chunk = [0x5A; 4096];
        let mut left = self.bytes;
        while left > 0 {
            let length = left.min(chunk.len() as u64);
            file.write_all(&chunk[..usize::try_from(length).unwrap_or(0)])?;
            left -= length;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Reserve {
    /// A reserve that is in use, of a disk that has no room for it.
    pub(super) fn in_use() -> Self {
        Self { path: PathBuf::from("reserve"), bytes: u64::MAX, is_kept: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn the_reserve_occupies_the_disk_until_it_is_released_and_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("db");
        File::create(&database).unwrap();
        let mut reserve = Reserve::open(&database, 1 << 20).unwrap();
        let path = folder.path().join("db-reserve");
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.len(), file.permissions().mode() & 0o777), (1 << 20, 0o600));
        assert!(file.blocks() * 512 >= 1 << 20, "it is not sparse");
        assert!(!reserve.is_short());
        assert!(reserve.release() && !reserve.release());
        assert!(reserve.is_short() && !path.exists());
        assert!(reserve.restore() && path.exists() && !reserve.is_short());
        let again = Reserve::open(&database, 1 << 20).unwrap();
        assert!(!again.is_short(), "the file of an earlier start is used");
    }

    #[test]
    fn the_database_grows_by_less_than_the_reserve_when_the_log_is_copied() {
        for bytes in [1 << 20, 8 << 20, 32 << 20] {
            let reserve = Reserve { path: PathBuf::new(), bytes, is_kept: true };
            let log = reserve.checkpoint_pages() * PAGE_BYTES + reserve.batch_bytes() as u64;
            assert!(log <= bytes, "{bytes}: {log}");
        }
    }
}
