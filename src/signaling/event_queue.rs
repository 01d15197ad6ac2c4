//! What waits for a hub: bounded in events, and in bytes of what WebSockets have said.

use super::client_addr::ConnId;
use super::config::Limits;
use super::service::Event;
use crate::limits::Limit;
use std::sync::Arc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// The way to a hub.
#[derive(Debug)]
pub(super) struct EventQueue {
    events: mpsc::Sender<Event>,
    /// Bytes that are free.
    room: Arc<Semaphore>,
    bytes: u32,
}

/// A text and the room that it takes until it is dropped.
#[derive(Debug)]
pub(super) struct QueuedText {
    pub(super) text: String,
    _room: OwnedSemaphorePermit,
}

/// Why a text was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EnqueueError {
    /// There is no room at the moment.
    Full(String),
    /// The hub has ended.
    Over,
}

impl EventQueue {
    /// Makes a queue.
    pub(super) fn new(limits: &Limits) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(limits.inbox.max(1));
        let bytes = u32::try_from(limits.inbox_bytes.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        (Self { events, room: Arc::new(Semaphore::new(bytes as usize)), bytes }, receiver)
    }

    /// Queues what may be lost; `false` where it is.
    pub(super) fn try_send(&self, event: Event) -> bool {
        let sent = self.events.try_send(event);
        if matches!(sent, Err(TrySendError::Full(_))) {
            Limit::SignalingInbox.reached(self.events.max_capacity());
        }
        sent.is_ok()
    }

    /// Queues what must not be lost; `false` where the hub has ended.
    pub(super) async fn send(&self, event: Event) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// What a text takes; one that is longer than all the room takes all of it.
    fn cost(&self, text: &str) -> u32 {
        u32::try_from(text.len()).unwrap_or(u32::MAX).clamp(1, self.bytes)
    }

    /// Queues a text, if that can be done at once.
    pub(super) fn try_text(&self, conn: ConnId, text: String) -> Result<(), EnqueueError> {
        let place = match self.events.try_reserve() {
            Ok(place) => place,
            Err(TrySendError::Full(())) => {
                Limit::SignalingInbox.reached(self.events.max_capacity());
                return Err(EnqueueError::Full(text));
            }
            Err(TrySendError::Closed(())) => return Err(EnqueueError::Over),
        };
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(self.cost(&text)) else {
            Limit::SignalingInboxBytes.reached(self.bytes);
            return Err(EnqueueError::Full(text));
        };
        place.send(Event::Text { conn, text: QueuedText { text, _room: room } });
        Ok(())
    }

    /// Queues a text once there is room; `false` where the hub has ended.
    pub(super) async fn text(&self, conn: ConnId, text: String) -> bool {
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(self.cost(&text)).await else {
            return false;
        };
        self.send(Event::Text { conn, text: QueuedText { text, _room: room } }).await
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
        let later = queue.text(ConnId(1), "x".repeat(99));
        let take = async {
            while let Some(event) = events.recv().await {
                if matches!(&event, Event::Text { text, .. } if text.text.len() == 99) {
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
        assert_eq!(queue.try_text(ConnId(1), String::new()), Err(EnqueueError::Over));
        assert!(!queue.text(ConnId(1), String::new()).await);
    }
}
