//! SIGKILL under load over the WebSocket `/messages`.

use std::collections::BTreeMap;
use std::io;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::Messaging;
use super::kills::{Inbox, Protocol, ReadAcknowledgements, SendMessage, check_kills, recipient, text};
use super::websocket::Client;
use crate::tools;

/// The key of each user's identity, and the number of its device.
#[derive(Default)]
struct Modern(BTreeMap<String, (u8, i64)>);

impl Modern {
    /// Logs the device of a user in; also returns the last sequence number of its mailbox.
    fn log_in(&self, messaging: &Messaging, name: &str) -> (Client, u64) {
        let (seed, number) = self.0[name];
        let mut client = Client::connect(messaging.server.address);
        let answer = client.log_in(name, seed + 1);
        assert_eq!(answer["device"], number);
        (client, answer["last_sequence"].as_u64().unwrap())
    }
}

impl Protocol for Modern {
    fn register(&mut self, messaging: &Messaging, names: &[&str]) {
        for (name, seed) in names.iter().zip((1..).step_by(10)) {
            let (_, number) = messaging.websocket(name, seed);
            self.0.insert((*name).to_owned(), (seed, number));
        }
    }

    fn sender(&self, messaging: &Messaging, name: &str) -> (SendMessage, ReadAcknowledgements) {
        let (mut client, last) = self.log_in(messaging, name);
        // Receipts would fill the mailbox.
        client.ok(json!({"type": "ack", "up_to": last}));
        let stream = client.socket.get_ref().try_clone().unwrap();
        let mut reader = WebSocket::from_raw_socket(stream, Role::Client, None);
        let devices = self.0.clone();
        let send = move |number| {
            let to = recipient(number);
            let body = BASE64URL_NOPAD.encode(text(number).as_bytes());
            let copies = json!([{"device": devices[to].1, "body": body}]);
            let send = json!({"id": number, "type": "send", "to": format!("user:{to}"),
                "message_id": number.to_string(), "copies": copies});
            client.socket.send(Message::text(send.to_string())).map_err(io::Error::other)
        };
        let read = move || {
            let mut acknowledged = Vec::new();
            while let Ok(message) = reader.read() {
                let Message::Text(answer) = message else { continue };
                let answer: Value = serde_json::from_str(&answer).unwrap();
                assert_eq!(answer["state"], "stored", "{answer}");
                acknowledged.push(answer["id"].as_u64().unwrap());
            }
            acknowledged
        };
        (Box::new(send), Box::new(read))
    }

    fn follow(&self, messaging: &Messaging, name: &str) -> Box<dyn FnOnce(&mut Inbox) + Send> {
        let (mut client, _) = self.log_in(messaging, name);
        client.ok(json!({"type": "follow", "after": 0}));
        Box::new(move |inbox| {
            let mut last = 0;
            while let Ok(event) = client.try_event() {
                if event["type"] != "message" {
                    continue;
                }
                last = take(inbox, &event, last);
                let ack = json!({"id": last, "type": "ack", "up_to": last});
                if client.socket.send(Message::text(ack.to_string())).is_err() {
                    break;
                }
            }
        })
    }

    fn fetch(&self, messaging: &Messaging, name: &str, _marker: &str, inbox: &mut Inbox) {
        let (mut client, _) = self.log_in(messaging, name);
        let mut last = 0;
        loop {
            let page = client.ok(json!({"type": "fetch", "after": last, "limit": 100}));
            let messages = page["messages"].as_array().unwrap();
            if messages.is_empty() {
                break;
            }
            last = messages.iter().fold(last, |last, message| take(inbox, message, last));
        }
        client.ok(json!({"type": "ack", "up_to": last}));
    }
}

/// Adds a message that came after another; returns its sequence number.
fn take(inbox: &mut Inbox, message: &Value, last: u64) -> u64 {
    let field = |key: &str| message[key].as_str().unwrap();
    let sequence = message["sequence"].as_u64().unwrap();
    assert!(sequence > last, "in order");
    let body = BASE64URL_NOPAD.decode(field("body").as_bytes()).unwrap();
    let from = field("from").strip_prefix("user:").unwrap();
    inbox.add(from, field("message_id"), std::str::from_utf8(&body).unwrap());
    sequence
}

#[test]
fn a_killed_server_delivers_every_message_that_it_acknowledged_over_websocket() {
    let kills = check_kills(Modern::default(), 4);
    assert!(kills.acknowledged > 100, "{kills:?}");
}

#[test]
#[ignore = "long: 200 kills of a server under 500 messages a second over WebSocket, no acknowledged one of which is lost"]
fn long_messaging_websocket_kills() {
    check_kills(Modern::default(), tools::switch("GINNEL_LONG_RUNS", 200)).print();
}
