//! The messaging machine with arbitrary clients, the store in memory, late results and clock steps, checked against a model: a message is
//! acknowledged only when it is stored, pushed only to its addressee, in order and once for each fetch, and never lost before the addressee
//! acknowledges it; limits hold, and every request is answered.

#[path = "messaging_backend.rs"]
mod backend;
#[path = "messaging_harness.rs"]
mod harness;
#[path = "input.rs"]
mod input;

use backend::SESSION_KEY;
use bytes::Bytes;
use ginnel::internals::messaging::crypto::SessionKey;
use ginnel::internals::messaging::machine::{ConnectionId, Output, RequestId};
use ginnel::internals::messaging::store_request::{StoreReply, StoreRequest};
use ginnel::internals::messaging::wire::Envelope;
use ginnel::internals::store::{Acknowledgement, Appended, MailboxId, NewMessage, Party, StoreLimits};
use harness::{Harness, MESSAGES, Model};
use input::Input;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const USERS: [&str; 3] = ["u0", "u1", "both"];
const DEVICES: [&str; 3] = ["d0", "d1", "both"];
const NAMES: [&str; 6] = ["u0", "u1", "both", "d0", "d1", "nobody"];
const PARTIES: u64 = 5;

/// The first byte chooses the policy and the rates. Events follow.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    World::new(input.byte()).run(&mut input);
}

/// A connection, as its client sees it.
#[derive(Default)]
struct Client {
    party: Option<Party>,
    has_key: bool,
    /// Requests that need an answer, by message id; those that authenticate with the party.
    open: BTreeMap<String, Option<Party>>,
    /// Bytes of frames that the machine is not done with.
    unhandled: usize,
    /// Fetches that may begin anew, and the sequence number that was pushed last.
    fetches: usize,
    last: u64,
    received: Vec<String>,
    acknowledged: BTreeSet<String>,
}

/// A message in a mailbox.
struct Stored {
    sender: Party,
    message_id: String,
    body: Bytes,
}

struct World {
    harness: Harness<Client>,
    number: u64,
    owners: BTreeMap<MailboxId, Party>,
    mailboxes: BTreeMap<MailboxId, BTreeMap<u64, Stored>>,
}

impl World {
    fn new(setup: u8) -> Self {
        let limits = StoreLimits { parties: PARTIES, ..StoreLimits::default() };
        Self {
            harness: Harness::new(setup, limits, b"the server's key"),
            number: 0,
            owners: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
        }
    }

    fn client_event(&mut self, event: u8, slot: u8, input: &mut Input<'_>) {
        let connection = match self.harness.slots.get(&slot) {
            Some(connection) => *connection,
            None => self.open(slot),
        };
        match event {
            5 => self.harness.close(slot),
            6 => self.log_in(connection, 102, input.pick(&USERS), input.byte()),
            7 => self.log_in(connection, 100, input.pick(&USERS), input.byte()),
            8 => self.authenticate_device(connection, input.pick(&DEVICES), input.byte()),
            9 | 10 => self.send_message(connection, input.pick(&NAMES), input.byte()),
            11 => self.acknowledge(connection, input.byte()),
            12 => self.fetch(connection),
            13 => self.contact(connection, 203 + i32::from(input.byte() & 1), input.pick(&DEVICES)),
            14 => match input.byte() % 3 {
                0 => self.harness.machine.handle_congested(connection),
                1 => self.harness.machine.handle_drained(self.harness.now, connection),
                _ => self.exchange_key(connection),
            },
            _ => {
                let data: Vec<_> = (0..input.byte() % 8).map(|_| input.byte()).collect();
                self.frame(connection, data.into());
            }
        }
    }

    fn open(&mut self, slot: u8) -> ConnectionId {
        let connection = self.harness.insert_client(slot);
        let ip = if slot < 3 { "192.0.2.1" } else { "198.51.100.1" };
        self.harness.machine.handle_opened(self.harness.now, connection, ip.parse().unwrap(), slot != 4);
        connection
    }

    fn frame(&mut self, connection: ConnectionId, data: Bytes) {
        let Some(client) = self.harness.clients.get_mut(&connection) else { return };
        client.unhandled += data.len();
        self.harness.machine.handle_frame(self.harness.now, connection, data);
    }

    /// Sends a request; `answers` where exactly one response must come.
    fn request(&mut self, connection: ConnectionId, cmd: i32, msg_id: &str, body: &Value) {
        let data = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let envelope = Envelope { cmd, msg_id: msg_id.to_owned(), is_encrypt: false, data };
        self.frame(connection, envelope.to_frame().slice(4..));
    }

    /// Sends a request that must be answered under a message id of its own.
    fn ask(&mut self, connection: ConnectionId, cmd: i32, body: &Value, party: Option<Party>) {
        self.number += 1;
        let msg_id = format!("r{}", self.number);
        if let Some(client) = self.harness.clients.get_mut(&connection) {
            client.open.insert(msg_id.clone(), party);
        }
        self.request(connection, cmd, &msg_id, body);
    }

    fn log_in(&mut self, connection: ConnectionId, cmd: i32, name: &str, password: u8) {
        let body = json!({"username": name, "password": format!("p{}", password & 1)});
        let party = (cmd == 100).then(|| Party::User(name.to_owned()));
        self.ask(connection, cmd, &body, party);
    }

    fn authenticate_device(&mut self, connection: ConnectionId, id: &str, key: u8) {
        let key = (key & 3 != 0).then(|| format!("a device key of sixteen bytes {}", key & 1));
        let body = json!({"version": "1", "id": id, "abilities": [], "deviceKey": key});
        self.ask(connection, 101, &body, Some(Party::Device(id.to_owned())));
    }

    fn send_message(&mut self, connection: ConnectionId, to: &str, id: u8) {
        // Few ids, so that some repeat; the text says the sender's view.
        self.number += 1;
        let body = json!({"to": to, "msg": format!("text {}", self.number)});
        self.request(connection, 200, &format!("m{}", id % 12), &body);
    }

    /// Acknowledges some received messages, or one that was never received.
    fn acknowledge(&mut self, connection: ConnectionId, which: u8) {
        let Some(client) = self.harness.clients.get_mut(&connection) else { return };
        let ids: Vec<_> = match which % 4 {
            0 => vec![format!("m{}", which >> 4)],
            1 => client.received.clone(),
            count => client.received.iter().take(usize::from(count)).cloned().collect(),
        };
        client.acknowledged.extend(ids.iter().cloned());
        let body: Value = ids.iter().map(|id| json!({"msgid": id})).collect();
        self.request(connection, 201, "", &body);
    }

    fn fetch(&mut self, connection: ConnectionId) {
        if let Some(client) = self.harness.clients.get_mut(&connection) {
            client.fetches += 1;
        }
        self.request(connection, 202, "", &Value::Null);
    }

    fn contact(&mut self, connection: ConnectionId, cmd: i32, device: &str) {
        self.ask(connection, cmd, &json!({"deviceId": device}), None);
    }

    fn exchange_key(&mut self, connection: ConnectionId) {
        let data = Bytes::from_static(&[1; 256]);
        let envelope = Envelope { cmd: 2, msg_id: String::new(), is_encrypt: false, data };
        self.frame(connection, envelope.to_frame().slice(4..));
    }

    fn call(&mut self, id: RequestId, request: StoreRequest) {
        if let StoreRequest::Acknowledge { mailbox, acknowledgement, .. } = &request
            && self.harness.backend.failures == 0
        {
            let Acknowledgement::Sequences(sequences) = acknowledgement else {
                panic!("by the old protocol")
            };
            self.check_removal(*mailbox, sequences);
        }
        let Some(reply) = self.harness.backend.call(id, request.clone()) else { return };
        match (request, &reply) {
            (StoreRequest::Append(message), _) => self.note_stored(&message, &reply),
            (StoreRequest::OpenMailbox(party), StoreReply::Mailbox(mailbox)) => {
                self.owners.insert(mailbox.id, party);
            }
            (
                StoreRequest::Acknowledge {
                    mailbox,
                    acknowledgement: Acknowledgement::Sequences(sequences),
                    ..
                },
                _,
            ) => {
                let messages = self.mailboxes.entry(mailbox).or_default();
                sequences.iter().for_each(|sequence| drop(messages.remove(sequence)));
            }
            _ => {}
        }
    }

    fn note_stored(&mut self, message: &NewMessage, reply: &StoreReply) {
        let StoreReply::Appended(appended) = reply else { return };
        for (copy, appended) in message.copies.iter().zip(appended) {
            let Appended::Stored(sequence) = appended else { continue };
            let messages = self.mailboxes.entry(copy.mailbox).or_default();
            let (sender, message_id) = (message.sender.clone(), message.message_id.clone());
            messages.insert(*sequence, Stored { sender, message_id, body: copy.body.clone() });
            assert!(messages.len() as u64 <= MESSAGES, "a mailbox keeps its limit");
        }
    }

    /// Only what a client of the owner has acknowledged is removed.
    fn check_removal(&self, mailbox: MailboxId, sequences: &[u64]) {
        let (owner, messages) = (&self.owners[&mailbox], &self.mailboxes[&mailbox]);
        for sequence in sequences {
            let Some(message) = messages.get(sequence) else { continue };
            let is_acknowledged = self.harness.clients.values().any(|client| {
                client.party.as_ref() == Some(owner) && client.acknowledged.contains(&message.message_id)
            });
            assert!(is_acknowledged, "{} was not acknowledged by {owner}", message.message_id);
        }
    }

    fn receive(&mut self, connection: ConnectionId, frame: &Bytes) {
        let mut envelope = Envelope::parse(frame.slice(4..)).expect("a valid frame");
        // The client may have closed in the same step.
        let Some(client) = self.harness.clients.get_mut(&connection) else { return };
        if envelope.is_encrypt && !envelope.data.is_empty() {
            assert!(client.has_key);
            envelope.data = SessionKey::new(SESSION_KEY).decrypt(&envelope.data).expect("encrypted").into();
        }
        match envelope.cmd {
            2 => client.has_key |= envelope.data.starts_with(br#"{"code":100"#),
            200 if envelope.data.is_empty() => self.receive_acknowledgement(connection, &envelope.msg_id),
            201 if envelope.msg_id.is_empty() && envelope.data.starts_with(b"[") => {
                self.receive_push(connection, &envelope.data);
            }
            _ => {
                let Some(party) = client.open.remove(&envelope.msg_id) else { return };
                let body: Value = serde_json::from_slice(&envelope.data).expect("JSON");
                if party.is_some() && body["code"] == 100 {
                    self.authenticated(connection, party);
                }
            }
        }
    }

    fn authenticated(&mut self, connection: ConnectionId, party: Option<Party>) {
        let others =
            self.harness.clients.iter().filter(|(id, client)| **id != connection && client.party == party);
        assert_eq!(others.count(), 0, "{party:?} is online once");
        let client = self.harness.clients.get_mut(&connection).expect("it is open");
        // A fetch and acknowledgements may have been sent behind the login already.
        (client.party, client.last) = (party, 0);
        client.received.clear();
    }

    fn receive_acknowledgement(&mut self, connection: ConnectionId, msg_id: &str) {
        // The client may have authenticated as somebody else after it had sent the message.
        let party = self.harness.clients[&connection].party.clone();
        let senders = self.owners.values().cloned().chain(party);
        self.harness.take_acknowledgeable(senders, msg_id);
    }

    fn receive_push(&mut self, connection: ConnectionId, data: &[u8]) {
        let client = self.harness.clients.get_mut(&connection).expect("it is open");
        let party = client.party.as_ref().expect("it has authenticated");
        let pushed: Vec<Value> = serde_json::from_slice(data).expect("JSON");
        let mailbox = self.owners.iter().find(|(_, owner)| *owner == party).expect("it has a mailbox").0;
        let messages = &self.mailboxes[mailbox];
        for message in pushed {
            let text = |key: &str| message[key].as_str().expect("a text");
            assert_eq!(text("to"), party.name());
            let is_this = |stored: &Stored| {
                stored.message_id == text("msgid")
                    && stored.sender.name() == text("from")
                    && stored.body == text("msg").as_bytes()
            };
            let mut found = messages.iter().filter(|(_, stored)| is_this(stored)).map(|(number, _)| *number);
            // It may be removed already, while its page was on its way.
            let Some(sequence) = found.next() else { continue };
            if sequence <= client.last {
                client.fetches = client.fetches.checked_sub(1).expect("again only after a fetch");
            }
            client.last = sequence;
            client.received.push(text("msgid").to_owned());
        }
    }

    fn check_delivery(&mut self, mailbox: MailboxId, party: Party) {
        let connection = self.open(4);
        match &party {
            Party::User(name) => {
                for password in 0..2 {
                    self.log_in(connection, 100, name, password);
                    self.complete(usize::MAX);
                }
            }
            Party::Device(id) => {
                for (slot, key) in [(3, 0), (3, 2), (3, 1), (0, 0), (0, 2), (0, 1)] {
                    self.harness.close(4);
                    self.harness.close(slot);
                    let connection = self.open(slot);
                    self.authenticate_device(connection, id, key);
                    self.complete(usize::MAX);
                    if self.harness.clients.get(&connection).is_some_and(|client| client.party.is_some()) {
                        break;
                    }
                }
            }
        }
        let is_party = |(_, client): &(&ConnectionId, &Client)| client.party.as_ref() == Some(&party);
        let Some(connection) = self.harness.clients.iter().find(is_party).map(|(connection, _)| *connection)
        else {
            // A recipient that has never logged in.
            return;
        };
        self.fetch(connection);
        self.drain();
        self.complete(usize::MAX);
        let received = &self.harness.clients[&connection].received;
        let stored = self.mailboxes.entry(mailbox).or_default().values();
        let expected: Vec<_> = stored.map(|message| message.message_id.clone()).collect();
        assert_eq!(*received, expected, "everything that is stored reaches {party}, in order");
    }
}

impl Model for World {
    type Client = Client;

    fn harness(&mut self) -> &mut Harness<Client> {
        &mut self.harness
    }

    fn client_event(&mut self, event: u8, slot: u8, input: &mut Input<'_>) {
        self.client_event(event, slot, input);
    }

    fn handle_output(&mut self, output: Output) {
        match output {
            Output::Frame { connection, frame } => self.receive(connection, &frame),
            Output::Store { id, request } => self.call(id, request),
            _ => panic!("the modern protocol is not spoken"),
        }
    }

    fn unhandled(client: &mut Client) -> &mut usize {
        &mut client.unhandled
    }

    fn check_answered(client: &Client) {
        assert!(client.open.is_empty(), "unanswered: {:?}", client.open.keys());
    }

    /// Every message that is stored reaches its addressee.
    fn end(&mut self) {
        self.settle();
        for (mailbox, party) in self.owners.clone() {
            self.check_delivery(mailbox, party);
        }
    }
}
