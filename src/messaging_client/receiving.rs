//! Receiving: rows of the mailbox, in their order, until the user has acknowledged them. Pure.

use super::encryption::{self, CopyOf};
use super::error::ClientError;
use super::event::{Event, Protection, ReceiptState, ReceivedMessage};
use super::known_peers::{Distrust, Envelope, PeerKeys, SendingDevice, assess_message};
use super::machine::{Answer, Machine, Operation, Output, Pending, Question, Receive, unix_ms};
use super::party_name::PartyName;
use super::replay_window::MessageRef;
use super::state::{Change, ReceiptRecord};
use crate::clock::Now;
use crate::messaging_wire::{self, Ack, Fetch, Follow, Message, Page, Receipt, Request, SentState};

/// The most rows of one page.
const PAGE: u32 = 100;
/// The most rows that wait for the user. A server sends at most 1000 before an acknowledgement.
const MAX_WAITING: usize = 2000;

/// A row that was not processed yet.
#[derive(Debug)]
pub(super) struct Incoming {
    row: Row,
    /// The last question for devices before it arrived.
    after: Question,
}

#[derive(Debug, Clone)]
enum Row {
    Message(Message),
    Receipt(Receipt),
}

impl Row {
    fn sequence(&self) -> u64 {
        match self {
            Self::Message(message) => message.sequence,
            Self::Receipt(receipt) => receipt.sequence,
        }
    }
}

/// A row that the user has, and has not acknowledged.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    pub(super) number: u64,
    pub(super) sequence: u64,
    message: Option<MessageRef>,
    receipt: Option<ReceiptRecord>,
}

impl Unacknowledged {
    fn new(number: u64, sequence: u64) -> Self {
        Self { number, sequence, message: None, receipt: None }
    }
}

/// What became of a message of the mailbox.
enum Verdict {
    /// It is shown, and remembered if it is encrypted.
    Shown {
        text: String,
        sent_at_ms: u64,
        protection: Protection,
        message: Option<MessageRef>,
        copy_of: Option<CopyOf>,
    },
    Refused(Distrust),
    /// The devices of its sender are not known yet.
    Waiting,
}

impl Machine {
    /// Starts to read the mailbox after a login.
    pub(super) fn start_receiving(&mut self, stored: u64, now: Now) {
        let acknowledged = self.state.acknowledged(self.epoch);
        self.received = self.received.max(acknowledged);
        self.has_more = self.receive == Receive::Stored;
        if self.receive == Receive::Nothing {
            return;
        }
        if acknowledged > 0 && stored > 0 {
            // The server may not have it yet.
            self.request(&Request::Ack(Ack { up_to: acknowledged }), Pending::Quiet, now);
        }
        match self.receive {
            Receive::Everything => {
                let follow = Follow { after: self.received };
                self.request(&Request::Follow(follow), Pending::Quiet, now);
            }
            _ => self.fetch_more(now),
        }
    }

    /// Asks for the next page once the user has acknowledged everything before it.
    pub(super) fn fetch_more(&mut self, now: Now) {
        let is_idle = self.unacknowledged.is_empty() && self.incoming.is_empty();
        if self.receive != Receive::Stored || !is_idle || !self.is_open() {
            return;
        }
        if self.has_more {
            self.has_more = false;
            let fetch = Fetch { after: self.received, limit: PAGE };
            self.request(&Request::Fetch(fetch), Pending::Page, now);
        } else if !self.is_caught_up {
            self.is_caught_up = true;
            self.output(Output::Event(Event::CaughtUp));
        }
    }

    pub(super) fn handle_page(&mut self, page: Page, now: Now) {
        self.has_more = page.more;
        self.handle_rows(page.messages, now);
        self.fetch_more(now);
    }

    pub(super) fn handle_rows(&mut self, rows: impl IntoIterator<Item = messaging_wire::Event>, now: Now) {
        for event in rows {
            let row = match event {
                messaging_wire::Event::Message(message) => Row::Message(message),
                messaging_wire::Event::Receipt(receipt) => Row::Receipt(receipt),
                _ => continue,
            };
            self.incoming.push_back(Incoming { row, after: self.question });
        }
        if self.incoming.len() + self.unacknowledged.len() > MAX_WAITING {
            let text = "it sends more than it may before an acknowledgement".to_owned();
            return self.end(ClientError::Protocol(text));
        }
        self.process_incoming(now);
    }

    /// Passes rows to the user, up to one whose sender's devices must be asked for.
    pub(super) fn process_incoming(&mut self, now: Now) {
        while let Some(Incoming { row, after }) = self.incoming.pop_front() {
            if row.sequence() <= self.received {
                continue;
            }
            let is_done = match &row {
                Row::Receipt(receipt) => {
                    self.pass_receipt(receipt);
                    true
                }
                Row::Message(message) => self.pass_message(message, after, now),
            };
            if !is_done {
                self.incoming.push_front(Incoming { row, after });
                return;
            }
            self.received = row.sequence();
        }
    }

    fn next_unacknowledged(&mut self, sequence: u64) -> Unacknowledged {
        let number = self.next_number;
        self.next_number += 1;
        Unacknowledged::new(number, sequence)
    }

    fn pass_receipt(&mut self, receipt: &Receipt) {
        let mut row = self.next_unacknowledged(receipt.sequence);
        let state = match receipt.state {
            SentState::Expired => ReceiptState::Expired,
            SentState::Delivered | SentState::Stored => ReceiptState::Delivered,
        };
        let message_id = receipt.message_id.clone();
        row.receipt = Some(ReceiptRecord { message_id: message_id.clone(), state });
        let party = PartyName::from_wire(&receipt.from);
        let (number, device) = (row.number, receipt.device);
        self.unacknowledged.push_back(row);
        self.output(Output::Event(Event::Receipt { number, message_id, party, device, state }));
    }

    /// Passes a message to the user; returns false if it must wait.
    fn pass_message(&mut self, message: &Message, after: Question, now: Now) -> bool {
        let verdict = self.assess(message, after, now);
        if matches!(verdict, Verdict::Waiting) {
            return false;
        }
        let mut row = self.next_unacknowledged(message.sequence);
        let (number, from) = (row.number, PartyName::from_wire(&message.from));
        let message_id = message.message_id.clone();
        let event = match verdict {
            Verdict::Shown { text, sent_at_ms, message, copy_of: Some(copy_of), .. } => {
                row.message = message;
                let (to, message_id) = (PartyName::from_wire(&copy_of.to), copy_of.message_id);
                Event::SentElsewhere { number, to, message_id, text, sent_at_ms }
            }
            Verdict::Shown { text, sent_at_ms, protection, message, copy_of: None } => {
                row.message = message;
                Event::Message(ReceivedMessage { number, from, message_id, text, sent_at_ms, protection })
            }
            Verdict::Refused(reason) => Event::Refused { number, from, message_id, reason },
            Verdict::Waiting => return false,
        };
        self.unacknowledged.push_back(row);
        self.output(Output::Event(event));
        true
    }

    fn assess(&mut self, message: &Message, after: Question, now: Now) -> Verdict {
        let from = PartyName::from_wire(&message.from);
        match (message.encrypted, &message.body, &message.text) {
            (true, Some(body), _) => match self.assess_encrypted(&from, message, &body.0, after, now) {
                Ok(Some((content, device))) => {
                    let encryption::Content { from, message_id, sent_at, text, copy_of, .. } = content;
                    let is_own = from == self.account.party.as_wire();
                    Verdict::Shown {
                        text,
                        sent_at_ms: sent_at,
                        protection: match device {
                            SendingDevice::Current => Protection::EndToEnd,
                            SendingDevice::Removed => Protection::RemovedDevice,
                        },
                        message: Some(MessageRef { from, message_id, sent_at }),
                        copy_of: copy_of.filter(|_| is_own),
                    }
                }
                Ok(None) => Verdict::Waiting,
                Err(distrust) => Verdict::Refused(distrust),
            },
            (false, _, Some(text)) => Verdict::Shown {
                text: text.clone(),
                sent_at_ms: message.stored_at,
                protection: match self.state.peers.pinned(&from) {
                    Some(_) => Protection::NoneDespiteKeys,
                    None => Protection::None,
                },
                message: None,
                copy_of: None,
            },
            _ => Verdict::Refused(Distrust::Unreadable),
        }
    }

    /// Decrypts and verifies; `None` until the devices of the sender are known.
    fn assess_encrypted(
        &mut self,
        from: &PartyName,
        message: &Message,
        body: &[u8],
        after: Question,
        now: Now,
    ) -> Result<Option<(encryption::Content, SendingDevice)>, Distrust> {
        let content = encryption::open(body, self.account.keys.encryption_secret())?;
        let mut known = self.devices_of(from, Question::default(), now);
        let has_device = |devices: &PeerKeys| match devices {
            PeerKeys::Devices { devices, .. } => {
                devices.iter().any(|device| device.signing_key == content.from_key.0)
            }
            PeerKeys::Legacy => false,
        };
        // The device may be newer than the answer.
        if known.as_ref().is_some_and(|known| !known.keys.as_ref().is_ok_and(has_device)) {
            known = self.devices_of(from, after, now);
        }
        let Some(known) = known else { return Ok(None) };
        let (devices, identity_key) = match (known.keys, known.pinned_key) {
            (Ok(PeerKeys::Devices { devices, identity_key, .. }), _) => (devices, identity_key),
            (Ok(PeerKeys::Legacy), _) => return Err(Distrust::Signature),
            // The sender has removed its last device.
            (Err(Distrust::KeysWithheld), Some(identity_key)) => (Vec::new(), identity_key),
            (Err(distrust), _) => return Err(distrust),
        };
        let envelope = Envelope {
            from: &message.from,
            message_id: &message.message_id,
            to: &self.account.party,
            to_key: &self.account.keys.encryption_key,
        };
        let device = assess_message(&content, &envelope, (&devices, &identity_key))?;
        let (from, message_id) = (content.from.clone(), content.message_id.clone());
        let reference = MessageRef { from, message_id, sent_at: content.sent_at };
        let is_unacknowledged =
            self.unacknowledged.iter().any(|row| row.message.as_ref() == Some(&reference));
        match is_unacknowledged || self.state.replay_window.contains(&reference) {
            true => Err(Distrust::Replayed),
            false => Ok(Some((content, device))),
        }
    }

    /// The user has seen everything up to the event of this number.
    pub(super) fn acknowledge(&mut self, operation: Operation, number: u64, now: Now) {
        let (mut messages, mut receipts, mut up_to) = (Vec::new(), Vec::new(), None);
        let seen = self.unacknowledged.iter().take_while(|row| row.number <= number).count();
        for row in self.unacknowledged.drain(..seen) {
            messages.extend(row.message);
            receipts.extend(row.receipt);
            up_to = Some(row.sequence);
        }
        let Some(up_to) = up_to else { return self.done(operation, Ok(Answer::Acknowledged)) };
        let (epoch, now_ms) = (self.epoch, unix_ms(now));
        self.save(Change::Acknowledged { epoch, up_to, messages, receipts, now_ms });
        match self.is_open() {
            true => {
                self.request(&Request::Ack(Ack { up_to }), Pending::Acknowledgement(operation), now);
            }
            false => self.done(operation, Ok(Answer::Acknowledged)),
        }
    }
}
