//! Friends: nodes that keep mail for this one while it is offline, and the mail that this one keeps for others (S3-9 to S3-13, S3-27).
//!
//! A friend keeps ciphertext only. It keeps mail for an owner whose current record has a certificate that both have signed, within the quotas,
//! until it expires or the owner has confirmed it.

use super::certificate::{FriendCertificate, agree, name_friend};
use super::machine::{Mesh, mesh_time};
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::output::MeshEvent;
use super::record::MAX_FRIENDS;
use super::sealed::{Content, MessageId, open};
use crate::clock::Now;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Most messages and bytes that are kept for one owner, of one sender for one owner, and in total.
pub(super) const MAX_OF_OWNER: usize = 256;
pub(super) const MAX_BYTES_OF_OWNER: usize = 2 << 20;
pub(super) const MAX_OF_SENDER: usize = 64;
pub(super) const MAX_BYTES: usize = 32 << 20;
/// Most messages that are sent before the owner confirms.
const BATCH: usize = 16;
/// How long a friend agrees for.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);
/// Most requests of owners that the user has not answered, and of this node that friends have not.
const MAX_REQUESTS: usize = 32;

/// A message that is kept for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) owner: NodeId,
    pub(super) sender: NodeId,
    pub(super) id: MessageId,
    pub(super) expires: MeshTime,
    /// Sealed for the owner.
    pub(super) sealed: Vec<u8>,
}

/// Where mail is kept. The rules are in this module; a store only stores.
pub(super) trait FriendStore: fmt::Debug + Send {
    /// Stores a message; `false` if that failed. One with the same owner, sender and id is replaced.
    fn insert(&mut self, message: Kept) -> bool;
    /// Returns the oldest messages of an owner.
    fn of_owner(&self, owner: NodeId, most: usize) -> Vec<Kept>;
    /// Removes the messages of an owner with this id.
    fn remove(&mut self, owner: NodeId, id: MessageId);
    fn expire(&mut self, now: MeshTime);
    /// Returns the messages of an owner, their bytes, and those of them that are of this sender.
    fn usage(&self, owner: NodeId, sender: NodeId) -> [usize; 3];
    /// Returns the bytes of all messages.
    fn bytes(&self) -> usize;
}

/// A store in memory.
#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    number: u64,
    messages: BTreeMap<(NodeId, u64), Kept>,
}

impl FriendStore for MemoryStore {
    fn insert(&mut self, message: Kept) -> bool {
        self.number += 1;
        let same = |kept: &Kept| kept.sender == message.sender && kept.id == message.id;
        let known = self.range(message.owner).find(|(_, kept)| same(kept)).map(|(key, _)| *key);
        self.messages.insert(known.unwrap_or((message.owner, self.number)), message);
        true
    }

    fn of_owner(&self, owner: NodeId, most: usize) -> Vec<Kept> {
        self.range(owner).take(most).map(|(_, kept)| kept.clone()).collect()
    }

    fn remove(&mut self, owner: NodeId, id: MessageId) {
        self.messages.retain(|_, kept| kept.owner != owner || kept.id != id);
    }

    fn expire(&mut self, now: MeshTime) {
        self.messages.retain(|_, kept| kept.expires > now);
    }

    fn usage(&self, owner: NodeId, sender: NodeId) -> [usize; 3] {
        let mut usage = [0; 3];
        for (_, kept) in self.range(owner) {
            usage[0] += 1;
            usage[1] += kept.sealed.len();
            usage[2] += usize::from(kept.sender == sender);
        }
        usage
    }

    fn bytes(&self) -> usize {
        self.messages.values().map(|kept| kept.sealed.len()).sum()
    }
}

impl MemoryStore {
    fn range(&self, owner: NodeId) -> impl Iterator<Item = (&(NodeId, u64), &Kept)> {
        self.messages.range((owner, 0)..=(owner, u64::MAX))
    }
}

/// Requests without an answer.
#[derive(Debug, Default)]
pub(super) struct FriendRequests {
    /// Of owners: key, end, signature.
    received: BTreeMap<NodeId, ([u8; 32], MeshTime, [u8; 64])>,
    /// Of this node.
    sent: BTreeMap<NodeId, (MeshTime, [u8; 64])>,
}

impl FriendRequests {
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.received.len(), self.sent.len()]
    }
}

impl Mesh {
    /// Asks a node to keep mail for this one until `until` (S3-9).
    pub(super) fn add_friend(&mut self, now: Now, friend: NodeId, until: MeshTime) {
        let signature = name_friend(&self.keys, friend, until);
        if self.requests.sent.len() >= MAX_REQUESTS && !self.requests.sent.contains_key(&friend) {
            self.counters.overflow += 1;
            return;
        }
        self.requests.sent.insert(friend, (until, signature));
        self.send_sealed(now, friend, &Content::NameFriend { until, signature });
    }

    pub(super) fn remove_friend(&mut self, friend: NodeId) {
        self.change_record(|record| record.friends.retain(|certificate| certificate.friend() != friend));
    }

    pub(super) fn on_named(&mut self, now: Now, owner_key: [u8; 32], until: MeshTime, signature: [u8; 64]) {
        let owner = NodeId::of(&owner_key);
        let time = mesh_time(now);
        let has_room = self.requests.received.len() < MAX_REQUESTS;
        if !has_room || until <= time || until > time.after(LONGEST) {
            self.counters.overflow += 1;
            return;
        }
        self.requests.received.insert(owner, (owner_key, until, signature));
        self.report(MeshEvent::FriendRequested { owner });
    }

    /// Agrees to keep mail for an owner that has asked for it (S3-10).
    pub(super) fn agree_friend(&mut self, now: Now, owner: NodeId) {
        let Some((owner_key, until, named)) = self.requests.received.remove(&owner) else { return };
        if let Some(signature) = agree(&self.keys, &owner_key, until, &named) {
            self.send_sealed(now, owner, &Content::AgreeFriend { until, signature });
        }
    }

    pub(super) fn on_agreed(&mut self, friend_key: [u8; 32], until: MeshTime, agreed: [u8; 64]) {
        let friend = NodeId::of(&friend_key);
        let Some((asked, named)) = self.requests.sent.remove(&friend).filter(|(asked, _)| *asked == until)
        else {
            return;
        };
        let own_key = self.keys.public().signing;
        let Some(certificate) = FriendCertificate::new(&own_key, friend_key, asked, [named, agreed]) else {
            return;
        };
        let mut is_full = false;
        self.change_record(|record| {
            record.friends.retain(|known| known.friend() != friend);
            is_full = record.friends.len() >= MAX_FRIENDS;
            if !is_full {
                record.friends.push(certificate);
            }
        });
        if is_full {
            self.counters.overflow += 1;
        } else {
            self.report(MeshEvent::FriendAgreed { friend });
        }
    }

    /// Returns whether the owner's record shows that both have agreed.
    fn is_friend_of(&self, now: Now, owner: NodeId) -> bool {
        let time = mesh_time(now);
        let own = self.keys.public().signing;
        self.map.record(owner).is_some_and(|record| {
            record.friends.iter().any(|friend| friend.friend_key == own && time < friend.until)
        })
    }

    /// A sender wants a message kept.
    pub(super) fn on_keep(&mut self, now: Now, from: NodeId, message: Kept) {
        let (owner, id) = (message.owner, message.id);
        let time = mesh_time(now);
        let [messages, bytes, of_sender] = self.store.usage(owner, from);
        let is_within = messages < MAX_OF_OWNER
            && bytes + message.sealed.len() <= MAX_BYTES_OF_OWNER
            && of_sender < MAX_OF_SENDER
            && self.store.bytes() + message.sealed.len() <= MAX_BYTES;
        let is_in_time = message.expires > time && message.expires <= time.after(LONGEST);
        if !is_within {
            self.counters.overflow += 1;
        }
        let is_stored =
            is_within && is_in_time && self.is_friend_of(now, owner) && self.store.insert(message);
        self.send_sealed(now, from, &Content::Kept { owner, id, is_stored });
        if is_stored && self.map.get(owner).is_some_and(|entry| entry.is_active) {
            self.send_mail(now, owner);
        }
    }

    /// Sends an owner what is kept for it; what it does not confirm is kept.
    pub(super) fn send_mail(&mut self, now: Now, owner: NodeId) {
        for Kept { id, sealed, .. } in self.store.of_owner(owner, BATCH) {
            self.send_sealed(now, owner, &Content::Mail { id, sealed });
        }
    }

    /// Mail that a friend has kept. Whether it is a message, and of whom, its seal says.
    pub(super) fn on_mail(&mut self, now: Now, friend: NodeId, id: MessageId, sealed: &[u8]) {
        if !self.own.friends.iter().any(|certificate| certificate.friend() == friend) {
            self.counters.unsealed += 1;
            return;
        }
        match open(sealed, &self.keys) {
            Some(opened) => {
                if let Content::Message { id, expires, body } = opened.content {
                    if self.map.record(opened.from).is_none() {
                        self.look_up(now, opened.from);
                    }
                    let before = self.counters.overflow;
                    self.on_message(now, opened.from, id, expires, body);
                    if self.counters.overflow > before {
                        return;
                    }
                }
            }
            None => self.counters.unsealed += 1,
        }
        self.send_sealed(now, friend, &Content::Taken { id });
    }

    /// The owner has a message; the next ones follow when the last of a batch is confirmed.
    pub(super) fn on_taken(&mut self, now: Now, owner: NodeId, id: MessageId) {
        let before = self.store.usage(owner, owner)[0];
        self.store.remove(owner, id);
        let after = self.store.usage(owner, owner)[0];
        if after < before && after > 0 && after.is_multiple_of(BATCH) {
            self.send_mail(now, owner);
        }
    }
}
