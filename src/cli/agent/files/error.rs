//! Why `agent send` and `agent recv` fail.

use crate::cli::agent::error::{Description, description};
use crate::cli::agent::escape;
use crate::file_transfer::{CancelReason, TransferError};
use std::io;

/// Most names in a message.
const MAX_NAMES: usize = 5;

/// See the [module](self).
#[derive(Debug, thiserror::Error)]
pub(in crate::cli::agent) enum FilesError {
    #[error("cannot send {path}")]
    Path { path: String, source: io::Error },
    #[error("another `agent send` of the same files and folders is running")]
    Running,
    #[error("the folder {path} cannot be used")]
    Folder { path: String, source: io::Error },
    #[error("there is no terminal to ask whether to accept")]
    NobodyToAsk,
    #[error("{} here already", list(.0))]
    Exists(Vec<String>),
    #[error("you declined the offer")]
    Declined,
    #[error("{0} could not be transferred")]
    Incomplete(String),
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

/// Lists names that exist.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(MAX_NAMES).map(|name| escape::name(name)).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let verb = if names.len() == 1 { "is" } else { "are" };
    match more {
        0 => format!("{} {verb}", shown.join(", ")),
        more => format!("{} and {more} more {verb}", shown.join(", ")),
    }
}

/// Returns the error of the state folder.
pub(in crate::cli::agent) fn state_error(path: &std::path::Path, source: io::Error) -> FilesError {
    FilesError::Transfer(TransferError::State { path: path.to_owned(), source })
}

const SAME_AGAIN: &str = "the same command on both sides goes on where it stopped";
const SEND_AGAIN: &str =
    "`agent send` again on the other machine, with the whole list; then its new code here";
const REPORT: &str = "update the older of the two agents; `--log debug` prints more";

impl FilesError {
    pub(in crate::cli::agent) fn describe(&self) -> Description {
        match self {
            Self::Path { .. } => description(
                2,
                "usage",
                "path",
                "agent send PATH…     with files and folders that you may read",
            ),
            Self::Running => description(
                1,
                "local",
                "running",
                "stop the other one, or wait for its end: one transfer has one sender",
            ),
            Self::Folder { .. } => description(
                2,
                "usage",
                "folder",
                "agent recv --to FOLDER     with a folder that exists and that you may write to",
            ),
            Self::NobodyToAsk => description(
                2,
                "usage",
                "no_consent",
                "agent recv CODE --yes     accepts without a question; nothing that exists is overwritten",
            ),
            Self::Exists(_) => description(
                4,
                "transfer",
                "exists",
                "agent recv with --keep-both, --overwrite or --skip, or another folder: --to FOLDER",
            ),
            Self::Declined => description(
                4,
                "transfer",
                "declined",
                "agent recv CODE     with the code that `agent send` prints when it is run again",
            ),
            Self::Incomplete(_) => description(
                1,
                "transfer",
                "incomplete",
                "agent send PATH…     with what is listed above, once it can be read and does not change",
            ),
            Self::Transfer(error) => describe_transfer(error),
        }
    }
}

fn describe_transfer(error: &TransferError) -> Description {
    match error {
        TransferError::Lost(_) => description(7, "connection", "lost", SAME_AGAIN),
        TransferError::Protocol(_) | TransferError::Wire(_) => description(7, "transfer", "protocol", REPORT),
        TransferError::WrongHash => description(7, "transfer", "wrong_hash", SEND_AGAIN),
        TransferError::Cancelled(reason) => describe_cancelled(*reason),
        TransferError::Write { .. } if error.is_disk_full() => description(
            1,
            "local",
            "disk_full",
            "make room, then `agent recv` again: it goes on where it stopped",
        ),
        TransferError::Write { .. } => {
            description(1, "local", "write", "agent recv --to FOLDER     with a folder that you may write to")
        }
        TransferError::State { .. } => description(
            1,
            "local",
            "state",
            "--state FOLDER     names another folder for what is needed to go on later",
        ),
    }
}

fn describe_cancelled(reason: CancelReason) -> Description {
    match reason {
        CancelReason::Declined => description(
            4,
            "transfer",
            "declined",
            "agree with the other side, then run the same command again",
        ),
        CancelReason::Busy => description(
            4,
            "transfer",
            "busy",
            "`agent send` again on the other machine, in a second terminal: one transfer has one receiver",
        ),
        CancelReason::OtherTransfer => description(4, "transfer", "other_transfer", SEND_AGAIN),
        CancelReason::Exists => description(
            4,
            "transfer",
            "exists",
            "on the other machine: agent recv --keep-both, --overwrite or --skip",
        ),
        CancelReason::DiskFull => description(
            1,
            "transfer",
            "disk_full",
            "make room on the other machine, then `agent recv` there again: it goes on where it stopped",
        ),
        CancelReason::WriteFailed => description(
            1,
            "transfer",
            "write",
            "on the other machine: agent recv --to FOLDER     with a folder that can be written to",
        ),
        CancelReason::WrongHash => description(7, "transfer", "wrong_hash", SAME_AGAIN),
        CancelReason::Protocol => description(7, "transfer", "protocol", REPORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_exit_code_and_says_what_to_type() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let table = [
            (FilesError::Exists(vec!["a".into(), "b".into()]), 4, "--keep-both"),
            (FilesError::NobodyToAsk, 2, "--yes"),
            (TransferError::Write { path: "x".into(), source: full() }.into(), 1, "make room"),
            (TransferError::Cancelled(CancelReason::DiskFull).into(), 1, "on the other machine"),
            (TransferError::Cancelled(CancelReason::Declined).into(), 4, "again"),
            (TransferError::Lost(full()).into(), 7, "same command"),
        ];
        for (error, code, hint) in table {
            let description = error.describe();
            assert_eq!(description.exit_code, code, "{error}");
            assert!(description.hint.contains(hint), "{}", description.hint);
        }
    }

    #[test]
    fn names_are_listed_without_control_characters() {
        let names: Vec<String> = ["a", "b\u{1b}", "c", "d", "e", "f", "g"].map(str::to_owned).to_vec();
        assert_eq!(
            FilesError::Exists(names).to_string(),
            "a, \"b\\\\u{1b}\", c, d, e and 2 more are here already".replace("\\\\", "\\")
        );
        assert_eq!(FilesError::Exists(vec!["x".into()]).to_string(), "x is here already");
    }
}
