//! A queue between tasks or threads that is bounded in items and in bytes.
//!
//! What the receiver has taken counts until it is released: it is not handled, or not sent, yet. An empty queue holds no memory for items.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use tokio::sync::{Semaphore, TryAcquireError};

/// How much a queue holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueBounds {
    pub(crate) items: usize,
    /// An item that is larger takes all of it.
    pub(crate) bytes: usize,
}

/// Why an item was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("the queue holds as many items as it may")]
    Items,
    #[error("the queue holds as many bytes as it may")]
    Bytes,
    #[error("the receiver is gone")]
    Closed,
}

/// The sending end; clones share the bounds.
#[derive(Debug)]
pub(crate) struct QueueSender<T, R = ()>(Arc<Shared<T, R>>);

/// The receiving end. `R` is why the sender has ended the queue.
#[derive(Debug)]
pub(crate) struct QueueReceiver<T, R = ()>(Arc<Shared<T, R>>);

#[derive(Debug)]
struct Shared<T, R> {
    state: Mutex<QueueState<T, R>>,
    bounds: QueueBounds,
    /// Free capacity in items and bytes.
    free_items: Semaphore,
    free_bytes: Semaphore,
}

#[derive(Debug)]
struct QueueState<T, R> {
    items: VecDeque<T>,
    senders: usize,
    end: Option<End<R>>,
    receiver: Option<Waker>,
}

#[derive(Debug, Clone, Copy)]
enum End<R> {
    /// After what is queued.
    Finished(R),
    /// At once.
    Aborted(R),
}

/// Makes a queue.
pub(crate) fn queue<T, R>(bounds: QueueBounds) -> (QueueSender<T, R>, QueueReceiver<T, R>) {
    let within = |value: usize| value.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let bounds = QueueBounds { items: within(bounds.items), bytes: within(bounds.bytes) };
    let state = QueueState { items: VecDeque::new(), senders: 1, end: None, receiver: None };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        bounds,
        free_items: Semaphore::new(bounds.items),
        free_bytes: Semaphore::new(bounds.bytes),
    });
    (QueueSender(Arc::clone(&shared)), QueueReceiver(shared))
}

impl<T, R> QueueSender<T, R> {
    pub(crate) fn bounds(&self) -> QueueBounds {
        self.0.bounds
    }

    /// Returns the bytes that are not released yet.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Queues an item of `bytes` if that can be done at once.
    ///
    /// # Errors
    /// The item, and why it was not queued.
    pub(crate) fn try_send(&self, item: T, bytes: usize) -> Result<(), (T, QueueError)> {
        let refused = |error, full| if error == TryAcquireError::Closed { QueueError::Closed } else { full };
        let one = match self.0.free_items.try_acquire() {
            Ok(one) => one,
            Err(error) => return Err((item, refused(error, QueueError::Items))),
        };
        match self.0.free_bytes.try_acquire_many(self.0.cost(bytes)) {
            Ok(many) => many.forget(),
            Err(error) => return Err((item, refused(error, QueueError::Bytes))),
        }
        one.forget();
        self.0.push(item);
        Ok(())
    }

    /// Queues an item of `bytes` once there is capacity; `false` if the receiver was dropped.
    pub(crate) async fn send(&self, item: T, bytes: usize) -> bool {
        let Ok(many) = self.0.free_bytes.acquire_many(self.0.cost(bytes)).await else { return false };
        let Ok(one) = self.0.free_items.acquire().await else { return false };
        many.forget();
        one.forget();
        self.0.push(item);
        true
    }

    /// Ends the queue: the receiver gets `reason` after what is queued.
    pub(crate) fn finish(&self, reason: R) {
        self.0.end(End::Finished(reason));
    }

    /// Ends the queue: the receiver gets `reason` next.
    pub(crate) fn abort(&self, reason: R) {
        self.0.end(End::Aborted(reason));
    }
}

impl<T, R: Copy> QueueReceiver<T, R> {
    /// Returns the next item; the reason, if there is one, where the queue has ended.
    pub(crate) async fn recv(&mut self) -> Result<T, Option<R>> {
        poll_fn(|context| self.0.poll(context, |items| items.pop_front())).await
    }

    /// Waits for items and moves all of them to `out`, which must be empty.
    pub(crate) async fn recv_all(&mut self, out: &mut VecDeque<T>) -> Result<(), Option<R>> {
        poll_fn(|context| {
            self.0.poll(context, |items| (!items.is_empty()).then(|| std::mem::swap(items, out)))
        })
        .await
    }

    /// As [`QueueReceiver::recv`], on a thread that may block.
    pub(crate) fn blocking_recv(&mut self) -> Result<T, Option<R>> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let context = Context::from_waker(&waker);
        loop {
            match self.0.poll(&context, |items| items.pop_front()) {
                Poll::Ready(received) => return received,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// Returns the next item if there is one.
    pub(crate) fn try_recv(&mut self) -> Option<T> {
        self.0.state().items.pop_front()
    }

    /// Frees the capacity of `items` items of `bytes` bytes together.
    pub(crate) fn release(&self, items: usize, bytes: usize) {
        self.0.free_items.add_permits(items);
        self.0.free_bytes.add_permits(self.0.cost(bytes) as usize);
    }

    /// Waits until the sender aborts the queue.
    pub(crate) async fn aborted(&self) {
        poll_fn(|context| {
            let mut state = self.0.state();
            if matches!(state.end, Some(End::Aborted(_))) {
                return Poll::Ready(());
            }
            state.wake_later(context);
            Poll::Pending
        })
        .await;
    }

    /// Lets nothing more be queued; returns the bytes that are not released.
    pub(crate) fn close(&self) -> usize {
        self.0.close();
        self.0.bytes()
    }
}

impl<T, R> Shared<T, R> {
    fn state(&self) -> MutexGuard<'_, QueueState<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cost(&self, bytes: usize) -> u32 {
        bytes.min(self.bounds.bytes) as u32
    }

    fn bytes(&self) -> usize {
        self.bounds.bytes - self.free_bytes.available_permits()
    }

    fn push(&self, item: T) {
        let mut state = self.state();
        state.items.push_back(item);
        state.wake();
    }

    fn end(&self, end: End<R>) {
        let mut state = self.state();
        if !matches!(state.end, Some(End::Aborted(_))) {
            state.end = Some(end);
        }
        state.wake();
    }

    fn close(&self) {
        self.free_items.close();
        self.free_bytes.close();
    }

    fn poll<O>(
        &self,
        context: &Context<'_>,
        take: impl FnOnce(&mut VecDeque<T>) -> Option<O>,
    ) -> Poll<Result<O, Option<R>>>
    where
        R: Copy,
    {
        let mut state = self.state();
        if let Some(End::Aborted(reason)) = state.end {
            return Poll::Ready(Err(Some(reason)));
        }
        if let Some(taken) = take(&mut state.items) {
            return Poll::Ready(Ok(taken));
        }
        match state.end {
            Some(End::Finished(reason) | End::Aborted(reason)) => Poll::Ready(Err(Some(reason))),
            None if state.senders == 0 => Poll::Ready(Err(None)),
            None => {
                state.wake_later(context);
                Poll::Pending
            }
        }
    }
}

impl<T, R> QueueState<T, R> {
    fn wake(&mut self) {
        if let Some(waker) = self.receiver.take() {
            waker.wake();
        }
    }

    fn wake_later(&mut self, context: &Context<'_>) {
        if !self.receiver.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.receiver = Some(context.waker().clone());
        }
    }
}

impl<T, R> Clone for QueueSender<T, R> {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T, R> Drop for QueueSender<T, R> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.senders -= 1;
        if state.senders == 0 {
            state.wake();
        }
    }
}

impl<T, R> Drop for QueueReceiver<T, R> {
    fn drop(&mut self) {
        self.0.close();
        // They may hold what other threads wait for.
        let items = std::mem::take(&mut self.0.state().items);
        drop(items);
    }
}

/// Wakes a thread that has parked itself.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::yield_now;

    fn bounds(items: usize, bytes: usize) -> QueueBounds {
        QueueBounds { items, bytes }
    }

    #[tokio::test]
    async fn items_and_bytes_count_until_they_are_released() {
        let (sender, mut receiver) = queue::<_, ()>(bounds(3, 10));
        assert_eq!((sender.try_send('a', 6), sender.try_send('b', 4)), (Ok(()), Ok(())));
        assert_eq!(sender.try_send('c', 1), Err(('c', QueueError::Bytes)));
        assert_eq!((sender.try_send('c', 0), sender.bytes()), (Ok(()), 10));
        assert_eq!(sender.try_send('d', 0), Err(('d', QueueError::Items)));
        assert_eq!((receiver.recv().await, receiver.try_recv()), (Ok('a'), Some('b')));
        assert_eq!(sender.try_send('d', 0), Err(('d', QueueError::Items)), "none is released");
        receiver.release(1, 6);
        assert_eq!((sender.bytes(), sender.try_send('d', 7)), (4, Err(('d', QueueError::Bytes))));
        assert_eq!(sender.try_send('d', 6), Ok(()));
    }

    #[tokio::test]
    async fn who_waits_for_room_is_served_in_order_and_one_that_is_too_large_takes_all() {
        let (sender, mut receiver) = queue::<_, ()>(bounds(9, 10));
        assert_eq!(sender.try_send(0, 1), Ok(()));
        let waiting = [(1, 99), (2, 1)].map(|(item, bytes)| {
            let sender = sender.clone();
            tokio::spawn(async move { sender.send(item, bytes).await })
        });
        yield_now().await;
        for (item, bytes) in [(0, 1), (1, 99), (2, 1)] {
            assert_eq!(receiver.recv().await, Ok(item));
            assert_eq!(receiver.try_recv(), None);
            receiver.release(1, bytes);
        }
        for sent in waiting {
            assert!(sent.await.unwrap());
        }
        assert_eq!(sender.bytes(), 0);
    }

    #[tokio::test]
    async fn an_end_comes_after_what_is_queued_and_an_abort_before() {
        let (sender, mut receiver) = queue(bounds(9, 9));
        sender.try_send('a', 1).unwrap();
        sender.finish("over");
        let mut out = VecDeque::new();
        assert_eq!((receiver.recv_all(&mut out).await, out), (Ok(()), VecDeque::from(['a'])));
        assert_eq!(receiver.recv().await, Err(Some("over")));
        let (sender, mut receiver) = queue(bounds(9, 9));
        sender.try_send('a', 1).unwrap();
        sender.abort("full");
        sender.finish("over");
        receiver.aborted().await;
        assert_eq!(receiver.recv().await, Err(Some("full")));
    }

    #[tokio::test]
    async fn each_end_learns_that_the_other_is_gone() {
        let (sender, mut receiver) = queue::<_, ()>(bounds(9, 9));
        let other = sender.clone();
        drop(sender);
        other.try_send('a', 2).unwrap();
        drop(other);
        assert_eq!((receiver.recv().await, receiver.recv().await), (Ok('a'), Err(None)));
        let (sender, receiver) = queue::<_, ()>(bounds(1, 9));
        sender.try_send('a', 2).unwrap();
        let waiting = tokio::spawn({
            let sender = sender.clone();
            async move { sender.send('b', 1).await }
        });
        yield_now().await;
        assert_eq!(receiver.close(), 3, "the bytes of who waits for an item's capacity too");
        drop(receiver);
        assert!(!waiting.await.unwrap());
        assert_eq!(sender.try_send('c', 0), Err(('c', QueueError::Closed)));
    }

    #[test]
    fn a_thread_waits_for_what_another_sends() {
        let (sender, mut receiver) = queue::<_, ()>(bounds(1, 1));
        let sending = thread::spawn(move || {
            for item in 0..1000 {
                while sender.try_send(item, 1).is_err() {
                    thread::yield_now();
                }
            }
        });
        for item in 0..1000 {
            assert_eq!(receiver.blocking_recv(), Ok(item));
            receiver.release(1, 1);
        }
        sending.join().unwrap();
        assert_eq!(receiver.blocking_recv(), Err(None));
    }
}
