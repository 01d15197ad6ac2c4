//! What waits for one WebSocket: a queue that is bounded in texts and bytes, on its own and together with all others.
//!
//! One that is empty holds no memory for texts: most connections are idle.

use super::config::Limits;
use super::wire::MAX_TEXT;
use crate::limits::Limit;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The bytes that wait in all outboxes of a server, and how many may.
#[derive(Debug, Default)]
pub(super) struct Waiting(AtomicUsize);

/// The hub's end.
#[derive(Debug)]
pub(super) struct Outbox(Arc<Queue>);

/// The connection's end.
#[derive(Debug)]
pub(super) struct Texts(Arc<Queue>);

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

#[derive(Debug)]
struct Queue {
    held: Mutex<Held>,
    all: Arc<Waiting>,
    most_texts: usize,
    most_bytes: usize,
    most_of_all: usize,
}

#[derive(Debug)]
struct Held {
    texts: VecDeque<String>,
    /// Not yet sent, those that the connection has taken included.
    count: usize,
    bytes: usize,
    end: Option<News>,
    waker: Option<Waker>,
}

/// Makes the two ends; a text that nobody takes any more counts no longer.
pub(super) fn outbox(limits: &Limits, all: &Arc<Waiting>) -> (Outbox, Texts) {
    let held = Held { texts: VecDeque::new(), count: 0, bytes: 0, end: None, waker: None };
    let queue = Arc::new(Queue {
        held: Mutex::new(held),
        all: Arc::clone(all),
        most_texts: limits.outbox.max(1),
        most_bytes: limits.outbox_bytes.max(MAX_TEXT),
        most_of_all: limits.outboxes_bytes,
    });
    (Outbox(Arc::clone(&queue)), Texts(queue))
}

impl Outbox {
    /// Queues a text; `false` where the client has let too much wait, after which its connection ends without another word.
    #[must_use]
    pub(super) fn push(&self, text: String) -> bool {
        let mut held = self.0.held();
        let fits = self.0.has_room(&held, text.len());
        match fits {
            true => held.enter(text, &self.0.all),
            false => held.end = Some(News::Overrun),
        }
        let waker = held.waker.take();
        drop(held);
        waker.into_iter().for_each(Waker::wake);
        fits
    }
}

impl Outbox {
    /// Lets go of a connection that there is no room for.
    pub(super) fn refuse(self, limit: Limit) {
        self.0.held().end.get_or_insert(News::Refused(limit));
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut held = self.0.held();
        held.end.get_or_insert(News::Over);
        let waker = held.waker.take();
        drop(held);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Texts {
    /// Waits for texts, and moves all that there are into `room`, which must be empty. They count until they are said to be
    /// [`Texts::sent`].
    pub(super) async fn next(&mut self, room: &mut VecDeque<String>) -> News {
        poll_fn(|context| {
            let mut held = self.0.held();
            match held.end {
                Some(News::Overrun) => return Poll::Ready(News::Overrun),
                _ if !held.texts.is_empty() => {
                    std::mem::swap(&mut held.texts, room);
                    return Poll::Ready(News::Texts);
                }
                Some(end) => return Poll::Ready(end),
                None => {}
            }
            held.wake_later(context);
            Poll::Pending
        })
        .await
    }

    /// Counts texts out.
    pub(super) fn sent(&self, count: usize, bytes: usize) {
        self.0.held().leave(count, bytes, &self.0.all);
    }

    /// Waits until a text has found no room.
    pub(super) async fn overrun(&self) {
        poll_fn(|context| {
            let mut held = self.0.held();
            if held.end == Some(News::Overrun) {
                return Poll::Ready(());
            }
            held.wake_later(context);
            Poll::Pending
        })
        .await;
    }
}

impl Queue {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where all outboxes together hold too much, those pay in which more than one waits.
    fn has_room(&self, held: &Held, length: usize) -> bool {
        let own = held.bytes + length;
        let all = self.all.0.load(Ordering::Relaxed) + length;
        let (limit, value) = if held.count >= self.most_texts {
            (Limit::SignalingOutbox, self.most_texts)
        } else if own > self.most_bytes {
            (Limit::SignalingOutboxBytes, self.most_bytes)
        } else if all > self.most_of_all && own > MAX_TEXT {
            (Limit::SignalingOutboxesBytes, self.most_of_all)
        } else {
            return true;
        };
        limit.reached(value);
        false
    }
}

impl Held {
    fn enter(&mut self, text: String, all: &Waiting) {
        self.count += 1;
        self.bytes += text.len();
        all.0.fetch_add(text.len(), Ordering::Relaxed);
        self.texts.push_back(text);
    }

    fn leave(&mut self, count: usize, bytes: usize, all: &Waiting) {
        let bytes = bytes.min(self.bytes);
        self.count = self.count.saturating_sub(count);
        self.bytes -= bytes;
        all.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Both that a connection may wait for are waited for by its one task.
    fn wake_later(&mut self, context: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.waker = Some(context.waker().clone());
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        held.leave(held.count, held.bytes, &self.all);
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
