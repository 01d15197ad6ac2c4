//! The memory that all waiting bytes share, and who waits for some of it, first come first served. Pure.

use super::end::EndKey;
use std::collections::VecDeque;

/// What is taken of the shared memory.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: usize,
    waiting: VecDeque<(EndKey, usize)>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0, waiting: VecDeque::new() }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Says whether somebody may begin to take `amount`: nobody has to wait before.
    pub(super) fn admits(&self, amount: usize) -> bool {
        self.waiting.is_empty() && self.used + amount <= self.limit
    }

    pub(super) fn take(&mut self, amount: usize) {
        self.used += amount;
    }

    pub(super) fn give_back(&mut self, amount: usize) {
        self.used = self.used.saturating_sub(amount);
    }

    /// Queues up for `amount`.
    pub(super) fn wait(&mut self, end: EndKey, amount: usize) {
        self.waiting.push_back((end, amount));
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns who is next and has enough now.
    pub(super) fn next(&mut self) -> Option<(EndKey, usize)> {
        let (_, amount) = self.waiting.front()?;
        if self.used + amount <= self.limit { self.waiting.pop_front() } else { None }
    }

    /// Takes one who has gone out of the queue.
    pub(super) fn leave(&mut self, end: EndKey) {
        self.waiting.retain(|(waiting, _)| *waiting != end);
    }
}
