//! The state machine against a server that is honest, slow, or malicious.

use super::encryption::{self, Content, public_key};
use super::error::{ClientError, ErrorCode, RequestError};
use super::event::{Event, Protection, ReceiptState, Sent};
use super::keys::{Fingerprint, Keys, Secrets};
use super::known_peers::Distrust;
use super::machine::{AccountChange, Answer, LocalAccount, Machine, Operation, Output, Receive};
use super::party_name::PartyName;
use super::sending::Draft;
use super::state::State;
use crate::clock::Now;
use crate::messaging_wire::signing::{SigningKey, Statement};
use crate::messaging_wire::{
    self, Body, Device, Devices, Empty, ErrorBody, FixedBytes, MailboxState, Message, Page, Receipt, Request,
    SentState, Stored, error_frame, ok_frame,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::time::{Duration, Instant};

pub(super) const EPOCH: u64 = 7;

pub(super) fn random(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub(super) fn start() -> Now {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let mono = Instant::now();
    Now { mono, unix: 1_800_000_000 }
}

/// Another account, with one device.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) identity: SigningKey,
    pub(super) signing: SigningKey,
    pub(super) encryption_secret: [u8; 32],
    pub(super) number: i64,
}

impl Peer {
    pub(super) fn new(name: &'static str, seed: u8) -> Self {
        let key = |offset: u8| SigningKey::from_seed(&[seed + offset; 32]).unwrap();
        Self {
            name,
            identity: key(0),
            signing: key(1),
            encryption_secret: [seed + 2; 32],
            number: i64::from(seed),
        }
    }

    /// Another device of the same account.
    pub(super) fn with_device(&self, seed: u8) -> Self {
        let identity = SigningKey::from_seed(&[u8::try_from(self.number).unwrap(); 32]).unwrap();
        Self { identity, ..Self::new(self.name, seed) }
    }

    pub(super) fn party(&self) -> PartyName {
        self.name.parse().unwrap()
    }

    pub(super) fn device(&self) -> Device {
        let (signing_key, encryption_key) = (self.signing.public(), public_key(&self.encryption_secret));
        let statement =
            Statement::Device { user: self.name, signing_key: &signing_key, encryption_key: &encryption_key };
        Device {
            device: self.number,
            label: None,
            signing_key: FixedBytes(signing_key),
            encryption_key: FixedBytes(encryption_key),
            signature: FixedBytes(self.identity.sign(&statement)),
            created_at: 0,
        }
    }

    pub(super) fn devices(&self) -> Devices {
        Devices {
            identity_key: Some(FixedBytes(self.identity.public())),
            devices: vec![self.device()],
            legacy: false,
        }
    }

    pub(super) fn content(&self, client: &Client, message_id: &str, text: &str) -> Content {
        Content {
            from: format!("user:{}", self.name),
            from_key: FixedBytes(self.signing.public()),
            to: "user:alice".into(),
            to_key: FixedBytes(client.machine.account.keys.encryption_key),
            message_id: message_id.into(),
            sent_at: client.now.unix * 1000,
            certificate: None,
            copy_of: None,
            text: text.into(),
        }
    }

    pub(super) fn message(&self, client: &Client, sequence: u64, text: &str) -> Message {
        let content = self.content(client, &format!("m{sequence}"), text);
        self.envelope(&content, sequence, &self.signing)
    }

    pub(super) fn envelope(&self, content: &Content, sequence: u64, signer: &SigningKey) -> Message {
        let body = encryption::seal(content, signer, &mut random(sequence)).unwrap();
        Message {
            sequence,
            from: format!("user:{}", self.name),
            device: Some(self.number),
            message_id: content.message_id.clone(),
            encrypted: true,
            body: Some(Body(body)),
            text: None,
            stored_at: 1,
            expires_at: 2,
        }
    }
}

/// The machine of alice, and what it has put out.
pub(super) struct Client {
    pub(super) machine: Machine,
    pub(super) now: Now,
    /// Requests that were not answered.
    pub(super) requests: Vec<(u64, Request)>,
    pub(super) events: Vec<Event>,
    pub(super) done: Vec<(Operation, Result<Answer, RequestError>)>,
    pub(super) saved: State,
    pub(super) end: Option<ClientError>,
    pub(super) reconnects: usize,
}

impl Client {
    pub(super) fn new(receive: Receive, state: State) -> Self {
        let keys = Keys::new(&Secrets::generate(true, &mut random(1))).unwrap();
        let account = LocalAccount { user: "alice".into(), party: "alice".parse().unwrap(), keys };
        let machine = Machine::new(account, state.clone(), receive, random(2));
        let now = start();
        Self {
            machine,
            now,
            requests: Vec::new(),
            events: Vec::new(),
            done: Vec::new(),
            saved: state,
            end: None,
            reconnects: 0,
        }
    }

    /// A client that has logged in and follows its mailbox.
    pub(super) fn online() -> Self {
        let mut client = Self::new(Receive::Everything, State::default());
        client.connect(0);
        client.answer(&Empty {});
        client.events.clear();
        client
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Save(change) => self.saved.apply(&change).unwrap(),
                Output::Frame(frame) => {
                    let request = Request::parse(&frame).unwrap();
                    if let Request::Ack(ack) = &request.1 {
                        let saved = self.saved.acknowledged(self.machine.epoch);
                        assert!(saved >= ack.up_to, "acknowledged before it is durable");
                    }
                    self.requests.push(request);
                }
                Output::Event(event) => self.events.push(event),
                Output::Done(operation, result) => self.done.push((operation, result)),
                Output::Reconnect { .. } => self.reconnects += 1,
                Output::End(error) => self.end = Some(error),
            }
        }
    }

    pub(super) fn frame(&mut self, text: &str) {
        self.machine.handle_frame(text, self.now);
        self.drain();
    }

    pub(super) fn row(&mut self, message: Message) {
        self.frame(&messaging_wire::Event::Message(message).to_frame());
    }

    /// Opens a connection and logs in; the mailbox has this many messages.
    pub(super) fn connect(&mut self, stored: u64) {
        self.machine.handle_connected(self.now);
        self.frame(&messaging_wire::Event::Hello { version: 1, challenge: FixedBytes([3; 32]) }.to_frame());
        let (_, request) = self.requests.last().unwrap();
        let Request::Login(login) = request else { panic!("{request:?}") };
        let messaging_wire::LoginProof::Device { key, signature, .. } = &login.proof else {
            panic!("{login:?}")
        };
        let statement = Statement::DeviceLogin { challenge: &[3; 32], user: "alice", signing_key: &key.0 };
        assert!(statement.is_signed(&key.0, &signature.0));
        self.log_in(EPOCH, stored);
    }

    pub(super) fn log_in(&mut self, epoch: u64, stored: u64) {
        let stored = Stored { messages: stored, bytes: 0 };
        let (certificate, other_devices) = (Some(FixedBytes([4; 64])), 0);
        self.answer(&MailboxState { device: 1, epoch, last_sequence: 9, stored, certificate, other_devices });
    }

    /// Takes the only request that waits for an answer.
    pub(super) fn request(&mut self) -> (u64, Request) {
        assert_eq!(self.requests.len(), 1, "{:?}", self.requests);
        self.requests.remove(0)
    }

    /// Answers the oldest request.
    pub(super) fn answer(&mut self, fields: &impl serde::Serialize) {
        let (id, _) = self.requests.remove(0);
        self.frame(&ok_frame(id, fields));
    }

    /// Answers the question for the devices of this peer.
    pub(super) fn answer_devices(&mut self, peer: &Peer, devices: &Devices) {
        let (id, request) = self.request();
        let Request::Devices(asked) = request else { panic!("{request:?}") };
        assert_eq!(asked.party, peer.party().as_wire());
        self.frame(&ok_frame(id, devices));
    }

    pub(super) fn refuse(&mut self, error: &ErrorBody) {
        let (id, _) = self.request();
        self.frame(&error_frame(id, error));
    }

    pub(super) fn send(&mut self, to: &Peer, encrypted_only: bool) {
        let draft = Draft { to: to.party(), text: "hello".into(), encrypted_only };
        self.machine.send(Operation(1), draft, self.now);
        self.drain();
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        self.machine.acknowledge(Operation(2), number, self.now);
        self.drain();
    }

    /// Loses the connection, with what was not answered.
    pub(super) fn disconnect(&mut self) {
        self.machine.handle_disconnected("test");
        self.drain();
        self.requests.clear();
    }

    /// What the only refusal says.
    pub(super) fn refusal(&mut self) -> Distrust {
        let events = std::mem::take(&mut self.events);
        let reasons: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Refused { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect();
        assert!(!events.iter().any(|event| matches!(event, Event::Message(_))), "{events:?}");
        assert_eq!(reasons.len(), 1, "{events:?}");
        reasons[0]
    }

    pub(super) fn texts(&self) -> Vec<(&str, Protection)> {
        fn text(event: &Event) -> Option<(&str, Protection)> {
            match event {
                Event::Message(message) => Some((&*message.text, message.protection)),
                _ => None,
            }
        }
        self.events.iter().filter_map(text).collect()
    }

    pub(super) fn sent(&mut self) -> Result<Sent, RequestError> {
        assert_eq!(self.done.len(), 1, "{:?}", self.done);
        let (operation, result) = self.done.remove(0);
        assert_eq!(operation, Operation(1));
        result.map(|answer| match answer {
            Answer::Sent(sent) => sent,
            other => panic!("{other:?}"),
        })
    }
}

pub(super) fn bob() -> Peer {
    Peer::new("bob", 50)
}

pub(super) fn stored() -> messaging_wire::Sent {
    messaging_wire::Sent { state: SentState::Stored, duplicate: false }
}

/// The copies of the only request, which is a message.
pub(super) fn copies(client: &mut Client) -> (u64, String, messaging_wire::Content) {
    let (id, request) = client.request();
    let Request::Send(send) = request else { panic!("{request:?}") };
    (id, send.message_id, send.content)
}

#[test]
fn a_message_is_acknowledged_after_the_user_has_seen_it_and_that_is_durable() {
    let (mut client, bob) = (Client::online(), bob());
    client.row(bob.message(&client, 1, "one"));
    client.answer_devices(&bob, &bob.devices());
    client.row(bob.message(&client, 2, "two"));
    assert_eq!(client.texts(), [("one", Protection::EndToEnd), ("two", Protection::EndToEnd)]);
    assert!(client.events.contains(&Event::Pinned {
        party: bob.party(),
        fingerprint: Fingerprint::of(&bob.identity.public())
    }));
    assert_eq!(client.requests, [], "nothing is acknowledged before the user has seen it");
    client.acknowledge(1);
    let (id, request) = client.request();
    assert!(matches!(request, Request::Ack(ack) if ack.up_to == 1));
    client.frame(&ok_frame(id, &Empty {}));
    assert_eq!(client.done, [(Operation(2), Ok(Answer::Acknowledged))]);
    // A restart: what was not acknowledged arrives again, and is shown.
    let mut restarted = Client::new(Receive::Everything, client.saved.clone());
    restarted.connect(1);
    let follows = restarted.requests.iter().any(|(_, r)| matches!(r, Request::Follow(f) if f.after == 1));
    assert!(follows, "{:?}", restarted.requests);
    restarted.requests.clear();
    restarted.row(bob.message(&restarted, 2, "two"));
    restarted.answer_devices(&bob, &bob.devices());
    assert_eq!(restarted.texts(), [("two", Protection::EndToEnd)]);
}

#[test]
fn a_message_is_encrypted_for_each_device_and_stored_once() {
    let (mut client, bob) = (Client::online(), bob());
    let phone = bob.with_device(60);
    client.send(&bob, true);
    let mut devices = bob.devices();
    devices.devices.push(phone.device());
    client.answer_devices(&bob, &devices);
    let (id, message_id, content) = copies(&mut client);
    let messaging_wire::Content::Encrypted(copies) = content else { panic!("{content:?}") };
    for (copy, device) in copies.iter().zip([&bob, &phone]) {
        let content = encryption::open(&copy.body.0, &device.encryption_secret).unwrap();
        assert_eq!((copy.device, &*content.text, &content.message_id), (device.number, "hello", &message_id));
    }
    client.frame(&ok_frame(id, &stored()));
    let sent = client.sent().unwrap();
    assert_eq!((sent.protection, sent.devices, sent.message_id), (Protection::EndToEnd, 2, message_id));
}

#[test]
fn a_server_that_always_finds_other_devices_is_not_asked_for_ever() {
    let (mut client, bob) = (Client::online(), bob());
    client.send(&bob, false);
    let mut frames = 0;
    while client.done.is_empty() {
        let (id, request) = client.request();
        let frame = match request {
            Request::Devices(_) => ok_frame(id, &bob.devices()),
            _ => error_frame(id, &ErrorBody::new(ErrorCode::DevicesChanged, "changed")),
        };
        client.frame(&frame);
        frames += 1;
        assert!(frames < 20);
    }
    assert!(matches!(client.sent(), Err(RequestError::Refused { code: ErrorCode::DevicesChanged, .. })));
}

#[test]
fn a_party_without_keys_gets_plaintext_unless_that_is_forbidden() {
    let (mut client, bob) = (Client::online(), bob());
    let legacy = Devices { legacy: true, ..Devices::default() };
    client.send(&bob, true);
    client.answer_devices(&bob, &legacy);
    assert_eq!(client.sent(), Err(RequestError::NotEncrypted { party: bob.party() }));
    client.send(&bob, false);
    let (id, _, content) = copies(&mut client);
    assert_eq!(content, messaging_wire::Content::Text("hello".into()));
    // Meanwhile bob has got a device.
    client.frame(&error_frame(id, &ErrorBody::new(ErrorCode::PlaintextRefused, "no")));
    client.answer_devices(&bob, &bob.devices());
    let (id, _, content) = copies(&mut client);
    assert!(matches!(content, messaging_wire::Content::Encrypted(_)));
    client.frame(&ok_frame(id, &stored()));
    assert_eq!(client.sent().unwrap().protection, Protection::EndToEnd);
}

#[test]
fn an_unknown_party_and_one_without_a_device_are_errors() {
    let (mut client, bob) = (Client::online(), bob());
    client.send(&bob, false);
    client.refuse(&ErrorBody::new(ErrorCode::NotFound, "no such party"));
    assert!(matches!(client.sent(), Err(RequestError::Refused { code: ErrorCode::NotFound, .. })));
    client.disconnect();
    client.connect(0);
    client.answer(&Empty {});
    client.send(&bob, false);
    client.answer_devices(&bob, &Devices { devices: Vec::new(), ..bob.devices() });
    assert_eq!(client.sent(), Err(RequestError::NoDevice { party: bob.party() }));
}

#[test]
fn a_message_without_an_answer_is_sent_again_under_its_id() {
    let (mut client, bob) = (Client::online(), bob());
    client.send(&bob, false);
    client.answer_devices(&bob, &bob.devices());
    let (_, first_id, _) = copies(&mut client);
    client.disconnect();
    client.connect(0);
    client.answer(&Empty {});
    client.answer_devices(&bob, &bob.devices());
    let (id, second_id, _) = copies(&mut client);
    assert_eq!(first_id, second_id);
    client.frame(&ok_frame(id, &messaging_wire::Sent { duplicate: true, ..stored() }));
    assert_eq!(client.sent().unwrap().message_id, first_id);
}

#[test]
fn a_reconnection_goes_on_behind_what_the_user_has() {
    let (mut client, bob) = (Client::online(), bob());
    client.row(bob.message(&client, 1, "one"));
    client.answer_devices(&bob, &bob.devices());
    client.row(bob.message(&client, 2, "two"));
    client.disconnect();
    assert!(matches!(client.events.last(), Some(Event::Disconnected { .. })));
    client.events.clear();
    client.connect(2);
    let (_, request) = client.request();
    assert!(matches!(request, Request::Follow(follow) if follow.after == 2), "{request:?}");
    client.row(bob.message(&client, 2, "two"));
    assert_eq!(client.texts(), []);
    // An acknowledgement without a connection is durable, and repeated later.
    client.disconnect();
    client.acknowledge(2);
    assert_eq!(client.done, [(Operation(2), Ok(Answer::Acknowledged))]);
    client.connect(2);
    assert!(matches!(client.requests[0].1, Request::Ack(ack) if ack.up_to == 2));
}

#[test]
fn stored_messages_come_in_pages_that_follow_acknowledgements() {
    let bob = bob();
    let mut client = Client::new(Receive::Stored, State::default());
    client.connect(3);
    let page = |messages: Vec<Message>, more| {
        let messages = messages.into_iter().map(messaging_wire::Event::Message).collect();
        Page { messages, more }
    };
    let (first, second) = (bob.message(&client, 1, "one"), bob.message(&client, 2, "two"));
    client.answer(&page(vec![first, second], true));
    client.answer_devices(&bob, &bob.devices());
    assert_eq!(client.texts().len(), 2);
    assert_eq!(client.requests, [], "the next page follows the acknowledgement");
    client.acknowledge(2);
    client.answer(&Empty {});
    let (id, request) = client.request();
    assert!(matches!(request, Request::Fetch(fetch) if fetch.after == 2));
    let receipt = Receipt {
        sequence: 3,
        state: SentState::Delivered,
        message_id: "m".into(),
        from: "user:bob".into(),
        device: Some(5),
    };
    let receipts = Page { messages: vec![messaging_wire::Event::Receipt(receipt)], more: false };
    client.frame(&ok_frame(id, &receipts));
    let told = client.events.last().unwrap();
    assert!(matches!(told, Event::Receipt { number: 3, state: ReceiptState::Delivered, .. }), "{told:?}");
    client.acknowledge(3);
    client.answer(&Empty {});
    assert_eq!(client.events.last(), Some(&Event::CaughtUp));
    assert_eq!(client.saved.receipts[0].message_id, "m");
}

#[test]
fn an_empty_mailbox_is_caught_up_at_once() {
    let mut client = Client::new(Receive::Stored, State::default());
    client.connect(0);
    client.answer(&Page { messages: Vec::new(), more: false });
    assert_eq!(client.events.last(), Some(&Event::CaughtUp));
}

#[test]
fn a_server_that_is_silent_or_floods_is_left() {
    let mut client = Client::new(Receive::Everything, State::default());
    client.machine.handle_connected(client.now);
    client.now = client.now.after(Duration::from_secs(16));
    client.machine.handle_timeout(client.now);
    client.drain();
    assert_eq!(client.reconnects, 1, "no first frame");
    let mut client = Client::online();
    client.now = client.now.after(Duration::from_secs(46));
    client.machine.handle_timeout(client.now);
    client.drain();
    assert!(matches!(client.requests[..], [(_, Request::Ping(_))]), "{:?}", client.requests);
    client.now = client.now.after(Duration::from_secs(16));
    client.machine.handle_timeout(client.now);
    client.drain();
    assert_eq!(client.reconnects, 1, "no answer");
    let mut client = Client::online();
    let receipt = |sequence| Receipt {
        sequence,
        state: SentState::Delivered,
        message_id: "m".into(),
        from: "user:bob".into(),
        device: None,
    };
    let mut sequence = 0;
    while client.end.is_none() {
        sequence += 1;
        client.frame(&messaging_wire::Event::Receipt(receipt(sequence)).to_frame());
        assert!(sequence < 10_000);
    }
    assert!(matches!(client.end, Some(ClientError::Protocol(_))));
}

#[test]
fn a_login_that_is_refused_or_replaced_is_not_repeated() {
    let mut client = Client::new(Receive::Everything, State::default());
    client.machine.handle_connected(client.now);
    client.frame(&messaging_wire::Event::Hello { version: 1, challenge: FixedBytes([3; 32]) }.to_frame());
    client.refuse(&ErrorBody::new(ErrorCode::WrongCredentials, "no"));
    let refused = client.end.take();
    assert!(matches!(refused, Some(ClientError::Refused { code: ErrorCode::WrongCredentials, .. })));
    let mut client = Client::online();
    let closing = |reason| messaging_wire::Event::Closing { reason }.to_frame();
    client.frame(&closing(messaging_wire::ClosingReason::Replaced));
    assert!(matches!(client.end, Some(ClientError::Replaced)));
    let mut client = Client::online();
    client.frame(&closing(messaging_wire::ClosingReason::Shutdown));
    assert_eq!((client.reconnects, client.end.is_none()), (1, true));
    for frame in ["", "[]", "{\"type\":\"hello\"}", "{\"id\":1}"] {
        let mut client = Client::online();
        client.frame(frame);
        assert!(matches!(client.end, Some(ClientError::Protocol(_))), "{frame}");
    }
}

#[test]
fn a_party_that_the_server_cannot_name_now_is_asked_for_again() {
    let (mut client, bob) = (Client::online(), bob());
    client.row(bob.message(&client, 1, "one"));
    client.refuse(&ErrorBody::new(ErrorCode::TryAgainLater, "later"));
    assert_eq!(client.texts(), []);
    client.now = client.now.after(Duration::from_secs(2));
    client.machine.handle_timeout(client.now);
    client.drain();
    client.answer_devices(&bob, &bob.devices());
    assert_eq!(client.texts(), [("one", Protection::EndToEnd)]);
}

#[test]
fn another_device_is_removed_by_the_identity_key_only() {
    let mut client = Client::online();
    client.machine.change_account(Operation(1), AccountChange::RemoveDevice(1), client.now);
    client.drain();
    assert!(matches!(client.request().1, Request::RemoveDevice(number) if number.device == 1));
    client.machine.change_account(Operation(2), AccountChange::RemoveDevice(5), client.now);
    client.drain();
    let (_, Request::Login(login)) = &client.requests[0] else { panic!("{:?}", client.requests) };
    let messaging_wire::LoginProof::Identity(signature) = &login.proof else { panic!("{login:?}") };
    let identity_key = client.machine.account.keys.identity.as_ref().unwrap().public();
    let statement = Statement::IdentityLogin { challenge: &[3; 32], user: "alice" };
    assert!(statement.is_signed(&identity_key, &signature.0));
    assert!(matches!(&client.requests[1].1, Request::RemoveDevice(number) if number.device == 5));
}
