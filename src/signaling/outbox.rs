//! The queue of texts to one WebSocket, bounded in texts and bytes, alone and together with all others.

use super::config::Limits;
use super::wire::MAX_TEXT;
use crate::limits::{Limit, QueueBounds, QueueError, QueueReceiver, QueueSender, queue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes queued in all outboxes of a server.
#[derive(Debug, Default)]
pub(super) struct TotalBytes(AtomicUsize);

/// The sender, owned by the hub.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: QueueSender<String, OutboxEnd>,
    all: Arc<TotalBytes>,
    /// Maximum number of bytes in all outboxes.
    max_total: usize,
}

/// The receiver, owned by the connection. When it is dropped, the queued bytes are no longer counted.
#[derive(Debug)]
pub(super) struct OutboxReceiver {
    queue: QueueReceiver<String, OutboxEnd>,
    all: Arc<TotalBytes>,
}

/// Why the hub has closed the queue; absent if it has only dropped the sender.
#[derive(Debug, Clone, Copy)]
enum OutboxEnd {
    Refused(Limit),
    Overrun,
}

/// The next action of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutboxEvent {
    /// Send the received texts.
    Texts,
    /// Close: the hub has dropped the sender.
    Closed,
    /// Close, because a limit of connections is reached.
    Refused(Limit),
    /// Abort: the client does not read fast enough.
    Overrun,
}

/// Creates an outbox and its receiver.
pub(super) fn outbox(limits: &Limits, all: &Arc<TotalBytes>) -> (Outbox, OutboxReceiver) {
    let bounds = QueueBounds { items: limits.outbox, bytes: limits.outbox_bytes.max(MAX_TEXT) };
    let (sender, receiver) = queue(bounds);
    let max_total = limits.outboxes_bytes;
    let outbox = Outbox { queue: sender, all: Arc::clone(all), max_total };
    (outbox, OutboxReceiver { queue: receiver, all: Arc::clone(all) })
}

impl Outbox {
    /// Queues a text. Returns `false` if the queue is full; the connection is then aborted.
    #[must_use]
    pub(super) fn push(&self, text: String) -> bool {
        let length = text.len();
        let (own, bounds) = (self.queue.bytes() + length, self.queue.bounds());
        // Counted first, because the connection may take the text at once.
        let all = self.all.0.fetch_add(length, Ordering::Relaxed) + length;
        // If all outboxes together hold too much, only connections with more than one queued text are aborted.
        let refused = if all > self.max_total && own > MAX_TEXT && own <= bounds.bytes {
            Some((Limit::SignalingOutboxesBytes, self.max_total))
        } else {
            match self.queue.try_send(text, length) {
                Ok(()) => return true,
                Err((_, QueueError::Items)) => Some((Limit::SignalingOutbox, bounds.items)),
                Err((_, QueueError::Bytes)) => Some((Limit::SignalingOutboxBytes, bounds.bytes)),
                Err((_, QueueError::Closed)) => None,
            }
        };
        self.all.0.fetch_sub(length, Ordering::Relaxed);
        if let Some((limit, value)) = refused {
            limit.reached(value);
        }
        self.queue.abort(OutboxEnd::Overrun);
        false
    }

    /// Closes a connection that is over a limit.
    pub(super) fn refuse(self, limit: Limit) {
        self.queue.finish(OutboxEnd::Refused(limit));
    }
}

impl OutboxReceiver {
    /// Waits for texts and moves all of them into `into`, which must be empty. They are counted until [`OutboxReceiver::sent`].
    pub(super) async fn next(&mut self, into: &mut VecDeque<String>) -> OutboxEvent {
        match self.queue.recv_all(into).await {
            Ok(()) => OutboxEvent::Texts,
            Err(None) => OutboxEvent::Closed,
            Err(Some(OutboxEnd::Refused(limit))) => OutboxEvent::Refused(limit),
            Err(Some(OutboxEnd::Overrun)) => OutboxEvent::Overrun,
        }
    }

    /// Removes sent texts from the count.
    pub(super) fn sent(&self, count: usize, bytes: usize) {
        self.queue.release(count, bytes);
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits until a text did not fit.
    pub(super) async fn overrun(&self) {
        self.queue.aborted().await;
    }
}

impl Drop for OutboxReceiver {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.queue.close(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    fn text(length: usize) -> String {
        "x".repeat(length)
    }

    fn limits(outbox: usize, outbox_bytes: usize, outboxes_bytes: usize) -> Limits {
        Limits { outbox, outbox_bytes, outboxes_bytes, ..Limits::default() }
    }

    async fn is_overrun(texts: &OutboxReceiver) -> bool {
        timeout(Duration::from_secs(1), texts.overrun()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_let_so_many_texts_and_bytes_wait() {
        for (limits, length) in [(limits(3, 1 << 20, 1 << 30), 1), (limits(99, 150_000, 1 << 30), 50_000)] {
            let (all, mut taken) = (Arc::default(), VecDeque::new());
            let (outbox, mut texts) = outbox(&limits, &all);
            assert!((0..3).all(|_| outbox.push(text(length))));
            assert_eq!(texts.next(&mut taken).await, OutboxEvent::Texts);
            assert_eq!((taken.len(), all.0.load(Ordering::Relaxed)), (3, 3 * length));
            texts.sent(1, length);
            assert!(outbox.push(text(length)) && !is_overrun(&texts).await);
            assert!(!outbox.push(text(length)) && is_overrun(&texts).await);
            assert_eq!(texts.next(&mut VecDeque::new()).await, OutboxEvent::Overrun);
            drop((outbox, texts));
            assert_eq!(all.0.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_together_let_too_much_wait_a_client_that_reads_is_spared() {
        let (limits, all) = (limits(99, 1 << 20, 200_000), Arc::default());
        let (slow, slow_texts) = outbox(&limits, &all);
        let (reading, mut texts) = outbox(&limits, &all);
        assert!((0..4).all(|_| slow.push(text(50_000))));
        for _ in 0..10 {
            let mut taken = VecDeque::new();
            assert!(reading.push(text(MAX_TEXT)));
            assert_eq!(texts.next(&mut taken).await, OutboxEvent::Texts);
            assert_eq!(taken, [text(MAX_TEXT)]);
            texts.sent(1, MAX_TEXT);
        }
        assert!(!slow.push(text(1)) && is_overrun(&slow_texts).await);
        drop((slow, slow_texts));
        assert!((0..3).all(|_| reading.push(text(MAX_TEXT))));
        assert!(!reading.push(text(MAX_TEXT)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_taken_before_the_end_is_told() {
        let (all, mut taken) = (Arc::default(), VecDeque::new());
        let (outbox, mut texts) = outbox(&Limits::default(), &all);
        let waits = timeout(Duration::from_secs(1), texts.next(&mut taken)).await;
        assert!(waits.is_err());
        let (event, ()) = tokio::join!(texts.next(&mut taken), async {
            assert!(outbox.push(text(1)));
            drop(outbox);
        });
        assert_eq!((event, taken.len()), (OutboxEvent::Texts, 1));
        taken.clear();
        assert_eq!(texts.next(&mut taken).await, OutboxEvent::Closed);
    }
}
