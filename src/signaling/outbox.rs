//! What waits for one WebSocket: a queue that is bounded in texts and bytes, on its own and together with all others.

use super::config::Limits;
use super::wire::MAX_TEXT;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, mpsc};

/// The bytes that wait in all outboxes of a server.
#[derive(Debug, Default)]
pub(super) struct Waiting(AtomicUsize);

/// The hub's end.
#[derive(Debug)]
pub(super) struct Outbox {
    texts: mpsc::Sender<String>,
    account: Arc<Account>,
}

/// The connection's end.
#[derive(Debug)]
pub(super) struct Texts {
    texts: mpsc::Receiver<String>,
    account: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    own: AtomicUsize,
    all: Arc<Waiting>,
    most: usize,
    most_of_all: usize,
    overrun: Notify,
}

/// Makes the two ends; a text that nobody takes any more counts no longer.
pub(super) fn outbox(limits: &Limits, all: &Arc<Waiting>) -> (Outbox, Texts) {
    let (sender, receiver) = mpsc::channel(limits.outbox.max(1));
    let account = Arc::new(Account {
        own: AtomicUsize::new(0),
        all: Arc::clone(all),
        most: limits.outbox_bytes,
        most_of_all: limits.outboxes_bytes,
        overrun: Notify::new(),
    });
    let texts = Texts { texts: receiver, account: Arc::clone(&account) };
    (Outbox { texts: sender, account }, texts)
}

impl Outbox {
    /// Queues a text; `false` where the client has let too much wait, after which its connection ends without another word.
    #[must_use]
    pub(super) fn push(&self, text: String) -> bool {
        let queued = self.account.enter(text.len()) && self.texts.try_send(text).is_ok();
        if !queued {
            self.account.overrun.notify_one();
        }
        queued
    }
}

impl Texts {
    /// Waits for the next text; `None` once the hub has let go and everything is taken.
    pub(super) async fn next(&mut self) -> Option<String> {
        let text = self.texts.recv().await?;
        self.account.leave(text.len());
        Some(text)
    }

    /// Waits until a text has found no room.
    pub(super) async fn overrun(&self) {
        self.account.overrun.notified().await;
    }
}

impl Account {
    /// Counts a text in. Where all outboxes together hold too much, those pay in which more than one waits.
    fn enter(&self, length: usize) -> bool {
        let own = self.own.fetch_add(length, Ordering::Relaxed) + length;
        let all = self.all.0.fetch_add(length, Ordering::Relaxed) + length;
        own <= self.most.max(MAX_TEXT) && (all <= self.most_of_all || own <= MAX_TEXT)
    }

    fn leave(&self, length: usize) {
        self.own.fetch_sub(length, Ordering::Relaxed);
        self.all.0.fetch_sub(length, Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.leave(self.own.load(Ordering::Relaxed));
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
            let all = Arc::default();
            let (outbox, mut texts) = outbox(&limits, &all);
            assert!((0..3).all(|_| outbox.push(text(length))));
            assert_eq!(texts.next().await, Some(text(length)));
            assert!(outbox.push(text(length)) && !is_overrun(&texts).await);
            assert!(!outbox.push(text(length)) && is_overrun(&texts).await);
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
            assert!(reading.push(text(MAX_TEXT)));
            assert_eq!(texts.next().await.map(|text| text.len()), Some(MAX_TEXT));
        }
        assert!(!slow.push(text(1)) && is_overrun(&slow_texts).await);
        drop((slow, slow_texts));
        assert!((0..3).all(|_| reading.push(text(MAX_TEXT))));
        assert!(!reading.push(text(MAX_TEXT)));
    }
}
