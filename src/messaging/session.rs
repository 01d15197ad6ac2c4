//! What the machine knows of one connection. Pure.

use super::crypto::SessionKey;
use super::wire::Envelope;
use crate::store::{MailboxId, Party};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// A connection of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) ip: IpAddr,
    /// Whether devices without a key are accepted here (S4-A7).
    pub(super) is_legacy: bool,
    pub(super) key: Option<SessionKey>,
    pub(super) identity: Option<Box<Identity>>,
    /// Frames that wait until the one before is handled.
    pub(super) waiting: VecDeque<Received>,
    /// A frame waits for the store or for a job, and those behind it for the frame.
    pub(super) is_busy: bool,
    /// The client has not read what was sent to it.
    pub(super) is_congested: bool,
}

/// Who a connection has authenticated as.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) party: Party,
    pub(super) delivery: Delivery,
}

/// The position of a connection in its mailbox.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) mailbox: MailboxId,
    /// The last sequence number that was pushed, or skipped because the client must fetch it.
    pub(super) cursor: u64,
    /// A page is being read.
    pub(super) is_reading: bool,
    /// There may be messages after the cursor.
    pub(super) is_behind: bool,
    pub(super) unacknowledged: Unacknowledged,
}

/// The pushed messages that the client has not acknowledged: it names them without their sender.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    sequences: HashMap<String, VecDeque<u64>>,
    count: usize,
}

impl Unacknowledged {
    pub(super) fn insert(&mut self, message_id: &str, sequence: u64) {
        self.sequences.entry(message_id.to_owned()).or_default().push_back(sequence);
        self.count += 1;
    }

    /// Takes the oldest message of this id.
    pub(super) fn take(&mut self, message_id: &str) -> Option<u64> {
        let sequences = self.sequences.get_mut(message_id)?;
        let sequence = sequences.pop_front();
        if sequences.is_empty() {
            self.sequences.remove(message_id);
        }
        self.count -= usize::from(sequence.is_some());
        sequence
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// A frame that was received.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) envelope: Envelope,
    /// Length of the frame's data.
    pub(super) cost: usize,
}

/// Where the response to a frame goes, and what it repeats (S4-2).
#[derive(Debug)]
pub(super) struct ReplyTo {
    pub(super) connection: ConnectionId,
    pub(super) cmd: i32,
    pub(super) msg_id: String,
    pub(super) is_encrypt: bool,
    pub(super) cost: usize,
}

impl Session {
    pub(super) fn new(ip: IpAddr, is_legacy: bool) -> Self {
        Self {
            ip,
            is_legacy,
            key: None,
            identity: None,
            waiting: VecDeque::new(),
            is_busy: false,
            is_congested: false,
        }
    }

    pub(super) fn party(&self) -> Option<&Party> {
        self.identity.as_ref().map(|identity| &identity.party)
    }
}

impl Delivery {
    pub(super) fn new(mailbox: MailboxId, cursor: u64) -> Self {
        Self {
            mailbox,
            cursor,
            is_reading: false,
            is_behind: false,
            unacknowledged: Unacknowledged::default(),
        }
    }
}
