//! What a device remembers besides its keys. Pure.

use super::event::ReceiptState;
use super::keys::Fingerprint;
use super::known_peers::KnownPeers;
use super::party_name::PartyName;
use super::replay_window::{MessageRef, ReplayWindow};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Most receipts that are kept for other processes of the device.
const MAX_RECEIPTS: usize = 256;

/// The state of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) peers: KnownPeers,
    pub(super) replay_window: ReplayWindow,
    /// Absent before the first login.
    pub(super) mailbox: Option<MailboxCursor>,
    /// The last receipts.
    pub(super) receipts: VecDeque<ReceiptRecord>,
}

/// How far a mailbox was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MailboxCursor {
    /// Tells this mailbox from an earlier one.
    pub(super) epoch: u64,
    /// The user has seen everything up to this sequence number.
    pub(super) acknowledged: u64,
}

/// A receipt that was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReceiptRecord {
    pub(super) message_id: String,
    pub(super) state: ReceiptState,
}

/// A change of the state, which is durable before anything that follows from it leaves the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// An identity key was seen for the first time.
    Pinned { party: PartyName, fingerprint: Fingerprint },
    /// The user trusts an identity key, in place of the one before.
    Trusted { party: PartyName, fingerprint: Fingerprint },
    /// The server shows a mailbox that is new to this device.
    Mailbox { epoch: u64 },
    /// The user has seen messages.
    Acknowledged {
        epoch: u64,
        up_to: u64,
        messages: Vec<MessageRef>,
        receipts: Vec<ReceiptRecord>,
        now_ms: u64,
    },
}

/// Another process of the device has pinned another identity key in the meantime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PinConflict;

impl State {
    /// Applies a change. Another process of the device may have applied others before it.
    pub(super) fn apply(&mut self, change: &Change) -> Result<(), PinConflict> {
        match change {
            Change::Pinned { party, fingerprint } => {
                if self.peers.pinned(party).is_some_and(|pinned| pinned != *fingerprint) {
                    return Err(PinConflict);
                }
                self.peers.pin(party, *fingerprint);
            }
            Change::Trusted { party, fingerprint } => self.peers.pin(party, *fingerprint),
            Change::Mailbox { epoch } => {
                if self.mailbox.as_ref().is_none_or(|mailbox| mailbox.epoch != *epoch) {
                    self.mailbox = Some(MailboxCursor { epoch: *epoch, acknowledged: 0 });
                }
            }
            Change::Acknowledged { epoch, up_to, messages, receipts, now_ms } => {
                if let Some(mailbox) = self.mailbox.as_mut().filter(|mailbox| mailbox.epoch == *epoch) {
                    mailbox.acknowledged = mailbox.acknowledged.max(*up_to);
                }
                for message in messages {
                    self.replay_window.insert(message, *now_ms);
                }
                self.receipts.extend(receipts.iter().cloned());
                let surplus = self.receipts.len().saturating_sub(MAX_RECEIPTS);
                self.receipts.drain(..surplus);
            }
        }
        Ok(())
    }

    /// Returns how far the mailbox of this epoch was read.
    pub(super) fn acknowledged(&self, epoch: u64) -> u64 {
        let mailbox = self.mailbox.as_ref().filter(|mailbox| mailbox.epoch == epoch);
        mailbox.map_or(0, |mailbox| mailbox.acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(epoch: u64, up_to: u64) -> Change {
        let receipt = ReceiptRecord { message_id: format!("m{up_to}"), state: ReceiptState::Delivered };
        Change::Acknowledged { epoch, up_to, messages: Vec::new(), receipts: vec![receipt], now_ms: 0 }
    }

    #[test]
    fn a_cursor_belongs_to_an_epoch_and_never_moves_back() {
        let mut state = State::default();
        state.apply(&acknowledged(1, 3)).unwrap();
        assert_eq!(state.mailbox, None, "of no mailbox");
        state.apply(&Change::Mailbox { epoch: 1 }).unwrap();
        state.apply(&acknowledged(1, 5)).unwrap();
        state.apply(&acknowledged(1, 3)).unwrap();
        state.apply(&Change::Mailbox { epoch: 1 }).unwrap();
        assert_eq!((state.acknowledged(1), state.acknowledged(2)), (5, 0));
        state.apply(&Change::Mailbox { epoch: 2 }).unwrap();
        state.apply(&acknowledged(1, 9)).unwrap();
        assert_eq!((state.acknowledged(1), state.acknowledged(2)), (0, 0));
    }

    #[test]
    fn only_the_last_receipts_are_kept_and_the_state_is_read_back() {
        let mut state = State::default();
        for n in 0..MAX_RECEIPTS as u64 + 5 {
            state.apply(&acknowledged(1, n)).unwrap();
        }
        assert_eq!(state.receipts.len(), MAX_RECEIPTS);
        assert_eq!(state.receipts[0].message_id, "m5");
        let party: PartyName = "bob".parse().unwrap();
        state
            .apply(&Change::Pinned { party: party.clone(), fingerprint: Fingerprint::of(&[1; 32]) })
            .unwrap();
        let json = serde_json::to_string(&state).unwrap();
        let read: State = serde_json::from_str(&json).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.peers.pinned(&party), Some(Fingerprint::of(&[1; 32])));
    }
}
