//! The store of messaging under what a process alone cannot test: SIGKILL and a full disk.
//!
//! Each test starts this test binary again as a child that runs one of the ignored tests below.

use crate::tools;
use ginnel::internals::store::{
    Acknowledgement, Appended, MailboxId, MessageCopy, NewMessage, PageSize, Party, SqliteConfig,
    SqliteStore, Store, StoreError, StoreFuture,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// The folder that a child works in; without it the ignored tests do nothing.
const FOLDER: &str = "GINNEL_TEST_STORE";
/// The number of a child's first message.
const FIRST: &str = "GINNEL_TEST_FIRST";
/// Writers of one child.
const SENDERS: u64 = 8;
/// More messages than a child sends before it is killed.
const PER_ROUND: u64 = 1_000_000;
const NOW: u64 = 1_700_000_000_000;
const ALL: PageSize = PageSize { messages: 1_000_000, bytes: 1 << 30 };

fn wait<T>(future: StoreFuture<T>) -> Result<T, StoreError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(&folder.join("messages.db"), SqliteConfig::default()).unwrap()
}

fn mailbox(store: &dyn Store) -> MailboxId {
    wait(store.open_mailbox(&Party::User("alice".to_owned()))).unwrap().id
}

/// Message `number` of a sender, with a body of so many bytes.
fn message(mailbox: MailboxId, sender: u64, number: u64, length: usize) -> NewMessage {
    let copy = MessageCopy { mailbox, is_encrypted: false, body: vec![b'x'; length].into() };
    NewMessage {
        sender: Party::User(sender.to_string()),
        sender_device: None,
        message_id: number.to_string(),
        stored_at_ms: NOW,
        expires_at_ms: NOW + 1_000_000,
        copies: vec![copy],
    }
}

/// The command that runs one of the ignored tests of this file as a child.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("store::{test}"), "--ignored", "--nocapture"]);
    command
}

fn folder_of_child() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

#[test]
#[ignore = "child of the tests that kill it"]
fn child_appends_until_it_is_killed() {
    let Some(folder) = folder_of_child() else { return };
    let first: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
    let store = Arc::new(open(&folder));
    let mailbox = mailbox(&*store);
    let append = |sender: u64| {
        let store = Arc::clone(&store);
        async move {
            for number in first..first + PER_ROUND {
                let appended = store.append(message(mailbox, sender, number, 100)).await.unwrap();
                assert!(matches!(appended[..], [Appended::Stored(_)]), "{appended:?}");
                let mut out = std::io::stdout().lock();
                writeln!(out, "completed {sender} {number}").unwrap();
                out.flush().unwrap();
            }
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tasks: Vec<_> = (0..SENDERS).map(|sender| runtime.spawn(append(sender))).collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Runs a child, kills it after so many completed appends, and returns the last one of each sender.
fn run_and_kill(folder: &Path, first: u64, completed: usize) -> BTreeMap<u64, u64> {
    let mut command = child("child_appends_until_it_is_killed");
    command.env(FOLDER, folder).env(FIRST, first.to_string());
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut last = BTreeMap::new();
    let mut count = 0;
    for line in BufReader::new(process.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The kill can cut a line.
        let mut words = line.split(' ').skip_while(|word| *word != "completed").skip(1);
        let numbers = (words.next().map(str::parse), words.next().map(str::parse));
        if let (Some(Ok(sender)), Some(Ok(number))) = numbers
            && number >= first
        {
            last.insert(sender, number);
            count += 1;
        }
        if count == completed {
            process.kill().unwrap();
        }
    }
    process.wait().unwrap();
    assert!(count >= completed, "the child ended by itself after {count} appends");
    last
}

/// Kills a writer so many times, and checks after each that all completed appends are stored, in order and once.
fn check_kills(rounds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha20Rng::seed_from_u64(14);
    for round in 0..rounds {
        let first = round * PER_ROUND;
        let completed = run_and_kill(folder.path(), first, random.random_range(1..400));
        let store = open(folder.path());
        let mailbox = mailbox(&store);
        let stored = wait(store.messages(mailbox, 0, ALL)).unwrap();
        let mut next = BTreeMap::new();
        for message in &stored {
            let number: u64 = message.message_id.parse().unwrap();
            let next = next.entry(message.sender.name().parse::<u64>().unwrap()).or_insert(first);
            assert_eq!(number, *next, "each sender's messages are in order, without gaps");
            *next += 1;
        }
        for (sender, last) in completed {
            let stored = next.get(&sender).copied().unwrap_or(first);
            assert!(stored > last, "round {round}: {sender}'s message {last} was completed and is lost");
        }
        let last = stored.last().unwrap().sequence;
        let state = wait(store.mailbox(mailbox)).unwrap();
        assert_eq!((state.messages, state.last_sequence), (stored.len() as u64, last));
        let removed = wait(store.acknowledge(mailbox, Acknowledgement::UpTo(last), NOW)).unwrap();
        assert_eq!(removed.messages, stored.len() as u64);
    }
}

#[test]
fn a_killed_process_has_stored_every_completed_append() {
    check_kills(5);
}

#[test]
#[ignore = "long: 200 kills of a process that appends messages, none of which is lost"]
fn long_store_kills() {
    check_kills(tools::switch("GINNEL_LONG_RUNS", 200) as u64);
}

#[test]
#[ignore = "child of the test that gives it a small disk"]
fn child_fills_its_disk() {
    let Some(folder) = folder_of_child() else { return };
    let filler = folder.join("filler");
    std::fs::write(&filler, vec![1; 1 << 20]).unwrap();
    let store = open(&folder);
    let mailbox = mailbox(&store);
    let mut completed = Vec::new();
    let mut refused = 0;
    for number in 0..200 {
        match wait(store.append(message(mailbox, 1, number, 30_000))) {
            Ok(_) => completed.push(number.to_string()),
            Err(StoreError::DiskFull) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(completed.len() > 10 && refused > 10, "{} completed, {refused} refused", completed.len());
    let ids = |store: &dyn Store| -> Vec<String> {
        let messages = wait(store.messages(mailbox, 0, ALL)).unwrap();
        messages.into_iter().map(|message| message.message_id).collect()
    };
    assert_eq!(ids(&store), completed, "what was refused is not stored");
    std::fs::remove_file(&filler).unwrap();
    for number in 1000..1010 {
        wait(store.append(message(mailbox, 1, number, 30_000))).unwrap();
        completed.push(number.to_string());
    }
    assert_eq!(ids(&store), completed);
    drop(store);
    assert_eq!(ids(&open(&folder)), completed);
}

#[test]
fn a_full_disk_refuses_appends_until_there_is_room_and_loses_nothing() {
    if !tools::is_root_for("a file system of its own") || !tools::have(&["unshare", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let child = child("child_fills_its_disk");
    let mut command = Command::new("unshare");
    let mount = r#"mount -t tmpfs -o size=4m,mode=0700 none "$1" && shift && exec "$@""#;
    command.args(["--mount", "sh", "-c", mount, "sh"]).arg(folder.path());
    command.arg(child.get_program()).args(child.get_args()).env(FOLDER, folder.path());
    let output = command.output().unwrap();
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}
