//! How tokio's side reaches a worker thread: a bounded queue and a wake-up.

use crate::turn_server::FiveTuple;
use crate::turn_server::auth::Question;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Frames that wait for a worker; a stream that fills the queue is not read from until there is room.
const CAPACITY: usize = 1024;
/// Replies that wait for one client; more are dropped, as a network would.
const REPLY_QUEUE: usize = 256;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum ToWorker {
    /// A stream client is there; its replies go to this queue.
    Opened { client: FiveTuple, link: u64, replies: mpsc::Sender<Bytes> },
    /// One whole frame from a stream.
    Frame { client: FiveTuple, bytes: Bytes },
    /// The stream has closed.
    Gone { client: FiveTuple, link: u64 },
    /// A user was looked up, or could not be.
    LookedUp { question: Arc<Question>, answered: bool },
    /// End the thread.
    Stop,
}

/// The sending side of one worker's queue.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    queue: mpsc::Sender<ToWorker>,
    waker: Arc<mio::Waker>,
}

impl Inbox {
    pub(super) fn new(waker: mio::Waker) -> (Self, mpsc::Receiver<ToWorker>) {
        let (queue, receiver) = mpsc::channel(CAPACITY);
        (Self { queue, waker: Arc::new(waker) }, receiver)
    }

    /// Queues `message`, waiting for room; `false` when the worker has ended.
    pub(super) async fn send(&self, message: ToWorker) -> bool {
        self.queue.send(message).await.is_ok() && self.waker.wake().is_ok()
    }

    /// Announces a stream client; `None` when the worker has ended. The queue of its replies closes when the worker has no more
    /// use for the stream.
    pub(super) async fn open(&self, client: FiveTuple) -> Option<(Link, mpsc::Receiver<Bytes>)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (replies, queue) = mpsc::channel(REPLY_QUEUE);
        let link = Link { client, number: NEXT.fetch_add(1, Ordering::Relaxed), worker: self.clone() };
        let opened = ToWorker::Opened { client, link: link.number, replies };
        self.send(opened).await.then_some((link, queue))
    }
}

/// One stream client's line to its worker. Two streams never share a number, even where they share a 5-tuple: a port that is
/// used again at once, or a proxy that names the same client twice.
#[derive(Debug)]
pub(super) struct Link {
    client: FiveTuple,
    number: u64,
    worker: Inbox,
}

impl Link {
    /// Hands over one whole frame, waiting for room; `false` when the worker has ended.
    pub(super) async fn hear(&self, bytes: Bytes) -> bool {
        self.worker.send(ToWorker::Frame { client: self.client, bytes }).await
    }

    /// Says that the stream has ended.
    pub(super) async fn close(self) {
        self.worker.send(ToWorker::Gone { client: self.client, link: self.number }).await;
    }
}
