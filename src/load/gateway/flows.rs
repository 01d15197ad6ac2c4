//! The messages of each flow: sent, in flight, received, lost. Pure.
//!
//! Each virtual connection has two flows, up to the server and down to the client. Both ends are in this process, so that an arrival opens the
//! window without an acknowledgement.

use super::message::MessageStamp;
use crate::load::histogram::Histogram;
use std::collections::HashSet;

/// Overtaken messages that are remembered.
const MAX_OVERTAKEN: usize = 65_536;
/// A prime, so that sizes alternate differently in each flow.
const STRIDE: u32 = 7;

/// One direction of one virtual connection.
#[derive(Debug, Clone, Copy, Default)]
struct FlowState {
    /// The next message's number, at the sender.
    next: u32,
    /// The next number at the receiver.
    expected: u32,
    /// Bytes in flight, without headers.
    unanswered: u32,
    /// Whether it has ended.
    is_over: bool,
}

/// Limits of bytes in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlowLimits {
    /// Per flow, in bytes; one message may always be in flight.
    pub(super) flow: u32,
    /// Per flow whose receiver does not read.
    pub(super) non_reading: u32,
    /// In total over all other flows.
    pub(super) all: u64,
    /// Messages in total.
    pub(super) messages: u64,
}

/// Why no message may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    /// The flow's window is full.
    Flow,
    /// The total window is full.
    All,
    /// The flow has ended.
    Over,
}

/// Counts of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MessageCounts {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Received by clients.
    pub(super) received_down: u64,
    /// Not received by a reading receiver.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) out_of_order: u64,
    /// Received on another virtual connection or at the wrong end.
    pub(super) misdelivered: u64,
    /// Received with other bytes.
    pub(super) damaged: u64,
    /// Sent to or from clients that do not read.
    pub(super) non_reading_sent: u64,
}

/// The measurement of messages of one size.
#[derive(Debug, Clone, Default)]
pub(super) struct SizeMeasurement {
    pub(super) size: u32,
    pub(super) messages: u64,
    pub(super) latency: Histogram,
}

/// All flows.
#[derive(Debug)]
pub(super) struct FlowTable {
    sizes: Vec<u32>,
    limits: FlowLimits,
    entries: Vec<FlowState>,
    /// Virtual connections per client, and the period of clients that do not read.
    each: usize,
    non_reading: usize,
    unanswered: u64,
    /// Open virtual connections.
    open: usize,
    overtaken: HashSet<(u32, u32)>,
    pub(super) counts: MessageCounts,
    pub(super) measured: Option<Vec<SizeMeasurement>>,
}

impl FlowTable {
    /// Creates the flows of `clients` with `each` virtual connections. One client in `non_reading` does not read (0: all do).
    pub(super) fn new(
        sizes: Vec<u32>,
        limits: FlowLimits,
        (clients, each): (usize, usize),
        non_reading: usize,
    ) -> Self {
        Self {
            sizes,
            limits,
            entries: vec![FlowState::default(); 2 * clients * each],
            each,
            non_reading,
            unanswered: 0,
            open: clients * each,
            overtaken: HashSet::new(),
            counts: MessageCounts::default(),
            measured: None,
        }
    }

    /// Returns whether a client does not read.
    pub(super) fn is_non_reading(&self, client: usize) -> bool {
        self.non_reading > 0 && client % self.non_reading == self.non_reading - 1
    }

    fn involves_non_reader(&self, flow: u32) -> bool {
        self.is_non_reading(flow as usize / 2 / self.each)
    }

    /// Returns whether a flow's messages are not read.
    pub(super) fn is_to_non_reader(&self, flow: u32) -> bool {
        flow % 2 == 1 && self.involves_non_reader(flow)
    }

    /// Starts the measurement.
    pub(super) fn measure(&mut self) {
        let of = |size: &u32| SizeMeasurement { size: *size, ..SizeMeasurement::default() };
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable();
        sizes.dedup();
        self.measured = Some(sizes.iter().map(of).collect());
    }

    /// Stops sending.
    pub(super) fn end(&mut self) {
        self.limits.messages = 0;
    }

    /// Returns whether sending has ended.
    pub(super) fn is_over(&self) -> bool {
        self.counts.sent >= self.limits.messages || self.open == 0
    }

    /// Returns whether the total window is full.
    pub(super) fn is_full(&self) -> bool {
        self.unanswered >= self.limits.all
    }

    /// Returns the bytes in flight to reading receivers.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// Starts the next message of a flow; returns its number and length.
    pub(super) fn begin(&mut self, flow: u32) -> Result<(u32, u32), Blocked> {
        let (is_to_non_reader, involves_non_reader) =
            (self.is_to_non_reader(flow), self.involves_non_reader(flow));
        let entry = &mut self.entries[flow as usize];
        if entry.is_over || self.counts.sent >= self.limits.messages {
            return Err(Blocked::Over);
        }
        let turn = entry.next.wrapping_add(flow.wrapping_mul(STRIDE)) as usize;
        let len = self.sizes[turn % self.sizes.len()];
        let window = if is_to_non_reader { self.limits.non_reading } else { self.limits.flow };
        if entry.unanswered > 0 && entry.unanswered + len > window {
            return Err(Blocked::Flow);
        }
        if !is_to_non_reader {
            if self.unanswered > 0 && self.unanswered + u64::from(len) > self.limits.all {
                return Err(Blocked::All);
            }
            self.unanswered += u64::from(len);
        }
        let number = entry.next;
        entry.next += 1;
        entry.unanswered += len;
        self.counts.sent += 1;
        self.counts.non_reading_sent += u64::from(involves_non_reader);
        Ok((number, len))
    }

    /// Counts a message that arrived on `flow` at `ns`.
    pub(super) fn arrived(
        &mut self,
        flow: u32,
        stamp: Option<MessageStamp>,
        (len, is_whole): (u32, bool),
        ns: u64,
    ) {
        let Some(stamp) = stamp.filter(|stamp| stamp.flow == flow) else {
            self.counts.misdelivered += 1;
            return;
        };
        self.counts.damaged += u64::from(!is_whole);
        let is_to_non_reader = self.is_to_non_reader(flow);
        let entry = &mut self.entries[flow as usize];
        if stamp.number < entry.expected {
            let was_overtaken = self.overtaken.remove(&(flow, stamp.number));
            self.counts.out_of_order += u64::from(was_overtaken);
            self.counts.doubled += u64::from(!was_overtaken);
            if !was_overtaken {
                return;
            }
        } else {
            let skipped = entry.expected..stamp.number;
            let free = MAX_OVERTAKEN.saturating_sub(self.overtaken.len());
            self.overtaken.extend(skipped.take(free).map(|number| (flow, number)));
            entry.expected = stamp.number + 1;
        }
        let answered = entry.unanswered.min(len);
        entry.unanswered -= answered;
        if !is_to_non_reader {
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

    /// Ends both flows of a virtual connection; messages in flight do not arrive any more. Called once for each.
    pub(super) fn close(&mut self, virtual_connection: u32) {
        self.open -= 1;
        for flow in [2 * virtual_connection, 2 * virtual_connection + 1] {
            let is_to_non_reader = self.is_to_non_reader(flow);
            let entry = &mut self.entries[flow as usize];
            entry.is_over = true;
            if !is_to_non_reader {
                self.unanswered -= u64::from(std::mem::take(&mut entry.unanswered));
            }
        }
    }

    /// Counts lost messages of reading clients and their servers.
    pub(super) fn finish(&mut self) {
        let missing = |(flow, entry): (usize, &FlowState)| match self.involves_non_reader(flow as u32) {
            true => 0,
            false => u64::from(entry.next - entry.expected),
        };
        self.counts.lost = self.entries.iter().enumerate().map(missing).sum::<u64>();
        self.counts.lost +=
            self.overtaken.iter().filter(|(flow, _)| !self.involves_non_reader(*flow)).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FlowLimits = FlowLimits { flow: 1000, non_reading: 3000, all: 2000, messages: 1000 };

    /// Three clients with two virtual connections each; the third does not read.
    fn flows(sizes: &[u32]) -> FlowTable {
        FlowTable::new(sizes.to_vec(), LIMITS, (3, 2), 3)
    }

    fn arrive(flows: &mut FlowTable, flow: u32, number: u32, len: u32) {
        flows.arrived(flow, Some(MessageStamp { flow, number, at: 5 }), (len, true), 1005);
    }

    #[test]
    fn a_flow_and_the_total_keep_to_their_windows() {
        let mut flows = flows(&[600]);
        assert_eq!(flows.begin(0), Ok((0, 600)));
        assert_eq!(flows.begin(0), Err(Blocked::Flow));
        assert_eq!((flows.begin(1), flows.begin(2)), (Ok((0, 600)), Ok((0, 600))));
        assert_eq!(flows.begin(3), Err(Blocked::All), "1800 of 2000 bytes are in flight");
        assert_eq!(flows.begin(9), Ok((0, 600)), "messages that are not read do not count");
        arrive(&mut flows, 0, 0, 600);
        assert_eq!(flows.begin(0), Ok((1, 600)));
        flows.end();
        assert_eq!(flows.begin(5), Err(Blocked::Over));
    }

    #[test]
    fn one_message_goes_through_any_window() {
        let mut flows = flows(&[5000]);
        assert_eq!(flows.begin(0), Ok((0, 5000)));
        assert_eq!(flows.begin(2), Err(Blocked::All));
        arrive(&mut flows, 0, 0, 5000);
        assert_eq!(flows.begin(2), Ok((0, 5000)));
    }

    #[test]
    fn lost_doubled_and_overtaken_messages_are_distinguished() {
        let mut flows = flows(&[20]);
        flows.measure();
        for _ in 0..6 {
            flows.begin(0).unwrap();
        }
        for number in [0, 0, 2, 1, 4] {
            arrive(&mut flows, 0, number, 20);
        }
        flows.arrived(2, Some(MessageStamp { flow: 0, number: 3, at: 5 }), (20, true), 9);
        flows.arrived(2, None, (20, true), 9);
        flows.finish();
        let MessageCounts { sent, received, lost, doubled, out_of_order, misdelivered, .. } = flows.counts;
        assert_eq!((sent, received, lost), (6, 4, 2), "3 and 5 did not arrive");
        assert_eq!((doubled, out_of_order, misdelivered), (1, 1, 2));
        assert_eq!(flows.measured.unwrap()[0].messages, 4);
    }

    #[test]
    fn messages_of_a_client_that_does_not_read_are_not_lost_and_a_closed_connection_frees_its_window() {
        let mut flows = flows(&[1000]);
        assert!(flows.is_non_reading(2) && !flows.is_non_reading(1));
        for flow in [0, 8, 9, 9, 9] {
            flows.begin(flow).unwrap();
        }
        assert_eq!(flows.begin(9), Err(Blocked::Flow));
        assert_eq!((flows.is_full(), flows.begin(2)), (true, Err(Blocked::All)));
        flows.close(4);
        assert_eq!(flows.begin(8), Err(Blocked::Over));
        assert!(flows.begin(2).is_ok());
        flows.finish();
        assert_eq!(flows.counts.lost, 2, "of the flows 0 and 2");
    }

    #[test]
    fn sizes_take_turns() {
        let mut flows = flows(&[20, 300]);
        let lens: Vec<_> = (0..4).map(|_| flows.begin(0).unwrap().1).collect();
        assert_eq!(lens, [20, 300, 20, 300]);
        assert_eq!(flows.begin(3).unwrap().1, 300, "each flow starts with another size");
    }
}
