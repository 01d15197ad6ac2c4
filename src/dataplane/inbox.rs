//! How tokio's side reaches a worker thread: a bounded queue, and a waker for when it sleeps.

use super::forward_table::ForwardEntry;
use super::peer_streams::PeerStream;
use super::tcp_connections::{AcceptedSocket, MAX_UNREAD};
use super::waker::WorkerWaker;
use super::worker_channel::BatchQueues;
use crate::limits::{QueueBounds, QueueReceiver, QueueSender, queue};
use crate::net::addresses::Addresses;
use crate::net::connection_limiter::ConnectionPermit;
use crate::turn_server::auth::UserQuery;
use crate::turn_server::{ConnectionId, FiveTuple, RelayId};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Messages that wait for a worker; a stream that fills the queue is not read from until there is room.
const CAPACITY: usize = 1024;
/// Messages that wait for one client's task. Each is what its worker had for it in one pass.
pub(crate) const REPLY_QUEUE: usize = 256;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum WorkerMessage {
    /// A client by TCP is there, whose socket the worker takes over.
    TcpAccepted(Box<AcceptedSocket>),
    /// A client by TCP has to go, if it has shown no credentials: its place or its memory is needed.
    TcpEvicted { client: FiveTuple, number: u64 },
    /// A stream client is there; its replies go to this queue.
    StreamOpened { client: FiveTuple, path: ReplyPath },
    /// Whole frames from a stream; the last one may lack its padding.
    Frames { client: FiveTuple, run: Bytes },
    /// The stream has closed.
    StreamClosed { client: FiveTuple, link: u64 },
    /// A user was looked up, or could not be.
    LookupDone { question: Arc<UserQuery>, answered: bool },
    /// A client who belongs to this worker, or has a ticket that says so, has sent a frame to another one, `where they arrive`.
    ForwardedFrame { client: FiveTuple, arrived_at: u16, bytes: Bytes },
    /// A client who arrives at this worker is served by another one: his frames are to be passed on.
    ClientMoved { client: FiveTuple, entry: ForwardEntry },
    /// Such a client's connection has ended.
    ForwardedClientClosed { client: FiveTuple },
    /// A frame for a client who arrives at this worker and belongs to another one.
    ForwardedReply { client: FiveTuple, bytes: Bytes },
    /// Such a client has left his allocation.
    ClientLeft { client: FiveTuple },
    /// A peer has connected to a relayed address.
    PeerAccepted { relay: RelayId, peer: SocketAddr, stream: TcpStream },
    /// A peer has accepted a connection, or has not.
    PeerConnected { connection: ConnectionId, well: bool },
    /// A peer's connection and the client's have ended.
    PeerClosed { connection: ConnectionId },
    /// The time-limited credentials of this name were revoked.
    Revoked { name: Arc<str> },
    /// This where they arrive has these addresses from now on.
    OwnAddresses(Addresses),
    /// End the thread.
    Stop,
}

/// What a stream client's task is told.
#[derive(Debug)]
pub(crate) enum StreamMessage {
    /// Send whole frames.
    Frames(Bytes),
    /// Become the client's end of a connection to a peer.
    Join(Box<PeerStream>),
}

/// A worker's end of one stream.
#[derive(Debug)]
pub(crate) struct ReplyPath {
    /// The number of its link.
    pub(crate) link: u64,
    pub(crate) replies: QueueSender<StreamMessage>,
    /// Set when the client has shown good credentials.
    pub(crate) authenticated: Arc<AtomicBool>,
    /// What it occupies.
    pub(crate) connection: Option<ConnectionPermit>,
}

/// The sending side of one worker's queue.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    queue: mpsc::Sender<WorkerMessage>,
    waker: Arc<WorkerWaker>,
    batch_queues: Arc<BatchQueues>,
}

/// The receiving side of a stream client's replies.
#[derive(Debug)]
pub(crate) struct ReplyReceiver {
    queue: QueueReceiver<StreamMessage>,
}

impl ReplyReceiver {
    /// Waits for what the worker says next; `None` when it has no more use for the stream.
    pub(crate) async fn next(&mut self) -> Option<StreamMessage> {
        self.queue.recv().await.ok()
    }

    /// Makes room for what was taken last, of `count` bytes: it was written.
    pub(crate) fn written(&self, count: usize) {
        self.queue.release(1, count);
    }
}

impl Inbox {
    pub(crate) fn new(waker: mio::Waker) -> (Self, mpsc::Receiver<WorkerMessage>) {
        let (queue, receiver) = mpsc::channel(CAPACITY);
        let waker = Arc::new(WorkerWaker::new(waker));
        let batch_queues = Arc::new(BatchQueues::new(Arc::clone(&waker)));
        (Self { queue, waker, batch_queues }, receiver)
    }

    /// Returns the waker that wakes the worker.
    pub(crate) fn waker(&self) -> &Arc<WorkerWaker> {
        &self.waker
    }

    /// Returns where other workers leave their parcels.
    pub(crate) fn batch_queues(&self) -> &Arc<BatchQueues> {
        &self.batch_queues
    }

    /// Queues `message`, waiting for room; `false` when the worker has ended.
    pub(crate) async fn send(&self, message: WorkerMessage) -> bool {
        self.queue.send(message).await.is_ok() && self.waker.wake()
    }

    /// Queues `message` if there is room, from another worker's thread.
    pub(crate) fn try_send(&self, message: WorkerMessage) -> bool {
        self.queue.try_send(message).is_ok() && self.waker.wake()
    }

    /// Announces a stream client; `None` when the worker has ended. The queue of its replies closes when the worker has no more
    /// use for the stream.
    pub(crate) async fn open(
        &self,
        client: FiveTuple,
        connection: Option<ConnectionPermit>,
    ) -> Option<(StreamLink, ReplyReceiver)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (replies, queue) = queue(QueueBounds { items: REPLY_QUEUE, bytes: MAX_UNREAD });
        let (number, authenticated) = (NEXT.fetch_add(1, Ordering::Relaxed), Arc::<AtomicBool>::default());
        let path = ReplyPath { link: number, replies, authenticated: Arc::clone(&authenticated), connection };
        let link = StreamLink { client, number, authenticated, worker: self.clone(), is_closed: false };
        self.send(WorkerMessage::StreamOpened { client, path })
            .await
            .then_some((link, ReplyReceiver { queue }))
    }
}

/// One stream client's line to its worker. Two streams never share a number, even where they share a 5-tuple: a port that is
/// used again at once, or a proxy that names the same client twice.
#[derive(Debug)]
pub(crate) struct StreamLink {
    client: FiveTuple,
    number: u64,
    authenticated: Arc<AtomicBool>,
    worker: Inbox,
    is_closed: bool,
}

impl StreamLink {
    /// Hands over whole frames, waiting for room; `false` when the worker has ended.
    pub(crate) async fn hear(&self, run: Bytes) -> bool {
        self.worker.send(WorkerMessage::Frames { client: self.client, run }).await
    }

    /// Says whether the client has shown good credentials.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// Says that the stream has ended.
    pub(crate) async fn close(mut self) {
        self.worker.send(WorkerMessage::StreamClosed { client: self.client, link: self.number }).await;
        self.is_closed = true;
    }
}

impl Drop for StreamLink {
    fn drop(&mut self) {
        // A stream whose task panicked or was dropped has nobody left to say so, and its worker would keep the path for ever.
        if !self.is_closed {
            self.worker.try_send(WorkerMessage::StreamClosed { client: self.client, link: self.number });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn_server::Transport;

    #[tokio::test]
    async fn a_stream_whose_task_is_dropped_is_gone_too() {
        let poll = mio::Poll::new().unwrap();
        let (inbox, mut queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let address = "192.0.2.7:1000".parse().unwrap();
        let client = FiveTuple { client: address, server: address, transport: Transport::Tls };
        for is_closed in [false, true] {
            let (link, _replies) = inbox.open(client, None).await.unwrap();
            let number = link.number;
            match is_closed {
                true => link.close().await,
                false => drop(link),
            }
            assert!(matches!(queue.try_recv(), Ok(WorkerMessage::StreamOpened { .. })));
            assert!(
                matches!(queue.try_recv(), Ok(WorkerMessage::StreamClosed { link, .. }) if link == number)
            );
            assert!(queue.try_recv().is_err(), "once");
        }
    }

    #[tokio::test]
    async fn a_stream_whose_task_panics_is_gone_too() {
        let poll = mio::Poll::new().unwrap();
        let (inbox, mut queue) = Inbox::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let address = "192.0.2.7:1000".parse().unwrap();
        let client = FiveTuple { client: address, server: address, transport: Transport::Tls };
        let (link, _replies) = inbox.open(client, None).await.unwrap();
        let number = link.number;
        let stream = tokio::spawn(async move {
            assert!(!link.is_authenticated(), "is asked for");
            panic!("an assertion deep inside");
        });
        assert!(stream.await.is_err());
        assert!(matches!(queue.recv().await, Some(WorkerMessage::StreamOpened { .. })));
        let Some(WorkerMessage::StreamClosed { client: who, link }) = queue.recv().await else {
            panic!("it stays")
        };
        assert_eq!((who, link), (client, number));
    }
}
