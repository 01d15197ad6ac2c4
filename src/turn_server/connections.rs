//! Peer connections that wait to be bound: the client's second connection may reach another worker than its allocation's
//! ([RFC 6062 section 5.4](https://www.rfc-editor.org/rfc/rfc6062#section-5.4)).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What CONNECTION-ID carries: names a connection to a peer. Drawn at random.
pub type ConnectionId = u32;

/// Peer connections of all workers that no client connection is bound to yet. Each allocation's share is capped by its relay.
#[derive(Debug, Default)]
pub struct Connections(Mutex<HashMap<ConnectionId, Arc<str>>>);

impl Connections {
    /// Lets `user` bind a connection.
    pub(super) fn offer(&self, id: ConnectionId, user: Arc<str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, user);
    }

    /// Takes a connection for `user`, once. Whoever has no right to it leaves it as it is.
    pub(super) fn take(&self, id: ConnectionId, user: &str) -> bool {
        let mut offered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = offered.get(&id).is_some_and(|owner| **owner == *user);
        own && offered.remove(&id).is_some()
    }

    /// Takes an offer back; `false` when it was taken.
    pub(super) fn withdraw(&self, id: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id).is_some()
    }

    /// Returns whether `id` is offered.
    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }
}
