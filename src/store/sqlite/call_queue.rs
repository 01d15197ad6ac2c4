//! The queue between the callers and the threads of the database, bounded in bytes.

use crate::limits::Limit;
use crate::net::time;
use crate::store::StoreError;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most calls of a batch, and the most bytes that they are charged; the first call is in it whatever it is charged.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchSize {
    pub(super) calls: usize,
    pub(super) bytes: usize,
}

/// Calls that wait for a thread.
#[derive(Debug)]
pub(super) struct CallQueue<C> {
    state: Mutex<PendingCalls<C>>,
    changed: Condvar,
    max_bytes: usize,
}

#[derive(Debug)]
struct PendingCalls<C> {
    /// Each with the bytes that it is charged.
    calls: VecDeque<(C, usize)>,
    bytes: usize,
    /// How many calls must wait before a thread is woken.
    wake_at: usize,
    is_closed: bool,
}

impl<C> CallQueue<C> {
    pub(super) fn new(max_bytes: usize) -> Self {
        let state = PendingCalls { calls: VecDeque::new(), bytes: 0, wake_at: 1, is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, PendingCalls<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a call.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] if the queue is full; an empty queue accepts any call. [`StoreError::Closed`] after [`Self::close`].
    pub(super) fn push(&self, call: C, bytes: usize) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(StoreError::Closed);
        }
        if state.bytes + bytes > self.max_bytes && !state.calls.is_empty() {
            Limit::StoreQueue.reached(self.max_bytes);
            return Err(StoreError::Overloaded);
        }
        state.calls.push_back((call, bytes));
        state.bytes += bytes;
        let is_due = state.calls.len() >= state.wake_at;
        drop(state);
        if is_due {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Waits for the next call; `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<C> {
        let mut state = self.lock();
        loop {
            if let Some((call, bytes)) = state.calls.pop_front() {
                state.bytes -= bytes;
                return Some(call);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the next calls and moves as many to `batch` as `most` permits; returns false once the queue is closed and empty. After
    /// the first call it waits at most `patience` until `expected` are there. For one thread only.
    pub(super) fn pop_batch(
        &self,
        batch: &mut Vec<C>,
        most: BatchSize,
        expected: usize,
        patience: Duration,
    ) -> bool {
        let mut state = self.lock();
        while state.calls.is_empty() && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let expected = expected.min(most.calls);
        if state.calls.len() < expected && !state.is_closed {
            let deadline = time::mono() + patience;
            state.wake_at = expected;
            while state.calls.len() < expected && !state.is_closed {
                let left = deadline.saturating_duration_since(time::mono());
                if left.is_zero() {
                    break;
                }
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.wake_at = 1;
        }
        let mut bytes = 0;
        let mut is_within = |(index, (_, charged)): &(usize, &(C, usize))| {
            bytes += charged;
            *index == 0 || bytes <= most.bytes
        };
        let count = state.calls.iter().take(most.calls).enumerate().take_while(|it| is_within(it)).count();
        let mut charged = 0;
        batch.extend(state.calls.drain(..count).map(|(call, bytes)| {
            charged += bytes;
            call
        }));
        state.bytes -= charged;
        count > 0
    }

    /// Returns how many calls wait.
    pub(super) fn len(&self) -> usize {
        self.lock().calls.len()
    }

    /// Refuses further calls; threads take those that wait and then end.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    fn calls(calls: usize) -> BatchSize {
        BatchSize { calls, bytes: usize::MAX }
    }

    /// Longer than a test may take.
    const LONG: Duration = Duration::from_secs(1000);

    #[test]
    fn a_full_queue_refuses_until_calls_are_taken() {
        let queue = CallQueue::new(10);
        queue.push(1, 100).unwrap();
        assert!(matches!(queue.push(2, 1), Err(StoreError::Overloaded)));
        assert_eq!(queue.pop(), Some(1));
        queue.push(3, 4).unwrap();
        queue.push(4, 6).unwrap();
        assert!(matches!(queue.push(5, 1), Err(StoreError::Overloaded)));
        let mut batch = Vec::new();
        assert!(
            queue.pop_batch(&mut batch, calls(1), 9, LONG),
            "no more than the largest batch is waited for"
        );
        queue.push(6, 4).unwrap();
        assert!(queue.pop_batch(&mut batch, calls(9), 2, LONG));
        assert_eq!(batch, [3, 4, 6]);
    }

    #[test]
    fn a_batch_has_no_more_bytes_than_it_may_unless_one_call_has() {
        let queue = CallQueue::new(1000);
        [100, 4, 6, 1].iter().for_each(|bytes| queue.push(*bytes, *bytes).unwrap());
        let most = BatchSize { calls: 9, bytes: 10 };
        let mut taken = Vec::new();
        for _ in 0..3 {
            let mut batch = Vec::new();
            assert!(queue.pop_batch(&mut batch, most, 1, LONG));
            taken.push(batch);
        }
        assert_eq!(taken, [vec![100], vec![4, 6], vec![1]]);
    }

    #[test]
    fn a_closed_queue_refuses_and_is_emptied() {
        let queue = CallQueue::new(10);
        queue.push(1, 1).unwrap();
        queue.close();
        assert!(matches!(queue.push(2, 1), Err(StoreError::Closed)));
        let mut batch = Vec::new();
        assert!(queue.pop_batch(&mut batch, calls(9), 9, LONG), "a closed queue is not waited for");
        assert!(!queue.pop_batch(&mut batch, calls(9), 9, LONG));
        assert_eq!((batch, queue.pop()), (vec![1], None));
    }

    #[test]
    fn a_batch_waits_for_as_many_as_are_expected() {
        let queue = Arc::new(CallQueue::new(100));
        queue.push(0, 1).unwrap();
        let pushing = Arc::clone(&queue);
        let pusher = thread::spawn(move || (1..16).for_each(|call| pushing.push(call, 1).unwrap()));
        let mut batch = Vec::new();
        assert!(queue.pop_batch(&mut batch, calls(100), 16, LONG));
        pusher.join().unwrap();
        assert_eq!(batch, (0..16).collect::<Vec<_>>());
        queue.push(1, 1).unwrap();
        batch.clear();
        assert!(queue.pop_batch(&mut batch, calls(100), 16, Duration::ZERO));
        assert_eq!(batch, [1], "the wait ends");
    }
}
