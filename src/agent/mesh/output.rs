//! What the machine wants done, what it reports, and what it counts.

use super::node_id::NodeId;
use super::record::NatKind;
use super::sealed::MessageId;
use std::net::SocketAddr;

/// What the service does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MeshAction {
    /// Sends a frame over a link: on a stream if it is reliable, else as a datagram.
    Send { to: NodeId, bytes: Vec<u8>, is_reliable: bool },
    /// Closes a link.
    Close(NodeId),
    /// Sends a Binding request from the mesh port.
    SendBinding { to: SocketAddr, transaction: [u8; 12] },
    /// Opens a link to an endpoint that has answered. `node` is whose key is expected; `None` at the first start.
    Dial { attempt: u64, to: SocketAddr, node: Option<NodeId> },
    /// Gathers candidates, on a relay if one is named, and passes them to `Mesh::offer_ready`.
    MakeOffer { attempt: u64, node: NodeId, relay: Option<NodeId> },
    /// Gathers candidates for an offer, and passes them to `Mesh::answer_ready`.
    MakeAnswer { attempt: u64, node: NodeId, relay: Option<NodeId>, offer: Vec<u8> },
    /// Begins the connectivity checks.
    Connect { attempt: u64, node: NodeId, answer: Vec<u8> },
    /// Gives an attempt up.
    Abort { attempt: u64 },
}

/// Whether a node is online (S3-18, S3-A7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Online {
    /// It has answered.
    Yes,
    /// It has not, and the others take it for gone too.
    No,
    /// It has not answered, but nobody knows why.
    Unknown,
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No node knows the address.
    NoRecord,
    /// The receiver is offline and so are its friends, if it has any.
    Offline,
    /// It was stored, but never delivered.
    Expired,
}

/// What the application gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MeshEvent {
    Up(NodeId),
    Down(NodeId),
    Message {
        from: NodeId,
        id: MessageId,
        body: Vec<u8>,
    },
    /// A friend of the receiver keeps the message.
    Stored {
        id: MessageId,
        friend: NodeId,
    },
    /// The receiver has the message.
    Delivered {
        id: MessageId,
    },
    Failed {
        id: MessageId,
        reason: Failure,
    },
    IsOnline {
        node: NodeId,
        online: Online,
    },
    /// A node asks this one to keep mail for it; `Mesh::agree_friend` agrees.
    FriendRequested {
        owner: NodeId,
    },
    FriendAgreed {
        friend: NodeId,
    },
    /// The own endpoints or the NAT have changed.
    AddressChanged {
        endpoints: Vec<SocketAddr>,
        nat: NatKind,
    },
}

/// What the machine counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MeshCounters {
    /// Frames and packets that cannot be read.
    pub(super) malformed: u64,
    /// Records with a wrong signature.
    pub(super) forged: u64,
    /// Updates about epochs that nobody has signed.
    pub(super) unsigned_updates: u64,
    /// Frames that were forwarded.
    pub(super) forwarded: u64,
    /// Frames without a next hop, or over a limit.
    pub(super) undeliverable: u64,
    /// Sealed contents that cannot be opened or are too old.
    pub(super) unsealed: u64,
    /// Messages that had arrived before.
    pub(super) repeated: u64,
    /// What found its table full.
    pub(super) overflow: u64,
    /// Epochs that others have forced.
    pub(super) epochs: u64,
}
