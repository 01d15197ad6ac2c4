//! A TURN client without sockets or clocks: allocates, lets one peer in, keeps both alive, and releases.
//!
//! Bytes and time in, bytes and events out, as everywhere: one mutation, then drain [`Client::poll_transmit`] and
//! [`Client::poll_event`], then arm [`Client::poll_timeout`]. One request is under way at a time.

use super::credentials::Credentials;
use super::refusal::{Ask, Refusal};
use crate::stun::{Attributes, Builder, Class, Key, Message, Method, TransactionId, attr};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The channel that a client binds to its peer.
pub const CHANNEL: u16 = 0x4000;
/// The first wait for an answer over UDP; each later one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const TRIES: u32 = 5;
/// The wait over TCP, which repeats by itself.
const STREAM_WAIT: Duration = Duration::from_secs(8);
/// How often a nonce may be refused in a row.
const STALE_NONCES: u8 = 3;
/// Permissions last 300 s, channels 600 s; binding a channel renews the permission.
const RENEWAL: Duration = Duration::from_secs(200);
/// What an allocation lasts where the server does not tell (RFC 8656 section 3.2).
const DEFAULT_LIFETIME: u32 = 600;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The allocation is there.
    Allocated {
        /// Where peers reach the client.
        relayed: SocketAddr,
    },
    /// The peer may be reached.
    Reached,
    /// The allocation is gone.
    Released,
    /// It ends here.
    Failed(Refusal),
}

/// What all clients of a load have in common.
#[derive(Debug, Clone)]
pub struct Login {
    /// Who they are.
    pub credentials: Arc<Credentials>,
    /// Whether they are connected by TCP, where nothing is sent again.
    pub stream: bool,
    /// Whether they want an IPv6 address.
    pub v6: bool,
}

#[derive(Debug)]
struct Challenge {
    realm: String,
    nonce: Vec<u8>,
    key: Key,
}

#[derive(Debug)]
struct Pending {
    ask: Ask,
    transaction: TransactionId,
    bytes: Vec<u8>,
    signed: bool,
    tries: u32,
    stale: u8,
    began: Instant,
    due: Instant,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    login: Login,
    salt: u64,
    counter: u32,
    challenge: Option<Challenge>,
    pending: Option<Pending>,
    waiting: VecDeque<Ask>,
    relayed: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    channel: bool,
    refresh_at: Option<Instant>,
    renew_at: Option<Instant>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
}

impl Client {
    /// Makes a client that has not begun; `salt` is random and tells its transactions from others'.
    #[must_use]
    pub fn new(login: Login, salt: u64) -> Self {
        Self {
            login,
            salt,
            counter: 0,
            challenge: None,
            pending: None,
            waiting: VecDeque::new(),
            relayed: None,
            peer: None,
            channel: false,
            refresh_at: None,
            renew_at: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Asks for an allocation.
    pub fn allocate(&mut self, now: Instant) {
        self.ask(now, Ask::Allocate);
    }

    /// Asks that `peer` be let in, by a channel or by a permission alone, and keeps it so.
    pub fn reach(&mut self, now: Instant, peer: SocketAddr, channel: bool) {
        self.peer = Some(peer);
        self.channel = channel;
        self.ask(now, if channel { Ask::Bind } else { Ask::Permit });
    }

    /// Gives the allocation back.
    pub fn release(&mut self, now: Instant) {
        (self.refresh_at, self.renew_at) = (None, None);
        self.waiting.clear();
        self.pending = None;
        if self.relayed.is_some() {
            self.ask(now, Ask::Release);
        } else {
            self.events.push_back(Event::Released);
        }
    }

    /// Returns where peers reach the client, while it has an allocation.
    #[must_use]
    pub fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`Client::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.pending.as_ref().map(|pending| pending.due);
        [due, self.refresh_at, self.renew_at].into_iter().flatten().min()
    }

    /// Sends again what was not answered, and renews what would expire.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(pending) = self.pending.as_mut().filter(|pending| pending.due <= now) {
            let most = if self.login.stream { 1 } else { TRIES };
            if pending.tries < most {
                pending.due = now + FIRST_WAIT * (1 << pending.tries);
                pending.tries += 1;
                self.transmits.push_back(pending.bytes.clone());
            } else {
                let (ask, tries, time) = (pending.ask, pending.tries, now - pending.began);
                self.pending = None;
                self.fail(now, ask, Refusal::Silence { ask, tries, time });
            }
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            self.ask(now, Ask::Refresh);
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = None;
            self.ask(now, if self.channel { Ask::Bind } else { Ask::Permit });
        }
    }

    /// Handles a message of the server; what answers nothing that was asked is passed over.
    pub fn handle(&mut self, now: Instant, message: &Message<'_>) {
        let is_answer = |pending: &mut Pending| pending.transaction == message.transaction();
        let Some(pending) = self.pending.take_if(is_answer) else { return };
        match message.class() {
            Class::Success => {
                let attributes = match &self.challenge {
                    // A forged answer is no answer (RFC 8489 section 9.2.5).
                    Some(challenge) if pending.signed => message.verify(&challenge.key),
                    _ => Some(message.unverified()),
                };
                match attributes {
                    Some(attributes) => self.granted(now, pending.ask, &attributes),
                    None => self.pending = Some(pending),
                }
            }
            Class::Error => self.refused(now, &pending, &message.unverified()),
            _ => self.pending = Some(pending),
        }
        if self.pending.is_none()
            && let Some(ask) = self.waiting.pop_front()
        {
            self.send(now, ask, 0);
        }
    }

    fn granted(&mut self, now: Instant, ask: Ask, attributes: &Attributes<'_>) {
        let lifetime = attributes.u32(attr::LIFETIME).unwrap_or(DEFAULT_LIFETIME).max(2);
        match ask {
            Ask::Allocate => {
                let Ok(Some(relayed)) = attributes.xor_address(attr::XOR_RELAYED_ADDRESS) else {
                    let what = "XOR-RELAYED-ADDRESS";
                    return self.fail(now, ask, Refusal::Malformed { ask, what });
                };
                self.relayed = Some(relayed);
                self.refresh_at = Some(now + Duration::from_secs(lifetime.into()) / 2);
                self.events.push_back(Event::Allocated { relayed });
            }
            Ask::Refresh => self.refresh_at = Some(now + Duration::from_secs(lifetime.into()) / 2),
            Ask::Permit | Ask::Bind => {
                self.renew_at = Some(now + RENEWAL);
                self.events.push_back(Event::Reached);
            }
            Ask::Release => {
                self.relayed = None;
                self.events.push_back(Event::Released);
            }
        }
    }

    fn refused(&mut self, now: Instant, pending: &Pending, attributes: &Attributes<'_>) {
        let ask = pending.ask;
        let code = attributes.error_code().unwrap_or(0);
        let challenged = code == 401 && !pending.signed;
        if challenged || code == 438 && pending.stale < STALE_NONCES {
            if let Some(challenge) = self.read_challenge(attributes) {
                self.challenge = Some(challenge);
                self.send(now, ask, pending.stale + u8::from(code == 438));
            } else {
                self.fail(now, ask, Refusal::Malformed { ask, what: "REALM or NONCE" });
            }
            return;
        }
        let refusal = match code {
            300 => Refusal::Elsewhere { to: attributes.plain_address(attr::ALTERNATE_SERVER).ok().flatten() },
            _ => {
                let words = attributes.get(attr::ERROR_CODE).and_then(|value| value.get(4..));
                let reason = String::from_utf8_lossy(words.unwrap_or_default());
                // Nothing of a stranger's may steer the terminal.
                let reason = reason.chars().filter(|c| !c.is_control()).take(100).collect();
                Refusal::Answer { ask, code, reason }
            }
        };
        self.fail(now, ask, refusal);
    }

    fn read_challenge(&self, attributes: &Attributes<'_>) -> Option<Challenge> {
        let realm = std::str::from_utf8(attributes.get(attr::REALM)?).ok()?;
        let nonce = attributes.get(attr::NONCE)?.to_vec();
        let key = match &self.challenge {
            Some(known) if known.realm == realm => known.key.clone(),
            _ => self.login.credentials.key(realm),
        };
        Some(Challenge { realm: realm.to_owned(), nonce, key })
    }

    fn fail(&mut self, now: Instant, ask: Ask, refusal: Refusal) {
        if ask == Ask::Release {
            self.relayed = None;
            self.events.push_back(Event::Released);
            return;
        }
        tracing::debug!(%refusal, lived = ?self.renew_at.map(|at| at.saturating_duration_since(now)), "a client ends");
        (self.refresh_at, self.renew_at) = (None, None);
        self.waiting.clear();
        self.events.push_back(Event::Failed(refusal));
    }

    fn ask(&mut self, now: Instant, ask: Ask) {
        if self.pending.is_none() {
            self.send(now, ask, 0);
        } else if !self.waiting.contains(&ask) {
            self.waiting.push_back(ask);
        }
    }

    fn send(&mut self, now: Instant, ask: Ask, stale: u8) {
        self.counter += 1;
        let mut random = [0; 12];
        random[..8].copy_from_slice(&self.salt.to_be_bytes());
        random[8..].copy_from_slice(&self.counter.to_be_bytes());
        let transaction = TransactionId::new(random);
        let method = match ask {
            Ask::Allocate => Method::ALLOCATE,
            Ask::Permit => Method::CREATE_PERMISSION,
            Ask::Bind => Method::CHANNEL_BIND,
            Ask::Refresh | Ask::Release => Method::REFRESH,
        };
        let request = self.fill(ask, Builder::new(Class::Request, method, transaction));
        let bytes = match &self.challenge {
            Some(challenge) => request
                .attribute(attr::USERNAME, self.login.credentials.user().as_bytes())
                .attribute(attr::REALM, challenge.realm.as_bytes())
                .attribute(attr::NONCE, &challenge.nonce)
                .integrity(&challenge.key)
                .finish(),
            None => request.finish(),
        };
        self.transmits.push_back(bytes.clone());
        let wait = if self.login.stream { STREAM_WAIT } else { FIRST_WAIT };
        let (began, due) = (now, now + wait);
        let signed = self.challenge.is_some();
        self.pending = Some(Pending { ask, transaction, bytes, signed, tries: 1, stale, began, due });
    }

    fn fill(&self, ask: Ask, request: Builder) -> Builder {
        let with_peer = |request: Builder| match self.peer {
            Some(peer) => request.xor_address(attr::XOR_PEER_ADDRESS, peer),
            None => request,
        };
        match ask {
            Ask::Allocate if self.login.v6 => request
                .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]),
            Ask::Allocate => request.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
            Ask::Permit => with_peer(request),
            Ask::Bind => {
                let [high, low] = CHANNEL.to_be_bytes();
                with_peer(request.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]))
            }
            Ask::Refresh => request,
            Ask::Release => request.attribute(attr::LIFETIME, &[0; 4]),
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
