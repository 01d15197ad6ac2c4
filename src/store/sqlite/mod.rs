//! The store in one SQLite file.
//!
//! | file | content |
//! | --- | --- |
//! | `schema.rs` | opening, pragmas, schema versions and the migrations between them |
//! | `writer.rs` | the thread that writes: many calls in one transaction |
//! | `reader.rs` | the threads that read |
//! | `reserve.rs` | room on the disk for what removes |
//! | `used_bytes.rs` | how much is stored, for the limit |
//! | `call_queue.rs` | the bounded queue before each of them |
//! | `append.rs`, `writer_connection.rs` | what an append does, and its statements, compiled once |
//! | `accounts.rs`, `mailboxes.rs`, `removal.rs` | the other statements |
//!
//! The database is in WAL mode with `synchronous = FULL`: a commit returns after the log that contains it has been synchronised with the
//! disk. Readers see the last commit, and neither wait for the writer nor block it.

mod accounts;
mod append;
mod call_queue;
mod failure;
mod mailboxes;
mod reader;
mod removal;
mod reserve;
mod schema;
mod used_bytes;
mod writer;
mod writer_connection;

pub use writer::CommitCounts;

use super::account::{Account, AccountDevice, AccountDeviceId, LegacyDevice, NewAccountDevice};
use super::error::{StoreError, require_short};
use super::mailbox::{
    Acknowledgement, Appended, Mailbox, MailboxId, NewMessage, PageSize, Removed, StoreLimits, StoredMessage,
};
use super::party::Party;
use super::{MAX_DETAILS, MAX_NAME, Store, StoreFuture};
use reader::Readers;
use reserve::Reserve;
use rusqlite::Connection;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use writer::{Room, Writer};
use writer_connection::WriterConnection;

/// Settings of [`SqliteStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteConfig {
    /// How much is stored.
    pub limits: StoreLimits,
    /// The longest that a write waits for others to share its commit; 2 ms.
    pub commit_wait: Duration,
    /// Threads that read; 2.
    pub readers: usize,
    /// Bytes of writes that wait for the disk; 32 MiB.
    pub queued_bytes: usize,
    /// Bytes that are kept free, so that messages can be removed from a full disk; 32 MiB, and at most an eighth of the file system.
    pub reserve_bytes: u64,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self {
            limits: StoreLimits::default(),
            commit_wait: Duration::from_millis(2),
            readers: 2,
            queued_bytes: 32 * 1024 * 1024,
            reserve_bytes: 32 * 1024 * 1024,
        }
    }
}

/// Why the database was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file or a thread could not be created.
    #[error("{path}: {source}")]
    Io {
        /// The database file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file was written by a newer version of this program.
    #[error(
        "{path}: written by a newer version of ginnel (schema {found}; this one knows up to {supported})"
    )]
    NewerVersion {
        /// The database file.
        path: PathBuf,
        /// The schema version of the file.
        found: i64,
        /// The newest schema version that this program knows.
        supported: usize,
    },
    /// SQLite refused the file.
    #[error("{path}: {source}")]
    Database {
        /// The database file.
        path: PathBuf,
        /// SQLite's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl OpenError {
    fn database(path: &Path, source: rusqlite::Error) -> Self {
        if failure::is_not_writable(&source) {
            let what = "the file, its folder or the file system cannot be written";
            let source = io::Error::new(io::ErrorKind::PermissionDenied, what);
            return Self::Io { path: path.to_owned(), source };
        }
        Self::Database { path: path.to_owned(), source: Box::new(source) }
    }
}

/// Keeps everything in one SQLite file.
///
/// Dropping it refuses further calls, completes those that wait, and blocks until the file is closed.
#[derive(Debug)]
pub struct SqliteStore {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    limits: StoreLimits,
    writer: Writer,
    readers: Readers,
}

impl SqliteStore {
    /// Opens a database, and creates it (0600) if there is none. Blocks while the schema of an older file is brought to the current version.
    ///
    /// # Errors
    /// [`OpenError`] names the file.
    pub fn open(path: &Path, config: SqliteConfig) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        let database = schema::open_database(path)?;
        let reserve = Reserve::open(path, config.reserve_bytes)
            .inspect_err(|error| tracing::warn!(%error, "no room is kept for a full disk"))
            .ok();
        if let Some(reserve) = &reserve {
            let pages = reserve.checkpoint_pages();
            let set = database.pragma_update(None, "wal_autocheckpoint", pages as i64);
            set.map_err(|source| OpenError::database(path, source))?;
        }
        let readers: Result<Vec<_>, _> =
            (0..config.readers.max(1)).map(|_| schema::open_reader(path)).collect();
        let shared = Arc::new(Shared {
            limits: config.limits,
            writer: Writer::new(config.queued_bytes),
            readers: Readers::new(),
        });
        // Dropped on an error, it ends the threads that run already.
        let mut store = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let commit_wait = config.commit_wait;
        let writer = move || writer::run(&database, &shared.writer, commit_wait, reserve);
        store.spawn("store-writer", writer).map_err(failed)?;
        for connection in readers? {
            let shared = Arc::clone(&store.shared);
            store.spawn("store-reader", move || shared.readers.run(&connection)).map_err(failed)?;
        }
        Ok(store)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Returns how many transactions were committed since the start, and how many calls were in them.
    #[must_use]
    pub fn commit_counts(&self) -> CommitCounts {
        self.shared.writer.counts()
    }

    fn write<T: Send + 'static>(
        &self,
        operation: impl FnMut(&mut WriterConnection<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        self.shared.writer.submit(Room::Takes(0), operation)
    }

    /// Writes unless what is to be written was refused.
    fn write_checked<T: Send + 'static>(
        &self,
        checked: Result<(), StoreError>,
        operation: impl FnMut(&mut WriterConnection<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        match checked {
            Ok(()) => self.write(operation),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn read<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        self.shared.readers.submit(operation)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.writer.close();
        self.shared.readers.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has closed its queue.
            let _ = thread.join();
        }
    }
}

impl Store for SqliteStore {
    fn insert_account(&self, account: Account) -> StoreFuture<()> {
        let (limits, checked) = (self.shared.limits, account.check());
        self.write_checked(checked, move |connection| accounts::insert_account(connection, &limits, &account))
    }

    fn account(&self, name: &str) -> StoreFuture<Option<Account>> {
        let name = name.to_owned();
        self.read(move |connection| accounts::account(connection, &name))
    }

    fn set_password_hash(&self, account: &str, password_hash: String) -> StoreFuture<()> {
        let (account, checked) = (account.to_owned(), require_short(password_hash.len() <= MAX_DETAILS));
        self.write_checked(checked, move |connection| {
            accounts::set_password_hash(connection, &account, &password_hash)
        })
    }

    fn set_identity_key(&self, account: &str, identity_key: [u8; 32]) -> StoreFuture<()> {
        let account = account.to_owned();
        self.write(move |connection| accounts::set_identity_key(connection, &account, &identity_key))
    }

    fn insert_account_device(&self, device: NewAccountDevice) -> StoreFuture<AccountDevice> {
        let (limits, checked) = (self.shared.limits, device.check());
        self.write_checked(checked, move |connection| {
            accounts::insert_account_device(connection, &limits, &device)
        })
    }

    fn account_devices(&self, account: &str) -> StoreFuture<Vec<AccountDevice>> {
        let account = account.to_owned();
        self.read(move |connection| accounts::account_devices(connection, &account))
    }

    fn set_device_label(&self, account: &str, device: AccountDeviceId, label: String) -> StoreFuture<()> {
        let (account, checked) = (account.to_owned(), require_short(label.len() <= MAX_NAME));
        self.write_checked(checked, move |connection| {
            accounts::set_device_label(connection, &account, device, &label)
        })
    }

    fn remove_account_device(
        &self,
        account: &str,
        device: AccountDeviceId,
        now_ms: u64,
    ) -> StoreFuture<Removed> {
        removal::remove_account_device(Arc::clone(&self.shared), account.to_owned(), device, now_ms)
    }

    fn insert_legacy_device(&self, device: LegacyDevice) -> StoreFuture<()> {
        let (limits, checked) = (self.shared.limits, device.check());
        self.write_checked(checked, move |connection| {
            accounts::insert_legacy_device(connection, &limits, &device)
        })
    }

    fn legacy_device(&self, id: &str) -> StoreFuture<Option<LegacyDevice>> {
        let id = id.to_owned();
        self.read(move |connection| accounts::legacy_device(connection, &id))
    }

    fn update_legacy_device(&self, device: LegacyDevice) -> StoreFuture<()> {
        let checked = device.check();
        self.write_checked(checked, move |connection| accounts::update_legacy_device(connection, &device))
    }

    fn insert_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<()> {
        let checked = owner.check().and_then(|()| contact.check());
        let (limits, owner, contact) = (self.shared.limits, owner.to_string(), contact.to_string());
        self.write_checked(checked, move |connection| {
            accounts::insert_contact(connection, &limits, &owner, &contact)
        })
    }

    fn remove_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<()> {
        let (owner, contact) = (owner.to_string(), contact.to_string());
        let remove = move |connection: &mut WriterConnection<'_>| {
            accounts::remove_contact(connection, &owner, &contact)
        };
        self.shared.writer.submit(Room::Frees, remove)
    }

    fn contacts(&self, owner: &Party) -> StoreFuture<Vec<Party>> {
        let owner = owner.to_string();
        self.read(move |connection| accounts::contacts(connection, &owner))
    }

    fn mutual_contacts(&self, owner: &Party) -> StoreFuture<Vec<Party>> {
        let owner = owner.to_string();
        self.read(move |connection| accounts::mutual_contacts(connection, &owner))
    }

    fn has_contact(&self, owner: &Party, contact: &Party) -> StoreFuture<bool> {
        let (owner, contact) = (owner.to_string(), contact.to_string());
        self.read(move |connection| accounts::has_contact(connection, &owner, &contact))
    }

    fn open_mailbox(&self, party: &Party) -> StoreFuture<Mailbox> {
        let checked = party.check();
        let (shared, owner) = (Arc::clone(&self.shared), party.to_string());
        let wanted = owner.clone();
        let existing = self.read(move |connection| mailboxes::mailbox_of(connection, &wanted));
        Box::pin(async move {
            match existing.await? {
                Some(mailbox) => Ok(mailbox),
                None => {
                    checked?;
                    let create = move |connection: &mut WriterConnection<'_>| {
                        mailboxes::open_mailbox(connection, &owner)
                    };
                    shared.writer.submit(Room::Takes(0), create).await
                }
            }
        })
    }

    fn mailbox(&self, id: MailboxId) -> StoreFuture<Mailbox> {
        self.read(move |connection| mailboxes::mailbox(connection, id))
    }

    fn append(&self, message: NewMessage) -> StoreFuture<Vec<Appended>> {
        if let Err(error) = message.check() {
            return Box::pin(ready(Err(error)));
        }
        let shared = Arc::clone(&self.shared);
        let bytes = message.copies.iter().map(|copy| copy.body.len()).sum();
        let append = move |writer: &mut WriterConnection<'_>| {
            append::append(writer, &shared.limits, shared.writer.used_bytes(), &message)
        };
        self.shared.writer.submit(Room::Takes(bytes), append)
    }

    fn messages(&self, mailbox: MailboxId, after: u64, page: PageSize) -> StoreFuture<Vec<StoredMessage>> {
        self.read(move |connection| mailboxes::messages(connection, mailbox, after, page))
    }

    fn acknowledge(
        &self,
        mailbox: MailboxId,
        acknowledgement: Acknowledgement,
        now_ms: u64,
    ) -> StoreFuture<Removed> {
        removal::acknowledge(Arc::clone(&self.shared), mailbox, acknowledgement, now_ms)
    }

    fn expire(&self, now_ms: u64) -> StoreFuture<Removed> {
        removal::expire(Arc::clone(&self.shared), now_ms)
    }
}
