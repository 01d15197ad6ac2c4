//! Files that exist completely or not at all: written under another name and renamed, so that a full disk or a crash leaves no partial file.

use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Creates a file (0600) unless it exists; returns whether it did.
///
/// # Errors
/// The system's answer; nothing is left then.
pub(crate) fn make_file(path: &Path, text: &str) -> io::Result<bool> {
    // Another process may do the same.
    let number = OsRng.try_next_u32().map_err(io::Error::other)?;
    let new = beside(path, &format!("new-{number:08x}"));
    let placed = write(&new, text).and_then(|()| match fs::hard_link(&new, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // Not every file system has links.
        Err(_) => fs::rename(&new, path).map(|()| true),
    });
    let _ = fs::remove_file(&new);
    placed.and_then(|made| settle(path).map(|()| made))
}

/// Writes a file (0600) in place of the one that is there.
///
/// # Errors
/// The system's answer; the one before stays then.
pub(crate) fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let new = beside(path, "new");
    let placed = write(&new, text).and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed.and_then(|()| settle(path))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{ending}"));
    path.with_file_name(name)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Sees to it that the folder's entry outlives a loss of power too.
fn settle(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_made_once_and_replaced_as_a_whole_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        assert!(make_file(&path, "first").unwrap());
        assert!(!make_file(&path, "second").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        replace_file(&path, "third").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "third");
        assert_eq!(names(folder.path()), ["secret"]);
    }

    #[test]
    fn what_cannot_be_placed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inner")).unwrap();
        assert!(replace_file(&path, "text").is_err());
        assert!(make_file(&folder.path().join("nowhere/secret"), "text").is_err());
        assert_eq!(names(folder.path()), ["taken"]);
    }
}
