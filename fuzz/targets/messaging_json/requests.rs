//! What clients send.

use super::World;
use super::clients::{Asked, SessionDevice};
use super::harness::{Model, SLOTS};
use super::input::Input;
use super::keys::{self, DEVICES, USERS, base64};
use ginnel::internals::messaging::machine::ConnectionId;
use serde_json::{Value, json};

/// The parties that requests name.
const PARTIES: [&str; 6] = ["user:u0", "user:u1", "user:u2", "user:new", "dev:lamp", "nobody"];
/// Texts that are no requests, and requests that are incomplete; their ids are below those of requests that must be answered.
const TEXTS: [&str; 10] = [
    "",
    "[]",
    "{}",
    r#"{"type":"ping"}"#,
    r#"{"id":-1,"type":"ping"}"#,
    r#"{"id":7}"#,
    r#"{"id":7,"type":"nonsense"}"#,
    r#"{"id":7,"type":"send","to":5}"#,
    r#"{"id":7,"type":"login","user":"u0"}"#,
    r#"{"id":7,"type":"ack","up_to":-1}"#,
];

impl World {
    pub(super) fn client_event(&mut self, event: u8, slot: u8, input: &mut Input<'_>) {
        let connection = match self.harness.slots.get(&slot) {
            Some(connection) => *connection,
            None => self.open(slot),
        };
        match event {
            5 => self.harness.close(slot),
            6 | 7 => self.log_in_device(connection, input.below(USERS.len()), input.byte()),
            8 => self.log_in_otherwise(connection, input.byte()),
            9 | 10 => self.send_message(connection, input.pick(&PARTIES), input.byte()),
            11 => self.acknowledge(connection, input.byte()),
            12 => self.read_mailbox(connection, input.byte()),
            13 => self.request_contacts(connection, input.pick(&PARTIES), input.byte()),
            14 => self.change_account(connection, input.byte()),
            _ => match input.byte() % 4 {
                0 => self.harness.machine.handle_congested(connection),
                1 => self.harness.machine.handle_drained(self.harness.now, connection),
                2 => self.harness.machine.handle_alive(self.harness.now, connection),
                _ => {
                    let text = input.pick(&TEXTS).to_owned();
                    let text = text + &String::from_utf8_lossy(input.bytes(8));
                    self.text(connection, text);
                }
            },
        }
    }

    /// Opens a connection; that of the last slot is without TLS, and of another network.
    pub(super) fn open(&mut self, slot: u8) -> ConnectionId {
        let connection = self.harness.insert_client(slot);
        let is_last = slot == SLOTS - 1;
        let ip = if is_last { "198.51.100.1" } else { "192.0.2.1" };
        self.harness.machine.handle_websocket_opened(
            self.harness.now,
            connection,
            ip.parse().expect("an address"),
            !is_last,
        );
        self.drain();
        connection
    }

    fn text(&mut self, connection: ConnectionId, text: String) {
        let Some(client) = self.harness.clients.get_mut(&connection) else { return };
        client.unhandled += text.len();
        self.harness.machine.handle_text(self.harness.now, connection, text);
    }

    /// Sends a request, which must be answered.
    pub(super) fn request(&mut self, connection: ConnectionId, asked: Asked, mut request: Value) {
        self.number += 1;
        request["id"] = self.number.into();
        if let Some(client) = self.harness.clients.get_mut(&connection) {
            client.open.insert(self.number, asked);
        }
        self.text(connection, request.to_string());
    }

    /// Logs in as a device. The bits choose the device, a wrong signature, and a session that does not read the mailbox.
    pub(super) fn log_in_device(&mut self, connection: ConnectionId, user: usize, bits: u8) {
        let index = usize::from(bits) % DEVICES;
        let key = keys::signing(user, index);
        let public = key.public();
        let challenge = &self.harness.clients[&connection].challenge;
        let mut signature = key.sign("ginnel login v1", &[challenge, USERS[user].as_bytes(), &public]);
        let is_wrong = bits & 0xF0 == 0xF0;
        signature[63 - usize::from(bits & 8)] ^= u8::from(is_wrong);
        let reads_mailbox = bits & 6 != 6;
        let known = self.devices.values().find(|device| device.details.signing_key == public);
        let number = known.map_or(0, |device| device.id.0);
        let device = Some(SessionDevice { number, signing_key: public, reads_mailbox });
        let asked = if is_wrong { Asked::Other } else { Asked::Login { user, device } };
        let mut login = json!({"type": "login", "user": USERS[user], "device_key": base64(&public),
            "signature": base64(&signature)});
        if !reads_mailbox {
            login["mailbox"] = false.into();
        }
        self.request(connection, asked, login);
    }

    /// Logs in with the identity key or a password, which no account has, or registers.
    fn log_in_otherwise(&mut self, connection: ConnectionId, bits: u8) {
        let user = usize::from(bits >> 4) % USERS.len();
        let name = USERS[user];
        let challenge = &self.harness.clients[&connection].challenge;
        let (asked, request) = match bits % 4 {
            0 => {
                let signature =
                    keys::identity(user).sign("ginnel identity login v1", &[challenge, name.as_bytes()]);
                let login = json!({"type": "login", "user": name, "identity_signature": base64(&signature)});
                (Asked::Login { user, device: None }, login)
            }
            1 => (Asked::Other, json!({"type": "register", "user": "new", "password": "p"})),
            2 => (Asked::Other, json!({"type": "register", "user": name, "password": "p"})),
            _ => (Asked::Other, json!({"type": "logout"})),
        };
        self.request(connection, asked, request);
    }

    /// Sends to all devices of the recipient, to some, or plaintext.
    fn send_message(&mut self, connection: ConnectionId, to: &str, bits: u8) {
        let devices =
            self.devices.iter().filter(|(_, device)| to == format!("user:{}", device.details.account));
        let mut devices: Vec<_> = devices.map(|(number, _)| *number).collect();
        // Few ids, so that some repeat.
        let message_id = format!("m{}", bits % 12);
        self.number += 1;
        let text = format!("text {}", self.number);
        let mut send = json!({"type": "send", "to": to, "message_id": message_id});
        match bits >> 5 {
            0 => send["text"] = text.into(),
            choice => {
                if choice == 1 {
                    devices.pop();
                }
                let copies =
                    devices.iter().map(|number| json!({"device": number, "body": base64(text.as_bytes())}));
                send["copies"] = copies.collect();
            }
        }
        self.request(connection, Asked::Send { message_id }, send);
    }

    /// Acknowledges everything that was received, or a number.
    fn acknowledge(&mut self, connection: ConnectionId, bits: u8) {
        let client = &self.harness.clients[&connection];
        let up_to = if bits & 1 == 0 { client.last } else { u64::from(bits >> 1) };
        // The login may still be on its way.
        let asked = client.open.values().filter_map(|asked| match asked {
            Asked::Login { device, .. } => *device,
            _ => None,
        });
        let devices: Vec<_> = client.device.into_iter().chain(asked).collect();
        for device in devices {
            self.acknowledged.entry(device.signing_key).or_default().insert(up_to);
        }
        self.request(connection, Asked::Other, json!({"type": "ack", "up_to": up_to}));
    }

    fn read_mailbox(&mut self, connection: ConnectionId, bits: u8) {
        let after = if bits & 4 == 0 { u64::from(bits >> 3) } else { self.harness.clients[&connection].last };
        match bits % 4 {
            0 => self.fetch(connection, after, u64::from(bits)),
            1 => self.request(connection, Asked::Unfollow, json!({"type": "unfollow"})),
            _ => self.request(connection, Asked::Follow { after }, json!({"type": "follow", "after": after})),
        }
    }

    pub(super) fn fetch(&mut self, connection: ConnectionId, after: u64, limit: u64) {
        let fetch = json!({"type": "fetch", "after": after, "limit": limit.max(1)});
        self.request(connection, Asked::Fetch { after }, fetch);
    }

    fn request_contacts(&mut self, connection: ConnectionId, party: &str, bits: u8) {
        let request = match bits % 5 {
            0 => json!({"type": "add_contact", "party": party}),
            1 => json!({"type": "remove_contact", "party": party}),
            2 => json!({"type": "contacts"}),
            3 => json!({"type": "watch"}),
            _ => json!({"type": "devices", "party": party}),
        };
        self.request(connection, Asked::Other, request);
    }

    fn change_account(&mut self, connection: ConnectionId, bits: u8) {
        let user = usize::from(bits >> 4) % USERS.len();
        let request = match bits % 4 {
            0 | 1 => {
                let device = keys::new_device(user, usize::from(bits >> 2) % DEVICES);
                json!({"type": "add_device", "label": device.label, "signing_key": base64(&device.signing_key),
                    "encryption_key": base64(&device.encryption_key), "signature": base64(&device.signature)})
            }
            2 => {
                let numbers: Vec<_> = self.devices.keys().copied().chain([-1]).collect();
                json!({"type": "remove_device", "device": numbers[usize::from(bits >> 2) % numbers.len()]})
            }
            _ => json!({"type": "set_password", "password": "p"}),
        };
        self.request(connection, Asked::Other, request);
    }
}
