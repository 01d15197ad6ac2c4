//! What is acknowledged is on disk: SIGKILL, the order of system calls, and a full disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::kills::{Inbox, Protocol, ReadAcknowledgements, SendMessage, check_kills, recipient, text};
use super::{CHEAP, Client, Messaging, PATIENCE};
use crate::waiting::wait_until;
use crate::{metrics, tools};

/// A recipient that is not connected.
const OFFLINE: &str = "offline";

/// The TCP protocol.
struct Tcp;

impl Protocol for Tcp {
    fn register(&mut self, messaging: &Messaging, names: &[&str]) {
        for name in names {
            drop(messaging.user(name));
        }
    }

    fn sender(&self, messaging: &Messaging, name: &str) -> (SendMessage, ReadAcknowledgements) {
        let mut client = messaging.user(name);
        let mut reader = client.try_clone();
        let send = move |number| {
            let body = json!({"to": recipient(number), "msg": text(number)});
            client.try_send(200, &number.to_string(), body.to_string().as_bytes())
        };
        let read = move || {
            let mut acknowledged = Vec::new();
            while let Ok((cmd, msg_id, _, data)) = reader.try_frame() {
                assert!(cmd == 200 && data.is_empty(), "{}", String::from_utf8_lossy(&data));
                acknowledged.push(msg_id.parse::<u64>().unwrap());
            }
            acknowledged
        };
        (Box::new(send), Box::new(read))
    }

    fn follow(&self, messaging: &Messaging, name: &str) -> Box<dyn FnOnce(&mut Inbox) + Send> {
        let mut client = messaging.user(name);
        Box::new(move |inbox| {
            while let Ok((cmd, _, _, data)) = client.try_frame() {
                assert_eq!(cmd, 201);
                let acknowledgement = take(inbox, &data);
                if client.try_send(201, "", acknowledgement.to_string().as_bytes()).is_err() {
                    break;
                }
            }
        })
    }

    fn fetch(&self, messaging: &Messaging, name: &str, marker: &str, inbox: &mut Inbox) {
        let mut client = messaging.user(name);
        client.send(202, "", b"");
        // What was stored before comes before it.
        client.send(200, marker, json!({"to": name, "msg": "the end"}).to_string().as_bytes());
        loop {
            let (cmd, _, _, data) = client.frame();
            if cmd == 200 {
                continue;
            }
            let acknowledgement = take(inbox, &data);
            client.send(201, "", acknowledgement.to_string().as_bytes());
            if acknowledgement.as_array().unwrap().iter().any(|message| message["msgid"] == marker) {
                return;
            }
        }
    }
}

/// Adds the messages of a push; returns the body that acknowledges them.
fn take(inbox: &mut Inbox, data: &[u8]) -> Value {
    let pushed: Vec<Value> = serde_json::from_slice(data).unwrap();
    for message in &pushed {
        let text = |key: &str| message[key].as_str().unwrap();
        inbox.add(text("from"), text("msgid"), text("msg"));
    }
    pushed.iter().map(|message| json!({"msgid": message["msgid"]})).collect()
}

#[test]
fn a_killed_server_delivers_every_acknowledged_message() {
    let kills = check_kills(Tcp, 4);
    assert!(kills.acknowledged > 100, "{kills:?}");
}

#[test]
#[ignore = "long: 200 kills of a server under 500 messages a second, no acknowledged one of which is lost"]
fn long_messaging_kills() {
    check_kills(Tcp, tools::switch("GINNEL_LONG_RUNS", 200)).print();
}

/// Where a system call is in a log of `strace -f`: the lines of its beginning and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    begin: usize,
    end: usize,
}

/// The system calls of a log that matter here.
#[derive(Debug, Default)]
struct SystemCalls {
    /// By message id: when the frame was received, and when the acknowledgement was written.
    receipts: BTreeMap<String, Span>,
    acknowledgements: BTreeMap<String, Span>,
    synchronisations: Vec<Span>,
}

const ID: &str = "strace-";

/// Returns the message ids in the printed bytes of a call.
fn ids(line: &str) -> impl Iterator<Item = String> {
    line.match_indices(ID).map(|(at, _)| {
        let number = line[at + ID.len()..].chars().take_while(char::is_ascii_digit);
        number.collect()
    })
}

impl SystemCalls {
    fn read(log: &str) -> Self {
        let mut calls = Self::default();
        // By thread: the line and text of a call that has not ended.
        let mut open: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (index, line) in log.lines().enumerate() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
                open.insert(thread, (index, begun));
            } else if rest.starts_with("<... ") {
                let Some((begin, begun)) = open.remove(thread) else { continue };
                calls.add(&format!("{begun}{rest}"), Span { begin, end: index });
            } else {
                calls.add(rest, Span { begin: index, end: index });
            }
        }
        calls
    }

    fn add(&mut self, call: &str, span: Span) {
        let name = call.split('(').next().unwrap_or_default();
        let is_ok = |result: &str| result.trim() == "0";
        match name {
            "fsync" | "fdatasync" if call.contains("-wal>") => {
                assert!(call.rsplit_once('=').is_some_and(|(_, result)| is_ok(result)), "{call}");
                self.synchronisations.push(span);
            }
            "recvfrom" | "read" | "recvmsg" | "readv" if call.contains("TCP:") => {
                for id in ids(call) {
                    self.receipts.entry(id).or_insert(span);
                }
            }
            "sendto" | "write" | "sendmsg" | "writev" if call.contains("TCP:") => {
                for id in ids(call) {
                    self.acknowledgements.entry(id).or_insert(span);
                }
            }
            _ => {}
        }
    }

    /// Returns the messages whose acknowledgement was written without a synchronisation that began after the receipt and had ended.
    fn unsynchronised(&self) -> Vec<&str> {
        let is_synchronised = |receipt: Span, acknowledgement: Span| {
            self.synchronisations
                .iter()
                .any(|sync| sync.begin > receipt.end && sync.end < acknowledgement.begin)
        };
        let broken = self.acknowledgements.iter().filter(|(id, acknowledgement)| {
            !self.receipts.get(*id).is_some_and(|receipt| is_synchronised(*receipt, **acknowledgement))
        });
        broken.map(|(id, _)| id.as_str()).collect()
    }
}

#[test]
fn a_log_with_an_early_acknowledgement_is_recognised() {
    let receive = |id: u32| format!("7  recvfrom(9<TCP:[1]>, \"x strace-{id} y\", 50, 0) = 50\n");
    let send = |id: u32| format!("7  sendto(9<TCP:[1]>, \"z strace-{id}\", 20, 0) = 20\n");
    let sync = "8  fdatasync(5</x/db-wal>) = 0\n";
    let begin = "8  fdatasync(5</x/db-wal> <unfinished ...>\n";
    let end = "8  <... fdatasync resumed>) = 0\n";
    for (lines, broken) in [
        (vec![&*receive(1), sync, &*send(1)], false),
        (vec![&*receive(1), begin, end, &*send(1)], false),
        (vec![&*receive(1), &*send(1), sync], true),
        (vec![sync, &*receive(1), &*send(1)], true),
        (vec![begin, &*receive(1), end, &*send(1)], true),
        (vec![&*receive(1), begin, &*send(1), end], true),
        (vec![&*receive(1), "8  fdatasync(5</x/db>) = 0\n", &*send(1)], true),
    ] {
        let log: String = lines.concat();
        assert_eq!(SystemCalls::read(&log).unsynchronised().len(), usize::from(broken), "{log}");
    }
}

#[test]
fn no_acknowledgement_is_written_before_the_log_is_synchronised() {
    const SENDERS: usize = 4;
    const MESSAGES: usize = 100;
    if !tools::have(&["strace"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("strace.log");
    let calls = "trace=fsync,fdatasync,recvfrom,read,recvmsg,readv,sendto,write,sendmsg,writev";
    let runner = ["strace", "-D", "-f", "-yy", "-s", "4096", "-e", calls, "-e", "signal=none", "-o"];
    let runner = [&runner[..], &[path.to_str().unwrap()]].concat();
    let mut messaging = Messaging::start_under(&runner, CHEAP);
    drop(messaging.user(OFFLINE));
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let mut client = messaging.user(&format!("sender-{sender}"));
            scope.spawn(move || {
                // Some alone, some behind each other.
                for burst in 0..MESSAGES / 10 {
                    let numbers = (0..10).map(|index| sender * 1000 + burst * 10 + index);
                    let at_once = if burst % 2 == 0 { 1 } else { 10 };
                    for numbers in numbers.collect::<Vec<_>>().chunks(at_once) {
                        for number in numbers {
                            let body = json!({"to": OFFLINE, "msg": "x"}).to_string();
                            client.send(200, &format!("{ID}{number}"), body.as_bytes());
                        }
                        for number in numbers {
                            let expected = (200, format!("{ID}{number}"), false, Vec::new());
                            assert_eq!(client.frame(), expected);
                        }
                    }
                }
            });
        }
    });
    messaging.server.stop();
    let has_ended = |path: &Path| std::fs::read_to_string(path).unwrap().contains("+++ exited with 0 +++");
    wait_until(PATIENCE, "strace has written everything", || has_ended(&path));
    let calls = SystemCalls::read(&std::fs::read_to_string(&path).unwrap());
    assert_eq!(calls.acknowledgements.len(), SENDERS * MESSAGES);
    assert_eq!(calls.unsynchronised(), Vec::<&str>::new());
    tools::print(&format!(
        "{} acknowledgements, {} synchronisations",
        SENDERS * MESSAGES,
        calls.synchronisations.len()
    ));
}

#[test]
fn a_full_disk_refuses_messages_until_there_is_room_and_loses_nothing() {
    if !tools::is_root_for("a file system of its own") || !tools::have(&["unshare", "mount"]) {
        return;
    }
    let mount = r#"for last; do :; done; state="$(dirname "$last")/state"; mkdir -m 700 "$state" &&
        mount -t tmpfs -o size=8m,mode=0700 none "$state" && exec "$@""#;
    let messaging = Messaging::start_under(&["unshare", "--mount", "sh", "-c", mount, "sh"], CHEAP);
    // The server sees its own file system.
    let root = format!("/proc/{}/root", messaging.server.process.id());
    let state = Path::new(&root).join(messaging.server.state().strip_prefix("/").unwrap());
    let filler = state.join("filler");
    drop(messaging.user(OFFLINE));
    let mut sender = messaging.user("sender");
    let mut sent = 0..;
    let mut acknowledged = Vec::new();
    let mut try_one = |sender: &mut Client, acknowledged: &mut Vec<String>| {
        let id = sent.next().unwrap().to_string();
        let body = json!({"to": OFFLINE, "msg": "x".repeat(30_000)}).to_string();
        sender.send(200, &id, body.as_bytes());
        let (cmd, msg_id, _, data) = sender.frame();
        assert_eq!((cmd, &msg_id), (200, &id));
        let is_acknowledged = data.is_empty();
        match is_acknowledged {
            true => acknowledged.push(id),
            false => assert_eq!(data, br#"{"code":200,"msg":"disk is full"}"#),
        }
        is_acknowledged
    };
    assert!((0..10).all(|_| try_one(&mut sender, &mut acknowledged)));
    // Written until nothing fits any more.
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let results: Vec<_> = (0..300).map(|_| try_one(&mut sender, &mut acknowledged)).collect();
    let refused = results.iter().filter(|is_acknowledged| !**is_acknowledged).count();
    assert!(refused > 100, "{refused}");
    assert_eq!(sender.code(203, &json!({"deviceId": "d"})), 200, "everything that is stored is refused");
    sender.send(0, "", b"");
    assert_eq!(sender.read_exact(4), [0; 4], "the server lives");
    // Who reads its messages makes room for others, though the disk is as full as before.
    let mut client = messaging.user(OFFLINE);
    client.send(202, "", b"");
    let mut read = Vec::new();
    while read.len() < acknowledged.len() {
        let (cmd, _, _, data) = client.frame();
        assert_eq!(cmd, 201);
        let pushed: Vec<Value> = serde_json::from_slice(&data).unwrap();
        let ids: Vec<_> =
            pushed.iter().map(|message| message["msgid"].as_str().unwrap().to_owned()).collect();
        let body: Value = ids.iter().map(|id| json!({"msgid": id})).collect();
        client.send(201, "", body.to_string().as_bytes());
        read.extend(ids);
    }
    assert_eq!(std::mem::take(&mut acknowledged), read, "in order, and what was refused is not stored");
    let removed = || metrics::value(messaging.server.address, "ginnel_messaging_acknowledged_messages_total");
    wait_until(PATIENCE, "acknowledged messages are removed from the full disk", || {
        removed() == read.len() as u64
    });
    drop(client);
    assert!((0..10).all(|_| try_one(&mut sender, &mut acknowledged)), "there is room for more");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    assert!((0..10).all(|_| try_one(&mut sender, &mut acknowledged)));
    let mut inbox = Vec::new();
    let mut client = messaging.user(OFFLINE);
    client.send(202, "", b"");
    while inbox.len() < acknowledged.len() {
        let (cmd, _, _, data) = client.frame();
        assert_eq!(cmd, 201);
        let pushed: Vec<Value> = serde_json::from_slice(&data).unwrap();
        inbox.extend(pushed.iter().map(|message| message["msgid"].as_str().unwrap().to_owned()));
    }
    assert_eq!(inbox, acknowledged, "in order, and what was refused is not stored");
}
