//! Sending over the WebSocket `/messages`: one encrypted copy for each device of the recipient, or plaintext to who has none. Pure.

use super::account_devices::listed;
use super::config::Policy;
use super::json_session::{JsonReplyTo, JsonStep};
use super::login::is_name;
use super::machine::{Machine, unix_ms};
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::messaging_wire::{Content, DeviceCopy, ErrorBody, ErrorCode, Send, Sent, SentState};
use crate::store::{
    AccountDevice, AccountDeviceId, Appended, MAX_BODY, MAX_MESSAGE_ID, MessageCopy, NewMessage, Party,
    StoreError,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A message on its way into mailboxes, and what the store was asked last.
#[derive(Debug)]
pub(super) struct JsonSendStep {
    sender: Party,
    device: AccountDeviceId,
    to: Party,
    message_id: String,
    content: OutgoingContent,
    stage: Stage,
}

#[derive(Debug)]
enum OutgoingContent {
    /// By the number of the device.
    Encrypted(BTreeMap<i64, Bytes>),
    Text(Bytes),
}

#[derive(Debug)]
enum Stage {
    /// Has the sender added the device that it writes to?
    OwnContact,
    /// Has the recipient added the sender?
    Permission,
    /// Is there such a user, and which identity key has it?
    Account,
    /// Is there such a legacy device?
    LegacyDevice,
    /// Which devices has the user? Asked again after a device has vanished.
    Devices { identity_key: Option<[u8; 32]>, is_repeated: bool },
    /// Which mailbox has the recipient?
    Mailbox,
    /// The message is being stored.
    Append { identity_key: Option<[u8; 32]>, message: Box<NewMessage> },
}

/// Returns the copies by device; `None` where a device has two.
fn by_device(copies: Vec<DeviceCopy>) -> Option<BTreeMap<i64, Bytes>> {
    let count = copies.len();
    let copies: BTreeMap<_, _> =
        copies.into_iter().map(|copy| (copy.device, Bytes::from(copy.body.0))).collect();
    (copies.len() == count).then_some(copies)
}

impl Machine {
    pub(super) fn handle_json_send(&mut self, reply_to: JsonReplyTo, user: String, send: Send) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let Some(device) = session.access.as_ref().and_then(|access| access.device()) else {
            return self.done(&reply_to);
        };
        let device = device.id;
        let Send { to, message_id, content } = send;
        let is_message_id =
            (1..=MAX_MESSAGE_ID).contains(&message_id.len()) && !message_id.chars().any(char::is_control);
        let content = match content {
            Content::Text(text) => Some(OutgoingContent::Text(text.into())),
            Content::Encrypted(copies) => by_device(copies).map(OutgoingContent::Encrypted),
        };
        let is_short = match &content {
            None => true,
            Some(OutgoingContent::Text(text)) => text.len() <= MAX_BODY,
            Some(OutgoingContent::Encrypted(copies)) => copies.values().all(|body| body.len() <= MAX_BODY),
        };
        let to = to.parse::<Party>().ok().filter(|to| is_name(to.name()));
        let (to, content) = match (to, content) {
            (None, _) => return self.refuse_message(reply_to, ErrorCode::Invalid, "to"),
            (_, None) => return self.refuse_message(reply_to, ErrorCode::Invalid, "copies: a device twice"),
            _ if !is_message_id => return self.refuse_message(reply_to, ErrorCode::Invalid, "message_id"),
            _ if !is_short => {
                return self.refuse_message(reply_to, ErrorCode::TooLarge, "message is too long");
            }
            (Some(to), Some(content)) => (to, content),
        };
        let step = JsonSendStep {
            sender: Party::User(user),
            device,
            to,
            message_id,
            content,
            stage: Stage::Account,
        };
        if self.config.policy == Policy::Contacts && step.to != step.sender {
            let (sender, to) = (step.sender.clone(), step.to.clone());
            match to {
                Party::Device(_) => {
                    self.ask_for(reply_to, step, Stage::OwnContact, StoreRequest::HasContact(sender, to))
                }
                Party::User(_) => {
                    self.ask_for(reply_to, step, Stage::Permission, StoreRequest::HasContact(to, sender))
                }
            }
        } else {
            self.find_recipient(reply_to, step);
        }
    }

    fn ask_for(
        &mut self,
        reply_to: JsonReplyTo,
        mut step: JsonSendStep,
        stage: Stage,
        request: StoreRequest,
    ) {
        step.stage = stage;
        self.call_for_json(request, JsonStep::Send(Box::new(step)), reply_to);
    }

    fn find_recipient(&mut self, reply_to: JsonReplyTo, step: JsonSendStep) {
        match step.to.clone() {
            Party::User(user) => self.ask_for(reply_to, step, Stage::Account, StoreRequest::Account(user)),
            Party::Device(id) => {
                self.ask_for(reply_to, step, Stage::LegacyDevice, StoreRequest::LegacyDevice(id))
            }
        }
    }

    pub(super) fn on_json_send_stored(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        mut step: JsonSendStep,
        result: Result<StoreReply, StoreError>,
    ) {
        let stage = std::mem::replace(&mut step.stage, Stage::Account);
        match (stage, result) {
            (Stage::Append { identity_key, message }, result) => {
                step.stage = Stage::Append { identity_key, message };
                self.on_json_appended(reply_to, step, result);
            }
            (Stage::OwnContact, Ok(StoreReply::HasContact(false))) => {
                let request = StoreRequest::HasContact(step.to.clone(), step.sender.clone());
                self.ask_for(reply_to, step, Stage::Permission, request);
            }
            (Stage::OwnContact | Stage::Permission, Ok(StoreReply::HasContact(true))) => {
                self.find_recipient(reply_to, step);
            }
            (Stage::Permission, Ok(StoreReply::HasContact(false))) => {
                self.refuse_message(reply_to, ErrorCode::ContactsOnly, "not a contact of the recipient");
            }
            (Stage::Account, Ok(StoreReply::Account(Some(account)))) => {
                let stage = Stage::Devices { identity_key: account.identity_key, is_repeated: false };
                self.ask_for(reply_to, step, stage, StoreRequest::AccountDevices(account.name));
            }
            (Stage::Devices { identity_key, is_repeated }, Ok(StoreReply::AccountDevices(devices))) => {
                self.check_devices(now, reply_to, step, (devices, identity_key, is_repeated));
            }
            (Stage::LegacyDevice, Ok(StoreReply::LegacyDevice(Some(_)))) => match step.content {
                OutgoingContent::Text(_) => self.open_recipient_mailbox(reply_to, step),
                OutgoingContent::Encrypted(_) => self.refuse_devices(reply_to, Vec::new(), None),
            },
            (Stage::Mailbox, Ok(StoreReply::Mailbox(mailbox))) => {
                let OutgoingContent::Text(text) = &step.content else {
                    return self.refuse_failed(reply_to, None);
                };
                let copy = MessageCopy { mailbox: mailbox.id, is_encrypted: false, body: text.clone() };
                self.append_json(now, reply_to, step, (vec![copy], None));
            }
            (Stage::Account | Stage::LegacyDevice, Ok(_)) => {
                self.refuse_message(reply_to, ErrorCode::NotFound, "no such recipient");
            }
            (_, result) => {
                self.counters.refused += 1;
                self.refuse_failed(reply_to, result.err().as_ref());
            }
        }
    }

    fn open_recipient_mailbox(&mut self, reply_to: JsonReplyTo, step: JsonSendStep) {
        let request = StoreRequest::OpenMailbox(step.to.clone());
        self.ask_for(reply_to, step, Stage::Mailbox, request);
    }

    /// Stores the copies if they are for the devices that the recipient has now.
    fn check_devices(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        step: JsonSendStep,
        (devices, identity_key, is_repeated): (Vec<AccountDevice>, Option<[u8; 32]>, bool),
    ) {
        let copies = match &step.content {
            OutgoingContent::Text(_) if devices.is_empty() => {
                return self.open_recipient_mailbox(reply_to, step);
            }
            OutgoingContent::Text(_) => {
                let message = "the recipient reads encrypted messages only";
                return self.refuse_message(reply_to, ErrorCode::PlaintextRefused, message);
            }
            OutgoingContent::Encrypted(copies) => copies,
        };
        // A note to the own devices may leave out the sending one.
        let needs_copy = |device: &AccountDevice| step.to != step.sender || device.id != step.device;
        let is_complete = devices
            .iter()
            .filter(|device| needs_copy(device))
            .all(|device| copies.contains_key(&device.id.0));
        let stored: Vec<_> = devices
            .iter()
            .filter_map(|device| {
                let body = copies.get(&device.id.0)?.clone();
                Some(MessageCopy { mailbox: device.mailbox, is_encrypted: true, body })
            })
            .collect();
        if is_repeated || stored.is_empty() || stored.len() != copies.len() || !is_complete {
            return self.refuse_devices(reply_to, devices, identity_key);
        }
        self.append_json(now, reply_to, step, (stored, identity_key));
    }

    fn refuse_devices(
        &mut self,
        reply_to: JsonReplyTo,
        devices: Vec<AccountDevice>,
        identity_key: Option<[u8; 32]>,
    ) {
        self.counters.refused += 1;
        let error = ErrorBody::new(ErrorCode::DevicesChanged, "the copies are for other devices");
        let devices = Some(listed(devices, identity_key, false));
        self.refuse_with(reply_to, &ErrorBody { devices, ..error });
    }

    /// Stores the message. The requests behind it do not wait: the store keeps the order.
    fn append_json(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        step: JsonSendStep,
        (copies, identity_key): (Vec<MessageCopy>, Option<[u8; 32]>),
    ) {
        let message =
            self.new_message(now, (step.sender.clone(), Some(step.device)), step.message_id.clone(), copies);
        let request = StoreRequest::Append(message.clone());
        let mut step = step;
        step.stage = Stage::Append { identity_key, message: Box::new(message) };
        self.call_behind(request, JsonStep::Send(Box::new(step)), reply_to);
    }

    /// Makes a message with the times of this server.
    pub(super) fn new_message(
        &self,
        now: Now,
        (sender, sender_device): (Party, Option<AccountDeviceId>),
        message_id: String,
        copies: Vec<MessageCopy>,
    ) -> NewMessage {
        let stored_at_ms = unix_ms(now);
        let retention = u64::try_from(self.config.retention.as_millis()).unwrap_or(u64::MAX);
        let expires_at_ms = stored_at_ms.saturating_add(retention);
        NewMessage { sender, sender_device, message_id, stored_at_ms, expires_at_ms, copies }
    }

    fn on_json_appended(
        &mut self,
        reply_to: JsonReplyTo,
        step: JsonSendStep,
        result: Result<StoreReply, StoreError>,
    ) {
        // A device was removed after the devices were read.
        if matches!(result, Err(StoreError::NotFound))
            && let (Party::User(user), Stage::Append { identity_key, .. }) = (&step.to, &step.stage)
        {
            let stage = Stage::Devices { identity_key: *identity_key, is_repeated: true };
            let request = StoreRequest::AccountDevices(user.clone());
            return self.ask_for(reply_to, step, stage, request);
        }
        match self.deliver(&step, result) {
            Ok(duplicate) => self.accept(reply_to, &Sent { state: SentState::Stored, duplicate }),
            Err(error) => {
                self.counters.refused += 1;
                self.refuse_failed(reply_to, error.as_ref());
            }
        }
    }

    /// Pushes a message that was stored to who is online; returns whether it was stored before.
    pub(super) fn deliver(
        &mut self,
        step: &JsonSendStep,
        result: Result<StoreReply, StoreError>,
    ) -> Result<bool, Option<StoreError>> {
        let (Ok(StoreReply::Appended(appended)), Stage::Append { message, .. }) = (&result, &step.stage)
        else {
            return Err(result.err());
        };
        Ok(self.on_message_appended(message, appended))
    }

    /// Counts a message, and pushes it to those of its recipients that are online; returns whether all had it before.
    pub(super) fn on_message_appended(&mut self, message: &NewMessage, appended: &[Appended]) -> bool {
        let is_new = appended.iter().any(|copy| matches!(copy, Appended::Stored(_)));
        match is_new {
            true => self.counters.stored += 1,
            false => self.counters.duplicates += 1,
        }
        for (index, copy) in appended.iter().enumerate() {
            if let Appended::Stored(sequence) = copy {
                self.on_stored(message, index, *sequence);
            }
        }
        !is_new
    }

    fn refuse_message(&mut self, reply_to: JsonReplyTo, code: ErrorCode, message: &str) {
        self.counters.refused += 1;
        self.refuse_request(reply_to, code, message);
    }
}
