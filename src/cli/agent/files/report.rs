//! What `agent send` and `agent recv` print.

use super::error::FilesError;
use super::units;
use crate::agent::ConnectionError;
use crate::cli::agent::error::CommandError;
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::file_transfer::{Progress, Summary, TransferError};
use data_encoding::HEXLOWER;
use serde_json::json;
use std::error::Error;
use std::time::{Duration, Instant};

/// Longest name of a machine, in characters.
const MAX_NAME: usize = 64;

/// Returns the name of this machine, which the other side sees.
pub(super) fn machine_name() -> String {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    let name = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
    let name = name.or_else(|| std::env::var_os("HOSTNAME").and_then(|name| name.into_string().ok()));
    name.unwrap_or_default().trim().chars().take(MAX_NAME).collect()
}

/// Returns an error and its causes as one line.
fn line(error: &FilesError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    escape::line(&text)
}

/// Reports that a connection has ended and the other side may come again.
pub(super) fn waiting(report: &Reporter, error: &FilesError, reason: Option<&ConnectionError>) {
    let description = error.describe();
    let is_lost = matches!(error, FilesError::Transfer(TransferError::Lost(_)));
    let what = match reason {
        Some(ConnectionError::PeerClosed(_)) if is_lost => "the other side stopped".to_owned(),
        _ if is_lost => "connection lost".to_owned(),
        _ => line(error),
    };
    report.write(
        || match is_lost {
            true => format!("!  {what}, waiting for the other side …"),
            false => format!("!  {what}, waiting for the other side …\n  try     {}", description.hint),
        },
        || json!({"v": VERSION, "t": "peer_lost", "code": description.code, "what": what, "hint": description.hint}),
    );
}

/// Reports what was left out.
fn problems(report: &Reporter, progress: &Progress) {
    let (notes, count) = (progress.notes(), progress.figures().problems);
    for note in &notes {
        let path = escape::name(&note.path);
        report.write(
            || format!("Left out {path}: {}", note.problem),
            || json!({"v": VERSION, "t": "left_out", "path": escape::line(&note.path), "why": note.problem}),
        );
    }
    let more = count.saturating_sub(notes.len() as u64);
    if more > 0 {
        report.note(&format!("{more} more were left out"));
    }
}

/// Reports the end of a transfer, and returns the exit code: an error if something is missing.
pub(super) fn finish(
    report: &Reporter,
    summary: Summary,
    progress: &Progress,
    began: Instant,
) -> Result<u8, CommandError> {
    problems(report, progress);
    let (figures, took) = (progress.figures(), began.elapsed());
    let hash = HEXLOWER.encode(&summary.hash);
    let label = if summary.is_file_hash { "blake3" } else { "blake3 of the list" };
    let (size, files) = (units::bytes(figures.done), units::files(figures.files));
    report.write(
        || format!("Done     {label} {}…{}, {files}, {size} in {}", &hash[..4], &hash[62..], units::duration(took)),
        || {
            json!({
                "v": VERSION, "t": "done", "hash": hash, "of": if summary.is_file_hash { "file" } else { "manifest" },
                "files": figures.files, "bytes": figures.done, "transferred": figures.transferred,
                "resumed": figures.resumed, "hashed": figures.hashed, "hashed_again": figures.hashed_again,
                "left_out": figures.problems, "ms": millis(took),
            })
        },
    );
    match figures.failures {
        0 => Ok(0),
        count => Err(FilesError::Incomplete(units::files(count)).into()),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reports that the receiver stops before the end.
pub(super) fn kept(report: &Reporter, done: u64) {
    report.write(
        || format!("kept {}; run `agent recv` again to go on", units::bytes(done)),
        || json!({"v": VERSION, "t": "kept", "done": done, "hint": "agent recv"}),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn an_error_is_one_line_without_control_characters() {
        let source = io::Error::other("\u{1b}[2J");
        let error = FilesError::Transfer(TransferError::Write { path: "a\nb".into(), source });
        let text = line(&error);
        assert!(text.starts_with("cannot write a\\u{a}b: ") && !text.chars().any(char::is_control), "{text}");
    }
}
