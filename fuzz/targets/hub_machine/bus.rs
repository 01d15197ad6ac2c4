//! The bus: messages between two hubs keep their order, those of different pairs do not.

use super::World;
use ginnel::internals::signaling::{Destination, HubMessage, NodeId, Undelivered};
use std::collections::{BTreeMap, VecDeque};

/// More messages than any event causes.
const MAX_DELIVERIES: usize = 10_000;

/// The messages on their way by sender and receiver, each with the number of its output.
#[derive(Default)]
pub(super) struct BusQueues {
    waiting: BTreeMap<(usize, usize), VecDeque<(u64, HubMessage)>>,
    /// The hub whose queue is full.
    full: Option<usize>,
}

impl BusQueues {
    /// Marks the queue of one hub as full, or of none.
    pub(super) fn set_full(&mut self, which: u8) {
        self.full = usize::from(which % 4).checked_sub(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn pick(&self, which: usize) -> Option<(usize, usize)> {
        self.waiting.keys().nth(which % self.waiting.len().max(1)).copied()
    }

    fn pop(&mut self, route: (usize, usize)) -> Option<(u64, HubMessage)> {
        let queue = self.waiting.get_mut(&route)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&route);
        }
        first
    }
}

impl World {
    pub(super) fn publish(&mut self, from: usize, to: &Destination, message: HubMessage) {
        let to = match to {
            Destination::Tag(tag) => NodeId::of_tag(tag, self.hubs.len()),
            Destination::Node(node) => *node,
        };
        assert_ne!(to.index(), from, "a hub sends nothing to itself");
        if message.starts() && self.bus.full == Some(to.index()) {
            return self.hubs[from].handle_undelivered(self.now, Undelivered::Overloaded(message));
        }
        self.bus.waiting.entry((from, to.index())).or_default().push_back((self.output_number, message));
    }

    /// Delivers all messages, none, one, those of one queue, or one of each other queue.
    pub(super) fn deliver(&mut self, how: u8, which: usize) {
        let picked = self.bus.pick(which);
        match (how, picked) {
            (_, None) | (4, _) => {}
            (5, Some(route)) => self.deliver_one(route),
            (6, Some(route)) => {
                let count = self.bus.waiting.get(&route).map_or(0, VecDeque::len);
                (0..count).for_each(|_| self.deliver_one(route));
            }
            (7, Some(route)) => {
                for other in
                    self.bus.waiting.keys().copied().filter(|other| *other != route).collect::<Vec<_>>()
                {
                    self.deliver_one(other);
                }
            }
            _ => self.deliver_all(which),
        }
    }

    /// Delivers messages until there are none, taking the queues in turn.
    pub(super) fn deliver_all(&mut self, first: usize) {
        for which in first..first + MAX_DELIVERIES {
            let Some(route) = self.bus.pick(which) else { return };
            self.deliver_one(route);
        }
        panic!("the hubs send messages without end");
    }

    fn deliver_one(&mut self, route: (usize, usize)) {
        let Some((at, message)) = self.bus.pop(route) else { return };
        self.hubs[route.1].handle_hub_message(self.now, message);
        self.drain(route.1, Some(at));
    }

    /// Delivers all messages; no queue is full.
    pub(super) fn settle(&mut self) {
        self.bus.full = None;
        self.deliver_all(0);
    }
}
