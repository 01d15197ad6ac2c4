//! Who has sent what through which virtual connection, and what has come of it. Pure.
//!
//! Each virtual connection is two flows, up to the server and down to the client. Both ends are in this process, so that a
//! message's arrival makes room for the next one without a word on the wire.

use super::message::Stamp;
use crate::load::histogram::Histogram;
use std::collections::HashSet;

/// What is remembered of messages that others have overtaken.
const OVERTAKEN: usize = 65_536;
/// A prime, so that sizes alternate differently in each flow.
const STRIDE: u32 = 7;

/// One direction of one virtual connection.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// The next message's number, at the sender.
    next: u32,
    /// The same at the receiver.
    expected: u32,
    /// Bytes under way, heads not counted.
    unanswered: u32,
    /// Whether no more is sent.
    is_over: bool,
}

/// How much may be under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Of each flow, in bytes; one message may always be.
    pub(super) flow: u32,
    /// Of a flow whose receiver does not read.
    pub(super) deaf: u32,
    /// Of all others together.
    pub(super) all: u64,
    /// Messages that are begun in all.
    pub(super) messages: u64,
}

/// Why there is no next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// The flow has enough under way: until one of its messages has come.
    Flow,
    /// All have: until any has.
    All,
    /// There will be none.
    Over,
}

/// Counts of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// How many of those by clients.
    pub(super) received_down: u64,
    /// Never came, though the receiver reads.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) out_of_order: u64,
    /// Came by a virtual connection that they were not sent by, or to the wrong end.
    pub(super) misdelivered: u64,
    /// Came with other bytes.
    pub(super) damaged: u64,
    /// Of the sent ones: those to or from clients that do not read.
    pub(super) deaf_sent: u64,
}

/// What was measured of messages of one size.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) size: u32,
    pub(super) messages: u64,
    pub(super) latency: Histogram,
}

/// All flows.
#[derive(Debug)]
pub(super) struct Ledger {
    sizes: Vec<u32>,
    room: Room,
    flows: Vec<Flow>,
    /// One virtual connection's client in so many does not read.
    each: usize,
    deaf: usize,
    unanswered: u64,
    /// Virtual connections that are not closed.
    open: usize,
    overtaken: HashSet<(u32, u32)>,
    pub(super) counts: Counts,
    pub(super) measured: Option<Vec<Measured>>,
}

impl Ledger {
    /// Keeps `each` virtual connections of each of `clients`, of whom one in `deaf` does not read (0: all do).
    pub(super) fn new(sizes: Vec<u32>, room: Room, (clients, each): (usize, usize), deaf: usize) -> Self {
        Self {
            sizes,
            room,
            flows: vec![Flow::default(); 2 * clients * each],
            each,
            deaf,
            unanswered: 0,
            open: clients * each,
            overtaken: HashSet::new(),
            counts: Counts::default(),
            measured: None,
        }
    }

    /// Returns whether a client does not read.
    pub(super) fn is_deaf(&self, client: usize) -> bool {
        self.deaf > 0 && client % self.deaf == self.deaf - 1
    }

    fn is_excused(&self, flow: u32) -> bool {
        self.is_deaf(flow as usize / 2 / self.each)
    }

    /// Returns whether a flow's messages are not read.
    pub(super) fn is_unheard(&self, flow: u32) -> bool {
        flow % 2 == 1 && self.is_excused(flow)
    }

    /// Begins to measure.
    pub(super) fn measure(&mut self) {
        let of = |size: &u32| Measured { size: *size, ..Measured::default() };
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable();
        sizes.dedup();
        self.measured = Some(sizes.iter().map(of).collect());
    }

    /// Lets no more messages be begun.
    pub(super) fn end(&mut self) {
        self.room.messages = 0;
    }

    /// Returns whether no more are begun.
    pub(super) fn is_over(&self) -> bool {
        self.counts.sent >= self.room.messages || self.open == 0
    }

    /// Returns whether the whole room is taken.
    pub(super) fn is_full(&self) -> bool {
        self.unanswered >= self.room.all
    }

    /// Returns the bytes under way to those who read.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// Begins the next message of a flow; returns its number and length.
    pub(super) fn begin(&mut self, flow: u32) -> Result<(u32, u32), Wait> {
        let (is_unheard, is_excused) = (self.is_unheard(flow), self.is_excused(flow));
        let entry = &mut self.flows[flow as usize];
        if entry.is_over || self.counts.sent >= self.room.messages {
            return Err(Wait::Over);
        }
        let turn = entry.next.wrapping_add(flow.wrapping_mul(STRIDE)) as usize;
        let len = self.sizes[turn % self.sizes.len()];
        let window = if is_unheard { self.room.deaf } else { self.room.flow };
        if entry.unanswered > 0 && entry.unanswered + len > window {
            return Err(Wait::Flow);
        }
        if !is_unheard {
            if self.unanswered > 0 && self.unanswered + u64::from(len) > self.room.all {
                return Err(Wait::All);
            }
            self.unanswered += u64::from(len);
        }
        let number = entry.next;
        entry.next += 1;
        entry.unanswered += len;
        self.counts.sent += 1;
        self.counts.deaf_sent += u64::from(is_excused);
        Ok((number, len))
    }

    /// Takes note of a message that came by `flow` after `ns`.
    pub(super) fn arrived(&mut self, flow: u32, stamp: Option<Stamp>, (len, is_whole): (u32, bool), ns: u64) {
        let Some(stamp) = stamp.filter(|stamp| stamp.flow == flow) else {
            self.counts.misdelivered += 1;
            return;
        };
        self.counts.damaged += u64::from(!is_whole);
        let is_unheard = self.is_unheard(flow);
        let entry = &mut self.flows[flow as usize];
        if stamp.number < entry.expected {
            let was_overtaken = self.overtaken.remove(&(flow, stamp.number));
            self.counts.out_of_order += u64::from(was_overtaken);
            self.counts.doubled += u64::from(!was_overtaken);
            if !was_overtaken {
                return;
            }
        } else {
            let skipped = entry.expected..stamp.number;
            let room = OVERTAKEN.saturating_sub(self.overtaken.len());
            self.overtaken.extend(skipped.take(room).map(|number| (flow, number)));
            entry.expected = stamp.number + 1;
        }
        let answered = entry.unanswered.min(len);
        entry.unanswered -= answered;
        if !is_unheard {
            self.unanswered -= u64::from(answered);
        }
        self.counts.received += 1;
        self.counts.received_down += u64::from(flow % 2);
        if let Some(measured) = &mut self.measured
            && let Some(of) = measured.iter_mut().find(|of| of.size == len)
        {
            of.messages += 1;
            of.latency.record(ns.saturating_sub(stamp.at));
        }
    }

    /// Ends both flows of a virtual connection, once; what was under way does not come any more.
    pub(super) fn close(&mut self, virtual_connection: u32) {
        self.open -= 1;
        for flow in [2 * virtual_connection, 2 * virtual_connection + 1] {
            let is_unheard = self.is_unheard(flow);
            let entry = &mut self.flows[flow as usize];
            entry.is_over = true;
            if !is_unheard {
                self.unanswered -= u64::from(std::mem::take(&mut entry.unanswered));
            }
        }
    }

    /// Counts as lost what has not come to clients that read and to their servers.
    pub(super) fn settle(&mut self) {
        let missing = |(flow, entry): (usize, &Flow)| match self.is_excused(flow as u32) {
            true => 0,
            false => u64::from(entry.next - entry.expected),
        };
        self.counts.lost = self.flows.iter().enumerate().map(missing).sum::<u64>();
        self.counts.lost += self.overtaken.iter().filter(|(flow, _)| !self.is_excused(*flow)).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { flow: 1000, deaf: 3000, all: 2000, messages: 1000 };

    /// Three clients with two virtual connections each; the third is deaf.
    fn ledger(sizes: &[u32]) -> Ledger {
        Ledger::new(sizes.to_vec(), ROOM, (3, 2), 3)
    }

    fn arrive(ledger: &mut Ledger, flow: u32, number: u32, len: u32) {
        ledger.arrived(flow, Some(Stamp { flow, number, at: 5 }), (len, true), 1005);
    }

    #[test]
    fn a_flow_and_all_together_keep_to_their_room() {
        let mut ledger = ledger(&[600]);
        assert_eq!(ledger.begin(0), Ok((0, 600)));
        assert_eq!(ledger.begin(0), Err(Wait::Flow));
        assert_eq!((ledger.begin(1), ledger.begin(2)), (Ok((0, 600)), Ok((0, 600))));
        assert_eq!(ledger.begin(3), Err(Wait::All), "1800 of 2000 bytes are under way");
        assert_eq!(ledger.begin(9), Ok((0, 600)), "what is not read does not count");
        arrive(&mut ledger, 0, 0, 600);
        assert_eq!(ledger.begin(0), Ok((1, 600)));
        ledger.end();
        assert_eq!(ledger.begin(5), Err(Wait::Over));
    }

    #[test]
    fn one_message_goes_through_any_window() {
        let mut ledger = ledger(&[5000]);
        assert_eq!(ledger.begin(0), Ok((0, 5000)));
        assert_eq!(ledger.begin(2), Err(Wait::All));
        arrive(&mut ledger, 0, 0, 5000);
        assert_eq!(ledger.begin(2), Ok((0, 5000)));
    }

    #[test]
    fn lost_doubled_and_overtaken_messages_are_told_apart() {
        let mut ledger = ledger(&[20]);
        ledger.measure();
        for _ in 0..6 {
            ledger.begin(0).unwrap();
        }
        for number in [0, 0, 2, 1, 4] {
            arrive(&mut ledger, 0, number, 20);
        }
        ledger.arrived(2, Some(Stamp { flow: 0, number: 3, at: 5 }), (20, true), 9);
        ledger.arrived(2, None, (20, true), 9);
        ledger.settle();
        let Counts { sent, received, lost, doubled, out_of_order, misdelivered, .. } = ledger.counts;
        assert_eq!((sent, received, lost), (6, 4, 2), "3 and 5 have not come");
        assert_eq!((doubled, out_of_order, misdelivered), (1, 1, 2));
        assert_eq!(ledger.measured.unwrap()[0].messages, 4);
    }

    #[test]
    fn what_a_deaf_client_misses_is_not_lost_and_a_closed_connection_makes_room() {
        let mut ledger = ledger(&[1000]);
        assert!(ledger.is_deaf(2) && !ledger.is_deaf(1));
        for flow in [0, 8, 9, 9, 9] {
            ledger.begin(flow).unwrap();
        }
        assert_eq!(ledger.begin(9), Err(Wait::Flow));
        assert_eq!((ledger.is_full(), ledger.begin(2)), (true, Err(Wait::All)));
        ledger.close(4);
        assert_eq!(ledger.begin(8), Err(Wait::Over));
        assert!(ledger.begin(2).is_ok());
        ledger.settle();
        assert_eq!(ledger.counts.lost, 2, "of the flows 0 and 2");
    }

    #[test]
    fn sizes_take_turns() {
        let mut ledger = ledger(&[20, 300]);
        let lens: Vec<_> = (0..4).map(|_| ledger.begin(0).unwrap().1).collect();
        assert_eq!(lens, [20, 300, 20, 300]);
        assert_eq!(ledger.begin(3).unwrap().1, 300, "another flow begins with another size");
    }
}
