//! The state machine of a client: what it sends, what it believes, and in which order things become durable. Pure.
//!
//! The order of the outputs is the contract: a [`Output::Save`] is durable before the outputs that follow it are carried out. What the user has
//! not acknowledged is acknowledged to nobody: it stays in the mailbox and arrives again after a restart.

use super::encryption::Certificate;
use super::error::{ClientError, ErrorCode, RequestError};
use super::event::{Event, Sent};
use super::keys::{DeviceCode, Fingerprint, Keys};
use super::known_peers::{Distrust, PeerKeys};
use super::party_name::PartyName;
use super::receiving::{Incoming, Unacknowledged};
use super::sending::SendOperation;
use super::state::{Change, State};
use crate::clock::Now;
use crate::messaging_wire::signing::Statement;
use crate::messaging_wire::{
    self, ClosingReason, DeviceName, DeviceNumber, Devices, Empty, ErrorBody, FixedBytes, Key, LoggedIn,
    Login, LoginProof, OtherParty, Request, ServerFrame, SetPassword,
};
use rand_chacha::ChaCha20Rng;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

/// Time limit of an answer, and of the server's first frame.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence after which the client asks whether the server is still there. The server closes after 150 s.
const PING_AFTER: Duration = Duration::from_secs(45);
/// How long the answer to a question for devices is used.
const DEVICES_FRESH: Duration = Duration::from_secs(300);
/// Wait before a question for devices that the server could not answer is repeated.
const LOOKUP_RETRY: Duration = Duration::from_secs(2);

/// What a client reads of its mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receive {
    /// Nothing: another client of the device may read it at the same time.
    Nothing,
    /// What is stored, up to [`Event::CaughtUp`].
    Stored,
    /// What is stored, and everything that arrives later.
    Everything,
}

/// A request of the user, to tell answers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Operation(pub(super) u64);

/// A change of the account that needs the identity key, unless it is about this device.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum AccountChange {
    /// Removes a device.
    RemoveDevice(i64),
    /// Gives a device another name.
    RenameDevice(i64, String),
    /// Sets the password.
    SetPassword(String),
}

impl fmt::Debug for AccountChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountChange")
    }
}

/// The answer to a request of the user.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Sent(Sent),
    /// The fields of the server's answer.
    Fields(Value),
    /// A party's devices, checked. The labels are in the answer for the own account only.
    Devices {
        fingerprint: Option<Fingerprint>,
        devices: Devices,
    },
    Acknowledged,
}

/// What the machine wants done, in this order.
#[derive(Debug)]
pub(super) enum Output {
    /// Make this durable before going on.
    Save(Change),
    Frame(String),
    Event(Event),
    Done(Operation, Result<Answer, RequestError>),
    /// Close the connection and open another one.
    Reconnect {
        reason: String,
    },
    /// Close the connection for good.
    End(ClientError),
}

/// Who the client is.
#[derive(Debug)]
pub(super) struct LocalAccount {
    pub(super) user: String,
    pub(super) party: PartyName,
    pub(super) keys: Keys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Disconnected,
    /// Connected; the server speaks first.
    AwaitingHello,
    LoggingIn,
    Open,
}

/// A request that awaits its answer.
#[derive(Debug)]
pub(super) enum Pending {
    Login,
    Lookup(PartyName, Question),
    Send(Operation),
    /// The answer goes to the user.
    User(Operation),
    Acknowledgement(Operation),
    /// A page of the mailbox.
    Page,
    /// The answer matters only if it is an error.
    Quiet,
}

/// The number of a question for devices; later questions have higher ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question(u64);

/// What the server said about a party's devices.
#[derive(Debug, Clone)]
pub(super) struct KnownDevices {
    asked_at: Instant,
    question: Question,
    pub(super) keys: Result<PeerKeys, Distrust>,
    /// The pinned identity key, if the server shows it, whatever else it says.
    pub(super) pinned_key: Option<[u8; 32]>,
    /// The server knows no such party.
    pub(super) is_unknown: bool,
}

/// The state machine of one client.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) account: LocalAccount,
    pub(super) state: State,
    pub(super) receive: Receive,
    pub(super) random: ChaCha20Rng,
    phase: Phase,
    /// Of this connection.
    challenge: [u8; 32],
    /// The number of this device, and the epoch of its mailbox.
    pub(super) device: i64,
    pub(super) epoch: u64,
    /// What shows others that this device is one of the account's.
    pub(super) certificate: Option<Certificate>,
    /// The account has other devices, which get copies of what this one sends.
    pub(super) has_other_devices: bool,
    next_id: u64,
    pending: BTreeMap<u64, (Pending, Instant)>,
    /// When the server was heard last, or connected.
    heard_at: Option<Instant>,
    pub(super) known_devices: HashMap<PartyName, KnownDevices>,
    lookups: Vec<(Operation, PartyName)>,
    /// The last question for devices.
    pub(super) question: Question,
    retry_at: Option<Instant>,
    pub(super) sends: Vec<SendOperation>,
    pub(super) incoming: VecDeque<Incoming>,
    pub(super) unacknowledged: VecDeque<Unacknowledged>,
    /// The last sequence number that was taken from the server in this epoch.
    pub(super) received: u64,
    pub(super) next_number: u64,
    /// The mailbox may have more than the pages so far.
    pub(super) has_more: bool,
    pub(super) is_caught_up: bool,
    outputs: VecDeque<Output>,
}

impl Machine {
    pub(super) fn new(account: LocalAccount, state: State, receive: Receive, random: ChaCha20Rng) -> Self {
        Self {
            account,
            state,
            receive,
            random,
            phase: Phase::Disconnected,
            challenge: [0; 32],
            device: 0,
            epoch: 0,
            certificate: None,
            has_other_devices: false,
            next_id: 1,
            pending: BTreeMap::new(),
            heard_at: None,
            known_devices: HashMap::new(),
            lookups: Vec::new(),
            question: Question::default(),
            retry_at: None,
            sends: Vec::new(),
            incoming: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            received: 0,
            next_number: 1,
            has_more: false,
            is_caught_up: false,
            outputs: VecDeque::new(),
        }
    }

    /// Returns the next output.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Machine::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let heard_at = self.heard_at.filter(|_| self.phase != Phase::Disconnected)?;
        let answer = match self.phase {
            Phase::Open => self.pending.values().map(|(_, asked_at)| *asked_at + ANSWER_TIMEOUT).min(),
            _ => Some(heard_at + ANSWER_TIMEOUT),
        };
        [answer, Some(heard_at + PING_AFTER), self.retry_at].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        if self.poll_timeout().is_none_or(|due| due > now.mono) {
            return;
        }
        let is_late = |at: &Instant| *at + ANSWER_TIMEOUT <= now.mono;
        let is_silent = match self.phase {
            Phase::Open => self.pending.values().any(|(_, asked_at)| is_late(asked_at)),
            _ => self.heard_at.as_ref().is_some_and(is_late),
        };
        if is_silent {
            self.reconnect("the server does not answer");
            return;
        }
        if self.retry_at.is_some_and(|due| due <= now.mono) {
            self.retry_at = None;
            self.advance(now);
        }
        let is_quiet = self.heard_at.is_some_and(|heard_at| heard_at + PING_AFTER <= now.mono);
        if is_quiet && self.phase == Phase::Open {
            // Counts as heard, so that one question is open at a time.
            self.heard_at = Some(now.mono);
            self.request(&Request::Ping(Empty {}), Pending::Quiet, now);
        }
    }

    /// A connection was opened.
    pub(super) fn handle_connected(&mut self, now: Now) {
        self.phase = Phase::AwaitingHello;
        self.heard_at = Some(now.mono);
    }

    /// The connection is gone. Messages to send are kept; other requests fail.
    pub(super) fn handle_disconnected(&mut self, reason: &str) {
        self.phase = Phase::Disconnected;
        self.heard_at = None;
        self.retry_at = None;
        self.incoming.clear();
        self.received = self.unacknowledged.back().map_or(0, |last| last.sequence);
        self.known_devices.clear();
        for send in &mut self.sends {
            send.is_sent = false;
        }
        for (pending, _) in std::mem::take(&mut self.pending).into_values() {
            match pending {
                Pending::User(operation) => self.done(operation, Err(RequestError::Disconnected)),
                // It is durable here; the next login repeats it.
                Pending::Acknowledgement(operation) => self.done(operation, Ok(Answer::Acknowledged)),
                _ => {}
            }
        }
        for (operation, _) in std::mem::take(&mut self.lookups) {
            self.done(operation, Err(RequestError::Disconnected));
        }
        self.output(Output::Event(Event::Disconnected { reason: reason.to_owned() }));
    }

    /// Handles a text frame of the server.
    pub(super) fn handle_frame(&mut self, text: &str, now: Now) {
        self.heard_at = Some(now.mono);
        let frame = match ServerFrame::parse(text) {
            Ok(frame) => frame,
            Err(error) => return self.end(ClientError::Protocol(error.to_string())),
        };
        match frame {
            ServerFrame::Ok { id, fields } => self.handle_ok(id, fields, now),
            ServerFrame::Error { id, error } => self.handle_error(id, error, now),
            ServerFrame::Event(event) => self.handle_event(event, now),
            ServerFrame::UnknownEvent => {}
        }
    }

    fn handle_event(&mut self, event: messaging_wire::Event, now: Now) {
        match event {
            messaging_wire::Event::Hello { version, challenge } if self.phase == Phase::AwaitingHello => {
                match version {
                    messaging_wire::VERSION => self.log_in(&challenge, now),
                    _ => self.end(ClientError::Protocol(format!("version {version}"))),
                }
            }
            messaging_wire::Event::Message(_) | messaging_wire::Event::Receipt(_)
                if self.phase == Phase::Open && self.receive == Receive::Everything =>
            {
                self.handle_rows([event], now);
            }
            messaging_wire::Event::Closing { reason } => match reason {
                ClosingReason::Replaced => self.end(ClientError::Replaced),
                ClosingReason::DeviceRemoved => self.end(ClientError::DeviceRemoved),
                ClosingReason::Shutdown => self.reconnect("the server stops"),
                _ => self.reconnect("the server closed the connection"),
            },
            messaging_wire::Event::Error(error) => self.end(ClientError::Protocol(error.message)),
            _ => {}
        }
    }

    fn log_in(&mut self, challenge: &Key, now: Now) {
        self.phase = Phase::LoggingIn;
        let (user, keys) = (&self.account.user, &self.account.keys);
        let signing_key = keys.signing.public();
        let statement = Statement::DeviceLogin { challenge: &challenge.0, user, signing_key: &signing_key };
        let signature = FixedBytes(keys.signing.sign(&statement));
        let reads_mailbox = self.receive != Receive::Nothing;
        let proof = LoginProof::Device { reads_mailbox, key: FixedBytes(signing_key), signature };
        let login = Login { user: user.clone(), proof };
        self.request(&Request::Login(login), Pending::Login, now);
        self.challenge = challenge.0;
    }

    /// Changes the account: this device by itself, everything else by the identity key.
    pub(super) fn change_account(&mut self, operation: Operation, change: AccountChange, now: Now) {
        let (device, request) = match change {
            AccountChange::RemoveDevice(device) => {
                (Some(device), Request::RemoveDevice(DeviceNumber { device }))
            }
            AccountChange::RenameDevice(device, label) => {
                (Some(device), Request::RenameDevice(DeviceName { device, label }))
            }
            AccountChange::SetPassword(password) => (None, Request::SetPassword(SetPassword { password })),
        };
        if device != Some(self.device) {
            let Some(identity) = &self.account.keys.identity else {
                return self.done(operation, Err(RequestError::NoIdentity));
            };
            let user = self.account.user.clone();
            let statement = Statement::IdentityLogin { challenge: &self.challenge, user: &user };
            let proof = LoginProof::Identity(FixedBytes(identity.sign(&statement)));
            // Instead of the session of the device, which the client needs no more.
            self.request(&Request::Login(Login { user, proof }), Pending::Quiet, now);
        }
        self.ask(operation, &request, now);
    }

    fn handle_ok(&mut self, id: u64, fields: Value, now: Now) {
        let Some((pending, asked_at)) = self.pending.remove(&id) else { return };
        let read = match pending {
            Pending::Login => {
                messaging_wire::answer_fields(fields).map(|answer| self.on_logged_in(answer, now))
            }
            Pending::Lookup(party, question) => {
                messaging_wire::answer_fields(fields).map(|answer: Devices| {
                    self.insert_devices(&party, (answer, false), (question, asked_at), now);
                })
            }
            Pending::Send(operation) => {
                messaging_wire::answer_fields(fields).map(|answer| self.on_sent(operation, answer, now))
            }
            Pending::Page => messaging_wire::answer_fields(fields).map(|page| self.handle_page(page, now)),
            Pending::User(operation) => {
                self.done(operation, Ok(Answer::Fields(fields)));
                Ok(())
            }
            Pending::Acknowledgement(operation) => {
                self.done(operation, Ok(Answer::Acknowledged));
                self.fetch_more(now);
                Ok(())
            }
            Pending::Quiet => Ok(()),
        };
        if let Err(error) = read {
            self.end(ClientError::Protocol(error.to_string()));
        }
    }

    fn handle_error(&mut self, id: u64, error: ErrorBody, now: Now) {
        let Some((pending, asked_at)) = self.pending.remove(&id) else { return };
        let is_temporary =
            matches!(error.code, ErrorCode::TryAgainLater | ErrorCode::Unavailable | ErrorCode::DiskFull);
        match pending {
            Pending::Login if is_temporary => self.reconnect(&error.message),
            Pending::Login => {
                self.end(ClientError::Refused { code: error.code, message: error.message });
            }
            Pending::Lookup(party, question) if error.code == ErrorCode::NotFound => {
                self.insert_devices(&party, (Devices::default(), true), (question, asked_at), now);
            }
            Pending::Lookup(party, _) => self.on_lookup_failed(&party, &error, now),
            Pending::Send(operation) => self.on_send_refused(operation, error, now),
            Pending::User(operation) => self.done(operation, Err(refused(error))),
            // The rows stay in the mailbox until the next login.
            Pending::Acknowledgement(operation) => {
                self.done(operation, Ok(Answer::Acknowledged));
                self.fetch_more(now);
            }
            Pending::Page | Pending::Quiet if is_temporary => self.reconnect(&error.message),
            Pending::Page | Pending::Quiet => self.end(ClientError::Protocol(error.message)),
        }
    }

    fn on_logged_in(&mut self, answer: LoggedIn, now: Now) {
        let Some(mailbox) = answer.mailbox else {
            return self.end(ClientError::Protocol("a login without a mailbox".to_owned()));
        };
        self.phase = Phase::Open;
        self.device = mailbox.device;
        let encryption_key = FixedBytes(self.account.keys.encryption_key);
        self.certificate = mailbox.certificate.map(|signature| Certificate { encryption_key, signature });
        self.has_other_devices = mailbox.other_devices > 0;
        let is_other = |epoch: u64| epoch != mailbox.epoch;
        if is_other(self.epoch) {
            // Numbers of the earlier mailbox mean nothing in this one.
            self.unacknowledged.clear();
            self.received = 0;
            self.epoch = mailbox.epoch;
        }
        if self.state.mailbox.as_ref().is_none_or(|known| is_other(known.epoch)) {
            let is_first = self.state.mailbox.is_none();
            self.save(Change::Mailbox { epoch: mailbox.epoch });
            if !is_first {
                self.output(Output::Event(Event::MailboxReset));
            }
        }
        self.output(Output::Event(Event::Connected { stored: mailbox.stored.messages }));
        self.start_receiving(mailbox.stored.messages, now);
        self.advance(now);
    }

    /// Sends a request of the user as it is.
    pub(super) fn ask(&mut self, operation: Operation, request: &Request, now: Now) {
        match self.phase {
            Phase::Open => self.request(request, Pending::User(operation), now),
            _ => self.done(operation, Err(RequestError::Disconnected)),
        }
    }

    /// Asks for the devices of a party, and checks the answer.
    pub(super) fn look_up(&mut self, operation: Operation, party: PartyName, now: Now) {
        if self.phase != Phase::Open {
            return self.done(operation, Err(RequestError::Disconnected));
        }
        self.known_devices.remove(&party);
        self.lookups.push((operation, party.clone()));
        self.ask_for_devices(&party, now);
    }

    /// Returns what the server said about a party's devices not long ago, to a question after `after`; asks if it did not.
    pub(super) fn devices_of(
        &mut self,
        party: &PartyName,
        after: Question,
        now: Now,
    ) -> Option<KnownDevices> {
        let is_fresh =
            |known: &&KnownDevices| known.asked_at + DEVICES_FRESH > now.mono && known.question > after;
        if let Some(known) = self.known_devices.get(party).filter(is_fresh) {
            return Some(known.clone());
        }
        self.ask_for_devices(party, now);
        None
    }

    fn ask_for_devices(&mut self, party: &PartyName, now: Now) {
        let is_asked = |(pending, _): &(Pending, Instant)| matches!(pending, Pending::Lookup(asked, _) if asked == party);
        if self.retry_at.is_none() && !self.pending.values().any(is_asked) {
            let request = Request::Devices(OtherParty { party: party.as_wire().to_owned() });
            let question = self.next_question();
            self.request(&request, Pending::Lookup(party.clone(), question), now);
        }
    }

    pub(super) fn next_question(&mut self) -> Question {
        self.question.0 += 1;
        self.question
    }

    /// Checks what the server says about a party's devices and remembers it; pins an identity key that is new.
    pub(super) fn insert_devices(
        &mut self,
        party: &PartyName,
        (answer, is_unknown): (Devices, bool),
        (question, asked_at): (Question, Instant),
        now: Now,
    ) {
        let keys = self.state.peers.assess_devices(party, &answer);
        if let Ok(PeerKeys::Devices { fingerprint, is_new: true, .. }) = &keys {
            let fingerprint = *fingerprint;
            self.save(Change::Pinned { party: party.clone(), fingerprint });
            self.output(Output::Event(Event::Pinned { party: party.clone(), fingerprint }));
        }
        let fingerprint = self.state.peers.pinned(party);
        let (asked, others) =
            std::mem::take(&mut self.lookups).into_iter().partition::<Vec<_>, _>(|(_, asked)| asked == party);
        self.lookups = others;
        for (operation, _) in asked {
            let found = match (&keys, is_unknown) {
                (Err(source), _) => Err(RequestError::Distrusted { party: party.clone(), source: *source }),
                (Ok(_), true) => Err(not_found(party)),
                (Ok(_), false) => Ok(Answer::Devices { fingerprint, devices: answer.clone() }),
            };
            self.done(operation, found);
        }
        let shown = answer.identity_key.map(|key| key.0);
        let pinned_key = shown.filter(|key| fingerprint == Some(Fingerprint::of(key)));
        let known = KnownDevices { asked_at, question, keys, pinned_key, is_unknown };
        self.known_devices.insert(party.clone(), known);
        self.advance(now);
    }

    fn on_lookup_failed(&mut self, party: &PartyName, error: &ErrorBody, now: Now) {
        self.retry_at = Some(now.mono + LOOKUP_RETRY);
        for (operation, asked) in std::mem::take(&mut self.lookups) {
            match asked == *party {
                true => self.done(operation, Err(refused(error.clone()))),
                false => self.lookups.push((operation, asked)),
            }
        }
    }

    /// Goes on with what waited for devices.
    fn advance(&mut self, now: Now) {
        self.process_incoming(now);
        self.advance_sends(now);
    }

    /// The user trusts an identity key, in place of the one that is pinned.
    pub(super) fn trust(&mut self, operation: Operation, party: PartyName, fingerprint: Fingerprint) {
        self.known_devices.remove(&party);
        self.save(Change::Trusted { party, fingerprint });
        self.done(operation, Ok(Answer::Acknowledged));
    }

    /// Adds a device to the account.
    pub(super) fn add_device(&mut self, operation: Operation, code: DeviceCode, now: Now) {
        match &self.account.keys.identity {
            Some(identity) => {
                let device = code.certify(&self.account.user, identity);
                self.ask(operation, &Request::AddDevice(device), now);
            }
            None => self.done(operation, Err(RequestError::NoIdentity)),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub(super) fn request(&mut self, request: &Request, pending: Pending, now: Now) {
        self.request_frame(pending, now, |id| request.to_frame(id));
    }

    pub(super) fn request_frame(&mut self, pending: Pending, now: Now, frame: impl FnOnce(u64) -> String) {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, (pending, now.mono));
        self.output(Output::Frame(frame(id)));
    }

    pub(super) fn save(&mut self, change: Change) {
        // A conflict with another process is found when the change is made durable.
        let _ = self.state.apply(&change);
        self.output(Output::Save(change));
    }

    /// Takes over the state on disk, which other processes of the device may have changed.
    pub(super) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn done(&mut self, operation: Operation, result: Result<Answer, RequestError>) {
        self.output(Output::Done(operation, result));
    }

    fn reconnect(&mut self, reason: &str) {
        self.phase = Phase::Disconnected;
        self.output(Output::Reconnect { reason: reason.to_owned() });
    }

    pub(super) fn end(&mut self, error: ClientError) {
        self.phase = Phase::Disconnected;
        self.output(Output::End(error));
    }
}

pub(super) fn refused(error: ErrorBody) -> RequestError {
    RequestError::Refused { code: error.code, message: error.message }
}

pub(super) fn not_found(party: &PartyName) -> RequestError {
    RequestError::Refused { code: ErrorCode::NotFound, message: format!("there is no {party}") }
}

pub(super) fn unix_ms(now: Now) -> u64 {
    now.unix * 1000
}
