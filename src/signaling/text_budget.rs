//! What the texts of calls take while they wait for an answer: bounded in all, and for each network.

use super::client_addr::Network;
use crate::limits::Limit;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One part in so many is what one network may take.
const SHARES: usize = 8;
/// What a text takes besides its bytes, roughly.
const LEAST: usize = 256;

/// The bytes that all hubs together keep.
#[derive(Debug)]
pub(super) struct TextBudget {
    cap: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    networks: HashMap<Network, usize>,
}

/// TextPermit for one text; given back when it is dropped.
#[derive(Debug)]
pub(super) struct TextPermit {
    texts: Arc<TextBudget>,
    network: Network,
    bytes: usize,
}

impl TextBudget {
    pub(super) fn new(cap: usize) -> Arc<Self> {
        Arc::new(Self { cap, held: Mutex::default() })
    }

    /// Takes room for a text that `network` has brought; `None` where that is over the cap, or over its share.
    pub(super) fn take(self: &Arc<Self>, network: Network, len: usize) -> Option<TextPermit> {
        let bytes = len + LEAST;
        let mut held = self.held();
        let own = held.networks.get(&network).copied().unwrap_or_default();
        if held.total + bytes > self.cap || own + bytes > self.cap.div_ceil(SHARES) {
            Limit::SignalingCallBytes.reached(self.cap as u64);
            return None;
        }
        held.total += bytes;
        held.networks.insert(network, own + bytes);
        Some(TextPermit { texts: Arc::clone(self), network, bytes })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> usize {
        self.held().total
    }
}

impl Drop for TextPermit {
    fn drop(&mut self) {
        let mut held = self.texts.held();
        held.total -= self.bytes;
        if let Some(own) = held.networks.get_mut(&self.network) {
            *own -= self.bytes;
            if *own == 0 {
                held.networks.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_share_and_everything_comes_back() {
        let texts = TextBudget::new(80 * (1000 + LEAST));
        let take = |last: u8| texts.take(Network::of([192, 0, 2, last].into()), 1000);
        let of_one: Vec<TextPermit> = std::iter::from_fn(|| take(1)).collect();
        assert_eq!(of_one.len(), 10, "an eighth");
        let of_others: Vec<TextPermit> = (2..200).filter_map(take).collect();
        assert_eq!((of_others.len(), texts.total()), (70, 80 * (1000 + LEAST)));
        drop(of_one);
        assert!(take(1).is_some());
        drop(of_others);
        assert_eq!(texts.total(), 0);
        assert!(texts.held().networks.is_empty());
    }
}
