//! Accounts over the WebSocket `/messages`: registration, the three ways to log in, and what an account sets. Pure.

use super::follow::Inbox;
use super::json_session::{Access, AccessKind, DeviceAccess, JsonReplyTo, JsonStep};
use super::login::{MAX_PASSWORD, is_name};
use super::machine::{Job, JobResult, Machine, TRY_AGAIN, unix_ms};
use super::session::ConnectionId;
use super::store_request::{StoreReply, StoreRequest};
use crate::clock::Now;
use crate::messaging_wire::signing::{Statement, is_small_order_signing_key};
use crate::messaging_wire::{
    ClosingReason, Empty, ErrorCode, FixedBytes, LoggedIn, Login, LoginProof, MailboxState, Register,
    Registered, SetIdentity, Stored,
};
use crate::store::{Account, AccountDevice, AccountDeviceId, Mailbox, NewAccountDevice, StoreError};
use data_encoding::HEXLOWER;
use md5::{Digest, Md5};
use std::net::IpAddr;
use std::sync::Arc;

const WRONG_CREDENTIALS: &str = "the account, the key or the password is wrong";
const TLS_REQUIRED: &str = "passwords are accepted inside TLS only";

/// How far a request about an account is.
#[derive(Debug)]
pub(super) enum JsonLoginStep {
    /// Is the name free?
    Name(Box<Registration>),
    /// The password of a new account is hashed.
    Hash(Box<Registration>),
    /// The account is stored.
    Insert(Option<Box<NewAccountDevice>>),
    /// Its first device is stored.
    FirstDevice,
    /// A device logs in: which devices has the account?
    Device(Box<KeyDeviceClaim>),
    /// The state of the device's mailbox is read.
    Mailbox { user: String, device: Box<LoginDevice>, reads_mailbox: bool, is_removed: bool },
    /// Which identity key has the account?
    Identity { user: String, signature: [u8; 64] },
    /// Which password has the account?
    Password { user: String, password: String },
    /// The password is verified.
    Verify { user: String },
    /// The identity key is stored.
    SetIdentity,
    /// The new password is hashed.
    NewPassword { user: String },
    /// Its hash is stored.
    SetPassword,
}

/// A new account.
#[derive(Debug)]
pub(super) struct Registration {
    account: Account,
    password: Option<String>,
    device: Option<Box<NewAccountDevice>>,
}

/// A device that has proved itself.
#[derive(Debug)]
pub(super) struct LoginDevice {
    pub(super) id: AccountDeviceId,
    certificate: [u8; 64],
    other_devices: usize,
}

/// What a device claims at a login with its key.
#[derive(Debug)]
pub(super) struct KeyDeviceClaim {
    user: String,
    reads_mailbox: bool,
    key: [u8; 32],
    signature: [u8; 64],
}

/// Returns the text that a client of the TCP protocol sends for a password: the account is the same on both.
fn password_text(password: &str) -> String {
    let hex = HEXLOWER.encode(&Md5::digest(password));
    match hex.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}

impl Machine {
    pub(super) fn handle_json_register(&mut self, now: Now, reply_to: JsonReplyTo, register: Register) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let (ip, is_secure, challenge) = (session.ip, session.is_secure, session.challenge);
        let Register { user, password, identity_key, proof, device } = register;
        let is_password = |password: &String| (1..=MAX_PASSWORD).contains(&password.len());
        let refusal = match () {
            () if !self.config.registration => {
                Some((ErrorCode::RegistrationClosed, "registration is closed"))
            }
            () if !is_name(&user) => Some((ErrorCode::Invalid, "user")),
            () if password.is_some() && !is_secure => Some((ErrorCode::TlsRequired, TLS_REQUIRED)),
            () if password.as_ref().is_some_and(|password| !is_password(password)) => {
                Some((ErrorCode::Invalid, "password"))
            }
            () if password.is_none() && identity_key.is_none() => {
                Some((ErrorCode::Invalid, "password or identity_key"))
            }
            () if identity_key.is_some() != proof.is_some() => Some((ErrorCode::Invalid, "proof")),
            () if device.is_some() && identity_key.is_none() => Some((ErrorCode::Invalid, "device")),
            () if identity_key.is_some_and(|key| is_small_order_signing_key(&key.0)) => {
                Some((ErrorCode::Invalid, "identity_key"))
            }
            () => {
                let field = device.as_ref().and_then(|device| device.invalid_field());
                field.map(|field| (ErrorCode::Invalid, field))
            }
        };
        if let Some((code, message)) = refusal {
            return self.refuse_request(reply_to, code, message);
        }
        if !self.rates.registration(now.mono, ip) || !self.rates.signatures(now.mono) {
            return self.throttle(reply_to);
        }
        let is_signed = identity_key.zip(proof).is_none_or(|(key, proof)| {
            let statement =
                Statement::Registration { challenge: &challenge, user: &user, identity_key: &key.0 };
            statement.is_signed(&key.0, &proof.0)
                && device.as_ref().is_none_or(|device| device.is_signed(&user, &key.0))
        });
        if !is_signed {
            return self.refuse_login(reply_to, "the signature is wrong");
        }
        let device = device.map(|device| Box::new(device.into_account_device(&user, now)));
        let account = Account {
            name: user.clone(),
            password_hash: None,
            identity_key: identity_key.map(|key| key.0),
            created_at_ms: unix_ms(now),
        };
        let password = password.as_deref().map(password_text);
        let step = JsonLoginStep::Name(Box::new(Registration { account, password, device }));
        self.call_for_json(StoreRequest::Account(user), JsonStep::Login(step), reply_to);
    }

    pub(super) fn handle_json_login(&mut self, now: Now, reply_to: JsonReplyTo, login: Login) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let (ip, is_secure) = (session.ip, session.is_secure);
        let Login { user, proof } = login;
        if matches!(proof, LoginProof::Password(_)) && !is_secure {
            return self.refuse_request(reply_to, ErrorCode::TlsRequired, TLS_REQUIRED);
        }
        if !is_name(&user) {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "user");
        }
        // A signature cannot be guessed: only its network is limited.
        let is_allowed = match proof {
            LoginProof::Password(_) => self.rates.login(now.mono, ip, &user),
            LoginProof::Device { .. } | LoginProof::Identity(_) => self.rates.signed_login(now.mono, ip),
        };
        if !is_allowed {
            return self.throttle(reply_to);
        }
        let (request, step) = match proof {
            LoginProof::Device { reads_mailbox, key, signature } => {
                let claim =
                    KeyDeviceClaim { user: user.clone(), reads_mailbox, key: key.0, signature: signature.0 };
                (StoreRequest::AccountDevices(user), JsonLoginStep::Device(Box::new(claim)))
            }
            LoginProof::Identity(signature) => {
                let step = JsonLoginStep::Identity { user: user.clone(), signature: signature.0 };
                (StoreRequest::Account(user), step)
            }
            LoginProof::Password(password) => {
                if password.len() > MAX_PASSWORD {
                    return self.refuse_login(reply_to, WRONG_CREDENTIALS);
                }
                let password = password_text(&password);
                let step = JsonLoginStep::Password { user: user.clone(), password };
                (StoreRequest::Account(user), step)
            }
        };
        self.call_for_json(request, JsonStep::Login(step), reply_to);
    }

    /// Sets the identity key of an account that has none: everything that a later key could sign follows from it.
    pub(super) fn handle_set_identity(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        user: String,
        set: SetIdentity,
    ) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let challenge = session.challenge;
        if !matches!(session.access, Some(Access { kind: AccessKind::Password, .. })) {
            return self.refuse_login(reply_to, "only a session with the password sets the identity key");
        }
        if !self.rates.signatures(now.mono) {
            return self.throttle(reply_to);
        }
        let key = set.identity_key.0;
        if is_small_order_signing_key(&key) {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "identity_key");
        }
        let statement = Statement::Registration { challenge: &challenge, user: &user, identity_key: &key };
        if !statement.is_signed(&key, &set.proof.0) {
            return self.refuse_login(reply_to, "the proof is wrong");
        }
        let request = StoreRequest::SetIdentityKey(user, key);
        self.call_for_json(request, JsonStep::Login(JsonLoginStep::SetIdentity), reply_to);
    }

    /// Sets the password: whoever has only the password must not change it.
    pub(super) fn handle_set_password(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        user: String,
        password: String,
    ) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let ip = session.ip;
        if !matches!(session.access, Some(Access { kind: AccessKind::Identity, .. })) {
            return self.refuse_login(reply_to, "only a session with the identity key sets the password");
        }
        if !session.is_secure {
            return self.refuse_request(reply_to, ErrorCode::TlsRequired, TLS_REQUIRED);
        }
        if !(1..=MAX_PASSWORD).contains(&password.len()) {
            return self.refuse_request(reply_to, ErrorCode::Invalid, "password");
        }
        if !self.rates.login(now.mono, ip, &user) {
            return self.throttle(reply_to);
        }
        let job = Job::Hash { password: password_text(&password) };
        self.start_password_job(job, JsonLoginStep::NewPassword { user }, reply_to, ip);
    }

    fn start_password_job(&mut self, job: Job, step: JsonLoginStep, reply_to: JsonReplyTo, ip: IpAddr) {
        match self.job_permit(&Arc::clone(&self.rates.passwords), ip) {
            Some(permit) => self.job_for_json(job, step, reply_to, permit),
            None => self.throttle(reply_to),
        }
    }

    pub(super) fn on_json_login_stored(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        step: JsonLoginStep,
        result: Result<StoreReply, StoreError>,
    ) {
        let Some(session) = self.json_session(&reply_to) else { return self.done(&reply_to) };
        let (ip, challenge) = (session.ip, session.challenge);
        match (step, result) {
            (JsonLoginStep::Name(_), Ok(StoreReply::Account(Some(_))))
            | (JsonLoginStep::Insert(_), Err(StoreError::Exists)) => {
                self.refuse_request(reply_to, ErrorCode::NameTaken, "the name is taken");
            }
            (JsonLoginStep::Insert(_), Err(StoreError::LimitExceeded)) => {
                self.refuse_request(
                    reply_to,
                    ErrorCode::RegistrationClosed,
                    "as many accounts as it may have",
                );
            }
            (JsonLoginStep::Name(registration), Ok(StoreReply::Account(None))) => {
                match registration.password.clone() {
                    Some(password) => {
                        let step = JsonLoginStep::Hash(registration);
                        self.start_password_job(Job::Hash { password }, step, reply_to, ip);
                    }
                    None => self.insert_account(reply_to, *registration),
                }
            }
            (JsonLoginStep::Insert(device), Ok(StoreReply::Done)) => {
                self.counters.registrations += 1;
                match device {
                    Some(device) => {
                        let step = JsonStep::Login(JsonLoginStep::FirstDevice);
                        self.call_for_json(StoreRequest::InsertAccountDevice(*device), step, reply_to);
                    }
                    None => self.accept(reply_to, &Registered { device: None }),
                }
            }
            (JsonLoginStep::FirstDevice, Ok(StoreReply::AccountDevice(device))) => {
                self.accept(reply_to, &Registered { device: Some(device.id.0) });
            }
            (JsonLoginStep::Device(claim), Ok(StoreReply::AccountDevices(devices))) => {
                self.check_device(now, reply_to, *claim, (&devices, &challenge));
            }
            (
                JsonLoginStep::Mailbox { user, device, reads_mailbox, is_removed: false },
                Ok(StoreReply::Mailbox(mailbox)),
            ) => {
                self.log_device_in(reply_to, user, (*device, reads_mailbox), mailbox);
            }
            (JsonLoginStep::Identity { user, signature }, Ok(StoreReply::Account(account))) => {
                let key = account.and_then(|account| account.identity_key);
                self.check_identity(now, reply_to, user, (key, &challenge, &signature));
            }
            (JsonLoginStep::Password { user, password }, Ok(StoreReply::Account(account))) => {
                let hash = account.and_then(|account| account.password_hash);
                let step = JsonLoginStep::Verify { user };
                self.start_password_job(Job::Verify { password, hash }, step, reply_to, ip);
            }
            (JsonLoginStep::SetIdentity | JsonLoginStep::SetPassword, Ok(StoreReply::Done)) => {
                self.accept(reply_to, &Empty {});
            }
            (JsonLoginStep::SetIdentity, Err(StoreError::Exists)) => {
                self.refuse_login(reply_to, "the account has an identity key");
            }
            (JsonLoginStep::Mailbox { .. }, Ok(_) | Err(StoreError::NotFound)) => {
                self.refuse_login(reply_to, WRONG_CREDENTIALS);
            }
            (_, result) => self.refuse_failed(reply_to, result.err().as_ref()),
        }
    }

    /// Handles the result of a job for a request.
    pub(super) fn on_json_job(&mut self, now: Now, reply_to: JsonReplyTo, step: JsonStep, result: JobResult) {
        let connection = reply_to.connection;
        match (step, result) {
            (JsonStep::Login(JsonLoginStep::Hash(mut registration)), JobResult::Hash(hash)) => {
                registration.account.password_hash = Some(hash);
                self.insert_account(reply_to, *registration);
            }
            (JsonStep::Login(JsonLoginStep::NewPassword { user }), JobResult::Hash(hash)) => {
                let step = JsonStep::Login(JsonLoginStep::SetPassword);
                self.call_for_json(StoreRequest::SetPasswordHash(user, hash), step, reply_to);
            }
            (JsonStep::Login(JsonLoginStep::Verify { user }), JobResult::Verified(true)) => {
                self.log_account_in(reply_to, user, AccessKind::Password);
            }
            (JsonStep::Login(JsonLoginStep::Verify { .. }), JobResult::Verified(false)) => {
                self.refuse_login(reply_to, WRONG_CREDENTIALS);
            }
            _ => self.throttle(reply_to),
        }
        self.advance_json(now, connection);
    }

    fn insert_account(&mut self, reply_to: JsonReplyTo, registration: Registration) {
        let Registration { account, device, .. } = registration;
        let step = JsonStep::Login(JsonLoginStep::Insert(device));
        self.call_for_json(StoreRequest::InsertAccount(account), step, reply_to);
    }

    fn check_device(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        claim: KeyDeviceClaim,
        (devices, challenge): (&[AccountDevice], &[u8; 32]),
    ) {
        let KeyDeviceClaim { user, reads_mailbox, key, signature } = claim;
        let Some(device) = devices.iter().find(|device| device.details.signing_key == key) else {
            return self.refuse_login(reply_to, WRONG_CREDENTIALS);
        };
        if !self.rates.signatures(now.mono) {
            return self.throttle(reply_to);
        }
        let statement = Statement::DeviceLogin { challenge, user: &user, signing_key: &key };
        if !statement.is_signed(&key, &signature) {
            return self.refuse_login(reply_to, WRONG_CREDENTIALS);
        }
        let (certificate, mailbox) = (device.details.signature, device.mailbox);
        let device = LoginDevice { id: device.id, certificate, other_devices: devices.len() - 1 };
        let step =
            JsonLoginStep::Mailbox { user, device: Box::new(device), reads_mailbox, is_removed: false };
        self.call_for_json(StoreRequest::Mailbox(mailbox), JsonStep::Login(step), reply_to);
    }

    fn check_identity(
        &mut self,
        now: Now,
        reply_to: JsonReplyTo,
        user: String,
        (key, challenge, signature): (Option<[u8; 32]>, &[u8; 32], &[u8; 64]),
    ) {
        let Some(key) = key else { return self.refuse_login(reply_to, WRONG_CREDENTIALS) };
        if !self.rates.signatures(now.mono) {
            return self.throttle(reply_to);
        }
        match (Statement::IdentityLogin { challenge, user: &user }).is_signed(&key, signature) {
            true => self.log_account_in(reply_to, user, AccessKind::Identity),
            false => self.refuse_login(reply_to, WRONG_CREDENTIALS),
        }
    }

    /// Makes a connection a session of an account without a device.
    fn log_account_in(&mut self, reply_to: JsonReplyTo, user: String, kind: AccessKind) {
        self.set_access(reply_to.connection, Access { user, kind });
        self.accept(reply_to, &LoggedIn { mailbox: None });
    }

    /// Makes a connection one of a device. One that reads the mailbox replaces an older one that does.
    fn log_device_in(
        &mut self,
        reply_to: JsonReplyTo,
        user: String,
        (device, reads_mailbox): (LoginDevice, bool),
        mailbox: Mailbox,
    ) {
        let (connection, id) = (reply_to.connection, device.id);
        let older =
            self.readers.get(&mailbox.id).copied().filter(|older| *older != connection && reads_mailbox);
        let access = DeviceAccess { id, reads_mailbox, inbox: Inbox::new(mailbox) };
        self.set_access(connection, Access { user, kind: AccessKind::Device(Box::new(access)) });
        if reads_mailbox {
            self.readers.insert(mailbox.id, connection);
        }
        // After the new one is there, so that nobody sees the user offline.
        if let Some(older) = older {
            self.counters.conflicts += 1;
            self.close_json(older, ClosingReason::Replaced);
        }
        let state = MailboxState {
            device: id.0,
            epoch: mailbox.epoch,
            last_sequence: mailbox.last_sequence,
            stored: Stored { messages: mailbox.messages, bytes: mailbox.bytes },
            certificate: Some(FixedBytes(device.certificate)),
            other_devices: device.other_devices as u64,
        };
        self.accept(reply_to, &LoggedIn { mailbox: Some(state) });
    }

    /// Sets what a connection has proved, instead of what it had proved before.
    fn set_access(&mut self, connection: ConnectionId, access: Access) {
        self.counters.logins += 1;
        self.set_authenticated(connection);
        let (user, party, is_reader) = (access.user.clone(), access.party(), access.reads_mailbox());
        if is_reader {
            self.on_came(&party);
        }
        self.forget_watch(connection);
        let Some(session) = self.json_sessions.get_mut(&connection) else { return };
        let before = session.access.replace(access);
        if let Some(before) = before {
            self.forget_access(connection, &before);
        }
        self.account_sessions.entry(user).or_default().insert(connection);
    }

    /// Forgets what a connection had proved.
    pub(super) fn forget_access(&mut self, connection: ConnectionId, access: &Access) {
        if let Some(connections) = self.account_sessions.get_mut(&access.user) {
            connections.remove(&connection);
            if connections.is_empty() {
                self.account_sessions.remove(&access.user);
            }
        }
        if let Some(device) = access.device() {
            let mailbox = device.inbox.mailbox;
            if self.readers.get(&mailbox) == Some(&connection) {
                self.readers.remove(&mailbox);
            }
            if device.reads_mailbox {
                self.on_left(&access.party());
            }
        }
    }

    pub(super) fn throttle(&mut self, reply_to: JsonReplyTo) {
        self.counters.throttled += 1;
        self.refuse_request(reply_to, ErrorCode::TryAgainLater, TRY_AGAIN);
    }

    pub(super) fn refuse_login(&mut self, reply_to: JsonReplyTo, message: &str) {
        self.counters.refused_logins += 1;
        self.refuse_request(reply_to, ErrorCode::WrongCredentials, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_sent_on_as_the_original_clients_write_it() {
        assert_eq!(password_text("password"), "5f4dcc3b5aa765d61d8327deb882cf99");
        assert_eq!(password_text("168"), "6f52e9102a8d3be2fe5614f42ba989", "without leading zeros");
    }
}
