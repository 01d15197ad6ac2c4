//! Transfers between two folders over a stream in memory, which can be cut, and with sides that break the rules.

use super::plan::{ExistingPolicy, RootPlan, WINDOW, plan_roots};
use super::tree::GROUP;
use super::wire::{
    CancelReason, Entry, EntryKind, EntryProblem, Mtime, OfferedRoot, ReceiverMessage, SenderMessage,
    data_header,
};
use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

const MIB: usize = GROUP as usize;
const TRANSFER: Id = [7; 16];
const RECEIVER: Id = [8; 16];

/// Folders of both sides.
struct World {
    folder: TempDir,
    policy: Option<ExistingPolicy>,
    is_resumed: bool,
    follow: bool,
}

/// What both sides say at the end.
struct Ended {
    sent: Result<Summary, TransferError>,
    received: Result<Summary, TransferError>,
    sender: Arc<Progress>,
    receiver: Arc<Progress>,
}

fn content(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at / 3 + seed * 7) % 251) as u8 ^ (at / 65_536) as u8).collect()
}

impl World {
    fn new() -> Self {
        let world =
            Self { folder: tempfile::tempdir().unwrap(), policy: None, is_resumed: false, follow: false };
        for name in ["from", "to"] {
            fs::create_dir(world.folder.path().join(name)).unwrap();
        }
        world
    }

    fn from(&self, path: &str) -> PathBuf {
        self.folder.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.folder.path().join("to").join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.from(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn source(&self, names: &[&str]) -> Source {
        let roots = names.iter().map(|name| Root::new(&self.from(name)).unwrap()).collect();
        Source {
            roots,
            follow: self.follow,
            journal: self.folder.path().join("journal"),
            busy: Arc::default(),
        }
    }

    fn plans(&self, roots: &[OfferedRoot]) -> Vec<RootPlan> {
        let exists = |name: &str| !self.is_resumed && self.to(name).symlink_metadata().is_ok();
        plan_roots(roots, self.policy, exists).unwrap()
    }

    fn destination(&self, roots: &[OfferedRoot]) -> Destination {
        Destination {
            folder: self.to(""),
            transfer: TRANSFER,
            plans: self.plans(roots),
            is_resumed: self.is_resumed,
            busy: Arc::default(),
        }
    }

    /// Transfers over a stream that breaks after so many bytes from the sender.
    async fn transfer(&self, names: &[&str], cut_after: Option<u64>) -> Ended {
        let (near, middle) = duplex(1 << 20);
        let (far, other) = duplex(1 << 20);
        let carry = carry(middle, other, cut_after);
        let (sender, receiver) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
        let (sent, received, ()) = tokio::join!(
            self.send(near, names, Arc::clone(&sender)),
            self.receive(far, Arc::clone(&receiver)),
            carry
        );
        Ended { sent, received, sender, receiver }
    }

    async fn send(
        &self,
        stream: DuplexStream,
        names: &[&str],
        progress: Arc<Progress>,
    ) -> Result<Summary, TransferError> {
        let source = self.source(names);
        let (reader, writer) = split(stream);
        let visitor = Visitor::greet(writer, reader).await?;
        let roots = source.roots.iter();
        let roots =
            roots.map(|root| OfferedRoot { is_folder: root.is_folder, name: root.name.clone() }).collect();
        let offer = Offer { transfer: TRANSFER, roots, ..Offer::default() };
        visitor.offer(offer).await?.run(source, progress).await
    }

    async fn receive(&self, stream: DuplexStream, progress: Arc<Progress>) -> Result<Summary, TransferError> {
        let (reader, writer) = split(stream);
        let transfer = Some(TRANSFER).filter(|_| self.is_resumed);
        let incoming = receive_offer((writer, reader), RECEIVER, transfer).await?;
        let destination = self.destination(&incoming.offer.roots);
        incoming.accept(destination, progress).await
    }

    /// Transfers to the end; both sides must agree.
    async fn succeed(&self, names: &[&str]) -> (Summary, Figures, Figures) {
        let ended = self.transfer(names, None).await;
        let (sent, received) = (ended.sent.unwrap(), ended.received.unwrap());
        assert_eq!(sent, received);
        assert_eq!(self.left_over(), Vec::<PathBuf>::new());
        (sent, ended.sender.figures(), ended.receiver.figures())
    }

    /// Partial files and journals.
    fn left_over(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.to("")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().contains(".part")).collect()
    }
}

/// Carries both directions; after so many bytes from the first stream both break.
async fn carry(first: DuplexStream, second: DuplexStream, cut_after: Option<u64>) {
    let ((mut from_first, mut to_first), (mut from_second, mut to_second)) = (split(first), split(second));
    let forward = async {
        let mut limited = (&mut from_first).take(cut_after.unwrap_or(u64::MAX));
        let _ = tokio::io::copy(&mut limited, &mut to_second).await;
        if cut_after.is_none() {
            let _ = to_second.shutdown().await;
            std::future::pending::<()>().await;
        }
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_second, &mut to_first).await;
        let _ = to_first.shutdown().await;
    };
    tokio::select! { () = forward => {}, () = back => {} }
}

fn stamp_of(path: &Path) -> (u32, i64, i64) {
    let data = fs::symlink_metadata(path).unwrap();
    (data.mode() & 0o7777, data.mtime(), data.mtime_nsec())
}

fn holes(path: &Path) -> u64 {
    let data = fs::metadata(path).unwrap();
    data.len().saturating_sub(data.blocks() * 512)
}

#[tokio::test]
async fn files_and_folders_arrive_with_modes_times_and_links() {
    let world = World::new();
    world.write("tree/a.txt", b"hello");
    world.write("tree/empty", b"");
    world.write("tree/sub/deep/b.bin", &content(3 * MIB + 17, 1));
    world.write("single", &content(MIB, 2));
    fs::create_dir_all(world.from("tree/nothing")).unwrap();
    symlink("sub/deep/b.bin", world.from("tree/link")).unwrap();
    symlink("/etc/passwd", world.from("tree/absolute")).unwrap();
    for (path, mode) in [("tree/a.txt", 0o4751), ("tree/sub", 0o555), ("tree/empty", 0o600)] {
        fs::set_permissions(world.from(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let (summary, sent, received) = world.succeed(&["tree", "single"]).await;
    assert_eq!((summary.files, summary.is_file_hash), (4, false));
    assert_eq!((sent.files, received.files, sent.problems, received.problems), (4, 4, 1, 1));
    assert_eq!((sent.hashed_again, received.hashed_again), (0, 0));
    let total = 5 + 3 * MIB as u64 + 17 + MIB as u64;
    assert_eq!((sent.done, received.done, sent.hashed), (total, total, total));
    for path in ["tree/a.txt", "tree/empty", "tree/sub/deep/b.bin", "single"] {
        assert_eq!(fs::read(world.to(path)).unwrap(), fs::read(world.from(path)).unwrap(), "{path}");
    }
    for path in ["tree/a.txt", "tree/empty", "tree/sub", "tree/sub/deep", "tree/nothing", "tree", "single"] {
        let (mode, secs, nanos) = stamp_of(&world.from(path));
        assert_eq!(stamp_of(&world.to(path)), (mode & 0o777, secs, nanos), "{path}");
    }
    assert_eq!(fs::read_link(world.to("tree/link")).unwrap(), Path::new("sub/deep/b.bin"));
    assert!(!world.to("tree/absolute").exists());
}

#[tokio::test]
async fn one_file_has_the_same_blake3_hash_on_both_sides() {
    let world = World::new();
    for (name, len) in [("empty", 0), ("small", 1000), ("large", 2 * MIB + 1)] {
        let bytes = content(len, 3);
        world.write(name, &bytes);
        let (summary, ..) = world.succeed(&[name]).await;
        assert_eq!((summary.hash, summary.is_file_hash), (*blake3::hash(&bytes).as_bytes(), true), "{name}");
    }
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_was_cut_without_hashing_again() {
    let mut world = World::new();
    let bytes = content(40 * MIB + 5, 4);
    world.write("big", &bytes);
    let mut kept = 0;
    for cut in [5 * MIB as u64 + 100, 7 * MIB as u64, 300, 10 * MIB as u64] {
        let ended = world.transfer(&["big"], Some(cut)).await;
        assert!(matches!(ended.sent, Err(TransferError::Lost(_))), "{:?}", ended.sent);
        assert!(matches!(ended.received, Err(TransferError::Lost(_))), "{:?}", ended.received);
        let (sender, receiver) = (ended.sender.figures(), ended.receiver.figures());
        assert_eq!((sender.hashed_again, receiver.hashed_again), (0, 0));
        assert!(receiver.resumed >= kept, "{} {kept}", receiver.resumed);
        assert!(sender.transferred <= cut + WINDOW + 2 * GROUP, "{}", sender.transferred);
        kept = receiver.resumed + receiver.transferred / GROUP * GROUP;
        world.is_resumed = true;
    }
    let (summary, sent, received) = world.succeed(&["big"]).await;
    assert_eq!(summary.hash, *blake3::hash(&bytes).as_bytes());
    assert!(received.resumed >= 18 * GROUP && sent.resumed == received.resumed, "{received:?}");
    let rest = bytes.len() as u64 - received.resumed;
    assert_eq!((sent.hashed, received.hashed), (rest, rest), "only what was missing is hashed");
    assert_eq!(fs::read(world.to("big")).unwrap(), bytes);
}

#[tokio::test]
async fn a_sender_that_has_lost_its_journal_hashes_the_beginning_and_sends_the_rest() {
    let mut world = World::new();
    let bytes = content(12 * MIB, 5);
    world.write("big", &bytes);
    world.transfer(&["big"], Some(8 * MIB as u64)).await;
    fs::remove_file(world.folder.path().join("journal")).unwrap();
    world.is_resumed = true;
    let (_, sent, received) = world.succeed(&["big"]).await;
    assert!(received.resumed >= 6 * GROUP && sent.hashed_again == received.resumed, "{sent:?} {received:?}");
    assert_eq!(fs::read(world.to("big")).unwrap(), bytes);
}

#[tokio::test]
async fn a_file_that_was_changed_between_two_connections_is_sent_from_its_start() {
    let mut world = World::new();
    world.write("big", &content(6 * MIB, 6));
    world.transfer(&["big"], Some(4 * MIB as u64)).await;
    let changed = content(6 * MIB, 7);
    world.write("big", &changed);
    world.is_resumed = true;
    let (summary, _, received) = world.succeed(&["big"]).await;
    assert_eq!((summary.hash, received.resumed), (*blake3::hash(&changed).as_bytes(), 0));
    assert_eq!(fs::read(world.to("big")).unwrap(), changed);
}

#[tokio::test]
async fn files_that_have_arrived_are_not_sent_again() {
    let mut world = World::new();
    for number in 0..300 {
        world.write(&format!("tree/{}/{number}", number % 7), &content(4000, number));
    }
    let ended = world.transfer(&["tree"], Some(700_000)).await;
    let first = ended.receiver.figures().files;
    assert!(ended.received.is_err() && (1..300).contains(&first), "{first}");
    world.is_resumed = true;
    let (summary, sent, received) = world.succeed(&["tree"]).await;
    assert_eq!((summary.files, received.files), (300, 300));
    assert_eq!((received.resumed, sent.transferred), (first * 4000, (300 - first) * 4000));
    for number in 0..300 {
        let path = format!("tree/{}/{number}", number % 7);
        assert_eq!(fs::read(world.to(&path)).unwrap(), content(4000, number));
    }
}

#[tokio::test]
async fn a_sparse_file_stays_sparse_and_equal() {
    let world = World::new();
    let file = fs::File::create(world.from("sparse")).unwrap();
    file.set_len(20 * GROUP + 3).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 7 * GROUP + 100).unwrap();
    drop(file);
    if holes(&world.from("sparse")) < 10 * GROUP {
        return; // this file system has no holes
    }
    let (_, sent, _) = world.succeed(&["sparse"]).await;
    assert_eq!(sent.done, 20 * GROUP + 3);
    assert_eq!(fs::read(world.to("sparse")).unwrap(), fs::read(world.from("sparse")).unwrap());
    assert!(holes(&world.to("sparse")) > 10 * GROUP, "{}", holes(&world.to("sparse")));
}

#[tokio::test]
async fn nothing_is_overwritten_unasked() {
    let mut world = World::new();
    world.write("name.txt", b"new");
    world.write("tree/file", b"new");
    fs::write(world.to("name.txt"), b"old").unwrap();
    fs::create_dir(world.to("tree")).unwrap();
    fs::write(world.to("tree/file"), b"old").unwrap();
    world.policy = Some(ExistingPolicy::KeepBoth);
    world.succeed(&["name.txt", "tree"]).await;
    let read = |path: &str| fs::read_to_string(world.to(path)).unwrap();
    assert_eq!(
        ["name.txt", "name (2).txt", "tree/file", "tree (2)/file"].map(read),
        ["old", "new", "old", "new"]
    );
    world.policy = Some(ExistingPolicy::Skip);
    let (summary, ..) = world.succeed(&["name.txt", "tree"]).await;
    assert_eq!(summary.files, 0);
    world.policy = Some(ExistingPolicy::Overwrite);
    world.succeed(&["name.txt", "tree"]).await;
    assert_eq!(
        ["name.txt", "tree/file"].map(|path| fs::read_to_string(world.to(path)).unwrap()),
        ["new", "new"]
    );
}

/// A sender that sends these messages after its offer; returns what the receiver makes of them.
async fn receive_from(
    world: &World,
    roots: &[(&[u8], bool)],
    messages: impl FnOnce(&mut Vec<u8>),
) -> (Result<Summary, TransferError>, Arc<Progress>, Vec<ReceiverMessage>) {
    let (near, far) = duplex(1 << 20);
    let progress = Arc::new(Progress::default());
    let roots: Vec<_> = roots
        .iter()
        .map(|(name, is_folder)| OfferedRoot { is_folder: *is_folder, name: name.to_vec() })
        .collect();
    let mut bytes = Vec::new();
    SenderMessage::Offer(Offer { transfer: TRANSFER, roots, ..Offer::default() }).encode(&mut bytes);
    messages(&mut bytes);
    let sender = async {
        let (mut reader, mut writer): (ReadHalf<_>, WriteHalf<_>) = split(near);
        let write = async {
            let _ = writer.write_all(&bytes).await;
            let _ = writer.shutdown().await;
        };
        let mut answers = Vec::new();
        tokio::join!(write, async {
            let _ = reader.read_to_end(&mut answers).await;
        });
        answers
    };
    let (received, answers) = tokio::join!(world.receive(far, Arc::clone(&progress)), sender);
    let mut decoder = wire::Decoder::default();
    let mut input = &answers[..];
    let mut found = Vec::new();
    while let Ok(Some(wire::Piece::Message(message))) = decoder.next(&mut input) {
        found.push(message);
    }
    (received, progress, found)
}

fn entry(out: &mut Vec<u8>, name: &[u8], kind: EntryKind) {
    let entry = Entry { kind, name: name.to_vec(), mode: 0o777, mtime: Mtime::default() };
    SenderMessage::Entry(entry).encode(out);
}

fn file(out: &mut Vec<u8>, (number, name): (u64, &[u8]), bytes: &[u8]) {
    entry(out, name, EntryKind::File { size: bytes.len() as u64 });
    SenderMessage::Start { file: number, group: 0 }.encode(out);
    data_header(out, bytes.len());
    out.extend_from_slice(bytes);
    SenderMessage::FileEnd(*blake3::hash(bytes).as_bytes()).encode(out);
}

fn everything_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(everything_in(&entry.path()).iter().map(|inner| format!("{name}/{inner}")));
        }
        found.push(name);
    }
    found.sort();
    found
}

#[tokio::test]
async fn hostile_names_never_leave_the_folder() {
    let world = World::new();
    let long = vec![b'n'; 300];
    let names: [&[u8]; 10] =
        [b"../../x", b"/etc/x", b"..", b".", b"", b"CON", &long, b"caf\xe9", b"\x1b[2J", b"a/b"];
    let (_, progress, answers) = receive_from(&world, &[(b"tree", true)], |out| {
        SenderMessage::Root(0).encode(out);
        entry(out, b"tree", EntryKind::Folder);
        let mut number = 0;
        for name in names {
            entry(out, name, EntryKind::Folder);
            entry(out, b"inner", EntryKind::File { size: 0 });
            number += 1;
            SenderMessage::Leave.encode(out);
        }
        assert_eq!(number, 10);
    })
    .await;
    let refused = answers.iter().filter(|answer| matches!(answer, ReceiverMessage::Refused { .. })).count();
    let needed = answers.iter().filter(|answer| matches!(answer, ReceiverMessage::Need { .. })).count();
    assert_eq!((refused, needed, progress.figures().problems), (6, 4, 12));
    assert_eq!(
        everything_in(world.folder.path()).iter().filter(|path| !path.starts_with("to/tree")).count(),
        2
    );
    let inside = everything_in(&world.to("tree"));
    assert_eq!(inside.len(), 4, "{inside:?}");
    assert!(inside.iter().all(|name| name.len() <= 255 && !name.chars().any(char::is_control)));
    for root in ["../x", "/etc/x", ".."] {
        let (received, ..) = receive_from(&world, &[(root.as_bytes(), false)], |out| {
            SenderMessage::Root(0).encode(out);
            file(out, (0, b"x"), b"content");
        })
        .await;
        assert!(received.is_err());
    }
    assert_eq!(everything_in(&world.to("")).iter().filter(|path| !path.starts_with("tree")).count(), 0);
}

#[tokio::test]
async fn a_link_out_of_the_folder_is_refused_and_no_file_goes_through_a_link() {
    let world = World::new();
    let outside = world.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let (_, progress, answers) = receive_from(&world, &[(b"tree", true)], |out| {
        SenderMessage::Root(0).encode(out);
        entry(out, b"tree", EntryKind::Folder);
        entry(out, b"sub", EntryKind::Folder);
        SenderMessage::Leave.encode(out);
        for (name, target) in [("out", "../../outside"), ("abs", "/etc"), ("in", "sub")] {
            entry(out, name.as_bytes(), EntryKind::Link { target: target.as_bytes().to_vec() });
        }
        for name in ["out", "in"] {
            entry(out, name.as_bytes(), EntryKind::Folder);
            entry(out, b"file", EntryKind::File { size: 0 });
            SenderMessage::Leave.encode(out);
        }
    })
    .await;
    assert_eq!(everything_in(&outside), Vec::<String>::new());
    assert_eq!(everything_in(&world.to("tree")), ["in", "out", "sub"], "`out` is a folder");
    assert!(world.to("tree/out").symlink_metadata().unwrap().is_dir());
    assert_eq!(progress.figures().problems, 4);
    let refused = ReceiverMessage::Refused { file: 1, problem: EntryProblem::NotCreated };
    assert!(answers.contains(&refused), "{answers:?}");
}

#[tokio::test]
async fn two_names_that_become_one_and_a_file_in_the_way_are_both_kept() {
    let world = World::new();
    let (received, ..) = receive_from(&world, &[(b"tree", true)], |out| {
        SenderMessage::Root(0).encode(out);
        entry(out, b"tree", EntryKind::Folder);
        file(out, (0, b"same"), b"first");
        file(out, (1, b"same"), b"second");
        // A path below a file.
        entry(out, b"same", EntryKind::Folder);
        entry(out, b"inner", EntryKind::File { size: 0 });
        SenderMessage::Leave.encode(out);
    })
    .await;
    assert!(received.is_err());
    let read = |name: &str| fs::read_to_string(world.to("tree").join(name)).unwrap();
    assert_eq!([read("same"), read("same (2)")], ["first", "second"]);
    assert_eq!(everything_in(&world.to("tree")).len(), 2);
}

/// Returns the error of a receiver after these messages about one file of 4 bytes.
async fn error_of(messages: impl FnOnce(&mut Vec<u8>)) -> (TransferError, Vec<ReceiverMessage>, Vec<String>) {
    let world = World::new();
    let (received, _, answers) = receive_from(&world, &[(b"x", false)], |out| {
        SenderMessage::Root(0).encode(out);
        entry(out, b"x", EntryKind::File { size: 4 });
        SenderMessage::Start { file: 0, group: 0 }.encode(out);
        messages(out);
    })
    .await;
    (received.unwrap_err(), answers, everything_in(&world.to("")))
}

fn data(out: &mut Vec<u8>, bytes: &[u8]) {
    data_header(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[tokio::test]
async fn a_sender_that_lies_gets_a_typed_error_and_leaves_no_file() {
    let (error, answers, left) = error_of(|out| data(out, b"12345")).await;
    assert!(matches!(error, TransferError::Protocol(_)), "too many bytes: {error}");
    assert_eq!(answers.last(), Some(&ReceiverMessage::Cancel(CancelReason::Protocol)));
    assert!(left.is_empty(), "{left:?}");
    let (error, answers, left) = error_of(|out| {
        data(out, b"1234");
        SenderMessage::FileEnd([0; 32]).encode(out);
    })
    .await;
    assert!(matches!(error, TransferError::WrongHash), "{error}");
    assert_eq!(answers.last(), Some(&ReceiverMessage::Cancel(CancelReason::WrongHash)));
    assert!(left.is_empty(), "{left:?}");
    let too_early = |out: &mut Vec<u8>| SenderMessage::FileEnd(*blake3::hash(b"").as_bytes()).encode(out);
    assert!(matches!(error_of(too_early).await.0, TransferError::WrongHash));
    for message in [
        SenderMessage::Hole(u64::MAX),
        SenderMessage::Group([0; 32]),
        SenderMessage::Start { file: 0, group: 0 },
        SenderMessage::Start { file: 9, group: 0 },
        SenderMessage::Leave,
        SenderMessage::Root(0),
        SenderMessage::Root(5),
        SenderMessage::End { files: 1, manifest: [0; 32] },
        SenderMessage::Offer(Offer {
            roots: vec![OfferedRoot { is_folder: false, name: vec![b'a'] }],
            ..Offer::default()
        }),
        SenderMessage::FileFailed { file: 3, problem: EntryProblem::Changed },
    ] {
        let (error, ..) = error_of(|out| {
            message.encode(out);
            message.encode(out);
        })
        .await;
        assert!(matches!(error, TransferError::Protocol(_)), "{message:?}: {error}");
    }
    let (error, ..) = error_of(|out| out.extend_from_slice(&[99, 0, 0, 0, 0])).await;
    assert!(matches!(error, TransferError::Wire(_)), "{error}");
}

#[tokio::test]
async fn an_endless_manifest_is_refused_before_it_is_kept() {
    let world = World::new();
    let (received, ..) = receive_from(&world, &[(b"tree", true)], |out| {
        SenderMessage::Root(0).encode(out);
        entry(out, b"tree", EntryKind::Folder);
        for _ in 0..=plan::MAX_OPEN_FILES {
            entry(out, b"x", EntryKind::File { size: 1 });
        }
    })
    .await;
    assert!(matches!(received, Err(TransferError::Protocol(_))), "{received:?}");
    let (received, ..) = receive_from(&world, &[(b"deep", true)], |out| {
        SenderMessage::Root(0).encode(out);
        (0..=walk::MAX_DEPTH).for_each(|_| entry(out, b"deep", EntryKind::Folder));
    })
    .await;
    assert!(matches!(received, Err(TransferError::Protocol(_))), "{received:?}");
}

/// A receiver that answers the offer of one file of 10 bytes with these messages.
async fn send_to(answers: &[ReceiverMessage]) -> Result<Summary, TransferError> {
    let world = World::new();
    world.write("x", b"0123456789");
    let (near, far) = duplex(1 << 20);
    let mut bytes = Vec::new();
    ReceiverMessage::Hello { receiver: RECEIVER, transfer: None }.encode(&mut bytes);
    answers.iter().for_each(|answer| answer.encode(&mut bytes));
    let receiver = async {
        let (mut reader, mut writer) = split(far);
        let _ = writer.write_all(&bytes).await;
        let mut sent = Vec::new();
        let _ = reader.read_to_end(&mut sent).await;
    };
    let sender = world.send(near, &["x"], Arc::default());
    tokio::select! {
        result = sender => result,
        () = async { receiver.await; std::future::pending().await } => unreachable!(),
    }
}

#[tokio::test]
async fn a_receiver_that_asks_for_other_ranges_or_files_gets_a_typed_error() {
    let accept = ReceiverMessage::Accept { skipped: Vec::new() };
    let need = |file, group| ReceiverMessage::Need { file, group, prefix: [0; 32] };
    for answer in [
        need(1, 0),
        need(0, 2),
        need(0, u64::MAX),
        ReceiverMessage::Have { file: 7 },
        ReceiverMessage::Verified(1 << 40),
        accept.clone(),
    ] {
        let error = send_to(&[accept.clone(), answer.clone()]).await.unwrap_err();
        assert!(matches!(error, TransferError::Protocol(_)), "{answer:?}: {error}");
    }
    let twice = send_to(&[accept.clone(), need(0, 0), need(0, 0)]).await.unwrap_err();
    assert!(matches!(twice, TransferError::Protocol(_)), "{twice}");
    for (answers, expected) in [
        (vec![ReceiverMessage::Cancel(CancelReason::Declined)], CancelReason::Declined),
        (vec![accept, ReceiverMessage::Cancel(CancelReason::DiskFull)], CancelReason::DiskFull),
    ] {
        let error = send_to(&answers).await.unwrap_err();
        assert!(matches!(error, TransferError::Cancelled(reason) if reason == expected), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_vanishes_or_changes_is_reported_and_not_kept() {
    let world = World::new();
    world.write("tree/stays", b"content");
    world.write("tree/changes", &content(40 * MIB, 1));
    let (near, far) = duplex(1 << 16);
    let (sender, receiver) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
    let growing = async {
        // The sender has opened it when the first bytes of it have arrived.
        while receiver.figures().done < 100_000 {
            tokio::task::yield_now().await;
        }
        let mut file = fs::OpenOptions::new().append(true).open(world.from("tree/changes")).unwrap();
        std::io::Write::write_all(&mut file, b"more").unwrap();
    };
    let (sent, received, ()) = tokio::join!(
        world.send(near, &["tree"], Arc::clone(&sender)),
        world.receive(far, Arc::clone(&receiver)),
        growing
    );
    assert_eq!(sent.unwrap(), received.unwrap());
    for progress in [&sender, &receiver] {
        let notes = progress.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].path.ends_with("tree/changes") && notes[0].problem.contains("changed"), "{notes:?}");
    }
    assert_eq!(everything_in(&world.to("tree")), ["stays"]);
}
