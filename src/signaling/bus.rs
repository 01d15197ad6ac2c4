//! What hubs say to each other, and what carries it.
//!
//! A [`Bus`] knows two ways: to the hub that a tag belongs to, and to one hub by its place. The words on it are made so that a bus
//! between machines can take its place later; with NATS they would be:
//!
//! | word | inside one process | with NATS |
//! | --- | --- | --- |
//! | `Invite` to a tag | the queue of the hub that its last letter names | a request on the tag's subject; *no responders* is 203 at once |
//! | `Heard` | the same | never: a client's messages come to the machine that has it |
//! | `Watch`, `States`, `Unwatch` | presence: get and watch | a watch on the tag's key, which begins with its value |
//! | `Presence` | presence: set, for those who watch | a put with a time to live, or a delete |
//! | `Page`, `Paged` | to every hub | a request to all |
//! | `Left`, `Dropped`, `Ended`, `Moved`, `Offline`, `Withdrawn`, `Text`, `Close` | to one hub | the subject of one hub |

use super::admission::Realm;
use super::leg::{Conn, Peer};
use super::machine::Asker;
use super::name::TEXT;
use super::shards::Shard;
use super::wire::{Ice, Message, Tag};

/// Carries words between the hubs of a server, in the order in which one hub sends them to another.
pub trait Bus {
    /// Publishes to the hub that `tag` belongs to.
    ///
    /// # Errors
    /// Gives back what begins something while too much waits there already. Answers, and what follows from a client's end, always
    /// pass: they are no more than what began them.
    fn publish(&self, tag: &Tag, word: Word) -> Result<(), Word>;

    /// Sends to one hub.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    fn send(&self, to: Shard, word: Word) -> Result<(), Word>;
}

/// To whom a word goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The hub that this tag belongs to.
    Tag(Tag),
    /// The hub at this place.
    Hub(Shard),
}

/// What one hub says to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(pub(super) Said);

impl Word {
    /// Says whether this begins something; such a word may be refused.
    #[must_use]
    pub fn begins(&self) -> bool {
        matches!(self.0, Said::Heard(_) | Said::Invite(_) | Said::Watch { .. } | Said::Page { .. })
    }
}

/// What a word takes that carries nothing of a client's, in bytes.
const LEAST: usize = 64;

impl Word {
    /// Returns about how many bytes it takes while it waits; the same at both ends.
    #[must_use]
    pub fn weight(&self) -> usize {
        LEAST
            + match &self.0 {
                Said::Heard(heard) => heard.0.size,
                Said::Invite(invite) => invite.asker.size,
                Said::Text { text, .. } => text.len(),
                Said::Watch { wanted, .. } => wanted.len() * LEAST,
                _ => 0,
            }
    }
}

/// A call for somebody who belongs to another hub than the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invite {
    pub(super) asker: Asker,
    pub(super) mid: Option<i64>,
    pub(super) tag: Tag,
    pub(super) rtag: Tag,
    pub(super) realm: Realm,
    pub(super) ice: Ice,
    /// The inner addresses that the caller has registered with (S1-5).
    pub(super) inner: Vec<String>,
    /// The caller was shown to be at its address.
    pub(super) proven: bool,
}

/// A tag of a realm.
pub(super) type Watchable = (Realm, Tag);

/// How tags stand that somebody watches.
pub(super) type Standing = Vec<(Watchable, bool)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A client said this, and it is the other hub's business.
    Heard(Box<(Asker, Message)>),
    Invite(Box<Invite>),
    /// A client's connection has ended; its tag is with the other hub.
    Left {
        peer: Peer,
    },
    /// A client has another tag now than the one that is with the other hub.
    Dropped {
        peer: Peer,
    },
    /// A UDP client's tag has ended at the sender's.
    Ended {
        peer: Peer,
        by: Shard,
    },
    /// A client has got a tag that belongs to the sender.
    Moved {
        peer: Peer,
        admin: bool,
        realm: Realm,
        by: Shard,
    },
    /// A caller's connection has ended.
    Offline {
        tag: Tag,
        peer: Peer,
    },
    /// A caller's tag was revoked.
    Withdrawn {
        tag: Tag,
    },
    /// For a WebSocket whose home is the other hub.
    Text {
        conn: Conn,
        text: String,
    },
    Close {
        conn: Conn,
    },
    Watch {
        id: u64,
        by: Shard,
        wanted: Vec<Watchable>,
    },
    States {
        id: u64,
        by: Shard,
        standing: Standing,
    },
    Unwatch {
        by: Shard,
        ended: Vec<Watchable>,
    },
    Presence {
        standing: Standing,
    },
    Page {
        id: u64,
        by: Shard,
        page: Box<Page>,
    },
    Paged {
        id: u64,
        by: Shard,
        tags: Vec<Tag>,
        more: bool,
    },
}

/// What one tag of a list takes, in bytes of JSON.
pub(super) const LISTED: usize = TEXT + r#""","#.len();

/// A part of the list of who is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) realm: Realm,
    /// Whose own tag is left out.
    pub(super) own: Tag,
    pub(super) after: Option<Tag>,
    /// Bytes of JSON.
    pub(super) room: usize,
}

impl Page {
    /// Returns how many tags fit.
    pub(super) fn most(&self) -> usize {
        self.room / LISTED
    }
}
