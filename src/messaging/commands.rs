//! The commands of the TCP protocol, their codes and their bodies (S4-7 to S4-28).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a frame asks for, tells or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Command {
    /// A sign of life; the answer is the same.
    Heartbeat = 0,
    /// The server's public RSA key.
    ServerKey = 1,
    /// The client's AES key, encrypted with the server's key.
    SessionKey = 2,
    /// The server could not read a frame.
    Error = 3,
    /// A user logs in.
    Login = 100,
    /// A device authenticates.
    DeviceAuth = 101,
    /// A user registers.
    Register = 102,
    /// Another connection has taken the id over.
    Conflict = 103,
    /// The client leaves.
    Logout = 104,
    /// A message to somebody.
    Send = 200,
    /// Messages for the client; its acknowledgement.
    Push = 201,
    /// Asks for all stored messages.
    Fetch = 202,
    /// Adds a device to the contacts.
    AddDevice = 203,
    /// Removes a device from the contacts.
    RemoveDevice = 204,
}

/// Commands from here on need a login (S4-18).
const FIRST_WITH_LOGIN: i32 = 200;

impl Command {
    /// Returns the command of a number, if there is one.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::Heartbeat,
            1 => Self::ServerKey,
            2 => Self::SessionKey,
            3 => Self::Error,
            100 => Self::Login,
            101 => Self::DeviceAuth,
            102 => Self::Register,
            103 => Self::Conflict,
            104 => Self::Logout,
            200 => Self::Send,
            201 => Self::Push,
            202 => Self::Fetch,
            203 => Self::AddDevice,
            204 => Self::RemoveDevice,
            _ => return None,
        })
    }

    /// Returns the number on the wire.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// Returns whether a command of this number, known or not, needs a login.
    #[must_use]
    pub const fn needs_login(number: i32) -> bool {
        number >= FIRST_WITH_LOGIN
    }
}

/// The codes of responses. They are of this wire only: 200 is an error here (S4-A4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "u16")]
pub enum Code {
    /// Done.
    Ok,
    /// Not done; the text says why.
    Exception,
    /// The command needs a login.
    NotLoggedIn,
    /// The dispatcher knows no server.
    NoServer,
    /// The user name is taken.
    UserExists,
    /// The user name or the password is wrong.
    WrongAccount,
    /// The device was added before.
    AlreadyAdded,
    /// The device was not added.
    NotAdded,
}

impl Code {
    /// Returns the number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Ok => 100,
            Self::Exception => 200,
            Self::NotLoggedIn => 300,
            Self::NoServer => 1000,
            Self::UserExists => 1001,
            Self::WrongAccount => 1002,
            Self::AlreadyAdded => 2001,
            Self::NotAdded => 2002,
        }
    }
}

impl From<Code> for u16 {
    fn from(code: Code) -> Self {
        code.number()
    }
}

/// The body of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ResultBody<'a> {
    /// The result.
    pub code: Code,
    /// The result in words.
    pub msg: &'a str,
}

/// The body of 100.
#[derive(Debug, Deserialize)]
pub struct LoginBody {
    /// The user name.
    pub username: Option<String>,
    /// The MD5 of the password as the client writes it; to the server any text.
    pub password: Option<String>,
}

/// The body of 101.
#[derive(Debug, Deserialize)]
pub struct DeviceAuthBody {
    /// The device's id.
    pub id: Option<String>,
    /// The version of its software: any JSON value.
    #[serde(default)]
    pub version: Value,
    /// What it can do: any JSON values.
    #[serde(default)]
    pub abilities: Option<Vec<Value>>,
    /// A secret that proves the device (S4-A7). Not of the original protocol.
    #[serde(rename = "deviceKey")]
    pub device_key: Option<String>,
}

/// The body of 200.
#[derive(Debug, Deserialize)]
pub struct SendBody {
    /// A user name or a device id.
    pub to: Option<String>,
    /// The message.
    pub msg: Option<String>,
}

/// The body of 203 and 204.
#[derive(Debug, Deserialize)]
pub struct DeviceBody {
    /// The device's id.
    #[serde(rename = "deviceId")]
    pub device_id: Option<String>,
}

/// One message of a 201 to the client.
#[derive(Debug, Serialize)]
pub struct PushedMessage<'a> {
    /// The sender's name.
    pub from: &'a str,
    /// The recipient's name.
    pub to: &'a str,
    /// The message.
    pub msg: &'a str,
    /// The sender's name for the message.
    pub msgid: &'a str,
}

/// One message of a 201 from the client.
#[derive(Debug, Deserialize)]
pub struct AcknowledgedMessage {
    /// The sender's name for the message.
    pub msgid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_command() {
        let known: Vec<_> = (-1..1000).filter_map(Command::from_number).map(Command::number).collect();
        assert_eq!(known, [0, 1, 2, 3, 100, 101, 102, 103, 104, 200, 201, 202, 203, 204]);
        assert!(!Command::needs_login(199) && Command::needs_login(200) && !Command::needs_login(-5));
    }

    #[test]
    fn responses_are_written_as_the_original_server_writes_them() {
        let body = ResultBody { code: Code::Ok, msg: "ok" };
        assert_eq!(serde_json::to_string(&body).unwrap(), r#"{"code":100,"msg":"ok"}"#);
        let pushed = PushedMessage { from: "a", to: "b", msg: "\"hi\"", msgid: "1" };
        assert_eq!(
            serde_json::to_string(&[pushed]).unwrap(),
            r#"[{"from":"a","to":"b","msg":"\"hi\"","msgid":"1"}]"#
        );
    }

    #[test]
    fn bodies_may_have_further_keys_and_any_version() {
        let body: LoginBody =
            serde_json::from_str(r#"{"version":"1.0","username":"a","password":"b","x":[1]}"#).unwrap();
        assert_eq!((body.username.as_deref(), body.password.as_deref()), (Some("a"), Some("b")));
        let body: DeviceAuthBody = serde_json::from_str(r#"{"version":2,"id":"d"}"#).unwrap();
        assert!(body.id.as_deref() == Some("d") && body.abilities.is_none() && body.device_key.is_none());
        assert!(serde_json::from_str::<LoginBody>(r#"{"username":7}"#).is_err());
    }
}
