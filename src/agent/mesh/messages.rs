//! Messages: to the receiver, else to a friend of it, with two confirmations (S3-5 to S3-8, S3-16, S3-17, S3-23, S3-A5).
//!
//! ```text
//! Direct ── Delivered ────────────────────────────────────────────> done
//!    └ 3 s ─> Asking (a newer record?) ─> Direct again
//!                 └ 3 s ─> Friend 1, 2, … ── Stored ─> Stored ── Delivered ─> done
//!                              └ none ─> failed          └ expired ─> failed
//! ```
//!
//! A message that is stored is sent again when its receiver comes online, so that a friend that drops it costs time only. The receiver keeps the
//! ids of messages until they expire, and reports each message once, however often and by whomever it is sent.

use super::frame::{Frame, Payload};
use super::machine::{Mesh, mesh_time};
use super::mesh_time::MeshTime;
use super::node_id::NodeId;
use super::output::{Failure, MeshEvent, Online};
use super::sealed::{Content, MAX_BODY, MessageId, Opened, open, seal};
use crate::clock::Now;
use rand::RngCore;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Most messages that wait for a confirmation, and their bytes.
const MAX_OUTGOING: usize = 256;
const MAX_OUTGOING_BYTES: usize = 2 << 20;
/// Most ids of received messages: in total, and of one sender.
const MAX_SEEN: usize = 65_536;
const MAX_SEEN_OF_SENDER: usize = 4096;
/// Most pings without an answer.
const MAX_PINGS: usize = 256;
/// How long a message may be on its way.
const LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// Time limits: for an answer of the receiver or a friend, of other nodes, of a ping.
const ANSWER: Duration = Duration::from_secs(3);
const ASKING: Duration = Duration::from_secs(2);
const PING: Duration = Duration::from_secs(5);
/// Between two transmissions of a stored message.
const AGAIN: Duration = Duration::from_secs(10);

/// Why a message is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SendMessageError {
    #[error("the message is longer than {MAX_BODY} bytes")]
    TooLong,
    #[error("too many messages wait for a confirmation")]
    Full,
    #[error("the address is that of this node")]
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// How often it was sent.
    Direct(u8),
    Asking(u8),
    /// The friend with this number was asked to keep it.
    Friend(usize),
    Stored,
}

#[derive(Debug, Clone)]
struct Outgoing {
    to: NodeId,
    body: Vec<u8>,
    expires: MeshTime,
    stage: Stage,
    until: Instant,
    sent: Instant,
}

/// All messages and pings.
#[derive(Debug, Default)]
pub(super) struct Messages {
    outgoing: BTreeMap<MessageId, Outgoing>,
    seen: BTreeMap<(NodeId, MessageId), MeshTime>,
    pings: BTreeMap<u64, (NodeId, Instant)>,
}

impl Messages {
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.outgoing.len(), self.seen.len(), self.pings.len()]
    }

    /// Returns the ids of received messages, which the service keeps over a restart.
    pub(super) fn seen(&self) -> impl Iterator<Item = (NodeId, MessageId, MeshTime)> {
        self.seen.iter().map(|((from, id), expires)| (*from, *id, *expires))
    }

    pub(super) fn restore_seen(&mut self, from: NodeId, id: MessageId, expires: MeshTime) {
        if self.seen.len() < MAX_SEEN {
            self.seen.insert((from, id), expires);
        }
    }

    fn has_room_for(&self, from: NodeId) -> bool {
        let of_sender = self.seen.range((from, [0; 16])..=(from, [0xFF; 16])).count();
        self.seen.len() < MAX_SEEN && of_sender < MAX_SEEN_OF_SENDER
    }
}

impl Mesh {
    /// Sends a message (S3-19). Events tell what becomes of it.
    ///
    /// # Errors
    /// [`SendMessageError`] says why it is not sent.
    pub(super) fn send(&mut self, now: Now, to: NodeId, body: &[u8]) -> Result<MessageId, SendMessageError> {
        let bytes: usize = self.messages.outgoing.values().map(|message| message.body.len()).sum();
        if body.len() > MAX_BODY {
            return Err(SendMessageError::TooLong);
        }
        if self.messages.outgoing.len() >= MAX_OUTGOING || bytes + body.len() > MAX_OUTGOING_BYTES {
            return Err(SendMessageError::Full);
        }
        if to == self.id() {
            return Err(SendMessageError::Own);
        }
        let mut id = [0; 16];
        self.rng.fill_bytes(&mut id);
        let message = Outgoing {
            to,
            body: body.to_vec(),
            expires: mesh_time(now).after(LIFETIME),
            stage: Stage::Direct(1),
            until: now.mono + ANSWER,
            sent: now.mono,
        };
        self.messages.outgoing.insert(id, message);
        match self.map.record(to) {
            Some(_) => self.send_direct(now, id, 1),
            None => self.ask_for(now, id, 1),
        }
        Ok(id)
    }

    /// Asks a node whether it is online (S3-18). [`MeshEvent::IsOnline`] answers.
    pub(super) fn is_online(&mut self, now: Now, node: NodeId) {
        if self.messages.pings.len() >= MAX_PINGS {
            self.counters.overflow += 1;
            return self.report(MeshEvent::IsOnline { node, online: Online::Unknown });
        }
        let nonce = self.rng.next_u64();
        self.messages.pings.insert(nonce, (node, now.mono + PING));
        if self.map.record(node).is_none() {
            self.look_up(now, node);
        }
        self.send_sealed(now, node, &Content::Ping { nonce });
    }

    /// Seals a content for a node and sends it; nothing is sent to a node whose record is not known.
    pub(super) fn send_sealed(&mut self, now: Now, to: NodeId, content: &Content) {
        let Some(keys) = self.map.record(to).map(|record| record.keys) else {
            self.counters.undeliverable += 1;
            return;
        };
        let sealed = seal(content, mesh_time(now), &self.keys, &keys, &mut self.rng);
        if let Some(sealed) = sealed {
            self.route(now, to, Payload::Sealed(&sealed));
        }
    }

    pub(super) fn on_sealed(&mut self, now: Now, sealed: &[u8]) {
        let Some(opened) = open(sealed, &self.keys) else {
            self.counters.unsealed += 1;
            return;
        };
        let is_dated = matches!(opened.content, Content::Message { .. } | Content::Mail { .. });
        if !is_dated && !Self::is_fresh(now, opened.sent) {
            self.counters.unsealed += 1;
            return;
        }
        if self.map.record(opened.from).is_none() {
            // The answer needs the sender's keys; it will ask again.
            self.look_up(now, opened.from);
        }
        self.handle_content(now, opened);
    }

    fn handle_content(&mut self, now: Now, Opened { from, from_key, content, .. }: Opened) {
        match content {
            Content::Ping { nonce } => self.send_sealed(now, from, &Content::Pong { nonce }),
            Content::Pong { nonce } => self.on_pong(from, nonce),
            Content::Offer { attempt, relay, parameters } => {
                self.on_offer(now, from, attempt, relay, parameters);
            }
            Content::Answer { attempt, parameters } => self.on_answer(now, from, attempt, parameters),
            Content::Message { id, expires, body } => self.on_message(now, from, id, expires, body),
            Content::Delivered { id } => self.on_delivered(from, id),
            Content::Keep { owner, id, expires, sealed } => {
                self.on_keep(now, from, super::friends::Kept { owner, sender: from, id, expires, sealed });
            }
            Content::Kept { owner, id, is_stored } => self.on_kept(now, from, (owner, id), is_stored),
            Content::Collect => self.send_mail(now, from),
            Content::Mail { id, sealed } => self.on_mail(now, from, id, &sealed),
            Content::Taken { id } => self.on_taken(now, from, id),
            Content::NameFriend { until, signature } => self.on_named(now, from_key, until, signature),
            Content::AgreeFriend { until, signature } => self.on_agreed(from_key, until, signature),
            Content::CheckFilter { endpoint, transaction } => {
                self.on_check_filter(now, from, endpoint, transaction);
            }
        }
    }

    fn on_pong(&mut self, from: NodeId, nonce: u64) {
        if self.messages.pings.get(&nonce).is_some_and(|(node, _)| *node == from) {
            self.messages.pings.remove(&nonce);
            self.map.set_proven(from);
            self.report(MeshEvent::IsOnline { node: from, online: Online::Yes });
        }
    }

    /// A message has come, from its sender or from a friend: it is reported once, and confirmed each time.
    pub(super) fn on_message(
        &mut self,
        now: Now,
        from: NodeId,
        id: MessageId,
        expires: MeshTime,
        body: Vec<u8>,
    ) {
        let time = mesh_time(now);
        if expires <= time || expires > time.after(LIFETIME * 2) {
            self.counters.unsealed += 1;
            return;
        }
        if self.messages.seen.contains_key(&(from, id)) {
            self.counters.repeated += 1;
        } else if self.messages.has_room_for(from) {
            self.messages.seen.insert((from, id), expires);
            self.report(MeshEvent::Message { from, id, body });
        } else {
            // Without a confirmation the sender, or the friend, keeps it.
            self.counters.overflow += 1;
            return;
        }
        self.send_sealed(now, from, &Content::Delivered { id });
    }

    fn on_delivered(&mut self, from: NodeId, id: MessageId) {
        if self.messages.outgoing.get(&id).is_some_and(|message| message.to == from) {
            self.messages.outgoing.remove(&id);
            self.report(MeshEvent::Delivered { id });
        }
    }

    fn on_kept(&mut self, now: Now, friend: NodeId, (owner, id): (NodeId, MessageId), is_stored: bool) {
        let Some(message) = self.messages.outgoing.get_mut(&id).filter(|message| message.to == owner) else {
            return;
        };
        let Stage::Friend(number) = message.stage else { return };
        let is_friend = self.map.record(owner).is_some_and(|record| {
            record.friends.get(number).is_some_and(|certificate| certificate.friend() == friend)
        });
        if is_friend && is_stored {
            message.stage = Stage::Stored;
            self.report(MeshEvent::Stored { id, friend });
        } else if is_friend {
            self.ask_friend(now, id, number + 1);
        }
    }

    fn send_direct(&mut self, now: Now, id: MessageId, times: u8) {
        let Some(message) = self.messages.outgoing.get_mut(&id) else { return };
        if message.stage != Stage::Stored {
            message.stage = Stage::Direct(times);
            message.until = now.mono + ANSWER;
        }
        message.sent = now.mono;
        let content = Content::Message { id, expires: message.expires, body: message.body.clone() };
        let to = message.to;
        self.send_sealed(now, to, &content);
    }

    /// Asks neighbours, and nodes near the receiver, for a newer record of it.
    fn ask_for(&mut self, now: Now, id: MessageId, times: u8) {
        let Some(message) = self.messages.outgoing.get_mut(&id) else { return };
        message.stage = Stage::Asking(times);
        message.until = now.mono + ASKING;
        let to = message.to;
        self.look_up(now, to);
    }

    pub(super) fn look_up(&mut self, now: Now, node: NodeId) {
        for neighbour in self.links.random(3, &mut self.rng) {
            self.send_frame(neighbour, &Frame::Want(vec![node.prefix()]));
        }
        let sequence = self.map.record(node).map_or(0, |record| record.sequence);
        self.route(now, node, Payload::LookUp { sequence });
    }

    fn ask_friend(&mut self, now: Now, id: MessageId, number: usize) {
        let Some(message) = self.messages.outgoing.get_mut(&id) else { return };
        let owner = message.to;
        let Some(record) = self.map.record(owner).cloned() else {
            self.messages.outgoing.remove(&id);
            return self.report(MeshEvent::Failed { id, reason: Failure::NoRecord });
        };
        let time = mesh_time(now);
        let valid = record.friends.iter().enumerate().skip(number).find(|(_, friend)| time < friend.until);
        let Some((number, certificate)) = valid else {
            self.messages.outgoing.remove(&id);
            return self.report(MeshEvent::Failed { id, reason: Failure::Offline });
        };
        message.stage = Stage::Friend(number);
        message.until = now.mono + ANSWER;
        let expires = message.expires;
        let content = Content::Message { id, expires, body: message.body.clone() };
        if let Some(sealed) = seal(&content, time, &self.keys, &record.keys, &mut self.rng) {
            self.send_sealed(now, certificate.friend(), &Content::Keep { owner, id, expires, sealed });
        }
    }

    pub(super) fn tick_messages(&mut self, now: Now) {
        let time = mesh_time(now);
        let due = self.messages.outgoing.iter().filter(|(_, message)| {
            message.expires <= time || message.until <= now.mono && message.stage != Stage::Stored
        });
        let due: Vec<_> = due.map(|(id, message)| (*id, message.stage, message.expires <= time)).collect();
        for (id, stage, is_expired) in due {
            match stage {
                _ if is_expired => {
                    self.messages.outgoing.remove(&id);
                    self.report(MeshEvent::Failed { id, reason: Failure::Expired });
                }
                Stage::Direct(1) => self.ask_for(now, id, 1),
                Stage::Asking(times) => self.send_direct(now, id, times + 1),
                Stage::Direct(_) => self.ask_friend(now, id, 0),
                Stage::Friend(number) => self.ask_friend(now, id, number + 1),
                Stage::Stored => {}
            }
        }
        self.messages.seen.retain(|_, expires| *expires > time);
        let late: Vec<_> = self.messages.pings.iter().filter(|(_, (_, until))| *until <= now.mono).collect();
        let late: Vec<_> = late.into_iter().map(|(nonce, (node, _))| (*nonce, *node)).collect();
        for (nonce, node) in late {
            self.messages.pings.remove(&nonce);
            let is_down = self.map.get(node).is_some_and(|entry| !entry.is_active) && self.links.len() > 0;
            let online = if is_down { Online::No } else { Online::Unknown };
            self.report(MeshEvent::IsOnline { node, online });
        }
        self.store.expire(time);
    }

    /// A newer record of a node has come: what waits for its address is sent there.
    pub(super) fn on_newer_record(&mut self, now: Now, node: NodeId) {
        let waiting = self.messages.outgoing.iter().filter(|(_, message)| message.to == node);
        let waiting: Vec<_> = waiting.map(|(id, message)| (*id, message.stage)).collect();
        for (id, stage) in waiting {
            if let Stage::Asking(times) = stage {
                self.send_direct(now, id, times + 1);
            }
        }
    }

    /// A node has come online: it gets what is stored for it elsewhere, and what is kept here.
    pub(super) fn on_online(&mut self, now: Now, node: NodeId) {
        let stored = self.messages.outgoing.iter().filter(|(_, message)| {
            let is_due = now.mono.saturating_duration_since(message.sent) >= AGAIN;
            message.to == node && message.stage == Stage::Stored && is_due
        });
        let stored: Vec<_> = stored.map(|(id, _)| *id).collect();
        stored.into_iter().for_each(|id| self.send_direct(now, id, 1));
        self.send_mail(now, node);
        if self.own.friends.iter().any(|friend| friend.friend() == node) {
            self.send_sealed(now, node, &Content::Collect);
        }
    }
}
