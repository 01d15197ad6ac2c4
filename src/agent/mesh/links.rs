//! The links of a node: connections to other nodes, which ones it wants, and the next hop of a frame.
//!
//! A node wants one link into each bucket: the online nodes that share exactly so many leading bits of the address with it. Then every hop
//! brings a frame nearer to its destination, and about log2(n) links reach all n nodes.

use super::node_id::NodeId;
use crate::clock::TickBase;
use crate::limits::{Rate, RateLimiter};
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha20Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A node with fewer links wants more.
const FEWEST: usize = 4;
/// With more links than this a node closes those it needs least.
pub(super) const ENOUGH: usize = 40;
/// No more links than this, those of newcomers included.
pub(super) const MAX_LINKS: usize = 512;
/// How long a newcomer's link is kept, so that it can fetch the map.
const GRACE: Duration = Duration::from_secs(5);

/// Costs that one link may cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// Bytes that are forwarded to others.
    Forward,
    /// Records that are verified.
    Verify,
    /// Sealed contents that are opened, and records that are sent.
    Open,
}

/// A connection to another node.
#[derive(Debug, Clone)]
pub(super) struct Link {
    up_at: Instant,
    pub(super) rtt: Duration,
    /// The node that relays the connection.
    pub(super) relay: Option<NodeId>,
    limiters: [RateLimiter; 3],
}

/// How often links were refused, closed and limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LinkCounters {
    pub(super) refused: u64,
    pub(super) pruned: u64,
    /// By [`Cost`].
    pub(super) limited: [u64; 3],
}

/// All links.
#[derive(Debug)]
pub(super) struct Links {
    own: NodeId,
    base: TickBase,
    table: BTreeMap<NodeId, Link>,
    pub(super) counters: LinkCounters,
}

impl Links {
    pub(super) fn new(own: NodeId, now: Instant) -> Self {
        let table = BTreeMap::new();
        Self { own, base: TickBase::new(now), table, counters: LinkCounters::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Link> {
        self.table.get(&node)
    }

    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.table.contains_key(&node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Link)> {
        self.table.iter().map(|(id, link)| (*id, link))
    }

    /// Adds a link, or replaces the one to the same node; `false` if there are too many.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        node: NodeId,
        rtt: Duration,
        relay: Option<NodeId>,
    ) -> bool {
        if node == self.own || self.table.len() >= MAX_LINKS && !self.contains(node) {
            self.counters.refused += 1;
            return false;
        }
        // A new connection does not renew the rates.
        let limiters = self.get(node).map_or_else(Default::default, |old| old.limiters);
        self.table.insert(node, Link { up_at: now, rtt, relay, limiters });
        true
    }

    pub(super) fn remove(&mut self, node: NodeId) -> Option<Link> {
        self.table.remove(&node)
    }

    /// Takes from the rate of a link; `false` where that is over it.
    pub(super) fn admit(&mut self, now: Instant, node: NodeId, cost: Cost, units: usize) -> bool {
        let (index, rate) = match cost {
            Cost::Forward => (0, Rate::new(64_000.0, 512_000.0)),
            Cost::Verify => (1, Rate::new(200.0, 2500.0)),
            Cost::Open => (2, Rate::new(100.0, 2500.0)),
        };
        let now = self.base.ticks(now);
        let Some(link) = self.table.get_mut(&node) else { return false };
        let is_admitted = link.limiters[index].try_take(rate, now, units);
        self.counters.limited[index] += u64::from(!is_admitted);
        is_admitted
    }

    /// Returns where a frame goes next: to its destination, or to the nearest neighbour that it has not passed.
    pub(super) fn next_hop(&self, destination: NodeId, source: NodeId, visited: &[u64]) -> Option<NodeId> {
        if self.contains(destination) {
            return Some(destination);
        }
        let may = self.table.keys().filter(|id| **id != source && !visited.contains(&id.prefix()));
        may.min_by_key(|id| id.distance(destination)).copied()
    }

    /// Returns the nodes to connect to, out of those that are online.
    pub(super) fn missing(
        &self,
        candidates: impl Iterator<Item = NodeId>,
        rng: &mut ChaCha20Rng,
    ) -> Vec<NodeId> {
        let covered: BTreeSet<u32> = self.table.keys().map(|id| id.shared_bits(self.own)).collect();
        let mut buckets: BTreeMap<u32, Vec<NodeId>> = BTreeMap::new();
        for id in candidates.filter(|id| *id != self.own && !self.contains(*id)) {
            buckets.entry(id.shared_bits(self.own)).or_default().push(id);
        }
        let uncovered = buckets.iter().filter(|(bucket, _)| !covered.contains(bucket));
        let mut wanted: Vec<_> = uncovered.filter_map(|(_, ids)| ids.iter().choose(rng)).copied().collect();
        let more = FEWEST.saturating_sub(self.table.len() + wanted.len());
        let rest: Vec<_> = buckets.into_values().flatten().filter(|id| !wanted.contains(id)).collect();
        wanted.extend(rest.into_iter().choose_multiple(rng, more));
        wanted
    }

    /// Returns the link that is needed least, if there are more than enough: the newest of the fullest bucket.
    pub(super) fn surplus(&self, now: Instant) -> Option<NodeId> {
        if self.table.len() <= ENOUGH {
            return None;
        }
        let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
        for id in self.table.keys() {
            *sizes.entry(id.shared_bits(self.own)).or_default() += 1;
        }
        let is_old = |link: &Link| now.saturating_duration_since(link.up_at) >= GRACE;
        let old = self.table.iter().filter(|(_, link)| is_old(link));
        let fullest = old.max_by_key(|(id, link)| (sizes.get(&id.shared_bits(self.own)), link.up_at));
        fullest.map(|(id, _)| *id)
    }

    /// Returns up to `count` neighbours at random.
    pub(super) fn random(&self, count: usize, rng: &mut ChaCha20Rng) -> Vec<NodeId> {
        self.table.keys().copied().choose_multiple(rng, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::time::mono;
    use rand::SeedableRng;

    fn id(number: u16) -> NodeId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        NodeId::of(&key)
    }

    fn links(now: Instant, ids: impl Iterator<Item = u16>) -> Links {
        let mut links = Links::new(id(0), now);
        for number in ids {
            assert!(links.insert(now, id(number), Duration::from_millis(30), None));
        }
        links
    }

    #[test]
    fn a_frame_goes_to_the_nearest_neighbour_and_never_back() {
        let links = links(mono(), 1..10);
        let destination = id(500);
        let mut order: Vec<_> = (1..10).map(id).collect();
        order.sort_by_key(|id| id.distance(destination));
        let mut visited = Vec::new();
        for expected in &order {
            let hop = links.next_hop(destination, id(700), &visited);
            assert_eq!(hop, Some(*expected));
            visited.push(expected.prefix());
        }
        assert_eq!(links.next_hop(destination, id(700), &visited), None);
        assert_eq!(links.next_hop(id(4), id(700), &visited), Some(id(4)));
        assert_eq!(links.next_hop(destination, order[0], &[]), Some(order[1]));
    }

    #[test]
    fn a_link_into_every_bucket_is_wanted() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let empty = links(mono(), 0..0);
        let wanted = empty.missing((1..1000).map(id), &mut rng);
        let buckets: BTreeSet<_> = (1..1000).map(|number| id(number).shared_bits(id(0))).collect();
        let covered: BTreeSet<_> = wanted.iter().map(|id| id.shared_bits(self::id(0))).collect();
        assert_eq!((covered, wanted.len()), (buckets.clone(), buckets.len()));
        assert_eq!(empty.missing((0..3).map(id), &mut rng).len(), 2, "all of a small mesh");
        assert!(links(mono(), 1..200).missing((1..200).map(id), &mut rng).is_empty());
    }

    #[test]
    fn links_are_limited_and_the_least_needed_one_goes_first() {
        let now = mono();
        let mut full = links(now, 1..=512);
        assert!(!full.insert(now, id(600), Duration::ZERO, None));
        assert!(full.insert(now, id(5), Duration::ZERO, None), "it replaces the link to the same node");
        assert_eq!((full.len(), full.counters.refused), (MAX_LINKS, 1));
        assert_eq!(full.surplus(now), None, "newcomers fetch the map first");
        let later = now + GRACE;
        let before: BTreeSet<_> = full.table.keys().map(|id| id.shared_bits(self::id(0))).collect();
        while let Some(node) = full.surplus(later) {
            full.remove(node);
        }
        let after: BTreeSet<_> = full.table.keys().map(|id| id.shared_bits(self::id(0))).collect();
        assert_eq!((full.len(), after), (ENOUGH, before));
    }

    #[test]
    fn a_neighbour_cannot_cause_unlimited_cost() {
        let now = mono();
        let mut links = links(now, 1..2);
        let admitted = (0..10_000).filter(|_| links.admit(now, id(1), Cost::Verify, 1)).count();
        assert!((2400..=2501).contains(&admitted), "{admitted}");
        links.insert(now, id(1), Duration::ZERO, None);
        assert!(!links.admit(now, id(1), Cost::Verify, 1), "a new connection does not renew the rate");
        assert!(links.admit(now + Duration::from_secs(1), id(1), Cost::Verify, 100));
        assert!(!links.admit(now, id(9), Cost::Verify, 1), "no link");
        assert!(links.counters.limited[1] > 7000);
    }
}
