//! Wakes a worker thread; costs a system call only while the thread sleeps.

use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A worker's waker. Call [`WorkerWaker::wake`] after every push to one of its queues.
#[derive(Debug)]
pub(crate) struct WorkerWaker {
    waker: mio::Waker,
    asleep: AtomicBool,
}

impl WorkerWaker {
    /// Creates the waker of a worker that is awake.
    pub(crate) fn new(waker: mio::Waker) -> Self {
        Self { waker, asleep: AtomicBool::new(false) }
    }

    /// Wakes the worker if it sleeps or is about to; returns `false` when the system refuses.
    pub(crate) fn wake(&self) -> bool {
        // Either this thread sees that the worker sleeps, or the worker, which checks its queues after it has set the flag, sees what was
        // pushed before.
        fence(Ordering::SeqCst);
        let sleeps = self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed);
        !sleeps || self.waker.wake().is_ok()
    }

    /// Returns whether the worker may sleep: its queues are empty, and every later push wakes it.
    pub(crate) fn may_sleep(&self, is_idle: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = is_idle();
        if !idle {
            self.set_awake();
        }
        idle
    }

    /// Marks the worker as awake.
    pub(crate) fn set_awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_queue::ArrayQueue;
    use mio::{Events, Poll, Token};
    use std::sync::Arc;
    use std::time::Duration;

    /// A sleeper that is not woken would sleep for this long.
    const FOREVER: Duration = Duration::from_secs(60);

    #[test]
    fn a_sleeping_thread_is_woken_for_every_message() {
        const MESSAGES: u32 = 30_000;
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(WorkerWaker::new(mio::Waker::new(poll.registry(), Token(0)).unwrap()));
        let queue = Arc::new(ArrayQueue::new(4));
        let senders = [0, 1].map(|_| {
            let (waker, queue) = (Arc::clone(&waker), Arc::clone(&queue));
            std::thread::spawn(move || {
                for number in 0..MESSAGES {
                    while queue.push(number).is_err() {
                        std::thread::yield_now();
                    }
                    assert!(waker.wake());
                }
            })
        });
        let (mut events, mut received) = (Events::with_capacity(4), 0);
        while received < 2 * MESSAGES {
            if waker.may_sleep(|| queue.is_empty()) {
                poll.poll(&mut events, Some(FOREVER)).unwrap();
                assert!(!events.is_empty(), "slept through a message");
                waker.set_awake();
            }
            while queue.pop().is_some() {
                received += 1;
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(waker.wake());
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty(), "woken while set_awake");
    }
}
