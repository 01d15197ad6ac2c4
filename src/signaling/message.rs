//! What the messages of document 000 say: one type per message, one per word of their vocabulary.
//!
//! [`super::wire`] re-exports all of it, and reads and writes it.

use super::envelope::BoundedString;
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::fmt;
use std::net::SocketAddr;

/// Names a client, from its registration to its end (S0-2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Tag(String);

/// Stands for one punching act and accompanies every message of it (S0-13).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Token(String);

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// The longest one in bytes.
            pub const MAX: usize = 64;

            /// Takes a text of 1 to [`Self::MAX`] bytes.
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
    /// Asks for something.
    Request(Request),
    /// Answers a request.
    Response(Response),
}

/// A question, from either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the origin and echoed (S0-33); may be missing (S0-5, S0-A24).
    pub mid: Option<i64>,
    /// What is asked.
    pub body: RequestBody,
}

/// What a [`Request`] asks, by its `t`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestBody {
    /// `t` = 1: give me a tag (S0-1).
    Register {
        /// The server's access key, for relay credentials.
        key: Option<String>,
        /// Owns a lasting tag: the same secret gets the same tag again, from wherever it comes (S0-A18).
        secret: Option<String>,
        /// The session's number: a higher one replaces a lower one, 0 to [`super::wire::MAX_EPOCH`].
        epoch: Option<i64>,
        /// Owns a lasting tag instead of `secret`: shows that the origin holds a key.
        proof: Option<Proof>,
        /// The client's inner addresses (S1-4), those of its punching socket; none leaves what was told before.
        laddrs: Option<Vec<SocketAddr>>,
    },
    /// `t` = 2: I am alive (S0-3).
    Heartbeat {
        /// The origin's own tag.
        tag: Tag,
    },
    /// `t` = 3: who else is online (S0-6)?
    List {
        /// The origin's own tag.
        tag: Tag,
        /// The last tag of the page before (S0-A22).
        after: Option<Tag>,
    },
    /// `t` = 4: I want to reach `rtag` (S0-8); sent from the punching socket (S0-A9).
    Call {
        /// The caller's own tag.
        tag: Tag,
        /// The callee's tag.
        rtag: Tag,
        /// What the callee should know of the caller.
        ice: IceDescription,
    },
    /// `t` = 5: what am I to sign?
    Challenge,
    /// `t` = 51, server to callee: someone calls you (S0-14).
    Notify {
        /// The punching act.
        token: Token,
        /// The caller's tag (S0-A12).
        ltag: Tag,
        /// The caller's punching address, where it is known (S0-A23).
        from: Option<SocketAddr>,
        /// What the caller told of itself.
        ice: IceDescription,
    },
    /// `t` = 52, server to caller: the callee has answered (S0-17).
    Answered {
        /// The punching act.
        token: Token,
        /// The callee's punching address, where it is known (S0-A23).
        from: Option<SocketAddr>,
        /// What the callee told of itself.
        ice: IceDescription,
    },
    /// `t` = 53, server to both: are you still at it (S0-24, S0-A8)?
    Question {
        /// The punching act.
        token: Token,
    },
    /// `t` = 54, peer to server to peer: more candidates.
    Trickle {
        /// The punching act.
        token: Token,
        /// Candidate attribute values.
        cands: Vec<String>,
        /// No more will come.
        done: bool,
        /// What the sender has found out about its NAT by now.
        nat: Option<NatType>,
    },
    /// `t` = 55, peer to server to peer: this act is over.
    End {
        /// The punching act.
        token: Token,
        /// Why, for people.
        reason: Option<String>,
    },
    /// `t` = 60, client to server: tell me when these come and go, or no more.
    Watch {
        /// Whom to watch.
        tags: Vec<Tag>,
        /// Whether to begin or to stop.
        watch: bool,
    },
    /// `t` = 60, server to client, without `mid` and never answered: these came or went.
    Presence {
        /// Who can be called now.
        online: Vec<Tag>,
        /// Who cannot any more.
        offline: Vec<Tag>,
    },
    /// `t` = 101, callee to caller: opens the callee's NAT (S0-19).
    Open,
    /// `t` = 102, caller to callee: tries the hole and keeps it open (S0-20, S0-22).
    Punch {
        /// The punching act.
        token: Token,
    },
}

/// An answer, from either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The request's, unchanged (S0-33).
    pub mid: Option<i64>,
    /// What is answered.
    pub body: ResponseBody,
}

/// What a [`Response`] answers, by its `t` and `code`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseBody {
    /// `t` = -1 (S0-2).
    Registered {
        /// The client's tag from now on.
        tag: Tag,
        /// ICE servers; relays only for those who showed an access key.
        ice_servers: Vec<IceServer>,
        /// `host:port` of the server's second UDP port, which answers STUN Binding too.
        stun2: Option<String>,
        /// The session's number; of owned tags only.
        epoch: Option<i64>,
        /// Where the client was seen; by UDP only.
        seen: Option<ReflexiveAddress>,
    },
    /// `t` = -2 (S0-4).
    Alive,
    /// `t` = -3 (S0-6).
    Listed {
        /// Sorted, never the origin's own (S0-7, S0-A22).
        tags: Vec<Tag>,
        /// There are more after the last one.
        more: bool,
    },
    /// `t` = -4 (S0-12).
    Calling {
        /// The punching act.
        token: Token,
    },
    /// `t` = -5.
    Challenged {
        /// To be signed within [`super::Times::challenge`].
        nonce: String,
    },
    /// `t` = -51, callee to server, from the punching socket (S0-15).
    Accepted {
        /// The punching act.
        token: Token,
        /// What the caller should know of the callee.
        ice: IceDescription,
    },
    /// `t` = -52 (S0-18).
    Noted {
        /// The punching act.
        token: Token,
    },
    /// `t` = -53 (S0-A8).
    Status {
        /// The punching act.
        token: Token,
        /// Still at it.
        punching: bool,
        /// The path in use.
        path: Option<ReportedPath>,
    },
    /// `t` = -54.
    Trickled {
        /// The punching act.
        token: Token,
    },
    /// `t` = -55.
    Ended {
        /// The punching act.
        token: Token,
    },
    /// `t` = -60: how those stand who were asked about.
    Watching {
        /// Who can be called now.
        online: Vec<Tag>,
        /// Who cannot.
        offline: Vec<Tag>,
    },
    /// `t` = -103, callee to caller (S0-21); -102 is understood as well (S0-A4).
    Punched {
        /// The punching act.
        token: Token,
    },
    /// `t` of the request, positive, with `code` and `em` (S0-38); a negative `t` is understood as well (S0-A1).
    Failed {
        /// The request's `t`; 0 where it could not be read.
        t: i64,
        /// The punching act, where there is one (S0-A20).
        token: Option<Token>,
        /// What went wrong.
        code: ErrorCode,
        /// The same for people.
        em: String,
    },
}

/// Says what went wrong (S0-A13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 201.
    Malformed,
    /// 202: unknown or expired tag, or one of somebody else: register again.
    UnknownTag,
    /// 203.
    NotOnline,
    /// 204.
    NotAllowed,
    /// 205: bad or expired token or nonce.
    BadToken,
    /// 206.
    TooMany,
    /// 207.
    NoAnswer,
    /// 208.
    Unsupported,
    /// 209.
    Internal,
    /// 210: a newer session has the tag; do not come back with this one.
    Replaced,
    /// 211: an operator has taken the tag back; do not come back with it.
    Revoked,
    /// One that this version does not know.
    Other(i64),
}

const CODES: [(i64, ErrorCode, &str); 11] = [
    (201, ErrorCode::Malformed, "malformed"),
    (202, ErrorCode::UnknownTag, "unknown tag, register again"),
    (203, ErrorCode::NotOnline, "callee not online"),
    (204, ErrorCode::NotAllowed, "not allowed"),
    (205, ErrorCode::BadToken, "bad or expired token"),
    (206, ErrorCode::TooMany, "too many, try later"),
    (207, ErrorCode::NoAnswer, "callee did not answer"),
    (208, ErrorCode::Unsupported, "unsupported t"),
    (209, ErrorCode::Internal, "internal error"),
    (210, ErrorCode::Replaced, "replaced by a newer session"),
    (211, ErrorCode::Revoked, "revoked"),
];

impl ErrorCode {
    /// All codes of this version.
    pub const KNOWN: [Self; CODES.len()] = {
        let mut known = [Self::Internal; CODES.len()];
        let mut index = 0;
        while index < CODES.len() {
            known[index] = CODES[index].1;
            index += 1;
        }
        known
    };

    /// Returns the number on the wire.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Other(number) => number,
            known => CODES.iter().find(|row| row.1 == known).map_or(209, |row| row.0),
        }
    }

    /// Returns the text that belongs to the code (S0-39).
    #[must_use]
    pub fn text(self) -> &'static str {
        CODES.iter().find(|row| row.1 == self).map_or("failed", |row| row.2)
    }

    pub(super) fn from_number(number: i64) -> Self {
        CODES.iter().find(|row| row.0 == number).map_or(Self::Other(number), |row| row.1)
    }
}

/// What one peer tells the other through the server (S0-A18); legacy clients ignore it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IceDescription {
    /// ICE user name fragment.
    pub ufrag: Option<String>,
    /// ICE password.
    pub pwd: Option<String>,
    /// Candidate attribute values of RFC 8839, `candidate:…`.
    pub cands: Vec<String>,
    /// ICE role.
    pub role: Option<String>,
    /// LocalAddresses addresses.
    pub laddrs: Vec<String>,
    /// What the sender knows of its NAT.
    pub nat: Option<NatType>,
    /// A TCP port that listens (S0-A11): `tport`, and `rtport` in 52.
    pub tport: Option<u16>,
    /// An SDP as a text that the server does not read.
    pub sdp: Option<String>,
}

/// Where the server sees a client (S1-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReflexiveAddress {
    /// The client's outer address.
    pub addr: SocketAddr,
    /// Whether its IP is none of the inner ones that the client has told (S1-3); unknown where it has told none.
    pub nat: Option<bool>,
}

/// Shows that a client holds an Ed25519 key (RFC 8032).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The public key.
    pub public: [u8; 32],
    /// What the server gave out in -5, to the same address or connection.
    pub nonce: String,
    /// Of [`Proof::text`].
    pub signature: Vec<u8>,
}

impl Proof {
    /// Returns what is signed: four lines, the last one empty where no epoch is shown.
    #[must_use]
    pub fn text(&self, epoch: Option<i64>) -> String {
        let (key, epoch) = (BASE64URL_NOPAD.encode(&self.public), epoch.map(|epoch| epoch.to_string()));
        format!("ginnel register\n{key}\n{}\n{}", self.nonce, epoch.unwrap_or_default())
    }
}

/// A NAT, by what it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatType {
    /// No NAT.
    Open,
    /// The mapped port does not depend on the destination.
    Easy,
    /// It does.
    Hard,
    /// No UDP leaves.
    Blocked,
}

/// The path that two peers ended on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportedPath {
    /// From peer to peer.
    Direct,
    /// Through the relay.
    Relay,
    /// None was found.
    Failed,
}

pub(super) const NATS: [(&str, NatType); 4] = [
    ("open", NatType::Open),
    ("easy", NatType::Easy),
    ("hard", NatType::Hard),
    ("blocked", NatType::Blocked),
];
pub(super) const PATHS: [(&str, ReportedPath); 3] =
    [("direct", ReportedPath::Direct), ("relay", ReportedPath::Relay), ("failed", ReportedPath::Failed)];

pub(super) fn word<T: Copy + PartialEq>(
    table: &[(&'static str, T)],
    value: Option<T>,
) -> Option<BoundedString<16>> {
    let row = table.iter().find(|row| Some(row.1) == value)?;
    Some(BoundedString(row.0.to_owned()))
}

/// An unknown word counts as absent, so that a later version may add one.
pub(super) fn meaning<T: Copy>(table: &[(&'static str, T)], word: Option<&BoundedString<16>>) -> Option<T> {
    let word = word?;
    table.iter().find(|row| row.0 == word.0).map(|row| row.1)
}

/// One entry of a browser's `RTCConfiguration.iceServers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:` or `turn:` addresses.
    pub urls: Vec<String>,
    /// The user name of a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

impl RequestBody {
    /// Returns the request's `t`.
    #[must_use]
    pub fn t(&self) -> i64 {
        match self {
            Self::Register { .. } => 1,
            Self::Heartbeat { .. } => 2,
            Self::List { .. } => 3,
            Self::Call { .. } => 4,
            Self::Challenge => 5,
            Self::Notify { .. } => 51,
            Self::Answered { .. } => 52,
            Self::Question { .. } => 53,
            Self::Trickle { .. } => 54,
            Self::End { .. } => 55,
            Self::Watch { .. } | Self::Presence { .. } => 60,
            Self::Open => 101,
            Self::Punch { .. } => 102,
        }
    }
}

impl ResponseBody {
    /// Returns the punching act that this is about, if it says.
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
    /// Returns the failure of a request of type `t`, with the text that belongs to `code`.
    #[must_use]
    pub fn failure(t: i64, mid: Option<i64>, code: ErrorCode) -> Self {
        Self { mid, body: ResponseBody::Failed { t, token: None, code, em: code.text().to_owned() } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_code_has_a_number_and_a_text_of_its_own() {
        // S0-39, S0-A13.
        assert!(CODES.iter().all(|row| (201..300).contains(&row.0)));
        let codes: HashSet<_> = CODES.iter().map(|row| row.1).collect();
        let numbers: HashSet<_> = codes.iter().map(|code| code.number()).collect();
        let texts: HashSet<_> = codes.iter().map(|code| code.text()).collect();
        assert_eq!([codes.len(), numbers.len(), texts.len()], [CODES.len(); 3]);
        for code in codes.into_iter().chain([ErrorCode::Other(299)]) {
            assert_eq!(ErrorCode::from_number(code.number()), code);
        }
    }
}
