//! What waits for one connection: bounded in frames and bytes, and in bytes together with all others.

use super::config::Limits;
use crate::limits::{Limit, QueueBounds, QueueError, QueueReceiver, QueueSender, queue};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Frames that wait for one connection.
const MAX_FRAMES: usize = 4096;
/// A connection for which more bytes wait gets no more pushes until it has read them.
const CONGESTED: usize = 64 * 1024;

/// What both ends share.
#[derive(Debug)]
struct Shared {
    /// The bytes that wait for all connections.
    all: Arc<AtomicUsize>,
    is_congested: AtomicBool,
}

/// The service's end.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: QueueSender<Bytes>,
    shared: Arc<Shared>,
    max_of_all: usize,
}

/// The connection's end.
#[derive(Debug)]
pub(super) struct Outgoing {
    queue: QueueReceiver<Bytes>,
    shared: Arc<Shared>,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It is queued.
    Queued,
    /// It is queued, and the connection is congested now.
    Congested,
    /// It is not: too much waits, and the connection must close.
    Refused,
}

/// Makes the two ends.
pub(super) fn outbox(limits: &Limits, all: &Arc<AtomicUsize>) -> (Outbox, Outgoing) {
    let (sender, receiver) = queue(QueueBounds { items: MAX_FRAMES, bytes: limits.outbox_bytes });
    let shared = Arc::new(Shared { all: Arc::clone(all), is_congested: AtomicBool::new(false) });
    let outbox = Outbox { queue: sender, shared: Arc::clone(&shared), max_of_all: limits.outboxes_bytes };
    (outbox, Outgoing { queue: receiver, shared })
}

impl Outbox {
    /// Queues a frame.
    pub(super) fn push(&self, frame: Bytes) -> Pushed {
        let len = frame.len();
        // It is counted first: the connection may take it at once.
        let all = self.shared.all.fetch_add(len, Ordering::Relaxed) + len;
        let refused = if all > self.max_of_all && self.queue.bytes() + len > CONGESTED {
            Limit::MessagingOutboxesBytes.reached(self.max_of_all);
            true
        } else {
            let queued = self.queue.try_send(frame, len);
            if matches!(queued, Err((_, QueueError::Items | QueueError::Bytes))) {
                Limit::MessagingOutboxBytes.reached(self.queue.bounds().bytes);
            }
            queued.is_err()
        };
        if refused {
            self.shared.all.fetch_sub(len, Ordering::Relaxed);
            return Pushed::Refused;
        }
        let becomes_congested =
            self.queue.bytes() > CONGESTED && !self.shared.is_congested.swap(true, Ordering::SeqCst);
        if !becomes_congested {
            return Pushed::Queued;
        }
        // The connection may have sent everything in between, and would not say so any more.
        let is_sent = self.queue.bytes() == 0 && self.shared.is_congested.swap(false, Ordering::SeqCst);
        if is_sent { Pushed::Queued } else { Pushed::Congested }
    }

    /// Returns whether the connection is congested and has not sent anything since.
    pub(super) fn is_congested(&self) -> bool {
        self.shared.is_congested.load(Ordering::SeqCst)
    }

    /// Lets the connection close after what is queued.
    pub(super) fn finish(&self) {
        self.queue.finish(());
    }
}

impl Outgoing {
    /// Returns what waits, once something does; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let mut frames = VecDeque::new();
        self.queue.recv_all(&mut frames).await.ok()?;
        let bytes = match frames.len() {
            1 => frames.pop_front()?,
            _ => frames.iter().flatten().copied().collect(),
        };
        self.queue.release(frames.len().max(1), 0);
        Some(bytes)
    }

    /// Counts bytes as sent; returns whether the connection was congested and is not any more.
    pub(super) fn sent(&self, bytes: usize) -> bool {
        self.queue.release(0, bytes);
        self.shared.all.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.is_congested.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // What waits is not sent any more.
        let left = self.queue.close();
        self.shared.all.fetch_sub(left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(outbox_bytes: usize, outboxes_bytes: usize, all: &Arc<AtomicUsize>) -> (Outbox, Outgoing) {
        outbox(&Limits { outbox_bytes, outboxes_bytes, ..Limits::default() }, all)
    }

    #[tokio::test]
    async fn frames_come_out_in_order_and_a_full_outbox_refuses() {
        let all = Arc::default();
        let (outbox, mut outgoing) = ends(100_000, 1_000_000, &all);
        assert_eq!(outbox.push(Bytes::from_static(b"one")), Pushed::Queued);
        assert_eq!(outbox.push(Bytes::from_static(b"two")), Pushed::Queued);
        assert_eq!(outgoing.next().await.unwrap(), "onetwo");
        assert!(!outgoing.sent(6));
        assert_eq!(outbox.push(vec![0; 70_000].into()), Pushed::Congested);
        assert_eq!(outbox.push(vec![0; 10_000].into()), Pushed::Queued);
        assert_eq!(outbox.push(vec![0; 30_000].into()), Pushed::Refused);
        assert_eq!(outgoing.next().await.unwrap().len(), 80_000);
        assert!(outgoing.sent(80_000), "it was congested");
        assert_eq!(all.load(Ordering::Relaxed), 0);
        outbox.push(Bytes::from_static(b"last"));
        outbox.finish();
        assert_eq!(outgoing.next().await.unwrap(), "last");
        outgoing.sent(4);
        assert_eq!(outgoing.next().await, None);
    }

    #[tokio::test]
    async fn a_connection_is_congested_again_by_what_is_queued_after_it_has_sent() {
        let all = Arc::default();
        let (outbox, mut outgoing) = ends(1_000_000, 1_000_000, &all);
        assert_eq!(outbox.push(vec![0; 70_000].into()), Pushed::Congested);
        outgoing.next().await.unwrap();
        assert!(outbox.is_congested() && outgoing.sent(70_000) && !outbox.is_congested());
        assert_eq!(outbox.push(vec![0; 70_000].into()), Pushed::Congested);
        assert!(outbox.is_congested(), "although the service has not handled the first one yet");
    }

    #[tokio::test]
    async fn all_outboxes_together_are_bounded_and_the_one_with_much_pays() {
        let all = Arc::default();
        let (much, outgoing) = ends(1_000_000, 200_000, &all);
        let (little, _other) = ends(1_000_000, 200_000, &all);
        assert_eq!(much.push(vec![0; 190_000].into()), Pushed::Congested);
        assert_eq!(little.push(vec![0; 20_000].into()), Pushed::Queued);
        assert_eq!(much.push(vec![0; 20_000].into()), Pushed::Refused);
        drop(outgoing);
        assert_eq!(all.load(Ordering::Relaxed), 20_000, "what is not sent any more does not count");
    }
}
