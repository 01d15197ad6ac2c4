//! User look-ups that a worker cannot answer itself, queued for the look-up service.

use crate::clock::Now;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix};
use crate::net::unauthenticated::worker_share;
use crate::turn_server::auth::UserQuery;
use rand::RngCore;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Most queued look-ups, of each kind.
const QUEUE: usize = 1024;
/// Networks whose rates a worker remembers.
const NETWORKS: usize = 65_536;

/// A look-up and the worker that waits for it.
pub(crate) type QueuedLookup = (usize, Arc<UserQuery>);

/// A worker's sending side of the look-up queues.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    worker: usize,
    queues: Option<Queues>,
    /// Limits the look-ups of unknown names by network.
    limiter: Option<KeyedRateLimiter<NetworkPrefix>>,
    /// Look-ups a second of one network, over all workers.
    per_network: u32,
    unlimited_from: Arc<[NetworkPrefix]>,
}

/// Names that were found before have their own queue, so that unknown names do not delay them.
#[derive(Debug, Clone)]
struct Queues {
    known: mpsc::Sender<QueuedLookup>,
    unknown: mpsc::Sender<QueuedLookup>,
}

impl Lookups {
    /// Creates the queues; returns the receivers of known and of unknown names. Each network except those of `unlimited_from` may look up
    /// `per_network` unknown names a second, over all workers.
    pub(crate) fn new(
        per_network: u32,
        unlimited_from: Arc<[NetworkPrefix]>,
    ) -> (Self, [mpsc::Receiver<QueuedLookup>; 2]) {
        let ((known, from_known), (unknown, from_unknown)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
        let queues = Some(Queues { known, unknown });
        (Self { queues, per_network, unlimited_from, ..Self::default() }, [from_known, from_unknown])
    }

    /// Queues a look-up for a client at `from`; [`WorkerMessage::LookupDone`] reports its result. Returns `false` when the queue is full, there is no
    /// look-up service, or the network is over its rate.
    pub(crate) fn enqueue(
        &mut self,
        now: Now,
        from: IpAddr,
        (question, is_known): (Arc<UserQuery>, bool),
    ) -> bool {
        let Some(Queues { known, unknown }) = &self.queues else { return false };
        if !is_known && !NetworkPrefix::any_contains(&self.unlimited_from, from) {
            let network = NetworkPrefix::site(from);
            if self.limiter.as_mut().is_some_and(|limiter| !limiter.try_take(&network, now.mono, 1)) {
                Limit::HookPerNetwork.reached(self.per_network);
                return false;
            }
        }
        let queue = if is_known { known } else { unknown };
        let queued = queue.try_send((self.worker, question)).is_ok();
        if !queued {
            Limit::HookQueue.reached(QUEUE);
        }
        queued
    }

    /// Returns the sending side for one of `workers` workers.
    pub(crate) fn of(&self, worker: usize, workers: usize, rng: &mut impl RngCore) -> Self {
        let rate = worker_share(self.per_network, self.per_network.saturating_mul(2), workers);
        let limiter = KeyedRateLimiter::new(rate, NETWORKS, Limit::RateLimiterKeys, rng);
        Self {
            worker,
            queues: self.queues.clone(),
            limiter: self.queues.as_ref().map(|_| limiter),
            per_network: self.per_network,
            unlimited_from: Arc::clone(&self.unlimited_from),
        }
    }
}
