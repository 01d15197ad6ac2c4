//! What the server answers and sends unasked. Pure.

use super::{Body, Key, Signature, to_json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The answer to [`Request::Register`](super::Request::Register) and [`Request::AddDevice`](super::Request::AddDevice).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registered {
    /// The number of the device that was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<i64>,
}

/// The answer to [`Request::Login`](super::Request::Login).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoggedIn {
    /// What a device has; absent in a session without one.
    #[serde(flatten)]
    pub(crate) mailbox: Option<MailboxState>,
}

/// The mailbox of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MailboxState {
    /// The number of the device.
    pub(crate) device: i64,
    /// Tells this mailbox from an earlier one: with another epoch, sequence numbers begin anew. It has 53 bits.
    pub(crate) epoch: u64,
    /// The highest sequence number that was used.
    pub(crate) last_sequence: u64,
    /// How much is stored.
    pub(crate) stored: Stored,
    /// [`Statement::Device`](super::signing::Statement::Device) about the device, by the identity key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<Signature>,
    /// How many other devices the account has.
    #[serde(default)]
    pub(crate) other_devices: u64,
}

/// How much a mailbox stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Messages and receipts.
    pub(crate) messages: u64,
    /// Bytes of bodies.
    pub(crate) bytes: u64,
}

/// The answer to [`Request::Devices`](super::Request::Devices).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Devices {
    /// The key that signs the devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity_key: Option<Key>,
    /// The devices, each with a mailbox.
    pub(crate) devices: Vec<Device>,
    /// The party has no devices: it uses the TCP protocol and reads plaintext only.
    pub(crate) legacy: bool,
}

/// A device of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Its number.
    pub(crate) device: i64,
    /// Its name; only for the account itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<String>,
    /// Its Ed25519 key.
    pub(crate) signing_key: Key,
    /// Its X25519 key.
    pub(crate) encryption_key: Key,
    /// [`Statement::Device`](super::signing::Statement::Device) by the identity key.
    pub(crate) signature: Signature,
    /// When it was added.
    pub(crate) created_at: u64,
}

/// The answer to [`Request::Contacts`](super::Request::Contacts).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contacts {
    /// The contacts, in the order of their text form.
    pub(crate) contacts: Vec<Contact>,
}

/// A contact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contact {
    /// The party.
    pub(crate) party: String,
    /// Whether it is online; only of parties that have the asking one among their contacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) online: Option<bool>,
}

/// The answer to [`Request::Send`](super::Request::Send).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// [`SentState::Stored`].
    pub(crate) state: SentState,
    /// A message of this id was stored before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) duplicate: bool,
}

/// What became of a message that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SentState {
    /// It is durable.
    Stored,
    /// A device of the recipient has acknowledged it.
    Delivered,
    /// It was removed without an acknowledgement.
    Expired,
}

/// The answer to [`Request::Fetch`](super::Request::Fetch).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Page {
    /// [`Event::Message`] and [`Event::Receipt`], in the order of their sequence numbers.
    pub(crate) messages: Vec<Event>,
    /// There are more.
    pub(crate) more: bool,
}

/// What the server sends unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The connection is open.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Random bytes for what the client signs on this connection.
        challenge: Key,
    },
    /// A message.
    Message(Message),
    /// What became of a message that this device sent.
    Receipt(Receipt),
    /// A contact has come online or gone offline.
    Presence {
        /// The contact.
        party: String,
        /// Whether it is online.
        online: bool,
    },
    /// The server closes the connection.
    Closing {
        /// Why.
        reason: ClosingReason,
    },
    /// A frame could not be read.
    Error(ErrorBody),
}

/// A message in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Its number in the mailbox.
    pub(crate) sequence: u64,
    /// The sender.
    pub(crate) from: String,
    /// The sending device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<i64>,
    /// The sender's name for it.
    pub(crate) message_id: String,
    /// Whether `body` or `text` is there.
    pub(crate) encrypted: bool,
    /// The message, encrypted for this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<Body>,
    /// The message in plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// When it was stored.
    pub(crate) stored_at: u64,
    /// When it is removed without an acknowledgement.
    pub(crate) expires_at: u64,
}

/// A receipt in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// Its number in the mailbox.
    pub(crate) sequence: u64,
    /// [`SentState::Delivered`] or [`SentState::Expired`].
    pub(crate) state: SentState,
    /// The message.
    pub(crate) message_id: String,
    /// Its recipient.
    pub(crate) from: String,
    /// The recipient's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<i64>,
}

/// Why the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClosingReason {
    /// The device has logged in on another connection.
    Replaced,
    /// The device was removed from the account.
    DeviceRemoved,
    /// The client was silent for too long.
    Idle,
    /// The client sent too much that could not be read.
    Malformed,
    /// The server stops.
    Shutdown,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// No JSON object with `id` and `type`.
    Malformed,
    /// Nothing has this type.
    UnknownType,
    /// The session may not do this.
    NotLoggedIn,
    /// Passwords are accepted inside TLS only.
    TlsRequired,
    /// The account, password, key or signature is wrong.
    WrongCredentials,
    /// The name is taken.
    NameTaken,
    /// The server takes no new accounts.
    RegistrationClosed,
    /// A rate or a queue is full; a later attempt may succeed.
    TryAgainLater,
    /// A field is missing or wrong.
    Invalid,
    /// There is no such party, device or contact.
    NotFound,
    /// The copies are for other devices than the recipient has.
    DevicesChanged,
    /// The recipient has devices and reads encrypted messages only.
    PlaintextRefused,
    /// The recipient's mailbox is full.
    MailboxFull,
    /// The recipient's mailbox has as many messages of this sender as it may; a contact of the recipient may have more.
    SenderShareFull,
    /// The server stores as much as it may.
    StorageFull,
    /// The server's disk is full.
    DiskFull,
    /// The recipient accepts messages from contacts only.
    ContactsOnly,
    /// The contact was added before.
    ContactExists,
    /// The account has as many devices as it may.
    TooManyDevices,
    /// The account has as many contacts as it may.
    TooManyContacts,
    /// A field is longer than it may be.
    TooLarge,
    /// The server cannot do this now.
    Unavailable,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

/// The fields of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// The reason.
    pub(crate) code: ErrorCode,
    /// The reason in words.
    pub(crate) message: String,
    /// With [`ErrorCode::DevicesChanged`]: the devices that the recipient has.
    #[serde(flatten)]
    pub(crate) devices: Option<Devices>,
}

impl ErrorBody {
    /// Makes an error without devices.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), devices: None }
    }
}

#[derive(Serialize)]
struct AnswerFrame<'a, T: Serialize> {
    id: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    fields: &'a T,
}

/// Writes the answer to a request that was done.
#[must_use]
pub(crate) fn ok_frame(id: u64, fields: &impl Serialize) -> String {
    to_json(&AnswerFrame { id, kind: "ok", fields })
}

/// Writes the answer to a request that was refused.
#[must_use]
pub(crate) fn error_frame(id: u64, error: &ErrorBody) -> String {
    to_json(&AnswerFrame { id, kind: "error", fields: error })
}

impl Event {
    /// Writes the event as a frame.
    #[must_use]
    pub(crate) fn to_frame(&self) -> String {
        to_json(self)
    }
}

/// A frame of the server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ServerFrame {
    /// A request was done. [`answer_fields`] reads the fields.
    Ok {
        /// The id of the request.
        id: u64,
        /// The whole object.
        fields: Value,
    },
    /// A request was refused.
    Error {
        /// The id of the request.
        id: u64,
        /// Why.
        error: ErrorBody,
    },
    /// An event.
    Event(Event),
    /// An event of a later version.
    UnknownEvent,
}

/// A frame of the server is none.
#[derive(Debug, thiserror::Error)]
#[error("no frame of a messaging server: {0}")]
pub(crate) struct ServerFrameError(#[from] serde_json::Error);

#[derive(Deserialize)]
struct ServerHeader {
    id: Option<u64>,
    #[serde(rename = "type")]
    kind: String,
}

impl ServerFrame {
    /// Reads a frame of a server.
    ///
    /// # Errors
    /// [`ServerFrameError`].
    pub(crate) fn parse(text: &str) -> Result<Self, ServerFrameError> {
        let ServerHeader { id, kind } = serde_json::from_str(text)?;
        Ok(match (id, kind.as_str()) {
            (Some(id), "error") => Self::Error { id, error: serde_json::from_str(text)? },
            (Some(id), _) => Self::Ok { id, fields: serde_json::from_str(text)? },
            (None, "hello" | "message" | "receipt" | "presence" | "closing" | "error") => {
                Self::Event(serde_json::from_str(text)?)
            }
            (None, _) => Self::UnknownEvent,
        })
    }
}

/// Reads the fields of [`ServerFrame::Ok`].
///
/// # Errors
/// [`ServerFrameError`].
pub(crate) fn answer_fields<T: DeserializeOwned>(fields: Value) -> Result<T, ServerFrameError> {
    Ok(serde_json::from_value(fields)?)
}
