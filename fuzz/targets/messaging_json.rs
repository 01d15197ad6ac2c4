//! The messaging machine with arbitrary clients of the WebSocket protocol, which are written after `docs/wire/messages.md`, against a model: a
//! message is acknowledged only when it is stored, reaches only the device it is for, unchanged and in order, and is removed only when that
//! device has acknowledged it; a device has one session that reads its mailbox; limits hold, and every request is answered once.

#[path = "messaging_backend.rs"]
mod backend;
#[path = "messaging_json/clients.rs"]
mod clients;
#[path = "messaging_json/end_checks.rs"]
mod end_checks;
#[path = "input.rs"]
mod input;
#[path = "messaging_json/keys.rs"]
mod keys;
#[path = "messaging_json/requests.rs"]
mod requests;

use backend::{Backend, Completion, config};
use clients::Client;
use ginnel::Now;
use ginnel::internals::messaging::machine::{ConnectionId, Machine, Output, RequestId};
use ginnel::internals::messaging::store_request::{StoreReply, StoreRequest};
use ginnel::internals::net::time;
use ginnel::internals::store::{
    Account, AccountDevice, Acknowledgement, Appended, MailboxId, NewMessage, Party, StoreLimits,
};
use input::Input;
use keys::USERS;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const MAX_EVENTS: usize = 150;
const SLOTS: u8 = 5;
const MESSAGES: u64 = 6;
const WAITS: [u64; 4] = [0, 11, 100, 151];

/// The first byte chooses the policy and the rates. Events follow, each of one byte and its operands.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(input.byte());
    for _ in 0..MAX_EVENTS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
        world.drain();
    }
    world.end();
}

/// A message in a mailbox.
struct Stored {
    sender: Party,
    message_id: String,
    is_encrypted: bool,
    body: Vec<u8>,
}

struct World {
    now: Now,
    machine: Machine,
    backend: Backend,
    slots: BTreeMap<u8, ConnectionId>,
    clients: BTreeMap<ConnectionId, Client>,
    next: u64,
    /// The id of the last request, and the number of the last text.
    number: u64,
    /// The devices of the accounts, by number.
    devices: BTreeMap<i64, AccountDevice>,
    /// Every message that was stored, and those that are stored now.
    history: BTreeMap<(MailboxId, u64), Stored>,
    mailboxes: BTreeMap<MailboxId, BTreeSet<u64>>,
    /// By device: the numbers up to which it has acknowledged.
    acknowledged: BTreeMap<i64, BTreeSet<u64>>,
    /// Successful appends whose answer has not left, by sender and message id.
    acknowledgeable: BTreeMap<(Party, String), usize>,
}

impl World {
    fn new(setup: u8) -> Self {
        let limits =
            StoreLimits { messages_per_mailbox: MESSAGES, contacts_per_party: 2, ..StoreLimits::default() };
        let now = time::now();
        let key = Vec::new().into();
        let mut world = Self {
            now,
            machine: Machine::new(now, config(setup), key, &mut ChaCha20Rng::from_seed([7; 32])),
            backend: Backend::new(limits),
            slots: BTreeMap::new(),
            clients: BTreeMap::new(),
            next: 0,
            number: 1000,
            devices: BTreeMap::new(),
            history: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            acknowledgeable: BTreeMap::new(),
        };
        // The accounts exist, each with one of its two devices: registrations would take most of the time of an input.
        for (user, name) in USERS.into_iter().enumerate() {
            let account = Account {
                name: name.to_owned(),
                password_hash: None,
                identity_key: Some(keys::identity(user).public()),
                created_at_ms: 0,
            };
            world.backend.call_now(StoreRequest::InsertAccount(account)).expect("a new account");
            let device = StoreRequest::InsertAccountDevice(keys::new_device(user, 0));
            let added = world.backend.call_now(device).expect("a new device");
            world.note_device(added);
        }
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let event = input.byte();
        match event % 16 {
            0 => self.complete(usize::MAX),
            1 | 2 => self.complete(usize::from(input.byte())),
            3 => self.backend.failures = input.byte() % 4,
            4 => self.wait(Duration::from_secs(input.pick(&WAITS))),
            event => {
                let slot = input.byte() % SLOTS;
                self.client_event(event, slot, input);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.machine.handle_timeout(self.now);
    }

    /// Passes results to the machine: all of them, or one.
    fn complete(&mut self, which: usize) {
        self.drain();
        while let Some(completion) = self.backend.take(which) {
            match completion {
                Completion::Append(id, message, result) => {
                    if result.is_ok() {
                        let key = (message.sender, message.message_id);
                        *self.acknowledgeable.entry(key).or_default() += 1;
                    }
                    self.machine.handle_store_result(self.now, id, result);
                }
                Completion::Store(id, result) => self.machine.handle_store_result(self.now, id, result),
                Completion::Job(id, result) => self.machine.handle_job_result(self.now, id, result),
            }
            self.drain();
            if which != usize::MAX {
                return;
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Text { connection, text } => self.receive(connection, &text),
                Output::Close(connection) => {
                    self.clients.remove(&connection);
                    self.slots.retain(|_, open| *open != connection);
                }
                Output::Handled { connection, bytes } => {
                    let Some(client) = self.clients.get_mut(&connection) else { continue };
                    client.unhandled = client.unhandled.checked_sub(bytes).expect("handled once");
                }
                Output::Authenticated(_) => {}
                Output::Frame { .. } => panic!("no client speaks the TCP protocol"),
                Output::Store { id, request } => self.call(id, request),
                Output::Job { id, job } => self.backend.start(id, job),
            }
        }
    }

    fn call(&mut self, id: RequestId, request: StoreRequest) {
        if let StoreRequest::Acknowledge { mailbox, acknowledgement, .. } = &request {
            let Acknowledgement::UpTo(up_to) = acknowledgement else { panic!("of the TCP protocol") };
            let device = self.device_of(*mailbox);
            let is_acknowledged = self.acknowledged.get(&device).is_some_and(|all| all.contains(up_to));
            assert!(is_acknowledged, "{up_to} was not acknowledged by device {device}");
        }
        let Some(reply) = self.backend.call(id, request.clone()) else { return };
        match request {
            StoreRequest::Append(message) => self.note_stored(&message, &reply),
            StoreRequest::InsertAccountDevice(_) => self.note_device(reply),
            StoreRequest::RemoveAccountDevice(_, device, _) => {
                let removed = self.devices.remove(&device.0).expect("a device");
                self.mailboxes.remove(&removed.mailbox);
            }
            StoreRequest::Acknowledge { mailbox, acknowledgement: Acknowledgement::UpTo(up_to), .. } => {
                self.mailboxes.entry(mailbox).or_default().retain(|sequence| *sequence > up_to);
            }
            _ => {}
        }
    }

    /// Returns the number of the device whose mailbox this is.
    fn device_of(&self, mailbox: MailboxId) -> i64 {
        let found = self.devices.iter().find(|(_, device)| device.mailbox == mailbox);
        found.map_or(-1, |(number, _)| *number)
    }

    fn note_device(&mut self, reply: StoreReply) {
        let StoreReply::AccountDevice(device) = reply else { panic!("{reply:?}") };
        self.devices.insert(device.id.0, device);
    }

    fn note_stored(&mut self, message: &NewMessage, reply: &StoreReply) {
        let StoreReply::Appended(appended) = reply else { panic!("{reply:?}") };
        for (copy, appended) in message.copies.iter().zip(appended) {
            let Appended::Stored(sequence) = appended else { continue };
            let stored = Stored {
                sender: message.sender.clone(),
                message_id: message.message_id.clone(),
                is_encrypted: copy.is_encrypted,
                body: copy.body.to_vec(),
            };
            let is_new = self.history.insert((copy.mailbox, *sequence), stored).is_none();
            assert!(is_new, "a sequence number is used once");
            let messages = self.mailboxes.entry(copy.mailbox).or_default();
            messages.insert(*sequence);
            assert!(messages.len() as u64 <= MESSAGES, "a mailbox keeps its limit");
        }
    }
}
