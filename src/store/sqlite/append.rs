//! Appends messages to mailboxes, with statements that are compiled once.

use super::mailboxes::{INSERT_MESSAGE, NewRow, number, to_number};
use super::used_bytes::UsedBytes;
use super::writer_connection::WriterConnection;
use crate::limits::Limit;
use crate::store::{
    Appended, Full, MailboxId, MessageCopy, MessageKind, NewMessage, REMEMBERED_FOR_MS, StoreError,
    StoreLimits,
};
use rusqlite::{Connection, OptionalExtension, Result as SqlResult, Row, Statement, params};

/// What an append runs. The cache of the connection would hash and copy the text of each at each append.
pub(super) struct AppendStatements<'c> {
    mailbox: Statement<'c>,
    sender: Statement<'c>,
    contact: Statement<'c>,
    known_id: Statement<'c>,
    insert_id: Statement<'c>,
    insert_sender: Statement<'c>,
    count_sender: Statement<'c>,
    count_mailbox: Statement<'c>,
    insert_message: Statement<'c>,
}

impl<'c> AppendStatements<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> SqlResult<Self> {
        let prepare = |statement| connection.prepare(statement);
        Ok(Self {
            mailbox: prepare(
                "SELECT messages, bytes, last_sequence, owner = ?2 FROM mailboxes WHERE id = ?1",
            )?,
            sender: prepare(
                "SELECT messages, bytes FROM mailbox_senders WHERE mailbox = ?1 AND sender = ?2",
            )?,
            contact: prepare(
                "SELECT 1 FROM contacts JOIN mailboxes USING (owner) WHERE id = ?1 AND contact = ?2",
            )?,
            known_id: prepare(
                "SELECT 1 FROM message_ids WHERE mailbox = ?1 AND sender = ?2 AND message_id = ?3",
            )?,
            insert_id: prepare(
                "INSERT INTO message_ids (mailbox, sender, message_id, sequence, forget_at)
                VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            )?,
            insert_sender: prepare(
                "INSERT INTO mailbox_senders (mailbox, sender, messages, bytes) VALUES (?1, ?2, 1, ?3)",
            )?,
            count_sender: prepare(
                "UPDATE mailbox_senders SET messages = messages + 1, bytes = bytes + ?3
                WHERE mailbox = ?1 AND sender = ?2",
            )?,
            count_mailbox: prepare(
                "UPDATE mailboxes SET last_sequence = ?2, messages = messages + 1, bytes = bytes + ?3
                WHERE id = ?1",
            )?,
            insert_message: prepare(INSERT_MESSAGE)?,
        })
    }
}

/// Messages and bytes of bodies that are stored.
#[derive(Debug, Clone, Copy, Default)]
struct Stored {
    messages: u64,
    bytes: u64,
}

impl Stored {
    fn read(row: &Row<'_>) -> SqlResult<Self> {
        Ok(Self { messages: number(row, 0)?, bytes: number(row, 1)? })
    }

    /// Returns whether one more message of this length is within a limit.
    fn has_room(self, length: u64, messages: u64, bytes: u64) -> bool {
        self.messages < messages && self.bytes.saturating_add(length) <= bytes
    }
}

/// A mailbox that is to get a message.
struct Recipient {
    stored: Stored,
    last_sequence: u64,
    /// The sender is its owner.
    is_own: bool,
    /// What it stores of the sender, if anything.
    of_sender: Option<Stored>,
}

pub(super) fn append(
    writer: &mut WriterConnection<'_>,
    limits: &StoreLimits,
    used: &UsedBytes,
    message: &NewMessage,
) -> Result<Vec<Appended>, StoreError> {
    check_stored_bytes(writer, limits, used, message)?;
    let (connection, statements) = writer.append_statements()?;
    let mut append = Append { connection, statements, limits, message, sender: message.sender.to_string() };
    // A single copy changes nothing if it is refused.
    if message.copies.len() < 2 {
        return append.copies();
    }
    connection.prepare_cached("SAVEPOINT message")?.execute([])?;
    let result = append.copies();
    if result.is_err() && !connection.is_autocommit() {
        connection.prepare_cached("ROLLBACK TO message")?.execute([])?;
    }
    if !connection.is_autocommit() {
        connection.prepare_cached("RELEASE message")?.execute([])?;
    }
    result
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

/// A message on its way into mailboxes.
struct Append<'a, 'c> {
    connection: &'c Connection,
    statements: &'a mut AppendStatements<'c>,
    limits: &'a StoreLimits,
    message: &'a NewMessage,
    sender: String,
}

impl Append<'_, '_> {
    fn copies(&mut self) -> Result<Vec<Appended>, StoreError> {
        self.message.copies.iter().map(|copy| self.copy(copy)).collect()
    }

    fn copy(&mut self, copy: &MessageCopy) -> Result<Appended, StoreError> {
        let recipient = self.recipient(copy.mailbox)?;
        if let Some(full) = self.find_full(&recipient, copy)? {
            return self.refuse(&recipient, copy.mailbox, full);
        }
        let (id, length) = (copy.mailbox.0, to_number(copy.body.len() as u64));
        let sequence = recipient.last_sequence + 1;
        let forget_at = to_number(self.message.stored_at_ms.saturating_add(REMEMBERED_FOR_MS));
        let values = params![id, self.sender, self.message.message_id, to_number(sequence), forget_at];
        if self.statements.insert_id.execute(values)? == 0 {
            return Ok(Appended::Duplicate);
        }
        let count_sender = match recipient.of_sender {
            Some(_) => &mut self.statements.count_sender,
            None => &mut self.statements.insert_sender,
        };
        count_sender.execute(params![id, self.sender, length])?;
        self.statements.count_mailbox.execute([id, to_number(sequence), length])?;
        let row = NewRow {
            mailbox: id,
            sequence,
            kind: MessageKind::Message,
            sender: &self.sender,
            sender_device: self.message.sender_device.map(|device| device.0),
            message_id: &self.message.message_id,
            is_encrypted: copy.is_encrypted,
            body: &copy.body,
            stored_at_ms: self.message.stored_at_ms,
            expires_at_ms: self.message.expires_at_ms,
        };
        row.insert(self.connection, &mut self.statements.insert_message)?;
        Ok(Appended::Stored(sequence))
    }

    fn recipient(&mut self, mailbox: MailboxId) -> Result<Recipient, StoreError> {
        let values = params![mailbox.0, self.sender];
        let of_sender = self.statements.sender.query_row(values, Stored::read).optional()?;
        let read = |row: &Row<'_>| {
            let (stored, last_sequence) = (Stored::read(row)?, number(row, 2)?);
            Ok(Recipient { stored, last_sequence, is_own: row.get(3)?, of_sender })
        };
        self.statements.mailbox.query_row(values, read).optional()?.ok_or(StoreError::NotFound)
    }

    /// Returns what has no room for a copy.
    fn find_full(&mut self, recipient: &Recipient, copy: &MessageCopy) -> SqlResult<Option<Full>> {
        let (limits, strangers, length) = (self.limits, &self.limits.strangers, copy.body.len() as u64);
        let Recipient { stored, of_sender, .. } = recipient;
        if !stored.has_room(length, limits.messages_per_mailbox, limits.bytes_per_mailbox) {
            return Ok(Some(Full::Mailbox(copy.mailbox)));
        }
        let (messages, bytes) = (strangers.messages_per_sender, strangers.bytes_per_sender);
        let full = if !of_sender.unwrap_or_default().has_room(length, messages, bytes) {
            Full::SenderShare(copy.mailbox)
        } else if !stored.has_room(length, strangers.messages_per_mailbox, strangers.bytes_per_mailbox) {
            Full::Mailbox(copy.mailbox)
        } else {
            return Ok(None);
        };
        let is_stranger =
            !recipient.is_own && !self.statements.contact.exists(params![copy.mailbox.0, self.sender])?;
        Ok(is_stranger.then_some(full))
    }

    /// Refuses a copy for which there is no room, unless the mailbox has the message already.
    fn refuse(
        &mut self,
        recipient: &Recipient,
        mailbox: MailboxId,
        full: Full,
    ) -> Result<Appended, StoreError> {
        let values = params![mailbox.0, self.sender, self.message.message_id];
        if self.statements.known_id.exists(values)? {
            return Ok(Appended::Duplicate);
        }
        let (limits, strangers) = (self.limits, &self.limits.strangers);
        let most_messages = strangers.messages_per_mailbox.min(limits.messages_per_mailbox);
        match full {
            Full::SenderShare(_) => Limit::StoreSenderShare.reached(strangers.messages_per_sender),
            _ if recipient.stored.messages >= most_messages => {
                Limit::StoreMessagesPerMailbox.reached(limits.messages_per_mailbox);
            }
            _ => Limit::StoreBytesPerMailbox.reached(limits.bytes_per_mailbox),
        }
        Err(StoreError::Full(full))
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailboxes::open_mailbox;
    use super::super::schema::open_database;
    use super::*;
    use crate::store::{Party, StrangerLimits};
    use rusqlite::StatementStatus;

    fn message(number: u64, mailbox: MailboxId) -> NewMessage {
        NewMessage {
            sender: Party::User("bob".to_owned()),
            sender_device: None,
            message_id: number.to_string(),
            stored_at_ms: number,
            expires_at_ms: 1000,
            copies: vec![MessageCopy { mailbox, is_encrypted: true, body: "hello".into() }],
        }
    }

    #[test]
    fn the_statements_of_an_append_are_compiled_once() {
        let folder = tempfile::tempdir().unwrap();
        let database = open_database(&folder.path().join("messages.db")).unwrap();
        let mailbox = open_mailbox(&database, "user:alice").unwrap().id;
        let limits = StoreLimits {
            messages_per_mailbox: 9,
            strangers: StrangerLimits::of(9, 1000),
            ..StoreLimits::default()
        };
        let (mut writer, used) = (WriterConnection::new(&database), UsedBytes::unknown());
        for number in 0..3 {
            append(&mut writer, &limits, &used, &message(number, mailbox)).unwrap();
            let again = append(&mut writer, &limits, &used, &message(number, mailbox)).unwrap();
            assert_eq!(again, [Appended::Duplicate]);
        }
        append(&mut writer, &limits, &used, &message(3, mailbox)).unwrap_err();
        let (_, AppendStatements { mailbox, sender, contact, known_id, insert_id, .. }) =
            writer.append_statements().unwrap();
        for statement in [mailbox, sender, contact, known_id, insert_id] {
            assert!(statement.get_status(StatementStatus::Run) > 0);
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
        }
        let (_, AppendStatements { insert_sender, count_sender, count_mailbox, insert_message, .. }) =
            writer.append_statements().unwrap();
        for (statement, runs) in
            [(insert_sender, 1), (count_sender, 2), (count_mailbox, 3), (insert_message, 3)]
        {
            assert_eq!(statement.get_status(StatementStatus::Run), runs);
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
        }
    }
}
