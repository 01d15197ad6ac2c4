//! Questions about users that a worker cannot answer itself: queued for whoever looks them up.

use crate::clock::Now;
use crate::limits::Limit;
use crate::net::gate::{Gate, GateConfig};
use crate::net::time;
use crate::turn_server::auth::UserQuery;
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Questions that wait to be asked, of either kind.
const QUEUE: usize = 1024;

/// A question, and which worker has it.
pub(crate) type Asked = (usize, Arc<UserQuery>);

/// A worker's way to ask.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    worker: usize,
    queues: Option<Queues>,
    /// How often networks may ask about names that were never known.
    unknown_users: Option<Gate>,
    per_network: GateConfig,
}

/// Names that were known before wait apart, so that strangers' names hold none of them up.
#[derive(Debug, Clone)]
struct Queues {
    known: mpsc::Sender<Asked>,
    unknown: mpsc::Sender<Asked>,
}

impl Lookups {
    /// Makes the way to ask, and the receivers of what is asked: names that were known before, and others. Each network asks about others at
    /// the rate `per_network`.
    pub(crate) fn new(per_network: GateConfig) -> (Self, [mpsc::Receiver<Asked>; 2]) {
        let ((known, from_known), (unknown, from_others)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
        let queues = Some(Queues { known, unknown });
        (Self { queues, per_network, ..Self::default() }, [from_known, from_others])
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
        if !is_known && self.unknown_users.as_mut().is_some_and(|gate| !gate.takes(now, from)) {
            Limit::HookPerNetwork.reached(self.per_network.rate);
            return false;
        }
        let queue = if is_known { known } else { unknown };
        let queued = queue.try_send((self.worker, question)).is_ok();
        if !queued {
            Limit::HookQueue.reached(QUEUE);
        }
        queued
    }

    /// Returns the way of worker `worker` of `workers`.
    pub(crate) fn of(&self, worker: usize, workers: usize) -> Self {
        let gate = || Gate::new(&self.per_network, workers, time::now(), RandomState::new());
        Self {
            worker,
            queues: self.queues.clone(),
            unknown_users: self.queues.as_ref().map(|_| gate()),
            per_network: self.per_network.clone(),
        }
    }
}
