//! What clients ask for. Pure.

use super::{Body, Key, Signature, to_json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Creates an account. Answered by [`Registered`](super::Registered).
    Register(Register),
    /// Proves who the client is. Answered by [`LoggedIn`](super::LoggedIn).
    Login(Login),
    /// Sets the identity key of an account that has none.
    SetIdentity(SetIdentity),
    /// Sets the password.
    SetPassword(SetPassword),
    /// Adds a device to the account. Answered by [`Registered`](super::Registered).
    AddDevice(NewDevice),
    /// Removes a device of the account.
    RemoveDevice(DeviceNumber),
    /// Gives a device of the account another name.
    RenameDevice(DeviceName),
    /// Asks for the devices of a party. Answered by [`Devices`](super::Devices).
    Devices(OtherParty),
    /// Asks for the contacts. Answered by [`Contacts`](super::Contacts).
    Contacts(Empty),
    /// Adds a contact.
    AddContact(OtherParty),
    /// Removes a contact.
    RemoveContact(OtherParty),
    /// Sends a message. Answered by [`Sent`](super::Sent).
    Send(Send),
    /// Asks for a page of the mailbox. Answered by [`Page`](super::Page).
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
        /// Whether the connection reads the mailbox and replaces an older one that does.
        reads_mailbox: bool,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mailbox: Option<bool>,
}

impl TryFrom<LoginFields> for Login {
    type Error = &'static str;

    fn try_from(fields: LoginFields) -> Result<Self, Self::Error> {
        let proof = match (fields.device_key, fields.signature, fields.identity_signature, fields.password) {
            (Some(key), Some(signature), None, None) => {
                LoginProof::Device { reads_mailbox: fields.mailbox.unwrap_or(true), key, signature }
            }
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
            mailbox: None,
        };
        match login.proof {
            LoginProof::Device { reads_mailbox, key, signature } => {
                fields.mailbox = Some(false).filter(|_| !reads_mailbox);
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

/// The fields of [`Request::RenameDevice`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceName {
    /// The number.
    pub(crate) device: i64,
    /// The name, which only the account itself sees.
    pub(crate) label: String,
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
            "rename_device" => fields(text).map(Self::RenameDevice),
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
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        match field_at(text, &error) {
            Some(field) if !message.starts_with("missing field") => format!("{field}: {message}"),
            _ => message,
        }
    })
}

/// Returns the field of the object in whose value an error is; the errors of values do not name it.
fn field_at<'a>(text: &'a str, error: &serde_json::Error) -> Option<&'a str> {
    let line = error.line().checked_sub(1)?;
    let before: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let (mut depth, mut is_key, mut string, mut is_escaped) = (0u32, false, None, false);
    let mut field = None;
    for (at, byte) in text.bytes().enumerate().take(before + error.column()) {
        match (string, byte) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), b'\\') => is_escaped = true,
            (Some(start), b'"') => {
                if std::mem::take(&mut is_key) {
                    field = text.get(start + 1..at);
                }
                string = None;
            }
            (Some(_), _) => {}
            (None, b'"') => string = Some(at),
            (None, b'{' | b'[') => {
                depth += 1;
                is_key = depth == 1;
            }
            (None, b'}' | b']') => depth = depth.saturating_sub(1),
            (None, b',') => is_key = depth == 1,
            (None, _) => {}
        }
    }
    field
}
