//! What a listener's user does with its secrets: short codes, further tickets, revocation; and the calls that carry a code's exchange.

use super::super::admission::TicketLimits;
use super::super::code::exchange::Parties;
use super::super::code::guesses::CodeGuesses;
use super::super::code::offered::{CodeEnd, CodeEvent, OfferedCode};
use super::super::code::{self, ShortCode};
use super::super::error::OfferError;
use super::super::ticket::Ticket;
use super::{Listener, ListenerTask};
use crate::net::time;
use crate::signaling::wire::{ErrorCode, IceDescription, MessageType, RequestBody, ResponseBody, Tag, Token};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

/// How long a code is valid at most; the server may make it less.
const CODE_LIFETIME: Duration = Duration::from_secs(600);
/// Capacity of the queue of a code's events: one for each guess, and its end.
const CODE_EVENTS: usize = 8;
/// Time limit for the server to answer whether it knows the code's locator.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What a [`Listener`] asks of its task.
#[derive(Debug)]
pub(super) enum ListenerCommand {
    OfferCode(oneshot::Sender<Result<OfferedCode, OfferError>>),
    AddTicket(TicketLimits, oneshot::Sender<Result<Ticket, OfferError>>),
    /// Revokes the ticket with this key id; answers whether there was one.
    Revoke(String, oneshot::Sender<bool>),
}

/// Waits for a command; `None` when a secret expires.
pub(super) async fn next_command(
    commands: &mut mpsc::Receiver<ListenerCommand>,
    expiry: Option<Instant>,
) -> Option<ListenerCommand> {
    let expired = async {
        match expiry {
            Some(expiry) => sleep_until(expiry.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Some(command) = commands.recv() => Some(command),
        () = expired => None,
        // The listener was dropped, and nothing expires.
        else => std::future::pending().await,
    }
}

impl Listener {
    /// Offers a short code in the place of the one before: for one connection, for at most ten minutes, and for three attempts.
    ///
    /// # Errors
    /// [`OfferError`] if the server gives out no number for a code.
    pub async fn offer_code(&self) -> Result<OfferedCode, OfferError> {
        self.command(ListenerCommand::OfferCode).await.unwrap_or(Err(OfferError::Ended))
    }

    /// Adds a ticket beside the listener's own, which can have limits and be revoked.
    ///
    /// # Errors
    /// [`OfferError`] if the listener has 256 tickets, or has ended.
    pub async fn add_ticket(&self, limits: TicketLimits) -> Result<Ticket, OfferError> {
        let added = self.command(|answer| ListenerCommand::AddTicket(limits, answer)).await;
        added.unwrap_or(Err(OfferError::Ended))
    }

    /// Revokes a ticket that was added: it admits nobody else, and its connections end. Returns whether it was valid before. A listener's own
    /// ticket ends with the listener.
    pub async fn revoke(&self, ticket: &Ticket) -> bool {
        let key_id = ticket.secret.key_id();
        self.command(|answer| ListenerCommand::Revoke(key_id, answer)).await.unwrap_or(false)
    }

    async fn command<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> ListenerCommand) -> Option<T> {
        let (answer, answer_rx) = oneshot::channel();
        self.commands.send(command(answer)).await.ok()?;
        answer_rx.await.ok()
    }
}

impl ListenerTask {
    /// Handles a command, or that a secret has expired.
    pub(super) async fn handle_command(&mut self, command: Option<ListenerCommand>) {
        let now = time::now().mono;
        match command {
            Some(ListenerCommand::OfferCode(answer)) => {
                let offered = self.offer_code().await;
                let _ = answer.send(offered);
            }
            Some(ListenerCommand::AddTicket(limits, answer)) => {
                let ticket = self.ticket.with_secret(rand::random());
                let is_added = self.admission.insert_ticket(now, ticket.secret.clone(), limits);
                let _ = answer.send(is_added.then_some(ticket).ok_or(OfferError::TooManyTickets));
            }
            Some(ListenerCommand::Revoke(key_id, answer)) => {
                let _ = answer.send(self.admission.remove_ticket(&key_id));
                self.end_sessions(&key_id);
            }
            None => {
                for key_id in self.admission.expire(now) {
                    self.end_sessions(&key_id);
                }
                self.settle_code().await;
            }
        }
    }

    /// Ends the sessions of those who were admitted with a secret that is no longer valid.
    fn end_sessions(&mut self, key_id: &str) {
        if key_id == self.ticket.secret.key_id() {
            return;
        }
        self.sessions.retain(|_, session| {
            let is_ended = session.admitted_by.key_id() == key_id;
            if is_ended {
                session.endpoint.revoke();
            }
            !is_ended
        });
    }

    async fn offer_code(&mut self) -> Result<OfferedCode, OfferError> {
        self.end_code(CodeEnd::Lost);
        let tag = self.session.registered.tag.clone();
        let locator = RequestBody::Locator { tag, release: false };
        let (locator, ttl) = match self.session.client.request(locator).await {
            Ok(ResponseBody::Locator { locator: Some(locator), ttl }) => (locator, ttl),
            Ok(ResponseBody::Failed { em, .. }) => return Err(OfferError::NoLocator(em)),
            Ok(_) | Err(_) => return Err(OfferError::TimedOut),
        };
        let code = ShortCode::random(locator, &mut rand::rng());
        let lifetime = ttl.map_or(CODE_LIFETIME, |ttl| CODE_LIFETIME.min(Duration::from_secs(ttl.into())));
        self.admission.set_code(Some(CodeGuesses::new(code.clone(), time::now().mono + lifetime)));
        let (events, events_rx) = mpsc::channel(CODE_EVENTS);
        self.code_events = Some(events);
        Ok(OfferedCode::new(code, events_rx))
    }

    /// Answers a call that carries an exchange.
    pub(super) async fn handle_code_call(
        &mut self,
        mid: Option<i64>,
        token: Token,
        caller: &Tag,
        message: Option<&str>,
    ) {
        let now = time::now().mono;
        let listener = self.session.registered.tag.clone();
        let parties = Parties { connector: caller.as_str(), listener: listener.as_str() };
        let code = self.admission.code().filter(|_| !self.closing);
        if code.as_ref().is_some_and(|code| code.has_exchange(token.as_str())) {
            // The server has repeated the call.
            return;
        }
        let exchange = (token.as_str(), message.unwrap_or_default());
        match code.and_then(|code| code.answer(now, exchange, parties)) {
            Some(Ok(answer)) => {
                let ice = IceDescription { sdp: Some(answer), ..IceDescription::default() };
                self.session.client.respond(mid, ResponseBody::Accepted { token, ice }).await;
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a call with an exchange");
                self.refuse((MessageType::Notify, mid), token, ErrorCode::NotAllowed).await;
                self.on_wrong_words().await;
            }
            None => self.refuse((MessageType::Notify, mid), token, ErrorCode::NotAllowed).await,
        }
    }

    /// Handles the end of a call; `false` if it has carried no exchange.
    pub(super) async fn handle_code_end(&mut self, token: &Token, reason: Option<&str>) -> bool {
        let Some(code) = self.admission.code().filter(|code| code.has_exchange(token.as_str())) else {
            return false;
        };
        if reason == Some(code::WRONG) && code.reject(token.as_str()) {
            self.on_wrong_words().await;
        }
        true
    }

    async fn on_wrong_words(&mut self) {
        let left = self.admission.code().map(|code| code.left()).unwrap_or_default();
        self.report_code(CodeEvent::WrongWords { left });
        self.settle_code().await;
    }

    /// Ends the code if it can no longer be used, and gives its locator back.
    pub(super) async fn settle_code(&mut self) {
        if let Some(state) = self.admission.take_ended_code(time::now().mono) {
            self.report_code(CodeEvent::Ended(state.into()));
            self.code_events = None;
            let tag = self.session.registered.tag.clone();
            self.session.client.notify(RequestBody::Locator { tag, release: true }).await;
        }
    }

    /// Ends the code if the server has lost its locator, after a reconnection.
    pub(super) async fn check_code(&mut self) {
        let Some(locator) = self.admission.code().map(|code| code.locator()) else { return };
        let own = self.session.registered.tag.clone();
        let located = self.session.client.request(RequestBody::Locate { tag: own.clone(), locator });
        match timeout(CHECK_TIMEOUT, located).await {
            Ok(Ok(ResponseBody::Located { tag })) if tag == own => {}
            _ => self.end_code(CodeEnd::Lost),
        }
    }

    fn end_code(&mut self, end: CodeEnd) {
        self.admission.set_code(None);
        self.report_code(CodeEvent::Ended(end));
        self.code_events = None;
    }

    fn report_code(&self, event: CodeEvent) {
        if let Some(events) = &self.code_events {
            let _ = events.try_send(event);
        }
    }
}
