//! Messaging without I/O: sessions, authentication, contacts, sending and delivery.
//!
//! Frames of one connection are handled in order. Most wait for the store or for a job; the frames behind them wait in the session. Only the
//! storing of messages overlaps: the store keeps the order of the calls.

use super::commands::{Code, Command, ResultBody};
use super::config::Config;
use super::counters::MessagingCounters;
use super::crypto::{ENCRYPTED_KEY_LEN, SessionKey};
use super::delivery::Delivered;
use super::devices::DeviceStep;
use super::json_session::{JsonReplyTo, JsonSession, JsonStep};
use super::login::LoginStep;
use super::rates::Rates;
use super::sending::SendStep;
pub use super::session::ConnectionId;
use super::session::{Received, ReplyTo, Session};
use super::store_request::{StoreReply, StoreRequest};
use super::wire::{Envelope, salvage_msg_id};
use crate::clock::{Deadlines, Now};
use crate::limits::{Exceeded, Limit, NetworkPrefix, Permit, Quota};
use crate::messaging_wire::ClosingReason;
use crate::store::{MailboxId, Party, StoreError};
use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two removals of expired messages.
const EXPIRE_EVERY: Duration = Duration::from_secs(600);
/// The text of every refusal that a later attempt may not meet.
pub(super) const TRY_AGAIN: &str = "try again later";

/// A call of the store, or a job, whose result the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Expensive work that another thread does.
#[derive(Clone, PartialEq, Eq)]
pub enum Job {
    /// Hashes a password.
    Hash {
        /// The password.
        password: String,
    },
    /// Compares a password with a hash; without one it takes as long.
    Verify {
        /// The password.
        password: String,
        /// The hash in PHC form.
        hash: Option<String>,
    },
    /// Decrypts a session key.
    SessionKey(Box<[u8; ENCRYPTED_KEY_LEN]>),
}

/// The result of a [`Job`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobResult {
    /// The hash in PHC form.
    Hash(String),
    /// Whether the password is right.
    Verified(bool),
    /// The session key.
    SessionKey(SessionKey),
    /// The job could not be done.
    Failed,
}

/// What the service must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Frame {
        /// To whom.
        connection: ConnectionId,
        /// Header and data.
        frame: Bytes,
    },
    /// Send a text to a WebSocket.
    Text {
        /// To whom.
        connection: ConnectionId,
        /// The text.
        text: String,
    },
    /// Close a connection after what was sent. The machine has forgotten it.
    Close(ConnectionId),
    /// Frames with so many bytes of data together are done with: as many more may be read.
    Handled {
        /// Whose frames.
        connection: ConnectionId,
        /// The bytes.
        bytes: usize,
    },
    /// The client has proved who it is.
    Authenticated(ConnectionId),
    /// Call the store; pass the result to [`Machine::handle_store_result`].
    Store {
        /// To be repeated with the result.
        id: RequestId,
        /// The call.
        request: StoreRequest,
    },
    /// Do a job; pass the result to [`Machine::handle_job_result`].
    Job {
        /// To be repeated with the result.
        id: RequestId,
        /// The job.
        job: Job,
    },
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hash { .. } => "Hash",
            Self::Verify { .. } => "Verify",
            Self::SessionKey(_) => "SessionKey",
        })
    }
}

/// What happens with the result of a call or a job.
#[derive(Debug)]
pub(super) enum Step {
    Login(LoginStep),
    Device(DeviceStep),
    Send(Box<SendStep>),
    SessionKey,
    AddContact {
        owner: Party,
        contact: Party,
    },
    RemoveContact {
        owner: Party,
        contact: Party,
    },
    Page {
        connection: ConnectionId,
        mailbox: MailboxId,
        after: u64,
    },
    Acknowledge,
    /// For a request of a WebSocket.
    Json(Box<(JsonReplyTo, JsonStep)>),
    FollowPage {
        connection: ConnectionId,
        mailbox: MailboxId,
        after: u64,
    },
    /// The contacts of a connection that watches them are read again.
    Refresh {
        connection: ConnectionId,
        owner: Party,
    },
    Expire,
}

/// A call or job that has no result yet.
#[derive(Debug)]
struct Pending {
    step: Step,
    reply_to: Option<ReplyTo>,
    /// Of a job: released when it is done.
    _permit: Option<Permit<NetworkPrefix>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Timer {
    Idle(ConnectionId),
    Watch(ConnectionId),
    Expire,
}

/// The state machine of messaging.
#[derive(Debug)]
pub struct Machine {
    pub(super) config: Config,
    server_key: Bytes,
    pub(super) sessions: HashMap<ConnectionId, Session>,
    pub(super) json_sessions: HashMap<ConnectionId, JsonSession>,
    /// The connections of the TCP protocol.
    pub(super) online: HashMap<Party, ConnectionId>,
    /// The WebSockets of accounts.
    pub(super) account_sessions: HashMap<String, BTreeSet<ConnectionId>>,
    /// How many connections of either protocol a party has.
    pub(super) present: HashMap<Party, usize>,
    /// The WebSockets that watch the presence of a party, and how many such pairs there are.
    pub(super) watchers: HashMap<Party, BTreeSet<ConnectionId>>,
    pub(super) watches: usize,
    /// WebSockets whose contacts are read again soon.
    pub(super) refreshing: HashSet<ConnectionId>,
    /// The connections that read these mailboxes.
    pub(super) readers: HashMap<MailboxId, ConnectionId>,
    pending: HashMap<RequestId, Pending>,
    next_request: u64,
    /// Bytes of frames that are not done with.
    held_bytes: usize,
    deadlines: Deadlines<Timer>,
    pub(super) rates: Rates,
    /// For the challenges.
    pub(super) random: ChaCha20Rng,
    outputs: VecDeque<Output>,
    pub(super) counters: MessagingCounters,
}

impl Machine {
    /// Makes a machine. `server_key` is what every client gets first (S4-8).
    pub fn new(now: Now, config: Config, server_key: Bytes, random: &mut impl RngCore) -> Self {
        let mut deadlines = Deadlines::default();
        deadlines.set(Timer::Expire, now.mono);
        Self {
            rates: Rates::new(&config.limits, random),
            random: ChaCha20Rng::from_rng(random),
            config,
            server_key,
            sessions: HashMap::new(),
            json_sessions: HashMap::new(),
            online: HashMap::new(),
            account_sessions: HashMap::new(),
            present: HashMap::new(),
            watchers: HashMap::new(),
            watches: 0,
            refreshing: HashSet::new(),
            readers: HashMap::new(),
            pending: HashMap::new(),
            next_request: 0,
            held_bytes: 0,
            deadlines,
            outputs: VecDeque::new(),
            counters: MessagingCounters::default(),
        }
    }

    /// Handles a new connection. On a legacy listener devices need no key (S4-A7).
    pub fn handle_opened(&mut self, now: Now, connection: ConnectionId, ip: IpAddr, is_legacy: bool) {
        self.sessions.insert(connection, Session::new(ip, is_legacy));
        self.set_idle_timer(now, connection);
        let key = self.server_key.clone();
        let frame =
            Envelope { cmd: Command::ServerKey.number(), data: key, ..Envelope::default() }.to_frame();
        self.outputs.push_back(Output::Frame { connection, frame });
    }

    /// Handles the data of a frame.
    pub fn handle_frame(&mut self, now: Now, connection: ConnectionId, data: Bytes) {
        if !self.sessions.contains_key(&connection) {
            return;
        }
        self.set_idle_timer(now, connection);
        let cost = data.len();
        self.held_bytes += cost;
        match Envelope::parse(data.clone()) {
            Ok(envelope) if self.held_bytes > self.config.limits.request_bytes => {
                Limit::MessagingRequestBytes.reached(self.config.limits.request_bytes);
                let reply_to = ReplyTo::new(connection, &Received { envelope, cost });
                self.answer(reply_to, Code::Exception, TRY_AGAIN);
            }
            Ok(envelope) => {
                if let Some(session) = self.sessions.get_mut(&connection) {
                    session.waiting.push_back(Received { envelope, cost });
                }
            }
            Err(_) => {
                let envelope = Envelope { msg_id: salvage_msg_id(&data), ..Envelope::default() };
                self.answer_malformed(ReplyTo::new(connection, &Received { envelope, cost }));
            }
        }
        self.advance(now, connection);
    }

    /// Handles the end of a connection.
    pub fn handle_closed(&mut self, connection: ConnectionId) {
        self.deadlines.clear(Timer::Idle(connection));
        self.forget_json_session(connection);
        let Some(session) = self.sessions.remove(&connection) else { return };
        self.held_bytes -= session.waiting.iter().map(|received| received.cost).sum::<usize>();
        if let Some(identity) = session.identity {
            self.forget_reader(connection, &identity.party, identity.delivery.mailbox);
        }
    }

    /// Handles that a client reads more slowly than it is sent to.
    pub fn handle_congested(&mut self, connection: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.is_congested = true;
        }
        if let Some(session) = self.json_sessions.get_mut(&connection) {
            session.is_congested = true;
        }
    }

    /// Handles that a client has been sent everything.
    pub fn handle_drained(&mut self, now: Now, connection: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.is_congested = false;
            self.read_on(connection);
        }
        if let Some(session) = self.json_sessions.get_mut(&connection) {
            session.is_congested = false;
            self.advance_json(now, connection);
            self.follow_on(connection);
        }
    }

    /// Handles the result of a call of the store.
    pub fn handle_store_result(&mut self, now: Now, id: RequestId, result: Result<StoreReply, StoreError>) {
        let Some(Pending { step, reply_to, .. }) = self.pending.remove(&id) else { return };
        let connection = reply_to.as_ref().map(|reply_to| reply_to.connection);
        match (step, reply_to) {
            (Step::Login(step), Some(reply_to)) => self.on_login_stored(now, reply_to, step, result),
            (Step::Device(step), Some(reply_to)) => self.on_device_stored(now, reply_to, step, result),
            (Step::Send(step), Some(reply_to)) => self.on_send_stored(now, reply_to, *step, result),
            (Step::AddContact { owner, contact }, Some(reply_to)) => {
                if result.is_ok() {
                    self.on_contacts_changed(now, &owner, &contact);
                }
                self.on_contact_added(reply_to, result);
            }
            (Step::RemoveContact { owner, contact }, Some(reply_to)) => {
                if result.is_ok() {
                    self.on_contacts_changed(now, &owner, &contact);
                }
                self.on_contact_removed(reply_to, result);
            }
            (Step::Json(pending), _) => self.on_json_stored(now, pending.0, pending.1, result),
            (Step::FollowPage { connection, mailbox, after }, _) => {
                self.on_follow_page(connection, (mailbox, after), result);
            }
            (Step::Refresh { connection, owner }, _) => self.on_refreshed(now, (connection, owner), result),
            (Step::Page { connection, mailbox, after }, _) => {
                self.on_page(connection, (mailbox, after), result);
            }
            (Step::Acknowledge, Some(reply_to)) => {
                self.release(&reply_to);
                self.finish(reply_to);
                self.on_removed(Delivered::Acknowledged, result);
            }
            (Step::Expire, _) => self.on_removed(Delivered::Expired, result),
            _ => {}
        }
        if let Some(connection) = connection {
            self.advance(now, connection);
        }
    }

    /// Handles the result of a job.
    pub fn handle_job_result(&mut self, now: Now, id: RequestId, result: JobResult) {
        let Some(Pending { step, reply_to, .. }) = self.pending.remove(&id) else { return };
        let (step, reply_to) = match (step, reply_to) {
            (Step::Json(pending), _) => return self.on_json_job(now, pending.0, pending.1, result),
            (step, Some(reply_to)) => (step, reply_to),
            (_, None) => return,
        };
        let connection = reply_to.connection;
        match (step, result) {
            (Step::Login(step), result) => self.on_password(now, reply_to, step, result),
            (Step::SessionKey, JobResult::SessionKey(key)) => {
                if let Some(session) = self.sessions.get_mut(&connection) {
                    session.key = Some(key);
                }
                self.conclude(reply_to, Code::Ok, "ok");
            }
            _ => self.close_for(reply_to),
        }
        self.advance(now, connection);
    }

    /// Handles the timers that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.deadlines.pop_due(now.mono) {
            match timer {
                Timer::Idle(connection) => self.close_json(connection, ClosingReason::Idle),
                Timer::Watch(connection) => self.on_refresh_timer(now, connection),
                Timer::Expire => {
                    self.deadlines.set(Timer::Expire, now.mono + EXPIRE_EVERY);
                    self.call(StoreRequest::Expire { now_ms: unix_ms(now) }, Step::Expire, None);
                }
            }
        }
    }

    /// Returns when [`Machine::handle_timeout`] must be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Returns the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> MessagingCounters {
        let websockets = self.json_sessions.len() as u64;
        let connections = self.sessions.len() as u64 + websockets;
        MessagingCounters { connections, websockets, online: self.present.len() as u64, ..self.counters }
    }

    /// Handles frames that wait, until one of them waits for a result.
    fn advance(&mut self, now: Now, connection: ConnectionId) {
        while let Some(session) = self.sessions.get_mut(&connection)
            && !session.is_busy
            && let Some(received) = session.waiting.pop_front()
        {
            if session.waiting.is_empty() {
                // Most sessions are idle, and hold no memory for frames.
                session.waiting = VecDeque::new();
            }
            self.handle_received(now, ReplyTo::new(connection, &received), received.envelope);
        }
    }

    fn handle_received(&mut self, now: Now, reply_to: ReplyTo, envelope: Envelope) {
        let Some(session) = self.sessions.get(&reply_to.connection) else { return self.finish(reply_to) };
        if envelope.is_encrypt && session.key.is_none() {
            return self.close_for(reply_to);
        }
        if Command::needs_login(envelope.cmd) && session.identity.is_none() {
            return self.answer(reply_to, Code::NotLoggedIn, "you need login first");
        }
        let data = match &session.key {
            Some(key) if envelope.is_encrypt && !envelope.data.is_empty() => key.decrypt(&envelope.data),
            _ => Some(envelope.data.to_vec()),
        };
        let Some(data) = data else { return self.answer_malformed(reply_to) };
        match Command::from_number(envelope.cmd) {
            Some(Command::Heartbeat) => {
                self.send(&reply_to, b"");
                self.finish(reply_to);
            }
            Some(Command::SessionKey) => self.handle_session_key(now, reply_to, &envelope.data),
            Some(Command::Login) => self.handle_login(now, reply_to, &data),
            Some(Command::Register) => self.handle_register(now, reply_to, &data),
            Some(Command::DeviceAuth) => self.handle_device_auth(reply_to, &data),
            Some(Command::Logout) => self.close_for(reply_to),
            Some(Command::Send) => self.handle_send(reply_to, &data),
            Some(Command::Push) => self.handle_acknowledgement(now, reply_to, &data),
            Some(Command::Fetch) => self.handle_fetch(reply_to),
            Some(Command::AddDevice) => self.handle_add_device(reply_to, &data),
            Some(Command::RemoveDevice) => self.handle_remove_device(reply_to, &data),
            Some(Command::ServerKey | Command::Error | Command::Conflict) | None => {
                self.answer(reply_to, Code::Exception, "unsupported cmd");
            }
        }
    }

    /// Has a session key decrypted. Only the length decides about the answer (S4-A8).
    fn handle_session_key(&mut self, now: Now, reply_to: ReplyTo, data: &[u8]) {
        let Ok(ciphertext) = <[u8; ENCRYPTED_KEY_LEN]>::try_from(data) else {
            return self.answer(reply_to, Code::Exception, "wrong length");
        };
        let Some(session) = self.sessions.get(&reply_to.connection) else { return self.finish(reply_to) };
        let ip = session.ip;
        if !self.rates.key_exchange(now.mono, ip) {
            return self.close_for(reply_to);
        }
        match self.job_permit(&Arc::clone(&self.rates.session_keys), ip) {
            Some(permit) => {
                self.start_job(Job::SessionKey(Box::new(ciphertext)), Step::SessionKey, reply_to, permit);
            }
            None => self.close_for(reply_to),
        }
    }

    /// Takes the right to one more job of a network.
    pub(super) fn job_permit(
        &self,
        quota: &Arc<Quota<NetworkPrefix>>,
        ip: IpAddr,
    ) -> Option<Permit<NetworkPrefix>> {
        let permit = quota.acquire(NetworkPrefix::subscriber(ip), 1);
        permit
            .inspect_err(|exceeded| match exceeded {
                Exceeded::Key => Limit::MessagingJobsPerNetwork.reached(quota.max(*exceeded)),
                Exceeded::Total => Limit::MessagingJobQueue.reached(quota.max(*exceeded)),
            })
            .ok()
    }

    /// Calls the store for a frame; the frames behind it wait.
    pub(super) fn call_for(&mut self, request: StoreRequest, step: Step, reply_to: ReplyTo) {
        if let Some(session) = self.sessions.get_mut(&reply_to.connection) {
            session.is_busy = true;
        }
        self.call(request, step, Some(reply_to));
    }

    pub(super) fn call(&mut self, request: StoreRequest, step: Step, reply_to: Option<ReplyTo>) {
        let id = self.next_id();
        self.pending.insert(id, Pending { step, reply_to, _permit: None });
        self.outputs.push_back(Output::Store { id, request });
    }

    /// Starts a job for a frame; the frames behind it wait.
    pub(super) fn start_job(
        &mut self,
        job: Job,
        step: Step,
        reply_to: ReplyTo,
        permit: Permit<NetworkPrefix>,
    ) {
        if let Some(session) = self.sessions.get_mut(&reply_to.connection) {
            session.is_busy = true;
        }
        self.insert_job(job, step, Some(reply_to), permit);
    }

    pub(super) fn insert_job(
        &mut self,
        job: Job,
        step: Step,
        reply_to: Option<ReplyTo>,
        permit: Permit<NetworkPrefix>,
    ) {
        let id = self.next_id();
        self.pending.insert(id, Pending { step, reply_to, _permit: Some(permit) });
        self.outputs.push_back(Output::Job { id, job });
    }

    /// The steps of requests of WebSockets that have no result yet.
    pub(super) fn pending_json(&mut self) -> impl Iterator<Item = &mut JsonStep> {
        self.pending.values_mut().filter_map(|pending| match &mut pending.step {
            Step::Json(pending) => Some(&mut pending.1),
            _ => None,
        })
    }

    fn next_id(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Reads a JSON body, or answers that it cannot be read and returns the way of the response no more.
    pub(super) fn parse_body<T: DeserializeOwned>(
        &mut self,
        reply_to: ReplyTo,
        data: &[u8],
    ) -> Option<(ReplyTo, T)> {
        if let Ok(body) = serde_json::from_slice(data) {
            return Some((reply_to, body));
        }
        self.answer_malformed(reply_to);
        None
    }

    /// Answers a frame that cannot be read (S4-7); a wrong session key is not told apart from wrong JSON.
    fn answer_malformed(&mut self, reply_to: ReplyTo) {
        self.counters.malformed += 1;
        let error = ReplyTo { cmd: Command::Error.number(), is_encrypt: false, ..reply_to };
        self.answer(error, Code::Exception, "malformed message");
    }

    /// Answers a frame for which others have waited.
    pub(super) fn conclude(&mut self, reply_to: ReplyTo, code: Code, msg: &str) {
        self.release(&reply_to);
        self.answer(reply_to, code, msg);
    }

    /// Lets the frames behind one be handled.
    fn release(&mut self, reply_to: &ReplyTo) {
        if let Some(session) = self.sessions.get_mut(&reply_to.connection) {
            session.is_busy = false;
        }
    }

    /// Answers a frame.
    pub(super) fn answer(&mut self, reply_to: ReplyTo, code: Code, msg: &str) {
        // The body has only a number and a text, so it can be written.
        let body = serde_json::to_vec(&ResultBody { code, msg }).unwrap_or_default();
        self.send(&reply_to, &body);
        self.finish(reply_to);
    }

    /// Counts a frame as done with.
    pub(super) fn finish(&mut self, reply_to: ReplyTo) {
        self.handled(reply_to.connection, reply_to.cost);
    }

    /// Lets a client send as many bytes more.
    pub(super) fn handled(&mut self, connection: ConnectionId, bytes: usize) {
        self.held_bytes -= bytes;
        if self.has_session(connection) {
            self.outputs.push_back(Output::Handled { connection, bytes });
        }
    }

    /// Counts bytes of a frame that is not done with; returns those of all frames.
    pub(super) fn hold_bytes(&mut self, bytes: usize) -> usize {
        self.held_bytes += bytes;
        self.held_bytes
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn release_bytes(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
    }

    pub(super) fn set_idle_timer(&mut self, now: Now, connection: ConnectionId) {
        self.set_timer(Timer::Idle(connection), now.mono + self.config.idle);
    }

    pub(super) fn set_timer(&mut self, timer: Timer, at: Instant) {
        self.deadlines.set(timer, at);
    }

    pub(super) fn clear_timer(&mut self, timer: Timer) {
        self.deadlines.clear(timer);
    }

    /// Sends a frame with the `cmd` and `msgId` of a request, encrypted if that was.
    pub(super) fn send(&mut self, reply_to: &ReplyTo, data: &[u8]) {
        let Some(session) = self.sessions.get(&reply_to.connection) else { return };
        let data = match &session.key {
            Some(key) if reply_to.is_encrypt && !data.is_empty() => key.encrypt(data).into(),
            _ => Bytes::copy_from_slice(data),
        };
        let ReplyTo { connection, cmd, ref msg_id, is_encrypt, .. } = *reply_to;
        let frame = Envelope { cmd, msg_id: msg_id.clone(), is_encrypt, data }.to_frame();
        self.outputs.push_back(Output::Frame { connection, frame });
    }

    /// Closes a connection and forgets it.
    pub(super) fn close(&mut self, connection: ConnectionId) {
        if self.has_session(connection) {
            self.handle_closed(connection);
            self.outputs.push_back(Output::Close(connection));
        }
    }

    pub(super) fn push_output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Closes the connection of a frame.
    pub(super) fn close_for(&mut self, reply_to: ReplyTo) {
        let connection = reply_to.connection;
        self.finish(reply_to);
        self.close(connection);
    }

    pub(super) fn set_authenticated(&mut self, connection: ConnectionId) {
        self.outputs.push_back(Output::Authenticated(connection));
    }

    /// Forgets what a connection has authenticated as.
    pub(super) fn forget_reader(&mut self, connection: ConnectionId, party: &Party, mailbox: MailboxId) {
        self.on_left(party);
        if self.online.get(party) == Some(&connection) {
            self.online.remove(party);
        }
        if self.readers.get(&mailbox) == Some(&connection) {
            self.readers.remove(&mailbox);
        }
    }
}

/// Returns the time as the store takes it.
pub(super) fn unix_ms(now: Now) -> u64 {
    now.unix.saturating_mul(1000)
}

impl ReplyTo {
    fn new(connection: ConnectionId, received: &Received) -> Self {
        let Envelope { cmd, msg_id, is_encrypt, .. } = &received.envelope;
        Self { connection, cmd: *cmd, msg_id: msg_id.clone(), is_encrypt: *is_encrypt, cost: received.cost }
    }
}
