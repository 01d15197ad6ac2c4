//! The messaging machine with arbitrary clients of the WebSocket protocol, which are written after `docs/wire/messages.md`, against a model: a
//! message is acknowledged only when it is stored, reaches only the device it is for, unchanged and in order, and is removed only when that
//! device has acknowledged it; a device has one session that reads its mailbox; limits hold, and every request is answered once.

#[path = "messaging_backend.rs"]
mod backend;
#[path = "messaging_json/clients.rs"]
mod clients;
#[path = "messaging_json/end_checks.rs"]
mod end_checks;
#[path = "messaging_harness.rs"]
mod harness;
#[path = "input.rs"]
mod input;
#[path = "messaging_json/keys.rs"]
mod keys;
#[path = "messaging_json/requests.rs"]
mod requests;

use clients::Client;
use ginnel::internals::messaging::machine::{Output, RequestId};
use ginnel::internals::messaging::store_request::{StoreReply, StoreRequest};
use ginnel::internals::store::{
    Account, AccountDevice, Acknowledgement, Appended, MailboxId, NewMessage, Party, StoreLimits,
};
use harness::{Harness, MESSAGES, Model};
use input::Input;
use keys::USERS;
use std::collections::{BTreeMap, BTreeSet};

/// The first byte chooses the policy and the rates. Events follow.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    World::new(input.byte()).run(&mut input);
}

/// A message in a mailbox.
struct Stored {
    sender: Party,
    message_id: String,
    is_encrypted: bool,
    body: Vec<u8>,
}

struct World {
    harness: Harness<Client>,
    /// The id of the last request, and the number of the last text.
    number: u64,
    /// The devices of the accounts, by number.
    devices: BTreeMap<i64, AccountDevice>,
    /// Every message that was stored, and those that are stored now.
    history: BTreeMap<(MailboxId, u64), Stored>,
    mailboxes: BTreeMap<MailboxId, BTreeSet<u64>>,
    /// The signing keys of all devices that were ever added, by number.
    signing_keys: BTreeMap<i64, [u8; 32]>,
    /// By the signing key of a device: the numbers up to which it has acknowledged.
    acknowledged: BTreeMap<[u8; 32], BTreeSet<u64>>,
}

impl World {
    fn new(setup: u8) -> Self {
        let mut world = Self {
            harness: Harness::new(setup, StoreLimits::default(), b""),
            number: 1000,
            devices: BTreeMap::new(),
            history: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            signing_keys: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
        };
        // The accounts exist, each with one of its two devices: registrations would take most of the time of an input.
        for (user, name) in USERS.into_iter().enumerate() {
            let account = Account {
                name: name.to_owned(),
                password_hash: None,
                identity_key: Some(keys::identity(user).public()),
                created_at_ms: 0,
            };
            world.harness.backend.call_now(StoreRequest::InsertAccount(account)).expect("a new account");
            let device = StoreRequest::InsertAccountDevice(keys::new_device(user, 0));
            let added = world.harness.backend.call_now(device).expect("a new device");
            world.note_device(added);
        }
        world
    }

    fn call(&mut self, id: RequestId, request: StoreRequest) {
        if let StoreRequest::Acknowledge { mailbox, acknowledgement, .. } = &request {
            let Acknowledgement::UpTo(up_to) = acknowledgement else { panic!("of the TCP protocol") };
            let device = self.devices.values().find(|device| device.mailbox == *mailbox);
            let acknowledged = device.and_then(|device| self.acknowledged.get(&device.details.signing_key));
            let is_acknowledged = acknowledged.is_some_and(|all| all.contains(up_to));
            assert!(is_acknowledged, "{up_to} was not acknowledged by {device:?}");
        }
        let Some(reply) = self.harness.backend.call(id, request.clone()) else { return };
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

    fn note_device(&mut self, reply: StoreReply) {
        let StoreReply::AccountDevice(device) = reply else { panic!("{reply:?}") };
        self.signing_keys.insert(device.id.0, device.details.signing_key);
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
            Output::Text { connection, text } => self.receive(connection, &text),
            Output::Store { id, request } => self.call(id, request),
            _ => panic!("no client speaks the TCP protocol"),
        }
    }

    fn unhandled(client: &mut Client) -> &mut usize {
        &mut client.unhandled
    }

    fn check_answered(client: &Client) {
        assert!(client.open.is_empty(), "unanswered: {:?}", client.open.keys());
    }

    fn end(&mut self) {
        let open: Vec<_> = self.harness.clients.keys().copied().collect();
        for connection in open {
            self.harness.machine.handle_drained(self.harness.now, connection);
        }
        self.settle();
        let devices: Vec<_> = self.devices.keys().copied().collect();
        for number in devices {
            self.check_delivery(number);
        }
    }
}
