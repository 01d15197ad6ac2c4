//! What an error of SQLite means to a caller.

use crate::store::StoreError;
use rusqlite::{Error, ErrorCode, ffi};

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match is_disk_full(&error) {
            true => Self::DiskFull,
            false => Self::Backend(Box::new(error)),
        }
    }
}

/// Returns whether the file system has no room.
pub(super) fn is_disk_full(error: &Error) -> bool {
    // The second is the file of the shared memory, which needs room like the others.
    matches!(error, Error::SqliteFailure(cause, _)
        if cause.code == ErrorCode::DiskFull || cause.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

/// Returns whether the database, or a file beside it, may not be written.
pub(super) fn is_not_writable(error: &Error) -> bool {
    matches!(error, Error::SqliteFailure(cause, _)
        if matches!(cause.code, ErrorCode::ReadOnly | ErrorCode::CannotOpen))
}

/// Returns whether the transaction in which the error occurred must be rolled back.
pub(super) fn is_fatal(error: &StoreError) -> bool {
    matches!(error, StoreError::DiskFull | StoreError::Backend(_))
}
