//! Users: registration (S4-12), login (S4-14), and one connection for each id (S4-15, S4-16).

use super::commands::{Code, Command, LoginBody};
use super::machine::{Job, JobResult, Machine, Output, Step, TRY_AGAIN, unix_ms};
use super::session::{ConnectionId, Delivery, Identity, ReplyTo};
use super::store_request::{StoreReply, StoreRequest};
use super::wire::Envelope;
use crate::clock::Now;
use crate::store::{Account, Full, MAX_NAME, Mailbox, Party, StoreError};
use std::sync::Arc;

/// Longest text of a password, in bytes.
pub(super) const MAX_PASSWORD: usize = 128;
const WRONG_ACCOUNT: &str = "username or password is wrong";
const USER_EXISTS: &str = "user already exists";

/// How far a registration or login is.
#[derive(Debug)]
pub(super) enum LoginStep {
    /// The account is looked up.
    Account(LoginRequest),
    /// The password is hashed or verified.
    Password(LoginRequest),
    /// The account is stored.
    Insert,
    /// The mailbox is opened.
    Mailbox(Party),
}

#[derive(Debug)]
pub(super) struct LoginRequest {
    name: String,
    password: String,
    is_registration: bool,
}

/// Returns whether a text can be the name of a user or device.
pub(super) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

impl Machine {
    pub(super) fn handle_login(&mut self, now: Now, reply_to: ReplyTo, data: &[u8]) {
        let Some((reply_to, body)) = self.parse_body::<LoginBody>(reply_to, data) else { return };
        self.look_account_up(now, reply_to, body, false);
    }

    pub(super) fn handle_register(&mut self, now: Now, reply_to: ReplyTo, data: &[u8]) {
        let Some((reply_to, body)) = self.parse_body::<LoginBody>(reply_to, data) else { return };
        if !self.config.registration {
            return self.answer(reply_to, Code::Exception, "registration is closed");
        }
        self.look_account_up(now, reply_to, body, true);
    }

    fn look_account_up(&mut self, now: Now, reply_to: ReplyTo, body: LoginBody, is_registration: bool) {
        let (name, password) = (body.username.unwrap_or_default(), body.password.unwrap_or_default());
        let refusal = match () {
            () if name.is_empty() => Some("username is null"),
            () if !is_name(&name) => Some("username is not valid"),
            () if password.is_empty() => Some("password is null"),
            () if password.len() > MAX_PASSWORD => Some("password is too long"),
            () => None,
        };
        if let Some(refusal) = refusal {
            return self.answer(reply_to, Code::Exception, refusal);
        }
        let Some(session) = self.sessions.get(&reply_to.connection) else { return self.finish(reply_to) };
        let is_within = match is_registration {
            true => self.rates.registration(now.mono, session.ip),
            false => self.rates.login(now.mono, session.ip, &name),
        };
        if !is_within {
            self.counters.throttled += 1;
            return self.answer(reply_to, Code::Exception, TRY_AGAIN);
        }
        let request = StoreRequest::Account(name.clone());
        let step = LoginStep::Account(LoginRequest { name, password, is_registration });
        self.call_for(request, Step::Login(step), reply_to);
    }

    pub(super) fn on_login_stored(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        step: LoginStep,
        result: Result<StoreReply, StoreError>,
    ) {
        match (step, result) {
            (LoginStep::Account(request), Ok(StoreReply::Account(Some(_)))) if request.is_registration => {
                self.conclude(reply_to, Code::UserExists, USER_EXISTS);
            }
            (LoginStep::Account(request), Ok(StoreReply::Account(account))) => {
                self.check_password(reply_to, request, account);
            }
            (LoginStep::Insert, Ok(StoreReply::Done)) => {
                self.counters.registrations += 1;
                self.conclude(reply_to, Code::Ok, "ok");
            }
            (LoginStep::Insert, Err(StoreError::Exists)) => {
                self.conclude(reply_to, Code::UserExists, USER_EXISTS);
            }
            (LoginStep::Mailbox(party), Ok(StoreReply::Mailbox(mailbox))) => {
                self.log_in(now, reply_to, party, mailbox);
            }
            (_, result) => self.conclude_failed(reply_to, result.err()),
        }
    }

    /// Hashes or verifies the password. An unknown user costs as much as a wrong password.
    fn check_password(&mut self, reply_to: ReplyTo, request: LoginRequest, account: Option<Account>) {
        let Some(session) = self.sessions.get(&reply_to.connection) else { return self.finish(reply_to) };
        let Some(permit) = self.job_permit(&Arc::clone(&self.rates.passwords), session.ip) else {
            self.counters.throttled += 1;
            return self.conclude(reply_to, Code::Exception, TRY_AGAIN);
        };
        let password = request.password.clone();
        let job = match request.is_registration {
            true => Job::Hash { password },
            false => Job::Verify { password, hash: account.and_then(|account| account.password_hash) },
        };
        self.start_job(job, Step::Login(LoginStep::Password(request)), reply_to, permit);
    }

    pub(super) fn on_password(&mut self, now: Now, reply_to: ReplyTo, step: LoginStep, result: JobResult) {
        let LoginStep::Password(request) = step else { return self.close_for(reply_to) };
        match result {
            JobResult::Hash(hash) => {
                let account = Account {
                    name: request.name,
                    password_hash: Some(hash),
                    identity_key: None,
                    created_at_ms: unix_ms(now),
                };
                self.call_for(StoreRequest::InsertAccount(account), Step::Login(LoginStep::Insert), reply_to);
            }
            JobResult::Verified(true) => self.open_mailbox(reply_to, Party::User(request.name)),
            JobResult::Verified(false) => {
                self.counters.refused_logins += 1;
                self.conclude(reply_to, Code::WrongAccount, WRONG_ACCOUNT);
            }
            _ => self.conclude(reply_to, Code::Exception, TRY_AGAIN),
        }
    }

    /// Opens the mailbox of a party that has authenticated.
    pub(super) fn open_mailbox(&mut self, reply_to: ReplyTo, party: Party) {
        let request = StoreRequest::OpenMailbox(party.clone());
        self.call_for(request, Step::Login(LoginStep::Mailbox(party)), reply_to);
    }

    /// Makes a connection the one of a party; the older one gets cmd 103 and is closed (S4-15, S4-16).
    fn log_in(&mut self, now: Now, reply_to: ReplyTo, party: Party, mailbox: Mailbox) {
        let connection = reply_to.connection;
        if !self.sessions.contains_key(&connection) {
            return self.finish(reply_to);
        }
        // Before the older connection goes, so that nobody sees the party offline.
        self.on_came(&party);
        if let Some(older) = self.online.get(&party).copied().filter(|older| *older != connection) {
            self.counters.conflicts += 1;
            self.evict(older);
        }
        let identity = Identity {
            party: party.clone(),
            // What was stored before waits for a fetch (S4-21).
            delivery: Delivery::new(mailbox.id, mailbox.last_sequence),
        };
        let Some(session) = self.sessions.get_mut(&connection) else { return self.finish(reply_to) };
        let before = session.identity.replace(Box::new(identity));
        if let Some(before) = before {
            self.forget_reader(connection, &before.party, before.delivery.mailbox);
        }
        self.online.insert(party, connection);
        self.readers.insert(mailbox.id, connection);
        self.counters.logins += 1;
        tracing::debug!(connection = connection.0, unix = now.unix, "client authenticated");
        self.set_authenticated(connection);
        self.conclude(reply_to, Code::Ok, "ok");
    }

    /// Tells a connection that another one has its id, and closes it.
    fn evict(&mut self, connection: ConnectionId) {
        let frame = Envelope { cmd: Command::Conflict.number(), ..Envelope::default() }.to_frame();
        self.push_output(Output::Frame { connection, frame });
        self.close(connection);
    }

    /// Answers that a call of the store has failed.
    pub(super) fn conclude_failed(&mut self, reply_to: ReplyTo, error: Option<StoreError>) {
        let text = refusal(error.as_ref());
        self.conclude(reply_to, Code::Exception, text);
    }
}

/// Returns what a client is told about a failed call of the store.
pub(super) fn refusal(error: Option<&StoreError>) -> &'static str {
    match error {
        Some(StoreError::Full(Full::Mailbox(_))) => "mailbox is full",
        Some(StoreError::Full(Full::SenderShare(_))) => "too many messages of yours are in the mailbox",
        Some(StoreError::Full(Full::Store)) => "storage is full",
        Some(StoreError::LimitExceeded) => "too long or too many",
        Some(StoreError::DiskFull) => "disk is full",
        Some(StoreError::Overloaded) => TRY_AGAIN,
        _ => "internal error",
    }
}
