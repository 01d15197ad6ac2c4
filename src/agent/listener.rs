//! Waiting to be called: keeps the line to the server, and turns calls into connections.

use super::call::{Ground, Opening, Signal};
use super::candidate::LaneKind;
use super::config::{Config, ServerName};
use super::connection::Connection;
use super::error::Error;
use super::identity::{self, Role};
use super::link::{Heard, Registration};
use super::peer::{self, RegisteredLine};
use super::session::Mode;
use super::ticket::Ticket;
use crate::net::time;
use crate::signaling::wire::{Answer, Ask, Code, Ice, Request, Response, Token};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Calls that may be negotiated at once.
const CALLS: usize = 8;
const QUEUE: usize = 64;
/// The first and the longest wait before the line is opened again.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How old relay credentials may be when a call comes.
const FRESH: Duration = Duration::from_secs(1800);

/// Takes calls of those who hold its ticket, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    ticket: Ticket,
    accepted: mpsc::Receiver<Result<Connection, Error>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) fn start(
        ticket: Ticket,
        server: ServerName,
        registration: Registration,
        mode: Mode,
        (line, heard): (RegisteredLine, mpsc::Receiver<Heard>),
    ) -> Self {
        let (done, accepted) = mpsc::channel(CALLS);
        let desk = Desk {
            ticket: ticket.clone(),
            server,
            config: Config { mode, ..Config::default() },
            registration,
            line,
            registered_at: time::now().mono,
            calls: HashMap::new(),
            done,
        };
        let task = tokio::spawn(desk.run(heard));
        Self { ticket, accepted, task }
    }

    /// Returns what the other side needs to connect.
    #[must_use]
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// Why a call by a holder of the ticket came to nothing, after which the next may be waited for. `None`: nobody can call any
    /// more, because the server gave the tag to another registration.
    pub async fn accept(&mut self) -> Option<Result<Connection, Error>> {
        self.accepted.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Desk {
    ticket: Ticket,
    server: ServerName,
    config: Config,
    registration: Registration,
    line: RegisteredLine,
    registered_at: Instant,
    calls: HashMap<Token, mpsc::Sender<Signal>>,
    done: mpsc::Sender<Result<Connection, Error>>,
}

impl Desk {
    async fn run(mut self, mut heard: mpsc::Receiver<Heard>) {
        loop {
            match heard.recv().await {
                Some(Heard::Request(request)) => self.take_request(request).await,
                Some(Heard::CallFailed { token, code, text }) => {
                    if let Some(call) = token.and_then(|token| self.calls.remove(&token)) {
                        let _ = call.try_send(Signal::Failed(code, text));
                    }
                }
                Some(Heard::Closed) | None => {
                    for (_, call) in self.calls.drain() {
                        let _ = call.try_send(Signal::LineCut);
                    }
                    match self.reconnect().await {
                        Some(fresh) => heard = fresh,
                        None => return,
                    }
                }
            }
        }
    }

    /// Opens the line again, however long that takes; `None` if the tag is lost, so that nobody can find us.
    async fn reconnect(&mut self) -> Option<mpsc::Receiver<Heard>> {
        tracing::info!("the line to the server was cut, opening it again");
        let mut wait = BACK_OFF.0;
        loop {
            sleep(wait).await;
            let (heard, heard_rx) = mpsc::channel(QUEUE);
            match peer::register(&self.server, &self.registration, heard).await {
                Ok(line) if line.welcome.tag.as_str() == self.ticket.tag => {
                    self.line = line;
                    self.registered_at = time::now().mono;
                    return Some(heard_rx);
                }
                Ok(_) => {
                    let lost = Error::Refused("the server no longer knows this ticket's tag".to_owned());
                    let _ = self.done.send(Err(lost)).await;
                    return None;
                }
                Err(error) => tracing::debug!(%error, "the server is still away"),
            }
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    async fn take_request(&mut self, request: Request) {
        let token = match &request.body {
            Ask::Notify { token, ice, .. } => {
                let (token, ice) = (token.clone(), ice.clone());
                return self.take_call(request.mid, token, ice).await;
            }
            Ask::Question { token } | Ask::Trickle { token, .. } | Ask::End { token, .. } => token.clone(),
            _ => return,
        };
        match self.calls.get(&token) {
            // A call that does not keep up loses candidates, and nobody else is held up.
            Some(call) if !call.is_closed() => {
                let _ = call.try_send(Signal::Request(Box::new(request)));
            }
            _ => self.refuse(&request, token, Code::BadToken).await,
        }
    }

    async fn refuse(&self, request: &Request, token: Token, code: Code) {
        let Response { body, .. } = Response::failure(request.body.t(), request.mid, code);
        if let Answer::Failed { t, code, em, .. } = body {
            let refusal = Answer::Failed { t, token: Some(token), code, em };
            self.line.link.answer(request.mid, refusal).await;
        }
    }

    async fn take_call(&mut self, mid: Option<i64>, token: Token, offer: Ice) {
        self.calls.retain(|_, call| !call.is_closed());
        if self.calls.contains_key(&token) {
            return;
        }
        let refusal = if !self.holds_ticket(&offer) {
            Some(Code::NotAllowed)
        } else if self.calls.len() >= CALLS {
            Some(Code::TooMany)
        } else {
            None
        };
        if let Some(code) = refusal {
            let request = Request {
                mid,
                body: Ask::Notify { token: token.clone(), ltag: self.tag(), from: None, ice: offer },
            };
            return self.refuse(&request, token, code).await;
        }
        self.refresh().await;
        let (signals, signals_rx) = mpsc::channel(QUEUE);
        self.calls.insert(token.clone(), signals);
        let Ok(mut setup) = peer::setup(&self.config, &self.ticket.secret, Role::Listener) else { return };
        let relay = peer::relay_credentials(&self.line.welcome.ice_servers);
        setup.own_relay = relay.is_some();
        let mut ground = Ground::new(self.line.server, None);
        let stun2 = self.line.welcome.stun2.clone();
        ground.probe(async move { stun2 });
        for lane in LaneKind::ALL.into_iter().filter(|lane| setup.mode.allows(*lane)) {
            ground.open_lane(lane, &setup, relay.clone().filter(|_| lane == LaneKind::Relay));
        }
        let opening = Opening::Answer { mid, token, offer: Box::new(offer) };
        let (secret, link, done) = (self.ticket.secret.clone(), self.line.link.clone(), self.done.clone());
        tokio::spawn(async move {
            let result = peer::establish(ground, setup, &secret, opening, (link, signals_rx)).await;
            let _ = done.send(result).await;
        });
    }

    /// Only who holds the ticket can have derived the password.
    fn holds_ticket(&self, offer: &Ice) -> bool {
        let (Some(ufrag), Some(pwd)) = (&offer.ufrag, &offer.pwd) else { return false };
        let expected = identity::ice_password(&self.ticket.secret, Role::Connector, ufrag);
        expected.is_ok_and(|expected| expected == *pwd)
    }

    fn tag(&self) -> crate::signaling::wire::Tag {
        self.line.welcome.tag.clone()
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
