//! The bus: words between two hubs keep their order, those of different pairs do not.

use super::World;
use ginnel::internals::signaling::{Destination, HubMessage, NodeId, Undelivered};
use std::collections::{BTreeMap, VecDeque};

/// More words than any event brings.
const MANY: usize = 10_000;

/// The words on their way, by sender and receiver, with the numbers under which they were put out.
#[derive(Default)]
pub(super) struct Lines {
    waiting: BTreeMap<(usize, usize), VecDeque<(u64, HubMessage)>>,
    /// The hub whose queue is full.
    jammed: Option<usize>,
}

impl Lines {
    /// Lets a hub's queue be full, or none.
    pub(super) fn jam(&mut self, which: u8) {
        self.jammed = usize::from(which % 4).checked_sub(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn pick(&self, which: usize) -> Option<(usize, usize)> {
        self.waiting.keys().nth(which % self.waiting.len().max(1)).copied()
    }

    fn pop(&mut self, line: (usize, usize)) -> Option<(u64, HubMessage)> {
        let words = self.waiting.get_mut(&line)?;
        let first = words.pop_front();
        if words.is_empty() {
            self.waiting.remove(&line);
        }
        first
    }
}

impl World {
    pub(super) fn post(&mut self, from: usize, to: &Destination, message: HubMessage) {
        let to = match to {
            Destination::Tag(tag) => NodeId::of_tag(tag, self.hubs.len()),
            Destination::Node(node) => *node,
        };
        assert_ne!(to.index(), from, "a word to itself");
        if message.starts() && self.lines.jammed == Some(to.index()) {
            return self.hubs[from].handle_undelivered(self.now, Undelivered::Overloaded(message));
        }
        self.lines.waiting.entry((from, to.index())).or_default().push_back((self.at, message));
    }

    /// Carries all words, none, one, those of one line, or those of all but one.
    pub(super) fn carry(&mut self, how: u8, which: usize) {
        let picked = self.lines.pick(which);
        match (how, picked) {
            (_, None) | (4, _) => {}
            (5, Some(line)) => self.carry_one(line),
            (6, Some(line)) => {
                let count = self.lines.waiting.get(&line).map_or(0, VecDeque::len);
                (0..count).for_each(|_| self.carry_one(line));
            }
            (7, Some(line)) => {
                for other in
                    self.lines.waiting.keys().copied().filter(|other| *other != line).collect::<Vec<_>>()
                {
                    self.carry_one(other);
                }
            }
            _ => self.carry_all(which),
        }
    }

    /// Carries words until there are none, each time of another line.
    pub(super) fn carry_all(&mut self, first: usize) {
        for which in first..first + MANY {
            let Some(line) = self.lines.pick(which) else { return };
            self.carry_one(line);
        }
        panic!("words without end");
    }

    fn carry_one(&mut self, line: (usize, usize)) {
        let Some((at, message)) = self.lines.pop(line) else { return };
        self.hubs[line.1].handle_hub_message(self.now, message);
        self.drain(line.1, Some(at));
    }

    /// Lets every queue have room, and carries all words.
    pub(super) fn settle(&mut self) {
        self.lines.jammed = None;
        self.carry_all(0);
    }
}
