//! The messages of a file transfer: `docs/wire/files.md`.
//!
//! Each side sends frames over its half of one stream: kind (1 byte) · length (4, big-endian) · payload.

use super::tree::Hash;
use std::marker::PhantomData;

/// Bytes before a payload.
const HEADER: usize = 5;
/// Longest payload of an offer; all others are shorter.
const MAX_OFFER: usize = 4 << 20;
/// Longest payload of file content.
pub(super) const MAX_DATA: usize = 1 << 20;
/// Longest name of an entry, in bytes: more than any file system allows.
pub(super) const MAX_NAME: usize = 1024;
/// Longest target of a symbolic link.
pub(super) const MAX_TARGET: usize = 4096;
/// Longest text of an offer.
const MAX_TEXT: usize = 2048;
/// Most files and folders that a sender names.
pub(super) const MAX_ROOTS: usize = 10_000;

/// Length of the number of a transfer or a receiver.
pub(super) const ID_LEN: usize = 16;
/// The random number of a transfer, or of its receiver.
pub(crate) type Id = [u8; ID_LEN];

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a message of an unknown kind")]
    Kind,
    #[error("a message that is too long")]
    TooLong,
    #[error("a message with a wrong content")]
    Content,
}

/// Declares an enum whose variants are sent as one byte, the first as 1.
macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn to_byte(self) -> u8 {
                Self::ALL.iter().position(|other| *other == self).map_or(0, |at| at as u8 + 1)
            }

            fn from_byte(byte: u8) -> Result<Self, WireError> {
                let at = usize::from(byte).checked_sub(1).ok_or(WireError::Content)?;
                Self::ALL.get(at).copied().ok_or(WireError::Content)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

byte_enum! {
    /// Why a file, folder or link is not transferred.
    EntryProblem {
        /// A device, a pipe or a socket.
        Special = "not a file, folder or link",
        /// A link that points out of what is sent.
        LinkOutside = "a link that points outside; --follow sends what it points to",
        /// More folders inside each other than are sent.
        TooDeep = "too many folders inside each other",
        /// The sender cannot read it.
        Unreadable = "cannot be read",
        /// It changed while it was read.
        Changed = "changed while it was read",
        /// It is gone.
        Vanished = "deleted before it was read",
        /// The name is refused.
        Name = "a name that is not accepted",
        /// Something else has its name.
        Exists = "something else has this name",
        /// The receiver cannot create it.
        NotCreated = "cannot be created",
    }
}

impl EntryProblem {
    /// Returns whether something is missing that should have been transferred; otherwise it is never transferred.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(self, Self::Special | Self::LinkOutside)
    }
}

byte_enum! {
    /// Why a side ends a transfer.
    CancelReason {
        /// Its user refused the offer.
        Declined = "the offer was declined",
        /// Another receiver has the transfer.
        Busy = "another receiver has this transfer",
        /// The transfer that the receiver goes on with is not the one that is sent.
        OtherTransfer = "another transfer than the one that was begun",
        /// The receiver's disk is full.
        DiskFull = "the receiver's disk is full",
        /// The receiver cannot write.
        WriteFailed = "the receiver cannot write",
        /// The content does not have the hash that was sent.
        WrongHash = "content that does not match its hash",
        /// The other side broke the protocol.
        Protocol = "a message that does not fit",
        /// A name exists already, and nobody was there to ask.
        Exists = "files with these names exist",
    }
}

/// A time of modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mtime {
    /// Seconds since 1970.
    pub(crate) secs: i64,
    /// Nanoseconds, less than 1 000 000 000.
    pub(crate) nanos: u32,
}

/// A file or folder that the sender names, as the receiver is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfferedRoot {
    pub(crate) is_folder: bool,
    /// The name, from the sender.
    pub(crate) name: Vec<u8>,
}

/// What a sender offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Offer {
    pub(crate) transfer: Id,
    /// Reaches the sender again after a lost connection.
    pub(crate) ticket: String,
    /// The name of the sender's machine.
    pub(crate) sender: String,
    /// Number of files, and their bytes, as far as they were counted.
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// The sender has counted everything.
    pub(crate) is_counted: bool,
    pub(crate) roots: Vec<OfferedRoot>,
}

/// The kind of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File { size: u64 },
    Folder,
    Link { target: Vec<u8> },
}

/// One line of the manifest. Entries after a folder are in it until [`SenderMessage::Leave`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    /// One component, from the sender.
    pub(crate) name: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) mtime: Mtime,
}

/// What a sender sends, apart from content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SenderMessage {
    Offer(Offer),
    /// The next entry is this one of [`Offer::roots`].
    Root(u32),
    Entry(Entry),
    /// The end of a folder.
    Leave,
    /// The sender leaves something out.
    Skipped {
        problem: EntryProblem,
        /// The path, for people.
        path: Vec<u8>,
    },
    /// The content of a file follows, from a group on.
    Start {
        file: u64,
        group: u64,
    },
    /// So many bytes of the content are zero, and a hole in the sender's file.
    Hole(u64),
    /// The end of a group, with its chaining value.
    Group(Hash),
    /// The end of a file, with the hash of the whole.
    FileEnd(Hash),
    /// The content of a file cannot be sent.
    FileFailed {
        file: u64,
        problem: EntryProblem,
    },
    /// The end of the manifest, after the last content; with the number of files and the hash of the manifest.
    End {
        files: u64,
        manifest: Hash,
    },
    Cancel(CancelReason),
}

/// What a receiver sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReceiverMessage {
    /// The first message, with the transfer that the receiver goes on with.
    Hello {
        receiver: Id,
        transfer: Option<Id>,
    },
    /// The offer is accepted but for these roots.
    Accept {
        skipped: Vec<u32>,
    },
    /// Asks for the content of a file from a group on. `prefix` is the hash of the chaining values before.
    Need {
        file: u64,
        group: u64,
        prefix: Hash,
    },
    /// The receiver has this file.
    Have {
        file: u64,
    },
    /// The receiver does not want this file.
    Refused {
        file: u64,
        problem: EntryProblem,
    },
    /// Bytes of content that were verified and written in this connection.
    Verified(u64),
    /// Everything was received.
    Finished,
    Cancel(CancelReason),
}

/// The frames of one direction.
pub(crate) trait Message: Sized {
    /// The kind of frames with content, if there are any.
    const DATA: Option<u8>;

    /// Returns the longest payload of a kind.
    fn limit(kind: u8) -> Option<usize>;

    /// Parses a payload.
    ///
    /// # Errors
    /// [`WireError`] if it is not a valid one.
    fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError>;
}

/// Appends a frame whose payload `write` appends.
fn frame(out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[kind, 0, 0, 0, 0]);
    let start = out.len();
    write(out);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start - 4..start].copy_from_slice(&len.to_be_bytes());
}

/// Appends the header of content of this length, which follows.
pub(super) fn data_header(out: &mut Vec<u8>, len: usize) {
    out.push(7);
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Reads the parts of a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(WireError::Content)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.bytes(N)?.try_into().map_err(|_| WireError::Content)
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Content),
        }
    }

    fn text(&mut self, max: usize) -> Result<&'a [u8], WireError> {
        let len = usize::from(self.u16()?);
        if len > max { Err(WireError::TooLong) } else { self.bytes(len) }
    }

    fn utf8(&mut self) -> Result<String, WireError> {
        String::from_utf8(self.text(MAX_TEXT)?.to_vec()).map_err(|_| WireError::Content)
    }

    /// Checks that nothing is left.
    fn end<T>(self, value: T) -> Result<T, WireError> {
        if self.0.is_empty() { Ok(value) } else { Err(WireError::Content) }
    }
}

impl Offer {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.transfer);
        text(out, self.ticket.as_bytes());
        text(out, self.sender.as_bytes());
        out.extend_from_slice(&self.files.to_be_bytes());
        out.extend_from_slice(&self.bytes.to_be_bytes());
        out.push(self.is_counted.into());
        out.extend_from_slice(&u32::try_from(self.roots.len()).unwrap_or(u32::MAX).to_be_bytes());
        for root in &self.roots {
            out.push(root.is_folder.into());
            text(out, &root.name);
        }
    }

    fn read(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(payload);
        let mut offer = Self {
            transfer: reader.array()?,
            ticket: reader.utf8()?,
            sender: reader.utf8()?,
            files: reader.u64()?,
            bytes: reader.u64()?,
            is_counted: reader.flag()?,
            roots: Vec::new(),
        };
        let roots = reader.u32()? as usize;
        if roots == 0 || roots > MAX_ROOTS {
            return Err(WireError::Content);
        }
        for _ in 0..roots {
            let (is_folder, name) = (reader.flag()?, reader.text(MAX_NAME)?.to_vec());
            offer.roots.push(OfferedRoot { is_folder, name });
        }
        reader.end(offer)
    }
}

impl Entry {
    /// Appends the payload, over which the hash of the manifest is computed.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        text(out, &self.name);
        out.extend_from_slice(&self.mode.to_be_bytes());
        out.extend_from_slice(&self.mtime.secs.to_be_bytes());
        out.extend_from_slice(&self.mtime.nanos.to_be_bytes());
        match &self.kind {
            EntryKind::File { size } => {
                out.push(1);
                out.extend_from_slice(&size.to_be_bytes());
            }
            EntryKind::Folder => out.push(2),
            EntryKind::Link { target } => {
                out.push(3);
                text(out, target);
            }
        }
    }

    fn read(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(payload);
        let (name, mode) = (reader.text(MAX_NAME)?.to_vec(), reader.u32()?);
        let mtime = Mtime { secs: i64::from_be_bytes(reader.array()?), nanos: reader.u32()? };
        if mtime.nanos >= 1_000_000_000 {
            return Err(WireError::Content);
        }
        let kind = match reader.byte()? {
            1 => EntryKind::File { size: reader.u64()? },
            2 => EntryKind::Folder,
            3 => EntryKind::Link { target: reader.text(MAX_TARGET)?.to_vec() },
            _ => return Err(WireError::Content),
        };
        reader.end(Self { kind, name, mode, mtime })
    }
}

fn pair(out: &mut Vec<u8>, numbers: [u64; 2]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
}

impl SenderMessage {
    /// Appends the frame.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Offer(offer) => frame(out, 1, |out| offer.write(out)),
            Self::Root(root) => frame(out, 2, |out| out.extend_from_slice(&root.to_be_bytes())),
            Self::Entry(entry) => frame(out, 3, |out| entry.write(out)),
            Self::Leave => frame(out, 4, |_| {}),
            Self::Skipped { problem, path } => frame(out, 5, |out| {
                out.push(problem.to_byte());
                text(out, &path[..path.len().min(MAX_TARGET)]);
            }),
            Self::Start { file, group } => frame(out, 6, |out| pair(out, [*file, *group])),
            Self::Hole(len) => frame(out, 8, |out| out.extend_from_slice(&len.to_be_bytes())),
            Self::Group(hash) => frame(out, 9, |out| out.extend_from_slice(hash)),
            Self::FileEnd(hash) => frame(out, 10, |out| out.extend_from_slice(hash)),
            Self::FileFailed { file, problem } => frame(out, 11, |out| {
                out.extend_from_slice(&file.to_be_bytes());
                out.push(problem.to_byte());
            }),
            Self::End { files, manifest } => frame(out, 12, |out| {
                out.extend_from_slice(&files.to_be_bytes());
                out.extend_from_slice(manifest);
            }),
            Self::Cancel(reason) => frame(out, 13, |out| out.push(reason.to_byte())),
        }
    }
}

impl Message for SenderMessage {
    const DATA: Option<u8> = Some(7);

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            1 => Some(MAX_OFFER),
            3 | 5 => Some(MAX_NAME + MAX_TARGET + 64),
            7 => Some(MAX_DATA),
            2 | 4 | 6 | 8..=13 => Some(64),
            _ => None,
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(payload);
        let message = match kind {
            1 => return Offer::read(payload).map(Self::Offer),
            2 => Self::Root(reader.u32()?),
            3 => return Entry::read(payload).map(Self::Entry),
            4 => Self::Leave,
            5 => Self::Skipped {
                problem: EntryProblem::from_byte(reader.byte()?)?,
                path: reader.text(MAX_TARGET)?.to_vec(),
            },
            6 => Self::Start { file: reader.u64()?, group: reader.u64()? },
            8 => Self::Hole(reader.u64()?),
            9 => Self::Group(reader.array()?),
            10 => Self::FileEnd(reader.array()?),
            11 => Self::FileFailed { file: reader.u64()?, problem: EntryProblem::from_byte(reader.byte()?)? },
            12 => Self::End { files: reader.u64()?, manifest: reader.array()? },
            13 => Self::Cancel(CancelReason::from_byte(reader.byte()?)?),
            _ => return Err(WireError::Kind),
        };
        reader.end(message)
    }
}

impl ReceiverMessage {
    /// Appends the frame.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { receiver, transfer } => frame(out, 33, |out| {
                out.extend_from_slice(receiver);
                out.push(transfer.is_some().into());
                out.extend_from_slice(&transfer.unwrap_or_default());
            }),
            Self::Accept { skipped } => frame(out, 34, |out| {
                skipped.iter().for_each(|root| out.extend_from_slice(&root.to_be_bytes()));
            }),
            Self::Need { file, group, prefix } => frame(out, 35, |out| {
                pair(out, [*file, *group]);
                out.extend_from_slice(prefix);
            }),
            Self::Have { file } => frame(out, 36, |out| out.extend_from_slice(&file.to_be_bytes())),
            Self::Refused { file, problem } => frame(out, 37, |out| {
                out.extend_from_slice(&file.to_be_bytes());
                out.push(problem.to_byte());
            }),
            Self::Verified(bytes) => frame(out, 38, |out| out.extend_from_slice(&bytes.to_be_bytes())),
            Self::Finished => frame(out, 39, |_| {}),
            Self::Cancel(reason) => frame(out, 40, |out| out.push(reason.to_byte())),
        }
    }
}

impl Message for ReceiverMessage {
    const DATA: Option<u8> = None;

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            34 => Some(4 * MAX_ROOTS),
            33 | 35..=40 => Some(64),
            _ => None,
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(payload);
        let message = match kind {
            33 => {
                let (receiver, is_resumed) = (reader.array()?, reader.flag()?);
                let transfer = Some(reader.array()?).filter(|_| is_resumed);
                Self::Hello { receiver, transfer }
            }
            34 => {
                let mut skipped = Vec::new();
                while !reader.0.is_empty() {
                    skipped.push(reader.u32()?);
                }
                Self::Accept { skipped }
            }
            35 => Self::Need { file: reader.u64()?, group: reader.u64()?, prefix: reader.array()? },
            36 => Self::Have { file: reader.u64()? },
            37 => Self::Refused { file: reader.u64()?, problem: EntryProblem::from_byte(reader.byte()?)? },
            38 => Self::Verified(reader.u64()?),
            39 => Self::Finished,
            40 => Self::Cancel(CancelReason::from_byte(reader.byte()?)?),
            _ => return Err(WireError::Kind),
        };
        reader.end(message)
    }
}

/// What a [`Decoder`] finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a, M> {
    Message(M),
    /// Content, in pieces of any length.
    Data(&'a [u8]),
}

/// Splits a stream of bytes into messages. Content is not kept; the rest of a message that has not arrived is, up to its limit.
#[derive(Debug)]
pub(crate) struct Decoder<M> {
    partial: Vec<u8>,
    data_left: usize,
    messages: PhantomData<fn() -> M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self { partial: Vec::new(), data_left: 0, messages: PhantomData }
    }
}

/// Returns kind and length of a frame.
fn parse_header<M: Message>(bytes: &[u8]) -> Result<Option<(u8, usize)>, WireError> {
    let Some([kind, a, b, c, d]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let limit = M::limit(*kind).ok_or(WireError::Kind)?;
    if len > limit { Err(WireError::TooLong) } else { Ok(Some((*kind, len))) }
}

impl<M: Message> Decoder<M> {
    /// Takes the next message, or content, from the front of `input`; `None` when more input is needed.
    ///
    /// # Errors
    /// [`WireError`] if the input is not valid; the stream cannot be read further then.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a, M>>, WireError> {
        loop {
            if self.data_left > 0 {
                if input.is_empty() {
                    return Ok(None);
                }
                let (data, rest) = input.split_at(self.data_left.min(input.len()));
                (*input, self.data_left) = (rest, self.data_left - data.len());
                return Ok(Some(Piece::Data(data)));
            }
            if self.partial.is_empty()
                && let Some((kind, len)) = parse_header::<M>(input)?
                && Some(kind) != M::DATA
                && let Some(payload) = input.get(HEADER..HEADER + len)
            {
                *input = &input[HEADER + len..];
                return M::decode(kind, payload).map(|message| Some(Piece::Message(message)));
            }
            if !self.fill(input, HEADER) {
                return Ok(None);
            }
            let Some((kind, len)) = parse_header::<M>(&self.partial)? else { return Ok(None) };
            if Some(kind) == M::DATA {
                self.partial.clear();
                self.data_left = len;
                continue;
            }
            if !self.fill(input, HEADER + len) {
                return Ok(None);
            }
            let message = M::decode(kind, &self.partial[HEADER..])?;
            self.partial.clear();
            return Ok(Some(Piece::Message(message)));
        }
    }

    /// Moves input to the partial frame until that has `len` bytes; returns whether it has.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        let missing = len.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
        self.partial.len() >= len
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
