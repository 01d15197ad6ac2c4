//! The messages of the WebSocket `/messages`: one JSON object per text frame. Pure.
//!
//! A request has an `id`, which its answer repeats, and a `type`. Events of the server have no `id`. Keys, signatures and encrypted bodies are
//! unpadded base64url. Parties are in the text form `user:NAME` or `dev:ID`; times are Unix time in milliseconds. Unknown fields are ignored.

use data_encoding::BASE64URL_NOPAD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The version in [`Event::Hello`].
pub(crate) const VERSION: u32 = 1;
/// Longest frame of a client.
pub(crate) const MAX_FRAME: usize = 256 * 1024;

/// Bytes of a fixed length; unpadded base64url in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FixedBytes<const N: usize>(pub(crate) [u8; N]);

/// An Ed25519 or X25519 key, or a challenge.
pub(crate) type Key = FixedBytes<32>;
/// An Ed25519 signature.
pub(crate) type Signature = FixedBytes<64>;

impl<const N: usize> Serialize for FixedBytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for FixedBytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Body::deserialize(deserializer)?;
        match bytes.0.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(D::Error::custom(format_args!("not {N} bytes"))),
        }
    }
}

/// An encrypted body; unpadded base64url in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map(Self)
            .map_err(|_| D::Error::custom("not base64url without padding"))
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Creates an account. Answered by [`Registered`].
    Register(Register),
    /// Proves who the client is. Answered by [`LoggedIn`].
    Login(Login),
    /// Sets the identity key of an account that has none.
    SetIdentity(SetIdentity),
    /// Sets the password.
    SetPassword(SetPassword),
    /// Adds a device to the account. Answered by [`Registered`].
    AddDevice(NewDevice),
    /// Removes a device of the account.
    RemoveDevice(DeviceNumber),
    /// Asks for the devices of a party. Answered by [`Devices`].
    Devices(OtherParty),
    /// Asks for the contacts. Answered by [`Contacts`].
    Contacts(Empty),
    /// Adds a contact.
    AddContact(OtherParty),
    /// Removes a contact.
    RemoveContact(OtherParty),
    /// Sends a message. Answered by [`Sent`].
    Send(Send),
    /// Asks for a page of the mailbox. Answered by [`Page`].
    Fetch(Fetch),
    /// Asks for all messages from here on as events.
    Follow(Follow),
    /// Ends [`Request::Follow`].
    Unfollow(Empty),
    /// Removes messages from the mailbox.
    Ack(Ack),
    /// Asks for events about the presence of contacts.
    Watch(Empty),
    /// Asks for nothing.
    Ping(Empty),
    /// Ends the connection.
    Logout(Empty),
}

/// No fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Empty {}

/// The fields of [`Request::Register`]. The account has a password, an identity key, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Register {
    /// The name of the account.
    pub(crate) user: String,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password: Option<String>,
    /// The key that signs its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity_key: Option<Key>,
    /// [`Statement::Registration`](super::signing::Statement::Registration) by the identity key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proof: Option<Signature>,
    /// Its first device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<NewDevice>,
}

/// A device to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewDevice {
    /// Its name, which only the account itself sees.
    pub(crate) label: String,
    /// Its Ed25519 key.
    pub(crate) signing_key: Key,
    /// Its X25519 key.
    pub(crate) encryption_key: Key,
    /// [`Statement::Device`](super::signing::Statement::Device) by the identity key.
    pub(crate) signature: Signature,
}

/// The fields of [`Request::Login`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LoginFields", into = "LoginFields")]
pub(crate) struct Login {
    /// The name of the account.
    pub(crate) user: String,
    /// What shows that it is the client's.
    pub(crate) proof: LoginProof,
}

/// What shows that an account is the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LoginProof {
    /// A device logs in: it has a mailbox.
    Device {
        /// Its signing key.
        key: Key,
        /// [`Statement::DeviceLogin`](super::signing::Statement::DeviceLogin) by this key.
        signature: Signature,
    },
    /// [`Statement::IdentityLogin`](super::signing::Statement::IdentityLogin) by the identity key: no device.
    Identity(Signature),
    /// The password: no device.
    Password(String),
}

#[derive(Serialize, Deserialize)]
struct LoginFields {
    user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device_key: Option<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_signature: Option<Signature>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

impl TryFrom<LoginFields> for Login {
    type Error = &'static str;

    fn try_from(fields: LoginFields) -> Result<Self, Self::Error> {
        let proof = match (fields.device_key, fields.signature, fields.identity_signature, fields.password) {
            (Some(key), Some(signature), None, None) => LoginProof::Device { key, signature },
            (None, None, Some(signature), None) => LoginProof::Identity(signature),
            (None, None, None, Some(password)) => LoginProof::Password(password),
            _ => return Err("device_key and signature, or identity_signature, or password"),
        };
        Ok(Self { user: fields.user, proof })
    }
}

impl From<Login> for LoginFields {
    fn from(login: Login) -> Self {
        let mut fields = Self {
            user: login.user,
            device_key: None,
            signature: None,
            identity_signature: None,
            password: None,
        };
        match login.proof {
            LoginProof::Device { key, signature } => {
                (fields.device_key, fields.signature) = (Some(key), Some(signature));
            }
            LoginProof::Identity(signature) => fields.identity_signature = Some(signature),
            LoginProof::Password(password) => fields.password = Some(password),
        }
        fields
    }
}

/// The fields of [`Request::SetIdentity`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetIdentity {
    /// The key that signs the account's devices.
    pub(crate) identity_key: Key,
    /// [`Statement::Registration`](super::signing::Statement::Registration) by this key.
    pub(crate) proof: Signature,
}

/// The fields of [`Request::SetPassword`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetPassword {
    /// The password.
    pub(crate) password: String,
}

/// The number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceNumber {
    /// The number.
    pub(crate) device: i64,
}

/// The fields of the requests that are about another party.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OtherParty {
    /// The party.
    pub(crate) party: String,
}

/// The fields of [`Request::Send`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SendFields", into = "SendFields")]
pub(crate) struct Send {
    /// The recipient.
    pub(crate) to: String,
    /// The sender's name for the message.
    pub(crate) message_id: String,
    /// The message.
    pub(crate) content: Content,
}

/// A message as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A copy for each device of the recipient.
    Encrypted(Vec<DeviceCopy>),
    /// The message in plaintext.
    Text(String),
}

/// What one device gets of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceCopy {
    /// The number of the device.
    pub(crate) device: i64,
    /// The message, encrypted for this device.
    pub(crate) body: Body,
}

#[derive(Serialize, Deserialize)]
struct SendFields {
    to: String,
    message_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copies: Option<Vec<DeviceCopy>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl TryFrom<SendFields> for Send {
    type Error = &'static str;

    fn try_from(fields: SendFields) -> Result<Self, Self::Error> {
        let content = match (fields.copies, fields.text) {
            (Some(copies), None) => Content::Encrypted(copies),
            (None, Some(text)) => Content::Text(text),
            _ => return Err("either copies or text"),
        };
        Ok(Self { to: fields.to, message_id: fields.message_id, content })
    }
}

impl From<Send> for SendFields {
    fn from(send: Send) -> Self {
        let (copies, text) = match send.content {
            Content::Encrypted(copies) => (Some(copies), None),
            Content::Text(text) => (None, Some(text)),
        };
        Self { to: send.to, message_id: send.message_id, copies, text }
    }
}

/// The fields of [`Request::Fetch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetch {
    /// The last sequence number that the client has.
    pub(crate) after: u64,
    /// The most messages to return.
    pub(crate) limit: u32,
}

/// The fields of [`Request::Follow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Follow {
    /// The last sequence number that the client has.
    pub(crate) after: u64,
}

/// The fields of [`Request::Ack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ack {
    /// The client has everything up to this sequence number.
    pub(crate) up_to: u64,
}

/// Why a frame of a client is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// It is no JSON object with `id` and `type`.
    #[error("no JSON object with id and type")]
    Malformed,
    /// Nothing has this type.
    #[error("unknown type")]
    UnknownType {
        /// The id of the request.
        id: u64,
    },
    /// A field is missing or wrong.
    #[error("{message}")]
    Invalid {
        /// The id of the request.
        id: u64,
        /// What is wrong.
        message: String,
    },
}

#[derive(Deserialize)]
struct RequestHeader {
    id: u64,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize)]
struct RequestFrame<'a> {
    id: u64,
    #[serde(flatten)]
    request: &'a Request,
}

impl Request {
    /// Reads a frame of a client. The memory that this takes is proportional to the length of the frame.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn parse(text: &str) -> Result<(u64, Self), RequestError> {
        let RequestHeader { id, kind } = serde_json::from_str(text).map_err(|_| RequestError::Malformed)?;
        let request = match kind.as_str() {
            "register" => fields(text).map(Self::Register),
            "login" => fields(text).map(Self::Login),
            "set_identity" => fields(text).map(Self::SetIdentity),
            "set_password" => fields(text).map(Self::SetPassword),
            "add_device" => fields(text).map(Self::AddDevice),
            "remove_device" => fields(text).map(Self::RemoveDevice),
            "devices" => fields(text).map(Self::Devices),
            "contacts" => fields(text).map(Self::Contacts),
            "add_contact" => fields(text).map(Self::AddContact),
            "remove_contact" => fields(text).map(Self::RemoveContact),
            "send" => fields(text).map(Self::Send),
            "fetch" => fields(text).map(Self::Fetch),
            "follow" => fields(text).map(Self::Follow),
            "unfollow" => fields(text).map(Self::Unfollow),
            "ack" => fields(text).map(Self::Ack),
            "watch" => fields(text).map(Self::Watch),
            "ping" => fields(text).map(Self::Ping),
            "logout" => fields(text).map(Self::Logout),
            _ => return Err(RequestError::UnknownType { id }),
        };
        request.map(|request| (id, request)).map_err(|message| RequestError::Invalid { id, message })
    }

    /// Writes the request as a frame.
    #[must_use]
    pub(crate) fn to_frame(&self, id: u64) -> String {
        to_json(&RequestFrame { id, request: self })
    }
}

/// Reads the fields of one request, without a copy of those that it does not have.
fn fields<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Writes what always can be written.
fn to_json(value: &impl Serialize) -> String {
    // Only maps with keys that are no texts fail, and there are none.
    serde_json::to_string(value).unwrap_or_default()
}

/// The answer to [`Request::Register`] and [`Request::AddDevice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registered {
    /// The number of the device that was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<i64>,
}

/// The answer to [`Request::Login`].
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
}

/// How much a mailbox stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Messages and receipts.
    pub(crate) messages: u64,
    /// Bytes of bodies.
    pub(crate) bytes: u64,
}

/// The answer to [`Request::Devices`].
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

/// The answer to [`Request::Contacts`].
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

/// The answer to [`Request::Send`].
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

/// The answer to [`Request::Fetch`].
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
pub(crate) enum ErrorCode {
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
