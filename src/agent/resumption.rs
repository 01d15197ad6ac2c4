//! How a session goes on after its path, its addresses or its server were lost: the connector calls the listener again.
//!
//! The call is a new one for the server, which may have been restarted: new registration, new tag, new token. Its offer names the session, and
//! both sides restart ICE. The listener keeps its tag, so that only the connector can call.

use super::call::CallRequest;
use super::call_auth::{self, CallAuth, SessionSecret};
use super::config::ServerName;
use super::connect;
use super::engine::RelayCredentials;
use super::error::RegistrationError;
use super::keys::Secret;
use super::servers;
use super::signaling_client::{RegistrationParams, ServerEvent, SignalingClient};
use crate::net::dialer::Dialer;
use crate::net::time;
use crate::signaling::wire::Tag;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Waits between attempts; the last one is repeated.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// A call that resumes a session.
pub(super) struct ResumedCall {
    pub(super) signaling: SignalingClient,
    pub(super) events: mpsc::Receiver<ServerEvent>,
    pub(super) request: CallRequest,
    pub(super) auth: CallAuth,
    pub(super) ufrag: String,
    pub(super) pwd: String,
    /// The server of the call, whose address may be another one than before.
    pub(super) server: (ServerName, SocketAddr),
    pub(super) relay: Option<RelayCredentials>,
    /// That server's second port.
    pub(super) second_port: Option<String>,
    /// Whether that server allows to predict and probe ports.
    pub(super) is_spray_allowed: bool,
}

/// Whom a connector calls again.
pub(super) struct Callee {
    /// The servers at which the listener may be; the one of the first call is the first.
    pub(super) servers: Vec<ServerName>,
    pub(super) dialer: Dialer,
    pub(super) key: Option<String>,
    pub(super) secret: Secret,
    pub(super) tag: Tag,
    /// This side's fragment of the first call.
    pub(super) ufrag: String,
    pub(super) session: SessionSecret,
}

/// The attempts of one side of a session.
pub(super) enum Resumption {
    /// The session is lost for good.
    None,
    /// A listener waits for calls.
    Listener(mpsc::Receiver<Box<ResumedCall>>),
    /// A connector calls.
    Connector(Box<ConnectorResumption>),
}

pub(super) struct ConnectorResumption {
    callee: Callee,
    due: Option<Instant>,
    /// The attempt is made even if a path answers again before: addresses have changed.
    is_needed: bool,
    attempts: usize,
    pending: Option<JoinHandle<Result<ResumedCall, RegistrationError>>>,
}

impl Resumption {
    /// Returns the connector's side.
    pub(super) fn of_connector(callee: Callee) -> Self {
        Self::Connector(Box::new(ConnectorResumption {
            callee,
            due: None,
            is_needed: false,
            attempts: 0,
            pending: None,
        }))
    }

    /// Plans an attempt, unless an earlier one is planned or running.
    pub(super) fn schedule(&mut self, at: Instant) {
        if let Self::Connector(this) = self
            && this.pending.is_none()
        {
            this.due = Some(this.due.map_or(at, |due| due.min(at)));
        }
    }

    /// Plans an attempt that is made even if a path answers: the addresses of a side have changed.
    pub(super) fn schedule_exchange(&mut self, at: Instant) {
        self.schedule(at);
        if let Self::Connector(this) = self {
            this.is_needed = this.due.is_some();
        }
    }

    /// Handles a failed attempt.
    pub(super) fn retry(&mut self, now: Instant) {
        if let Self::Connector(this) = self {
            let wait = RETRIES[this.attempts.min(RETRIES.len() - 1)];
            this.attempts += 1;
            self.schedule(now + wait);
        }
    }

    /// Handles that a path answers again.
    pub(super) fn handle_connected(&mut self) {
        if let Self::Connector(this) = self {
            this.attempts = 0;
            this.due = this.due.filter(|_| this.is_needed);
        }
    }

    /// Returns when [`Resumption::handle_timeout`] must be called.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Connector(this) => this.due,
            _ => None,
        }
    }

    /// Begins an attempt that is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Self::Connector(this) = self
            && this.due.take_if(|due| *due <= now).is_some()
        {
            if !this.callee.session.is_set() {
                // There is no session before the handshake.
                return self.schedule(now + RETRIES[0]);
            }
            this.is_needed = false;
            this.pending = Some(tokio::spawn(this.callee.prepare(this.attempts)));
        }
    }

    /// Waits for the next call; `None` after a failed attempt, which has changed [`Resumption::due`].
    pub(super) async fn next(&mut self) -> Option<ResumedCall> {
        match self {
            Self::Listener(calls) => {
                let mut call = calls.recv().await;
                // The connector waits for an answer to its latest call only.
                while let Ok(later) = calls.try_recv() {
                    call = Some(later);
                }
                if call.is_none() {
                    *self = Self::None;
                }
                call.map(|call| *call)
            }
            Self::Connector(this) => {
                let prepared = match &mut this.pending {
                    Some(pending) => pending.await,
                    None => std::future::pending().await,
                };
                this.pending = None;
                let call = prepared.map_err(|error| error.to_string());
                match call.and_then(|call| call.map_err(|error| error.to_string())) {
                    Ok(call) => Some(call),
                    Err(error) => {
                        tracing::debug!(error, "cannot reach the server to resume the session");
                        self.retry(time::now().mono);
                        None
                    }
                }
            }
            Self::None => std::future::pending().await,
        }
    }
}

impl Callee {
    /// Registers again and prepares the offer. The server's name is resolved anew. After a failure another server is the first.
    fn prepare(
        &self,
        attempts: usize,
    ) -> impl Future<Output = Result<ResumedCall, RegistrationError>> + Send + use<> {
        let (mut servers, dialer, secret) = (self.servers.clone(), self.dialer.clone(), self.secret.clone());
        servers.rotate_left(attempts % self.servers.len().max(1));
        let (callee, first, secret_of_session) = (self.tag.clone(), self.ufrag.clone(), self.session.clone());
        let registration = RegistrationParams { key: self.key.clone(), secret: None, epoch: None };
        async move {
            let (session, events_rx) = servers::register(&dialer, servers, &registration).await?;
            let ufrag = connect::random_ufrag();
            let pwd = call_auth::connector_password(&secret, &ufrag);
            let tag = session.registered.tag;
            let auth =
                CallAuth::of_connector(&secret, [&tag, &callee], &ufrag).resuming(&first, secret_of_session);
            Ok(ResumedCall {
                signaling: session.client,
                events: events_rx,
                request: CallRequest::Outgoing { tag, callee },
                auth,
                ufrag,
                pwd,
                server: (session.name, session.address),
                relay: connect::relay_credentials(&session.registered.ice_servers),
                second_port: session.registered.stun2,
                is_spray_allowed: session.registered.spray,
            })
        }
    }
}

impl Drop for ConnectorResumption {
    fn drop(&mut self) {
        if let Some(pending) = &self.pending {
            pending.abort();
        }
    }
}
