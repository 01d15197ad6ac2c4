//! Which worker's relay every open relay port belongs to: read for each packet, without a lock.

use std::sync::atomic::{AtomicU16, Ordering};

/// The ports of one relay address.
#[derive(Debug)]
pub(super) struct Homes {
    /// For each port its worker's number plus one; 0 while no relay has it open.
    workers: Box<[AtomicU16]>,
}

impl Homes {
    /// Makes a table without any open port.
    pub(super) fn new() -> Self {
        Self { workers: (0..=u16::MAX).map(|_| AtomicU16::new(0)).collect() }
    }

    /// Notes that a worker's relay has opened `port`.
    pub(super) fn settle(&self, port: u16, worker: u16) {
        self.workers[usize::from(port)].store(worker.saturating_add(1), Ordering::Release);
    }

    /// Notes that nobody has `port` open.
    pub(super) fn leave(&self, port: u16) {
        self.workers[usize::from(port)].store(0, Ordering::Release);
    }

    /// Returns whose `port` is.
    pub(super) fn of(&self, port: u16) -> Option<u16> {
        self.workers[usize::from(port)].load(Ordering::Acquire).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_home_while_it_is_open() {
        let homes = Homes::new();
        assert_eq!(homes.of(65_535), None);
        homes.settle(65_535, 0);
        homes.settle(0, 7);
        assert_eq!((homes.of(65_535), homes.of(0), homes.of(1)), (Some(0), Some(7), None));
        homes.leave(0);
        assert_eq!(homes.of(0), None);
    }
}
