//! The folders that a receiver has created. Everything in them is created relative to an open folder, and no symbolic link is followed on the way,
//! so that nothing is created outside of the target folder, whatever the sender names and whoever changes the folder meanwhile.

use super::wire::Mtime;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The permissions of what is received: setuid, setgid and sticky are dropped.
const PERMISSIONS: u32 = 0o777;

/// A folder inside the target folder.
#[derive(Debug)]
pub(super) struct Folder {
    number: u64,
    parent: Option<Rc<Folder>>,
    name: String,
    mode: u32,
    mtime: Mtime,
    /// It did not exist before, so that nothing is in it but what was received.
    pub(super) is_new: bool,
}

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Nothing,
    File {
        size: u64,
        mtime: Mtime,
    },
    Folder,
    /// A link, a device, a pipe or a socket.
    Special,
}

/// The target folder, and the chain of folders that were used last.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) path: PathBuf,
    target: OwnedFd,
    chain: Vec<(u64, OwnedFd)>,
    next_number: u64,
}

fn open_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Returns permissions without setuid, setgid and sticky.
pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode((mode & PERMISSIONS) as _)
}

/// Returns a time of modification, which is also the time of access.
pub(super) fn timestamps(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos) as _ };
    Timestamps { last_access: time, last_modification: time }
}

impl Folders {
    /// Opens the target folder, to which links may lead.
    pub(super) fn open_target(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), target, chain: Vec::new(), next_number: 0 })
    }

    /// Returns a folder, open; the target folder for `None`.
    pub(super) fn open(&mut self, folder: Option<&Rc<Folder>>) -> io::Result<BorrowedFd<'_>> {
        let mut path = Vec::new();
        let mut next = folder;
        while let Some(folder) = next {
            path.push(folder);
            next = folder.parent.as_ref();
        }
        path.reverse();
        let is_same = |((number, _), folder): &(&(u64, OwnedFd), &&Rc<Folder>)| *number == folder.number;
        let common = self.chain.iter().zip(&path).take_while(is_same).count();
        self.chain.truncate(common);
        for folder in &path[common..] {
            let parent = self.chain.last().map_or(self.target.as_fd(), |(_, fd)| fd.as_fd());
            let opened = rustix::fs::openat(parent, folder.name.as_str(), open_flags(), Mode::empty())?;
            self.chain.push((folder.number, opened));
        }
        Ok(self.chain.last().map_or(self.target.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// Creates a folder, or uses the one that exists.
    pub(super) fn create(
        &mut self,
        parent: Option<&Rc<Folder>>,
        name: &str,
        (mode, mtime): (u32, Mtime),
    ) -> io::Result<Rc<Folder>> {
        let is_new = match rustix::fs::mkdirat(self.open(parent)?, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        self.next_number += 1;
        let folder = Rc::new(Folder {
            number: self.next_number,
            parent: parent.cloned(),
            name: name.to_owned(),
            mode,
            mtime,
            is_new,
        });
        // Fails if it is a link or a file.
        self.open(Some(&folder))?;
        Ok(folder)
    }

    /// Lets go of a folder. With the last use its permissions and its time are set: everything in it has arrived.
    pub(super) fn release(&mut self, folder: Rc<Folder>) {
        let mut next = Some(folder);
        while let Some(folder) = next {
            if Rc::strong_count(&folder) == 1
                && let Ok(fd) = self.open(Some(&folder))
            {
                // Other systems may not have them.
                let _ = rustix::fs::fchmod(fd, permissions(folder.mode));
                let _ = rustix::fs::futimens(fd, &timestamps(folder.mtime));
            }
            next = Rc::into_inner(folder).and_then(|folder| folder.parent);
        }
    }

    /// Returns what is at a name.
    pub(super) fn existing(&mut self, folder: Option<&Rc<Folder>>, name: &str) -> io::Result<Existing> {
        let stat = match rustix::fs::statat(self.open(folder)?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Existing::Nothing),
            Err(error) => return Err(error.into()),
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Existing::File {
                size: stat.st_size.try_into().unwrap_or(0),
                mtime: Mtime { secs: stat.st_mtime as _, nanos: (stat.st_mtime_nsec as u64) as u32 },
            },
            FileType::Directory => Existing::Folder,
            _ => Existing::Special,
        })
    }

    /// Returns the path of a name, for messages.
    pub(super) fn path_of(&self, folder: Option<&Rc<Folder>>, name: &str) -> PathBuf {
        let mut names = vec![name];
        let mut next = folder;
        while let Some(folder) = next {
            names.push(&folder.name);
            next = folder.parent.as_ref();
        }
        names.iter().rev().fold(self.path.clone(), |path, name| path.join(name))
    }

    /// Writes everything to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&self.target)?;
        #[cfg(not(target_os = "linux"))]
        rustix::fs::fsync(&self.target)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const META: (u32, Mtime) = (0o7555, Mtime { secs: 1000, nanos: 5000 });

    #[test]
    fn a_folder_gets_its_permissions_and_time_after_its_content() {
        let target = tempfile::tempdir().unwrap();
        let mut folders = Folders::open_target(target.path()).unwrap();
        let outer = folders.create(None, "outer", META).unwrap();
        let inner = folders.create(Some(&outer), "inner", META).unwrap();
        folders.release(outer);
        let path = target.path().join("outer/inner");
        fs::write(path.join("file"), "x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        folders.release(inner);
        for path in [&path, &target.path().join("outer")] {
            let data = fs::metadata(path).unwrap();
            assert_eq!((data.mode() & 0o7777, data.mtime(), data.mtime_nsec()), (0o555, 1000, 5000));
        }
    }

    #[test]
    fn no_folder_is_reached_through_a_link() {
        let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), target.path().join("link")).unwrap();
        fs::write(target.path().join("file"), "x").unwrap();
        let mut folders = Folders::open_target(target.path()).unwrap();
        for name in ["link", "file"] {
            assert!(folders.create(None, name, META).is_err(), "{name}");
        }
        // Neither is one that is replaced by a link later.
        let folder = folders.create(None, "folder", META).unwrap();
        folders.open(None).unwrap();
        fs::remove_dir(target.path().join("folder")).unwrap();
        symlink(outside.path(), target.path().join("folder")).unwrap();
        assert!(folders.open(Some(&folder)).is_err());
        assert_eq!(folders.existing(None, "link").unwrap(), Existing::Special);
    }
}
