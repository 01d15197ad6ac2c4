//! How far a transfer is, for whoever shows it.

use super::wire::EntryProblem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most notes that are kept; more are only counted.
const MAX_NOTES: usize = 100;

/// A file or folder that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// Its path, perhaps from the other side: not for a terminal as it is.
    pub(crate) path: String,
    /// Why.
    pub(crate) problem: String,
}

#[derive(Debug, Default)]
struct Shown {
    name: String,
    notes: Vec<Note>,
}

/// Counters of one transfer, over all its connections. Reading them never waits for the transfer.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    files: AtomicU64,
    resumed: AtomicU64,
    transferred: AtomicU64,
    hashed: AtomicU64,
    hashed_again: AtomicU64,
    problems: AtomicU64,
    failures: AtomicU64,
    shown: Mutex<Shown>,
}

/// The values of [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    /// Bytes of content that the receiver has, those of earlier connections among them.
    pub(crate) done: u64,
    /// Files that the receiver has.
    pub(crate) files: u64,
    /// Bytes of content that it had when this connection began.
    pub(crate) resumed: u64,
    /// Bytes of content that were sent or received by this process.
    pub(crate) transferred: u64,
    /// Bytes that were hashed by this process.
    pub(crate) hashed: u64,
    /// Of these, bytes that were hashed before, because a journal was lost.
    pub(crate) hashed_again: u64,
    /// Files, folders and links that were left out.
    pub(crate) problems: u64,
    /// Of these, those that should have been transferred.
    pub(crate) failures: u64,
}

impl Progress {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins another connection: what is done is counted anew.
    pub(super) fn begin(&self) {
        for counter in [&self.done, &self.files, &self.resumed, &self.problems, &self.failures] {
            counter.store(0, Ordering::Relaxed);
        }
        self.shown().notes.clear();
    }

    pub(super) fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_resumed(&self, bytes: u64) {
        self.resumed.fetch_add(bytes, Ordering::Relaxed);
        self.add_done(bytes);
    }

    /// Takes back what was counted of a file that failed.
    pub(super) fn remove_done(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_transferred(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_hashed(&self, bytes: u64) {
        self.hashed.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_hashed_again(&self, bytes: u64) {
        self.add_hashed(bytes);
        self.hashed_again.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_name(&self, name: &str) {
        let mut shown = self.shown();
        shown.name.clear();
        shown.name.push_str(name);
    }

    pub(super) fn add_problem(&self, path: &str, problem: EntryProblem) {
        self.problems.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(problem.is_failure().into(), Ordering::Relaxed);
        let mut shown = self.shown();
        if shown.notes.len() < MAX_NOTES {
            shown.notes.push(Note { path: path.to_owned(), problem: problem.to_string() });
        }
    }

    /// Returns the counters.
    pub(crate) fn figures(&self) -> Figures {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            done: value(&self.done),
            files: value(&self.files),
            resumed: value(&self.resumed),
            transferred: value(&self.transferred),
            hashed: value(&self.hashed),
            hashed_again: value(&self.hashed_again),
            problems: value(&self.problems),
            failures: value(&self.failures),
        }
    }

    /// Returns the name of the file that is transferred, perhaps from the other side.
    pub(crate) fn name(&self) -> String {
        self.shown().name.clone()
    }

    /// Returns what was left out, at most the first hundred.
    pub(crate) fn notes(&self) -> Vec<Note> {
        self.shown().notes.clone()
    }
}
