//! A bounded queue of datagrams between QUIC and a task that sends them: over a stream, through the gateway, or by another ICE engine.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Capacity in datagrams.
const CAPACITY: usize = 64;
/// Capacity for messages that are not QUIC's; more are dropped.
const MESSAGES: usize = 128;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct DatagramQueue {
    queues: Mutex<Queues>,
    readable: Notify,
    writable: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    messages: VecDeque<Bytes>,
    datagrams: VecDeque<Bytes>,
}

impl DatagramQueue {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // The queues are consistent after every statement, so that a panic in another thread does no harm.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a datagram of QUIC; `false` if the queue is full.
    pub(super) fn push(&self, datagram: Bytes) -> bool {
        let mut queues = self.lock();
        let has_capacity = queues.datagrams.len() < CAPACITY;
        if has_capacity {
            queues.datagrams.push_back(datagram);
            drop(queues);
            self.readable.notify_one();
        }
        has_capacity
    }

    /// Adds a message that goes before the datagrams of QUIC. It is dropped if many wait.
    pub(super) fn push_message(&self, message: Bytes) {
        let mut queues = self.lock();
        if queues.messages.len() < MESSAGES {
            queues.messages.push_back(message);
            drop(queues);
            self.readable.notify_one();
        }
    }

    /// Waits for the next datagram or message.
    pub(super) async fn next(&self) -> Bytes {
        loop {
            let readable = self.readable.notified();
            let next = {
                let mut queues = self.lock();
                queues.messages.pop_front().or_else(|| queues.datagrams.pop_front())
            };
            if let Some(datagram) = next {
                self.writable.notify_waiters();
                return datagram;
            }
            readable.await;
        }
    }

    /// Waits for capacity.
    pub(super) async fn writable(&self) {
        loop {
            let mut writable = std::pin::pin!(self.writable.notified());
            writable.as_mut().enable();
            if self.lock().datagrams.len() < CAPACITY {
                return;
            }
            writable.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_is_bounded_and_messages_go_first() {
        let queue = DatagramQueue::default();
        let accepted = (0..=255).filter(|byte| queue.push(Bytes::from(vec![*byte]))).count();
        assert_eq!(accepted, CAPACITY);
        queue.push_message(Bytes::from_static(b"message"));
        assert_eq!(&queue.next().await[..], b"message");
        assert_eq!(queue.next().await[..], [0]);
        queue.writable().await;
        assert!(queue.push(Bytes::from_static(b"last")));
    }
}
