//! Clients that misbehave: the others are served, and memory stays flat.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::{CHEAP, Client, Messaging, encode};
use crate::metrics;

/// A user exchanges a message with itself.
fn assert_served(messaging: &Messaging) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    let mut client = messaging.user("witness");
    client.send(200, &id, br#"{"to":"witness","msg":"x"}"#);
    assert_eq!((client.frame().0, client.frame().0), (200, 201));
    client.send(201, "", json!([{ "msgid": id }]).to_string().as_bytes());
}

#[test]
fn frames_that_are_too_long_or_half_end_only_their_connection() {
    let messaging = Messaging::start(CHEAP);
    for header in [[0xff; 4], [0, 0x10, 0, 1], [0x7f, 0xff, 0xff, 0xff]] {
        let mut client = messaging.connect();
        client.stream.write_all(&header).unwrap();
        assert!(client.is_closed(), "{header:?}");
    }
    let mut halves = Vec::new();
    for _ in 0..100 {
        let mut client = messaging.connect();
        client.stream.write_all(b"\0\0\x10\0half a frame").unwrap();
        halves.push(client);
    }
    assert_served(&messaging);
    // Strangers may hold few long frames.
    let mut long: Vec<_> = (0..20).map(|_| messaging.connect()).collect();
    for client in &mut long {
        let _ = client.stream.write_all(b"\0\x10\0\0half a frame");
    }
    assert_served(&messaging);
}

#[test]
fn a_hundred_thousand_unknown_commands_are_answered_and_cost_no_memory() {
    let messaging = Messaging::start(&format!(
        "[messaging.limits]\nrequests_per_connection = {{ burst = 1000000, per_second = 1000000 }}\n{CHEAP}"
    ));
    let mut client = messaging.user("alice");
    let before = messaging.server.resident_kib();
    let mut reader = client.stream.try_clone().unwrap();
    let frame = super::encode(999, "", b"");
    let answer = super::encode(999, "", br#"{"code":200,"msg":"unsupported cmd"}"#);
    let total = answer.len() * 100_000;
    let reading = std::thread::spawn(move || {
        let (mut read, mut buffer) = (0, vec![0; 65_536]);
        while read < total {
            read += reader.read(&mut buffer).unwrap();
        }
        read
    });
    for _ in 0..1000 {
        client.stream.write_all(&frame.repeat(100)).unwrap();
    }
    assert_eq!(reading.join().unwrap(), total);
    let grown = messaging.server.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert_served(&messaging);
}

#[test]
fn a_reader_that_never_reads_is_closed_or_waits_and_the_others_are_served() {
    let messaging = Messaging::start(CHEAP);
    let mut deaf = messaging.user("deaf");
    let mut sender = messaging.user("sender");
    let text = "x".repeat(60_000);
    // Less than one sender may have in a mailbox.
    let count = 260;
    for index in 0..count {
        let body = json!({"to": "deaf", "msg": text}).to_string();
        sender.send(200, &index.to_string(), body.as_bytes());
        let (cmd, _, _, data) = sender.frame();
        assert_eq!((cmd, data.len()), (200, 0));
    }
    let pushed = metrics::value(messaging.server.address, "ginnel_messaging_pushed_messages_total");
    assert!(pushed < count, "it waits: {pushed}");
    assert_served(&messaging);
    // What was not pushed comes in order once the client reads.
    for expected in 0..count {
        let (cmd, _, _, data) = deaf.frame();
        let pushed: Vec<serde_json::Value> = serde_json::from_slice(&data).unwrap();
        assert_eq!((cmd, pushed.len()), (201, 1));
        assert_eq!(pushed[0]["msgid"], expected.to_string());
    }
}

/// Sends requests without waiting for the answers; returns how often each code came.
fn flood(client: &Client, cmd: u64, bodies: impl Iterator<Item = Value>) -> BTreeMap<i64, usize> {
    let frames: Vec<_> = bodies.map(|body| encode(cmd, "m", body.to_string().as_bytes())).collect();
    let (mut reader, mut writer) = (client.try_clone(), client.try_clone());
    let count = frames.len();
    let writing = std::thread::spawn(move || {
        for frames in frames.chunks(100) {
            writer.stream.write_all(&frames.concat()).unwrap();
        }
    });
    let mut codes = BTreeMap::new();
    for _ in 0..count {
        let answer: Value = serde_json::from_slice(&reader.frame().3).unwrap();
        *codes.entry(answer["code"].as_i64().unwrap()).or_insert(0) += 1;
    }
    writing.join().unwrap();
    codes
}

#[test]
fn floods_of_logins_and_registrations_from_one_network_are_throttled() {
    const REGISTRATIONS: usize = 10_000;
    let messaging = Messaging::start(&format!(
        "[messaging.limits]\nrequests_per_connection = {{ burst = 1000000, per_second = 1000000 }}\n{CHEAP}"
    ));
    let (mut other, client) = (messaging.user("other"), messaging.connect());
    let before = messaging.server.resident_kib();
    let registrations =
        (0..REGISTRATIONS).map(|index| json!({"username": format!("u{index}"), "password": "x"}));
    let codes = flood(&client, 102, registrations);
    assert!(codes[&100] <= 30 && codes[&200] >= REGISTRATIONS - 30, "{codes:?}");
    let guesses = (0..REGISTRATIONS).map(|index| json!({"username": "u1", "password": index.to_string()}));
    let codes = flood(&client, 100, guesses);
    assert!(codes[&1002] <= 20 && codes[&200] >= REGISTRATIONS - 20, "{codes:?}");
    let grown = messaging.server.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    let throttled = metrics::value(messaging.server.address, "ginnel_messaging_throttled_total");
    assert!(throttled >= 2 * REGISTRATIONS as u64 - 50, "{throttled}");
    other.send(200, "1", br#"{"to":"other","msg":"x"}"#);
    assert_eq!((other.frame().0, other.frame().0), (200, 201), "others are served");
}
