//! A TURN client without I/O: allocates, installs a permission or a channel for one peer, refreshes both, and releases.
//!
//! After each call, drain [`TurnClient::poll_transmit`] and [`TurnClient::poll_event`], then schedule [`TurnClient::poll_timeout`]. One request is
//! in flight at a time.

use super::credentials::LoadCredentials;
use super::request_error::{RequestError, TurnRequest};
use crate::stun::{Attributes, Builder, Class, Key, Message, Method, TransactionId, attr};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The channel number that a client binds to its peer.
pub(crate) const CHANNEL: u16 = 0x4000;
/// The first retransmission timeout over UDP; each later one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const TRIES: u32 = 5;
/// The timeout over TCP, which retransmits itself.
const STREAM_WAIT: Duration = Duration::from_secs(8);
/// Consecutive 438 responses before the client fails.
const STALE_NONCES: u8 = 3;
/// Permissions last 300 s, channels 600 s; binding a channel renews the permission.
const RENEWAL: Duration = Duration::from_secs(200);
/// The lifetime of an allocation if the response has none (RFC 8656 section 3.2).
const DEFAULT_LIFETIME: u32 = 600;

/// An event for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientEvent {
    /// The allocation exists.
    Allocated {
        /// The relayed transport address.
        relayed: SocketAddr,
    },
    /// The permission or channel is installed.
    PermissionInstalled,
    /// The allocation was released.
    Released,
    /// The client has failed.
    Failed(RequestError),
}

/// Settings of all clients of a load.
#[derive(Debug, Clone)]
pub(crate) struct ClientSettings {
    /// The credentials.
    pub credentials: Arc<LoadCredentials>,
    /// Whether they use TCP, without retransmissions.
    pub stream: bool,
    /// Whether they request an IPv6 address.
    pub v6: bool,
}

#[derive(Debug)]
struct AuthChallenge {
    realm: String,
    nonce: Vec<u8>,
    key: Key,
}

#[derive(Debug)]
struct PendingTransaction {
    request: TurnRequest,
    transaction: TransactionId,
    bytes: Vec<u8>,
    signed: bool,
    tries: u32,
    stale: u8,
    began: Instant,
    due: Instant,
}

/// A client.
#[derive(Debug)]
pub(crate) struct TurnClient {
    settings: ClientSettings,
    salt: u64,
    counter: u32,
    challenge: Option<AuthChallenge>,
    pending: Option<PendingTransaction>,
    waiting: VecDeque<TurnRequest>,
    relayed: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    channel: bool,
    refresh_at: Option<Instant>,
    renew_at: Option<Instant>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<ClientEvent>,
}

impl TurnClient {
    /// Creates a client. `salt` is random and makes its transaction ids unique.
    #[must_use]
    pub(crate) fn new(settings: ClientSettings, salt: u64) -> Self {
        Self {
            settings,
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

    /// Sends an Allocate request.
    pub(crate) fn allocate(&mut self, now: Instant) {
        self.request(now, TurnRequest::Allocate);
    }

    /// Installs a channel or a permission for `peer` and refreshes it.
    pub(crate) fn permit(&mut self, now: Instant, peer: SocketAddr, channel: bool) {
        self.peer = Some(peer);
        self.channel = channel;
        self.request(now, if channel { TurnRequest::Bind } else { TurnRequest::Permit });
    }

    /// Releases the allocation.
    pub(crate) fn release(&mut self, now: Instant) {
        (self.refresh_at, self.renew_at) = (None, None);
        self.waiting.clear();
        self.pending = None;
        if self.relayed.is_some() {
            self.request(now, TurnRequest::Release);
        } else {
            self.events.push_back(ClientEvent::Released);
        }
    }

    /// Returns the relayed transport address while the client has an allocation.
    #[must_use]
    pub(crate) fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// Returns the next message to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub(crate) fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Returns when [`TurnClient::handle_timeout`] is due.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.pending.as_ref().map(|pending| pending.due);
        [due, self.refresh_at, self.renew_at].into_iter().flatten().min()
    }

    /// Retransmits unanswered requests, and refreshes what would expire.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(pending) = self.pending.as_mut().filter(|pending| pending.due <= now) {
            let most = if self.settings.stream { 1 } else { TRIES };
            if pending.tries < most {
                pending.due = now + FIRST_WAIT * (1 << pending.tries);
                pending.tries += 1;
                self.transmits.push_back(pending.bytes.clone());
            } else {
                let (request, tries, time) = (pending.request, pending.tries, now - pending.began);
                self.pending = None;
                self.fail(now, request, RequestError::Silence { request, tries, time });
            }
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            self.request(now, TurnRequest::Refresh);
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = None;
            self.request(now, if self.channel { TurnRequest::Bind } else { TurnRequest::Permit });
        }
    }

    /// Handles a message of the server; one that matches no request is ignored.
    pub(crate) fn handle(&mut self, now: Instant, message: &Message<'_>) {
        let is_answer = |pending: &mut PendingTransaction| pending.transaction == message.transaction();
        let Some(pending) = self.pending.take_if(is_answer) else { return };
        match message.class() {
            Class::Success => {
                let attributes = match &self.challenge {
                    // RFC 8489 section 9.2.5: a response without valid integrity is ignored.
                    Some(challenge) if pending.signed => message.verify(&challenge.key),
                    _ => Some(message.unverified()),
                };
                match attributes {
                    Some(attributes) => self.granted(now, pending.request, &attributes),
                    None => self.pending = Some(pending),
                }
            }
            Class::Error => self.refused(now, &pending, &message.unverified()),
            _ => self.pending = Some(pending),
        }
        if self.pending.is_none()
            && let Some(request) = self.waiting.pop_front()
        {
            self.send(now, request, 0);
        }
    }

    fn granted(&mut self, now: Instant, request: TurnRequest, attributes: &Attributes<'_>) {
        let lifetime = attributes.u32(attr::LIFETIME).unwrap_or(DEFAULT_LIFETIME).max(2);
        match request {
            TurnRequest::Allocate => {
                let Ok(Some(relayed)) = attributes.xor_address(attr::XOR_RELAYED_ADDRESS) else {
                    let what = "XOR-RELAYED-ADDRESS";
                    return self.fail(now, request, RequestError::Malformed { request, what });
                };
                self.relayed = Some(relayed);
                self.refresh_at = Some(now + Duration::from_secs(lifetime.into()) / 2);
                self.events.push_back(ClientEvent::Allocated { relayed });
            }
            TurnRequest::Refresh => self.refresh_at = Some(now + Duration::from_secs(lifetime.into()) / 2),
            TurnRequest::Permit | TurnRequest::Bind => {
                self.renew_at = Some(now + RENEWAL);
                self.events.push_back(ClientEvent::PermissionInstalled);
            }
            TurnRequest::Release => {
                self.relayed = None;
                self.events.push_back(ClientEvent::Released);
            }
        }
    }

    fn refused(&mut self, now: Instant, pending: &PendingTransaction, attributes: &Attributes<'_>) {
        let request = pending.request;
        let code = attributes.error_code().unwrap_or(0);
        let challenged = code == 401 && !pending.signed;
        if challenged || code == 438 && pending.stale < STALE_NONCES {
            if let Some(challenge) = self.read_challenge(attributes) {
                self.challenge = Some(challenge);
                self.send(now, request, pending.stale + u8::from(code == 438));
            } else {
                self.fail(now, request, RequestError::Malformed { request, what: "REALM or NONCE" });
            }
            return;
        }
        let error = match code {
            300 => RequestError::Redirected {
                to: attributes.plain_address(attr::ALTERNATE_SERVER).ok().flatten(),
            },
            _ => {
                let words = attributes.get(attr::ERROR_CODE).and_then(|value| value.get(4..));
                let reason = String::from_utf8_lossy(words.unwrap_or_default());
                // The text is printed on a terminal: no control characters.
                let reason = reason.chars().filter(|c| !c.is_control()).take(100).collect();
                RequestError::Answer { request, code, reason }
            }
        };
        self.fail(now, request, error);
    }

    fn read_challenge(&self, attributes: &Attributes<'_>) -> Option<AuthChallenge> {
        let realm = std::str::from_utf8(attributes.get(attr::REALM)?).ok()?;
        let nonce = attributes.get(attr::NONCE)?.to_vec();
        let key = match &self.challenge {
            Some(known) if known.realm == realm => known.key.clone(),
            _ => self.settings.credentials.key(realm),
        };
        Some(AuthChallenge { realm: realm.to_owned(), nonce, key })
    }

    fn fail(&mut self, now: Instant, request: TurnRequest, error: RequestError) {
        if request == TurnRequest::Release {
            self.relayed = None;
            self.events.push_back(ClientEvent::Released);
            return;
        }
        tracing::debug!(%error, renewal_in = ?self.renew_at.map(|at| at.saturating_duration_since(now)), "a TURN client failed");
        (self.refresh_at, self.renew_at) = (None, None);
        self.waiting.clear();
        self.events.push_back(ClientEvent::Failed(error));
    }

    fn request(&mut self, now: Instant, request: TurnRequest) {
        if self.pending.is_none() {
            self.send(now, request, 0);
        } else if !self.waiting.contains(&request) {
            self.waiting.push_back(request);
        }
    }

    fn send(&mut self, now: Instant, request: TurnRequest, stale: u8) {
        self.counter += 1;
        let mut random = [0; 12];
        random[..8].copy_from_slice(&self.salt.to_be_bytes());
        random[8..].copy_from_slice(&self.counter.to_be_bytes());
        let transaction = TransactionId::new(random);
        let method = match request {
            TurnRequest::Allocate => Method::ALLOCATE,
            TurnRequest::Permit => Method::CREATE_PERMISSION,
            TurnRequest::Bind => Method::CHANNEL_BIND,
            TurnRequest::Refresh | TurnRequest::Release => Method::REFRESH,
        };
        let message = self.fill(request, Builder::new(Class::Request, method, transaction));
        let bytes = match &self.challenge {
            Some(challenge) => message
                .attribute(attr::USERNAME, self.settings.credentials.user().as_bytes())
                .attribute(attr::REALM, challenge.realm.as_bytes())
                .attribute(attr::NONCE, &challenge.nonce)
                .integrity(&challenge.key)
                .finish(),
            None => message.finish(),
        };
        self.transmits.push_back(bytes.clone());
        let wait = if self.settings.stream { STREAM_WAIT } else { FIRST_WAIT };
        let (began, due) = (now, now + wait);
        let signed = self.challenge.is_some();
        self.pending =
            Some(PendingTransaction { request, transaction, bytes, signed, tries: 1, stale, began, due });
    }

    fn fill(&self, request: TurnRequest, message: Builder) -> Builder {
        let with_peer = |message: Builder| match self.peer {
            Some(peer) => message.xor_address(attr::XOR_PEER_ADDRESS, peer),
            None => message,
        };
        match request {
            TurnRequest::Allocate if self.settings.v6 => message
                .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]),
            TurnRequest::Allocate => message.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
            TurnRequest::Permit => with_peer(message),
            TurnRequest::Bind => {
                let [high, low] = CHANNEL.to_be_bytes();
                with_peer(message.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0]))
            }
            TurnRequest::Refresh => message,
            TurnRequest::Release => message.attribute(attr::LIFETIME, &[0; 4]),
        }
    }
}

#[cfg(test)]
#[path = "turn_client_tests.rs"]
mod tests;
