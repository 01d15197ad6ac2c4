//! The sender's thread: reads folders and files, and writes the messages for the receiver.
//!
//! It names files ahead of their content, so that the receiver's answers, which of them it needs and from where on, arrive in time: no file
//! waits for a round trip. Content goes out in the order of the answers.

use super::error::{TransferError, ended};
use super::journal::Journal;
use super::plan::{MAX_OPEN_FILES, Window};
use super::progress::Progress;
use super::tree::{GROUP, Hash, TreeHasher, group_count, hash_of_values};
use super::walk::{FileState, Root, Step, Walker};
use super::wire::{
    CancelReason, Entry, EntryKind, EntryProblem, ReceiverMessage, SenderMessage, data_header,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Bytes that are collected before they are sent.
const BLOCK: usize = 256 << 10;
/// Most bytes that a group adds to a block.
const BLOCK_CAPACITY: usize = BLOCK + (GROUP as usize) + 1024;

/// What a sender sends, over any number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) roots: Vec<Root>,
    /// Send what links point to.
    pub(crate) follow: bool,
    /// The journal of the file that is being sent.
    pub(crate) journal: PathBuf,
    /// Held by the thread of a connection: the one before may still end.
    pub(crate) busy: Arc<Mutex<()>>,
}

/// What both sides know at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Files of the manifest.
    pub(crate) files: u64,
    /// The hash of the file if there is only one and it was hashed; otherwise that of the manifest: names, sizes, times and permissions.
    pub(crate) hash: Hash,
    /// `hash` is that of a file.
    pub(crate) is_file_hash: bool,
}

/// A file that was named.
struct OpenFile {
    number: u64,
    path: PathBuf,
    state: FileState,
}

/// A file whose content the receiver needs.
struct NeededFile {
    file: OpenFile,
    group: u64,
    prefix: Hash,
}

/// Why the content of a file ends early.
enum FileError {
    Problem(EntryProblem),
    Transfer(TransferError),
}

impl From<TransferError> for FileError {
    fn from(error: TransferError) -> Self {
        Self::Transfer(error)
    }
}

fn problem(error: &io::Error) -> FileError {
    FileError::Problem(match error.kind() {
        io::ErrorKind::NotFound => EntryProblem::Vanished,
        _ => EntryProblem::Unreadable,
    })
}

/// See the [module](self).
pub(super) struct Sending {
    source: Source,
    walker: Walker,
    blocks: mpsc::Sender<Vec<u8>>,
    answers: mpsc::Receiver<ReceiverMessage>,
    progress: Arc<Progress>,
    block: Vec<u8>,
    /// Files that the receiver has not answered for, in the order of their names.
    named: VecDeque<OpenFile>,
    needed: VecDeque<NeededFile>,
    window: Window,
    files: u64,
    manifest: blake3::Hasher,
    file_hash: Option<Hash>,
    is_finished: bool,
}

impl Sending {
    pub(super) fn new(
        source: Source,
        skipped: &[u32],
        (blocks, answers): (mpsc::Sender<Vec<u8>>, mpsc::Receiver<ReceiverMessage>),
        progress: Arc<Progress>,
    ) -> Self {
        let walker = Walker::new(&source.roots, skipped, source.follow);
        Self {
            source,
            walker,
            blocks,
            answers,
            progress,
            block: Vec::with_capacity(BLOCK_CAPACITY),
            named: VecDeque::new(),
            needed: VecDeque::new(),
            window: Window::default(),
            files: 0,
            manifest: blake3::Hasher::new(),
            file_hash: None,
            is_finished: false,
        }
    }

    /// Sends everything, and waits until the receiver has it.
    pub(super) fn run(mut self) -> Result<Summary, TransferError> {
        let busy = Arc::clone(&self.source.busy);
        let _busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_walked = false;
        loop {
            while let Ok(answer) = self.answers.try_recv() {
                self.handle_answer(answer)?;
            }
            if let Some(needed) = self.needed.pop_front() {
                self.send_file(needed)?;
            } else if !is_walked && self.named.len() < MAX_OPEN_FILES {
                match self.walker.next() {
                    Some(step) => self.handle_step(step)?,
                    None => is_walked = true,
                }
            } else if is_walked && self.named.is_empty() {
                return self.finish();
            } else {
                self.wait_for_answer()?;
            }
        }
    }

    fn finish(mut self) -> Result<Summary, TransferError> {
        let manifest = *self.manifest.finalize().as_bytes();
        self.send(&SenderMessage::End { files: self.files, manifest })?;
        while !self.is_finished {
            self.wait_for_answer()?;
        }
        let hash = self.file_hash.filter(|_| self.files == 1);
        Ok(Summary { files: self.files, hash: hash.unwrap_or(manifest), is_file_hash: hash.is_some() })
    }

    fn handle_step(&mut self, step: Step) -> Result<(), TransferError> {
        match step {
            Step::Root(root) => self.send(&SenderMessage::Root(root)),
            Step::Leave => {
                self.manifest.update(b"/");
                self.send(&SenderMessage::Leave)
            }
            Step::Skipped { path, problem } => {
                let path = self.shown(&path);
                self.progress.add_problem(&path, problem);
                self.send(&SenderMessage::Skipped { problem, path: path.into_bytes() })
            }
            Step::Entry { entry, path, state } => self.send_entry(entry, path, state),
        }
    }

    /// Returns a path as it is shown: from the folder of its root on.
    fn shown(&self, path: &Path) -> String {
        let parents = self.source.roots.iter().filter_map(|root| root.path.parent());
        let short = parents.filter_map(|parent| path.strip_prefix(parent).ok()).next();
        short.unwrap_or(path).to_string_lossy().into_owned()
    }

    fn send_entry(&mut self, entry: Entry, path: PathBuf, state: FileState) -> Result<(), TransferError> {
        let mut payload = Vec::new();
        entry.write(&mut payload);
        self.manifest.update(&payload);
        if matches!(entry.kind, EntryKind::File { .. }) {
            self.named.push_back(OpenFile { number: self.files, path, state });
            self.files += 1;
        }
        self.send(&SenderMessage::Entry(entry))
    }

    fn send(&mut self, message: &SenderMessage) -> Result<(), TransferError> {
        message.encode(&mut self.block);
        if self.block.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TransferError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_CAPACITY));
        self.blocks.blocking_send(block).map_err(|_| ended())
    }

    fn wait_for_answer(&mut self) -> Result<(), TransferError> {
        self.flush()?;
        let answer = self.answers.blocking_recv().ok_or_else(ended)?;
        self.handle_answer(answer)
    }

    fn handle_answer(&mut self, answer: ReceiverMessage) -> Result<(), TransferError> {
        match answer {
            ReceiverMessage::Need { file, group, prefix } => {
                let file = self.take_named(file)?;
                if group > group_count(file.state.size) {
                    return Err(TransferError::Protocol("it asks for a range outside of a file"));
                }
                self.needed.push_back(NeededFile { file, group, prefix });
            }
            ReceiverMessage::Have { file } => {
                let file = self.take_named(file)?;
                self.progress.add_resumed(file.state.size);
                self.progress.add_file();
            }
            ReceiverMessage::Refused { file, problem } => {
                let file = self.take_named(file)?;
                let path = self.shown(&file.path);
                self.progress.add_problem(&path, problem);
            }
            ReceiverMessage::Verified(bytes) => {
                if !self.window.set_verified(bytes) {
                    return Err(TransferError::Protocol("it has verified what was not sent"));
                }
            }
            ReceiverMessage::Finished => self.is_finished = true,
            ReceiverMessage::Cancel(reason) => return Err(TransferError::Cancelled(reason)),
            ReceiverMessage::Hello { .. } | ReceiverMessage::Accept { .. } => {
                return Err(TransferError::Protocol("it answers the offer twice"));
            }
        }
        Ok(())
    }

    fn take_named(&mut self, number: u64) -> Result<OpenFile, TransferError> {
        let file = self.named.pop_front().filter(|file| file.number == number);
        file.ok_or(TransferError::Protocol("it asks for a file that was not named"))
    }

    fn send_file(&mut self, needed: NeededFile) -> Result<(), TransferError> {
        let number = needed.file.number;
        self.progress.set_name(&self.shown(&needed.file.path));
        match self.send_content(&needed) {
            Ok(root) => {
                self.file_hash = Some(root);
                self.progress.add_file();
                self.send(&SenderMessage::FileEnd(root))
            }
            Err(FileError::Transfer(error)) => Err(error),
            Err(FileError::Problem(problem)) => {
                let path = self.shown(&needed.file.path);
                self.progress.add_problem(&path, problem);
                self.send(&SenderMessage::FileFailed { file: number, problem })
            }
        }
    }

    fn send_content(&mut self, needed: &NeededFile) -> Result<Hash, FileError> {
        let OpenFile { number, path, state } = &needed.file;
        let mut content = Content::open(path, *state, self.source.follow)?;
        let mut tree = TreeHasher::new(state.size);
        let is_large = state.size > GROUP;
        let mut journal = None;
        let mut group = 0;
        if is_large {
            (journal, group) = self.resume(needed, &mut content, &mut tree)?;
            self.progress.add_resumed(group * GROUP.min(state.size));
        }
        self.send(&SenderMessage::Start { file: *number, group })?;
        while tree.position() < state.size {
            self.wait_for_window()?;
            let (framed, before) = (content.framed, tree.position());
            let result = content.read_group(&mut tree, &mut self.block);
            self.window.add(content.framed - framed);
            self.progress.add_transferred(content.framed - framed);
            self.progress.add_hashed(tree.position() - before);
            self.progress.add_done(tree.position() - before);
            result?;
            if let Some(value) = tree.finish_group() {
                // Recorded before it is sent, so that the receiver never knows more of the file than this journal.
                let recorded =
                    journal.as_mut().map_or(Ok(()), |journal: &mut Journal| journal.append(&value));
                recorded.map_err(|source| self.state_error(source))?;
                SenderMessage::Group(value).encode(&mut self.block);
            }
            if self.block.len() >= BLOCK {
                self.flush()?;
            }
        }
        content.check_unchanged()?;
        tree.root().ok_or(FileError::Problem(EntryProblem::Changed))
    }

    fn state_error(&self, source: io::Error) -> TransferError {
        TransferError::State { path: self.source.journal.clone(), source }
    }

    /// Handles the answers that are there, and waits for more while too much is unverified.
    fn wait_for_window(&mut self) -> Result<(), TransferError> {
        while let Ok(answer) = self.answers.try_recv() {
            self.handle_answer(answer)?;
        }
        while !self.window.is_open() {
            self.wait_for_answer()?;
        }
        Ok(())
    }

    /// Opens the journal of a large file, and lets the hash begin behind the groups that the receiver has, if they are those of this file. What the
    /// journal does not know is hashed again.
    fn resume(
        &mut self,
        needed: &NeededFile,
        content: &mut Content,
        tree: &mut TreeHasher,
    ) -> Result<(Option<Journal>, u64), FileError> {
        let key = needed.file.state.key(&needed.file.path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.source.journal).map_err(|source| self.state_error(source))?;
        let spare = file.try_clone().map_err(|source| self.state_error(source))?;
        let recorded = Journal::open(file, &key);
        let journal = match recorded {
            Some(recorded) if needed.group > 0 => Ok(recorded.journal),
            _ => Journal::create(spare, &key),
        };
        let mut journal = journal.map_err(|source| self.state_error(source))?;
        while journal.records() < needed.group {
            let value = self.hash_again(content, journal.records())?;
            journal.append(&value).map_err(|source| self.state_error(source))?;
        }
        let prefix = journal.prefix(needed.group).map_err(|source| self.state_error(source))?;
        let group = if prefix == needed.prefix { needed.group } else { 0 };
        journal.truncate(group).map_err(|source| self.state_error(source))?;
        let read = journal.read(group, |value| tree.skip_group(*value));
        read.map_err(|source| self.state_error(source))?;
        content.position = tree.position();
        Ok((Some(journal), group))
    }

    fn hash_again(&mut self, content: &mut Content, group: u64) -> Result<Hash, FileError> {
        let mut block = Vec::new();
        let value = content.hash_group(group, &mut block)?;
        self.progress.add_hashed_again(block.len() as u64);
        Ok(value)
    }
}

/// A file that is being read.
struct Content {
    file: File,
    state: FileState,
    position: u64,
    /// Bytes that frames have announced.
    framed: u64,
    /// It has fewer blocks than its size needs.
    is_sparse: bool,
}

impl Content {
    fn open(path: &Path, state: FileState, follow: bool) -> Result<Self, FileError> {
        // A pipe in place of the file must not block; a link must not lead elsewhere.
        let no_follow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = (OFlags::NONBLOCK | no_follow).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
        let file = file.map_err(|error| problem(&error))?;
        let data = file.metadata().map_err(|error| problem(&error))?;
        let is_sparse = data.blocks().saturating_mul(512) < data.len();
        let content = Self { file, state, position: 0, framed: 0, is_sparse };
        content.check_unchanged()?;
        Ok(content)
    }

    fn check_unchanged(&self) -> Result<(), FileError> {
        let data = self.file.metadata().map_err(|error| problem(&error))?;
        match FileState::of(&data) == self.state {
            true => Ok(()),
            false => Err(FileError::Problem(EntryProblem::Changed)),
        }
    }

    /// Appends the content up to the end of the group as frames. After an error the frames are complete, but not the group.
    fn read_group(&mut self, tree: &mut TreeHasher, block: &mut Vec<u8>) -> Result<(), FileError> {
        let end = (self.position + GROUP).min(self.state.size);
        while self.position < end {
            let (len, is_hole) = self.extent(end - self.position);
            self.framed += len;
            if is_hole {
                SenderMessage::Hole(len).encode(block);
                if !tree.update_zeros(len) {
                    return Err(FileError::Problem(EntryProblem::Changed));
                }
                self.position += len;
                continue;
            }
            let wanted = usize::try_from(len).unwrap_or(0);
            data_header(block, wanted);
            let begin = block.len();
            let read = self.read(len, block);
            let is_complete = block.len() - begin == wanted;
            // What is missing has to be sent all the same.
            block.resize(begin + wanted, 0);
            read.map_err(|error| problem(&error))?;
            if !is_complete || !tree.update(&block[begin..]) {
                return Err(FileError::Problem(EntryProblem::Changed));
            }
        }
        Ok(())
    }

    fn read(&mut self, len: u64, block: &mut Vec<u8>) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.position))?;
        let read = self.file.by_ref().take(len).read_to_end(block)?;
        self.position += read as u64;
        Ok(())
    }

    /// Returns how many of the next bytes, at most `len`, are content or a hole.
    fn extent(&self, len: u64) -> (u64, bool) {
        if !self.is_sparse {
            return (len, false);
        }
        let data = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(self.position)) {
            Ok(data) => data,
            // There is no content behind the position.
            Err(Errno::NXIO) => return (len, true),
            Err(_) => return (len, false),
        };
        if data > self.position {
            return (len.min(data - self.position), true);
        }
        let hole = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(self.position));
        (hole.map_or(len, |hole| len.min(hole.saturating_sub(self.position)).max(1)), false)
    }

    /// Reads a group to hash it again.
    fn hash_group(&mut self, group: u64, block: &mut Vec<u8>) -> Result<Hash, FileError> {
        let mut tree = TreeHasher::new(self.state.size);
        self.position = group * GROUP;
        tree.seek_group(group);
        let end = (self.position + GROUP).min(self.state.size);
        self.read(end - self.position, block).map_err(|error| problem(&error))?;
        let is_complete = tree.update(block);
        tree.finish_group().filter(|_| is_complete).ok_or(FileError::Problem(EntryProblem::Changed))
    }
}

/// Returns the reason that ends a transfer on the receiver's side, if this message is one.
pub(super) fn cancelled(message: &SenderMessage) -> Option<CancelReason> {
    if let SenderMessage::Cancel(reason) = message { Some(*reason) } else { None }
}

/// Returns the prefix hash of no groups.
pub(super) fn empty_prefix() -> Hash {
    hash_of_values(&[])
}
