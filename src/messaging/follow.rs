//! Reading a device's mailbox over the WebSocket `/messages`: pages, events in the order of their sequence numbers, and cumulative
//! acknowledgements. Pure.

use super::delivery::{Delivered, MAX_UNACKNOWLEDGED};
use super::json_session::{DeviceAccess, JsonReplyTo, JsonStep};
use super::machine::{Machine, Step, unix_ms};
use super::session::ConnectionId;
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::messaging_wire::{Body, Empty, ErrorCode, Event, Fetch, Message, Page, Receipt, SentState};
use crate::store::{Acknowledgement, Mailbox, MailboxId, MessageKind, StoreError, StoredMessage};
use std::collections::VecDeque;

/// Bytes of messages that were sent and not acknowledged; more are sent after the client has acknowledged some.
const MAX_UNACKNOWLEDGED_BYTES: usize = 1 << 20;

/// The position of a device in its mailbox.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) mailbox: MailboxId,
    /// The highest sequence number that the client can have received.
    known: u64,
    follow: Option<Following>,
}

/// What a client that follows its mailbox has been sent.
#[derive(Debug)]
struct Following {
    /// The last sequence number that was sent.
    cursor: u64,
    /// A page is being read.
    is_reading: bool,
    /// There may be messages after the cursor.
    is_behind: bool,
    /// Sequence numbers and lengths of what is not acknowledged.
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
}

impl Inbox {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { mailbox: mailbox.id, known: mailbox.last_sequence, follow: None }
    }
}

impl Following {
    fn from(cursor: u64) -> Self {
        Self { cursor, is_reading: false, is_behind: true, in_flight: VecDeque::new(), in_flight_bytes: 0 }
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < MAX_UNACKNOWLEDGED && self.in_flight_bytes < MAX_UNACKNOWLEDGED_BYTES
    }

    fn on_sent(&mut self, message: &StoredMessage) {
        self.cursor = message.sequence;
        self.in_flight.push_back((message.sequence, message.body.len()));
        self.in_flight_bytes += message.body.len();
    }

    fn on_acknowledged(&mut self, up_to: u64) {
        while let Some((sequence, bytes)) = self.in_flight.front().copied()
            && sequence <= up_to
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }
}

/// Returns what a client gets of a row of its mailbox.
fn event(message: &StoredMessage) -> Event {
    let (sequence, from) = (message.sequence, message.sender.to_string());
    let (device, message_id) = (message.sender_device.map(|device| device.0), message.message_id.clone());
    let state = match message.kind {
        MessageKind::Message => {
            let encrypted = message.is_encrypted;
            return Event::Message(Message {
                sequence,
                from,
                device,
                message_id,
                encrypted,
                body: encrypted.then(|| Body(message.body.to_vec())),
                text: (!encrypted).then(|| String::from_utf8_lossy(&message.body).into_owned()),
                stored_at: message.stored_at_ms,
                expires_at: message.expires_at_ms,
            });
        }
        MessageKind::Delivered => SentState::Delivered,
        MessageKind::Expired => SentState::Expired,
    };
    Event::Receipt(Receipt { sequence, state, message_id, from, device })
}

impl Machine {
    pub(super) fn handle_json_fetch(&mut self, reply_to: JsonReplyTo, fetch: Fetch) {
        let Some(mailbox) = self.inbox(reply_to.connection).map(|inbox| inbox.mailbox) else {
            return self.done(&reply_to);
        };
        if fetch.limit == 0 {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "limit: must be at least 1");
        }
        let limit = usize::try_from(fetch.limit).unwrap_or(usize::MAX);
        let request = StoreRequest::Messages { mailbox, after: fetch.after };
        self.call_for_json(request, JsonStep::Fetch { limit }, reply_to);
    }

    pub(super) fn on_fetched(
        &mut self,
        reply_to: JsonReplyTo,
        limit: usize,
        result: Result<StoreReply, StoreError>,
    ) {
        let Ok(StoreReply::Messages(messages)) = result else {
            return self.refuse_failed(reply_to, result.err().as_ref());
        };
        let messages = &messages[..messages.len().min(limit)];
        if let (Some(inbox), Some(last)) = (self.inbox(reply_to.connection), messages.last()) {
            inbox.known = inbox.known.max(last.sequence);
        }
        self.counters.pushed += messages.len() as u64;
        // A page ends at a limit of messages or of bytes; only an empty one is known to be the last.
        let page = Page { messages: messages.iter().map(event).collect(), more: !messages.is_empty() };
        self.accept(reply_to, &page);
    }

    pub(super) fn handle_follow(&mut self, reply_to: JsonReplyTo, after: u64) {
        let connection = reply_to.connection;
        if let Some(inbox) = self.inbox(connection) {
            inbox.follow = Some(Following::from(after));
        }
        self.accept(reply_to, &Empty {});
        self.follow_on(connection);
    }

    pub(super) fn handle_unfollow(&mut self, reply_to: JsonReplyTo) {
        if let Some(inbox) = self.inbox(reply_to.connection) {
            inbox.follow = None;
        }
        self.accept(reply_to, &Empty {});
    }

    /// Removes everything up to a sequence number from the device's own mailbox.
    pub(super) fn handle_ack(&mut self, now: Now, reply_to: JsonReplyTo, up_to: u64) {
        let Some(inbox) = self.inbox(reply_to.connection) else { return self.done(&reply_to) };
        if up_to > inbox.known {
            return self.refuse_request(
                reply_to,
                ErrorCode::Invalid,
                "up_to: nothing of this number was sent",
            );
        }
        let request = StoreRequest::Acknowledge {
            mailbox: inbox.mailbox,
            acknowledgement: Acknowledgement::UpTo(up_to),
            now_ms: unix_ms(now),
        };
        self.call_for_json(request, JsonStep::Acknowledge { up_to }, reply_to);
    }

    pub(super) fn on_ack_stored(
        &mut self,
        reply_to: JsonReplyTo,
        up_to: u64,
        result: Result<StoreReply, StoreError>,
    ) {
        let connection = reply_to.connection;
        if let Err(error) = &result {
            return self.refuse_failed(reply_to, Some(error));
        }
        if let Some(follow) = self.following(connection) {
            follow.on_acknowledged(up_to);
        }
        self.accept(reply_to, &Empty {});
        self.on_removed(Delivered::Acknowledged, result);
        self.follow_on(connection);
    }

    /// Sends a message that was just stored, if the client follows and has everything before it.
    pub(super) fn follow_stored(&mut self, connection: ConnectionId, message: &StoredMessage) {
        let is_congested = self.json_sessions.get(&connection).is_none_or(|session| session.is_congested);
        let Some(follow) = self.following(connection) else { return };
        if message.sequence <= follow.cursor {
            return;
        }
        let is_next = message.sequence == follow.cursor + 1 && !follow.is_reading && !follow.is_behind;
        if is_next && !is_congested && follow.has_room() {
            self.send_row(connection, message);
        } else {
            follow.is_behind = true;
            self.follow_on(connection);
        }
    }

    /// Notes that there is something new in the mailbox that a client reads.
    pub(super) fn follow_woken(&mut self, connection: ConnectionId) {
        if let Some(follow) = self.following(connection) {
            follow.is_behind = true;
            self.follow_on(connection);
        }
    }

    /// Reads the next page of a mailbox, if the client follows it, there may be one, and the client has room for it.
    pub(super) fn follow_on(&mut self, connection: ConnectionId) {
        let Some(session) = self.json_sessions.get(&connection).filter(|session| !session.is_congested)
        else {
            return;
        };
        let Some(device) = session.access.as_ref().and_then(|access| access.device()) else { return };
        let mailbox = device.inbox.mailbox;
        let Some(follow) = self.following(connection) else { return };
        if follow.is_behind && !follow.is_reading && follow.has_room() {
            (follow.is_behind, follow.is_reading) = (false, true);
            let after = follow.cursor;
            let step = Step::FollowPage { connection, mailbox, after };
            self.call(StoreRequest::Messages { mailbox, after }, step, None);
        }
    }

    /// Sends a page of the mailbox as far as the client has room, and reads the next one.
    pub(super) fn on_follow_page(
        &mut self,
        connection: ConnectionId,
        (mailbox, after): (MailboxId, u64),
        result: Result<StoreReply, StoreError>,
    ) {
        if self.inbox(connection).is_none_or(|inbox| inbox.mailbox != mailbox) {
            return;
        }
        let Some(follow) = self.following(connection) else { return };
        follow.is_reading = false;
        let Ok(StoreReply::Messages(messages)) = result else {
            tracing::warn!("a mailbox could not be read");
            // The next message or acknowledgement tries again.
            follow.is_behind = true;
            return;
        };
        // The client has begun anew in between.
        if follow.cursor != after {
            return self.follow_on(connection);
        }
        if !messages.is_empty() {
            follow.is_behind = true;
        }
        for message in &messages {
            if !self.following(connection).is_some_and(|follow| follow.has_room()) {
                break;
            }
            self.send_row(connection, message);
        }
        self.follow_on(connection);
    }

    fn send_row(&mut self, connection: ConnectionId, message: &StoredMessage) {
        let Some(inbox) = self.inbox(connection) else { return };
        inbox.known = inbox.known.max(message.sequence);
        if let Some(follow) = &mut inbox.follow {
            follow.on_sent(message);
        }
        self.counters.pushed += 1;
        self.send_event(connection, &event(message));
    }

    fn inbox(&mut self, connection: ConnectionId) -> Option<&mut Inbox> {
        let session = self.json_sessions.get_mut(&connection)?;
        let DeviceAccess { inbox, .. } = session.access.as_mut()?.device_mut()?;
        Some(inbox)
    }

    fn following(&mut self, connection: ConnectionId) -> Option<&mut Following> {
        self.inbox(connection)?.follow.as_mut()
    }
}
