//! The statements that remove messages: acknowledged ones and expired ones, with the receipts for their senders.
//!
//! What is removed can be many rows. It is removed in several transactions, so that other writers do not wait for all of it.

use super::Shared;
use super::accounts::{self, parsed, rows};
use super::mailboxes::{INSERT_MESSAGE, NewRow, mailbox, number, to_number};
use super::writer::Room;
use super::writer_connection::WriterConnection;
use crate::limits::Limit;
use crate::store::{
    AccountDeviceId, Acknowledgement, MailboxId, MessageKind, Party, Removed, StoreError, StoreFuture,
    StoreLimits,
};
use rusqlite::{Connection, OptionalExtension, Result as SqlResult, Row, params};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Most rows that one transaction removes.
const CHUNK: usize = 512;

/// The columns of a [`DueMessage`].
const DUE: &str =
    "id, mailbox, kind, sender, sender_device, message_id, length(body), expires_at - stored_at";

/// A message that is to be removed.
struct DueMessage {
    id: i64,
    mailbox: i64,
    is_message: bool,
    sender: String,
    sender_device: Option<i64>,
    message_id: String,
    bytes: u64,
    lifetime_ms: u64,
}

impl DueMessage {
    fn read(row: &Row<'_>) -> SqlResult<Self> {
        Ok(Self {
            id: row.get(0)?,
            mailbox: row.get(1)?,
            is_message: row.get::<_, i64>(2)? == MessageKind::Message as i64,
            sender: row.get(3)?,
            sender_device: row.get(4)?,
            message_id: row.get(5)?,
            bytes: number(row, 6)?,
            lifetime_ms: number(row, 7)?,
        })
    }
}

/// What one transaction has removed, and whether more may be left.
struct Chunk {
    removed: Removed,
    is_full: bool,
}

/// Removes in chunks until nothing is left. The first chunk is queued at once.
fn in_chunks(
    shared: Arc<Shared>,
    remove: impl Fn(&Connection, &StoreLimits) -> Result<Chunk, StoreError> + Send + Sync + 'static,
) -> StoreFuture<Removed> {
    let remove = Arc::new(remove);
    let limits = shared.limits;
    let submit = move || {
        let remove = Arc::clone(&remove);
        shared.writer.submit(Room::Frees, move |connection| remove(connection, &limits))
    };
    let first = submit();
    Box::pin(async move {
        let mut chunk = first.await?;
        let mut removed = chunk.removed;
        while chunk.is_full {
            chunk = submit().await?;
            add(&mut removed, chunk.removed);
        }
        Ok(removed)
    })
}

fn add(total: &mut Removed, part: Removed) {
    total.messages += part.messages;
    total.dropped_receipts += part.dropped_receipts;
    total.notified.extend(part.notified);
    total.notified.sort_unstable();
    total.notified.dedup();
}

pub(super) fn acknowledge(
    shared: Arc<Shared>,
    id: MailboxId,
    mut acknowledgement: Acknowledgement,
    now_ms: u64,
) -> StoreFuture<Removed> {
    if let Acknowledgement::Sequences(sequences) = &mut acknowledgement {
        sequences.sort_unstable();
        sequences.dedup();
    }
    in_chunks(shared, move |connection, limits| {
        mailbox(connection, id)?;
        let due = match &acknowledgement {
            Acknowledgement::UpTo(last) => due_up_to(connection, id, *last)?,
            Acknowledgement::Sequences(sequences) => due_among(connection, id, sequences)?,
        };
        remove_messages(connection, limits, &due, MessageKind::Delivered, now_ms)
    })
}

fn due_up_to(connection: &Connection, id: MailboxId, last: u64) -> Result<Vec<DueMessage>, StoreError> {
    let statement = format!(
        "SELECT {DUE} FROM messages WHERE mailbox = ?1 AND sequence <= ?2 ORDER BY sequence LIMIT ?3"
    );
    rows(connection, &statement, params![id.0, to_number(last), CHUNK as i64], DueMessage::read)
}

fn due_among(
    connection: &Connection,
    id: MailboxId,
    sequences: &[u64],
) -> Result<Vec<DueMessage>, StoreError> {
    let statement = format!("SELECT {DUE} FROM messages WHERE mailbox = ?1 AND sequence = ?2");
    let mut statement = connection.prepare_cached(&statement)?;
    let mut due: Vec<DueMessage> = Vec::new();
    for sequence in sequences {
        let values = params![id.0, to_number(*sequence)];
        due.extend(statement.query_row(values, DueMessage::read).optional()?);
        if due.len() == CHUNK {
            break;
        }
    }
    Ok(due)
}

pub(super) fn expire(shared: Arc<Shared>, now_ms: u64) -> StoreFuture<Removed> {
    let later = Arc::clone(&shared);
    let removed = in_chunks(shared, move |connection, limits| {
        let statement =
            format!("SELECT {DUE} FROM messages WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2");
        let due = rows(connection, &statement, params![to_number(now_ms), CHUNK as i64], DueMessage::read)?;
        remove_messages(connection, limits, &due, MessageKind::Expired, now_ms)
    });
    Box::pin(async move {
        let removed = removed.await?;
        in_chunks(later, move |connection, _| forget_ids(connection, now_ms)).await?;
        Ok(removed)
    })
}

/// Removes a device, then what is in its mailbox, and the mailbox with the last of it. After a crash in between the rest expires.
pub(super) fn remove_account_device(
    shared: Arc<Shared>,
    account: String,
    device: AccountDeviceId,
    now_ms: u64,
) -> StoreFuture<Removed> {
    let remove = move |connection: &mut WriterConnection<'_>| {
        accounts::remove_account_device(connection, &account, device)
    };
    let removed = shared.writer.submit(Room::Frees, remove);
    Box::pin(async move {
        let mailbox = removed.await?;
        let remove = move |connection: &Connection, limits: &StoreLimits| {
            let due = due_up_to(connection, mailbox, u64::MAX)?;
            let chunk = remove_messages(connection, limits, &due, MessageKind::Expired, now_ms)?;
            if !chunk.is_full {
                accounts::remove_mailbox(connection, mailbox)?;
            }
            Ok(chunk)
        };
        in_chunks(shared, remove).await
    })
}

fn remove_messages(
    connection: &Connection,
    limits: &StoreLimits,
    due: &[DueMessage],
    receipt: MessageKind,
    now_ms: u64,
) -> Result<Chunk, StoreError> {
    let mut removed = Removed::default();
    let mut totals: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    let mut by_sender: BTreeMap<(i64, &str), (u64, u64)> = BTreeMap::new();
    for message in due {
        connection.prepare_cached("DELETE FROM messages WHERE id = ?1")?.execute([message.id])?;
        removed.messages += 1;
        let sender = message.is_message.then(|| by_sender.entry((message.mailbox, &message.sender)));
        let total = totals.entry(message.mailbox).or_default();
        for (messages, bytes) in [Some(total), sender.map(Entry::or_default)].into_iter().flatten() {
            *messages += 1;
            *bytes += message.bytes;
        }
    }
    for ((mailbox, sender), (messages, bytes)) in by_sender {
        let values = params![mailbox, sender, to_number(messages), to_number(bytes)];
        let statement = "UPDATE mailbox_senders SET messages = messages - ?3, bytes = bytes - ?4
            WHERE mailbox = ?1 AND sender = ?2";
        connection.prepare_cached(statement)?.execute(values)?;
        let statement = "DELETE FROM mailbox_senders WHERE mailbox = ?1 AND sender = ?2 AND messages <= 0";
        connection.prepare_cached(statement)?.execute(params![mailbox, sender])?;
    }
    for (mailbox, (messages, bytes)) in totals {
        let statement = "UPDATE mailboxes SET messages = messages - ?2, bytes = bytes - ?3 WHERE id = ?1";
        let values = [mailbox, to_number(messages), to_number(bytes)];
        connection.prepare_cached(statement)?.execute(values)?;
    }
    for message in due.iter().filter(|message| message.is_message) {
        let Some(device) = message.sender_device else { continue };
        match append_receipt(connection, limits, message, device, (receipt, now_ms))? {
            Receipt::Appended(mailbox) => removed.notified.push(mailbox),
            Receipt::Dropped => removed.dropped_receipts += 1,
            Receipt::NoDevice => {}
        }
    }
    removed.notified.sort_unstable();
    removed.notified.dedup();
    Ok(Chunk { removed, is_full: due.len() == CHUNK })
}

enum Receipt {
    Appended(MailboxId),
    /// The mailbox has too many rows.
    Dropped,
    /// The sending device was removed.
    NoDevice,
}

fn append_receipt(
    connection: &Connection,
    limits: &StoreLimits,
    message: &DueMessage,
    device: i64,
    (kind, now_ms): (MessageKind, u64),
) -> Result<Receipt, StoreError> {
    let statement = "SELECT id FROM mailboxes WHERE device = ?1";
    let mailbox = connection.prepare_cached(statement)?.query_row([device], |row| row.get(0)).optional()?;
    let Some(mailbox) = mailbox else { return Ok(Receipt::NoDevice) };
    let statement = "UPDATE mailboxes SET last_sequence = last_sequence + 1, messages = messages + 1
        WHERE id = ?1 AND messages < ?2 RETURNING last_sequence";
    let most = limits.messages_per_mailbox.saturating_mul(2);
    let values = [mailbox, to_number(most)];
    let sequence =
        connection.prepare_cached(statement)?.query_row(values, |row| number(row, 0)).optional()?;
    let Some(sequence) = sequence else {
        Limit::StoreReceiptsPerMailbox.reached(most);
        return Ok(Receipt::Dropped);
    };
    let statement = "SELECT owner, device FROM mailboxes WHERE id = ?1";
    let read = |row: &Row<'_>| Ok((parsed::<Party>(row, 0)?.to_string(), row.get(1)?));
    let (sender, sender_device) = connection.prepare_cached(statement)?.query_row([message.mailbox], read)?;
    let row = NewRow {
        mailbox,
        sequence,
        kind,
        sender: &sender,
        sender_device,
        message_id: &message.message_id,
        is_encrypted: false,
        body: &[],
        stored_at_ms: now_ms,
        expires_at_ms: now_ms.saturating_add(message.lifetime_ms),
    };
    row.insert(connection, &mut *connection.prepare_cached(INSERT_MESSAGE)?)?;
    Ok(Receipt::Appended(MailboxId(mailbox)))
}

/// Forgets the ids whose time is over; those of messages that are still stored are kept until these expire.
fn forget_ids(connection: &Connection, now_ms: u64) -> Result<Chunk, StoreError> {
    let statement = "SELECT mailbox, sender, message_id, (
                SELECT expires_at FROM messages AS stored
                WHERE stored.mailbox = ids.mailbox AND stored.sequence = ids.sequence)
        FROM message_ids AS ids WHERE forget_at <= ?1 ORDER BY forget_at LIMIT ?2";
    let read = |row: &Row<'_>| {
        let key: (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok((key, row.get::<_, Option<i64>>(3)?))
    };
    let due = rows(connection, statement, params![to_number(now_ms), CHUNK as i64], read)?;
    for ((mailbox, sender, id), expires_at) in &due {
        let key = "WHERE mailbox = ?1 AND sender = ?2 AND message_id = ?3";
        match expires_at {
            Some(expires_at) => {
                let until = to_number(now_ms.saturating_add(1)).max(*expires_at);
                let statement = format!("UPDATE message_ids SET forget_at = ?4 {key}");
                connection.prepare_cached(&statement)?.execute(params![mailbox, sender, id, until])?;
            }
            None => {
                let statement = format!("DELETE FROM message_ids {key}");
                connection.prepare_cached(&statement)?.execute(params![mailbox, sender, id])?;
            }
        }
    }
    Ok(Chunk { removed: Removed::default(), is_full: due.len() == CHUNK })
}
