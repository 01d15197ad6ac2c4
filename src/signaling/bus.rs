//! What hubs say to each other, and what carries it.
//!
//! A [`Bus`] knows two ways: to the hub that a tag belongs to, and to one hub by its place. The words on it are made so that a bus
//! between machines can take its place later; with NATS they would be:
//!
//! | word | inside one process | with NATS |
//! | --- | --- | --- |
//! | `ForwardedCall` to a tag | the queue of the hub that its last letter names | a request on the tag's subject; *no responders* is 203 at once |
//! | `Heard` | the same | never: a client's messages come to the machine that has it |
//! | `Watch`, `States`, `Unwatch` | presence: get and watch | a watch on the tag's key, which begins with its value |
//! | `Presence` | presence: set, for those who watch | a put with a time to live, or a delete |
//! | `ListPage`, `Paged` | to every hub | a request to all |
//! | `Left`, `Dropped`, `Ended`, `Moved`, `Offline`, `Withdrawn`, `Text`, `Close` | to one hub | the subject of one hub |

use super::access::Realm;
use super::client_addr::{ClientAddr, ConnId};
use super::machine::RequestOrigin;
use super::nodes::NodeId;
use super::tag_id::TAG_LEN;
use super::wire::{IceDescription, Message, Tag};

/// Carries words between the hubs of a server, in the order in which one hub sends them to another.
pub trait Bus {
    /// Publishes to the hub that `tag` belongs to.
    ///
    /// # Errors
    /// Gives back what begins something while too much waits there already. Answers, and what follows from a client's end, always
    /// pass: they are no more than what began them.
    fn publish(&self, tag: &Tag, message: HubMessage) -> Result<(), HubMessage>;

    /// Sends to one hub.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    fn send(&self, to: NodeId, message: HubMessage) -> Result<(), HubMessage>;
}

/// To whom a word goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The hub that this tag belongs to.
    Tag(Tag),
    /// The hub at this place.
    Hub(NodeId),
}

/// What one hub says to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubMessage(pub(super) Payload);

impl HubMessage {
    /// Says whether this begins something; such a word may be refused.
    #[must_use]
    pub fn begins(&self) -> bool {
        matches!(
            self.0,
            Payload::Forwarded(_)
                | Payload::ForwardedCall(_)
                | Payload::Watch { .. }
                | Payload::ListPage { .. }
        )
    }
}

/// What a word takes that carries nothing of a client's, in bytes.
const LEAST: usize = 64;

impl HubMessage {
    /// Returns about how many bytes it takes while it waits; the same at both ends.
    #[must_use]
    pub fn weight(&self) -> usize {
        LEAST
            + match &self.0 {
                Payload::Forwarded(heard) => heard.0.size,
                Payload::ForwardedCall(call) => call.origin.size,
                Payload::Text { text, .. } => text.len(),
                Payload::Watch { wanted, .. } => wanted.len() * LEAST,
                _ => 0,
            }
    }
}

/// A call for somebody who belongs to another hub than the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForwardedCall {
    pub(super) origin: RequestOrigin,
    pub(super) mid: Option<i64>,
    pub(super) tag: Tag,
    pub(super) rtag: Tag,
    pub(super) realm: Realm,
    pub(super) ice: IceDescription,
    /// The inner addresses that the caller has registered with (S1-5).
    pub(super) local_addresses: Vec<String>,
    /// The caller was shown to be at its address.
    pub(super) proven: bool,
}

/// A tag of a realm.
pub(super) type RealmTag = (Realm, Tag);

/// How tags stand that somebody watches.
pub(super) type Presence = Vec<(RealmTag, bool)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// A client said this, and it is the other hub's business.
    Forwarded(Box<(RequestOrigin, Message)>),
    ForwardedCall(Box<ForwardedCall>),
    /// A client's connection has ended; its tag is with the other hub.
    Left {
        addr: ClientAddr,
    },
    /// A client has another tag now than the one that is with the other hub.
    Dropped {
        addr: ClientAddr,
    },
    /// A UDP client's tag has ended at the sender's.
    Ended {
        addr: ClientAddr,
        by: NodeId,
    },
    /// A client has got a tag that belongs to the sender.
    Moved {
        addr: ClientAddr,
        admin: bool,
        realm: Realm,
        by: NodeId,
    },
    /// A caller's connection has ended.
    Offline {
        tag: Tag,
        addr: ClientAddr,
    },
    /// A caller's tag was revoked.
    Withdrawn {
        tag: Tag,
    },
    /// For a WebSocket whose home is the other hub.
    Text {
        conn: ConnId,
        text: String,
    },
    Close {
        conn: ConnId,
    },
    Watch {
        id: u64,
        by: NodeId,
        wanted: Vec<RealmTag>,
    },
    States {
        id: u64,
        by: NodeId,
        presence: Presence,
    },
    Unwatch {
        by: NodeId,
        ended: Vec<RealmTag>,
    },
    Presence {
        presence: Presence,
    },
    ListPage {
        id: u64,
        by: NodeId,
        page: Box<ListPage>,
    },
    Paged {
        id: u64,
        by: NodeId,
        tags: Vec<Tag>,
        more: bool,
    },
}

/// What one tag of a list takes, in bytes of JSON.
pub(super) const LISTED: usize = TAG_LEN + r#""","#.len();

/// A part of the list of who is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListPage {
    pub(super) realm: Realm,
    /// Whose own tag is left out.
    pub(super) own: Tag,
    pub(super) after: Option<Tag>,
    /// Bytes of JSON.
    pub(super) max_len: usize,
}

impl ListPage {
    /// Returns how many tags fit.
    pub(super) fn most(&self) -> usize {
        self.max_len / LISTED
    }
}
