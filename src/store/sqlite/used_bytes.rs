//! How many bytes of the database are in use.

use super::mailboxes::{FREE_PAGES, PAGE_BYTES, PAGE_COUNT, pages};
use rusqlite::{Connection, Result as SqlResult};
use std::sync::atomic::{AtomicU64, Ordering};

/// An estimate of the bytes in use, for the writer's thread.
///
/// It is read once per transaction, because SQLite compiles a PRAGMA anew each time that it runs. What the transaction adds is then counted, and
/// rather too much: the bytes are read again before a message is refused.
#[derive(Debug)]
pub(super) struct UsedBytes(AtomicU64);

impl UsedBytes {
    pub(super) fn unknown() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// Forgets the estimate when a transaction begins.
    pub(super) fn forget(&self) {
        self.0.store(u64::MAX, Ordering::Relaxed);
    }

    /// Returns whether `bytes` more are within a limit.
    pub(super) fn has_room(&self, connection: &Connection, bytes: u64, limit: u64) -> SqlResult<bool> {
        let is_within = |used: u64| used.saturating_add(bytes) <= limit;
        if is_within(self.0.load(Ordering::Relaxed)) {
            return Ok(true);
        }
        let in_use = pages(connection, PAGE_COUNT)?.saturating_sub(pages(connection, FREE_PAGES)?);
        let used = in_use.saturating_mul(PAGE_BYTES);
        self.0.store(used, Ordering::Relaxed);
        Ok(is_within(used))
    }

    /// Counts content of so many rows; a page more for each is enough for the tables and indexes.
    pub(super) fn add(&self, rows: u64, bytes: u64) {
        let used = self.0.load(Ordering::Relaxed);
        self.0.store(used.saturating_add(rows * PAGE_BYTES + bytes), Ordering::Relaxed);
    }
}
