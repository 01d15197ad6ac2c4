//! Reads the folders that are sent, one entry at a time: only the folders that are open are in memory.

use super::names::is_inside;
use super::wire::{Entry, EntryKind, EntryProblem, MAX_NAME, MAX_TARGET, Mtime};
use std::collections::HashSet;
use std::fs::{self, Metadata, ReadDir};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most folders inside each other. Each is an open descriptor.
pub(super) const MAX_DEPTH: usize = 128;
/// The permissions that are sent: setuid, setgid and sticky are not.
const PERMISSIONS: u32 = 0o777;

/// A file or folder that the user names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    /// Its absolute path.
    pub(crate) path: PathBuf,
    /// The name under which it is sent.
    pub(crate) name: Vec<u8>,
    pub(crate) is_folder: bool,
}

impl Root {
    /// Looks up a path.
    ///
    /// # Errors
    /// The system's, if it does not exist; [`io::ErrorKind::InvalidInput`] if it is neither a file nor a folder, or has no name.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let data = fs::metadata(&path)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.as_bytes().to_vec();
        if !data.is_file() && !data.is_dir() || name.len() > MAX_NAME {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self { path, name, is_folder: data.is_dir() })
    }
}

/// Which file it is, and its state: another one means that it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileState {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    pub(super) mtime: Mtime,
}

impl FileState {
    pub(super) fn of(data: &Metadata) -> Self {
        Self { device: data.dev(), inode: data.ino(), size: data.len(), mtime: mtime(data) }
    }

    /// Returns the key of a journal of this file in this state.
    pub(super) fn key(&self, path: &Path) -> super::tree::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(path.as_os_str().as_bytes());
        for number in [self.device, self.inode, self.size, self.mtime.secs as u64, self.mtime.nanos.into()] {
            hasher.update(&number.to_be_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

fn mtime(data: &Metadata) -> Mtime {
    Mtime { secs: data.mtime(), nanos: u32::try_from(data.mtime_nsec()).unwrap_or(0) }
}

/// What a [`Walker`] finds.
#[derive(Debug)]
pub(super) enum Step {
    /// The next entry is this root.
    Root(u32),
    /// A file, with what is needed to read it, a folder, or a link.
    Entry { entry: Entry, path: PathBuf, state: FileState },
    /// The end of a folder.
    Leave,
    /// Something that is left out.
    Skipped { path: PathBuf, problem: EntryProblem },
}

/// A folder that is being read.
struct OpenFolder {
    entries: ReadDir,
    path: PathBuf,
    inode: (u64, u64),
}

/// Finds everything in the roots.
pub(super) struct Walker {
    roots: std::vec::IntoIter<(u32, Root)>,
    current: Option<Root>,
    open: Vec<OpenFolder>,
    follow: bool,
}

impl Walker {
    pub(super) fn new(roots: &[Root], skipped: &[u32], follow: bool) -> Self {
        let skipped: HashSet<u32> = skipped.iter().copied().collect();
        let roots = (0_u32..).zip(roots.iter().cloned()).filter(|(number, _)| !skipped.contains(number));
        let roots: Vec<_> = roots.collect();
        Self { roots: roots.into_iter(), current: None, open: Vec::new(), follow }
    }

    fn visit(&mut self, path: PathBuf, name: &[u8], is_root: bool) -> Step {
        let data = if is_root || self.follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let data = match data {
            Ok(data) => data,
            Err(error) => return skipped(path, &error),
        };
        let (mode, mtime) = (data.mode() & PERMISSIONS, mtime(&data));
        let entry = |kind| Entry { kind, name: name.to_vec(), mode, mtime };
        let state = FileState::of(&data);
        if data.is_file() {
            return Step::Entry { entry: entry(EntryKind::File { size: data.len() }), path, state };
        }
        if data.is_dir() {
            let inode = (data.dev(), data.ino());
            // A followed link may lead back.
            if self.open.len() >= MAX_DEPTH || self.open.iter().any(|open| open.inode == inode) {
                return Step::Skipped { path, problem: EntryProblem::TooDeep };
            }
            return match fs::read_dir(&path) {
                Ok(entries) => {
                    self.open.push(OpenFolder { entries, path: path.clone(), inode });
                    Step::Entry { entry: entry(EntryKind::Folder), path, state }
                }
                Err(error) => skipped(path, &error),
            };
        }
        if !data.is_symlink() {
            return Step::Skipped { path, problem: EntryProblem::Special };
        }
        match fs::read_link(&path) {
            Ok(target) => {
                let target = target.as_os_str().as_bytes().to_vec();
                let depth = self.open.len().saturating_sub(1);
                match target.len() <= MAX_TARGET && is_inside(&target, depth) {
                    true => Step::Entry { entry: entry(EntryKind::Link { target }), path, state },
                    false => Step::Skipped { path, problem: EntryProblem::LinkOutside },
                }
            }
            Err(error) => skipped(path, &error),
        }
    }
}

fn skipped(path: PathBuf, error: &io::Error) -> Step {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => EntryProblem::Vanished,
        _ => EntryProblem::Unreadable,
    };
    Step::Skipped { path, problem }
}

impl Iterator for Walker {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(root) = self.current.take() {
            return Some(self.visit(root.path, &root.name, true));
        }
        if let Some(open) = self.open.last_mut() {
            let path = open.path.clone();
            return Some(match open.entries.next() {
                Some(Ok(entry)) => self.visit(entry.path(), entry.file_name().as_bytes(), false),
                Some(Err(error)) => skipped(path, &error),
                None => {
                    self.open.pop();
                    Step::Leave
                }
            });
        }
        let (number, root) = self.roots.next()?;
        self.current = Some(root);
        Some(Step::Root(number))
    }
}

/// What was counted of the roots so far.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    files: AtomicU64,
    bytes: AtomicU64,
    is_done: AtomicBool,
    is_stopped: AtomicBool,
}

impl Survey {
    /// Counts files and bytes until all are counted or [`Survey::stop`] is called.
    pub(crate) fn run(&self, roots: &[Root], follow: bool) {
        for step in Walker::new(roots, &[], follow) {
            if self.is_stopped.load(Ordering::Relaxed) {
                return;
            }
            if let Step::Entry { entry: Entry { kind: EntryKind::File { size }, .. }, .. } = step {
                self.files.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(size, Ordering::Relaxed);
            }
        }
        self.is_done.store(true, Ordering::Release);
    }

    /// Ends the counting.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Returns files, bytes, and whether that is all.
    pub(crate) fn counted(&self) -> (u64, u64, bool) {
        let is_done = self.is_done.load(Ordering::Acquire);
        (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed), is_done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The entries below one root, as `name`, `name/` or `name -> target`, and what is skipped as `!name problem`; sorted.
    fn walk(root: &Path, follow: bool) -> Vec<String> {
        let root = Root::new(root).unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut found: Vec<String> = Walker::new(&[root], &[], follow)
            .filter_map(|step| match step {
                Step::Entry { entry, path, .. } => Some(match entry.kind {
                    EntryKind::File { .. } => name(&path),
                    EntryKind::Folder => format!("{}/", name(&path)),
                    EntryKind::Link { target } => {
                        format!("{} -> {}", name(&path), String::from_utf8_lossy(&target))
                    }
                }),
                Step::Skipped { path, problem } => Some(format!("!{} {problem:?}", name(&path))),
                Step::Root(_) | Step::Leave => None,
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn links_out_of_the_folder_and_special_files_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "x").unwrap();
        fs::write(folder.path().join("outside"), "x").unwrap();
        symlink("../root/sub", root.join("sub/odd")).unwrap();
        symlink("../sub/file", root.join("sub/inside")).unwrap();
        symlink("../outside", root.join("out")).unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(root.join("fifo")).status().unwrap();
        assert!(fifo.success());
        assert_eq!(
            walk(&root, false),
            [
                "!absolute LinkOutside",
                "!fifo Special",
                "!out LinkOutside",
                "file",
                "inside -> ../sub/file",
                "odd -> ../root/sub",
                "root/",
                "sub/"
            ]
        );
        let followed = walk(&root, true);
        assert!(followed.contains(&"out".to_owned()) && followed.contains(&"absolute".to_owned()));
    }

    #[test]
    fn a_followed_link_that_leads_back_ends() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        symlink(".", root.join("back")).unwrap();
        assert_eq!(walk(&root, true), ["!back TooDeep", "root/"]);
    }

    #[test]
    fn a_survey_counts_files_and_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for (name, len) in [("a", 3), ("b", 0), ("c", 10)] {
            fs::write(folder.path().join(name), vec![0; len]).unwrap();
        }
        let survey = Survey::default();
        survey.run(&[Root::new(folder.path()).unwrap()], false);
        assert_eq!(survey.counted(), (3, 13, true));
        assert!(Root::new(&folder.path().join("none")).is_err());
    }
}
