//! What a client tells its user. Pure.

use super::keys::Fingerprint;
use super::known_peers::Distrust;
use super::party_name::PartyName;
use serde::{Deserialize, Serialize};

/// What a [`Client`](super::Client) tells its user.
///
/// A number is what [`Client::acknowledge`](super::Client::acknowledge) takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The client has logged in.
    Connected {
        /// How many messages and receipts wait in the mailbox.
        stored: u64,
    },
    /// The connection was lost; the client opens another one.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// A message has arrived.
    Message(ReceivedMessage),
    /// Another device of this account has sent a message.
    SentElsewhere {
        /// The number of this event.
        number: u64,
        /// The recipient.
        to: PartyName,
        /// The id of the message.
        message_id: String,
        /// The message. It may contain any characters.
        text: String,
        /// When it was sent, in Unix milliseconds.
        sent_at_ms: u64,
    },
    /// A message of this device was delivered or has expired.
    Receipt {
        /// The number of this event.
        number: u64,
        /// The id of the message. That of a copy for the other devices of this account begins with `copy-`.
        message_id: String,
        /// Its recipient.
        party: PartyName,
        /// The number of the recipient's device, if it has one.
        device: Option<i64>,
        /// What became of the message.
        state: ReceiptState,
    },
    /// A message was refused: it is not shown, because it may be forged.
    Refused {
        /// The number of this event.
        number: u64,
        /// The sender that the server names.
        from: PartyName,
        /// The id that the server names.
        message_id: String,
        /// Why.
        reason: Distrust,
    },
    /// The identity key of a party was seen for the first time and is pinned from now on.
    Pinned {
        /// The party.
        party: PartyName,
        /// The fingerprint to compare with the one that the party's own device shows.
        fingerprint: Fingerprint,
    },
    /// The server shows another mailbox than before: messages that waited there may be lost.
    MailboxReset,
    /// Everything that waited in the mailbox has arrived. Only with [`Receive::Stored`](super::Receive::Stored).
    CaughtUp,
}

/// A message that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// The number of this event.
    pub number: u64,
    /// The sender.
    pub from: PartyName,
    /// The sender's name for the message.
    pub message_id: String,
    /// The message. It may contain any characters.
    pub text: String,
    /// When the sender sent it, in Unix milliseconds; with [`Protection::EndToEnd`] as the sender says, else when the server stored it.
    pub sent_at_ms: u64,
    /// How far the message is protected.
    pub protection: Protection,
}

/// How far a message is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protection {
    /// Encrypted for this device and signed by the sender's.
    EndToEnd,
    /// The same, and the sender has removed the device that signed it: whoever has that device may have written it.
    RemovedDevice,
    /// Not encrypted: the party uses the TCP protocol. The server can read it and could have changed it.
    None,
    /// Not encrypted although the party has keys: the server could have forged it.
    NoneDespiteKeys,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptState {
    /// A device of the recipient has it.
    Delivered,
    /// No device fetched it in time.
    Expired,
}

/// What became of a message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// The id of the message, which its [`Event::Receipt`]s name.
    pub message_id: String,
    /// [`Protection::EndToEnd`], or [`Protection::None`] for a recipient without keys.
    pub protection: Protection,
    /// To how many devices of the recipient it was encrypted.
    pub devices: usize,
}
