//! Durable appends per second through the store trait, compared with plain SQLite with the same schema, pragmas and disk: with one commit
//! per append, and with as many appends per commit as the store had.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use ginnel::internals::load::histogram::Histogram;
use ginnel::internals::net::time;
use ginnel::internals::store::{MailboxId, MessageCopy, NewMessage, Party, SqliteConfig, SqliteStore, Store};
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Numbers of callers.
const CALLERS: [usize; 3] = [1, 16, 256];
const ROUNDS: usize = 5;
/// The time of one measurement: there are 45 of them.
const TIME: Duration = Duration::from_millis(1500);
const MAILBOXES: i64 = 1000;
const BODY: [u8; 200] = [7; 200];
const NOW: u64 = 1_700_000_000_000;

/// The result of one measurement.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    per_second: f64,
    batch: f64,
    p50: Duration,
    p99: Duration,
}

fn database() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("messages.db");
    (folder, path)
}

/// The mailbox, sender and message id of an append.
fn parameters(number: u64) -> (i64, String, String) {
    let scattered = u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let mailbox = 1 + (scattered >> 65) as i64 % MAILBOXES;
    (mailbox, format!("s{}", number % 100), format!("{scattered:032x}"))
}

fn message(number: u64) -> NewMessage {
    let (mailbox, sender, message_id) = parameters(number);
    let copy = MessageCopy { mailbox: MailboxId(mailbox), is_encrypted: true, body: BODY[..].into() };
    NewMessage {
        sender: Party::User(sender),
        sender_device: None,
        message_id,
        stored_at_ms: NOW + number,
        expires_at_ms: NOW + number + 1_000_000,
        copies: vec![copy],
    }
}

fn through_the_trait(runtime: &Runtime, callers: usize) -> Outcome {
    let (_folder, path) = database();
    let sqlite = Arc::new(SqliteStore::open(&path, SqliteConfig::default()).unwrap());
    let store: Arc<dyn Store> = Arc::clone(&sqlite) as _;
    let opened: Vec<_> =
        (0..MAILBOXES).map(|number| store.open_mailbox(&Party::User(number.to_string()))).collect();
    runtime.block_on(async {
        for mailbox in opened {
            mailbox.await.unwrap();
        }
    });
    let before = sqlite.commit_counts();
    let next = Arc::new(AtomicU64::new(0));
    let start = time::mono();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (store, next) = (Arc::clone(&store), Arc::clone(&next));
            runtime.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let called = time::mono();
                    if called - start >= TIME {
                        return times;
                    }
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    store.append(message(number)).await.unwrap();
                    times.push((time::mono() - called).as_nanos() as u64);
                }
            })
        })
        .collect();
    let mut times = Histogram::default();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap().into_iter().for_each(|nanoseconds| times.record(nanoseconds));
        }
    });
    let elapsed = time::mono() - start;
    let after = sqlite.commit_counts();
    let appends = next.load(Ordering::Relaxed);
    Outcome {
        per_second: appends as f64 / elapsed.as_secs_f64(),
        batch: (after.calls - before.calls) as f64 / (after.commits - before.commits) as f64,
        p50: times.quantile(500),
        p99: times.quantile(990),
    }
}

/// Opens SQLite as the store does.
fn plain_connection(path: &Path) -> Connection {
    drop(SqliteStore::open(path, SqliteConfig::default()).unwrap());
    let connection = Connection::open(path).unwrap();
    for (pragma, value) in [("journal_mode", "WAL"), ("synchronous", "FULL"), ("temp_store", "MEMORY")] {
        connection.pragma_update(None, pragma, value).unwrap();
    }
    connection.pragma_update(None, "wal_autocheckpoint", 4000).unwrap();
    connection.pragma_update(None, "cache_size", -16_000).unwrap();
    connection.execute_batch("BEGIN").unwrap();
    for number in 0..MAILBOXES {
        let owner = format!("user:{number}");
        connection.execute("INSERT INTO mailboxes (owner, epoch) VALUES (?1, 1)", [owner]).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    connection
}

/// Returns the appends per second with `batch` appends per commit.
fn plain(batch: u64) -> f64 {
    let (_folder, path) = database();
    let connection = plain_connection(&path);
    let mut begin = connection.prepare("BEGIN IMMEDIATE").unwrap();
    let mut commit = connection.prepare("COMMIT").unwrap();
    let id = "INSERT INTO message_ids (mailbox, sender, message_id, sequence, forget_at)
        VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
    let mut id = connection.prepare(id).unwrap();
    let count =
        "UPDATE mailboxes SET last_sequence = last_sequence + 1, messages = messages + 1, bytes = bytes + ?2
        WHERE id = ?1 RETURNING last_sequence";
    let mut count = connection.prepare(count).unwrap();
    let row = "INSERT INTO messages (mailbox, sequence, kind, sender, sender_device, message_id,
            is_encrypted, body, stored_at, expires_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let mut row = connection.prepare(row).unwrap();
    let held = "INSERT INTO mailbox_senders (mailbox, sender, messages, bytes) VALUES (?1, ?2, 1, ?3)
        ON CONFLICT DO UPDATE SET messages = messages + 1, bytes = bytes + ?3";
    let mut held = connection.prepare(held).unwrap();
    let start = time::mono();
    let mut number = 0;
    while time::mono() - start < TIME {
        begin.execute([]).unwrap();
        for number in number..number + batch {
            let (mailbox, sender, message_id) = parameters(number);
            let sender = format!("user:{sender}");
            let stored_at = (NOW + number) as i64;
            let counted = params![mailbox, BODY.len() as i64];
            let sequence: i64 = count.query_row(counted, |row| row.get(0)).unwrap();
            id.execute(params![mailbox, sender, message_id, sequence, stored_at]).unwrap();
            held.execute(params![mailbox, sender, BODY.len() as i64]).unwrap();
            let none: Option<i64> = None;
            let expires_at = stored_at + 1_000_000;
            let values =
                params![mailbox, sequence, 0, sender, none, message_id, true, BODY, stored_at, expires_at];
            row.execute(values).unwrap();
        }
        commit.execute([]).unwrap();
        number += batch;
    }
    number as f64 / (time::mono() - start).as_secs_f64()
}

/// Returns the median.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let runtime = Runtime::new().unwrap();
    println!("callers  batch  store/s  p50 ms  p99 ms  (a) each/s  ratio  (b) batch/s  ratio");
    for callers in CALLERS {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let store = through_the_trait(&runtime, callers);
            let each = plain(1);
            let batch = plain(store.batch.round().max(1.0) as u64);
            rounds.push((store, each, batch));
        }
        let of = |value: &dyn Fn(&(Outcome, f64, f64)) -> f64| middle(rounds.iter().map(value).collect());
        println!(
            "{callers:7}  {:5.1}  {:7.0}  {:6.2}  {:6.2}  {:10.0}  {:5.2}  {:11.0}  {:5.2}",
            of(&|round| round.0.batch),
            of(&|round| round.0.per_second),
            of(&|round| round.0.p50.as_secs_f64() * 1000.0),
            of(&|round| round.0.p99.as_secs_f64() * 1000.0),
            of(&|round| round.1),
            of(&|round| round.0.per_second / round.1),
            of(&|round| round.2),
            of(&|round| round.0.per_second / round.2),
        );
    }
}
