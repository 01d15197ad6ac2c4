//! Why a transfer ended.

use super::wire::{CancelReason, WireError};
use std::io;
use std::path::PathBuf;

/// Why a transfer ended before everything had arrived.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The stream broke; the transfer can go on over another connection.
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
    /// The other side sent what it must not send.
    #[error("the other side broke the protocol: {0}")]
    Protocol(&'static str),
    /// The other side sent bytes that are no message.
    #[error("the other side broke the protocol")]
    Wire(#[from] WireError),
    /// The other side ended the transfer.
    #[error("{0}")]
    Cancelled(CancelReason),
    /// The content that arrived is not what the other side has hashed.
    #[error("the content of a file does not match its hash")]
    WrongHash,
    /// This side cannot write.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        source: io::Error,
    },
    /// This side cannot keep what it needs to go on later.
    #[error("cannot keep the state of the transfer in {}", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        source: io::Error,
    },
}

impl TransferError {
    /// Returns what the other side is told, if it does not know the reason.
    pub(super) fn cancel_reason(&self) -> Option<CancelReason> {
        match self {
            Self::Lost(_) | Self::Cancelled(_) | Self::State { .. } => None,
            Self::Protocol(_) | Self::Wire(_) => Some(CancelReason::Protocol),
            Self::WrongHash => Some(CancelReason::WrongHash),
            Self::Write { .. } if self.is_disk_full() => Some(CancelReason::DiskFull),
            Self::Write { .. } => Some(CancelReason::WriteFailed),
        }
    }

    /// Returns whether a disk is full, on either side.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Cancelled(reason) => *reason == CancelReason::DiskFull,
            Self::Write { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Returns the error of a stream that has ended.
pub(super) fn ended() -> TransferError {
    TransferError::Lost(io::ErrorKind::UnexpectedEof.into())
}
