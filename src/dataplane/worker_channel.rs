//! What clients of one worker send to clients of another: handed over in parcels, inside the server.
//!
//! A parcel is one arena of payloads and the list of what is in it. It is filled during one pass of its worker, waits in the
//! other one's bounded queue, and comes back empty; no packet costs an allocation.

use super::moved_clients::Inboxes;
use super::waker::Doorbell;
use crate::limits::Limit;
use crate::turn_server::machine::{InternalPacket, InternalRoute, IpHeader};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// Parcels that wait for one worker.
const WAITING: usize = 128;
/// Parcels of one worker, on their way or back: more than one worker that does not keep up can hold.
const PARCELS: usize = 256;
/// What a parcel holds: packets, and bytes (of which the last packet may go over).
const PACKETS: usize = 256;
const BYTES: usize = 64 * 1024;

/// One packet of a parcel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) route: InternalRoute,
    pub(crate) marks: IpHeader,
    /// Where its payload lies in the parcel.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Packets from one worker to another.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// The worker it comes from, and goes back to.
    sender: u16,
    pub(crate) bytes: Vec<u8>,
    pub(crate) packets: Vec<Packet>,
}

impl Parcel {
    fn add(&mut self, packet: &InternalPacket<'_>) {
        let InternalPacket { route, marks, payload, .. } = *packet;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        self.packets.push(Packet { route, marks, start, len: payload.len() });
    }

    fn is_full(&self) -> bool {
        self.packets.len() >= PACKETS || self.bytes.len() >= BYTES
    }

    fn emptied(mut self) -> Self {
        self.bytes.clear();
        self.packets.clear();
        self
    }
}

/// A worker's own two queues of parcels.
#[derive(Debug)]
pub(crate) struct Mailbox {
    arrived: ArrayQueue<Parcel>,
    returned: ArrayQueue<Parcel>,
    bell: Arc<Doorbell>,
}

impl Mailbox {
    pub(crate) fn new(bell: Arc<Doorbell>) -> Self {
        Self { arrived: ArrayQueue::new(WAITING), returned: ArrayQueue::new(PARCELS), bell }
    }

    /// Says whether no parcel waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.arrived.is_empty()
    }
}

/// One worker's end of the ways to all others.
#[derive(Debug)]
pub(crate) struct Crossing {
    inboxes: Inboxes,
    own: u16,
    mailbox: Arc<Mailbox>,
    /// By worker.
    filling: Vec<Option<Parcel>>,
    /// Parcels there are, and those at hand.
    made: usize,
    spare: Vec<Parcel>,
    /// Packets handed over so far.
    sent: u64,
}

impl Crossing {
    pub(crate) fn new(own: u16, mailbox: Arc<Mailbox>, inboxes: Inboxes) -> Self {
        Self { inboxes, own, mailbox, filling: Vec::new(), made: 0, spare: Vec::new(), sent: 0 }
    }

    /// Returns how many packets were handed over so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Says whether no parcel waits to be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.mailbox.is_empty()
    }

    /// Packs one packet; returns how many were lost because the other worker does not keep up.
    pub(crate) fn pack(&mut self, packet: &InternalPacket<'_>) -> usize {
        let worker = usize::from(packet.worker);
        if self.filling.len() <= worker {
            self.filling.resize_with(worker + 1, || None);
        }
        if self.filling[worker].is_none() {
            self.filling[worker] = self.empty();
        }
        let Some(parcel) = &mut self.filling[worker] else {
            Limit::PacketsBetweenWorkers.reached(PARCELS * PACKETS);
            return 1;
        };
        parcel.add(packet);
        if parcel.is_full() { self.send(worker) } else { 0 }
    }

    /// Hands over what was packed; returns how many packets were lost. Due at the end of every pass.
    pub(crate) fn flush(&mut self) -> usize {
        (0..self.filling.len()).map(|worker| self.send(worker)).sum()
    }

    /// Takes the next parcel that has arrived.
    pub(crate) fn take(&self) -> Option<Parcel> {
        self.mailbox.arrived.pop()
    }

    /// Gives a parcel back to its sender.
    pub(crate) fn give_back(&self, parcel: Parcel) {
        if let Some(inbox) = self.inboxes.get().and_then(|all| all.get(usize::from(parcel.sender))) {
            // There is room for all that the sender has ever made.
            let _ = inbox.mailbox().returned.push(parcel.emptied());
        }
    }

    fn empty(&mut self) -> Option<Parcel> {
        if let Some(parcel) = self.spare.pop().or_else(|| self.mailbox.returned.pop()) {
            return Some(parcel);
        }
        (self.made < PARCELS).then(|| {
            self.made += 1;
            Parcel { sender: self.own, bytes: Vec::new(), packets: Vec::new() }
        })
    }

    fn send(&mut self, worker: usize) -> usize {
        let Some(parcel) = self.filling[worker].take() else { return 0 };
        let count = parcel.packets.len();
        let mailbox = self.inboxes.get().and_then(|all| all.get(worker)).map(|to| to.mailbox());
        let refused = match mailbox {
            Some(mailbox) => mailbox.arrived.push(parcel).err(),
            None => Some(parcel),
        };
        if let Some(parcel) = refused {
            self.spare.push(parcel.emptied());
            Limit::PacketsBetweenWorkers.reached(WAITING * PACKETS);
            return count;
        }
        self.sent += count as u64;
        mailbox.map(|mailbox| mailbox.bell.ring());
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::Inbox;
    use super::*;
    use mio::{Events, Poll, Token};
    use std::sync::OnceLock;
    use std::time::Duration;

    const FROM: &str = "192.0.2.1:50000";
    const TO: &str = "192.0.2.1:50001";

    fn route() -> InternalRoute {
        InternalRoute { from: FROM.parse().unwrap(), to: TO.parse().unwrap(), relay: 7 }
    }

    fn across(payload: &[u8]) -> InternalPacket<'_> {
        InternalPacket { worker: 1, route: route(), marks: IpHeader::default(), payload }
    }

    fn two() -> ([Poll; 2], [Inbox; 2], [Crossing; 2]) {
        let polls = [0, 1].map(|_| Poll::new().unwrap());
        let inbox = |poll: &Poll| Inbox::new(mio::Waker::new(poll.registry(), Token(0)).unwrap()).0;
        let inboxes = [inbox(&polls[0]), inbox(&polls[1])];
        let all: Inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from(inboxes.clone())));
        let ends = [0, 1]
            .map(|own| Crossing::new(own, Arc::clone(inboxes[usize::from(own)].mailbox()), Arc::clone(&all)));
        (polls, inboxes, ends)
    }

    #[test]
    fn what_is_packed_arrives_in_order_and_the_parcel_comes_back() {
        let (_polls, _inboxes, [mut here, there]) = two();
        for round in 0..3 * PARCELS {
            for payload in [&b"one"[..], b"", b"three"] {
                assert_eq!(here.pack(&across(payload)), 0);
            }
            assert_eq!(here.flush(), 0);
            let parcel = there.take().unwrap();
            let payloads = parcel.packets.iter().map(|packet| &parcel.bytes[packet.start..][..packet.len]);
            assert_eq!(payloads.collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
            assert_eq!(parcel.packets[0].route, route());
            assert!(there.take().is_none());
            there.give_back(parcel);
            assert_eq!((here.made, here.sent()), (1, 3 * (round as u64 + 1)));
        }
    }

    #[test]
    fn a_worker_that_does_not_keep_up_loses_packets_and_nothing_grows() {
        let (_polls, _inboxes, [mut here, there]) = two();
        let payload = [7; 1200];
        let packets = 100_000;
        let mut lost = 0;
        for _ in 0..packets {
            lost += here.pack(&across(&payload));
        }
        lost += here.flush();
        let arrived: usize = std::iter::from_fn(|| there.take())
            .map(|parcel| {
                assert!(parcel.bytes.len() < BYTES + payload.len());
                parcel.packets.len()
            })
            .sum();
        assert_eq!((arrived + lost, here.made <= PARCELS), (packets, true));
        assert_eq!(arrived, WAITING * BYTES.div_ceil(payload.len()));
    }

    #[test]
    fn a_worker_that_sleeps_between_parcels_misses_none() {
        const PACKETS_SENT: usize = 50_000;
        let ([_, mut poll], inboxes, [mut here, there]) = two();
        let bell = Arc::clone(inboxes[1].bell());
        let sender = std::thread::spawn(move || {
            let mut sent = 0_usize;
            while sent < PACKETS_SENT {
                let lost = here.pack(&across(&sent.to_be_bytes())) + here.flush();
                sent += 1 - lost;
                if lost > 0 {
                    std::thread::yield_now();
                }
            }
            here.made
        });
        let (mut events, mut heard) = (Events::with_capacity(4), 0_usize);
        while heard < PACKETS_SENT {
            if bell.may_sleep(|| inboxes[1].mailbox().is_empty()) {
                poll.poll(&mut events, Some(Duration::from_secs(60))).unwrap();
                assert!(!events.is_empty(), "slept through a parcel");
                bell.awake();
            }
            while let Some(parcel) = there.take() {
                for packet in &parcel.packets {
                    assert_eq!(parcel.bytes[packet.start..][..packet.len], heard.to_be_bytes());
                    heard += 1;
                }
                there.give_back(parcel);
            }
        }
        assert!(sender.join().unwrap() <= PARCELS);
    }
}
