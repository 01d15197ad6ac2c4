//! The messages of signalling, one type for each.
//!
//! [`super::wire`] re-exports, parses and serialises them.

pub use super::error_code::ErrorCode;
pub use super::ice_description::{IceDescription, IceServer, NatType, ReflexiveAddress, ReportedPath};
pub use super::message_type::MessageType;
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::fmt;
use std::net::SocketAddr;

/// Identifies a client from its registration to its end (S0-2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Tag(String);

/// Identifies a call (S0-13).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Token(String);

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// Maximum length in bytes.
            pub const MAX: usize = 64;

            /// Creates it from a text of 1 to [`Self::MAX`] bytes.
            #[must_use]
            pub fn new(text: impl Into<String>) -> Option<Self> {
                let text = text.into();
                (1..=Self::MAX).contains(&text.len()).then_some(Self(text))
            }

            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("1 to 64 bytes"))
            }
        }
    };
}
name!(Tag);
name!(Token);

/// Any message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A request.
    Request(Request),
    /// A response.
    Response(Response),
}

/// A request, from either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the requester and repeated in the response (S0-33); may be missing (S0-5, S0-A24).
    pub mid: Option<i64>,
    /// The content.
    pub body: RequestBody,
}

/// The content of a [`Request`], by its `t`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestBody {
    /// `t` = 1: registers and gets a tag (S0-1).
    Register {
        /// An access key of the server or a JWT.
        key: Option<String>,
        /// Owns a permanent tag: the same secret always gets the same tag (S0-A18).
        secret: Option<String>,
        /// The session number, 0 to [`super::wire::MAX_EPOCH`]; a higher one replaces a lower one.
        epoch: Option<i64>,
        /// Owns a permanent tag instead of `secret`, by the proof that the client has a key.
        proof: Option<Proof>,
        /// The local addresses of the punching socket (S1-4); `None` keeps the earlier ones.
        laddrs: Option<Vec<SocketAddr>>,
    },
    /// `t` = 2: keeps the tag (S0-3).
    Heartbeat {
        /// The client's own tag.
        tag: Tag,
    },
    /// `t` = 3: lists the other tags that are online (S0-6).
    List {
        /// The client's own tag.
        tag: Tag,
        /// The last tag of the previous page (S0-A22).
        after: Option<Tag>,
    },
    /// `t` = 4: calls `rtag` (S0-8); sent from the punching socket (S0-A9).
    Call {
        /// The caller's own tag.
        tag: Tag,
        /// The callee's tag.
        rtag: Tag,
        /// The caller's description.
        ice: IceDescription,
    },
    /// `t` = 5: requests a nonce to sign.
    Challenge,
    /// `t` = 51, server to callee: an incoming call (S0-14).
    Notify {
        /// The call.
        token: Token,
        /// The caller's tag (S0-A12).
        ltag: Tag,
        /// The caller's punching address, where it is known (S0-A23).
        from: Option<SocketAddr>,
        /// The caller's description.
        ice: IceDescription,
    },
    /// `t` = 52, server to caller: the callee has answered (S0-17).
    Answered {
        /// The call.
        token: Token,
        /// The callee's punching address, where it is known (S0-A23).
        from: Option<SocketAddr>,
        /// The callee's description.
        ice: IceDescription,
    },
    /// `t` = 53, server to both sides: asks whether they still punch (S0-24, S0-A8).
    Status {
        /// The call.
        token: Token,
    },
    /// `t` = 54, peer to server to peer: more candidates.
    Trickle {
        /// The call.
        token: Token,
        /// Candidate attribute values.
        cands: Vec<String>,
        /// No more candidates follow.
        done: bool,
        /// The sender's NAT type, if it is known.
        nat: Option<NatType>,
    },
    /// `t` = 55, peer to server to peer: ends the call.
    End {
        /// The call.
        token: Token,
        /// The reason, for people.
        reason: Option<String>,
    },
    /// `t` = 60, client to server: starts or stops watching tags.
    Watch {
        /// The tags.
        tags: Vec<Tag>,
        /// Starts the watches if true, ends them if false.
        watch: bool,
    },
    /// `t` = 60, server to client, without `mid` and never answered: tags that went online or offline.
    Presence {
        /// Tags that are now online.
        online: Vec<Tag>,
        /// Tags that are now offline.
        offline: Vec<Tag>,
    },
    /// `t` = 61: asks for a new locator, or gives it back.
    Locator {
        /// The client's own tag.
        tag: Tag,
        /// Gives the locator back.
        release: bool,
    },
    /// `t` = 62: asks for the tag of a locator.
    Locate {
        /// The client's own tag.
        tag: Tag,
        /// The locator.
        locator: u32,
    },
    /// `t` = 101, callee to caller: opens the callee's NAT (S0-19).
    Open,
    /// `t` = 102, caller to callee: opens the caller's NAT and keeps the mapping (S0-20, S0-22).
    Punch {
        /// The call.
        token: Token,
    },
}

/// A response, from either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The `mid` of the request (S0-33).
    pub mid: Option<i64>,
    /// The content.
    pub body: ResponseBody,
}

/// The content of a [`Response`], by its `t` and `code`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseBody {
    /// `t` = -1 (S0-2).
    Registered {
        /// The client's tag.
        tag: Tag,
        /// ICE servers; with a relay only for a key of the scope `relay`.
        ice_servers: Vec<IceServer>,
        /// `host:port` of the server's second UDP port, which also answers STUN Binding.
        stun2: Option<String>,
        /// Whether agents may predict and probe the ports of NATs.
        spray: bool,
        /// The session number; only for tags with an owner.
        epoch: Option<i64>,
        /// The server-reflexive address; only by UDP.
        seen: Option<ReflexiveAddress>,
    },
    /// `t` = -2 (S0-4).
    Alive,
    /// `t` = -3 (S0-6).
    Listed {
        /// Sorted, without the requester's own tag (S0-7, S0-A22).
        tags: Vec<Tag>,
        /// Whether more tags follow the last one.
        more: bool,
    },
    /// `t` = -4 (S0-12).
    Calling {
        /// The call.
        token: Token,
    },
    /// `t` = -5.
    Challenged {
        /// The nonce to sign within [`super::Times::challenge`].
        nonce: String,
    },
    /// `t` = -51, callee to server, from the punching socket (S0-15).
    Accepted {
        /// The call.
        token: Token,
        /// The callee's description.
        ice: IceDescription,
    },
    /// `t` = -52 (S0-18).
    Noted {
        /// The call.
        token: Token,
    },
    /// `t` = -53 (S0-A8).
    Status {
        /// The call.
        token: Token,
        /// Whether the client still punches.
        punching: bool,
        /// The path in use.
        path: Option<ReportedPath>,
    },
    /// `t` = -54.
    Trickled {
        /// The call.
        token: Token,
    },
    /// `t` = -55.
    Ended {
        /// The call.
        token: Token,
    },
    /// `t` = -60: the current state of the requested tags.
    Watching {
        /// Tags that are online.
        online: Vec<Tag>,
        /// Tags that are offline.
        offline: Vec<Tag>,
    },
    /// `t` = -61.
    Locator {
        /// The locator; `None` if it was given back.
        locator: Option<u32>,
        /// How long it is valid, in seconds.
        ttl: Option<u32>,
    },
    /// `t` = -62.
    Located {
        /// The tag of the locator.
        tag: Tag,
    },
    /// `t` = -103, callee to caller (S0-21); -102 is accepted as well (S0-A4).
    Punched {
        /// The call.
        token: Token,
    },
    /// `t` of the request, positive, with `code` and `em` (S0-38); a negative `t` is accepted as well (S0-A1).
    Failed {
        /// The type of the request.
        t: MessageType,
        /// The call, if there is one (S0-A20).
        token: Option<Token>,
        /// The error.
        code: ErrorCode,
        /// The error as text.
        em: String,
    },
}

/// Proof that a client has an Ed25519 key (RFC 8032).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The public key.
    pub public: [u8; 32],
    /// The nonce of a -5 to the same address or connection.
    pub nonce: String,
    /// The signature of [`Proof::text`].
    pub signature: Vec<u8>,
}

impl Proof {
    /// Returns the signed text: four lines, the last one empty without an epoch.
    #[must_use]
    pub fn text(&self, epoch: Option<i64>) -> String {
        let (key, epoch) = (BASE64URL_NOPAD.encode(&self.public), epoch.map(|epoch| epoch.to_string()));
        format!("ginnel register\n{key}\n{}\n{}", self.nonce, epoch.unwrap_or_default())
    }
}
impl RequestBody {
    /// Returns the type of the request.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::Register { .. } => MessageType::Register,
            Self::Heartbeat { .. } => MessageType::Heartbeat,
            Self::List { .. } => MessageType::List,
            Self::Call { .. } => MessageType::Call,
            Self::Challenge => MessageType::Challenge,
            Self::Notify { .. } => MessageType::Notify,
            Self::Answered { .. } => MessageType::Answered,
            Self::Status { .. } => MessageType::Status,
            Self::Trickle { .. } => MessageType::Trickle,
            Self::End { .. } => MessageType::End,
            Self::Watch { .. } | Self::Presence { .. } => MessageType::Watch,
            Self::Locator { .. } => MessageType::Locator,
            Self::Locate { .. } => MessageType::Locate,
            Self::Open => MessageType::Open,
            Self::Punch { .. } => MessageType::Punch,
        }
    }
}

impl ResponseBody {
    /// Returns the token, if there is one.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        match self {
            Self::Calling { token }
            | Self::Accepted { token, .. }
            | Self::Noted { token }
            | Self::Status { token, .. }
            | Self::Trickled { token }
            | Self::Ended { token } => Some(token),
            Self::Failed { token, .. } => token.as_ref(),
            _ => None,
        }
    }
}

impl Response {
    /// Returns the failure of a request of type `t`, with the text of `code`.
    #[must_use]
    pub fn failure(t: MessageType, mid: Option<i64>, code: ErrorCode) -> Self {
        Self { mid, body: ResponseBody::Failed { t, token: None, code, em: code.text().to_owned() } }
    }
}
