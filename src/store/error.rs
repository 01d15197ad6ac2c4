//! Why a call failed.

use super::mailbox::MailboxId;
use std::error::Error;

/// Why a call changed or returned nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no room for the message.
    #[error("{0}")]
    Full(Full),
    /// There is one under this name already.
    #[error("it exists already")]
    Exists,
    /// There is none under this name.
    #[error("it does not exist")]
    NotFound,
    /// Something is longer, or there are more of it, than the store accepts.
    #[error("too long or too many")]
    LimitExceeded,
    /// The file system has no room. Later calls may succeed.
    #[error("the disk is full")]
    DiskFull,
    /// More calls wait than the store queues. Later calls may succeed.
    #[error("too many calls wait for the store")]
    Overloaded,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The database failed.
    #[error("the database failed: {0}")]
    Backend(#[source] Box<dyn Error + Send + Sync>),
}

/// What has no room for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The mailbox: it stores as many messages or bytes as it may, or as it may of senders that are no contacts of its owner.
    #[error("mailbox {} is full", .0.0)]
    Mailbox(MailboxId),
    /// The sender's share of the mailbox.
    #[error("mailbox {} has as much of the sender as it may", .0.0)]
    SenderShare(MailboxId),
    /// The store: it has as many bytes as it may.
    #[error("the storage is full")]
    Store,
}

/// Refuses what is longer than the store accepts.
pub(super) fn require_short(is_short: bool) -> Result<(), StoreError> {
    is_short.then_some(()).ok_or(StoreError::LimitExceeded)
}
