//! How workers pass clients on to each other: one who has moved (RFC 8016) may arrive at another worker than his allocation's.

use super::inbox::{Inbox, ToWorker};
use crate::turn_server::{FiveTuple, Transport};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Clients passed on by one worker; beyond it a move to another worker is not answered.
const MAX_PASSED_ON: usize = 16_384;

/// Every worker's inbox, once all are there.
pub(super) type Inboxes = Arc<OnceLock<Arc<[Inbox]>>>;

/// One worker's view of the others.
#[derive(Debug)]
pub(super) struct Neighbours {
    inboxes: Inboxes,
    own: u16,
    /// Clients that arrive here and belong there.
    passed_on: HashMap<FiveTuple, u16>,
    /// Clients that belong here and can be answered there alone: streams and DTLS.
    guests: HashMap<FiveTuple, u16>,
}

impl Neighbours {
    pub(super) fn new(own: u16, inboxes: Inboxes) -> Self {
        Self { inboxes, own, passed_on: HashMap::new(), guests: HashMap::new() }
    }

    /// Hands a frame of a client who belongs elsewhere to his worker; `None` when he does not.
    pub(super) fn pass_on(&self, client: FiveTuple, bytes: &[u8]) -> Option<bool> {
        let worker = *self.passed_on.get(&client)?;
        let bytes = Bytes::copy_from_slice(bytes);
        Some(self.tell(worker, ToWorker::Guest { client, host: self.own, bytes }))
    }

    /// Hands this and every later frame of `client` to `worker`.
    pub(super) fn begin(&mut self, client: FiveTuple, worker: u16, bytes: &[u8]) -> bool {
        let room = self.passed_on.len() < MAX_PASSED_ON || self.passed_on.contains_key(&client);
        if room {
            self.passed_on.insert(client, worker);
        }
        room && self.pass_on(client, bytes) == Some(true)
    }

    /// Notes where a client who belongs here arrives.
    pub(super) fn welcome(&mut self, client: FiveTuple, host: u16) {
        if client.transport != Transport::Udp {
            self.guests.insert(client, host);
        }
    }

    /// Answers a client by the worker that he arrives at; `None` when he arrives here.
    pub(super) fn answer(&self, client: FiveTuple, bytes: &[u8]) -> Option<bool> {
        let host = *self.guests.get(&client)?;
        Some(self.tell(host, ToWorker::Back { client, bytes: Bytes::copy_from_slice(bytes) }))
    }

    /// Tells the others that a client has left his allocation.
    pub(super) fn announce_left(&mut self, client: FiveTuple) {
        self.guests.remove(&client);
        let all = self.inboxes.get().map_or(0, |inboxes| inboxes.len());
        for worker in (0..all as u16).filter(|worker| *worker != self.own) {
            self.tell(worker, ToWorker::Left { client });
        }
    }

    /// Forgets a client who has left his allocation.
    pub(super) fn forget(&mut self, client: FiveTuple) {
        self.passed_on.remove(&client);
    }

    /// Tells his worker that a client's connection has ended here.
    pub(super) fn gone(&mut self, client: FiveTuple) {
        if let Some(worker) = self.passed_on.remove(&client) {
            self.tell(worker, ToWorker::GuestGone { client });
        }
    }

    fn tell(&self, worker: u16, message: ToWorker) -> bool {
        let inbox = self.inboxes.get().and_then(|inboxes| inboxes.get(usize::from(worker)));
        inbox.is_some_and(|inbox| inbox.try_send(message))
    }
}
