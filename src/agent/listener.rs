//! [`Listener`]: keeps the registration with the server and turns incoming calls into connections.

mod secrets;

use super::admission::Admission;
use super::call::{self, CallRequest, CallResources};
use super::call_auth::{self, CallAuth, ReplayCache, SessionSecret, resumed_fragment};
use super::code;
use super::code::offered::CodeEvent;
use super::config::ServerName;
use super::connect::{self, Agent};
use super::connection::Connection;
use super::engine::{EngineCommand, EngineConfig};
use super::error::{ConnectError, RegistrationError};
use super::gateway_fallback::GatewayListener;
use super::keys::{AgentRole, SECRET_LEN, Secret};
use super::path::PathPolicy;
use super::ping::{self, Describe};
use super::quic::QuicEndpoint;
use super::resumption::{ResumedCall, Resumption};
use super::servers::{self, ServerSession};
use super::session::SessionConfig;
use super::signaling_client::{RegistrationParams, ServerEvent};
use super::ticket::Ticket;
use crate::limits::Backoff;
use crate::net::network_changes::NetworkChanges;
use crate::net::time;
use crate::signaling::wire::{
    ErrorCode, IceDescription, MessageType, Request, RequestBody, ResponseBody, Tag, Token,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use ring::hmac;
use secrets::{ListenerCommand, next_command};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, sleep_until, timeout};

/// Maximum number of calls that are negotiated at a time.
const MAX_CALLS: usize = 8;
/// Maximum number of sessions, those that are negotiated among them.
const MAX_SESSIONS: usize = 512;
const QUEUE: usize = 64;
/// Calls that wait to resume a session: after a suspension several are read at once.
const RESUMED_CALLS: usize = 8;
/// Capacity of the replay cache; about 2 MiB.
const REPLAY_CACHE: usize = 16_384;
/// The first and the longest wait before a reconnection, each with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// How long a listener is ready for its next call; later it gathers when it is called.
const SPARE_TIME: Duration = Duration::from_secs(600);
/// How often a dropped listener checks whether its last call has ended.
const CLOSING_CHECK: Duration = Duration::from_secs(1);
/// Age from which relay credentials are renewed before a call.
const CREDENTIALS_AGE: Duration = Duration::from_secs(1800);
/// Length in random bytes of the secret that keeps the tag across reconnections.
const TAG_SECRET_BYTES: usize = 20;
/// How long the gateway is a path for those who hold a code or a further ticket, from their call on.
const GATEWAY_TIME: Duration = Duration::from_secs(120);

/// Accepts connections of those who hold its ticket, another one that it has added, or its code, until it is dropped. Accepted connections
/// survive the listener.
#[derive(Debug)]
pub struct Listener {
    ticket: Ticket,
    accepted: mpsc::Receiver<Result<Connection, ConnectError>>,
    commands: mpsc::Sender<ListenerCommand>,
}

impl Agent {
    /// Registers with the configured server and creates a ticket for the other side.
    ///
    /// # Errors
    /// [`RegistrationError`] if no server is configured or the server does not accept the registration.
    pub async fn listen(&self) -> Result<Listener, RegistrationError> {
        let (owner, ticket_secret) = match &self.config.listen_secret {
            Some(secret) => listener_secrets(secret),
            None => (connect::random_text(TAG_SECRET_BYTES), rand::random()),
        };
        let secret = Some(owner);
        let mut registration = RegistrationParams { key: self.config.key.clone(), secret, epoch: None };
        let registered = servers::register(&self.config.dialer, self.config.servers.clone(), &registration);
        let (session, events_rx) = registered.await?;
        registration.epoch = session.registered.epoch;
        let others: Vec<ServerName> =
            self.config.servers.iter().filter(|server| **server != session.name).cloned().collect();
        let engine = self.engine_config(&session.name, session.address, others.clone());
        let describe = ping::describe(&self.config);
        let ticket = Ticket::new(session.name.clone(), session.registered.tag.to_string(), ticket_secret)
            .with_further_servers(others);
        Ok(Listener::spawn(ticket, registration, (engine, describe), session, events_rx))
    }
}

impl Listener {
    fn spawn(
        ticket: Ticket,
        registration: RegistrationParams,
        (engine, describe): (EngineConfig, Describe),
        session: ServerSession,
        events: mpsc::Receiver<ServerEvent>,
    ) -> Self {
        let (accepted, accepted_rx) = mpsc::channel(MAX_CALLS);
        let (commands, commands_rx) = mpsc::channel(QUEUE);
        if let Some(key) = registration.key.clone().filter(|_| engine.policy != PathPolicy::DirectOnly) {
            let (config, secret) = (engine.clone(), ticket.secret.clone());
            tokio::spawn(
                GatewayListener { config, secret, describe: Arc::clone(&describe) }
                    .run(key, accepted.clone()),
            );
        }
        let task = ListenerTask {
            ticket: ticket.clone(),
            engine,
            spare: None,
            spare_since: time::now().mono,
            registration,
            session,
            registered_at: time::now().mono,
            calls: HashMap::new(),
            negotiations: Arc::new(Semaphore::new(MAX_CALLS)),
            sessions: HashMap::new(),
            replay_cache: ReplayCache::new(REPLAY_CACHE),
            admission: Admission::new(ticket.secret.clone()),
            commands: commands_rx,
            code_events: None,
            accepted,
            backoff: Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng()),
            network: NetworkChanges::start(),
            closing: false,
            describe,
        };
        tokio::spawn(task.run(events));
        Self { ticket, accepted: accepted_rx, commands }
    }

    /// Returns the ticket with which the other side connects.
    #[must_use]
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Waits for the next connection. Returns `None` if the tag is lost, so that no calls can arrive.
    ///
    /// # Errors
    /// [`ConnectError`] if a call by a holder of the ticket failed; the next one may succeed. After [`RegistrationError::Replaced`],
    /// [`RegistrationError::Revoked`] and [`RegistrationError::TagLost`] the listener has ended.
    pub async fn accept(&mut self) -> Option<Result<Connection, ConnectError>> {
        self.accepted.recv().await
    }
}

/// Returns the owner's secret of the tag and the secret of the ticket that belong to the secret of a listener.
fn listener_secrets(secret: &[u8; 32]) -> (String, [u8; SECRET_LEN]) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let (tag, ticket) =
        (hmac::sign(&key, b"ginnel listener tag"), hmac::sign(&key, b"ginnel listener ticket"));
    let owner = data_encoding::BASE32_NOPAD.encode(&tag.as_ref()[..TAG_SECRET_BYTES]).to_ascii_lowercase();
    (owner, std::array::from_fn(|at| ticket.as_ref()[at]))
}

/// A session that its connector can resume.
struct ResumableSession {
    secret: SessionSecret,
    /// The secret with which its connector was admitted.
    admitted_by: Secret,
    endpoint: QuicEndpoint,
    calls: mpsc::Sender<Box<ResumedCall>>,
}

struct ListenerTask {
    ticket: Ticket,
    engine: EngineConfig,
    /// What the next call uses: its candidates are gathered, and its relayed address is allocated.
    spare: Option<CallResources>,
    spare_since: Instant,
    registration: RegistrationParams,
    session: ServerSession,
    registered_at: Instant,
    calls: HashMap<Token, mpsc::Sender<ServerEvent>>,
    /// One permit for each call that may be negotiated beside the others.
    negotiations: Arc<Semaphore>,
    /// The sessions that can be resumed, by the connector's fragment of their first call.
    sessions: HashMap<String, ResumableSession>,
    replay_cache: ReplayCache,
    /// The secrets of those who may connect.
    admission: Admission,
    commands: mpsc::Receiver<ListenerCommand>,
    /// Where the events of the code go.
    code_events: Option<mpsc::Sender<CodeEvent>>,
    accepted: mpsc::Sender<Result<Connection, ConnectError>>,
    backoff: Backoff,
    network: NetworkChanges,
    /// The [`Listener`] was dropped.
    closing: bool,
    /// What a ping learns of this side's network.
    describe: Describe,
}

impl ListenerTask {
    async fn run(mut self, mut events: mpsc::Receiver<ServerEvent>) {
        self.prepare_spare();
        loop {
            let spare_expiry = self.spare_since + SPARE_TIME;
            let event = tokio::select! {
                event = events.recv() => event,
                () = sleep_until(spare_expiry.into()), if self.spare.is_some() => {
                    self.spare = None;
                    continue;
                }
                () = self.network.changed() => {
                    if self.is_connected().await {
                        continue;
                    }
                    self.end_calls();
                    self.network.wait_after_change(&mut self.backoff).await;
                    match self.reconnect().await {
                        Some(new) => events = new,
                        None => return,
                    }
                    continue;
                }
                command = next_command(&mut self.commands, self.admission.next_due()) => {
                    self.handle_command(command).await;
                    continue;
                }
                () = self.accepted.closed(), if !self.closing => {
                    self.closing = true;
                    self.spare = None;
                    continue;
                }
                () = sleep(CLOSING_CHECK), if self.closing => {
                    // Calls that still run need the signalling for late candidates.
                    if self.is_abandoned() {
                        return;
                    }
                    continue;
                }
            };
            match event {
                Some(ServerEvent::Request(request)) => self.handle_request(*request).await,
                Some(ServerEvent::CallFailed { token, code }) => {
                    if let Some(call) = token.as_ref().and_then(|token| self.calls.remove(token)) {
                        let _ = call.try_send(ServerEvent::CallFailed { token, code });
                    }
                }
                Some(ServerEvent::TagLost(code)) => {
                    self.end_calls();
                    let _ = self.accepted.send(Err(ConnectError::from_code(code, None))).await;
                    return;
                }
                Some(ServerEvent::Closed) | None => {
                    self.end_calls();
                    tokio::select! {
                        () = self.network.wait_to_retry(&mut self.backoff) => {}
                        () = abandoned(&self.accepted, &self.sessions) => return,
                    }
                    match self.reconnect().await {
                        Some(new) => events = new,
                        None => return,
                    }
                }
            }
        }
    }

    fn end_calls(&mut self) {
        for (_, call) in self.calls.drain() {
            let _ = call.try_send(ServerEvent::Closed);
        }
    }

    /// Returns whether the signalling connection has survived a change of the network.
    async fn is_connected(&self) -> bool {
        !self.session.local.is_some_and(|local| self.network.has_lost(local))
            && self.session.client.is_alive(&self.session.registered.tag).await
    }

    /// Registers again, with any number of attempts; `None` if the tag is lost or the listener was dropped.
    async fn reconnect(&mut self) -> Option<mpsc::Receiver<ServerEvent>> {
        tracing::info!("lost the connection to the server; reconnecting");
        loop {
            // A failed attempt may have reached the server.
            self.registration.increment_epoch();
            let attempt = tokio::select! {
                attempt = servers::register(&self.engine.dialer, self.ticket.servers(), &self.registration) => attempt,
                () = self.network.changed() => {
                    self.network.wait_after_change(&mut self.backoff).await;
                    continue;
                }
                command = next_command(&mut self.commands, self.admission.next_due()) => {
                    self.handle_command(command).await;
                    continue;
                }
                () = abandoned(&self.accepted, &self.sessions) => return None,
            };
            let lost = match attempt {
                Ok((session, events_rx)) if session.registered.tag.as_str() == self.ticket.tag => {
                    self.registration.epoch = session.registered.epoch;
                    self.engine.name = session.name.clone();
                    self.session = session;
                    self.prepare_spare();
                    self.registered_at = time::now().mono;
                    self.backoff.reset();
                    self.check_code().await;
                    return Some(events_rx);
                }
                Ok(_) => Some(RegistrationError::TagLost),
                Err(error @ (RegistrationError::Replaced | RegistrationError::Revoked)) => Some(error),
                Err(error) => {
                    tracing::debug!(%error, "reconnection failed");
                    None
                }
            };
            if let Some(lost) = lost {
                let _ = self.accepted.send(Err(lost.into())).await;
                return None;
            }
            tokio::select! {
                () = self.network.wait_to_retry(&mut self.backoff) => {}
                () = abandoned(&self.accepted, &self.sessions) => return None,
            }
        }
    }

    /// Returns whether no call and no session needs the signalling any more.
    fn is_abandoned(&self) -> bool {
        self.calls.values().all(mpsc::Sender::is_closed)
            && self.sessions.values().all(|session| session.calls.is_closed())
    }

    async fn handle_request(&mut self, request: Request) {
        let token = match &request.body {
            RequestBody::Notify { token, ltag, ice, .. } => {
                let (token, caller, ice) = (token.clone(), ltag.clone(), ice.clone());
                return self.handle_call(request.mid, token, caller, ice).await;
            }
            RequestBody::Status { token }
            | RequestBody::Trickle { token, .. }
            | RequestBody::End { token, .. } => token.clone(),
            _ => return,
        };
        if let RequestBody::End { reason, .. } = &request.body
            && self.handle_code_end(&token, reason.as_deref()).await
        {
            return self.session.client.respond(request.mid, ResponseBody::Ended { token }).await;
        }
        match self.calls.get(&token) {
            // A call whose queue is full loses candidates; the other calls go on.
            Some(call) if !call.is_closed() => {
                let _ = call.try_send(ServerEvent::Request(Box::new(request)));
            }
            _ => self.refuse((request.body.message_type(), request.mid), token, ErrorCode::BadToken).await,
        }
    }

    async fn refuse(&self, (t, mid): (MessageType, Option<i64>), token: Token, code: ErrorCode) {
        let refusal = ResponseBody::Failed { t, token: Some(token), code, em: code.text().to_owned() };
        self.session.client.respond(mid, refusal).await;
    }

    async fn handle_call(&mut self, mid: Option<i64>, token: Token, caller: Tag, mut offer: IceDescription) {
        self.calls.retain(|_, call| !call.is_closed());
        if self.calls.contains_key(&token) {
            return;
        }
        if offer.opts.iter().any(|option| option == code::OPTION) {
            return self.handle_code_call(mid, token, &caller, offer.sdp.as_deref()).await;
        }
        let ufrag = connect::random_ufrag();
        let (auth, secret) = match self.authenticate(&caller, &mut offer, &ufrag) {
            Ok(authenticated) => authenticated,
            Err(code) => return self.refuse((MessageType::Notify, mid), token, code).await,
        };
        self.renew_credentials().await;
        let (events, events_rx) = mpsc::channel(QUEUE);
        self.calls.insert(token.clone(), events);
        if let Some(session) = auth.resumed().map(str::to_owned) {
            return self.resume(session, (mid, token, offer), auth, (ufrag, events_rx)).await;
        }
        self.settle_code().await;
        let (resumed, resumed_rx) = mpsc::channel(RESUMED_CALLS);
        self.sessions.retain(|_, session| !session.calls.is_closed());
        let own_relay = connect::relay_credentials(&self.session.registered.ice_servers).is_some();
        let (policy, pwd) = (self.engine.policy, auth.listener_password());
        let config = SessionConfig { role: AgentRole::Listener, policy, ufrag, pwd, own_relay };
        let resources = match self.spare.take().map_or_else(|| self.prepare(), Ok) {
            Ok(mut resources) => {
                resources.begin_call();
                resources
            }
            Err(error) => return drop(self.accepted.send(Err(error)).await),
        };
        if let Err(error) = resources.endpoint.set_server(&secret, &auth.initial_key()) {
            return drop(self.accepted.send(Err(error)).await);
        }
        self.accept_at_gateway(&secret);
        let session = ResumableSession {
            secret: resources.endpoint.session(),
            admitted_by: secret.clone(),
            endpoint: resources.endpoint.clone(),
            calls: resumed,
        };
        self.sessions.insert(offer.ufrag.clone().unwrap_or_default(), session);
        self.prepare_spare();
        let request = CallRequest::Incoming { mid, token, offer };
        let client = self.session.client.clone();
        let (endpoint, accepted) = (resources.endpoint.clone(), self.accepted.clone());
        let describe = Arc::clone(&self.describe);
        let permit = Arc::clone(&self.negotiations).try_acquire_owned().ok();
        tokio::spawn(async move {
            let connected = async {
                let resumption = Resumption::Listener(resumed_rx);
                let negotiation =
                    call::negotiate(resources, config, request, auth, (client, events_rx), resumption)?;
                connect::establish(endpoint, (&secret, AgentRole::Listener), negotiation).await
            };
            let connected = connected.await;
            drop(permit);
            match connected {
                Ok(connection) if connection.is_ping() => ping::respond(connection, describe).await,
                connected => drop(accepted.send(connected).await),
            }
        });
    }

    /// Passes a call that resumes a session to the session's task.
    async fn resume(
        &mut self,
        session: String,
        (mid, token, offer): (Option<i64>, Token, IceDescription),
        auth: CallAuth,
        (ufrag, events): (String, mpsc::Receiver<ServerEvent>),
    ) {
        let call = Box::new(ResumedCall {
            signaling: self.session.client.clone(),
            events,
            request: CallRequest::Incoming { mid, token: token.clone(), offer },
            pwd: auth.listener_password(),
            auth,
            ufrag,
            server: (self.session.name.clone(), self.session.address),
            relay: connect::relay_credentials(&self.session.registered.ice_servers),
            second_port: self.session.registered.stun2.clone(),
            is_spray_allowed: self.session.registered.spray,
        });
        let refused = match self.sessions.get(&session).map(|session| session.calls.try_send(call)) {
            Some(Ok(())) => return,
            // The connector calls again.
            Some(Err(TrySendError::Full(_))) => ErrorCode::TooMany,
            Some(Err(TrySendError::Closed(_))) | None => ErrorCode::NotAllowed,
        };
        self.calls.remove(&token);
        self.refuse((MessageType::Notify, mid), token, refused).await;
    }

    /// Starts what a call needs.
    fn prepare(&self) -> Result<CallResources, ConnectError> {
        let further_servers =
            self.ticket.servers().into_iter().filter(|server| *server != self.session.name).collect();
        let resources = CallResources::start(EngineConfig {
            server: self.session.address,
            further_servers,
            ..self.engine.clone()
        })?;
        let relay = connect::relay_credentials(&self.session.registered.ice_servers);
        resources.send(EngineCommand::Relay(relay));
        resources.probe_second_port(self.session.registered.stun2.clone());
        resources.send(EngineCommand::AllowSpray(self.session.registered.spray));
        Ok(resources)
    }

    /// Prepares the next call.
    fn prepare_spare(&mut self) {
        if self.closing {
            return;
        }
        self.spare_since = time::now().mono;
        self.spare =
            self.prepare().inspect_err(|error| tracing::debug!(%error, "no sockets for a call")).ok();
    }

    /// Verifies an offer and returns the secret of its sender, or the code to refuse it with.
    fn authenticate(
        &mut self,
        caller: &Tag,
        offer: &mut IceDescription,
        ufrag: &str,
    ) -> Result<(CallAuth, Secret), ErrorCode> {
        let tags = [caller, &self.session.registered.tag];
        let resumed = resumed_fragment(offer).and_then(|first| self.sessions.get(first));
        if resumed.is_some_and(|session| !session.secret.is_set()) {
            // Its handshake is not complete here; the connector calls again.
            return Err(ErrorCode::TooMany);
        }
        let secret = match resumed {
            Some(session) => Some(session.admitted_by.clone()),
            None => self.admission.find(time::now().mono, call_auth::key_id(offer)),
        };
        let sessions = |first: &str| self.sessions.get(first).map(|session| session.secret.clone());
        let auth = secret.and_then(|secret| {
            CallAuth::of_listener(&secret, tags, offer, (ufrag, sessions)).map(|auth| (auth, secret))
        });
        let is_new = auth.as_ref().is_none_or(|(auth, _)| auth.resumed().is_none());
        if self.closing && is_new {
            return Err(ErrorCode::TooMany);
        }
        let auth = auth.ok_or(ErrorCode::NotAllowed)?;
        if is_new && (self.negotiations.available_permits() == 0 || self.calls.len() >= MAX_SESSIONS) {
            return Err(ErrorCode::TooMany);
        }
        if !self.replay_cache.insert(offer.ufrag.as_deref().unwrap_or_default()) {
            tracing::warn!("the server repeated an earlier offer");
            return Err(ErrorCode::NotAllowed);
        }
        if is_new {
            self.admission.admit(&auth.1);
        }
        Ok(auth)
    }

    /// Accepts those who hold a code or a further ticket at the gateway too, once they have called; the own ticket is always valid there.
    fn accept_at_gateway(&self, secret: &Secret) {
        let key = self.registration.key.clone().filter(|_| self.engine.policy != PathPolicy::DirectOnly);
        let Some(key) = key.filter(|_| *secret != self.ticket.secret) else { return };
        let describe = Arc::clone(&self.describe);
        let listener = GatewayListener { config: self.engine.clone(), secret: secret.clone(), describe };
        tokio::spawn(timeout(GATEWAY_TIME, listener.run(key, self.accepted.clone())));
    }

    /// Relay credentials expire; a listener does not.
    async fn renew_credentials(&mut self) {
        let now = time::now().mono;
        if now.saturating_duration_since(self.registered_at) > CREDENTIALS_AGE
            && let Ok(registered) = self.session.client.register(&self.registration).await
        {
            self.session.registered = registered;
            self.registered_at = now;
        }
    }
}

/// Waits until the [`Listener`] was dropped and its last session has ended.
async fn abandoned(
    accepted: &mpsc::Sender<Result<Connection, ConnectError>>,
    sessions: &HashMap<String, ResumableSession>,
) {
    accepted.closed().await;
    for session in sessions.values() {
        session.calls.closed().await;
    }
}
