//! The queue of events to the hub, bounded in events and in bytes of WebSocket texts.

use super::client_addr::ConnId;
use super::config::Limits;
use super::service::Event;
use crate::limits::{Limit, QueueBounds, QueueError, QueueReceiver, QueueSender, queue};

/// The sending end.
#[derive(Debug)]
pub(super) struct EventQueue(QueueSender<Event>);

/// Why a text was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EnqueueError {
    /// The queue is full.
    Full(String),
    /// The hub has ended.
    Closed,
}

impl EventQueue {
    /// Creates a queue. The receiver releases [`Event::bytes`] of each event that is handled.
    pub(super) fn new(limits: &Limits) -> (Self, QueueReceiver<Event>) {
        let (events, receiver) = queue(QueueBounds { items: limits.inbox, bytes: limits.inbox_bytes });
        (Self(events), receiver)
    }

    /// Queues an event that may be dropped; returns `false` if it was dropped.
    pub(super) fn try_send(&self, event: Event) -> bool {
        let bytes = event.bytes();
        self.0.try_send(event, bytes).inspect_err(|(_, error)| self.count(*error)).is_ok()
    }

    /// Queues an event that must not be dropped; returns `false` if the hub has ended.
    pub(super) async fn send(&self, event: Event) -> bool {
        let bytes = event.bytes();
        self.0.send(event, bytes).await
    }

    /// Queues a text if it fits now.
    pub(super) fn try_text(&self, conn: ConnId, text: String) -> Result<(), EnqueueError> {
        let bytes = text.len();
        match self.0.try_send(Event::Text { conn, text }, bytes) {
            Ok(()) => Ok(()),
            Err((Event::Text { text, .. }, error @ (QueueError::Items | QueueError::Bytes))) => {
                self.count(error);
                Err(EnqueueError::Full(text))
            }
            Err(_) => Err(EnqueueError::Closed),
        }
    }

    fn count(&self, error: QueueError) {
        let bounds = self.0.bounds();
        match error {
            QueueError::Items => Limit::SignalingInbox.reached(bounds.items),
            QueueError::Bytes => Limit::SignalingInboxBytes.reached(bounds.bytes),
            QueueError::Closed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn texts_wait_for_room_in_events_and_bytes_and_give_it_back() {
        let limits = Limits { inbox: 3, inbox_bytes: 10, ..Limits::default() };
        let (queue, mut events) = EventQueue::new(&limits);
        let text = |len: usize| queue.try_text(ConnId(1), "x".repeat(len));
        assert_eq!((text(6), text(4)), (Ok(()), Ok(())));
        assert_eq!(text(1), Err(EnqueueError::Full("x".to_owned())), "no bytes are left");
        assert!(queue.try_send(Event::Closed { conn: ConnId(2) }));
        let later = queue.send(Event::Text { conn: ConnId(1), text: "x".repeat(99) });
        let take = async {
            while let Ok(event) = events.recv().await {
                events.release(1, event.bytes());
                if event.bytes() == 99 {
                    return;
                }
            }
        };
        assert!(tokio::join!(later, take).0);
        for _ in 0..3 {
            assert_eq!(queue.try_text(ConnId(1), String::new()), Ok(()));
        }
        assert!(!queue.try_send(Event::Closed { conn: ConnId(2) }), "no events are left");
        drop(events);
        assert_eq!(queue.try_text(ConnId(1), String::new()), Err(EnqueueError::Closed));
        assert!(!queue.send(Event::Closed { conn: ConnId(1) }).await);
    }
}
