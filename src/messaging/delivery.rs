//! Delivery: pushes to the client that reads a mailbox (S4-25), fetching (S4-21) and acknowledgements (S4-26, S4-27).

use super::commands::{AcknowledgedMessage, Command, PushedMessage};
use super::machine::{ConnectionId, Machine, Output, Step, unix_ms};
use super::session::{Delivery, ReplyTo};
use super::store_request::{StoreReply, StoreRequest};
use super::wire::Envelope;
use crate::clock::Now;
use crate::store::{
    Acknowledgement, MailboxId, MessageCopy, MessageKind, NewMessage, Removed, StoreError, StoredMessage,
};
use bytes::Bytes;

/// Pushed messages that a client has not acknowledged; more are pushed after it has acknowledged some.
pub(super) const MAX_UNACKNOWLEDGED: usize = 1000;

/// Why messages were removed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Delivered {
    Acknowledged,
    Expired,
}

impl Machine {
    /// Pushes everything that is stored, pushed before or not, in the order of sending. Without any there is no answer.
    pub(super) fn handle_fetch(&mut self, reply_to: ReplyTo) {
        let connection = reply_to.connection;
        self.finish(reply_to);
        if let Some(delivery) = self.delivery(connection) {
            delivery.cursor = 0;
            delivery.is_behind = true;
            delivery.unacknowledged = super::session::Unacknowledged::default();
            self.read_on(connection);
        }
    }

    /// Removes messages from the client's own mailbox. There is no answer.
    pub(super) fn handle_acknowledgement(&mut self, now: Now, reply_to: ReplyTo, data: &[u8]) {
        let Some((reply_to, body)) = self.parse_body::<Vec<AcknowledgedMessage>>(reply_to, data) else {
            return;
        };
        let connection = reply_to.connection;
        let Some(delivery) = self.delivery(connection) else { return self.finish(reply_to) };
        let taken = body.iter().filter_map(|message| delivery.unacknowledged.take(&message.msgid));
        let (sequences, mailbox): (Vec<_>, _) = (taken.collect(), delivery.mailbox);
        if sequences.is_empty() {
            return self.finish(reply_to);
        }
        // A fetch behind it waits until they are removed.
        let acknowledgement = Acknowledgement::Sequences(sequences);
        let request = StoreRequest::Acknowledge { mailbox, acknowledgement, now_ms: unix_ms(now) };
        self.call_for(request, Step::Acknowledge, reply_to);
        self.read_on(connection);
    }

    /// Pushes a message that was just stored to the client that reads the mailbox, if that has everything before it.
    pub(super) fn on_stored(&mut self, message: &NewMessage, copy: usize, sequence: u64) {
        let Some(MessageCopy { mailbox, is_encrypted, body }) = message.copies.get(copy) else { return };
        let Some(connection) = self.readers.get(mailbox).copied() else { return };
        let (sender, message_id) = (&message.sender, &message.message_id);
        if self.json_sessions.contains_key(&connection) {
            let row = StoredMessage {
                sequence,
                kind: MessageKind::Message,
                sender: sender.clone(),
                sender_device: message.sender_device,
                message_id: message_id.clone(),
                is_encrypted: *is_encrypted,
                body: body.clone(),
                stored_at_ms: message.stored_at_ms,
                expires_at_ms: message.expires_at_ms,
            };
            return self.follow_stored(connection, &row);
        }
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let Some(identity) = &mut session.identity else { return };
        let delivery = &mut identity.delivery;
        if sequence <= delivery.cursor {
            return;
        }
        let is_next = sequence == delivery.cursor + 1 && !delivery.is_reading && !delivery.is_behind;
        if is_next && !session.is_congested && delivery.unacknowledged.count() < MAX_UNACKNOWLEDGED {
            delivery.cursor = sequence;
            delivery.unacknowledged.insert(message_id, sequence);
            let msg = String::from_utf8_lossy(body);
            let to = identity.party.name();
            let pushed = [PushedMessage { from: sender.name(), to, msg: &msg, msgid: message_id }];
            let text = serde_json::to_vec(&pushed).unwrap_or_default();
            self.push(connection, &text, 1);
        } else {
            delivery.is_behind = true;
            self.read_on(connection);
        }
    }

    /// Pushes a page of the mailbox, and reads the next one.
    pub(super) fn on_page(
        &mut self,
        connection: ConnectionId,
        (mailbox, after): (MailboxId, u64),
        result: Result<StoreReply, StoreError>,
    ) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let Some(identity) = &mut session.identity else { return };
        let delivery = &mut identity.delivery;
        if delivery.mailbox != mailbox {
            // It has authenticated as somebody else in between.
            return;
        }
        delivery.is_reading = false;
        let messages = match result {
            Ok(StoreReply::Messages(messages)) => messages,
            _ => {
                // The client fetches again when it likes.
                tracing::warn!("a mailbox could not be read");
                return;
            }
        };
        // A fetch in between begins anew.
        if delivery.cursor == after
            && let Some(last) = messages.last()
        {
            delivery.cursor = last.sequence;
            delivery.is_behind = true;
            let messages: Vec<_> =
                messages.iter().filter(|message| message.kind == MessageKind::Message).collect();
            for message in &messages {
                delivery.unacknowledged.insert(&message.message_id, message.sequence);
            }
            let texts: Vec<_> =
                messages.iter().map(|message| String::from_utf8_lossy(&message.body)).collect();
            let pushed = messages.iter().zip(&texts).map(|(message, text)| PushedMessage {
                from: message.sender.name(),
                to: identity.party.name(),
                msg: text,
                msgid: &message.message_id,
            });
            let pushed: Vec<_> = pushed.collect();
            if !pushed.is_empty() {
                let (text, count) = (serde_json::to_vec(&pushed).unwrap_or_default(), pushed.len());
                self.push(connection, &text, count);
            }
        }
        self.read_on(connection);
    }

    /// Reads the next page of a connection's mailbox, if there may be one and the client has room for it.
    pub(super) fn read_on(&mut self, connection: ConnectionId) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let Some(identity) = session.identity.as_mut().filter(|_| !session.is_congested) else { return };
        let delivery = &mut identity.delivery;
        let has_room = delivery.unacknowledged.count() < MAX_UNACKNOWLEDGED;
        if delivery.is_behind && !delivery.is_reading && has_room {
            (delivery.is_behind, delivery.is_reading) = (false, true);
            let (mailbox, after) = (delivery.mailbox, delivery.cursor);
            let step = Step::Page { connection, mailbox, after };
            self.call(StoreRequest::Messages { mailbox, after }, step, None);
        }
    }

    /// Handles that messages were removed; receipts are pushed to the senders that are online.
    pub(super) fn on_removed(&mut self, why: Delivered, result: Result<StoreReply, StoreError>) {
        let Ok(StoreReply::Removed(Removed { messages, notified, dropped_receipts })) = result else {
            tracing::warn!("messages could not be removed; they are delivered again");
            return;
        };
        self.counters.dropped_receipts += dropped_receipts;
        match why {
            Delivered::Acknowledged => self.counters.acknowledged += messages,
            Delivered::Expired => self.counters.expired += messages,
        }
        for mailbox in notified {
            let Some(connection) = self.readers.get(&mailbox).copied() else { continue };
            self.follow_woken(connection);
            if let Some(delivery) = self.delivery(connection) {
                delivery.is_behind = true;
                self.read_on(connection);
            }
        }
    }

    /// Sends a push, encrypted where a key was agreed on.
    fn push(&mut self, connection: ConnectionId, text: &[u8], messages: usize) {
        let Some(session) = self.sessions.get(&connection) else { return };
        let (is_encrypt, data) = match &session.key {
            Some(key) => (true, key.encrypt(text).into()),
            None => (false, Bytes::copy_from_slice(text)),
        };
        self.counters.pushed += messages as u64;
        let cmd = Command::Push.number();
        let frame = Envelope { cmd, msg_id: String::new(), is_encrypt, data }.to_frame();
        self.push_output(Output::Frame { connection, frame });
    }

    fn delivery(&mut self, connection: ConnectionId) -> Option<&mut Delivery> {
        let session = self.sessions.get_mut(&connection)?;
        session.identity.as_mut().map(|identity| &mut identity.delivery)
    }
}
