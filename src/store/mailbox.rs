//! Mailboxes and messages. Pure.

use super::account::AccountDeviceId;
use super::error::{StoreError, require_short};
use super::party::Party;
use super::{MAX_BODY, MAX_MESSAGE_ID};
use bytes::Bytes;

/// The number of a mailbox; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MailboxId(pub i64);

/// The state of a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mailbox {
    /// Its number.
    pub id: MailboxId,
    /// A random number that tells this mailbox from another one of the same owner.
    pub epoch: u64,
    /// The sequence number of the last message that was appended; 0 before the first.
    pub last_sequence: u64,
    /// How many messages and receipts it stores.
    pub messages: u64,
    /// How many bytes of bodies it stores.
    pub bytes: u64,
}

/// How much a store accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Accounts and legacy devices together.
    pub parties: u64,
    /// Messages in one mailbox. Receipts are accepted up to twice as many.
    pub messages_per_mailbox: u64,
    /// Bytes of bodies in one mailbox.
    pub bytes_per_mailbox: u64,
    /// Of both, what senders may use that are neither contacts of the mailbox's owner nor the owner itself.
    pub strangers: StrangerLimits,
    /// Bytes of everything that is stored; at this size messages are refused.
    pub stored_bytes: u64,
    /// Contacts of one party.
    pub contacts_per_party: u64,
    /// Devices of one account.
    pub devices_per_account: u64,
}

/// How much of a mailbox senders may use that are no contacts of its owner: each a quarter, and all together three quarters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrangerLimits {
    /// Messages of one such sender.
    pub messages_per_sender: u64,
    /// Bytes of their bodies.
    pub bytes_per_sender: u64,
    /// Messages and receipts in the mailbox; the rest is kept for contacts.
    pub messages_per_mailbox: u64,
    /// Bytes of bodies in the mailbox.
    pub bytes_per_mailbox: u64,
}

impl StrangerLimits {
    /// Returns the shares of a mailbox of this size. One message is always permitted.
    #[must_use]
    pub fn of(messages_per_mailbox: u64, bytes_per_mailbox: u64) -> Self {
        let messages_per_sender = messages_per_mailbox.div_ceil(4);
        let bytes_per_sender = bytes_per_mailbox.div_ceil(4).max(bytes_per_mailbox.min(MAX_BODY as u64));
        Self {
            messages_per_sender,
            bytes_per_sender,
            messages_per_mailbox: messages_per_mailbox.saturating_sub(messages_per_sender).max(1),
            bytes_per_mailbox: bytes_per_mailbox.saturating_sub(bytes_per_sender).max(bytes_per_sender),
        }
    }
}

impl Default for StoreLimits {
    fn default() -> Self {
        let (messages_per_mailbox, bytes_per_mailbox) = (10_000, 64 << 20);
        Self {
            parties: 1_000_000,
            messages_per_mailbox,
            bytes_per_mailbox,
            strangers: StrangerLimits::of(messages_per_mailbox, bytes_per_mailbox),
            stored_bytes: 8 << 30,
            contacts_per_party: 1000,
            devices_per_account: 16,
        }
    }
}

/// One message on its way into one or several mailboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// Who sends it.
    pub sender: Party,
    /// The sending device, which gets a receipt when a copy is acknowledged or expires.
    pub sender_device: Option<AccountDeviceId>,
    /// The sender's name for it.
    pub message_id: String,
    /// When it arrived.
    pub stored_at_ms: u64,
    /// When it is removed without an acknowledgement.
    pub expires_at_ms: u64,
    /// One for each mailbox.
    pub copies: Vec<MessageCopy>,
}

/// What one mailbox gets of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageCopy {
    /// The receiving mailbox.
    pub mailbox: MailboxId,
    /// Whether the body is encrypted end to end.
    pub is_encrypted: bool,
    /// The content; copies for several mailboxes may share it.
    pub body: Bytes,
}

impl NewMessage {
    /// Refuses what is longer than a store accepts.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.sender.check()?;
        let is_short = self.message_id.len() <= MAX_MESSAGE_ID;
        require_short(is_short && self.copies.iter().all(|copy| copy.body.len() <= MAX_BODY))
    }
}

/// What became of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is stored under this sequence number.
    Stored(u64),
    /// The mailbox has it, or had it.
    Duplicate,
}

/// What a row of a mailbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// A message.
    Message,
    /// A receipt: the party and device named as sender acknowledged the message of this id.
    Delivered,
    /// A receipt: the message of this id expired before the party and device named as sender acknowledged it.
    Expired,
}

/// A message or a receipt in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its number in the mailbox.
    pub sequence: u64,
    /// A message or a receipt.
    pub kind: MessageKind,
    /// Who sent it.
    pub sender: Party,
    /// The sending device, if an account device sent it.
    pub sender_device: Option<AccountDeviceId>,
    /// The sender's name for the message; of a receipt, the name of the message that it is for.
    pub message_id: String,
    /// Whether the body is encrypted end to end.
    pub is_encrypted: bool,
    /// The content; empty in a receipt.
    pub body: Bytes,
    /// When it was appended.
    pub stored_at_ms: u64,
    /// When it is removed without an acknowledgement.
    pub expires_at_ms: u64,
}

/// The most that one read returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    /// Messages.
    pub messages: usize,
    /// Bytes of bodies.
    pub bytes: usize,
}

/// Which messages of a mailbox its reader has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledgement {
    /// All up to this sequence number.
    UpTo(u64),
    /// Those with these sequence numbers.
    Sequences(Vec<u64>),
}

/// What was removed from mailboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many messages and receipts.
    pub messages: u64,
    /// Which mailboxes got receipts, each once, in ascending order.
    pub notified: Vec<MailboxId>,
    /// How many receipts were dropped because the mailbox of the sending device stores twice as many messages as it may.
    pub dropped_receipts: u64,
}
