//! What clients receive, and what they check.

use super::World;
use super::keys::{USERS, base64};
use data_encoding::BASE64URL_NOPAD;
use ginnel::internals::messaging::machine::ConnectionId;
use ginnel::internals::store::Party;
use serde_json::Value;
use std::collections::BTreeMap;

/// A connection, as its client sees it.
#[derive(Default)]
pub(super) struct Client {
    /// What the client signs.
    pub(super) challenge: Vec<u8>,
    /// The index of the user.
    pub(super) user: Option<usize>,
    pub(super) device: Option<SessionDevice>,
    /// Requests without an answer.
    pub(super) open: BTreeMap<u64, Asked>,
    /// Bytes of texts that the machine is not done with.
    pub(super) unhandled: usize,
    /// The last sequence number that it got while it follows its mailbox.
    pub(super) followed: Option<u64>,
    /// The highest sequence number that it got.
    pub(super) last: u64,
    /// The last page that it fetched.
    pub(super) page: Vec<(u64, String)>,
}

/// The device of a session.
#[derive(Clone, Copy)]
pub(super) struct SessionDevice {
    /// Its number. Before the answer to the login, the one that its key had, or 0.
    pub(super) number: i64,
    pub(super) signing_key: [u8; 32],
    pub(super) reads_mailbox: bool,
}

/// A request that must be answered.
#[derive(Clone)]
pub(super) enum Asked {
    Login { user: usize, device: Option<SessionDevice> },
    Send { message_id: String },
    Follow { after: u64 },
    Unfollow,
    Fetch { after: u64 },
    Other,
}

impl World {
    pub(super) fn receive(&mut self, connection: ConnectionId, text: &str) {
        let message: Value = serde_json::from_str(text).expect("JSON");
        // The client may have closed in the same step.
        let Some(client) = self.harness.clients.get_mut(&connection) else { return };
        let Some(id) = message["id"].as_u64() else { return self.receive_event(connection, &message) };
        let Some(asked) = client.open.remove(&id) else {
            assert!(id < 1000, "{id} is answered once");
            return;
        };
        if message["type"] != "ok" {
            assert_eq!(message["type"], "error");
            assert!(message["code"].is_string(), "{message}");
            return;
        }
        match asked {
            Asked::Login { user, device } => self.logged_in(connection, user, device, &message),
            Asked::Send { message_id } => self.sent(connection, &message_id, &message),
            Asked::Follow { after } => client.followed = Some(after),
            Asked::Unfollow => client.followed = None,
            Asked::Fetch { after } => self.fetched(connection, after, &message),
            Asked::Other => {}
        }
    }

    fn logged_in(
        &mut self,
        connection: ConnectionId,
        user: usize,
        mut device: Option<SessionDevice>,
        message: &Value,
    ) {
        if let Some(device) = &mut device {
            // While the login was on its way, the device may have been removed and added again.
            let number = message["device"].as_i64().expect("a number");
            assert!(number >= device.number && self.signing_keys[&number] == device.signing_key, "{message}");
            device.number = number;
            let is_other = |(id, client): &(&ConnectionId, &Client)| {
                let other = client.device.filter(|other| other.reads_mailbox && other.number == number);
                **id != connection && other.is_some()
            };
            let others = self.harness.clients.iter().filter(is_other).count();
            assert!(!device.reads_mailbox || others == 0, "one session reads a mailbox");
        }
        let client = self.harness.clients.get_mut(&connection).expect("it is open");
        (client.user, client.device, client.followed) = (Some(user), device, None);
        client.last = message["last_sequence"].as_u64().unwrap_or_default();
    }

    fn sent(&mut self, connection: ConnectionId, message_id: &str, message: &Value) {
        assert_eq!(message["state"], "stored");
        // The client may have logged in as another user after it had sent the message.
        let user = self.harness.clients[&connection].user;
        let senders = user.into_iter().chain(0..USERS.len());
        let senders = senders.map(|user| Party::User(USERS[user].to_owned()));
        self.harness.take_acknowledgeable(senders, message_id);
    }

    fn fetched(&mut self, connection: ConnectionId, after: u64, message: &Value) {
        let rows = message["messages"].as_array().expect("a page");
        assert_eq!(message["more"], !rows.is_empty());
        let mut last = after;
        let mut page = Vec::new();
        for row in rows {
            let sequence = self.check_row(connection, row);
            assert!(sequence > last, "in order");
            last = sequence;
            page.push((sequence, row["type"].as_str().expect("a type").to_owned()));
        }
        let client = self.harness.clients.get_mut(&connection).expect("it is open");
        (client.page, client.last) = (page, client.last.max(last));
    }

    fn receive_event(&mut self, connection: ConnectionId, event: &Value) {
        match event["type"].as_str().expect("a type") {
            "hello" => {
                let challenge = event["challenge"].as_str().expect("a challenge");
                let challenge = BASE64URL_NOPAD.decode(challenge.as_bytes()).expect("base64url");
                assert_eq!(challenge.len(), 32);
                self.harness.clients.get_mut(&connection).expect("it is open").challenge = challenge;
            }
            "message" | "receipt" => {
                let sequence = self.check_row(connection, event);
                let client = self.harness.clients.get_mut(&connection).expect("it is open");
                let followed = client.followed.expect("only what follows its mailbox gets events");
                assert!(sequence > followed, "in order");
                (client.followed, client.last) = (Some(sequence), client.last.max(sequence));
            }
            "error" => assert_eq!(event["code"], "malformed"),
            "presence" | "closing" => {}
            other => panic!("{other}"),
        }
    }

    /// Checks that a row is one of the device's mailbox; returns its sequence number.
    fn check_row(&self, connection: ConnectionId, row: &Value) -> u64 {
        let SessionDevice { number, .. } = self.harness.clients[&connection].device.expect("a device");
        let sequence = row["sequence"].as_u64().expect("a number");
        // Nothing more can be known of a device that has been removed in the meantime.
        let Some(device) = self.devices.get(&number) else { return sequence };
        if row["type"] == "receipt" {
            assert!(row["message_id"].is_string() && row["state"].is_string());
            return sequence;
        }
        let stored = self.history.get(&(device.mailbox, sequence)).expect("it was stored for this device");
        assert_eq!(row["from"], stored.sender.to_string());
        assert_eq!(row["message_id"], stored.message_id);
        assert_eq!(row["encrypted"], stored.is_encrypted);
        match stored.is_encrypted {
            true => assert_eq!(row["body"], base64(&stored.body)),
            false => assert_eq!(row["text"].as_str().map(str::as_bytes), Some(&stored.body[..])),
        }
        sequence
    }
}
