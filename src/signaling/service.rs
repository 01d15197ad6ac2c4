//! The I/O of signalling: one task owns the hub, and every queue to and from it is bounded.

use super::access::{self, Admitted, Refusal};
use super::bus::{Bus, SingleServer};
use super::call_table::CallOutcomes;
use super::client_addr::{ConnId, ServerPort};
use super::config::Config;
use super::counters::HubCounters;
use super::event_queue::EventQueue;
use super::http::{self, IceRates};
use super::machine::{Hub, Output};
use super::outbox::{Outbox, TotalBytes};
use super::udp::Sockets;
use super::wire::Tag;
use crate::clock::Now;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix, QueueReceiver};
use crate::net::time::now;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle};

/// Maximum number of events that are handled before the timer is set again.
const EVENTS_AT_ONCE: usize = 64;

/// An input of the hub.
#[derive(Debug)]
pub(super) enum Event {
    Datagram {
        port: ServerPort,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: Box<[u8]>,
    },
    Opened {
        conn: ConnId,
        ip: IpAddr,
        outbox: Outbox,
    },
    Text {
        conn: ConnId,
        text: String,
    },
    Closed {
        conn: ConnId,
    },
    Revoked {
        tag: Tag,
    },
    /// Requests the counters.
    Counters {
        reply: oneshot::Sender<HubCounters>,
    },
}

impl Event {
    /// Returns the bytes that the queue counts.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            _ => 0,
        }
    }
}

/// The state shared by all handles: the queue of the hub, and what HTTP requests use without the hub.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: EventQueue,
    pub(super) config: Config,
    pub(super) outbox_bytes: Arc<TotalBytes>,
    conns: AtomicU64,
    /// The limit of signature checks for HTTP requests.
    proofs: Mutex<KeyedRateLimiter<NetworkPrefix>>,
    /// The limits of `/ice`.
    pub(super) ice: IceRates,
}

impl Shared {
    /// Checks a key or JWT from an address.
    pub(super) fn admit(&self, now: Now, from: IpAddr, shown: &str) -> Result<Admitted, Refusal> {
        self.charge_signature(now, from, shown)?;
        access::admit(&self.config, now, shown)
    }

    /// Charges the signature check of a JWT to its network, at the same rate as the hub does.
    fn charge_signature(&self, now: Now, from: IpAddr, shown: &str) -> Result<(), Refusal> {
        if self.config.jwt.as_ref().is_some_and(|jwt| jwt.is_costly(shown)) {
            let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
            if !proofs.try_take(&NetworkPrefix::subscriber(from), now.mono, 1) {
                Limit::SignalingPerProof.reached(self.config.limits.per_proof.per_second());
                return Err(Refusal::TooMany);
            }
        }
        Ok(())
    }

    /// Returns a new connection number.
    pub(super) fn next_conn(&self) -> ConnId {
        ConnId(self.conns.fetch_add(1, Ordering::Relaxed))
    }
}

/// The running signalling service.
#[derive(Debug)]
pub(crate) struct Service {
    handle: Handle,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Starts signalling on a task of the current tokio runtime. `seed` must come from the system's random source: tags and tokens are derived
/// from it.
#[must_use]
pub(crate) fn start(config: Config, sockets: Sockets, seed: [u8; 32]) -> Service {
    let mut rng = ChaCha20Rng::from_seed(seed);
    let hub = Hub::new(config.clone(), rng.random());
    let (stop, stopped) = watch::channel(false);
    let (queue, events) = EventQueue::new(&config.limits);
    let hub_task = HubTask { hub, bus: SingleServer, sockets, outboxes: HashMap::new() };
    let task = tokio::spawn(hub_task.run(events, stopped));
    let limits = &config.limits;
    let proofs = Mutex::new(limits.limiter(limits.per_proof, limits.rates, &mut rng));
    let (outbox_bytes, conns) = (Arc::default(), AtomicU64::new(0));
    let ice = IceRates::new(limits, &mut rng);
    let shared = Shared { queue, config, outbox_bytes, conns, proofs, ice };
    Service { handle: Handle { shared: Arc::new(shared) }, stop, task }
}

impl Service {
    /// Returns a handle for datagrams and HTTP requests.
    #[must_use]
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the hub panics.
    pub(crate) async fn failed(&mut self) -> JoinError {
        match (&mut self.task).await {
            Err(error) => error,
            Ok(()) => std::future::pending().await,
        }
    }

    /// Stops the hub and closes the WebSockets.
    pub(crate) async fn shutdown(self) {
        let _ = self.stop.send(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "signalling has failed");
        }
    }
}

/// Passes events to the running service.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Queues a datagram; returns `false` if the queue is full and the datagram is lost.
    #[must_use]
    pub(crate) fn send_datagram(
        &self,
        port: ServerPort,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: &[u8],
    ) -> bool {
        if payload.len() > super::wire::MAX_DATAGRAM {
            return true;
        }
        let event = Event::Datagram { port, from, local_ip, payload: payload.into() };
        self.shared.queue.try_send(event)
    }

    /// Ends the registration and the calls of a tag that has been added to [`Config::revoked`].
    pub(crate) async fn revoke(&self, tag: Tag) {
        // If the hub has ended, nothing is left to revoke.
        let _ = self.shared.queue.send(Event::Revoked { tag }).await;
    }

    /// Returns the hub's counters, or `None` if it has ended.
    pub(crate) async fn counters(&self) -> Option<HubCounters> {
        let (reply, counters) = oneshot::channel();
        self.shared.queue.send(Event::Counters { reply }).await;
        counters.await.ok()
    }

    /// Checks the key or JWT in a header of an operator's request. `is_page` states whether a page has sent the request; pages must not use the
    /// admin key.
    ///
    /// # Errors
    /// Returns why the key or JWT is refused.
    pub(crate) fn admit_operator(
        &self,
        now: Now,
        from: IpAddr,
        shown: &str,
        is_page: bool,
    ) -> Result<Admitted, Refusal> {
        self.shared.charge_signature(now, from, shown)?;
        access::admit_operator(&self.shared.config, now, shown, is_page)
    }

    /// Returns the routes `/ws` and `/ice`. Each request must carry `axum::extract::ConnectInfo<SocketAddr>` in its
    /// extensions.
    pub(crate) fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.shared))
    }
}

/// The task that owns the hub.
struct HubTask {
    hub: Hub,
    bus: SingleServer,
    sockets: Sockets,
    outboxes: HashMap<ConnId, Outbox>,
}

impl HubTask {
    async fn run(mut self, events: QueueReceiver<Event>, stopped: watch::Receiver<bool>) {
        self.serve(events, stopped).await;
        let CallOutcomes { unanswered, refused, answered, direct, relayed, failed } =
            self.hub.counters().calls_ended;
        tracing::debug!(unanswered, refused, answered, direct, relayed, failed, "outcomes of calls");
    }

    async fn serve(&mut self, mut events: QueueReceiver<Event>, mut stopped: watch::Receiver<bool>) {
        loop {
            let due = self.hub.poll_timeout();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = stopped.changed() => return,
                () = timer => self.hub.handle_timeout(now()),
                event = events.recv() => match event {
                    Ok(event) => self.handle_some(event, &mut events),
                    Err(_) => return,
                },
            }
            self.drain();
        }
    }

    /// Handles an event and some of the queued ones, so that the timer is set once for all of them.
    fn handle_some(&mut self, first: Event, events: &mut QueueReceiver<Event>) {
        let mut next = Some(first);
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = next else { return };
            let bytes = event.bytes();
            self.handle(event);
            events.release(1, bytes);
            self.drain();
            next = events.try_recv();
        }
        if let Some(event) = next {
            let bytes = event.bytes();
            self.handle(event);
            events.release(1, bytes);
        }
    }

    fn handle(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Datagram { port, from, local_ip, payload } => {
                self.hub.handle_datagram(now, port, from, local_ip, &payload);
            }
            Event::Opened { conn, ip, outbox } => {
                self.outboxes.insert(conn, outbox);
                self.hub.handle_websocket_opened(now, conn, ip);
            }
            Event::Text { conn, text } => self.hub.handle_websocket_text(now, conn, &text),
            Event::Revoked { tag } => self.hub.handle_revoked(now, &tag),
            Event::Counters { reply } => drop(reply.send(self.hub.counters())),
            Event::Closed { conn } => {
                self.outboxes.remove(&conn);
                self.hub.handle_websocket_closed(now, conn);
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Datagram { port, to, from_ip, payload } => {
                    self.sockets.send(port, to, from_ip, &payload);
                }
                Output::Text { conn, text } => self.send_text(conn, text),
                // The task of the connection ends when its outbox is dropped.
                Output::Close { conn } => drop(self.outboxes.remove(&conn)),
                Output::Refuse { conn, limit } => {
                    if let Some(outbox) = self.outboxes.remove(&conn) {
                        outbox.refuse(limit);
                    }
                }
                Output::Publish { to, message } => {
                    if let Err(undelivered) = self.bus.send(&to, message) {
                        self.hub.handle_undelivered(now(), undelivered);
                    }
                }
            }
        }
    }

    /// Queues a text for a client. A client whose queue is full is closed, because it would miss the text.
    fn send_text(&mut self, conn: ConnId, text: String) {
        let Some(outbox) = self.outboxes.get(&conn) else { return };
        if !outbox.push(text) {
            tracing::debug!(conn = conn.0, "outbox full, connection closed");
            self.outboxes.remove(&conn);
            self.hub.handle_websocket_closed(now(), conn);
        }
    }
}
