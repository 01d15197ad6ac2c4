//! How tokio's side reaches a worker thread: a bounded queue and a wake-up.

use crate::turn_server::FiveTuple;
use crate::turn_server::auth::Question;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Frames that wait for a worker; a stream that fills the queue is not read from until there is room.
const CAPACITY: usize = 1024;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum ToWorker {
    /// A stream client is there; its replies go to this queue.
    Opened { client: FiveTuple, replies: mpsc::Sender<Bytes> },
    /// One whole frame from a stream.
    Frame { client: FiveTuple, bytes: Bytes },
    /// The stream has closed.
    Gone { client: FiveTuple },
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
}
