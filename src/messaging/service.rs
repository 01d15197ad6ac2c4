//! The I/O of messaging: one task owns the machine; connections, the store and the job threads exchange events with it.

use super::config::{Config, Limits};
use super::connection::credits;
use super::counters::MessagingCounters;
use super::crypto::{CryptoError, ServerKey};
use super::job_pool::{JobPool, Worker};
use super::machine::{ConnectionId, Job, JobResult, Machine, Output, RequestId};
use super::outbox::{Outbox, Pushed};
use super::password::{PasswordError, Passwords};
use super::store_calls::call_store;
use super::store_request::{StoreReply, StoreRequest};
use crate::dataplane::stream_limits::CLOSE_TIME;
use crate::limits::{NetworkPrefix, QueueBounds, QueueReceiver, QueueSender, Quota, queue};
use crate::net::connection_limiter::ConnectionPermit;
use crate::net::time::now;
use crate::net::websocket;
use crate::store::{Store, StoreError};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// What waits for the machine.
const EVENTS: QueueBounds = QueueBounds { items: 4096, bytes: 16 << 20 };
/// Results that are handled before the timer is set again.
const AT_ONCE: usize = 64;

/// An input of the machine.
#[derive(Debug)]
pub(super) enum ServiceEvent {
    Opened(Box<Opened>),
    Frame {
        connection: ConnectionId,
        data: Bytes,
    },
    Text {
        connection: ConnectionId,
        text: String,
    },
    /// A WebSocket has answered a ping.
    Alive {
        connection: ConnectionId,
    },
    Drained {
        connection: ConnectionId,
    },
    /// The client sends nothing more, and everything it has sent is answered.
    Finished {
        connection: ConnectionId,
    },
    Counters {
        reply: oneshot::Sender<MessagingCounters>,
    },
}

/// A new connection.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: ConnectionId,
    pub(super) ip: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) outbox: Outbox,
    pub(super) credit: Arc<Semaphore>,
    pub(super) permit: ConnectionPermit,
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The frames of the TCP protocol.
    Frames {
        /// Whether devices need no key.
        is_legacy: bool,
    },
    /// JSON over WebSocket.
    WebSocket {
        /// Whether TLS protects it.
        is_secure: bool,
    },
}

impl ServiceEvent {
    fn bytes(&self) -> usize {
        match self {
            Self::Frame { data, .. } => data.len(),
            Self::Text { text, .. } => text.len(),
            _ => 0,
        }
    }
}

/// Why messaging has stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum MessagingError {
    /// The server's key could not be made.
    #[error("the server's key: {0}")]
    Key(#[from] CryptoError),
    /// Passwords cannot be hashed at this cost.
    #[error("password hashes: {0}")]
    Password(#[from] PasswordError),
    /// The system has no more threads.
    #[error("threads: {0}")]
    Thread(#[from] io::Error),
    /// A task panicked.
    #[error("{0}")]
    Task(#[from] JoinError),
}

/// Running messaging.
#[derive(Debug)]
pub(crate) struct Service {
    handle: Handle,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), MessagingError>>,
}

/// Passes connections to running messaging.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    events: QueueSender<ServiceEvent>,
    /// Of connections whose task was dropped.
    closed: UnboundedSender<ConnectionId>,
    connections: AtomicU64,
    limits: Limits,
    frame_memory: Arc<Quota<NetworkPrefix>>,
    /// Bytes that wait for all connections.
    waiting: Arc<AtomicUsize>,
}

/// Starts messaging on a task of the current tokio runtime. The server's key is made in the background; connections wait for it.
pub(crate) fn start(config: Config, store: Arc<dyn Store>, seed: [u8; 32]) -> Service {
    let (events, received) = queue(EVENTS);
    let (closed, closing) = unbounded_channel();
    let limits = config.limits.clone();
    let frame_memory = Quota::new(limits.frame_bytes, limits.frame_bytes / 8);
    let waiting = Arc::default();
    let shared = Shared { events, closed, connections: AtomicU64::new(0), limits, frame_memory, waiting };
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(config, store, seed, (received, closing), stopped));
    Service { handle: Handle(Arc::new(shared)), stop, task }
}

impl Service {
    /// Returns a handle for those who accept connections.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until messaging fails.
    pub(crate) async fn failed(&mut self) -> MessagingError {
        match (&mut self.task).await {
            Ok(Ok(())) => std::future::pending().await,
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        }
    }

    /// Stops messaging. The store closes when the last write is done.
    pub(crate) async fn shutdown(self) {
        let _ = self.stop.send(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "messaging has failed");
        }
    }
}

impl Handle {
    /// Returns the counters, or `None` if messaging has ended.
    pub(crate) async fn counters(&self) -> Option<MessagingCounters> {
        let (reply, counters) = oneshot::channel();
        self.send(ServiceEvent::Counters { reply }).await;
        counters.await.ok()
    }

    /// Queues an event; `false` where messaging has ended.
    pub(super) async fn send(&self, event: ServiceEvent) -> bool {
        let bytes = event.bytes();
        self.0.events.send(event, bytes).await
    }

    pub(super) fn closed(&self, connection: ConnectionId) {
        // Without a receiver messaging has ended.
        let _ = self.0.closed.send(connection);
    }

    pub(super) fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.0.connections.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(super) fn frame_memory(&self) -> &Arc<Quota<NetworkPrefix>> {
        &self.0.frame_memory
    }

    pub(super) fn waiting(&self) -> &Arc<AtomicUsize> {
        &self.0.waiting
    }
}

/// What the service has of one connection.
#[derive(Debug)]
struct Link {
    outbox: Outbox,
    credit: Arc<Semaphore>,
    permit: ConnectionPermit,
}

/// A completed call of the store.
type Called = (RequestId, Result<StoreReply, StoreError>);

/// The task that owns the machine.
struct MachineTask {
    machine: Machine,
    links: HashMap<ConnectionId, Link>,
    store: Arc<dyn Store>,
    calls: FuturesUnordered<BoxFuture<'static, Called>>,
    /// Messages that are being stored. The store completes them in order, and their acknowledgements keep it.
    appends: FuturesOrdered<BoxFuture<'static, Called>>,
    passwords: JobPool,
    session_keys: JobPool,
}

async fn run(
    config: Config,
    store: Arc<dyn Store>,
    seed: [u8; 32],
    (events, closing): (QueueReceiver<ServiceEvent>, UnboundedReceiver<ConnectionId>),
    mut stopped: watch::Receiver<bool>,
) -> Result<(), MessagingError> {
    let cost = config.password_cost;
    let prepared = spawn_blocking(move || -> Result<Worker, MessagingError> {
        Ok(Worker { key: ServerKey::generate()?, passwords: Passwords::new(cost)? })
    });
    let worker = tokio::select! {
        worker = prepared => Arc::new(worker??),
        _ = stopped.changed() => return Ok(()),
    };
    let (results, done) = unbounded_channel();
    let passwords = JobPool::spawn("password", config.password_threads, &worker, &results)?;
    let session_keys = JobPool::spawn("session key", 1, &worker, &results)?;
    let machine = Machine::new(now(), config, worker.key.public(), &mut ChaCha20Rng::from_seed(seed));
    let task = MachineTask {
        machine,
        links: HashMap::new(),
        store,
        calls: FuturesUnordered::new(),
        appends: FuturesOrdered::new(),
        passwords,
        session_keys,
    };
    task.serve(events, closing, done, stopped).await;
    Ok(())
}

impl MachineTask {
    async fn serve(
        mut self,
        mut events: QueueReceiver<ServiceEvent>,
        mut closing: UnboundedReceiver<ConnectionId>,
        mut done: UnboundedReceiver<(RequestId, JobResult)>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            let due = self.machine.poll_timeout();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = stopped.changed() => break,
                () = timer => self.machine.handle_timeout(now()),
                Some(called) = self.appends.next() => self.handle_called(called),
                Some(called) = self.calls.next() => self.handle_called(called),
                Some((id, result)) = done.recv() => self.machine.handle_job_result(now(), id, result),
                Some(connection) = closing.recv() => self.handle_closed(connection),
                event = events.recv() => match event {
                    Ok(event) => self.handle(event, &events),
                    Err(_) => break,
                },
            }
            self.drain();
            for _ in 0..AT_ONCE {
                let Some(event) = events.try_recv() else { break };
                self.handle(event, &events);
                self.drain();
            }
        }
        self.end(closing).await;
    }

    /// Tells the clients that the server ends, and gives them time to read it.
    async fn end(mut self, mut closing: UnboundedReceiver<ConnectionId>) {
        let mut open: HashSet<_> = self.links.keys().copied().collect();
        self.machine.handle_shutdown();
        self.drain();
        for link in self.links.values() {
            link.outbox.finish();
        }
        let all_closed = async {
            while !open.is_empty()
                && let Some(connection) = closing.recv().await
            {
                open.remove(&connection);
            }
        };
        let _ = timeout(CLOSE_TIME, all_closed).await;
    }

    fn handle(&mut self, event: ServiceEvent, events: &QueueReceiver<ServiceEvent>) {
        events.release(1, event.bytes());
        match event {
            ServiceEvent::Opened(opened) => {
                let Opened { connection, ip, protocol, outbox, credit, permit } = *opened;
                self.links.insert(connection, Link { outbox, credit, permit });
                match protocol {
                    Protocol::Frames { is_legacy } => {
                        self.machine.handle_opened(now(), connection, ip, is_legacy);
                    }
                    Protocol::WebSocket { is_secure } => {
                        self.machine.handle_websocket_opened(now(), connection, ip, is_secure);
                    }
                }
            }
            ServiceEvent::Frame { connection, data } => self.machine.handle_frame(now(), connection, data),
            ServiceEvent::Text { connection, text } => self.machine.handle_text(now(), connection, text),
            ServiceEvent::Alive { connection } => self.machine.handle_alive(now(), connection),
            ServiceEvent::Drained { connection } => {
                // Frames may have been queued since: then they are drained later.
                if self.links.get(&connection).is_some_and(|link| !link.outbox.is_congested()) {
                    self.machine.handle_drained(now(), connection);
                }
            }
            ServiceEvent::Finished { connection } => {
                if let Some(link) = self.links.get(&connection) {
                    link.outbox.finish();
                }
                self.handle_closed(connection);
            }
            ServiceEvent::Counters { reply } => drop(reply.send(self.machine.counters())),
        }
    }

    fn handle_closed(&mut self, connection: ConnectionId) {
        self.links.remove(&connection);
        self.machine.handle_closed(connection);
    }

    fn handle_called(&mut self, (id, result): Called) {
        if let Err(error @ (StoreError::Backend(_) | StoreError::Closed | StoreError::DiskFull)) = &result {
            crate::limits::sampled!(warn, now().mono, %error, "messaging store");
        }
        self.machine.handle_store_result(now(), id, result);
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Frame { connection, frame } => self.send(connection, frame),
                Output::Text { connection, text } => {
                    let mut message = Vec::new();
                    websocket::write_text(&text, &mut message);
                    self.send(connection, message.into());
                }
                Output::Close(connection) => {
                    if let Some(link) = self.links.remove(&connection) {
                        link.outbox.finish();
                    }
                }
                Output::Handled { connection, bytes } => {
                    if let Some(link) = self.links.get(&connection) {
                        link.credit.add_permits(credits(bytes));
                    }
                }
                Output::Authenticated(connection) => {
                    if let Some(link) = self.links.get(&connection) {
                        link.permit.mark_authenticated();
                    }
                }
                Output::Store { id, request } => {
                    let is_append = matches!(request, StoreRequest::Append(_));
                    let called = call_store(&*self.store, request);
                    let called = Box::pin(async move { (id, called.await) });
                    match is_append {
                        true => self.appends.push_back(called),
                        false => self.calls.push(called),
                    }
                }
                Output::Job { id, job } => {
                    let pool = match job {
                        Job::SessionKey(_) => &self.session_keys,
                        Job::Hash { .. } | Job::Verify { .. } => &self.passwords,
                    };
                    if !pool.push(id, job) {
                        self.machine.handle_job_result(now(), id, JobResult::Failed);
                    }
                }
            }
        }
    }

    fn send(&mut self, connection: ConnectionId, frame: Bytes) {
        let Some(link) = self.links.get(&connection) else { return };
        match link.outbox.push(frame) {
            Pushed::Queued => {}
            Pushed::Congested => self.machine.handle_congested(connection),
            Pushed::Refused => {
                tracing::debug!(connection = connection.0, "outbox full, connection closed");
                self.handle_closed(connection);
            }
        }
    }
}
