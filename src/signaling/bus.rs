//! Messages between the hubs of several servers, and the bus that carries them.
//!
//! A [`Bus`] has two kinds of destination: the node that a tag belongs to, and a node by its number. A single server has no other
//! hub and sends none of these messages. They could also be carried by a message broker such as NATS:
//!
//! | message | over NATS |
//! | --- | --- |
//! | `Call` to a tag | a request on the tag's subject; *no responders* is 203 at once |
//! | `Forwarded`, `Deliver`, `Close` | the subject of one node |
//! | `ClientGone`, `ClientReleased`, `TagEnded`, `TagAssigned` | the subject of one node |
//! | `CallerOffline`, `CallerRevoked` | the subject of one node |
//! | `Locate` | the subject of one node |
//! | `Watch`, `WatchState`, `Unwatch` | a watch on the tag's key, which starts with its value |
//! | `Presence` | a put with a time to live, or a delete |
//! | `List`, `Listed` | a request to all nodes |

use super::access::Realm;
use super::client_addr::{ClientAddr, ClientRoute, ConnId, ServerPort};
use super::machine::RequestOrigin;
use super::nodes::NodeId;
use super::tag_id::TAG_LEN;
use super::wire::{IceDescription, Message, Tag};

/// Carries messages between nodes, in order from each node to each other node.
pub trait Bus {
    /// Sends a message.
    ///
    /// # Errors
    /// Returns the message if the node is unreachable, or if it is overloaded and the message [starts](HubMessage::starts) something.
    /// The sender passes the error to [`super::Hub::handle_undelivered`].
    fn send(&self, to: &Destination, message: HubMessage) -> Result<(), Undelivered>;
}

/// Why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undelivered {
    /// The destination is unreachable.
    Unreachable(HubMessage),
    /// The node accepts nothing new at the moment.
    Overloaded(HubMessage),
}

/// The bus of a single server, which reaches no other node.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleServer;

impl Bus for SingleServer {
    fn send(&self, _to: &Destination, message: HubMessage) -> Result<(), Undelivered> {
        Err(Undelivered::Unreachable(message))
    }
}

/// The receiver of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The node that this tag belongs to.
    Tag(Tag),
    /// This node.
    Node(NodeId),
}

/// A message from one hub to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubMessage(pub(super) HubPayload);

impl HubMessage {
    /// Returns whether the message starts something. Answers and the consequences of a client's end do not.
    #[must_use]
    pub fn starts(&self) -> bool {
        matches!(
            self.0,
            HubPayload::Forwarded(_)
                | HubPayload::Call(_)
                | HubPayload::Locate(_)
                | HubPayload::Watch { .. }
                | HubPayload::List { .. }
        )
    }
}

/// A call to a tag of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForwardedCall {
    pub(super) origin: RequestOrigin,
    pub(super) mid: Option<i64>,
    pub(super) tag: Tag,
    pub(super) rtag: Tag,
    pub(super) realm: Realm,
    pub(super) ice: IceDescription,
    /// The local addresses that the caller has registered (S1-5).
    pub(super) local_addresses: Vec<String>,
    /// Whether the address of the caller is proven.
    pub(super) proven: bool,
}

/// A t=62 for a locator of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForwardedLocate {
    pub(super) origin: RequestOrigin,
    pub(super) mid: Option<i64>,
    pub(super) locator: u32,
    pub(super) realm: Realm,
}

/// A tag of a realm.
pub(super) type RealmTag = (Realm, Tag);

/// Which watched tags are online.
pub(super) type Presence = Vec<(RealmTag, bool)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HubPayload {
    /// A client's message about a tag or a call of the receiving node.
    Forwarded(Box<(RequestOrigin, Message)>),
    Call(Box<ForwardedCall>),
    /// A question for the tag of a locator of the receiving node.
    Locate(Box<ForwardedLocate>),
    /// The connection of a client has ended whose tag belongs to the receiving node.
    ClientGone {
        addr: ClientAddr,
    },
    /// A client no longer has the tag of the receiving node.
    ClientReleased {
        addr: ClientAddr,
    },
    /// The tag of a UDP client has ended at the sender.
    TagEnded {
        addr: ClientAddr,
        by: NodeId,
    },
    /// A client of the receiving node has a new tag, which belongs to the sender.
    TagAssigned {
        addr: ClientAddr,
        admin: bool,
        realm: Realm,
        by: NodeId,
    },
    /// The connection of a caller has ended.
    CallerOffline {
        tag: Tag,
        addr: ClientAddr,
    },
    /// The tag of a caller was revoked.
    CallerRevoked {
        tag: Tag,
    },
    /// A message for a client of the receiving node.
    Deliver {
        route: ClientRoute,
        port: ServerPort,
        text: String,
    },
    /// Closes a WebSocket of the receiving node.
    Close {
        conn: ConnId,
    },
    Watch {
        id: u64,
        by: NodeId,
        wanted: Vec<RealmTag>,
    },
    WatchState {
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
    List {
        id: u64,
        by: NodeId,
        page: Box<ListPage>,
    },
    Listed {
        id: u64,
        by: NodeId,
        tags: Vec<Tag>,
        more: bool,
    },
}

/// The length of one tag in a list, in bytes of JSON.
pub(super) const LISTED: usize = TAG_LEN + r#""","#.len();

/// One page of a list of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListPage {
    pub(super) realm: Realm,
    /// The tag of the requester, which is left out.
    pub(super) own: Tag,
    pub(super) after: Option<Tag>,
    /// Maximum length in bytes of JSON.
    pub(super) max_len: usize,
}

impl ListPage {
    /// Returns how many tags fit.
    pub(super) fn most(&self) -> usize {
        self.max_len / LISTED
    }
}
