//! Peer connections that wait to be bound: the client's second connection may reach another worker than its allocation's
//! ([RFC 6062 section 5.4](https://www.rfc-editor.org/rfc/rfc6062#section-5.4)).

use super::rate::Pace;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What CONNECTION-ID carries: names a connection to a peer. Drawn at random.
pub type ConnectionId = u32;

/// Peer connections of all workers that no client connection is bound to yet. Each allocation's share is capped by its relay.
#[derive(Debug, Default)]
pub struct PendingConnections(Mutex<HashMap<ConnectionId, PendingConnection>>);

#[derive(Debug)]
struct PendingConnection {
    user: Arc<str>,
    pace: Pace,
}

impl PendingConnections {
    /// Lets `user` bind a connection.
    pub(super) fn insert(&self, id: ConnectionId, user: Arc<str>, pace: Pace) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, PendingConnection { user, pace });
    }

    /// Takes a connection for `user`, once. Whoever has no right to it leaves it as it is.
    pub(super) fn take(&self, id: ConnectionId, user: &str) -> Option<Pace> {
        let mut offered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        offered.get(&id).filter(|offer| *offer.user == *user)?;
        offered.remove(&id).map(|offer| offer.pace)
    }

    /// Takes an offer back; `false` when it was taken.
    pub(super) fn remove(&self, id: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id).is_some()
    }

    /// Returns whether `id` is offered.
    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }
}
