//! What an error of SQLite means to a caller.

use crate::store::StoreError;
use rusqlite::{Error, ErrorCode, ffi};

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match &error {
            // The second is the file of the shared memory, which needs room like the others.
            Error::SqliteFailure(cause, _)
                if cause.code == ErrorCode::DiskFull || cause.extended_code == ffi::SQLITE_IOERR_SHMSIZE =>
            {
                Self::DiskFull
            }
            _ => Self::Backend(Box::new(error)),
        }
    }
}

/// Returns whether the transaction in which the error occurred must be rolled back.
pub(super) fn is_fatal(error: &StoreError) -> bool {
    matches!(error, StoreError::DiskFull | StoreError::Backend(_))
}
