//! The receiver's thread: takes the sender's messages in order, and creates folders, files and links.

use super::error::TransferError;
use super::folders::{Existing, Folder, Folders};
use super::names;
use super::part::{self, Part, WantedFile};
use super::plan::{FileStamp, MAX_OPEN_FILES, RootPlan};
use super::progress::Progress;
use super::sending::{Summary, cancelled, empty_prefix};
use super::tree::{GROUP, Hash};
use super::walk::MAX_DEPTH;
use super::wire::{
    Decoder, Entry, EntryKind, EntryProblem, Id, Mtime, Piece, ReceiverMessage, SenderMessage,
};
use rustix::fs::AtFlags;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// Where a receiver puts what it receives, over any number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// The target folder.
    pub(crate) folder: PathBuf,
    pub(crate) transfer: Id,
    /// What becomes of each root.
    pub(crate) plans: Vec<RootPlan>,
    /// An earlier connection has begun it: files that are there may be this transfer's.
    pub(crate) is_resumed: bool,
    /// Held by the thread of a connection: the one before may still end.
    pub(crate) busy: Arc<Mutex<()>>,
}

/// The folder of the entries that follow.
#[derive(Debug)]
enum Place {
    /// In a folder.
    Folder(Rc<Folder>),
    /// In a folder that could not be created.
    Refused(EntryProblem),
}

/// What thread and service share.
pub(super) struct Channels {
    pub(super) blocks: mpsc::Receiver<Vec<u8>>,
    pub(super) answers: mpsc::Sender<ReceiverMessage>,
    /// Bytes that were verified in this connection.
    pub(super) verified: watch::Sender<u64>,
}

/// See the [module](self).
pub(super) struct Receiving {
    destination: Destination,
    folders: Folders,
    channels: Channels,
    progress: Arc<Progress>,
    root: Option<u32>,
    last_root: Option<u32>,
    places: Vec<Place>,
    wanted: VecDeque<WantedFile>,
    part: Option<Part>,
    files: u64,
    verified: u64,
    manifest: blake3::Hasher,
    file_hash: Option<Hash>,
    summary: Option<Summary>,
}

impl Receiving {
    pub(super) fn new(
        destination: Destination,
        channels: Channels,
        progress: Arc<Progress>,
    ) -> Result<Self, TransferError> {
        let folders = Folders::open_target(&destination.folder);
        let folders =
            folders.map_err(|source| TransferError::Write { path: destination.folder.clone(), source })?;
        Ok(Self {
            destination,
            folders,
            channels,
            progress,
            root: None,
            last_root: None,
            places: Vec::new(),
            wanted: VecDeque::new(),
            part: None,
            files: 0,
            verified: 0,
            manifest: blake3::Hasher::new(),
            file_hash: None,
            summary: None,
        })
    }

    /// Receives until the end of the manifest, or of the stream; `None` then.
    pub(super) fn run(
        mut self,
        mut decoder: Decoder<SenderMessage>,
    ) -> Result<Option<Summary>, TransferError> {
        let busy = Arc::clone(&self.destination.busy);
        let _busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(block) = self.channels.blocks.blocking_recv() {
            let mut input = &block[..];
            while let Some(piece) = decoder.next(&mut input)? {
                match piece {
                    Piece::Message(message) => self.handle_message(message)?,
                    Piece::Data(bytes) => self.handle_content(bytes)?,
                }
            }
            self.channels.verified.send_replace(self.verified);
            if let Some(summary) = self.summary {
                return Ok(Some(summary));
            }
        }
        Ok(None)
    }

    fn handle_message(&mut self, message: SenderMessage) -> Result<(), TransferError> {
        if let Some(reason) = cancelled(&message) {
            return Err(TransferError::Cancelled(reason));
        }
        match message {
            SenderMessage::Root(root) => self.handle_root(root),
            SenderMessage::Entry(entry) => self.handle_entry(&entry),
            SenderMessage::Leave => self.handle_leave(),
            SenderMessage::Skipped { problem, path } => {
                self.progress.add_problem(&String::from_utf8_lossy(&path), problem);
                Ok(())
            }
            SenderMessage::Start { file, group } => self.handle_start(file, group),
            SenderMessage::Hole(len) => self.handle_hole(len),
            SenderMessage::Group(value) => self.handle_group(&value),
            SenderMessage::FileEnd(root) => self.handle_file_end(&root),
            SenderMessage::FileFailed { file, problem } => self.handle_file_failed(file, problem),
            SenderMessage::End { files, manifest } => self.handle_end(files, &manifest),
            SenderMessage::Offer(_) | SenderMessage::Cancel(_) => {
                Err(TransferError::Protocol("it offers something else"))
            }
        }
    }

    fn handle_root(&mut self, root: u32) -> Result<(), TransferError> {
        let is_offered = (root as usize) < self.destination.plans.len();
        let is_next = self.last_root.is_none_or(|last| root > last);
        if !is_offered || !is_next || !self.places.is_empty() {
            return Err(TransferError::Protocol("it sends what it has not offered"));
        }
        (self.root, self.last_root) = (Some(root), Some(root));
        Ok(())
    }

    /// Returns the name of an entry here, and whether it may replace what is there.
    fn local_name(&mut self, entry: &Entry) -> Result<Result<(String, bool), EntryProblem>, TransferError> {
        match self.places.last() {
            Some(Place::Refused(problem)) => Ok(Err(*problem)),
            Some(Place::Folder(_)) => {
                let replaces = matches!(self.plan(), Some(RootPlan::Replace(_)));
                let name = names::local_name(&entry.name).map_err(|_| EntryProblem::Name);
                Ok(name.map(|name| (name, replaces)))
            }
            None => {
                let plan = self.root.and_then(|root| self.destination.plans.get(root as usize));
                let name = match plan {
                    Some(RootPlan::Create(name)) => Ok((name.clone(), false)),
                    Some(RootPlan::Replace(name)) => Ok((name.clone(), true)),
                    Some(RootPlan::Refused(problem)) => Err(*problem),
                    _ => return Err(TransferError::Protocol("it sends what was declined")),
                };
                Ok(name)
            }
        }
    }

    fn plan(&self) -> Option<&RootPlan> {
        self.destination.plans.get(self.root? as usize)
    }

    /// Returns the folder of the current entries, unless that is the target folder.
    fn folder(&self) -> Option<Rc<Folder>> {
        match self.places.last() {
            Some(Place::Folder(folder)) => Some(Rc::clone(folder)),
            _ => None,
        }
    }

    fn handle_entry(&mut self, entry: &Entry) -> Result<(), TransferError> {
        let mut payload = Vec::new();
        entry.write(&mut payload);
        self.manifest.update(&payload);
        let name = self.local_name(entry)?;
        match &entry.kind {
            EntryKind::File { size } => {
                let stamp = FileStamp { size: *size, mtime: entry.mtime };
                self.handle_file(name, entry.mode, stamp)?;
            }
            EntryKind::Folder => self.handle_folder(entry, name)?,
            EntryKind::Link { target } => self.handle_link(entry, name, target),
        }
        if self.places.is_empty() {
            self.root = None;
        }
        Ok(())
    }

    fn note(&self, name: &str, problem: EntryProblem) {
        let folder = self.folder();
        let path = self.folders.path_of(folder.as_ref(), name);
        let path = path.strip_prefix(&self.destination.folder).unwrap_or(&path);
        self.progress.add_problem(&path.to_string_lossy(), problem);
    }

    fn handle_folder(
        &mut self,
        entry: &Entry,
        name: Result<(String, bool), EntryProblem>,
    ) -> Result<(), TransferError> {
        if self.places.len() >= MAX_DEPTH {
            return Err(TransferError::Protocol("it sends too many folders inside each other"));
        }
        let parent = self.folder();
        let created = name.and_then(|(name, _)| {
            let created = self.folders.create(parent.as_ref(), &name, (entry.mode, entry.mtime));
            created.map_err(|_| EntryProblem::NotCreated)
        });
        self.places.push(match created {
            Ok(folder) => Place::Folder(folder),
            Err(problem) => {
                // The problem of a folder is noted once.
                if !matches!(self.places.last(), Some(Place::Refused(_))) {
                    self.note(&String::from_utf8_lossy(&entry.name), problem);
                }
                Place::Refused(problem)
            }
        });
        Ok(())
    }

    fn handle_leave(&mut self) -> Result<(), TransferError> {
        self.manifest.update(b"/");
        match self.places.pop() {
            Some(Place::Folder(folder)) => self.folders.release(folder),
            Some(Place::Refused(_)) => {}
            None => return Err(TransferError::Protocol("it leaves a folder that it has not entered")),
        }
        if self.places.is_empty() {
            self.root = None;
        }
        Ok(())
    }

    fn handle_link(&mut self, entry: &Entry, name: Result<(String, bool), EntryProblem>, target: &[u8]) {
        let depth = self.places.len().checked_sub(1);
        let is_inside = depth.is_some_and(|depth| names::is_inside(target, depth));
        let shown = String::from_utf8_lossy(&entry.name).into_owned();
        let created = match name {
            Ok(_) if !is_inside => Err(EntryProblem::LinkOutside),
            Ok((name, replaces)) => self.create_link(&name, target, entry.mtime, replaces),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = created {
            self.note(&shown, problem);
        }
    }

    fn create_link(
        &mut self,
        name: &str,
        target: &[u8],
        mtime: Mtime,
        replaces: bool,
    ) -> Result<(), EntryProblem> {
        let parent = self.folder();
        let folder = self.folders.open(parent.as_ref()).map_err(|_| EntryProblem::NotCreated)?;
        let is_same = || {
            let there = rustix::fs::readlinkat(folder, name, Vec::new());
            there.is_ok_and(|there| there.as_bytes() == target)
        };
        match rustix::fs::symlinkat(target, folder, name) {
            Ok(()) => {}
            Err(_) if is_same() => {}
            Err(rustix::io::Errno::EXIST) if replaces => {
                let replaced = rustix::fs::unlinkat(folder, name, AtFlags::empty())
                    .and_then(|()| rustix::fs::symlinkat(target, folder, name));
                replaced.map_err(|_| EntryProblem::Exists)?;
            }
            Err(rustix::io::Errno::EXIST) => return Err(EntryProblem::Exists),
            Err(_) => return Err(EntryProblem::NotCreated),
        }
        let times = super::folders::timestamps(mtime);
        let _ = rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW);
        Ok(())
    }

    fn answer(&self, answer: ReceiverMessage) -> Result<(), TransferError> {
        self.channels.answers.blocking_send(answer).map_err(|_| super::error::ended())
    }

    fn handle_file(
        &mut self,
        name: Result<(String, bool), EntryProblem>,
        mode: u32,
        stamp: FileStamp,
    ) -> Result<(), TransferError> {
        let number = self.files;
        self.files += 1;
        if self.wanted.len() >= MAX_OPEN_FILES {
            return Err(TransferError::Protocol("it names too many files ahead"));
        }
        let refused = |problem| ReceiverMessage::Refused { file: number, problem };
        let (name, replaces) = match name {
            Ok(name) => name,
            Err(problem) => {
                self.note(&format!("file {}", number + 1), problem);
                return self.answer(refused(problem));
            }
        };
        let folder = self.folder();
        let is_known_new = folder.as_ref().is_some_and(|folder| folder.is_new);
        let existing = match is_known_new && !self.destination.is_resumed {
            true => Ok(Existing::Nothing),
            false => self.folders.existing(folder.as_ref(), &name),
        };
        match existing {
            Ok(Existing::File { size, mtime })
                if self.destination.is_resumed && FileStamp { size, mtime }.is_copy_of(stamp) =>
            {
                self.progress.add_resumed(size);
                self.progress.add_file();
                return self.answer(ReceiverMessage::Have { file: number });
            }
            Ok(Existing::Folder | Existing::Special) if replaces => {
                self.note(&name, EntryProblem::Exists);
                return self.answer(refused(EntryProblem::Exists));
            }
            Ok(_) => {}
            Err(_) => {
                self.note(&name, EntryProblem::NotCreated);
                return self.answer(refused(EntryProblem::NotCreated));
            }
        }
        self.want(WantedFile { number, folder, name, mode, stamp, replaces, kept: 0 })
    }

    fn want(&mut self, mut wanted: WantedFile) -> Result<(), TransferError> {
        let left = match self.destination.is_resumed && wanted.stamp.size > GROUP {
            true => part::find_left(&mut self.folders, &wanted, &self.destination.transfer, &self.progress),
            false => None,
        };
        let (group, prefix) = left.unwrap_or_else(|| (0, empty_prefix()));
        wanted.kept = group;
        let file = wanted.number;
        self.wanted.push_back(wanted);
        self.answer(ReceiverMessage::Need { file, group, prefix })
    }

    /// Takes the next file that was asked for, which has to be this one.
    fn take_wanted(&mut self, number: u64) -> Result<WantedFile, TransferError> {
        let wanted = self.wanted.pop_front().filter(|wanted| wanted.number == number);
        wanted.ok_or(TransferError::Protocol("it sends a file that was not asked for"))
    }

    fn handle_start(&mut self, file: u64, group: u64) -> Result<(), TransferError> {
        let wanted = self.take_wanted(file)?;
        if self.part.is_some() || group != 0 && group != wanted.kept {
            return Err(TransferError::Protocol("it begins a file at a wrong place"));
        }
        self.progress.set_name(&wanted.name);
        self.progress.add_resumed((group * GROUP).min(wanted.stamp.size));
        let part = Part::begin(&mut self.folders, wanted, group, &self.destination.transfer)?;
        self.part = Some(part);
        Ok(())
    }

    fn current(part: &mut Option<Part>) -> Result<&mut Part, TransferError> {
        part.as_mut().ok_or(TransferError::Protocol("it sends content of no file"))
    }

    fn handle_content(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        Self::current(&mut self.part)?.write(&self.folders, bytes)?;
        self.progress.add_transferred(bytes.len() as u64);
        self.count(bytes.len() as u64);
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.verified += bytes;
        self.progress.add_hashed(bytes);
        self.progress.add_done(bytes);
    }

    fn handle_hole(&mut self, len: u64) -> Result<(), TransferError> {
        Self::current(&mut self.part)?.skip(&self.folders, len)?;
        self.count(len);
        Ok(())
    }

    fn handle_group(&mut self, value: &Hash) -> Result<(), TransferError> {
        Self::current(&mut self.part)?.finish_group(&self.folders, value)?;
        self.channels.verified.send_replace(self.verified);
        Ok(())
    }

    fn handle_file_end(&mut self, root: &Hash) -> Result<(), TransferError> {
        let part = self.part.take().ok_or(TransferError::Protocol("it ends no file"))?;
        part.finish(&mut self.folders, root, &self.destination.transfer)?;
        self.file_hash = Some(*root);
        self.progress.add_file();
        Ok(())
    }

    /// The file fails while it is sent, or before.
    fn handle_file_failed(&mut self, file: u64, problem: EntryProblem) -> Result<(), TransferError> {
        let transfer = self.destination.transfer;
        let (path, done) = match self.part.take() {
            Some(part) if part.wanted.number == file => {
                let path = self.folders.path_of(part.wanted.folder.as_ref(), &part.wanted.name);
                let done = part.position();
                part.discard(&mut self.folders, &transfer);
                (path, done)
            }
            Some(_) => return Err(TransferError::Protocol("it ends another file")),
            None => {
                let wanted = self.take_wanted(file)?;
                let path = self.folders.path_of(wanted.folder.as_ref(), &wanted.name);
                wanted.discard(&mut self.folders, &transfer);
                (path, 0)
            }
        };
        self.progress.remove_done(done);
        let path = path.strip_prefix(&self.destination.folder).unwrap_or(&path);
        self.progress.add_problem(&path.to_string_lossy(), problem);
        Ok(())
    }

    fn handle_end(&mut self, files: u64, manifest: &Hash) -> Result<(), TransferError> {
        let own = *self.manifest.finalize().as_bytes();
        let is_complete = self.places.is_empty() && self.wanted.is_empty() && self.part.is_none();
        if !is_complete || files != self.files || own != *manifest {
            return Err(TransferError::Protocol("it ends before everything was sent"));
        }
        let synced = self.folders.sync();
        synced.map_err(|source| TransferError::Write { path: self.destination.folder.clone(), source })?;
        let hash = self.file_hash.filter(|_| files == 1);
        let summary = Summary { files, hash: hash.unwrap_or(own), is_file_hash: hash.is_some() };
        self.summary = Some(summary);
        self.answer(ReceiverMessage::Finished)
    }
}
