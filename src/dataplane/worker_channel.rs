//! Packets from clients of one worker to clients of another.
//!
//! A batch has one buffer of payloads and a list of packets. Its worker fills it during one iteration and pushes it to the other worker's
//! bounded queue; it comes back empty. No packet needs an allocation.

use super::moved_clients::Inboxes;
use super::waker::WorkerWaker;
use crate::limits::Limit;
use crate::turn_server::{InternalPacket, InternalRoute, IpHeader};
use crossbeam_queue::ArrayQueue;
use std::ops::Range;
use std::sync::Arc;

/// Batches in the queue of one worker.
const WAITING: usize = 128;
/// Batches of one worker, in queues or on their way back: more than one slow worker can hold.
const BATCHES: usize = 256;
/// Most packets and bytes of a batch; the last packet may exceed the bytes.
const PACKETS: usize = 256;
const BYTES: usize = 64 * 1024;

/// One packet of a batch.
#[derive(Debug, Clone)]
pub(crate) struct BatchedPacket {
    pub(crate) route: InternalRoute,
    pub(crate) ip_header: IpHeader,
    /// Where its payload lies in the batch.
    pub(crate) payload: Range<usize>,
}

/// Packets from one worker to another.
#[derive(Debug)]
pub(crate) struct PacketBatch {
    /// The worker that filled it, and gets it back.
    sender: u16,
    pub(crate) bytes: Vec<u8>,
    pub(crate) packets: Vec<BatchedPacket>,
}

impl PacketBatch {
    fn add(&mut self, packet: &InternalPacket, payload: &[u8]) {
        let InternalPacket { route, ip_header, .. } = *packet;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        self.packets.push(BatchedPacket { route, ip_header, payload: start..self.bytes.len() });
    }

    fn is_full(&self) -> bool {
        self.packets.len() >= PACKETS || self.bytes.len() >= BYTES
    }

    fn cleared(mut self) -> Self {
        self.bytes.clear();
        self.packets.clear();
        self
    }
}

/// A worker's queues of batches.
#[derive(Debug)]
pub(crate) struct BatchQueues {
    incoming: ArrayQueue<PacketBatch>,
    recycled: ArrayQueue<PacketBatch>,
    waker: Arc<WorkerWaker>,
}

impl BatchQueues {
    pub(crate) fn new(waker: Arc<WorkerWaker>) -> Self {
        Self { incoming: ArrayQueue::new(WAITING), recycled: ArrayQueue::new(BATCHES), waker }
    }

    /// Returns whether no batch is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.is_empty()
    }
}

/// One worker's sending side to all others, and its own queues.
#[derive(Debug)]
pub(crate) struct WorkerChannels {
    inboxes: Inboxes,
    own: u16,
    batch_queues: Arc<BatchQueues>,
    /// By worker.
    open_batches: Vec<Option<PacketBatch>>,
    /// Batches that exist, and those free for use.
    allocated: usize,
    free: Vec<PacketBatch>,
    /// Packets sent so far.
    sent: u64,
}

impl WorkerChannels {
    pub(crate) fn new(own: u16, batch_queues: Arc<BatchQueues>, inboxes: Inboxes) -> Self {
        Self { inboxes, own, batch_queues, open_batches: Vec::new(), allocated: 0, free: Vec::new(), sent: 0 }
    }

    /// Returns how many packets were sent to other workers so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns whether no batch is queued for this worker.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch_queues.is_empty()
    }

    /// Adds a packet; returns how many were dropped because the other worker is too slow.
    pub(crate) fn push(&mut self, packet: &InternalPacket, payload: &[u8]) -> usize {
        let worker = usize::from(packet.worker);
        if self.open_batches.len() <= worker {
            self.open_batches.resize_with(worker + 1, || None);
        }
        if self.open_batches[worker].is_none() {
            self.open_batches[worker] = self.free_batch();
        }
        let Some(batch) = &mut self.open_batches[worker] else {
            Limit::PacketsBetweenWorkers.reached(BATCHES * PACKETS);
            return 1;
        };
        batch.add(packet, payload);
        if batch.is_full() { self.send(worker) } else { 0 }
    }

    /// Sends all open batches; returns how many packets were dropped. Due at the end of every iteration.
    pub(crate) fn flush(&mut self) -> usize {
        (0..self.open_batches.len()).map(|worker| self.send(worker)).sum()
    }

    /// Takes the next batch from another worker.
    pub(crate) fn take_batch(&self) -> Option<PacketBatch> {
        self.batch_queues.incoming.pop()
    }

    /// Returns a batch to its sender.
    pub(crate) fn recycle(&self, batch: PacketBatch) {
        if let Some(inbox) = self.inboxes.get().and_then(|all| all.get(usize::from(batch.sender))) {
            // The queue has room for all batches of the sender.
            let _ = inbox.batch_queues().recycled.push(batch.cleared());
        }
    }

    fn free_batch(&mut self) -> Option<PacketBatch> {
        if let Some(batch) = self.free.pop().or_else(|| self.batch_queues.recycled.pop()) {
            return Some(batch);
        }
        (self.allocated < BATCHES).then(|| {
            self.allocated += 1;
            PacketBatch { sender: self.own, bytes: Vec::new(), packets: Vec::new() }
        })
    }

    fn send(&mut self, worker: usize) -> usize {
        let Some(batch) = self.open_batches[worker].take() else { return 0 };
        let count = batch.packets.len();
        let batch_queues = self.inboxes.get().and_then(|all| all.get(worker)).map(|to| to.batch_queues());
        let refused = match batch_queues {
            Some(batch_queues) => batch_queues.incoming.push(batch).err(),
            None => Some(batch),
        };
        if let Some(batch) = refused {
            self.free.push(batch.cleared());
            Limit::PacketsBetweenWorkers.reached(WAITING * PACKETS);
            return count;
        }
        self.sent += count as u64;
        batch_queues.map(|batch_queues| batch_queues.waker.wake());
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

    fn push(here: &mut WorkerChannels, payload: &[u8]) -> usize {
        let ip_header = IpHeader::default();
        here.push(
            &InternalPacket { worker: 1, route: route(), ip_header, payload: 0..payload.len() },
            payload,
        )
    }

    fn two() -> ([Poll; 2], [Inbox; 2], [WorkerChannels; 2]) {
        let polls = [0, 1].map(|_| Poll::new().unwrap());
        let inbox = |poll: &Poll| Inbox::new(mio::Waker::new(poll.registry(), Token(0)).unwrap()).0;
        let inboxes = [inbox(&polls[0]), inbox(&polls[1])];
        let all: Inboxes = Arc::new(OnceLock::from(Arc::<[Inbox]>::from(inboxes.clone())));
        let ends = [0, 1].map(|own| {
            WorkerChannels::new(own, Arc::clone(inboxes[usize::from(own)].batch_queues()), Arc::clone(&all))
        });
        (polls, inboxes, ends)
    }

    #[test]
    fn packets_arrive_in_order_and_the_batch_is_recycled() {
        let (_polls, _inboxes, [mut here, there]) = two();
        for round in 0..3 * BATCHES {
            for payload in [&b"one"[..], b"", b"three"] {
                assert_eq!(push(&mut here, payload), 0);
            }
            assert_eq!(here.flush(), 0);
            let batch = there.take_batch().unwrap();
            let payloads = batch.packets.iter().map(|packet| &batch.bytes[packet.payload.clone()]);
            assert_eq!(payloads.collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
            assert_eq!(batch.packets[0].route, route());
            assert!(there.take_batch().is_none());
            there.recycle(batch);
            assert_eq!((here.allocated, here.sent()), (1, 3 * (round as u64 + 1)));
        }
    }

    #[test]
    fn a_worker_that_does_not_keep_up_loses_packets_and_nothing_grows() {
        let (_polls, _inboxes, [mut here, there]) = two();
        let payload = [7; 1200];
        let packets = 100_000;
        let mut lost = 0;
        for _ in 0..packets {
            lost += push(&mut here, &payload);
        }
        lost += here.flush();
        let incoming: usize = std::iter::from_fn(|| there.take_batch())
            .map(|batch| {
                assert!(batch.bytes.len() < BYTES + payload.len());
                batch.packets.len()
            })
            .sum();
        assert_eq!((incoming + lost, here.allocated <= BATCHES), (packets, true));
        assert_eq!(incoming, WAITING * BYTES.div_ceil(payload.len()));
    }

    #[test]
    fn a_worker_that_sleeps_between_batches_misses_none() {
        const PACKETS_SENT: usize = 50_000;
        let ([_, mut poll], inboxes, [mut here, there]) = two();
        let waker = Arc::clone(inboxes[1].waker());
        let sender = std::thread::spawn(move || {
            let mut sent = 0_usize;
            while sent < PACKETS_SENT {
                let lost = push(&mut here, &sent.to_be_bytes()) + here.flush();
                sent += 1 - lost;
                if lost > 0 {
                    std::thread::yield_now();
                }
            }
            here.allocated
        });
        let (mut events, mut received) = (Events::with_capacity(4), 0_usize);
        while received < PACKETS_SENT {
            if waker.may_sleep(|| inboxes[1].batch_queues().is_empty()) {
                poll.poll(&mut events, Some(Duration::from_secs(60))).unwrap();
                assert!(!events.is_empty(), "slept through a batch");
                waker.set_awake();
            }
            while let Some(batch) = there.take_batch() {
                for packet in &batch.packets {
                    assert_eq!(batch.bytes[packet.payload.clone()], received.to_be_bytes());
                    received += 1;
                }
                there.recycle(batch);
            }
        }
        assert!(sender.join().unwrap() <= BATCHES);
    }
}
