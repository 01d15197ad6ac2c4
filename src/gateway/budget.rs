//! The memory that all waiting bytes share, and who waits for some of it. Pure.
//!
//! A frame's length is only a claim: memory is taken in steps, as its bytes come. Frames that are not short leave a part of the memory to
//! others ([`Budget::new`]), and those of one address have only a share of it, so that neither a few addresses nor long frames keep
//! everybody else's short ones out. One frame of each address may always come whole where there is memory at all: many that have come
//! in part cannot keep each other from ending.

use super::endpoint::EndpointKey;
use crate::limits::NetworkPrefix;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// What a connection is read of at a time while there is plenty.
pub(super) const READ: usize = 64 * 1024;
/// A frame of at most so many bytes is short. It is read as long as so much memory is left.
pub(super) const SHORT: usize = 4 * 1024;
/// One part in so many is what frames of one address may take while they come.
const SHARES: usize = 8;
/// One part in so many is left to short frames, and one in so many of that to frames that must come to their endpoint.
const RESERVES: usize = 4;
/// How many addresses are tried at a time for one whose frames go on.
const TRIES: usize = 16;

/// The network that an endpoint is counted for: an IPv4 address, or an IPv6 /48; `None` for servers, which have authenticated.
pub(super) type Network = Option<NetworkPrefix>;

/// Returns the network of a client.
pub(super) fn network(ip: IpAddr) -> Network {
    Some(NetworkPrefix::new(ip, 32, 48))
}

/// An endpoint whose frame has come in part and waits for memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) endpoint: EndpointKey,
    /// What its next bytes need.
    pub(super) step: usize,
    /// What all of it needs.
    pub(super) rest: usize,
}

/// Who goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Granted {
    /// It may read a short frame.
    Read(EndpointKey),
    /// Its frame has been given so many bytes more.
    Bytes(EndpointKey, usize),
}

/// What one address has of the memory.
#[derive(Debug, Default)]
struct Share {
    used: usize,
    waiting: VecDeque<Waiting>,
    /// Whose frame was given all that it needs, beyond the share if need be.
    finishing: Option<EndpointKey>,
}

/// What is taken of the shared memory.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// What frames that are not short may fill, as long as none has to be ended first.
    long: usize,
    /// The same for those that have to be ended.
    ending: usize,
    share: usize,
    used: usize,
    /// Those who have begun nothing, first come first served.
    reads: VecDeque<EndpointKey>,
    shares: HashMap<Network, Share>,
    /// Those of whom somebody waits, in turn.
    turns: VecDeque<Network>,
}

impl Budget {
    /// Begins with nothing taken of `limit`. A quarter is for short frames, an eighth is an address's share; both have room for a packet.
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

    /// Returns what one address may take.
    pub(super) fn share(&self) -> usize {
        self.share
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Says whether somebody may read as much as comes.
    pub(super) fn is_plenty(&self, network: Network) -> bool {
        let most = if network.is_none() { self.limit } else { self.long };
        self.reads.is_empty() && self.used + READ <= most && self.has_share(network, READ)
    }

    /// Says whether somebody may begin to read a short frame.
    pub(super) fn admits_short(&self) -> bool {
        self.reads.is_empty() && self.used + SHORT <= self.limit
    }

    /// Says whether a frame of `network` may take `step` more.
    pub(super) fn admits(&self, network: Network, step: usize) -> bool {
        let share = self.shares.get(&network);
        let is_next = share.is_none_or(|share| share.waiting.is_empty());
        is_next && self.used + step <= self.long && self.has_share(network, step)
    }

    /// Says whether `network` has so much of its share left.
    pub(super) fn has_share(&self, network: Network, step: usize) -> bool {
        let used = self.shares.get(&network).map_or(0, |share| share.used);
        network.is_none() || used + step <= self.share
    }

    pub(super) fn take(&mut self, amount: usize) {
        self.used += amount;
    }

    pub(super) fn give_back(&mut self, amount: usize) {
        self.used = self.used.saturating_sub(amount);
    }

    /// What has come of an endpoint's frame takes `after` where it took `before`.
    pub(super) fn charge(&mut self, network: Network, before: usize, after: usize) {
        self.used = (self.used + after).saturating_sub(before);
        if before == after {
            return;
        }
        let share = self.shares.entry(network).or_default();
        share.used = (share.used + after).saturating_sub(before);
        self.tidy(network);
    }

    /// An endpoint's frame has come whole, or never will.
    pub(super) fn finished(&mut self, network: Network, endpoint: EndpointKey) {
        if let Some(share) = self.shares.get_mut(&network)
            && share.finishing == Some(endpoint)
        {
            share.finishing = None;
            self.tidy(network);
        }
    }

    /// Queues up to begin reading.
    pub(super) fn wait_to_read(&mut self, endpoint: EndpointKey) {
        self.reads.push_back(endpoint);
    }

    /// Queues up for more of a frame.
    pub(super) fn wait(&mut self, network: Network, waiting: Waiting) {
        let share = self.shares.entry(network).or_default();
        if share.waiting.is_empty() {
            self.turns.push_back(network);
        }
        share.waiting.push_back(waiting);
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.reads.is_empty() || !self.turns.is_empty()
    }

    /// Says whether somebody waits whose address is not the reason.
    pub(super) fn is_tight(&self) -> bool {
        !self.reads.is_empty() || (!self.turns.is_empty() && self.used + SHORT > self.long)
    }

    /// Says whether others wait for what an endpoint of `network` holds.
    pub(super) fn is_short(&self, network: Network) -> bool {
        self.is_tight() || self.shares.get(&network).is_some_and(|share| !share.waiting.is_empty())
    }

    /// Returns who is next and has enough now; what a frame is given is taken.
    pub(super) fn next(&mut self) -> Option<Granted> {
        if self.used + SHORT <= self.limit
            && let Some(endpoint) = self.reads.pop_front()
        {
            return Some(Granted::Read(endpoint));
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

    /// Gives the first who waits of `network` what it needs, if it may have it.
    fn grant(&mut self, network: Network) -> Option<Granted> {
        let Waiting { endpoint, step, rest } = *self.shares.get(&network)?.waiting.front()?;
        let has_room = self.used + step <= self.long && self.has_share(network, step);
        let share = self.shares.get_mut(&network)?;
        let amount = if has_room {
            step
        } else if share.finishing.is_none() && self.used + rest <= self.ending {
            share.finishing = Some(endpoint);
            rest
        } else {
            return None;
        };
        share.waiting.pop_front();
        self.charge(network, 0, amount);
        Some(Granted::Bytes(endpoint, amount))
    }

    /// Takes one who has gone out of the queues.
    pub(super) fn leave(&mut self, network: Network, endpoint: EndpointKey) {
        self.reads.retain(|waiting| *waiting != endpoint);
        if let Some(share) = self.shares.get_mut(&network) {
            share.waiting.retain(|waiting| waiting.endpoint != endpoint);
            if share.waiting.is_empty() {
                self.turns.retain(|turn| *turn != network);
            }
        }
        self.finished(network, endpoint);
        self.tidy(network);
    }

    /// Keeps nothing of an address that has nothing.
    fn tidy(&mut self, network: Network) {
        let is_idle =
            |share: &Share| share.used == 0 && share.waiting.is_empty() && share.finishing.is_none();
        if self.shares.get(&network).is_some_and(is_idle) {
            self.shares.remove(&network);
        }
    }
}
