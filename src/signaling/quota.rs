//! Counts what all hubs together hold of something: in all, and for each network.

use super::client_addr::Network;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Networks are spread over so many locks, so that hubs rarely meet at one.
const LOCKS: usize = 64;

/// Which cap is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// That of the network.
    Network,
    /// That of all.
    Total,
}

/// The counts.
#[derive(Debug)]
pub(super) struct Quota {
    cap: usize,
    cap_per_network: usize,
    total: AtomicUsize,
    networks: [Mutex<HashMap<Network, u32>>; LOCKS],
}

impl Quota {
    pub(super) fn new(cap: usize, cap_per_network: usize) -> Self {
        let networks = [(); LOCKS].map(|()| Mutex::default());
        Self { cap, cap_per_network, total: AtomicUsize::new(0), networks }
    }

    /// Returns how many there may be in all.
    pub(super) fn cap(&self) -> usize {
        self.cap
    }

    /// Returns how many one network may have.
    pub(super) fn cap_per_network(&self) -> usize {
        self.cap_per_network
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes one for `network`.
    pub(super) fn take(&self, network: Network) -> Result<(), Full> {
        self.exchange(&[], network)
    }

    /// Gives back what `leaving` held, one each, and takes one for `network`; does nothing where that is over a cap.
    pub(super) fn exchange(&self, leaving: &[Network], network: Network) -> Result<(), Full> {
        let stays = leaving.contains(&network);
        if !stays && !self.take_of(network) {
            return Err(Full::Network);
        }
        let below = |total: usize| (total < self.cap).then_some(total + 1);
        let order = Ordering::Relaxed;
        if leaving.is_empty() && self.total.fetch_update(order, order, below).is_err() {
            self.leave_of(network);
            return Err(Full::Total);
        }
        self.total.fetch_sub(leaving.len().saturating_sub(1), order);
        let kept = leaving.iter().position(|other| *other == network);
        let given_back = leaving.iter().enumerate().filter(|(index, _)| Some(*index) != kept);
        given_back.for_each(|(_, other)| self.leave_of(*other));
        Ok(())
    }

    /// Gives one of `network` back.
    pub(super) fn leave(&self, network: Network) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.leave_of(network);
    }

    fn take_of(&self, network: Network) -> bool {
        let mut counts = self.counts(network);
        let taken = counts.get(&network).map_or(0, |count| *count as usize);
        if taken < self.cap_per_network {
            *counts.entry(network).or_default() += 1;
        }
        taken < self.cap_per_network
    }

    fn leave_of(&self, network: Network) {
        let mut counts = self.counts(network);
        if let Some(count) = counts.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&network);
            }
        }
    }

    fn counts(&self, network: Network) -> MutexGuard<'_, HashMap<Network, u32>> {
        let lock = &self.networks[(network.mixed() >> 32) as usize % LOCKS];
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(last: u8) -> Network {
        Network::of([192, 0, 2, last].into())
    }

    #[test]
    fn both_caps_hold_and_nothing_is_left_of_those_who_left() {
        let quota = Quota::new(3, 2);
        let [a, b, c] = [1, 2, 3].map(network);
        assert_eq!([a, a, a, b].map(|of| quota.take(of)), [Ok(()), Ok(()), Err(Full::Network), Ok(())]);
        assert_eq!((quota.take(c), quota.total()), (Err(Full::Total), 3));
        [a, a, b].into_iter().for_each(|of| quota.leave(of));
        assert_eq!(quota.total(), 0);
        assert!(quota.networks.iter().all(|counts| counts.lock().unwrap().is_empty()));
    }

    #[test]
    fn who_makes_room_has_it() {
        let quota = Quota::new(2, 1);
        let [a, b, c] = [1, 2, 3].map(network);
        [a, b].into_iter().for_each(|of| quota.take(of).unwrap());
        assert_eq!(quota.exchange(&[a], a), Ok(()));
        assert_eq!(quota.exchange(&[a], b), Err(Full::Network));
        assert_eq!(quota.exchange(&[a], c), Ok(()));
        assert_eq!(quota.exchange(&[b, c], c), Ok(()));
        assert_eq!(quota.total(), 1);
        assert_eq!(quota.take(b), Ok(()));
        assert_eq!(quota.take(a), Err(Full::Total));
    }
}
