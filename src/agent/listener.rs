//! GatewayListener to be called: keeps the line to the server, and turns calls into connections.

use super::call::{CallRequest, CallResources, Signal};
use super::call_auth::{CallAuth, ReplayCache};
use super::candidate::CandidatePath;
use super::config::{Config, ServerName};
use super::connect::{self, ServerSession};
use super::connection::Connection;
use super::error::{Error, Refusal};
use super::gateway_fallback;
use super::nat_probe::NatProbe;
use super::pinned_tls::Role;
use super::session::{Mode, SessionConfig};
use super::signaling_client::{Registration, ServerEvent};
use super::ticket::Ticket;
use crate::limits::Backoff;
use crate::net::roaming::Roaming;
use crate::net::time;
use crate::signaling::wire::{ErrorCode, IceDescription, Request, RequestBody, ResponseBody, Tag, Token};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// Calls that may be negotiated at once.
const CALLS: usize = 8;
const QUEUE: usize = 64;
/// ReplayCache that are remembered, so that none is taken twice; about 2 MiB.
const OFFERS: usize = 16_384;
/// The `t` of a call, for its refusal.
const NOTIFY: i64 = 51;
/// The first and the longest wait before the line is opened again, each shortened by chance.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));
/// How often a listener that was dropped looks whether its last call has ended.
const CLOSING_CHECK: Duration = Duration::from_secs(1);
/// How old relay credentials may be when a call comes.
const FRESH: Duration = Duration::from_secs(1800);

/// Takes calls of those who hold its ticket, until it is dropped; connections made before live on.
#[derive(Debug)]
pub struct Listener {
    ticket: Ticket,
    accepted: mpsc::Receiver<Result<Connection, Error>>,
}

impl Listener {
    pub(super) fn start(
        ticket: Ticket,
        server: ServerName,
        registration: Registration,
        mode: Mode,
        (line, heard): (ServerSession, mpsc::Receiver<ServerEvent>),
    ) -> Self {
        let (done, accepted) = mpsc::channel(CALLS);
        let address = line.server;
        if let Some(key) = registration.key.clone().filter(|_| mode != Mode::NoRelay) {
            let waiting = gateway_fallback::GatewayListener {
                server: server.clone(),
                address,
                secret: ticket.secret.clone(),
            };
            tokio::spawn(waiting.run(key, done.clone()));
        }
        let desk = ListenerTask {
            ticket: ticket.clone(),
            server,
            config: Config { mode, ..Config::default() },
            registration,
            line,
            registered_at: time::now().mono,
            calls: HashMap::new(),
            offers: ReplayCache::new(OFFERS),
            done,
            backoff: Backoff::new(BACK_OFF, ChaCha20Rng::from_os_rng()),
            roaming: Roaming::start(),
            blocked: try_udp(address),
            closing: false,
        };
        tokio::spawn(desk.run(heard));
        Self { ticket, accepted }
    }

    /// Returns what the other side needs to connect.
    #[must_use]
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// Why a call by a holder of the ticket came to nothing, after which the next may be waited for. [`Error::Replaced`] once, where
    /// a newer session has the tag, or [`Error::Revoked`], where nobody may have it any more. `None`: nobody can call any more, because the tag is lost.
    pub async fn accept(&mut self) -> Option<Result<Connection, Error>> {
        self.accepted.recv().await
    }
}

struct ListenerTask {
    ticket: Ticket,
    server: ServerName,
    config: Config,
    registration: Registration,
    line: ServerSession,
    registered_at: Instant,
    calls: HashMap<Token, mpsc::Sender<Signal>>,
    offers: ReplayCache,
    done: mpsc::Sender<Result<Connection, Error>>,
    backoff: Backoff,
    roaming: Roaming,
    /// Whether UDP reaches the server, once that is known.
    blocked: watch::Receiver<Option<bool>>,
    /// Nobody accepts any more.
    closing: bool,
}

impl ListenerTask {
    async fn run(mut self, mut heard: mpsc::Receiver<ServerEvent>) {
        loop {
            let next = tokio::select! {
                next = heard.recv() => next,
                () = self.roaming.changed() => {
                    if self.is_connected().await {
                        continue;
                    }
                    self.cut_calls();
                    self.roaming.resume(&mut self.backoff).await;
                    match self.reconnect().await {
                        Some(fresh) => heard = fresh,
                        None => return,
                    }
                    continue;
                }
                () = self.done.closed(), if !self.closing => {
                    self.closing = true;
                    continue;
                }
                () = sleep(CLOSING_CHECK), if self.closing => {
                    // Calls that still run need the line for candidates that come late.
                    if self.calls.values().all(mpsc::Sender::is_closed) {
                        return;
                    }
                    continue;
                }
            };
            match next {
                Some(ServerEvent::Request(request)) => self.take_request(*request).await,
                Some(ServerEvent::CallFailed { token, code }) => {
                    if let Some(call) = token.and_then(|token| self.calls.remove(&token)) {
                        let _ = call.try_send(Signal::Failed(code));
                    }
                }
                Some(ServerEvent::Over(code)) => {
                    self.cut_calls();
                    let _ = self.done.send(Err(Error::from_loss(code))).await;
                    return;
                }
                Some(ServerEvent::Closed) | None => {
                    self.cut_calls();
                    tokio::select! {
                        () = self.roaming.pause(&mut self.backoff) => {}
                        () = self.done.closed() => return,
                    }
                    match self.reconnect().await {
                        Some(fresh) => heard = fresh,
                        None => return,
                    }
                }
            }
        }
    }

    fn cut_calls(&mut self) {
        for (_, call) in self.calls.drain() {
            let _ = call.try_send(Signal::LineCut);
        }
    }

    /// Says whether the line has outlived a change of the network.
    async fn is_connected(&self) -> bool {
        !self.line.local.is_some_and(|local| self.roaming.has_lost(local))
            && self.line.link.is_alive(&self.line.welcome.tag).await
    }

    /// Opens the line again, however long that takes; `None` if the tag is lost, so that nobody can find us.
    async fn reconnect(&mut self) -> Option<mpsc::Receiver<ServerEvent>> {
        tracing::info!("the line to the server was cut, opening it again");
        loop {
            let (heard, heard_rx) = mpsc::channel(QUEUE);
            // An attempt that seems to have failed may have reached the server.
            self.registration.count_on();
            let attempt = tokio::select! {
                attempt = connect::register(&self.server, &self.registration, heard) => attempt,
                () = self.roaming.changed() => {
                    self.roaming.resume(&mut self.backoff).await;
                    continue;
                }
                () = self.done.closed() => return None,
            };
            let lost = match attempt {
                Ok(line) if line.welcome.tag.as_str() == self.ticket.tag => {
                    self.registration.epoch = line.welcome.epoch;
                    self.line = line;
                    self.registered_at = time::now().mono;
                    self.backoff.reset();
                    return Some(heard_rx);
                }
                Ok(_) => Some(Error::Refused(Refusal::Told(
                    "the server no longer knows this ticket's tag".to_owned(),
                ))),
                Err(error @ (Error::Replaced | Error::Revoked)) => Some(error),
                Err(error) => {
                    tracing::debug!(%error, "the server is still away");
                    None
                }
            };
            if let Some(lost) = lost {
                let _ = self.done.send(Err(lost)).await;
                return None;
            }
            tokio::select! {
                () = self.roaming.pause(&mut self.backoff) => {}
                () = self.done.closed() => return None,
            }
        }
    }

    async fn take_request(&mut self, request: Request) {
        let token = match &request.body {
            RequestBody::Notify { token, ltag, ice, .. } => {
                let (token, caller, ice) = (token.clone(), ltag.clone(), ice.clone());
                return self.take_call(request.mid, token, caller, ice).await;
            }
            RequestBody::Question { token }
            | RequestBody::Trickle { token, .. }
            | RequestBody::End { token, .. } => token.clone(),
            _ => return,
        };
        match self.calls.get(&token) {
            // A call that does not keep up loses candidates, and nobody else is held up.
            Some(call) if !call.is_closed() => {
                let _ = call.try_send(Signal::Request(Box::new(request)));
            }
            _ => self.refuse((request.body.t(), request.mid), token, ErrorCode::BadToken).await,
        }
    }

    async fn refuse(&self, (t, mid): (i64, Option<i64>), token: Token, code: ErrorCode) {
        let refusal = ResponseBody::Failed { t, token: Some(token), code, em: code.text().to_owned() };
        self.line.link.answer(mid, refusal).await;
    }

    async fn take_call(&mut self, mid: Option<i64>, token: Token, caller: Tag, mut offer: IceDescription) {
        self.calls.retain(|_, call| !call.is_closed());
        if self.calls.contains_key(&token) {
            return;
        }
        let ufrag = connect::ufrag();
        let tags = [&caller, &self.line.welcome.tag];
        let binding = match CallAuth::of_listener(&self.ticket.secret, tags, &mut offer, &ufrag) {
            _ if self.closing => Err(ErrorCode::TooMany),
            None => Err(ErrorCode::NotAllowed),
            Some(_) if self.calls.len() >= CALLS => Err(ErrorCode::TooMany),
            Some(_) if !self.offers.is_new(offer.ufrag.as_deref().unwrap_or_default()) => {
                tracing::warn!("the server repeated an earlier offer");
                Err(ErrorCode::NotAllowed)
            }
            Some(binding) => Ok(binding),
        };
        let binding = match binding {
            Ok(binding) => binding,
            Err(code) => return self.refuse((NOTIFY, mid), token, code).await,
        };
        self.refresh().await;
        let (signals, signals_rx) = mpsc::channel(QUEUE);
        self.calls.insert(token.clone(), signals);
        let relay = connect::relay_credentials(&self.line.welcome.ice_servers);
        let (pwd, own_relay) = (binding.listener_password(), relay.is_some());
        let setup = SessionConfig { role: Role::Listener, mode: self.config.mode, ufrag, pwd, own_relay };
        let mut resources = CallResources::new(self.line.server, *self.blocked.borrow());
        let stun2 = self.line.welcome.stun2.clone();
        resources.probe(async move { stun2 });
        for lane in CandidatePath::ALL.into_iter().filter(|lane| setup.mode.allows(*lane)) {
            resources.open_lane(lane, &setup, relay.clone().filter(|_| lane == CandidatePath::Relay));
        }
        let opening = (CallRequest::Answer { mid, token, offer: Box::new(offer) }, binding);
        let (secret, link, done) = (self.ticket.secret.clone(), self.line.link.clone(), self.done.clone());
        tokio::spawn(async move {
            let result = connect::establish(resources, setup, &secret, opening, (link, signals_rx)).await;
            let _ = done.send(result).await;
        });
    }

    /// Relay credentials are short-lived; a listener is not.
    async fn refresh(&mut self) {
        let now = time::now().mono;
        if now.saturating_duration_since(self.registered_at) > FRESH
            && let Ok(welcome) = self.line.link.register(&self.registration).await
        {
            self.line.welcome = welcome;
            self.registered_at = now;
        }
    }
}

/// Finds out ahead of the first call whether UDP works, so that its relay lane need not wait for that.
fn try_udp(server: SocketAddr) -> watch::Receiver<Option<bool>> {
    let (known, known_rx) = watch::channel(None);
    tokio::spawn(async move {
        let blocked = NatProbe::start(server).await.map_or(true, |probe| probe.blocked());
        let _ = known.send(Some(blocked));
    });
    known_rx
}
