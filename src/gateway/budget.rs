//! The memory that all queued bytes share, and the endpoints that wait for some of it. Pure.
//!
//! A frame's length is only a claim: memory is reserved in steps, as its bytes arrive. Long frames leave a part of the memory to short ones
//! ([`Budget::new`]), and the frames of one network have only a share, so that neither a few networks nor long frames block all others.
//! One frame of each network may exceed the share in order to complete: otherwise incomplete frames could block each other for ever.

use super::endpoint::EndpointKey;
use crate::limits::NetworkPrefix;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Bytes read from a connection at a time while memory is plentiful.
pub(super) const READ: usize = 64 * 1024;
/// The longest short frame. It is read as long as this much memory is left.
pub(super) const SHORT: usize = 4 * 1024;
/// Incomplete frames of one network may use one part in this many.
const SHARES: usize = 8;
/// One part in this many is reserved for short frames, and the same part of that for frames that must complete.
const RESERVES: usize = 4;
/// How many networks are tried at a time.
const TRIES: usize = 16;

/// The network that an endpoint is counted in: an IPv4 address, or an IPv6 /48; `None` for servers, which have authenticated.
pub(super) type Network = Option<NetworkPrefix>;

/// Returns the network of a client.
pub(super) fn network(ip: IpAddr) -> Network {
    Some(NetworkPrefix::new(ip, 32, 48))
}

/// A request of an endpoint whose incomplete frame waits for memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryRequest {
    pub(super) endpoint: EndpointKey,
    /// Bytes for the next step.
    pub(super) step: usize,
    /// Bytes for the rest of the frame.
    pub(super) rest: usize,
}

/// What was granted to a waiting endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryGrant {
    /// It may read a short frame.
    Read(EndpointKey),
    /// Its frame has this many bytes more.
    Bytes(EndpointKey, usize),
}

/// The memory of one network.
#[derive(Debug, Default)]
struct NetworkShare {
    used: usize,
    waiting: VecDeque<MemoryRequest>,
    /// The endpoint whose frame may exceed the share in order to complete.
    finishing: Option<EndpointKey>,
}

/// The state of the shared memory.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// The limit for long frames.
    long: usize,
    /// The limit for long frames that must complete.
    ending: usize,
    share: usize,
    used: usize,
    /// Endpoints that wait to begin a frame, the first come first.
    reads: VecDeque<EndpointKey>,
    shares: HashMap<Network, NetworkShare>,
    /// Networks with waiting requests, in turn.
    turns: VecDeque<Network>,
}

impl Budget {
    /// Creates a budget of `limit` bytes. A quarter is reserved for short frames, and an eighth is a network's share; both fit at least one packet.
    pub(super) fn new(limit: usize, max_packet: usize) -> Self {
        let reserve = (limit / RESERVES).max(max_packet + READ);
        let long = limit.saturating_sub(reserve);
        Self {
            limit,
            long,
            ending: long + (reserve / RESERVES).max(max_packet + 4),
            share: (limit / SHARES).max(max_packet + 4),
            used: 0,
            reads: VecDeque::new(),
            shares: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    /// Returns the share of one network.
    pub(super) fn share(&self) -> usize {
        self.share
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Returns whether an endpoint of `network` may read without a limit.
    pub(super) fn is_plenty(&self, network: Network) -> bool {
        let most = if network.is_none() { self.limit } else { self.long };
        self.reads.is_empty() && self.used + READ <= most && self.has_share(network, READ)
    }

    /// Returns whether an endpoint may begin to read a short frame.
    pub(super) fn admits_short(&self) -> bool {
        self.reads.is_empty() && self.used + SHORT <= self.limit
    }

    /// Returns whether a frame of `network` may use `step` bytes more.
    pub(super) fn admits(&self, network: Network, step: usize) -> bool {
        let share = self.shares.get(&network);
        let is_next = share.is_none_or(|share| share.waiting.is_empty());
        is_next && self.used + step <= self.long && self.has_share(network, step)
    }

    /// Returns whether `network` has `step` bytes of its share left.
    pub(super) fn has_share(&self, network: Network, step: usize) -> bool {
        let used = self.shares.get(&network).map_or(0, |share| share.used);
        network.is_none() || used + step <= self.share
    }

    pub(super) fn take(&mut self, amount: usize) {
        self.used += amount;
    }

    pub(super) fn release(&mut self, amount: usize) {
        self.used = self.used.saturating_sub(amount);
    }

    /// Changes what an endpoint's input uses from `before` to `after`.
    pub(super) fn charge(&mut self, network: Network, before: usize, after: usize) {
        self.used = (self.used + after).saturating_sub(before);
        if before == after {
            return;
        }
        let share = self.shares.entry(network).or_default();
        share.used = (share.used + after).saturating_sub(before);
        self.remove_if_idle(network);
    }

    /// Handles that an endpoint's frame is complete, or was dropped.
    pub(super) fn finished(&mut self, network: Network, endpoint: EndpointKey) {
        if let Some(share) = self.shares.get_mut(&network)
            && share.finishing == Some(endpoint)
        {
            share.finishing = None;
            self.remove_if_idle(network);
        }
    }

    /// Queues an endpoint that waits to begin a frame.
    pub(super) fn wait_to_read(&mut self, endpoint: EndpointKey) {
        self.reads.push_back(endpoint);
    }

    /// Queues a request for more memory.
    pub(super) fn wait(&mut self, network: Network, waiting: MemoryRequest) {
        let share = self.shares.entry(network).or_default();
        if share.waiting.is_empty() {
            self.turns.push_back(network);
        }
        share.waiting.push_back(waiting);
    }

    /// Returns whether an endpoint waits for memory.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.reads.is_empty() || !self.turns.is_empty()
    }

    /// Returns whether an endpoint waits for another reason than its network's share.
    pub(super) fn is_tight(&self) -> bool {
        !self.reads.is_empty() || (!self.turns.is_empty() && self.used + SHORT > self.long)
    }

    /// Returns whether others wait for memory that an endpoint of `network` uses.
    pub(super) fn is_short(&self, network: Network) -> bool {
        self.is_tight() || self.shares.get(&network).is_some_and(|share| !share.waiting.is_empty())
    }

    /// Grants memory to the next endpoint for which it suffices.
    pub(super) fn next(&mut self) -> Option<MemoryGrant> {
        if self.used + SHORT <= self.limit
            && let Some(endpoint) = self.reads.pop_front()
        {
            return Some(MemoryGrant::Read(endpoint));
        }
        for _ in 0..self.turns.len().min(TRIES) {
            let network = self.turns.pop_front()?;
            let granted = self.grant(network);
            if self.shares.get(&network).is_some_and(|share| !share.waiting.is_empty()) {
                self.turns.push_back(network);
            }
            if granted.is_some() {
                return granted;
            }
        }
        None
    }

    /// Grants the first request of `network`, if the limits allow it.
    fn grant(&mut self, network: Network) -> Option<MemoryGrant> {
        let MemoryRequest { endpoint, step, rest } = *self.shares.get(&network)?.waiting.front()?;
        let has_space = self.used + step <= self.long && self.has_share(network, step);
        let share = self.shares.get_mut(&network)?;
        let amount = if has_space {
            step
        } else if share.finishing.is_none() && self.used + rest <= self.ending {
            share.finishing = Some(endpoint);
            rest
        } else {
            return None;
        };
        share.waiting.pop_front();
        self.charge(network, 0, amount);
        Some(MemoryGrant::Bytes(endpoint, amount))
    }

    /// Removes an endpoint from the queues.
    pub(super) fn remove_endpoint(&mut self, network: Network, endpoint: EndpointKey) {
        self.reads.retain(|waiting| *waiting != endpoint);
        if let Some(share) = self.shares.get_mut(&network) {
            share.waiting.retain(|waiting| waiting.endpoint != endpoint);
            if share.waiting.is_empty() {
                self.turns.retain(|turn| *turn != network);
            }
        }
        self.finished(network, endpoint);
        self.remove_if_idle(network);
    }

    /// Removes the entry of a network that uses nothing.
    fn remove_if_idle(&mut self, network: Network) {
        let is_idle =
            |share: &NetworkShare| share.used == 0 && share.waiting.is_empty() && share.finishing.is_none();
        if self.shares.get(&network).is_some_and(is_idle) {
            self.shares.remove(&network);
        }
    }
}
