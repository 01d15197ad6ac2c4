//! Anti-entropy: two neighbours make their maps equal, and news travel to a few neighbours at a time (S3-4, S3-21).
//!
//! A comparison begins with Hello, which has a fingerprint of the map. Where it differs, the other side answers with its full digest, and the
//! first one sends and asks for what is missing. News are digests of the records that have just come. Both ask only for records that are
//! missing, and the limit of a frame is that of a stream, so no map is too large.

use super::digest::DigestEntry;
use super::frame::{Frame, MAX_FRAME, MAX_WANTED};
use super::links::Cost;
use super::machine::Mesh;
use super::map::CAPACITY;
use super::member::MemberId;
use super::node_id::NodeId;
use super::record::VerifiedRecord;
use crate::clock::Now;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two comparisons with random neighbours, and after the start or the first link.
const PERIOD: Duration = Duration::from_secs(180);
const EARLY: [Duration; 3] = [Duration::from_secs(3), Duration::from_secs(8), Duration::from_secs(25)];
/// How many neighbours get news, and how often each of them is sent.
const FAN_OUT: usize = 4;
const ROUNDS: u8 = 3;
/// Most news that wait, and most news of one frame.
const MAX_NEWS: usize = 2048;
const NEWS_OF_FRAME: usize = 500;
/// How long an answer is waited for before another neighbour is asked.
const ANSWER: Duration = Duration::from_secs(3);
/// Most records that are asked for and have not come.
const MAX_PENDING: usize = 4096;
/// How many records a full map asks for in one comparison.
const WANTED_BY_FULL_MAP: usize = 64;

/// The state of the exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    next: Instant,
    early: usize,
    news: BTreeMap<NodeId, u8>,
    pending: BTreeMap<u64, Instant>,
}

impl Exchange {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now + EARLY[0], early: 0, news: BTreeMap::new(), pending: BTreeMap::new() }
    }

    pub(super) fn add_news(&mut self, node: NodeId) {
        if self.news.len() < MAX_NEWS {
            self.news.insert(node, ROUNDS);
        }
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.news.remove(&node);
    }

    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.news.len(), self.pending.len()]
    }

    /// Begins again with frequent comparisons.
    fn hurry(&mut self, now: Instant) {
        self.early = 0;
        self.next = self.next.min(now + EARLY[0]);
    }
}

impl Mesh {
    /// Greets a neighbour: with the own record, and with Hello from one of both sides.
    pub(super) fn begin_exchange(&mut self, now: Now, node: NodeId) {
        let own = Arc::clone(&self.own);
        self.send_frame(node, &Frame::Records(vec![(true, own.bytes())]));
        if self.links.len() == 1 {
            self.exchange.hurry(now.mono);
        }
        if self.id() < node {
            self.hello(node);
        }
    }

    pub(super) fn send_own_record(&mut self) {
        let own = Arc::clone(&self.own);
        let nodes: Vec<_> = self.links.iter().map(|(id, _)| id).collect();
        for node in nodes {
            self.send_frame(node, &Frame::Records(vec![(true, own.bytes())]));
        }
    }

    fn hello(&mut self, node: NodeId) {
        let fingerprint = self.map.fingerprint(&self.own);
        self.send_frame(node, &Frame::Hello { fingerprint });
    }

    pub(super) fn tick_exchange(&mut self, now: Now) {
        self.exchange.pending.retain(|_, until| *until > now.mono);
        if now.mono >= self.exchange.next {
            let pause = EARLY.get(self.exchange.early + 1).copied().unwrap_or(PERIOD);
            self.exchange.early = (self.exchange.early + 1).min(EARLY.len());
            self.exchange.next = now.mono + pause.mul_f64(self.rng.random_range(0.7..1.3));
            for node in self.links.random(1, &mut self.rng) {
                self.hello(node);
            }
        }
        self.send_news();
    }

    fn send_news(&mut self) {
        if self.exchange.news.is_empty() || self.links.len() == 0 {
            return;
        }
        let chosen: Vec<_> = self.exchange.news.keys().take(NEWS_OF_FRAME).copied().collect();
        let mut entries = Vec::with_capacity(chosen.len());
        for node in chosen {
            entries.extend(self.entry(node));
            if let Some(left) = self.exchange.news.get_mut(&node) {
                *left -= 1;
                if *left == 0 {
                    self.exchange.news.remove(&node);
                }
            }
        }
        for to in self.links.random(FAN_OUT, &mut self.rng) {
            self.send_frame(to, &Frame::Digest { is_full: false, entries: entries.clone() });
        }
    }

    fn entry(&self, node: NodeId) -> Option<DigestEntry> {
        let (sequence, is_active) = match node == self.id() {
            true => (self.own.sequence, true),
            false => self.map.get(node).map(|entry| (entry.record.sequence, entry.is_active))?,
        };
        Some(DigestEntry { prefix: node.prefix(), sequence, is_active })
    }

    pub(super) fn on_hello(&mut self, now: Now, from: NodeId, fingerprint: [u8; 16]) {
        if fingerprint == self.map.fingerprint(&self.own) {
            return;
        }
        let entries = self.map.digest(&self.own);
        if self.links.admit(now.mono, from, Cost::Open, 1 + entries.len() / 16) {
            self.send_frame(from, &Frame::Digest { is_full: true, entries });
        }
    }

    pub(super) fn on_digest(&mut self, now: Now, from: NodeId, is_full: bool, entries: &[DigestEntry]) {
        let mut difference = self.map.difference(&self.own, entries, is_full);
        for node in difference.active {
            if self.map.get(node).is_some_and(|entry| !entry.is_active) {
                self.insert_alive(now, node);
            }
        }
        // News that are old here are not worth an answer.
        if is_full {
            self.send_records(now, from, &difference.send);
        }
        if self.map.len() >= CAPACITY {
            // Samples differ, and most of what is missing would not be kept.
            difference.want.truncate(WANTED_BY_FULL_MAP);
        }
        self.want(now, from, difference.want);
    }

    /// Asks a neighbour for records, unless another one was just asked.
    pub(super) fn want(&mut self, now: Now, from: NodeId, mut prefixes: Vec<u64>) {
        let pending = &mut self.exchange.pending;
        prefixes.retain(|prefix| {
            let is_free = pending.len() < MAX_PENDING && !pending.contains_key(prefix);
            if is_free {
                pending.insert(*prefix, now.mono + ANSWER);
            }
            is_free
        });
        for prefixes in prefixes.chunks(MAX_WANTED) {
            self.send_frame(from, &Frame::Want(prefixes.to_vec()));
        }
    }

    pub(super) fn on_want(&mut self, now: Now, from: NodeId, prefixes: &[u64]) {
        let own = self.id();
        let find = |prefix: &u64| match *prefix == own.prefix() {
            true => Some(own),
            false => self.map.by_prefix(*prefix).map(|(id, _)| id),
        };
        let nodes: Vec<_> = prefixes.iter().filter_map(find).collect();
        self.send_records(now, from, &nodes);
    }

    fn send_records(&mut self, now: Now, to: NodeId, nodes: &[NodeId]) {
        let mut records: Vec<(bool, Arc<VerifiedRecord>)> = Vec::new();
        let mut len = 0;
        for node in nodes {
            let entry = self.map.get(*node).map(|entry| (entry.is_active, Arc::clone(&entry.record)));
            let own = || (*node == self.id()).then(|| (true, Arc::clone(&self.own)));
            let Some(record) = entry.or_else(own) else { continue };
            if !self.links.admit(now.mono, to, Cost::Open, 1) {
                break;
            }
            if len + record.1.bytes().len() + 3 > MAX_FRAME - 1 {
                self.send_batch(to, &records);
                records.clear();
                len = 0;
            }
            len += record.1.bytes().len() + 3;
            records.push(record);
        }
        if !records.is_empty() {
            self.send_batch(to, &records);
        }
    }

    fn send_batch(&mut self, to: NodeId, records: &[(bool, Arc<VerifiedRecord>)]) {
        let records = records.iter().map(|(is_active, record)| (*is_active, record.bytes())).collect();
        self.send_frame(to, &Frame::Records(records));
    }

    pub(super) fn on_records(&mut self, now: Now, from: NodeId, records: &[(bool, &[u8])]) {
        let was_known = self.map.get(from).is_some();
        for (is_active, record) in records {
            if let Some(id) = self.take_record(now, from, record, *is_active) {
                self.exchange.pending.remove(&id.prefix());
            }
        }
        if let Some(epoch) = self.map.record(from).map(|record| record.epoch) {
            self.map.set_proven(from);
            if !was_known || self.map.get(from).is_some_and(|entry| !entry.is_active) {
                self.membership.announce(now.mono, MemberId { node: from, epoch });
            }
        }
    }
}
