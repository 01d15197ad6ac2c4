//! What waits for one WebSocket: a queue that is bounded in texts and bytes, on its own and together with all others.

use super::config::Limits;
use super::wire::MAX_TEXT;
use crate::limits::{Limit, QueueBounds, QueueError, QueueReceiver, QueueSender, queue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that wait in all outboxes of a server.
#[derive(Debug, Default)]
pub(super) struct Waiting(AtomicUsize);

/// The hub's end.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: QueueSender<String, Closing>,
    all: Arc<Waiting>,
    /// Most bytes that may wait in all outboxes.
    most_of_all: usize,
}

/// The connection's end; a text that nobody takes any more counts no longer.
#[derive(Debug)]
pub(super) struct Texts {
    queue: QueueReceiver<String, Closing>,
    all: Arc<Waiting>,
}

/// Why the hub has ended the queue, unless it has only dropped it.
#[derive(Debug, Clone, Copy)]
enum Closing {
    Refused(Limit),
    Overrun,
}

/// What a connection has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Send the texts that it was given.
    Texts,
    /// End, in order: the hub has let go.
    Over,
    /// The same, as there is no room for the connection.
    Refused(Limit),
    /// End without another word: too much waits.
    Overrun,
}

/// Makes the two ends.
pub(super) fn outbox(limits: &Limits, all: &Arc<Waiting>) -> (Outbox, Texts) {
    let bounds = QueueBounds { items: limits.outbox, bytes: limits.outbox_bytes.max(MAX_TEXT) };
    let (sender, receiver) = queue(bounds);
    let most_of_all = limits.outboxes_bytes;
    let outbox = Outbox { queue: sender, all: Arc::clone(all), most_of_all };
    (outbox, Texts { queue: receiver, all: Arc::clone(all) })
}

impl Outbox {
    /// Queues a text; `false` where the client has let too much wait, after which its connection ends without another word.
    #[must_use]
    pub(super) fn push(&self, text: String) -> bool {
        let length = text.len();
        let (own, bounds) = (self.queue.bytes() + length, self.queue.bounds());
        // It is counted first: the connection may take it at once.
        let all = self.all.0.fetch_add(length, Ordering::Relaxed) + length;
        // Where all outboxes together hold too much, those pay in which more than one text waits.
        let refused = if all > self.most_of_all && own > MAX_TEXT && own <= bounds.bytes {
            Some((Limit::SignalingOutboxesBytes, self.most_of_all))
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
        self.queue.abort(Closing::Overrun);
        false
    }

    /// Lets go of a connection that there is no room for.
    pub(super) fn refuse(self, limit: Limit) {
        self.queue.finish(Closing::Refused(limit));
    }
}

impl Texts {
    /// Waits for texts, and moves all that there are into `room`, which must be empty. They count until they are said to be
    /// [`Texts::sent`].
    pub(super) async fn next(&mut self, room: &mut VecDeque<String>) -> News {
        match self.queue.recv_all(room).await {
            Ok(()) => News::Texts,
            Err(None) => News::Over,
            Err(Some(Closing::Refused(limit))) => News::Refused(limit),
            Err(Some(Closing::Overrun)) => News::Overrun,
        }
    }

    /// Counts texts out.
    pub(super) fn sent(&self, count: usize, bytes: usize) {
        self.queue.release(count, bytes);
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits until a text has found no room.
    pub(super) async fn overrun(&self) {
        self.queue.aborted().await;
    }
}

impl Drop for Texts {
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

    async fn is_overrun(texts: &Texts) -> bool {
        timeout(Duration::from_secs(1), texts.overrun()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_let_so_many_texts_and_bytes_wait() {
        for (limits, length) in [(limits(3, 1 << 20, 1 << 30), 1), (limits(99, 150_000, 1 << 30), 50_000)] {
            let (all, mut room) = (Arc::default(), VecDeque::new());
            let (outbox, mut texts) = outbox(&limits, &all);
            assert!((0..3).all(|_| outbox.push(text(length))));
            assert_eq!(texts.next(&mut room).await, News::Texts);
            assert_eq!((room.len(), all.0.load(Ordering::Relaxed)), (3, 3 * length));
            texts.sent(1, length);
            assert!(outbox.push(text(length)) && !is_overrun(&texts).await);
            assert!(!outbox.push(text(length)) && is_overrun(&texts).await);
            assert_eq!(texts.next(&mut VecDeque::new()).await, News::Overrun);
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
            let mut room = VecDeque::new();
            assert!(reading.push(text(MAX_TEXT)));
            assert_eq!(texts.next(&mut room).await, News::Texts);
            assert_eq!(room, [text(MAX_TEXT)]);
            texts.sent(1, MAX_TEXT);
        }
        assert!(!slow.push(text(1)) && is_overrun(&slow_texts).await);
        drop((slow, slow_texts));
        assert!((0..3).all(|_| reading.push(text(MAX_TEXT))));
        assert!(!reading.push(text(MAX_TEXT)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_taken_before_the_end_is_told() {
        let (all, mut room) = (Arc::default(), VecDeque::new());
        let (outbox, mut texts) = outbox(&Limits::default(), &all);
        let waits = timeout(Duration::from_secs(1), texts.next(&mut room)).await;
        assert!(waits.is_err());
        let (news, ()) = tokio::join!(texts.next(&mut room), async {
            assert!(outbox.push(text(1)));
            drop(outbox);
        });
        assert_eq!((news, room.len()), (News::Texts, 1));
        room.clear();
        assert_eq!(texts.next(&mut room).await, News::Over);
    }
}
