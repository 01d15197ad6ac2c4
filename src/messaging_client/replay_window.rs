//! Which messages were received before. Pure.
//!
//! The server recognises a repeated message for 7 days and expires it after 30. A server that replays one is recognised by the window: it keeps
//! the ids of a sender's messages, and a floor for each sender. A message that was sent before the floor is refused, because its id may be
//! forgotten. The floor rises when ids are forgotten: after 40 days, and when the window is full. A full window forgets ids of the
//! sender with most of them, so that a sender who floods it harms itself only.

use data_encoding::BASE64URL_NOPAD;
use ring::digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most ids in the window.
const MAX_IDS: usize = 16_384;
/// How long ids are kept, in milliseconds: the 30 days of a mailbox, and clocks that differ.
const KEPT_MS: u64 = 40 * 24 * 3600 * 1000;

/// The messages that were received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplayWindow {
    senders: BTreeMap<String, Sender>,
    #[serde(default)]
    floor: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sender {
    /// Messages that were sent at this time or before are not recognised.
    #[serde(default)]
    floor: u64,
    /// When a message was sent, and the digest of its id.
    seen: BTreeSet<(u64, String)>,
}

/// A message in the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MessageRef {
    pub(super) from: String,
    pub(super) message_id: String,
    pub(super) sent_at: u64,
}

impl ReplayWindow {
    /// Returns whether a message was received before, or is so old that this is not known.
    pub(super) fn contains(&self, message: &MessageRef) -> bool {
        let sender = self.senders.get(&message.from);
        let floor = sender.map_or(0, |sender| sender.floor).max(self.floor);
        let is_old = message.sent_at <= floor && floor > 0;
        is_old || sender.is_some_and(|sender| sender.seen.contains(&entry(message)))
    }

    /// Remembers a message.
    pub(super) fn insert(&mut self, message: &MessageRef, now_ms: u64) {
        let sender = self.senders.entry(message.from.clone()).or_default();
        sender.seen.insert(entry(message));
        self.forget_old(now_ms);
        while self.len() > MAX_IDS {
            self.forget_one();
        }
    }

    fn len(&self) -> usize {
        self.senders.values().map(|sender| sender.seen.len()).sum()
    }

    fn forget_old(&mut self, now_ms: u64) {
        self.floor = self.floor.max(now_ms.saturating_sub(KEPT_MS));
        let floor = self.floor;
        self.senders.retain(|_, sender| {
            while sender.seen.first().is_some_and(|(sent_at, _)| *sent_at <= floor) {
                sender.seen.pop_first();
            }
            !sender.seen.is_empty() || sender.floor > floor
        });
    }

    fn forget_one(&mut self) {
        let largest = self.senders.values_mut().max_by_key(|sender| sender.seen.len());
        if let Some(sender) = largest
            && let Some((sent_at, _)) = sender.seen.pop_first()
        {
            sender.floor = sender.floor.max(sent_at);
        }
    }
}

fn entry(message: &MessageRef) -> (u64, String) {
    let digest = digest::digest(&digest::SHA256, message.message_id.as_bytes());
    (message.sent_at, BASE64URL_NOPAD.encode(&digest.as_ref()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn message(from: &str, id: &str, sent_at: u64) -> MessageRef {
        MessageRef { from: from.into(), message_id: id.into(), sent_at }
    }

    #[test]
    fn a_message_is_recognised_by_sender_and_id() {
        let mut window = ReplayWindow::default();
        let now = 100 * DAY;
        window.insert(&message("user:a", "1", now), now);
        assert!(window.contains(&message("user:a", "1", now)));
        assert!(!window.contains(&message("user:a", "2", now)));
        assert!(!window.contains(&message("user:b", "1", now)));
        let json = serde_json::to_string(&window).unwrap();
        assert_eq!(serde_json::from_str::<ReplayWindow>(&json).unwrap(), window);
    }

    #[test]
    fn what_is_forgotten_after_its_time_is_refused_as_too_old() {
        let mut window = ReplayWindow::default();
        let now = 100 * DAY;
        let old = message("user:a", "1", now);
        window.insert(&old, now);
        window.insert(&message("user:a", "2", now + 41 * DAY), now + 41 * DAY);
        assert_eq!(window.len(), 1);
        assert!(window.contains(&old));
        assert!(window.contains(&message("user:b", "never seen", now)));
        assert!(!window.contains(&message("user:b", "3", now + 2 * DAY)));
    }

    #[test]
    fn a_sender_who_fills_the_window_harms_itself_only() {
        let mut window = ReplayWindow::default();
        let now = 100 * DAY;
        let first = message("user:a", "1", now);
        window.insert(&first, now);
        for n in 0..MAX_IDS as u64 + 10 {
            // A sender may state any time.
            window.insert(&message("user:flood", &n.to_string(), now + n * DAY), now);
        }
        assert_eq!(window.len(), MAX_IDS);
        assert!(window.contains(&first), "still recognised");
        assert!(!window.contains(&message("user:a", "2", now)), "still accepted");
        assert!(window.contains(&message("user:flood", "0", now)), "too old");
        assert!(window.contains(&message("user:flood", "20", now + 20 * DAY)));
    }
}
