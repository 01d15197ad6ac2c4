//! Sessions of the WebSocket `/messages`: the order of their requests, and their answers. Pure.

use super::account_devices::DevicesStep;
use super::delivery::Delivered;
use super::follow::Inbox;
use super::json_login::JsonLoginStep;
use super::json_sending::JsonSendStep;
use super::machine::{Job, Machine, Output, Step, TRY_AGAIN, Timer};
use super::presence::{ContactsStep, Watch};
use super::session::ConnectionId;
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::limits::{Limit, NetworkPrefix, Permit};
use crate::messaging_wire::{
    ClosingReason, Empty, ErrorBody, ErrorCode, Event, FixedBytes, Request, RequestError, VERSION,
    error_frame, ok_frame,
};
use crate::store::{AccountDeviceId, Full, Party, StoreError};
use rand::Rng;
use serde::Serialize;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Frames in a row that are no requests, after which the connection is closed.
const MAX_MALFORMED: u32 = 10;

/// One connection.
#[derive(Debug)]
pub(super) struct JsonSession {
    pub(super) ip: IpAddr,
    /// Whether TLS protects the connection, so that passwords are accepted.
    pub(super) is_secure: bool,
    /// What the client signs on this connection.
    pub(super) challenge: [u8; 32],
    pub(super) access: Option<Access>,
    /// Requests that wait until the one before is handled.
    pub(super) waiting: VecDeque<String>,
    /// A request waits for the store or for a job, and those behind it for the request.
    pub(super) is_busy: bool,
    /// The client has not read what was sent to it.
    pub(super) is_congested: bool,
    malformed_in_a_row: u32,
    pub(super) watch: Option<Watch>,
}

/// What a client has proved.
#[derive(Debug)]
pub(super) struct Access {
    /// The name of the account.
    pub(super) user: String,
    pub(super) kind: AccessKind,
}

/// How it has proved it.
#[derive(Debug)]
pub(super) enum AccessKind {
    Password,
    Identity,
    Device(Box<DeviceAccess>),
}

/// A device that has logged in.
#[derive(Debug)]
pub(super) struct DeviceAccess {
    pub(super) id: AccountDeviceId,
    /// Another connection of the device may read the mailbox instead.
    pub(super) reads_mailbox: bool,
    pub(super) inbox: Inbox,
}

/// The request that an answer is for.
#[derive(Debug)]
pub(super) struct JsonReplyTo {
    pub(super) connection: ConnectionId,
    id: u64,
    /// Length of the frame.
    cost: usize,
    /// The requests behind it wait for it.
    holds_back: bool,
}

/// What happens with the result of a call or a job for a request.
#[derive(Debug)]
pub(super) enum JsonStep {
    Login(JsonLoginStep),
    Devices(DevicesStep),
    Contacts(ContactsStep),
    Send(Box<JsonSendStep>),
    Fetch { limit: usize },
    Acknowledge { up_to: u64 },
}

impl Access {
    pub(super) fn party(&self) -> Party {
        Party::User(self.user.clone())
    }

    pub(super) fn device(&self) -> Option<&DeviceAccess> {
        match &self.kind {
            AccessKind::Device(device) => Some(device),
            AccessKind::Password | AccessKind::Identity => None,
        }
    }

    /// Returns whether the connection is the one that reads the mailbox of its device.
    pub(super) fn reads_mailbox(&self) -> bool {
        self.device().is_some_and(|device| device.reads_mailbox)
    }

    pub(super) fn device_mut(&mut self) -> Option<&mut DeviceAccess> {
        match &mut self.kind {
            AccessKind::Device(device) => Some(device),
            AccessKind::Password | AccessKind::Identity => None,
        }
    }
}

impl Machine {
    /// Handles a new WebSocket. `is_secure` is whether TLS protects it.
    pub fn handle_websocket_opened(
        &mut self,
        now: Now,
        connection: ConnectionId,
        ip: IpAddr,
        is_secure: bool,
    ) {
        let challenge = self.random.random();
        let session = JsonSession {
            ip,
            is_secure,
            challenge,
            access: None,
            waiting: VecDeque::new(),
            is_busy: false,
            is_congested: false,
            malformed_in_a_row: 0,
            watch: None,
        };
        self.json_sessions.insert(connection, session);
        self.set_idle_timer(now, connection);
        self.send_event(connection, &Event::Hello { version: VERSION, challenge: FixedBytes(challenge) });
    }

    /// Handles the text of a WebSocket.
    pub fn handle_text(&mut self, now: Now, connection: ConnectionId, text: String) {
        if !self.json_sessions.contains_key(&connection) {
            return;
        }
        self.set_idle_timer(now, connection);
        let cost = text.len();
        if !self.hold(cost) {
            let id = match Request::parse(&text) {
                Ok((id, _)) | Err(RequestError::UnknownType { id } | RequestError::Invalid { id, .. }) => id,
                Err(RequestError::Malformed) => return self.on_malformed(connection, cost),
            };
            let reply_to = JsonReplyTo { connection, id, cost, holds_back: false };
            return self.refuse_request(reply_to, ErrorCode::TryAgainLater, TRY_AGAIN);
        }
        if let Some(session) = self.json_sessions.get_mut(&connection) {
            session.waiting.push_back(text);
        }
        self.advance_json(now, connection);
    }

    /// Handles a sign of life of a WebSocket.
    pub fn handle_alive(&mut self, now: Now, connection: ConnectionId) {
        if self.json_sessions.contains_key(&connection) {
            self.set_idle_timer(now, connection);
        }
    }

    /// Tells all WebSockets that the server ends.
    pub fn handle_shutdown(&mut self) {
        let connections: Vec<_> = self.json_sessions.keys().copied().collect();
        for connection in connections {
            self.close_json(connection, ClosingReason::Shutdown);
        }
    }

    /// Handles requests that wait, until one of them waits for a result or the client must read first.
    pub(super) fn advance_json(&mut self, now: Now, connection: ConnectionId) {
        while let Some(session) = self.json_sessions.get_mut(&connection)
            && !session.is_busy
            && !session.is_congested
            && let Some(text) = session.waiting.pop_front()
        {
            let cost = text.len();
            let parsed = Request::parse(&text);
            drop(text);
            if !matches!(parsed, Err(RequestError::Malformed)) {
                session.malformed_in_a_row = 0;
            }
            let reply_to = |id| JsonReplyTo { connection, id, cost, holds_back: false };
            match parsed {
                Ok((id, request)) => self.handle_request(now, reply_to(id), request),
                Err(RequestError::UnknownType { id }) => {
                    self.refuse_request(reply_to(id), ErrorCode::UnknownType, "unknown type");
                }
                Err(RequestError::Invalid { id, message }) => {
                    self.refuse_request(reply_to(id), ErrorCode::Invalid, message);
                }
                Err(RequestError::Malformed) => self.on_malformed(connection, cost),
            }
        }
    }

    fn handle_request(&mut self, now: Now, reply_to: JsonReplyTo, request: Request) {
        match request {
            Request::Ping(_) => return self.accept(reply_to, &Empty {}),
            Request::Logout(_) => return self.log_out(reply_to),
            Request::Register(register) => return self.handle_json_register(now, reply_to, register),
            Request::Login(login) => return self.handle_json_login(now, reply_to, login),
            _ => {}
        }
        let Some(session) = self.json_sessions.get(&reply_to.connection) else { return self.done(&reply_to) };
        let Some(access) = &session.access else {
            return self.refuse_request(reply_to, ErrorCode::NotLoggedIn, "log in first");
        };
        let (user, has_device) = (access.user.clone(), access.device().is_some());
        let reads_mailbox = access.reads_mailbox();
        match request {
            Request::Send(_)
            | Request::Fetch(_)
            | Request::Follow(_)
            | Request::Unfollow(_)
            | Request::Ack(_)
                if !has_device =>
            {
                self.refuse_request(reply_to, ErrorCode::NotLoggedIn, "log in as a device first");
            }
            Request::Follow(_) | Request::Unfollow(_) | Request::Ack(_) if !reads_mailbox => {
                let text = "this session does not read the mailbox";
                self.refuse_request(reply_to, ErrorCode::Invalid, text);
            }
            Request::SetIdentity(set) => self.handle_set_identity(now, reply_to, user, set),
            Request::SetPassword(set) => self.handle_set_password(now, reply_to, user, set.password),
            Request::AddDevice(device) => self.handle_add_account_device(now, reply_to, user, device),
            Request::RemoveDevice(number) => {
                self.handle_remove_account_device(now, reply_to, user, AccountDeviceId(number.device));
            }
            Request::RenameDevice(name) => self.handle_rename_device(reply_to, user, name),
            Request::Devices(other) => self.handle_devices(now, reply_to, &other.party),
            Request::Contacts(_) => self.handle_contacts(reply_to, user),
            Request::AddContact(other) => self.handle_add_contact(reply_to, user, &other.party),
            Request::RemoveContact(other) => self.handle_remove_contact(reply_to, user, &other.party),
            Request::Watch(_) => self.handle_watch(reply_to, user),
            Request::Send(send) => self.handle_json_send(reply_to, user, send),
            Request::Fetch(fetch) => self.handle_json_fetch(reply_to, fetch),
            Request::Follow(follow) => self.handle_follow(reply_to, follow.after),
            Request::Unfollow(_) => self.handle_unfollow(reply_to),
            Request::Ack(ack) => self.handle_ack(now, reply_to, ack.up_to),
            Request::Ping(_) | Request::Logout(_) | Request::Register(_) | Request::Login(_) => {
                self.done(&reply_to);
            }
        }
    }

    /// Answers what is no request; closes the connection after several in a row.
    fn on_malformed(&mut self, connection: ConnectionId, cost: usize) {
        self.counters.malformed += 1;
        let error = ErrorBody::new(ErrorCode::Malformed, RequestError::Malformed.to_string());
        self.send_event(connection, &Event::Error(error));
        self.handled(connection, cost);
        let Some(session) = self.json_sessions.get_mut(&connection) else { return };
        session.malformed_in_a_row += 1;
        if session.malformed_in_a_row >= MAX_MALFORMED {
            self.close_json(connection, ClosingReason::Malformed);
        }
    }

    fn log_out(&mut self, reply_to: JsonReplyTo) {
        let connection = reply_to.connection;
        self.accept(reply_to, &Empty {});
        self.close(connection);
    }

    /// Handles the result of a call for a request.
    pub(super) fn on_json_stored(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        step: JsonStep,
        result: Result<StoreReply, StoreError>,
    ) {
        let connection = reply_to.connection;
        if !self.json_sessions.contains_key(&connection) {
            self.on_result_without_session(now, step, result);
            return self.done(&reply_to);
        }
        match step {
            JsonStep::Login(step) => self.on_json_login_stored(now, reply_to, step, result),
            JsonStep::Devices(step) => self.on_devices_stored(now, reply_to, step, result),
            JsonStep::Contacts(step) => self.on_contacts_stored(now, reply_to, step, result),
            JsonStep::Send(step) => self.on_json_send_stored(now, reply_to, *step, result),
            JsonStep::Fetch { limit } => self.on_fetched(reply_to, limit, result),
            JsonStep::Acknowledge { up_to } => self.on_ack_stored(reply_to, up_to, result),
        }
        self.advance_json(now, connection);
    }

    /// Does what concerns others when the client is gone: writes are done whether it waits for them or not.
    fn on_result_without_session(
        &mut self,
        now: Now,
        step: JsonStep,
        result: Result<StoreReply, StoreError>,
    ) {
        match step {
            JsonStep::Send(step) => drop(self.deliver(&step, result)),
            JsonStep::Acknowledge { .. } => self.on_removed(Delivered::Acknowledged, result),
            JsonStep::Devices(DevicesStep::Remove { user, device }) if result.is_ok() => {
                self.on_device_removed(&user, device);
                self.on_removed(Delivered::Expired, result);
            }
            JsonStep::Contacts(step) if result.is_ok() => self.on_contacts_stored_without_session(now, &step),
            JsonStep::Contacts(_) | JsonStep::Devices(_) | JsonStep::Login(_) | JsonStep::Fetch { .. } => {}
        }
    }

    /// Calls the store for a request; the requests behind it wait.
    pub(super) fn call_for_json(&mut self, request: StoreRequest, step: JsonStep, mut reply_to: JsonReplyTo) {
        self.hold_back(&mut reply_to);
        self.call(request, Step::Json(Box::new((reply_to, step))), None);
    }

    /// Starts a job for a request; the requests behind it wait.
    pub(super) fn job_for_json(
        &mut self,
        job: Job,
        step: JsonLoginStep,
        mut reply_to: JsonReplyTo,
        permit: Permit<NetworkPrefix>,
    ) {
        self.hold_back(&mut reply_to);
        let step = JsonStep::Login(step);
        self.insert_job(job, Step::Json(Box::new((reply_to, step))), None, permit);
    }

    /// Calls the store for a request; the requests behind it do not wait.
    pub(super) fn call_behind(&mut self, request: StoreRequest, step: JsonStep, mut reply_to: JsonReplyTo) {
        self.let_on(&mut reply_to);
        self.call(request, Step::Json(Box::new((reply_to, step))), None);
    }

    fn hold_back(&mut self, reply_to: &mut JsonReplyTo) {
        if let Some(session) = self.json_sessions.get_mut(&reply_to.connection) {
            (session.is_busy, reply_to.holds_back) = (true, true);
        }
    }

    /// Lets the requests behind one be handled.
    pub(super) fn let_on(&mut self, reply_to: &mut JsonReplyTo) {
        if std::mem::take(&mut reply_to.holds_back)
            && let Some(session) = self.json_sessions.get_mut(&reply_to.connection)
        {
            session.is_busy = false;
        }
    }

    /// Answers that a request was done.
    pub(super) fn accept(&mut self, mut reply_to: JsonReplyTo, fields: &impl Serialize) {
        self.let_on(&mut reply_to);
        self.send_text(reply_to.connection, ok_frame(reply_to.id, fields));
        self.done(&reply_to);
    }

    /// Answers that a request was refused.
    pub(super) fn refuse_request(
        &mut self,
        reply_to: JsonReplyTo,
        code: ErrorCode,
        message: impl Into<String>,
    ) {
        self.refuse_with(reply_to, &ErrorBody::new(code, message));
    }

    pub(super) fn refuse_with(&mut self, mut reply_to: JsonReplyTo, error: &ErrorBody) {
        self.counters.refused_requests += 1;
        self.let_on(&mut reply_to);
        self.send_text(reply_to.connection, error_frame(reply_to.id, error));
        self.done(&reply_to);
    }

    /// Answers that a call of the store has failed.
    pub(super) fn refuse_failed(&mut self, reply_to: JsonReplyTo, error: Option<&StoreError>) {
        let (code, message) = match error {
            Some(StoreError::Full(Full::Mailbox(_))) => (ErrorCode::MailboxFull, "mailbox is full"),
            Some(StoreError::Full(Full::SenderShare(_))) => {
                (ErrorCode::SenderShareFull, "too many messages of yours are in the mailbox")
            }
            Some(StoreError::Full(Full::Store)) => (ErrorCode::StorageFull, "storage is full"),
            Some(StoreError::DiskFull) => (ErrorCode::DiskFull, "disk is full"),
            Some(StoreError::Overloaded) => (ErrorCode::TryAgainLater, TRY_AGAIN),
            Some(StoreError::LimitExceeded) => (ErrorCode::TooLarge, "too long or too many"),
            Some(StoreError::NotFound) => (ErrorCode::NotFound, "not found"),
            _ => (ErrorCode::Unavailable, "the server cannot do this now"),
        };
        self.refuse_request(reply_to, code, message);
    }

    /// Counts a request as done with, without an answer.
    pub(super) fn done(&mut self, reply_to: &JsonReplyTo) {
        self.handled(reply_to.connection, reply_to.cost);
    }

    pub(super) fn send_event(&mut self, connection: ConnectionId, event: &Event) {
        self.send_text(connection, event.to_frame());
    }

    fn send_text(&mut self, connection: ConnectionId, text: String) {
        if self.json_sessions.contains_key(&connection) {
            self.push_output(Output::Text { connection, text });
        }
    }

    /// Closes a WebSocket and says why.
    pub(super) fn close_json(&mut self, connection: ConnectionId, reason: ClosingReason) {
        self.send_event(connection, &Event::Closing { reason });
        self.close(connection);
    }

    /// Forgets a WebSocket.
    pub(super) fn forget_json_session(&mut self, connection: ConnectionId) {
        let Some(session) = self.json_sessions.remove(&connection) else { return };
        self.release_bytes(session.waiting.iter().map(String::len).sum());
        if let Some(watch) = session.watch {
            if self.refreshing.remove(&connection) {
                self.clear_timer(Timer::Watch(connection));
            }
            self.forget_watches(connection, watch.parties.iter());
        }
        if let Some(access) = session.access {
            self.forget_access(connection, &access);
        }
    }

    /// The session of a request, which is there while the request is handled.
    pub(super) fn json_session(&mut self, reply_to: &JsonReplyTo) -> Option<&mut JsonSession> {
        self.json_sessions.get_mut(&reply_to.connection)
    }

    pub(super) fn has_session(&self, connection: ConnectionId) -> bool {
        self.sessions.contains_key(&connection) || self.json_sessions.contains_key(&connection)
    }

    /// Counts the bytes of a frame; `false` where there are too many in all.
    fn hold(&mut self, cost: usize) -> bool {
        let is_within = self.hold_bytes(cost) <= self.config.limits.request_bytes;
        if !is_within {
            Limit::MessagingRequestBytes.reached(self.config.limits.request_bytes);
        }
        is_within
    }
}
