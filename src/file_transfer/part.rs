//! A file that is being received: written beside its final name, and renamed when its hash is right.
//!
//! What is on the disk when: a file of more than 1 MiB is flushed before it is renamed; smaller ones, and the folders, are flushed together before
//! the receiver confirms the transfer. After a loss of power, small files of an unfinished transfer that were renamed but not flushed count as
//! received if their size and time are right.

use super::error::TransferError;
use super::folders::{Folder, Folders, permissions, timestamps};
use super::journal::Journal;
use super::names;
use super::plan::{self, FileStamp};
use super::progress::Progress;
use super::tree::{GROUP, Hash, TreeHasher};
use super::wire::{Id, Mtime};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// How many names are tried for a file whose name is taken.
const MAX_NAMES: u32 = 1000;

/// A file that was named, and whose content was asked for.
#[derive(Debug)]
pub(super) struct WantedFile {
    pub(super) number: u64,
    pub(super) folder: Option<Rc<Folder>>,
    pub(super) name: String,
    pub(super) mode: u32,
    pub(super) stamp: FileStamp,
    /// A file of this name may be replaced.
    pub(super) replaces: bool,
    /// The groups that an earlier connection has left.
    pub(super) kept: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Part {
    pub(super) wanted: WantedFile,
    tree: TreeHasher,
    /// A small file is kept until it is complete.
    small: Vec<u8>,
    /// A large file, and its journal.
    large: Option<(File, Journal)>,
}

fn flags() -> OFlags {
    OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Returns the key of the journal of a file.
fn key(wanted: &WantedFile, transfer: &Id) -> Hash {
    let Mtime { secs, nanos } = wanted.stamp.mtime;
    let mut hasher = blake3::Hasher::new();
    hasher.update(transfer).update(&wanted.stamp.size.to_be_bytes());
    hasher.update(&secs.to_be_bytes()).update(&nanos.to_be_bytes()).update(wanted.name.as_bytes());
    *hasher.finalize().as_bytes()
}

/// Opens the partial file and its journal that an earlier process has left.
fn open_left(folders: &mut Folders, wanted: &WantedFile, transfer: &Id) -> Option<(File, Journal, bool)> {
    let (part, journal) = names::part_names(&wanted.name, transfer);
    let folder = folders.open(wanted.folder.as_ref()).ok()?;
    let open = |name: &str| {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(folder, name, flags, Mode::empty()).map(File::from).ok()
    };
    let recorded = Journal::open(open(&journal)?, &key(wanted, transfer))?;
    Some((open(&part)?, recorded.journal, recorded.is_this_boot))
}

/// Returns how many groups of a file an earlier process has left, and the hash of their chaining values.
pub(super) fn find_left(
    folders: &mut Folders,
    wanted: &WantedFile,
    transfer: &Id,
    progress: &Progress,
) -> Option<(u64, Hash)> {
    let (part, journal, is_this_boot) = open_left(folders, wanted, transfer)?;
    let size = wanted.stamp.size;
    let mut kept = plan::kept_groups(size, journal.records(), part.metadata().ok()?.len());
    if !is_this_boot {
        kept = hash_again(&part, &journal, (kept, size), progress).unwrap_or(0);
    }
    let prefix = journal.prefix(kept).ok()?;
    Some((kept, prefix))
}

/// Returns how many groups of a partial file still have their chaining values.
fn hash_again(
    part: &File,
    journal: &Journal,
    (kept, size): (u64, u64),
    progress: &Progress,
) -> io::Result<u64> {
    let mut values = Vec::new();
    journal.read(kept, |value| values.push(*value))?;
    let mut content = vec![0; GROUP as usize];
    for (group, value) in (0..kept).zip(values) {
        let begin = group * GROUP;
        let len = usize::try_from(GROUP.min(size - begin)).unwrap_or(0);
        part.read_exact_at(&mut content[..len], begin)?;
        let mut tree = TreeHasher::new(size);
        tree.seek_group(group);
        let is_whole = tree.update(&content[..len]);
        progress.add_hashed_again(len as u64);
        if !is_whole || tree.finish_group() != Some(value) {
            return Ok(group);
        }
    }
    Ok(kept)
}

impl Part {
    /// Begins to receive a file from a group on.
    pub(super) fn begin(
        folders: &mut Folders,
        wanted: WantedFile,
        group: u64,
        transfer: &Id,
    ) -> Result<Self, TransferError> {
        let size = wanted.stamp.size;
        let (tree, small) = (TreeHasher::new(size), Vec::new());
        let mut part = Self { wanted, tree, small, large: None };
        if size > GROUP {
            let opened = part.open_large(folders, group, transfer);
            part.large = Some(opened.map_err(|source| part.error(folders, source))?);
        }
        Ok(part)
    }

    fn open_large(
        &mut self,
        folders: &mut Folders,
        group: u64,
        transfer: &Id,
    ) -> io::Result<(File, Journal)> {
        if group > 0 {
            let (file, mut journal, _) =
                open_left(folders, &self.wanted, transfer).ok_or(io::ErrorKind::NotFound)?;
            journal.truncate(group)?;
            journal.read(group, |value| self.tree.skip_group(*value))?;
            return Ok((file, journal));
        }
        let (part, journal) = names::part_names(&self.wanted.name, transfer);
        let folder = folders.open(self.wanted.folder.as_ref())?;
        let open =
            |name: &str| rustix::fs::openat(folder, name, flags(), Mode::RUSR | Mode::WUSR).map(File::from);
        let file = open(&part)?;
        file.set_len(0)?;
        let journal = Journal::create(open(&journal)?, &key(&self.wanted, transfer))?;
        Ok((file, journal))
    }

    fn error(&self, folders: &Folders, source: io::Error) -> TransferError {
        let path = folders.path_of(self.wanted.folder.as_ref(), &self.wanted.name);
        TransferError::Write { path, source }
    }

    /// Takes content. Pieces may cross no end of a group.
    pub(super) fn write(&mut self, folders: &Folders, bytes: &[u8]) -> Result<(), TransferError> {
        let position = self.tree.position();
        if !self.tree.update(bytes) {
            return Err(TransferError::Protocol("it sends more than it has announced"));
        }
        match &self.large {
            Some((file, _)) => {
                file.write_all_at(bytes, position).map_err(|source| self.error(folders, source))
            }
            None => {
                self.small.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Takes zero bytes, which are not written: there is a hole in the sender's file.
    pub(super) fn skip(&mut self, folders: &Folders, len: u64) -> Result<(), TransferError> {
        if !self.tree.update_zeros(len) {
            return Err(TransferError::Protocol("it sends more than it has announced"));
        }
        let position = self.tree.position();
        match &self.large {
            // What a former connection has written there may not be zero.
            Some((file, _)) => punch(file, position - len, len).map_err(|source| self.error(folders, source)),
            None => {
                self.small.resize(usize::try_from(position).unwrap_or(0), 0);
                Ok(())
            }
        }
    }

    /// Ends a group whose chaining value has to be this one.
    pub(super) fn finish_group(&mut self, folders: &Folders, value: &Hash) -> Result<(), TransferError> {
        let own = self.tree.finish_group().ok_or(TransferError::Protocol("it ends a group too early"))?;
        if own != *value {
            return Err(TransferError::WrongHash);
        }
        let recorded = self.large.as_mut().map_or(Ok(()), |(_, journal)| journal.append(value));
        recorded.map_err(|source| self.error(folders, source))
    }

    /// Returns how many bytes of the file are there.
    pub(super) fn position(&self) -> u64 {
        self.tree.position()
    }

    /// Ends the file, whose hash has to be this one; returns the name that it got.
    pub(super) fn finish(
        self,
        folders: &mut Folders,
        root: &Hash,
        transfer: &Id,
    ) -> Result<String, TransferError> {
        let Self { wanted, tree, small, large } = self;
        if tree.root().as_ref() != Some(root) {
            return Err(TransferError::WrongHash);
        }
        let finished = place(folders, &wanted, (&small, large), transfer);
        let result = finished.map_err(|source| TransferError::Write {
            path: folders.path_of(wanted.folder.as_ref(), &wanted.name),
            source,
        });
        wanted.release(folders);
        result
    }

    /// Ends a file that the sender cannot send; nothing of it is kept.
    pub(super) fn discard(self, folders: &mut Folders, transfer: &Id) {
        drop(self.large);
        self.wanted.discard(folders, transfer);
    }
}

impl WantedFile {
    /// Removes what an earlier connection has left of it.
    pub(super) fn discard(self, folders: &mut Folders, transfer: &Id) {
        if self.stamp.size > GROUP {
            let names = names::part_names(&self.name, transfer);
            if let Ok(folder) = folders.open(self.folder.as_ref()) {
                for name in [names.0, names.1] {
                    let _ = rustix::fs::unlinkat(folder, name.as_str(), AtFlags::empty());
                }
            }
        }
        self.release(folders);
    }

    fn release(self, folders: &mut Folders) {
        if let Some(folder) = self.folder {
            folders.release(folder);
        }
    }
}

/// Makes a range of a file a hole again, if it reaches into what is written.
fn punch(file: &File, begin: u64, len: u64) -> io::Result<()> {
    let end = file.metadata()?.len();
    if begin >= end {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(file, flags, begin, len).is_ok() {
            return Ok(());
        }
    }
    let zeros = vec![0; usize::try_from(len.min(end - begin)).unwrap_or(0)];
    file.write_all_at(&zeros, begin)
}

/// Completes a partial file and gives it its name.
fn place(
    folders: &mut Folders,
    wanted: &WantedFile,
    (small, large): (&[u8], Option<(File, Journal)>),
    transfer: &Id,
) -> io::Result<String> {
    let (part, journal) = names::part_names(&wanted.name, transfer);
    let folder = folders.open(wanted.folder.as_ref())?;
    let is_large = large.is_some();
    let file = match large {
        Some((file, _)) => file,
        None => {
            let flags = flags() | OFlags::TRUNC;
            let file = File::from(rustix::fs::openat(folder, part.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all_at(small, 0)?;
            file
        }
    };
    if is_large {
        // The end may be a hole.
        file.set_len(wanted.stamp.size)?;
        file.sync_data()?;
    }
    rustix::fs::fchmod(&file, permissions(wanted.mode))?;
    rustix::fs::futimens(&file, &timestamps(wanted.stamp.mtime))?;
    drop(file);
    let name = rename(&mut |name, flags| rename_in(folder, (&part, name), flags), wanted)?;
    if is_large {
        let _ = rustix::fs::unlinkat(folder, journal.as_str(), AtFlags::empty());
    }
    Ok(name)
}

fn rename_in(
    folder: std::os::fd::BorrowedFd<'_>,
    (from, to): (&str, &str),
    flags: RenameFlags,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, from, folder, to, flags) {
        // The file system cannot exclude a file of that name at the same time.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            let there = rustix::fs::statat(folder, to, AtFlags::SYMLINK_NOFOLLOW);
            match flags.contains(RenameFlags::NOREPLACE) && there.is_ok() {
                true => Err(Errno::EXIST),
                false => rustix::fs::renameat(folder, from, folder, to),
            }
        }
        result => result,
    }
}

/// Renames to the first name that is free.
fn rename(
    try_name: &mut dyn FnMut(&str, RenameFlags) -> Result<(), Errno>,
    wanted: &WantedFile,
) -> io::Result<String> {
    if wanted.replaces {
        try_name(&wanted.name, RenameFlags::empty())?;
        return Ok(wanted.name.clone());
    }
    let further = (2..MAX_NAMES).map(|number| names::numbered(&wanted.name, number));
    for name in std::iter::once(wanted.name.clone()).chain(further) {
        match try_name(&name, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
