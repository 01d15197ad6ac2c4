//! The hands: one task owns the hub, and every queue to and from it is bounded.

use super::admission::{self, Admitted, Refusal};
use super::config::Config;
use super::http;
use super::leg::{Conn, Door};
use super::machine::{Hub, Output};
use super::udp::Sockets;
use super::wire::Tag;
use crate::clock::Now;
use crate::net::time::now;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};

/// Something that happened to a client.
#[derive(Debug)]
pub(super) enum Event {
    Datagram { door: Door, from: SocketAddr, local_ip: Option<IpAddr>, payload: Box<[u8]> },
    Opened { conn: Conn, ip: IpAddr, outbox: mpsc::Sender<String> },
    Text { conn: Conn, text: String },
    Closed { conn: Conn },
    Revoked { tag: Tag },
}

/// What the handles share: the way to the hub, and what needs no hub.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inbox: mpsc::Sender<Event>,
    pub(super) config: Config,
    conns: AtomicU64,
}

impl Shared {
    /// Numbers a connection.
    pub(super) fn next_conn(&self) -> Conn {
        Conn(self.conns.fetch_add(1, Ordering::Relaxed))
    }
}

/// Running signalling.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    stop: oneshot::Sender<()>,
    /// There until its end was heard.
    task: Option<JoinHandle<()>>,
}

/// Starts signalling on a task of the current tokio runtime. `seed` must come from the system's random source: tags and
/// tokens are drawn from it.
#[must_use]
pub fn start(config: Config, sockets: Sockets, seed: [u8; 32]) -> Service {
    let (inbox, events) = mpsc::channel(config.limits.inbox.max(1));
    let (stop, stopped) = oneshot::channel();
    let hub = Hub::new(config.clone(), ChaCha20Rng::from_seed(seed));
    let task = Some(tokio::spawn(Switch { hub, sockets, outboxes: HashMap::new() }.run(events, stopped)));
    let shared = Shared { inbox, config, conns: AtomicU64::new(0) };
    Service { handle: Handle { shared: Arc::new(shared) }, stop, task }
}

impl Service {
    /// Returns a handle for those who receive datagrams and serve HTTP.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the hub to panic; never returns while it does not.
    pub async fn failed(&mut self) -> JoinError {
        if let Some(task) = &mut self.task {
            let ended = task.await;
            self.task = None;
            if let Err(error) = ended {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Stops the hub and closes the WebSockets.
    pub async fn shutdown(self) {
        let _ = self.stop.send(());
        if let Some(task) = self.task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "signalling ended badly");
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
    pub fn datagram(&self, door: Door, from: SocketAddr, local_ip: Option<IpAddr>, payload: &[u8]) -> bool {
        if payload.len() > super::wire::MAX_DATAGRAM {
            return true;
        }
        let event = Event::Datagram { door, from, local_ip, payload: payload.into() };
        self.shared.inbox.try_send(event).is_ok()
    }

    /// Ends what a client has here whose tag is in [`Config::revoked`] from now on.
    pub async fn revoke(&self, tag: Tag) {
        // Without a hub nothing is left to end.
        let _ = self.shared.inbox.send(Event::Revoked { tag }).await;
    }

    /// Says what a key or JWT admits to.
    ///
    /// # Errors
    /// [`Refusal`] says why it does not.
    pub fn admit(&self, now: Now, shown: &str) -> Result<Admitted, Refusal> {
        admission::admit(&self.shared.config, now, shown)
    }

    /// Returns the routes `/ws` and `/ice`. Each request must carry `axum::extract::ConnectInfo<SocketAddr>` in its
    /// extensions.
    pub fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.shared))
    }
}

/// The task's own things.
struct Switch {
    hub: Hub,
    sockets: Sockets,
    outboxes: HashMap<Conn, mpsc::Sender<String>>,
}

impl Switch {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut stopped: oneshot::Receiver<()>) {
        loop {
            let due = self.hub.poll_timeout();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                () = timer => self.hub.handle_timeout(now()),
                _ = &mut stopped => return,
            }
            self.drain();
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
                self.hub.handle_web_opened(now, conn, ip);
            }
            Event::Text { conn, text } => self.hub.handle_web_text(now, conn, &text),
            Event::Revoked { tag } => self.hub.handle_revoked(now, &tag),
            Event::Closed { conn } => {
                self.outboxes.remove(&conn);
                self.hub.handle_web_closed(now, conn);
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
            }
        }
    }

    /// A client that does not take its texts in time is closed: it would miss some, or make the server keep them.
    fn pass(&mut self, conn: Conn, text: String) {
        let Some(outbox) = self.outboxes.get(&conn) else { return };
        if outbox.try_send(text).is_err() {
            tracing::debug!(conn = conn.0, "outbox full, connection closed");
            self.outboxes.remove(&conn);
            self.hub.handle_web_closed(now(), conn);
        }
    }
}
