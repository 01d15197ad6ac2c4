//! Questions about users that a worker cannot answer itself: queued for whoever looks them up.

use crate::clock::Now;
use crate::limits::{KeyedRateLimiter, Limit, NetworkPrefix};
use crate::net::unauthenticated::worker_share;
use crate::turn_server::auth::UserQuery;
use rand::RngCore;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Questions that wait to be asked, of either kind.
const QUEUE: usize = 1024;
/// Networks whose rates a worker remembers.
const NETWORKS: usize = 65_536;

/// A question, and which worker has it.
pub(crate) type Asked = (usize, Arc<UserQuery>);

/// A worker's way to ask.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    worker: usize,
    queues: Option<Queues>,
    /// The rate of each network for names that were never known.
    limiter: Option<KeyedRateLimiter<NetworkPrefix>>,
    /// Questions a second of one network, over all workers.
    per_network: u32,
    unlimited_from: Arc<[NetworkPrefix]>,
}

/// Names that were known before wait apart, so that strangers' names hold none of them up.
#[derive(Debug, Clone)]
struct Queues {
    known: mpsc::Sender<Asked>,
    unknown: mpsc::Sender<Asked>,
}

impl Lookups {
    /// Makes the way to ask, and the receivers of what is asked: names that were known before, and unknown ones. Each network but those of
    /// `unlimited_from` asks about unknown names `per_network` times a second, over all workers.
    pub(crate) fn new(
        per_network: u32,
        unlimited_from: Arc<[NetworkPrefix]>,
    ) -> (Self, [mpsc::Receiver<Asked>; 2]) {
        let ((known, from_known), (unknown, from_unknown)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
        let queues = Some(Queues { known, unknown });
        (Self { queues, per_network, unlimited_from, ..Self::default() }, [from_known, from_unknown])
    }

    /// Queues a question of a client at `from` and whether its name was known before; [`WorkerMessage::LookupDone`] will say how it ends. `false`
    /// when there is no room, nobody to ask, or too much was asked from that network.
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

    /// Returns the way of worker `worker` of `workers`.
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
