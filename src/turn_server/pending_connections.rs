//! Peer connections that wait for a ConnectionBind: the client's data connection may reach another worker than its allocation's
//! ([RFC 6062 section 5.4](https://www.rfc-editor.org/rfc/rfc6062#section-5.4)).

use crate::clock::TickBase;
use crate::limits::{Rate, SharedRateLimiter};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The value of CONNECTION-ID: a random id of a connection to a peer.
pub type ConnectionId = u32;

/// The bandwidth limit of one user, for bytes that the driver relays itself.
#[derive(Debug, Clone)]
pub struct UserBandwidth {
    pub(super) limiter: Arc<SharedRateLimiter>,
    pub(super) rate: Rate,
    pub(super) base: TickBase,
}

impl UserBandwidth {
    /// Consumes `bytes` at `now`; `false` when they must wait.
    #[must_use]
    pub fn try_take(&self, now: Instant, bytes: usize) -> bool {
        self.limiter.try_take(self.rate, self.base.ticks(now), bytes)
    }
}

impl PartialEq for UserBandwidth {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.limiter, &other.limiter)
    }
}

impl Eq for UserBandwidth {}

/// Peer connections of all workers that no client connection is bound to yet. Each allocation's share is capped by its relay.
#[derive(Debug, Default)]
pub(crate) struct PendingConnections(Mutex<HashMap<ConnectionId, PendingConnection>>);

#[derive(Debug)]
struct PendingConnection {
    user: Arc<str>,
    bandwidth: UserBandwidth,
}

impl PendingConnections {
    /// Adds a connection that `user` may bind.
    pub(super) fn insert(&self, id: ConnectionId, user: Arc<str>, bandwidth: UserBandwidth) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, PendingConnection { user, bandwidth });
    }

    /// Removes and returns the connection if it belongs to the user.
    pub(super) fn take(&self, id: ConnectionId, user: &str) -> Option<UserBandwidth> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.get(&id).filter(|connection| *connection.user == *user)?;
        pending.remove(&id).map(|connection| connection.bandwidth)
    }

    /// Removes a connection; `false` when it was taken.
    pub(super) fn remove(&self, id: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id).is_some()
    }

    /// Returns whether `id` waits.
    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }
}
