//! The thread that writes: it puts the calls that wait into one transaction and answers them after its commit.
//!
//! A commit costs one synchronisation of the disk, however many calls are in it. The thread therefore waits, a few milliseconds at most,
//! until as many calls wait as there were callers last; a caller that is alone does not wait.

use super::call_queue::{BatchSize, CallQueue};
use super::failure::{is_disk_full, is_fatal};
use super::mailboxes::{FREE_PAGES, PAGE_BYTES, pages};
use super::reserve::Reserve;
use super::used_bytes::UsedBytes;
use super::writer_connection::WriterConnection;
use crate::limits::sampled;
use crate::net::time;
use crate::store::{StoreError, StoreFuture};
use rusqlite::Connection;
use std::fmt;
use std::future::ready;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// Most calls in one transaction.
const MAX_BATCH: usize = 1024;
/// What a call is charged besides its content.
const CALL_BYTES: usize = 512;
/// More pages than the rows of a call take besides its content.
const CALL_PAGES: u64 = 16;

/// What a call needs on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Room for content of so many bytes.
    Takes(usize),
    /// None: it removes.
    Frees,
}

impl Room {
    fn bytes(self) -> usize {
        match self {
            Self::Takes(bytes) => bytes,
            Self::Frees => 0,
        }
    }

    /// Returns how many pages are enough.
    fn pages(self) -> u64 {
        match self {
            Self::Takes(bytes) => CALL_PAGES + 2 * bytes as u64 / PAGE_BYTES,
            Self::Frees => 0,
        }
    }
}

/// A call that writes.
///
/// It may run again after a rollback. It returns an error only if it has changed nothing, or if the whole transaction must be rolled
/// back ([`is_fatal`]).
trait Write: Send {
    /// Runs inside the open transaction and keeps the result; returns whether the transaction can go on.
    fn run(&mut self, connection: &mut WriterConnection<'_>) -> bool;

    /// Answers the caller with the kept result, or with the error of the commit.
    fn finish(self: Box<Self>, commit: Result<(), StoreError>);

    /// What it needs on the disk.
    fn room(&self) -> Room;

    /// Returns whether it has found the disk full.
    fn found_disk_full(&self) -> bool;
}

struct QueuedCall<T, F> {
    room: Room,
    operation: F,
    result: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Write for QueuedCall<T, F>
where
    T: Send,
    F: FnMut(&mut WriterConnection<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &mut WriterConnection<'_>) -> bool {
        let result = (self.operation)(connection);
        let can_go_on = !matches!(&result, Err(error) if is_fatal(error));
        self.result = Some(result);
        can_go_on
    }

    fn finish(self: Box<Self>, commit: Result<(), StoreError>) {
        let result = match (self.result, commit) {
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(StoreError::Closed),
        };
        // The caller may have given up.
        let _ = self.caller.send(result);
    }

    fn room(&self) -> Room {
        self.room
    }

    fn found_disk_full(&self) -> bool {
        matches!(self.result, Some(Err(StoreError::DiskFull)))
    }
}

/// How many transactions were committed, and how many calls were in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitCounts {
    /// Transactions.
    pub commits: u64,
    /// Calls.
    pub calls: u64,
}

/// The callers' side of the thread.
pub(super) struct Writer {
    queue: CallQueue<Box<dyn Write>>,
    used_bytes: UsedBytes,
    commits: AtomicU64,
    calls: AtomicU64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(max_queued_bytes: usize) -> Self {
        let queue = CallQueue::new(max_queued_bytes);
        let used_bytes = UsedBytes::unknown();
        Self { queue, used_bytes, commits: AtomicU64::new(0), calls: AtomicU64::new(0) }
    }

    /// Returns how much is stored, for calls that run in the thread.
    pub(super) fn used_bytes(&self) -> &UsedBytes {
        &self.used_bytes
    }

    /// Queues a call.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        room: Room,
        operation: impl FnMut(&mut WriterConnection<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        let (caller, answer) = oneshot::channel();
        let call = QueuedCall { room, operation, result: None, caller };
        match self.queue.push(Box::new(call), CALL_BYTES + room.bytes()) {
            Ok(()) => Box::pin(async { answer.await.unwrap_or(Err(StoreError::Closed)) }),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    pub(super) fn counts(&self) -> CommitCounts {
        CommitCounts {
            commits: self.commits.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
        }
    }

    /// Refuses further calls; the thread ends after those that wait.
    pub(super) fn close(&self) {
        self.queue.close();
    }
}

/// Why a transaction was not committed.
enum Abort {
    /// A call failed, and has kept its error.
    Call,
    /// The database refused to begin or to commit.
    Database(rusqlite::Error),
}

impl Abort {
    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Database(error) if is_disk_full(error))
    }
}

impl From<rusqlite::Error> for Abort {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// Refuses further calls when the thread ends, whatever the reason.
struct CloseOnDrop<'a>(&'a Writer);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
        while self.0.queue.pop().is_some() {}
    }
}

/// Writes until the writer is closed.
pub(super) fn run(connection: &Connection, writer: &Writer, commit_wait: Duration, reserve: Option<Reserve>) {
    let _close = CloseOnDrop(writer);
    let bytes = reserve.as_ref().map_or(usize::MAX, Reserve::batch_bytes);
    let most = BatchSize { calls: MAX_BATCH, bytes };
    let mut thread = WriterThread { connection: WriterConnection::new(connection), writer, reserve };
    let mut batch: Vec<Box<dyn Write>> = Vec::new();
    let mut expected = 1;
    while writer.queue.pop_batch(&mut batch, most, expected, commit_wait) {
        thread.refuse_without_room(&mut batch);
        expected = thread.write(&mut batch);
    }
}

/// What the thread has.
struct WriterThread<'a> {
    connection: WriterConnection<'a>,
    writer: &'a Writer,
    /// Absent if the file system does not tell its size.
    reserve: Option<Reserve>,
}

impl WriterThread<'_> {
    /// Writes and answers a batch; returns how many calls are to be expected next.
    fn write(&mut self, batch: &mut Vec<Box<dyn Write>>) -> usize {
        let result = self.commit(batch);
        // Who is answered now may call again, beside those who have called meanwhile.
        let expected = batch.len() + self.writer.queue.len();
        if result.is_ok() {
            self.writer.count(batch.len());
            batch.drain(..).for_each(|call| call.finish(Ok(())));
        } else {
            // One call may be the cause.
            batch.drain(..).for_each(|call| self.commit_alone(call));
            self.copy_log();
        }
        expected
    }

    fn commit_alone(&mut self, mut call: Box<dyn Write>) {
        let error = loop {
            if self.is_short() && self.free_pages() < call.room().pages() {
                return call.finish(Err(StoreError::DiskFull));
            }
            match self.commit(slice::from_mut(&mut call)) {
                Ok(()) => {
                    self.writer.count(1);
                    return call.finish(Ok(()));
                }
                Err(error) => {
                    let is_full = error.is_disk_full() || call.found_disk_full();
                    if !(is_full && self.release_reserve()) {
                        break error;
                    }
                }
            }
        };
        match error {
            Abort::Call => call.finish(Ok(())),
            Abort::Database(error) => {
                sampled!(warn, time::mono(), %error, "the database refused a commit");
                call.finish(Err(error.into()));
            }
        }
    }

    /// Runs the calls in one transaction; rolls it back if it fails.
    fn commit(&mut self, calls: &mut [Box<dyn Write>]) -> Result<(), Abort> {
        self.writer.used_bytes.forget();
        let result = run_transaction(&mut self.connection, calls);
        // SQLite has rolled back already after some errors.
        if result.is_err()
            && !self.connection.is_autocommit()
            && let Err(error) = execute(&self.connection, "ROLLBACK")
        {
            sampled!(warn, time::mono(), %error, "a transaction was not rolled back");
        }
        result
    }

    /// Refuses what would let the database grow on a full disk.
    fn refuse_without_room(&mut self, batch: &mut Vec<Box<dyn Write>>) {
        if !self.is_short() {
            return;
        }
        if self.reserve.as_mut().is_some_and(Reserve::restore) {
            tracing::info!("the disk has room again");
            return;
        }
        let mut free = self.free_pages();
        let (kept, refused): (Vec<_>, Vec<_>) = batch.drain(..).partition(|call| {
            let pages = call.room().pages();
            let has_room = pages <= free;
            free -= if has_room { pages } else { 0 };
            has_room
        });
        refused.into_iter().for_each(|call| call.finish(Err(StoreError::DiskFull)));
        *batch = kept;
    }

    fn is_short(&self) -> bool {
        self.reserve.as_ref().is_some_and(Reserve::is_short)
    }

    fn free_pages(&self) -> u64 {
        pages(&self.connection, FREE_PAGES).unwrap_or(0)
    }

    /// Gives the room of the reserve to the database; returns false if there is none.
    fn release_reserve(&mut self) -> bool {
        let is_released = self.reserve.as_mut().is_some_and(Reserve::release);
        if is_released {
            self.copy_log();
        }
        is_released
    }

    /// With the log copied to the database, the next commits use its room.
    fn copy_log(&self) {
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
}

impl Writer {
    fn count(&self, calls: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.calls.fetch_add(calls as u64, Ordering::Relaxed);
    }
}

fn run_transaction(connection: &mut WriterConnection<'_>, calls: &mut [Box<dyn Write>]) -> Result<(), Abort> {
    execute(connection, "BEGIN IMMEDIATE")?;
    for call in calls {
        if !call.run(connection) {
            return Err(Abort::Call);
        }
    }
    Ok(execute(connection, "COMMIT")?)
}

fn execute(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A writer whose calls wait until its thread is run.
    fn writer_with_table() -> (Connection, Writer) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE numbers (number INTEGER UNIQUE)").unwrap();
        (connection, Writer::new(1 << 20))
    }

    fn insert(writer: &Writer, number: i64) -> StoreFuture<i64> {
        writer.submit(Room::Takes(0), move |connection| {
            connection.execute("INSERT INTO numbers VALUES (?1)", [number])?;
            Ok(number)
        })
    }

    fn wait<T>(future: StoreFuture<T>) -> Result<T, StoreError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn calls_that_wait_are_committed_together_and_answered_afterwards() {
        let (connection, writer) = writer_with_table();
        let calls: Vec<_> = (0..20).map(|number| insert(&writer, number)).collect();
        writer.close();
        run(&connection, &writer, Duration::ZERO, None);
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(wait(call).unwrap(), number as i64);
        }
        assert_eq!(writer.counts(), CommitCounts { commits: 1, calls: 20 });
        assert!(matches!(wait(insert(&writer, 99)), Err(StoreError::Closed)));
    }

    #[test]
    fn a_call_that_fails_leaves_the_others_of_its_batch() {
        let (connection, writer) = writer_with_table();
        let good = [insert(&writer, 1), insert(&writer, 2)];
        let bad = insert(&writer, 1);
        let refused: StoreFuture<()> = writer.submit(Room::Takes(0), |_| Err(StoreError::NotFound));
        let late = insert(&writer, 3);
        writer.close();
        run(&connection, &writer, Duration::ZERO, None);
        assert!(good.into_iter().chain([late]).all(|call| wait(call).is_ok()));
        assert!(matches!(wait(bad), Err(StoreError::Backend(_))));
        assert!(matches!(wait(refused), Err(StoreError::NotFound)));
        let count: i64 = connection.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 3);
    }

    #[test]
    fn on_a_full_disk_only_free_pages_are_written_to_and_removals_make_some() {
        let (connection, writer) = writer_with_table();
        connection.execute("CREATE TABLE blobs (blob BLOB)", []).unwrap();
        connection.execute("INSERT INTO blobs VALUES (zeroblob(1000000))", []).unwrap();
        let refused = insert(&writer, 1);
        let removed =
            writer.submit(Room::Frees, |connection| Ok(connection.execute("DELETE FROM blobs", [])?));
        writer.close();
        run(&connection, &writer, Duration::ZERO, Some(Reserve::in_use()));
        assert!(matches!(wait(refused), Err(StoreError::DiskFull)));
        assert_eq!(wait(removed).unwrap(), 1);
        let writer = Writer::new(1 << 20);
        let large = || {
            let write = |connection: &mut WriterConnection<'_>| {
                Ok(connection.execute("INSERT INTO blobs VALUES (zeroblob(300000))", [])?)
            };
            writer.submit(Room::Takes(300_000), write)
        };
        let (first, second) = (large(), large());
        writer.close();
        run(&connection, &writer, Duration::ZERO, Some(Reserve::in_use()));
        assert_eq!(wait(first).unwrap(), 1);
        assert!(matches!(wait(second), Err(StoreError::DiskFull)), "the pages are there once");
    }

    #[test]
    fn when_the_thread_dies_callers_are_told() {
        let (connection, writer) = writer_with_table();
        let dies: StoreFuture<()> = writer.submit(Room::Takes(0), |_| panic!("a fault of this test"));
        let waits = insert(&writer, 1);
        thread::scope(|scope| {
            scope.spawn(|| run(&{ connection }, &writer, Duration::ZERO, None)).join().unwrap_err();
        });
        assert!(matches!(wait(dies), Err(StoreError::Closed)));
        assert!(matches!(wait(waits), Err(StoreError::Closed)));
        assert!(matches!(wait(insert(&writer, 2)), Err(StoreError::Closed)));
    }
}
