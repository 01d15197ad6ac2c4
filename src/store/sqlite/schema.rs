//! The database file: opening, pragmas, schema versions.

use super::OpenError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How long a connection waits for the lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a connection keeps compiled.
const CACHED_STATEMENTS: usize = 64;

/// The changes from each schema version to the next; `user_version` is the number of those that a file has had.
const MIGRATIONS: &[&str] = &[
    // 1: the legacy protocol.
    "CREATE TABLE accounts (
         name TEXT PRIMARY KEY NOT NULL,
         password_hash TEXT,
         created_at INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE legacy_devices (
         id TEXT PRIMARY KEY NOT NULL,
         pinned_key BLOB,
         pinned_network TEXT,
         version TEXT NOT NULL,
         abilities TEXT NOT NULL,
         CHECK ((pinned_key IS NULL) <> (pinned_network IS NULL))
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE contacts (
         owner TEXT NOT NULL,
         contact TEXT NOT NULL,
         PRIMARY KEY (owner, contact)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE mailboxes (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         owner TEXT NOT NULL,
         epoch INTEGER NOT NULL,
         last_sequence INTEGER NOT NULL DEFAULT 0,
         messages INTEGER NOT NULL DEFAULT 0,
         bytes INTEGER NOT NULL DEFAULT 0
     ) STRICT;
     CREATE UNIQUE INDEX mailboxes_by_owner ON mailboxes (owner);
     CREATE TABLE messages (
         id INTEGER PRIMARY KEY,
         mailbox INTEGER NOT NULL,
         sequence INTEGER NOT NULL,
         sender TEXT NOT NULL,
         message_id TEXT NOT NULL,
         is_encrypted INTEGER NOT NULL,
         body BLOB NOT NULL,
         stored_at INTEGER NOT NULL,
         expires_at INTEGER NOT NULL
     ) STRICT;
     CREATE UNIQUE INDEX messages_by_sequence ON messages (mailbox, sequence);
     CREATE INDEX messages_by_expiry ON messages (expires_at);
     CREATE TABLE message_ids (
         mailbox INTEGER NOT NULL,
         sender TEXT NOT NULL,
         message_id TEXT NOT NULL,
         sequence INTEGER NOT NULL,
         forget_at INTEGER NOT NULL,
         PRIMARY KEY (mailbox, sender, message_id)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX message_ids_by_time ON message_ids (forget_at);",
    // 2: identity keys, devices of accounts with mailboxes of their own, receipts.
    "ALTER TABLE accounts ADD COLUMN identity_key BLOB;
     CREATE TABLE account_devices (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         account TEXT NOT NULL,
         label TEXT NOT NULL,
         signing_key BLOB NOT NULL,
         encryption_key BLOB NOT NULL,
         signature BLOB NOT NULL,
         created_at INTEGER NOT NULL,
         UNIQUE (account, signing_key)
     ) STRICT;
     ALTER TABLE mailboxes ADD COLUMN device INTEGER;
     DROP INDEX mailboxes_by_owner;
     CREATE UNIQUE INDEX mailboxes_by_owner ON mailboxes (owner) WHERE device IS NULL;
     CREATE UNIQUE INDEX mailboxes_by_device ON mailboxes (device) WHERE device IS NOT NULL;
     ALTER TABLE messages ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE messages ADD COLUMN sender_device INTEGER;",
    // 3: how many accounts and legacy devices there are.
    "CREATE TABLE parties (count INTEGER NOT NULL) STRICT;
     INSERT INTO parties SELECT (SELECT count(*) FROM accounts) + (SELECT count(*) FROM legacy_devices);
     CREATE TRIGGER account_inserted AFTER INSERT ON accounts BEGIN UPDATE parties SET count = count + 1; END;
     CREATE TRIGGER account_deleted AFTER DELETE ON accounts BEGIN UPDATE parties SET count = count - 1; END;
     CREATE TRIGGER legacy_device_inserted AFTER INSERT ON legacy_devices
         BEGIN UPDATE parties SET count = count + 1; END;
     CREATE TRIGGER legacy_device_deleted AFTER DELETE ON legacy_devices
         BEGIN UPDATE parties SET count = count - 1; END;",
    // 4: how much each sender has in a mailbox.
    "CREATE TABLE mailbox_senders (
         mailbox INTEGER NOT NULL,
         sender TEXT NOT NULL,
         messages INTEGER NOT NULL,
         bytes INTEGER NOT NULL,
         PRIMARY KEY (mailbox, sender)
     ) STRICT, WITHOUT ROWID;
     INSERT INTO mailbox_senders
         SELECT mailbox, sender, count(*), sum(length(body)) FROM messages WHERE kind = 0 GROUP BY mailbox, sender;",
];

/// Opens the database, creates the file (0600) if there is none, and brings its schema to the current version.
pub(super) fn open_database(path: &Path) -> Result<Connection, OpenError> {
    create_file(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    let failed = |source| OpenError::database(path, source);
    let mut connection = connect(path).map_err(failed)?;
    // Readers and the writer do not wait for each other; a commit is durable when it returns.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    // A large batch changes more pages than the default, 1000: it would copy them twice at each commit.
    connection.pragma_update(None, "wal_autocheckpoint", 4000).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -16_000).map_err(failed)?;
    migrate(&mut connection, path, MIGRATIONS.len())?;
    Ok(connection)
}

/// Opens one more connection, which cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let connection = connect(path).map_err(|source| OpenError::database(path, source))?;
    connection.pragma_update(None, "query_only", true).map_err(|source| OpenError::database(path, source))?;
    Ok(connection)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Without the guarantee SQLite compiles most cached statements anew each time that values are bound to them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(connection)
}

/// SQLite gives the permissions of this file to those that it creates beside it.
fn create_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.sync_all()?;
            path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Applies the migrations up to version `target`, each in a transaction of its own.
fn migrate(connection: &mut Connection, path: &Path, target: usize) -> Result<(), OpenError> {
    let failed = |source| OpenError::database(path, source);
    loop {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let version: i64 =
            transaction.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        let (known, newest) = (usize::try_from(version).ok(), MIGRATIONS.len());
        let Some(done) = known.filter(|done| *done <= newest) else {
            return Err(OpenError::NewerVersion { path: path.to_owned(), found: version, supported: newest });
        };
        if done >= target {
            return Ok(());
        }
        transaction.execute_batch(MIGRATIONS[done]).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SqliteConfig, SqliteStore};
    use super::*;
    use crate::store::{
        Account, Acknowledgement, Appended, DevicePin, Mailbox, MessageCopy, MessageKind, NewAccountDevice,
        NewMessage, PageSize, Party, Store, StoreFuture,
    };
    use rusqlite::StatementStatus;
    use std::os::unix::fs::PermissionsExt;

    fn done<T>(future: StoreFuture<T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future).unwrap()
    }

    fn version(path: &Path) -> i64 {
        let connection = Connection::open(path).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    /// Makes a file of schema version 1 with a row in each table.
    fn make_version_1(path: &Path) {
        let mut connection = Connection::open(path).unwrap();
        migrate(&mut connection, path, 1).unwrap();
        let rows = "INSERT INTO accounts VALUES ('alice', 'hash', 1);
             INSERT INTO legacy_devices VALUES ('lamp', NULL, '192.0.2.0/24', '1.0', '[\"light\"]');
             INSERT INTO contacts VALUES ('user:alice', 'dev:lamp');
             INSERT INTO mailboxes VALUES (7, 'user:alice', 99, 4, 1, 5);
             INSERT INTO messages VALUES (1, 7, 4, 'dev:lamp', 'id', 0, CAST('hello' AS BLOB), 10, 9999);
             INSERT INTO message_ids VALUES (7, 'dev:lamp', 'id', 4, 5000);";
        connection.execute_batch(rows).unwrap();
    }

    #[test]
    fn a_file_of_version_1_is_brought_to_the_current_version_with_all_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages.db");
        make_version_1(&path);
        assert_eq!(version(&path), 1);
        let store = SqliteStore::open(&path, SqliteConfig::default()).unwrap();
        assert_eq!(version(&path), 4);
        let (alice, lamp) = (Party::User("alice".to_owned()), Party::Device("lamp".to_owned()));
        let account = Account {
            name: "alice".to_owned(),
            password_hash: Some("hash".to_owned()),
            identity_key: None,
            created_at_ms: 1,
        };
        assert_eq!(done(store.account("alice")), Some(account));
        let device = done(store.legacy_device("lamp")).unwrap();
        assert_eq!(device.pin, DevicePin::Network("192.0.2.0/24".parse().unwrap()));
        assert_eq!(device.abilities, ["light"]);
        assert_eq!(done(store.contacts(&alice)), std::slice::from_ref(&lamp));
        let mailbox = done(store.open_mailbox(&alice));
        assert_eq!((mailbox.epoch, mailbox.last_sequence, mailbox.messages, mailbox.bytes), (99, 4, 1, 5));
        check_messages(&store, &path, mailbox, lamp);
    }

    /// Checks that the message of version 1 is there, and that version 2 works beside it.
    fn check_messages(store: &SqliteStore, path: &Path, mailbox: Mailbox, lamp: Party) {
        let page = PageSize { messages: 10, bytes: 1000 };
        let messages = done(store.messages(mailbox.id, 0, page));
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].kind, &messages[0].body[..]), (MessageKind::Message, &b"hello"[..]));
        let copy = MessageCopy { mailbox: mailbox.id, is_encrypted: false, body: "again".into() };
        let mut message = NewMessage {
            sender: lamp,
            sender_device: None,
            message_id: "id".to_owned(),
            stored_at_ms: 20,
            expires_at_ms: 9999,
            copies: vec![copy],
        };
        assert_eq!(done(store.append(message.clone())), [Appended::Duplicate]);
        let device = NewAccountDevice {
            account: "alice".to_owned(),
            label: String::new(),
            signing_key: [1; 32],
            encryption_key: [2; 32],
            signature: [3; 64],
            created_at_ms: 2,
        };
        let device = done(store.insert_account_device(device));
        assert!(device.mailbox > mailbox.id);
        (message.message_id, message.sender_device) = ("next".to_owned(), Some(device.id));
        assert_eq!(done(store.append(message)), [Appended::Stored(5)]);
        let held = || -> Vec<(String, i64, i64)> {
            let connection = Connection::open(path).unwrap();
            let statement = "SELECT sender, messages, bytes FROM mailbox_senders";
            let mut statement = connection.prepare(statement).unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
            rows.unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(held(), [("dev:lamp".to_owned(), 2, 10)]);
        let removed = done(store.acknowledge(mailbox.id, Acknowledgement::UpTo(5), 30));
        assert_eq!(held(), []);
        assert_eq!((removed.messages, removed.notified), (2, vec![device.mailbox]));
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages.db");
        drop(SqliteStore::open(&path, SqliteConfig::default()).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = SqliteStore::open(&path, SqliteConfig::default()).unwrap_err();
        assert!(matches!(error, OpenError::NewerVersion { found: 99, supported: 4, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("messages.db") && text.contains("99") && text.contains("newer"), "{text}");
        assert_eq!(version(&path), 99);
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages.db");
        std::fs::write(&path, "not a database, but longer than its header".repeat(100)).unwrap();
        let error = SqliteStore::open(&path, SqliteConfig::default()).unwrap_err();
        assert!(matches!(error, OpenError::Database { .. }), "{error:?}");
        assert!(error.to_string().contains("messages.db"), "{error}");
        // A folder in its place is what nobody can write.
        let locked = folder.path().join("locked");
        drop(SqliteStore::open(&locked, SqliteConfig::default()).unwrap());
        std::fs::create_dir(folder.path().join("locked-wal")).unwrap();
        let error = SqliteStore::open(&locked, SqliteConfig::default()).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
        assert!(error.to_string().contains("cannot be written"), "{error}");
        let missing = folder.path().join("none/messages.db");
        let error = SqliteStore::open(&missing, SqliteConfig::default()).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    }

    #[test]
    fn the_files_are_readable_by_nobody_else_and_a_commit_is_synchronous() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages.db");
        let connection = open_database(&path).unwrap();
        connection.execute("INSERT INTO contacts VALUES ('a', 'b')", []).unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 3, "{files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
        let pragma = |name: &str| {
            connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
        assert_eq!(pragma("synchronous"), 2.into());
        let reader = open_reader(&path).unwrap();
        reader.execute("DELETE FROM contacts", []).unwrap_err();
    }

    #[test]
    fn a_cached_statement_is_compiled_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages.db");
        for connection in [open_database(&path).unwrap(), open_reader(&path).unwrap()] {
            for number in 0..10 {
                let statement = "SELECT 1 FROM mailboxes WHERE id > ?1 AND messages = ?2 LIMIT ?3";
                let mut statement = connection.prepare_cached(statement).unwrap();
                statement.exists([number, number, number]).unwrap();
                assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
            }
        }
    }
}
