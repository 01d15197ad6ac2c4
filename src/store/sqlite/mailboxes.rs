//! The statements that create and read mailboxes, and append to them.

use super::accounts::parsed;
use super::used_bytes::UsedBytes;
use crate::limits::Limit;
use crate::store::{
    AccountDeviceId, Appended, FORGET_EVERY, Full, Mailbox, MailboxId, MessageCopy, MessageKind, NewMessage,
    PageSize, REMEMBERED_FOR_MS, REMEMBERED_IDS, StoreError, StoreLimits, StoredMessage,
};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Result as SqlResult, Row, params};

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

pub(super) fn append(
    connection: &Connection,
    limits: &StoreLimits,
    used: &UsedBytes,
    message: &NewMessage,
) -> Result<Vec<Appended>, StoreError> {
    check_stored_bytes(connection, limits, used, message)?;
    let sender = message.sender.to_string();
    let append_all = || -> Result<Vec<_>, StoreError> {
        message.copies.iter().map(|copy| append_copy(connection, limits, message, &sender, copy)).collect()
    };
    // A single copy changes nothing if it is refused.
    if message.copies.len() < 2 {
        return append_all();
    }
    connection.prepare_cached("SAVEPOINT message")?.execute([])?;
    let result = append_all();
    if result.is_err() && !connection.is_autocommit() {
        connection.prepare_cached("ROLLBACK TO message")?.execute([])?;
    }
    if !connection.is_autocommit() {
        connection.prepare_cached("RELEASE message")?.execute([])?;
    }
    result
}

/// Returns a number of pages: `page_count`, or those of them that are free, `freelist_count`.
pub(super) fn pages(connection: &Connection, pragma: &'static str) -> SqlResult<u64> {
    connection.prepare_cached(pragma)?.query_row([], |row| number(row, 0))
}

/// Refuses a message if the pages in use have as many bytes as the store may.
fn check_stored_bytes(
    connection: &Connection,
    limits: &StoreLimits,
    used: &UsedBytes,
    message: &NewMessage,
) -> Result<(), StoreError> {
    let bytes = message.copies.iter().map(|copy| copy.body.len() as u64).sum();
    if !used.has_room(connection, bytes, limits.stored_bytes)? {
        Limit::StoreBytes.reached(limits.stored_bytes);
        return Err(StoreError::Full(Full::Store));
    }
    used.add(message.copies.len() as u64, bytes);
    Ok(())
}

fn append_copy(
    connection: &Connection,
    limits: &StoreLimits,
    message: &NewMessage,
    sender: &str,
    copy: &MessageCopy,
) -> Result<Appended, StoreError> {
    // Checks the limits, looks for a duplicate and takes the next number in one statement.
    let statement = "INSERT INTO message_ids (mailbox, sender, message_id, sequence, forget_at)
        SELECT box.id, ?2, ?3, box.last_sequence + 1, ?4 FROM mailboxes AS box
        LEFT JOIN mailbox_senders AS held ON held.mailbox = box.id AND held.sender = ?2
        WHERE box.id = ?1 AND box.messages < ?5 AND box.bytes + ?6 <= ?7
            AND (box.messages < ?8 AND box.bytes + ?6 <= ?9
                AND coalesce(held.messages, 0) < ?10 AND coalesce(held.bytes, 0) + ?6 <= ?11
                OR box.owner = ?2
                OR EXISTS (SELECT 1 FROM contacts WHERE owner = box.owner AND contact = ?2))
        ON CONFLICT DO NOTHING RETURNING sequence";
    let length = copy.body.len() as u64;
    let values = params![
        copy.mailbox.0,
        sender,
        message.message_id,
        to_number(message.stored_at_ms.saturating_add(REMEMBERED_FOR_MS)),
        to_number(limits.messages_per_mailbox),
        to_number(length),
        to_number(limits.bytes_per_mailbox),
        to_number(limits.strangers.messages_per_mailbox),
        to_number(limits.strangers.bytes_per_mailbox),
        to_number(limits.strangers.messages_per_sender),
        to_number(limits.strangers.bytes_per_sender),
    ];
    let sequence =
        connection.prepare_cached(statement)?.query_row(values, |row| number(row, 0)).optional()?;
    let Some(sequence) = sequence else {
        return refuse(connection, limits, copy, sender, &message.message_id);
    };
    let statement = "INSERT INTO mailbox_senders (mailbox, sender, messages, bytes) VALUES (?1, ?2, 1, ?3)
        ON CONFLICT DO UPDATE SET messages = messages + 1, bytes = bytes + ?3";
    connection.prepare_cached(statement)?.execute(params![copy.mailbox.0, sender, to_number(length)])?;
    let statement = "UPDATE mailboxes SET last_sequence = ?2, messages = messages + 1, bytes = bytes + ?3
        WHERE id = ?1";
    let values = params![copy.mailbox.0, to_number(sequence), to_number(length)];
    connection.prepare_cached(statement)?.execute(values)?;
    let row = NewRow {
        mailbox: copy.mailbox.0,
        sequence,
        kind: MessageKind::Message,
        sender,
        sender_device: message.sender_device.map(|device| device.0),
        message_id: &message.message_id,
        is_encrypted: copy.is_encrypted,
        body: &copy.body,
        stored_at_ms: message.stored_at_ms,
        expires_at_ms: message.expires_at_ms,
    };
    row.insert(connection)?;
    Ok(Appended::Stored(sequence))
}

/// Finds out why a mailbox did not take a message.
fn refuse(
    connection: &Connection,
    limits: &StoreLimits,
    copy: &MessageCopy,
    sender: &str,
    message_id: &str,
) -> Result<Appended, StoreError> {
    let (id, length) = (copy.mailbox, copy.body.len() as u64);
    let state = mailbox(connection, id)?;
    let statement = "SELECT 1 FROM message_ids WHERE mailbox = ?1 AND sender = ?2 AND message_id = ?3";
    if connection.prepare_cached(statement)?.exists(params![id.0, sender, message_id])? {
        return Ok(Appended::Duplicate);
    }
    let bytes = state.bytes.saturating_add(length);
    if state.messages < limits.messages_per_mailbox && bytes <= limits.bytes_per_mailbox {
        let statement = "SELECT messages, bytes FROM mailbox_senders WHERE mailbox = ?1 AND sender = ?2";
        let read = |row: &Row<'_>| Ok((number(row, 0)?, number(row, 1)?));
        let held = connection.prepare_cached(statement)?.query_row(params![id.0, sender], read).optional()?;
        let (messages, bytes) = held.unwrap_or_default();
        let strangers = &limits.strangers;
        if messages >= strangers.messages_per_sender || bytes + length > strangers.bytes_per_sender {
            Limit::StoreSenderShare.reached(strangers.messages_per_sender);
            return Err(StoreError::Full(Full::SenderShare(id)));
        }
    }
    match state.messages >= limits.strangers.messages_per_mailbox.min(limits.messages_per_mailbox) {
        true => Limit::StoreMessagesPerMailbox.reached(limits.messages_per_mailbox),
        false => Limit::StoreBytesPerMailbox.reached(limits.bytes_per_mailbox),
    }
    Err(StoreError::Full(Full::Mailbox(id)))
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

impl NewRow<'_> {
    /// Stores it, and at times forgets the ids of long ago.
    pub(super) fn insert(&self, connection: &Connection) -> Result<(), StoreError> {
        let statement = "INSERT INTO messages (mailbox, sequence, kind, sender, sender_device, message_id,
                is_encrypted, body, stored_at, expires_at)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
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
        connection.prepare_cached(statement)?.execute(values)?;
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
