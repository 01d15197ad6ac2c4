//! The statements that create and read mailboxes, and the row of a message.

use super::accounts::parsed;
use crate::store::{
    AccountDeviceId, FORGET_EVERY, Mailbox, MailboxId, MessageKind, PageSize, REMEMBERED_IDS, StoreError,
    StoredMessage,
};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Result as SqlResult, Row, Statement, params};

pub(super) const PAGE_COUNT: &str = "PRAGMA page_count";
pub(super) const FREE_PAGES: &str = "PRAGMA freelist_count";
/// The size of a page of the database; SQLite's default.
pub(super) const PAGE_BYTES: u64 = 4096;
/// The columns of a [`Mailbox`].
const MAILBOX: &str = "id, epoch, last_sequence, messages, bytes";

/// Returns a number as SQLite has it; one that is larger than it can have as the largest.
pub(super) fn to_number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Returns a number that [`to_number`] has made.
pub(super) fn from_number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Reads a column that holds a number.
pub(super) fn number(row: &Row<'_>, column: usize) -> SqlResult<u64> {
    Ok(from_number(row.get(column)?))
}

fn read_mailbox(row: &Row<'_>) -> SqlResult<Mailbox> {
    Ok(Mailbox {
        id: MailboxId(row.get(0)?),
        epoch: number(row, 1)?,
        last_sequence: number(row, 2)?,
        messages: number(row, 3)?,
        bytes: number(row, 4)?,
    })
}

/// Returns the mailbox of a party.
pub(super) fn mailbox_of(connection: &Connection, owner: &str) -> Result<Option<Mailbox>, StoreError> {
    let statement = format!("SELECT {MAILBOX} FROM mailboxes WHERE owner = ?1 AND device IS NULL");
    Ok(connection.prepare_cached(&statement)?.query_row([owner], read_mailbox).optional()?)
}

/// Returns the mailbox of a party; creates it if there is none.
pub(super) fn open_mailbox(connection: &Connection, owner: &str) -> Result<Mailbox, StoreError> {
    let statement = "INSERT INTO mailboxes (owner, epoch) VALUES (?1, random() & 0x1FFFFFFFFFFFFF)
        ON CONFLICT DO NOTHING";
    connection.prepare_cached(statement)?.execute([owner])?;
    mailbox_of(connection, owner)?.ok_or(StoreError::NotFound)
}

pub(super) fn mailbox(connection: &Connection, id: MailboxId) -> Result<Mailbox, StoreError> {
    let statement = format!("SELECT {MAILBOX} FROM mailboxes WHERE id = ?1");
    let found = connection.prepare_cached(&statement)?.query_row([id.0], read_mailbox).optional()?;
    found.ok_or(StoreError::NotFound)
}

/// Returns a number of pages: `page_count`, or those of them that are free, `freelist_count`.
pub(super) fn pages(connection: &Connection, pragma: &'static str) -> SqlResult<u64> {
    connection.prepare_cached(pragma)?.query_row([], |row| number(row, 0))
}

/// A row of the table of messages.
pub(super) struct NewRow<'a> {
    pub(super) mailbox: i64,
    pub(super) sequence: u64,
    pub(super) kind: MessageKind,
    pub(super) sender: &'a str,
    pub(super) sender_device: Option<i64>,
    pub(super) message_id: &'a str,
    pub(super) is_encrypted: bool,
    pub(super) body: &'a [u8],
    pub(super) stored_at_ms: u64,
    pub(super) expires_at_ms: u64,
}

/// The statement of [`NewRow::insert`].
pub(super) const INSERT_MESSAGE: &str =
    "INSERT INTO messages (mailbox, sequence, kind, sender, sender_device,
        message_id, is_encrypted, body, stored_at, expires_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

impl NewRow<'_> {
    /// Stores it with the statement [`INSERT_MESSAGE`], and at times forgets the ids of long ago.
    pub(super) fn insert(
        &self,
        connection: &Connection,
        statement: &mut Statement<'_>,
    ) -> Result<(), StoreError> {
        let values = params![
            self.mailbox,
            to_number(self.sequence),
            self.kind as i64,
            self.sender,
            self.sender_device,
            self.message_id,
            self.is_encrypted,
            self.body,
            to_number(self.stored_at_ms),
            to_number(self.expires_at_ms),
        ];
        statement.execute(values)?;
        if !self.sequence.is_multiple_of(FORGET_EVERY) {
            return Ok(());
        }
        let statement = "DELETE FROM message_ids WHERE mailbox = ?1 AND sequence <= ?2 AND NOT EXISTS (
            SELECT 1 FROM messages AS stored
            WHERE stored.mailbox = message_ids.mailbox AND stored.sequence = message_ids.sequence)";
        let last = to_number(self.sequence.saturating_sub(REMEMBERED_IDS));
        connection.prepare_cached(statement)?.execute([self.mailbox, last])?;
        Ok(())
    }
}

fn kind(row: &Row<'_>, column: usize) -> SqlResult<MessageKind> {
    let number = row.get(column)?;
    let kinds = [MessageKind::Message, MessageKind::Delivered, MessageKind::Expired];
    let kind = kinds.into_iter().find(|kind| *kind as i64 == number);
    kind.ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
}

pub(super) fn messages(
    connection: &Connection,
    mailbox: MailboxId,
    after: u64,
    page: PageSize,
) -> Result<Vec<StoredMessage>, StoreError> {
    let statement = "SELECT sequence, kind, sender, sender_device, message_id, is_encrypted, body,
            stored_at, expires_at
        FROM messages WHERE mailbox = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3";
    let mut statement = connection.prepare_cached(statement)?;
    let mut rows = statement.query(params![mailbox.0, to_number(after), to_number(page.messages as u64)])?;
    let (mut messages, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let body = row.get_ref(6)?.as_blob().map_err(rusqlite::Error::from)?;
        bytes += body.len();
        if bytes > page.bytes && !messages.is_empty() {
            break;
        }
        messages.push(StoredMessage {
            sequence: number(row, 0)?,
            kind: kind(row, 1)?,
            sender: parsed(row, 2)?,
            sender_device: row.get::<_, Option<i64>>(3)?.map(AccountDeviceId),
            message_id: row.get(4)?,
            is_encrypted: row.get(5)?,
            body: Bytes::copy_from_slice(body),
            stored_at_ms: number(row, 7)?,
            expires_at_ms: number(row, 8)?,
        });
    }
    Ok(messages)
}
