//! The servers of an [`IceEngine`] beside the one in use: they are asked for server-reflexive addresses, and one of them gives the relay where
//! the server in use gives none.
//!
//! A relay at each server would cost every server an allocation for every session, and none of them helps while one works. So the next server
//! is asked once the one in use has had [`PATIENCE`]: this side registers there for credentials, which shows that it is alive, and uses it from
//! then on. Neither the call nor the other side is needed for that.

use super::super::connect;
use super::super::servers::{self, ServerSession};
use super::super::signaling_client::RegistrationParams;
use super::*;
use crate::net::dialer;
use std::collections::VecDeque;
use tokio::time::timeout;

/// How long the server in use may take to allocate, by UDP and by TCP.
const PATIENCE: Duration = Duration::from_millis(2000);
/// How long the server may take to answer for its relays, when it may be dead.
const ANSWER_TIME: Duration = Duration::from_millis(1500);
/// The first and the longest wait after a server that gives no relay either.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Time limit of a registration.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

/// What was learned of a further server.
pub(super) enum FurtherServer {
    /// Addresses that answer Binding requests.
    Addresses(Vec<SocketAddr>),
    /// Credentials for a relay, and the second port.
    Registered(Box<ServerSession>, Option<RelayCredentials>, Option<SocketAddr>),
    /// It gives no relay.
    Failed,
}

/// The further servers, and what runs for them.
#[derive(Default)]
pub(super) struct FurtherServers {
    /// The one that is asked next is the first.
    names: VecDeque<ServerName>,
    tasks: JoinSet<FurtherServer>,
    is_registering: bool,
    /// Since when there is no relay, though one is wanted.
    missing_since: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// Since when the server is expected to answer for its relays.
    verifying_since: Option<Instant>,
}

impl FurtherServers {
    /// Resolves the names.
    pub(super) fn start(names: &[ServerName]) -> Self {
        let mut tasks = JoinSet::new();
        for ServerName { host, port, .. } in names.iter().cloned() {
            tasks.spawn(async move {
                FurtherServer::Addresses(dialer::resolve(&host, port).await.unwrap_or_default())
            });
        }
        Self { names: names.iter().cloned().collect(), tasks, ..Self::default() }
    }

    /// Waits for what a task has learned.
    pub(super) async fn next(&mut self) -> FurtherServer {
        match self.tasks.join_next().await {
            Some(found) => found.unwrap_or(FurtherServer::Failed),
            None => std::future::pending().await,
        }
    }

    /// Returns when the next server is asked for a relay.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let verified = self.verifying_since.map(|since| since + ANSWER_TIME);
        verified.into_iter().chain(self.next_request()).min()
    }

    fn next_request(&self) -> Option<Instant> {
        let due = self.missing_since.filter(|_| !self.is_registering && !self.names.is_empty())? + PATIENCE;
        Some(self.not_before.map_or(due, |at| at.max(due)))
    }

    /// Notes whether a relay is wanted and missing.
    fn set_missing(&mut self, now: Instant, is_missing: bool) {
        self.missing_since = is_missing.then(|| self.missing_since.unwrap_or(now));
        if !is_missing {
            (self.not_before, self.failures) = (None, 0);
        }
    }

    fn fail(&mut self, now: Instant) {
        let wait = RETRY.0 * 2_u32.pow(self.failures.min(6));
        self.failures += 1;
        self.not_before = Some(now + wait.min(RETRY.1));
    }
}

/// Registers at a server, for its credentials only.
async fn register(dialer: Dialer, name: ServerName, key: Option<String>) -> FurtherServer {
    let registration = RegistrationParams { key, secret: None, epoch: None };
    let registered = timeout(REGISTRATION_TIMEOUT, servers::register(&dialer, vec![name], &registration));
    let Ok(Ok((session, _events))) = registered.await else { return FurtherServer::Failed };
    let credentials = connect::relay_credentials(&session.registered.ice_servers);
    let second = match session.registered.stun2.clone() {
        Some(second) => tokio::net::lookup_host(second).await.ok(),
        None => None,
    };
    let is_ipv4 = session.address.is_ipv4();
    let second = second.and_then(|mut found| found.find(|address| address.is_ipv4() == is_ipv4));
    FurtherServer::Registered(Box::new(session), credentials, second)
}

impl IceEngine {
    /// Notes whether a relay is missing.
    pub(super) fn watch_relays(&mut self, now: Instant) {
        let has_relay = self.relays.clients.iter().any(|relay| !relay.relayed().is_empty());
        self.further.set_missing(now, self.relays.credentials.is_some() && !has_relay);
    }

    /// Has the server answer for its relays.
    pub(super) fn verify_relays(&mut self, now: Instant) {
        for relay in &mut self.relays.clients {
            relay.migrate(now, None);
        }
        // Without another server there is nothing to change to. A connection by TCP ends with its server.
        if !self.further.names.is_empty() && self.relays.clients.iter().any(|relay| !relay.is_stream()) {
            self.further.verifying_since.get_or_insert(now);
        }
    }

    /// Gives up the relays by UDP of a server that does not answer for them.
    pub(super) fn drop_silent_relays(&mut self, now: Instant) {
        let Some(since) = self.further.verifying_since.take_if(|since| *since + ANSWER_TIME <= now) else {
            return;
        };
        if self.relays.answered_at.is_none_or(|at| at < since) {
            tracing::debug!("the server does not answer for its relays");
            self.relays.clients.retain(RelayClient::is_stream);
            self.further.missing_since = now.checked_sub(PATIENCE);
            self.start_udp_relay(now);
        }
    }

    /// Asks the next server for a relay, if that is due.
    pub(super) fn ask_further_server(&mut self, now: Instant) {
        if self.further.next_request().is_none_or(|at| now < at) {
            return;
        }
        let Some(name) = self.further.names.pop_front() else { return };
        tracing::debug!(server = %name, "no relay at the server in use; asking another one");
        self.further.names.push_back(name.clone());
        self.further.is_registering = true;
        let key = self.config.key.clone().map(|AccessKey(key)| key);
        self.further.tasks.spawn(register(self.config.dialer.clone(), name, key));
    }

    /// Handles what was learned of a further server.
    pub(super) fn handle_further_server(&mut self, now: Instant, found: FurtherServer) {
        match found {
            FurtherServer::Addresses(addresses) => {
                addresses.into_iter().for_each(|address| self.add_further_address(now, address));
            }
            FurtherServer::Registered(session, credentials, second) => {
                self.further.is_registering = false;
                self.further.fail(now);
                if credentials.is_some() && self.further.missing_since.is_some() {
                    self.use_further_server(now, *session, credentials, second);
                }
            }
            FurtherServer::Failed => {
                self.further.is_registering = false;
                self.further.fail(now);
            }
        }
    }

    fn add_further_address(&mut self, now: Instant, address: SocketAddr) {
        self.extra.hard_nat.add_server(address.ip());
        let bases: Vec<SocketAddr> = self.ports.iter().map(|port| port.local_addr()).collect();
        self.gathering.add_further_server(now, address, &bases);
    }

    fn use_further_server(
        &mut self,
        now: Instant,
        session: ServerSession,
        credentials: Option<RelayCredentials>,
        second: Option<SocketAddr>,
    ) {
        let before = (self.config.name.clone(), self.config.server);
        self.set_server(now, session.name.clone(), session.address);
        self.further.names.retain(|name| *name != session.name);
        if self.config.server != before.1 {
            self.further.names.push_back(before.0);
            self.add_further_address(now, before.1);
        }
        self.extra.hard_nat.set_vetoed(now, !session.registered.spray);
        if let Some(second) = second {
            self.gathering.set_second_server(now, second);
        }
        // The new server has its own time.
        self.further.set_missing(now, false);
        self.set_relay(now, credentials);
        self.queues.send(EngineEvent::ServerChanged(self.config.server));
    }
}
