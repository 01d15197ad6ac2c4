//! The hands: one task owns each hub, and every queue to and from it is bounded.

use super::access::{self, Admitted, Refusal};
use super::bus::{Bus, Destination, HubMessage};
use super::call_table::CallOutcomes;
use super::client_addr::{ConnId, ServerPort};
use super::config::Config;
use super::event_queue::EventQueue;
use super::http::{self, IceRates};
use super::machine::{Hub, Output};
use super::nodes::NodeId;
use super::outbox::{Outbox, Waiting};
use super::udp::Sockets;
use super::wire::Tag;
use crate::clock::Now;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix, QueueReceiver};
use crate::net::time::now;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

/// Events that a hub takes before it listens to the others again.
const EVENTS_AT_ONCE: usize = 64;

/// Something that happened to a client.
#[derive(Debug)]
pub(super) enum Event {
    Datagram { door: ServerPort, from: SocketAddr, local_ip: Option<IpAddr>, payload: Box<[u8]> },
    Opened { conn: ConnId, ip: IpAddr, outbox: Outbox },
    Text { conn: ConnId, text: String },
    Closed { conn: ConnId },
    Revoked { tag: Tag },
}

impl Event {
    /// Returns the bytes that are counted of it.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            _ => 0,
        }
    }
}

/// What the handles share: the ways to the hubs, and what needs no hub.
#[derive(Debug)]
pub(super) struct Shared {
    queues: Vec<EventQueue>,
    pub(super) config: Config,
    pub(super) waiting: Arc<Waiting>,
    conns: AtomicU64,
    /// Signatures that HTTP requests cost.
    proofs: Mutex<KeyedRateLimiter<NetworkPrefix>>,
    /// Credentials that they are handed.
    pub(super) ice: IceRates,
}

impl Shared {
    /// Says what a key or JWT admits to that was shown from an address.
    pub(super) fn admit(&self, now: Now, from: IpAddr, shown: &str) -> Result<Admitted, Refusal> {
        self.charge_signature(now, from, shown)?;
        access::admit(&self.config, now, shown)
    }

    /// Takes a token that may cost a signature as seldom as the hubs take those of tags.
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

    /// Numbers a connection.
    pub(super) fn next_conn(&self) -> ConnId {
        ConnId(self.conns.fetch_add(1, Ordering::Relaxed))
    }

    /// The way to the hub that hears a WebSocket.
    pub(super) fn queue_of(&self, conn: ConnId) -> Option<&EventQueue> {
        self.queues.get(NodeId::home_of_conn(conn, self.queues.len()).index())
    }

    fn inbox_of_tag(&self, tag: &Tag) -> Option<&EventQueue> {
        self.queues.get(NodeId::of_tag(tag, self.queues.len()).index())
    }

    fn inbox_at(&self, ip: IpAddr) -> Option<&EventQueue> {
        self.queues.get(NodeId::home_of(ip, self.queues.len()).index())
    }
}

/// The bus inside one process: a queue to each hub.
#[derive(Debug, Clone)]
struct Exchange {
    lines: Arc<[Line]>,
    /// Most bytes that wait before what begins something is refused.
    cap: usize,
}

#[derive(Debug)]
struct Line {
    /// Not bounded itself, as answers must pass: what begins them is.
    messages: mpsc::UnboundedSender<HubMessage>,
    /// Bytes of them.
    waiting: AtomicUsize,
}

impl Bus for Exchange {
    fn publish(&self, tag: &Tag, message: HubMessage) -> Result<(), HubMessage> {
        self.send(NodeId::of_tag(tag, self.lines.len()), message)
    }

    fn send(&self, to: NodeId, message: HubMessage) -> Result<(), HubMessage> {
        let Some(line) = self.lines.get(to.index()) else { return Err(message) };
        if message.begins() && line.waiting.load(Ordering::Relaxed) >= self.cap {
            Limit::SignalingInboxBytes.reached(self.cap);
            return Err(message);
        }
        line.waiting.fetch_add(message.weight(), Ordering::Relaxed);
        line.messages.send(message).map_err(|unsent| unsent.0)
    }
}

/// Running signalling.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Starts signalling on tasks of the current tokio runtime, one for each hub. `seed` must come from the system's random source: tags
/// and tokens are drawn from it.
#[must_use]
pub fn start(config: Config, sockets: Sockets, seed: [u8; 32]) -> Service {
    let mut rng = ChaCha20Rng::from_seed(seed);
    let hubs = Hub::several(&config, config.hubs, ChaCha20Rng::from_rng(&mut rng));
    let (stop, stopped) = watch::channel(false);
    let (mut lines, mut heard, mut queues, mut tasks) = (Vec::new(), Vec::new(), Vec::new(), JoinSet::new());
    for _ in &hubs {
        let (messages, listener) = mpsc::unbounded_channel();
        lines.push(Line { messages, waiting: AtomicUsize::new(0) });
        heard.push(listener);
    }
    let bus = Exchange { lines: lines.into(), cap: config.limits.inbox_bytes };
    let sockets = Arc::new(sockets);
    for (place, (hub, messages)) in hubs.into_iter().zip(heard).enumerate() {
        let (queue, events) = EventQueue::new(&config.limits);
        queues.push(queue);
        let (bus, sockets) = (bus.clone(), Arc::clone(&sockets));
        let switch = HubTask { hub, place, bus, sockets, outboxes: HashMap::new() };
        tasks.spawn(switch.run(events, messages, stopped.clone()));
    }
    let limits = &config.limits;
    let proofs = Mutex::new(limits.limiter(limits.per_proof, limits.rates, &mut rng));
    let (waiting, conns) = (Arc::default(), AtomicU64::new(0));
    let ice = IceRates::new(limits, &mut rng);
    let shared = Shared { queues, config, waiting, conns, proofs, ice };
    Service { handle: Handle { shared: Arc::new(shared) }, stop, tasks }
}

impl Service {
    /// Returns a handle for those who receive datagrams and serve HTTP.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for a hub to panic; never returns while none does.
    pub async fn failed(&mut self) -> JoinError {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Stops the hubs and closes the WebSockets.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "signalling ended badly");
            }
        }
    }
}

/// A way to hand events to running signalling.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Hands over a datagram; `false` where the queue is full and the datagram lost.
    #[must_use]
    pub fn datagram(
        &self,
        door: ServerPort,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: &[u8],
    ) -> bool {
        if payload.len() > super::wire::MAX_DATAGRAM {
            return true;
        }
        let event = Event::Datagram { door, from, local_ip, payload: payload.into() };
        self.shared.inbox_at(from.ip()).is_some_and(|queue| queue.try_send(event))
    }

    /// Ends what a client has here whose tag is in [`Config::revoked`] from now on.
    pub async fn revoke(&self, tag: Tag) {
        // Without a hub nothing is left to end.
        if let Some(queue) = self.shared.inbox_of_tag(&tag) {
            let _ = queue.send(Event::Revoked { tag }).await;
        }
    }

    /// Says what a key or JWT admits to that was shown in a header of an operator's request; `is_page` where a page has sent it, which the admin
    /// key is refused to.
    ///
    /// # Errors
    /// [`Refusal`] says why it does not.
    pub fn admit_operator(
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
    pub fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.shared))
    }
}

/// One hub's task and its own things.
struct HubTask {
    hub: Hub,
    place: usize,
    bus: Exchange,
    sockets: Arc<Sockets>,
    outboxes: HashMap<ConnId, Outbox>,
}

impl HubTask {
    async fn run(
        mut self,
        events: QueueReceiver<Event>,
        messages: mpsc::UnboundedReceiver<HubMessage>,
        stopped: watch::Receiver<bool>,
    ) {
        self.serve(events, messages, stopped).await;
        let CallOutcomes { unanswered, refused, answered, direct, relayed, failed } = self.hub.outcomes();
        let hub = self.place;
        tracing::debug!(hub, unanswered, refused, answered, direct, relayed, failed, "what came of calls");
    }

    async fn serve(
        &mut self,
        mut events: QueueReceiver<Event>,
        mut messages: mpsc::UnboundedReceiver<HubMessage>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            let due = self.hub.poll_timeout();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Other hubs are heard before clients, so that their queue is short however much clients say.
            tokio::select! {
                biased;
                _ = stopped.changed() => return,
                message = messages.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                () = timer => self.hub.handle_timeout(now()),
                event = events.recv() => match event {
                    Ok(event) => self.handle_some(event, &mut events),
                    Err(_) => return,
                },
            }
            self.drain();
        }
    }

    fn hear(&mut self, message: HubMessage) {
        if let Some(line) = self.bus.lines.get(self.place) {
            line.waiting.fetch_sub(message.weight(), Ordering::Relaxed);
        }
        self.hub.handle_message_from_hub(now(), message);
    }

    /// Handles an event and some that wait behind it: the timer is set but once for all of them.
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
            Event::Datagram { door, from, local_ip, payload } => {
                self.hub.handle_datagram(now, door, from, local_ip, &payload);
            }
            Event::Opened { conn, ip, outbox } => {
                self.outboxes.insert(conn, outbox);
                self.hub.handle_websocket_opened(now, conn, ip);
            }
            Event::Text { conn, text } => self.hub.handle_websocket_text(now, conn, &text),
            Event::Revoked { tag } => self.hub.handle_revoked(now, &tag),
            Event::Closed { conn } => {
                self.outboxes.remove(&conn);
                self.hub.handle_websocket_closed(now, conn);
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Datagram { door, to, from_ip, payload } => {
                    self.sockets.send(door, to, from_ip, &payload);
                }
                Output::Text { conn, text } => self.pass(conn, text),
                // Without its outbox the connection's task ends.
                Output::Close { conn } => drop(self.outboxes.remove(&conn)),
                Output::Refuse { conn, limit } => {
                    if let Some(outbox) = self.outboxes.remove(&conn) {
                        outbox.refuse(limit);
                    }
                }
                Output::Publish { to, message } => self.post(&to, message),
            }
        }
    }

    fn post(&mut self, to: &Destination, message: HubMessage) {
        let posted = match to {
            Destination::Tag(tag) => self.bus.publish(tag, message),
            Destination::Hub(hub) => self.bus.send(*hub, message),
        };
        if let Err(message) = posted {
            self.hub.handle_refused(now(), message);
        }
    }

    /// A client that does not take its texts in time is closed: it would miss some, or make the server keep them.
    fn pass(&mut self, conn: ConnId, text: String) {
        let Some(outbox) = self.outboxes.get(&conn) else { return };
        if !outbox.push(text) {
            tracing::debug!(conn = conn.0, "outbox full, connection closed");
            self.outboxes.remove(&conn);
            self.hub.handle_websocket_closed(now(), conn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bus::{ListPage, Payload};
    use super::super::client_addr::ClientAddr;
    use super::*;

    #[test]
    fn what_begins_something_is_refused_once_too_much_waits_and_answers_pass() {
        let (messages, mut heard) = mpsc::unbounded_channel();
        let bus = Exchange { lines: [Line { messages, waiting: AtomicUsize::new(0) }].into(), cap: 100 };
        let (tag, hub) = (Tag::new("a").unwrap(), NodeId(0));
        let begins = || {
            let page =
                ListPage { realm: access::Realm::default(), own: tag.clone(), after: None, max_len: 0 };
            HubMessage(Payload::ListPage { id: 0, by: hub, page: Box::new(page) })
        };
        let follows = || HubMessage(Payload::Left { addr: ClientAddr::WebSocket(ConnId(1)) });
        assert!(bus.send(hub, begins()).is_ok() && bus.publish(&tag, begins()).is_ok());
        assert_eq!(bus.publish(&tag, begins()), Err(begins()));
        assert!(bus.send(hub, follows()).is_ok());
        let mut taken = 0;
        while let Ok(message) = heard.try_recv() {
            taken += message.weight();
        }
        assert_eq!(taken, bus.lines[0].waiting.load(Ordering::Relaxed));
        assert_eq!(bus.send(NodeId(1), begins()), Err(begins()), "there is no such hub");
    }
}
