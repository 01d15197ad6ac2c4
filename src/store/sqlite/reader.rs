//! The threads that read, each with a connection of its own.

use super::call_queue::CallQueue;
use crate::store::{StoreError, StoreFuture};
use rusqlite::Connection;
use std::fmt;
use std::future::ready;
use tokio::sync::oneshot;

/// What a call is charged, and how much may wait.
const CALL_BYTES: usize = 512;
const MAX_QUEUED_BYTES: usize = 4096 * CALL_BYTES;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The callers' side of the threads.
pub(super) struct Readers(CallQueue<Read>);

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    pub(super) fn new() -> Self {
        Self(CallQueue::new(MAX_QUEUED_BYTES))
    }

    /// Queues a call.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        let (caller, answer) = oneshot::channel();
        let call = move |connection: &Connection| {
            if !caller.is_closed() {
                // The caller may have given up meanwhile.
                let _ = caller.send(operation(connection));
            }
        };
        match self.0.push(Box::new(call), CALL_BYTES) {
            Ok(()) => Box::pin(async { answer.await.unwrap_or(Err(StoreError::Closed)) }),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    /// Refuses further calls; the threads end after those that wait.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Reads until the readers are closed.
    pub(super) fn run(&self, connection: &Connection) {
        while let Some(call) = self.0.pop() {
            call(connection);
        }
    }
}
