//! Sending (S4-22, S4-24): who `to` is (S4-28, S4-A6), whether the sender may write to it, and the acknowledgement after the message is
//! stored.

use super::commands::{Code, SendBody};
use super::config::Policy;
use super::login::refusal;
use super::machine::{Machine, Step};
use super::session::ReplyTo;
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::store::{MAX_BODY, MAX_MESSAGE_ID, MailboxId, MessageCopy, NewMessage, Party, StoreError};
use bytes::Bytes;

const NO_RECIPIENT: &str = "no such recipient";

/// A message on its way into mailboxes, and what the store was asked last.
#[derive(Debug)]
pub(super) struct SendStep {
    message: OutgoingMessage,
    stage: Stage,
}

#[derive(Debug)]
struct OutgoingMessage {
    sender: Party,
    to: String,
    message_id: String,
    body: Bytes,
    mailboxes: Vec<MailboxId>,
}

#[derive(Debug)]
enum Stage {
    /// Is `to` a device that the sender has added?
    Contact,
    /// Has that device ever connected?
    ContactDevice,
    /// Is `to` a user?
    User,
    /// Is it a device?
    Device,
    /// Has the recipient added the sender?
    Permission(Party),
    /// Which devices does the account have?
    AccountDevices,
    /// Which mailbox does the recipient have?
    Mailbox,
    /// The message is being stored.
    Append(Box<NewMessage>),
}

impl Machine {
    pub(super) fn handle_send(&mut self, reply_to: ReplyTo, data: &[u8]) {
        let Some((reply_to, body)) = self.parse_body::<SendBody>(reply_to, data) else { return };
        let sender = self.sessions.get(&reply_to.connection).and_then(|session| session.party().cloned());
        let Some(sender) = sender else { return self.finish(reply_to) };
        let (to, msg) = (body.to.unwrap_or_default(), body.msg);
        let (message, refusal) = match msg {
            _ if to.is_empty() => (None, "to is null"),
            _ if reply_to.msg_id.is_empty() => (None, "msgId is null"),
            _ if reply_to.msg_id.len() > MAX_MESSAGE_ID => (None, "msgId is too long"),
            None => (None, "msg is null"),
            Some(msg) if msg.len() > MAX_BODY => (None, "message is too long"),
            Some(msg) => {
                let message_id = reply_to.msg_id.clone();
                let (body, mailboxes) = (Bytes::from(msg), Vec::new());
                (Some(OutgoingMessage { sender, to, message_id, body, mailboxes }), "")
            }
        };
        let Some(message) = message else {
            self.counters.refused += 1;
            return self.answer(reply_to, Code::Exception, refusal);
        };
        let request = StoreRequest::HasContact(message.sender.clone(), Party::Device(message.to.clone()));
        self.ask(reply_to, message, Stage::Contact, request);
    }

    fn ask(&mut self, reply_to: ReplyTo, message: OutgoingMessage, stage: Stage, request: StoreRequest) {
        self.call_for(request, Step::Send(Box::new(SendStep { message, stage })), reply_to);
    }

    pub(super) fn on_send_stored(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        step: SendStep,
        result: Result<StoreReply, StoreError>,
    ) {
        let SendStep { mut message, stage } = step;
        let to = message.to.clone();
        match (stage, result) {
            (Stage::Append(stored), result) => self.on_appended(reply_to, &stored, result),
            (Stage::Contact, Ok(StoreReply::HasContact(is_contact))) => {
                let (stage, request) = match is_contact {
                    true => (Stage::ContactDevice, StoreRequest::LegacyDevice(to)),
                    false => (Stage::User, StoreRequest::Account(to)),
                };
                self.ask(reply_to, message, stage, request);
            }
            (Stage::ContactDevice, Ok(StoreReply::LegacyDevice(Some(_)))) => {
                self.find_mailboxes(reply_to, message, Party::Device(to));
            }
            (Stage::User, Ok(StoreReply::Account(Some(_)))) => {
                self.check_permission(reply_to, message, Party::User(to));
            }
            (Stage::User, Ok(StoreReply::Account(None))) => {
                self.ask(reply_to, message, Stage::Device, StoreRequest::LegacyDevice(to));
            }
            (Stage::Device, Ok(StoreReply::LegacyDevice(Some(_)))) => {
                self.check_permission(reply_to, message, Party::Device(to));
            }
            (Stage::Device | Stage::ContactDevice, Ok(StoreReply::LegacyDevice(None))) => {
                self.refuse(reply_to, NO_RECIPIENT);
            }
            (Stage::Permission(recipient), Ok(StoreReply::HasContact(true))) => {
                self.find_mailboxes(reply_to, message, recipient);
            }
            (Stage::Permission(_), Ok(StoreReply::HasContact(false))) => {
                self.refuse(reply_to, "not a contact of the recipient");
            }
            (Stage::AccountDevices, Ok(StoreReply::AccountDevices(devices))) => {
                message.mailboxes = devices.iter().map(|device| device.mailbox).collect();
                let recipient = Party::User(to);
                // A user who reads with devices of the modern protocol only must not fill a mailbox that nobody reads.
                match devices.is_empty() || self.online.contains_key(&recipient) {
                    true => self.open_recipient(reply_to, message, recipient),
                    false => self.append(now, reply_to, message),
                }
            }
            (Stage::Mailbox, Ok(StoreReply::Mailbox(mailbox))) => {
                message.mailboxes.push(mailbox.id);
                self.append(now, reply_to, message);
            }
            (_, result) => self.refuse(reply_to, refusal(result.err().as_ref())),
        }
    }

    fn check_permission(&mut self, reply_to: ReplyTo, message: OutgoingMessage, recipient: Party) {
        match self.config.policy {
            Policy::Anyone => self.find_mailboxes(reply_to, message, recipient),
            Policy::Contacts => {
                let request = StoreRequest::HasContact(recipient.clone(), message.sender.clone());
                self.ask(reply_to, message, Stage::Permission(recipient), request);
            }
        }
    }

    fn find_mailboxes(&mut self, reply_to: ReplyTo, message: OutgoingMessage, recipient: Party) {
        match recipient {
            Party::User(name) => {
                self.ask(reply_to, message, Stage::AccountDevices, StoreRequest::AccountDevices(name));
            }
            Party::Device(_) => self.open_recipient(reply_to, message, recipient),
        }
    }

    fn open_recipient(&mut self, reply_to: ReplyTo, message: OutgoingMessage, recipient: Party) {
        self.ask(reply_to, message, Stage::Mailbox, StoreRequest::OpenMailbox(recipient));
    }

    /// Stores the message. The frames behind it do not wait: the store keeps the order.
    fn append(&mut self, now: Now, reply_to: ReplyTo, message: OutgoingMessage) {
        let copies = message.mailboxes.iter();
        let copies = copies.map(|mailbox| MessageCopy {
            mailbox: *mailbox,
            is_encrypted: false,
            body: message.body.clone(),
        });
        let copies = copies.collect();
        let stored =
            self.new_message(now, (message.sender.clone(), None), message.message_id.clone(), copies);
        let request = StoreRequest::Append(stored.clone());
        let connection = reply_to.connection;
        self.ask(reply_to, message, Stage::Append(Box::new(stored)), request);
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.is_busy = false;
        }
    }

    /// Acknowledges a stored message with an empty body, and pushes it to who is online.
    fn on_appended(
        &mut self,
        reply_to: ReplyTo,
        message: &NewMessage,
        result: Result<StoreReply, StoreError>,
    ) {
        let appended = match result {
            Ok(StoreReply::Appended(appended)) => appended,
            result => {
                self.counters.refused += 1;
                return self.answer(reply_to, Code::Exception, refusal(result.err().as_ref()));
            }
        };
        self.send(&reply_to, b"");
        self.finish(reply_to);
        self.on_message_appended(message, &appended);
    }

    fn refuse(&mut self, reply_to: ReplyTo, why: &str) {
        self.counters.refused += 1;
        self.conclude(reply_to, Code::Exception, why);
    }
}
