//! The inbox of a worker: a bounded queue of control messages from tasks and other workers.

use super::counters::WorkerCounters;
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
use tokio::sync::{mpsc, oneshot};

/// Messages in the queue of one worker. A stream that fills it is not read until there is room.
const CAPACITY: usize = 1024;
/// Messages in the queue of one client's task. Each holds what its worker sent in one iteration.
pub(crate) const REPLY_QUEUE: usize = 256;

/// A message to a worker.
#[derive(Debug)]
pub(crate) enum WorkerMessage {
    /// A TCP client has connected; the worker takes over its socket.
    TcpAccepted(Box<AcceptedSocket>),
    /// A TCP client must close if it has not authenticated: its place or its memory is needed.
    TcpEvicted { client: FiveTuple, number: u64 },
    /// A client on a stream task has connected; its replies go to `path`.
    StreamOpened { client: FiveTuple, path: ReplyPath },
    /// Whole frames from a stream; the last one may lack its padding.
    Frames { client: FiveTuple, run: Bytes },
    /// The stream has closed.
    StreamClosed { client: FiveTuple, link: u64 },
    /// A user look-up has ended; `is_answered` is false if it failed.
    LookupDone { query: Arc<UserQuery>, is_answered: bool },
    /// A frame from a client whose allocation this worker has, or may have by its mobility ticket, and which arrived at another worker.
    ForwardedFrame { client: FiveTuple, arrived_at: u16, bytes: Bytes },
    /// Forward the frames of this client to the worker that has its allocation.
    ClientMoved { client: FiveTuple, entry: ForwardEntry },
    /// The connection of a forwarded client has closed.
    ForwardedClientClosed { client: FiveTuple },
    /// Send a frame to a client whose allocation another worker has.
    ForwardedReply { client: FiveTuple, bytes: Bytes },
    /// A forwarded client has left its allocation.
    ClientLeft { client: FiveTuple },
    /// A peer has connected to a relayed address.
    PeerAccepted { relay: RelayId, peer: SocketAddr, stream: TcpStream },
    /// A connection to a peer was established, or failed.
    PeerConnected { connection: ConnectionId, is_connected: bool },
    /// A peer connection and the client connection bound to it have closed.
    PeerClosed { connection: ConnectionId },
    /// The time-limited credentials of this name were revoked.
    Revoked { name: Arc<str> },
    /// The host has these addresses from now on.
    OwnAddresses(Addresses),
    /// Return the counters.
    ReadCounters(oneshot::Sender<Box<WorkerCounters>>),
    /// Stop the thread.
    Stop,
}

/// A message to the task of a client.
#[derive(Debug)]
pub(crate) enum StreamMessage {
    /// Send whole frames.
    Frames(Bytes),
    /// Become the client data connection to a peer (RFC 6062).
    Join(Box<PeerStream>),
}

/// The worker's handle on a client's task.
#[derive(Debug)]
pub(crate) struct ReplyPath {
    /// The number of its [`StreamLink`].
    pub(crate) link: u64,
    pub(crate) replies: QueueSender<StreamMessage>,
    /// Set once the client has authenticated.
    pub(crate) authenticated: Arc<AtomicBool>,
    /// The permit that it holds.
    pub(crate) connection: Option<ConnectionPermit>,
}

/// The sending side of a worker's queues.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    queue: mpsc::Sender<WorkerMessage>,
    waker: Arc<WorkerWaker>,
    batch_queues: Arc<BatchQueues>,
}

/// The receiving side of a client task's queue.
#[derive(Debug)]
pub(crate) struct ReplyReceiver {
    queue: QueueReceiver<StreamMessage>,
}

impl ReplyReceiver {
    /// Waits for the worker's next message; `None` when the worker has dropped the client.
    pub(crate) async fn next(&mut self) -> Option<StreamMessage> {
        self.queue.recv().await.ok()
    }

    /// Releases the queue space of the last message, `count` written bytes.
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

    /// Returns the waker of the worker.
    pub(crate) fn waker(&self) -> &Arc<WorkerWaker> {
        &self.waker
    }

    /// Returns the queues of batches from other workers.
    pub(crate) fn batch_queues(&self) -> &Arc<BatchQueues> {
        &self.batch_queues
    }

    /// Queues `message` and waits for room; returns `false` when the worker has stopped.
    pub(crate) async fn send(&self, message: WorkerMessage) -> bool {
        self.queue.send(message).await.is_ok() && self.waker.wake()
    }

    /// Queues `message` if there is room, from the thread of another worker.
    pub(crate) fn try_send(&self, message: WorkerMessage) -> bool {
        self.queue.try_send(message).is_ok() && self.waker.wake()
    }

    /// Announces a client; `None` when the worker has stopped. The queue of its replies closes when the worker drops the
    /// client.
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

/// A client task's link to its worker. Each has its own number, also where two have the same 5-tuple: a port that is reused at once, or a
/// proxy that names the same client twice.
#[derive(Debug)]
pub(crate) struct StreamLink {
    client: FiveTuple,
    number: u64,
    authenticated: Arc<AtomicBool>,
    worker: Inbox,
    is_closed: bool,
}

impl StreamLink {
    /// Sends whole frames to the worker and waits for room; returns `false` when the worker has stopped.
    pub(crate) async fn send_frames(&self, run: Bytes) -> bool {
        self.worker.send(WorkerMessage::Frames { client: self.client, run }).await
    }

    /// Returns whether the client has authenticated.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// Reports that the stream has closed.
    pub(crate) async fn close(mut self) {
        self.worker.send(WorkerMessage::StreamClosed { client: self.client, link: self.number }).await;
        self.is_closed = true;
    }
}

impl Drop for StreamLink {
    fn drop(&mut self) {
        // Without this the worker would keep the client of a task that panicked or was dropped.
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
